"""The inner interface of the host's Wan network on ours, for packs that patch or read inside `diffusion_model`.

They replace the forward of a block, an attention, a feed-forward or a norm by an object patch, or the module itself,
and call these as the host's network does. So our modules also derive from the host's classes and take both calls. A
block with a replaced part runs as the host's does, part by part; all others run as ours.
"""

import dataclasses
import inspect
from types import MethodType

import torch
from comfy.ldm.flux.layers import EmbedND
from comfy.ldm.wan import model as wan
from torch import Tensor, nn

from ...wan_model.dit.config import DiTConfig
from ...wan_model.dit.layers import (
    TORCH,
    Block,
    BlockInputs,
    CrossAttention,
    FeedForward,
    Head,
    SelfAttention,
    modulation,
)
from ...wan_model.dit.parts.vace import VaceBlock
from ...wan_model.dit.rope import THETA, Positions
from ...wan_model.parallel.loan import whole
from ...wan_model.variants import PATCH, TEXT_LENGTH
from .. import compat

INPUTS = "wan_block_inputs"  # our inputs of a block, in the transformer_options of a block that runs as the host's
PARTS = ("self_attn", "cross_attn", "ffn", "norm1", "norm2", "norm3")  # of a block
SERVED = compat.wan_patches()
STEPS = ("_forward", "forward_orig")  # of the host's network, which other packs wrap
KINDS = {"self_attn": SelfAttention, "cross_attn": CrossAttention, "ffn": FeedForward}


class InnerSelfAttention(SelfAttention, wan.WanSelfAttention):
    """Called as a whole only by other packs: `forward(x, freqs, transformer_options)`."""


class InnerCrossAttention(CrossAttention):
    """Takes our call (x, keys and values, attention) and the host's (x, context, ...)."""

    def forward(self, x: Tensor, context, *arguments, **options) -> Tensor:
        """x (B, L, dim) -> (B, L, dim)."""
        if isinstance(context, list):
            return super().forward(x, context, *arguments)
        return self.host_class.forward(self, x, context, *arguments, **options)


class InnerTextAttention(InnerCrossAttention, wan.WanT2VCrossAttention):
    """Attention to the text."""

    host_class = wan.WanT2VCrossAttention


class InnerImageAttention(InnerCrossAttention, wan.WanI2VCrossAttention):
    """Attention to the text and to CLIP tokens, which precede it in the host's context."""

    host_class = wan.WanI2VCrossAttention


class InnerBlock(Block, wan.WanAttentionBlock):
    """Takes our call (x, inputs) and the host's."""

    def forward(self, x: Tensor, *arguments, **options) -> Tensor:
        """x (B, L, dim) -> (B, L, dim)."""
        if arguments and isinstance(arguments[0], BlockInputs):
            return super().forward(x, *arguments)
        return self.in_parts(x, *arguments, **options)

    def in_parts(self, x, e, freqs, context, context_img_len=None, transformer_options=None) -> Tensor:
        """Run as the host's block does: e (B, R, 6, dim) or (B, 6, dim), freqs (1, L, 1, head_dim / 2, 2, 2)."""
        options = {} if transformer_options is None else transformer_options
        inputs = options.get(INPUTS)
        counts, after_text = (inputs.counts, inputs.after_text) if inputs else (None, ())
        rows = modulation(self.modulation, e if e.ndim == 4 else e.unsqueeze(1), x.dtype)
        shift, scale, gate, shift2, scale2, gate2 = (of_tokens(row.squeeze(2), x, counts) for row in rows)
        normed = torch.addcmul(shift, self.norm1(x), 1 + scale)
        x = torch.addcmul(x, self.self_attn(normed, freqs, transformer_options=options), gate)
        context_options = {"context_img_len": context_img_len, "transformer_options": options}
        x = x + self.cross_attn(self.norm3(x), context, **context_options)
        for add in after_text:
            x = add(self, x)
        return torch.addcmul(x, self.ffn(torch.addcmul(shift2, self.norm2(x), 1 + scale2)), gate2)


class InnerVaceBlock(InnerBlock, VaceBlock, wan.VaceWanAttentionBlock):
    """A block over control tokens, called only by our forward."""

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """x (B, L, dim) -> (B, L, dim)."""
        if not torch.compiler.is_compiling() and is_altered(self):
            return self.in_parts(x, **as_the_host_calls(inputs, {}))
        return Block.forward(self, x, inputs)


class InnerHead(Head, wan.Head):
    """Takes our call (x, e, chunk) and the host's (x, e)."""

    def forward(self, x: Tensor, e: Tensor, chunk: int | None = None) -> Tensor:
        """x (B, L, dim), e (B, R, dim) or (B, dim) -> (B, L, out_dim * patch) float32."""
        e = e if e.ndim == 3 else e.unsqueeze(1)
        if not is_replaced(self.norm):
            return super().forward(x, e, chunk)
        shift, scale = (of_tokens(row.squeeze(2), x) for row in modulation(self.modulation, e.unsqueeze(2), x.dtype))
        return self.head(torch.addcmul(shift, self.norm(x), 1 + scale).float())


