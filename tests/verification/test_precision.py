"""Running a reference model in one type throughout, and bounding its rounding error."""

import pytest
import torch
from safetensors.torch import save_file

from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification.precision import everything_in, tolerance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("previous", [torch.float32, torch.float64])
def test_the_default_type_is_set_and_restored_even_after_an_error(dtype, previous):
    torch.set_default_dtype(previous)
    try:
        with everything_in(dtype):
            assert torch.zeros(1).dtype == dtype
        assert torch.get_default_dtype() == previous
        with pytest.raises(ValueError, match="inside"), everything_in(dtype):
            raise ValueError("inside")
        assert torch.get_default_dtype() == previous
    finally:
        torch.set_default_dtype(torch.float32)


LOWERING = {
    "float()": lambda x: x.float(),
    "half()": lambda x: x.half(),
    "bfloat16()": lambda x: x.bfloat16(),
    "to(dtype)": lambda x: x.to(torch.float32),
    "to(dtype=)": lambda x: x.to(dtype=torch.bfloat16),
    "to(device, dtype)": lambda x: x.to("cpu", torch.float16),
    "type(dtype)": lambda x: x.type(torch.float32),
    "softmax": lambda x: torch.nn.functional.softmax(x, dim=-1, dtype=torch.float32),
    "sum": lambda x: x.sum(dtype=torch.float32),
    "zeros": lambda x: torch.zeros(3, dtype=torch.float32),  # noqa: ARG005
    "arange": lambda x: torch.arange(3, dtype=torch.float32),  # noqa: ARG005
    "full_like": lambda x: torch.full_like(x, 1, dtype=torch.float16),
    "to(other)": lambda x: x.to(torch.ones(1, dtype=torch.float32)),
    "type_as": lambda x: x.type_as(torch.ones(1, dtype=torch.float32)),
}


@pytest.mark.parametrize("name", LOWERING)
def test_float64_mode_prevents_lower_types(name):
    values = torch.rand(3, dtype=torch.float64)
    with everything_in(torch.float64):
        assert LOWERING[name](values).dtype == torch.float64
    assert LOWERING[name](values).dtype != torch.float64


def test_float64_mode_leaves_integers_and_bytes_alone():
    with everything_in(torch.float64):
        assert torch.arange(3, dtype=torch.int32).dtype == torch.int32
        assert torch.ones(2).to(torch.int64).dtype == torch.int64
        assert torch.ones(2).to(torch.bool).dtype == torch.bool
        one = torch.frombuffer(bytearray(b"\x00\x00\x80\x3f"), dtype=torch.float32)
        assert one.tolist() == [1.0]
        assert torch.tensor([0x3F800000], dtype=torch.int32).view(torch.float32).tolist() == [1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_modes_allow_lower_types(dtype):
    with everything_in(dtype):
        assert torch.ones(2, dtype=torch.float64).float().dtype == torch.float32
        assert torch.ones(2, dtype=torch.float64).to(torch.bfloat16).dtype == torch.bfloat16


# The perceptron widened by k has weights of shape (8k, 5), (6k, 8k), (3, 6k): 3 products, sums of at most 8k.
@pytest.mark.parametrize(
    ("dtype", "factor", "expected"),
    [
        (torch.float64, 2, 8 * 2**-53 * 3 * 16**0.5),
        (torch.float64, 8, 8 * 2**-53 * 3 * 64**0.5),
        (torch.float32, 2, 8 * 2**-24 * 3 * 16**0.5),
        (torch.float16, 2, 8 * 2**-11 * 3),  # summed in float32, rounded once
        (torch.bfloat16, 8, 8 * 2**-8 * 3),
    ],
)
def test_the_tolerance_depends_on_type_depth_and_length(dtype, factor, expected, mlp):
    allowed, reason = tolerance(plan_widening(mlp[0], factor=factor), dtype)
    assert allowed == pytest.approx(expected, rel=1e-12)
    assert str(dtype).removeprefix("torch.") in reason
    assert "L = 3" in reason


def test_the_tolerance_grows_with_depth(tmp_path):
    layers = {"0.weight": (8, 5), **{f"{i}.weight": (8, 8) for i in range(1, 5)}, "5.weight": (3, 8)}
    save_file({name: torch.ones(shape) for name, shape in layers.items()}, tmp_path / "deep.safetensors")
    allowed, _ = tolerance(plan_widening(tmp_path / "deep.safetensors", factor=2), torch.float64)
    assert allowed == pytest.approx(8 * 2**-53 * 6 * 16**0.5, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_a_correct_model_agrees_in_every_type(dtype, saved, tmp_path):
    found = widen(saved("Llama-untied"), tmp_path / "wide", 3, dtype=dtype).verification
    assert found.agrees
    assert found.dtype == dtype
    assert torch.get_default_dtype() == torch.float32
