"""The pack's nodes: one file per stage of the graph."""

from comfy_api.latest import ComfyExtension, io

from .clip_vision import WanClipVision, WanClipVisionLoader
from .conditioning import WanConditioning
from .continuation import WanContinue
from .info import WanModelInfo
from .latent import WanEmptyLatent
from .loaders import WanModelLoader, WanVAELoader
from .lora import WanLoraLoader
from .parallel import WanParallel, WanParallelVAE
from .patches import WanGuidance, WanStepCache
from .sampler import WanSampler
from .stream import WanStream
from .text import WanTextEncode, WanTextEncoderLoader
from .vace import WanVACE
from .vae import WanVAEDecode, WanVAEEncode
from .video import WanVAEDecodePart, WanVAEDecodeToVideo


class WanExtension(ComfyExtension):
    """The extension that gives the host the list of node classes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            WanModelLoader,
            WanLoraLoader,
            WanVAELoader,
            WanTextEncoderLoader,
            WanTextEncode,
            WanClipVisionLoader,
            WanClipVision,
            WanConditioning,
            WanVACE,
            WanContinue,
            WanEmptyLatent,
            WanModelInfo,
            WanStepCache,
            WanGuidance,
            WanParallel,
            WanParallelVAE,
            WanSampler,
            WanStream,
            WanVAEEncode,
            WanVAEDecode,
            WanVAEDecodeToVideo,
            WanVAEDecodePart,
        ]
