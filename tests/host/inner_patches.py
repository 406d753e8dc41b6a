"""Patches of the inner interface of the host's Wan network, as other packs make them: by object patches and wrappers.

Each is a function MODEL -> MODEL. The ways are those of widely used nodes (attention guidance by a second prompt,
enhanced self-attention, chunked feed-forward, a longer rope, step caches); the code is not.
"""

import types
from functools import partial

import torch
from comfy.ldm.flux.layers import EmbedND
from comfy.ldm.flux.math import apply_rope, rope
from comfy.ldm.modules.attention import optimized_attention
from comfy.ldm.wan.model import sinusoidal_embedding_1d
from torch import nn

INNER = "diffusion_model"


def network(model):
    return model.get_model_object(INNER)


def patched(model, patches: dict):
    """A clone of `model` with the object patches `patches`, named from the network on."""
    clone = model.clone()
    for name, value in patches.items():
        clone.add_object_patch(f"{INNER}.{name}", value)
    return clone


def bound(model, part: str, function):
    """Replaces the forward of a part of every block by the method `function`."""
    parts = {index: getattr(block, part) for index, block in enumerate(network(model).blocks)}
    return patched(
        model, {f"blocks.{index}.{part}.forward": types.MethodType(function, of) for index, of in parts.items()}
    )


def scaled(original, factor, *args, **kwargs):
    """Return the result of `original` times `factor`."""
    return factor * original(*args, **kwargs)


def scale(*names: str, factor: float = 1.2):
    """Scales what the functions `names` of the network give; {block} in a name stands for every block."""

    def patch(model):
        blocks = range(len(network(model).blocks))
        every = {name.format(block=block) for name in names for block in blocks}
        return patched(
            model, {name: partial(scaled, model.get_model_object(f"{INNER}.{name}"), factor) for name in every}
        )

    return patch


def guided(self, x, context, context_img_len=None, *, second, transformer_options=None, **_):
    """Cross-attention pushed away from a second prompt, with no more than the interface gives."""
    images = 0
    if hasattr(self, "k_img"):
        pictures, context = context[:, :context_img_len], context[:, context_img_len:]
        keys, values = self.norm_k_img(self.k_img(pictures)), self.v_img(pictures)
        images = optimized_attention(self.norm_q(self.q(x)), keys, values, heads=self.num_heads)
    assert context.shape[1] == 512 and x.shape[-1] == self.dim == self.num_heads * self.head_dim
    q = self.norm_q(self.q(x))
    made = []
    for text in (context, second.expand(len(x), -1, -1)):
        k, v = self.norm_k(self.k(text)), self.v(text)
        made.append(optimized_attention(q, k, v, heads=self.num_heads, transformer_options=transformer_options))
    return self.o(1.5 * made[0] - 0.5 * made[1] + images)


def attention_guidance(model):
    net = network(model)
    text = torch.randn(1, 512, 4096, generator=torch.Generator().manual_seed(9))
    second = net.text_embedding(text)
    return patched(
        model,
        {
            f"blocks.{index}.cross_attn.forward": types.MethodType(
                partial_method(guided, second=second), block.cross_attn
            )
            for index, block in enumerate(net.blocks)
        },
    )


def partial_method(function, **given):
    """`function` with `given`, to be bound."""
    return lambda self, *args, **kwargs: function(self, *args, **given, **kwargs)


def enhanced(self, x, freqs, transformer_options=None):
    """Self-attention whose result grows with what frames see of each other."""
    b, length, heads, size = *x.shape[:2], self.num_heads, self.head_dim
    q, k = (
        norm(linear(x)).view(b, length, heads, size) for norm, linear in ((self.norm_q, self.q), (self.norm_k, self.k))
    )
    q, k = apply_rope(q, k, freqs)
    v = self.v(x)
    out = optimized_attention(q.flatten(2), k.flatten(2), v, heads=heads, transformer_options=transformer_options)
    return self.o(out) * (1 + (q * k).mean().abs())


def enhanced_video(model):
    return bound(model, "self_attn", enhanced)


def chunked(self, x):
    """A feed-forward in two parts; louder, so that it shows."""
    for layer in (self[0], self[1]):
        x = torch.cat([layer(part) for part in x.chunk(2, dim=1)], dim=1)
    return 1.1 * self[2](x)


def chunked_feed_forward(model):
    return bound(model, "ffn", chunked)


class LongerRope(EmbedND):
    """Positions of frames at another frequency."""

    def forward(self, ids):
        ids = ids.clone()
        ids[..., 0] *= 0.6
        turns = [rope(ids[..., axis], size, self.theta) for axis, size in enumerate(self.axes_dim)]
        return torch.cat(turns, dim=-3).unsqueeze(1)


