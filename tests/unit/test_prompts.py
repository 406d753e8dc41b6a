"""Prompts over time: read from text, and changed in the middle of a causal run."""

import json

import pytest
import torch

from wan_model import build_dit, causal
from wan_model.dit.runtime import Runtime


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [(0, "a cat")]),
        ("0 s: a cat; 12 s: a dog", [(0, "a cat"), (12, "a dog")]),
        ("0s:a cat\n2.5s: a dog;\n 10 s : a bird\n", [(0, "a cat"), (2.5, "a dog"), (10, "a bird")]),
        ("a cat; 12 s: a dog", [(0, "a cat"), (12, "a dog")]),
        ("a cat; it sleeps: 8 s long\non a mat", [(0, "a cat; it sleeps: 8 s long\non a mat")]),
        ("0 s: a clock; at 5 s: it rings", [(0, "a clock; at 5 s: it rings")]),
    ],
)
def test_prompts_of_a_text(text, expected):
    assert causal.parse_prompts(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "from 0 s on is empty"),
        (" ;\n", "from 0 s on is empty"),
        ("0 s: a cat; 3 s: ; 5 s: a dog", "from 3 s on is empty"),
        ("4 s: a cat", "begins at 4 s: let it begin at 0 s"),
        ("0 s: a cat; 9 s: a dog; 5 s: a bird", "at 5 s follows one at 9 s"),
        ("0 s: a cat; 9 s: a dog; 9 s: a bird", "at 9 s follows one at 9 s"),
    ],
)
def test_what_is_no_list_of_prompts(text, words):
    with pytest.raises(ValueError, match=words):
        causal.parse_prompts(text)


@pytest.fixture(scope="module")
def network(golden):
    case = golden("causal_framewise")
    assert json.loads(case.metadata["blocks"])
    return build_dit(case.weights()), case.inputs["context"][None]


def random(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def history(network, context, window, sink=0):
    return causal.History(network, context, causal.Cache(window, sink), Runtime())


def frames(network, count):
    return random(1, network.config.out_dim, count, 8, 8, seed=3)


def test_a_switch_while_all_frames_are_held(network, relative_error):
    """It is a new run under the other prompt, to which the frames are given at once."""
    network, context = network
    other, x = random(*context.shape, seed=1), frames(network, 5)
    switched, fresh = history(network, context, 6), history(network, other, 6)
    for frame in x[:, :, :4].split(1, dim=2):
        switched.keep(frame)
    before = switched.velocity(x[:, :, 4:], 600.0)
    switched.switch(other, x[:, :, :4])
    fresh.keep(x[:, :, :4])
    after = switched.velocity(x[:, :, 4:], 600.0)
    assert relative_error(after, fresh.velocity(x[:, :, 4:], 600.0)) < 1e-6
    assert relative_error(after, before) > 1e-3


def test_a_switch_after_frames_were_dropped(network, relative_error):
    """The sink stays as it was made; the others are made anew, from the sink and one another."""
    network, context = network
    other, x = random(*context.shape, seed=1), frames(network, 8)
    run = history(network, context, 4, sink=1)
    for frame in x[:, :, :7].split(1, dim=2):
        run.keep(frame)
    kept = {index: [part.clone() for part in parts] for index, parts in run.cache.layers.items()}
    run.switch(other, x[:, :, :7])
    assert run.length == 7 and sorted(run.cache.slots) == [0, 4, 5, 6]
    slot = run.cache.slots
    for index, parts in run.cache.layers.items():
        for part, old in zip(parts, kept[index], strict=True):
            assert torch.equal(part[:, slot[0]], old[:, slot[0]])
            if index:  # the first block of the network has not seen the prompt
                assert all(relative_error(part[:, slot[frame]], old[:, slot[frame]]) > 1e-4 for frame in (4, 5, 6))
    alone = history(network, other, 4, sink=1)
    alone.cache.slots, alone.cache.layers, alone.length = {0: slot[0]}, kept, 4
    alone.keep(x[:, :, 4:7])
    assert relative_error(run.velocity(x[:, :, 7:], 600.0), alone.velocity(x[:, :, 7:], 600.0)) < 1e-6


def test_a_saved_cache_goes_on(network):
    """Bit for bit, the keys and values of the text included, which are made anew."""
    network, context = network
    x, run = frames(network, 8), history(network, context, 4, sink=1)
    for frame in x[:, :, :6].split(1, dim=2):
        run.keep(frame)
    tensors, slots = run.cache.state()
    again = history(network, context, 4, sink=1)
    again.cache.restore({name: tensor.clone() for name, tensor in tensors.items()}, slots, torch.device("cpu"))
    again.length = 6
    for frame in x[:, :, 6:].split(1, dim=2):
        assert torch.equal(run.velocity(frame, 500.0), again.velocity(frame, 500.0))
        run.keep(frame)
        again.keep(frame)
