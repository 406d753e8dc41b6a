"""Few-step sampling in WanSampler against the host's own samplers: solvers, SIGMAS, split runs, presets, negatives."""

import logging

import pytest
import torch
from comfy_extras.nodes_custom_sampler import BasicScheduler, KSamplerSelect, SamplerCustom, SplitSigmas
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from safetensors.torch import save_file

import nodes
from wan_model import solvers
from wan_model.variants import distilled

LATENT = (1, 16, 3, 8, 10)
SEED = 11
FEW = dict(steps=4, guidance=1.0, shift=5.0)
LISTS = {"lightx2v": distilled.BY_NAME["lightx2v"].sigmas, "rcm": distilled.BY_NAME["rcm"].sigmas}


def result(node, *arguments):
    """The first output of one of the host's nodes, which return tuples or V3 outputs."""
    out = node.execute(*arguments) if hasattr(node, "execute") else getattr(node(), node.FUNCTION)(*arguments)
    return out[0] if isinstance(out, tuple) else out.result[0]


@pytest.fixture(scope="module")
def theirs(prompts):
    """Function (model, sampler's name, sigmas, **other inputs of SamplerCustom) -> the host's latent."""

    def run(model, name, sigmas, latent=None, cfg=1.0, add_noise=True):
        latent = {"samples": torch.zeros(LATENT)} if latent is None else latent
        sampler = result(KSamplerSelect, name)
        return result(SamplerCustom, model, add_noise, SEED, cfg, *prompts, sampler, torch.tensor(sigmas), latent)

    return run


@pytest.fixture(scope="module")
def sampler(run_node, prompts):
    """Function (model, **inputs of WanSampler) -> its LATENT and SIGMAS; 4 steps of Euler at guidance 1 by default."""

    def run(model, **inputs):
        given = dict(
            positive=prompts[0], latent={"samples": torch.zeros(LATENT)}, solver="euler", seed=SEED, denoise=1.0
        )
        return run_node("WanSampler", model=model, **(given | FEW | inputs))

    return run


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("solver", ["euler", "lcm", "res_multistep"])
def test_a_whole_run_is_the_hosts(t2v, sampler, theirs, relative_error, solver, name):
    ours, sigmas = sampler(t2v, solver=solver, sigmas=torch.tensor(LISTS[name]))
    assert relative_error(ours["samples"], theirs(t2v, solver, LISTS[name])["samples"]) < 1e-5
    torch.testing.assert_close(sigmas, torch.tensor(LISTS[name]), rtol=1e-7, atol=0)


@pytest.mark.parametrize("solver", ["lcm", "res_multistep"])
def test_a_long_guided_run_is_the_hosts(t2v, prompts, sampler, theirs, relative_error, solver):
    ours, sigmas = sampler(t2v, solver=solver, steps=12, guidance=4.0, negative=prompts[1])
    expected = theirs(t2v, solver, sigmas.tolist(), cfg=4.0)
    assert relative_error(ours["samples"], expected["samples"]) < 1e-5


def test_timesteps_are_cut_only_where_the_official_code_cuts_them(t2v, sampler):
    seen = []

    def watch(executor, x, timestep, *arguments, **options):
        seen.append(float(timestep[0]))
        return executor(x, timestep, *arguments, **options)

    model = t2v.clone()
    model.add_wrapper_with_key("diffusion_model", "watch", watch)
    sampler(model)
    assert seen == pytest.approx([1000, 937.5, 833.3333, 625], abs=1e-3)
    for solver in ("unipc", "dpmpp"):
        seen.clear()
        sampler(model, solver=solver)
        assert seen == [float(int(t)) for t in seen] and len(seen) == 4


