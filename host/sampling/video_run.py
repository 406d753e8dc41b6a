"""One run of a video of any length: begun anew or gone on with, ended or stopped, its file finished."""

import json
import logging
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import comfy.model_management
import folder_paths
from comfy.cli_args import args

from ..parallel.run import shared_by
from ..vae.growing import GrowingVideo
from . import saved
from .stream import Order, Production


def produce(order: Order, prefix: str, resume: bool, metadata: Mapping[str, object], audio: dict | None) -> Path:
    """Make the video of `order` and return its file, an MP4 in the host's output folder.

    prefix: of its name, as SaveVideo takes it. resume: whether to go on with the newest unfinished video of that name
    and to be able to go on with this one. metadata: the graph, by the host's names. audio: the host's AUDIO or None.
    An interruption finishes the file; it ends a video without end as planned, and is raised again for another one.
    Raise ValueError where the unfinished video was made with something else, or the state is spread over devices.
    """
    if resume and shared_by(order.stage.model)[0] > 1:
        raise ValueError(
            "Wan Parallel keeps a part of the state on each device, which cannot be saved: turn resume off, or connect "
            "the model without Wan Parallel."
        )
    _, height, width = order.latent
    stride = order.vae.config.decoded_stride
    folder, stem, counter, _, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), width * stride, height * stride
    )
    before = saved.newest(Path(folder), stem) if resume else None
    path = before or Path(folder, f"{stem}_{counter:05}_.mp4")
    production = Production(order, GrowingVideo(path, Fraction(order.rate), texts(metadata)), resume)
    if before is not None:
        go_on(production)
    try:
        production.run()
    except comfy.model_management.InterruptProcessingException:
        if production.file.frames:
            finish(production, audio)
        if order.seconds or not production.file.frames:
            raise
    else:
        finish(production, audio)
    return path


def go_on(production: Production) -> None:
    """Give `production` the state beside its file. Raise ValueError where it belongs to something else."""
    path = production.file.path
    tensors, facts = saved.read(saved.path_beside(path))
    saved.check_same(path.name, facts["identity"], production.order.identity)
    production.restore(tensors, facts)
    if path.stat().st_size < production.file.size or production.file.mark() != facts["mark"]:
        raise ValueError(
            f"{path.name} is not the file any more that it was when its state was saved, of {production.file.size:,} "
            "bytes or more: put that one back, or turn resume off to begin a new video."
        )
    logging.info("Going on with %s at %.1f seconds.", path.name, production.file.seconds)


def finish(production: Production, audio: dict | None) -> None:
    """Make the file a regular one, and forget the state."""
    production.player.end()
    production.file.finish(audio)
    saved.path_beside(production.file.path).unlink(missing_ok=True)
    production.player.tell(finished=True)


def texts(metadata: Mapping[str, object]) -> dict[str, str]:
    """Return the graph as the host writes it into files; nothing where it was told not to."""
    return {} if args.disable_metadata else {name: json.dumps(value) for name, value in metadata.items()}
