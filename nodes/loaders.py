"""The model and the VAE, from a file of the host's model folders."""

from comfy_api.latest import io

from ..host import files
from ..host.model import attention as host_attention
from ..host.model import loading as host_model
from ..host.model import precision
from ..host.vae import vae as host_vae
from ..wan_model import checkpoint
from .search import aliases

VAE_DTYPES = ("auto", *precision.FLOATS)
FOLDER, NONE = "diffusion_models", "none"


def validate(folder: str, name: str, kinds: tuple[str, ...], node: str, causal: bool | None = None):
    """Return True, or the error for the editor if `name` is not a file of one of `kinds`; only the header is read.

    causal: as in `checkpoint.inspect`.
    """
    try:
        precision.expect(files.path(folder, name), kinds, node, causal)
    except ValueError as error:
        return str(error)
    return True


class WanModelLoader(io.ComfyNode):
    """MODEL: the DiT of any Wan model, recognised from its file."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanModelLoader",
            display_name="Wan Model Loader",
            category="Wan/loaders",
            **aliases("load diffusion model", "unet loader", "wan 2.1", "wan 2.2", "vace", "gguf"),
            description="Loads a Wan diffusion model. Its variant and size are read from the file.",
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=files.names(FOLDER),
                    tooltip="A Wan file in models/diffusion_models: official, repackaged for ComfyUI, diffusers or "
                    "GGUF. A model in several files is listed by its first file.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=precision.CHOICES,
                    default="auto",
                    tooltip="Number format of the weights. auto keeps the file's if the device supports it. fp8 "
                    "halves their memory. A quantised file or GGUF stays so and computes in the chosen float type.",
                ),
                io.Combo.Input(
                    "vace_name",
                    options=[NONE, *files.names(FOLDER)],
                    default=NONE,
                    optional=True,
                    tooltip="A file with VACE blocks only: makes a text-to-video model of its size a VACE model.",
                ),
                io.Combo.Input(
                    "attention",
                    options=host_attention.CHOICES,
                    default="auto",
                    optional=True,
                    tooltip="auto is ComfyUI's own choice, sdpa is torch's attention. sage is faster and less "
                    "precise. If one is missing or fails on this card, auto is used and the log says why.",
                ),
                io.Boolean.Input(
                    "compile_blocks",
                    default=False,
                    optional=True,
                    tooltip="Compiles the transformer blocks with torch.compile: the first step takes a minute longer, "
                    "later ones are faster. Needs Triton on a GPU; if it does not work, the log says why.",
                ),
                io.Combo.Input(
                    "causal",
                    options=list(host_model.CAUSAL),
                    default="auto",
                    optional=True,
                    tooltip="Whether the network is a causal one, which makes a clip in blocks of frames "
                    "(Self-Forcing, LongLive). auto reads it from the file. Choose causal for such a file that does "
                    "not say so.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, for WanSampler, KSampler, LoRA loaders and patches.")],
        )

    @classmethod
    def validate_inputs(cls, model_name):
        """Return True, or the error for the editor, which the host repeats for each input that is named here.

        Whether the file can be a causal model, if it must, is found when it is loaded.
        """
        return validate(FOLDER, model_name, checkpoint.DIT, "WanModelLoader", causal=False)

    @classmethod
    def execute(
        cls, model_name, weight_dtype, vace_name=NONE, attention="auto", compile_blocks=False, causal="auto"
    ) -> io.NodeOutput:
        if causal not in host_model.CAUSAL:
            raise ValueError(f"There is no choice {causal!r} of causal: choose one of {', '.join(host_model.CAUSAL)}.")
        vace_path = None if vace_name == NONE else files.path(FOLDER, vace_name)
        path = files.path(FOLDER, model_name)
        is_causal = host_model.CAUSAL[causal]
        return io.NodeOutput(host_model.load(path, weight_dtype, vace_path, attention, compile_blocks, is_causal))


class WanVAELoader(io.ComfyNode):
    """VAE: the Wan 2.1 or 2.2 video VAE."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanVAELoader",
            display_name="Wan VAE Loader",
            category="Wan/loaders",
            **aliases("load vae", "wan vae"),
            description="Loads a Wan video VAE: 2.1 (16 channels, also for A14B) or 2.2 (48 channels, for the 5B).",
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=files.names("vae"),
                    tooltip="A Wan VAE file in models/vae.",
                ),
                io.Combo.Input(
                    "decode_dtype",
                    options=VAE_DTYPES,
                    default="auto",
                    tooltip="Precision of decoding. auto is bfloat16 if the device supports it, which suffices.",
                ),
                io.Combo.Input(
                    "encode_dtype",
                    options=VAE_DTYPES,
                    default="auto",
                    tooltip="Precision of encoding. auto is float32: lower ones shift the colours of start images.",
                ),
            ],
            outputs=[io.Vae.Output(tooltip="The VAE, for this pack's nodes and ComfyUI's own.")],
        )

    @classmethod
    def validate_inputs(cls, vae_name):
        return validate("vae", vae_name, checkpoint.VAE, "WanVAELoader")

    @classmethod
    def execute(cls, vae_name, decode_dtype, encode_dtype) -> io.NodeOutput:
        return io.NodeOutput(host_vae.load(files.path("vae", vae_name), decode_dtype, encode_dtype))
