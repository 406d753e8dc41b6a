"""Tiny files in the layouts of the released Wan models, with the widths that the host's own classes demand.

The host fixes what it does not read from a file: 4096 channels of text, 1280 of CLIP vision, the sizes of the audio
encoders. So these keep them, unlike `tiny.random_weights`, and lose width and blocks only in the network itself.
"""

import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import recipe
import torch
from safetensors.torch import save_file

from tiny import layouts, random_weights

FULL = {"1.3B": (1536, 8960), "5B": (3072, 14336), "14B": (5120, 13824)}  # dim and ffn_dim
DIM, FFN_DIM = 256, 512  # of the tiny networks: two heads
TALK_DIM = 640  # the host gives the sound of InfiniteTalk 40 heads, whatever the network has
TEXT_DIM, HEAD = 4096, 64  # of umT5
WHOLE = re.compile(  # parameters whose sizes are not the network's, though a number may be the same
    r"img_emb\w*\.proj\.[01]\.|audio_proj\.|motion_encoder\.|music_projection\.|music_encoder\."
)
OUTER = re.compile(
    r"audio_cross_attn\.[kv]\.weight|control_adapter\.conv\.weight"
)  # only the first axis is the network's
STACK = re.compile(r"(?:vace_)?blocks\.(\d+)\.")
BLUR = torch.tensor([1.0, 3.0, 3.0, 1.0])


@dataclass(frozen=True)
class Kind:
    """A released file: its name list and the size of its network; how many blocks stay and how wide they are; the
    `transformer` of its header.
    """

    layout: str
    size: str = "14B"
    blocks: int = 3
    header: dict = field(default_factory=dict)
    width: int = DIM


DITS = {
    "t2v_1.3B": Kind("official/wan2.1_t2v_1.3B", "1.3B"),
    "t2v": Kind("official/wan2.1_t2v_14B"),
    "i2v": Kind("official/wan2.1_i2v_14B"),
    "flf2v": Kind("official/wan2.1_flf2v_14B"),
    "vace": Kind("official/wan2.1_vace_14B"),
    "vace_1.3B": Kind("official/wan2.1_vace_1.3B", "1.3B"),
    "t2v_a14b": Kind("official/wan2.2_t2v_A14B"),
    "i2v_a14b": Kind("official/wan2.2_i2v_A14B"),
    "ti2v": Kind("official/wan2.2_ti2v_5B", "5B"),
    "vace_fun": Kind("fun/wan2.2_vace_fun_a14b"),
    "fun_inp": Kind("fun/wan2.1_fun_inp_14B"),
    "fun_inp_1.3B": Kind("fun/wan2.1_fun_inp_1.3B", "1.3B"),
    "fun_control": Kind("fun/wan2.1_fun_control_14B"),
    "fun_control_1.3B": Kind("fun/wan2.1_fun_control_1.3B", "1.3B"),
    "fun_control_ref": Kind("fun/wan2.1_fun_v1.1_control_14B"),
    "fun_camera": Kind("fun/wan2.1_fun_v1.1_control_camera_14B"),
    "fun_camera_1.3B": Kind("fun/wan2.1_fun_v1.1_control_camera_1.3B", "1.3B"),
    "fun_inp_a14b": Kind("fun/wan2.2_fun_a14b_inp"),
    "fun_control_a14b": Kind("fun/wan2.2_fun_a14b_control"),
    "fun_camera_a14b": Kind("fun/wan2.2_fun_a14b_control_camera"),
    "fun_inp_5b": Kind("fun/wan2.2_fun_5b_inp", "5B"),
    "fun_control_5b": Kind("fun/wan2.2_fun_5b_control", "5B"),
    "i2v_talk": Kind("official/wan2.1_i2v_14B", blocks=2, width=TALK_DIM),
    "s2v": Kind("official/wan2.2_s2v_14B", blocks=5),  # sound comes in after blocks 0 and 4
    "animate": Kind("official/wan2.2_animate_14B", blocks=5),  # faces come in after block 0
    "animate2": Kind("official/wan2.1_i2v_14B", header={"model_type": "animate2"}),
    "animate2_deep": Kind("official/wan2.1_i2v_14B", blocks=40, header={"model_type": "animate2"}),
    "causal": Kind("official/wan2.1_t2v_1.3B", "1.3B", header={"causal_ar": True}),
    "humo": Kind("official/humo_17B"),
    "humo_1.7B": Kind("official/humo_1.7B", "1.3B"),
    "phantom": Kind("official/phantom_14B"),
    "ati": Kind("official/ati_14B"),
    "wan_move": Kind("official/wan_move_14B"),
    "scail": Kind("comfy/scail_14B"),
    "scail2": Kind("comfy/scail2_14B"),
    "wandancer": Kind("wandancer"),
}


@cache
def full_shapes(layout: str) -> dict[str, list[int]]:
    """Names and shapes of the full-size file `layout`."""
    return wandancer_shapes() if layout == "wandancer" else layouts.full(layout)


def wandancer_shapes() -> dict[str, list[int]]:
    """WanDancer's names and full-size shapes by the host's own class: no list of the released file is kept."""
    import comfy.ldm.wan.model_wandancer
    import comfy.ops

    network = comfy.ldm.wan.model_wandancer.WanDancerModel(
        in_dim=36, ffn_dim=13824, num_heads=40, device="meta", operations=comfy.ops.disable_weight_init
    )
    return {name: list(value.shape) for name, value in network.state_dict().items()}


