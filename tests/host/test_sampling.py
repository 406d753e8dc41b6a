"""Our MODEL in the host: its samplers, LoRA loader and patches, and WanSampler against `wan_model` alone."""

import logging

import comfy.ops
import comfy.patcher_extension
import comfy.sample
import comfy.sd
import comfy.utils
import pytest
import torch
from safetensors.torch import save_file

import nodes
from wan_model import build_dit, solvers
from wan_model import checkpoint as files

STEPS, SHIFT, GUIDANCE, SEED = 5, 5.0, 4.0, 11


@pytest.fixture(scope="module")
def path(models):
    return str(models / "diffusion_models" / "tiny_random_wan2.1_t2v.safetensors")


@pytest.fixture(scope="module")
def model(room, path):
    return room("host.model.loading").load(path, "float32")


@pytest.fixture(scope="module")
def text(model):
    width = model.model.diffusion_model.config.text_dim
    generator = torch.Generator().manual_seed(3)
    return [[[torch.randn(1, 512, width, generator=generator), {}]] for _ in range(2)]


@pytest.fixture
def latent():
    return {"samples": torch.zeros(1, 16, 3, 8, 10)}


@pytest.fixture(scope="module")
def run(run_node):
    def run(model, text, latent, **inputs):
        given = dict(steps=STEPS, guidance=GUIDANCE, shift=SHIFT, solver="unipc", seed=SEED, denoise=1.0)
        arguments = {"positive": text[0], "negative": text[1], "latent": latent, **given, **inputs}
        return run_node("WanSampler", model=model, **arguments)[0]["samples"]

    return run


def test_positions_are_scaled_and_shifted_as_by_the_host(room, model):
    """By its ScaleROPE node, which is given to the network as options."""
    from comfy.ldm.wan.model import WanModel

    sizes = dict(dim=256, ffn_dim=512, num_heads=2, num_layers=1, text_dim=64)
    theirs = WanModel(**sizes, operations=comfy.ops.disable_weight_init, device="cpu", dtype=torch.float32)
    patched = model.clone()
    patched.set_model_rope_options(1.5, 2.0, 0.5, -3.0, 2.0, 0.25)  # x, y, t: a scale and a shift each
    options = patched.model_options["transformer_options"]
    expected = theirs.rope_encode(3, 8, 10, device="cpu", dtype=torch.float64, transformer_options=options)
    rope, runtime = (
        room("wan_model.dit.rope"),
        model.model.diffusion_model.runtime(torch.zeros(1, 16, 3, 8, 10), options, {}),
    )
    positions = rope.grid_positions((3, 4, 5), scale=runtime.rope_scale, shift=runtime.rope_shift)
    table = rope.rope_table([positions], 128)
    torch.testing.assert_close(table, expected.flatten(0, 2)[..., 0].float().view(table.shape), rtol=1e-4, atol=1e-5)
    plain = rope.rope_table([rope.grid_positions((3, 4, 5))], 128)
    assert (table - plain).abs().max() > 0.5


def alone(weights, text, latent, solver="unipc", boundary=None, low=None):
    """The same run by `wan_model` without a host, in the host's latent scale."""
    dit = build_dit(weights, dtype=torch.float32)
    low = dit if low is None else build_dit(low, dtype=torch.float32)

    def denoise(x, sigma):
        t = 1000 * sigma if solver == "euler" else float(int(1000 * sigma + 1e-3))  # the few-step references cut none
        expert = low if boundary and t < 1000 * boundary else dit
        v, v_null = (expert(x, torch.tensor([t]), context[0][0]) for context in text)
        return x - sigma * (v_null + GUIDANCE * (v - v_null))

    noise = comfy.sample.prepare_noise(latent["samples"], SEED)
    return solvers.SOLVERS[solver](denoise, noise, solvers.flow_sigmas(STEPS, SHIFT, solver))


@pytest.mark.parametrize("solver", ["unipc", "dpmpp", "euler"])
def test_wan_sampler_is_wan_model_alone(model, path, text, latent, run, relative_error, solver):
    expected = alone(files.load(path)[0], text, latent, solver)
    actual = run(model, text, latent, solver=solver)
    assert relative_error(actual, model.model.process_latent_out(expected)) < 1e-3


def test_denoise_below_1_starts_from_the_latent(model, text, run, relative_error):
    clip = {"samples": torch.randn(1, 16, 3, 8, 10, generator=torch.Generator().manual_seed(5))}
    little, much = (run(model, text, clip, denoise=denoise, guidance=1.0) for denoise in (0.05, 1.0))
    assert relative_error(little, clip["samples"]) < relative_error(much, clip["samples"])


def test_the_hosts_ksampler_runs_our_model(model, text, latent):
    out = nodes.common_ksampler(model, SEED, STEPS, GUIDANCE, "uni_pc", "simple", *text, latent)[0]["samples"]
    assert out.shape == latent["samples"].shape and out.isfinite().all() and out.std() > 0.1


