"""Inputs of the host's nodes in a test: links by their type, widgets by `SETTINGS` or their defaults."""

import importlib
from pathlib import Path

import beside
import comfy.clip_vision
import comfy.sd
import comfy.utils
import recipe
import torch
from safetensors.torch import load_file, save_file

import nodes

NAME = "beside.safetensors"  # of every file that is written here
TALK_WIDTH = 640  # the sound of InfiniteTalk has 40 heads in every size

SETTINGS = {  # node -> inputs for which the defaults would do nothing, or not fit a clip of 5 latent frames
    "APG": {"momentum": -0.5, "norm_threshold": 1.0},
    "CFGOverride": {"cfg": 2.0, "start_percent": 0.2, "end_percent": 0.9},
    "ContextWindowsManual": {"context_length": 3, "context_overlap": 1, "dim": 2},
    "EasyCache": {"reuse_threshold": 2.0},
    "Epsilon Scaling": {"scaling_factor": 1.05},
    "FreSca": {"freq_cutoff": 2},
    "HypernetworkLoader": {"hypernetwork_name": "beside.pt"},
    "KSamplerAdvanced": {"end_at_step": 3},
    "LTXVContextWindows": {"context_length": 17, "context_overlap": 8},
    "LazyCache": {"reuse_threshold": 2.0},
    "ModelComputeDtype": {"dtype": "fp32"},
    "ModelNoiseScale": {"noise_scale": 1.1},
    "SamplingPercentToSigma": {"sampling_percent": 0.3},
    "ScaleROPE": {"scale_x": 1.5, "shift_y": 3.0, "scale_t": 0.5, "shift_t": 1.0},
    "SkipLayerGuidanceDiT": {"double_layers": "1", "start_percent": 0.0, "end_percent": 1.0, "rescaling_scale": 0.5},
    "SkipLayerGuidanceDiTSimple": {"double_layers": "0"},
    "SkipLayerGuidanceSD3": {"layers": "1", "start_percent": 0.0, "end_percent": 1.0},
    "TorchCompileModel": {"backend": "eager"},
    "TrainLoraNode": {"rank": 4, "training_dtype": "fp32", "lora_dtype": "fp32", "existing_lora": "[None]"},
    "WanContextWindowsManual": {"context_length": 9, "context_overlap": 5},
    "WanInfiniteTalkToVideo": {"mode": {"mode": "single_speaker"}},
}
OPTIONAL = {  # node -> optional inputs that it is given too
    "DualModelGuider": ("model_negative", "negative"),
    "WanInfiniteTalkToVideo": ("start_image",),
    "ZImageFunControlnet": ("image",),
}
SHORT = {"steps": 4, "width": 80, "height": 64, "length": 17, "lora_name": NAME}  # by the name of an input


def inputs_of(node: str) -> dict[str, tuple]:
    """Name of each input that `node` is given -> (type or choices, options)."""
    kinds = nodes.NODE_CLASS_MAPPINGS[node].INPUT_TYPES()
    given = kinds.get("required", {}) | {name: kinds["optional"][name] for name in OPTIONAL.get(node, ())}
    return {name: (kind[0], kind[1] if len(kind) > 1 else {}) for name, kind in given.items()}


def arguments(node: str, model, other, by_type: dict) -> dict:
    """Inputs of `node`, which takes the MODEL `model`, and `other` where it takes two; by_type: as `links` gives it."""
    given = {}
    for name, (kind, options) in inputs_of(node).items():
        if kind == "MODEL":
            given[name] = other if name in ("model2", "model_negative") else model
        elif isinstance(kind, str) and kind in by_type:
            given[name] = beside.prompts()[0] if name in ("positive", "cond1") else by_type[kind]
        else:
            given[name] = _widget(node, name, kind, options)
    given |= SETTINGS.get(node, {})
    if getattr(nodes.NODE_CLASS_MAPPINGS[node], "INPUT_IS_LIST", False):
        return {name: [value] for name, value in given.items()}
    return given


def _widget(node: str, name: str, kind, options: dict):
    """The value of an input that is no link."""
    if name in SHORT:
        return SHORT[name]
    if isinstance(kind, list) or kind == "COMBO":
        choices = kind if isinstance(kind, list) else options["options"]
        return options.get("default", choices[0] if choices else None)
    return 0.5 if node.startswith("ModelMerge") and kind == "FLOAT" else options.get("default")


