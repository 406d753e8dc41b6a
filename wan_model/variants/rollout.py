"""How causal models are run in blocks: by their authors' settings."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Rollout:
    """Numbers of latent frames. block: made at once. window: attended at most, with the block. sink: never dropped."""

    block: int = 3
    window: int = 21
    sink: int = 0


SELF_FORCING = Rollout()  # guandeh17/Self-Forcing, configs/self_forcing_dmd.yaml: trained on clips of 21 frames
OTHERS = {  # pattern in a lower-case file name -> settings; nothing in the weights tells them
    r"frame[-_ ]?wise": Rollout(block=1),  # thu-ml/Causal-Forcing, configs/causal_forcing_dmd_framewise.yaml
    r"long[-_ ]?live": Rollout(window=12, sink=3),  # NVlabs/LongLive, configs/longlive_inference.yaml
}


def rollout_of(name: str) -> Rollout:
    """Return the settings for a file of this name."""
    return next((found for pattern, found in OTHERS.items() if re.search(pattern, name.lower())), SELF_FORCING)
