"""A new clip for VACE models: control video, mask and reference pictures."""

import torch
from comfy_api.latest import io

from ..host.clips import conditioning as host_conditioning
from ..host.clips import images
from ..host.clips import vace as host_vace
from ..host.messages import say
from .latent import WanEmptyLatent, size_inputs
from .search import aliases
from .vae import tile_inputs


class WanVACE(io.ComfyNode):
    """CONDITIONINGs and LATENT of a clip that a VACE model makes; one after the other for several contexts."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanVACE",
            display_name="Wan VACE",
            category="Wan/conditioning",
            **aliases("control video", "inpaint", "reference image", "WanVaceToVideo"),
            description=(
                "Begins a clip of a Wan VACE model: follows a control video, repaints where the mask is white, shows "
                "the subjects of reference pictures. Several of these nodes in a row add up. WanSampler takes the "
                "reference frames off the result."
            ),
            inputs=[
                io.Conditioning.Input("positive", tooltip="What the clip should show, or another WanVACE's positive."),
                io.Conditioning.Input("negative", tooltip="What it should not, or another WanVACE's negative."),
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE."),
                *size_inputs(),
                *tile_inputs(),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How much this context steers the clip. Official: 1.",
                ),
                io.Image.Input(
                    "control_video",
                    optional=True,
                    tooltip="Pose, depth, scribble or the video to repaint. Longer ones are cut.",
                ),
                io.Mask.Input(
                    "control_mask",
                    optional=True,
                    tooltip="White where the clip is made anew, black where control_video stays: one, or one a frame.",
                ),
                io.Image.Input(
                    "reference_image",
                    optional=True,
                    tooltip="Pictures of subjects to show, each whole on white, as in the official code.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The positive prompt with the VACE context."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt with the VACE context."),
                io.Latent.Output(display_name="latent", tooltip="The new clip, for the latent of WanSampler."),
                io.Int.Output(
                    display_name="trim_latent",
                    tooltip="Latent frames of the references, for TrimVideoLatent behind KSampler. WanSampler takes "
                    "them off by itself.",
                ),
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
        strength,
        control_video=None,
        control_mask=None,
        reference_image=None,
    ) -> io.NodeOutput:
        clip = host_conditioning.new_clip(vae, width, height, length, batch_size)
        host_vace.check_vae(clip.latent[1])
        references = []
        if reference_image is not None:
            references = list(images.rgb(reference_image, "reference_image of WanVACE", clip.width, clip.height))
        if control_video is not None:
            control_video = images.rgb(control_video, "control_video of WanVACE", clip.width, clip.height)
        mask = host_vace.frame_masks(control_mask, control_video, clip)
        host_vace.check_previous(positive, clip, len(references))
        notes = images.lost("control_video", control_video, clip.width, clip.height)
        notes += host_vace.length_notes(clip, control_video)
        say(cls.hidden.unique_id, ". ".join([str(clip), *notes]))

        tile = (tile_height, tile_width)
        entries = host_vace.context_entries(vae, clip, control_video, mask, references, strength, tile)
        batch, channels, frames, *sides = clip.latent
        latent = {"samples": torch.zeros(batch, channels, frames + len(references), *sides)}
        if references:
            latent["trim_start"] = len(references)  # latent frames that WanSampler takes off again
        return io.NodeOutput(
            host_conditioning.with_entries(positive, entries, append=True),
            host_conditioning.with_entries(negative, entries, append=True),
            latent,
            len(references),
        )
