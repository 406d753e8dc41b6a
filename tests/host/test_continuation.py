"""The next part of a clip: what the model of each kind sees, and how the parts are joined."""

import beside
import comfy.latent_formats
import pytest
import torch
from comfy_extras import nodes_wan
from official import runner

import nodes

SETTINGS = {"steps": 2, "guidance": 3.0, "shift": 5.0, "solver": "euler", "seed": 7, "denoise": 1.0}
GIVEN = {"length": 17, "overlap": 0, "layout": "auto", "tile_width": 0, "tile_height": 0}
LENGTH, WIDTH, HEIGHT = 33, 64, 48  # of the whole clip: 9 latent frames of 6 x 8


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(frames, seed=0, height=HEIGHT, width=WIDTH):
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def load(models, room):
    """Function from a tiny file's kind, such as "wan2.1_i2v", to the host's object for it."""
    objects = {}

    def get(kind):
        if kind not in objects:
            folder, module = ("vae", "vae.vae") if kind.endswith("vae") else ("diffusion_models", "model.loading")
            path = models / folder / f"tiny_random_{kind}.safetensors"
            objects[kind] = room(f"host.{module}").load(str(path), "float32")
        return objects[kind]

    return get


@pytest.fixture
def prompt():
    """A CONDITIONING of text."""
    return [[noise(1, 7, 128, seed=5), {}]]


@pytest.fixture
def go_on(run_node, load, prompt):
    """Function (kind of the model, **inputs) -> outputs of WanContinue."""

    def run(kind, **inputs):
        given = {"model": load(kind), "positive": prompt, "negative": prompt} | GIVEN | inputs
        return run_node("WanContinue", **given)

    return run


@pytest.fixture
def sampled(run_node):
    """Function (model, positive, negative, latent, **inputs) -> LATENT of WanSampler."""

    def run(model, positive, negative, latent, **inputs):
        given = {"model": model, "positive": positive, "negative": negative, "latent": latent}
        return run_node("WanSampler", **given | SETTINGS | inputs)[0]

    return run


def seen(model, outputs, batch=1):
    """The channels behind the latent that the network sees, mask first: (B, 20, T, h, w)."""
    positive, negative, latent, _ = outputs
    found = [
        model.model.concat_cond(noise=latent["samples"], device=torch.device("cpu"), **prompt[0][1])
        for prompt in (positive, negative)
    ]
    assert torch.equal(*found)
    return found[0]


def mask(known, frames, batch=1):
    """The official mask (B, 4, frames, 6, 8), 1 in the first `known` frames."""
    mask = torch.zeros(batch, 4, frames, 6, 8)
    mask[:, :, :known] = 1
    return mask


# Image to video


@pytest.mark.parametrize(("overlap", "motion"), [(0, 1), (1, 1), (3, 3)])
@pytest.mark.parametrize("own", [False, True])
def test_svi_lays_out_anchor_last_latents_and_zeros(go_on, load, relative_error, overlap, motion, own):
    model, previous = load("wan2.2_i2v_high_noise"), noise(2, 16, 4, 6, 8)
    given = {"anchor": {"samples": noise(1, 16, 1, 6, 8, seed=2)}} if own else {}
    outputs = go_on("wan2.2_i2v_high_noise", previous={"samples": previous}, layout="anchor", overlap=overlap, **given)
    normalised = comfy.latent_formats.Wan21().process_in
    anchor = given["anchor"]["samples"].expand(2, -1, -1, -1, -1) if own else previous[:, :, :1]
    known = normalised(torch.cat((anchor, previous[:, :, -motion:]), dim=2))
    expected = torch.cat((known, torch.zeros(2, 16, 4 - motion, 6, 8)), dim=2)
    assert relative_error(seen(model, outputs), torch.cat((mask(1, 5, 2), expected), dim=1)) < 1e-6
    assert outputs[2]["samples"].shape == (2, 16, 5, 6, 8) and outputs[3] == 1 + motion


def test_the_first_part_of_svi_has_the_anchor_alone(go_on, load, relative_error):
    model, picture = load("wan2.2_i2v_high_noise"), noise(1, 16, 1, 6, 8)
    after_it = go_on("wan2.2_i2v_high_noise", previous={"samples": picture}, layout="anchor")
    from_it = go_on("wan2.2_i2v_high_noise", anchor={"samples": picture}, layout="anchor")
    y = torch.cat((comfy.latent_formats.Wan21().process_in(picture), torch.zeros(1, 16, 4, 6, 8)), dim=2)
    for outputs, old in ((after_it, 1), (from_it, 0)):
        assert relative_error(seen(model, outputs), torch.cat((mask(1, 5), y), dim=1)) < 1e-6
        assert outputs[3] == old


