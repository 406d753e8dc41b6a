"""The demo family in the host: what its prompt says is seen, in every precision and form of file."""

import comfy.quant_ops
import pytest
import torch
import writers
from comfy.patcher_extension import WrappersMP

from tiny import drift, endless, evaluate, family, judge, scenes

PROMPTS = (0, 12, 23)  # of `evaluate.held_out`


@pytest.fixture(scope="module")
def vae():
    return family.load_vae()


@pytest.fixture(scope="module")
def host_clip(room):
    return room("host.encoders.clip").load(str(family.path("umt5")))


@pytest.fixture(scope="module")
def load(room):
    """Function (kind or file, weight_dtype) -> MODEL."""

    def read(file="t2v", dtype="float32"):
        return room("host.model.loading").load(str(family.path(file) if file in family.FOLDERS else file), dtype)

    return read


@pytest.fixture(scope="module")
def encode(room, host_clip):
    """Function from a prompt to its CONDITIONING."""
    return lambda prompt: room("host.encoders.clip").encode_prompt(host_clip, prompt, "positive")


@pytest.fixture(scope="module")
def make(run_node, encode):
    """Function (model, prompt, more inputs) -> latent, with the recommended settings and seed 1."""

    def run(model, prompt, **more):
        given = dict(steps=family.STEPS, guidance=family.GUIDANCE, shift=family.SHIFT, solver="unipc", denoise=1.0)
        latent = {"samples": torch.zeros(1, 16, *family.SIZE)}
        texts = {"positive": encode(prompt), "negative": encode("")}
        inputs = {"latent": latent, **texts, **given, **more}
        return run_node("WanSampler", model=model, seed=1, **inputs)[0]["samples"]

    return run


@pytest.fixture(scope="module")
def expected(make, load):
    """Latents of `PROMPTS` by the plain model, by prompt."""
    return {index: make(load(), evaluate.held_out(index)[1]) for index in PROMPTS}


def seen(vae, latent) -> judge.Seen:
    """Return the content of a latent of the host, which is not normalised."""
    return judge.look(vae.decode(latent).clamp(-1, 1)[0])


def test_the_loaders_list_the_family(pack, room):
    for kind, folder in family.FOLDERS.items():
        name = family.path(kind).name
        assert name in room("host.files").names(folder)
        assert room("host.files").path(folder, name) == str(family.path(kind))


def test_prompts_are_embedded_as_hugging_face_does(encode, relative_error):
    prompts = [evaluate.held_out(index)[1] for index in range(6)]
    assert any(not prompt.isascii() for prompt in prompts)
    for prompt, theirs in zip(prompts, map(family.TextEncoder(), ([prompt] for prompt in prompts)), strict=True):
        ours = encode(prompt)[0][0]
        assert relative_error(ours[:, : theirs.shape[1]], theirs) < 1e-5
        assert not ours[:, theirs.shape[1] :].any()


def test_the_sampler_is_the_plain_loop(expected, relative_error):
    encoder, dit = family.TextEncoder(), family.load_dit("t2v")
    index = PROMPTS[0]
    plain = family.sample(dit, encoder([evaluate.held_out(index)[1]]), encoder([""]), [1])
    assert relative_error(expected[index], family.restore(plain)) < 1e-4


def test_what_the_prompt_says_is_seen(expected, vae):
    for index, latent in expected.items():
        scene, _ = evaluate.held_out(index)
        found = seen(vae, latent)
        assert (found.colour, found.shape, found.background, found.motion) == (
            *(scene.colour, scene.shape, scene.background, scene.motion),
        )


def in_parts(room, monkeypatch):
    monkeypatch.setattr(room("host.model.memory"), "chunk_on", lambda *arguments, **options: 24)


def one_by_one(room, monkeypatch):
    monkeypatch.setattr(room("host.model.classes").HostModel, "memory_required", lambda *arguments, **options: 2**60)


def host_kernels(room, monkeypatch):
    if not hasattr(comfy.quant_ops, "ck"):
        pytest.skip("this ComfyUI has no comfy-kitchen")
    monkeypatch.setattr(room("host.model.kernels"), "choose", lambda *arguments: room("host.model.kernels").FUSED)


