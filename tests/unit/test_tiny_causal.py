"""The demo family's causal model: its scenes, how it is trained, and the file that is shipped."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tiny import (
    drift,
    endless,
    evaluate,
    family,
    judge,
    long_clips,
    scenes,
    train,
    train_causal,
    train_lora,
    trainer,
)

from wan_model import causal, checkpoint
from wan_model.dit.runtime import Runtime


@pytest.fixture
def tiny_budget(monkeypatch, tmp_path, cheap_training):
    """A run of seconds, at its full rate from the first step, into another folder."""
    budget = {"SCENES": 4, "SWITCHES": 4, "TOGETHER": 4, "BATCH": 3, "STEPS": 16}
    for name, value in budget.items():
        monkeypatch.setattr(train_causal, name, value)
    monkeypatch.setattr(train_causal, "cosine", lambda step, steps, peak: peak)
    monkeypatch.setattr(trainer, "SAVE_EVERY", 4)
    monkeypatch.setitem(family.FOLDERS, "causal", str(tmp_path))  # an absolute path replaces the folder


@pytest.mark.parametrize("motion", endless.PARTS)
def test_scenes_go_on_in_the_frame_and_the_judge_sees_it(motion):
    rng = np.random.default_rng(5)
    scene = endless.draw_scene(rng, {motion: 1.0})
    late = endless.render(scene, 5000, 5000 + drift.WINDOW)
    assert all(judge.score(late, scene).values()), judge.look(late)
    track = endless.positions(scene, np.arange(2000))
    cover = scenes.draw(scene.shape, track)
    edge = torch.stack((cover[:, 0], cover[:, -1], cover[:, :, 0], cover[:, :, -1]))
    assert edge.max() == 0 and cover.flatten(1).sum(dim=1).min() > 100
    torch.testing.assert_close(endless.render(scene, 5010, 5020), late[:, 10:20])


def test_a_new_prompt_changes_what_it_says_and_leaves_the_rest():
    going_on = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scene = endless.draw_scene(rng)
        new = endless.switched(scene, rng)
        assert endless.prompted(new) != endless.prompted(scene) and endless.is_seen(new)
        old, later = (np.array(endless.positions(one, np.arange(9)))[:2] for one in (scene, new))
        going_on += np.array_equal(old, later)
    assert going_on > 10


def test_captions_are_in_the_words_of_the_family():
    tokens, known = family.TextEncoder().tokens, set()
    for index in range(400):
        known.update(tokens.encode(evaluate.held_out(index)[1], out_type=str))
    for seed in range(60):
        rng = np.random.default_rng(seed)
        pieces = tokens.encode(endless.caption(endless.draw_scene(rng), rng), out_type=str)
        assert set(pieces) <= known, pieces


def test_training_sees_what_the_cache_holds(relative_error):
    """One pass over [finished | noisy] frames is the network frame by frame, from the first one on."""
    dit, context = family.load_dit("t2v"), family.TextEncoder()(["a red circle turns clockwise on a blue background"])
    shape, generator = (1, 16, train_causal.FRAMES, 8, 8), torch.Generator().manual_seed(0)
    clean, noisy = (torch.randn(shape, generator=generator) for _ in range(2))
    times = 1000 * torch.rand(1, train_causal.FRAMES, generator=generator)
    view = train_causal.View(torch.tensor([False]), 128)
    cache = causal.Cache(train_causal.WINDOW, train_causal.SINK)
    history = causal.History(dit, context, cache, Runtime(), near_sink=True, context_time=150.0)
    with torch.no_grad():
        kept = train_causal.clean_pass(dit, clean, context, view, 150.0)
        whole, _ = train_causal.noisy_pass(dit, noisy, times, context, kept, view)
        for frame in range(train_causal.FRAMES):
            one = slice(frame, frame + 1)
            alone = history.velocity(noisy[:, :, one], float(times[0, frame]))
            assert relative_error(whole[:, :, one], alone) < 1e-4
            history.keep(clean[:, :, one])


def test_the_script_trains_and_improves_it(tmp_path, tiny_budget):
    train.main(["causal", "--runs", str(tmp_path / "runs")])
    log = [json.loads(line)["loss"] for line in (tmp_path / "runs/causal/run/log.jsonl").read_text().splitlines()]
    assert len(log) == 4 and log[-1] < 0.95 * log[0], log
    made, old = family.load_dit("causal"), family.load_dit("t2v")
    assert checkpoint.inspect(family.path("causal")).variant == "causal"
    changed = {name for name, value in old.state_dict().items() if not torch.equal(value, made.state_dict()[name])}
    assert changed >= {"blocks.0.self_attn.q.weight", "blocks.5.ffn.2.bias", "head.head.weight"}
    rollout, sampling = long_clips.settings()
    assert (rollout.block, rollout.window, rollout.sink) == (1, train_causal.WINDOW, 1) and sampling.steps > 1


@pytest.fixture(scope="module")
def shipped():
    return drift.Model(train_lora.quick(family.load_dit("causal")), *long_clips.settings())


def test_the_shipped_file_says_how_it_is_run():
    found = checkpoint.inspect(family.path("causal"))
    assert found.variant == "causal" and found.rollout.sink == 1 and found.rollout.near_sink and not found.notes
    assert found.sampling is not None and found.latent_rgb is not None


@pytest.mark.slow
def test_the_shipped_model_keeps_to_its_prompt(shipped, monkeypatch):
    """Colour and background of four clips at the end of ten seconds, and after a change of the prompt."""
    monkeypatch.setattr(drift, "TIMES", 2)
    with torch.inference_mode():
        late = drift.over_time(shipped, 4, 41)
        soon = drift.after_switch(shipped, 4)
    assert late[-1, :2].mean() == 1
    assert soon["colour"] == soon["background"] == 1


def test_a_new_prompt_without_a_change_goes_on_the_same(relative_error):
    """The frames that are still seen are kept anew, and nothing is lost while none has left the window."""
    encoder, dit, settings = family.TextEncoder(), family.load_dit("causal"), long_clips.settings()
    context, negative = encoder(["a red circle bounces up and down on a blue background"]), encoder([""])
    with torch.inference_mode():
        whole, joined = (
            long_clips.roll(dit, parts, negative, [1], *settings)
            for parts in ([(6, context)], [(3, context), (3, context)])
        )
    assert relative_error(joined, whole) < 1e-3


def test_the_plot_shows_each_property(tmp_path):
    scores = np.linspace(1, 0.5, 4 * drift.TIMES).reshape(drift.TIMES, 4)
    drift.plot(scores, np.linspace(0, 35, drift.TIMES), tmp_path / "plot.png")
    drawn = {colour for _, colour in Image.open(tmp_path / "plot.png").convert("RGB").getcolors(4096)}
    assert len(drawn) >= 5 and (tmp_path / "plot.png").stat().st_size < 20_000
