"""The solvers against the official schedulers' trajectories, and against an ODE whose solution is known."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wan_model import solvers
from wan_model.solvers import SAMPLERS, SOLVERS, flow_sigmas, loops, sample_euler, sample_lcm, sample_res_multistep

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = [("unipc", 8, 5.0), ("unipc", 20, 3.0), ("dpmpp", 8, 5.0), ("dpmpp", 20, 3.0)]


def golden(solver, steps, shift):
    return load_file(GOLDEN / f"solver_{solver}_{steps}_{shift:.0f}.safetensors")


def field_denoise(x, sigma):
    """x0 of the golden cases' velocity field."""
    return x - sigma * (torch.tanh(1.3 * x) - 0.7 * torch.cos(2 * x + sigma))


def relative_error(value, reference):
    return ((value - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("solver, steps, shift", CASES)
def test_sigmas_are_the_official_ones(solver, steps, shift):
    case, sigmas = golden(solver, steps, shift), flow_sigmas(steps, shift, solver)
    assert sigmas.dtype == torch.float32 and sigmas.shape == (steps + 1,) and sigmas[-1] == 0
    torch.testing.assert_close(sigmas, case["out.sigmas"], rtol=1e-7, atol=0)
    # The official timesteps truncate before rounding to float32: round values such as 0.9 of "dpmpp" may fall apart.
    timesteps = (1000 * sigmas[:-1].double()).trunc()
    assert (timesteps - case["out.timesteps"]).abs().max() <= (0 if solver == "unipc" else 1)


@pytest.mark.parametrize("solver, steps, shift", CASES)
def test_every_step_follows_the_official_trajectory(solver, steps, shift):
    case, seen = golden(solver, steps, shift), []
    noise, trajectory = case["in.noise"], case["out.trajectory"]
    last = SOLVERS[solver](field_denoise, noise, flow_sigmas(steps, shift, solver), callback=seen.append)
    latents = [step["x"] for step in seen[1:]] + [last]
    assert [step["i"] for step in seen] == list(range(steps))
    errors = [relative_error(x[0], reference) for x, reference in zip(latents, trajectory, strict=True)]
    assert max(errors) < 1e-5


def test_euler_steps_along_the_velocity():
    noise, sigmas = golden("unipc", 8, 5.0)["in.noise"], flow_sigmas(12, 3.0, "euler")
    x = noise
    for now, after in pairwise(sigmas.tolist()):
        x = x + (after - now) * (x - field_denoise(x, now)) / now
    torch.testing.assert_close(sigmas, flow_sigmas(12, 3.0, "dpmpp"))
    assert relative_error(SOLVERS["euler"](field_denoise, noise, sigmas), x) < 1e-5


MEAN, STD = 0.6, 0.5  # the data of an ODE with a known solution: one Gaussian


def gaussian_denoise(x, sigma):
    alpha, variance = 1 - sigma, (1 - sigma) ** 2 * STD**2 + sigma**2
    return MEAN + alpha * STD**2 / variance * (x - alpha * MEAN)


def gaussian_solution(x, sigma, target):
    scale = math.hypot((1 - target) * STD, target) / math.hypot((1 - sigma) * STD, sigma)
    return (1 - target) * MEAN + scale * (x - (1 - sigma) * MEAN)


def solver_error(solver, sigmas):
    x = torch.linspace(-2, 2, 41)
    exact = gaussian_solution(x, float(sigmas[0]), float(sigmas[-1]))
    return relative_error(SOLVERS[solver](gaussian_denoise, x, sigmas), exact)


@pytest.mark.parametrize("solver, order", [("euler", 1), ("dpmpp", 2), ("unipc", 2), ("res_multistep", 2)])
@pytest.mark.parametrize("start, end", [(1.0, 0.0), (0.7, 0.0), (0.9, 0.2)])
def test_error_falls_at_the_order_of_the_solver(solver, order, start, end):
    coarse, fine = (solver_error(solver, torch.linspace(start, end, steps + 1)) for steps in (64, 256))
    assert order - 0.3 < math.log2(coarse / fine) / 2 < order + 0.3  # near sigma 0, "dpmpp" falls a little slower


def test_the_corrector_and_the_second_order_pay_off():
    errors = {solver: solver_error(solver, flow_sigmas(12, 3.0, "euler")) for solver in SOLVERS}
    assert errors["unipc"] < errors["dpmpp"] < errors["euler"]


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_step_returns_the_models_x0_and_two_steps_are_finite(solver):
    noise = golden("unipc", 8, 5.0)["in.noise"]
    one, two = flow_sigmas(1, 5.0, solver), flow_sigmas(2, 5.0, solver)
    torch.testing.assert_close(SOLVERS[solver](field_denoise, noise, one), field_denoise(noise, one[0].item()))
    reference = SOLVERS["euler"](field_denoise, noise, flow_sigmas(200, 5.0, "euler"))
    result = SOLVERS[solver](field_denoise, noise, two)
    assert relative_error(result, reference) < relative_error(field_denoise(noise, 1.0), reference)


@pytest.mark.parametrize("solver", SOLVERS)
def test_any_dtype_is_integrated_in_float32(solver):
    noise, sigmas, inputs = golden("unipc", 8, 5.0)["in.noise"].bfloat16(), flow_sigmas(8, 5.0, solver), []

    def denoise(x, sigma):
        inputs.append(x.dtype)
        return field_denoise(x, sigma)

    result = SOLVERS[solver](denoise, noise, sigmas)
    assert result.dtype == torch.bfloat16 and set(inputs) == {torch.float32}
    assert torch.equal(result, SOLVERS[solver](field_denoise, noise.float(), sigmas).bfloat16())


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_start_is_left_alone(solver):
    noise = golden("unipc", 8, 5.0)["in.noise"]
    before = noise.clone()
    SOLVERS[solver](field_denoise, noise, flow_sigmas(3, 5.0, solver))
    assert torch.equal(noise, before)


@pytest.mark.parametrize(
    "steps, shift, solver, words",
    [
        (0, 5.0, "unipc", "at least 1 step, not 0"),
        (8, 0.0, "unipc", "positive number, not 0"),
        (8, -3.0, "dpmpp", "positive number, not -3"),
        (8, math.nan, "euler", "positive number, not nan"),
        (8, 5.0, "heun", "no solver named 'heun': choose one of unipc, dpmpp, euler"),
    ],
)
def test_a_bad_schedule_is_named(steps, shift, solver, words):
    with pytest.raises(ValueError, match=words):
        flow_sigmas(steps, shift, solver)


@pytest.mark.parametrize("solver", SAMPLERS)
@pytest.mark.parametrize(
    "sigmas, words",
    [
        ([0.5], "at least 2 sigmas"),
        ([0.5, 0.7, 0.0], "0.7 follows 0.5"),
        ([0.9, 0.9, 0.0], "0.9 follows 0.9"),
        ([1.0, math.nan, 0.0], "nan follows 1"),
        ([14.6, 1.0, 0.0], "run from 14.6 to 0"),
        ([0.9, 0.4, -0.1], "run from 0.9 to -0.1"),
    ],
)
def test_bad_sigmas_are_named(solver, sigmas, words):
    with pytest.raises(ValueError, match=words):
        SAMPLERS[solver](field_denoise, torch.ones(3), sigmas)


def test_a_solver_of_its_own_order_reaches_second_order_from_two_predictions_a_step(monkeypatch):
    """Heun's method, written as a loop that asks twice a step, converges at order 2 where Euler's has order 1."""

    def heun(x, s, noise):
        for i in range(len(s) - 1):
            begin = yield i, x, s[i]
            slope, dt = (x - begin) / s[i], s[i + 1] - s[i]
            if s[i + 1] > 0:
                end = yield i, x + dt * slope, s[i + 1]
                slope = (slope + (x + dt * slope - end) / s[i + 1]) / 2
            x = x + dt * slope
        return x

    monkeypatch.setitem(loops.LOOPS, "heun", heun)

    def error(steps):
        sigmas, x, asked = torch.linspace(0.9, 0.2, steps + 1).tolist(), torch.linspace(-2, 2, 41), []
        run = solvers.Run("heun", x, sigmas)
        while not run.done:
            asked.append((run.index, run.sigma))
            run.step(gaussian_denoise(run.x, run.sigma))
        assert [index for index, _ in asked] == [i for i in range(steps) for _ in range(2)]
        assert [sigma for _, sigma in asked] == [s for pair in pairwise(sigmas) for s in pair]
        assert (run.index, run.sigma) == (steps, sigmas[-1])
        return relative_error(run.x, gaussian_solution(x, sigmas[0], sigmas[-1]))

    assert 1.7 < math.log2(error(32) / error(128)) / 2 < 2.3


def test_res_multistep_is_its_formula():
    """x' = e^-h x + h (b1 D + b2 D_old), b2 = phi_2(-h) / c2, b1 = phi_1(-h) - b2; else Euler's step."""
    x, sigmas, old = golden("unipc", 8, 5.0)["in.noise"].double(), flow_sigmas(8, 5.0, "res_multistep"), None
    expected = x
    for i, (now, after) in enumerate(pairwise(sigmas.double().tolist())):
        x0 = field_denoise(expected, now)
        if old is None or after == 0:
            expected = expected + (after - now) * (expected - x0) / now
        else:
            h, c2 = math.log(now / after), math.log(now / float(sigmas[i - 1])) / math.log(now / after)
            phi1 = math.expm1(-h) / -h
            b2 = (phi1 - 1) / -h / c2
            expected = math.exp(-h) * expected + h * ((phi1 - b2) * x0 + b2 * old)
        old = x0
    assert relative_error(sample_res_multistep(field_denoise, x.float(), sigmas), expected.float()) < 1e-5


def self_forcing(x, steps, shift, generator):
    """Self-forcing's loop over one block: denoise, then `add_noise` at the next of its warped timesteps."""
    grid = torch.linspace(1, 0, 1001)[:-1]  # its FlowMatchScheduler of 1000 training steps
    grid = shift * grid / (1 + (shift - 1) * grid)
    levels = torch.cat((grid, torch.zeros(1)))[[1000 - step for step in steps]].tolist()
    for now, after in pairwise([*levels, 0.0]):
        x0 = field_denoise(x, now)
        if after:
            x = (1 - after) * x0 + after * torch.randn(x0.shape, generator=generator)
    return x0


@pytest.mark.parametrize("steps", [[1000, 750, 500, 250], [1000, 800, 600, 400, 200]])
def test_lcm_is_the_loop_of_self_forcing(steps):
    noise = golden("unipc", 8, 5.0)["in.noise"]
    expected = self_forcing(noise, steps, 5.0, torch.Generator().manual_seed(4))
    sigmas = flow_sigmas(len(steps), 5.0, "lcm")
    actual = sample_lcm(field_denoise, noise, sigmas, noise=torch.Generator().manual_seed(4))
    assert relative_error(actual, expected) < 1e-5
    assert (
        relative_error(sample_lcm(field_denoise, noise, sigmas, noise=torch.Generator().manual_seed(5)), actual) > 0.1
    )
    assert relative_error(sample_euler(field_denoise, noise, sigmas), actual) > 0.1


def test_noise_is_drawn_from_where_the_caller_says():
    noise, sigmas, drawn = golden("unipc", 8, 5.0)["in.noise"], flow_sigmas(4, 5.0, "lcm"), []

    def source(x):
        drawn.append(x.shape)
        return torch.randn(x.shape, generator=generator)

    generator = torch.Generator().manual_seed(0)
    by_function = sample_lcm(field_denoise, noise, sigmas, noise=source)
    assert drawn == [noise.shape] * 3  # none for the last step
    assert torch.equal(by_function, sample_lcm(field_denoise, noise, sigmas))  # None is seed 0
    state = torch.get_rng_state()
    sample_lcm(field_denoise, noise, sigmas)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("solver", SAMPLERS)
def test_timesteps(solver):
    expected = [1000, 937, 833, 625] if solver in ("unipc", "dpmpp") else [1000, 937.5, 833.3333, 625]
    sigmas = flow_sigmas(4, 5.0, "euler")[:-1]
    assert solvers.timestep(sigmas, solver).tolist() == pytest.approx(expected, abs=1e-3)
    assert [solvers.timestep(sigma, solver) for sigma in sigmas.tolist()] == pytest.approx(expected, abs=1e-3)
