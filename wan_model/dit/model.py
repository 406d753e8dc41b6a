"""The Wan diffusion transformer in all its variants (`wan/modules/model.py`, `vace_model.py`)."""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pad

from ..variants import PATCH, TEXT_LENGTH, DiTConfig
from .attention import Attention, ContextAttention, local, repeating, sdpa, sdpa_once
from .layers import TORCH, Block, BlockInputs, Head, ImageEmbedding, Kernels, VaceBlock

HEAD_DIM = 128  # in every released Wan; a checkpoint's shapes do not tell it
PATCH_AREA = PATCH[1] * PATCH[2]

# The one place that says what is more precise than the rest: these parameters are kept in float32 and what they take
# part in is computed in float32. Everything else, the residual stream too, is in the dtype of `x`.
FLOAT32_NAMES = re.compile(r"(time_embedding|time_projection|head)\.|.*\bmodulation$")

OnBlock = Callable[[int, Block, Tensor, BlockInputs], Tensor]


def call_block(index: int, block: Block, x: Tensor, inputs: BlockInputs) -> Tensor:
    """The default `on_block`: runs main block number `index` on x (B, L, dim)."""
    return block(x, inputs)


class WanDiT(nn.Module):
    """Wan 2.1 / 2.2 video diffusion transformer, predicting the flow velocity.

    config: sizes. ops: namespace of the weighted layers. dtype: of the bulk of the weights (see `FLOAT32_NAMES`).
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
        if config.image_tokens:
            self.img_emb = ImageEmbedding(config, ops, **factory)
        if config.vace_layers:
            self.vace_patch_embedding = ops.Conv3d(config.vace_in_dim, dim, kernel_size=PATCH, stride=PATCH, **factory)
            self.vace_blocks = nn.ModuleList(VaceBlock(config, i == 0, ops, **factory) for i in config.vace_layers)
        for name, parameter in self.named_parameters():
            if FLOAT32_NAMES.match(name):
                parameter.data = parameter.data.float()

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        *,
        clip_fea: Tensor | None = None,
        y: Tensor | None = None,
        vace_context: Tensor | None = None,
        vace_scale: float | Sequence[float] = 1.0,
        attention: Attention = sdpa,
        cross_attention: ContextAttention | None = None,
        on_block: OnBlock = call_block,
        chunk: int | None = None,
        kernels: Kernels = TORCH,
    ) -> Tensor:
        """Velocity `v` (B, out_dim, F, H, W) of the noisy latent `x` (B, C, F, H, W), in the dtype of `x`.

        t: 1000 * sigma, (B,) or one value per latent frame (B, F); a first axis of 1 serves the whole batch.
        context: text embeddings (B, L, text_dim); the zeros up to 512 tokens are the model's to add.
        clip_fea: (B, 257 or 514, 1280) for i2v and flf2v.
        y: condition channels (B, 20, F, H, W) of the image-to-video models, appended to `x`; or `x` has them already.
        vace_context: control (B, 96, F, H, W), or several (B, N, 96, F, H, W); vace_scale: their strength, or N of
        them. attention: runs self-attention unless `config.window_size` bounds it, and cross-attention where that has
        no function of its own. on_block: runs each main block. chunk, kernels: as in `BlockInputs`.
        Raises ValueError where these disagree with each other or with the model.
        """
        if y is not None:
            _check_same_size("y", y, x)
            x = torch.cat((x, y), dim=1)
        self._check(x, t, context, clip_fea)
        contexts, scales = self._split_contexts(vace_context, vace_scale, x)
        height, width = x.shape[-2:]
        x = _pad_to_patch(x)
        grid = (x.shape[2], x.shape[3] // PATCH[1], x.shape[4] // PATCH[2])
        e = self._embed_time(t)
        context, repeats = _pad_text(context)
        inputs = BlockInputs(
            e=self.time_projection(e).unflatten(-1, (6, -1)),  # (B, F, 6, dim)
            rope=kernels.rope_table(grid, self.config.dim // self.config.heads, x.device),
            context=self.text_embedding(context),
            image_context=None if clip_fea is None else self.img_emb(clip_fea),
            attention=attention if self.config.window_size == (-1, -1) else local(self.config.window_size),
            cross_attention=cross_attention or (sdpa_once if attention is sdpa else repeating(attention)),
            repeats=repeats,
            chunk=chunk,
            kernels=kernels,
        )
        controls = [_to_tokens(self.vace_patch_embedding(_pad_to_patch(c))) for c in contexts]
        tokens = self._run_blocks(_to_tokens(self.patch_embedding(x)), inputs, on_block, controls, scales)
        f, h, w = grid
        v = rearrange(
            self.head(tokens, e, chunk), "b (f h w) (p q c) -> b c f (h p) (w q)", f=f, h=h, w=w, p=PATCH[1], q=PATCH[2]
        )
        return v[..., :height, :width].to(x.dtype)

    def _embed_time(self, t: Tensor) -> Tensor:
        """float32 (B, F, dim) of `t` (B,) or (B, F); F is 1 for one timestep per sample."""
        half = self.config.freq_dim // 2
        exact = torch.float32 if t.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        frequency = 10000 ** -(torch.arange(half, dtype=exact, device=t.device) / half)
        angle = t.to(exact).reshape(t.shape[0], -1, 1) * frequency  # (B, F, freq_dim / 2)
        return self.time_embedding(torch.cat((angle.cos(), angle.sin()), dim=-1).float())

    def _split_contexts(self, vace_context, vace_scale, x: Tensor) -> tuple[Sequence[Tensor], Sequence[float]]:
        """Each VACE context (B, 96, F, H, W) and its strength; nothing of both without a context."""
        if vace_context is None:
            return (), ()
        config = self.config
        if not config.vace_layers:
            raise ValueError(f"This {config.variant} model has no VACE blocks: load a VACE model or drop its control.")
        contexts = (vace_context,) if vace_context.ndim == 5 else vace_context.unbind(1)
        scales = (vace_scale,) * len(contexts) if isinstance(vace_scale, int | float) else vace_scale
        if len(scales) != len(contexts):
            raise ValueError(f"{len(contexts)} VACE contexts have {len(scales)} strengths: give one for each.")
        if contexts[0].shape[1] != config.vace_in_dim:
            raise ValueError(
                f"The VACE context has {contexts[0].shape[1]} channels, the model takes {config.vace_in_dim} "
                "(two latents of 16 and a mask of 64)."
            )
        _check_same_size("The VACE context", contexts[0], x)
        return contexts, scales

    def _run_blocks(self, x: Tensor, inputs: BlockInputs, on_block: OnBlock, controls, scales) -> Tensor:
        """All main blocks on tokens x (B, L, dim), each VACE hint made just before it is added."""
        if controls:
            controls = [self.vace_blocks[0].start(c, x) for c in controls]
        vace_blocks = dict(zip(self.config.vace_layers, self.vace_blocks, strict=True)) if controls else {}
        for index, block in enumerate(self.blocks):
            x = on_block(index, block, x, inputs)
            if index in vace_blocks:
                vace_block = vace_blocks[index]
                controls = [vace_block(c, inputs) for c in controls]
                for control, scale in zip(controls, scales, strict=True):
                    x = torch.add(x, vace_block.after_proj(control), alpha=scale)
        return x

    def _check(self, x: Tensor, t: Tensor, context: Tensor, clip_fea: Tensor | None) -> None:
        """Raise ValueError where the inputs (`x` with its condition channels) do not fit the model."""
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
        if config.image_tokens and clip_fea is None:
            raise ValueError(f"This {config.variant} model needs CLIP vision features (clip_fea) and got none.")
        if clip_fea is not None and not config.image_tokens:
            raise ValueError(f"This {config.variant} model reads no CLIP vision features: leave clip_fea out.")


def _check_same_size(name: str, condition: Tensor, x: Tensor) -> None:
    if condition.shape[2:] != x.shape[2:] or condition.shape[0] != x.shape[0]:
        raise ValueError(
            f"{name} is {condition.shape[0]} x {tuple(condition.shape[2:])} (batch x frames, height, width), "
            f"the latent is {x.shape[0]} x {tuple(x.shape[2:])}: make both for the same size and length."
        )


def _pad_text(context: Tensor) -> tuple[Tensor, int]:
    """(B, L, text_dim) with one row of zeros behind it, and how many such rows the model was trained to see: 512 - L.

    What the model makes of one serves for all. Nothing is added to joined prompts of 512 tokens and more.
    """
    missing = TEXT_LENGTH - context.shape[1]
    return (pad(context, (0, 0, 0, 1)), missing) if missing > 0 else (context, 1)


def _pad_to_patch(x: Tensor) -> Tensor:
    """(B, C, F, H, W) with even H and W: an odd side is continued with its opposite edge, as ComfyUI's Wan does."""
    height, width = (-x.shape[3] % PATCH[1], -x.shape[4] % PATCH[2])
    return pad(x, (0, width, 0, height, 0, 0), mode="circular") if height or width else x


