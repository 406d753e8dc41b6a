"""How our VAE uses its device: precision, copies that overlap the work, and the ways to say that memory ran out."""

import threading
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.fixture(scope="module")
def vae(room, models):
    return room("host.vae.vae").load(str(models / "vae" / "tiny_random_wan2.1_vae.safetensors"))


def is_exact():
    return not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


@pytest.fixture
def tf32():
    """TF32 allowed, as torch allows cuDNN and a user may allow matrix products."""
    kept = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept


def test_encoding_in_float32_is_without_tf32_and_decoding_is_as_the_user_says(vae, tf32, monkeypatch):
    convolve, seen = torch.nn.functional.conv3d, []

    def watched(*args, **kwargs):
        seen.append(is_exact())
        return convolve(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "conv3d", watched)
    chunks = vae.encode_chunks(torch.rand(1, 3, 9, 64, 64).split([1, 4, 4], dim=2), (1, 3, 9, 64, 64))
    for _ in chunks:
        assert not is_exact()  # what runs between two chunks has its own setting
    assert seen and all(seen)
    seen.clear()
    vae.decode(torch.randn(1, 16, 2, 8, 8))
    assert seen and not any(seen)


def test_tf32_comes_back_when_the_last_of_two_threads_is_done(room, tf32):
    exact, inside, leave = room("host.vae.float32").exact, threading.Event(), threading.Event()

    def other():
        with exact(torch.float32):
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait()
    with pytest.raises(KeyError), exact(torch.float32):
        raise KeyError
    assert is_exact()
    leave.set()
    thread.join()
    assert not is_exact()
    with exact(torch.bfloat16):
        assert not is_exact()


def test_settings_by_torchs_newer_names_come_back(room, tf32):
    conv, matmul = getattr(torch.backends.cudnn, "conv", None), torch.backends.cuda.matmul
    if conv is None:
        pytest.skip("this torch has only the older names")
    conv.fp32_precision = "ieee"  # from here on the older ones cannot be read
    matmul.fp32_precision = "tf32"
    with room("host.vae.float32").exact(torch.float32):
        assert (conv.fp32_precision, matmul.fp32_precision) == ("ieee", "ieee")
    assert (conv.fp32_precision, matmul.fp32_precision) == ("ieee", "tf32")


class Events(TorchDispatchMode):
    """Counts what makes the host wait for a device: values read, and copies to another device."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        moved = name in ("_to_copy", "copy_") and any(
            isinstance(x, torch.Tensor) and x.device != result.device for x in args
        )
        if moved or name in ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "equal", "masked_select"):
            self.waits.append(name)
        return result


@pytest.mark.parametrize("name", ["vae21", "vae22"])
def test_no_decoded_block_waits_for_the_device(room, golden, name):
    """On the meta device, where a value that is read is an error: nothing leaves it but the finished frames."""
    network = room("host.vae.vae").HostVAE(golden(name).weights()).first_stage_model.to("meta")
    latent = torch.empty(1, network.config.latent_channels, 4, 4, 4, device="meta")
    with Events() as events:
        frames = [chunk.shape[2] for chunk in network.decode_stream(latent)]
    assert frames == [1, 4, 4, 4]
    assert events.waits == []


def test_frames_are_read_from_the_decoder_without_a_wait(vae):
    """The object of the nodes: no value is read and nothing is moved while frames are decoded on one device."""
    chunks = vae.decode_chunks(torch.randn(1, 16, 4, 4, 4))
    next(chunks)
    with Events() as events:
        assert len(list(chunks)) == 3
    assert events.waits == []


def test_a_copy_is_finished_after_the_next_block_was_queued(room):
    log = []

    def blocks():
        for number in range(3):
            log.append(f"queue {number}")
            yield torch.tensor(number)

    def start(chunk):
        number = int(chunk)
        log.append(f"copy {number}")
        return lambda: log.append(f"wait {number}") or chunk

    assert [int(chunk) for chunk in room("host.transfer").fetched(blocks(), start)] == [0, 1, 2]
    assert log == [
        *("queue 0", "copy 0", "queue 1", "copy 1", "wait 0"),
        *("queue 2", "copy 2", "wait 1", "wait 2"),
    ]


def test_frames_that_are_where_they_belong_are_not_copied(room):
    frames, cpu = [torch.rand(2), torch.rand(2)], torch.device("cpu")
    for given, taken in zip(frames, room("host.transfer").off_device(frames, cpu, cpu), strict=True):
        assert taken is given


SAID = (
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "GET was unable to find an engine to execute this computation",
    "cuDNN Frontend error: [cudnn_frontend] Error: No valid execution plans built.",
    "Triton Error [CUDA]: out of memory",
    "[enforce fail at alloc_cpu.cpp:115] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
    "HIP error: hipErrorOutOfMemory",
)


@pytest.mark.parametrize("message", SAID)
def test_every_way_to_say_that_memory_ran_out_leads_to_smaller_tiles(room, message):
    class Stream:
        split_to, left = None, 2

        def __next__(self):
            if self.split_to is None:
                raise RuntimeError(message)
            if not self.left:
                raise StopIteration
            self.left -= 1
            return torch.ones(1)

        def split(self, park):
            self.split_to = park

    stream = Stream()
    assert len(list(room("host.vae.recovery").resumed(stream, nullcontext))) == 2
    assert stream.split_to == torch.device("cpu")


@pytest.mark.parametrize(
    "message",
    ["cuDNN error: CUDNN_STATUS_BAD_PARAM", "expected scalar type Half but found Float", "Triton Error [CUDA]"],
)
def test_other_errors_are_not_about_memory(room, message):
    assert not room("host.vae.recovery").ran_out(RuntimeError(message))
