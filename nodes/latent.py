"""Size and length of a new clip."""

import torch
from comfy_api.latest import io

from ..host import vae as host_vae
from ..host.messages import say
from ..wan_model import geometry


class WanEmptyLatent(io.ComfyNode):
    """LATENT of zeros for a clip of the asked size, in the channels and scale of the connected VAE."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanEmptyLatent",
            display_name="Wan Empty Latent",
            category="Wan/latent",
            description="Size and length of a new clip. Sides snap down to multiples of 16, the length to 4n+1 frames.",
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE that will decode the clip: it sets channels and scale."),
                io.Int.Input("width", default=832, min=16, max=geometry.MAX_SIDE, step=16, tooltip="Width in pixels."),
                io.Int.Input(
                    "height", default=480, min=16, max=geometry.MAX_SIDE, step=16, tooltip="Height in pixels."
                ),
                io.Int.Input(
                    "length",
                    default=81,
                    min=1,
                    max=geometry.MAX_LENGTH,
                    step=4,
                    tooltip="Frames, 4n+1 of them: 81 are 5 seconds at 16 frames a second, 1 makes a still image.",
                ),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=64, tooltip="Clips made at once, each from its own noise."
                ),
            ],
            outputs=[io.Latent.Output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, width=None, height=None, length=None):
        """True, or the sentence that the editor shows; a value that comes over a wire is None here."""
        try:
            check_size(width, height, length)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, vae, width, height, length, batch_size) -> io.NodeOutput:
        check_size(width, height, length)
        frames = geometry.snap_length(length)
        width, height = geometry.snap_side(width), geometry.snap_side(height)
        shape = host_vae.latent_shape(vae, batch_size, frames, height, width)
        say(cls.hidden.unique_id, f"{width}x{height}, {frames} frames = {shape[2]} latent frames")
        return io.NodeOutput({"samples": torch.zeros(shape)})


def check_size(width: int | None, height: int | None, length: int | None) -> None:
    """Raises ValueError where one of the three is out of range; None is not checked."""
    if width is not None:
        geometry.check_side("width", width)
    if height is not None:
        geometry.check_side("height", height)
    if length is not None:
        geometry.check_length(length)
