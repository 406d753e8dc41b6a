"""MODEL: the forwards of its runs are shared with the other processes of a group."""

import dataclasses
import json
import logging
import math
from contextlib import contextmanager

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP

from ...wan_model.parallel import rows_of
from ...wan_model.variants import PATCH
from .. import compat
from ..model import attention, causal
from ..model.dit import SHARED
from . import description, link, rollout, sharding, wire
from .devices import Devices
from .team import Team, TeamError, running

KEY = "wan_parallel"  # of the wrapper
AUTO, TOKENS = "auto", "tokens"
WAYS = (AUTO, TOKENS)
HELD = 2  # models in the other processes: the experts of A14B


@dataclasses.dataclass(frozen=True)
class Outer:
    """The host's wrapper around a run. way: one of `WAYS`. weights: one of `sharding.WEIGHTS`."""

    devices: Devices
    way: str
    weights: str = sharding.REPLICA

    def __call__(self, executor, noise, *arguments, **options):
        """Run with the group: started, and with the model loaded in each process while this one loads it."""
        guider = executor.class_obj
        whole = guider.model_patcher
        run = Run(running(self.devices), self, whole, noise.shape)
        guider.model_options["transformer_options"][SHARED] = run
        guider.model_patcher = run.patcher
        whole.model.devices = self.devices.size
        try:
            return executor(noise, *arguments, **options)
        finally:
            whole.model.devices = 1
            guider.model_patcher = whole
            run.end()


def apply(model, devices: Devices, way: str, weights: str = sharding.REPLICA):
    """Return a clone of the MODEL `model` whose runs are shared by `devices`; `model` itself for one device.

    Raise ValueError for a model whose weights cannot be described to other processes.
    """
    if devices.size == 1:
        return model
    description.Source.of(model.model)
    description.patches(model)
    clone = model.clone()
    clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, Outer(devices, way, weights))
    return clone


def shared_by(model) -> tuple[int, str]:
    """Return how many devices share a forward of the MODEL `model`, and which of `sharding.WEIGHTS` they have."""
    wrappers = model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)
    return (wrappers[0].devices.size, wrappers[0].weights) if wrappers else (1, sharding.REPLICA)


