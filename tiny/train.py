"""Trains the demo family, each part after the ones it needs, and writes its files into `tiny/models`.

    python -m tiny.train vae        about 45 minutes on one CPU core
    python -m tiny.train t2v        about 90 minutes
    python -m tiny.train i2v        about an hour

A stopped run goes on where it was. Its state and log are in `tiny/runs`.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

import torch

from . import family, tokenizer, train_dit, train_vae

RUNS = Path(__file__).resolve().parent / "runs"

log = logging.getLogger("tiny")


def vae(folder: Path) -> None:
    """The Wan 2.1 VAE."""
    trained = train_vae.train(folder)
    log.info("%s", family.save("vae", trained.state_dict()))


def t2v(folder: Path) -> None:
    """The text encoder, with its tokenizer inside, and the text-to-video DiT."""
    pair = train_dit.train(family.load_vae(), folder)
    encoder = pair.encoder.state_dict()
    encoder.pop("encoder.embed_tokens.weight")  # the same tensor as shared.weight
    spiece = torch.frombuffer(bytearray(tokenizer.demo()), dtype=torch.uint8)
    log.info("%s", family.save("umt5", encoder | {family.SPIECE: spiece}))
    log.info("%s", family.save("t2v", pair.dit.state_dict()))


def i2v(folder: Path) -> None:
    """The image-to-video DiT, which reads the prompts of the trained text encoder."""
    pair = train_dit.Pair(family.TextEncoder().model, family.load_dit("t2v"))
    dit = train_dit.train_i2v(family.load_vae(), pair, folder.with_name("t2v") / train_dit.BANK, folder)
    log.info("%s", family.save("i2v", dit.state_dict()))


PARTS = {"vae": vae, "t2v": t2v, "i2v": i2v}


def main() -> None:
    """Train what the command line names."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=list(PARTS))
    parser.add_argument("--runs", type=Path, default=RUNS, help="where states and logs are kept")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    for part in options.parts:
        PARTS[part](options.runs / part)


if __name__ == "__main__":
    main()
