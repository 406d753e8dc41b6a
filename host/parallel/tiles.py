"""VAEs in processes 1 and up: they load the one that process 0 describes, and decode their tiles with it."""

import dataclasses
import logging

from ...wan_model.parallel import Deal
from ..vae.recovery import RAM
from ..vae.vae import HostVAE
from . import link, wire
from .following import Stopped
from .frames import Source


class Decodes:
    """The VAE of one process. operations: as of `following.Models`."""

    def __init__(self, connections: link.Link):
        self.link = connections
        self.source: Source | None = None
        self.vae: HostVAE | None = None
        self.operations = {"load_vae": self.load, "decode": self.decode}

    def load(self, ask: dict) -> dict:
        """Load the VAE of `ask`, in place of another one; return what is wrong with it, if anything is."""
        source = Source(**ask["source"])
        if source == self.source:
            return {}
        self.source = self.vae = None
        try:
            self.vae = source.load()
        except (ValueError, FileNotFoundError) as error:
            return {"error": str(error)}
        self.source = source
        return {}

    def decode(self, ask: dict) -> None:
        """Decode this process's tiles of the latent of `ask`; the frames are process 0's."""
        (samples,) = wire.receive(ask["tensors"], self.link.control, RAM)
        runtime = dataclasses.replace(self.vae.runtime, share=Deal(self.link.data, self._agree))
        try:
            stream = self.vae.decoder(samples, tuple(ask["tile"]), runtime, lambda *_: self._look(ask["stop"]))
            for _ in self.vae.frames(stream):
                raise RuntimeError("Frames have come to a process that should send them.")
            self.link.agree(0)  # that all is over
        except Stopped:
            logging.info("A decode was stopped.")

    def _agree(self) -> None:
        """Agree with the others on the exchange of a window; raise Stopped where process 0 gives up."""
        if self.link.agree(0):
            raise Stopped

    def _look(self, stop: str) -> None:
        """Raise Stopped if process 0 has given up since the last window."""
        if self.link.store.check([stop]):
            self.link.agree(0)
            raise Stopped
