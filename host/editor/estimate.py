"""Estimates of a run before it begins: memory on the device and in RAM, offloaded weights, and time.

Sizes are exact, from file headers and shapes. How much is loaded follows the host's own rules. Times are measured in
earlier runs and scaled by the work if their size differed.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import comfy.model_management
import torch

from ...wan_model import checkpoint, geometry
from ...wan_model.dit.config import DiTConfig
from ...wan_model.dit.cost import Shapes, clip_tokens, forward_bytes, largest_weight
from ...wan_model.dit.model import dit_config
from ...wan_model.kernels.fused import vae_runtime
from ...wan_model.vae import fit_decode, plan_decode
from ...wan_model.variants.distilled import Preset
from ...wan_model.variants.rollout import Rollout, rollout_of
from .. import files
from ..model import memory, precision
from ..model.classes import HostModel, config_class
from ..model.loading import CAUSAL
from ..observe import timing
from ..parallel.devices import parse
from ..parallel.sharding import REPLICA, SHARDED, STACKS
from ..sampling import presets
from ..vae import vae as host_vae

FOLDER = "diffusion_models"
RANGES = {  # of the numbers in a query
    "width": (geometry.MIN_SIDE, geometry.MAX_SIDE),
    "height": (geometry.MIN_SIDE, geometry.MAX_SIDE),
    "length": (1, geometry.MAX_LENGTH),
    "batch_size": (1, 64),
    "steps": (1, 1000),
    "guidance": (1, 30),
}
DEFAULTS = {
    "weight_dtype": "auto",
    "causal": "auto",
    "batch_size": "1",
    "steps": "30",
    "guidance": "5",
    "preset": presets.NONE,
    "names": "",
    "devices": "",
    "weights": REPLICA,
}
GIB = 2**30


@dataclass(frozen=True)
class Part:
    """A model of a run.

    weights: bytes that its weights take. dtype: what it computes in. rollout: how a causal model is run in blocks.
    preset: as `presets.told_by`. stacks: number of blocks of each stack, and bytes of all of them.
    """

    name: str
    config: DiTConfig
    weights: int
    dtype: torch.dtype
    rollout: Rollout | None = None
    preset: Preset | None = field(default=None, compare=False)
    stacks: tuple[tuple[int, int], ...] = ()

    @property
    def identity(self) -> str:
        """Key under which its measured times are kept."""
        return timing.identity(self.name, self.dtype)

    def held(self, place: "Place") -> int:
        """Return the bytes of weights that one device of `place` has, with the two blocks that it borrows at a time."""
        if not place.is_sharded:
            return self.weights
        lacked = sum(size // count * (count - -(-count // place.count) - 2) for count, size in self.stacks)
        return self.weights - lacked


@dataclass(frozen=True)
class Place:
    """Where models run. free: bytes that a model and its activations may take there; ram: free bytes of RAM.

    own_memory: whether the device has its own memory, so that weights can be offloaded to RAM. count: devices that
    share each forward, of which this is one; is_sharded: whether they share the weights, too.
    """

    name: str
    free: int
    ram: int
    own_memory: bool
    count: int = 1
    is_sharded: bool = False


def part_of_file(
    name: str, weight_dtype: str = "auto", vace_name: str | None = None, causal: bool | None = None
) -> Part:
    """Return the model that WanModelLoader makes from files of models/diffusion_models; only headers are read.

    Raise ValueError for a name that is not in that folder, a file that holds no Wan model, and another weight_dtype.
    """
    if weight_dtype not in precision.CHOICES:
        raise ValueError(f"There is no weight_dtype '{weight_dtype[:40]}': choose {', '.join(precision.CHOICES)}.")
    path = files.path(FOLDER, name)
    found = checkpoint.expect(path, checkpoint.DIT, "WanModelLoader", causal)
    paths, tensors, config = checkpoint.parts(path), dict(found.tensors), found.config
    if vace_name is not None:
        module = files.path(FOLDER, vace_name)
        tensors |= checkpoint.expect(module, checkpoint.VACE_MODULE, "vace_name of WanModelLoader").tensors
        paths, config = [*paths, *checkpoint.parts(module)], dit_config(tensors)
    weights, compute = precision.dtypes(config_class(found.variant), tensors, weight_dtype, bool(found.quantisation))
    if weights is None:  # as it is in the files
        size = sum(map(os.path.getsize, paths))
        sizes = {key: tensor.nbytes for key, tensor in tensors.items()}
    else:
        stored = precision.stored(tensors, weights, compute)
        sizes = {key: tensor.numel() * stored[key].itemsize for key, tensor in tensors.items()}
        size = sum(sizes.values())
    name = os.path.basename(name)
    preset = presets.told_by(found.sampling, config.facts.causal, [name])
    return Part(name, config, size, compute or weights, _rollout(config, found.rollout, name), preset, _stacks(sizes))


def part_of_model(model, rollout: Rollout | None = None) -> Part | None:
    """Return the part of a MODEL of this pack, or None for another model, whose cost is unknown.

    rollout: of this run, None for that of the file.
    """
    if not isinstance(model.model, HostModel):
        return None
    host = model.model
    config, size = host.diffusion_model.config, comfy.model_management.module_size(host.diffusion_model)
    rollout = _rollout(config, rollout or host.rollout, host.source)
    sizes = {name: weight.nbytes for name, weight in host.diffusion_model.named_parameters()}
    return Part(host.source, config, size, host.compute_dtype, rollout, host.preset, _stacks(sizes))


def _stacks(sizes: Mapping[str, int]) -> tuple[tuple[int, int], ...]:
    """Return `Part.stacks` from the bytes of each weight."""
    stacks: dict[str, dict[str, int]] = {}
    for name, size in sizes.items():
        stack, _, rest = name.partition(".")
        if stack in STACKS:
            blocks, index = stacks.setdefault(stack, {}), rest.partition(".")[0]
            blocks[index] = blocks.get(index, 0) + size
    return tuple((len(blocks), sum(blocks.values())) for blocks in stacks.values())


def _rollout(config: DiTConfig, told: Rollout | None, name: str) -> Rollout | None:
    return (told or rollout_of(name)) if config.facts.causal else None


def blocks_of(part: Part, shape: Sequence[int], guided: bool, place: Place) -> memory.Blocks | None:
    """Return how a causal model takes a latent of `shape` (B, C, F, H, W) in blocks, None for another model.

    Its cache lies in RAM where the device has no room for it beside the weights that the host leaves there in any case.
    """
    if part.rollout is None:
        return None
    shape = ((2 if guided else 1) * shape[0], *shape[1:])
    blocks = memory.Blocks(part.rollout.block, part.rollout.window)
    stays = min(part.held(place), place.free * comfy.model_management.MIN_WEIGHT_MEMORY_RATIO)
    fits = memory.fits(part.config, shape, part.dtype, blocks, place.free - stays, place.count)
    return blocks._replace(in_ram=place.own_memory and not fits)


def here(count: int = 1, weights: str = REPLICA) -> Place:
    """Return the host's device with the memory that is free once all loaded models are unloaded.

    count: devices that share each forward, of which this is one. weights: as WanParallel has it.
    """
    management = comfy.model_management
    device = management.get_torch_device()
    free = management.get_free_memory(device)
    own_memory = device.type != "cpu"
    if own_memory:
        free += sum(m.model_loaded_memory() for m in management.current_loaded_models if m.model and m.device == device)
    ram = management.get_free_memory(torch.device("cpu"))
    name = timing.on_several(management.get_torch_device_name(device), count)
    return Place(name, int(free), int(ram), own_memory, count, weights == SHARDED and count > 1)


def estimate(
    parts: Sequence[Part], shape, steps: int, guided: bool, place: Place, shapes: Shapes | None = None
) -> dict:
    """Return the cost of sampling as plain values for JSON, in bytes and seconds.

    parts: the models of the run, one after the other. shape: of the latent (B, C, F, H, W). guided: whether each step
    predicts two prompts. shapes: of the conditions that are given.
    Always `device`, `tokens`, `steps`, `calls` (of the network), `peak` (weights and activations on the device),
    `free`, `fits`, `offloaded` (weights that are brought for each step), `ram` (what is needed of it), `ram_free` and
    `models` (of each: `name`, `weights`, `resident`, `offloaded`, `activations`, `together` whether both prompts are
    predicted at once, `chunk`, tokens projected at once, or None, and `cache_in_ram`, bytes of a causal model's keys
    and values that lie there). A causal model runs all `steps` for each block of frames.
    `seconds_per_step` and `seconds` are None, and `measured` is "", until a run was measured; then `measured` says
    where ("this size" or "another size").
    """
    models = [_on_device(part, shape, guided, place, shapes) for part in parts]
    weights, count, prompts = sum(part.weights for part in parts), clip_tokens(shape), 2 if guided else 1
    peak = max(model["resident"] + model["activations"] for model in models)
    if place.own_memory:  # RAM holds everything that is not on the device at the time
        ram = max(weights - model["resident"] + model["cache_in_ram"] for model in models)
    else:
        ram = weights + max(model["activations"] for model in models)
    at_once, forwards = _forwards(parts[0], shape, steps)
    length = clip_tokens((1, *at_once[1:]))
    seconds, measured = timing.expected(parts[0].config, parts[0].identity, place.name, length)
    per_step = None if seconds is None else seconds * shape[0] * prompts
    return {
        "device": place.name,
        "tokens": count,
        "steps": steps,
        "calls": forwards * prompts,
        "peak": peak,
        "free": place.free,
        "fits": peak <= place.free and ram <= place.ram,
        "offloaded": max(model["offloaded"] for model in models),
        "ram": ram,
        "ram_free": place.ram,
        "seconds_per_step": per_step,
        "seconds": None if per_step is None else per_step * forwards,
        "measured": measured,
        "models": models,
    }


def _forwards(part: Part, shape: Sequence[int], steps: int) -> tuple[Sequence[int], int]:
    """Return the shape of the latents that a forward is given, and how many forwards of a prompt a run has."""
    if part.rollout is None:
        return shape, steps
    blocks = max(1, shape[2] // part.rollout.block)
    return memory.Blocks(part.rollout.block, part.rollout.window).one(shape), blocks * (steps + 1) - 1


def decoding(name: str, shape: Sequence[int], place: Place) -> dict:
    """Return the memory in bytes that a file of models/vae needs to decode a latent of `shape` (B, C, F, H, W).

    `name`, `weights`, `activations`, `peak` (both), and `tiles`: how many a frame is cut into for the free memory.
    Raise ValueError for a name that is not in that folder, a file that holds no Wan VAE, and one of other latents.
    """
    found = checkpoint.expect(files.path("vae", name), checkpoint.VAE, "WanVAELoader")
    config, (dtype, encode_dtype) = found.config, host_vae.choose_dtypes()
    host_vae.check_channels(config.latent_channels, shape[1])
    weights = sum(
        tensor.numel() * (encode_dtype if key.startswith(("encoder.", "conv1.")) else dtype).itemsize
        for key, tensor in found.tensors.items()
    )
    runtime = vae_runtime(comfy.model_management.vae_device())
    tile = fit_decode(config, shape, (place.free - weights) * host_vae.USABLE, dtype, runtime)
    plan = plan_decode(config, shape, tile, dtype, runtime)
    return {
        "name": os.path.basename(name),
        "weights": weights,
        "activations": plan.peak_bytes,
        "peak": weights + plan.peak_bytes,
        "tiles": len(plan.cores),
    }


def from_query(query: Mapping[str, str]) -> dict:
    """Return `estimate` for inputs of the nodes, given as strings under their names there.

    model, width, height and length are required. low_noise_model is the second expert of A14B, vace_name the loader's.
    weight_dtype, batch_size, steps, guidance and preset have defaults; names are the files of models and LoRAs, one per
    line, by which the preset "auto" chooses; causal is the loader's; devices and weights are those of WanParallel, if
    there is one. With vae, a file of models/vae, `peak` and `fits` count its `decoding` too, which else is None. Raise
    ValueError for a number that is missing or out of range, and as `part_of_file` and `decoding` do.
    """
    given = {**DEFAULTS, **query}
    width, height, length, batch, steps, guidance = (number(name, given, RANGES) for name in RANGES)
    names = [given.get("model", ""), *filter(None, [given.get("low_noise_model")])]
    causal = CAUSAL.get(given["causal"])
    parts = [part_of_file(name, given["weight_dtype"], given.get("vace_name"), causal) for name in names]
    config = parts[0].config
    stride = config.facts.family.stride
    shape = (
        int(batch),
        config.out_dim,
        geometry.latent_frames(int(length)),
        int(height) // stride,
        int(width) // stride,
    )
    place = here(parse(given["devices"]).size if given["devices"] else 1, given["weights"])
    shapes = vace_shapes(config, 1)
    steps, guided = _sampling(given, int(steps), guidance, len(parts) > 1, parts[0].preset)
    found = estimate(parts, shape, steps, guided, place, shapes) | {"decoding": None}
    if given.get("vae"):
        decoded = found["decoding"] = decoding(given["vae"], shape, place)
        found["peak"] = max(found["peak"], decoded["peak"])
        found["fits"] = found["fits"] and decoded["peak"] <= place.free
    return found


def vace_shapes(config: DiTConfig, contexts: int) -> Shapes:
    """Return batch and number of VACE contexts, on which the cost of a forward depends; nothing for other models."""
    return {"vace_context": (1, contexts)} if contexts and config.part("vace") else {}


def sentence(found: dict) -> str:
    """Return the result of `estimate` as a sentence."""
    names = " and ".join(model["name"] for model in found["models"])
    text = f"{found['tokens']:,} tokens, {found['steps']} steps of {names}: {found['peak'] / GIB:.1f} of "
    text += f"{found['free'] / GIB:.1f} GiB free on {found['device']}"
    if found["offloaded"]:
        text += f", {found['offloaded'] / GIB:.1f} GiB of weights offloaded to RAM"
    if found["seconds"] is not None:
        text += f", about {found['seconds']:.0f} s ({found['seconds_per_step']:.1f} s a step, measured at "
        text += f"{found['measured']})"
    if not found["fits"]:
        text += ". It may not fit: choose a smaller size or length, or an fp8 or GGUF file"
    return f"{text}."


def _sampling(
    given: Mapping[str, str], steps: int, guidance: float, is_pair: bool, told: Preset | None
) -> tuple[int, bool]:
    """Return how many steps the run has and whether it is guided, with the preset that is chosen."""
    widgets = presets.Settings(steps, guidance, low_noise_guidance=0.0, shift=1.0, solver="euler")
    chosen = presets.Choice(given["preset"], widgets, given["names"].splitlines(), is_pair, told).settings
    return chosen.count, any(scale != 1 for scale in chosen.guidances)


def number(name: str, given: Mapping[str, str], ranges: Mapping[str, tuple[float, float]]) -> float:
    """Return the number `name` of a query; raise ValueError if it is missing or outside its range."""
    (least, most), text = ranges[name], given.get(name, "")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise ValueError(f"{name} is '{text[:40]}': give a number from {least} to {most}.")
    return value


def _on_device(part: Part, shape, guided: bool, place: Place, shapes: Shapes | None) -> dict:
    """Return how much of a model the host loads (as its `load_models_gpu` decides) and the memory of a forward then."""
    management, config, blocks = comfy.model_management, part.config, blocks_of(part, shape, guided, place)
    least = memory.needed(config, shape, part.dtype, shapes, blocks, place.count)
    resident = held = part.held(place)
    if place.own_memory:
        inference = management.minimum_inference_memory()
        room = place.free - max(inference, least + management.extra_reserved_memory())
        some = min(place.free * management.MIN_WEIGHT_MEMORY_RATIO, place.free - inference)
        resident = int(min(held, max(0, room, some)))
    left = place.free - resident
    double = (2 * shape[0], *shape[1:])
    together = guided and 1.5 * memory.needed(config, double, part.dtype, shapes, blocks, place.count) < left
    at_once = double if together else shape
    if blocks is not None:
        at_once = blocks.one(at_once)
    chunk = memory.IN_CACHES
    if place.own_memory:
        chunk = memory.choose_chunk(config, at_once, part.dtype, left, shapes=shapes, devices=place.count)
    activations = forward_bytes(config, at_once, part.dtype, shapes=shapes, chunk=chunk, devices=place.count)
    activations += memory.kept(config, double if guided else shape, part.dtype, blocks, place.count)
    return {
        "name": part.name,
        "weights": part.weights,
        "resident": resident,
        "offloaded": held - resident,
        "activations": activations + (largest_weight(config, part.dtype) if resident < held else 0),
        "together": together,
        "chunk": chunk,
        "cache_in_ram": memory.in_ram(config, double if guided else shape, part.dtype, blocks),
    }
