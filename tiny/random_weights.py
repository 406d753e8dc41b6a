"""Writes tiny checkpoints with random weights, in the exact layout of the real files.

They load and run everywhere a real checkpoint does, in seconds on a CPU, and make noise instead of a picture: for tests
and for a first run. Names and shapes are those of the full-size checkpoints (`tests/golden/checkpoints.json.gz`) with
each width replaced and most blocks left out; a weight's value depends on its name and its file's seed.

    python -m tiny.random_weights MODELS    writes into MODELS/diffusion_models, MODELS/vae and the other folders
"""

import importlib.util
import json
import logging
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, ModuleType

import sentencepiece
import torch
from safetensors.torch import save_file

from . import layouts, tokenizer

TEXT_DIM = 128
HEAD = 128  # channels of one attention head, the same in every Wan DiT
WIDTH = 2 * HEAD  # of the tiny DiTs
CLIP_DIM, TINY_CLIP_DIM = 1280, 80  # of the image encoder, which the image-to-video DiTs of Wan 2.1 read

# What the tokenizer learns its pieces from; anything else is spelled in bytes.
CORPUS = """
A small cat walks on green grass in the morning light. A red ball rolls down the hill and the camera follows it slowly.
Two dogs run along the beach while waves break behind them. The sun sets over the sea; the sky turns orange and purple.
A woman in a yellow coat opens an umbrella in the rain. Snow falls on a quiet street, close-up, cinematic, soft light.
A boat drifts across the lake as clouds move over the mountains. An old man reads a book by the window at night.
Bright colors, overexposed, static, blurred details, subtitles, style, works, paintings, images, worst quality.
\u4e00\u53ea\u5c0f\u732b\u5728\u8349\u5730\u4e0a\u8d70\uff0c\u9633\u5149\u5f88\u597d\u3002
\u7ea2\u8272\u7684\u7403\u4ece\u5c71\u4e0a\u6eda\u4e0b\u6765\uff0c\u955c\u5934\u6162\u6162\u8ddf\u7740\u5b83\u3002
\u8272\u8c03\u8273\u4e3d\uff0c\u8fc7\u66dd\uff0c\u9759\u6001\uff0c\u7ec6\u8282\u6a21\u7cca\u4e0d\u6e05\uff0c\u5b57\u5e55\u3002
"""


@dataclass(frozen=True)
class Tiny:
    """One file: where it goes, which real files it stands in for, and how its shapes follow from a full-size one's.

    widths: full-size dimension to tiny one, for every axis of every parameter; multiples of a width (fused projections)
    are written out. layers: how many of each stack of blocks remain, by the prefix of the stack; others remain whole.
    seed: tells files of one layout apart. transformer: what the released file's header says of its network. hollow: the
    file is whole, of zeros that take no space, for what ComfyUI knows in one size alone.
    """

    name: str
    folder: str
    stands_in_for: tuple[str, ...]
    layout: str
    widths: dict[int, int]
    layers: dict[str, int] = field(default_factory=dict)
    tokenizer: bool = False
    seed: int = 0
    transformer: dict = field(default_factory=dict)
    hollow: bool = False

    @property
    def metadata(self) -> dict[str, str]:
        """The header's entries beside the tensors."""
        return {"config": json.dumps({"transformer": self.transformer})} if self.transformer else {}


INJECTORS = {"audio_injector.injector": 2, "audio_injector.injector_adain_layers": 2}  # of sound, where there are such
SIZES = {"1.3B": (1536, 8960), "5B": (3072, 14336), "14B": (5120, 13824)}  # dim and ffn_dim of the DiTs


def _dit(
    kind: str,
    stands_in_for: tuple[str, ...],
    layout: str,
    blocks: int = 2,
    inner: Mapping[int, int] = MappingProxyType({}),
    **more: object,
) -> Tiny:
    """A DiT with a few blocks of two heads, and as many VACE blocks where the full-size one has such.

    inner: further widths, inside a part of it.
    """
    dim, ffn_dim = next((SIZES[size] for size in SIZES if layout.endswith(size)), SIZES["14B"])
    widths = {dim: WIDTH, 6 * dim: 6 * WIDTH, ffn_dim: 2 * WIDTH, 4096: TEXT_DIM, CLIP_DIM: TINY_CLIP_DIM, **inner}
    name, kept = f"tiny_random_{kind}.safetensors", {"blocks": blocks, "vace_blocks": blocks, **INJECTORS}
    return Tiny(name, "diffusion_models", stands_in_for, layout, widths, kept, **more)


