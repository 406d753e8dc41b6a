"""From latents to a VIDEO that is decoded while it is saved."""

from comfy_api.latest import io

from ..host.vae import video as host_video
from .search import aliases
from .vae import tile_inputs


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
                io.Float.Input(
                    "fps",
                    default=16.0,
                    min=1.0,
                    max=120.0,
                    step=1.0,
                    tooltip="Frames per second. Wan 2.1 and A14B make 16, the 5B makes 24.",
                ),
                io.Audio.Input("audio", optional=True, tooltip="Sound of the video, cut to the length of the frames."),
            ],
            outputs=[io.Video.Output(tooltip="The video, for SaveVideo: decoded while it is saved.")],
        )

    @classmethod
    def execute(cls, vae, samples, tile_width, tile_height, fps, audio=None) -> io.NodeOutput:
        video = host_video.decode(vae, samples["samples"], (tile_height, tile_width), fps, audio)
        return io.NodeOutput(video)
