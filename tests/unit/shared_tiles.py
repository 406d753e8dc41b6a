"""Decodes that several processes share, run by all of them: see `test_parallel.py`."""

from dataclasses import replace

import pytest
import torch

from tests.ranks import RANK, SIZE

from wan_model.parallel import Deal
from wan_model.vae import CPU, build_vae
from wan_model.vae.plan import even_tiles, plan_decode

FRAMES, FRAME = 3, (48, 192)  # latent frames; height and width in pixels


@pytest.fixture(scope="module", params=["vae21", "vae22"])
def vae(request, golden):
    return build_vae(golden(request.param).weights())


@pytest.fixture(scope="module")
def latent(vae):
    shape = (1, vae.config.latent_channels, FRAMES, *(side // vae.config.decoded_stride for side in FRAME))
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def tile_of(vae, each):
    """The tiles of which each process has so many."""
    return list(even_tiles(FRAME, vae.config.decoded_stride, SIZE))[each - 1]


@pytest.mark.parametrize("each", [1, 2])
def test_the_first_process_has_the_frames_of_one_alone_bit_for_bit(each, vae, latent, ranks):
    tile, steps = tile_of(vae, each), []
    runtime = replace(CPU, share=Deal(ranks.world))
    plan = plan_decode(vae.config, latent.shape, tile, latent.dtype, runtime)
    assert len(plan.cores) == each * SIZE and plan.window == (1 if each == 1 else FRAMES)
    chunks = list(vae.decode_stream(latent, tile=tile, runtime=runtime, on_step=lambda *step: steps.append(step)))
    assert steps[-1] == (pytest.approx(FRAMES), FRAMES) and len(steps) == each * FRAMES
    assert [chunk.shape[2] for chunk in chunks] == ([] if RANK else [1, 4, 4])
    if RANK == 0:
        assert torch.equal(torch.cat(chunks, dim=2), vae.decode(latent, tile=tile))


def test_tiles_need_not_divide_by_the_processes(vae, latent, ranks):
    tile = next(tile for tile in even_tiles(FRAME, vae.config.decoded_stride, SIZE + 1))
    assert len(plan_decode(vae.config, latent.shape, tile, latent.dtype).cores) % SIZE
    chunks = list(vae.decode_stream(latent, tile=tile, runtime=replace(CPU, share=Deal(ranks.world))))
    assert RANK or torch.equal(torch.cat(chunks, dim=2), vae.decode(latent, tile=tile))


def test_a_process_that_runs_out_of_memory_goes_on_in_smaller_tiles_alone(
    vae, latent, ranks, monkeypatch, relative_error
):
    tile, calls, whole = tile_of(vae, 1), [], vae.decode(latent)
    stream = vae.decode_stream(latent, tile=tile, runtime=replace(CPU, share=Deal(ranks.world)))
    block = next(block for block in stream._tiles[0].blocks if hasattr(block, "step"))
    alone = block.step

    def failing(*arguments, **options):
        calls.append(None)
        if RANK == SIZE - 1 and len(calls) == 2:
            raise RuntimeError("out of memory")
        return alone(*arguments, **options)

    monkeypatch.setattr(block, "step", failing)
    chunks = []
    for attempt in range(2):
        try:
            chunks += stream
            break
        except RuntimeError:
            assert RANK == SIZE - 1 and attempt == 0
            stream.split()
    assert RANK != SIZE - 1 or len(stream._tiles) == 2
    assert RANK or relative_error(torch.cat(chunks, dim=2), whole) < 1e-5


def test_fewer_tiles_than_processes_are_refused(vae, latent, ranks):
    with pytest.raises(ValueError, match=f"1 tiles cannot be dealt to {SIZE} processes"):
        vae.decode_stream(latent, runtime=replace(CPU, share=Deal(ranks.world)))


def test_parts_of_a_clip_are_refused(vae, latent, ranks):
    with pytest.raises(ValueError, match="decode parts of a clip on one device"):
        vae.decode_stream(latent, goes_on=True, runtime=replace(CPU, share=Deal(ranks.world)))
