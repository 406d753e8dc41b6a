"""umT5 on the host's T5 classes: golden embeddings, every layout, prompts, and files that are something else."""

import gzip
import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tiny import tokenizer

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
PROMPT = "a red fox walks in the snow"


@pytest.fixture(scope="module")
def spiece():
    """A SentencePiece model of 300 pieces with umT5's special tokens, as bytes."""
    return tokenizer.train([PROMPT, "the cat sits, a dog runs."] * 20, 300, coverage=0.9995)


@pytest.fixture(scope="module")
def repackaged(host_clip, golden, spiece):
    """The golden encoder's weights in ComfyUI's layout, tokenizer inside."""
    state = host_clip.host_weights(golden("umt5").weights())
    return state | {"spiece_model": torch.frombuffer(bytearray(spiece), dtype=torch.uint8)}


@pytest.fixture(scope="module")
def clip(host_clip, repackaged, tmp_path_factory):
    path = tmp_path_factory.mktemp("repackaged") / "umt5.safetensors"
    save_file(repackaged, path)
    return host_clip.load(str(path))


@pytest.fixture(scope="module")
def host_clip(room):
    return room("host.encoders.clip")


@pytest.fixture
def save(tmp_path):
    """Function that writes a state dict to a file and gives its path."""

    def write(state, name="umt5.safetensors"):
        save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / name)
        return str(tmp_path / name)

    return write


def embeds(clip, golden):
    case = golden("umt5")
    model = clip.cond_stage_model.umt5xxl.transformer
    out = model(case.inputs["ids"], case.inputs["mask"], dtype=torch.float32)[0]
    return out[:, : case.outputs["embeds"].shape[1]], case.outputs["embeds"]


def test_repackaged_file_matches_golden(clip, golden, relative_error):
    assert relative_error(*embeds(clip, golden)) < 1e-4


@pytest.mark.parametrize("place", ["spiece.model", "google/umt5-xxl/spiece.model"])
def test_official_file_matches_golden(host_clip, golden, spiece, relative_error, tmp_path, place):
    torch.save(golden("umt5").weights(), tmp_path / "umt5.pth")
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_bytes(spiece)
    clip = host_clip.load(str(tmp_path / "umt5.pth"))
    assert relative_error(*embeds(clip, golden)) < 1e-4


def test_fp8_scaled_file_is_read_by_the_host(host_clip, repackaged, golden, save, relative_error):
    state = dict(repackaged, scaled_fp8=torch.empty(0, dtype=torch.float8_e4m3fn))
    for name, weight in repackaged.items():
        if any(part in name for part in (".q.", ".k.", ".v.", ".o.", ".wi_0.", ".wi_1.", ".wo.")):
            scale = weight.abs().max() / 448
            state[name] = (weight / scale).to(torch.float8_e4m3fn)
            state[name.removesuffix("weight") + "scale_weight"] = scale
    error = relative_error(*embeds(host_clip.load(save(state)), golden))
    assert 1e-4 < error < 0.2  # fp8 keeps 3 bits of mantissa; without its scales the error is above 1


@pytest.mark.parametrize("layout", ["official/umt5_xxl", "hf/umt5_xxl_encoder"])
def test_full_size_names_map_completely(room, host_clip, layout):
    shapes = json.loads(gzip.decompress((GOLDEN / "checkpoints.json.gz").read_bytes()))[layout]
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    found = room("wan_model.checkpoint").recognise(state)
    assert found.variant == "umt5"
    renamed = host_clip.host_weights(found.tensors)
    config = host_clip.infer_config(renamed, layout)
    assert {name: tuple(weight.shape) for name, weight in renamed.items()} == host_clip.expected_shapes(config)
    assert (config["d_model"], config["d_ff"], config["num_heads"], config["num_layers"]) == (4096, 10240, 64, 24)


def test_expected_shapes_are_those_of_the_hosts_model(host_clip, clip, repackaged):
    config = host_clip.infer_config(repackaged, "umt5")
    state = clip.cond_stage_model.umt5xxl.transformer.state_dict()
    assert {name: tuple(weight.shape) for name, weight in state.items()} == host_clip.expected_shapes(config)


def test_prompt_is_padded_to_512_with_zeros(host_clip, clip):
    (embedding, _), *others = host_clip.encode_prompt(clip, PROMPT, "positive")
    tokens = clip.tokenize(PROMPT)["umt5xxl"][0]
    used = [token for token, _ in tokens].index(1) + 1
    assert not others and embedding.shape == (1, 512, 64)
    assert embedding[:, :used].abs().amin(dim=-1).min() > 0 and embedding[:, used:].abs().max() == 0


