"""Guidance at some noise levels, CFG-Zero* and zero steps, under WanSampler and the host's KSampler."""

import pytest
import torch
from comfy.patcher_extension import WrappersMP

import nodes
from wan_model import solvers

STEPS = 6
LATENT = (1, 16, 3, 8, 10)


@pytest.fixture(scope="module")
def guided(run_node):
    def guided(model, sigma_start=1.0, sigma_end=0.0, cfg_zero=False, zero_steps=0):
        inputs = dict(sigma_start=sigma_start, sigma_end=sigma_end, cfg_zero=cfg_zero, zero_steps=zero_steps)
        return run_node("WanGuidance", model=model, **inputs)[0]

    return guided


@pytest.fixture
def counted(t2v):
    """`t2v`, and how many conditionings its network has evaluated at each step."""
    batches = []

    def count(executor, x, *arguments, **options):
        batches.append(len(x))
        return executor(x, *arguments, **options)

    model = t2v.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    return model, batches


def alone(t2v, prompts, guide, zero_steps=0):
    """The clip by `wan_model` alone; guide(sigma, v, v_null) joins the predictions."""
    network, noise = t2v.model.diffusion_model, torch.randn(LATENT, generator=torch.manual_seed(11))
    sigmas = solvers.flow_sigmas(STEPS, 5.0, "unipc")

    def denoise(x, sigma):
        if sigma > sigmas[zero_steps]:
            return x
        t = torch.tensor([float(int(1000 * sigma + 1e-3))])
        return x - sigma * guide(sigma, *(network(x, t, tokens[0][0]) for tokens in prompts))

    return t2v.model.process_latent_out(solvers.sample_unipc(denoise, noise, sigmas))


def cfg(scale, v, v_null):
    return v_null + scale * (v - v_null)


def test_defaults_without_cfg_zero_change_nothing(t2v, sample, guided):
    assert torch.equal(sample(guided(t2v), steps=STEPS), sample(t2v, steps=STEPS))


def test_outside_the_levels_the_prompt_is_predicted_alone(t2v, counted, prompts, sample, guided, relative_error):
    model, batches = counted
    actual = sample(guided(model, sigma_start=0.97, sigma_end=0.7), steps=STEPS)
    sigmas = solvers.flow_sigmas(STEPS, 5.0, "unipc")[:-1].tolist()
    inside = [0.7 <= sigma <= 0.97 for sigma in sigmas]
    assert batches == [2 if guide else 1 for guide in inside] and 0 < sum(inside) < STEPS - 1
    expected = alone(t2v, prompts, lambda sigma, *v: cfg(4.0 if 0.7 <= sigma <= 0.97 else 1.0, *v))
    assert relative_error(actual, expected) < 1e-3


def test_cfg_zero(t2v, prompts, sample, guided, relative_error):
    def guide(_, v, v_null):
        return cfg(4.0, v, (v.flatten() @ v_null.flatten()) / v_null.norm() ** 2 * v_null)

    actual = sample(guided(t2v, cfg_zero=True), steps=STEPS)
    assert relative_error(actual, alone(t2v, prompts, guide)) < 1e-4
    assert relative_error(actual, sample(t2v, steps=STEPS)) > 2e-3


def test_zero_steps_leave_the_noise_and_cost_nothing(t2v, counted, prompts, sample, guided, relative_error):
    model, batches = counted
    actual = sample(guided(model, zero_steps=2), steps=STEPS)
    assert batches == [2] * (STEPS - 2)
    assert relative_error(actual, alone(t2v, prompts, lambda _, *v: cfg(4.0, *v), zero_steps=2)) < 1e-3


def test_zero_steps_are_those_of_the_whole_run(t2v, counted, run_node, prompts, guided):
    """The second of two samplers has none, and both together are one run."""
    model, batches = counted
    inputs = dict(
        model=guided(model, zero_steps=1), positive=prompts[0], negative=prompts[1], steps=STEPS, guidance=4.0
    )
    inputs |= dict(shift=5.0, solver="euler", seed=11, denoise=1.0)
    whole, _ = run_node("WanSampler", latent={"samples": torch.zeros(LATENT)}, **inputs)
    first, _ = run_node("WanSampler", latent={"samples": torch.zeros(LATENT)}, end_step=3, **inputs)
    last, _ = run_node("WanSampler", latent=first, start_step=3, **inputs)
    assert batches == [2] * 2 * (STEPS - 1)
    torch.testing.assert_close(last["samples"], whole["samples"], rtol=1e-5, atol=1e-5)


def test_the_hosts_ksampler_and_the_step_cache(counted, prompts, run_node, guided):
    model, batches = counted
    latent = {"samples": torch.zeros(LATENT)}
    settings = dict(criterion="easycache", budget=100.0, start_percent=0.0, end_percent=1.0)
    for order in ("cache first", "guidance first"):
        batches.clear()
        if order == "cache first":
            both = guided(run_node("WanStepCache", model=model, **settings)[0], sigma_end=0.9, zero_steps=1)
        else:
            both = run_node("WanStepCache", model=guided(model, sigma_end=0.9, zero_steps=1), **settings)[0]
        out = nodes.common_ksampler(both, 11, STEPS, 4.0, "euler", "simple", *prompts, latent)[0]["samples"]
        assert batches == [2, 2] and out.isfinite().all(), order


def test_the_interval_falls(t2v, guided):
    with pytest.raises(ValueError, match=r"end at noise level 0.9 and start at 0.5"):
        guided(t2v, sigma_start=0.5, sigma_end=0.9)


def test_the_last_of_two_counts(t2v, sample, guided):
    assert torch.equal(sample(guided(guided(t2v, cfg_zero=True)), steps=STEPS), sample(t2v, steps=STEPS))
