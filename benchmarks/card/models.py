"""Checks of the models alone, without ComfyUI: against the authors' results, and of what only a card does."""

import functools
import json
from itertools import product
from pathlib import Path

import measure
import recipe
import torch
from safetensors import safe_open

from .items import BFLOAT16, FLOAT16, FLOAT32, Here, Skip, Wrong, below, item, random_weights, relative
from wan_model import solvers
from wan_model.dit.attention import local, sdpa
from wan_model.dit.layers import TORCH
from wan_model.dit.model import build_dit
from wan_model.dit.runtime import Runtime
from wan_model.kernels import fused
from wan_model.vae import Runtime as VAERuntime
from wan_model.vae import VAEConfig, build_vae, make_vae, plan_decode
from wan_model.weights import ggml

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
DITS = ("t2v", "i2v", "flf2v", "i2v_a14b", "ti2v", "vace")
BOUNDS = {FLOAT32: 1e-4, BFLOAT16: 5e-2, FLOAT16: 2e-2}
EXACT = {FLOAT32: 2e-5, BFLOAT16: 3e-2, FLOAT16: 5e-3}  # the same arithmetic in another order
BOTH = tuple(product(("2.1", "2.2"), BOUNDS))
REAL = {"2.1": VAEConfig("2.1", 16, 96, 96), "2.2": VAEConfig("2.2", 48, 160, 256)}
NARROW = {"2.1": VAEConfig("2.1", 16, 8, 8), "2.2": VAEConfig("2.2", 48, 8, 8)}
CAP = 0.6  # of the planned memory, under which a decode must split its tiles


@functools.cache
def golden(name: str) -> tuple[dict, dict, dict, dict]:
    """Return weights, inputs, outputs and metadata of a golden case."""
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a mapping
    weights = recipe.state_dict(json.loads(metadata["shapes"]), int(metadata.get("seed", 0)))
    given = {key[3:]: x for key, x in tensors.items() if key.startswith("in.")}
    return weights, given, {key[4:]: x for key, x in tensors.items() if key.startswith("out.")}, metadata


def dit_inputs(variant: str, device: torch.device, dtype: torch.dtype) -> dict:
    """Return the arguments of a golden forward."""
    given = golden(f"dit_{variant}")[1]
    inputs = {name: x.unsqueeze(0) for name, x in given.items() if name not in ("t", "clip_fea")}
    inputs["t"] = given["t"].unflatten(1, (3, -1))[..., 0] if variant == "ti2v" else given["t"]
    if "clip_fea" in given:
        inputs["clip_fea"] = given["clip_fea"].flatten(0, 1).unsqueeze(0)
    moved = {n: x.to(device, dtype if n != "t" and x.is_floating_point() else None) for n, x in inputs.items()}
    return moved | ({"vace_scale": 0.8} if variant == "vace" else {})


def kernels_of(here: Here):
    """Return the module of Triton kernels. Raise Skip in a dry run without Triton, Wrong on a card without them."""
    if not here.dry:
        found = fused.triton_kernels(here.device)
        if found is None:
            raise Wrong("no Triton kernels work on this card; the log says why")
        return found
    try:
        from wan_model.kernels import triton_kernels
    except ImportError as error:
        raise Skip(str(error)) from error
    return triton_kernels


@item("golden dit", "models", over=product(DITS, BOUNDS))
def golden_dit(here: Here, variant: str, dtype: torch.dtype):
    """Return errors of a forward against the authors', by torch's operations and by our kernels, whole and in parts."""
    weights, _, out, _ = golden(f"dit_{variant}")
    model, inputs = build_dit(weights, dtype=dtype, device=here.device), dit_inputs(variant, here.device, dtype)
    kernels, found = {"torch": TORCH}, {}
    if not here.dry:
        kernels["triton"] = kernels_of(here).DIT
    for name, chunk in product(kernels, (None, 40)):
        v = model(**inputs, runtime=Runtime(kernels=kernels[name], chunk=chunk))
        found[f"{name}, chunk {chunk}"] = below(relative(v.float(), out["v"].to(v.device)[None]), BOUNDS[dtype])
    return found


