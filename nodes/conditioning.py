"""A new clip from its size, length, first and last frames."""

import torch
from comfy_api.latest import io

from ..host.clips import conditioning as host_conditioning
from ..host.clips import images
from ..host.messages import say
from .latent import WanEmptyLatent, size_inputs
from .search import aliases
from .vae import tile_inputs


class WanConditioning(io.ComfyNode):
    """CONDITIONINGs and LATENT of a clip from text, a first frame, a last frame or parts of a clip to continue."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanConditioning",
            display_name="Wan Conditioning",
            category="Wan/conditioning",
            **aliases("image to video", "i2v", "first last frame", "flf2v", "start image", "WanImageToVideo"),
            description=(
                "Starts a clip for any Wan model but VACE, from first frames, last frames, both, or none (text to "
                "video). The VAE decides the form: Wan 2.1 and A14B get a mask and an image latent, the 5B keeps its "
                "first frame in the latent. Sides snap down to multiples of 16 (32 for the 5B), the "
                "length to 4n+1. Pictures are scaled to cover the clip and cropped about the centre."
            ),
            inputs=[
                io.Conditioning.Input("positive", tooltip="What the clip should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show."),
                io.Vae.Input("vae", tooltip="The VAE of the model: it sets channels and scale."),
                *size_inputs(),
                *tile_inputs(),
                io.Image.Input(
                    "start_image", optional=True, tooltip="The first frame, or several: the clip continues them."
                ),
                io.Image.Input(
                    "end_image",
                    optional=True,
                    tooltip="The last frame, or several. For 2.1 first-last-frame and A14B image-to-video models.",
                ),
                io.ClipVisionOutput.Input(
                    "clip_vision_output",
                    optional=True,
                    tooltip="From WanClipVision. Image-to-video models of Wan 2.1 need it, Wan 2.2 does not.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The positive prompt with the pictures."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt with the pictures."),
                io.Latent.Output(display_name="latent", tooltip="The new clip, for the latent of WanSampler."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, width=None, height=None, length=None):
        return WanEmptyLatent.validate_inputs(width, height, length)

    @classmethod
    def execute(
        cls,
        positive,
        negative,
        vae,
        width,
        height,
        length,
        batch_size,
        tile_width,
        tile_height,
        start_image=None,
        end_image=None,
        clip_vision_output=None,
    ) -> io.NodeOutput:
        clip = host_conditioning.new_clip(vae, width, height, length, batch_size)
        start, end = (
            None if image is None else images.rgb(image, f"{title} of WanConditioning", clip.width, clip.height)
            for title, image in (("start_image", start_image), ("end_image", end_image))
        )
        host_conditioning.check_frames(clip, start, end)
        entries = {}
        if clip_vision_output is not None:
            entries = host_conditioning.clip_vision_entries(clip_vision_output, batch_size)
        notes = images.cropping_notes("start_image", start, clip.width, clip.height)
        notes += images.cropping_notes("end_image", end, clip.width, clip.height)
        say(cls.hidden.unique_id, ". ".join([str(clip), *notes]))

        tile = (tile_height, tile_width)
        latent = {"samples": torch.zeros(clip.latent)}
        if clip.held and start is not None:
            latent = host_conditioning.held_latent(vae, clip, start, tile)
        elif start is not None or end is not None:
            entries |= host_conditioning.concat_entries(vae, clip, start, end, tile)
        return io.NodeOutput(
            host_conditioning.with_entries(positive, entries),
            host_conditioning.with_entries(negative, entries),
            latent,
        )