def shapes(kind: Kind) -> dict[str, list[int]]:
    """Names and shapes of the tiny file of `kind`."""
    dim, ffn_dim = FULL[kind.size]
    widths = {part * dim: part * kind.width for part in (1, 2, 6)} | {ffn_dim: FFN_DIM}
    narrow = widths | {dim // part: kind.width // part for part in (4, 2)}  # inside the audio encoder of S2V
    tiny = {}
    for name, shape in full_shapes(kind.layout).items():
        block = STACK.match(name)
        if block is None or int(block[1]) < kind.blocks:
            tiny[name] = _shrink(name, shape, narrow if name.startswith("casual_audio_encoder.") else widths)
    return tiny


def _shrink(name: str, shape: list[int], widths: dict[int, int]) -> list[int]:
    if WHOLE.match(name):
        return shape
    first, *others = [widths.get(size, size) for size in shape]
    return [first, *(shape[1:] if OUTER.search(name) else others)]


def dit(kind: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of the tiny file of `DITS[kind]`."""
    state = recipe.state_dict(shapes(DITS[kind]), seed)
    for name, weight in state.items():
        if name.startswith("motion_encoder."):
            _revive(name, weight)
    return state


def _revive(name: str, weight: torch.Tensor) -> None:
    """The motion encoder of Animate scales its weights by itself, and its blur is a constant that files hold."""
    if name.endswith(".kernel"):
        weight.copy_(torch.outer(BLUR, BLUR) / BLUR.sum() ** 2)
    elif weight.ndim > 1 and name.endswith("weight"):
        weight.mul_(weight[0].numel() ** 0.5)


def write_dit(path: Path, kind: str, seed: int = 0) -> Path:
    """Write the tiny file of `DITS[kind]`, with the header of the released one, unless it is there."""
    header = DITS[kind].header
    return _save(path, lambda: dit(kind, seed), {"config": json.dumps({"transformer": header})} if header else None)


def write_vae(path: Path, kind: str) -> Path:
    """Write a tiny VAE: kind is "wan2.1" or "wan2.2"."""
    tiny = next(tiny for tiny in random_weights.FILES if tiny.name == f"tiny_random_{kind}_vae.safetensors")
    return _save(path, lambda: random_weights.state_dict(tiny))


def write_clip_vision(path: Path) -> Path:
    """Write an image encoder of Wan's width with two blocks, for our loader: the host's knows only whole ones."""
    tiny = random_weights.Tiny(
        path.name,
        "clip_vision",
        (),
        "hf/clip_vision_h",
        widths={5120: 64},
        layers={"encoder.layers": 2},
    )
    return _save(path, lambda: random_weights.state_dict(tiny))


def write_umt5(path: Path) -> Path:
    """Write a umT5 of Wan's width with two blocks of two heads, for our loader: the host's knows only whole ones."""
    return _save(path, _umt5)


def _umt5() -> dict[str, torch.Tensor]:
    small = next(tiny for tiny in random_weights.FILES if tiny.folder == "text_encoders")
    state = random_weights.state_dict(small)  # its tokenizer, and how many pieces that has
    pieces = {name: value for name, value in state.items() if value.dtype == torch.uint8}
    wide = {"shared.weight": [len(state["shared.weight"]), TEXT_DIM]}
    for name, shape in full_shapes("hf/umt5_xxl_encoder").items():
        if not name.startswith(("encoder.block.0.", "encoder.block.1.", "encoder.final_layer_norm.")):
            continue
        wide[name] = [{10240: 2 * HEAD, 64: 2}.get(size, size) for size in shape]
        if match := re.search(r"SelfAttention\.([qkvo])\.", name):
            wide[name] = [TEXT_DIM, 2 * HEAD] if match[1] == "o" else [2 * HEAD, TEXT_DIM]
    return recipe.state_dict(wide) | pieces


def write_lora(path: Path, width: int = DIM, seed: int = 9, rank: int = 4) -> Path:
    """Write a LoRA for the first block of a network with `width` channels, in the layout of the released ones."""

    def make() -> dict:
        state = {}
        for name in ("self_attn.q", "self_attn.o", "cross_attn.k"):
            stem = f"diffusion_model.blocks.0.{name}"
            state[f"{stem}.lora_A.weight"] = recipe.weight(f"{stem}.lora_A.weight", [rank, width], seed)
            state[f"{stem}.lora_B.weight"] = recipe.weight(f"{stem}.lora_B.weight", [width, rank], seed)
        return state

    return _save(path, make)


def write_infinitetalk(path: Path) -> Path:
    """Write the MODEL_PATCH of InfiniteTalk for networks of `TALK_DIM` channels."""
    widths = {5120: TALK_DIM, 10240: 2 * TALK_DIM, 512: 32}
    tiny = {
        name: [widths.get(size, size) for size in shape]
        for name, shape in full_shapes("official/infinitetalk_14B_adapter").items()
    }
    return _save(path, lambda: recipe.state_dict(tiny))


def write_uni3c(path: Path, blocks: int = 2) -> Path:
    """Write the MODEL_PATCH of Uni3C, by the names of the host's class, for a network of `DIM` channels."""
    import comfy.ldm.wan.uni3c
    import comfy.ops

    network = comfy.ldm.wan.uni3c.WanUni3CControlnet(
        conv_out_dim=DIM, dim=512, ffn_dim=FFN_DIM, num_layers=blocks, time_embed_dim=DIM, out_proj_dim=DIM,
        device="meta", operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    return _save(path, lambda: recipe.state_dict({n: list(v.shape) for n, v in network.state_dict().items()}))


def _save(path: Path, make, metadata: dict | None = None) -> Path:
    """Write what `make` returns to `path`, unless a file is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in make().items()}, path, metadata=metadata)
    return path
