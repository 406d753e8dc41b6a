"""The official templates of every open Wan model: the host's loaders and ours, the same prompt, the same latents.

The table, template by template: pytest tests/host/test_official_templates.py -m "slow or not slow" -v
"""

import folder_paths
import pytest
from official import runner, stand_ins, templates

pytestmark = pytest.mark.skipif(not templates.FOLDER.exists(), reason=f"there is no {templates.FOLDER}")
TOLERANCE = 2e-3
NAMES = list(templates.names()) if templates.FOLDER.exists() else []

# Where we follow the authors and ComfyUI does not; `test_sound_on_host.py` shows each difference.
DIFFERS = {
    "video_wan2_2_14B_s2v",  # ComfyUI leaves out the 73 frames in front of the sound
    "video_humo",  # ComfyUI holds zeros in the reference frames
}
# What tensors stand in for: models of other families, paid services, and loops, which older hosts do not run.
CUT = {
    "video_wan_animate2": {"StartLoop", "GetItemFromList"},
    "video_wan21_scail2_character_replacement": {"SAM3_VideoTrack", "SCAIL2ColoredMask"},
    "video_wan21_scail2_character_replacement_int8": {"SAM3_VideoTrack", "SCAIL2ColoredMask"},
    "video_wan_vace_inpainting": {"SAM3_Detect"},
    "video_wan2_2_14B_s2v": {"AudioEncoderEncode"},
    "video_wan2_1_infinitetalk": {"AudioEncoderEncode"},
    "video_humo": {"AudioEncoderEncode"},
    "templates_mjm_looped_restyler": {"GeminiImageNode", "GeminiNodeV3"},
}


@pytest.fixture(scope="module")
def info(pack):
    """The inputs of the host's nodes."""
    runner.load_extra_nodes()
    return templates.object_info()


@pytest.fixture
def prompt(info):
    """Function from a template's name to its prompt; skips the test where this host lacks a node of the template."""

    def make(name: str) -> templates.Prompt:
        made = templates.prompt(name, info)
        if lacking := made.lacking - CUT.get(name, set()):
            pytest.skip(f"this ComfyUI lacks {', '.join(sorted(lacking))}")
        return made

    return make


def outcome(prompt: templates.Prompt, relative_error) -> tuple[str, str]:
    """("same", "differs", "refused" or "crashes", the largest error or the message)."""
    theirs, ours = stand_ins.loaders(prompt.nodes)
    expected = runner.run_prompt(stand_ins.with_loaders(prompt.nodes, theirs), prompt.ends)
    try:
        found = runner.run_prompt(stand_ins.with_loaders(prompt.nodes, ours), prompt.ends)
    except runner.Failure as failure:
        return ("refused" if failure.kind == "ValueError" else "crashes"), str(failure)
    assert found.keys() == expected.keys()
    error = max(relative_error(found[name], expected[name]) for name in expected)
    return ("same" if error < TOLERANCE else "differs"), f"{error:.1e}"


def test_every_open_template_is_found():
    assert len(NAMES) >= 39
    assert DIFFERS | CUT.keys() <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_template_becomes_a_prompt(name, prompt):
    made = prompt(name)
    assert made.cut <= CUT.get(name, set())
    assert made.ends
    assert made.nodes.keys() >= set(made.ends)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_ours_is_the_hosts(name, prompt, models, relative_error, record_property):
    made = prompt(name)
    stand_ins.write(made.nodes, models, models.parent / "input")
    folder_paths.filename_list_cache.clear()
    found, detail = outcome(made, relative_error)
    cut = f" (cut: {', '.join(sorted(made.cut))})" if made.cut else ""
    record_property("found", f"{found}: {detail[:160]}{cut}")
    assert found == ("differs" if name in DIFFERS else "same"), f"{found}: {detail}"
