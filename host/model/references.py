"""HuMo's reference pictures on the host: the last frames of what is sampled, as its authors have them.

The host's node leaves these frames out of the latent. Its own class appends them to the tokens, without the noise that
goes with the clip's (in the 17B model). Here they are put behind the latent for the time of a run and cut off again.
"""

import comfy.conds
import comfy.sampler_helpers
import torch
from comfy.patcher_extension import WrappersMP

KEY = "wan_references"  # of the wrapper, and in the transformer_options of a run, where it says how many frames
ENTRY = "reference_latents"  # of a conditioning, and of the conditions that the network gets


def watch(patcher) -> None:
    """Has every run of the MODEL `patcher` sample the frames of its reference pictures with the clip."""
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sample)


def conditions(model, conds: dict, given: dict) -> dict:
    """Return the host's `conds` of one conditioning with its reference latents as our network reads them.

    given: the entries of the conditioning. Zeros, as in the negative of the host's node, are taken as they are, though
    the authors' negative shows an empty clip (17B) or zeros that need no normalising (1.7B).
    """
    conds = {name: cond for name, cond in conds.items() if name != "reference_latent"}
    if ENTRY in given:
        conds[ENTRY] = comfy.conds.CONDRegular(model.process_latent_in(given[ENTRY][-1]))
    return conds


def sample(
    executor,
    noise,
    latent_image,
    sampler,
    sigmas,
    denoise_mask=None,
    callback=None,
    disable_pbar=False,
    seed=None,
    **options,
):
    """Wrapper around a whole run of the host: with the frames of the reference pictures behind the latent.

    Raise ValueError for pictures of another size than the clip, and for context windows, which would cut them off.
    """
    reference = _find(executor.class_obj.conds)
    if reference is None:
        return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **options)
    if executor.class_obj.model_options.get("context_handler") is not None:
        raise ValueError(
            "Context windows cut off the reference pictures that HuMo has behind the clip: remove the node of the "
            "windows, or make a shorter clip."
        )
    if reference.shape[3:] != latent_image.shape[3:]:
        raise ValueError(
            f"The reference picture is {tuple(reference.shape[3:])} latent pixels, the clip is "
            f"{tuple(latent_image.shape[3:])}: give the node of the reference the size of the clip."
        )
    count, clip = reference.shape[2], latent_image.shape
    executor.class_obj.model_options["transformer_options"][KEY] = count
    # The host takes a latent of zeros for an empty one and leaves it as it is.
    start = reference.to(latent_image) if torch.count_nonzero(latent_image) else torch.zeros_like(reference)
    latent_image = torch.cat((latent_image, start.to(latent_image).expand(clip[0], -1, -1, -1, -1)), dim=2)
    noise = torch.cat((noise, _noise_behind(noise, count, seed)), dim=2)
    if denoise_mask is not None:
        mask = comfy.sampler_helpers.prepare_mask(denoise_mask, clip, noise.device)
        denoise_mask = torch.cat((mask, torch.ones_like(mask[:, :, :1]).expand(-1, -1, count, -1, -1)), dim=2)
    if "latent_shapes" in options:
        options["latent_shapes"] = [latent_image.shape]

    def show(step, x0, x, steps):
        callback(step, x0[:, :, :-count], x[:, :, :-count], steps)

    shown = show if callback is not None else None
    made = executor(noise, latent_image, sampler, sigmas, denoise_mask, shown, disable_pbar, seed, **options)
    return made[:, :, :-count]


def _find(conds: dict) -> torch.Tensor | None:
    """Return the first reference latents (1, C, n, H, W) in the conditionings of a run."""
    found = (options[ENTRY][-1] for prompts in conds.values() for options in prompts if options.get(ENTRY))
    return next(found, None)


def _noise_behind(noise: torch.Tensor, count: int, seed: int | None) -> torch.Tensor:
    """Return `count` more frames of noise, of what the seed yields after the noise of the clip (B, C, F, H, W)."""
    shape = (*noise.shape[:2], count, *noise.shape[3:])
    size = noise[:, :, :1].numel() * count
    drawn = torch.randn(noise.numel() + size, generator=torch.Generator().manual_seed(seed or 0))
    return drawn[noise.numel() :].view(shape).to(noise)
