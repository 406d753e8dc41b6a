"""Our MODEL and the host's own class of it, both from the same small file, and what each makes of the same run."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.sd
import torch
from safetensors.torch import save_file
from torch import Tensor

from tiny import random_weights

import nodes

TEXT_DIM, CLIP_DIM = 4096, 1280  # the host's own class takes no other
ERRORS = (AssertionError, AttributeError, IndexError, KeyError, NameError, RuntimeError, TypeError, ValueError)


def write(models: Path, kind: str, width: int = 256, seed: int = 0) -> Path:
    """The file of `random_weights` for `kind`, such as "wan2.1_t2v", as the host's own class takes it.

    width: of the tokens, a multiple of 128. seed: tells files of one kind apart.
    """
    tiny = next(file for file in random_weights.FILES if file.name == f"tiny_random_{kind}.safetensors")
    usual = 2 * random_weights.HEAD
    widths = {full: small // usual * width for full, small in tiny.widths.items() if full not in (TEXT_DIM, CLIP_DIM)}
    path = models / "diffusion_models" / f"beside_{kind}_{width}_{seed}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(random_weights.state_dict(replace(tiny, widths=widths, seed=seed)), path)
    return path


@dataclass(frozen=True)
class Pair:
    """A MODEL of ours and one of the host's own class, from the same file, in float32."""

    ours: object
    theirs: object

    def each(self, function: Callable) -> "Pair":
        """Return the results of `function` for both."""
        return Pair(function(self.ours), function(self.theirs))


def load(loading, path: Path) -> Pair:
    """The pair of a file; loading: our module of that name."""
    return Pair(
        loading.load(str(path), "float32"),
        comfy.sd.load_diffusion_model(str(path), model_options={"dtype": torch.float32}),
    )


def prompts(seeds: tuple[int, ...] = (3, 4), **options: object) -> list:
    """A positive and a negative CONDITIONING of random tokens, padded as the host's umT5 does."""
    conditionings = []
    for seed in seeds:
        text = torch.zeros(1, 512, TEXT_DIM)
        text[:, : 10 * seed] = torch.randn(1, 10 * seed, TEXT_DIM, generator=torch.Generator().manual_seed(seed))
        conditionings.append([[text, dict(options)]])
    return conditionings


def latent(channels: int = 16, frames: int = 5) -> dict:
    """An empty LATENT of `frames` x 4 x 5 tokens."""
    return {"samples": torch.zeros(1, channels, frames, 8, 10)}


def sample(model, positive, negative, clip: dict | None = None, cfg: float = 4.0, steps: int = 4) -> Tensor:
    """The latent that the host's KSampler makes."""
    clip = latent() if clip is None else clip
    return nodes.common_ksampler(model, 5, steps, cfg, "euler", "simple", positive, negative, clip)[0]["samples"]


def attempt(function: Callable[[], object]) -> object:
    """Return the result of `function`, or its error as "type: message"."""
    try:
        return function()
    except ERRORS as error:
        return f"{type(error).__name__}: {error}"


def run(node: str, **inputs: object) -> tuple:
    """Outputs of one of the host's nodes, of either form."""
    node_class = nodes.NODE_CLASS_MAPPINGS[node]
    if hasattr(node_class, "PREPARE_CLASS_CLONE"):
        return node_class.PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(**inputs).result
    result = getattr(node_class(), node_class.FUNCTION)(**inputs)
    return result.get("result", ()) if isinstance(result, dict) else result