def _to_tokens(x: Tensor) -> Tensor:
    """(B, dim, F, H, W) to contiguous (B, F * H * W, dim)."""
    return x.flatten(2).transpose(1, 2).contiguous()


def dit_config(state_dict: Mapping[str, Tensor]) -> DiTConfig:
    """Variant and sizes of a Wan DiT with official names, from names and shapes alone (meta tensors will do).

    Raises ValueError for names that are not a Wan DiT and for a tensor whose shape contradicts the others.
    The t2v expert of Wan 2.2 A14B has the shapes of the 14B t2v of Wan 2.1, so both are "t2v".
    """
    return dit_shapes(state_dict)[0]


def dit_shapes(state_dict: Mapping[str, Tensor]) -> tuple[DiTConfig, dict[str, torch.Size]]:
    """`dit_config`, and the shape of every parameter that such a model has, by name."""
    config = _read_sizes(state_dict)
    shapes = {name: parameter.shape for name, parameter in WanDiT(config, device="meta").named_parameters()}
    for name, shape in shapes.items():
        found = state_dict.get(name)
        packed = found is not None and not found.is_floating_point()  # several values in a byte: no plain shape
        if found is not None and not packed and found.shape != shape:
            raise ValueError(
                f"{name} has shape {tuple(found.shape)}, the rest of this {config.variant} checkpoint wants "
                f"{tuple(shape)}: the file is damaged or not a Wan DiT."
            )
    return config, shapes


