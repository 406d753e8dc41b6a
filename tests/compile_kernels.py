"""Compiles the Triton kernels for several cards, without one, and prints how they reach memory, as JSON.

For every kernel, card and width of a real model: how many loads and stores move 16 bytes a thread, and how many fewer.
"""

import json
import os
import re
import sys
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from wan_model.kernels import triton_kernels as kernels

CAPABILITIES = (75, 80, 90, 120)
VAE_WIDTHS = (96, 160, 192, 256, 320, 384, 512, 640, 1024)
DIT_WIDTHS = (1536, 3072, 5120)
POINTERS = {"x", "cache", "gamma", "whole", "shift", "scale", "out"}
FLOATS = {"root", "eps"}


def accesses(kernel, capability: int, num_warps: int, **constants: int) -> dict[str, int]:
    """Compile `kernel` for bfloat16 tensors."""
    names = kernel.arg_names
    types = dict.fromkeys(names, "i32") | dict.fromkeys(POINTERS, "*bf16") | dict.fromkeys(FLOATS, "fp32")
    types |= {"table": "*fp32"} | dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if types[name].startswith("*")}
    source = ASTSource(
        fn=kernel,
        signature={name: types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps})
    found = re.findall(r"\b(?:ld|st)\.global[\w.]*", made.asm["ptx"])
    wide = sum(".v4" in access for access in found)
    return {"wide": wide, "narrow": len(found) - wide}


def main() -> None:
    """Print the accesses by kernel, width and card."""
    found = {}
    for capability in CAPABILITIES:
        for width in VAE_WIDTHS:
            shape = kernels._pixels(width)
            found[f"activate {width} sm_{capability}"] = accesses(kernels._activate, capability, **shape)
        for width in DIT_WIDTHS:
            shape = kernels._token(width)
            found[f"rotate {width} sm_{capability}"] = accesses(kernels._rotate, capability, PERIOD=128, **shape)
            found[f"norm_modulate {width} sm_{capability}"] = accesses(kernels._norm_modulate, capability, **shape)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
