"""Size and length of a new clip."""

import torch
from comfy_api.latest import io

from ..host.clips.conditioning import new_clip
from ..host.messages import say
from ..wan_model import geometry
from .search import aliases


def side_inputs() -> list[io.Int.Input]:
    """Return the widgets for the size of a new clip or video."""
    side = {"min": geometry.MIN_SIDE, "max": geometry.MAX_SIDE, "step": 16}
    return [
        io.Int.Input("width", default=832, tooltip="Width in pixels.", **side),
        io.Int.Input("height", default=480, tooltip="Height in pixels.", **side),
    ]


def size_inputs() -> list[io.Int.Input]:
    """Return the widgets of every node that begins a new clip."""
    length_tip = "Number of frames, 4n+1: 81 is 5 seconds at 16 frames per second, 1 is a still image."
    batch_tip = "Clips sampled at once, each from its own noise."
    return [
        *side_inputs(),
        io.Int.Input("length", default=81, min=1, max=geometry.MAX_LENGTH, step=4, tooltip=length_tip),
        io.Int.Input("batch_size", default=1, min=1, max=64, tooltip=batch_tip),
    ]


class WanEmptyLatent(io.ComfyNode):
    """LATENT of zeros for a clip of the asked size, in the channels and scale of the connected VAE."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanEmptyLatent",
            display_name="Wan Empty Latent",
            category="Wan/latent",
            **aliases("empty video latent", "text to video", "t2v", "resolution", "frames"),
            description="Size and length of a new clip. Sides snap down to multiples of 16 (32 for the 5B).",
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE that will decode the clip: it sets channels and scale."),
                *size_inputs(),
            ],
            outputs=[io.Latent.Output(tooltip="The empty clip, for the latent of WanSampler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, width=None, height=None, length=None):
        """Return True, or the error for the editor. An input with a link is None here."""
        try:
            check_size(width, height, length)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, vae, width, height, length, batch_size) -> io.NodeOutput:
        clip = new_clip(vae, width, height, length, batch_size)
        say(cls.hidden.unique_id, str(clip))
        return io.NodeOutput({"samples": torch.zeros(clip.latent)})


def check_size(width: int | None, height: int | None, length: int | None) -> None:
    """Raise ValueError if one of the three is out of range; None is not checked."""
    if width is not None:
        geometry.check_side("width", width)
    if height is not None:
        geometry.check_side("height", height)
    if length is not None:
        geometry.check_length(length)
