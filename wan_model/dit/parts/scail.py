"""SCAIL: reference frames before the clip, a pose video after it, and in SCAIL-2 masks that match persons.

Follows `SCAILWanModel` and `SCAIL2WanModel` of ComfyUI, since the authors' code is written for another framework.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...variants import PATCH
from ..cost import clip_tokens
from ..rope import grid_positions
from ..sequence import Draft, Stream, to_tokens
from .base import Part

APART = 120.0  # rotary rows or columns between streams that show the same place


@dataclass(frozen=True)
class Scail(Part):
    """A patch embedding for the pose video. channels: of the pose latent (16) and its mask (4)."""

    name = "scail"
    mark = "patch_embedding_pose.weight"
    conditions = ("ref_latent", "pose_latents", "is_animation")

    channels: int = 20

    @classmethod
    def read(cls, sizes, layers):
        return cls(sizes.size("patch_embedding_pose.weight", 1))

    def build(self, network, config, ops, **factory):
        network.patch_embedding_pose = ops.Conv3d(self.channels, config.dim, kernel_size=PATCH, stride=PATCH, **factory)

    def check(self, config, given, x):
        for name, what in (("ref_latent", "reference"), ("pose_latents", "pose video")):
            latents = given.get(name)
            if latents is not None and latents.shape[1] != self.channels:
                raise ValueError(
                    f"The {what} has {latents.shape[1]} channels, this {config.variant} model takes {self.channels} "
                    "(16 of the latent and a mask of 4)."
                )
        pose = given.get("pose_latents")
        if pose is not None and pose.shape[2] != x.shape[2]:
            raise ValueError(
                f"The pose video has {pose.shape[2]} latent frames and the clip {x.shape[2]}: give a pose video of the "
                "clip's length."
            )

    def prepare(self, network, draft):
        """Put ref_latent (B, 20, n, H, W) before the clip and pose_latents (B, 20, F, h, w) after it.

        Of several reference frames the last is the main one. With is_animation false (SCAIL-2 replaces a person in the
        driving video) references are below the clip instead of before it in time.
        """
        reference, pose = draft.given.get("ref_latent"), draft.given.get("pose_latents")
        count = 0 if reference is None else reference.shape[2]
        replaces = not draft.given.get("is_animation", True)
        draft.first_frame = max(count - 1, 0) if replaces else count
        if reference is not None:
            x = network.patch_embedding(network.pad_to_patch(reference.to(draft.x)))
            grid = tuple(x.shape[2:])
            place = grid_positions(grid, shift=(0.0, APART, 0.0)) if replaces else draft.place(grid)
            draft.front.append(Stream(to_tokens(x), (place,)))
        if pose is not None:
            draft.behind.append(self.pose_stream(network, draft, network.pad_to_patch(pose.to(draft.x))))

    def pose_stream(self, network, draft: Draft, pose: Tensor) -> Stream:
        """Return the tokens of the pose video, each centred on the clip's pixels that it covers, shifted by `APART`."""
        x = network.patch_embedding_pose(pose)
        rows, columns = (ours / theirs for ours, theirs in zip(draft.sides, pose.shape[3:], strict=True))
        shift = (float(draft.first_frame), (rows - 1) / 2, APART + (columns - 1) / 2)
        place = grid_positions(tuple(x.shape[2:]), scale=(1.0, rows, columns), shift=shift)
        return Stream(to_tokens(x), (place,))

    def extra_tokens(self, shape, shapes):
        given = (shapes[name] for name in ("ref_latent", "pose_latents") if name in shapes)
        return sum(clip_tokens((1, *condition[1:])) for condition in given)


@dataclass(frozen=True)
class ScailMasks(Part):
    """An embedding of masks that is added to the masked tokens (SCAIL-2). channels: of a mask."""

    name = "scail_masks"
    mark = "patch_embedding_mask.weight"
    conditions = ("ref_masks", "pose_masks")

    channels: int = 28

    @classmethod
    def read(cls, sizes, layers):
        return cls(sizes.size("patch_embedding_mask.weight", 1))

    def build(self, network, config, ops, **factory):
        network.patch_embedding_mask = ops.Conv3d(self.channels, config.dim, kernel_size=PATCH, stride=PATCH, **factory)

    def check(self, config, given, x):
        reference = given.get("ref_latent")
        frames = x.shape[2] + (0 if reference is None else reference.shape[2])
        masks = given.get("ref_masks")
        if masks is not None and masks.shape[2] != frames:
            raise ValueError(
                f"The reference masks have {masks.shape[2]} frames, the references and the clip together {frames}: "
                "make the masks for these references and this length."
            )

    def prepare(self, network, draft):
        """Add ref_masks (B, 28, n + F, H, W) to references and clip, and pose_masks (B, 28, F, h, w) to the pose."""

        def embedded(masks: Tensor) -> Tensor:
            return network.patch_embedding_mask(network.pad_to_patch(masks.to(draft.x)))

        if (masks := draft.given.get("ref_masks")) is not None:
            masks = embedded(masks)  # (B, dim, n + F, h, w)
            count = masks.shape[2] - draft.grid[0]
            draft.clip = draft.clip + masks[:, :, count:]
            draft.front = [_added(stream, masks[:, :, :count]) for stream in draft.front]
        if (masks := draft.given.get("pose_masks")) is not None:
            draft.behind = [_added(stream, embedded(masks)) for stream in draft.behind]


def _added(stream: Stream, embedding: Tensor) -> Stream:
    return Stream(stream.tokens + to_tokens(embedding), stream.positions, stream.time)
