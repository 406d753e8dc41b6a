"""Suggestions for a run: the settings that its distilled files were made for."""

from collections.abc import Sequence

from ...wan_model.messages import Message
from ..sampling import presets


def suggest(names: Sequence[str]) -> tuple[Message, dict[str, object]] | None:
    """Return a message and values of WanSampler's widgets for `names`, files of models and LoRAs that work together.

    None if no file is known to be distilled.
    """
    preset = presets.preset_for(names)
    if preset is None:
        return None
    distilled = ", ".join([name for name in names if presets.preset_for([name])] or names)
    settings = {name: preset[name] for name in ("steps", "guidance", "shift", "solver")}
    same = preset["low_noise_guidance"] == preset["guidance"]
    settings["low_noise_guidance"] = 0 if same else preset["low_noise_guidance"]
    if preset["sigmas"] is None:
        return _by_widgets(distilled, **settings), settings
    return _by_name(distilled, preset), {**settings, "preset": preset["name"]}


def _by_widgets(files: str, steps: int, guidance: float, shift: float, solver: str, **_) -> Message:
    return Message(
        "distilled",
        "Distilled to {steps} steps ({files}): set {steps} steps, guidance {guidance:g}, shift {shift:g} and {solver}.",
        files=files, steps=steps, guidance=guidance, shift=shift, solver=solver,
    )  # fmt: skip


def _by_name(files: str, preset: dict) -> Message:
    return Message(
        "distilled_with_own_levels",
        "Distilled to {steps} steps at noise levels of its own ({files}): choose the preset {preset}.",
        files=files, steps=preset["steps"], preset=preset["name"],
    )  # fmt: skip
