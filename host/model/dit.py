"""Our DiT as the host's `diffusion_model`: it speaks the host's call and serves the host's patches."""

import dataclasses
import logging
import math

import comfy.model_management
import comfy.patcher_extension
import torch
from comfy.ldm.modules.attention import optimized_attention

from ...wan_model.dit.attention import repeat_last, repeating, sdpa_once
from ...wan_model.dit.model import WanDiT
from . import attention, kernels, memory


class HostDiT(WanDiT):
    """`WanDiT` with the forward that the host's model classes and its patch nodes expect."""

    def forward(self, x, timestep, context, clip_fea=None, time_dim_concat=None, transformer_options=None, **kwargs):
        """The host's call.

        x: latent with the conditioning channels behind it (B, in_dim, F, H, W). timestep: (B,) or (B, F).
        time_dim_concat: latent frames (B, in_dim, n, H, W) that stand behind the clip and are cut off again (Phantom).
        transformer_options: the host's patches and wrappers. Other arguments: vace_context (B, N, 96, F, H, W) and
        vace_strength (N floats) for VACE; what the host passes to every model (control, denoise_mask) is not read.
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

        Raises FloatingPointError where that does not help.
        """
        v = self.predict(x, timestep, context, clip_fea, time_dim_concat, transformer_options, **kwargs)
        if is_finite(v):
            return v
        logging.warning(
            "%s: the result was not finite and is computed again with exact attention.", step(transformer_options)
        )
        options = transformer_options | {attention.OVERRIDE: attention.exact}
        v = self.predict(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)
        if not is_finite(v):
            raise FloatingPointError(
                f"{step(transformer_options)}: the model's result is not finite, even with exact attention, in "
                f"{x.dtype}: choose bfloat16 or float32 as weight_dtype of the model's loader, and check its LoRAs."
            )
        return v

    def predict(self, x, timestep, context, clip_fea, time_dim_concat, transformer_options, **kwargs):
        """One pass through the network with the host's patches; arguments as in `forward`."""
        frames = x.shape[2]
        if time_dim_concat is not None:
            x = torch.cat((x, time_dim_concat), dim=2)
        transformer_options["grid_sizes"] = (x.shape[2], math.ceil(x.shape[3] / 2), math.ceil(x.shape[4] / 2))
        transformer_options["total_blocks"] = self.config.layers
        transformer_options["block_type"] = "double"
        vace, contexts = {}, 0
        if "vace_context" in kwargs:
            contexts = kwargs["vace_context"].shape[1]
            vace = {"vace_context": kwargs["vace_context"], "vace_scale": kwargs["vace_strength"]}
        v = super().forward(
            x,
            timestep,
            context,
            clip_fea=clip_fea,
            attention=self_attention(transformer_options),
            cross_attention=cross_attention(transformer_options),
            on_block=block_runner(transformer_options, x),
            kernels=kernels.choose(x, transformer_options.get("rope_options")),
            chunk=memory.chunk_on(
                *(x.device, self.config, x.shape, x.dtype),
                contexts=contexts,
                compiled=hasattr(self.blocks[0], "_orig_mod"),  # as the host puts them there for this call
            ),
            **vace,
        )
        return v[:, :, :frames]

    def time_modulation(self, t: torch.Tensor) -> torch.Tensor:
        """What all blocks read of the timesteps `t` (N,) in 0..1000: float32 (N, 6 * dim)."""
        return self.time_projection(self._embed_time(t)).squeeze(1)


def is_finite(v: torch.Tensor) -> bool:
    """Whether all of `v` is finite, in one reduction: a sum keeps what is not."""
    return bool(v.sum(dtype=torch.float32).isfinite())


def step(transformer_options) -> str:
    """Which step of a run the host is in, as far as it says so."""
    sigmas, sigma = transformer_options.get("sample_sigmas"), transformer_options.get("sigmas")
    if sigmas is None or sigma is None:
        return "In a call outside a run"
    done = int((sigmas > sigma.flatten()[0] + 1e-6).sum())
    return f"Step {done + 1} of {len(sigmas) - 1} (sigma {float(sigma.flatten()[0]):.3f})"


def self_attention(transformer_options):
    """The host's selected attention, followed by its `attn1_patch` patches."""
    patches = transformer_options.get("patches", {}).get("attn1_patch", ())

    def attend(q, k, v, heads):
        out = optimized_attention(q, k, v, heads=heads, transformer_options=transformer_options)
        for patch in patches:
            q_heads, k_heads = (t.unflatten(-1, (heads, -1)) for t in (q, k))  # (B, L, heads, head_dim)
            out = patch({"x": out, "q": q_heads, "k": k_heads, "transformer_options": transformer_options})
        return out

    return attend


def cross_attention(transformer_options):
    """The host's selected attention, exact where the host can tell: low precision gives NaN on image tokens."""
    if transformer_options.get(attention.OVERRIDE) is attention.torch_sdpa:
        return sdpa_once

    def attend(q, k, v, heads):
        return optimized_attention(
            q, k, v, heads=heads, transformer_options=transformer_options, low_precision_attention=False
        )

    return repeating(attend)


def block_runner(transformer_options, latent):
    """`on_block` of `WanDiT.forward`: cancel between blocks and the host's block patches and replacements.

    latent: what the host calls the model's input, passed on to the patches.
    """
    patches = transformer_options.get("patches", {})
    replacements = transformer_options.get("patches_replace", {}).get("dit", {})

    def run(block, x, inputs):
        if "attn2_patch" not in patches:
            return block(x, inputs)  # as a whole, which may be compiled
        x = block.attend_context(block.attend(x, inputs), inputs)
        for patch in patches.get("attn2_patch", ()):
            x = patch({"x": x, "transformer_options": transformer_options})
        return block.feed_forward(x, inputs)

    def on_block(index, block, x, inputs):
        comfy.model_management.throw_exception_if_processing_interrupted()
        transformer_options["block_index"] = index
        replacement = replacements.get(("double_block", index))
        if replacement is None:
            x = run(block, x, inputs)
        else:

            def original_block(args):
                changed = {"context": args["txt"], "repeats": 1, "e": args["vec"], "rope": args["pe"]}
                return {"img": run(block, args["img"], dataclasses.replace(inputs, **changed))}

            text = repeat_last(inputs.context, inputs.repeats)
            arguments = {"img": x, "txt": text, "vec": inputs.e, "pe": inputs.rope}
            arguments["transformer_options"] = transformer_options
            x = replacement(arguments, {"original_block": original_block})["img"]
        for patch in patches.get("double_block", ()):
            arguments = {"img": x, "x": latent, "vec": inputs.e, "block_index": index, "img_offset": 0}
            x = patch({**arguments, "transformer_options": transformer_options})["img"]
        return x

    return on_block
