"""The keys and values of frames that are made already, for the blocks of frames that come after them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..dit.attention import Attention
from ..dit.config import DiTConfig
from ..dit.cost import clip_tokens
from ..dit.layers import Block, BlockInputs
from ..dit.rope import Positions, rope_table, rotate_
from ..dit.runtime import Runtime
from ..dit.sequence import BeforeBlock
from ..variants import TEXT_LENGTH

Attend = Callable[[int, Attention], Attention]
"""Makes the self-attention of a block of the network, of the block's index and the attention that it would have."""


class Cache:
    """Keys and values of the blocks of one network, for one prompt: a value that belongs to the caller of a rollout.

    A frame keeps its slot until it is dropped, so nothing moves: attention does not mind the order of the keys. Keys
    are stored rotated at their absolute positions.

    capacity: frames held at most. sink: the first frames of all, which are never dropped. device: where they lie; None
    for where they are made.
    """

    def __init__(self, capacity: int, sink: int = 0, device: torch.device | str | None = None):
        self.capacity, self.sink, self.device = capacity, sink, device
        self.slots: dict[int, int] = {}  # number of a frame to its slot
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values (B, slots, tokens of a frame, dim)
        self.text: dict[int, list[tuple[Tensor, Tensor]]] = {}  # as in `BlockInputs.keys_values`

    @property
    def nbytes(self) -> int:
        """Bytes of all that it holds."""
        pairs = (*self.layers.values(), *(pair for pairs in self.text.values() for pair in pairs))
        return sum(tensor.nbytes for pair in pairs for tensor in pair)

    def make_room(self, frames: Sequence[int]) -> None:
        """Give each of `frames` a slot; where there is none left, the oldest frame that is no sink is dropped."""
        for frame in frames:
            if frame in self.slots:
                continue
            slot = len(self.slots)
            if slot == self.capacity:
                slot = self.slots.pop(min(held for held in self.slots if held >= self.sink))
            self.slots[frame] = slot

    def refreshed(self, length: int) -> int:
        """Return how many of the last of `length` finished frames are made anew under a new prompt.

        All that are held, but for the sink once frames have been dropped: its first prompt is then all that there is.
        """
        return length if length <= self.capacity else self.capacity - self.sink

    def state(self) -> tuple[dict[str, Tensor], list[list[int]]]:
        """Return keys and values by name, and (frame, slot) of all frames. The text's are made anew by `restore`."""
        tensors = {f"{index}.{part}": kept[part] for index, kept in self.layers.items() for part in (0, 1)}
        return tensors, [list(pair) for pair in self.slots.items()]

    def restore(self, tensors: Mapping[str, Tensor], slots: Sequence[Sequence[int]], device: torch.device) -> None:
        """Go on from what `state` returned. device: where the network runs."""
        where = self.device or device
        self.slots = {frame: slot for frame, slot in slots}
        indices = sorted({int(name.split(".")[0]) for name in tensors})
        self.layers = {index: (tensors[f"{index}.0"].to(where), tensors[f"{index}.1"].to(where)) for index in indices}
        self.text = {}

    def write(self, index: int, frames: Sequence[int], keys: Tensor, values: Tensor) -> None:
        """Store keys and values (B, tokens, dim) of `frames`, which have slots, for block `index` of the network."""
        new = [part.unflatten(1, (len(frames), -1)) for part in (keys, values)]  # (B, n, tokens of a frame, dim)
        if index not in self.layers:
            batch, _, tokens, dim = new[0].shape
            shape = (batch, self.capacity, tokens, dim)
            self.layers[index] = tuple(part.new_empty(shape, device=self.device or part.device) for part in new)
        place = _place([self.slots[frame] for frame in frames])
        for whole, part in zip(self.layers[index], new, strict=True):
            whole[:, place] = part.to(whole.device)

    def read(
        self, index: int, frames: Sequence[int], heads: int, device: torch.device, sink_shift: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, tokens, dim) of `frames`, in the order of their slots, on `device`.

        sink_shift: frames by which the keys of the sink are put further on in time.
        """
        place = _place(sorted(self.slots[frame] for frame in frames))
        keys, values = (part[:, place].flatten(1, 2).to(device) for part in self.layers[index])
        sinks = sum(frame < self.sink for frame in frames)
        if sinks and sink_shift:
            tokens = keys.shape[1] // len(frames)
            turn = Positions((float(sink_shift),) * sinks, (0.0,) * tokens, (0.0,))
            table = rope_table([turn], keys.shape[2] // heads, device)
            moved = rotate_(keys[:, : sinks * tokens].clone(), table)
            keys = torch.cat((moved, keys[:, sinks * tokens :]), dim=1)
        return keys, values

    def attend_held(self, frames: Sequence[int], *, near_sink: bool = False) -> Attend:
        """Return self-attention of `frames` to all that is held up to their end, their own overwritten by each call.

        near_sink: attend to the sink as if it lay directly before the other frames, not where it was made.
        """
        held = [frame for frame in self.slots if frame <= frames[-1]]
        recent = [frame for frame in held if frame >= self.sink]
        shift = min(recent) - self.sink if near_sink and recent else 0

        def attend(index: int, inner: Attention) -> Attention:
            def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
                self.write(index, frames, k, v)
                return inner(q, *self.read(index, held, heads, q.device, shift), heads)

            return attention

        return attend

    def prepare(self, attend: Attend) -> BeforeBlock:
        """Return what changes the inputs of each block of the network: its self-attention is made by `attend`.

        Keys and values of the text are made once and kept.
        """

        def before_block(index: int, block: Block, inputs: BlockInputs) -> BlockInputs:
            if index not in self.text:
                self.text[index] = block.cross_attn.keys_values(inputs)
            attention = attend(index, inputs.attention)
            return dataclasses.replace(inputs, attention=attention, keys_values=self.text[index])

        return before_block

    def runtime(self, runtime: Runtime, start: int, attend: Attend) -> Runtime:
        """Return `runtime` for a clip whose first frame is number `start`, with self-attention made by `attend`."""
        before_block = self.prepare(attend)

        def run_block(index: int, block: Block, x: Tensor, inputs: BlockInputs) -> Tensor:
            return runtime.run_block(index, block, x, before_block(index, block, inputs))

        return dataclasses.replace(from_frame(runtime, start), run_block=run_block)


def from_frame(runtime: Runtime, start: int) -> Runtime:
    """Return `runtime` for a clip whose first frame is number `start`."""
    scale, shift = runtime.rope_scale, runtime.rope_shift
    return dataclasses.replace(runtime, rope_shift=(shift[0] + scale[0] * start, *shift[1:]))


def cache_bytes(config: DiTConfig, shape: Sequence[int], window: int, dtype: torch.dtype) -> int:
    """Return the bytes of the `Cache` of one prompt that holds `window` latent frames.

    shape: of a latent (B, C, any number of frames, H, W). dtype: what the network computes in.
    """
    batch = shape[0]
    frame = clip_tokens((batch, shape[1], 1, *shape[3:]))  # of all samples
    return 2 * config.layers * (window * frame + batch * TEXT_LENGTH) * config.dim * dtype.itemsize


def _place(slots: list[int]) -> slice | list[int]:
    """Return the index of `slots`: a slice, which copies nothing, where they lie in a row."""
    row = range(slots[0], slots[0] + len(slots))
    return slice(row.start, row.stop) if slots == list(row) else slots
