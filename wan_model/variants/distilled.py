"""Models and LoRAs distilled to few steps: how each family is recognised and how its authors sample it.

Sources are the authors' own code or, where they give none, the ComfyUI template that ships the file.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..solvers import flow_sigmas

MOST_STEPS = 16  # a larger number before "steps" in a file's name counts training steps
NAMES_IN_METADATA = ("ss_output_name", "modelspec.title", "general.name")  # of LoRA trainers and GGUF files


@dataclass(frozen=True)
class Preset:
    """How to sample one family of distilled files.

    name: as a widget lists it. about: one sentence for the user. patterns: regular expressions that must all be found
    in the lower-case names of a model and its LoRAs; without any the preset is only chosen by hand. header: keys of the
    `transformer` entry of a safetensors header's `config`, any of which tells the family. solver: a key of
    `solvers.SAMPLERS`. steps, shift: of the schedule. timesteps: the authors' own list, 1000 to 0, where it is not
    their equal steps under `shift`. guidance: (high noise, low noise); a single model takes the first. source: where
    these values are published.
    """

    name: str
    about: str
    solver: str
    steps: int
    shift: float
    source: str
    patterns: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    timesteps: tuple[float, ...] | None = field(default=None, repr=False)
    guidance: tuple[float, float] = (1.0, 1.0)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The noise levels of a whole run: steps + 1 values, falling, the last 0."""
        if self.timesteps is None:
            return tuple(flow_sigmas(self.steps, self.shift, self.solver).tolist())
        return (*(timestep / 1000 for timestep in self.timesteps), 0.0)


def trig_timesteps(sigma_max: float, angles: tuple[float, ...] = (1.5, 1.4, 1.0)) -> tuple[float, ...]:
    """rCM's timesteps, 1000 to 0: its TrigFlow angles atan(sigma_max) and `angles` on the path of a flow model.

    A point cos(a) x0 + sin(a) noise, scaled to weights that add up to 1, lies at sigma = sin(a) / (cos(a) + sin(a)).
    """
    return tuple(1000 * math.sin(a) / (math.cos(a) + math.sin(a)) for a in (math.atan(sigma_max), *angles))


DMD_STEPS = (1000.0, 757.0, 522.0)
ANY_DISTILLED = r"lightx2v|lightning|distill|(?<!\d)4[-_ ]?steps?(?![a-z])"

