"""SentencePiece unigram models with T5's special ids (pad 0, end 1, unknown 2), which spell any text in bytes."""

import io
import re
from collections.abc import Iterable

import numpy as np
import sentencepiece

from . import scenes
from wan_model.variants import NEGATIVE_PROMPT

TENSOR = "spiece_model"  # of a repackaged text encoder, which holds its tokenizer
WORD_START = "\u2581"  # SentencePiece's mark for a space before a word


def train(sentences: Iterable[str], size: int, words: Iterable[str] = (), coverage: float = 0.98) -> bytes:
    """A model of at most about `size` pieces, learnt from `sentences`; each of `words` is a piece in any case.

    coverage: part of the characters in the sentences that get pieces; the rest is spelt in bytes.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=size,
        user_defined_symbols=list(words),
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=coverage,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def demo() -> bytes:
    """The demo family's model: a piece for each word of its captions, pieces for the phrases of the official negative
    prompt, and bytes for all else.
    """
    words = set(scenes.CHINESE.values()) | {"\u80cc\u666f\u4e0a", "\u5728", "\u4e00\u4e2a", "\u7684"}
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        sentence = scenes.caption(scenes.draw_scene(rng), rng, chinese=False)
        words.update(WORD_START + word for word in re.findall("[A-Za-z]+", sentence))
    phrases = re.split("[\uff0c,]", NEGATIVE_PROMPT)
    return train([*phrases * 4, *words], 600, sorted(words))
