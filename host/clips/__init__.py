"""What a model is told of a new clip: size, given frames, control video and reference pictures."""
