"""The parts of `dev.py`: the environment, the host ComfyUI, its server, and workflows run through its API."""
