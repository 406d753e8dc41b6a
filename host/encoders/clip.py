"""CLIP: umT5 on the host's own T5 and tokenizer classes, from any file that holds its encoder."""

import html
import logging
import os
from types import SimpleNamespace

import comfy.sd
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.wan
import comfy.utils
import folder_paths
import ftfy
import torch
from comfy.text_encoders.spiece_tokenizer import SPieceTokenizer

from ...wan_model import checkpoint
from ...wan_model.messages import Message
from ...wan_model.variants import TEXT_LENGTH
from ...wan_model.weights import layouts
from .. import compat
from ..model import offload, packed
from . import weights

TOKENS = "umt5xxl"  # the host's name for the tokens of its Wan text encoder, at every size
END = (1, 1.0)  # umT5's end-of-sentence token and its weight
TOKENIZER_FILES = ("spiece.model", os.path.join("google", "umt5-xxl", "spiece.model"))  # as in the official folder
REMEMBERED = "wan_prompts"  # key of the attachment
HOST_NAMES = layouts.inverse(layouts.UMT5_HF)  # the host's T5 has Hugging Face's names


def load(path: str) -> comfy.sd.CLIP:
    """Return the host's CLIP object around the umT5 encoder of any size in the file `path`.

    The weights keep the file's type. The tokenizer is the one inside the file (`spiece_model`) or one of
    `TOKENIZER_FILES` beside it. Raise ValueError for a file of another model, one that lacks weights and one without
    a tokenizer.
    """
    clip = _load(path)
    clip.patcher.cached_patcher_init = (_load_patcher, (path,))  # newer hosts load it again with this
    return clip


def encode_prompt(clip: comfy.sd.CLIP, prompt: str, title: str) -> list:
    """Return the CONDITIONING of `prompt` as the official pipeline makes it.

    The prompt is cleaned, read without weights such as (word:1.2), and cut to 512 tokens. title: what to call the
    prompt in a message. Raise ValueError for a CLIP that is not a umT5.
    """
    tokens = {} if clip is None else clip.tokenize(clean_prompt(prompt), disable_weights=True)
    check_kind(TOKENS in tokens)
    tokens[TOKENS] = [_truncate(clip, row, title) for row in tokens[TOKENS]]
    return clip.encode_from_tokens_scheduled(tokens)


def encode_prompts(clip: comfy.sd.CLIP, prompts: dict[str, str]) -> list[list]:
    """Return the CONDITIONINGs of `prompts` (by title) as `encode_prompt` gives them, and unload the encoder.

    `clip` remembers the last prompt of each title, so only a changed one is encoded again. Raise as `encode_prompt`.
    """
    check_kind(clip is not None)
    kept = _remembered(clip)
    for title, prompt in prompts.items():
        wanted = (prompt, clip.layer_idx, clip.patcher.patches_uuid)
        if title not in kept or kept[title][0] != wanted:
            kept[title] = (wanted, encode_prompt(clip, prompt, title))
    offload.leave_device(clip.patcher)
    return [[[tokens, dict(entries)] for tokens, entries in kept[title][1]] for title in prompts]


class Prompts(dict):
    """Prompts that a CLIP encoded last: title -> (its inputs, CONDITIONING). A clone starts empty."""

    def on_model_patcher_clone(self) -> "Prompts":
        """Return the attachment for a clone; the host calls this."""
        return Prompts()


def _remembered(clip) -> Prompts:
    """Return the prompts that `clip` carries, as an attachment of its patcher."""
    kept = clip.patcher.get_attachment(REMEMBERED)
    if kept is None:
        kept = Prompts()
        clip.patcher.set_attachments(REMEMBERED, kept)
    return kept


def check_kind(umt5: bool) -> None:
    """Raise ValueError if a CLIP is not umT5."""
    if not umt5:
        raise ValueError(
            Message(
                "other_clip",
                "Wan reads the text encoder umT5 and this CLIP is another one: load umT5-XXL in WanTextEncoderLoader, "
                "or in CLIPLoader with type wan.",
            )
        )


