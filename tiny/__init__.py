"""Small stand-ins for the real checkpoints."""
