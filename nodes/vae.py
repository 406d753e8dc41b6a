"""Nodes between images and latents."""

from comfy_api.latest import Input, io

from ..host.vae import vae as host_vae
from ..host.vae import video as host_video
from .search import aliases


def tile_inputs() -> list[io.Int.Input]:
    """Return the two tile widgets of every node that runs the VAE."""
    tip = "{} of a tile in pixels. 0 in both: as large as the free memory allows. Tiles leave no seams."
    return [
        io.Int.Input("tile_width", default=0, min=0, max=8192, step=16, tooltip=tip.format("Width")),
        io.Int.Input("tile_height", default=0, min=0, max=8192, step=16, tooltip=tip.format("Height")),
    ]


class WanVAEDecode(io.ComfyNode):
    """IMAGE: every frame of a latent clip."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanVAEDecode",
            display_name="Wan VAE Decode",
            category="Wan/vae",
            **aliases("vae decode", "latent to images"),
            description="Decodes a latent clip to images, one latent frame at a time, in tiles if memory is short.",
            inputs=[
                io.Vae.Input("vae", tooltip="From WanVAELoader."),
                io.Latent.Input("samples", tooltip="The latent clip."),
                *tile_inputs(),
            ],
            outputs=[io.Image.Output(tooltip="Every frame, in order; the clips of a batch follow one another.")],
        )

    @classmethod
    def execute(cls, vae, samples, tile_width, tile_height) -> io.NodeOutput:
        frames = host_vae.decode(vae, samples["samples"], (tile_height, tile_width))
        return io.NodeOutput(frames.flatten(0, 1))  # (B, T, H, W, 3) -> (B * T, H, W, 3)


class WanVAEEncode(io.ComfyNode):
    """LATENT of a clip of images or of a video."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanVAEEncode",
            display_name="Wan VAE Encode",
            category="Wan/vae",
            **aliases("vae encode", "video to latent"),
            description=(
                "Encodes images or a video as one clip. Frames beyond the last 4n+1 are dropped, sides are cropped. A "
                "video is read frame by frame."
            ),
            inputs=[
                io.Vae.Input("vae", tooltip="From WanVAELoader."),
                io.MultiType.Input(
                    "images",
                    [io.Image, io.Video],
                    tooltip="The frames of one clip, in order, or a video such as LoadVideo's.",
                ),
                *tile_inputs(),
            ],
            outputs=[io.Latent.Output(tooltip="The clip, for the latent of WanSampler with denoise below 1.")],
        )

    @classmethod
    def execute(cls, vae, images, tile_width, tile_height) -> io.NodeOutput:
        encode = host_video.encode if isinstance(images, Input.Video) else host_vae.encode
        return io.NodeOutput({"samples": encode(vae, images, (tile_height, tile_width))})
