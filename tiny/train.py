"""Trains the demo family, each part after the ones it needs, and writes its files into `tiny/models`.

    python -m tiny.train vae        about 45 minutes on one CPU core, by one process alone
    python -m tiny.train dits       about seven hours
    torchrun --nproc-per-node 2 -m tiny.train dits      half of that, on two cores

A stopped run goes on where it was. Its state and log are in `tiny/runs`.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from . import family, tokenizer, train_dit, train_vae
from .trainer import place

RUNS = Path(__file__).resolve().parent / "runs"

log = logging.getLogger("tiny")


def vae(folder: Path) -> None:
    """The Wan 2.1 VAE."""
    trained = train_vae.train(folder)
    log.info("%s", family.save("vae", trained.state_dict()))


def dits(folder: Path) -> None:
    """The text encoder, with its tokenizer inside, and the DiTs for text to video and image to video."""
    pair = train_dit.train(family.load_vae(), folder)
    encoder, dit = pair.encoder.state_dict(), pair.dit.state_dict()
    encoder.pop("encoder.embed_tokens.weight")  # the same tensor as shared.weight
    spiece = torch.frombuffer(bytearray(tokenizer.demo()), dtype=torch.uint8)
    files = {"umt5": encoder | {tokenizer.TENSOR: spiece}, "t2v": train_dit.text_to_video(dit), "i2v": dit}
    if place()[0] == 0:
        for kind, weights in files.items():
            log.info("%s", family.save(kind, weights))


PARTS = {"vae": vae, "dits": dits}


def main(arguments: list[str] | None = None) -> None:
    """Train what the command line names."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=list(PARTS))
    parser.add_argument("--runs", type=Path, default=RUNS, help="where states and logs are kept")
    options = parser.parse_args(arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    if dist.is_torchelastic_launched():
        if "vae" in options.parts:
            parser.error("the VAE is trained by one process: start python -m tiny.train vae")
        dist.init_process_group("gloo")
    for part in options.parts:
        PARTS[part](options.runs / part)


if __name__ == "__main__":
    main()
