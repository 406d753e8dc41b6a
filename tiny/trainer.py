"""One training run, by one process or several: optimiser, averaged weights, progress and a state to go on from."""

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from . import precision
from wan_model.vae.model import innermost

SAVE_EVERY = 100  # steps


def cosine(step: int, steps: int, peak: float, warm_up: int = 50) -> float:
    """A learning rate that rises to `peak` in `warm_up` steps and falls to 0 at `steps`."""
    return peak * min(1, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps))


@contextmanager
def process_group() -> Iterator[None]:
    """Train together with the other processes that torchrun has started, if it has.

    The group is left at the end: a process that exits within one aborts now and then, as its threads still run.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def first_alone() -> Iterator[None]:
    """Let the first of several processes run the body before the others do."""
    rank, processes = place()
    if rank > 0:
        dist.barrier()
    yield
    if rank == 0 and processes > 1:
        dist.barrier()


def place() -> tuple[int, int]:
    """Number of this process among those that train together, and how many they are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class Trainer:
    """Trains what asks for a gradient in `model`, for `steps` steps; `averaged` is what is shipped.

    The averaged weights follow the trained ones exponentially, by 1 - `average` a step. The gradients are computed by
    a copy of the model in `precision.DTYPE`, but for the parameters that `exact` names; the weights and the
    optimiser's state are float32. rate: learning rate of each step. Matrices that `matrices` names are trained by
    Muon, all else by AdamW. rounded: the values that the file can hold of a weight of that name; the gradients are
    those at these values, so that training makes up for the rounding. folder: where the log and the state lie; with a
    state there, the run goes on from it. In a process group each process computes gradients of its own and all follow
    their mean.
    """

    def __init__(
        self,
        model: nn.Module,
        folder: Path,
        steps: int,
        rate: Callable[[int], float],
        *,
        average: float = 0.998,
        matrices: Callable[[str], bool] = lambda name: False,
        exact: Callable[[str], bool] = lambda name: False,
        rounded: Callable[[str, Tensor], Tensor] = lambda name, weight: weight,
    ):
        self.model, self.folder, self.steps, self.rate, self.average = model, folder, steps, rate, average
        self.rounded = rounded
        self.work = copy.deepcopy(model).train()
        for name, parameter in self.work.named_parameters():
            parameter.data = innermost(parameter.data if exact(name) else parameter.data.to(precision.DTYPE))
        self.averaged = copy.deepcopy(model).requires_grad_(False)
        self.flat, adam = {}, []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.ndim > 1 and matrices(name):
                self.flat[name] = nn.Parameter(parameter.data.view(len(parameter), -1))  # the same memory
            elif parameter.requires_grad:
                adam.append(parameter)
        self.optimisers = [torch.optim.AdamW(adam, betas=(0.9, 0.98), weight_decay=0.0)]
        muon = list(self.flat.values())
        if muon:
            self.optimisers.append(torch.optim.Muon(muon, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
        self.done = 0
        self.rank, self.processes = place()
        folder.mkdir(parents=True, exist_ok=True)
        if self.state.exists():
            self._resume()

    @property
    def state(self) -> Path:
        """The file that a stopped run goes on from."""
        return self.folder / "state.pt"

    def run(self, loss: Callable[[nn.Module, int], Tensor]) -> list[float]:
        """Train to the last step. loss(model, seed) -> scalar, whose randomness is that of the seed.

        Returns the losses of the steps that it made.
        """
        losses, began = [], time.monotonic()
        steps = range(self.done, self.steps)
        bar = tqdm(steps, initial=self.done, total=self.steps, mininterval=5, disable=self.rank > 0)
        for step in bar:
            value = loss(self.work, step * self.processes + self.rank)
            value.backward()
            self._update(step)
            losses.append(value.item())
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"The loss of step {step} is {losses[-1]}: lower the learning rate.")
            self.done = step + 1
            if self.done % 10 == 0:
                bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.4f}")
            if self.rank == 0 and (self.done % SAVE_EVERY == 0 or self.done == self.steps):
                self._save(losses[-SAVE_EVERY:], time.monotonic() - began)
        return losses

    def _update(self, step: int) -> None:
        for parameter, worker in zip(self.model.parameters(), self.work.parameters(), strict=True):
            parameter.grad = None if worker.grad is None else worker.grad.float()
            worker.grad = None
        self._share_gradients()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for name, flat in self.flat.items():
            grad = self.model.get_parameter(name).grad
            flat.grad = None if grad is None else grad.flatten(1)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.rate(step)
            optimiser.step()
        keep = min(self.average, (step + 1) / (step + 10))  # follows closely at first
        with torch.no_grad():
            copies = (self.work.parameters(), self.averaged.parameters())
            for (name, parameter), worker, averaged in zip(self.model.named_parameters(), *copies, strict=True):
                worker.copy_(self.rounded(name, parameter))
                averaged.lerp_(parameter, 1 - keep)

    def _share_gradients(self) -> None:
        if self.processes == 1:
            return
        grads = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        mean = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(mean)
        mean /= self.processes
        for grad, part in zip(grads, mean.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def _save(self, losses: list[float], seconds: float) -> None:
        partial = self.state.with_suffix(".partial")
        torch.save(
            {
                "done": self.done,
                "model": self.model.state_dict(),
                "averaged": self.averaged.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            },
            partial,
        )
        partial.replace(self.state)
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps({"step": self.done, "loss": sum(losses) / len(losses), "seconds": seconds}) + "\n")

    def _resume(self) -> None:
        state = torch.load(self.state, weights_only=True)
        self.done = state["done"]
        self.model.load_state_dict(state["model"])
        self.work.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