def test_a_lora_changes_the_result_by_its_strength(model, path, text, latent, run, relative_error):
    name = "blocks.1.self_attn.q"
    out_dim, in_dim = files.load(path)[0][f"{name}.weight"].shape
    generator = torch.Generator().manual_seed(8)
    down, up = torch.randn(4, in_dim, generator=generator), torch.randn(out_dim, 4, generator=generator)
    lora = {f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up}
    base = run(model, text, latent)
    off, on = (run(comfy.sd.load_lora_for_models(model, None, lora, s, 0)[0], text, latent) for s in (0.0, 0.5))
    weights = dict(files.load(path)[0])
    weights[f"{name}.weight"] = weights[f"{name}.weight"] + 0.5 * up @ down
    merged = model.model.process_latent_out(alone(weights, text, latent))
    assert torch.equal(off, base)
    assert relative_error(on, base) > 1e-2
    assert relative_error(on, merged) < 1e-3


def test_the_hosts_patches_are_served(model, text, latent, run, relative_error):
    seen = []
    patched = model.clone()
    patched.set_model_attn1_patch(lambda args: (seen.append(args["q"].shape), args["x"])[1])
    patched.set_model_attn2_patch(lambda args: (seen.append("attn2"), args["x"])[1])
    patched.set_model_patch_replace(lambda args, extra: {"img": args["img"]}, "dit", "double_block", 1)
    skipped = run(patched, text, latent)
    plain = run(model, text, latent)
    heads = model.model.diffusion_model.config.heads
    assert (2, 60, heads, 128) in seen and "attn2" in seen  # 3 x 4 x 5 tokens, both prompts in one batch
    assert relative_error(skipped, plain) > 1e-2


def test_short_prompts_are_the_padded_ones(model, path, text, latent, run, relative_error):
    short = [
        [[context * (torch.arange(512) < length).unsqueeze(1), {}]]
        for (context, _), length in zip((text[0][0], text[1][0]), (40, 3), strict=True)
    ]
    seen, counted = [], model.clone()

    def watch(executor, x, timestep, context, *args, **kwargs):
        seen.append(context.shape)
        return executor(x, timestep, context, *args, **kwargs)

    counted.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, watch)
    actual = run(counted, short, latent)
    expected = alone(files.load(path)[0], short, latent)
    assert relative_error(actual, model.model.process_latent_out(expected)) < 1e-3
    assert {shape[:2] for shape in seen} == {(2, 512)}  # both in one batch


def test_two_experts_switch_at_the_boundary(model, room, path, text, latent, run, relative_error, caplog):
    weights, other = files.load(path)[0], dict(files.load(path)[0])
    other["head.head.weight"] = -0.5 * other["head.head.weight"]
    low = room("host.model.loading").build(other, "float32")
    with caplog.at_level(logging.INFO):
        actual = run(model, text, latent, low_noise_model=low, boundary=0.9)
    expected = alone(weights, text, latent, boundary=0.9, low=other)
    assert relative_error(actual, model.model.process_latent_out(expected)) < 1e-3
    assert [record.message for record in caplog.records if "switching to" in record.message]
    assert relative_error(actual, run(model, text, latent)) > 1e-2


def test_frames_before_the_clip_are_cut_off(model, text, latent, run):
    whole = run(model, text, latent)
    cut = run(model, text, {**latent, "trim_start": 1})
    assert torch.equal(cut, whole[:, :, 1:])


def test_wrong_inputs_are_one_sentence(model, room, path, text, latent, run):
    with pytest.raises(ValueError, match=r"16-channel latents .* given 48-channel latents \(Wan 2.2 5B\)"):
        run(model, text, {"samples": torch.zeros(1, 48, 3, 8, 10)})
    with pytest.raises(ValueError, match="4 dimensions"):
        run(model, text, {"samples": torch.zeros(1, 16, 8, 10)})
    named = room("host.model.loading").load(path, "float32")
    named.model.source = "wan2.2_t2v_high_noise_14B.safetensors"
    with pytest.raises(ValueError, match=r"high_noise_14B\.safetensors is connected to low_noise_model"):
        run(model, text, latent, low_noise_model=named)


def test_vace_blocks_alone_make_a_text_model_a_vace_model(models, room, run_node, text, run):
    whole = models / "diffusion_models" / "tiny_random_wan2.1_vace.safetensors"
    weights = files.load(whole)[0]
    for name, is_vace in (("base", False), ("module", True)):
        part = {key: value.clone() for key, value in weights.items() if key.startswith("vace") == is_vace}
        save_file(part, whole.with_name(f"{name}.safetensors"))
    names = {"model_name": "base.safetensors", "vace_name": "module.safetensors"}
    (joined,) = run_node("WanModelLoader", weight_dtype="float32", **names)
    control = {"vace_frames": [torch.randn(1, 32, 3, 8, 10)], "vace_mask": [torch.ones(1, 64, 3, 8, 10)]}
    steered = [[[tokens, {**control, "vace_strength": [1.0]}] for tokens, _ in part] for part in text]
    latent = {"samples": torch.zeros(1, 16, 3, 8, 10)}
    results = [
        run(model, steered, latent) for model in (joined, room("host.model.loading").load(str(whole), "float32"))
    ]
    assert torch.equal(*results)
    with pytest.raises(ValueError, match=r"vace_blocks.* checkpoint wants"):
        room("host.model.loading").build({**weights, "vace_blocks.0.before_proj.weight": torch.ones(64, 64)})
    for name in ("base", "module"):
        whole.with_name(f"{name}.safetensors").unlink()
