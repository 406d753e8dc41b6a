"""Writes model files in the forms that other programs make, from plain weights."""

import importlib
import json
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
import torch
from safetensors.torch import save_file

from tiny import packing

BULK = (
    ".q.weight",
    ".k.weight",
    ".v.weight",
    ".o.weight",
    "ffn.0.weight",
    "ffn.2.weight",
)  # what is quantised in a DiT


def fp8_scaled(weights: dict, form: str, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[dict, dict, dict]:
    """(tensors, header metadata, what they mean in float32). form: "old", "new" or "header", by where the marks are."""
    tensors, metadata, meaning, layers = dict(weights), {}, dict(weights), {}
    for name, weight in weights.items():
        if name.endswith(BULK) or name == "head.head.weight":
            layer = name.removesuffix(".weight")
            scale = weight.abs().max() / torch.finfo(dtype).max
            tensors[name] = (weight / scale).to(dtype)
            meaning[name] = tensors[name].float() * scale
            tensors[layer + (".scale_weight" if form == "old" else ".weight_scale")] = scale
            layers[layer] = {"format": "float8_e4m3fn" if dtype == torch.float8_e4m3fn else "float8_e5m2"}
    if form == "old":
        tensors["scaled_fp8"] = torch.empty(0, dtype=dtype)
    elif form == "new":
        for layer, mark in layers.items():
            tensors[layer + ".comfy_quant"] = torch.tensor(list(json.dumps(mark).encode()), dtype=torch.uint8)
    else:
        metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": layers})
    return tensors, metadata, meaning


def random_packed(shape: tuple[int, ...], form: str, seed: int) -> packing.Packed:
    """Random blocks of a form that the `gguf` package can unpack but not make, with small scales."""
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[form]]
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (int(np.prod(shape)) // values, size), dtype=np.uint8)
    scales = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}[form]
    for start in scales:
        blocks[:, start : start + 2] = np.array([2e-5], dtype=np.float16).view(np.uint8)
    return packing.Packed(blocks.reshape(shape[0], -1), form)


def write_gguf(path: Path, weights: dict, kind: str, arch: str = "wan", bulk=BULK, spiece: bytes | None = None) -> dict:
    """Writes `weights` with those whose name ends in `bulk` packed as `kind`; returns what they mean in float32."""
    plain = {name: weight.float() for name, weight in weights.items()}
    packed = {
        name: random_packed(weight.shape, kind, len(name)) if kind.endswith("_K") else packing.pack(weight, kind)
        for name, weight in plain.items()
        if name.endswith(bulk)
    }
    packing.write(path, plain, packed, partial(_add_tokenizer, model=spiece) if spiece else lambda writer: None, arch)
    return plain | {name: packing.unpack(blocks).reshape(plain[name].shape) for name, blocks in packed.items()}


def _add_tokenizer(writer: gguf.GGUFWriter, model: bytes) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    types = []
    for index in range(processor.get_piece_size()):
        flags = (processor.is_unknown(index), processor.is_control(index), processor.is_unused(index))
        types.append(dict(zip(flags, (2, 3, 5), strict=True)).get(True, 6 if processor.is_byte(index) else 1))
    writer.add_tokenizer_model("t5")
    writer.add_token_list([processor.id_to_piece(index) for index in range(len(types))])
    writer.add_token_scores([processor.get_score(index) for index in range(len(types))])
    writer.add_token_types(types)
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_unk_token_id(processor.unk_id())
    writer.add_eos_token_id(processor.eos_id())
    writer.add_pad_token_id(processor.pad_id())


def write_parts(path: Path, weights: dict, count: int = 3) -> Path:
    """Deals `weights` out over `count` files beside `path`, named after it; returns the first."""
    paths = [path.with_name(f"{path.stem}-{number:05}-of-{count:05}.safetensors") for number in range(1, count + 1)]
    for number, part in enumerate(paths):
        save_file({key: weights[key].contiguous() for key in list(weights)[number::count]}, part)
    return paths[0]


def quantise_by_host(weights: dict, form: dict, **options) -> dict:
    """`weights` with the bulk quantised by the host's own tools, marked as the host marks it.

    form: what the marker says, such as {"format": "nvfp4"}. options: of the host's quantisation.
    """
    quant_ops = importlib.import_module("comfy.quant_ops")
    layout, tensors = quant_ops.QUANT_ALGOS[form["format"]]["comfy_tensor_layout"], {}
    for name, weight in weights.items():
        if not name.endswith(BULK):
            tensors[name] = weight
            continue
        quantised = quant_ops.QuantizedTensor.from_float(weight.float(), layout, **options)
        tensors |= {key: tensor.contiguous() for key, tensor in quantised.state_dict(name).items()}
        marker = torch.tensor(list(json.dumps(form).encode()), dtype=torch.uint8)
        tensors[name.removesuffix(".weight") + ".comfy_quant"] = marker
    return tensors
