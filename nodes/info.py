"""Facts about a model file."""

from comfy_api.latest import io

from ..host import files
from ..host.editor import info
from ..host.messages import say
from .search import aliases


class WanModelInfo(io.ComfyNode):
    """STRING about a model file, from its header."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanModelInfo",
            display_name="Wan Model Info",
            category="Wan/loaders",
            **aliases("what is this file", "checkpoint info", "memory"),
            description=(
                "Shows a model file's variant, size, precision and layout, the memory of its weights, and the VAE, "
                "text encoder and CLIP vision that it needs. Reads only the header."
            ),
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[f"{folder}/{name}" for folder in info.FOLDERS for name in files.names(folder)],
                    tooltip="A file in models/diffusion_models, vae, text_encoders or clip_vision.",
                ),
            ],
            outputs=[io.String.Output(display_name="text", tooltip="The facts about the file.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        folder, _, name = file.partition("/")
        text = info.sentence(info.describe(folder, name))
        say(cls.hidden.unique_id, text)
        return io.NodeOutput(text)
