"""The demo family's world, judge and training; its shipped weights."""

import hashlib
import json
import os
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import sentencepiece
import torch
from torch.nn import Linear

from tiny import evaluate, family, judge, packing, scenes, tokenizer, train, train_dit, train_vae, trainer, whole_clip

from wan_model import checkpoint
from wan_model.dit.attention import sdpa


def test_a_scene_depends_on_its_seed_alone():
    first, second = (scenes.draw_scene(np.random.default_rng(seed)) for seed in (1, 2))
    assert first == scenes.draw_scene(np.random.default_rng(1)) != second
    clip = scenes.render(first)
    assert clip.shape == (3, 17, 64, 64) and clip.abs().max() <= 1 and clip.std() > 0.05
    assert scenes.render(first, 96, 80, 9).shape == (3, 9, 96, 80)


def test_a_caption_names_what_is_seen_in_both_languages():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scene = scenes.draw_scene(rng)
        english, chinese = scenes.caption(scene, rng, False), scenes.caption(scene, rng, True)
        for word in (scene.colour, scene.shape, scene.background):
            assert word in english.lower() and scenes.CHINESE[word] in chinese
        assert scenes.ENGLISH[scene.motion] in english and scenes.CHINESE[scene.motion] in chinese


def test_the_judge_reads_blurred_and_noisy_clips():
    for seed in range(8):
        scene, _ = evaluate.held_out(seed)
        clip = scenes.render(scene)
        clip = clip + 0.08 * torch.randn(clip.shape, generator=torch.Generator().manual_seed(seed))
        assert all(judge.score(clip, scene).values()), scene


def test_the_judge_sees_what_is_wrong():
    scene = scenes.draw_scene(np.random.default_rng(3))
    clip = scenes.render(scene)
    assert judge.look(clip[:, :1].expand_as(clip)).motion == "still"
    assert judge.look(clip.flip(1)).motion != scene.motion or scene.motion.startswith("bounce")
    assert judge.look(-clip).background != scene.background
    assert judge.look(torch.full_like(clip, 0.1)).shape is None


@pytest.mark.parametrize("kind", train_vae.CONFIGS)
@pytest.mark.parametrize("frames", (1, 9))
def test_whole_clips_go_through_the_vae_as_streamed_ones_do(kind, frames):
    vae = train_vae.initial(kind)
    for parameter in vae.parameters():  # the initial weights look at no earlier frame
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    video = train_vae.clip(5, 32, 48, frames)[None]
    with torch.no_grad():
        latent = vae.encode(video)
        torch.testing.assert_close(whole_clip.encode(vae, video), latent, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(whole_clip.decode(vae, latent), vae.decode(latent), rtol=1e-4, atol=1e-5)


def test_attention_for_training_is_exact():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, length, 256, generator=generator) for length in (6, 5, 5))
    torch.testing.assert_close(train_dit.attend(q, k, v, 2), sdpa(q, k, v, 2), rtol=1e-5, atol=1e-6)


def test_training_goes_on_where_it_stopped(tmp_path, monkeypatch, cheap_training):
    loss = partial(train_vae.loss, ((6, 1, 2, 2e-3), (2, 5, 1, 2e-3)))
    monkeypatch.setattr(trainer, "SAVE_EVERY", 3)

    def begin(folder):
        return trainer.Trainer(train_vae.initial(), folder, 8, lambda step: 2e-3, matrices=lambda name: True)

    def stops(model, step):
        if step == 5:
            raise KeyboardInterrupt
        return loss(model, step)

    whole = begin(tmp_path / "whole")
    whole.run(loss)
    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path / "stopped").run(stops)
    again = begin(tmp_path / "stopped")
    assert again.done == 3
    again.run(loss)
    for name, weight in whole.averaged.state_dict().items():
        torch.testing.assert_close(again.averaged.state_dict()[name], weight, rtol=1e-4, atol=1e-5, msg=name)


def test_the_script_trains_the_whole_family_and_improves_it(tmp_path, monkeypatch, cheap_training):
    """From nothing to five files that hold together, with a budget that teaches little."""
    monkeypatch.setattr(family, "MODELS", tmp_path / "models")
    monkeypatch.setattr(trainer, "SAVE_EVERY", 4)
    monkeypatch.setattr(train_vae, "MEASURED", 4)
    for kind in train_vae.STAGES:
        monkeypatch.setitem(train_vae.STAGES, kind, ((20, 1, 3, 2e-3), (2, 5, 1, 2e-3)))
    monkeypatch.setitem(train_vae.FINISH, "vae22", (4, 2))
    steps = {"TEXT_STEPS": 12, "STEPS": 12, "BOTH_STEPS": (4, 4)}
    for name, value in {"CLIPS": 8, "PICTURES": 4, "BATCH": 4, "BOTH_BATCH": 4, **steps}.items():
        monkeypatch.setattr(train_dit, name, value)
    for module in (train_vae, train_dit):  # at its full rate from the first step
        monkeypatch.setattr(module, "cosine", lambda step, steps, peak: peak)
    runs = tmp_path / "runs"
    train.main(["vae", "vae22", "dits", "--runs", str(runs)])
    for run in ("vae", "vae22", "dits/text", "dits/t2v"):
        log = [json.loads(line)["loss"] for line in (runs / run / "log.jsonl").read_text().splitlines()]
        assert log[-1] < 0.9 * log[0], (run, log)
    assert {path.name for path in (runs / "dits").iterdir()} >= {"both0", "both1"}
    assert all((runs / f"vae22/decoder{first}/state.pt").exists() for first in (0, 4))
    for kind in train_vae.CONFIGS:
        latent = family.normalise(family.load_vae(kind).encode(scenes.render(train_dit.scene(0))[None]))
        assert abs(latent.mean()) < 1 and 0.3 < latent.std() < 3, kind
    context = family.TextEncoder()(["a red circle grows", "\u7ea2\u8272\u5706\u5f62"])
    clip = family.sample(family.load_dit("t2v"), context, context[:1], [0, 1])
    assert clip.isfinite().all() and clip.std() > 0.1
    assert family.load_dit("i2v").config.variant == "i2v_a14b"
    assert all(checkpoint.inspect(family.path(kind)).latent_rgb is not None for kind in ("t2v", "i2v"))