@pytest.mark.parametrize(
    ("kind", "overlap", "shared"), [("wan2.2_i2v_high_noise", 0, 1), ("wan2.1_i2v", 1, 1), ("wan2.1_flf2v", 3, 3)]
)
def test_a_plain_model_sees_the_last_latents_and_grey(go_on, load, relative_error, kind, overlap, shared):
    model, vae, previous = load(kind), load("wan2.1_vae"), noise(1, 16, 4, 6, 8)
    outputs = go_on(kind, previous={"samples": previous}, vae=vae, overlap=overlap)
    grey = vae.first_stage_model.encode(torch.zeros(1, 3, 17, HEIGHT, WIDTH))
    y = comfy.latent_formats.Wan21().process_in(torch.cat((previous[:, :, -shared:], grey[:, :, shared:]), dim=2))
    assert relative_error(seen(model, outputs), torch.cat((mask(shared, 5), y), dim=1)) < 1e-5
    assert outputs[3] == shared


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("SVI_v2_PRO_Wan2.2-I2V-A14B_HIGH_lora_rank_128_fp16.safetensors", "anchor"),
        ("SVI_Wan2.2-I2V-A14B_low_noise_lora_v2.0_pro.safetensors", "anchor"),
        ("wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise.safetensors", "plain"),
    ],
)
def test_the_layout_is_that_of_the_lora(go_on, load, room, name, layout):
    model = load("wan2.2_i2v_high_noise").clone()
    model.attachments = {**model.attachments, room("host.model.lora").ATTACHMENT: (name,)}
    given = {"model": model, "previous": {"samples": noise(1, 16, 4, 6, 8)}, "vae": load("wan2.1_vae")}
    found, wanted = (go_on("wan2.2_i2v_high_noise", **given, layout=each) for each in ("auto", layout))
    assert torch.equal(seen(model, found), seen(model, wanted))


def test_an_svi_lora_of_another_layout_is_refused(room):
    with pytest.raises(ValueError, match=r"SVI_Wan2.1-I2V-14B_lora_v2.0.safetensors looks like .* layout"):
        room("host.clips.next_part").layout_of(["SVI_Wan2.1-I2V-14B_lora_v2.0.safetensors"])


# 5B


def test_5b_holds_the_last_latents_and_the_clip_grows(go_on, load, sampled, relative_error):
    previous = noise(2, 48, 3, 4, 4)
    assert go_on("wan2.2_ti2v", previous={"samples": previous})[3] == 1
    positive, negative, latent, old = go_on("wan2.2_ti2v", previous={"samples": previous}, overlap=2)
    assert old == 2 and torch.equal(latent["samples"][:, :, :2], previous[:, :, -2:])
    assert latent["noise_mask"][0, 0, :, 0, 0].tolist() == [0, 0, 1, 1, 1]
    model = load("wan2.2_ti2v")
    clip = sampled(model, positive, negative, latent)
    assert set(clip) == {"samples", "wan_joined"} and torch.equal(clip["samples"][:, :, :3], previous)
    assert clip["samples"].shape == (2, 48, 6, 4, 4)
    part = {name: latent[name] for name in ("samples", "noise_mask")}
    alone = sampled(model, positive, negative, part)["samples"]
    assert relative_error(alone[:, :, :2], previous[:, :, -2:]) < 1e-6, "the shared frames are not held"
    assert torch.equal(alone[:, :, 2:], clip["samples"][:, :, 3:])


def test_skyreels_holds_five_as_its_authors_do(room):
    parts = room("host.clips.next_part")
    part = parts.begin(parts.way_of("skyreels_df"), {}, {"samples": noise(1, 16, 7, 6, 8)}, None, 33, 0)
    latent, old = parts.latent_of(parts.way_of("skyreels_df"), part, {})
    assert old == 5 and torch.equal(latent["samples"][:, :, :5], part.previous[:, :, 2:])


# VACE


@pytest.fixture
def contexts(run_node, load, prompt):
    """Function (**inputs) -> outputs of WanVACE on 17 frames."""
    size = {"width": WIDTH, "height": HEIGHT, "length": 17, "batch_size": 1, "strength": 0.7}
    given = {"positive": prompt, "negative": prompt, "vae": load("wan2.1_vae"), "tile_width": 0, "tile_height": 0}
    return lambda **inputs: run_node("WanVACE", **given | size | inputs)