@item("golden vae", "models", over=product(("vae21", "vae22"), BOUNDS))
def golden_vae(here: Here, name: str, dtype: torch.dtype):
    """Return errors of an encode and a decode against the authors', by torch's operations and by our kernels."""
    not_slow(here, dtype)
    weights, given, out, _ = golden(name)
    vae, found = build_vae(weights, dtype=dtype, device=here.device), {}
    runtimes = {"torch": VAERuntime()}
    if not here.dry:
        runtimes["triton"] = VAERuntime(kernels=kernels_of(here).VAE)
    for label, runtime in runtimes.items():
        video, latent = (given[key].to(here.device, dtype) for key in ("video", "latent"))
        made = {"mu": vae.encode_stream([video], runtime=runtime), "video": vae.decode_stream(latent, runtime=runtime)}
        for key, stream in made.items():
            result = torch.cat(list(stream), dim=2).float()
            found[f"{label}, {key}"] = below(relative(result, out[key].to(result.device)), 1.6 * BOUNDS[dtype])
    return found


@item("golden loop", "models")
def golden_loop(here: Here):
    """Return the error of a whole run of UniPC with guidance against the authors'."""
    weights, given, out, metadata = golden("loop_t2v")
    model, guide = build_dit(weights, device=here.device), float(metadata["guide"])
    texts = [given[name][None].to(here.device) for name in ("context", "context_null")]

    def denoise(x, sigma):
        t = torch.full((1,), float(int(1000 * sigma)), device=here.device)
        v, null = (model(x, t, text) for text in texts)
        return x - sigma * (null + guide * (v - null))

    sigmas = solvers.flow_sigmas(int(metadata["steps"]), float(metadata["shift"]), "unipc")
    latent = solvers.sample_unipc(denoise, given["noise"][None].to(here.device), sigmas)[0]
    return below(relative(latent, out["latent"].to(latent.device)), 1e-3)


def config_of(here: Here, version: str) -> VAEConfig:
    """Return the real widths, or narrow ones in a dry run."""
    return here.size(REAL, NARROW)[version]


