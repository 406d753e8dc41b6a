"""Few-step presets: which files they are recognised from, and their schedules against the authors' lists."""

import json
import math

import pytest

from wan_model.solvers import SAMPLERS, check_sigmas
from wan_model.variants.distilled import BY_NAME, PRESETS, recognise

FILES = {  # name of a file, as it is published, -> preset
    "wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise.safetensors": "lightx2v",
    "wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise.safetensors": "lightx2v",
    "Wan2.2-Lightning_I2V-A14B-4steps-lora_HIGH_fp16.safetensors": "lightx2v",
    "lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank64_bf16.safetensors": "lightx2v",
    "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors": "lightx2v",
    "wan2.1_i2v_480p_int8_lightx2v_4step.safetensors": "lightx2v",
    "Wan2.1-I2V-14B-StepDistill-CfgDistill.safetensors": "lightx2v",
    "my_merge_4-step.gguf": "lightx2v",
    "Wan21_CausVid_14B_T2V_lora_rank32.safetensors": "causvid",
    "Wan21_CausVid_bidirect2_T2V_1_3B_lora_rank32.safetensors": "causvid 1.3b",
    "FastWan2.2-TI2V-5B-FullAttn.safetensors": "fastwan",
    "Wan2_1-T2V-1_3B_FastWan_bf16.safetensors": "fastwan",
    "self_forcing_dmd.pt": "self-forcing",
    "Wan2.1-T2V-1.3B-Self-Forcing-DMD-VACE-FP16.safetensors": "self-forcing",
    "causal_forcing-framewise.safetensors": "self-forcing",
    "Wan2.1_T2V_1.3B_dmd.safetensors": "self-forcing",
    "LongLive-2.0-5B.safetensors": "self-forcing",
    "rolling_forcing_dmd.pt": "rolling forcing",
    "rCM_Wan2.1_T2V_14B_480p.pt": "rcm",
    "TurboWan2.1-T2V-1.3B-480P-quant.pth": "rcm",
    "TurboDiffusion-14B.safetensors": "rcm",
    "TurboWan2.2-I2V-A14B-high-720P.pth": "rcm a14b i2v",
    "Wan14BT2VFusioniX_fp16.safetensors": "fusionx",
    "Wan2.1_I2V_14B_FusionX_LoRA.safetensors": "fusionx",
    "wan_animate_2_distill_int8_convrot.safetensors": "animate2 distilled",
}
PLAIN = [  # files that no few-step preset may be put on
    "wan2.1_t2v_14B_fp16.safetensors",
    "wan2.1_i2v_480p_14B_bf16.safetensors",
    "wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors",
    "wan2.2_ti2v_5B_fp16.safetensors",
    "Wan2.1_VACE_14B-Q4_K_M.gguf",
    "Wan2_1-SkyReels-V2-DF-14B-540P_fp16.safetensors",
    "wan_animate_2_int8_convrot.safetensors",
    "wan2.1_14B_SCAIL_2_fp16.safetensors",
    "wan2.2_bernini_r_high_noise_fp8_scaled.safetensors",
    "Wan2.1-Fun-14B-Control.safetensors",
    "my_character_2000steps.safetensors",
    "style_000004steps.safetensors",
    "epoch_14steps2.safetensors",
    "wan_circum_motion.safetensors",
    "wan2.1_causal_relations.safetensors",
    "turbocharged_car.safetensors",
    "",
]


@pytest.mark.parametrize("name", FILES)
def test_a_distilled_file_is_recognised_by_its_name(name):
    assert recognise(name).name == FILES[name]
    assert recognise(f"sub/folder/{name.upper()}").name == FILES[name]


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_file_is_left_alone(name):
    assert recognise(name) is None


