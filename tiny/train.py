"""Trains the demo family, each part after the ones it needs, and writes its files into `tiny/models`.

    python -m tiny.train vae        about half an hour on one CPU core
    python -m tiny.train t2v        about two hours
    python -m tiny.train i2v

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
    """The text encoder and the text-to-video DiT."""
    family.save_pair(train_dit.train(family.load_vae(), folder), tokenizer.demo())


PARTS = {"vae": vae, "t2v": t2v}


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
