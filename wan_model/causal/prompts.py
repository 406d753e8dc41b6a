"""Prompts over time, as text: "0 s: a cat sleeps; 12 s: the cat wakes up"."""

import re
from itertools import pairwise
from typing import NamedTuple

MARK = re.compile(r"(?:^|[;\n])\s*(\d+(?:\.\d+)?)\s*s\s*:")  # a time, at the start, after a semicolon or on a new line


class Prompt(NamedTuple):
    """A prompt and the second at which it begins."""

    start: float
    text: str


def parse_prompts(text: str) -> list[Prompt]:
    """Return the prompts of `text` in order of time. Text before the first time begins at 0.

    A semicolon or a colon inside a prompt stays there. Raise ValueError where there is no prompt, where one is empty,
    where the first begins after 0, and where times do not rise.
    """
    before, *rest = MARK.split(text)
    pairs = [("0", before), *zip(rest[::2], rest[1::2], strict=True)]
    prompts = [Prompt(float(start), prompt.strip(" \t\r\n;")) for start, prompt in pairs]
    if rest and not prompts[0].text:
        del prompts[0]
    for prompt in prompts:
        if not prompt.text:
            raise ValueError(
                f'The prompt from {prompt.start:g} s on is empty: describe what the video shows, such as "0 s: a cat '
                'sleeps; 12 s: the cat wakes up".'
            )
    if prompts[0].start:
        raise ValueError(f"The first prompt begins at {prompts[0].start:g} s: let it begin at 0 s.")
    for one, other in pairwise(prompts):
        if other.start <= one.start:
            raise ValueError(
                f"The prompt at {other.start:g} s follows one at {one.start:g} s: put the prompts in order of time."
            )
    return prompts
