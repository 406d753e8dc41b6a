"""The models of a run: one, or the two experts of A14B with their ranges of noise levels."""

import logging
from dataclasses import dataclass

import comfy.model_management

from ...wan_model import solvers
from ...wan_model.messages import Message
from ...wan_model.variants import expert_boundary
from .. import compat


@dataclass(frozen=True)
class Expert:
    """A model and its part of the schedule.

    model: a MODEL. guidance: classifier-free guidance scale. until: lowest noise level of the expert.
    """

    model: object
    guidance: float
    until: float = 0.0

    @property
    def name(self) -> str:
        """Name of the model's file, or of its class if the file is unknown."""
        return getattr(self.model.model, "source", type(self.model.model).__name__)

    @property
    def channels(self) -> int:
        """Channels into the patch embedding."""
        return self.model.model.diffusion_model.patch_embedding.weight.shape[1]

    @property
    def reads_negative(self) -> bool:
        """Whether the host evaluates the negative prompt: at guidance 1 only if a patch asks for it."""
        return self.guidance != 1 or self.model.model_options.get("disable_cfg1_optimization", False)

    def serves(self, sigma: float, solver: str) -> bool:
        """Return whether this expert handles noise level `sigma`, by the timesteps of `solver`."""
        return solvers.timestep(sigma, solver) >= 1000 * self.until - 1e-3  # float32 tolerance at the boundary


def experts(model, guidance: float, low_noise_model=None, low_noise_guidance: float = 0.0, boundary: float = 0.0):
    """Return the one or two experts of a run.

    low_noise_guidance: 0 means the same as `guidance`. boundary: 0 means the official one of the variant.
    Raise ValueError if the two models are not a pair.
    """
    if low_noise_model is None:
        return [Expert(model, guidance)]
    pair = [
        Expert(model, guidance, boundary or official_boundary(model.model)),
        Expert(low_noise_model, low_noise_guidance or guidance),
    ]
    check_pair(*pair)
    return pair


def official_boundary(model) -> float:
    """Return the noise level at which the low-noise expert of a host model takes over."""
    row = getattr(getattr(model.diffusion_model, "config", None), "facts", None)
    return expert_boundary(model.image_to_video) if row is None else boundary_of(row)


def boundary_of(row) -> float:
    """Return the noise level at which the low-noise expert takes over, by the row of `variants` of its model."""
    return (row.experts or row.sampling).boundary or expert_boundary(row.takes_image)


def check_pair(high: Expert, low: Expert) -> None:
    """Raise ValueError if `high` and `low`, by their names and channels, are not the two experts of one model."""
    if high.channels != low.channels:
        raise ValueError(
            Message(
                "no_pair",
                "The experts are no pair: {high} takes {high_channels} channels and {low} {low_channels} (16 is text "
                "to video, 36 image to video): load both files of the same model.",
                high=high.name, high_channels=high.channels, low=low.name, low_channels=low.channels,
            )
        )  # fmt: skip
    for expert, wrong, socket in ((high, "low_noise", "model"), (low, "high_noise", "low_noise_model")):
        if wrong in expert.name:
            raise ValueError(
                Message(
                    "other_expert",
                    "{file} is connected to {socket} of WanSampler, where the other expert belongs: connect the "
                    "high-noise file to model and the low-noise file to low_noise_model.",
                    file=expert.name, socket=socket,
                )
            )  # fmt: skip


def release(following: Expert, run: solvers.Run) -> None:
    """Unload the last expert before `following` is loaded, and log the change and the memory freed.

    A dynamic patcher frees memory by itself, and keeps what it can for the next run.
    """
    freed = ""
    if not compat.is_dynamic(following.model):
        device = following.model.load_device
        before = comfy.model_management.get_free_memory(device)
        comfy.model_management.free_memory(1e30, device)
        comfy.model_management.soft_empty_cache()
        gained = comfy.model_management.get_free_memory(device) - before
        freed = f", {gained / 2**20:.0f} MB freed first"
    logging.info(
        "Step %d, sigma %.3f: switching to %s (guidance %g)%s.",
        *(run.index + 1, run.sigma, following.name, following.guidance, freed),
    )