def test_plain_prompt_gives_what_the_hosts_node_gives(host_clip, clip):
    import nodes

    (theirs,) = nodes.CLIPTextEncode().encode(clip, PROMPT)
    assert torch.equal(theirs[0][0], host_clip.encode_prompt(clip, PROMPT, "positive")[0][0])


def test_conditioning_is_that_of_the_hosts_own_loader(host_clip, clip, repackaged, monkeypatch):
    import comfy.sd

    monkeypatch.setattr(
        comfy.sd, "detect_te_model", lambda state: comfy.sd.TEModel.T5_XXL
    )  # it knows the full size only
    config = host_clip.infer_config(repackaged, "umt5")
    theirs = comfy.sd.load_text_encoder_state_dicts(
        [dict(repackaged)],
        clip_type=comfy.sd.CLIPType.WAN,
        model_options={"umt5xxl_model_config": config, "dtype": torch.float32},
    )
    prompt = f"{PROMPT}, (the cat:1.3) sits"
    ours, theirs = (c.encode_from_tokens_scheduled(c.tokenize(prompt)) for c in (clip, theirs))
    assert torch.equal(ours[0][0], theirs[0][0])


def test_parentheses_are_literal(host_clip, clip):
    plain, weighted = (host_clip.encode_prompt(clip, text, "positive")[0][0] for text in (PROMPT, f"({PROMPT}:1.5)"))
    tokens = clip.tokenize(f"({PROMPT}:1.5)", disable_weights=True)["umt5xxl"][0]
    assert all(weight == 1.0 for _, weight in tokens)
    assert not torch.equal(plain, weighted)


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("  a  fox\n\tin\u3000snow ", "a fox in snow"),
        ("\u8272\u8c03\u8273\u4e3d\uff0c\u8fc7\u66dd\u3002", "\u8272\u8c03\u8273\u4e3d,\u8fc7\u66dd\u3002"),
        ("Tom &amp;amp; \u201cJerry\u201d &lt;3", 'Tom & "Jerry" <3'),
        ("caf\u00c3\u00a9", "caf\u00e9"),
    ],
)
def test_prompt_is_cleaned_as_in_the_official_code(host_clip, prompt, cleaned):
    assert host_clip.clean_prompt(prompt) == cleaned


def test_long_prompt_is_cut_and_says_where(host_clip, clip, caplog):
    with caplog.at_level(logging.WARNING):
        long = host_clip.encode_prompt(clip, f"{PROMPT} " * 100 + "the end", "negative")[0][0]
    assert long.shape == (1, 512, 64) and long[:, -1].abs().max() > 0
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "negative prompt" in message and "fox walks" in message


def test_other_text_encoder_is_named(host_clip):
    class CLIP:
        def tokenize(self, text, **options):
            return {"l": [], "t5xxl": []}

    with pytest.raises(ValueError, match=r"this CLIP is another one: load umT5-XXL in WanTextEncoderLoader"):
        host_clip.encode_prompt(CLIP(), PROMPT, "positive")


def without_tables(state):
    return {k: v for k, v in state.items() if "relative_attention_bias" not in k or "block.0" in k}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"model.layers.0.self_attn.q_proj.weight": torch.ones(4, 4)}, "a language model, not a umT5"),
        (without_tables, "T5 text encoder of another family"),
        (lambda s: {k: v for k, v in s.items() if k != "encoder.block.1.layer.1.DenseReluDense.wo.weight"}, "lacks"),
        (
            lambda s: s | {"encoder.block.1.layer.0.SelfAttention.o.weight": torch.ones(64, 32)},
            r"\(64, 32\).*\(64, 64\)",
        ),
        (lambda s: {k: v for k, v in s.items() if k != "spiece_model"}, r"spiece\.model"),
        (lambda s: s | {"spiece_model": torch.ones(100, dtype=torch.uint8)}, "tokenizer"),
        (lambda s: s | {"shared.weight": torch.ones(100, 64)}, "pieces"),
    ],
)
def test_bad_file_gets_one_sentence(host_clip, repackaged, save, change, message):
    with pytest.raises(ValueError, match=message):
        host_clip.load(save(change(repackaged)))


def test_nodes_give_both_conditionings(room, models, run_node):
    name = "tiny_random_umt5.safetensors"
    loader = room("nodes.text").WanTextEncoderLoader
    assert loader.validate_inputs(name) is True
    assert "tiny_random_wan2.1_vae" in loader.validate_inputs("tiny_random_wan2.1_vae.safetensors")
    (clip,) = run_node("WanTextEncoderLoader", text_encoder_name=name)
    positive, negative = run_node(
        "WanTextEncode", clip=clip, positive=PROMPT, negative=room("nodes.text").NEGATIVE_PROMPT
    )
    assert positive[0][0].shape == negative[0][0].shape and positive[0][0].shape[1] == 512
    assert not torch.equal(positive[0][0], negative[0][0])
