"""Damages model files in every way that a loader must survive; used by the suite and by `fuzz_headers.py`."""

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from random import Random

import torch
import writers
from safetensors.torch import save_file

HUGE = (2**31 - 1, 2**32, 2**40, 2**62, 2**63, 2**64 - 1)


def tiny_dit() -> dict[str, torch.Tensor]:
    """The smallest weights that are a Wan DiT: one block of one head, float16."""
    generator, dim = torch.Generator().manual_seed(3), 128
    shapes = {
        "patch_embedding.weight": (dim, 16, 1, 2, 2),
        "head.modulation": (1, 2, dim),
        "head.head.weight": (64, dim),
    }
    shapes |= {"text_embedding.0.weight": (dim, 32), "text_embedding.2.weight": (dim, dim)}
    shapes |= {"time_embedding.0.weight": (dim, 256), "time_embedding.2.weight": (dim, dim)}
    shapes |= {"time_projection.1.weight": (6 * dim, dim), "blocks.0.modulation": (1, 6, dim)}
    for attention in ("self_attn", "cross_attn"):
        shapes |= {f"blocks.0.{attention}.{part}.weight": (dim, dim) for part in "qkvo"}
    shapes |= {
        "blocks.0.ffn.0.weight": (dim, dim),
        "blocks.0.ffn.2.weight": (dim, dim),
        "blocks.0.norm3.weight": (dim,),
    }
    shapes |= {name[: -len("weight")] + "bias": shape[:1] for name, shape in shapes.items() if name.endswith("weight")}
    for attention in ("self_attn", "cross_attn"):
        shapes |= {f"blocks.0.{attention}.norm_{part}.weight": (dim,) for part in "qk"}
    return {name: torch.randn(shape, generator=generator).half() for name, shape in shapes.items()}


def write_seeds(folder: Path) -> list[Path]:
    """One good file of every format."""
    weights = tiny_dit()
    save_file(weights, folder / "plain.safetensors", metadata={"format": "pt"})
    tensors, metadata, _ = writers.fp8_scaled(weights, "header")
    save_file(tensors, folder / "scaled.safetensors", metadata=metadata)
    torch.save(weights, folder / "official.pth")
    writers.write_gguf(folder / "packed.gguf", weights, "Q4_0")
    return [folder / name for name in ("plain.safetensors", "scaled.safetensors", "official.pth", "packed.gguf")]


def mutate(content: bytes, random: Random) -> bytes:
    """`content` with one to four pieces of damage, most of them in the header."""
    content = bytearray(content)
    for _ in range(random.randint(1, 4)):
        reach = random.choice((64, 4096, 20000, len(content)))
        place = random.randrange(min(reach, len(content)))
        if random.random() < 0.2:
            place = len(content) - 1 - place  # the list of contents of a zip is at its end
        _damage(content, place, random)
        if not content:
            break
    return bytes(content)


def _damage(content: bytearray, place: int, random: Random) -> None:
    kind = random.randrange(7)
    if kind == 0:
        content[place] ^= 1 << random.randrange(8)
    elif kind == 1:
        content[place] = random.choice(b'\x00\xff{}[]",:09-eE.\\')
    elif kind == 2:
        content[place : place + 8] = struct.pack("<Q", random.choice((0, *HUGE)))
    elif kind == 3:
        content[place : place + 4] = struct.pack("<I", random.choice((0, 1, 9, 2**31, 2**32 - 1)))
    elif kind == 4:
        del content[place:]
    elif kind == 5:
        del content[place : place + random.randint(1, 64)]
    else:
        content[place:place] = content[place : place + random.randint(1, 64)] * random.choice((1, 3))


def mutate_entries(content: bytes, random: Random) -> bytes:
    """A safetensors file whose header is sound JSON and says something else than it should."""
    length = struct.unpack("<Q", content[:8])[0]
    entries = json.loads(content[8 : 8 + length])
    names = [name for name in entries if name != "__metadata__"]
    one, other = random.sample(names, 2)
    entry, wrong = entries[one], random.choice((-1, 1.5, "3", None, [], {}, True, *HUGE))
    changes = (
        lambda: entry.update(data_offsets=entries[other]["data_offsets"]),
        lambda: entry.update(shape=entries[other]["shape"]),
        lambda: entry.update(dtype=random.choice(("F32", "F64", "I8", "U8", "F8_E4M3", "F4", "", wrong))),
        lambda: entry.update(shape=[*entry["shape"], wrong]),
        lambda: entry.update(data_offsets=[entry["data_offsets"][0], wrong]),
        lambda: entry.update(shape=list(reversed(entry["shape"]))),
        lambda: entry.update({random.choice(("shape", "dtype", "data_offsets")): wrong}),
        lambda: entries.pop(one),
        lambda: entries.update({one.replace("blocks.0", f"blocks.{random.choice(HUGE)}"): entries.pop(one)}),
        lambda: entries.update({one: wrong}),
        lambda: entries.update(__metadata__={"_quantization_metadata": random.choice(("", "{}", "[" * 9999, "null"))}),
        lambda: entries.update(__metadata__={"_quantization_metadata": json.dumps({"layers": {one: wrong}})}),
    )
    random.choice(changes)()
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


class Mischief:
    """Pickles to a call that makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def mutate_archive(content: bytes, random: Random, path: Path, trap: Path) -> None:
    """Writes to `path` the PyTorch archive `content` with another pickle: one with code in it, damaged, or a bomb."""
    path.with_suffix(".seed").write_bytes(content)
    compression = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(path.with_suffix(".seed")) as seed, zipfile.ZipFile(path, "w", compression) as archive:
        for member in seed.infolist():
            data = seed.read(member)
            if member.filename.endswith(".pkl"):
                code = pickle.dumps({"w": Mischief(trap)}, protocol=random.choice((0, 2, 4)))
                data = random.choice((code, mutate(data, random), mutate(code, random), data + code))
            elif random.random() < 0.05:
                data = bytes(random.choice((0, 1, 10**6, 2 * 10**7)))
            if random.random() > 0.02:
                archive.writestr(member.filename, data)


def write_mutant(seed: Path, path: Path, random: Random, trap: Path) -> None:
    """Writes a damaged form of the file `seed` to `path`. trap: a folder that code in it would make."""
    content = seed.read_bytes()
    if seed.suffix == ".pth" and random.random() < 0.5:
        mutate_archive(content, random, path, trap)
    elif seed.suffix == ".safetensors" and random.random() < 0.5:
        path.write_bytes(mutate_entries(content, random))
    else:
        path.write_bytes(mutate(content, random))
