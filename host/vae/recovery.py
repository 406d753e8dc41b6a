"""A stream that goes on in smaller tiles when the device's memory runs out."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import comfy.model_management
import torch

from .. import compat

RAM = torch.device("cpu")
PHRASES = (  # in RuntimeErrors that are not torch's own out-of-memory error
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSPARSE_STATUS_INSUFFICIENT_RESOURCES",
    "unable to find an engine",  # cuDNN: no way to convolve fits
    "No valid execution plans",  # the same from its newer front end
    "out of memory",  # of a Triton launch, and of CUDA through another library
    "MIOPEN_STATUS_ALLOC_FAILED",
    "hipErrorOutOfMemory",
    "DefaultCPUAllocator",
    "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
)


def ran_out(error: RuntimeError) -> bool:
    """Return whether an error says that the device's memory is used up."""
    if compat.is_out_of_memory(error):
        return True
    if compat.is_accelerator_error(error):  # the host alone can clear it
        return False
    return any(phrase in str(error) for phrase in PHRASES)


def resumed(stream, inside: Callable[[], AbstractContextManager]) -> Iterator[torch.Tensor]:
    """Yield the items of `stream`; when memory runs out, go on in smaller tiles.

    inside: makes the context in which the stream runs.
    """
    while True:
        try:
            with inside():
                item = next(stream)
        except StopIteration:
            return
        except RuntimeError as error:
            if not ran_out(error):
                raise
            item = None  # handled outside: the exception holds on to every tensor of the failed step
        if item is None:
            logging.warning("Out of memory in the Wan VAE: going on in smaller tiles from where it stopped.")
            stream.split(park=RAM)
            comfy.model_management.soft_empty_cache()
        else:
            yield item
