"""Causal models against the authors' rollouts, and the memory that they take."""

import json
from itertools import islice

import pytest
import torch

from wan_model import build_dit, causal
from wan_model.dit.runtime import Runtime
from wan_model.solvers import flow_sigmas

FEW_STEPS = (
    *("extend", "first_chunk", "first_independent", "framewise", "global", "i2v"),
    *("local6", "local6_sink1", "local6_sink3"),
)


class Case:
    """A golden case with a batch axis, and the arguments of `rollout` that it was run with."""

    def __init__(self, golden):
        self.golden, self.meta = golden, golden.metadata
        self.model = build_dit(golden.weights())
        self.context = golden.inputs["context"][None]
        self.latent = golden.outputs.get("latent")
        self.window = None if golden.config["local_attn_size"] == -1 else golden.config["local_attn_size"]
        self.sink = golden.config["sink_size"]

    @property
    def few_steps(self) -> dict:
        inputs = self.golden.inputs
        initial, first = inputs.get("initial_latent"), inputs.get("timesteps_first")
        return {
            "sigmas": inputs["sigmas"].tolist(),
            "renoise": inputs["renoise"].unsqueeze(1),
            "blocks": json.loads(self.meta["blocks"]),
            "window": self.window,
            "sink": self.sink,
            "initial": None if initial is None else initial[None],
            "first_sigmas": None if first is None else (first / 1000).tolist(),
        }

    @property
    def noise(self) -> torch.Tensor:
        return self.golden.inputs["noise"][None]

    def rollout(self, **changes):
        return causal.rollout(self.model, self.noise, self.context, **self.few_steps | changes)


@pytest.fixture
def case(golden):
    return lambda name: Case(golden(f"causal_{name}"))


@pytest.fixture
def caches(monkeypatch):
    """The caches that rollouts make from here on."""
    made = []

    class Seen(causal.Cache):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr("wan_model.causal.blocks.Cache", Seen)
    return made


def joined(blocks, initial=None) -> torch.Tensor:
    """The clip (C, F, H, W) of yielded blocks, behind the given frames."""
    given = [] if initial is None else [initial]
    return torch.cat([*given, *blocks], dim=2)[0]


@pytest.mark.parametrize("name", FEW_STEPS)
def test_the_authors_rollout(name, case, relative_error):
    given = case(name)
    latent = joined(given.rollout(), given.few_steps["initial"])
    assert relative_error(latent, given.latent) < 1e-4


def test_undistilled_with_guidance(case, relative_error):
    given = case("cfg")
    meta = given.meta
    sigmas = flow_sigmas(int(meta["steps"]), float(meta["shift"]), "unipc")
    null = given.golden.inputs["context_null"][None]
    settings = {"guidance": float(meta["guide"]), "blocks": int(meta["num_frame_per_block"])}
    latent = joined(causal.guided(given.model, given.noise, given.context, null, sigmas=sigmas, **settings))
    assert relative_error(latent, given.latent) < 1e-3


@pytest.mark.parametrize("name", ["rolling", "rolling_evict"])
def test_rolling_forcing(name, case, relative_error):
    given = case(name)
    inputs, meta = given.golden.inputs, given.meta
    settings = {"block": int(meta["num_frame_per_block"]), "window": int(meta["window"])}
    sigmas, renoise = (inputs["timesteps"] / 1000).tolist(), inputs["renoise"].unsqueeze(1)
    made = causal.rolling(given.model, given.noise, given.context, sigmas=sigmas, renoise=renoise, **settings)
    assert relative_error(joined(made), given.latent) < 1e-4


@pytest.mark.parametrize("name", ["mask", "mask_local3"])
def test_the_whole_clip_at_once(name, case, relative_error):
    given = case(name)
    x, t, clean = (given.golden.inputs[key] for key in ("x", "t", "clean"))
    settings = {"blocks": int(given.meta["num_frame_per_block"]), "window": given.window}
    v = causal.over_clip(given.model, x[None], t, given.context, **settings)
    assert relative_error(v[0], given.golden.outputs["v"]) < 1e-5
    if "v_teacher" in given.golden.outputs:
        v = causal.over_clip(given.model, x[None], t, given.context, clean=clean[None], **settings)
        assert relative_error(v[0], given.golden.outputs["v_teacher"]) < 1e-5


