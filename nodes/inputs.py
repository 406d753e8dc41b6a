"""Inputs that several nodes have."""

from comfy_api.latest import io


def fraction(name: str, default: float, tooltip: str, *, step: float = 0.005, optional: bool = False) -> io.Float.Input:
    """Return an input for a number from 0 to 1."""
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=step, optional=optional, tooltip=tooltip)
