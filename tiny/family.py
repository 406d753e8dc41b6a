"""The demo family's files: where they lie, how they are written, and a plain way to make a clip with them."""

import re
from collections.abc import Callable
from pathlib import Path

import ftfy
import gguf
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from . import GUIDANCE, SHIFT, STEPS, packing, tokenizer
from wan_model import checkpoint, solvers
from wan_model.dit.model import WanDiT, build_dit
from wan_model.vae.model import WanVAE, build_vae
from wan_model.variants import FAMILIES, VARIANTS
from wan_model.weights import ggml
from wan_model.weights.quantisation import PACKED_MARKER

MODELS = Path(__file__).resolve().parent / "models"  # laid out as the host's models folder
FOLDERS = {
    "vae": "vae",
    "vae22": "vae",
    "umt5": "text_encoders",
    "t2v": "diffusion_models",
    "i2v": "diffusion_models",
    "t2v_4step_lora": "loras",
    "causal": "diffusion_models",
    "t2v_high_noise": "diffusion_models",
    "ti2v": "diffusion_models",
}
PACKED = {"i2v": "Q5_0", "t2v_high_noise": "Q4_0", "ti2v": "Q4_0"}  # GGUF files, and the form of most matrices in them
SIZE = (5, 8, 8)  # of a demo clip's latent: frames, rows, columns
SIZE22 = (48, 5, 4, 4)  # of one by the 2.2 VAE: channels, frames, rows, columns
EMBEDDING = re.compile(r"(text|time)_embedding\..*\.weight$")  # of a DiT
MATRIX = re.compile(r"(blocks\.|time_projection\.).*\.weight$")
BOUNDARY = VARIANTS["t2v"].experts.boundary  # noise level below which the low-noise expert takes over
TEXT = {"d_model": 128, "d_kv": 64, "num_heads": 2, "d_ff": 256, "num_layers": 2}  # sizes of the text encoder


def path(kind: str) -> Path:
    """The file of `kind`, a key of `FOLDERS`."""
    return MODELS / FOLDERS[kind] / f"wan_tiny_{kind}.{'gguf' if kind in PACKED else 'safetensors'}"


def save(kind: str, weights: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Write `weights` in float16, whole numbers and float8 as they are, and `metadata`; return the file's path.

    Those of a kind in `PACKED` are packed: most matrices as it says, those of the embeddings in Q8_0.
    """
    file = path(kind)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial, packed = file.with_suffix(".partial"), forms(kind, weights)
    kept = {torch.float8_e4m3fn} | {weight.dtype for weight in weights.values() if not weight.is_floating_point()}
    tensors = {
        name: (weight if name in packed or weight.dtype in kept else weight.half()).contiguous()
        for name, weight in weights.items()
    }
    if kind in PACKED:
        blocks = {name: packing.pack(tensors[name], form) for name, form in packed.items()}
        packing.write(partial, tensors, blocks, lambda writer: _describe(writer, metadata or {}))
    else:
        save_file(tensors, partial, metadata={"format": "pt"} | (metadata or {}))
    partial.replace(file)
    return file


def _describe(writer: gguf.GGUFWriter, metadata: dict[str, str]) -> None:
    for key, text in metadata.items():
        writer.add_string(key, text)


def forms(kind: str, weights: dict[str, Tensor]) -> dict[str, str]:
    """The weights of a DiT of `kind` that are packed, and in which form."""
    if kind not in PACKED:
        return {}
    matrices = {name: PACKED[kind] for name, weight in weights.items() if is_matrix(name, weight)}
    return matrices | {name: "Q8_0" for name in weights if EMBEDDING.match(name)}


def is_matrix(name: str, weight: Tensor) -> bool:
    """Whether a weight of a DiT is a matrix of a block or of the time projection, as nearly all are."""
    return MATRIX.match(name) is not None and weight.ndim == 2


def in_eight_bits(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a DiT with its matrices in float8_e4m3fn."""
    return {
        name: weight.to(torch.float8_e4m3fn) if is_matrix(name, weight) else weight for name, weight in weights.items()
    }


def normalise(mu: Tensor) -> Tensor:
    """Raw means (B, C, F, H, W) as the official pipelines normalise them."""
    mean, std = _statistics(mu)
    return (mu - mean) / std


def restore(latent: Tensor) -> Tensor:
    """The inverse of `normalise`."""
    mean, std = _statistics(latent)
    return latent * std + mean


def _statistics(latent: Tensor) -> tuple[Tensor, Tensor]:
    """Official mean and deviation of each channel of the latents (B, C, F, H, W), in their dtype."""
    stats = FAMILIES[latent.shape[1]]
    return tuple(latent.new_tensor(values).view(1, -1, 1, 1, 1) for values in (stats.mean, stats.std))


def load_vae(kind: str = "vae") -> WanVAE:
    """The VAE of `kind`, in float32."""
    return build_vae(checkpoint.load(path(kind))[0], dtype=torch.float32)


def load_dit(kind: str) -> WanDiT:
    """The DiT of `kind`, in float32."""
    weights = checkpoint.load(path(kind))[0]
    for name in [name for name in weights if name.endswith(PACKED_MARKER)]:
        form, matrix = int(weights.pop(name)), name.removesuffix(PACKED_MARKER) + ".weight"
        weights[matrix] = ggml.unpack(ggml.Packed(weights[matrix], form), torch.float32)
    return build_dit(weights, dtype=torch.float32)


class Experts:
    """The pair of DiTs, each at its own noise levels, called as one."""

    def __init__(self) -> None:
        self.high, self.low = load_dit("t2v_high_noise"), load_dit("t2v")

    def __call__(self, x: Tensor, t: Tensor, context: Tensor, y: Tensor | None = None) -> Tensor:
        return (self.high if float(t.max()) >= 1000 * BOUNDARY else self.low)(x, t, context, y=y)


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
    dit: Callable[..., Tensor],
    context: Tensor,
    negative: Tensor,
    seeds: list[int],
    *,
    y: Tensor | None = None,
    first: Tensor | None = None,
    size: tuple[int, ...] = (16, *SIZE),
    guidance: float = GUIDANCE,
    steps: int = STEPS,
    shift: float = SHIFT,
    solver: str = "unipc",
) -> Tensor:
    """Normalised latents (B, *size) for contexts (B, L, text_dim), a seed each; negative is (1, L, text_dim).

    first: latents (B, C, 1, H, W) of first frames that are held, as the 5B model does.
    """
    noise = [torch.randn(size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    negative = negative.expand(len(seeds), -1, -1)

    def held(x: Tensor) -> Tensor:
        return x if first is None else torch.cat((first, x[:, :, 1:]), dim=2)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        x, t = held(x), torch.full((1, 1 if first is None else size[1]), solvers.timestep(sigma, solver))
        if first is not None:
            t[:, 0] = 0
        velocity = dit(x, t, context, y=y)
        if guidance != 1:
            other = dit(x, t, negative, y=y)
            velocity = other + guidance * (velocity - other)
        return held(x - sigma * velocity)

    sigmas = solvers.flow_sigmas(steps, shift, solver)
    return held(solvers.SAMPLERS[solver](denoise, torch.stack(noise), sigmas.tolist()))


def decode(vae: WanVAE, latents: Tensor) -> Tensor:
    """Clips (B, 3, T, H, W) in [-1, 1] of normalised latents, decoded one by one."""
    return torch.cat([vae.decode(latent[None]) for latent in restore(latents)]).clamp(-1, 1)
