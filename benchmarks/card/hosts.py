"""Checks of the pack inside ComfyUI: the demo family, precision, quantised files and partial loading."""

import importlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import writers
from safetensors.torch import save_file

from tiny import GUIDANCE, SHIFT, STEPS, evaluate, family, judge

from .items import Here, Wrong, below, item, relative
from .models import golden, not_slow

SHARE = 0.1  # of the weights that find room on the device in a partial load
T2V = "diffusion_models/tiny_random_wan2.1_t2v.safetensors"
STORED = {
    "float32": 1e-4,
    "bfloat16": 5e-2,
    "float16": 2e-2,
    "fp8_e4m3fn": 0.4,
    "fp8_e4m3fn_fast": 0.4,
    "fp8_e5m2": 0.6,
}
GGUF = ("Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
PARTLY = ("plain", "lora", "gguf", "gguf lora", "fp8")
_numbers = itertools.count()


def management():
    """Return the host's module of that name."""
    return importlib.import_module("comfy.model_management")


def unload() -> None:
    """Free the device."""
    management().unload_all_models()
    management().soft_empty_cache()


def load(here: Here, file: str = T2V, dtype: str = "float32", **options):
    """Return the MODEL of a file."""
    return here.room("host.model.loading").load(str(here.models / file), dtype, **options)


def write(here: Here, tensors: dict, metadata: dict | None = None) -> str:
    """Save tensors to a file of their own; return its path."""
    path = here.folder / f"{next(_numbers)}.safetensors"
    save_file({name: x.contiguous() for name, x in tensors.items()}, path, metadata=metadata)
    return str(path)


def texts(width: int) -> list:
    """Return two CONDITIONINGs of random tokens."""
    generator = torch.Generator().manual_seed(3)
    return [[[torch.randn(1, 9, width, generator=generator), {}]] for _ in range(2)]


def sample(here: Here, model, **given) -> torch.Tensor:
    """Return the latent that WanSampler makes, by default of two steps on a small clip."""
    positive, negative = texts(model.model.diffusion_model.config.text_dim)
    usual = {"steps": 2, "guidance": 4.0, "shift": 5.0, "solver": "unipc", "seed": 11, "denoise": 1.0}
    usual |= {"positive": positive, "negative": negative, "latent": {"samples": torch.zeros(1, 16, 3, 8, 10)}}
    return here.node("WanSampler", model=model, **(usual | given))[0]["samples"]


def velocity(model) -> torch.Tensor:
    """Return what the network of a golden case's MODEL makes of its input, loaded as for sampling."""
    given = golden("dit_t2v")[1]
    management().load_models_gpu([model])
    dtype, device = model.model.compute_dtype, model.load_device
    x, t, context = (given[name].to(device) for name in ("x", "t", "context"))
    return model.model.diffusion_model(x[None].to(dtype), t, context[None].to(dtype)).float().cpu()


@item("demo family", "host", "dynamic", over=[("float32",), ("bfloat16",), ("float16",), ("auto",)])
def demo_family(here: Here, dtype: str):
    """Return what is seen in the clip of a prompt, by the nodes' objects from text to pixels and back to a latent."""
    if dtype == "float16":
        not_slow(here, torch.float16)
    clips, (_, prompt) = here.room("host.encoders.clip"), evaluate.held_out(0)
    clip = clips.load(str(family.path("umt5")))
    model = here.room("host.model.loading").load(str(family.path("t2v")), dtype)
    vae = here.room("host.vae.vae").load(str(family.path("vae")), dtype, dtype)
    encoded = {name: clips.encode_prompt(clip, text, name) for name, text in (("positive", prompt), ("negative", ""))}
    run = {"steps": STEPS, "guidance": GUIDANCE, "shift": SHIFT, "seed": 1}
    latent = sample(here, model, **encoded, **run, latent={"samples": torch.zeros(1, 16, *family.SIZE)})
    images = vae.decode(latent)
    seen = judge.look(images[0].permute(3, 0, 1, 2).float() * 2 - 1)
    if not all(str(word) in prompt for word in (seen.colour, seen.shape)):
        raise Wrong(f"the prompt was {prompt!r} and the clip shows {seen}")
    error = below(relative(vae.encode(images[0]).float(), latent.float()), 0.5, "the error of the latent encoded again")
    return {"seen": str(seen), "compute": str(model.model.compute_dtype), "vae": str(vae.vae_dtype), "again": error}


@item("golden in the host", "host", "dynamic", over=[(name,) for name in STORED])
def golden_in_the_host(here: Here, choice: str):
    """Return the error of a forward against the authors', with weights stored by a choice of the loader."""
    weights, _, out, _ = golden("dit_t2v")
    model = here.room("host.model.loading").load(write(here, weights), choice)
    return below(relative(velocity(model), out["v"][None]), STORED[choice])


@item("scaled fp8", "host", "dynamic", over=[("old",), ("new",), ("header",)])
def scaled_fp8(here: Here, form: str):
    """Return the error of a scaled fp8 file against the same values as a plain file."""
    tensors, metadata, meaning = writers.fp8_scaled(golden("dit_t2v")[0], form)
    read = here.room("host.model.loading").load
    expected = velocity(read(write(here, meaning), "bfloat16"))
    return below(relative(velocity(read(write(here, tensors, metadata), "auto")), expected), 0.1)


def gguf_file(here: Here, kind: str) -> tuple[str, dict]:
    """Write the golden model packed; return the path, and what its weights mean."""
    path = here.folder / f"{next(_numbers)}.gguf"
    return str(path), writers.write_gguf(path, golden("dit_t2v")[0], kind)


@item("gguf", "host", "dynamic", over=[(kind,) for kind in GGUF])
def gguf(here: Here, kind: str):
    """Return the error of a GGUF file against the same values as a plain file."""
    path, meaning = gguf_file(here, kind)
    read = here.room("host.model.loading").load
    return below(relative(velocity(read(path, "float32")), velocity(read(write(here, meaning), "float32"))), 1e-4)


def with_lora(model):
    """Return the MODEL with a LoRA on one layer of each of the first two blocks."""
    generator, config, lora = torch.Generator().manual_seed(2), model.model.diffusion_model.config, {}
    for block in (0, 1):
        name = f"diffusion_model.blocks.{block}.ffn.0"
        lora[f"{name}.lora_A.weight"] = torch.randn(4, config.dim, generator=generator)
        lora[f"{name}.lora_B.weight"] = 0.1 * torch.randn(config.ffn_dim, 4, generator=generator)
    return importlib.import_module("comfy.sd").load_lora_for_models(model, None, lora, 1.0, 0)[0]


def partial_model(here: Here, kind: str):
    """Return the golden model in one of the forms of `PARTLY`."""
    weights, read, metadata = golden("dit_t2v")[0], here.room("host.model.loading").load, None
    if "gguf" in kind:
        model = read(gguf_file(here, "Q8_0")[0], "float32", disable_dynamic=True)
    else:
        if kind == "fp8":
            weights, metadata, _ = writers.fp8_scaled(weights, "new")
        model = read(write(here, weights, metadata), "float32", disable_dynamic=True)
    return with_lora(model) if "lora" in kind else model


@contextmanager
def small_device(here: Here, model) -> Iterator[list[str]]:
    """Context in which the host believes that the device has room for `SHARE` of the weights of `model`.

    Yields the list of the devices from which weights were brought when a layer ran.
    """
    host, ops, brought = management(), importlib.import_module("comfy.ops"), []
    room, cast = SHARE * model.model_size() + host.minimum_inference_memory(), ops.cast_bias_weight

    def free(device=None, torch_free_too=False):
        left = room - model.loaded_size()
        return (left, left) if torch_free_too else left

    def count(layer, *arguments, **options):
        brought.append(layer.weight.device.type)
        return cast(layer, *arguments, **options)

    of_host = {"get_free_memory": free, "vram_state": host.VRAMState.NORMAL_VRAM}
    of_host |= {"is_device_cpu": lambda device: False} if here.dry else {}
    with mock.patch.multiple(host, **of_host), mock.patch.object(ops, "cast_bias_weight", count):
        yield brought
    unload()


@item("partial loading", "host", over=[(kind,) for kind in PARTLY])
def partial_loading(here: Here, kind: str):
    """Return the error of a clip made with a tenth of the weights on the device, against all of them there."""
    model = partial_model(here, kind)
    whole = sample(here, model)
    unload()
    with small_device(here, model) as brought:
        limited = sample(here, model)
        share = model.loaded_size() / model.model_size()
    if share > 0.5 or not brought:
        raise Wrong(f"{share:.0%} of the weights were loaded and {len(brought)} layers brought theirs")
    return {"loaded": round(share, 3), "brought": len(brought), "error": below(relative(limited, whole), 1e-4)}


@item("weights go home", "host")
def weights_go_home(here: Here):
    """Return how many weights went to the device and back to their mapped file."""
    model, host = load(here, disable_dynamic=True), management()
    network = model.model.diffusion_model
    before = {name: x.data_ptr() for name, x in network.named_parameters()}
    with mock.patch.object(host, "is_device_cpu", (lambda device: False) if here.dry else host.is_device_cpu):
        host.load_models_gpu([model])
        if here.dry:
            for x in network.parameters():
                x.data = x.data.clone()
        there = {x.device.type for x in network.parameters()}
        unload()
    moved = [name for name, x in network.named_parameters() if x.data_ptr() != before[name]]
    if moved:
        raise Wrong(f"{len(moved)} of {len(before)} weights are not in their file again, such as {moved[0]}")
    return f"{len(before)} weights, by way of {there}"
