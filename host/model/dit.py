"""Our DiT as the host's `diffusion_model`: it speaks the host's call and serves the host's patches."""

import dataclasses
import logging
import math

import comfy.model_management
import comfy.patcher_extension
import torch
from comfy.ldm.modules.attention import optimized_attention

from ...wan_model.dit.model import WanDiT
from ...wan_model.dit.runtime import Runtime
from . import attention, conditions, kernels, memory

AXES = "tyx"  # frames, rows and columns, as the host calls them


@dataclasses.dataclass(frozen=True)
class HostRuntime(Runtime):
    """A runtime by the host's patches. options: its transformer_options. latent: what it calls the model's input."""

    options: dict = dataclasses.field(default_factory=dict)
    latent: torch.Tensor | None = None


class HostDiT(WanDiT):
    """`WanDiT` with the forward that the host's model classes and its patch nodes expect."""

    def __init__(self, config, **options):
        super().__init__(config, **options)
        self.reads = frozenset(name for part in config.parts for name in part.conditions)

    def forward(self, x, timestep, context, clip_fea=None, time_dim_concat=None, transformer_options=None, **kwargs):
        """The host's call.

        x: latent with the conditioning channels behind it (B, in_dim, F, H, W). timestep: (B,) or (B, F).
        transformer_options: the host's patches and wrappers. Of the other arguments those of `conditions.NAMES` are
        read that this variant knows; what the host passes to every model (control, denoise_mask) is not.
        """
        options = {} if transformer_options is None else transformer_options
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(
            self.run,
            self,
            comfy.patcher_extension.get_all_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options),
        )
        return executor.execute(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)

    def run(self, x, timestep, context, clip_fea, time_dim_concat, transformer_options, **kwargs):
        """`forward` inside the host's wrappers: again with exact attention where the result is not finite.

        Raise FloatingPointError if that does not help.
        """
        kwargs |= {"clip_fea": clip_fea, "time_dim_concat": time_dim_concat}
        given = conditions.given({name: value for name, value in kwargs.items() if value is not None}, self.reads)
        v = self.predict(x, timestep, context, transformer_options, given)
        if is_finite(v):
            return v
        logging.warning(
            "%s: the result was not finite and is computed again with exact attention.", step(transformer_options)
        )
        options = transformer_options | {attention.OVERRIDE: attention.exact}
        v = self.predict(x, timestep, context, options, given)
        if not is_finite(v):
            raise FloatingPointError(
                f"{step(transformer_options)}: the model's result is not finite, even with exact attention, in "
                f"{x.dtype}: choose bfloat16 or float32 as weight_dtype of the model's loader, and check its LoRAs."
            )
        return v

    def predict(self, x, timestep, context, transformer_options, given):
        """One pass through the network with the host's patches. given: the conditions, by our names."""
        transformer_options["grid_sizes"] = (x.shape[2], math.ceil(x.shape[3] / 2), math.ceil(x.shape[4] / 2))
        transformer_options["total_blocks"] = self.config.layers
        transformer_options["block_type"] = "double"
        if "text_as_image" in self.reads and "clip_fea" not in given:
            given = given | {"text_as_image": True}
        return super().forward(x, timestep, context, runtime=self.runtime(x, transformer_options, given), **given)

    def runtime(self, x, transformer_options, given) -> HostRuntime:
        """Where and how a forward runs: by the host's attention, kernels and patches, in chunks that fit."""
        rope = transformer_options.get("rope_options") or {}
        return HostRuntime(
            attention=self_attention(transformer_options),
            cross_attention=cross_attention(transformer_options),
            kernels=kernels.choose(x),
            chunk=memory.chunk_on(
                *(x.device, self.config, x.shape, x.dtype),
                shapes={name: value.shape for name, value in given.items() if isinstance(value, torch.Tensor)},
                compiled=hasattr(self.blocks[0], "_orig_mod"),  # as the host puts them there for this call
            ),
            rope_scale=tuple(rope.get(f"scale_{axis}", 1.0) for axis in AXES),
            rope_shift=tuple(rope.get(f"shift_{axis}", 0.0) for axis in AXES),
            options=transformer_options,
            latent=x,
        )

    def run_blocks(self, draft):
        """All blocks, with the host's block patches."""
        run = BlockRunner(draft.runtime.options, draft.runtime.latent, draft.front_tokens)
        draft.runtime = dataclasses.replace(draft.runtime, run_block=run)
        return super().run_blocks(draft)

    def time_modulation(self, t: torch.Tensor) -> torch.Tensor:
        """Return what all blocks read of the timesteps `t` (N,) in 0..1000: float32 (N, 6 * dim)."""
        return self.time_projection(self.embed_time(t.unsqueeze(1))).squeeze(1)


