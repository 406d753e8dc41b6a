"""The demo family's files: where they lie, how they are written, and a plain way to make a clip with them."""

import re
from pathlib import Path

import ftfy
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from . import GUIDANCE, SHIFT, STEPS, tokenizer
from wan_model import checkpoint, solvers
from wan_model.dit.model import WanDiT, build_dit
from wan_model.vae.model import WanVAE, build_vae
from wan_model.variants import WAN21

MODELS = Path(__file__).resolve().parent / "models"  # laid out as the host's models folder
FOLDERS = {
    "vae": "vae",
    "umt5": "text_encoders",
    "t2v": "diffusion_models",
    "i2v": "diffusion_models",
    "t2v_4step_lora": "loras",
    "causal": "diffusion_models",
}
SIZE = (5, 8, 8)  # of a demo clip's latent: frames, rows, columns
MATRIX = re.compile(r"(blocks\.|time_projection\.).*\.weight$")  # of a DiT, where it has two axes
TEXT = {"d_model": 128, "d_kv": 64, "num_heads": 2, "d_ff": 256, "num_layers": 2}  # sizes of the text encoder
STATS = WAN21


def path(kind: str) -> Path:
    """The file of `kind`, a key of `FOLDERS`."""
    return MODELS / FOLDERS[kind] / f"wan_tiny_{kind}.safetensors"


def save(kind: str, weights: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Write `weights` in float16, whole numbers and float8 as they are, and `metadata`; return the file's path."""
    file = path(kind)
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {torch.float8_e4m3fn} | {weight.dtype for weight in weights.values() if not weight.is_floating_point()}
    half = {name: weight if weight.dtype in kept else weight.half() for name, weight in weights.items()}
    partial = file.with_suffix(".partial")
    contiguous = {name: weight.contiguous() for name, weight in half.items()}
    save_file(contiguous, partial, metadata={"format": "pt"} | (metadata or {}))
    partial.replace(file)
    return file


def in_eight_bits(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a DiT with the matrices of its blocks and of the time projection, nearly all, in float8_e4m3fn."""
    return {
        name: weight.to(torch.float8_e4m3fn) if MATRIX.match(name) and weight.ndim == 2 else weight
        for name, weight in weights.items()
    }


def normalise(mu: Tensor) -> Tensor:
    """Raw means (B, 16, F, H, W) as the official pipeline normalises them."""
    mean, std = (mu.new_tensor(values).view(1, -1, 1, 1, 1) for values in (STATS.mean, STATS.std))
    return (mu - mean) / std


def restore(latent: Tensor) -> Tensor:
    """The inverse of `normalise`."""
    mean, std = (latent.new_tensor(values).view(1, -1, 1, 1, 1) for values in (STATS.mean, STATS.std))
    return latent * std + mean


def load_vae() -> WanVAE:
    """The VAE, in float32."""
    return build_vae(checkpoint.load(path("vae"))[0], dtype=torch.float32)


def load_dit(kind: str) -> WanDiT:
    """The DiT of `kind`, in float32."""
    return build_dit(checkpoint.load(path(kind))[0], dtype=torch.float32)


def text_encoder(vocabulary: int) -> UMT5EncoderModel:
    """A umT5 encoder of the family's size for as many pieces, with T5's own initialisation."""
    config = UMT5Config(vocab_size=vocabulary, feed_forward_proj="gated-gelu", dropout_rate=0.0, **TEXT)
    return UMT5EncoderModel(config)


def embed(encoder: UMT5EncoderModel, rows: list[list[int]]) -> Tensor:
    """Context (B, L, text_dim) of tokenised prompts, zeros after the end of each."""
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return encoder(input_ids=ids, attention_mask=mask).last_hidden_state * mask.unsqueeze(-1)


def tokenise(tokens: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """Token ids of a prompt, cleaned as the official tokenizer does, with the end token."""
    return [*tokens.encode(" ".join(ftfy.fix_text(text).split())), tokens.eos_id()]


class TextEncoder:
    """The umT5 of the family with its tokenizer, run by Hugging Face's class."""

    def __init__(self) -> None:
        weights = load_file(path("umt5"))
        spiece = bytes(weights.pop(tokenizer.TENSOR).numpy())
        self.tokens = sentencepiece.SentencePieceProcessor(model_proto=spiece)
        self.model = text_encoder(self.tokens.get_piece_size()).eval()
        weights["encoder.embed_tokens.weight"] = weights["shared.weight"]  # the same tensor, kept once
        self.model.load_state_dict(weights)

    def __call__(self, prompts: list[str]) -> Tensor:
        """Context (B, L, text_dim) of the prompts, zeros after the end of each."""
        return embed(self.model, [tokenise(self.tokens, prompt) for prompt in prompts])


def frame_mask(last: Tensor) -> Tensor:
    """The official mask (B, 4, F, H, W), 1 where a frame is given: the first and, where `last` (B,) says, the last.

    The first latent frame stands for one frame, which counts in all four channels; a later one has a channel for each.
    """
    mask = torch.zeros(len(last), 4, *SIZE)
    mask[:, :, 0] = 1
    mask[last, 3, -1] = 1
    return mask


def sample(
    dit: WanDiT,
    context: Tensor,
    negative: Tensor,
    seeds: list[int],
    *,
    y: Tensor | None = None,
    guidance: float = GUIDANCE,
    steps: int = STEPS,
    shift: float = SHIFT,
    solver: str = "unipc",
) -> Tensor:
    """Normalised latents (B, 16, F, H, W) for contexts (B, L, text_dim), a seed each; negative is (1, L, text_dim)."""
    noise = [torch.randn(16, *SIZE, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    negative = negative.expand(len(seeds), -1, -1)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        t = torch.full((1,), solvers.timestep(sigma, solver))
        velocity = dit(x, t, context, y=y)
        if guidance != 1:
            other = dit(x, t, negative, y=y)
            velocity = other + guidance * (velocity - other)
        return x - sigma * velocity

    sigmas = solvers.flow_sigmas(steps, shift, solver)
    return solvers.SAMPLERS[solver](denoise, torch.stack(noise), sigmas.tolist())


def decode(vae: WanVAE, latents: Tensor) -> Tensor:
    """Clips (B, 3, T, H, W) in [-1, 1] of normalised latents, decoded one by one."""
    return torch.cat([vae.decode(latent[None]) for latent in restore(latents)]).clamp(-1, 1)