def test_the_hosts_scheduler_and_split_fit(t2v, sampler, theirs, relative_error):
    shifted = result(ModelSamplingSD3, t2v, 5.0)
    sigmas = result(BasicScheduler, shifted, "simple", 6, 1.0)
    whole = sampler(t2v, solver="lcm", sigmas=sigmas)[0]["samples"]
    assert relative_error(whole, theirs(t2v, "lcm", sigmas.tolist())["samples"]) < 1e-5
    split = SplitSigmas.execute(sigmas, 3) if hasattr(SplitSigmas, "execute") else SplitSigmas().get_sigmas(sigmas, 3)
    high, low = split if isinstance(split, tuple) else split.result
    half = sampler(t2v, solver="lcm", sigmas=high)[0]
    assert relative_error(sampler(t2v, solver="lcm", sigmas=low, latent=half)[0]["samples"], whole) < 1e-5


@pytest.mark.parametrize("solver", ["euler", "lcm"])
def test_two_samplers_in_a_row_are_one(t2v, sampler, relative_error, solver):
    whole, all_sigmas = sampler(t2v, solver=solver)
    first, high = sampler(t2v, solver=solver, end_step=2)
    last, low = sampler(t2v, solver=solver, start_step=2, latent=first)
    assert relative_error(last["samples"], whole["samples"]) < 1e-5
    assert torch.equal(torch.cat((high, low[1:])), all_sigmas)
    assert set(last) == {"samples"}


def test_a_split_with_the_hosts_sampler_on_either_side(t2v, sampler, theirs, relative_error):
    sigmas = LISTS["lightx2v"]
    whole = theirs(t2v, "euler", sigmas)["samples"]
    ours_first = theirs(t2v, "euler", sigmas[2:], latent=sampler(t2v, end_step=2)[0], add_noise=False)
    assert relative_error(ours_first["samples"], whole) < 1e-5
    half = theirs(t2v, "euler", sigmas[:3])
    theirs_first, _ = sampler(t2v, start_step=2, latent=half, add_noise=False)
    assert relative_error(theirs_first["samples"], whole) < 1e-5


def test_a_finished_latent_does_not_count_as_unfinished(t2v, sampler, theirs):
    finished = theirs(t2v, "euler", LISTS["lightx2v"][2:], latent=sampler(t2v, end_step=2)[0], add_noise=False)
    again, _ = sampler(t2v, latent=finished, denoise=0.5)
    assert again["samples"].isfinite().all()


def test_a_second_pass_puts_noise_on_the_clip(t2v, sampler, theirs, relative_error):
    clip = {"samples": torch.randn(LATENT, generator=torch.Generator().manual_seed(5))}
    ours, _ = sampler(t2v, latent=clip, sigmas=torch.tensor([0.6, 0.3, 0.0]))
    assert relative_error(ours["samples"], theirs(t2v, "euler", [0.6, 0.3, 0.0], latent=clip)["samples"]) < 1e-5


def test_noise_goes_on_across_the_experts(t2v, room, sampler, relative_error):
    """Two experts of the same weights give what one model gives, new noise in every step included."""
    low = t2v.clone()
    pair, _ = sampler(t2v, solver="lcm", low_noise_model=low, boundary=0.9)
    assert relative_error(pair["samples"], sampler(t2v, solver="lcm")[0]["samples"]) < 1e-6


