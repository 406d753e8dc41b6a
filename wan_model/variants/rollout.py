"""How causal models are run in blocks: by their authors' settings."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Rollout:
    """Numbers of latent frames. block: made at once. window: attended at most, with the block. sink: never dropped.

    near_sink: whether the sink is attended as if it lay directly before the window. context_noise: the noise level to
    which finished frames are brought, and of which the network is told, before their keys and values are kept.
    Raise ValueError for numbers that do not go together.
    """

    block: int = 3
    window: int = 21
    sink: int = 0
    near_sink: bool = False
    context_noise: float = 0.0

    def __post_init__(self):
        check_window(self.window, self.sink, self.block)
        if not 0 <= self.context_noise < 1:
            raise ValueError(f"The noise of finished frames is {self.context_noise}: give a level from 0 to below 1.")


def check_window(window: int, sink: int, block: int) -> None:
    """Raise ValueError where a window of latent frames does not hold the sink and a block."""
    if block < 1 or sink < 0:
        raise ValueError(f"A block has {block} latent frames and the sink {sink}: give at least 1, and 0.")
    if window < block:
        raise ValueError(f"The window holds {window} latent frames and a block has {block}: give a larger window.")
    if sink + block > window:
        raise ValueError(
            f"The window holds {window} latent frames, too few for a sink of {sink} and a block of {block}: give a "
            "larger window or a smaller sink."
        )


SELF_FORCING = Rollout()  # guandeh17/Self-Forcing, configs/self_forcing_dmd.yaml: trained on clips of 21 frames
OTHERS = {  # pattern in a lower-case file name -> settings; nothing in the weights tells them
    r"frame[-_ ]?wise": Rollout(block=1),  # thu-ml/Causal-Forcing, configs/causal_forcing_dmd_framewise.yaml
    r"long[-_ ]?live": Rollout(window=12, sink=3),  # NVlabs/LongLive, configs/longlive_inference.yaml
}


def rollout_of(name: str) -> Rollout:
    """Return the settings for a file of this name."""
    return next((found for pattern, found in OTHERS.items() if re.search(pattern, name.lower())), SELF_FORCING)
