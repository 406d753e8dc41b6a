"""The settings that the editor suggests for distilled files are what WanSampler takes and its preset says."""

import importlib

import pytest

LIGHTNING = "wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise.safetensors"
MODEL = "wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors"


@pytest.fixture
def suggest(room):
    """Function from names of files to (message, settings) or None."""
    return room("host.editor.suggestion").suggest


def test_a_file_that_is_not_distilled_suggests_nothing(suggest):
    assert suggest([]) is None and suggest([MODEL]) is None


def test_the_message_names_the_distilled_file_alone(suggest):
    message, settings = suggest([MODEL, LIGHTNING])
    assert settings == {"steps": 4, "guidance": 1.0, "low_noise_guidance": 0, "shift": 5.0, "solver": "euler"}
    assert str(message) == f"Distilled to 4 steps ({LIGHTNING}): set 4 steps, guidance 1, shift 5 and euler."


@pytest.mark.parametrize(
    "name", [LIGHTNING, "Wan21_CausVid_14B_T2V_lora_rank32.safetensors", "FastWan2.1-T2V-1.3B.safetensors", "rcm.gguf"]
)
def test_the_sampler_does_with_the_settings_what_the_preset_says(suggest, room, name):
    presets = room("host.sampling.presets")
    _, settings = suggest([name])
    widgets = presets.Settings(**{key: value for key, value in settings.items() if key != "preset"})
    chosen = presets.Choice(settings.get("preset", presets.NONE), widgets, [name], is_pair=True).settings
    wanted = presets.Choice(presets.AUTO, presets.Settings(30, 5.0, 0.0, 5.0, "unipc"), [name], is_pair=True).settings
    assert chosen.schedule(1.0).sigmas.tolist() == wanted.schedule(1.0).sigmas.tolist()
    assert (chosen.solver, chosen.count, chosen.guidances) == (wanted.solver, wanted.count, wanted.guidances)


@pytest.mark.parametrize("name", [LIGHTNING, "causvid.safetensors"])
def test_the_settings_are_values_of_the_samplers_widgets(suggest, run_node, name):
    given = importlib.import_module("nodes").NODE_CLASS_MAPPINGS["WanSampler"].INPUT_TYPES()
    widgets = given["required"] | given["optional"]
    for key, value in suggest([name])[1].items():
        _, options = widgets[key]
        assert value in options["options"] if "options" in options else options["min"] <= value <= options["max"], key
