"""Whole sampling loops, model and solver together, against the latents of the official pipelines."""

import math

import torch

from wan_model import build_dit
from wan_model.solvers import flow_sigmas, sample_unipc


def guided_x0(model, x, sigma, case, guide, t=None, **conditions):
    """x0 under classifier-free guidance; the official loop truncates timesteps to integers."""
    t = torch.tensor([float(math.trunc(1000 * sigma))]) if t is None else t
    v, v_null = (model(x, t, case.inputs[name][None], **conditions) for name in ("context", "context_null"))
    return x - sigma * (v_null + guide * (v - v_null))


def run(case, denoise):
    sigmas = flow_sigmas(int(case.metadata["steps"]), float(case.metadata["shift"]), "unipc")
    return sample_unipc(denoise, case.inputs["noise"][None], sigmas)[0]


def test_text_to_video(golden, relative_error):
    case = golden("loop_t2v")
    model, guide = build_dit(case.weights()), float(case.metadata["guide"])
    latent = run(case, lambda x, sigma: guided_x0(model, x, sigma, case, guide))
    assert relative_error(latent, case.outputs["latent"]) < 1e-3


def test_image_to_video(golden, relative_error):
    case = golden("loop_i2v")
    model, guide = build_dit(case.weights()), float(case.metadata["guide"])
    image = {"clip_fea": case.inputs["clip_fea"], "y": case.inputs["y"][None]}
    latent = run(case, lambda x, sigma: guided_x0(model, x, sigma, case, guide, **image))
    assert relative_error(latent, case.outputs["latent"]) < 1e-3


def test_two_experts_share_one_solver(golden, relative_error):
    case = golden("loop_a14b")
    high, low = build_dit(case.weights()), build_dit(case.weights(int(case.metadata["low_seed"])))
    experts = []

    def denoise(x, sigma):
        is_high = math.trunc(1000 * sigma) >= 1000 * float(case.metadata["boundary"])
        experts.append(is_high)
        guide = float(case.metadata["guide_high" if is_high else "guide_low"])
        return guided_x0(high if is_high else low, x, sigma, case, guide)

    latent = run(case, denoise)
    assert relative_error(latent, case.outputs["latent"]) < 1e-3
    assert experts == sorted(experts, reverse=True) and set(experts) == {True, False}


def test_a_held_first_frame(golden, relative_error):
    case = golden("loop_ti2v")
    model, guide = build_dit(case.weights()), float(case.metadata["guide"])
    first = case.inputs["first_latent"][None, :, :1]

    def denoise(x, sigma):
        x = torch.cat((first, x[:, :, 1:]), dim=2)
        t = torch.full((1, x.shape[2]), float(math.trunc(1000 * sigma)))
        t[:, 0] = 0  # the held frame is clean
        x0 = guided_x0(model, x, sigma, case, guide, t)
        return torch.cat((first, x0[:, :, 1:]), dim=2)

    latent = run(case, denoise)
    assert torch.equal(latent[:, :1], first[0])
    assert relative_error(latent, case.outputs["latent"]) < 1e-3


def test_sound_to_video(golden, relative_error):
    """The first clip: no motion; the negative branch has another text and no sound."""
    case = golden("loop_s2v")
    model, guide = build_dit(case.weights()), float(case.metadata["guide"])
    given = {name: case.inputs[name][None] for name in ("ref_latent", "pose_latents")}
    audio = case.inputs["audio"][None]

    def denoise(x, sigma):
        t = torch.tensor([float(math.trunc(1000 * sigma))])
        v = model(x, t, case.inputs["context"][None], audio=audio, **given)
        v_null = model(x, t, case.inputs["context_null"][None], audio=0 * audio, **given)
        return x - sigma * (v_null + guide * (v - v_null))

    assert relative_error(run(case, denoise), case.outputs["latent"]) < 1e-3


def humo_inputs(case):
    """The golden sound with the silence of the reference frame, and the reference itself."""
    audio = case.inputs["audio_small"][None].repeat_interleave(8, dim=-1)
    return (
        audio,
        case.inputs["ref_latents"][None],
        {name: case.inputs[name][None] for name in ("context", "context_null")},
    )


def test_people_from_pictures_and_sound_17b(golden, relative_error):
    """The authors' three-way guidance: of sound, and of text against the picture or, from `step_change` on, nothing."""
    case = golden("loop_humo_17b")
    model, numbers = (
        build_dit(case.weights()),
        {k: float(case.metadata[k]) for k in ("scale_a", "scale_t", "step_change")},
    )
    audio, reference, texts = humo_inputs(case)
    zero_vae = case.inputs["zero_vae"][None]
    mask = torch.zeros_like(zero_vae[:, :4])
    mask[:, :, -1:] = 1
    nothing = torch.cat((mask, zero_vae), dim=1)

    def denoise(x, sigma):
        t = torch.tensor([float(math.trunc(1000 * sigma))])
        with_picture = {"y": nothing, "ref_latents": reference}
        tia = model(x, t, texts["context"], audio=audio, **with_picture)
        ti = model(x, t, texts["context"], audio=0 * audio, **with_picture)
        early = t.item() > numbers["step_change"]
        null = model(x, t, texts["context_null"], audio=0 * audio, **(with_picture if early else {"y": nothing}))
        scale_t = numbers["scale_t"] - (0 if early else 2)
        return x - sigma * (null + numbers["scale_a"] * (tia - ti) + scale_t * (ti - null))

    assert relative_error(run(case, denoise)[:, :-1], case.outputs["latent"]) < 1e-3


def test_people_from_pictures_and_sound_1_7b(golden, relative_error):
    """The authors' guidance of picture, sound and text, one after the other."""
    case = golden("loop_humo_1_7b")
    model, scale = build_dit(case.weights()), {k: float(case.metadata[f"scale_{k}"]) for k in "iat"}
    audio, reference, texts = humo_inputs(case)

    def denoise(x, sigma):
        t = torch.tensor([float(math.trunc(1000 * sigma))])
        tia = model(x, t, texts["context"], audio=audio, ref_latents=reference)
        ta = model(x, t, texts["context"], audio=audio, ref_latents=0 * reference)
        just_text = model(x, t, texts["context"], audio=0 * audio, ref_latents=0 * reference)
        null = model(x, t, texts["context_null"], audio=0 * audio, ref_latents=0 * reference)
        v = null + scale["i"] * (tia - ta) + scale["a"] * (ta - just_text) + scale["t"] * (just_text - null)
        return x - sigma * v

    assert relative_error(run(case, denoise)[:, :-1], case.outputs["latent"]) < 1e-3
