"""Decoded frames on their way off the device, while the next ones are computed."""

from collections.abc import Callable, Iterable, Iterator

import torch

Finish = Callable[[], torch.Tensor]


def fetched(chunks: Iterable[torch.Tensor], start: Callable[[torch.Tensor], Finish]) -> Iterator[torch.Tensor]:
    """Yield a copy of each chunk, finished only after the work on the next chunk was queued.

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

    From CUDA to RAM each is copied to pinned memory on a stream of its own; a chunk that is there is not copied.
    """
    if device == target:
        return iter(chunks)
    if device.type == "cuda" and target.type == "cpu":
        return fetched(chunks, CudaCopy(device))
    return (chunk.to(target) for chunk in chunks)


class CudaCopy:
    """Starts copies from a CUDA device to pinned memory, beside the work on its current stream.

    torch hands out pinned memory again once it is free, so a running decode alternates between a few buffers.
    """

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)

    def __call__(self, chunk: torch.Tensor) -> Finish:
        self.stream.wait_stream(torch.cuda.current_stream(chunk.device))
        with torch.cuda.stream(self.stream):
            copy = chunk.to("cpu", non_blocking=True)
            copied = self.stream.record_event()
        chunk.record_stream(self.stream)  # its memory is not reused before

        def finish() -> torch.Tensor:
            copied.synchronize()
            return copy

        return finish
