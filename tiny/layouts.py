"""Names and shapes of the real files at full size: of the released checkpoints, of a LoRA and of an audio encoder."""

import gzip
import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
LISTS = ("checkpoints.json.gz", "checkpoints_more.json.gz")

WIDTH, BLOCKS, RANK = 5120, 40, 64  # of the 14B models, and of the LoRAs distilled from them
SOUND, SOUND_FFN, SOUND_LAYERS = 1024, 4096, 24  # wav2vec2 large
FILTERS, KERNELS = 512, (10, 3, 3, 3, 3, 2, 2)  # its convolutions


def full(layout: str) -> dict[str, list[int]]:
    """Return name -> shape of the file `layout`. Raises KeyError for an unknown one."""
    if layout in BUILT:
        return BUILT[layout]()
    for listed in map(_listed, LISTS):
        if layout in listed:
            return listed[layout]
    raise KeyError(layout)


@cache
def _listed(name: str) -> dict[str, dict[str, list[int]]]:
    with gzip.open(GOLDEN / name) as file:
        return json.load(file)


def _lora() -> dict[str, list[int]]:
    """A LoRA for the attentions of a 14B model, in ComfyUI's names."""
    shapes = {}
    for block in range(BLOCKS):
        for attention in ("self_attn", "cross_attn"):
            for projection in "qkvo":
                stem = f"diffusion_model.blocks.{block}.{attention}.{projection}"
                shapes |= {f"{stem}.lora_down.weight": [RANK, WIDTH], f"{stem}.lora_up.weight": [WIDTH, RANK]}
    return shapes


def _wav2vec2() -> dict[str, list[int]]:
    """wav2vec2 large, but the convolution of positions: a file of zeros gives its weight no direction."""
    shapes = {}
    for number, kernel in enumerate(KERNELS):
        stem = f"feature_extractor.conv_layers.{number}"
        shapes[f"{stem}.conv.weight"] = [FILTERS, FILTERS if number else 1, kernel]
        shapes |= {f"{stem}.{name}": [FILTERS] for name in ("conv.bias", "layer_norm.weight", "layer_norm.bias")}
    shapes |= _norm("feature_projection.layer_norm", FILTERS) | _linear("feature_projection.projection", SOUND, FILTERS)
    for number in range(SOUND_LAYERS):
        stem = f"encoder.layers.{number}"
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= _linear(f"{stem}.attention.{projection}", SOUND, SOUND)
        shapes |= _norm(f"{stem}.layer_norm", SOUND) | _norm(f"{stem}.final_layer_norm", SOUND)
        shapes |= _linear(f"{stem}.feed_forward.intermediate_dense", SOUND_FFN, SOUND)
        shapes |= _linear(f"{stem}.feed_forward.output_dense", SOUND, SOUND_FFN)
    return shapes | _norm("encoder.layer_norm", SOUND)


def _linear(name: str, rows: int, columns: int) -> dict[str, list[int]]:
    return {f"{name}.weight": [rows, columns], f"{name}.bias": [rows]}


def _norm(name: str, channels: int) -> dict[str, list[int]]:
    return {f"{name}.weight": [channels], f"{name}.bias": [channels]}


BUILT = {"lora_14B": _lora, "wav2vec2_large": _wav2vec2}


def write_hollow(
    path: Path, shapes: Mapping[str, list[int]], kind: str, width: int, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file of tensors of `shapes`, `width` bytes a number, whose weights are a hole in the file."""
    header, end = {"__metadata__": dict(metadata)} if metadata else {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + width * math.prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
