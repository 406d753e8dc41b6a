"""The demo family's expert for high noise and its DiT in the form of the 5B model: their training and their files."""

import json

import pytest
import torch
from torch.nn import Linear

from tiny import family, packing, precision, train, train_flow, trainer

from wan_model import checkpoint


@pytest.fixture
def tiny_budget(monkeypatch, tmp_path, cheap_training):
    """Runs of seconds, at their full rate from the first step, into other folders."""
    monkeypatch.setattr(train_flow, "CLIPS", range(20, 28))
    for kind, runs in (("t2v_high_noise", ((8, 4),)), ("ti2v", ((8, 4), (4, 4)))):
        form = train_flow.replace(train_flow.FORMS[kind], runs=runs, rate=2e-3)
        monkeypatch.setitem(train_flow.FORMS, kind, form)
        monkeypatch.setitem(family.FOLDERS, kind, str(tmp_path))  # an absolute path replaces the folder
    monkeypatch.setattr(train_flow, "cosine", lambda step, steps, peak: peak)
    monkeypatch.setattr(trainer, "SAVE_EVERY", 4)


@pytest.mark.parametrize("kind", train_flow.FORMS)
def test_the_script_trains_and_improves_it(kind, tmp_path, tiny_budget):
    train.main([kind, "--runs", str(tmp_path / "runs")])
    logs = [folder / "log.jsonl" for folder in sorted((tmp_path / "runs" / kind).glob("run*"))]
    log = [json.loads(line)["loss"] for path in logs for line in path.read_text().splitlines()]
    assert (
        len(log) == sum(steps for steps, _ in train_flow.FORMS[kind].runs) // trainer.SAVE_EVERY
        and log[-1] < 0.97 * log[0]
    ), log
    found, dit = checkpoint.inspect(family.path(kind)), family.load_dit(kind)
    assert found.quantisation == "gguf_q4_0" and found.latent_rgb is not None
    assert found.variant == dit.config.variant == train_flow.FORMS[kind].variant


def test_a_packed_file_holds_what_training_saw(tmp_path, monkeypatch):
    monkeypatch.setitem(family.FOLDERS, "ti2v", str(tmp_path))
    student = train_flow.initial(train_flow.FORMS["ti2v"])
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    family.save("ti2v", student.dit.state_dict())
    read, forms = family.load_dit("ti2v").state_dict(), family.forms("ti2v", student.dit.state_dict())
    for name, weight in student.named_parameters():
        part, _, rest = name.partition(".")
        seen = train_flow.rounded("Q4_0", name, weight.detach())
        if part == "probe":
            assert torch.equal(seen, weight)
        elif family.is_matrix(rest, weight):
            assert torch.equal(read[rest], seen) and not torch.equal(seen, weight)
        elif rest in forms:
            assert torch.equal(read[rest], packing.unpack(packing.pack(weight, "Q8_0")))
        else:
            torch.testing.assert_close(read[rest], weight.detach(), rtol=1e-3, atol=1e-6, msg=rest)


def test_the_gradient_is_that_of_the_rounded_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "DTYPE", torch.float32)
    model, seen = Linear(32, 1), []

    def rounded(name, weight):
        return packing.unpack(packing.pack(weight, "Q4_0")) if name == "weight" else weight

    def loss(work, seed):
        if seed > 0:
            seen.append((work.weight.detach().clone(), rounded("weight", model.weight)))
        return (work(torch.ones(1, 32)) - 1).square().mean()

    trainer.Trainer(model, tmp_path, 4, lambda step: 0.01, rounded=rounded).run(loss)
    assert len(seen) == 3 and all(torch.equal(work, kept) for work, kept in seen)
    assert len(model.weight.unique()) == 32 and len(seen[-1][0].unique()) < 16


def test_blocks_are_kept_in_order():
    old = family.load_dit("t2v").state_dict()
    kept = train_flow.renumbered(old, (0, 1, 3, 5))
    assert torch.equal(kept["blocks.2.ffn.0.weight"], old["blocks.3.ffn.0.weight"])
    assert torch.equal(kept["blocks.3.self_attn.q.bias"], old["blocks.5.self_attn.q.bias"])
    assert not any(name.startswith(("blocks.4.", "blocks.5.")) for name in kept)
    assert torch.equal(kept["head.modulation"], old["head.modulation"])