class InFloat32(nn.Sequential):
    """Layers with float32 weights, which take an input of any dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """x of any float type -> float32."""
        return super().forward(x.float())


class InnerNetwork(wan.WanModel):
    """Base that makes our network an instance of the host's class, without its modules."""

    def __init__(self):
        nn.Module.__init__(self)


def of_tokens(row: Tensor, x: Tensor, counts: tuple[int, ...] | None = None) -> Tensor:
    """Return `row` (B, R, dim) for each token of x (B, L, dim): (B, 1 or L, dim)."""
    if row.shape[1] == 1:
        return row
    each = x.shape[1] // row.shape[1] if counts is None else torch.tensor(counts, device=x.device)
    return row.repeat_interleave(each, dim=1)


def is_replaced(module: nn.Module) -> bool:
    """Return whether the forward of `module` is not that of its class, or has a hook."""
    forward = vars(module).get("forward")
    hooked = module._forward_hooks or module._forward_pre_hooks
    return bool(hooked) or (forward is not None and forward != MethodType(type(module).forward, module))


def is_altered(block: nn.Module) -> bool:
    """Return whether another pack replaces part of a block, so that it must run as the host's does."""
    block = whole(getattr(block, "_orig_mod", block))  # the block inside a compiled one, or that another process lends
    if not isinstance(block, InnerBlock) or is_replaced(block):
        return True
    parts = {name: getattr(block, name) for name in PARTS}
    return any(not isinstance(parts[name], kind) for name, kind in KINDS.items()) or any(
        map(is_replaced, parts.values())
    )


def as_the_host_calls(inputs: BlockInputs, options: dict) -> dict:
    """Return `inputs` as the arguments with which the host calls a block."""
    context, images = joined_context(inputs)
    return {
        "e": inputs.e,
        "freqs": host_rope(inputs.rope),
        "context": context,
        "context_img_len": images,
        "transformer_options": options | {INPUTS: inputs},
    }


def joined_context(inputs: BlockInputs) -> tuple[Tensor, int | None]:
    """Return the context in the host's form, image tokens first, and their number, None without an image."""
    if inputs.image_context is None or inputs.image_context is inputs.context:
        return inputs.context, None  # an attention that reads images uses it for both
    return torch.cat((inputs.image_context, inputs.context), dim=1), inputs.image_context.shape[1]


def with_context(inputs: BlockInputs, context: Tensor, images: int | None) -> BlockInputs:
    """Return `inputs` with a context in the host's form: the inverse of `joined_context`."""
    if images is not None:
        return dataclasses.replace(inputs, image_context=context[:, :images], context=context[:, images:])
    image_context = None if inputs.image_context is None else context
    return dataclasses.replace(inputs, image_context=image_context, context=context)


def host_rope(table: Tensor) -> Tensor:
    """Return a table (L, n, 2), or matrices (L, n, 2, 2), in the host's form (1, L, 1, n, 2, 2)."""
    if table.ndim == 3:
        cos, sin = table.unbind(-1)
        table = torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))
    return table[None, :, None]


def with_rope(inputs: BlockInputs, freqs: Tensor) -> BlockInputs:
    """Return `inputs` with the host's rotations `freqs`."""
    kernels = dataclasses.replace(inputs.kernels, rotate=TORCH.rotate)
    return dataclasses.replace(inputs, rope=our_rope(freqs), kernels=kernels)


def our_rope(freqs: Tensor) -> Tensor:
    """Return the host's rotations (1, L, 1, n, 2, 2) as cosine and sine: float32 (L, n, 2)."""
    return freqs[0, :, 0, :, :, 0].float().contiguous()


def is_own(network: nn.Module, name: str) -> bool:
    """Return whether the object has a method `name` that is not its class's."""
    method = vars(network).get(name)
    return method is not None and method != MethodType(getattr(type(network), name), network)


def rope_table(network: nn.Module, latent: Tensor, options: dict, freqs: Tensor | None = None):
    """Return a `Kernels.rope_table` from another pack's replacement or from `freqs`; None to keep our own."""
    if is_own(network, "rope_encode") and freqs is None:
        return lambda positions, head_dim, device: _encoded(network, positions, latent, options)
    if network.rope_embedder is not network.own_rope[0] and freqs is None:
        return lambda positions, head_dim, device: torch.cat([_embedded(network, p, device) for p in positions])
    return None if freqs is None else lambda positions, head_dim, device: our_rope(freqs)


