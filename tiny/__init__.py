"""The demo family of trained small models, and random-weight stand-ins for variants that are not in it."""

STEPS, SHIFT, GUIDANCE = 20, 3.0, 4.0  # recommended for the family
