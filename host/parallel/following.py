"""Models in processes 1 and up: they load what process 0 describes, and run its forwards with it."""

import dataclasses
import logging

import comfy.model_management
import torch

from .. import compat
from ..model import attention
from ..model.dit import SHARED
from . import description, link, rollout, sharding, wire


class Stopped(RuntimeError):
    """Process 0 has cancelled a forward, or could not begin it."""


class Models:
    """The models of one process. operations: functions of a message by its `op`; one that returns a dict answers it."""

    def __init__(self, connections: link.Link):
        self.link = connections
        self.sources: dict[str, object] = {}  # MODELs without patches, by their description
        self.patched: dict[str, object] = {}  # the same with patches
        self.shards: dict[str, sharding.Shard] = {}  # of those that are sharded, by the same descriptions
        self.rollout = rollout.Caches()
        self.operations = {"load": self.load, "forward": self.forward}

    def load(self, ask: dict) -> dict:
        """Load the model of `ask` with its patches; return how many weights these change, or an error."""
        tensors = wire.receive(ask["tensors"], self.link.control, torch.device("cpu"))
        key = ask["key"]
        try:
            self.forget(ask["forget"])
            self.release(key)
            if key not in self.sources:
                self.sources[key] = self.patched[key] = description.Source(**ask["source"]).load()
            changed = ask["changed"]
            if ask["patches"] is not None:
                self.patched[key], changed = description.apply(self.sources[key], wire.unpack(ask["patches"], tensors))
        except (ValueError, FileNotFoundError) as error:
            return {"error": str(error)}
        model, held = self.patched[key], {}
        if ask["weights"] == sharding.SHARDED:
            shard = self.shards[key] = sharding.Shard(model, self.link)
            model, held = shard.patcher, {"form": shard.form, "nbytes": shard.nbytes}
        model.model.devices = self.link.size
        needed = model.model.memory_required(ask["shape"])
        comfy.model_management.load_models_gpu([model], memory_required=needed)
        return {"changed": changed, **held}

    def release(self, key: str) -> None:
        """Have the model of this description whole again, as it was loaded."""
        if key in self.shards:
            self.shards[key].settle()
            self.shards.pop(key).release()

    def forget(self, keys: list[str]) -> None:
        """Free the models of these descriptions."""
        for key in keys:
            self.release(key)
            self.sources.pop(key, None)
            self.patched.pop(key, None)
        comfy.model_management.cleanup_models_gc()
        comfy.model_management.soft_empty_cache()

    def forward(self, ask: dict) -> None:
        """Run the forward of `ask` with the others; its result is process 0's."""
        tensors = wire.receive(ask["tensors"], self.link.data, self.link.device)
        given, model, shard = wire.unpack(ask["given"], tensors), self.patched[ask["key"]], self.shards.get(ask["key"])
        options = dict(model.model_options["transformer_options"])
        options |= {SHARED: Follower(self.link, ask["rows"], shard), "rope_options": ask["rope_options"]}
        if ask["exact"]:
            options[attention.OVERRIDE] = attention.exact
        if ask["causal"] is not None:
            options |= self.rollout.restored(ask["causal"])
        x, t, context = (given.pop(name) for name in ("x", "t", "context"))
        try:
            with compat.on_device(self.link.device):
                model.model.diffusion_model.with_conditions(x, t, context, options, given)
        except Stopped:
            logging.info("A forward was stopped.")


@dataclasses.dataclass
class Follower:
    """The part of a process in a forward of process 0: the `SHARED` of its transformer_options."""

    link: link.Link
    rows: int
    shard: sharding.Shard | None = None
    has_begun: bool = False

    @property
    def size(self) -> int:
        """How many devices share a forward."""
        return self.link.size

    def forward(self, model, x, t, context, *, runtime, **given):
        """Run `model` as `Mesh.forward` does. Raise Stopped where it cannot begin, or process 0 gives up."""
        if self.shard:
            runtime = self.shard.lent(runtime)
        try:
            return self.link.mesh(self.rows).forward(model, x, t, context, runtime=runtime, **given)
        except ValueError as error:  # inputs that do not fit, which process 0 finds too
            if self.has_begun:
                raise
            self.link.agree(link.ERROR)
            raise Stopped from error

    def check(self) -> None:
        """Ask the others before a block; raise Stopped where one of them gives up."""
        self.has_begun = True
        if self.link.agree(0):
            raise Stopped
