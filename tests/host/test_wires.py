"""Problems found before a run are the errors of the run."""

import pytest
import torch
from safetensors.torch import save_file

T2V, TI2V = "tiny_random_wan2.1_t2v.safetensors", "tiny_random_wan2.2_ti2v.safetensors"
VAE21, VAE22 = "tiny_random_wan2.1_vae.safetensors", "tiny_random_wan2.2_vae.safetensors"
HIGH, LOW = (f"tiny_random_wan2.2_t2v_{noise}_noise.safetensors" for noise in ("high", "low"))


@pytest.fixture
def problem(room, models):
    """Function (node, **what reaches it) -> the sentence or None."""

    def problem(node, **given):
        found = room("host.editor.preflight").problem(node, given)
        return None if found is None else str(found)

    return problem


@pytest.fixture
def load(room, models):
    """Function (folder, name) -> the host object of a tiny file."""

    def load(folder, name):
        loader = {
            "diffusion_models": "host.model.loading",
            "vae": "host.vae.vae",
            "text_encoders": "host.encoders.clip",
        }[folder]
        return room(loader).load(str(models / folder / name))

    return load


@pytest.fixture
def text():
    return [[torch.randn(1, 8, 128, generator=torch.Generator().manual_seed(1)), {}]]


def failure(run_node, node, **inputs):
    """Return the error of `node`."""
    with pytest.raises(ValueError) as error:
        run_node(node, **inputs)
    return str(error.value)


def sample(run_node, text, model, **inputs):
    settings = dict(steps=2, guidance=1.0, shift=5.0, solver="euler", seed=1, denoise=1.0, positive=text, negative=text)
    return failure(run_node, "WanSampler", model=model, **(settings | inputs))


@pytest.mark.parametrize("model, vae", [(T2V, VAE22), (TI2V, VAE21)])
def test_a_latent_of_another_vae(run_node, problem, load, text, model, vae):
    size = dict(width=64, height=64, length=5, batch_size=1)
    (latent,) = run_node("WanEmptyLatent", vae=load("vae", vae), **size)
    told = problem("WanSampler", model=model, vae=vae)
    assert told == sample(run_node, text, load("diffusion_models", model), latent=latent)
    assert problem("WanSampler", model=model, vae={VAE21: VAE22, VAE22: VAE21}[vae]) is None


@pytest.mark.parametrize("high, low", [(HIGH, "tiny_random_wan2.2_i2v_low_noise.safetensors"), (LOW, HIGH)])
def test_experts_that_are_no_pair(run_node, problem, load, text, high, low):
    models = {"model": high, "low_noise_model": low}
    given = {socket: load("diffusion_models", name) for socket, name in models.items()}
    told = problem("WanSampler", **models)
    assert told == sample(run_node, text, latent={"samples": torch.zeros(1, 16, 2, 8, 8)}, **given)
    assert problem("WanSampler", model=HIGH, low_noise_model=LOW) is None


def test_the_vae_of_another_family_decodes(run_node, problem, load):
    samples = {"samples": torch.zeros(1, 16, 1, 8, 8)}
    told = problem("WanVAEDecode", vae=VAE22, model=T2V)
    assert told == failure(
        run_node, "WanVAEDecode", vae=load("vae", VAE22), samples=samples, tile_width=0, tile_height=0
    )
    assert problem("WanVAEDecodeToVideo", vae=VAE21, model=T2V) is None


def test_what_the_5b_does_not_take(run_node, problem, load, text):
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(2))
    clip = dict(width=64, height=64, length=5, batch_size=1, tile_width=0, tile_height=0, vae=load("vae", VAE22))
    given = clip | {"positive": text, "negative": text}
    assert problem("WanConditioning", vae=VAE22) == failure(run_node, "WanConditioning", end_image=picture, **given)
    assert problem("WanVACE", vae=VAE22) == failure(run_node, "WanVACE", strength=1.0, **given)
    assert problem("WanConditioning", vae=VAE21) is None and problem("WanVACE", vae=VAE21) is None


LORAS = {
    "14B": {f"diffusion_model.blocks.0.self_attn.q.lora_{side}.weight" for side in "AB"},
    "other": {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"},
}


@pytest.mark.parametrize("kind", LORAS)
def test_a_lora_of_another_model(run_node, problem, load, models, kind):
    (models / "loras").mkdir(exist_ok=True)
    shapes = {name: (4, 5120) if "lora_A" in name else (5120, 4) for name in LORAS[kind]}
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, models / "loras" / f"{kind}.safetensors")
    slots = {f"lora_{slot}": "none" for slot in (2, 3, 4)} | {f"strength_{slot}": 1.0 for slot in (1, 2, 3, 4)}
    told = problem("WanLoraLoader", model=T2V, lora_name=f"{kind}.safetensors")
    model = load("diffusion_models", T2V)
    assert told == failure(run_node, "WanLoraLoader", model=model, lora_1=f"{kind}.safetensors", **slots)


def test_a_file_that_a_loader_does_not_take(problem, models):
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.ones(8, 8)}, models / "vae" / "flux.safetensors")
    told = problem("WanVAELoader", file="flux.safetensors")
    assert told.startswith("flux.safetensors holds ") and told.endswith("choose a Wan VAE in WanVAELoader.")
    assert problem("WanVAELoader", file=VAE21) is None


def test_only_the_loader_tells_of_a_wrong_file(problem, models):
    save_file(
        {"double_blocks.0.img_attn.qkv.weight": torch.ones(8, 8)}, models / "diffusion_models" / "flux.safetensors"
    )
    assert problem("WanSampler", model="flux.safetensors", vae=VAE21) is None
    assert "flux.safetensors holds " in problem("WanModelLoader", file="flux.safetensors")


def test_a_model_that_cannot_go_on(problem):
    assert problem("WanContinue", model=T2V).startswith("WanContinue cannot go on with a clip of a model for text")


def test_a_clip_of_another_kind(problem):
    assert problem("WanTextEncode", clip_type="sd3").startswith("Wan reads the text encoder umT5")
    assert problem("WanTextEncode", clip_type="wan") is None


@pytest.mark.parametrize(
    "node, given",
    [
        ("KSampler", {}),
        ("WanSampler", {"seed": "1"}),
        ("WanVACE", {}),
        ("WanSampler", {"model": "../vae/" + VAE21}),
        ("WanSampler", {"vae": "/etc/passwd"}),
        ("WanVAELoader", {"file": "../vae/" + VAE21}),
        ("WanLoraLoader", {"model": T2V, "lora_name": "/etc/passwd"}),
    ],
)
def test_a_bad_question(problem, node, given):
    with pytest.raises(ValueError, match=r"\.$"):
        problem(node, **given)
