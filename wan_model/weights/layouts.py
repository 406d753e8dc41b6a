"""Parameter names of each model in other layouts: tables, and the one function that applies them.

A table is a tuple of (foreign, official) pairs of module or parameter paths; "#" stands for an index. A pair renames
whole path components at the start of a name and leaves the rest (`.weight`, `.bias`, a quantisation marker) as it is.
None on the official side drops a duplicate.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

Table = tuple[tuple[str, str | None], ...]


def rename(names: Iterable[str], table: Table) -> dict[str, str]:
    """Map each name to its name in the other layout, in order; names that the table does not mention stay.

    Names that the table drops are left out.
    """
    renamed = {}
    for name in names:
        pattern, target = next(((p, t) for p, t in _compiled(table) if p.match(name)), (None, name))
        if target is not None:
            renamed[name] = pattern.sub(target, name) if pattern else name
    return renamed


def inverse(table: Table) -> Table:
    """Return the table that maps official names back to the foreign ones."""
    return tuple((official, foreign) for foreign, official in table if official is not None)


@lru_cache
def _compiled(table: Table) -> list[tuple[re.Pattern, str | None]]:
    """Return the pairs as regular expressions and replacement templates."""
    return [(_pattern(source), None if target is None else _template(target)) for source, target in table]


def _pattern(path: str) -> re.Pattern:
    return re.compile("^" + re.escape(path).replace(r"\#", r"(\d+)") + r"(?=\.|$)")


def _template(path: str) -> str:
    first, *rest = path.split("#")
    return first + "".join(f"\\g<{index}>{part}" for index, part in enumerate(rest, start=1))


UMT5_HF = (  # transformers' UMT5EncoderModel, and ComfyUI's repackaged text encoders
    ("shared", "token_embedding"),
    ("encoder.embed_tokens", None),  # the same tensor as `shared`
    ("encoder.block.#.layer.0.layer_norm", "blocks.#.norm1"),
    ("encoder.block.#.layer.0.SelfAttention.relative_attention_bias", "blocks.#.pos_embedding.embedding"),
    ("encoder.block.#.layer.0.SelfAttention", "blocks.#.attn"),
    ("encoder.block.#.layer.1.layer_norm", "blocks.#.norm2"),
    ("encoder.block.#.layer.1.DenseReluDense.wi_0", "blocks.#.ffn.gate.0"),
    ("encoder.block.#.layer.1.DenseReluDense.wi_1", "blocks.#.ffn.fc1"),
    ("encoder.block.#.layer.1.DenseReluDense.wo", "blocks.#.ffn.fc2"),
    ("encoder.final_layer_norm", "norm"),
)

UMT5_GGUF = (  # llama.cpp's T5
    ("token_embd", "token_embedding"),
    ("enc.blk.#.attn_norm", "blocks.#.norm1"),
    ("enc.blk.#.attn_rel_b", "blocks.#.pos_embedding.embedding"),
    *((f"enc.blk.#.attn_{part}", f"blocks.#.attn.{part}") for part in "qkvo"),
    ("enc.blk.#.ffn_norm", "blocks.#.norm2"),
    ("enc.blk.#.ffn_gate", "blocks.#.ffn.gate.0"),
    ("enc.blk.#.ffn_up", "blocks.#.ffn.fc1"),
    ("enc.blk.#.ffn_down", "blocks.#.ffn.fc2"),
    ("enc.output_norm", "norm"),
)

_DIT_BLOCK = (
    ("scale_shift_table", "modulation"),
    *(
        (f"{theirs}.{their_layer}", f"{ours}.{our_layer}")
        for theirs, ours in (("attn1", "self_attn"), ("attn2", "cross_attn"))
        for their_layer, our_layer in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"))
    ),
    ("attn1", "self_attn"),
    ("attn2.add_k_proj", "cross_attn.k_img"),
    ("attn2.add_v_proj", "cross_attn.v_img"),
    ("attn2.norm_added_k", "cross_attn.norm_k_img"),
    ("attn2", "cross_attn"),
    ("norm2", "norm3"),  # diffusers counts the norm before the cross-attention as the second
    ("norm3", "norm2"),
    ("ffn.net.0.proj", "ffn.0"),
    ("ffn.net.2", "ffn.2"),
    ("proj_in", "before_proj"),
    ("proj_out", "after_proj"),
)

_CONVOLUTIONS = "motion_encoder.enc.net_app.convs"
_ANIMATE = (
    ("motion_encoder.conv_in.act_fn", f"{_CONVOLUTIONS}.0.1"),
    ("motion_encoder.conv_in", f"{_CONVOLUTIONS}.0.0"),
    *(
        (f"motion_encoder.res_blocks.{block}.{theirs}", f"{_CONVOLUTIONS}.{block + 1}.{ours}")
        for block in range(7)
        for theirs, ours in (
            ("conv1.act_fn", "conv1.1"),
            ("conv1", "conv1.0"),
            ("conv2.act_fn", "conv2.2"),
            ("conv2", "conv2.1"),
            ("conv_skip", "skip.1"),
        )
    ),
    ("motion_encoder.conv_out", f"{_CONVOLUTIONS}.8"),
    ("motion_encoder.motion_network", "motion_encoder.enc.fc"),
    ("motion_encoder.motion_synthesis_weight", "motion_encoder.dec.direction.weight"),
    *((f"face_encoder.{name}", f"face_encoder.{name}.conv") for name in ("conv1_local", "conv2", "conv3")),
    *(
        (f"face_adapter.#.{theirs}", f"face_adapter.fuser_blocks.#.{ours}")
        for theirs, ours in (
            ("to_q", "linear1_q"),
            ("to_k", "linear1_kv.k"),  # `assemble` joins the two
            ("to_v", "linear1_kv.v"),
            ("to_out", "linear2"),
            ("norm_q", "q_norm"),
            ("norm_k", "k_norm"),
        )
    ),
)

DIT_DIFFUSERS = (  # WanTransformer3DModel, WanVACETransformer3DModel and WanAnimateTransformer3DModel
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"),
    ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
    *(
        (f"{blocks}.#.{theirs}", f"{blocks}.#.{ours}")
        for blocks in ("blocks", "vace_blocks")
        for theirs, ours in _DIT_BLOCK
    ),
    ("scale_shift_table", "head.modulation"),
    ("proj_out", "head.head"),
    *_ANIMATE,
)

ANIMATE2_DIFFUSERS = tuple(  # WanAnimate2Transformer3DModel: names of its own for the projections alone
    (f"blocks.#.{part}.{theirs}", f"blocks.#.{part}.{ours}")
    for part in ("self_attn", "cross_attn")
    for theirs, ours in (
        *(("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o")),
        *(("add_k_proj", "k_img"), ("add_v_proj", "v_img"), ("norm_added_k", "norm_k_img")),
    )
)

DIT_OFFICIAL = (  # the blur of Animate's motion encoder is a constant
    (f"{_CONVOLUTIONS}.#.conv2.0.kernel", None),
    (f"{_CONVOLUTIONS}.#.skip.0.kernel", None),
)

_HALF = re.compile(r"(?<=\.linear1_kv)\.[kv](?=\.)")
_CHANNELS = re.compile(re.escape(_CONVOLUTIONS) + r"\..*bias$")


def assemble(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by official name, from those that a table of `LAYOUTS` has renamed; meta tensors will do.

    Keys and values of Animate's attention to faces are one tensor, and the biases of its convolutions have four axes.
    Raise ValueError if keys and values have scales of their own, as quantised ones do.
    """
    whole: dict[str, list[Tensor]] = {}
    for name, tensor in sorted(tensors.items()):
        whole.setdefault(_HALF.sub("", name), []).append(tensor)
    for name, parts in whole.items():
        if len(parts) > 1 and not all(part.is_floating_point() and part.itemsize > 1 for part in parts):
            raise ValueError(
                f"it holds the keys and the values of {name} apart and quantised: choose a file with ComfyUI's names, "
                "or one in bfloat16."
            )
    joined = {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in whole.items()}
    flat = {name for name, tensor in joined.items() if tensor.ndim == 1 and _CHANNELS.match(name)}
    return {name: tensor.view(1, -1, 1, 1) if name in flat else tensor for name, tensor in joined.items()}


