"""Decodes that several processes share, on the CPU: real processes, each with its own ComfyUI."""

import os
import signal

import comfy.model_management
import comfy.sd
import comfy.utils
import pytest
import torch

from wan_model.vae.plan import even_tiles

FRAMES = 13


@pytest.fixture(scope="module", autouse=True)
def _end_the_group(room):
    yield
    for team in room("host.parallel.team")._running.values():
        team.close()


@pytest.fixture
def team(room):
    """Function that returns the group that runs, None before the first."""
    return lambda: next(iter(room("host.parallel.team")._running.values()), None)


@pytest.fixture(scope="module", params=["2.1", "2.2"])
def vae(request, models, room):
    return room("host.vae.vae").load(str(models / "vae" / f"tiny_random_wan{request.param}_vae.safetensors"))


@pytest.fixture
def shared(vae, run_node):
    return run_node("WanParallelVAE", vae=vae, devices="cpu x2")[0]


@pytest.fixture(scope="module")
def latent(vae):
    return torch.randn(1, vae.latent_channels, 4, 6, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def alone(vae, latent):
    """The frames that one process makes of the latent, in the tiles that two share."""
    stride = vae.config.decoded_stride
    return vae.decode(latent, tile=next(even_tiles((6 * stride, 10 * stride), stride, 2)))


def test_the_frames_are_those_of_one_process_bit_for_bit(shared, latent, alone, run_node, team, monkeypatch):
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0, raising=False)  # of newer hosts
    steps, before = [], team()
    asked = getattr(before, "asked", 0)
    comfy.utils.set_progress_bar_global_hook(lambda done, total, *_, **__: steps.append((done, total)))
    try:
        (images,) = run_node("WanVAEDecode", vae=shared, samples={"samples": latent}, tile_width=0, tile_height=0)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    made = team()
    assert made.asked == (asked if made is before else 0) + 2, "nothing was shared"
    assert torch.equal(images, alone[0]) and len(images) == FRAMES
    assert steps[-1] == pytest.approx((4, 4)) and len(steps) >= 4


def test_a_tile_of_the_users_is_kept_where_it_gives_each_process_one(shared, vae, latent):
    tile = (vae.config.decoded_stride * 4, vae.config.decoded_stride * 5)
    assert torch.equal(shared.decode(latent, tile=tile), vae.decode(latent, tile=tile))


def test_encoding_is_that_of_one_process(shared, vae, alone):
    assert torch.equal(shared.encode(alone), vae.encode(alone))


def test_cancelling_and_leaving_early_let_the_group_go_on(shared, latent, alone, team):
    assert torch.equal(shared.decode(latent), alone)
    before = team()
    comfy.utils.set_progress_bar_global_hook(lambda *_, **__: comfy.model_management.interrupt_current_processing())
    try:  # in a step: a cancel while the others load would end the group
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            shared.decode(latent)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    for count in (1, 3, 4):  # 4 are all, but the end is not asked for
        chunks = shared.decode_chunks(latent)
        for _ in range(count):
            next(chunks)
        chunks.close()
    assert torch.equal(shared.decode(latent), alone)
    assert team() is before and before.is_open


def test_two_decodes_at_once_are_right(shared, vae, latent, alone, team, relative_error):
    pairs = list(zip(shared.decode_chunks(latent), shared.decode_chunks(latent), strict=True))
    assert torch.equal(torch.cat([one for one, _ in pairs], dim=1), alone)
    assert torch.equal(torch.cat([other for _, other in pairs], dim=1), vae.decode(latent))


def test_a_run_in_the_middle_of_a_decode_is_refused(shared, latent, sample, t2v, run_node):
    chunks = shared.decode_chunks(latent)
    next(chunks)
    model = run_node("WanParallel", model=t2v, devices="cpu x2", share="auto")[0]
    with pytest.raises(RuntimeError, match="in the middle of a decode"):
        sample(model, steps=1)
    chunks.close()


def test_parts_of_a_clip_are_decoded_by_one_process(shared, vae, latent):
    left = []
    begun = list(shared.decode_chunks(latent[:, :, :2], leave=left.append))
    whole = torch.cat([*begun, *shared.decode_chunks(latent[:, :, 2:], past=left[0])], dim=1)
    assert torch.equal(whole, vae.decode(latent))


def test_a_model_and_a_vae_share_one_group(shared, latent, alone, sample, t2v, run_node, team, relative_error):
    shared.decode(latent)
    before = team()
    model = run_node("WanParallel", model=t2v, devices="cpu x2", share="auto")[0]
    assert relative_error(sample(model, steps=2), sample(t2v, steps=2)) < 1e-5
    assert torch.equal(shared.decode(latent), alone)
    assert team() is before


def test_a_process_that_ends_is_said_and_the_next_decode_is_right(shared, latent, alone, team):
    chunks = shared.decode_chunks(latent)
    next(chunks)
    os.kill(team().launch.pids[0], signal.SIGKILL)
    with pytest.raises(RuntimeError, match="A process of Wan Parallel has ended"):
        list(chunks)
    assert torch.equal(shared.decode(latent), alone)


def test_frames_too_small_to_share_are_decoded_by_one_process(shared, vae):
    small = torch.randn(1, vae.latent_channels, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(shared.decode(small), vae.decode(small))


def test_one_device_is_the_vae_itself(vae, run_node):
    assert run_node("WanParallelVAE", vae=vae, devices="cpu x1")[0] is vae


def test_what_cannot_travel_is_refused(vae, models, run_node, room):
    theirs = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(models / "vae" / "tiny_random_wan2.1_vae.safetensors")))
    patched = room("host.vae.vae").load(vae.path)
    patched.patcher.add_object_patch("decoder.middle.0", torch.nn.Identity())
    for given, sentence in ((theirs, "a VAE of WanVAELoader alone"), (patched, "changes the VAE's weights")):
        with pytest.raises(ValueError, match=sentence):
            run_node("WanParallelVAE", vae=given, devices="cpu x2")
