"""The Wan diffusion transformer: embed, run the blocks, unembed (`wan/modules/model.py`)."""

import re
from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pad

from ..variants import PATCH, TEXT_LENGTH
from .attention import local
from .config import PATCH_AREA, DiTConfig
from .layers import Block, BlockInputs, Head
from .parts import CONDITIONS
from .parts.base import check_same_size
from .read import read_config
from .runtime import Runtime
from .sequence import Draft

# The one place that sets higher precision: these parameters are float32, and so are their computations. Everything
# else, the residual stream included, is in the dtype of `x`.
FLOAT64_DEVICES = ("cpu", "cuda")  # the GPUs of Apple and many of Intel's have no float64
FLOAT32_NAMES = re.compile(
    r"(time_embedding|time_projection|fps_embedding|fps_projection|head|head_global)\.|.*\bmodulation$"
)


class WanDiT(nn.Module):
    """Wan 2.1 / 2.2 video diffusion transformer, predicting the flow velocity.

    config: sizes. ops: namespace of the weighted layers. dtype: of all weights but `FLOAT32_NAMES`.
    """

    def __init__(self, config: DiTConfig, *, ops=nn, dtype: torch.dtype | None = None, device=None):
        super().__init__()
        self.config = config
        self.dtype = dtype or torch.get_default_dtype()
        factory = {"dtype": self.dtype, "device": device}
        dim = config.dim
        self.patch_embedding = ops.Conv3d(config.in_dim, dim, kernel_size=PATCH, stride=PATCH, **factory)
        self.text_embedding = nn.Sequential(
            ops.Linear(config.text_dim, dim, **factory), nn.GELU(approximate="tanh"), ops.Linear(dim, dim, **factory)
        )
        self.time_embedding = nn.Sequential(
            ops.Linear(config.freq_dim, dim, **factory), nn.SiLU(), ops.Linear(dim, dim, **factory)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), ops.Linear(dim, 6 * dim, **factory))
        self.blocks = nn.ModuleList(Block(config, ops, **factory) for _ in range(config.layers))
        self.head = Head(config, PATCH_AREA, ops, **factory)
        for part in config.parts:
            part.build(self, config, ops, **factory)
        for name, parameter in self.named_parameters():
            if FLOAT32_NAMES.match(name):
                parameter.data = parameter.data.float()

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        *,
        y: Tensor | None = None,
        runtime: Runtime | None = None,
        **conditions: object,
    ) -> Tensor:
        """Return the velocity `v` (B, out_dim, F, H, W) of the noisy latent `x` (B, C, F, H, W), in the dtype of `x`.

        t: 1000 * sigma, (B,) or one value per latent frame (B, F); a first axis of 1 serves the whole batch.
        context: text embeddings (B, L, text_dim); padded here with zeros to 512 tokens. y: condition channels (B, n, F,
        H, W) to append to `x`, unless `x` has them already. conditions: those that the parts of this variant read
        (`dit.parts`), None if absent. runtime: the caller's choices.
        Raise ValueError if these contradict each other or the model.
        """
        runtime = runtime or Runtime()
        height, width = x.shape[-2:]
        draft = self.embed(x, t, context, y, conditions, runtime)
        v = self.unembed(*self.run_blocks(draft), draft)
        return v[..., :height, :width].to(x.dtype)

    def embed(self, x: Tensor, t: Tensor, context: Tensor, y: Tensor | None, conditions, runtime: Runtime) -> Draft:
        """Return the embedded clip and text, with the additions of the parts."""
        given = {name: value for name, value in conditions.items() if value is not None}
        if y is not None:
            check_same_size("y", y, x)
            x = torch.cat((x, y), dim=1)
        self._check(x, t, context, given)
        sides, x = (x.shape[3], x.shape[4]), self.pad_to_patch(x)
        draft = Draft(
            given=given,
            x=x,
            sides=sides,
            t=t.reshape(t.shape[0], -1),
            clip=self.patch_embedding(x),
            context=self.embed_text(context),
            runtime=runtime,
        )
        for part in self.config.parts:
            part.prepare(self, draft)
        return draft

    def run_blocks(self, draft: Draft) -> tuple[Tensor, Tensor]:
        """Run all main blocks, and the functions of the parts, on the tokens of `draft`.

        Return the tokens of this device (B, L, dim) and the time embedding (B or 1, R, dim).
        """
        runtime, window = draft.runtime, self.config.window_size
        rope = runtime.kernels.rope_table(draft.positions, self.config.dim // self.config.heads, draft.x.device)
        x = draft.take_tokens(rope)
        sequence = draft.held
        time = self.embed_time(sequence.times)
        inputs = BlockInputs(
            time=time,
            e=self.time_projection(time).unflatten(-1, (6, -1)),  # (B or 1, R, 6, dim)
            counts=sequence.counts,
            rope=sequence.rope,
            context=draft.context,
            image_context=draft.image_context,
            attention=runtime.attention if window == (-1, -1) else local(window),
            cross_attention=runtime.cross_attention or runtime.attention,
            after_text=tuple(draft.after_text),
            chunk=runtime.chunk,
            kernels=runtime.kernels,
            exchange=runtime.share.exchange(draft.whole),
        )
        for index, block in enumerate(runtime.lend(self.blocks)):
            of_block = inputs
            for prepare in draft.before_block:
                of_block = prepare(index, block, of_block)
            x = runtime.run_block(index, block, x, of_block)
            for finish in draft.after_block:
                x = finish(index, x)
        return x, time

    def unembed(self, x: Tensor, time: Tensor, draft: Draft) -> Tensor:
        """Return the velocity (B, out_dim, F, H, W) from the clip's tokens in the results of `run_blocks`."""
        held, runtime = draft.held, draft.runtime
        patches = self.run_head(draft.head or self.head, x[:, held.clip], time[:, held.clip_rows], runtime.chunk)
        return self.unpatchify(runtime.share.gather(patches, draft.frames), draft.grid)

    def run_head(self, head: nn.Module, x: Tensor, time: Tensor, chunk: int | None) -> Tensor:
        """Return the patches (B, L, out_dim * patch area) of tokens x (B, L, dim)."""
        return head(x, time, chunk)

    def unpatchify(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Return the patches x (B, L, out_dim * patch area) of a `grid` as (B, out_dim, F, H, W)."""
        f, h, w = grid
        return rearrange(x, "b (f h w) (p q c) -> b c f (h p) (w q)", f=f, h=h, w=w, p=PATCH[1], q=PATCH[2])

    def embed_time(self, t: Tensor) -> Tensor:
        """Return the time embedding, float32 (B, R, dim), of timesteps `t` (B, R) in 0..1000."""
        half = self.config.freq_dim // 2
        exact = torch.float64 if t.device.type in FLOAT64_DEVICES else torch.float32
        frequency = 10000 ** -(torch.arange(half, dtype=exact, device=t.device) / half)
        angle = t.to(exact).unsqueeze(-1) * frequency  # (B, R, freq_dim / 2)
        return self.time_embedding(torch.cat((angle.cos(), angle.sin()), dim=-1).float())

    def embed_text(self, context: Tensor) -> Tensor:
        """Return (B, 512, dim) of text embeddings (B, L, text_dim)."""
        return self.text_embedding(_pad_text(context))

    @staticmethod
    def pad_to_patch(x: Tensor) -> Tensor:
        """Return (B, C, F, H, W) with even H and W: an odd side is padded circularly, as in ComfyUI."""
        height, width = (-x.shape[3] % PATCH[1], -x.shape[4] % PATCH[2])
        return pad(x, (0, width, 0, height, 0, 0), mode="circular") if height or width else x

    def _check(self, x: Tensor, t: Tensor, context: Tensor, given: Mapping[str, object]) -> None:
        config = self.config
        batch, channels, frames = x.shape[:3]
        in_dim = self.patch_embedding.weight.shape[1]  # a LoRA may have widened it
        if channels != in_dim:
            extra = in_dim - config.out_dim
            parts = f" ({config.out_dim} of the latent, {extra} of the image condition y)" if extra else ""
            raise ValueError(f"The latent has {channels} channels, this {config.variant} model takes {in_dim}{parts}.")
        if t.shape[0] not in (1, batch) or (t.ndim > 1 and t.shape[1:] not in ((1,), (frames,))):
            raise ValueError(f"t has shape {tuple(t.shape)}, this latent needs ({batch},) or ({batch}, {frames}).")
        if context.shape[2] != config.text_dim:
            raise ValueError(
                f"The text embedding has {context.shape[2]} channels, the model takes {config.text_dim}: encode the "
                "prompt with umT5."
            )
        read = {name for part in config.parts for name in part.conditions}
        for name in given.keys() - read:
            if name not in CONDITIONS:
                raise TypeError(f"A forward of a Wan model has no argument {name}.")
            if CONDITIONS[name]:
                raise ValueError(f"This {config.variant} model reads no {CONDITIONS[name]}: leave {name} out.")
        for part in config.parts:
            part.check(config, given, x)


def _pad_text(context: Tensor) -> Tensor:
    """Return the context (B, L, text_dim) padded with zeros to the 512 tokens of training."""
    missing = TEXT_LENGTH - context.shape[1]
    return pad(context, (0, 0, 0, missing)) if missing > 0 else context


def dit_config(state_dict: Mapping[str, Tensor], header: Mapping[str, object] | None = None) -> DiTConfig:
    """Return variant and sizes of a Wan DiT with official names, from names and shapes (meta tensors will do).

    header: the transformer config of the file's header, which distinguishes variants with the same weights.
    Raise ValueError for names that are not a Wan DiT and for a tensor whose shape contradicts the others.
    The t2v expert of Wan 2.2 A14B has the shapes of the 14B t2v of Wan 2.1, so both are "t2v".
    """
    return dit_shapes(state_dict, header)[0]


def dit_shapes(
    state_dict: Mapping[str, Tensor], header: Mapping[str, object] | None = None
) -> tuple[DiTConfig, dict[str, torch.Size]]:
    """Return `dit_config`, and the shape of every parameter and buffer that such a model has, by name."""
    config = read_config(state_dict, header)
    shapes = {name: tensor.shape for name, tensor in WanDiT(config, device="meta").state_dict().items()}
    for name, shape in shapes.items():
        found = state_dict.get(name)
        packed = found is not None and not found.is_floating_point()  # several values in a byte: the shape differs
        if found is not None and not packed and found.shape != shape:
            raise ValueError(
                f"{name} has shape {tuple(found.shape)}, the rest of this {config.variant} checkpoint wants "
                f"{tuple(shape)}: the file is damaged or not a Wan DiT."
            )
    return config, shapes


def build_dit(state_dict: Mapping[str, Tensor], *, ops=nn, dtype: torch.dtype | None = None, device=None) -> WanDiT:
    """Return the `WanDiT` of a checkpoint with official names; the variant is inferred and tensors are not copied.

    dtype: of all weights but `FLOAT32_NAMES`, or None for the file's own; float8 that has no scales is converted too,
    as torch's own layers do not compute in it. device: of the weights, or None for their
    own. Raise ValueError if the state dict is not exactly that of a Wan DiT.
    """
    config = dit_config(state_dict)
    stored = state_dict["blocks.0.self_attn.q.weight"].dtype
    model = WanDiT(config, ops=ops, dtype=dtype or stored, device="meta")
    tensors = {}
    for name, tensor in state_dict.items():
        wanted = torch.float32 if FLOAT32_NAMES.match(name) else dtype
        tensors[name] = tensor.to(device=device, dtype=wanted if _is_plain(name, state_dict) else None)
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    if missing or unexpected:
        raise ValueError(
            f"This {config.variant} checkpoint lacks {len(missing)} tensors {missing[:3]} and has {len(unexpected)} "
            f"that no Wan {config.variant} model reads {unexpected[:3]}."
        )
    return model.requires_grad_(False).eval()


def _is_plain(name: str, state_dict: Mapping[str, Tensor]) -> bool:
    """Return whether the values of a tensor are stored as they are, not with scales (float8) or packed (integers)."""
    layer, dtype = name.removesuffix("weight"), state_dict[name].dtype
    if dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        return not any(layer + companion in state_dict for companion in ("weight_scale", "scale_weight", "comfy_quant"))
    return dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
