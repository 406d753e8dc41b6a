"""Parameter names of each model in other layouts: tables, and the one function that applies them.

A table is a tuple of (foreign, official) pairs of module or parameter paths; "#" stands for an index. A pair renames
whole path components at the start of a name and leaves the rest (`.weight`, `.bias`, a quantisation marker) as it is.
None on the official side drops a duplicate.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

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

DIT_DIFFUSERS = (  # WanTransformer3DModel and WanVACETransformer3DModel
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
)

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

    kind: "dit", "vae", "umt5" or "clip_vision". source: the project that does so. marks: official or foreign names that
    only this layout has. table: to the official names.
    """

    kind: str
    source: str
    marks: tuple[str, ...]
    table: Table = ()


PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "model.")
LAYOUTS = (
    Layout("dit", "official", ("patch_embedding.weight", "head.modulation")),
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
RELATIVES = (  # models built on Wan that this pack does not run; searched first, since they also fit a layout
    (r"(^|\.)(casual_audio_encoder|audio_injector)\.", "a Wan speech-to-video model"),
    (r"(^|\.)audio_proj\.audio_proj_glob", "a HuMo model built on Wan"),
    (r"(^|\.)(face_adapter\.fuser_blocks|pose_patch_embedding)\.", "a Wan Animate model"),
    (r"(^|\.)control_adapter\.conv\.", "a Wan camera control model"),
    (r"(^|\.)patch_embedding_mask\.", "a SCAIL 2 model built on Wan"),
    (r"(^|\.)patch_embedding_pose\.", "a SCAIL model built on Wan"),
    (r"(^|\.)patch_embedding_global\.", "a Wan Dancer model"),
    (r"(^|\.)blocks\.0\.audio_cross_attn\.", "an InfiniteTalk or MultiTalk model built on Wan"),
    (r"(^|\.)ref_conv\.", "a Wan Fun control model"),
)
OTHERS = (  # searched if no layout fits
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
