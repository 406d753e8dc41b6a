"""A camera path as rays, added to the patch embedding (VideoX-Fun, `wan_camera_adapter.py`)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from ...variants import PATCH, TIME_STRIDE
from .base import Part

RAYS = 6  # Pluecker coordinates of a pixel's ray
STRIDE = 8  # pixels of a ray map that become channels, along height and along width


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity."""

    def __init__(self, dim, ops, **factory):
        super().__init__()
        self.conv1 = ops.Conv2d(dim, dim, kernel_size=3, padding=1, **factory)
        self.conv2 = ops.Conv2d(dim, dim, kernel_size=3, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, dim, h, w) -> the same shape."""
        return self.conv2(self.conv1(x).relu_()).add_(x)


class CameraAdapter(nn.Module):
    """Ray maps to an embedding of every token."""

    def __init__(self, channels, dim, blocks, ops, **factory):
        super().__init__()
        self.conv = ops.Conv2d(channels, dim, kernel_size=PATCH[1:], stride=PATCH[1:], **factory)
        self.residual_blocks = nn.Sequential(*(ResidualBlock(dim, ops, **factory) for _ in range(blocks)))

    def forward(self, rays: Tensor) -> Tensor:
        """rays (B, C, F, H, W) in pixels -> (B, dim, F, H / 16, W / 16)."""
        frames = rays.transpose(1, 2).flatten(0, 1)  # (B F, C, H, W)
        embedded = self.residual_blocks(self.conv(pixel_unshuffle(frames, STRIDE)))  # (B F, dim, h, w)
        return embedded.unflatten(0, (-1, rays.shape[2])).transpose(1, 2)


def fold(rays: Tensor) -> Tensor:
    """Return rays (B, 6, 4n+1, H, W) with the four frames of a latent frame as channels: (B, 24, n + 1, H, W).

    The first latent frame repeats the first frame four times.
    """
    rays = rays[:, :, [0] * (TIME_STRIDE - 1) + list(range(rays.shape[2]))]
    return rays.unflatten(2, (-1, TIME_STRIDE)).movedim(3, 2).flatten(1, 2)


@dataclass(frozen=True)
class Camera(Part):
    """A camera adapter. channels: of a folded ray map, unshuffled. blocks: residual blocks."""

    name = "camera"
    mark = "control_adapter.conv.weight"
    conditions = ("camera",)

    channels: int = RAYS * TIME_STRIDE * STRIDE * STRIDE
    blocks: int = 1

    @classmethod
    def read(cls, sizes, layers):
        return cls(sizes.size("control_adapter.conv.weight", 1), sizes.count("control_adapter.residual_blocks."))

    def build(self, network, config, ops, **factory):
        network.control_adapter = CameraAdapter(self.channels, config.dim, self.blocks, ops, **factory)

    def check(self, config, given, x):
        rays = given.get("camera")
        if rays is None:
            return
        frames, height, width = x.shape[2], STRIDE * x.shape[3], STRIDE * x.shape[4]
        length = frames if rays.shape[1] == RAYS * TIME_STRIDE else TIME_STRIDE * (frames - 1) + 1
        if rays.shape[1] not in (RAYS, RAYS * TIME_STRIDE) or tuple(rays.shape[2:]) != (length, height, width):
            raise ValueError(
                f"The camera path is {tuple(rays.shape[1:])} (channels, frames, height, width), the clip needs "
                f"({rays.shape[1]}, {length}, {height}, {width}), in {RAYS} or {RAYS * TIME_STRIDE} channels: make it "
                "for the clip's size and length."
            )

    def prepare(self, network, draft):
        """Add the embedding of `camera`, (B, 6, frames, H, W) in pixels or folded to 24 channels, to the clip's."""
        rays = draft.given.get("camera")
        if rays is not None:
            rays = network.pad_to_patch(fold(rays) if rays.shape[1] == RAYS else rays)
            draft.clip = draft.clip + network.control_adapter(rays.to(draft.x))
