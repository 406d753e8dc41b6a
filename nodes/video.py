"""From latents to a VIDEO that is decoded while it is saved."""

from comfy_api.latest import io

from ..host.vae import video as host_video
from ..host.vae.decoding import Decoding
from .inputs import is_connected
from .search import aliases
from .vae import tile_inputs


def video_inputs() -> list[io.Input]:
    """Return the inputs for what is added to the frames of a video."""
    return [
        io.Float.Input(
            "fps",
            default=16.0,
            min=1.0,
            max=120.0,
            step=1.0,
            tooltip="Frames per second. Wan 2.1 and A14B make 16, the 5B makes 24.",
        ),
        io.Audio.Input("audio", optional=True, tooltip="Sound of the video, cut to the length of the frames."),
    ]


WanDecoding = io.Custom("WAN_DECODING")


class WanVAEDecodeToVideo(io.ComfyNode):
    """VIDEO of a latent clip of any length."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanVAEDecodeToVideo",
            display_name="Wan VAE Decode to Video",
            category="Wan/vae",
            **aliases("vae decode", "latent to video", "streaming"),
            description=(
                "Makes a video that is decoded while SaveVideo writes it, so a clip of any length needs the memory of "
                "a few frames. Each node that reads the video decodes it again."
            ),
            inputs=[
                io.Vae.Input("vae", tooltip="From WanVAELoader. A VAE of ComfyUI's own decodes all frames at once."),
                io.Latent.Input("samples", tooltip="The latent clip; the clips of a batch follow one another."),
                *tile_inputs(),
                *video_inputs(),
            ],
            outputs=[io.Video.Output(tooltip="The video, for SaveVideo: decoded while it is saved.")],
        )

    @classmethod
    def execute(cls, vae, samples, tile_width, tile_height, fps, audio=None) -> io.NodeOutput:
        video = host_video.decode(vae, samples["samples"], (tile_height, tile_width), fps, audio)
        return io.NodeOutput(video)


class WanVAEDecodePart(io.ComfyNode):
    """VIDEO of the frames that a clip gained since its last decode."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanVAEDecodePart",
            display_name="Wan VAE Decode Part",
            category="Wan/vae",
            **aliases("vae decode", "segment", "long video", "loop"),
            description=(
                "Decodes a clip that WanContinue makes longer, part by part: only the frames that are new, from the "
                "VAE's memory of those before. The parts play one after the other as the whole clip, without a seam. "
                "A part is decoded while SaveVideo writes it."
            ),
            inputs=[
                io.Vae.Input("vae", tooltip="From WanVAELoader, the same for all parts."),
                io.Latent.Input("samples", tooltip="The clip so far, from WanSampler."),
                *tile_inputs(),
                *video_inputs(),
                WanDecoding.Input(
                    "before",
                    optional=True,
                    tooltip="The decoding of the part before. Without it this is the first part.",
                ),
            ],
            outputs=[
                io.Video.Output(tooltip="The part, for SaveVideo."),
                WanDecoding.Output(display_name="decoding", tooltip="For before of the next part's decode."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(cls, vae, samples, tile_width, tile_height, fps, audio=None, before=None) -> io.NodeOutput:
        tile, goes_on = (tile_height, tile_width), is_connected(cls.hidden, 1)
        decoding = Decoding(vae, samples["samples"], tile, before, goes_on)
        return io.NodeOutput(host_video.part(decoding, fps, audio), decoding)
