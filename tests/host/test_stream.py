"""Video of any length in this process: what is made, what is refused, and what stays when it ends."""

import json
from fractions import Fraction
from pathlib import Path

import av
import folder_paths
import numpy as np
import pytest
import torch

SIDE, RATE = 64, 16  # pixels; frames a second
WIDGETS = {
    "prompts": "a small cat",
    "negative": "",
    "width": SIDE,
    "height": SIDE,
    "seconds": 1.0,
    "steps": 2,
    "guidance": 1.0,
    "shift": 5.0,
    "solver": "lcm",
    "seed": 7,
    "preset": "none",
    "resume": True,
}


@pytest.fixture(scope="module")
def parts(run_node, models):
    """Model, text encoder and VAE of random weights."""
    return {
        "model": run_node(
            "WanModelLoader", model_name="tiny_random_wan2.1_self_forcing.safetensors", weight_dtype="float32"
        )[0],
        "clip": run_node("WanTextEncoderLoader", text_encoder_name="tiny_random_umt5.safetensors")[0],
        "vae": run_node(
            "WanVAELoader",
            vae_name="tiny_random_wan2.1_vae.safetensors",
            decode_dtype="float32",
            encode_dtype="float32",
        )[0],
    }


@pytest.fixture
def stream(run_node, parts, request):
    """Function that makes a video, whose file is named as the test, and returns its path."""
    prefix = request.node.originalname

    def run(**changes) -> Path:
        inputs = WIDGETS | parts | {"filename_prefix": prefix} | changes
        return Path(run_node("WanStream", **inputs)[0].get_stream_source())

    return run


@pytest.fixture
def blocks(room, monkeypatch):
    """The latents of the blocks that are made from here on, as the VAE gets them."""
    made, production = [], room("host.sampling.stream").Production

    def take(self, block, latent, real=production.take):
        made.append(latent)
        real(self, block, latent)

    monkeypatch.setattr(production, "take", take)
    return made


@pytest.fixture
def stop_after(room, monkeypatch):
    """Function that raises an error behind the block of that number, as a crash does."""

    def arrange(count: int, error: type[BaseException] = RuntimeError) -> None:
        production = room("host.sampling.stream").Production

        def take(self, block, latent, real=production.take):
            real(self, block, latent)
            if self.file.pieces == count:
                raise error("stopped")

        monkeypatch.setattr(production, "take", take)

    return arrange


def frames(path) -> np.ndarray:
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def conditioning(room, parts, text):
    return room("host.encoders.clip").encode_prompts(parts["clip"], {"test": text})[0][0][0]


def test_it_is_the_rollout_of_the_model(stream, blocks, parts, room, relative_error):
    """Two prompts, a window that is full, a sink: what `wan_model` makes with the noise of the seed."""
    path = stream(prompts="a small cat; 1.5 s: a red ball", seconds=3.0, window=6, sink=1)
    made, order = torch.cat(blocks, dim=2), room("host.sampling.stream").Order
    assert made.shape[2] == 15 and len(frames(path)) == 57
    causal, model = room("wan_model.causal"), parts["model"].model
    network = room("wan_model").build_dit(dict(model.diffusion_model.state_dict()))
    rollout = room("wan_model.variants.rollout").Rollout()
    noise = order(None, None, rollout, None, [], None, (16, 8, 8), None, seconds=3.0, rate=RATE, seed=7)
    texts = [conditioning(room, parts, text) for text in ("a small cat", "a red ball")]
    history = causal.History(network, texts[0], causal.Cache(6, 1), room("wan_model.dit.runtime").Runtime())
    sigmas, latents = [1.0, 5 / 6, 0.0], []
    for start in range(0, 15, 3):
        if latents:
            history.keep(latents[-1])
        if start == 9:  # its first frame is number 33, at 2.06 s; that of the block before is at 1.31 s
            history.switch(texts[1], torch.cat(latents, dim=2))
        x, draw = noise.noise(start, start + 3, torch.zeros(1))
        run = room("wan_model.solvers").Run("lcm", x, sigmas, draw)
        while not run.done:
            run.step(run.x - run.sigma * history.velocity(run.x, 1000 * run.sigma))
        latents.append(run.x)
    assert relative_error(made, model.process_latent_out(torch.cat(latents, dim=2))) < 1e-4


def test_the_frames_are_those_of_the_latents(stream, blocks, parts):
    """Nothing is lost between the blocks; what the codec loses is small."""
    made = torch.from_numpy(frames(stream()))
    images = 255 * parts["vae"].decode(torch.cat(blocks, dim=2))[0]
    assert made.shape == images.shape
    error, other = (float((blurred(made) - blurred(x)).abs().mean()) for x in (images, images.roll(1, 0)))
    assert error < 3 and other > 2 * error