class Run:
    """The forwards of one run: the `SHARED` of its transformer_options.

    patcher: what the host loads for it, the MODEL itself or this process's part of it.
    """

    def __init__(self, team: Team, outer: Outer, whole, shape):
        self.team, self.way, self.weights, self.has_begun = team, outer.way, outer.weights, False
        source = description.Source.of(whole.model)
        self.key = json.dumps([*dataclasses.astuple(source), self.weights])
        with team.lock:
            self.number = self._describe(source, whole, list(shape))
            self.shard = sharding.Shard(whole, team.link) if self.weights == sharding.SHARDED else None
        self.whole, self.patcher = whole, self.shard.patcher if self.shard else whole

    @property
    def size(self) -> int:
        """How many devices share a forward."""
        return self.team.devices.size

    def __deepcopy__(self, memo):
        return self  # another pack may copy the options of a run

    def _describe(self, source: description.Source, patcher, shape: list[int]) -> int:
        """Have the others load the model, and return the number of that message."""
        lone = {key: id(value) for key, value in patcher.object_patches.items() if key.startswith(description.NETWORK)}
        version, known, tensors = (str(patcher.patches_uuid), lone), self.team.loaded.get(self.key), []
        patches = wire.pack(description.patches(patcher), tensors) if known != version else None
        self.changed = len(patcher.patches) + len(lone)
        forget = [key for key in self.team.loaded if key != self.key][: -HELD + 1 or None]
        number = self.team.ask(
            "load", tensors, key=self.key, source=dataclasses.asdict(source), patches=patches, shape=shape,
            changed=self.changed, forget=forget, weights=self.weights,
        )  # fmt: skip
        wire.send(tensors, self.team.link.control, torch.device("cpu"))
        for key in (*forget, self.key):
            self.team.loaded.pop(key, None)
        self.team.loaded[self.key] = version  # the newest is last
        return number

    def _settle(self) -> None:
        """Wait until the others have loaded the model; raise ValueError where one cannot."""
        if self.number is None:
            return
        answers, self.number = self.team.answers(self.number), None
        for rank, answer in enumerate(answers, 1):
            if "error" in answer or answer["changed"] != self.changed:
                self.team.loaded.pop(self.key)
                found = answer.get("error") or f"it changed {answer['changed']} weights of {self.changed}"
                raise ValueError(f"Process {rank} (on {self.team.devices.name(rank)}) cannot load the model: {found}")
            if self.shard and answer["form"] != self.shard.form:
                raise ValueError(
                    f"Process {rank} (on {self.team.devices.name(rank)}) stores the weights in another form than "
                    "ComfyUI and cannot lend them: choose another weight_dtype than auto in WanModelLoader, or replica "
                    "as weights."
                )
        if self.shard:
            held = [size // 2**20 for size in (self.shard.nbytes, *(answer["nbytes"] for answer in answers))]
            whole = self.whole.model_size() // 2**20
            logging.info("Wan Parallel: of %d MiB of weights the devices hold %s, buffers included.", whole, held)

    def end(self) -> None:
        """Give the MODEL its blocks back, whether the run has ended well or not."""
        if self.shard:
            self.shard.release()
            if self.team.is_open:
                self.shard.settle()

    def forward(self, model, x, t, context, *, runtime, **given):
        """Run `model` with the others. Raise TeamError if one fails, ValueError for what cannot be sent."""
        split = self.way == AUTO and causal.STATE not in runtime.options  # whose caches belong to one prompt each
        rows = rows_of(len(x), self.team.devices.size) if split else 1
        frame = math.prod(-(-side // patch) for side, patch in zip(x.shape[3:], PATCH[1:], strict=True))
        options = runtime.options
        description.check_options(model.__self__, options)
        with self.team.lock:
            self.team.check()
            self._settle()
            if frame < self.team.devices.size // rows:
                self._check_alone(frame)
                return model(x, t, context, runtime=runtime, **given)
            tensors: list[torch.Tensor] = []
            content = self._described(options, rows, {"x": x, "t": t, "context": context, **given}, tensors)
            with compat.without_interrupts(), self._to_the_end():
                self.team.ask("forward", tensors, **content)
                wire.send(tensors, self.team.link.data, self.team.link.device)
                if self.shard:
                    runtime = self.shard.lent(runtime)
                v = self.team.link.mesh(rows).forward(model, x, t, context, runtime=runtime, **given)
                self.team.finish(v)
                return v

    def _check_alone(self, frame: int) -> None:
        """Raise ValueError if this process cannot run a forward alone. frame: tokens of a frame, too few to share."""
        if self.shard:
            raise ValueError(
                f"A frame has {frame} tokens, too few for {self.team.devices.size} devices with sharded weights: "
                "choose a larger size, fewer devices, or replica as weights."
            )

    def _described(self, options: dict, rows: int, given: dict, tensors: list[torch.Tensor]) -> dict:
        """Return a forward as the others are told of it, and put what it reads into `tensors`."""
        override = options.get(attention.OVERRIDE)
        if override is not None and attention.name_of(override) is None:
            raise ValueError(
                "Another node replaces the attention, and cannot be sent to other devices: choose the attention in "
                "WanModelLoader, or connect the model without Wan Parallel."
            )
        return {
            "key": self.key,
            "rows": rows,
            "exact": attention.name_of(override) == "exact",
            "rope_options": options.get("rope_options") or {},
            "causal": rollout.described(options, given["x"], self.team.name),
            "given": wire.pack(given, tensors),
        }

    @contextmanager
    def _to_the_end(self):
        """A forward: if it fails, the others do not wait for it."""
        self.has_begun = self.is_over = False
        try:
            yield
            self.is_over = True
        except ValueError:  # inputs that do not fit, which the others find too
            self.is_over = not self.has_begun and self.team.link.agree(link.ERROR) > 0
            raise
        finally:
            if not self.is_over:
                self.team.close()

    def check(self) -> None:
        """Ask the others before a block, and tell them if the user has cancelled. Raise if one gives up."""
        self.has_begun = True
        is_cancelled = comfy.model_management.processing_interrupted()
        flags = self.team.link.agree(link.CANCEL if is_cancelled else 0)
        self.is_over = flags > 0
        if flags >= link.ERROR:
            raise TeamError("Another process could not begin this step, and its log says why: run the prompt again.")
        if is_cancelled:
            comfy.model_management.interrupt_current_processing(False)
            raise comfy.model_management.InterruptProcessingException
