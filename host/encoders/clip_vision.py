"""CLIP_VISION: the image encoder of Wan 2.1 image-to-video on the host's own class, with Wan's preprocessing."""

import json
import math
import os
import tempfile

import comfy.clip_vision
import comfy.model_management
import torch
from torch.nn import functional as F

from ...wan_model import checkpoint
from ...wan_model.weights import layouts
from ..model import offload
from . import weights

WIDTH = 1280  # channels of ViT-H/14, the only image encoder that Wan was trained with
NARROWEST_OTHER = 768  # of the other CLIP models in use; narrower ones are for tests and demos
MIN_SIDE = 16  # pixels: about one patch of the encoder
MAX_ASPECT = 10  # the picture is squeezed into a square

HOST_NAMES = (  # wan/modules/clip.py, image half, to the host's CLIP, which has Hugging Face's names and spelling
    ("cls_embedding", "embeddings.class_embedding"),
    ("pos_embedding", "embeddings.position_embedding.weight"),
    ("patch_embedding", "embeddings.patch_embedding"),
    ("pre_norm", "pre_layrnorm"),
    ("post_norm", "post_layernorm"),
    ("transformer.#.norm1", "encoder.layers.#.layer_norm1"),
    ("transformer.#.norm2", "encoder.layers.#.layer_norm2"),
    ("transformer.#.attn.to_qkv", "encoder.layers.#.self_attn.qkv_proj"),  # then split by `host_weights`
    ("transformer.#.attn.proj", "encoder.layers.#.self_attn.out_proj"),
    ("transformer.#.mlp.0", "encoder.layers.#.mlp.fc1"),
    ("transformer.#.mlp.2", "encoder.layers.#.mlp.fc2"),
)
EMBEDDINGS = ("cls_embedding", "pos_embedding")  # (1, 1, C) and (1, L, C): the host has no batch dimension
TEXT_HALF = ("textual.", "text_model.", "text_projection.", "log")  # log_scale, logit_scale


def load(path: str) -> comfy.clip_vision.ClipVisionModel:
    """Return the host's CLIP_VISION object around the image half of the CLIP in the file `path`.

    Takes the official open-CLIP XLM-RoBERTa file, ComfyUI's clip_vision_h and the transformers layout. Raise
    ValueError for a file of another model and one that lacks weights.
    """
    state = host_weights(weights.read(path, checkpoint.CLIP_VISION, "WanClipVisionLoader")[0])
    config = infer_config(state, path)
    with tempfile.TemporaryDirectory() as folder:  # ComfyUI 0.3.75 reads a configuration from a file only
        config_path = os.path.join(folder, "config.json")
        with open(config_path, "w", encoding="utf-8") as file:
            json.dump(config, file)
        clip_vision = comfy.clip_vision.ClipVisionModel(config_path)
    clip_vision.load_sd(state)
    return clip_vision


def encode(clip_vision: comfy.clip_vision.ClipVisionModel, pictures: list[torch.Tensor]) -> comfy.clip_vision.Output:
    """Return the CLIP_VISION_OUTPUT of one picture (start) or two (start and end), as the authors encode them.

    pictures: (1, H, W, 3) in [0, 1] each. The hidden states of all pictures are concatenated, 257 tokens
    each, as the host's Wan nodes do. Raise ValueError if the image encoder is not Wan's.
    """
    network = getattr(clip_vision.model, "vision_model", None)  # absent in encoders such as DINO
    _check_width(0 if network is None else network.post_layernorm.weight.shape[0], "The CLIP vision model")
    pixels = torch.cat([preprocess(p, clip_vision) for p in pictures])
    comfy.model_management.load_model_gpu(clip_vision.patcher)
    last, penultimate, embeds, projected = clip_vision.model(
        pixel_values=pixels.to(clip_vision.load_device), intermediate_output=-2
    )
    offload.leave_device(clip_vision.patcher)
    device = comfy.model_management.intermediate_device()
    output = comfy.clip_vision.Output()
    output["last_hidden_state"] = last.flatten(0, 1)[None].to(device)  # (N, L, C) -> (1, N L, C)
    output["penultimate_hidden_states"] = penultimate.flatten(0, 1)[None].to(device)  # (N, L, C) -> (1, N L, C)
    output["image_embeds"] = embeds.to(device)
    output["image_sizes"] = [tuple(pixels.shape[1:])] * len(pictures)
    output["mm_projected"] = projected
    return output


def preprocess(picture: torch.Tensor, clip_vision: comfy.clip_vision.ClipVisionModel) -> torch.Tensor:
    """Return a picture (1, H, W, 3) in [0, 1] as (1, 3, S, S), normalised by CLIP's mean and deviation.

    The whole picture is squeezed into the square by plain bicubic interpolation, neither cropped nor clipped nor
    rounded, unlike the host's own preprocessing (`CLIPModel.visual` of wan/modules/clip.py).
    """
    size = (clip_vision.image_size, clip_vision.image_size)
    pixels = F.interpolate(picture.float().movedim(-1, 1), size=size, mode="bicubic", align_corners=False)
    mean, std = pixels.new_tensor([clip_vision.image_mean, clip_vision.image_std])[:, :, None, None]
    return (pixels - mean) / std


