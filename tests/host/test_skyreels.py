"""SkyReels-V2 Diffusion Forcing in the host: frames that the mask of a LATENT holds are at timestep 0."""

from itertools import pairwise

import comfy.sample
import comfy.samplers
import recipe
import torch
from official import files, variants

SEED, STEPS = 5, 3


def test_held_frames_are_at_timestep_0(room, models, tmp_path, relative_error):
    dim = files.DIM
    extra = {"fps_embedding.weight": (2, dim), "fps_projection.0.weight": (dim, dim), "fps_projection.0.bias": (dim,)}
    extra |= {"fps_projection.2.weight": (6 * dim, dim), "fps_projection.2.bias": (6 * dim,)}
    weights = files.dit("t2v") | recipe.state_dict(extra)
    model = room("host.model.loading").build(weights, "float32")
    assert model.model.diffusion_model.config.variant == "skyreels_df"
    text, samples = recipe.tensor("text", (1, 512, 4096)), recipe.tensor("samples", (1, 16, 4, 8, 6))
    mask = torch.ones(1, 1, 4, 8, 6)
    mask[:, :, 0] = 0
    inputs = variants.Inputs(model, [[text, {}]], [[text, {}]], {"samples": samples, "noise_mask": mask})
    latent = variants.sample(inputs, STEPS, 1.0)
    assert relative_error(latent[:, :, 0], samples[:, :, 0]) < 1e-5

    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", STEPS).tolist()
    x, held = comfy.sample.prepare_noise(samples, SEED), model.model.process_latent_in(samples)[:, :, 0]
    network = room("wan_model.dit").build_dit(weights)
    for sigma, following in pairwise(sigmas):
        x[:, :, 0] = held
        t = torch.tensor([[0.0, *[1000 * sigma] * 3]])
        x = x + (following - sigma) * network(x, t, text)
    expected = model.model.process_latent_out(x)
    assert relative_error(latent[:, :, 1:], expected[:, :, 1:]) < 1e-5
