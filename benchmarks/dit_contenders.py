"""The DiTs that are compared, all with the same weights, in official names.

Each builder returns a function (x, t, context) -> v: noisy latent (B, C, F, H, W), timestep (B,) or one for each latent
frame (B, F), and text embeddings (B, L, text_dim) without padding.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from wan_model.dit.attention import sdpa
from wan_model.dit.config import DiTConfig
from wan_model.dit.layers import TORCH
from wan_model.dit.model import FLOAT32_NAMES, build_dit
from wan_model.dit.runtime import Runtime
from wan_model.kernels.fused import triton_kernels
from wan_model.variants import PATCH, TEXT_LENGTH
from wan_model.weights import layouts

Weights = dict[str, Tensor]
Forward = Callable[[Tensor, Tensor, Tensor], Tensor]
FREQUENCIES = 1024  # of diffusers' rotary table


def ours(weights: Weights, dtype: torch.dtype, chunk: int | None, attention: Callable = sdpa) -> Forward:
    """This pack's DiT with its own kernels, and torch's attention unless self-attention gets another."""
    model = build_dit(cast(weights, lambda name: None if FLOAT32_NAMES.match(name) else dtype))
    own = triton_kernels(weights["head.modulation"].device)
    kernels = own.DIT if own and dtype.itemsize <= 2 else TORCH
    runtime = Runtime(chunk=chunk, kernels=kernels, attention=attention, cross_attention=sdpa)
    return lambda x, t, context: model(x, t, context, runtime=runtime)


def sage(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """SageAttention, which computes in 8 bits, of (B, L, heads * head_dim)."""
    from sageattention import sageattn

    return sageattn(*(x.unflatten(-1, (heads, -1)) for x in (q, k, v)), tensor_layout="NHD").flatten(2)


def comfyui(config: DiTConfig, weights: Weights, dtype: torch.dtype) -> Forward:
    """The host's own DiT."""
    import comfy.ldm.wan.model
    import comfy.ops

    sizes = {name: getattr(config, name) for name in ("dim", "ffn_dim", "in_dim", "out_dim", "text_dim")}
    sizes |= {"num_heads": config.heads, "num_layers": config.layers}
    with torch.device("meta"):
        model = comfy.ldm.wan.model.WanModel(**sizes, dtype=dtype, operations=comfy.ops.disable_weight_init)
    model.load_state_dict(
        cast(weights, lambda name: None if name.startswith("patch_embedding.") else dtype), assign=True
    )
    return lambda x, t, context: model(x, t, padded(context))


def diffusers(config: DiTConfig, weights: Weights, dtype: torch.dtype) -> Forward:
    """diffusers' WanTransformer3DModel; a timestep for each frame is repeated for its tokens, as officially."""
    from diffusers import WanTransformer3DModel
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

    with torch.device("meta"):
        model = WanTransformer3DModel(
            num_attention_heads=config.heads,
            attention_head_dim=config.dim // config.heads,
            in_channels=config.in_dim,
            out_channels=config.out_dim,
            text_dim=config.text_dim,
            ffn_dim=config.ffn_dim,
            num_layers=config.layers,
            cross_attn_norm=True,
        )
    names = layouts.rename(weights, layouts.inverse(layouts.DIT_DIFFUSERS))
    renamed = {theirs: weights[official] for official, theirs in names.items()}
    precise = set(model._keep_in_fp32_modules)
    model.load_state_dict(cast(renamed, lambda name: None if precise & set(name.split(".")) else dtype), assign=True)
    device = weights["head.modulation"].device
    model.rope = WanRotaryPosEmbed(config.dim // config.heads, PATCH, FREQUENCIES).to(device)  # not in the weights

    def forward(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        if t.ndim > 1:
            t = t.repeat_interleave(x.shape[3] // PATCH[1] * (x.shape[4] // PATCH[2]), dim=1)  # (B, tokens)
        return model(x, t, padded(context), return_dict=False)[0]

    return forward


def cast(weights: Weights, dtype_of: Callable[[str], torch.dtype | None]) -> Weights:
    """The weights in the type for their name, or as they are for None; what was one tensor stays one."""
    done = {}
    for name, x in weights.items():
        key = (id(x), dtype_of(name))
        done[key] = done[key] if key in done else x.to(key[1])
    return {name: done[id(x), dtype_of(name)] for name, x in weights.items()}


def padded(context: Tensor) -> Tensor:
    """(B, 512, text_dim): the padding is the caller's for all but ours."""
    return pad(context, (0, 0, 0, TEXT_LENGTH - context.shape[1]))
