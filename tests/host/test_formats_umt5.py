"""umT5 in parts and as GGUF: the embeddings of its plain weights, and the tokenizer rebuilt from the metadata."""

import pytest
import torch
import writers
from safetensors.torch import load_file, save_file

from wan_model.weights import layouts

PROMPT = "a red ball rolls down the hill & \u7ea2\u8272\u7684\u7403, 42"
BULK = ("attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_o.weight", "token_embd.weight", "ffn_up.weight")


@pytest.fixture(scope="module")
def host_clip(room):
    return room("host.encoders.clip")


@pytest.fixture(scope="module")
def state(models):
    """The tiny umT5 in the layout of the repackaged files, tokenizer inside."""
    return load_file(models / "text_encoders" / "tiny_random_umt5.safetensors")


def embedding(clip):
    return clip.encode_from_tokens(clip.tokenize(PROMPT))


def llama_names(state):
    official = layouts.rename([name for name in state if name != "spiece_model"], layouts.UMT5_HF)
    return {
        theirs: layouts.rename([ours], layouts.inverse(layouts.UMT5_GGUF))[ours] for theirs, ours in official.items()
    }


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_1", "F16"])
def test_gguf(host_clip, state, relative_error, tmp_path, kind):
    names = llama_names(state)
    weights = {ours: state[theirs].float() for theirs, ours in names.items()}
    path = tmp_path / "umt5.gguf"
    spiece = state["spiece_model"].numpy().tobytes()
    meaning = writers.write_gguf(path, weights, kind, arch="t5", bulk=BULK, spiece=spiece)
    plain = {theirs: meaning[ours] for theirs, ours in names.items()} | {"spiece_model": state["spiece_model"]}
    save_file(plain, tmp_path / "plain.safetensors")
    packed, expected = host_clip.load(str(path)), host_clip.load(str(tmp_path / "plain.safetensors"))
    assert packed.tokenize(PROMPT) == expected.tokenize(PROMPT)
    assert relative_error(embedding(packed), embedding(expected)) < 1e-5
    layer = packed.cond_stage_model.umt5xxl.transformer.encoder.block[0].layer[0].SelfAttention.q
    assert (layer.weight.dtype == torch.uint8) == (kind != "F16")


def test_parts(host_clip, state, tmp_path):
    save_file(state, tmp_path / "whole.safetensors")
    first = writers.write_parts(tmp_path / "umt5.safetensors", state, count=2)
    assert torch.equal(
        embedding(host_clip.load(str(first))), embedding(host_clip.load(str(tmp_path / "whole.safetensors")))
    )
