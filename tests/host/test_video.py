"""VIDEO: saved while it is decoded, encoded while it is read."""

import gc
import io
import json
import math
import os
import subprocess
import sys
import weakref
from fractions import Fraction
from pathlib import Path

import av
import comfy.model_management
import numpy as np
import pytest
import torch
from comfy_api.latest import InputImpl, Types
from comfy_extras.nodes_video import GetVideoComponents

HEIGHT, WIDTH, FRAMES, FPS = 64, 96, 22, 16
AUTO = (0, 0)
WRITABLE = [
    (container, codec)
    for container in Types.VideoContainer
    for codec in Types.VideoCodec
    if (container.value, codec.value) != ("webm", "h264")
]


@pytest.fixture
def video(room):
    return room("host.vae.video")


@pytest.fixture(scope="module")
def vae(room, golden_weights):
    return room("host.vae.vae").HostVAE(golden_weights("vae21"), torch.float32, torch.float32)


@pytest.fixture(scope="module")
def latent(golden):
    """(2, 16, 3, h, w): two clips of nine frames."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(2, 16, 3, 6, 8, generator=generator)


def picture(number: int, frames: int = FRAMES) -> torch.Tensor:
    """A smooth picture (H, W, 3) that differs from frame to frame, as an encoder likes it."""
    y = torch.linspace(0, 1, HEIGHT)[:, None].expand(HEIGHT, WIDTH)
    x = torch.linspace(0, 1, WIDTH)[None, :].expand(HEIGHT, WIDTH)
    t = number / frames
    return torch.stack([y, (x + t) % 2 / 2, 0.5 + 0.4 * torch.sin(6 * (x + y + 2 * t))], dim=-1)


def pictures(frames: int = FRAMES) -> torch.Tensor:
    return torch.stack([picture(i, frames) for i in range(frames)])


def clip(video, frames: int = FRAMES, audio=None):
    """A StreamedVideo of `pictures`."""
    return video.StreamedVideo(
        lambda: (picture(i, frames) for i in range(frames)), (frames, HEIGHT, WIDTH, 3), Fraction(FPS), audio
    )


def sound(seconds: float, rate: int = 32000) -> dict:
    time = torch.arange(int(seconds * rate)) / rate
    return {"waveform": (0.5 * torch.sin(2 * math.pi * 440 * time)).expand(1, 2, -1), "sample_rate": rate}


def frames_in(path) -> torch.Tensor:
    """The frames (T, H, W, 3) in [0, 1] of a file."""
    with av.open(str(path)) as container:
        return (
            torch.from_numpy(np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])) / 255
        )


def psnr(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float(-10 * (actual - expected).square().mean().log10())


# Saving


@pytest.mark.parametrize(("container", "codec"), WRITABLE)
def test_every_format_of_the_host_holds_the_frames_and_the_workflow(video, tmp_path, container, codec):
    path = tmp_path / f"clip.{Types.VideoContainer.get_extension(container)}"
    metadata = {"prompt": {"1": {"class_type": "KSampler"}}, "workflow": {"nodes": [1, 2]}}
    try:
        InputImpl.VideoFromComponents(Types.VideoComponents(pictures(1), Fraction(FPS))).save_to(
            str(tmp_path / f"probe{path.suffix}"), format=container, codec=codec
        )
    except ValueError as refusal:
        pytest.skip(f"this host cannot write it: {refusal}")
    clip(video, audio=sound(2)).save_to(str(path), format=container, codec=codec, metadata=metadata)
    with av.open(str(path)) as file:
        tags = {key.lower(): value for key, value in file.metadata.items()}
        assert {key: json.loads(tags[key]) for key in metadata} == metadata
        stream = file.streams.video[0]
        assert (stream.average_rate, stream.pix_fmt, stream.width, stream.height) == (FPS, "yuv420p", WIDTH, HEIGHT)
        wanted = "av1" if "av1" in (codec.value, stream.codec.canonical_name) else "h264"
        assert stream.codec.canonical_name == wanted
        assert file.streams.audio[0].layout.name == "stereo"
        heard = sum(frame.samples for frame in file.decode(audio=0)) / file.streams.audio[0].rate
        assert heard == pytest.approx(FRAMES / FPS, abs=0.1)
    read = frames_in(path)
    assert read.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert psnr(read, pictures()) > 33


def test_the_file_is_like_the_hosts_own(video, tmp_path):
    whole = InputImpl.VideoFromComponents(Types.VideoComponents(images=pictures(), frame_rate=Fraction(FPS)))
    whole.save_to(str(tmp_path / "whole.mp4"))
    clip(video).save_to(str(tmp_path / "streamed.mp4"))
    facts = []
    for name in ("whole.mp4", "streamed.mp4"):
        with av.open(str(tmp_path / name)) as file:
            stream = file.streams.video[0]
            codec = stream.codec_context
            facts.append((stream.frames, stream.duration, stream.time_base, codec.profile, codec.color_trc))
    assert facts[0] == facts[1]
    # not to the bit: the host's writer itself differs from run to run
    assert psnr(frames_in(tmp_path / "streamed.mp4"), frames_in(tmp_path / "whole.mp4")) > 36


def test_frames_are_made_one_by_one_as_they_are_written(video, tmp_path):
    made, most = [], 0

    def frames():
        nonlocal most
        for i in range(FRAMES):
            frame = picture(i)
            made.append(weakref.ref(frame))
            most = max(most, sum(kept() is not None for kept in made))
            yield frame

    video.StreamedVideo(frames, (FRAMES, HEIGHT, WIDTH, 3), Fraction(FPS)).save_to(str(tmp_path / "clip.mp4"))
    assert len(made) == FRAMES
    assert most <= 2


@pytest.mark.parametrize("failure", [RuntimeError, comfy.model_management.InterruptProcessingException])
def test_what_goes_wrong_while_saving_leaves_no_file(video, tmp_path, failure):
    def frames():
        yield from (picture(i) for i in range(9))
        raise failure

    broken = video.StreamedVideo(frames, (FRAMES, HEIGHT, WIDTH, 3), Fraction(FPS))
    kept = tmp_path / "clip.mp4"
    kept.write_bytes(b"an older video")
    with pytest.raises(failure):
        broken.save_to(str(kept))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"clip.mp4": b"an older video"}


@pytest.mark.parametrize("small_disk", [64], indirect=True)
def test_a_full_disk_is_one_sentence_and_no_file(video, small_disk):
    generator = torch.Generator().manual_seed(1)

    def frames():
        return (torch.rand(HEIGHT, WIDTH, 3, generator=generator) for _ in range(FRAMES))

    noise = video.StreamedVideo(frames, (FRAMES, HEIGHT, WIDTH, 3), Fraction(FPS))
    with pytest.raises(OSError, match=r"^The disk is full: noise\.mp4 needs more than the \d+,\d+ bytes .* free in"):
        noise.save_to(str(small_disk / "noise.mp4"))
    assert list(small_disk.iterdir()) == []


# What else the host asks of a VIDEO


def test_facts_and_components(video):
    made = []

    def frames():
        for i in range(FRAMES):
            made.append(i)
            yield picture(i)

    streamed = video.StreamedVideo(frames, (FRAMES, HEIGHT, WIDTH, 3), Fraction(FPS), sound(2))
    assert streamed.get_dimensions() == (WIDTH, HEIGHT)
    assert streamed.get_frame_count() == FRAMES
    assert streamed.get_frame_rate() == FPS
    assert streamed.get_duration() == FRAMES / FPS
    assert streamed.get_container_format() == "mp4"
    assert made == []
    images, audio, fps, *_ = GetVideoComponents.execute(streamed).result
    assert torch.equal(images, pictures())
    assert torch.equal(audio["waveform"], sound(2)["waveform"])
    assert fps == FPS


def test_the_stream_source_is_an_mp4_made_once(video):
    streamed = clip(video)
    source = streamed.get_stream_source()
    assert frames_in(source).shape[0] == FRAMES
    assert streamed.get_stream_source() == source
    os.remove(source)
    assert frames_in(streamed.get_stream_source()).shape[0] == FRAMES


@pytest.mark.parametrize(
    ("start", "duration", "first", "frames"), [(0.5, 0.25, 8, 4), (-0.25, 0, 18, 4), (1, 9, 16, 6), (0, 0, 0, 22)]
)
def test_trimming_keeps_the_frames_and_the_sound_of_the_window(video, start, duration, first, frames):
    trimmed = clip(video, audio=sound(2)).as_trimmed(start, duration, strict_duration=False).get_components()
    assert torch.equal(trimmed.images, pictures()[first : first + frames])
    at = first * 2000  # samples a frame
    assert torch.equal(trimmed.audio["waveform"], sound(2)["waveform"][..., at : at + frames * 2000])


def test_a_window_that_is_not_there_is_none(video):
    assert clip(video).as_trimmed(5, 1, strict_duration=False) is None
    assert clip(video).as_trimmed(1, 9, strict_duration=True) is None


# Decoding


def test_decoded_components_are_what_the_decode_node_makes(run_node, vae, latent, relative_error):
    inputs = {"vae": vae, "samples": {"samples": latent}, "tile_width": 0, "tile_height": 0}
    (streamed,) = run_node("WanVAEDecodeToVideo", **inputs, fps=24.0, audio=sound(1))
    (images,) = run_node("WanVAEDecode", **inputs)
    components = streamed.get_components()
    assert images.shape == (18, 48, 64, 3)
    assert relative_error(components.images, images) < 1e-6
    assert components.frame_rate == 24
    assert streamed.get_dimensions() == (64, 48)


def test_a_decoded_video_is_saved_whole(run_node, vae, latent, tmp_path):
    inputs = {"vae": vae, "samples": {"samples": latent}, "tile_width": 0, "tile_height": 0}
    (streamed,) = run_node("WanVAEDecodeToVideo", **inputs, fps=16.0)
    for name in ("once.mp4", "twice.mp4"):
        streamed.save_to(str(tmp_path / name))
    once = frames_in(tmp_path / "once.mp4")
    assert once.shape == (18, 48, 64, 3)
    assert psnr(once, frames_in(tmp_path / "twice.mp4")) > 36


@pytest.mark.parametrize(("spoil", "words"), [("channels", "48-channel"), ("nan", "Latent frame 2 of 3")])
def test_bad_latents_are_refused_before_saving(run_node, vae, latent, spoil, words):
    samples = latent.repeat(1, 3, 1, 1, 1) if spoil == "channels" else latent.clone()
    if spoil == "nan":
        samples[1, 3, 2, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=words):
        run_node("WanVAEDecodeToVideo", vae=vae, samples={"samples": samples}, tile_width=0, tile_height=0, fps=16.0)


def test_cancel_while_saving_keeps_nothing_and_the_next_run_works(video, vae, latent, tmp_path):
    held = {id(item) for item in gc.get_objects() if type(item) is torch.Tensor}
    streamed = video.decode(vae, latent, AUTO, FPS)
    frames = streamed.frames

    def cancelled_at_the_third():
        for number, frame in enumerate(frames()):
            if number == 2:
                comfy.model_management.interrupt_current_processing(True)
            yield frame

    streamed.frames = cancelled_at_the_third
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        streamed.save_to(str(tmp_path / "clip.mp4"))
    gc.collect()
    left = [item for item in gc.get_objects() if type(item) is torch.Tensor and id(item) not in held]
    assert sum(item.numel() for item in left) < latent.numel()
    assert list(tmp_path.iterdir()) == []
    streamed.frames = frames
    streamed.save_to(str(tmp_path / "clip.mp4"))
    assert frames_in(tmp_path / "clip.mp4").shape[0] == 18


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux counts it")
@pytest.mark.slow  # minutes
def test_saving_takes_the_memory_of_a_few_frames(tmp_path):
    script = Path(__file__).with_name("peak_of_saving.py")
    peaks = []
    for latents in (21, 401):  # 81 and 1,601 frames
        case = {"WAN_LATENT_FRAMES": str(latents), "WAN_RESULT": str(tmp_path / "peak")}
        run = [sys.executable, "-m", "pytest", "-q", script]
        subprocess.run(run, check=True, env={**os.environ, **case}, capture_output=True)
        peaks.append(int((tmp_path / "peak").read_text()))
    assert peaks[1] < 1.05 * peaks[0]


# Encoding


def test_a_video_encodes_as_its_frames_do(video, vae, run_node, relative_error):
    whole = InputImpl.VideoFromComponents(Types.VideoComponents(images=pictures(9), frame_rate=Fraction(FPS)))
    (expected,) = run_node("WanVAEEncode", vae=vae, images=pictures(9), tile_width=0, tile_height=0)
    for source in (whole, clip(video, 9)):
        (actual,) = run_node("WanVAEEncode", vae=vae, images=source, tile_width=0, tile_height=0)
        assert actual["samples"].shape == (1, 16, 3, HEIGHT // 8, WIDTH // 8)
        assert relative_error(actual["samples"], expected["samples"]) < 1e-6


def test_a_file_is_read_as_well_as_the_host_reads_it(video, tmp_path):
    clip(video).save_to(str(tmp_path / "clip.mp4"))
    file = InputImpl.VideoFromFile(str(tmp_path / "clip.mp4"))
    ours, hosts = torch.stack(list(video.frames_of(file))), file.get_components().images
    assert ours.shape == hosts.shape
    assert psnr(ours, pictures()) > psnr(hosts, pictures()) - 0.1
    assert psnr(ours, hosts) > 33


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_file_encodes_as_its_frames_do(video, vae, tmp_path, relative_error, in_memory):
    path = tmp_path / "clip.mp4"
    clip(video, 12).save_to(str(path))
    file = InputImpl.VideoFromFile(io.BytesIO(path.read_bytes()) if in_memory else str(path))
    frames = torch.stack(list(video.frames_of(file)))
    assert frames.shape[0] == 12
    assert relative_error(video.encode(vae, file, AUTO), vae.encode(frames[:9], AUTO)) < 1e-6


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_frames_beyond_4n_plus_1_are_left_out(video, vae, frames, latents, relative_error):
    actual = video.encode(vae, clip(video, frames), AUTO)
    assert actual.shape[2] == latents
    kept = torch.stack([picture(i, frames) for i in range(4 * latents - 3)])
    assert relative_error(actual, vae.encode(kept, AUTO)) < 1e-6


def test_sides_are_cropped_about_the_centre(video, vae, relative_error):
    images = pictures(5)[:, :43, :62]
    odd = InputImpl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=Fraction(FPS)))
    assert relative_error(video.encode(vae, odd, AUTO), vae.encode(images[:, 1:41, 3:59], AUTO)) < 1e-6


def test_a_trimmed_file_is_read_in_its_window(video, tmp_path):
    if not hasattr(InputImpl.VideoFromFile, "as_trimmed"):
        pytest.skip("this host does not trim")
    clip(video).save_to(str(tmp_path / "clip.mp4"))
    trimmed = InputImpl.VideoFromFile(str(tmp_path / "clip.mp4")).as_trimmed(0.5, 0.25)
    read = torch.stack(list(video.frames_of(trimmed)))
    assert read.shape[0] == 4
    assert psnr(read, pictures()[8:12]) > 33


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_truncated_file_is_one_sentence(video, tmp_path, suffix):
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    generator = torch.Generator().manual_seed(2)
    with av.open(str(whole), "w", options={"movflags": "faststart"} if suffix == ".mp4" else {}) as container:
        stream = container.add_stream("h264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for _ in range(64):
            noise = torch.randint(256, (HEIGHT, WIDTH, 3), generator=generator, dtype=torch.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise.numpy(), format="rgb24")))
        container.mux(stream.encode(None))
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert len(list(video.frames_of(InputImpl.VideoFromFile(str(whole))))) == 64
    with pytest.raises(ValueError, match=rf"^cut{suffix} .*cut off.* again\.$"):
        list(video.frames_of(InputImpl.VideoFromFile(str(cut))))


def test_a_slide_show_is_not_cut_off(video, tmp_path):
    """Its last frame begins seconds before the file ends."""
    with av.open(str(tmp_path / "slides.mkv"), "w") as container:
        stream = container.add_stream("h264", rate=Fraction(1, 5))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for picture in pictures(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray((picture * 255).byte().numpy(), format="rgb24")))
        container.mux(stream.encode(None))
    assert len(list(video.frames_of(InputImpl.VideoFromFile(str(tmp_path / "slides.mkv"))))) == 3


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_what_is_no_video_is_one_sentence(video, vae, tmp_path, content):
    (tmp_path / "note.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"^note\.mp4 cannot be read beyond frame 0"):
        video.encode(vae, InputImpl.VideoFromFile(str(tmp_path / "note.mp4")), AUTO)


def test_no_frames_no_pictures_and_too_few_pixels(video, vae, tmp_path):
    with pytest.raises(ValueError, match="0 frames"):
        video.encode(vae, video.StreamedVideo(lambda: iter(()), (0, 64, 64, 3), Fraction(FPS)), AUTO)
    with pytest.raises(ValueError, match="96x5 pixels"):
        thin = Types.VideoComponents(images=pictures(5)[:, :5], frame_rate=Fraction(FPS))
        video.encode(vae, InputImpl.VideoFromComponents(thin), AUTO)
    with av.open(str(tmp_path / "song.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=32000)
        tone = av.AudioFrame.from_ndarray(np.zeros((2, 32000), np.float32), format="fltp", layout="stereo")
        tone.sample_rate = 32000
        container.mux(stream.encode(tone))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"song\.m4a has sound but no pictures"):
        video.encode(vae, InputImpl.VideoFromFile(str(tmp_path / "song.m4a")), AUTO)