# The first match counts: a family before the method that it is distilled with.
PRESETS = (
    Preset(
        name="animate2 distilled",
        about="This Animate 2 model is distilled: 10 steps, guidance 1, shift 5, LCM.",
        solver="lcm",
        steps=10,
        shift=5.0,
        source="ComfyUI template video_wan_animate2_distilled",
        patterns=(r"animate[-_ ]?2[-_ ]?distill",),
    ),
    Preset(
        name="animate2 lightx2v",
        about="Animate 2 with a distillation LoRA: 6 steps, guidance 1, shift 5, LCM.",
        solver="lcm",
        steps=6,
        shift=5.0,
        source="ComfyUI template video_wan_animate2",
        patterns=(r"animate[-_ ]?2", ANY_DISTILLED),
    ),
    Preset(
        name="scail2 lightx2v",
        about="SCAIL-2 with a distillation LoRA: 6 steps, guidance 1, shift 5, Euler.",
        solver="euler",
        steps=6,
        shift=5.0,
        source="ComfyUI template video_wan21_scail2_character_replacement",
        patterns=(r"scail[-_ ]?2", ANY_DISTILLED),
    ),
    Preset(
        name="bernini lightx2v",
        about="Bernini-R with a distillation LoRA (strength 3 on the high-noise expert, 1.5 on the other): 6 steps, "
        "guidance 1, shift 5, res_multistep.",
        solver="res_multistep",
        steps=6,
        shift=5.0,
        source="ComfyUI template video_bernini_r_video_editing",
        patterns=(r"bernini", ANY_DISTILLED),
    ),
    Preset(
        name="rcm a14b i2v",
        about="TurboDiffusion's image-to-video experts are distilled with rCM: 4 steps from sigma-max 200, guidance 1, "
        "LCM.",
        solver="lcm",
        steps=4,
        shift=5.0,
        source="thu-ml/TurboDiffusion, turbodiffusion/inference/wan2.2_i2v_infer.py",
        patterns=(r"turbo[-_ ]?(diffusion|wan)|(?<![a-z])rcm(?![a-z])", r"i2v"),
        timesteps=trig_timesteps(200.0),
    ),
    Preset(
        name="rcm",
        about="This model is distilled with rCM (TurboDiffusion): 4 steps from sigma-max 80, guidance 1, LCM.",
        solver="lcm",
        steps=4,
        shift=5.0,
        source="thu-ml/TurboDiffusion, turbodiffusion/inference/wan2.1_t2v_infer.py",
        patterns=(r"turbo[-_ ]?(diffusion|wan)|(?<![a-z])rcm(?![a-z])",),
        timesteps=trig_timesteps(80.0),
    ),
    Preset(
        name="fusionx",
        about="FusionX merges CausVid and others into Wan 2.1: 8 steps, guidance 1, shift 2, UniPC.",
        solver="unipc",
        steps=8,
        shift=2.0,
        source="the merge's model card: 8 to 10 steps, guidance 1, shift 1 to 2, UniPC",
        patterns=(r"fusion[-_ ]?i?x",),
    ),
    Preset(
        name="causvid 1.3b",
        about="CausVid of the 1.3B model is a 3-step distillation: guidance 1, LCM.",
        solver="lcm",
        steps=3,
        shift=8.0,
        source="tianweiy/CausVid, configs/wan_causal_dmd.yaml",
        patterns=(r"caus(al)?[-_ ]?vid", r"1[._]3b"),
        timesteps=DMD_STEPS,
    ),
    Preset(
        name="causvid",
        about="CausVid is a 9-step distillation: guidance 1, LCM, at its own noise levels.",
        solver="lcm",
        steps=9,
        shift=8.0,
        source="ModelTC/LightX2V, configs/causvid",
        patterns=(r"caus(al)?[-_ ]?vid",),
        timesteps=(999.0, 934.0, 862.0, 756.0, 603.0, 410.0, 250.0, 140.0, 74.0),
    ),
    Preset(
        name="fastwan",
        about="FastWan is a 3-step distillation (DMD): guidance 1, LCM, at its own noise levels.",
        solver="lcm",
        steps=3,
        shift=8.0,
        source="hao-ai-lab/FastVideo, fastvideo/configs/pipelines/wan.py",
        patterns=(r"fast[-_ ]?wan",),
        timesteps=DMD_STEPS,
    ),
    Preset(
        name="rolling forcing",
        about="Rolling Forcing is a 5-step distillation: guidance 1, shift 5, LCM.",
        solver="lcm",
        steps=5,
        shift=5.0,
        source="TencentARC/RollingForcing, configs",
        patterns=(r"rolling[-_ ]?forcing",),
    ),
    Preset(
        name="self-forcing",
        about="This causal model is a 4-step distillation (self-forcing, DMD): guidance 1, shift 5, LCM.",
        solver="lcm",
        steps=4,
        shift=5.0,
        source="guandeh17/Self-Forcing, configs/self_forcing_dmd.yaml and pipeline/causal_inference.py",
        patterns=(
            r"(self|causal)[-_ ]?forcing|long[-_ ]?live|krea[-_ ]?realtime|(?<![a-z])dmd2?(?![a-z])|causal[-_ ]?wan",
        ),
        header=("causal_ar",),
    ),
    Preset(
        name="lightx2v",
        about="This is a 4-step distillation (lightx2v, Lightning): 4 steps, guidance 1, shift 5, Euler.",
        solver="euler",
        steps=4,
        shift=5.0,
        source="ModelTC/LightX2V, lightx2v/models/schedulers/wan/step_distill/scheduler.py and configs/distill",
        patterns=(ANY_DISTILLED,),
    ),
    Preset(
        name="lightx2v, guided start",
        about="A 4-step distillation with guidance on the high-noise expert alone, which moves more: 4 steps, guidance "
        "3.5 then 1, shift 5, Euler.",
        solver="euler",
        steps=4,
        shift=5.0,
        source="kijai/ComfyUI-WanVideoWrapper issue 928",
        guidance=(3.5, 1.0),
    ),
)
BY_NAME = {preset.name: preset for preset in PRESETS}


def recognise(file_name: str, metadata: Mapping[str, str] | None = None) -> Preset | None:
    """Return the preset of the distilled file `file_name`, or None if it is not known to be one.

    file_name: of a model or a LoRA, or several, one a line, that work together. metadata: of a safetensors or GGUF
    header. A number of steps in the name ("8steps") replaces that of a preset whose schedule is in equal steps.
    """
    metadata = metadata or {}
    text = "\n".join([file_name, *(str(metadata[key]) for key in NAMES_IN_METADATA if key in metadata)]).lower()
    flags = _transformer(metadata)
    for preset in PRESETS:
        by_name = preset.patterns and all(re.search(pattern, text) for pattern in preset.patterns)
        if by_name or any(flags.get(key) for key in preset.header):
            return _with_steps(preset, text)
    return None


def _transformer(metadata: Mapping[str, str]) -> dict:
    """Return the `transformer` entry of the header's `config`, empty if there is none that can be read."""
    try:
        config = json.loads(metadata.get("config", "{}"))
    except ValueError:
        return {}
    found = config.get("transformer") if isinstance(config, dict) else None
    return found if isinstance(found, dict) else {}


def _with_steps(preset: Preset, text: str) -> Preset:
    named = re.search(r"(?<!\d)(\d+)[-_ ]?steps?(?![a-z])", text)
    steps = int(named[1]) if named else preset.steps
    if steps == preset.steps or not 1 <= steps <= MOST_STEPS or preset.timesteps is not None:
        return preset
    about = preset.about.replace(f"{preset.steps} steps", f"{steps} steps").replace(
        f"{preset.steps}-step", f"{steps}-step"
    )
    return replace(preset, steps=steps, about=about)
