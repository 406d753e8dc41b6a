"""The step cache: what it skips and what it then answers, under WanSampler and the host's KSampler."""

import logging
from collections import Counter
from types import SimpleNamespace

import comfy.sd
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from safetensors.torch import save_file

import nodes
from wan_model import solvers

CRITERIA = ["easycache", "teacache", "magcache"]
LOOSE = 100.0  # a budget that is never spent


@pytest.fixture(scope="module")
def cached(run_node):
    def cached(model, criterion="easycache", budget=0.05, start_percent=0.0, end_percent=1.0):
        inputs = dict(criterion=criterion, budget=budget, start_percent=start_percent, end_percent=end_percent)
        return run_node("WanStepCache", model=model, **inputs)[0]

    return cached


@pytest.fixture
def counted(t2v):
    """`t2v` that counts the conditionings its network evaluates, by timestep."""
    calls = Counter()

    def count(executor, x, timestep, *arguments, **options):
        calls[round(float(timestep[0]))] += len(x)
        return executor(x, timestep, *arguments, **options)

    model = t2v.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    return model, calls


@pytest.mark.parametrize("criterion", CRITERIA)
def test_without_a_budget_nothing_changes(t2v, sample, cached, criterion):
    plain = sample(t2v)
    assert torch.equal(sample(cached(t2v, criterion, budget=0.0)), plain)
    assert torch.equal(sample(cached(t2v, criterion, budget=1e-12)), plain)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_skipped_calls_are_saved_and_said(counted, sample, cached, caplog, criterion):
    model, calls = counted
    with caplog.at_level(logging.INFO):
        sample(cached(model, criterion, LOOSE))
    steps = 4 if criterion == "magcache" else 2  # two to measure the change; magcache skips four in a row at most
    assert calls.total() == 2 * steps
    said = f"{24 - 2 * steps} of 24 network calls skipped, {12 / steps:.2f} times fewer."
    assert f"Step cache ({criterion}, budget 100): {said}" in caplog.messages


def test_a_skipped_step_uses_the_last_velocity(t2v, prompts, sample, cached, relative_error):
    noise = torch.randn(1, 16, 3, 8, 10, generator=torch.manual_seed(11))
    velocities = []

    def denoise(x, sigma):
        if len(velocities) < 2:
            t = torch.tensor([float(int(1000 * sigma + 1e-3))])
            v, v_null = (t2v.model.diffusion_model(x, t, tokens[0][0]) for tokens in prompts)
            velocities.append(v_null + 4.0 * (v - v_null))
        return x - sigma * velocities[-1]

    expected = solvers.sample_unipc(denoise, noise, solvers.flow_sigmas(12, 5.0, "unipc"))
    actual = sample(cached(t2v, budget=LOOSE))
    assert relative_error(actual, t2v.model.process_latent_out(expected)) < 1e-4


def test_only_steps_between_start_and_end_are_skipped(counted, sample, cached):
    model, calls = counted
    sample(cached(model, budget=LOOSE, start_percent=0.5, end_percent=0.75))
    timesteps = [int(1000 * sigma + 1e-3) for sigma in solvers.flow_sigmas(12, 5.0, "unipc")[:-1].tolist()]
    assert sorted(calls, reverse=True) == timesteps[:6] + timesteps[9:]


def test_a_run_leaves_nothing_behind(t2v, sample, cached):
    model = cached(t2v, budget=0.5)
    first = sample(model)
    sample(model, seed=12)
    assert torch.equal(sample(model), first)
    assert "wan_step_cache" not in model.model_options["transformer_options"]


def test_the_last_of_two_caches_counts(counted, sample, cached):
    model, calls = counted
    sample(cached(cached(model, budget=LOOSE), budget=1e-12))
    assert calls.total() == 24


def test_the_hosts_ksampler(counted, prompts, cached):
    model, calls = counted
    latent = {"samples": torch.zeros(1, 16, 3, 8, 10)}
    plain = nodes.common_ksampler(model, 11, 12, 4.0, "euler", "simple", *prompts, latent)[0]["samples"]
    all_calls = calls.total()
    model = cached(model, budget=0.9)
    near = nodes.common_ksampler(model, 11, 12, 4.0, "euler", "simple", *prompts, latent)[0]["samples"]
    assert 4 < calls.total() - all_calls < all_calls == 24
    assert (near - plain).norm() < 0.5 * plain.norm()


def test_the_hosts_own_model(t2v, cached, tmp_path):
    weights = {name: tensor.clone() for name, tensor in t2v.model.diffusion_model.state_dict().items()}
    generator = torch.Generator().manual_seed(4)
    weights["text_embedding.0.weight"] = 0.02 * torch.randn(256, 4096, generator=generator)  # the host reads no other
    save_file(weights, tmp_path / "wan.safetensors")
    theirs = comfy.sd.load_diffusion_model(str(tmp_path / "wan.safetensors"))
    text = [[[torch.randn(1, 512, 4096, generator=generator), {}]] for _ in range(2)]
    latent = {"samples": torch.zeros(1, 16, 3, 8, 10)}
    plain, skipped = (
        nodes.common_ksampler(model, 11, 4, 4.0, "euler", "simple", *text, latent)[0]["samples"]
        for model in (theirs, cached(theirs, budget=LOOSE))
    )
    assert 0 < (skipped - plain).norm() < plain.norm()
    with pytest.raises(ValueError, match="load it with WanModelLoader"):
        cached(theirs, "teacache")


def test_the_end_comes_after_the_start(t2v, cached):
    with pytest.raises(ValueError, match=r"end at 0.2 of the steps and start at 0.4"):
        cached(t2v, start_percent=0.4, end_percent=0.2)


def test_the_budget_bounds_the_error_of_a_reused_velocity(room):
    """A velocity of length 1 that turns by 0.01 in every step may be used for three more at a budget of 0.035."""
    step_cache = room("host.sampling.step_cache")
    sigmas = torch.linspace(1, 0, 21).tolist()
    run = step_cache.Run(step_cache.Settings("easycache", 0.035, 0.0, 1.0), sigmas)
    x, computed = torch.tensor([1.0, 0.0]), []
    for index, sigma in enumerate(sigmas[:-1]):
        v = torch.tensor([0.01 * index]).cos(), torch.tensor([0.01 * index]).sin()
        v = torch.cat(v)

        def compute(x=x, v=v, sigma=sigma, index=index):
            computed.append(index)
            return [x - sigma * v]

        moment = step_cache.Moment(x, sigma)
        (x0,) = run.predict(compute, SimpleNamespace(), [0], None, moment)
        assert torch.linalg.vector_norm((x - x0) / sigma - v) < 0.035
        x = x - 0.05 * v
    assert computed == [0, 1, 5, 9, 13, 17]
    assert (run.calls, run.skipped) == (20, 14)
