"""VAE: the tiles of its decodes are dealt to the processes of a group."""

import dataclasses
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...wan_model.parallel import Deal
from ...wan_model.vae import Past, plan_decode
from ...wan_model.vae.plan import even_tiles
from ...wan_model.vae.tiling import MIN_TILE, Grid
from .. import files
from ..vae.recovery import RAM
from ..vae.vae import AUTO, HostVAE, StepProgress, load
from . import link, wire
from .description import located
from .devices import Devices
from .team import Team, running

FOLDER = "vae"


@dataclasses.dataclass(frozen=True)
class Source:
    """A VAE's file and the dtype of its decodes. size: bytes of the file, to tell another one apart."""

    name: str
    size: int
    dtype: str

    @classmethod
    def of(cls, vae) -> "Source":
        """Return the source of the host's VAE `vae`; raise ValueError for one that cannot travel."""
        if getattr(vae, "path", None) is None:
            raise ValueError(
                "Wan Parallel VAE can share a VAE of WanVAELoader alone, and this one is from another loader: load the "
                "file with WanVAELoader."
            )
        if vae.patcher.patches or vae.patcher.object_patches:
            raise ValueError(
                "A node before Wan Parallel VAE changes the VAE's weights, which cannot be sent to other devices: "
                "connect the VAE of WanVAELoader itself."
            )
        dtype = str(vae.vae_dtype).removeprefix("torch.")
        return cls(files.name(FOLDER, vae.path), os.path.getsize(vae.path), dtype)

    def load(self) -> HostVAE:
        """Return a VAE of this source; raise ValueError where the file is another one."""
        return load(located(FOLDER, self.name, self.size), self.dtype)


def apply(vae, devices: Devices):
    """Return a VAE whose decodes are shared by `devices`; `vae` itself for one device.

    Raise ValueError for a VAE that cannot be described to other processes.
    """
    return vae if devices.size == 1 else SharedVAE(vae, devices)


class SharedVAE(HostVAE):
    """The VAE `vae`, its network and settings, with decodes that `devices` share.

    Encodes run on this process's device alone, and so do clips that are decoded part by part.
    """

    def __init__(self, vae: HostVAE, devices: Devices):
        self.__dict__.update(vars(vae))
        self.source, self.devices = Source.of(vae), devices

    def decode_chunks(self, samples, tile=AUTO, past: Past | None = None, leave=None) -> Iterator[torch.Tensor]:
        """As `HostVAE.decode_chunks`."""
        tiles = self.tiles(samples, tile) if past is leave is None else None
        if tiles is None:
            return super().decode_chunks(samples, tile, past, leave)
        return self._shared(samples, tiles)

    def tiles(self, samples: torch.Tensor, tile: tuple[int, int]) -> tuple[int, int] | None:
        """Return `tile` if it gives every device one, else another that does; None for too small a frame."""
        stride, size = self.config.decoded_stride, self.devices.size
        even = next(even_tiles(tuple(side * stride for side in samples.shape[3:]), stride, size), None)
        if even is None:
            logging.info("The frames are too small for a tile on each of %d devices: one decodes them.", size)
        if even is None or tile == AUTO:
            return even and tile
        sides = [given or side * stride for given, side in zip(tile, samples.shape[3:], strict=True)]
        count = len(self.plan(plan_decode, samples.shape, sides, self.vae_dtype).cores)
        return tile if count >= size else even

    def _shared(self, samples: torch.Tensor, tile: tuple[int, int]) -> Iterator[torch.Tensor]:
        """Decode with the others, from when the first frame is asked for."""
        team = running(self.devices)
        if team.is_lent:
            logging.info("Wan Parallel: the other devices are in the middle of a decode, and one does this one.")
            yield from super().decode_chunks(samples, tile)
            return
        number = team.ask("load_vae", source=dataclasses.asdict(self.source))
        runtime = dataclasses.replace(self.runtime, share=Deal(team.link.data, lambda: go_on(team)))
        stream = self.decoder(samples, tile, runtime, StepProgress(samples.shape[2]))
        settle(team, number)
        with lent(team, samples, stream.grid):
            yield from self.frames(stream)


def settle(team: Team, number: int) -> None:
    """Wait until the others have loaded the VAE, as message `number` said; raise ValueError where one cannot."""
    for rank, answer in enumerate(team.answers(number), 1):
        if "error" in answer:
            raise ValueError(f"Process {rank} (on {team.devices.name(rank)}) cannot load the VAE: {answer['error']}")


def go_on(team: Team) -> None:
    """Tell the others that this process has its part of a window. Raise TeamError if the group has ended."""
    team.check()
    team.link.agree(0)


@contextmanager
def lent(team: Team, samples: torch.Tensor, grid: Grid) -> Iterator[None]:
    """The others decode `samples` in the tiles of `grid`, too; where this process leaves early, they do."""
    stop = f"stop/{team.asked}"
    tile = [max(MIN_TILE, *map(len, spans)) for spans in (grid.rows, grid.cols)]
    team.ask("decode", [samples], tile=tile, stop=stop)
    wire.send([samples], team.link.control, RAM)
    team.is_lent = True
    try:
        yield
    finally:
        team.is_lent = False
        if team.is_open:
            team.store.set(stop, "")  # they look for it after each step, or have finished
            team.link.agree(link.CANCEL)
            team.store.delete_key(stop)