@pytest.mark.parametrize(
    "inputs, words",
    [
        (dict(sigmas=[]), "hold 0 noise levels"),
        (dict(sigmas=[0.5]), "hold 1 noise levels"),
        (dict(sigmas=[1.0, 0.2, 0.5, 0.0]), "0.5 follows 0.2"),
        (dict(sigmas=[14.6, 1.0, 0.0]), "between 0 and 1, but these run from 14.6"),
        (dict(start_step=2, end_step=2), "start at step 2 and end at step 2 of 4"),
        (dict(start_step=3, end_step=1), "start at step 3 and end at step 1 of 4"),
        (dict(start_step=9), "start at step 9 and end at step 4 of 4"),
        (dict(add_noise=False), "starts at full noise"),
        (dict(guidance=3.0), "Guidance 3 needs a negative prompt"),
        (dict(preset="fast"), "no preset named 'fast'"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(t2v, sampler, inputs, words):
    if "sigmas" in inputs:
        inputs = inputs | {"sigmas": torch.tensor(inputs["sigmas"])}
    with pytest.raises(ValueError, match=words):
        sampler(t2v, **inputs)


def test_a_latent_goes_on_where_it_was_left(t2v, sampler):
    half, _ = sampler(t2v, end_step=2)
    with pytest.raises(ValueError, match=r"left at noise level 0.8333 and this run starts at 0.6250"):
        sampler(t2v, latent=half, start_step=3)


def test_the_negative_prompt_is_asked_for_only_where_it_is_read(t2v, prompts, pack, sampler):
    inputs = dict(model=t2v, positive=prompts[0], latent={"samples": torch.zeros(LATENT)}, solver="euler", seed=1)
    inputs |= dict(denoise=1.0, steps=4, shift=5.0)
    node = nodes.NODE_CLASS_MAPPINGS["WanSampler"].PREPARE_CLASS_CLONE(None)

    def asked(**more):
        return node.check_lazy_status(**(inputs | more))

    patched = t2v.clone()
    patched.model_options["disable_cfg1_optimization"] = True
    assert asked(guidance=4.0, negative=None) == ["negative"]
    assert asked(guidance=4.0) == [] and asked(guidance=4.0, negative=prompts[1]) == []  # not connected; there already
    assert asked(guidance=1.0, negative=None) == []
    assert asked(guidance=4.0, negative=None, preset="lightx2v") == []
    assert asked(guidance=1.0, negative=None, low_noise_model=t2v, low_noise_guidance=2.0) == ["negative"]
    assert asked(guidance=1.0, negative=None, model=patched) == ["negative"]
    schema = nodes.NODE_CLASS_MAPPINGS["WanSampler"].INPUT_TYPES()
    assert schema["optional"]["negative"][1]["lazy"] is True
    with pytest.raises(ValueError, match="One of the model's patches needs a negative prompt"):
        sampler(patched)


def test_without_a_negative_prompt_the_result_is_the_same(t2v, prompts, sampler):
    assert torch.equal(sampler(t2v)[0]["samples"], sampler(t2v, negative=prompts[1])[0]["samples"])


@pytest.mark.parametrize("preset", ["lightx2v", "self-forcing", "causvid", "fastwan", "rcm", "bernini lightx2v"])
def test_a_preset_is_its_settings(t2v, prompts, sampler, preset):
    chosen = distilled.BY_NAME[preset]
    by_name, sigmas = sampler(t2v, preset=preset, steps=30, guidance=5.0, shift=3.0, solver="unipc")
    by_hand, _ = sampler(t2v, sigmas=torch.tensor(chosen.sigmas), solver=chosen.solver)
    assert torch.equal(by_name["samples"], by_hand["samples"]) and sigmas.tolist() == pytest.approx(chosen.sigmas)


def test_guidance_at_the_start_alone(t2v, prompts, room, sampler):
    low = t2v.clone()
    preset = sampler(t2v, preset="lightx2v, guided start", negative=prompts[1], low_noise_model=low)[0]["samples"]
    hand = sampler(t2v, guidance=3.5, low_noise_guidance=1.0, negative=prompts[1], low_noise_model=low)[0]["samples"]
    assert torch.equal(preset, hand)
    alone = sampler(t2v, preset="lightx2v, guided start")[0]["samples"]  # a single model has no second expert: 1
    assert torch.equal(alone, sampler(t2v)[0]["samples"])


@pytest.fixture
def lightx2v(t2v):
    """The MODEL `t2v` with a LoRA named as a 4-step distillation on it."""
    model = t2v.clone()
    model.set_attachments("wan_loras", ("wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise.safetensors",))
    return model


def test_auto_takes_what_the_names_tell_and_nothing_is_taken_unasked(lightx2v, t2v, prompts, sampler, caplog):
    plain = dict(steps=6, guidance=2.0, solver="unipc", negative=prompts[1])
    assert torch.equal(sampler(lightx2v, preset="auto", **plain)[0]["samples"], sampler(t2v)[0]["samples"])
    assert torch.equal(sampler(lightx2v, **plain)[0]["samples"], sampler(t2v, preset="auto", **plain)[0]["samples"])
    caplog.clear()
    with caplog.at_level(logging.INFO):
        sampler(lightx2v, steps=30, guidance=5.0, negative=prompts[1])
    (advice,) = [message for message in caplog.messages if "4-step distillation" in message]
    assert "4 steps, guidance 1, shift 5, Euler. The run has 30 steps, guidance 5" in advice
    caplog.clear()
    with caplog.at_level(logging.INFO):
        sampler(lightx2v)
        sampler(t2v, steps=30, guidance=5.0, negative=prompts[1])
    assert not [message for message in caplog.messages if "distillation" in message]


def test_loras_are_known_by_their_loader(t2v, models, room, run_node):
    loader, presets = room("host.model.lora"), room("host.sampling.presets")
    path = models / "loras" / "tiny_lightx2v_4steps.safetensors"
    path.parent.mkdir(exist_ok=True)
    width = t2v.model.diffusion_model.config.dim
    name = "diffusion_model.blocks.0.self_attn.q"
    save_file({f"{name}.lora_A.weight": torch.ones(2, width), f"{name}.lora_B.weight": torch.ones(width, 2)}, path)
    model, _ = loader.apply(t2v, str(path), 0.5)
    path.unlink()
    assert presets.file_names(model) == [t2v.model.source, "tiny_lightx2v_4steps.safetensors"]
    assert presets.file_names(t2v) == [t2v.model.source]
    assert presets.preset_for(presets.file_names(model.clone()))["name"] == "lightx2v"
    assert presets.preset_for(presets.file_names(t2v)) is None


def test_the_hosts_loaders_are_known_by_the_graph(room):
    upstream = room("host.sampling.presets").names_upstream
    graph = {
        "1": {"inputs": {"unet_name": "wan/wan2.2_t2v_high.safetensors"}},
        "2": {"inputs": {"model": ["1", 0], "lora_name": "off.safetensors", "strength_model": 0}},
        "3": {"inputs": {"model": ["2", 0], "lora_name": "lightx2v_4steps.safetensors", "strength_model": 1.0}},
        "4": {"inputs": {"model": ["3", 0], "shift": 5.0}},
        "5": {"inputs": {"model": ["4", 0], "low_noise_model": ["1", 0]}},
    }
    assert upstream(graph, "5", "model") == ["lightx2v_4steps.safetensors", "wan2.2_t2v_high.safetensors"]
    assert upstream(graph, "5", "low_noise_model") == ["wan2.2_t2v_high.safetensors"]
    assert upstream(None, None, "model") == [] and upstream(graph, "9", "model") == []


def test_the_solver_list_is_the_choice(pack):
    solver = nodes.NODE_CLASS_MAPPINGS["WanSampler"].INPUT_TYPES()["required"]["solver"]
    assert list(solvers.SAMPLERS) == (solver[1]["options"] if solver[0] == "COMBO" else list(solver[0]))


def test_denoise_takes_the_end_of_a_presets_list_and_leaves_connected_sigmas_whole(t2v, sampler):
    clip = {"samples": torch.randn(LATENT, generator=torch.Generator().manual_seed(5))}
    connected = torch.tensor([0.8, 0.4, 0.0])
    ends = {
        ("causvid", 0.33): [0.25, 0.14, 0.074, 0],
        ("causvid", 0.01): [0.074, 0],
        ("fastwan", 1.0): [1, 0.757, 0.522, 0],
    }
    for (preset, denoise), expected in ends.items():
        assert sampler(t2v, latent=clip, preset=preset, denoise=denoise)[1].tolist() == pytest.approx(expected)
    _, sigmas = sampler(t2v, latent=clip, preset="causvid", denoise=0.33, sigmas=connected)
    assert torch.equal(sigmas, connected)


def test_a_preset_gives_its_solver_to_connected_sigmas(t2v, sampler):
    sigmas = torch.tensor([0.9, 0.5, 0.0])
    by_preset, _ = sampler(t2v, preset="rcm", sigmas=sigmas)
    assert torch.equal(by_preset["samples"], sampler(t2v, solver="lcm", sigmas=sigmas)[0]["samples"])
    assert not torch.equal(by_preset["samples"], sampler(t2v, solver="euler", sigmas=sigmas)[0]["samples"])