def is_finite(v: torch.Tensor) -> bool:
    """Return whether all of `v` is finite, in one reduction: a sum keeps what is not."""
    return bool(v.sum(dtype=torch.float32).isfinite())


def step(transformer_options) -> str:
    """Return which step of a run the host is in, as far as it says so."""
    sigmas, sigma = transformer_options.get("sample_sigmas"), transformer_options.get("sigmas")
    if sigmas is None or sigma is None:
        return "In a call outside a run"
    done = int((sigmas > sigma.flatten()[0] + 1e-6).sum())
    return f"Step {done + 1} of {len(sigmas) - 1} (sigma {float(sigma.flatten()[0]):.3f})"


def self_attention(transformer_options):
    """Return the host's selected attention, followed by its `attn1_patch` patches."""
    patches = transformer_options.get("patches", {}).get("attn1_patch", ())

    def attend(q, k, v, heads):
        out = optimized_attention(q, k, v, heads=heads, transformer_options=transformer_options)
        for patch in patches:
            q_heads, k_heads = (t.unflatten(-1, (heads, -1)) for t in (q, k))  # (B, L, heads, head_dim)
            out = patch({"x": out, "q": q_heads, "k": k_heads, "transformer_options": transformer_options})
        return out

    return attend


def cross_attention(transformer_options):
    """Return the host's selected attention, exact where the host can tell: low precision gives NaN on image tokens."""

    def attend(q, k, v, heads):
        return optimized_attention(
            q, k, v, heads=heads, transformer_options=transformer_options, low_precision_attention=False
        )

    return attend


class BlockRunner:
    """`run_block` of a `Runtime`: cancel between blocks, and the host's block patches and replacements.

    latent: what the host calls the model's input, passed on to the patches. offset: tokens before the clip's.
    """

    def __init__(self, options: dict, latent: torch.Tensor, offset: int):
        self.options, self.latent, self.offset = options, latent, offset
        patches = options.get("patches", {})
        self.after_text = tuple(self.on_text(patch) for patch in patches.get("attn2_patch", ()))
        self.after_block = patches.get("double_block", ())
        self.replacements = options.get("patches_replace", {}).get("dit", {})

    def __call__(self, index, block, x, inputs):
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.options["block_index"] = index
        if self.after_text:
            inputs = dataclasses.replace(inputs, after_text=(*self.after_text, *inputs.after_text))
        replacement = self.replacements.get(("double_block", index))
        x = block(x, inputs) if replacement is None else self.replaced(replacement, block, x, inputs)
        for patch in self.after_block:
            arguments = {"img": x, "x": self.latent, "vec": inputs.time.to(x.dtype), "block_index": index}
            x = patch({**arguments, "img_offset": self.offset, "transformer_options": self.options})["img"]
        return x

    def on_text(self, patch):
        """Return the host's `attn2_patch` as a function of a block and x."""
        return lambda block, x: patch({"x": x, "transformer_options": self.options})

    def replaced(self, replacement, block, x, inputs):
        """Return what a patch makes of a block's input; it can ask for the block itself."""

        def original_block(args):
            changed = dataclasses.replace(inputs, context=args["txt"], e=args["vec"], rope=args["pe"])
            return {"img": block(args["img"], changed)}

        arguments = {"img": x, "txt": inputs.context, "vec": inputs.e, "pe": inputs.rope}
        arguments["transformer_options"] = self.options
        return replacement(arguments, {"original_block": original_block})["img"]
