"""The noise levels of a run before it begins, and where the second expert takes over, for the sampler's picture."""

from collections.abc import Mapping

from ..sampling import presets
from ..sampling.experts import Expert, boundary_of
from ..sampling.schedule import TO_THE_END
from . import estimate, preflight

RANGES = {  # of the numbers in a query
    "steps": (1, 1000),
    "shift": (0.1, 100),
    "denoise": (0.01, 1),
    "start_step": (0, TO_THE_END),
    "end_step": (1, TO_THE_END),
    "boundary": (0, 1),
}
DEFAULTS = {"denoise": "1", "start_step": "0", "end_step": str(TO_THE_END), "boundary": "0", "preset": presets.NONE}


def from_query(query: Mapping[str, str]) -> dict:
    """Return {"sigmas", "switch"} of a run with these inputs of WanSampler, given as strings under their names.

    sigmas: the noise levels. switch: how many steps the first expert takes, or None without a second. steps, shift and
    solver are required; model and low_noise_model are the files of the experts where there are two; names are the files
    of models and LoRAs, one per line, by which the preset "auto" chooses. Raise ValueError for a number that is missing
    or out of range, for other names, and where no step is left.
    """
    given = {**DEFAULTS, **query}
    steps, shift, denoise, start, end, boundary = (estimate.number(name, given, RANGES) for name in RANGES)
    low = given.get("low_noise_model")
    widgets = presets.Settings(int(steps), 1.0, 1.0, shift, given.get("solver", ""))
    settings = presets.Choice(given["preset"], widgets, given.get("names", "").splitlines(), low is not None).settings
    schedule = settings.schedule(denoise).part(int(start), int(end))
    levels, switch = schedule.sigmas.tolist(), None
    if low is not None:
        first = Expert(None, 1.0, boundary or boundary_of(preflight.read_dit(given.get("model", "")).config.facts))
        switch = sum(first.serves(level, schedule.solver) for level in levels[:-1])
    return {"sigmas": levels, "switch": switch}