def _encoded(network: nn.Module, positions, latent: Tensor, options: dict) -> Tensor:
    """Return the table that another pack's `rope_encode` gives."""
    if len(positions) > 1:
        raise ValueError(
            f"Another node replaces rope_encode, which covers only the clip, and this run has {len(positions)} "
            "streams of tokens: remove that node or the reference latents."
        )
    frames, rows, columns = positions[0].grid
    size = (frames * PATCH[0], rows * PATCH[1], columns * PATCH[2])
    given = {"device": latent.device, "dtype": latent.dtype, "transformer_options": options}
    return our_rope(network.rope_encode(*size, **given))


def _embedded(network: nn.Module, positions: Positions, device) -> Tensor:
    """Return the table that another pack's `rope_embedder` gives."""
    axes = (torch.tensor(axis, device=device) for axis in (positions.frames, positions.rows, positions.columns))
    ids = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).float().flatten(0, 2)  # (n, 3)
    table = our_rope(network.rope_embedder(ids[None]).movedim(1, 2))
    if not positions.source:
        return table
    turn = positions.source * THETA ** -(torch.arange(table.shape[1], device=device) / table.shape[1])
    turned = torch.view_as_complex(table) * torch.polar(torch.ones_like(turn), turn)
    return torch.view_as_real(turned)


def served_patches(options: dict, name: str) -> tuple:
    """Return the patches `name` in the transformer_options that are made for Wan.

    If the host's own Wan does not call them, patches for U-Nets, which take q, k and v, are left out, as on the host.
    """
    patches = options.get("patches", {}).get(name, ())
    return tuple(patch for patch in patches if name in SERVED or _takes_one_argument(patch))


def _takes_one_argument(patch) -> bool:
    required = [p for p in inspect.signature(patch).parameters.values() if p.default is p.empty]
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in required) <= 1


def check_control(network: nn.Module) -> None:
    """Raise ValueError if another pack replaces a VACE block, which is not supported."""
    for index, block in enumerate(getattr(network, "vace_blocks", ())):
        compiled, block = hasattr(block, "_orig_mod"), getattr(block, "_orig_mod", block)
        if is_replaced(block) or (compiled and is_altered(block)):
            raise ValueError(
                f"Another node replaces vace_blocks.{index} of the network{' and compiles it' if compiled else ''}, "
                "which this model does not support: remove that node, or load the model with Load Diffusion Model."
            )


def dress(network: nn.Module, config: DiTConfig, ops) -> None:
    """Give the modules of `network` the host's classes and their attributes."""
    sizes = {"dim": config.dim, "num_heads": config.heads, "window_size": config.window_size, "qk_norm": True}
    sizes |= {"eps": config.eps}
    for block in (*network.blocks, *getattr(network, "vace_blocks", ())):
        block.__class__ = InnerVaceBlock if isinstance(block, VaceBlock) else InnerBlock
        for norm in ("norm1", "norm2"):
            setattr(block, norm, ops.LayerNorm(config.dim, eps=config.eps, elementwise_affine=False))
        block.self_attn.__class__ = InnerSelfAttention
        block.cross_attn.__class__ = InnerImageAttention if hasattr(block.cross_attn, "k_img") else InnerTextAttention
        note(block, sizes | {"ffn_dim": config.ffn_dim, "cross_attn_norm": True})
        for attention in (block.self_attn, block.cross_attn):
            note(attention, sizes | {"head_dim": config.dim // config.heads})
    network.head.__class__ = InnerHead
    network.head.norm = ops.LayerNorm(config.dim, eps=config.eps, elementwise_affine=False)
    note(network.head, {"dim": config.dim, "out_dim": config.out_dim, "patch_size": PATCH})
    for embedding in (network.time_embedding, network.time_projection):
        embedding.__class__ = InFloat32
    network.patch_embedding.register_forward_pre_hook(_in_its_type)
    third = 2 * (config.dim // config.heads // 6)
    network.rope_embedder = EmbedND(
        config.dim // config.heads, THETA, [config.dim // config.heads - 2 * third, third, third]
    )
    network.own_rope = (network.rope_embedder,)  # to recognise a replacement
    of_network = {name: getattr(config, name) for name in ("ffn_dim", "freq_dim", "text_dim", "in_dim", "out_dim")}
    of_network |= {"num_layers": config.layers, "patch_size": PATCH, "text_len": TEXT_LENGTH, "cross_attn_norm": True}
    note(network, sizes | of_network | {"model_type": "i2v" if hasattr(network, "img_emb") else "t2v"})
    for part in ("img_emb", "ref_conv"):  # the host has both on every network
        if not hasattr(network, part):
            setattr(network, part, None)


def note(module: nn.Module, attributes: dict) -> None:
    """Set `attributes` of `module`."""
    for name, value in attributes.items():
        setattr(module, name, value)


def _in_its_type(layer: nn.Module, arguments: tuple) -> tuple:
    """Cast the input to the weight's dtype for a layer that does not cast its weights."""
    (x,) = arguments
    return arguments if getattr(layer, "comfy_cast_weights", False) else (x.to(layer.weight.dtype),)