def blurred(images: torch.Tensor) -> torch.Tensor:
    """Images (t, H, W, 3) without the noise that a codec leaves out."""
    return torch.nn.functional.avg_pool2d(images.float().movedim(-1, 1), 8)


def test_a_seed_gives_the_same_video_at_any_length(stream):
    short, long = frames(stream(seconds=1.0)), frames(stream(seconds=2.0))
    assert len(short) < len(long)
    assert np.array_equal(short, long[: len(short)])
    assert not np.array_equal(short, frames(stream(seconds=1.0, seed=8)))


def test_a_start_image(stream, blocks, parts):
    """It is the first frame, and the video goes on from it."""
    image = torch.rand(1, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(1))
    with_image = frames(stream(start_image=image))
    latent = parts["vae"].encode(image)
    assert torch.allclose(blocks[0], latent, atol=1e-4)
    assert [block.shape[2] for block in blocks] == [1, 3, 3]
    assert len(with_image) == 1 + 24
    first = blocks[1]
    stream()
    assert not torch.allclose(first, blocks[3])


def test_a_clip_to_go_on_with_in_blocks(stream, blocks):
    clip = torch.rand(14, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(1))
    stream(start_image=clip)
    assert [block.shape[2] for block in blocks] == [1, 3, 3]  # 13 frames are four latent ones
    assert len(blocks) == 3


def test_sound_is_cut_to_the_length(stream):
    sound = {"waveform": torch.sin(torch.arange(5 * 8000) / 8)[None, None], "sample_rate": 8000}
    path = stream(audio=sound)
    with av.open(path) as container:
        assert len(container.streams.audio) == 1
        seconds = sum(frame.samples for frame in container.decode(audio=0)) / 8000
    assert abs(seconds - 21 / RATE) < 0.3
    assert np.array_equal(frames(path), frames(stream()))


@pytest.mark.parametrize("block", [1, 3])
def test_a_crash_and_the_run_after_it(block, stream, stop_after, monkeypatch, room):
    """The state is saved at each block here: all that was made stays, and the end is that of a whole run."""
    whole = frames(stream(resume=False, seconds=2.0))
    stop_after(block)
    with pytest.raises(RuntimeError, match="stopped"):
        stream(seconds=2.0)
    monkeypatch.undo()
    path = room("host.sampling.saved").newest(
        Path(folder_paths.get_output_directory()), "test_a_crash_and_the_run_after_it"
    )
    left = frames(path)
    assert len(left) == 9 + 12 * (block - 1)
    again = stream(seconds=2.0, seed=99)
    assert again == path
    assert np.array_equal(frames(again), whole)


def test_it_goes_on_with_guidance_and_a_longer_schedule(stream, stop_after, monkeypatch):
    """Both prompts' caches are saved; the length may change."""
    guided = {"guidance": 3.0, "solver": "unipc", "negative": "blurred", "prompts": "0 s: a cat; 1 s: a dog"}
    whole = frames(stream(resume=False, seconds=2.0, **guided))
    stop_after(2)
    with pytest.raises(RuntimeError, match="stopped"):
        stream(seconds=60.0, **guided)
    monkeypatch.undo()
    assert np.array_equal(frames(stream(seconds=2.0, **guided)), whole)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 80}, "made with the size 64x64, and this run has 80x64"),
        ({"prompts": "a dog"}, "made with the prompts 0 s: a small cat, and this run has 0 s: a dog"),
        ({"steps": 3}, "made with the settings"),
        ({"window": 9}, "made with the memory"),
        ({"start_image": torch.ones(1, SIDE, SIDE, 3)}, "made with the start image none"),
    ],
)
def test_another_run_does_not_go_on(changes, words, stream, stop_after, monkeypatch):
    stop_after(1)
    with pytest.raises(RuntimeError, match="stopped"):
        stream()
    monkeypatch.undo()
    folder = Path(folder_paths.get_output_directory())
    before = {path.name: path.read_bytes() for path in folder.glob("test_another_run_does_not_go_on*")}
    assert sum(name.endswith(".resume.safetensors") for name in before) == 1
    with pytest.raises(ValueError, match=words):
        stream(**changes)
    assert before == {path.name: path.read_bytes() for path in folder.glob("test_another_run_does_not_go_on*")}
    stream()  # to its end, so that the next case begins anew


def test_a_state_of_other_weights(stream, stop_after, monkeypatch, parts, room, golden_weights, run_node):
    stop_after(1)
    with pytest.raises(RuntimeError, match="stopped"):
        stream()
    monkeypatch.undo()
    other = room("host.vae.vae").HostVAE(golden_weights("vae21"), torch.float32, torch.float32)
    with pytest.raises(ValueError, match="made with the VAE"):
        stream(vae=other)
    model = parts["model"].clone()
    model.add_patches({"diffusion_model.head.head.bias": (torch.ones(64),)}, 0.5)
    with pytest.raises(ValueError, match="made with the model's weights"):
        stream(model=model)


