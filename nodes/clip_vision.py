"""Image conditioning for Wan 2.1 image-to-video: the CLIP image encoder for the first and last frame."""

from comfy_api.latest import io

from ..host import files
from ..host.encoders import clip_vision as host_clip_vision
from ..wan_model import checkpoint
from .loaders import validate
from .search import aliases

FOLDER = "clip_vision"


class WanClipVisionLoader(io.ComfyNode):
    """CLIP_VISION of a CLIP ViT-H/14 file."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanClipVisionLoader",
            display_name="Wan CLIP Vision Loader",
            category="Wan/loaders",
            **aliases("load clip vision", "clip_vision_h"),
            description=(
                "Loads the image encoder of Wan 2.1 image-to-video and first-last-frame models: clip_vision_h, the "
                "transformers layout, or the official models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth."
            ),
            inputs=[
                io.Combo.Input(
                    "clip_vision_name",
                    options=files.names(FOLDER),
                    tooltip="A CLIP ViT-H/14 file in models/clip_vision, such as clip_vision_h.safetensors.",
                ),
            ],
            outputs=[io.ClipVision.Output(tooltip="The image encoder, for WanClipVision.")],
        )

    @classmethod
    def validate_inputs(cls, clip_vision_name):
        return validate(FOLDER, clip_vision_name, checkpoint.CLIP_VISION, "WanClipVisionLoader")

    @classmethod
    def execute(cls, clip_vision_name) -> io.NodeOutput:
        return io.NodeOutput(host_clip_vision.load(files.path(FOLDER, clip_vision_name)))


class WanClipVision(io.ComfyNode):
    """CLIP_VISION_OUTPUT of a start image and, optionally, an end image."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanClipVision",
            display_name="Wan CLIP Vision",
            category="Wan/conditioning",
            **aliases("clip vision encode", "image encoder"),
            description=(
                "Encodes the start image for Wan 2.1 image-to-video models, and the end image too for first-last-frame "
                "models. The whole image is squeezed into a square, as in the official code. Wan 2.2 does not need it."
            ),
            inputs=[
                io.ClipVision.Input(
                    "clip_vision", tooltip="CLIP ViT-H/14, from WanClipVisionLoader or the host's own."
                ),
                io.Image.Input(
                    "start_image",
                    tooltip="The first frame; of several, the first is used. Grey becomes RGB, alpha is dropped.",
                ),
                io.Image.Input(
                    "end_image",
                    optional=True,
                    tooltip="The last frame, for first-last-frame models only; of several, the last is used.",
                ),
            ],
            outputs=[io.ClipVisionOutput.Output(tooltip="The encoded images, for WanConditioning.")],
        )

    @classmethod
    def execute(cls, clip_vision, start_image, end_image=None) -> io.NodeOutput:
        pictures = [host_clip_vision.check_picture(start_image[:1], "start_image")]
        if end_image is not None:
            pictures.append(host_clip_vision.check_picture(end_image[-1:], "end_image"))
        return io.NodeOutput(host_clip_vision.encode(clip_vision, pictures))
