"""Trains the demo family, each part after the ones it needs, and writes its files into `tiny/models`.

    python -m tiny.train vae        about 45 minutes on one CPU core, by one process alone
    python -m tiny.train dits       about seven hours
    torchrun --nproc-per-node 2 -m tiny.train dits      half of that, on two cores
    python -m tiny.train lora       about 20 minutes on one core
    python -m tiny.train causal     about 95 minutes on one core
    python -m tiny.train t2v_high_noise     about 30 minutes on one core
    python -m tiny.train vae22      about 30 minutes on one core, by one process alone
    torchrun --nproc-per-node 2 -m tiny.train ti2v      about 75 minutes, on two cores

A stopped run goes on where it was. Its state and log are in `tiny/runs`.
"""

import argparse
import json
import logging
import os
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from . import family, tokenizer, train_causal, train_dit, train_flow, train_lora, train_vae
from .trainer import place, process_group
from wan_model.weights.marks import LATENT_RGB

RUNS = Path(__file__).resolve().parent / "runs"

log = logging.getLogger("tiny")


def vae(folder: Path) -> None:
    """The Wan 2.1 VAE."""
    log.info("%s", family.save("vae", train_vae.train("vae", folder).state_dict()))


def vae22(folder: Path) -> None:
    """The Wan 2.2 VAE."""
    log.info("%s", family.save("vae22", train_vae.train("vae22", folder).state_dict()))


def dits(folder: Path) -> None:
    """The text encoder, with its tokenizer inside, and the DiTs for text to video and image to video."""
    pair = train_dit.train(family.load_vae(), folder)
    encoder, dit = pair.encoder.state_dict(), pair.dit.state_dict()
    encoder.pop("encoder.embed_tokens.weight")  # the same tensor as shared.weight
    spiece = torch.frombuffer(bytearray(tokenizer.demo()), dtype=torch.uint8)
    small = family.in_eight_bits(dit)
    files = {"umt5": encoder | {tokenizer.TENSOR: spiece}, "t2v": train_dit.text_to_video(small), "i2v": small}
    if place()[0] == 0:
        for kind, weights in files.items():
            log.info("%s", family.save(kind, weights, colours() if kind in ("t2v", "i2v") else None))


def colours(kind: str = "vae") -> dict[str, str]:
    """What the header of a DiT says of the colours of the latents of the VAE of `kind`, for previews."""
    with torch.no_grad():
        return {LATENT_RGB: json.dumps(train_vae.latent_rgb(family.load_vae(kind)))}


def lora(folder: Path) -> None:
    """The LoRA for text to video in four steps."""
    student = train_lora.train(family.load_dit("t2v"), family.TextEncoder(), folder)
    log.info("%s", family.save(train_lora.KIND, student.file()))


def causal(folder: Path) -> None:
    """The causal DiT, with how it is run in its header."""
    dit = train_causal.train(family.load_dit("t2v"), family.load_vae(), family.TextEncoder(), folder)
    log.info("%s", family.save("causal", family.in_eight_bits(dit.state_dict()), colours() | train_causal.header()))


def flow(kind: str, folder: Path) -> None:
    """A DiT of `train_flow`."""
    dit = train_flow.train(kind, folder)
    if place()[0] == 0:
        log.info("%s", family.save(kind, dit.state_dict(), colours(train_flow.FORMS[kind].vae)))


PARTS = {"vae": vae, "vae22": vae22, "dits": dits, "lora": lora, "causal": causal}
PARTS |= {kind: partial(flow, kind) for kind in train_flow.FORMS}


def main(arguments: list[str] | None = None) -> None:
    """Train what the command line names."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=list(PARTS))
    parser.add_argument("--runs", type=Path, default=RUNS, help="where states and logs are kept")
    options = parser.parse_args(arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    if dist.is_torchelastic_launched():
        alone = [part for part in options.parts if part not in ("dits", *train_flow.FORMS)]
        if alone:
            parser.error(f"one process trains this: start python -m tiny.train {' '.join(alone)}")
    with process_group():
        for part in options.parts:
            PARTS[part](options.runs / part)


if __name__ == "__main__":
    main()
