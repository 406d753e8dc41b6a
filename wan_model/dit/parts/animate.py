"""Wan-Animate: a pose video added to the tokens, and a face video attended to after every fifth block.

Source: `wan/modules/animate/model_animate.py` and `face_blocks.py` of Wan 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, pad

from ...variants import PATCH
from ..attention import Attention
from ..cost import clip_tokens
from .base import Part, check_pose
from .face_motion import AT_ONCE, EPS, SIDE, WIDTHS, FaceEncoder, MotionEncoder

EVERY = 5  # blocks to an adapter


class FaceBlock(nn.Module):
    """Attention of each frame's tokens to the tokens of its face."""

    def __init__(self, config, ops, **factory):
        super().__init__()
        dim, head_dim = config.dim, config.dim // config.heads
        self.heads = config.heads
        self.linear1_kv = ops.Linear(dim, 2 * dim, **factory)
        self.linear1_q = ops.Linear(dim, dim, **factory)
        self.linear2 = ops.Linear(dim, dim, **factory)
        self.q_norm = ops.RMSNorm(head_dim, eps=EPS, **factory)
        self.k_norm = ops.RMSNorm(head_dim, eps=EPS, **factory)

    def forward(self, x: Tensor, face: Tensor, attention: Attention, at_once: int) -> Tensor:
        """Return x (B, L, dim) plus attention to face (B, frames, n, dim), `at_once` frames at a time."""
        k, v = self.linear1_kv(layer_norm(face, face.shape[-1:], eps=EPS)).chunk(2, dim=-1)
        k = self._norm(self.k_norm, k)
        frames = x.unflatten(1, (face.shape[1], -1))  # (B, frames, tokens, dim)
        parts = [slice(start, start + at_once) for start in range(0, face.shape[1], at_once)]
        out = [frames[:, part] + self._seen(frames[:, part], k[:, part], v[:, part], attention) for part in parts]
        return torch.cat(out, dim=1).flatten(1, 2)

    def _seen(self, x: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
        q = self._norm(self.q_norm, self.linear1_q(layer_norm(x, x.shape[-1:], eps=EPS)))
        seen = attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), self.heads)
        return self.linear2(seen).unflatten(0, x.shape[:2])

    def _norm(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x.unflatten(-1, (self.heads, -1))).flatten(-2)


@dataclass(frozen=True)
class Animate(Part):
    """The pose embedding of `channels` latent channels, and what reads faces.

    adapters: blocks with attention to faces. groups, width: tokens of four frames of a face, and channels of each in
    their encoder. directions: of a motion.
    """

    name = "animate"
    mark = "pose_patch_embedding.weight"
    conditions = ("pose_latents", "face")

    adapters: int
    channels: int = 16
    groups: int = 4
    width: int = 1024
    directions: int = 20

    @classmethod
    def read(cls, sizes, layers):
        width = sizes.size("face_encoder.conv2.conv.bias", 0)
        return cls(
            adapters=sizes.count("face_adapter.fuser_blocks."),
            channels=sizes.size("pose_patch_embedding.weight", 1),
            groups=sizes.size("face_encoder.conv1_local.conv.bias", 0) // width,
            width=width,
            directions=sizes.size("motion_encoder.dec.direction.weight", 1),
        )

    def build(self, network, config, ops, **factory):
        network.pose_patch_embedding = ops.Conv3d(self.channels, config.dim, kernel_size=PATCH, stride=PATCH, **factory)
        network.motion_encoder = MotionEncoder(self.directions, ops, **factory)
        network.face_encoder = FaceEncoder(self.groups, self.width, config.dim, ops, **factory)
        network.face_adapter = nn.Module()
        network.face_adapter.fuser_blocks = nn.ModuleList(
            FaceBlock(config, ops, **factory) for _ in range(self.adapters)
        )

    def check(self, config, given, x):
        check_pose(config, given, x)
        face = given.get("face")
        if face is None:
            return
        if face.ndim != 5 or face.shape[1] != 3 or face.shape[3:] != (SIDE, SIDE) or face.shape[0] not in (1, len(x)):
            raise ValueError(
                f"The face video is {tuple(face.shape)}, this {config.variant} model takes ({len(x)}, 3, frames, "
                f"{SIDE}, {SIDE}) in [-1, 1]: crop the face and resize it to {SIDE} x {SIDE} pixels."
            )

    def prepare(self, network, draft):
        """Add `pose_latents` (B, C, F - 1, H, W) to the frames behind the reference image.

        face: pixels (B or 1, 3, n, 512, 512) in [-1, 1], one for each frame of the video; None leaves the adapter out.
        """
        pose = draft.given.get("pose_latents")
        if pose is not None:
            draft.clip[:, :, 1:] += network.pose_patch_embedding(network.pad_to_patch(pose.to(draft.x)))
        if "face" not in draft.given:
            return
        frames, height, width = draft.grid
        face = face_tokens(network, draft.given["face"].to(draft.x), frames).expand(len(draft.x), -1, -1, -1)
        attention = draft.runtime.cross_attention or draft.runtime.attention
        chunk, blocks = draft.runtime.chunk, network.face_adapter.fuser_blocks
        at_once = frames if chunk is None else max(1, chunk // (len(draft.x) * height * width))

        def after(index, x):
            number, rest = divmod(index, EVERY)
            return x if rest or number >= len(blocks) else blocks[number](x, face, attention, at_once)

        draft.after_block.append(after)

    def extra_bytes(self, config, shape, itemsize, shapes):
        if "face" not in shapes:
            return 0
        tokens = shape[0] * shape[2] * (self.groups + 1) * config.dim
        first = AT_ONCE * WIDTHS[0] * SIDE**2  # values of a feature map
        return (tokens + 5 * first) * itemsize + clip_tokens(shape) * config.dim * itemsize


def face_tokens(network, face: Tensor, frames: int) -> Tensor:
    """Return the tokens (B, frames, n, dim) of a face video (B, 3, n, 512, 512): none for the reference image."""
    motion = network.motion_encoder(face.transpose(1, 2).flatten(0, 1)).unflatten(0, (face.shape[0], -1))
    tokens = network.face_encoder(motion)
    return pad(tokens, (0, 0, 0, 0, 1, max(0, frames - 1 - tokens.shape[1])))[:, :frames]
