"""Context windows of the host mean the same on our MODEL as on its own class, in the memory of one window."""

import asyncio
from importlib.util import find_spec

import beside
import comfy.sd
import comfy.utils
import measure
import pytest
import torch
from official import files, runner, variants

import nodes

asyncio.run(nodes.init_builtin_extra_nodes())

NEWEST = find_spec("comfy.ldm.wan.model_animate2") is not None
SERVED = "t2v"  # all that 0.3.75 cuts into windows: it hands every window the image, mask or context of the whole clip
TOLERANCE = 1e-3
WINDOWS = {"context_stride": 1, "closed_loop": False, "freenoise": False, "fuse_method": "pyramid"}
WINDOWS |= {"context_length": 3, "context_overlap": 1, "context_schedule": "standard_static", "dim": 2}
WAN = {"context_length": 9, "context_overlap": 5, "retain_first_frame": True, "freenoise": True}  # in video frames
SHORTER = {"animate": {"context_length": 2}}  # its clip has 3 latent frames with the reference
USUAL = (SERVED, "i2v", "ti2v", "vace_fun", "fun_control_ref", "animate2", "scail2", "bernini")
LEFT_OUT = {  # where ComfyUI is not the authors' code (test_sound_on_host), and what is not sampled as a whole
    *("s2v", "s2v with pose and motion", "humo", "humo_1.7B"),
    *("causal", "causal in blocks", "causal from a picture"),
}


def rows() -> list:
    """The members that are compared; all of them, which takes minutes, where slow tests are asked for."""
    if not NEWEST:
        return [SERVED]
    names = [name for name in variants.VARIANTS if name not in LEFT_OUT]
    return [pytest.param(name, marks=[] if name in USUAL else [pytest.mark.slow]) for name in names]


@pytest.fixture(scope="module")
def bench(pack, models):
    """Inputs for the host's own nodes: its VAE of 2.1, and for 2.2, whose sizes it fixes, ours."""
    paths = {kind: files.write_vae(models / "vae" / f"{kind}.safetensors", kind) for kind in ("wan2.1", "wan2.2")}
    vaes = {"wan2.1": comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(paths["wan2.1"])))}
    precision = {"decode_dtype": "float32", "encode_dtype": "float32"}
    vaes["wan2.2"] = runner.run_node("WanVAELoader", vae_name=paths["wan2.2"].name, **precision)[0]
    return variants.Bench(models, vaes)


def windowed(inputs: variants.Inputs, node: str = "ContextWindowsManual", **settings) -> variants.Inputs:
    """The inputs with the host's node of context windows on their MODEL."""
    given = WINDOWS | settings
    kinds = nodes.NODE_CLASS_MAPPINGS[node].INPUT_TYPES()
    known = kinds["required"] | kinds.get("optional", {})
    return inputs._replace(
        model=runner.run_node(node, model=inputs.model, **{name: given[name] for name in given if name in known})[0]
    )


@pytest.fixture(scope="module")
def pair(bench, room, tmp_path_factory):
    """Function from a row of `VARIANTS` to its inputs with our MODEL and with the host's."""
    folder = tmp_path_factory.mktemp("dits")

    def make(name: str) -> tuple[variants.Inputs, variants.Inputs]:
        variant = variants.VARIANTS[name]
        path = str(files.write_dit(folder / f"{variant.kind}.safetensors", variant.kind))
        theirs = comfy.sd.load_diffusion_model(path, model_options={"dtype": torch.float32})
        ours = room("host.model.loading").load(path, "float32")
        return variant.build(bench, ours), variant.build(bench, theirs)

    return make


@pytest.mark.parametrize("name", rows())
def test_windows_are_the_hosts(name, pair, relative_error):
    ours, theirs = pair(name)
    sample, settings = variants.VARIANTS[name].sample, SHORTER.get(name, {})
    expected = beside.attempt(lambda: sample(windowed(theirs, **settings)))
    found = beside.attempt(lambda: sample(windowed(ours, **settings)))
    if isinstance(expected, str):  # InfiniteTalk's sound is not cut into windows
        assert found == expected
        return
    assert relative_error(found, expected) < TOLERANCE
    assert relative_error(sample(ours), expected) > 10 * TOLERANCE, "the windows change nothing"


def test_windows_of_wan_are_the_hosts_in_our_sampler(pair, relative_error):
    settings = {"steps": 2, "guidance": 3.0, "shift": 5.0, "solver": "euler", "seed": 7, "denoise": 1.0}
    found = []
    for inputs in pair("i2v_a14b" if NEWEST else SERVED):
        given = windowed(inputs, "WanContextWindowsManual", **WAN)._asdict()
        found.append(runner.run_node("WanSampler", **given, **settings)[0]["samples"])
    assert relative_error(*found) < TOLERANCE


def test_a_long_clip_takes_the_memory_of_a_window(pair):
    ours, _ = pair("t2v")

    def peak(inputs: variants.Inputs, frames: int) -> int:
        latent = {"samples": torch.zeros(1, 16, frames, 32, 32)}
        return measure.traced(lambda: variants.sample(inputs._replace(latent=latent), 1)).peak

    one, whole = peak(ours, 4), peak(ours, 10)  # a newer host gives each window the frame before it
    assert peak(windowed(ours), 10) < 1.15 * one < 0.6 * whole


@pytest.mark.skipif(not NEWEST, reason="0.3.75 does not let a model say how its sound is cut")
def test_a_window_hears_its_own_sound(pair, relative_error):
    def sampled(change: float) -> torch.Tensor:
        for prompt in (ours.positive, ours.negative):
            sound = prompt[0][1]["audio_embed"].clone()
            sound[..., -4:] += change
            prompt[0][1]["audio_embed"] = sound
        return variants.sample(windowed(ours), 1)

    ours = pair("s2v")[0]
    before, after = sampled(0.0), sampled(1.0)
    assert torch.equal(before[:, :, 0], after[:, :, 0]), "the first window has no share in the last frame"
    assert relative_error(after[:, :, 3], before[:, :, 3]) > 1e-4
