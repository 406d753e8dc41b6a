"""The next part of a long clip."""

from comfy_api.latest import io

from ..host.clips import next_part
from ..host.messages import say
from ..host.sampling import presets
from ..host.sampling.sampling import BEFORE, TRIM
from ..host.sampling.unfinished import Unfinished
from ..wan_model import geometry
from .latent import WanEmptyLatent
from .search import aliases
from .vae import tile_inputs


def layout_inputs() -> list:
    """Return the inputs for the length of the part and how it is given the last frames."""
    return [
        io.Int.Input(
            "length",
            default=81,
            min=1,
            max=geometry.MAX_LENGTH,
            step=4,
            tooltip="Frames of the part, 4n+1, those that it shares with the clip before included.",
        ),
        io.Int.Input(
            "overlap",
            default=0,
            min=0,
            max=40,
            tooltip="Latent frames (4 frames each) that the part repeats from the clip before. 0 is the "
            "model's own number.",
        ),
        io.Combo.Input(
            "layout",
            options=list(next_part.LAYOUTS),
            default=next_part.AUTO,
            tooltip="For image-to-video models. anchor: the first frame, the last ones, then zeros, as the "
            "SVI 2.0 Pro LoRAs want it. plain: the last frames, then grey. auto looks for such a LoRA.",
        ),
    ]


class WanContinue(io.ComfyNode):
    """CONDITIONINGs and LATENT of the next part of a clip."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanContinue",
            display_name="Wan Continue",
            category="Wan/conditioning",
            **aliases("extend video", "long video", "svi", "continue", "next segment", "loop", "WanImageToVideoSVIPro"),
            description=(
                "Begins the next part of a clip where the last one ended, in latents: nothing is decoded or encoded "
                "at the joint. WanSampler makes the part and returns the longer clip. Each part has a prompt, seed "
                "and LoRAs of its own; several in a row, or a loop, make a long clip."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model of the part, with its LoRAs; of A14B the high-noise one. It decides how the "
                    "last frames are given.",
                ),
                io.Conditioning.Input("positive", tooltip="What the part should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show."),
                *layout_inputs(),
                *tile_inputs(),
                io.Latent.Input(
                    "previous",
                    optional=True,
                    tooltip="The clip so far, from WanSampler, or the encoded first picture. S2V and Animate begin "
                    "without it.",
                ),
                io.Latent.Input(
                    "anchor",
                    optional=True,
                    tooltip="An encoded picture for the layout anchor. Without it, the first frame of the clip.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="The model's VAE, for the grey frames of the layout plain and of VACE. The others do "
                    "without.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The positive prompt with the last frames."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt with the last frames."),
                io.Latent.Output(display_name="latent", tooltip="The part, for the latent of WanSampler."),
                io.Int.Output(
                    display_name="trim_latent",
                    tooltip="Latent frames that are not new, for TrimVideoLatent and LatentConcat behind KSampler. "
                    "WanSampler joins the parts by itself.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def validate_inputs(cls, length=None):
        return WanEmptyLatent.validate_inputs(length=length)

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        length,
        overlap,
        layout,
        tile_width,
        tile_height,
        previous=None,
        anchor=None,
        vae=None,
    ) -> io.NodeOutput:
        Unfinished.refuse(previous, "previous of WanContinue")
        variant = next_part.variant_of(model)
        names = presets.file_names(model) + presets.names_upstream(cls.hidden.prompt, cls.hidden.unique_id, "model")
        way, given = next_part.way_of(variant, layout, names), positive[0][1]
        options = {"vae": vae, "tile": (tile_height, tile_width)}
        part = next_part.begin(way, given, previous, anchor, length, overlap, **options)
        next_part.check_model(variant, model.get_model_object("latent_format").latent_channels, part)
        prompts = [next_part.with_part(prompt, way, part) for prompt in (positive, negative)]
        latent, old = next_part.latent_of(way, part, prompts[0][0][1])
        say(cls.hidden.unique_id, f"{latent['samples'].shape[2] - old} new latent frames, {part.shared} shared")
        return io.NodeOutput(*prompts, {**latent, TRIM: old, BEFORE: previous or {"samples": part.previous}}, old)
