"""The host takes the pack as it is."""

import folder_paths

import nodes


def test_every_node_of_the_pack_is_registered(room):
    rooms = room("nodes").__name__
    ids = {name for name, node in nodes.NODE_CLASS_MAPPINGS.items() if node.__module__.startswith(rooms)}
    assert ids >= {"WanModelLoader", "WanVAELoader", "WanTextEncoderLoader", "WanSampler", "WanVAEDecode"}


def test_the_host_lists_the_checkpoints(models):
    for folder in ("diffusion_models", "vae", "text_encoders"):
        assert sorted(path.name for path in (models / folder).iterdir()) == folder_paths.get_filename_list(folder)
