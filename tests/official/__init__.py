"""ComfyUI's own nodes and templates for Wan, run with the host's loaders and with ours on tiny files.

`files` writes the files, `variants` makes a conditioning for each member of the family with the host's nodes,
`templates` turns the official templates into prompts, `runner` runs them in this process, and `table` prints what came
of it.
"""