def compiled_blocks(room, monkeypatch):
    original, load = torch.compile, room("host.model.loading").load
    monkeypatch.setattr(torch, "compile", lambda model, **options: original(model, **options | {"backend": "eager"}))

    def load_compiled(*arguments):
        model = load(*arguments).clone()
        room("host.model.compiled").compile_blocks(model)
        return model

    monkeypatch.setattr(room("host.model.loading"), "load", load_compiled)


@pytest.mark.parametrize("use", [in_parts, one_by_one, host_kernels, compiled_blocks])
def test_exact_measures_change_nothing(use, room, monkeypatch, make, load, expected, relative_error):
    use(room, monkeypatch)
    index, sizes = PROMPTS[0], []
    model = load()

    def count(apply, given):
        sizes.append(len(given["input"]))
        return apply(given["input"], given["timestep"], **given["c"])

    model.set_model_unet_function_wrapper(count)
    assert relative_error(make(model, evaluate.held_out(index)[1]), expected[index]) < 1e-5
    assert set(sizes) == {1 if use is one_by_one else 2}
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype, bound", [("bfloat16", 0.2), ("fp8_e4m3fn", 0.5)])
def test_other_precisions_show_the_same(make, load, expected, vae, relative_error, dtype, bound):
    model = load(dtype=dtype)
    for index, latent in expected.items():
        made = make(model, evaluate.held_out(index)[1])
        assert 0 < relative_error(made, latent) < bound
        assert seen(vae, made) == seen(vae, latent)


@pytest.mark.parametrize("kind, bound", [("Q8_0", 0.1), ("Q5_1", 0.5)])
def test_gguf_shows_the_same(make, load, expected, vae, tmp_path, relative_error, kind, bound):
    weights = family.load_dit("t2v").state_dict()
    path = tmp_path / "wan.gguf"
    writers.write_gguf(path, weights, kind)
    model = load(path)
    for index, latent in expected.items():
        made = make(model, evaluate.held_out(index)[1])
        assert 0 < relative_error(made, latent) < bound
        assert seen(vae, made) == seen(vae, latent)


@pytest.mark.parametrize("form", [{"decode_dtype": "bfloat16"}, {"tile": (32, 32)}, {"streamed": True}], ids=str)
def test_other_ways_to_decode_show_the_same(room, run_node, expected, vae, form):
    """Against the untiled clip in float32, by the VAE alone."""
    host_vae = room("host.vae.vae").load(str(family.path("vae")), form.get("decode_dtype", "float32"))
    height, width = form.get("tile", (0, 0))
    for latent in expected.values():
        inputs = {"vae": host_vae, "samples": {"samples": latent}, "tile_width": width, "tile_height": height}
        if "streamed" in form:
            (video,) = run_node("WanVAEDecodeToVideo", fps=16.0, **inputs)
            images = torch.stack(list(video.frames()))
        else:
            (images,) = run_node("WanVAEDecode", **inputs)
        plain = vae.decode(latent).clamp(-1, 1)[0]  # (3, T, H, W)
        clip = images.permute(3, 0, 1, 2) * 2 - 1
        assert evaluate.psnr(clip, plain) > (40 if "decode_dtype" in form else 90)
        assert judge.look(clip) == judge.look(plain)


@pytest.mark.parametrize("criterion", ["easycache", "teacache", "magcache"])
def test_a_step_cache_shows_the_same(run_node, make, load, expected, vae, criterion):
    plain, calls = load().clone(), []

    def count(executor, x, *arguments, **options):
        calls.append(len(x))
        return executor(x, *arguments, **options)

    plain.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    (model,) = run_node(
        "WanStepCache", model=plain, criterion=criterion, budget=0.05, start_percent=0.15, end_percent=0.95
    )
    for index, latent in expected.items():
        assert seen(vae, make(model, evaluate.held_out(index)[1])) == seen(vae, latent)
    assert sum(calls) < 2 * family.STEPS * len(expected)


