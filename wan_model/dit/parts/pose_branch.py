"""Wan-Animate 2: a pose video runs through the same blocks, and each frame of the clip attends to its pose frame.

After ComfyUI's `comfy/ldm/wan/model_animate2.py`. Everything that the branch reads is the same at every step of a run;
it is computed again in each forward all the same. To keep what each block is given takes one copy of the tokens for
every block, and a change of the weights during a run would not reach it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from ...variants import TEXT_LENGTH
from ..attention import Attention
from ..config import HEAD_DIM
from ..cost import clip_tokens
from ..layers import Block, BlockInputs
from ..rope import grid_positions
from ..sequence import Draft, Sequence, to_tokens
from .base import Part, check_pose
from .clip import ONE_IMAGE

T = TypeVar("T", Tensor, "Tensor | None")

TIME = 1.0  # the timestep of the pose frames, in 0..1000
GROUPS = 4  # of heads, one after the other: keys and values of the clip with a pose frame behind them are a copy


@dataclass(frozen=True)
class PoseBranch(Part):
    """A pose video for all `layers` blocks. The first latent frame of the clip is the reference image."""

    name = "pose_branch"
    conditions = ("pose_latents", "clip_fea_pose", "context_pose", "pose_strength", "reference_strength")

    layers: int

    @classmethod
    def read(cls, sizes, layers):
        return cls(layers)

    def check(self, config, given, x):
        check_pose(config, given, x)

    def prepare(self, network, draft):
        """Have the clip's frames attend to those of `pose_latents` (B or 1, C, F - 1, H, W).

        clip_fea_pose, context_pose: what the pose video reads instead of the clip's CLIP tokens and text.
        pose_strength, reference_strength: factors of the values of the pose video, and of the reference image.
        """
        branch = Branch(network, draft) if "pose_latents" in draft.given else None
        strength = draft.given.get("reference_strength", 1.0)
        frame = math.prod(draft.grid[1:])

        def before(index, block, inputs):
            pose = branch.run(block, inputs) if branch else None
            return replace(inputs, attention=by_frame(inputs.attention, frame, pose, strength))

        draft.before_block.append(before)

    def extra_bytes(self, config, shape, itemsize, shapes):
        if "pose_latents" not in shapes:
            return 0
        tokens, pose = clip_tokens(shape), clip_tokens(shapes["pose_latents"])
        context = shape[0] * (TEXT_LENGTH + ONE_IMAGE)
        held = 3 * pose + 3 * context  # tokens with their keys and values; the same of what they read
        joined = 2 * (tokens + tokens // shape[2]) // min(GROUPS, config.heads)  # keys and values of clip and a frame
        return (held + joined) * config.dim * itemsize + pose * HEAD_DIM * torch.float32.itemsize

    @property
    def extra_blocks(self):
        return self.layers


class Branch:
    """The tokens of the pose video on their way through the blocks of one forward."""

    def __init__(self, network, draft: Draft):
        given = draft.given
        latents = network.pad_to_patch(_once(given["pose_latents"]).to(draft.x))
        known = torch.ones_like(latents[:, : network.config.in_dim - 2 * latents.shape[1]])
        embedded = network.patch_embedding(torch.cat((latents, known, latents), dim=1))
        read = self._context(network, draft)
        batch = max(len(stream) for stream in (embedded, *read) if stream is not None)
        self.context, self.image_context = (
            stream if stream is None else stream.expand(batch, -1, -1) for stream in read
        )
        self.strength = given.get("pose_strength", 1.0)
        self.time = network.embed_time(torch.full_like(draft.t[:1, :1], TIME))
        self.e = network.time_projection(self.time).unflatten(-1, (6, -1))
        grid = tuple(embedded.shape[2:])
        places = grid_positions(grid, shift=(1.0, 0.0, float(grid[2])))  # beside the clip, without its scale and shift
        tokens, share = to_tokens(embedded).expand(batch, -1, -1), draft.runtime.share
        whole = Sequence(
            rope=draft.runtime.kernels.rope_table((places,), HEAD_DIM, draft.x.device),
            times=draft.t[:1, :1],
            counts=None,
            clip=slice(0, tokens.shape[1]),
            clip_rows=slice(0, 1),
            groups=(grid[1] * grid[2],) * grid[0],
        )
        self.tokens, self.exchange = share.shard(tokens, whole), share.exchange(whole)
        self.rope = share.sequence(whole).rope

    @staticmethod
    def _context(network, draft: Draft) -> tuple[Tensor, Tensor | None]:
        """Return the embedded text and CLIP tokens of the pose video: those of the clip where it has none itself."""
        text, image = (_once(draft.given.get(name)) for name in ("context_pose", "clip_fea_pose"))
        context = _once(draft.context) if text is None else network.embed_text(text.to(draft.x))
        if image is not None:
            return context, network.img_emb(image.to(draft.x))
        return context, context if draft.given.get("text_as_image") else _once(draft.image_context)

    def run(self, block: Block, inputs: BlockInputs) -> tuple[Tensor, Tensor]:
        """Run `block` on the pose frames; return the keys and values (B or 1, tokens, dim) that the clip attends to."""
        seen: list[Tensor] = []

        def attention(q, k, v, heads):
            seen[:] = k, v
            return inputs.attention(q, k, v, heads)

        changed = {"e": self.e, "rope": self.rope, "context": self.context, "image_context": self.image_context}
        changed |= {"time": self.time, "counts": None, "after_text": (), "attention": attention}
        changed |= {"exchange": self.exchange}
        self.tokens = block(self.tokens, replace(inputs, **changed))
        k, v = seen
        return k, v if self.strength == 1 else v * self.strength


def by_frame(attention: Attention, frame: int, pose: tuple[Tensor, Tensor] | None, strength: float = 1.0) -> Attention:
    """Return self-attention of a clip whose frames, of `frame` tokens, see the whole clip and a pose frame each.

    pose: keys and values (B or 1, tokens, dim) of the frames for the second frame and all that follow, or None.
    strength: factor of the values of the first frame.
    """

    def attend(q, k, v, heads):
        if strength != 1:
            v[:, :frame] *= strength
        if pose is None:
            return attention(q, k, v, heads)
        out, at_once = torch.empty_like(q), max(1, heads // GROUPS)
        split = (x.unflatten(-1, (heads, -1)).split(at_once, dim=2) for x in (out, q, k, v, *pose))
        for group in zip(*split, strict=True):
            made, *given = (x.flatten(2) for x in group)
            _attend_by_frame(attention, frame, made, *given, heads=group[0].shape[2])
        return out

    return attend


def _attend_by_frame(attention: Attention, frame: int, out, q, k, v, pose_k, pose_v, *, heads: int) -> None:
    """Write to `out` what `by_frame` means for some of the heads."""
    length = q.shape[1]
    keys, values = (torch.cat((own, own[:, :frame]), dim=1) for own in (k, v))  # with room for a pose frame
    out[:, :frame] = attention(q[:, :frame], k, v, heads)
    for start in range(frame, length, frame):
        keys[:, length:], values[:, length:] = (of_pose[:, start - frame : start] for of_pose in (pose_k, pose_v))
        out[:, start : start + frame] = attention(q[:, start : start + frame], keys, values, heads)


def _once(x: T) -> T:
    """Return one row of `x` (B, ...) where all are the same, as those of both prompts of guidance are."""
    return x[:1] if x is not None and x.shape[0] > 1 and torch.equal(x, x[:1].expand_as(x)) else x
