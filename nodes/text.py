"""Text: the umT5 loader and the two prompts."""

from comfy_api.latest import io

from ..host import files
from ..host.encoders import clip as host_clip
from ..wan_model import checkpoint
from ..wan_model.variants import NEGATIVE_PROMPT
from .inputs import prompt
from .loaders import validate
from .search import aliases

FOLDER = "text_encoders"


class WanTextEncoderLoader(io.ComfyNode):
    """CLIP of a umT5 file."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanTextEncoderLoader",
            display_name="Wan Text Encoder Loader",
            category="Wan/loaders",
            **aliases("umt5", "t5", "load clip", "clip loader"),
            description=(
                "Loads umT5, the text encoder of every Wan model: ComfyUI's umt5_xxl files, Hugging Face's, or the "
                "official models_t5_umt5-xxl-enc-bf16.pth with spiece.model beside it. The CLIP also works in "
                "CLIPTextEncode."
            ),
            inputs=[
                io.Combo.Input(
                    "text_encoder_name",
                    options=files.names(FOLDER),
                    tooltip="A umT5 file in models/text_encoders, such as umt5_xxl_fp8_e4m3fn_scaled.safetensors.",
                ),
            ],
            outputs=[io.Clip.Output(tooltip="The text encoder, for WanTextEncode or CLIPTextEncode.")],
        )

    @classmethod
    def validate_inputs(cls, text_encoder_name):
        return validate(FOLDER, text_encoder_name, checkpoint.TEXT_ENCODER, "WanTextEncoderLoader")

    @classmethod
    def execute(cls, text_encoder_name) -> io.NodeOutput:
        return io.NodeOutput(host_clip.load(files.path(FOLDER, text_encoder_name)))


class WanTextEncode(io.ComfyNode):
    """CONDITIONING of a positive and a negative prompt."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanTextEncode",
            display_name="Wan Text Encode",
            category="Wan/conditioning",
            **aliases("prompt", "clip text encode", "negative prompt"),
            description=(
                "Turns both prompts into conditioning, cleaned as in the official code and cut at 512 tokens. Text is "
                "literal: parentheses do not weight words. For weights, use CLIPTextEncode with the same CLIP."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="umT5, from WanTextEncoderLoader or from CLIPLoader with type wan."),
                prompt(
                    "positive",
                    "What the clip shows, in English or Chinese: subject, motion, scene, camera, style.",
                ),
                prompt(
                    "negative",
                    "What the clip must not show. The default is the official one: garish colours, stillness, "
                    "overexposure, blur, subtitles, deformed hands and faces. Guidance 1 ignores it.",
                    NEGATIVE_PROMPT,
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The positive prompt, for WanSampler."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt, for WanSampler."),
            ],
        )

    @classmethod
    def execute(cls, clip, positive, negative) -> io.NodeOutput:
        return io.NodeOutput(*host_clip.encode_prompts(clip, {"positive": positive, "negative": negative}))