@pytest.mark.parametrize(
    "model, lora, preset",
    [
        (
            "wan_animate_2_int8_convrot.safetensors",
            "lightx2v_I2V_14B_480p_cfg_step_distill_rank64",
            "animate2 lightx2v",
        ),
        ("wan2.1_14B_SCAIL_2_fp16.safetensors", "lightx2v_I2V_14B_480p_cfg_step_distill_rank64", "scail2 lightx2v"),
        ("wan2.2_bernini_r_low_noise.safetensors", "lightx2v_T2V_14B_cfg_step_distill_v2", "bernini lightx2v"),
        ("wan2.2_i2v_high_noise_14B.safetensors", "Wan2.2-Lightning_I2V-A14B-4steps", "lightx2v"),
        ("wan2.2_i2v_high_noise_14B.safetensors", "some_style.safetensors", None),
    ],
)
def test_a_model_and_its_lora_are_read_together(model, lora, preset):
    found = recognise(f"{model}\n{lora}")
    assert (found.name if found else None) == preset


@pytest.mark.parametrize("steps", [6, 8])
def test_the_name_gives_the_number_of_steps(steps):
    found = recognise(f"Wan2.2-Lightning-{steps}steps.safetensors")
    assert (found.name, found.steps, len(found.sigmas)) == ("lightx2v", steps, steps + 1)
    assert f"{steps} steps" in found.about and "4" not in found.about
    assert recognise(f"causvid_{steps}steps.safetensors") == BY_NAME["causvid"]  # its list is its own


def test_metadata_tells_what_the_name_does_not():
    header = {"config": json.dumps({"transformer": {"causal_ar": True}})}
    assert recognise("model.safetensors", header).name == "self-forcing"
    assert recognise("model.safetensors", {"ss_output_name": "wan_lightx2v_4steps"}).name == "lightx2v"
    assert recognise("model.gguf", {"general.name": "Wan2.1 FusionX"}).name == "fusionx"
    nothing = {"config": json.dumps({"transformer": {"causal_ar": False, "model_type": "t2v"}})}
    for metadata in ({}, nothing, {"config": "{"}, {"config": "[]"}, {"config": "null"}, {"format": "pt"}):
        assert recognise("model.safetensors", metadata) is None


OFFICIAL = {  # preset -> noise levels as the authors' code has them, and how near they are written
    "lightx2v": ([1, 0.9375, 0.8333, 0.625, 0], 5e-5),
    "self-forcing": ([1, 0.9375, 0.8333, 0.625, 0], 5e-5),
    "rcm": ([0.9877, 0.9338, 0.8529, 0.6090, 0], 5e-5),
    "rcm a14b i2v": ([200 / 201, 0.9338, 0.8529, 0.6090, 0], 5e-5),
    "causvid": ([0.999, 0.934, 0.862, 0.756, 0.603, 0.410, 0.250, 0.140, 0.074, 0], 1e-9),
    "causvid 1.3b": ([1, 0.757, 0.522, 0], 1e-9),
    "fastwan": ([1, 0.757, 0.522, 0], 1e-9),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_schedule_is_the_authors(name):
    expected, tolerance = OFFICIAL[name]
    assert BY_NAME[name].sigmas == pytest.approx(expected, abs=tolerance)


def test_rcm_steps_along_the_arc():
    """Its points cos(a) x0 + sin(a) noise, scaled so that both weights add up to 1, lie at these noise levels."""
    for name, first in (("rcm", math.atan(80)), ("rcm a14b i2v", math.atan(200))):
        for sigma, angle in zip(BY_NAME[name].sigmas, (first, 1.5, 1.4, 1.0), strict=False):
            assert sigma / (1 - sigma) == pytest.approx(math.tan(angle))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_preset_is_whole(preset):
    sigmas = check_sigmas(preset.sigmas)
    assert len(sigmas) == preset.steps + 1 and sigmas[-1] == 0
    assert preset.solver in SAMPLERS and min(preset.guidance) >= 1
    assert preset.about.endswith(".") and preset.source and BY_NAME[preset.name] is preset