def test_an_image_begins_the_clip_and_the_prompt_moves_it(run_node, room, load, encode, vae):
    (host_vae,) = run_node(
        "WanVAELoader", vae_name=family.path("vae").name, decode_dtype="float32", encode_dtype="float32"
    )
    model = load("i2v")
    for index in PROMPTS[1:]:
        scene, caption = evaluate.held_out(index)
        clip = scenes.render(scene)
        frames = ((clip + 1) / 2).permute(1, 2, 3, 0)  # (T, H, W, 3) in [0, 1]
        for ends in ({"start_image": frames[:1]}, {"start_image": frames[:1], "end_image": frames[-1:]}):
            positive, negative, latent = run_node(
                "WanConditioning",
                positive=encode(caption),
                negative=encode(""),
                vae=host_vae,
                **{"width": 64, "height": 64, "length": 17, "batch_size": 1, "tile_width": 0, "tile_height": 0},
                **ends,
            )
            given = dict(steps=family.STEPS, guidance=family.GUIDANCE, shift=family.SHIFT, solver="unipc", denoise=1.0)
            texts = {"positive": positive, "negative": negative}
            out, _ = run_node("WanSampler", model=model, seed=2, latent=latent, **texts, **given)
            made = vae.decode(out["samples"]).clamp(-1, 1)[0]
            assert evaluate.psnr(made[:, 0], clip[:, 0]) > 24
            if "end_image" in ends:
                assert evaluate.psnr(made[:, -1], clip[:, -1]) > 22
            assert judge.look(made).motion == scene.motion


def test_two_experts_are_the_plain_loop_and_the_log_says_when_the_second_comes(make, load, vae, caplog, relative_error):
    encoder, pair = family.TextEncoder(), family.Experts()
    for index in PROMPTS:
        scene, caption = evaluate.held_out(index)
        caplog.clear()
        with caplog.at_level("INFO"):
            made = make(load("t2v_high_noise"), caption, low_noise_model=load("t2v"))
        plain = family.sample(pair, encoder([caption]), encoder([""]), [1])
        assert relative_error(made, family.restore(plain)) < 1e-4
        (switch,) = [record.message for record in caplog.records if "switching to" in record.message]
        assert switch.startswith("Step 7, sigma 0.875: switching to wan_tiny_t2v.safetensors (guidance 4)")
        found = seen(vae, made)
        assert (found.colour, found.background, found.motion) == (scene.colour, scene.background, scene.motion)


@pytest.mark.parametrize("given", [False, True], ids=["from text", "from a first frame"])
def test_the_model_in_the_form_of_the_5b_shows_what_the_prompt_says(given, run_node, make, load, encode):
    (host_vae,) = run_node(
        "WanVAELoader", vae_name=family.path("vae22").name, decode_dtype="float32", encode_dtype="float32"
    )
    model, right = load("ti2v"), []
    for index in range(6):
        scene, caption = evaluate.held_out(index)
        first = scenes.render(scene, frames=1)
        picture = {"start_image": ((first + 1) / 2).permute(1, 2, 3, 0)} if given else {}
        positive, negative, latent = run_node(
            "WanConditioning",
            positive=encode(caption),
            negative=encode(""),
            vae=host_vae,
            **{"width": 64, "height": 64, "length": 17, "batch_size": 1, "tile_width": 0, "tile_height": 0},
            **picture,
        )
        made = make(model, caption, latent=latent, positive=positive, negative=negative)
        (images,) = run_node("WanVAEDecode", vae=host_vae, samples={"samples": made}, tile_width=0, tile_height=0)
        clip = images.permute(3, 0, 1, 2) * 2 - 1  # (3, T, H, W)
        right.append(judge.score(clip, scene))
        assert clip.shape == (3, 17, 64, 64) and right[-1]["colour"] and right[-1]["background"]
        if given:
            assert evaluate.psnr(clip[:, :1], first) > 25
    assert sum(score["motion"] for score in right) >= 4


def test_the_causal_model_keeps_to_its_prompt_for_as_long_as_it_is_asked(load, encode, run_node, vae):
    """By the settings of its header alone: colours in every second of ten, and motion in most."""
    right = []
    for index in (0, 3, 5):
        scene, rng = drift.held_out(index)
        texts = {"positive": encode(endless.caption(scene, rng)), "negative": encode("")}
        latent = {"samples": torch.zeros(1, 16, 41, *family.SIZE[1:])}
        widgets = {"steps": 30, "guidance": 5.0, "shift": 5.0, "solver": "unipc", "denoise": 1.0, "preset": "auto"}
        made = run_node("WanSampler", model=load("causal"), seed=index, latent=latent, **texts, **widgets)[0]
        clip = vae.decode(made["samples"])[0].clamp(-1, 1)
        right += [drift.seen(clip, scene, start) for start in range(0, 4 * 41 - 3 - drift.WINDOW, 32)]
    colour, background, _, motion = (sum(column) / len(right) for column in zip(*right, strict=True))
    assert colour == background == 1 and motion > 0.6
