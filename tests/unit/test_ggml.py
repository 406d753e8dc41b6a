"""Unpacking of GGUF's number formats against the reference of the `gguf` package."""

import numpy as np
import pytest
import torch

from wan_model.weights import ggml

gguf = pytest.importorskip("gguf")


def random_blocks(layout, rows=3, blocks=5):
    """Every bit random but for the float16 scales, which must be finite."""
    generator = np.random.default_rng(layout.size)
    data = generator.integers(0, 256, (rows * blocks, layout.size), dtype=np.uint8)
    for start in {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}.get(layout.name, (0, 2)):
        if start == 0 or layout.name[-1] in "1K":
            data[:, start : start + 2] = generator.normal(size=(len(data), 1)).astype(np.float16).view(np.uint8)
    return data.reshape(rows, -1)


@pytest.mark.parametrize("kind", ggml.FORMATS, ids=lambda kind: ggml.FORMATS[kind].name)
def test_values_are_those_of_the_reference(kind):
    layout = ggml.FORMATS[kind]
    reference_type = gguf.GGMLQuantizationType(kind)
    assert reference_type.name == layout.name
    assert gguf.GGML_QUANT_SIZES[reference_type] == (layout.values, layout.size)
    data = random_blocks(layout)
    expected = torch.from_numpy(gguf.dequantize(data, reference_type))
    assert expected.std() > 0
    actual = ggml.unpack(ggml.Packed(torch.from_numpy(data), kind), torch.float32)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-5)
    half = ggml.unpack(ggml.Packed(torch.from_numpy(data), kind), torch.bfloat16)
    assert half.dtype == torch.bfloat16 and torch.equal(half, actual.bfloat16())
