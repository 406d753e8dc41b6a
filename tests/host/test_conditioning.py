"""Image conditionings against the official constructions and the host's own nodes."""

from itertools import islice

import comfy.clip_vision
import comfy.latent_formats
import pytest
import torch
from comfy_extras import nodes_wan

import nodes

WIDTH, HEIGHT = 64, 48
SIZE = {"width": WIDTH, "height": HEIGHT, "batch_size": 1}
TILE = {"tile_width": 0, "tile_height": 0}


def images(frames, height=HEIGHT, width=WIDTH, channels=3, seed=0):
    return torch.rand(frames, height, width, channels, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def load(models, room):
    """Function from a tiny file's kind, such as "wan2.1_i2v", to the host's object for it."""
    folders = {"vae": "vae", "clip_vision": "clip_vision"}
    objects = {}

    def get(kind):
        if kind not in objects:
            folder = next((folders[name] for name in folders if kind.endswith(name)), "diffusion_models")
            host_file = {"vae": "host.vae.vae", "clip_vision": "host.encoders.clip_vision"}.get(
                folder, "host.model.loading"
            )
            objects[kind] = room(host_file).load(str(models / folder / f"tiny_random_{kind}.safetensors"))
        return objects[kind]

    return get


@pytest.fixture
def prompt():
    """A CONDITIONING of text."""
    return [[torch.randn(1, 7, 128, generator=torch.Generator().manual_seed(5)), {}]]


@pytest.fixture
def condition(run_node, load, prompt):
    """Function (vae kind, **inputs) -> outputs of WanConditioning."""

    def run(vae="wan2.1_vae", **inputs):
        return run_node("WanConditioning", positive=prompt, negative=prompt, vae=load(vae), **SIZE | TILE | inputs)

    return run


@pytest.fixture
def host_node():
    """Function (node id, **inputs) -> outputs of one of the host's own Wan nodes."""
    return lambda node_id, **inputs: (
        getattr(nodes_wan, node_id).PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(**inputs).result
    )


@pytest.fixture
def sampled(run_node):
    """Function (model, positive, negative, latent) -> the sampled latent."""

    def run(model, positive, negative, latent):
        settings = {"steps": 2, "guidance": 3.0, "shift": 5.0, "solver": "unipc", "seed": 7, "denoise": 1.0}
        outputs = run_node("WanSampler", model=model, positive=positive, negative=negative, latent=latent, **settings)
        return outputs[0]["samples"]

    return run


def official_y(vae, start, end, length):
    """The condition channels of `image2video.py` and `first_last_frame2video.py`: mask and normalised latent."""
    frames = torch.zeros(length, HEIGHT, WIDTH, 3)
    known = torch.zeros(length)
    for images_, first in ((start, 0), (end, length - (0 if end is None else len(end)))):
        if images_ is not None:
            frames[first : first + len(images_)] = (images_ - 0.5) / 0.5
            known[first : first + len(images_)] = 1
    latent = vae.first_stage_model.encode(frames.permute(3, 0, 1, 2).unsqueeze(0))
    mask = known[None, :, None, None].repeat(1, 1, HEIGHT // 8, WIDTH // 8)
    mask = torch.cat((torch.repeat_interleave(mask[:, 0:1], repeats=4, dim=1), mask[:, 1:]), dim=1)
    mask = mask.view(1, mask.shape[1] // 4, 4, HEIGHT // 8, WIDTH // 8).transpose(1, 2)
    return torch.cat((mask, comfy.latent_formats.Wan21().process_in(latent)), dim=1)


@pytest.mark.parametrize(
    ("length", "counts"), [(1, (1, 0)), (5, (1, 0)), (5, (1, 1)), (5, (0, 5)), (17, (5, 0)), (17, (3, 2)), (81, (1, 1))]
)
def test_the_model_sees_the_official_condition(load, condition, length, counts):
    start, end = (images(count, seed=count) if count else None for count in counts)
    positive, negative, latent = condition(length=length, start_image=start, end_image=end)
    assert latent["samples"].shape == (1, 16, (length - 1) // 4 + 1, HEIGHT // 8, WIDTH // 8)
    expected = official_y(load("wan2.1_vae"), start, end, length)
    model = load("wan2.2_i2v_high_noise").model
    for conditioning in (positive, negative):
        found = model.concat_cond(noise=latent["samples"], device=torch.device("cpu"), **conditioning[0][1])
        assert torch.equal(found, expected)


def test_text_alone_leaves_the_conditionings_as_they_are(condition, prompt):
    positive, negative, latent = condition(length=17)
    assert positive[0][1] == negative[0][1] == prompt[0][1] == {}
    assert set(latent) == {"samples"} and not latent["samples"].any()


def test_sides_and_length_snap_to_what_the_family_makes(condition):
    assert condition(width=79, height=63, length=20)[2]["samples"].shape == (1, 16, 5, 6, 8)
    assert condition("wan2.2_vae", width=127, height=63, length=20)[2]["samples"].shape == (1, 48, 5, 2, 6)


@pytest.fixture
def seen(run_node, load):
    """CLIP_VISION_OUTPUT of one picture."""
    return run_node("WanClipVision", clip_vision=load("clip_vision"), start_image=images(1))[0]


def test_hosts_image_to_video_is_ours(host_node, load, condition, prompt, sampled, seen, relative_error):
    model, vae = load("wan2.1_i2v"), load("wan2.1_vae")
    start = images(1, 100, 90)
    inputs = {"length": 9, "start_image": start, "clip_vision_output": seen}
    host = host_node("WanImageToVideo", positive=prompt, negative=prompt, vae=vae, **SIZE | inputs)
    ours = sampled(model, *condition(**inputs))
    assert relative_error(ours, sampled(model, *host[:3])) < 1e-3
    other = sampled(model, *condition(**inputs | {"start_image": start.flip(1)}))
    assert relative_error(other, ours) > 1e-2, "the start image changes nothing"


def test_hosts_first_last_frame_is_ours(host_node, run_node, load, condition, prompt, sampled, relative_error):
    model, vae = load("wan2.1_flf2v"), load("wan2.1_vae")
    start, end = images(1, seed=1), images(1, seed=2)
    clip_vision = load("clip_vision")
    apart = [
        run_node("WanClipVision", clip_vision=clip_vision, start_image=image, end_image=None)[0]
        for image in (start, end)
    ]
    both = run_node("WanClipVision", clip_vision=clip_vision, start_image=start, end_image=end)[0]
    inputs = {"length": 9, "start_image": start, "end_image": end}
    host = host_node(
        "WanFirstLastFrameToVideo",
        positive=prompt,
        negative=prompt,
        vae=vae,
        clip_vision_start_image=apart[0],
        clip_vision_end_image=apart[1],
        **SIZE | inputs,
    )
    ours = sampled(model, *condition(**inputs, clip_vision_output=both))
    assert relative_error(ours, sampled(model, *host[:3])) < 1e-3


def test_hosts_5b_latent_is_ours(host_node, load, condition, prompt, sampled, relative_error):
    model, vae = load("wan2.2_ti2v"), load("wan2.2_vae")
    inputs = {"width": 64, "height": 64, "length": 9, "start_image": images(1, 64, 64), "batch_size": 2}
    host = host_node("Wan22ImageToVideoLatent", vae=vae, **inputs)[0]
    positive, negative, latent = condition("wan2.2_vae", **inputs)
    assert torch.equal(latent["samples"], host["samples"])
    assert torch.equal(latent["noise_mask"], host["noise_mask"])
    ours = sampled(model, positive, negative, latent)
    assert relative_error(ours, sampled(model, prompt, prompt, host)) < 1e-3
    assert relative_error(ours[:, :, :1], latent["samples"][:, :, :1]) < 1e-6, "the first frame is not held"


def test_5b_continues_a_clip(load, condition):
    clip = images(6, 64, 64)
    latent = condition("wan2.2_vae", height=64, length=17, start_image=clip)[2]
    video = (clip[:5] * 2 - 1).permute(3, 0, 1, 2).unsqueeze(0)
    assert torch.equal(latent["samples"][:, :, :2], load("wan2.2_vae").first_stage_model.encode(video))
    assert latent["noise_mask"][0, 0, :, 0, 0].tolist() == [0, 0, 1, 1, 1]


def test_grey_and_alpha_pictures_count_as_rgb(condition):
    grey = images(1, channels=1)
    rgb = grey.expand(-1, -1, -1, 3)
    rgba = torch.cat((rgb, images(1, channels=1, seed=3)), dim=-1)
    expected, *found = (condition(length=5, start_image=image)[0][0][1] for image in (rgb, grey, rgba))
    for entries in found:
        assert torch.equal(entries["concat_latent_image"], expected["concat_latent_image"])


@pytest.mark.parametrize(
    ("vae", "inputs", "sentence"),
    [
        ("wan2.1_vae", {"start_image": images(1, 1, 1)}, r"start_image of WanConditioning is 1x1 .* at least 16"),
        ("wan2.1_vae", {"end_image": images(1, 10, 20000)}, r"end_image of WanConditioning is 20000x10 "),
        ("wan2.1_vae", {"start_image": images(1, 20, 4000)}, r"is 4000x20 pixels and the clip 64x48: .* proportions"),
        ("wan2.1_vae", {"start_image": images(1, channels=2)}, r"1 frames of 2 channels, it takes 1 or more of 1, 3"),
        ("wan2.1_vae", {"start_image": images(0)}, r"has 0 frames"),
        ("wan2.1_vae", {"start_image": images(3), "end_image": images(3)}, r"3 start and 3 end frames, the clip has 5"),
        ("wan2.2_vae", {"end_image": images(1)}, r"end_image and the VAE of Wan 2.2 5B"),
        ("wan2.2_vae", {"width": 16}, r"16x48 pixels and sides of 48-channel latents .* start at 32"),
        ("wan2.1_vae", {"width": 15}, r"width is 15 pixels"),
    ],
)
def test_bad_input_is_answered_in_a_sentence(condition, load, monkeypatch, vae, inputs, sentence):
    monkeypatch.setattr(load(vae), "encode_chunks", None)  # nothing may run before the answer
    with pytest.raises(ValueError, match=sentence):
        condition(vae, **{"length": 5} | inputs)


def test_clip_vision_of_separate_pictures_is_refused(condition):
    output = comfy.clip_vision.Output()
    output["penultimate_hidden_states"] = torch.ones(2, 257, 80)
    with pytest.raises(ValueError, match=r"2 separate pictures and batch_size is 1: .* one WanClipVision"):
        condition(length=5, clip_vision_output=output)
    assert condition(length=5, batch_size=2, clip_vision_output=output)[0][0][1]["clip_vision_output"] is output


def test_the_node_says_what_it_crops(condition, caplog):
    with caplog.at_level("INFO"):
        condition(length=7, start_image=images(1, 96, 256))
    assert "64x48, 5 frames = 2 latent frames" in caplog.text
    assert "start_image is 256x96: 50% of it, at its left and right, is outside the clip" in caplog.text


def test_a_clip_is_encoded_while_it_is_made(condition, load, monkeypatch):
    pieces = []

    def encode_chunks(chunks, shape, tile):
        pieces.extend(islice(chunks, 3))
        return iter([torch.zeros(1, 16, 1, 128, 128)])

    monkeypatch.setattr(load("wan2.1_vae"), "encode_chunks", encode_chunks)
    condition(width=1024, height=1024, length=16385, start_image=images(2), end_image=images(1))  # 200 GB as a whole
    assert [piece.shape for piece in pieces] == [(1, 3, 2, 1024, 1024)] + [(1, 3, 4, 1024, 1024)] * 2
    assert pieces[1].eq(0.5).all()


def test_a_vae_of_the_host_gives_the_same_condition(load, condition, models, run_node, prompt, relative_error):
    import comfy.sd
    import comfy.utils

    state = comfy.utils.load_torch_file(str(models / "vae" / "tiny_random_wan2.1_vae.safetensors"))
    host_vae = comfy.sd.VAE(sd=state, dtype=torch.float32)
    inputs = {"length": 9, "start_image": images(1)}
    theirs = run_node("WanConditioning", positive=prompt, negative=prompt, vae=host_vae, **SIZE | TILE | inputs)[0][0][
        1
    ]["concat_latent_image"]
    ours = condition(**inputs)[0][0][1]["concat_latent_image"]
    assert relative_error(theirs, ours) < 1e-3


@pytest.fixture
def vace(run_node, load, prompt):
    """Function (positive, **inputs) -> outputs of WanVACE."""

    def run(positive=prompt, vae="wan2.1_vae", **inputs):
        inputs = SIZE | TILE | {"strength": 1.0} | inputs
        return run_node("WanVACE", positive=positive, negative=prompt, vae=load(vae), **inputs)

    return run


def half_mask(frames):
    """1 in the left half."""
    mask = torch.zeros(frames, HEIGHT, WIDTH)
    mask[:, :, : WIDTH // 2] = 1
    return mask


def official_context(vae, frames, mask, references):
    """`vace_encode_frames` and `vace_encode_masks`: frames and references (N, H, W, 3), mask (T, H, W)."""

    def encode(images_):
        latent = vae.first_stage_model.encode((images_ * 2 - 1).permute(3, 0, 1, 2).unsqueeze(0))
        return comfy.latent_formats.Wan21().process_in(latent)

    pixels, whole = frames * 2 - 1, mask.unsqueeze(-1)
    inactive, reactive = ((pixels * part + 1) / 2 for part in (1 - whole, whole))
    latent = torch.cat((encode(inactive), encode(reactive)), dim=1)
    length = len(frames)
    slots = mask.view(length, HEIGHT // 8, 8, WIDTH // 8, 8).permute(2, 4, 0, 1, 3).reshape(64, length, HEIGHT // 8, -1)
    size = ((length + 3) // 4, HEIGHT // 8, WIDTH // 8)
    slots = torch.nn.functional.interpolate(slots.unsqueeze(0), size=size, mode="nearest-exact")
    known = [encode(reference.unsqueeze(0)) for reference in references]
    latent = torch.cat([*(torch.cat((u, torch.zeros_like(u)), dim=1) for u in known), latent], dim=2)
    slots = torch.cat((torch.zeros_like(slots[:, :, : len(known)]), slots), dim=2)
    return torch.cat((latent, slots), dim=1)


@pytest.mark.parametrize(("length", "references"), [(1, 0), (5, 2), (17, 1)])
def test_the_model_sees_the_official_vace_context(load, vace, relative_error, length, references):
    video, pictures = images(length), images(references, seed=1)
    mask = half_mask(length) * torch.arange(length).fmod(3).ne(0)[:, None, None]
    inputs = {"control_video": video, "control_mask": mask, "reference_image": pictures if references else None}
    positive, _, latent, trim = vace(length=length, **inputs)
    assert latent["samples"].shape[2] == (length - 1) // 4 + 1 + references
    assert latent.get("trim_start", 0) == trim == references
    model = load("wan2.1_vace").model
    conds = model.extra_conds(noise=latent["samples"], device=torch.device("cpu"), **positive[0][1])
    context = conds["vace_context"].cond[:, 0]
    expected = official_context(load("wan2.1_vae"), video, mask, pictures)
    assert torch.equal(context[:, 32:], expected[:, 32:])
    assert relative_error(context, expected) < 1e-5


def test_the_hosts_sampler_and_trim_node_take_references_off(host_node, load, vace):
    positive, negative, latent, trim = vace(length=9, reference_image=images(2))
    sampler = nodes.KSampler().sample
    (whole,) = sampler(load("wan2.1_vace"), 3, 1, 1.0, "euler", "simple", positive, negative, latent)
    (cut,) = host_node("TrimVideoLatent", samples=whole, trim_amount=trim)
    assert whole["samples"].shape[2] == 5 and cut["samples"].shape[2] == 3
    assert torch.equal(cut["samples"], whole["samples"][:, :, 2:])


def test_hosts_vace_is_ours(host_node, load, vace, prompt, sampled, relative_error):
    model, vae = load("wan2.1_vace"), load("wan2.1_vae")
    inputs = {"length": 5, "strength": 0.7, "control_video": images(3, 96, 100), "reference_image": images(1, seed=1)}
    mask = half_mask(3)
    host = host_node("WanVaceToVideo", positive=prompt, negative=prompt, vae=vae, control_masks=mask, **SIZE | inputs)
    ours = sampled(model, *vace(control_mask=mask, **inputs)[:3])
    theirs = sampled(model, *host[:3])[:, :, host[3] :]
    assert ours.shape == (1, 16, 2, HEIGHT // 8, WIDTH // 8), "the reference frame is still there"
    assert relative_error(ours, theirs) < 1e-3
    weaker = sampled(model, *vace(control_mask=mask, **inputs | {"strength": 0.2})[:3])
    assert relative_error(weaker, ours) > 1e-3, "the strength changes nothing"


def test_chained_contexts_add_up(load, vace, sampled, relative_error):
    model = load("wan2.1_vace")
    first = vace(length=5, control_video=images(5, seed=1), strength=0.5)
    both = vace(first[0], length=5, control_video=images(5, seed=2), strength=0.25)
    entries = both[0][0][1]
    assert entries["vace_strength"] == [0.5, 0.25]
    assert [frames.shape[2] for frames in entries["vace_frames"]] == [2, 2]
    assert relative_error(sampled(model, *both[:3]), sampled(model, *first[:3])) > 1e-3
    with pytest.raises(ValueError, match=r"context of \(3, 6, 8\) .* the one before it \(2, 6, 8\)"):
        vace(first[0], length=5, reference_image=images(1))


def test_a_reference_is_whole_on_white(room, load, vace):
    tall = images(1, 96, 32)
    positive, *_ = vace(length=5, reference_image=tall)
    canvas = torch.ones(1, HEIGHT, WIDTH, 3)
    scaled = torch.nn.functional.interpolate(tall.movedim(-1, 1), size=(48, 16), mode="bilinear")
    canvas[:, :, 24:40] = scaled.movedim(1, -1)
    expected = load("wan2.1_vae").encode(canvas)
    assert torch.equal(positive[0][1]["vace_frames"][0][:, :16, :1], expected)


def test_one_mask_serves_all_frames(vace):
    video = images(5)
    one, every = (vace(length=5, control_video=video, control_mask=half_mask(count))[0][0][1] for count in (1, 5))
    assert torch.equal(one["vace_mask"][0], every["vace_mask"][0])
    assert torch.equal(one["vace_frames"][0], every["vace_frames"][0])


@pytest.mark.parametrize(
    ("vae", "inputs", "sentence"),
    [
        ("wan2.2_vae", {}, r"WanVACE works on 16-channel latents .* makes 48-channel latents \(Wan 2.2 5B\)"),
        ("wan2.1_vae", {"control_video": images(5), "control_mask": half_mask(3)}, r"has 3 frames and control_video 5"),
        ("wan2.1_vae", {"control_mask": half_mask(3)}, r"control_mask of WanVACE has 3 frames and the clip 5"),
        ("wan2.1_vae", {"control_video": images(5, 2, 2)}, r"control_video of WanVACE is 2x2 pixels"),
        ("wan2.1_vae", {"reference_image": images(1, 16, 2000)}, r"reference_image of WanVACE is 2000x16 pixels"),
    ],
)
def test_bad_input_of_vace_is_answered_in_a_sentence(vace, load, monkeypatch, vae, inputs, sentence):
    monkeypatch.setattr(load(vae), "encode_chunks", None)  # nothing may run before the answer
    with pytest.raises(ValueError, match=sentence):
        vace(vae=vae, length=5, **inputs)


@pytest.mark.parametrize(("frames", "said"), [(7, "7 frames, the last 2 are left out"), (3, "the other 2 are free")])
def test_a_control_video_of_another_length_is_mentioned(vace, caplog, frames, said):
    with caplog.at_level("INFO"):
        vace(length=5, control_video=images(frames))
    assert said in caplog.text
