"""The demo family's LoRA for four steps in the host: what its prompt says is seen, by the preset that fits its name."""

import logging

import pytest
import torch

from tiny import FOUR_STEPS, evaluate, family, judge, train_lora

PROMPTS = (0, 12, 23)  # of `evaluate.held_out`


@pytest.fixture(scope="module")
def with_lora(room, run_node):
    """The family's MODEL with the LoRA on it."""
    model = room("host.model.loading").load(str(family.path("t2v")), "float32")
    slots = {f"lora_{slot}": "none" for slot in (2, 3, 4)} | {f"strength_{slot}": 1.0 for slot in (1, 2, 3, 4)}
    return run_node("WanLoraLoader", model=model, lora_1=family.path(train_lora.KIND).name, **slots)[0]


@pytest.fixture(scope="module")
def make(room, run_node, with_lora):
    """Function prompt -> latent with seed 1, by WanSampler at other settings than the preset's."""
    clip = room("host.encoders.clip").load(str(family.path("umt5")))

    def run(prompt):
        given = dict(steps=20, guidance=4.0, shift=3.0, solver="unipc", denoise=1.0, preset="auto", seed=1)
        latent = {"samples": torch.zeros(1, 16, *family.SIZE)}
        positive = room("host.encoders.clip").encode_prompt(clip, prompt, "positive")
        return run_node("WanSampler", model=with_lora, latent=latent, positive=positive, **given)[0]["samples"]

    return run


def test_four_steps_show_what_the_prompt_says(make, relative_error, caplog):
    vae, dit, encoder = family.load_vae(), train_lora.load(), family.TextEncoder()
    for index in PROMPTS:
        scene, prompt = evaluate.held_out(index)
        with caplog.at_level(logging.INFO):
            latent = make(prompt)
        assert "4 steps" in caplog.text
        plain = family.sample(dit, encoder([prompt]), encoder([""]), [1], **FOUR_STEPS)
        assert relative_error(latent, family.restore(plain)) < 1e-3  # the host merges in its own order
        assert all(judge.score(vae.decode(latent).clamp(-1, 1)[0], scene).values()), scene
