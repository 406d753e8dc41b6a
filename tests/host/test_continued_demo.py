"""The demo family's image-to-video model goes on with its own clip under another prompt, and no joint is seen."""

import torch

from tiny import family, judge, scenes

SCENE = scenes.Scene("circle", "red", "blue", "right", start=(0.2, 0.5, 0.2), amount=0.35, angle=0.0, shades=(1.0, 1.0))
SAMPLER = {"steps": 12, "guidance": family.GUIDANCE, "shift": family.SHIFT, "solver": "unipc", "denoise": 1.0}
TILES = {"tile_width": 0, "tile_height": 0}
SIZE = {"width": scenes.SIDE, "height": scenes.SIDE, "length": scenes.FRAMES}


def test_the_clip_turns_where_the_next_part_says_so(run_node, room):
    text = room("host.encoders.clip")
    clip = text.load(str(family.path("umt5")))
    right, left, negative = (
        text.encode_prompt(clip, words, "positive")
        for words in (*(f"a red circle moves {way} on a blue background" for way in ("right", "left")), "")
    )
    model = room("host.model.loading").load(str(family.path("i2v")), "float32")
    vae = room("host.vae.vae").load(str(family.path("vae")), "float32", "float32")
    picture = ((scenes.render(SCENE)[:, :1] + 1) / 2).permute(1, 2, 3, 0)  # (1, H, W, 3)
    given = {"positive": right, "negative": negative, "vae": vae, "start_image": picture, "batch_size": 1}
    begun = run_node("WanConditioning", **given, **SIZE, **TILES)
    names = ("positive", "negative", "latent")
    first = run_node("WanSampler", model=model, seed=1, **dict(zip(names, begun, strict=True)), **SAMPLER)[0]
    given = {"positive": left, "negative": negative, "vae": vae, "previous": first, "length": scenes.FRAMES}
    part = run_node("WanContinue", model=model, overlap=0, layout="auto", **given, **TILES)
    made = dict(zip(names, part[:3], strict=True))
    whole = run_node("WanSampler", model=model, seed=2, **made, **SAMPLER)[0]
    frames, joint = vae.decode(whole["samples"])[0], scenes.FRAMES  # (T, H, W, 3)
    assert len(frames) == 2 * scenes.FRAMES - 1
    seen = [judge.look((part * 2 - 1).permute(3, 0, 1, 2)) for part in (frames[:joint], frames[joint:])]
    assert seen == [judge.Seen("circle", "red", "blue", motion) for motion in ("right", "left")]
    steps = (frames[1:] - frames[:-1]).abs().mean(dim=(1, 2, 3))
    inside = torch.cat((steps[: joint - 1], steps[joint:]))
    assert steps[joint - 1] < 1.25 * inside.max(), "the joint jumps"
    anew = (frames[0] - frames[joint - 1]).abs().mean()
    assert steps[joint - 1] < anew / 2, "a clip that begins anew jumps no more"
    assert torch.equal(whole["samples"][:, :, : family.SIZE[0]], first["samples"])