def clean_prompt(prompt: str) -> str:
    """Return `prompt` as the official tokenizer cleans it (wan/modules/tokenizers.py).

    Broken characters and HTML entities are repaired, full-width forms normalised, and white space is collapsed.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return " ".join(text.split())


def host_weights(state: dict) -> dict:
    """Return the encoder's weights in `state` under the names of the host's T5, without a decoder and other extras."""
    renamed = {new: state[name] for name, new in layouts.rename(state, HOST_NAMES).items()}
    return {name: weight for name, weight in renamed.items() if name.startswith(("encoder.", "shared.", "scaled_fp8"))}


def infer_config(state: dict, path: str) -> dict:
    """Return the sizes of the host's T5 for `state`, read from `path`, in the host's names.

    Raise ValueError if `state` is not a whole umT5 encoder.
    """
    block = "encoder.block.0.layer.{}.weight"
    vocabulary = weights.shape(state, "shared.weight", path, 2)[0]
    heads = weights.shape(state, block.format("0.SelfAttention.relative_attention_bias"), path, 2)[1]
    config = {
        "vocab_size": vocabulary,
        "d_model": weights.shape(state, "encoder.final_layer_norm.weight", path, 1)[0],
        "d_ff": weights.shape(state, block.format("1.DenseReluDense.wi_0"), path, 2)[0],
        "d_kv": weights.shape(state, block.format("0.SelfAttention.q"), path, 2)[0] // heads,
        "num_heads": heads,
        "num_layers": weights.count_layers(state, "encoder.block."),
    }
    weights.check_shapes(state, expected_shapes(config), path)
    return config


def expected_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight by name of the host's T5 with the sizes `config`."""
    dim, inner, hidden = config["d_model"], config["d_kv"] * config["num_heads"], config["d_ff"]
    block = {
        "layer.0.SelfAttention.q": (inner, dim),
        "layer.0.SelfAttention.k": (inner, dim),
        "layer.0.SelfAttention.v": (inner, dim),
        "layer.0.SelfAttention.o": (dim, inner),
        "layer.0.SelfAttention.relative_attention_bias": (32, config["num_heads"]),
        "layer.0.layer_norm": (dim,),
        "layer.1.DenseReluDense.wi_0": (hidden, dim),
        "layer.1.DenseReluDense.wi_1": (hidden, dim),
        "layer.1.DenseReluDense.wo": (dim, hidden),
        "layer.1.layer_norm": (dim,),
    }
    shapes = {"shared.weight": (config["vocab_size"], dim), "encoder.final_layer_norm.weight": (dim,)}
    for index in range(config["num_layers"]):
        shapes |= {f"encoder.block.{index}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def _load_patcher(path, disable_dynamic=False):
    return _load(path, disable_dynamic).patcher


def _load(path, disable_dynamic=False):
    state, metadata = weights.read(path, checkpoint.TEXT_ENCODER, "WanTextEncoderLoader")
    tokenizer = state.get("spiece_model")
    state = _host_quantisation(host_weights(state), metadata, path)
    config = infer_config(state, path)
    if tokenizer is None:
        tokenizer = _read_tokenizer(path)
    _check_tokenizer(tokenizer, config["vocab_size"], path)
    target = SimpleNamespace(
        clip=comfy.text_encoders.wan.te(**comfy.text_encoders.sd3_clip.t5_xxl_detect(state)),
        tokenizer=comfy.text_encoders.wan.WanT5Tokenizer,
        params={},
    )
    options = {
        "embedding_directory": folder_paths.get_folder_paths("embeddings"),
        "tokenizer_data": {"spiece_model": tokenizer},
        "parameters": comfy.utils.calculate_parameters(state),
        "model_options": {f"{TOKENS}_model_config": config},
        "disable_dynamic": disable_dynamic,
    }
    if packed.is_packed(state):  # the dynamic patcher of newer hosts cannot move packed bytes
        options["model_options"]["custom_operations"] = packed.PackedOps
        options["disable_dynamic"] = True
    return compat.make_clip(target, state, **options)


def _host_quantisation(state, metadata, path):
    """Return `state` in the form of quantised weights that this host's operations read."""
    converted = compat.convert_quantised(state, metadata)
    if converted is not None:
        return converted
    if "_quantization_metadata" in metadata or any(name.endswith(".comfy_quant") for name in state):
        title = os.path.basename(path)
        raise ValueError(
            f"'{title}' is quantised in a form that needs a newer ComfyUI: update it, or choose a file in "
            "bfloat16 or in the older fp8_scaled form."
        )
    return state


def _read_tokenizer(path):
    places = [os.path.join(os.path.dirname(path), name) for name in TOKENIZER_FILES]
    for place in places:
        if os.path.isfile(place):
            with open(place, "rb") as file:
                return torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    raise ValueError(
        f"'{os.path.basename(path)}' holds no tokenizer and there is none at {' or '.join(places)}: put there "
        "spiece.model of the Hugging Face repository google/umt5-xxl."
    )


def _check_tokenizer(tokenizer, vocabulary, path):
    title = os.path.basename(path)
    try:
        pieces = len(SPieceTokenizer(tokenizer).get_vocab())
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"The tokenizer of '{title}' is damaged ({error}): download the file again.") from error
    if pieces > vocabulary:
        raise ValueError(
            f"The tokenizer of '{title}' has {pieces} pieces, the weights {vocabulary}: use both from the same source."
        )


def _truncate(clip, row, title):
    if len(row) <= TEXT_LENGTH:
        return row
    lost = clip.tokenizer.untokenize(row[TEXT_LENGTH - 1 : -1])
    text = "".join(piece for _, piece in lost).replace("\u2581", " ").strip()
    logging.warning(
        "The %s prompt has %d tokens and Wan reads %d: the rest is dropped, from '%s' on.",
        title, len(row), TEXT_LENGTH, text[:80],
    )  # fmt: skip
    return [*row[: TEXT_LENGTH - 1], END]
