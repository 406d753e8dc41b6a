"""The demo family's LoRA for four steps: how it is distilled, and the file that is shipped."""

import json

import pytest
import torch

from tiny import FOUR_STEPS, family, train, train_lora, trainer

from wan_model.variants import distilled
from wan_model.weights import lora


@pytest.fixture
def tiny_budget(monkeypatch, cheap_training):
    """A run of seconds, at its full rate from the first step."""
    for name, value in {"RUNS": ((8, 8, 4e-3), (4, 4, 4e-3)), "TOGETHER": 4, "BATCH": 4, "AVERAGE": 0.0}.items():
        monkeypatch.setattr(train_lora, name, value)
    monkeypatch.setattr(train_lora, "cosine", lambda step, steps, peak: peak)
    monkeypatch.setattr(trainer, "SAVE_EVERY", 4)


def test_one_token_stands_for_all_that_are_alike():
    dit, context = family.load_dit("t2v"), family.TextEncoder()(["a red circle grows", "blue background"])
    x = torch.randn(2, 16, *family.SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = dit(x, torch.tensor([625.0]), context)
        torch.testing.assert_close(train_lora.velocity(dit, x, 0.625, context), whole, rtol=1e-4, atol=1e-5)


def test_the_teacher_ends_where_the_plain_loop_does():
    dit, encoder = family.load_dit("t2v"), family.TextEncoder()
    context, negative = encoder(["a red circle grows"]), encoder([""])
    noise = torch.randn(16, *family.SIZE, generator=torch.Generator().manual_seed(1))[None]
    with torch.no_grad():
        way = train_lora.way(dit, context, negative, noise)
        plain = family.sample(
            dit, context, negative, [1], steps=train_lora.TEACHER_STEPS, shift=train_lora.SHIFT, solver="unipc"
        )
    assert way.shape[1] == train_lora.LEVELS + 1 and torch.equal(way[:, 0], noise)
    assert (way[:, -1] - plain).norm() / plain.norm() < 0.02  # the plain loop's timesteps are whole
    for sigma, x in zip(train_lora.levels()[1:-1], way[:, 1:-1].unbind(1), strict=True):  # near the noisy clip
        assert (x - torch.lerp(way[:, -1], noise, sigma)).norm() / x.norm() < 0.3


def test_the_script_distils_and_improves_the_student(tmp_path, monkeypatch, tiny_budget):
    monkeypatch.setitem(family.FOLDERS, train_lora.KIND, str(tmp_path))  # an absolute path replaces the folder
    train.main(["lora", "--runs", str(tmp_path / "runs")])
    runs = [(tmp_path / f"runs/lora/run{number}/log.jsonl").read_text().splitlines() for number in (0, 1)]
    log = [json.loads(line)["loss"] for lines in runs for line in lines]
    assert len(log) == 3 and max(log[1:]) < 0.9 * log[0], log
    made, old = train_lora.load(), family.load_dit("t2v")
    changed = {name for name, value in old.state_dict().items() if not torch.equal(value, made.state_dict()[name])}
    assert changed >= {
        "blocks.3.ffn.0.weight",
        "blocks.0.self_attn.q.bias",
        "blocks.5.norm3.weight",
        "head.head.weight",
    }
    assert not changed & {"patch_embedding.weight", "text_embedding.0.weight"}


def test_the_shipped_file_is_laid_out_as_lightx2v_does():
    tensors = train_lora.load_file(family.path(train_lora.KIND))
    assert "diffusion_model.blocks.0.cross_attn.k.lora_down.weight" in tensors
    dit = family.load_dit("t2v")
    groups, unmatched = lora.group(tensors, dict(dit.named_parameters()))
    assert not unmatched and groups.keys() == {name for name, _ in train_lora.places(dit)}
    preset = distilled.recognise(family.path(train_lora.KIND).name)
    assert {
        "steps": preset.steps,
        "guidance": preset.guidance[0],
        "shift": preset.shift,
        "solver": preset.solver,
    } == FOUR_STEPS


def test_the_files_stay_small():
    assert sum(file.stat().st_size for file in family.MODELS.rglob("*.safetensors")) < 40e6
