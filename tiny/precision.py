"""The dtype in which the demo family's networks are trained."""

import torch


def fast_dtype() -> torch.dtype:
    """Return bfloat16 where the processor computes with it, else float32, which is then ten times as fast."""
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else torch.float32


DTYPE = fast_dtype()  # of the networks whose gradients are computed, and of those that make what they learn from