def test_a_damaged_state(stream, stop_after, monkeypatch, room):
    stop_after(1)
    with pytest.raises(RuntimeError, match="stopped"):
        stream()
    monkeypatch.undo()
    saved = room("host.sampling.saved")
    folder = Path(folder_paths.get_output_directory())
    video = saved.newest(folder, "test_a_damaged_state")
    state = saved.path_beside(video)
    whole = state.read_bytes()
    for broken in (whole[:100], b"", b"\xff" * 50):
        state.write_bytes(broken)
        with pytest.raises(ValueError, match=r"is damaged .* turn resume off"):
            stream()
    state.write_bytes(whole)
    written = video.read_bytes()
    for other in (written[:-10], b"\1" + written[1:]):
        video.write_bytes(other)
        with pytest.raises(ValueError, match=r"is not the file any more .* of [0-9,]+ bytes or more"):
            stream()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": " "}, "from 0 s on is empty"),
        ({"prompts": "0 s: a; 5 s: b; 2 s: c"}, "at 2 s follows one at 5 s"),
        ({"window": 2}, "window holds 2 latent frames and a block has 3"),
        ({"window": 6, "sink": 4}, "too few for a sink of 4 and a block of 3"),
        ({"width": 8}, "width is 8 pixels"),
        ({"guidance": 2.0, "steps": 0}, "at least 1 step"),
    ],
)
def test_what_is_refused(changes, words, stream):
    with pytest.raises(ValueError, match=words):
        stream(**changes)
    assert not list(Path(folder_paths.get_output_directory()).glob("test_what_is_refused*"))


def test_other_models_and_vaes(stream, t2v, room, models):
    with pytest.raises(ValueError, match=r"wan2.1_t2v.safetensors is not a causal model, .* load a causal model"):
        stream(model=t2v)
    vae = room("host.vae.vae").load(str(models / "vae" / "tiny_random_wan2.2_vae.safetensors"))
    with pytest.raises(ValueError, match="The model samples 16-channel latents"):
        stream(vae=vae)


# The file


@pytest.fixture
def growing(room):
    return room("host.vae.growing").GrowingVideo


def picture(number: int) -> torch.Tensor:
    """Images (4, 64, 96, 3) of piece `number`."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 96), indexing="ij")
    return torch.stack([torch.stack([x, y, (x + (number + i / 4) / 9) % 1], dim=-1) for i in range(4)])


def test_a_growing_file_plays_at_each_moment(growing, tmp_path):
    video = growing(tmp_path / "a.mp4", Fraction(RATE), {"prompt": '{"1": 2}'})
    for number in range(5):
        video.append(picture(number))
        with av.open(video.path) as container:
            assert json.loads(container.metadata["prompt"]) == {"1": 2}
            times = [frame.time for frame in container.decode(video=0)]
        assert times == [i / RATE for i in range(4 * number + 4)]
        assert video.size == video.path.stat().st_size
    grown = frames(video.path)
    video.finish()
    assert np.array_equal(frames(video.path), grown)
    assert np.abs(grown - 255 * torch.cat([picture(n) for n in range(5)]).numpy()).mean() < 4
    with av.open(video.path) as container:
        assert container.streams.video[0].frames == 20 and container.metadata["prompt"] == '{"1": 2}'


def test_half_a_fragment_behind_it_is_overwritten(growing, tmp_path):
    """The files that a crash leaves in the middle of writing."""
    whole, cut = (growing(tmp_path / f"{name}.mp4", Fraction(RATE)) for name in ("whole", "cut"))
    for number in range(3):
        whole.append(picture(number))
        if number == 2:
            with cut.path.open("ab") as file:
                file.write(whole.path.read_bytes()[-300:])
        cut.append(picture(number))
    assert cut.path.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize("small_disk", [96], indirect=True)
def test_a_full_disk_keeps_what_is_written(growing, small_disk, caplog):
    video = growing(small_disk / "noise.mp4", Fraction(RATE))
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(OSError, match=r"^The disk is full: noise\.mp4 needs more than"):
        for _ in range(50):
            video.append(torch.rand(2, 64, 96, 3, generator=generator))
    assert video.pieces > 0 and video.path.stat().st_size == video.size
    assert len(frames(video.path)) == video.frames == 2 * video.pieces
    video.finish()
    assert "stays as it was written" in caplog.text
    assert len(frames(video.path)) == video.frames