_RESIDUAL = (
    ("norm1", "residual.0"),
    ("conv1", "residual.2"),
    ("norm2", "residual.3"),
    ("conv2", "residual.6"),
    ("conv_shortcut", "shortcut"),
)


def _vae_table(residual_blocks: Table, resamplers: Table) -> Table:
    """AutoencoderKLWan: the first, middle and last blocks are the same in 2.1 and 2.2; the stages differ."""
    ends = tuple(
        (f"{half}.{theirs}", f"{half}.{ours}")
        for half in ("encoder", "decoder")
        for theirs, ours in (
            ("conv_in", "conv1"),
            ("mid_block.attentions.0", "middle.1"),
            ("norm_out", "head.0"),
            ("conv_out", "head.2"),
        )
    )
    middle = tuple(
        (f"{half}.mid_block.resnets.{i}", f"{half}.middle.{2 * i}") for half in ("encoder", "decoder") for i in range(2)
    )
    residuals = tuple(
        (f"{block}.{theirs}", f"{ours_block}.{ours}")
        for block, ours_block in (*middle, *residual_blocks)
        for theirs, ours in _RESIDUAL
    )
    return (("quant_conv", "conv1"), ("post_quant_conv", "conv2"), *ends, *residuals, *resamplers)


VAE21_DIFFUSERS = _vae_table(
    residual_blocks=(
        ("encoder.down_blocks.#", "encoder.downsamples.#"),
        *(
            (f"decoder.up_blocks.{stage}.resnets.{i}", f"decoder.upsamples.{4 * stage + i}")
            for stage in range(4)
            for i in range(3)
        ),
    ),
    resamplers=(
        ("encoder.down_blocks.#", "encoder.downsamples.#"),
        *((f"decoder.up_blocks.{stage}.upsamplers.0", f"decoder.upsamples.{4 * stage + 3}") for stage in range(3)),
    ),
)

