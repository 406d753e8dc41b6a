"""Live preview and timing of a run."""
