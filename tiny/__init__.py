"""The demo family of trained small models, and random-weight stand-ins for variants that are not in it."""

STEPS, SHIFT, GUIDANCE = 20, 3.0, 4.0  # recommended for the family
CAUSAL = {"solver": "unipc", "steps": 8, "shift": 3.0, "guidance": 2.5}  # of the causal model, for each frame
FOUR_STEPS = {"steps": 4, "guidance": 1.0, "shift": 5.0, "solver": "euler"}  # with the LoRA, as lightx2v's want
