"""The host takes the pack as it is."""

import folder_paths

from tiny import family

import nodes


def test_every_node_of_the_pack_is_registered(room):
    rooms = room("nodes").__name__
    ids = {name for name, node in nodes.NODE_CLASS_MAPPINGS.items() if node.__module__.startswith(rooms)}
    assert ids >= {"WanModelLoader", "WanVAELoader", "WanTextEncoderLoader", "WanSampler", "WanVAEDecode"}


def test_the_host_lists_the_checkpoints_and_the_demo_family(models, pack):
    suffixes = folder_paths.supported_pt_extensions
    for folder in ("diffusion_models", "vae", "text_encoders"):
        places = (models / folder, family.MODELS / folder)
        names = sorted(path.name for place in places for path in place.iterdir() if path.suffix in suffixes)
        assert names == folder_paths.get_filename_list(folder)


def test_a_load_reads_the_header_and_infers_the_configuration_once(room, run_node, models, monkeypatch):
    """Each through WanModelLoader; a model in its parts, here one file, has one header each."""
    files, model = room("wan_model.weights.files"), room("wan_model.dit.model")
    counts = {"header": 0, "configuration": 0, "model": 0}

    def count(owner, name, what):
        original = getattr(owner, name)

        def counted(*arguments, **options):
            counts[what] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, counted)

    count(model, "read_config", "configuration")
    count(files, "read_header", "header")
    count(model.WanDiT, "__init__", "model")
    run_node("WanModelLoader", model_name="tiny_random_wan2.1_t2v.safetensors", weight_dtype="float32")
    assert counts == {"header": 1, "configuration": 1, "model": 2}  # once for its shapes, once to run
