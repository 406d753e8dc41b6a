"""The text encoder (CLIP) and the image encoder (CLIP_VISION) on the host's own classes."""