@pytest.mark.parametrize("pictures", [0, 2])
@pytest.mark.parametrize("controlled", [False, True])
def test_vace_keeps_the_last_latents_as_it_keeps_given_frames(
    go_on, load, contexts, relative_error, pictures, controlled
):
    vae, known = load("wan2.1_vae"), images(5)
    previous = {"samples": torch.cat((noise(1, 16, 1, 6, 8), vae.encode(known)), dim=2)}
    reference = {"reference_image": images(pictures, 3)} if pictures else {}
    control = images(17, 4) if controlled else torch.full((17, HEIGHT, WIDTH, 3), 0.5)
    made = contexts(**({"control_video": control} if controlled else {}), **reference)
    begun = {"positive": made[0], "negative": made[1]} if controlled or pictures else {}
    positive, _, latent, old = go_on("wan2.1_vace", previous=previous, overlap=2, vae=vae, **begun)
    keep = torch.ones(17, HEIGHT, WIDTH)
    keep[:6] = 0  # the official mask of the second latent frame is that of frame 5
    expected = contexts(control_video=torch.cat((known, control[5:])), control_mask=keep, **reference)[0][0][1]
    found = positive[0][1]
    assert torch.equal(found["vace_mask"][0], expected["vace_mask"][0]), "other frames are kept"
    frames, wanted = found["vace_frames"][0], expected["vace_frames"][0]
    place = pictures + 2
    assert relative_error(frames[:, :, :place], wanted[:, :, :place]) < 1e-5
    if controlled:
        assert torch.equal(frames[:, :, place:], made[0][0][1]["vace_frames"][0][:, :, place:])
    assert latent["samples"].shape[2] == pictures + 5 and old == place
    assert found["vace_strength"] == ([0.7] if begun else [1.0])


def test_vace_cuts_off_pictures_and_shared_frames(go_on, load, contexts, sampled):
    previous = noise(1, 16, 6, 6, 8)
    positive, negative, *_ = contexts(reference_image=images(1, 3))
    outputs = go_on(
        *("wan2.1_vace",), previous={"samples": previous}, vae=load("wan2.1_vae"), positive=positive, negative=negative
    )
    clip = sampled(load("wan2.1_vace"), *outputs[:3])["samples"]
    assert torch.equal(clip[:, :, :6], previous) and clip.shape[2] == 6 + 5 - 4


# Sound and pose


@pytest.fixture(scope="module")
def bench(models, room):
    """Function (node, **inputs) -> outputs of one of the host's nodes for a clip of 9 latent frames."""
    vae = room("host.vae.vae").load(str(models / "vae" / "tiny_random_wan2.1_vae.safetensors"), "float32")
    text = [[noise(1, 7, 128, seed=5), {}]]
    size = {"width": WIDTH, "height": HEIGHT, "length": LENGTH, "batch_size": 1}

    def run(node, **inputs):
        given = {"positive": text, "negative": text, "vae": vae} | size | inputs
        known = getattr(nodes_wan, node).INPUT_TYPES()
        given = {name: given[name] for name in given if name in known["required"] | known.get("optional", {})}
        return getattr(nodes_wan, node).PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(**given).result

    return run


def sound(seconds=3.0):
    hidden = [noise(1, int(50 * seconds), 24, seed=layer) for layer in range(3)]
    return {"encoded_audio_all_layers": hidden}


def test_s2v_hears_and_sees_its_own_piece(bench, go_on, load, sampled, relative_error):
    reference = images(1, 8)
    whole = bench("WanSoundImageToVideo", audio_encoder_output=sound(), ref_image=reference, control_video=images(33))
    first = go_on("wan2.2_s2v", positive=whole[0], negative=whole[1], length=13)
    assert first[3] == 0 and "reference_motion" not in first[0][0][1]
    previous = {"samples": noise(1, 16, 4, 6, 8)}
    positive, negative, latent, old = go_on("wan2.2_s2v", positive=whole[0], negative=whole[1], previous=previous)
    host = bench(
        *("WanSoundImageToVideoExtend",),
        video_latent=previous,
        length=17,
        audio_encoder_output=sound(),
        ref_image=reference,
    )
    for found, wanted in ((positive, host[0]), (negative, host[1])):
        assert torch.equal(found[0][1]["reference_motion"], wanted[0][1]["reference_motion"])
        assert torch.equal(found[0][1]["audio_embed"], wanted[0][1]["audio_embed"])
        assert torch.equal(found[0][1]["control_video"], whole[0][0][1]["control_video"][:, :, 4:9])
    assert old == 0 and latent["samples"].shape == (1, 16, 5, 6, 8)
    assert latent["wan_before"] is previous