def check_picture(image: torch.Tensor, title: str) -> torch.Tensor:
    """Return `image` (N, H, W, 1, 3 or 4) as RGB: grey is repeated, alpha is left out.

    title: the input's name for the message. Raise ValueError for other channels, and for sides too short or too
    different to be squeezed into a square.
    """
    height, width, channels = image.shape[1:]
    if channels not in (1, 3, 4):
        raise ValueError(f"{title} of WanClipVision has {channels} channels, it takes 1, 3 or 4: connect an RGB image.")
    if min(height, width) < MIN_SIDE or max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(
            f"{title} of WanClipVision is {width}x{height} and the encoder needs sides of at least {MIN_SIDE} pixels "
            f"and at most {MAX_ASPECT} to 1: crop or scale the image before it."
        )
    return image.expand(-1, -1, -1, 3) if channels == 1 else image[..., :3]


def host_weights(state: dict) -> dict:
    """Return the image half of `state` under the names of the host's CLIP vision model."""
    image_half = {
        name.removeprefix("visual.").removeprefix("vision_model."): weight
        for name, weight in state.items()
        if not name.startswith(TEXT_HALF)
    }
    renamed = {}
    for official, name in layouts.rename(image_half, HOST_NAMES).items():
        weight = image_half[official]
        if official == "head":
            renamed["visual_projection.weight"] = weight.transpose(0, -1)  # (C, out) -> (out, C)
        elif name == "visual_projection.weight":
            renamed[name] = weight
        elif ".qkv_proj." in name and weight.ndim:
            for part, third in zip("qkv", weight.chunk(3), strict=False):  # (3 C, ...) -> (C, ...)
                renamed["vision_model." + name.replace("qkv_proj", f"{part}_proj")] = third
        else:
            renamed["vision_model." + name] = weight.squeeze() if official in EMBEDDINGS else weight
    return renamed


def infer_config(state: dict, path: str) -> dict:
    """Return the configuration of the host's CLIP vision model for `state`, in the host's names, read from `path`.

    Raise ValueError if `state` is not a CLIP image encoder that Wan can use.
    """
    patch = weights.shape(state, "vision_model.embeddings.patch_embedding.weight", path, 4)
    tokens, width = weights.shape(state, "vision_model.embeddings.position_embedding.weight", path, 2)
    _check_width(width, f"'{os.path.basename(path)}'")
    config = {
        "model_type": "clip_vision_model",
        "hidden_act": "gelu",
        "num_channels": 3,
        "hidden_size": width,
        "intermediate_size": weights.shape(state, "vision_model.encoder.layers.0.mlp.fc1.weight", path, 2)[0],
        "num_attention_heads": max(4, width // 80),  # 80 channels each in ViT-H/14, four heads in the small models
        "num_hidden_layers": weights.count_layers(state, "vision_model.encoder.layers."),
        "patch_size": patch[-1],
        "image_size": math.isqrt(tokens - 1) * patch[-1],
    }
    if "visual_projection.weight" in state:
        config["projection_dim"] = weights.shape(state, "visual_projection.weight", path, 2)[0]
    weights.check_shapes(state, expected_shapes(config), path)
    return config


def _check_width(width, what):
    if width == 0 or (width >= NARROWEST_OTHER and width != WIDTH):
        raise ValueError(
            f"{what} has {width or 'no'} channels of a CLIP image encoder, Wan reads ViT-H/14 with {WIDTH}: choose "
            "clip_vision_h.safetensors in WanClipVisionLoader."
        )


def expected_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight by name of the host's CLIP vision model with the sizes `config`."""
    dim, hidden, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    block = {"mlp.fc1": (hidden, dim), "mlp.fc2": (dim, hidden), "layer_norm1": (dim,), "layer_norm2": (dim,)}
    block |= {f"self_attn.{part}_proj": (dim, dim) for part in ("q", "k", "v", "out")}
    layers = {"pre_layrnorm": (dim,), "post_layernorm": (dim,)}
    for index in range(config["num_hidden_layers"]):
        layers |= {f"encoder.layers.{index}.{name}": shape for name, shape in block.items()}
    shapes = {
        "vision_model.embeddings.class_embedding": (dim,),
        "vision_model.embeddings.patch_embedding.weight": (dim, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": ((config["image_size"] // patch) ** 2 + 1, dim),
    }
    for name, shape in layers.items():
        shapes |= {f"vision_model.{name}.weight": shape, f"vision_model.{name}.bias": shape[:1]}
    if "projection_dim" in config:
        shapes["visual_projection.weight"] = (config["projection_dim"], dim)
    return shapes