def longer_rope(model):
    size = network(model).dim // network(model).num_heads
    third = 2 * (size // 6)
    return patched(model, {"rope_embedder": LongerRope(size, 10000.0, [size - 2 * third, third, third])})


def during_a_call(name: str, make):
    """Replaces the method `name` of the network by `make(network, original)` while the model is called."""

    def patch(model):
        clone, net = model.clone(), network(model)

        def wrap(apply, arguments):
            original = getattr(net, name)
            setattr(net, name, make(net, original))
            try:
                return apply(arguments["input"], arguments["timestep"], **arguments["c"])
            finally:
                setattr(net, name, original)

        clone.set_model_unet_function_wrapper(wrap)
        return clone

    return patch


def louder(net, original):
    return lambda *args, **kwargs: 1.1 * original(*args, **kwargs)


def own_loop(net, original):
    """The forward of a step cache: its own loop over the blocks, which here leaves half of the last one out."""

    def forward_orig(x, t, context, clip_fea=None, freqs=None, transformer_options=None, **_):
        tokens = net.patch_embedding(x.float()).to(x.dtype)
        grid = tokens.shape[2:]
        tokens = tokens.flatten(2).transpose(1, 2)
        e = net.time_embedding(sinusoidal_embedding_1d(net.freq_dim, t.flatten()).to(x.dtype))
        e = e.reshape(t.shape[0], -1, e.shape[-1])
        e0 = net.time_projection(e).unflatten(2, (6, net.dim))
        context = net.text_embedding(context)
        images = None
        if clip_fea is not None:
            context, images = torch.cat([net.img_emb(clip_fea), context], dim=1), clip_fea.shape[-2]
        for block in net.blocks:
            before = tokens
            tokens = block(
                tokens,
                e=e0,
                freqs=freqs,
                context=context,
                context_img_len=images,
                transformer_options=transformer_options,
            )
        return net.unpatchify(net.head(0.5 * (before + tokens), e), grid)

    return forward_orig


def stretched(net, original):
    options = {"rope_options": {"scale_t": 0.5}}
    return lambda t, h, w, **kwargs: original(t, h, w, **{**kwargs, "transformer_options": options})


class OtherAttention(nn.Module):
    """A module of another pack in the place of a self-attention."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, freqs, transformer_options=None):
        return -0.5 * self.inner(x, freqs, transformer_options=transformer_options)


class OtherBlock(nn.Module):
    """A module of another pack around a block."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, e, freqs, context, **kwargs):
        return 1.1 * self.inner(x, e, freqs, context, **kwargs)


def other_modules(name: str, kind: type):
    def patch(model):
        return patched(model, {name: kind(model.get_model_object(f"{INNER}.{name}"))})

    return patch


def last_sample_alone(model):
    """A block that runs for the second sample only, given each of its inputs by that sample's number."""

    def skip(args, extra):
        if len(args["img"]) != 2:
            return extra["original_block"](args)
        one = {name: args[name][1:] for name in ("img", "txt", "vec")}
        out = extra["original_block"](args | one)["img"]
        return {"img": torch.cat([args["img"][:1], out])}

    clone = model.clone()
    clone.set_model_patch_replace(skip, "dit", "double_block", 1)
    return clone


def with_embedded_time(model):
    """Adds what the block patches are told of the time to the tokens."""

    def add(args):
        e = args["vec"]
        args["img"] = args["img"] + 0.3 * (e if e.ndim == 3 else e.unsqueeze(1)).mean(dim=1, keepdim=True).to(
            args["img"]
        )
        args["img"] = args["img"] + args["x"].mean() + args["img_offset"]
        return args

    clone = model.clone()
    clone.set_model_double_block_patch(add)
    return clone


def after_attention(name: str):
    """Scales by what the patches `name` of attention are told."""

    def grow(args):
        if "q" in args:
            assert args["q"].ndim == args["k"].ndim == 4
        return args["x"] * (1.1 + args["transformer_options"]["block_index"])

    def patch(model):
        clone = model.clone()
        clone.set_model_patch(grow, name)
        return clone

    return patch


PATCHES = {
    "attention guidance": attention_guidance,
    "enhanced video": enhanced_video,
    "chunked feed-forward": chunked_feed_forward,
    "longer rope": longer_rope,
    "block": scale("blocks.{block}.forward", factor=1.1),
    "one block": scale("blocks.0.forward", factor=1.3),
    "self-attention": scale("blocks.{block}.self_attn.forward"),
    "cross-attention": scale("blocks.{block}.cross_attn.forward"),
    "feed-forward": scale("blocks.{block}.ffn.forward"),
    "norm1": scale("blocks.{block}.norm1.forward"),
    "norm2": scale("blocks.{block}.norm2.forward"),
    "norm3": scale("blocks.{block}.norm3.forward"),
    "norms of attention": scale("blocks.{block}.self_attn.norm_q.forward", "blocks.{block}.cross_attn.norm_k.forward"),
    "linear layers": scale("blocks.{block}.self_attn.o.forward", "blocks.0.ffn.2.forward"),
    "head": scale("head.forward"),
    "norm of the head": scale("head.norm.forward"),
    "layer of the head": scale("head.head.forward"),
    "text embedding": scale("text_embedding.forward"),
    "time embedding": scale("time_embedding.forward"),
    "time projection": scale("time_projection.forward"),
    "patch embedding": scale("patch_embedding.forward"),
    "forward_orig": during_a_call("forward_orig", louder),
    "forward_orig as object": scale("forward_orig"),
    "its own loop": during_a_call("forward_orig", own_loop),
    "rope_encode": during_a_call("rope_encode", stretched),
    "unpatchify": during_a_call("unpatchify", louder),
    "module of self-attention": other_modules("blocks.1.self_attn", OtherAttention),
    "module of a block": other_modules("blocks.0", OtherBlock),
    "double_block replaced": last_sample_alone,
}
NEWER = {  # that the Wan of the older host does not call
    "double_block": with_embedded_time,
    "attn1_patch": after_attention("attn1_patch"),
    "attn2_patch": after_attention("attn2_patch"),
}
ATTRIBUTES = (
    *("dim", "ffn_dim", "freq_dim", "text_dim", "text_len", "in_dim", "out_dim", "num_heads", "num_layers"),
    *("patch_size", "window_size", "qk_norm", "cross_attn_norm", "eps", "model_type"),
)
OF_BLOCKS = ("dim", "ffn_dim", "num_heads", "window_size", "qk_norm", "cross_attn_norm", "eps")
OF_ATTENTION = ("dim", "num_heads", "head_dim", "window_size", "qk_norm", "eps")
