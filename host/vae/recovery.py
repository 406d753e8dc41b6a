"""Out-of-memory recovery: a stream continues in smaller tiles."""

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
    "unable to find an engine",  # cuDNN: no convolution algorithm fits
    "No valid execution plans",  # the same from its newer front end
    "out of memory",  # of a Triton launch, and of CUDA through another library
    "MIOPEN_STATUS_ALLOC_FAILED",
    "hipErrorOutOfMemory",
    "DefaultCPUAllocator",
    "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
)


def ran_out(error: RuntimeError) -> bool:
    """Return whether an error means that the device is out of memory."""
    if compat.is_out_of_memory(error):
        return True
    if compat.is_accelerator_error(error):  # only the host can clear it
        return False
    return any(phrase in str(error) for phrase in PHRASES)


def resumed(stream, inside: Callable[[], AbstractContextManager]) -> Iterator[torch.Tensor]:
    """Yield the items of `stream`; when memory runs out, continue in smaller tiles.

    inside: returns the context manager in which the stream runs.
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
            item = None  # handled outside: the exception keeps the tensors of the failed step alive
        if item is None:
            logging.warning("Out of memory in the Wan VAE: continuing in smaller tiles.")
            stream.split(park=RAM)
            comfy.model_management.soft_empty_cache()
        else:
            yield item
