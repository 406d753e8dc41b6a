"""One MODEL on several devices: ComfyUI is the first process, torch's launcher starts and supervises the others."""
