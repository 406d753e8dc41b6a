"""The host takes the pack as it is."""

import folder_paths

from tiny import family

import nodes


def test_every_node_of_the_pack_is_registered(room):
    rooms = room("nodes").__name__
    ids = {name for name, node in nodes.NODE_CLASS_MAPPINGS.items() if node.__module__.startswith(rooms)}
    assert ids >= {"WanModelLoader", "WanVAELoader", "WanTextEncoderLoader", "WanSampler", "WanVAEDecode"}


def test_the_host_lists_the_checkpoints_and_the_demo_family(models, pack):
    for folder in ("diffusion_models", "vae", "text_encoders"):
        places = (models / folder, family.MODELS / folder)
        names = sorted(path.name for place in places for path in place.iterdir() if path.suffix != ".md")
        assert names == folder_paths.get_filename_list(folder)
