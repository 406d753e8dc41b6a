"""Checks of the pack inside ComfyUI: attention and kernels, the VAE object and its memory, waits, compiled blocks."""

import functools
import importlib
import itertools
import logging
from unittest import mock

import torch

from . import syncs
from .hosts import load, management, sample, unload
from .items import BFLOAT16, FLOAT32, Here, Skip, Wrong, below, item, relative
from .models import BOUNDS, CAP, EXACT, Cap, config_of, noise, vae_weights

PACKAGES = ("sdpa", "sage", "flash", "xformers")


@item("attention", "host", over=[(name,) for name in PACKAGES])
def attention(here: Here, name: str):
    """Return the error of a clip by a choice of attention; the host's own takes the place of a missing package."""
    model = load(here, dtype="bfloat16", attention=name)
    return below(relative(sample(here, model), sample(here, load(here, dtype="bfloat16"))), 0.1)


@item("attention again in float32", "host")
def attention_again(here: Here):
    """Return the error of a clip whose attention gives NaN, which makes each forward run again with exact attention."""
    model, calls = load(here, dtype="bfloat16").clone(), []

    def broken(function, q, k, v, heads, **options):
        calls.append(q.device.type)
        return torch.full_like(q, float("nan"))

    model.model_options["transformer_options"]["optimized_attention_override"] = broken
    error = below(relative(sample(here, model), sample(here, load(here, dtype="bfloat16"))), 0.1)
    if not calls:
        raise Wrong("the attention of the MODEL was never called")
    return {"calls": len(calls), "error": error}


@item("step cache and guidance", "host")
def cache_and_guidance(here: Here):
    """Return the errors of clips by the patch nodes, set so that they change nothing."""
    model, patches, found = load(here), {}, {}
    cache, guidance = here.room("host.sampling.step_cache"), here.room("host.sampling.guidance")
    for criterion in cache.CRITERIA:
        patches[criterion] = cache.apply(model, cache.Settings(criterion, 1e-12, 0.0, 1.0))
    patches["guidance"] = guidance.apply(model, guidance.Settings(1.0, 0.0, False, 0))
    expected = sample(here, model, steps=4)
    for name, patched in patches.items():
        found[name] = below(relative(sample(here, patched, steps=4), expected), 1e-5)
    return found


@item("kernels of the host", "host")
def kernels_of_the_host(here: Here):
    """Return which kernels a forward gets, and their errors against torch's operations, with one row and several."""
    kernels, layers, rope = (here.room(n) for n in ("host.model.kernels", "wan_model.dit.layers", "wan_model.dit.rope"))
    tokens, dtype, found = 4 * 6 * 10, here.size(BFLOAT16, FLOAT32), {}
    x = torch.randn(1, tokens, 1536, device=here.device).to(dtype)
    tried = {"chosen": kernels.choose(x)}
    if here.room("host.compat").kitchen("cuda", "triton", "eager"):
        tried["comfy-kitchen"] = kernels.FUSED
    positions = [rope.grid_positions((4, 6, 10))]
    plain, bound = layers.TORCH.rope_table(positions, 128, here.device), 2 * BOUNDS[dtype] / 5
    turned = layers.TORCH.rotate(x.float().clone(), plain)
    for (name, value), rows in itertools.product(tried.items(), (1, 4)):
        shift, scale = torch.randn(1, rows, 2, 1, 1536, device=here.device).to(dtype).unbind(2)
        expected = layers.norm_modulate(x.float(), shift.float(), scale.float(), 1e-6)
        made = value.norm_modulate(x.clone(), shift, scale, 1e-6).float()
        found[f"{name}, norm, {rows} rows"] = below(relative(made, expected), bound)
        table, part = value.rope_table(positions, 128, here.device), slice(60, 120)
        made = value.rotate(x[:, part].clone(), table[part]).float()
        found[f"{name}, rotation of a part"] = below(relative(made, turned[:, part]), bound)
    chosen = tried["chosen"]
    names = {"comfy-kitchen": kernels.FUSED, "torch": layers.TORCH}
    return found | {"chosen": next((name for name, value in names.items() if value == chosen), "own Triton kernels")}


def random_vae(here: Here, version: str):
    """Return a VAE object of the nodes with random weights, of real widths."""
    state = vae_weights(config_of(here, version), FLOAT32, here.device)
    return here.room("host.vae.vae").HostVAE({name: x.cpu() for name, x in state.items()}, BFLOAT16, BFLOAT16)


@item("vae object in tiles", "host", over=[("2.1",), ("2.2",)])
def vae_object_in_tiles(here: Here, version: str):
    """Return the errors of decoding and encoding in tiles against whole frames, through the VAE object."""
    vae, (height, width), side = random_vae(here, version), here.size((480, 832), (64, 96)), here.size(256, 32)
    z = noise(here, vae.config, 3, (height, width), FLOAT32).cpu()
    whole = vae.decode(z, tile=(height, width))
    found = {"decode": below(relative(vae.decode(z, tile=(side, side)), whole), EXACT[BFLOAT16])}
    pair = vae.encode(whole[0], tile=(side, side)), vae.encode(whole[0], tile=(height, width))
    unload()
    return found | {"encode": below(relative(*pair), 2 * EXACT[BFLOAT16])}