def _read_sizes(state_dict: Mapping[str, Tensor]) -> DiTConfig:
    def size(name: str, axis: int) -> int:
        if name not in state_dict or state_dict[name].ndim <= axis:
            hint = ""
            if "vace_patch_embedding.weight" in state_dict:
                hint = " It holds VACE blocks only: combine it with a text-to-video file of the same size."
            raise ValueError(f"This is not a whole Wan DiT: it has no {name}.{hint}")
        return state_dict[name].shape[axis]

    def count(prefix: str) -> int:
        return len({name.split(".")[1] for name in state_dict if name.startswith(prefix)})

    dim, layers, vace = size("head.modulation", 2), count("blocks."), count("vace_blocks.")
    if dim % HEAD_DIM or (vace and layers % vace):
        raise ValueError(
            f"This is not a Wan DiT: width {dim} is no multiple of {HEAD_DIM}, or {layers} blocks none of {vace}."
        )
    in_dim, out_dim = size("patch_embedding.weight", 1), size("head.head.bias", 0) // PATCH_AREA
    image_tokens = 0
    if "img_emb.proj.1.bias" in state_dict:
        image_tokens = size("img_emb.emb_pos", 1) if "img_emb.emb_pos" in state_dict else 257
    return DiTConfig(
        variant=_variant(in_dim, out_dim, image_tokens, vace),
        dim=dim,
        ffn_dim=size("blocks.0.ffn.0.bias", 0),
        heads=dim // HEAD_DIM,
        layers=layers,
        in_dim=in_dim,
        out_dim=out_dim,
        text_dim=size("text_embedding.0.weight", 1),
        freq_dim=size("time_embedding.0.weight", 1),
        image_dim=size("img_emb.proj.1.bias", 0) if image_tokens else DiTConfig.image_dim,
        image_tokens=image_tokens,
        vace_layers=tuple(range(0, layers, layers // vace)) if vace else (),
        vace_in_dim=size("vace_patch_embedding.weight", 1) if vace else DiTConfig.vace_in_dim,
    )


def _variant(in_dim: int, out_dim: int, image_tokens: int, vace: int) -> str:
    known = {
        (16, 16, 0, False): "t2v",
        (16, 16, 0, True): "vace",
        (36, 16, 257, False): "i2v",
        (36, 16, 514, False): "flf2v",
        (36, 16, 0, False): "i2v_a14b",
        (48, 48, 0, False): "ti2v",
    }
    key = (in_dim, out_dim, image_tokens, vace > 0)
    if key not in known:
        raise ValueError(
            f"This Wan DiT takes {in_dim} channels, makes {out_dim}, reads {image_tokens} CLIP tokens and has {vace} "
            "VACE blocks: no supported variant (t2v, i2v, flf2v, vace, A14B, TI2V-5B) does."
        )
    return known[key]


def build_dit(state_dict: Mapping[str, Tensor], *, ops=nn, dtype: torch.dtype | None = None, device=None) -> WanDiT:
    """The `WanDiT` of a checkpoint with official names, its variant inferred; holds the given tensors, uncopied.

    dtype: of the bulk of the weights, or None for the file's own. device: where the weights go, or None for where they
    are. Raises ValueError for a state dict that is not exactly a Wan DiT's.
    """
    config = dit_config(state_dict)
    stored = state_dict["blocks.0.self_attn.q.weight"].dtype
    model = WanDiT(config, ops=ops, dtype=dtype or stored, device="meta")
    tensors = {}
    for name, tensor in state_dict.items():
        wanted = torch.float32 if FLOAT32_NAMES.match(name) else dtype
        tensors[name] = tensor.to(device=device, dtype=wanted if _is_plain(tensor) else None)
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    if missing or unexpected:
        raise ValueError(
            f"This {config.variant} checkpoint lacks {len(missing)} tensors {missing[:3]} and has {len(unexpected)} "
            f"that no Wan {config.variant} model reads {unexpected[:3]}."
        )
    return model.requires_grad_(False).eval()


def _is_plain(tensor: Tensor) -> bool:
    """Whether values are stored as they are, not scaled (float8) or packed (integers)."""
    return tensor.dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
