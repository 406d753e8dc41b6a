"""Wan 2.1 and 2.2 video models for ComfyUI, with their own DiT and a streaming causal VAE.

The host imports this file, reads `WEB_DIRECTORY` and calls `comfy_entrypoint`. Nothing heavy is imported before that.
"""

import logging
from pathlib import Path

WEB_DIRECTORY = "./web"
DEMO_MODELS = Path(__file__).resolve().parent / "tiny" / "models"


async def comfy_entrypoint():
    """The pack's extension object, as the host's V3 loader wants it."""
    try:
        from .host import files
        from .host.editor import routes
        from .nodes import WanExtension
    except (ImportError, AttributeError, TypeError, ValueError):
        # The host turns an exception here into one line and drops the nodes: leave the whole story in the log.
        logging.exception("The Wan nodes could not be loaded")
        raise
    files.offer(DEMO_MODELS)
    routes.register()
    return WanExtension()