def test_animate_takes_its_piece_of_every_video(bench, room):
    parts = room("host.clips.next_part")
    videos = {"pose_video": images(33, 1), "face_video": images(33, 2, 64, 64), "background_video": images(33, 3)}
    given = bench(
        "WanAnimateToVideo",
        reference_image=images(1, 4),
        continue_motion_max_frames=5,
        video_frame_offset=0,
        character_mask=(images(33, 5)[..., 0] > 0.5).float(),
        **videos,
    )[0][0][1]
    way, previous = parts.way_of("animate"), noise(1, 16, 4, 6, 8)
    part = parts.begin(way, given, {"samples": previous}, None, 17, 0)
    made, first = way.entries(part, given), part.first
    assert (part.shared, first) == (2, 2)
    image, unknown = made["concat_latent_image"], made["concat_mask"]
    assert torch.equal(image[:, :, :1], given["concat_latent_image"][:, :, :1])
    assert torch.equal(image[:, :, 1:3], previous[:, :, -2:])
    assert torch.equal(image[:, :, 3:], given["concat_latent_image"][:, :, 1 + 4 : 1 + 7])
    assert not unknown[:, :, :3].any() and torch.equal(unknown[:, :, 3:], given["concat_mask"][:, :, 5:8])
    assert torch.equal(made["pose_video_latent"], given["pose_video_latent"][:, :, 2:7])
    assert torch.equal(made["face_video_pixels"], given["face_video_pixels"][:, :, 8 : 8 + 17])
    latent, old = parts.latent_of(way, part, given)
    assert latent["samples"].shape[2] == 1 + 5 and old == 1 + 2
    begun = parts.begin(way, given, None, None, 17, 0)
    assert begun.shared == 0 and torch.equal(
        way.entries(begun, given)["concat_latent_image"], given["concat_latent_image"][:, :, :6]
    )


# The joint


def test_a_run_in_two_halves_is_joined_at_its_end(go_on, load, sampled, relative_error):
    model, previous = load("wan2.2_i2v_high_noise"), noise(1, 16, 4, 6, 8)
    outputs = go_on("wan2.2_i2v_high_noise", previous={"samples": previous}, layout="anchor")[:3]
    whole = sampled(model, *outputs)
    half = sampled(model, *outputs, end_step=1)
    assert half["samples"].shape[2] == 5
    with pytest.raises(ValueError, match=r"previous of WanContinue still holds noise of level 0\.8333"):
        go_on("wan2.2_i2v_high_noise", previous=half, layout="anchor")
    joined = sampled(model, *outputs[:2], half, start_step=1)
    assert relative_error(joined["samples"], whole["samples"]) < 1e-5
    assert set(joined) == {"samples", "wan_joined"}


def test_the_clips_of_a_chain_share_their_memory_and_none_changes(room):
    join = room("host.sampling.joint").join
    parts = [noise(1, 16, 3, 6, 8, seed=seed) for seed in range(9)]
    clips = [{"samples": parts[0]}]
    for part in parts[1:]:
        clips.append(join(clips[-1], part))
    for count, clip in enumerate(clips, 1):
        assert torch.equal(clip["samples"], torch.cat(parts[:count], dim=2))
    memories = {clip["samples"].untyped_storage().data_ptr(): clip["samples"].untyped_storage() for clip in clips}
    whole = clips[-1]["samples"].nbytes
    assert sum(memory.nbytes() for memory in memories.values()) < 4 * whole < sum(c["samples"].nbytes for c in clips)
    other = join(clips[4], parts[0])["samples"]  # another end of the same beginning
    assert torch.equal(other, torch.cat((*parts[:5], parts[0]), dim=2))
    assert torch.equal(clips[-1]["samples"], torch.cat(parts, dim=2))


def test_hosts_sampler_with_hosts_nodes_joins_the_same(go_on, load):
    model, previous = load("wan2.2_i2v_high_noise"), {"samples": noise(1, 16, 4, 6, 8)}
    positive, negative, latent, trim = go_on("wan2.2_i2v_high_noise", previous=previous, layout="anchor")
    given = (7, 2, 3.0, "euler", "simple", positive, negative, latent)
    part = nodes.common_ksampler(model, *given)[0]
    runner.load_extra_nodes()
    new = runner.run_node("TrimVideoLatent", samples=part, trim_amount=trim)[0]
    clip = runner.run_node("LatentConcat", samples1=previous, samples2=new, dim="t")[0]["samples"]
    assert torch.equal(clip[:, :, :4], previous["samples"]) and clip.shape[2] == 7
    assert torch.equal(clip[:, :, 4:], part["samples"][:, :, 2:])


