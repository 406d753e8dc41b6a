"""Text conditioning as the DiT takes it: without the zeros that it adds itself."""

import comfy.conds
import torch
from torch import Tensor
from torch.nn.functional import pad

from ...wan_model.variants import TEXT_LENGTH


class Text(comfy.conds.CONDRegular):
    """Embedded prompts (B, L, dim). Those of up to 512 tokens fit into one batch, whatever the length of each."""

    def can_concat(self, other) -> bool:
        """Whether the host may run `other` in the same batch."""
        mine, others = self.cond.shape, other.cond.shape
        free = max(mine[1], others[1]) <= TEXT_LENGTH  # up to there, zeros behind a prompt change nothing
        return ((mine[::2] == others[::2] and free) or mine == others) and self.cond.device == other.cond.device

    def concat(self, others) -> Tensor:
        """The prompts of this and the `others` as one batch."""
        prompts = [self.cond, *(other.cond for other in others)]
        length = max(prompt.shape[1] for prompt in prompts)
        return torch.cat([pad(prompt, (0, 0, 0, length - prompt.shape[1])) for prompt in prompts])


def without_padding(prompts: Tensor) -> Text:
    """`prompts` (B, L, dim) without the zeros behind the longest; beyond 512 tokens they are not the padding."""
    if prompts.shape[1] <= TEXT_LENGTH:
        real = prompts.any(-1).any(0).nonzero()  # positions
        prompts = prompts[:, : int(real.max()) + 1 if len(real) else 1]
    return Text(prompts)
