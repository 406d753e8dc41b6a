"""The SentencePiece model of a GGUF text encoder, rebuilt from the file's metadata.

Formats: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto (protocol buffers) and the
`tokenizer.ggml.*` keys of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import struct
from collections.abc import Mapping

UNIGRAM, BYTE = 1, 6  # TrainerSpec.ModelType, and the type of a piece that spells one byte
IDS = {"unknown": 40, "bos": 41, "eos": 42, "padding": 43}  # fields of TrainerSpec


def spiece_model(fields: Mapping[str, object]) -> bytes | None:
    """Return the `spiece.model` that the key-value pairs `fields` describe; None unless they hold a unigram tokenizer.

    GGUF numbers the types of pieces as SentencePiece does.
    """
    found = (fields.get(f"tokenizer.ggml.{name}") for name in ("tokens", "scores", "token_type"))
    columns = [column for column in found if isinstance(column, list)]
    if len(columns) < 3 or len({len(column) for column in columns}) > 1:
        return None
    if not all(type(a) is str and type(b) is float and type(c) is int for a, b, c in zip(*columns, strict=True)):
        return None
    tokens, _, types = columns
    pieces = (
        _message(1, _message(1, token.encode()) + _key(2, 5) + struct.pack("<f", score) + _number(3, kind))
        for token, score, kind in zip(*columns, strict=True)
    )
    trainer = _number(3, UNIGRAM) + _number(4, len(tokens)) + _number(35, BYTE in types)
    for name, field in IDS.items():
        identifier = fields.get(f"tokenizer.ggml.{name}_token_id", -1)
        trainer += _number(field, identifier if type(identifier) is int else -1)
    normalizer = _number(3, bool(fields.get("tokenizer.ggml.add_space_prefix", True)))
    normalizer += _number(4, bool(fields.get("tokenizer.ggml.remove_extra_whitespaces", True)))
    charsmap = fields.get("tokenizer.ggml.precompiled_charsmap")
    if isinstance(charsmap, bytes):
        normalizer += _message(2, charsmap)
    return b"".join(pieces) + _message(2, trainer) + _message(3, normalizer)


def _varint(value: int) -> bytes:
    value &= 2**64 - 1  # negative numbers are written as 64 bits
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes(encoded) + bytes([value])


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _number(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(int(value))


def _message(field: int, content: bytes) -> bytes:
    return _key(field, 2) + _varint(len(content)) + content
