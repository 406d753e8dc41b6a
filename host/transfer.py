"""Copies from the device to RAM while the device goes on: of decoded frames, and of previews."""

from collections.abc import Callable, Iterable, Iterator

import torch

Finish = Callable[[], torch.Tensor]


def fetched(chunks: Iterable[torch.Tensor], start: Callable[[torch.Tensor], Finish]) -> Iterator[torch.Tensor]:
    """Yield a copy of each chunk, awaited only after the work on the next chunk is queued.

    start: begins a copy and returns a function that waits for it and returns it.
    """
    finish = None
    for chunk in chunks:
        ready, finish = finish, start(chunk)
        del chunk
        if ready is not None:
            yield ready()
    if finish is not None:
        yield finish()


def off_device(chunks: Iterable[torch.Tensor], device: torch.device, target: torch.device) -> Iterator[torch.Tensor]:
    """Yield the chunks, which are on `device`, on `target`.

    From CUDA to RAM, chunks are copied to pinned memory on a separate stream. Nothing is copied on the same device.
    """
    if device == target:
        return iter(chunks)
    if device.type == "cuda" and target.type == "cpu":
        return fetched(chunks, CudaCopy(device))
    return (chunk.to(target) for chunk in chunks)


def begin_copy(x: torch.Tensor) -> Finish:
    """Begin a copy of `x` to RAM; return a function that waits for it and returns it.

    On CUDA the copy waits only for the work that is queued now, and not for what comes after it.
    """
    return CudaCopy(x.device)(x) if x.device.type == "cuda" else x.cpu


class CudaCopy:
    """Starts copies from a CUDA device to pinned memory, in parallel with its current stream.

    torch reuses freed pinned memory, so a running decode alternates between a few buffers.
    """

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)

    def __call__(self, chunk: torch.Tensor) -> Finish:
        self.stream.wait_stream(torch.cuda.current_stream(chunk.device))
        with torch.cuda.stream(self.stream):
            copy = chunk.to("cpu", non_blocking=True)
            copied = self.stream.record_event()
        chunk.record_stream(self.stream)  # its memory is not reused before the copy is done

        def finish() -> torch.Tensor:
            copied.synchronize()
            return copy

        return finish