def test_a_share_that_is_odd_is_refused():
    tokens = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.demo())
    with pytest.raises(ValueError, match="would get 9 clips of a batch, an odd number"):
        train_dit.Task(torch.zeros(2, 16, *family.SIZE), tokens, batch=9)


def test_a_token_is_told_which_of_its_cells_the_shape_covers():
    scene = train_dit.scene(3)
    cover, cells = scenes.cover(scene), train_dit.cells(scene).view(5, 4, 4, 4, 4, 4) / 255
    assert 0.05 < cover.mean() < 0.5
    for frame, row, column in ((0, 1, 2), (2, 1, 2), (4, 2, 1)):
        rows, columns = slice(16 * row, 16 * row + 16), slice(16 * column, 16 * column + 16)
        part = cover[max(0, 4 * frame - 3) : 4 * frame + 1, rows, columns].unflatten(2, (4, 4)).unflatten(1, (4, 4))
        torch.testing.assert_close(cells[frame, row, column], part.mean(dim=(2, 4)).expand(4, 4, 4), rtol=0, atol=0.003)


TOGETHER = """
import sys
from pathlib import Path
import torch
from torch.nn import Linear
from tiny.trainer import Trainer, place, process_group

def loss(model, seed):
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)).to(model.weight.dtype)
    return (model(x) - x).square().mean()

with process_group():
    alone = place()[1] == 1
    torch.manual_seed(0)
    trainer = Trainer(Linear(3, 3), Path(sys.argv[1]), 3, lambda step: 0.1)
    trainer.run((lambda model, step: (loss(model, 2 * step) + loss(model, 2 * step + 1)) / 2) if alone else loss)
"""


def test_two_processes_train_as_one_with_twice_the_samples(tmp_path):
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    environment = os.environ | {"PYTHONPATH": str(family.MODELS.parents[1])}
    weights = []
    for launcher in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]):
        folder = tmp_path / str(len(weights))
        subprocess.run([sys.executable, *launcher, str(script), str(folder)], check=True, env=environment)
        weights.append(torch.load(folder / "state.pt", weights_only=True)["model"]["weight"])
    torch.manual_seed(0)
    assert (weights[0] - Linear(3, 3).weight).abs().min() > 0.05
    torch.testing.assert_close(*weights, rtol=0.02, atol=1e-3)


def test_without_a_picture_the_network_for_both_is_the_one_for_text():
    """Its file is that of text to video, rounded once more."""
    generator = torch.Generator().manual_seed(0)
    x, context = (torch.randn(shape, generator=generator) for shape in ((1, 16, *family.SIZE), (1, 7, 128)))
    with torch.no_grad():
        both = family.load_dit("i2v")(x, torch.tensor([600.0]), context, y=torch.zeros(1, 20, *family.SIZE))
        dit = family.load_dit("t2v")
        weights = dit.state_dict()
        forms = family.forms("i2v", weights)
        dit.load_state_dict(
            weights | {name: packing.unpack(packing.pack(weights[name], forms[name])) for name in forms}
        )
        torch.testing.assert_close(dit(x, torch.tensor([600.0]), context), both, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("file", sorted(map(family.path, family.FOLDERS)), ids=lambda file: file.stem)
def test_the_model_card_is_of_the_shipped_file(file):
    card = file.with_suffix(".md").read_text(encoding="utf-8")
    assert re.search(r"SHA-256: `([0-9a-f]{64})`", card)[1] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_files_are_no_larger_than_promised():
    assert sum(file.stat().st_size for file in family.MODELS.rglob("*")) < 40e6


@pytest.mark.parametrize("kind, bound", [("vae", 29), ("vae22", 28)])
def test_the_vae_keeps_what_is_seen(kind, bound):
    vae = family.load_vae(kind)
    clips = torch.stack([scenes.render(evaluate.held_out(index)[0]) for index in range(4)])
    whole = torch.cat([vae.decode(vae.encode(clip[None])) for clip in clips]).clamp(-1, 1)
    assert evaluate.psnr(whole, clips) > bound
    tiled = vae.decode(vae.encode(clips[:1], tile=(32, 32)), tile=(32, 32)).clamp(-1, 1)
    assert abs(evaluate.psnr(tiled, clips[:1]) - evaluate.psnr(whole[:1], clips[:1])) < 0.01
    for index, clip in enumerate(whole):
        score = judge.score(clip, evaluate.held_out(index)[0])
        assert score["colour"] and score["background"] and score["motion"], (index, score)


def test_a_sharpened_vae_makes_the_same_latents(tmp_path, cheap_training):
    """Its decoder is trained on, nothing else."""
    vae = train_vae.initial("vae22")
    before = {name: weight.clone() for name, weight in vae.state_dict().items()}
    train_vae.sharpen(vae, ((1, 5, 1, 2e-3),), range(2), tmp_path)
    changed = {name for name, weight in vae.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed >= {"conv2.weight", "decoder.head.2.weight"}
    assert not any(name.startswith(("encoder.", "conv1.")) for name in changed)
