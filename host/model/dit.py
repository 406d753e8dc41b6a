"""Our DiT as the host's `diffusion_model`: it takes the host's call and applies the host's patches."""

import dataclasses
import logging
import math

import comfy.model_management
import comfy.patcher_extension
import torch
from comfy.ldm.modules.attention import optimized_attention

from ...wan_model.dit.layers import TORCH
from ...wan_model.dit.model import WanDiT
from ...wan_model.dit.runtime import Runtime
from . import attention, conditions, inner, kernels, memory

SHARED = "wan_shared"  # entry of transformer_options: what shares a forward with other devices (`host/parallel`)
AXES = "tyx"  # frames, rows and columns, as the host calls them


@dataclasses.dataclass(frozen=True)
class HostRuntime(Runtime):
    """A runtime with the host's patches. options: transformer_options. latent: the host's input of the model."""

    options: dict = dataclasses.field(default_factory=dict)
    latent: torch.Tensor | None = None


class HostDiT(WanDiT, inner.InnerNetwork):
    """`WanDiT` with the forward that the host's model classes and its patch nodes expect, and its inner interface."""

    def __init__(self, config, *, ops, **options):
        super().__init__(config, ops=ops, **options)
        inner.dress(self, config, ops)
        self.reads = frozenset(name for part in config.parts for name in part.conditions)

    def forward(self, x, timestep, context, clip_fea=None, time_dim_concat=None, transformer_options=None, **kwargs):
        """Predict the velocity; the signature is the host's.

        x: latent with the conditioning channels behind it (B, in_dim, F, H, W). timestep: (B,) or (B, F).
        transformer_options: the host's patches and wrappers. Of the other arguments, those in `conditions.NAMES` that
        this variant knows are read; those that the host passes to every model (control, denoise_mask) are not.
        """
        options = {} if transformer_options is None else transformer_options
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(
            self.run,
            self,
            comfy.patcher_extension.get_all_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options),
        )
        return executor.execute(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)

    def run(self, x, timestep, context, clip_fea, time_dim_concat, transformer_options, **kwargs):
        """Run `forward` inside the host's wrappers, and again with exact attention if the result is not finite.

        Raise FloatingPointError if it still is not.
        """
        arguments = (x, timestep, context, clip_fea, time_dim_concat)
        v = self.predict(*arguments, transformer_options, **kwargs)
        if is_finite(v):
            return v
        logging.warning(
            "%s: the result was not finite; computing it again with exact attention.", step(transformer_options)
        )
        options = transformer_options | {attention.OVERRIDE: attention.exact}
        v = self.predict(*arguments, options, **kwargs)
        if not is_finite(v):
            raise FloatingPointError(
                f"{step(transformer_options)}: the model's result is not finite, even with exact attention, in "
                f"{x.dtype}: choose bfloat16 or float32 as weight_dtype of the model's loader, and check its LoRAs."
            )
        return v

    def predict(self, x, timestep, context, clip_fea, time_dim_concat, transformer_options, **kwargs):
        """Run the network once, through the host's inner methods if another pack replaces one of them."""
        inner.check_control(self)
        if any(inner.is_own(self, name) for name in inner.STEPS):
            return self._forward(x, timestep, context, clip_fea, time_dim_concat, transformer_options, **kwargs)
        kwargs |= {"clip_fea": clip_fea, "time_dim_concat": time_dim_concat}
        return self.pass_through(x, timestep, context, transformer_options, kwargs)

    def forward_orig(self, x, t, context, clip_fea=None, freqs=None, transformer_options=None, **kwargs):
        """Run the network once: the host's method of this name, which other packs wrap. freqs: rotations, or None."""
        options = {} if transformer_options is None else transformer_options
        return self.pass_through(x, t, context, options, kwargs | {"clip_fea": clip_fea}, freqs)

    def pass_through(self, x, timestep, context, transformer_options, arguments, freqs=None):
        """Run the network with the host's patches. arguments: conditions, by its names. freqs: as `forward_orig`."""
        given = conditions.given({name: value for name, value in arguments.items() if value is not None}, self.reads)
        transformer_options["grid_sizes"] = (x.shape[2], math.ceil(x.shape[3] / 2), math.ceil(x.shape[4] / 2))
        transformer_options["total_blocks"] = self.config.layers
        transformer_options["block_type"] = "double"
        if "text_as_image" in self.reads and "clip_fea" not in given:
            given = given | {"text_as_image": True}
        return self.with_conditions(x, timestep, context, transformer_options, given, freqs)

    def with_conditions(self, x, timestep, context, transformer_options, given, freqs=None):
        """Run the network with the host's patches, alone or shared. given: conditions, by our names."""
        forward, shared = super().forward, transformer_options.get(SHARED)
        runtime = self.runtime(x, transformer_options, given, freqs)
        if shared is not None:
            return shared.forward(forward, x, timestep, context, runtime=runtime, **given)
        return forward(x, timestep, context, runtime=runtime, **given)

    def runtime(self, x, transformer_options, given, freqs=None) -> HostRuntime:
        """Return the runtime of a forward: the host's attention, kernels and patches, and a chunk that fits."""
        rope, chosen = transformer_options.get("rope_options") or {}, kernels.choose(x)
        shared = transformer_options.get(SHARED)
        if (table := inner.rope_table(self, x, transformer_options, freqs)) is not None:
            chosen = dataclasses.replace(chosen, rope_table=table, rotate=TORCH.rotate)
        return HostRuntime(
            attention=self_attention(transformer_options),
            cross_attention=cross_attention(transformer_options),
            kernels=chosen,
            chunk=memory.chunk_on(
                *(x.device, self.config, x.shape, x.dtype),
                shapes=conditions.shapes_of(given),
                devices=shared.size if shared else 1,
                compiled=hasattr(self.blocks[0], "_orig_mod"),  # the host swaps in compiled blocks for this call
            ),
            rope_scale=tuple(rope.get(f"scale_{axis}", 1.0) for axis in AXES),
            rope_shift=tuple(rope.get(f"shift_{axis}", 0.0) for axis in AXES),
            options=transformer_options,
            latent=x,
        )

    def run_blocks(self, draft):
        """Run all blocks with the host's block patches."""
        of_host = draft.runtime.options, draft.runtime.latent, draft.front_tokens
        run = BlockRunner(*of_host, flat_time="vace_context" in self.reads)
        draft.runtime = dataclasses.replace(draft.runtime, run_block=run)
        draft.after_text[:0] = run.after_text  # also in VACE blocks, as the host does
        return super().run_blocks(draft)

    def run_head(self, head, x, time, chunk):
        """Run the head as `WanDiT` does, or another pack's head with the host's arguments."""
        return head(x, time) if inner.is_replaced(head) else super().run_head(head, x, time, chunk)

    def time_modulation(self, t: torch.Tensor) -> torch.Tensor:
        """Return the modulation of all blocks for timesteps `t` (N,) in 0..1000: float32 (N, 6 * dim)."""
        return self.time_projection(self.embed_time(t.unsqueeze(1))).squeeze(1)


