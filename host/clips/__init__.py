"""Conditionings of a new clip: size, given frames, control video and reference images."""