@pytest.mark.parametrize("name", FEW_STEPS)
def test_every_call_of_the_network(name, case, relative_error, caches):
    """Each call's frames and timestep, and input, cache and result of the one that the golden case looks into."""
    given, calls, probed = case(name), [], {}

    def model(x, t, context, runtime):
        start = int(runtime.rope_shift[0])
        again = bool(calls) and calls[-1][0] == start  # the second call of a block
        calls.append([start, x.shape[2], round(float(t), 4)])
        cache = {} if not again or start in probed else dict(enumerate(stored(caches[0])))
        v = given.model(x, t, context, runtime=runtime)
        if cache:
            probed[start] = x, cache, v
        return v

    list(causal.rollout(model, given.noise, given.context, **given.few_steps))
    assert calls == [[s, n, pytest.approx(t, abs=1e-3)] for s, n, t in json.loads(given.meta["calls"])[:-1]]
    outputs, before = given.golden.outputs, given.few_steps["initial"]
    start = sum(given.few_steps["blocks"][: int(given.meta["probe"])]) + (0 if before is None else before.shape[2])
    x, cache, v = probed[start]
    assert relative_error(x[0], outputs["probe_x"]) < 1e-4
    assert relative_error(v[0], outputs["probe_flow"]) < 1e-4
    for index, (keys, values) in cache.items():
        assert relative_error(keys, outputs["probe_cache_k"][index].flatten(1)) < 1e-4
        assert relative_error(values, outputs["probe_cache_v"][index].flatten(1)) < 1e-4


def stored(cache):
    """Keys and values (tokens, dim) of each block of the network, in the order of the frames."""
    slots = [slot for _, slot in sorted(cache.slots.items())]
    return [tuple(part[0, slots].flatten(0, 1) for part in cache.layers[index]) for index in sorted(cache.layers)]


def test_functions_of_a_range_and_no_end(case, relative_error):
    """An endless run: the blocks that are taken are those of the bounded run, with 3 frames of noise at a time."""
    given, asked = case("local6_sink1"), []
    renoise = given.few_steps["renoise"]

    def noise(start, stop):
        asked.append((start, stop))
        return given.noise[:, :, start:stop]

    made = causal.rollout(
        *(given.model, noise, given.context),
        **given.few_steps | {"renoise": lambda start, stop: renoise[:, :, :, start:stop], "blocks": 3},
    )
    assert relative_error(joined(islice(made, 4)), joined(given.rollout())) < 1e-6
    assert asked == [(0, 3), (3, 6), (6, 9), (9, 12)]


def test_in_chunks_and_in_a_batch(case, relative_error):
    given = case("local6")
    expected = joined(given.rollout())
    assert relative_error(joined(given.rollout(runtime=Runtime(chunk=20))), expected) < 1e-5
    pair = [torch.cat((x, x.flip(-1))) for x in (given.noise, given.context)]
    renoise = given.few_steps["renoise"]
    renoise = torch.cat((renoise, renoise.flip(-1)), dim=1)
    both = torch.cat(list(causal.rollout(given.model, *pair, **given.few_steps | {"renoise": renoise})), dim=2)
    assert relative_error(both[0], expected) < 1e-5
    assert relative_error(both[1], expected) > 0.1


def test_a_sink_near_the_window(case, relative_error):
    """With room for the sink and the block alone, each block is made as if it came second."""
    given = case("local6_sink3")
    renoise, settings = given.few_steps["renoise"], {"blocks": 3, "near_sink": True}
    blocks = list(given.rollout(**settings))
    far = list(given.rollout())
    for index in (2, 3):
        frames = [0, 1, 2, *range(3 * index, 3 * index + 3)]
        changes = settings | {"renoise": renoise[:, :, :, frames]}
        second = list(
            causal.rollout(given.model, given.noise[:, :, frames], given.context, **given.few_steps | changes)
        )
        assert relative_error(blocks[index], second[1]) < 1e-4
        assert relative_error(far[index], second[1]) > 1e-3