def test_a_part_may_have_loras_and_a_seed_of_its_own(go_on, load, sampled, relative_error):
    model, previous = load("wan2.2_i2v_high_noise"), {"samples": noise(1, 16, 4, 6, 8)}
    outputs = go_on("wan2.2_i2v_high_noise", previous=previous, layout="anchor")[:3]
    one, other = (sampled(model, *outputs, seed=seed)["samples"] for seed in (1, 2))
    assert torch.equal(one[:, :, :4], other[:, :, :4]) and relative_error(one, other) > 1e-2


# Bad input


@pytest.mark.parametrize(
    ("kind", "inputs", "sentence"),
    [
        ("wan2.1_t2v", {}, r"cannot go on with a clip of a model for text to video: load an image-to-video, VACE"),
        ("wan2.2_i2v_high_noise", {"previous": None}, r"previous of WanContinue is not connected"),
        ("wan2.2_i2v_high_noise", {"layout": "plain"}, r"grey: connect the model's VAE"),
        ("wan2.2_i2v_high_noise", {"vae": "wan2.2_vae"}, r"16-channel latents .* vae makes 48-channel"),
        ("wan2.2_i2v_high_noise", {"overlap": 5}, r"overlap of WanContinue is 5 latent frames and previous has 4"),
        ("wan2.2_i2v_high_noise", {"overlap": 4, "layout": "anchor"}, r"overlap .* is 4 latent frames and .* has 3"),
        ("wan2.2_i2v_high_noise", {"length": 5, "layout": "anchor"}, r"5 frames = 2 latent frames and 2 of them"),
        ("wan2.2_i2v_high_noise", {"anchor": {"samples": noise(1, 16, 1, 4, 8)}}, r"anchor .* is \(1, 16, 1, 4, 8\)"),
        ("wan2.2_i2v_high_noise", {"previous": {"samples": torch.zeros(1, 4, 8, 8)}}, r"has 5 dimensions"),
        ("wan2.2_i2v_high_noise", {"previous": {"samples": noise(1, 16, 2, 4, 4) / 0}}, r"finite values"),
        ("wan2.2_ti2v", {}, r"previous of WanContinue is 16-channel .* makes 48-channel"),
        ("wan2.1_vace", {}, r"grey: connect the model's VAE"),
        ("wan2.2_s2v", {"previous": None}, r"previous of WanContinue is not connected"),
        ("wan2.2_s2v", {"overlap": 2}, r"overlap of WanContinue is 2 and this model shares no frames"),
    ],
)
def test_bad_input_is_answered_in_a_sentence(go_on, load, kind, inputs, sentence):
    given = {"previous": {"samples": noise(1, 16, 4, 6, 8)}} | inputs
    if isinstance(given.get("vae"), str):
        given["vae"] = load(given["vae"])
    with pytest.raises(ValueError, match=sentence):
        go_on(kind, **{name: value for name, value in given.items() if value is not None})


def test_conditionings_that_do_not_fit_are_refused(go_on, load, bench, contexts):
    whole = bench("WanSoundImageToVideo", audio_encoder_output=sound(), control_video=images(33))
    given = {"positive": whole[0], "negative": whole[1]}
    with pytest.raises(ValueError, match=r"The sound of the conditioning ends at frame 36 and this part at 40"):
        go_on("wan2.2_s2v", previous={"samples": noise(1, 16, 5, 6, 8)}, **given)
    with pytest.raises(ValueError, match=r"pose video is \(6, 8\) latent rows and columns and previous .* \(4, 8\)"):
        go_on("wan2.2_s2v", previous={"samples": noise(1, 16, 4, 4, 8)}, **given)
    made = contexts()
    with pytest.raises(ValueError, match=r"VACE context is \(5, 6, 8\) .* this part \(3, 6, 8\)"):
        go_on(
            "wan2.1_vace",
            previous={"samples": noise(1, 16, 2, 6, 8)},
            vae=load("wan2.1_vae"),
            positive=made[0],
            length=9,
        )


def test_a_model_of_another_loader_is_refused(go_on, room, models):
    theirs = beside.load(room("host.model.loading"), beside.write(models, "wan2.1_t2v")).theirs
    with pytest.raises(ValueError, match="load it with WanModelLoader"):
        go_on("wan2.1_i2v", model=theirs, previous={"samples": noise(1, 16, 4, 6, 8)})
