"""Further latents as tokens of the same patch embedding: subjects (Phantom) and in-context sources (Bernini)."""

from __future__ import annotations

from dataclasses import dataclass

from ..cost import clip_tokens
from ..sequence import Draft, Stream, to_tokens
from .base import Part


def embedded(network, draft: Draft, latents, first_frame: int = 0, source: int = 0) -> Stream:
    """Return `latents` (B, in_dim, n, H, W) through the patch embedding, as frames from `first_frame` on."""
    x = network.patch_embedding(network.pad_to_patch(latents.to(draft.x)))
    return Stream(to_tokens(x), (draft.place(tuple(x.shape[2:]), first_frame, source),))


@dataclass(frozen=True)
class Subjects(Part):
    """Latents of subjects as frames after the clip (Phantom, `phantom_wan/modules/model.py`)."""

    name = "subjects"
    conditions = ("subject_latents",)

    def prepare(self, network, draft):
        """Put `subject_latents` (B, C, n, H, W) after the clip, as the frames that follow its last."""
        if "subject_latents" in draft.given:
            draft.behind.append(embedded(network, draft, draft.given["subject_latents"], draft.grid[0]))

    def extra_tokens(self, shape, shapes):
        return clip_tokens((1, *shapes["subject_latents"][1:])) if "subject_latents" in shapes else 0


@dataclass(frozen=True)
class Sources(Part):
    """Latents of the videos and images to edit, each with its own extra rotation in the rope (Bernini)."""

    name = "sources"
    conditions = ("context_latents",)

    def prepare(self, network, draft):
        """Put each of `context_latents`, a list of (B, C, n, H, W) of any sizes, after the clip."""
        for number, latents in enumerate(draft.given.get("context_latents", ()), start=1):
            draft.behind.append(embedded(network, draft, latents, source=number))

    def extra_tokens(self, shape, shapes):
        return sum(clip_tokens((1, *source[1:])) for source in shapes.get("context_latents", ()))