def is_finite(v: torch.Tensor) -> bool:
    """Return whether all of `v` is finite, by one reduction: NaN and infinity survive a sum."""
    return bool(v.sum(dtype=torch.float32).isfinite())


def step(transformer_options) -> str:
    """Return the current step of a run in words, as far as the host gives it."""
    sigmas, sigma = transformer_options.get("sample_sigmas"), transformer_options.get("sigmas")
    if sigmas is None or sigma is None:
        return "In a call outside a run"
    done = int((sigmas > sigma.flatten()[0] + 1e-6).sum())
    return f"Step {done + 1} of {len(sigmas) - 1} (sigma {float(sigma.flatten()[0]):.3f})"


def self_attention(transformer_options):
    """Return the host's selected attention, followed by its `attn1_patch` patches."""
    patches = inner.served_patches(transformer_options, "attn1_patch")

    def attend(q, k, v, heads):
        out = optimized_attention(q, k, v, heads=heads, transformer_options=transformer_options)
        for patch in patches:
            q_heads, k_heads = (t.unflatten(-1, (heads, -1)) for t in (q, k))  # (B, L, heads, head_dim)
            out = patch({"x": out, "q": q_heads, "k": k_heads, "transformer_options": transformer_options})
        return out

    return attend


def cross_attention(transformer_options):
    """Return the host's selected attention, without low precision, which gives NaN on image tokens."""

    def attend(q, k, v, heads):
        return optimized_attention(
            q, k, v, heads=heads, transformer_options=transformer_options, low_precision_attention=False
        )

    return attend


class BlockRunner:
    """`run_block` of a `Runtime`: cancelling between blocks, and the host's block patches and replacements.

    latent: the host's input of the model, passed on to the patches. offset: tokens before the clip's.
    flat_time: whether the host's network has no axis for rows of the time embedding.
    """

    def __init__(self, options: dict, latent: torch.Tensor, offset: int, flat_time: bool):
        self.options, self.latent, self.offset, self.flat_time = options, latent, offset, flat_time
        self.after_text = tuple(self.on_text(patch) for patch in inner.served_patches(options, "attn2_patch"))
        self.after_block = inner.served_patches(options, "double_block")
        self.replacements = options.get("patches_replace", {}).get("dit", {})

    def __call__(self, index, block, x, inputs):
        shared = self.options.get(SHARED)
        check = shared.check if shared else comfy.model_management.throw_exception_if_processing_interrupted
        check()
        self.options["block_index"] = index
        replacement = self.replacements.get(("double_block", index))
        x = self.run(block, x, inputs) if replacement is None else self.replaced(replacement, block, x, inputs)
        for patch in self.after_block:
            arguments = {"img": x, "x": self.latent, "vec": self.of_host(inputs.time).to(x.dtype), "block_index": index}
            x = patch({**arguments, "img_offset": self.offset, "transformer_options": self.options})["img"]
        return x

    def run(self, block, x, inputs):
        """Run a block on x: called as ours, or as the host's if another pack replaces part of it."""
        if inner.is_altered(block):
            return block(x, **inner.as_the_host_calls(inputs, self.options))
        return block(x, inputs)

    def of_host(self, rows):
        """Return `rows` (B, R, ...) of the time embedding in the shape of the host's network."""
        return rows.squeeze(1) if self.flat_time else rows

    def on_text(self, patch):
        """Return the host's `attn2_patch` as a function of a block and x."""
        return lambda block, x: patch({"x": x, "transformer_options": self.options})

    def replaced(self, replacement, block, x, inputs):
        """Run a replacement of a block, which may call the block itself."""
        context, images = inner.joined_context(inputs)
        arguments = {"img": x, "txt": context, "vec": self.of_host(inputs.e), "pe": inner.host_rope(inputs.rope)}

        def original_block(args):
            changed = inputs
            if args["txt"] is not context:
                changed = inner.with_context(changed, args["txt"], images)
            if args["vec"] is not arguments["vec"]:
                e = args["vec"].unsqueeze(1) if self.flat_time else args["vec"]
                changed = dataclasses.replace(changed, e=e)
            if args["pe"] is not arguments["pe"]:
                changed = inner.with_rope(changed, args["pe"])
            return {"img": self.run(block, args["img"], changed)}

        own = {"transformer_options": self.options}
        return replacement(arguments | own, {"original_block": original_block})["img"]
