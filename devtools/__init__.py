"""What `dev.py` is made of: the environment, the host ComfyUI, its server, and workflows run through its API."""
