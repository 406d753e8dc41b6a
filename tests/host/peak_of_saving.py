"""Run by test_video.py in a process of its own: save a clip and note the most memory that the process ever had.

Its name keeps it out of the suite. The VAE is as narrow as can be, so that pixels and not weights or work count, and
decodes in bfloat16: torch has no fast convolution in float32 for so few channels.
"""

import os
import resource
from pathlib import Path

import recipe
import torch

from wan_model.vae import VAEConfig, make_vae


def test_peak_of_saving(room, tmp_path):
    config = VAEConfig(version="2.2", latent_channels=48, dim=4, dec_dim=4)
    shapes = {name: x.shape for name, x in make_vae(config, device="meta").state_dict().items()}
    vae = room("host.vae.vae").HostVAE(recipe.state_dict(shapes), torch.bfloat16, torch.float32)
    latent = torch.randn(1, 48, int(os.environ["WAN_LATENT_FRAMES"]), 16, 16)  # 256 x 256 pixels
    room("host.vae.video").decode(vae, latent, (0, 0), 16).save_to(str(tmp_path / "clip.mp4"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB on Linux
    Path(os.environ["WAN_RESULT"]).write_text(str(peak), encoding="ascii")