VAE22_DIFFUSERS = _vae_table(
    residual_blocks=(
        ("encoder.down_blocks.#.resnets.#", "encoder.downsamples.#.downsamples.#"),
        ("decoder.up_blocks.#.resnets.#", "decoder.upsamples.#.upsamples.#"),
    ),
    resamplers=(
        ("encoder.down_blocks.#.downsampler", "encoder.downsamples.#.downsamples.2"),
        ("decoder.up_blocks.#.upsampler", "decoder.upsamples.#.upsamples.3"),
    ),
)


@dataclass(frozen=True)
class Layout:
    """How one source names the parameters of one kind of model.

    kind: "dit", "vae", "umt5" or "clip_vision". source: who names them so. marks: official or foreign names that only
    this layout has. table: to the official names. header: what it says of the model, as in the `transformer` entry of a
    file's header.
    """

    kind: str
    source: str
    marks: tuple[str, ...]
    table: Table = ()
    header: Mapping[str, object] = field(default_factory=dict)


PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "model.")
ANIMATE2 = {"model_type": "animate2"}
LAYOUTS = (
    Layout(
        "dit", "official", ("head.modulation", "blocks.0.block.modulation"), (("blocks.#.block", "blocks.#"),), ANIMATE2
    ),
    Layout("dit", "diffusers", ("head.modulation", "blocks.0.self_attn.to_q.weight"), ANIMATE2_DIFFUSERS, ANIMATE2),
    Layout("dit", "official", ("patch_embedding.weight", "head.modulation"), DIT_OFFICIAL),
    Layout("dit", "diffusers", ("patch_embedding.weight", "condition_embedder.time_proj.weight"), DIT_DIFFUSERS),
    Layout("vace_module", "official", ("vace_patch_embedding.weight", "vace_blocks.0.before_proj.weight")),
    Layout("vae", "official", ("conv2.weight", "decoder.middle.0.residual.0.gamma")),
    Layout("vae", "diffusers", ("post_quant_conv.weight", "encoder.down_blocks.0.norm1.gamma"), VAE21_DIFFUSERS),
    Layout(
        "vae", "diffusers", ("post_quant_conv.weight", "encoder.down_blocks.0.resnets.0.norm1.gamma"), VAE22_DIFFUSERS
    ),
    Layout("umt5", "official", ("token_embedding.weight", "blocks.0.pos_embedding.embedding.weight")),
    # Only umT5 has a table of relative positions in every block: the first alone would also be an English T5.
    Layout(
        "umt5",
        "transformers",
        ("shared.weight", "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"),
        UMT5_HF,
    ),
    Layout("umt5", "llama.cpp", ("token_embd.weight", "enc.blk.1.attn_rel_b.weight"), UMT5_GGUF),
    Layout("clip_vision", "official", ("visual.cls_embedding", "visual.pre_norm.weight")),
    Layout(
        "clip_vision", "transformers", ("vision_model.embeddings.class_embedding", "vision_model.pre_layrnorm.weight")
    ),
    Layout("clip_vision", "transformers", ("embeddings.class_embedding", "pre_layrnorm.weight")),
)

# Other files that people choose by mistake: a pattern that one of their names matches, and what they hold.
LORA = (r"[._](lora_(up|down|[AB])|lokr_w[12]|hada_w[12]_[ab])(\.|$)", "a LoRA, which changes a model and is not one")
OTHERS = (  # looked for where no layout fits
    (
        r"(^|\.)audio_proj\.proj1_vf\.",
        "an InfiniteTalk or MultiTalk model patch, for ModelPatchLoader",
    ),
    (r"^(model\.diffusion_model\.)?txt_in\.individual_token_refiner\.", "a HunyuanVideo model"),
    (r"(^|\.)double_blocks\.0\.img_attn\.|(^|\.)single_transformer_blocks\.0\.", "a Flux model"),
    (r"(^|\.)joint_blocks\.0\.", "a Stable Diffusion 3 model"),
    (r"^conditioner\.embedders\.|(^|\.)label_emb\.0\.0\.", "a Stable Diffusion XL model"),
    (r"(^|\.)input_blocks\.0\.0\.|^down_blocks\.0\.resnets\.0\.conv1\.", "a Stable Diffusion model"),
    (r"(^|\.)patchify_proj\.", "an LTX video model"),
    (r"(^|\.)transformer_blocks\.0\.img_mod\.", "a Qwen-Image model"),
    (r"^vace_blocks\.0\.", "the VACE blocks of a Wan model without the model itself"),
    (r"(^|\.)text_model\.encoder\.layers\.0\.|^transformer\.resblocks\.0\.", "a CLIP text encoder"),
    (r"(^|\.)layers\.0\.self_attn\.q_proj\.|^lm_head\.", "a language model"),
    (r"^visual\.transformer\.resblocks\.0\.", "a CLIP in the layout of open_clip"),
    (r"^encoder\.block\.0\.layer\.0\.SelfAttention\.", "a T5 text encoder of another family than umT5"),
    (r"(^|\.)decoder\.(conv_in|up_blocks|up\.0)\.", "a VAE of another family"),
    (r"^decoder\.\d+\.(bias|weight)$", "a small autoencoder for previews"),
)