@item("vae object out of memory", "host", over=[("2.1",), ("2.2",)], seconds=10)
def vae_object_out_of_memory(here: Here, version: str):
    """Return the error of a decode that the host believed to fit, under a real cap of memory."""
    vae, pixels = random_vae(here, version), here.size((736, 1280), (64, 96))
    z, said, handler = noise(here, vae.config, 3, pixels, FLOAT32).cpu(), [], logging.Handler()
    whole = vae.decode(z, tile=pixels)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    management().load_models_gpu([vae.patcher])
    management().soft_empty_cache()
    planned = vae.plan(here.room("wan_model.vae").plan_decode, z.shape, None, BFLOAT16).peak_bytes
    try:
        plenty = mock.patch.object(here.room("host.compat"), "free_memory", lambda device: 10**12)
        with plenty, Cap(here, CAP * planned):
            limited = vae.decode(z)
    finally:
        logging.getLogger().removeHandler(handler)
        unload()
    if not any("Out of memory in the Wan VAE" in text for text in said):
        raise Wrong(f"a cap of {CAP} times the planned {planned >> 20} MiB was never reached: the plan is too large")
    return below(relative(limited, whole), EXACT[BFLOAT16])


@item("convolution without cuDNN's memory", "host")
def convolution_workaround(here: Here):
    """Return the error of a decode by the host's own call of cuDNN, which newer versions of torch need."""
    ops = importlib.import_module("comfy.ops")
    if here.dry or not hasattr(ops, "NVIDIA_MEMORY_CONV_BUG_WORKAROUND"):
        raise Skip("it is for CUDA")
    vae, results = random_vae(here, "2.1"), []
    z = noise(here, vae.config, 3, (480, 832), FLOAT32).cpu()
    for on in (False, True):
        with mock.patch.object(ops, "NVIDIA_MEMORY_CONV_BUG_WORKAROUND", on):
            results.append(vae.decode(z))
    unload()
    return {"by default": ops.NVIDIA_MEMORY_CONV_BUG_WORKAROUND, "error": below(relative(*results), EXACT[BFLOAT16])}


@item("video frame by frame", "host")
def video_frame_by_frame(here: Here):
    """Return the number of frames of a VIDEO that is decoded while it is read, and their error."""
    vae = here.room("host.vae.vae").load(str(here.models / syncs.VAE), "bfloat16")
    z = torch.randn(1, 16, 5, 8, 10, generator=torch.Generator().manual_seed(0))
    frames = list(here.room("host.vae.video").decode(vae, z, (0, 0), 16.0).frames())
    if frames[0].device.type != "cpu":
        raise Wrong(f"the frames are on {frames[0].device} and must be in RAM")
    return len(frames), below(relative(torch.stack(frames), vae.decode(z)[0]), 1e-3)


@item("cancel", "host")
def cancel(here: Here):
    """Check that a decode stops when the user cancels."""
    vae, host = here.room("host.vae.vae").load(str(here.models / syncs.VAE)), management()
    chunks = vae.decode_chunks(torch.randn(1, 16, 9, 8, 10))
    next(chunks)
    host.interrupt_current_processing(True)
    try:
        for _ in range(4):
            next(chunks)
    except host.InterruptProcessingException:
        return "stopped"
    finally:
        host.interrupt_current_processing(False)
    raise Wrong("four more blocks were decoded")


@item("waits for the device", "host", "dynamic", seconds=10)
def waits(here: Here):
    """Return what waits for the device in a sampling step and in a block of the VAE; once a step at most."""
    runs = syncs.Runs(here.node, load(here), here.room("host.vae.vae").load(str(here.models / syncs.VAE)))
    with (syncs.simulated_card if here.dry else syncs.real_card)() as card:
        found = syncs.counted(runs, card)
    if problems := syncs.beyond(found):
        raise Wrong("; ".join(problems))
    return {name: syncs.summary(waiting) for name, waiting in found.items()}


@item("compiled blocks", "compile", over=[("bfloat16",), ("float32",)], seconds=60)
def compiled_blocks(here: Here, dtype: str):
    """Return the errors of clips of two sizes by compiled blocks; in a dry run they are traced and not compiled."""
    if reason := here.room("host.model.compiled").obstacle(here.device):
        raise Skip(reason)
    bound = 10 * BOUNDS[FLOAT32] if dtype == "float32" else 0.1
    plain, found = load(here, dtype=dtype, attention="sdpa"), {}
    backend = {"backend": "eager"} if here.dry else {}
    compiler = functools.partial(_compile, torch.compile, backend)
    with mock.patch.object(torch, "compile", compiler):
        model = load(here, dtype=dtype, attention="sdpa", compile_blocks=True)
        for name, size in (("small", (3, 8, 10)), ("larger", (5, 24, 20))):
            latent = {"samples": torch.zeros(1, 16, *size)}
            pair = sample(here, model, latent=latent), sample(here, plain, latent=latent)
            found[name] = below(relative(*pair), bound)
    return found | {"graphs": torch._dynamo.utils.counters["stats"].get("unique_graphs")}


def _compile(compiling, forced: dict, model, **options):
    return compiling(model, **options | forced)