def test_one_step_adds_no_noise(case, relative_error):
    given = case("global")
    made = given.rollout(sigmas=[1.0], renoise=None)
    assert relative_error(joined(made), joined(given.rollout(sigmas=[1.0]))) < 1e-6


def test_an_earlier_block_does_not_see_a_later_one(case, relative_error):
    """A block that is made again after the next one is what it was."""
    given = case("global")
    history = causal.History(given.model, given.context, causal.Cache(9), Runtime())
    first = history.velocity(given.noise[:, :, :3], 900.0)
    history.length = 3
    history.velocity(given.noise[:, :, 3:6], 900.0)
    history.length = 0
    assert relative_error(history.velocity(given.noise[:, :, :3], 900.0), first) < 1e-6


def test_a_told_timestep_of_finished_frames(case):
    given, told = case("framewise"), []

    def model(x, t, context, runtime):
        told.append(float(t))
        return given.model(x, t, context, runtime=runtime)

    list(causal.rollout(model, given.noise, given.context, **given.few_steps | {"context_time": 150.0}))
    assert told.count(150.0) == 3 and 0.0 not in told


def test_finished_frames_are_kept_with_the_noise_of_which_the_network_is_told(case, relative_error):
    """Each frame with its own, however the blocks are cut, the given ones before included."""
    given = case("extend")
    initial = given.few_steps["initial"]
    frames = initial.shape[2] + given.noise.shape[2]
    noise = torch.randn((1, 16, frames, *given.noise.shape[3:]), generator=torch.Generator().manual_seed(3))
    seen = {}

    def model(x, t, context, *, runtime):
        if float(t) == 150:
            first = int(runtime.rope_shift[0])
            seen.update({first + frame: x[:, :, frame] for frame in range(x.shape[2])})
        return given.model(x, t, context, runtime=runtime)

    options = given.few_steps | {"context_time": 150.0, "context_noise": noise}
    made = torch.cat([initial, *causal.rollout(model, given.noise, given.context, **options)], dim=2)
    for frame, x in seen.items():
        assert relative_error(x, 0.85 * made[:, :, frame] + 0.15 * noise[:, :, frame]) < 1e-6
    assert len(seen) == frames - 3  # the last block is not kept


@pytest.mark.parametrize("window", [3, 6, 12])
def test_memory_of_the_cache_is_the_formula(window, case, caches):
    given = case("local6")

    list(given.rollout(window=window))
    expected = causal.cache_bytes(given.model.config, given.noise.shape, window, torch.float32)
    assert [cache.nbytes for cache in caches] == [expected]
    assert causal.cache_bytes(given.model.config, given.noise.shape, window, torch.bfloat16) == expected // 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"window": 2}, "window holds 2 latent frames and a block has 3"),
        ({"window": 6, "sink": 4}, "window holds 6 latent frames, too few for a sink of 4"),
        ({"blocks": 5}, "12 latent frames of noise do not make blocks of 5"),
        ({"blocks": [3, 3]}, "12 latent frames of noise do not make blocks of"),
        ({"blocks": 0}, "at least 1 latent frame"),
        ({"sigmas": [1.0, 0.9, 0.8, 0.7, 0.6]}, "5 steps on noise of shape"),
        ({"renoise": None}, "4 steps on noise of shape"),
        ({"initial": torch.zeros(1, 16, 3, 8, 10)}, r"given frames have shape \(1, 16, 3, 8, 10\)"),
    ],
)
def test_what_does_not_go_together(changes, words, case):
    with pytest.raises(ValueError, match=words):
        case("local6").rollout(**changes)


def test_no_end_needs_a_window(case):
    given = case("global")
    endless = {"renoise": lambda start, stop: None, "blocks": 3, "window": None}
    with pytest.raises(ValueError, match="give a window"):
        causal.rollout(given.model, lambda start, stop: None, given.context, **given.few_steps | endless)


@pytest.mark.parametrize("window", [12, 20])
def test_a_rolling_window_that_does_not_fit(window, case):
    given = case("rolling")
    settings = {"sigmas": [1.0, 0.9, 0.8, 0.7, 0.6], "renoise": given.noise[None], "block": 3, "window": window}
    with pytest.raises(ValueError, match=f"A window of {window} latent frames does not fit"):
        causal.rolling(given.model, given.noise, given.context, **settings)
