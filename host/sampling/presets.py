"""Few-step presets: which one fits a model and its LoRAs, and the settings of a run with it."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...wan_model.dit.config import DiTConfig
from ...wan_model.variants import distilled
from ...wan_model.variants.distilled import Preset
from ..model import lora
from . import schedule
from .schedule import Schedule

NONE, AUTO = "none", "auto"
CHOICES = (NONE, AUTO, *distilled.BY_NAME)
FILES = ("unet_name", "lora_name")  # inputs of the host's loaders that name a file
CAUSAL = "self-forcing"  # the preset of a causal model of which nothing else is known
FEW = 2  # a run of more than this many times the preset's steps is reported


@dataclass(frozen=True)
class Settings:
    """Sampling settings: the sampler's widgets, or a preset's values in their place.

    low_noise_guidance: 0 is the same as guidance. sigmas: explicit noise levels, which replace steps and shift.
    """

    steps: int
    guidance: float
    low_noise_guidance: float
    shift: float
    solver: str
    sigmas: Sequence[float] | None = None

    def with_preset(self, preset: Preset, is_pair: bool) -> "Settings":
        """Return the settings of `preset`, with the given sigmas if there are any.

        is_pair: whether there are two experts; a single model takes the guidance of the second.
        """
        high, low = preset.guidance if is_pair else preset.guidance[-1:] * 2
        own = preset.sigmas if preset.timesteps is not None else None
        sigmas = own if self.sigmas is None else self.sigmas
        return Settings(preset.steps, high, low, preset.shift, preset.solver, sigmas)

    def schedule(self, denoise: float) -> Schedule:
        """Return the schedule of the run, cut to its last part if `denoise` is below 1."""
        if self.sigmas is None:
            return schedule.planned(self.steps, self.shift, self.solver, denoise)
        return schedule.given(self.sigmas, self.solver, denoise)

    @property
    def count(self) -> int:
        """Number of steps of a whole run."""
        return self.steps if self.sigmas is None else len(self.sigmas) - 1

    @property
    def guidances(self) -> tuple[float, float]:
        """Guidance of the high-noise and of the low-noise expert."""
        return self.guidance, self.low_noise_guidance or self.guidance


def preset_for(names: Iterable[str]) -> dict | None:
    """Return the preset for a model and its LoRAs by their file names, for the editor, or None if none is known.

    Keys: name (a choice of WanSampler's `preset`), about (one sentence), steps, guidance, low_noise_guidance, shift,
    solver, sigmas (a list where the family has its own, else None) and source.
    """
    preset = distilled.recognise("\n".join(names))
    if preset is None:
        return None
    high, low = preset.guidance
    return {
        "name": preset.name,
        "about": preset.about,
        "steps": preset.steps,
        "guidance": high,
        "low_noise_guidance": low,
        "shift": preset.shift,
        "solver": preset.solver,
        "sigmas": None if preset.timesteps is None else list(preset.sigmas),
        "source": preset.source,
    }


@dataclass(frozen=True)
class Choice:
    """A choice of the sampler's `preset` widget, for files of these `names`.

    name: one of `CHOICES`. widgets: the settings used without a preset. is_pair: whether there are two experts. told:
    the preset that a model tells itself, as `told_by` has it.
    """

    name: str
    widgets: Settings
    names: Sequence[str]
    is_pair: bool
    told: Preset | None = None

    @property
    def preset(self) -> Preset | None:
        """The preset chosen, or recognised with "auto"; raise ValueError for an unknown name."""
        if self.name == NONE:
            return None
        if self.name == AUTO:
            return self.known
        if self.name not in distilled.BY_NAME:
            raise ValueError(f"There is no preset named {self.name!r}: choose one of {', '.join(CHOICES)}.")
        return distilled.BY_NAME[self.name]

    @property
    def known(self) -> Preset | None:
        """The preset that the model tells itself, or the files' names."""
        return self.told or distilled.recognise("\n".join(self.names))

    @property
    def settings(self) -> Settings:
        """Settings of the run."""
        return self.widgets if self.preset is None else self.widgets.with_preset(self.preset, self.is_pair)

    def report(self) -> None:
        """Log the preset of the run, or that another would fit better."""
        preset = self.preset
        if preset is not None:
            logging.info("Preset %s. %s", preset.name, preset.about)
        elif self.name == AUTO:
            files = ", ".join(self.names) or "this model"
            logging.info("Preset auto: none is known for %s; the sampler's own settings are used.", files)
        elif (advice := advise(self.widgets, self.known)) is not None:
            logging.warning("%s", advice)


def told_by(preset: Preset | None, is_causal: bool, names: Sequence[str]) -> Preset | None:
    """Return the preset that a model tells itself: that of its header, or for a causal one the usual of these.

    names: of its file and LoRAs; where they tell a preset, a causal model's is theirs.
    """
    if preset is None and is_causal and distilled.recognise("\n".join(names)) is None:
        return distilled.BY_NAME[CAUSAL]
    return preset


def told_by_model(model, names: Sequence[str]) -> Preset | None:
    """Return `told_by` of the MODEL `model`, whose file and LoRAs have these `names`."""
    config = getattr(getattr(model.model, "diffusion_model", None), "config", None)
    is_causal = isinstance(config, DiTConfig) and config.facts.causal
    return told_by(getattr(model.model, "preset", None), is_causal, names)


def advise(settings: Settings, preset: Preset | None) -> str | None:
    """Return a sentence if `settings` do not suit files of which `preset` is known, else None."""
    if preset is None:
        return None
    if settings.count <= FEW * preset.steps and min(settings.guidances) <= max(preset.guidance[-1], 1):
        return None
    choice = f"{preset.name!r} or auto" if preset.name in distilled.BY_NAME else "auto"
    guidance = " and ".join(f"{value:g}" for value in dict.fromkeys(settings.guidances))
    return (
        f"{preset.about} The run has {settings.count} steps, guidance {guidance}: choose the preset {choice} in "
        "WanSampler."
    )


def file_names(model) -> list[str]:
    """Return the known file names of the MODEL `model` and of the LoRAs that this pack applied to it."""
    source = getattr(model.model, "source", None)
    return [name for name in (source, *lora.names_on(model)) if name is not None]


def names_upstream(prompt: Mapping[str, Mapping] | None, node_id: str | None, socket: str) -> list[str]:
    """Return the model and LoRA files of the loaders upstream of the MODEL input `socket` of a node.

    prompt: the graph as it was sent. Inputs named model are followed from node to node, so the host's own loaders are
    seen too. A LoRA of strength 0 does not count.
    """
    names, node = [], (prompt or {}).get(node_id)
    while node is not None:
        link = node["inputs"].get(socket)
        node = prompt.get(link[0]) if isinstance(link, list) else None
        inputs, socket = (node or {"inputs": {}})["inputs"], "model"
        if inputs.get("strength_model") == 0:
            continue
        names += [os.path.basename(inputs[name]) for name in FILES if isinstance(inputs.get(name), str)]
    return names