def _experts(kind: str, stands_in_for: str, layout: str) -> tuple[Tiny, ...]:
    """Both experts of a pair; `{}` in the names is the noise of each."""
    return tuple(
        _dit(kind.format(noise), (stands_in_for.format(noise),), layout, seed=seed)
        for seed, noise in enumerate(("high", "low"))
    )


def _vae(name: str, stands_in_for: tuple[str, ...], layout: str, dims: dict[int, int]) -> Tiny:
    """A VAE with each of the base widths `dims` and its multiples replaced."""
    widths = {factor * full: factor * small for full, small in dims.items() for factor in (1, 2, 4, 8, 12)}
    return Tiny(name, "vae", stands_in_for, layout, widths)


FILES = (
    _dit(
        "wan2.1_t2v",
        ("wan2.1_t2v_1.3B_fp16.safetensors", "wan2.1_t2v_1.3B_bf16.safetensors"),
        "official/wan2.1_t2v_1.3B",
    ),
    _dit(
        "wan2.1_self_forcing",
        ("wan2.1_t2v_1.3B_self_forcing_dmd.safetensors",),
        "official/wan2.1_t2v_1.3B",
        transformer={"causal_ar": True},
    ),
    _dit(
        "causal_forcing_framewise",
        ("causal_forcing-framewise.safetensors",),
        "official/wan2.1_t2v_1.3B",
        transformer={"causal_ar": True},
    ),
    _dit("wan2.1_i2v", ("wan2.1_i2v_480p_14B_fp16.safetensors",), "official/wan2.1_i2v_14B"),
    _dit("wan2.1_flf2v", ("wan2.1_flf2v_720p_14B_fp16.safetensors",), "official/wan2.1_flf2v_14B"),
    _dit("wan2.1_vace", ("wan2.1_vace_1.3B_fp16.safetensors",), "official/wan2.1_vace_1.3B"),
    _dit("wan2.1_t2v_14B", ("wan2.1_t2v_14B_fp8_scaled.safetensors",), "official/wan2.1_t2v_14B"),
    _dit("wan2.1_vace_14B", ("wan2.1_vace_14B_fp16.safetensors",), "official/wan2.1_vace_14B"),
    *(
        file
        for task in ("t2v", "i2v")
        for file in _experts(
            f"wan2.2_{task}_{{}}_noise",
            f"wan2.2_{task}_{{}}_noise_14B_fp8_scaled.safetensors",
            f"official/wan2.2_{task}_A14B",
        )
    ),
    *(
        file
        for kind, layout in (("control", "control"), ("camera", "control_camera"))
        for file in _experts(
            f"wan2.2_fun_{kind}_{{}}_noise",
            f"wan2.2_fun_{kind}_{{}}_noise_14B_fp8_scaled.safetensors",
            f"fun/wan2.2_fun_a14b_{layout}",
        )
    ),
    *_experts("bernini_r_{}_noise", "wan2.2_bernini_r_{}_noise_fp8_scaled.safetensors", "official/wan2.2_t2v_A14B"),
    _dit(
        "wan_animate_2",
        ("wan_animate_2_int8_convrot.safetensors",),
        "official/wan2.1_i2v_14B",
        transformer={"model_type": "animate2"},
    ),
    _dit("wan2.1_scail_2", ("wan2.1_14B_SCAIL_2_fp16.safetensors",), "comfy/scail2_14B"),
    _dit(
        "wan2.2_s2v",
        ("wan2.2_s2v_14B_fp8_scaled.safetensors",),
        "official/wan2.2_s2v_14B",
        blocks=5,  # sound comes in after blocks 0 and 4
        inner={10240: 2 * WIDTH, 2560: WIDTH // 2, 1280: WIDTH // 4},
    ),
    _dit("wan2.2_ti2v", ("wan2.2_ti2v_5B_fp16.safetensors",), "official/wan2.2_ti2v_5B"),
    _vae("tiny_random_wan2.1_vae.safetensors", ("wan_2.1_vae.safetensors",), "official/wan2.1_vae", {96: 8}),
    _vae(
        "tiny_random_wan2.2_vae.safetensors",
        ("wan2.2_vae.safetensors",),
        "official/wan2.2_vae",
        {160: 8, 256: 12},
    ),
    Tiny(
        "tiny_random_clip_vision.safetensors",
        "clip_vision",
        ("clip_vision_h.safetensors",),
        "hf/clip_vision_h",
        widths={CLIP_DIM: TINY_CLIP_DIM, 4 * CLIP_DIM: 4 * TINY_CLIP_DIM, 1024: 64},
        layers={"vision_model.encoder.layers": 2},
    ),
    Tiny(
        "tiny_random_umt5.safetensors",
        "text_encoders",
        ("umt5_xxl_fp16.safetensors", "umt5_xxl_fp8_e4m3fn_scaled.safetensors"),
        "hf/umt5_xxl_encoder",
        widths={4096: TEXT_DIM, 10240: 2 * TEXT_DIM, 64: 2},  # two heads of 64
        layers={"encoder.block": 2},
        tokenizer=True,
    ),
    Tiny(
        "tiny_random_lora.safetensors",
        "loras",
        (
            "lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank64_bf16.safetensors",
            "lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors",
            *(f"wan2.2_t2v_lightx2v_4steps_lora_v1.1_{noise}_noise.safetensors" for noise in ("high", "low")),
            *(f"wan2.2_i2v_lightx2v_4steps_lora_v1_{noise}_noise.safetensors" for noise in ("high", "low")),
            *(f"SVI_v2_PRO_Wan2.2-I2V-A14B_{noise}_lora_rank_128_fp16.safetensors" for noise in ("HIGH", "LOW")),
        ),
        "lora_14B",
        widths={5120: WIDTH, 64: 4},
        layers={"diffusion_model.blocks": 2},
    ),
    Tiny(
        "hollow_wav2vec2_large.safetensors",
        "audio_encoders",
        ("wav2vec2_large_english_fp16.safetensors",),
        "wav2vec2_large",
        widths={},
        hollow=True,
    ),
)


def shapes(tiny: Tiny) -> dict[str, list[int]]:
    """Parameter names and shapes of the file `tiny`, the vocabulary of a text encoder still at full size."""
    return {
        name: [tiny.widths.get(size, size) for size in shape]
        for name, shape in layouts.full(tiny.layout).items()
        if _kept(name, tiny.layers)
    }


def _kept(name: str, layers: dict[str, int]) -> bool:
    """Whether a parameter is outside the stacks that are cut short, or in one of their first blocks."""
    return all(
        (match := re.match(rf"{re.escape(stack)}\.(\d+)\.", name)) is None or int(match[1]) < count
        for stack, count in layers.items()
    )


def state_dict(tiny: Tiny) -> dict[str, torch.Tensor]:
    """The tensors of the file `tiny`, the same on every machine."""
    parameters, extra = shapes(tiny), {}
    if tiny.tokenizer:
        model = train_tokenizer()
        pieces = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
        extra[tokenizer.TENSOR] = torch.frombuffer(bytearray(model), dtype=torch.uint8)
        parameters = {
            name: [pieces, shape[1]] if name == "shared.weight" else shape
            for name, shape in parameters.items()
            if name != "encoder.embed_tokens.weight"  # the same tensor again, which repackaged files leave out
        }
    return _recipe().state_dict(parameters, tiny.seed) | extra


def train_tokenizer() -> bytes:
    """The tokenizer of the text encoder."""
    return tokenizer.train(CORPUS.strip().splitlines(), 480)


def _recipe() -> ModuleType:
    """The golden cases' way from a parameter's name to its value."""
    spec = importlib.util.spec_from_file_location("golden_recipe", layouts.GOLDEN / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(models: Path) -> list[Path]:
    """Write the files that are not there yet into the folders of `models`; return the paths of all."""
    paths = []
    for tiny in FILES:
        path = models / tiny.folder / tiny.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            partial = path.with_suffix(".partial")
            if tiny.hollow:
                layouts.write_hollow(partial, shapes(tiny), "F16", 2)
            else:
                save_file(state_dict(tiny), partial, metadata={"note": "random weights, for tests"} | tiny.metadata)
            partial.replace(path)
        paths.append(path)
    return paths


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    for written in write(Path(sys.argv[1])):
        logging.info("%s (%d KB)", written, math.ceil(written.stat().st_size / 1000))
