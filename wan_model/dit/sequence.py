"""The tokens of one forward: the clip's, and streams of further tokens that parts put before or after them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .rope import Positions, grid_positions
from .runtime import Runtime

if TYPE_CHECKING:
    from .layers import Block, BlockInputs, Head

BeforeBlock = Callable[[int, Any, "BlockInputs"], "BlockInputs"]  # Any: a `Block`, or its compiled form
AfterText = Callable[["Block", Tensor], Tensor]
AfterBlock = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Stream:
    """Tokens that take part in attention and are removed at the end.

    tokens: (B, n, dim). positions: of the n tokens, grid by grid. time: their timestep in 0..1000; None for the clip's
    (the last frame's, if frames have different ones).
    """

    tokens: Tensor
    positions: tuple[Positions, ...]
    time: float | None = None


@dataclass
class Draft:
    """State of a forward between the patch embedding and the blocks, to which the parts add.

    given: the conditions of the call by name. x: the latent with its condition channels, sides padded to whole
    patches (B, in_dim, F, H, W); sides: H and W before that. t: timesteps (B or 1, 1 or F). clip: embedded patches
    (B, dim, F, H / 2, W / 2); grid: their F, H / 2 and W / 2. context: embedded text (B,
    n, dim). image_context: as in `BlockInputs`. head, clip_positions: replacements for the network's head and for
    positions from `first_frame` on. first_frame: rotary position of the clip's first frame. front, behind: streams
    before and behind the clip's tokens. before_block: called with the index of a block, the block and its inputs,
    returns the inputs to run it with. after_text: as in `BlockInputs`. after_block: called with the index of a
    block and its result (B, L, dim), returns the new one. whole, held: the sequence of all tokens, and of those that
    this device holds; known from `take_tokens` on, so in the functions above.
    """

    given: Mapping[str, Any]
    x: Tensor
    sides: tuple[int, int]
    t: Tensor
    clip: Tensor
    context: Tensor
    runtime: Runtime
    image_context: Tensor | None = None
    head: Head | None = None
    clip_positions: Positions | None = None
    first_frame: int = 0
    front: list[Stream] = field(default_factory=list)
    behind: list[Stream] = field(default_factory=list)
    before_block: list[BeforeBlock] = field(default_factory=list)
    after_text: list[AfterText] = field(default_factory=list)
    after_block: list[AfterBlock] = field(default_factory=list)
    whole: Sequence = field(init=False)
    held: Sequence = field(init=False)

    def __post_init__(self) -> None:
        frames, rows, columns = self.clip.shape[2:]
        self.grid = frames, rows, columns

    @property
    def positions(self) -> tuple[Positions, ...]:
        """Rotary positions of all tokens."""
        clip = self.clip_positions or self.place(self.grid, self.first_frame)
        groups = (*(s.positions for s in self.front), (clip,), *(s.positions for s in self.behind))
        return tuple(positions for group in groups for positions in group)

    def place(self, grid: tuple[int, int, int], first_frame: int = 0, source: int = 0) -> Positions:
        """Return the positions of a grid of tokens from `first_frame` on, scaled and shifted as the runtime sets."""
        scale, shift = self.runtime.rope_scale, self.runtime.rope_shift
        start = (shift[0] + scale[0] * first_frame, *shift[1:])
        return grid_positions(grid, scale=scale, shift=start, source=source)

    def sequence(self, rope: Tensor) -> Sequence:
        """Return the sequence of all tokens. rope: the table of `positions`."""
        runs = [*map(self._run, self.front), *self._clip_runs(), *map(self._run, self.behind)]
        merged = [(key, sum(run[1] for run in equal)) for key, equal in groupby(runs, lambda run: run[0])]
        first = [key for key, _ in merged].index(("clip", 0))
        counts = tuple(count for _, count in merged)
        return Sequence(
            rope=rope,
            times=torch.cat([self._time(key) for key, _ in merged], dim=1),
            counts=None if len(set(counts)) == 1 else counts,
            clip=slice(self.front_tokens, self.front_tokens + math.prod(self.grid)),
            clip_rows=slice(first, first + self.t.shape[1]),
            groups=(*map(_length, self.front), *self.frames, *map(_length, self.behind)),
        )

    @property
    def front_tokens(self) -> int:
        """Tokens before the clip's."""
        return sum(map(_length, self.front))

    def take_tokens(self, rope: Tensor) -> Tensor:
        """Return the tokens (B, L, dim) of this device in order, and drop the draft's references, so that blocks can
        free them. rope: the table of `positions`.
        """
        self.whole = self.sequence(rope)
        self.held = self.runtime.share.sequence(self.whole)
        clip = self.clip.flatten(2).transpose(1, 2)  # no copy yet: this device may hold a part
        groups = [*(s.tokens for s in self.front), clip, *(s.tokens for s in self.behind)]
        del self.clip
        self.front, self.behind = [], []
        tokens = clip if len(groups) == 1 else torch.cat(groups, dim=1)
        return self.runtime.share.shard(tokens, self.whole).contiguous()

    @property
    def frames(self) -> tuple[int, ...]:
        """The clip's tokens as `Sequence.groups`: those of each frame."""
        frames, rows, columns = self.grid
        return (rows * columns,) * frames

    def _clip_runs(self) -> list[tuple[tuple[str, int], int]]:
        """Return (key of the timestep, tokens) of each run of the clip's tokens with one timestep."""
        rows, (frames, height, width) = self.t.shape[1], self.grid
        return [(("clip", i), frames * height * width // rows) for i in range(rows)]

    def _run(self, stream: Stream) -> tuple[object, int]:
        key = ("clip", self.t.shape[1] - 1) if stream.time is None else stream.time
        return key, stream.tokens.shape[1]

    def _time(self, key) -> Tensor:
        """Return the timestep (B or 1, 1) that `key` stands for."""
        return self.t[:, key[1] : key[1] + 1] if isinstance(key, tuple) else torch.full_like(self.t[:, :1], key)


@dataclass(frozen=True)
class Sequence:
    """Order and modulation rows of the L tokens of a forward.

    rope: table of L rows. times: timesteps (B or 1, R). counts: tokens of each timestep, None if it is the same for
    all. clip: slice of the clip's tokens. clip_rows: slice of `times` that applies to them. groups: the L tokens of the
    whole sequence as numbers of consecutive ones: those of a stream, or of a frame of the clip. Devices share each.
    """

    rope: Tensor
    times: Tensor
    counts: tuple[int, ...] | None
    clip: slice
    clip_rows: slice
    groups: tuple[int, ...]


def _length(stream: Stream) -> int:
    return stream.tokens.shape[1]


def to_tokens(x: Tensor) -> Tensor:
    """Return (B, dim, F, H, W) as contiguous (B, F * H * W, dim)."""
    return x.flatten(2).transpose(1, 2).contiguous()
