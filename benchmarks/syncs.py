"""How often the host waits for the device, in a sampling step and in a block of the VAE: `python3 dev.py bench syncs`.

On a card by torch's debug mode, without one on a simulated device. Exit status 1 if it is more often than it should be.
"""

import sys
import tempfile
from pathlib import Path

import bench
import torch
from bench import DEVICE, log
from card import syncs

from tiny import random_weights


def main() -> int:
    """Count and print."""
    bench.begin(bench.parser(__doc__))
    bench.start_comfyui()
    room, device = bench.load_pack(), syncs.real_card if DEVICE.type == "cuda" else syncs.simulated_card
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        models = Path(folder)
        random_weights.write(models)
        model = room("host.model.loading").load(str(models / syncs.MODEL), "float32")
        runs = syncs.Runs(bench.run_node, model, room("host.vae.vae").load(str(models / syncs.VAE)))
        with device() as card:
            found = syncs.counted(runs, card)
    for name, waits in found.items():
        log.info("%s: %d (%s)", name, len(waits), syncs.summary(waits))
    return 1 if syncs.beyond(found) else 0


if __name__ == "__main__":
    sys.exit(main())