def vae_weights(config: VAEConfig, dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
    """Return random weights of a VAE in official names."""
    shapes = {name: x.shape for name, x in make_vae(config, device="meta").state_dict().items()}
    return random_weights(shapes, dtype, device)


def noise(here: Here, config: VAEConfig, frames: int, pixels: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Return a random latent (1, C, frames, h, w) for so many rows and columns of pixels."""
    height, width = (side // config.stride for side in pixels)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, config.latent_channels, frames, height, width, generator=generator).to(here.device, dtype)


@item("vae as on the cpu", "models", over=BOTH)
def vae_as_on_the_cpu(here: Here, version: str, dtype: torch.dtype):
    """Return the error of a decode at real widths against float32 on the CPU."""
    not_slow(here, dtype)
    config = config_of(here, version)
    state, z = vae_weights(config, FLOAT32, here.device), noise(here, config, 2, (96, 128), FLOAT32)
    expected = build_vae({name: x.cpu() for name, x in state.items()}).decode(z.cpu())
    stream = build_vae(state, dtype=dtype).decode_stream(z.to(dtype), runtime=fused.vae_runtime(here.device))
    return below(relative(torch.cat(list(stream), dim=2).float().cpu(), expected), 1.6 * BOUNDS[dtype])


@item("vae in tiles", "models", over=BOTH)
def vae_in_tiles(here: Here, version: str, dtype: torch.dtype):
    """Return errors of a decode and an encode in tiles against whole frames."""
    not_slow(here, dtype)
    config, pixels, side = config_of(here, version), here.size((320, 448), (64, 96)), here.size(160, 32)
    vae, z = build_vae(vae_weights(config, dtype, here.device)), noise(here, config, 3, pixels, dtype)
    whole = vae.decode(z)
    video = whole.clamp(-1, 1)
    pairs = {"decode": (vae.decode(z, tile=(side, side)), whole)}
    pairs["encode"] = vae.encode(video, tile=(side, side)), vae.encode(video)
    return {name: below(relative(*(x.float() for x in pair)), EXACT[dtype]) for name, pair in pairs.items()}


@item("vae as a stream", "models", over=[("2.1",), ("2.2",)])
def vae_as_a_stream(here: Here, version: str):
    """Return the error of a decode from single latent frames, and how much more memory twice the length takes."""
    config, pixels = config_of(here, version), here.size((480, 832), (64, 96))
    vae, z = build_vae(vae_weights(config, BFLOAT16, here.device)), noise(here, config, 10, pixels, BFLOAT16)
    pieces = torch.cat([x.cpu() for x in vae.decode_stream(iter(z[:, :, :3].split(1, dim=2)))], dim=2)
    error = below(relative(pieces.float(), vae.decode(z[:, :, :3]).float().cpu()), EXACT[BFLOAT16])

    def drain(frames: int) -> int:
        def run() -> None:
            for chunk in vae.decode_stream(z[:, :, :frames]):
                del chunk

        return peak(here, run)

    few, many = drain(5), drain(10)
    return {"error": error, "memory of 10 frames over 5": below(many / few, 1.05, "the memory of twice the frames")}


def peak(here: Here, run) -> int:
    """Return the most bytes that `run` holds beside what was there before."""
    if here.device.type != "cuda":
        with measure.Tracer() as tracer:
            run()
        return tracer.peak
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def not_slow(here: Here, dtype: torch.dtype) -> None:
    """Raise Skip for float16 in a dry run."""
    if here.dry and dtype == FLOAT16:
        raise Skip("convolutions in float16 take minutes on a CPU")


class Cap:
    """Context in which the device has `bytes_free` beside what is held; in a dry run, the 12th convolution fails."""

    def __init__(self, here: Here, bytes_free: float):
        self.here, self.bytes_free, self.calls = here, bytes_free, 0

    def __enter__(self) -> "Cap":
        if not self.here.dry:
            torch.cuda.empty_cache()
            share = (torch.cuda.memory_reserved() + self.bytes_free) / torch.cuda.mem_get_info()[1]
            torch.cuda.set_per_process_memory_fraction(share)
            return self
        self.convolve = torch.nn.functional.conv2d
        torch.nn.functional.conv2d = self.fail
        return self

    def fail(self, *arguments, **options):
        """Convolve, but for one call."""
        self.calls += 1
        if self.calls == 12:
            raise torch.OutOfMemoryError("simulated")
        return self.convolve(*arguments, **options)

    def __exit__(self, *error) -> None:
        if self.here.dry:
            torch.nn.functional.conv2d = self.convolve
        else:
            torch.cuda.set_per_process_memory_fraction(1.0)


@item("vae out of memory", "models", over=[("2.1",), ("2.2",)])
def vae_out_of_memory(here: Here, version: str):
    """Return what was raised under a real cap of memory, and the error of the decode that went on in smaller tiles."""
    config, pixels = config_of(here, version), here.size((960, 1664), (64, 96))
    vae, z = build_vae(vae_weights(config, BFLOAT16, here.device)), noise(here, config, 3, pixels, BFLOAT16)
    expected = torch.cat([x.cpu() for x in vae.decode_stream(z)], dim=2)
    stream, chunks, raised = vae.decode_stream(z), [], []
    with Cap(here, CAP * plan_decode(config, z.shape, None, BFLOAT16).peak_bytes):
        while True:
            try:
                chunks.append(next(stream).cpu())
                continue
            except StopIteration:
                break
            except RuntimeError as error:
                raised.append(f"{type(error).__name__}: {str(error)[:80]}")
                if len(raised) > 5:
                    raise
            stream.split(park="cpu")
            if here.device.type == "cuda":
                torch.cuda.empty_cache()
    if not raised:
        raise Wrong("the cap of memory was never reached: the plan is too large")
    return raised, below(relative(torch.cat(chunks, dim=2).float(), expected.float()), EXACT[BFLOAT16])


@item("gguf formats", "models")
def gguf_formats(here: Here):
    """Return the error of each GGUF format unpacked on the device, against the CPU."""
    found = {}
    for kind, layout in ggml.FORMATS.items():
        data = torch.randint(0, 256, (64, 4 * layout.size), dtype=torch.uint8) & 0x3F  # no scale is NaN
        expected, made = (ggml.unpack(ggml.Packed(data.to(d), kind), FLOAT32) for d in ("cpu", here.device))
        found[layout.name] = below(relative(made.cpu(), expected), 1e-6)
    return found


@item("local attention", "models")
def local_attention(here: Here):
    """Return the error of attention within a window that covers all."""
    q, k, v = (torch.randn(1, 300, 256, device=here.device).to(BFLOAT16) for _ in range(3))
    return below(relative(local((300, 300))(q, k, v, 2).float(), sdpa(q, k, v, 2).float()), EXACT[BFLOAT16])
