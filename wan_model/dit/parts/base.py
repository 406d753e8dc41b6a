"""The interface of a part, an addition of some variants to the network of text to video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from ..config import DiTConfig
    from ..read import Sizes
    from ..sequence import Draft

Shape = Sequence[int]


class Part:
    """A part of some variants, as a frozen dataclass of its sizes.

    It holds no state: its modules are in the network under their official names, and state of one forward is in the
    functions that `prepare` adds to the draft.

    name: its name in `variants.VARIANTS`. mark: a parameter by which a checkpoint is recognised to have it; None for a
    part without weights. conditions: the arguments of a forward that it reads.
    """

    name: ClassVar[str]
    mark: ClassVar[str | None] = None
    conditions: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def read(cls, sizes: Sizes, layers: int) -> Part:
        """Return the part of a checkpoint with `layers` blocks; raise ValueError if a tensor is missing."""
        return cls()

    def build(self, network: nn.Module, config: DiTConfig, ops, **factory) -> None:
        """Give `network` this part's modules under their official names."""

    def check(self, config: DiTConfig, given: Mapping[str, object], x: Tensor) -> None:
        """Raise ValueError if a condition is missing, or does not fit the latent x (B, in_dim, F, H, W)."""

    def prepare(self, network: nn.Module, draft: Draft) -> None:
        """Add tokens, embeddings and functions to `draft`, from the conditions that it was given."""

    def extra_tokens(self, shape: Shape, shapes: Mapping[str, Shape]) -> int:
        """Return the tokens that it adds per sample to those of a latent of `shape` (B, C, F, H, W).

        shapes: of the conditions that are given, by name.
        """
        return 0

    def extra_bytes(self, config: DiTConfig, shape: Shape, itemsize: int, shapes: Mapping[str, Shape]) -> int:
        """Return the bytes that it holds throughout the blocks; arguments as in `extra_tokens`."""
        return 0

    @property
    def extra_blocks(self) -> int:
        """Number of blocks that it runs over as many tokens as the main blocks have."""
        return 0


def check_pose(config: DiTConfig, given: Mapping[str, Any], x: Tensor) -> None:
    """Raise ValueError if `pose_latents` do not fit a latent `x` whose first frame is a reference image."""
    pose = given.get("pose_latents")
    if pose is None:
        return
    wanted = (config.out_dim, x.shape[2] - 1, *x.shape[3:])
    if pose.shape[1:] != wanted or pose.shape[0] not in (1, x.shape[0]):
        raise ValueError(
            f"The pose video is {pose.shape[0]} x {tuple(pose.shape[1:])} (batch x channels, frames, height, width) as "
            f"a latent, this clip needs {x.shape[0]} x {wanted}, a frame less than the clip, which begins with the "
            "reference image: make both for the same size and length."
        )


def check_same_size(name: str, condition: Tensor, x: Tensor) -> None:
    """Raise ValueError if batch, frames or sides of `condition` are not those of the latent `x`."""
    if condition.shape[2:] != x.shape[2:] or condition.shape[0] != x.shape[0]:
        raise ValueError(
            f"{name} is {condition.shape[0]} x {tuple(condition.shape[2:])} (batch x frames, height, width), "
            f"the latent is {x.shape[0]} x {tuple(x.shape[2:])}: make both for the same size and length."
        )