def links(models: Path) -> dict:
    """Type of a link -> what every node gets for it; the files that they need are written into `models`."""
    _write(models / "loras" / NAME, _lora_shapes(256))
    write_hypernetwork(models / "hypernetworks" / "beside.pt", 256)
    generator = torch.Generator().manual_seed(2)
    vision = comfy.clip_vision.Output()
    vision["penultimate_hidden_states"] = torch.randn(1, 257, 1280, generator=generator)
    vision["all_hidden_states"] = vision["penultimate_hidden_states"].unsqueeze(1).expand(-1, 24, -1, -1)
    vae = comfy.utils.load_torch_file(str(models / "vae" / "tiny_random_wan2.1_vae.safetensors"))
    return {
        "CONDITIONING": beside.prompts(seeds=(6,))[0],
        "LATENT": beside.latent(),
        "IMAGE": torch.rand(5, 64, 80, 3, generator=generator),
        "MASK": torch.ones(1, 64, 80),
        "VAE": comfy.sd.VAE(sd=vae, dtype=torch.float32),
        "CLIP": None,
        "AUDIO": None,
        "CLIP_VISION": None,
        "CLIP_VISION_OUTPUT": vision,
        "AUDIO_ENCODER_OUTPUT": {"encoded_audio_all_layers": list(torch.randn(13, 1, 40, 768, generator=generator))},
        "LATENT_OPERATION": beside.run("LatentOperationTonemapReinhard", multiplier=0.5)[0],
        "LORA_MODEL": load_file(models / "loras" / NAME),
        "NOISE": beside.run("RandomNoise", noise_seed=4)[0],
        "SAMPLER": beside.run("KSamplerSelect", sampler_name="euler")[0],
        "SIGMAS": torch.tensor([1.0, 0.9, 0.7, 0.4, 0.0]),
    }


def model_patches(models: Path) -> dict:
    """Node -> the MODEL_PATCH that it gets, where the host has the networks of Wan's; None: all other nodes."""
    made = {"talk": _talk, "render": _render}
    patches = {}
    for name, make in made.items():
        path = models / "model_patches" / f"{name}.safetensors"
        _write(path, {key: value.shape for key, value in make().state_dict().items()})
        patches[name] = beside.run("ModelPatchLoader", name=path.name)[0]
    return {"WanInfiniteTalkToVideo": patches["talk"], None: patches["render"]}


def _talk() -> torch.nn.Module:
    """The sound of InfiniteTalk for models of `TALK_WIDTH`, with all 40 blocks, as the host takes no less."""
    host = importlib.import_module("comfy_extras.nodes_model_patch")
    return host.MultiTalkModelPatch(
        intermediate_dim=8, in_dim=TALK_WIDTH, out_dim=64, device="meta", operations=torch.nn
    )


def _render() -> torch.nn.Module:
    """A Uni3C of two blocks, for models of 256 channels."""
    sizes = dict(in_channels=36, conv_out_dim=256, dim=256, ffn_dim=512, num_layers=2, time_embed_dim=256)
    return importlib.import_module("comfy.ldm.wan.uni3c").WanUni3CControlnet(
        **sizes, out_proj_dim=256, mid_channels=8, device="meta", operations=torch.nn
    )


def _lora_shapes(width: int) -> dict:
    """Shapes of a LoRA for three kinds of linear layers of both blocks of a model of `width`."""
    layers = {"self_attn.q": (width, width), "cross_attn.k": (width, width), "ffn.0": (2 * width, width)}
    return {
        f"diffusion_model.blocks.{block}.{layer}.lora_{side}.weight": shape
        for block in range(2)
        for layer, (rows, columns) in layers.items()
        for side, shape in {"A": (4, columns), "B": (rows, 4)}.items()
    }


def _write(path: Path, shapes: dict) -> None:
    """Write a file of weights of `shapes`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(recipe.state_dict(shapes), path)


def write_hypernetwork(path: Path, width: int) -> None:
    """Write a hypernetwork of one layer for keys and one for values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = {"linear.0.weight": (width, width), "linear.0.bias": (width,)}
    torch.save({width: [recipe.state_dict(shapes, seed) for seed in (1, 2)]}, path)
