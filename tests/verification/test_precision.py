"""Running a reference model in one type throughout, and bounding its rounding error."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import MODELS
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification.comparing import verify_checkpoints
from mupscale_cli.verification.options import VerifyOptions
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


def test_a_product_counts_as_often_as_it_is_computed(mlp):
    plan = plan_widening(mlp[0], factor=2)
    allowed, reason = tolerance(plan, torch.float64, {"2.weight": 4, "4.weight": 0})
    assert allowed == pytest.approx(8 * 2**-53 * 6 * 16**0.5, rel=1e-12)
    assert "L = 6" in reason


def test_the_layers_of_a_model_that_repeats_them_are_counted(saved, tmp_path):
    """ALBERT computes the products of its one stored layer in each of its layers."""
    found = widen(saved("Albert-tied"), tmp_path / "wide", 2, dtype="float64").verification
    plan = plan_widening(saved("Albert-tied"), factor=2)
    matrices = [tensor.target for tensor in plan.tensors if len(tensor.target.shape) == 2]
    repeated = sum("albert_layers" in spec.name for spec in matrices)
    layers = MODELS["Albert-tied"][2]["num_hidden_layers"]
    assert repeated
    assert layers > 1
    assert f"L = {len(matrices) + (layers - 1) * repeated} " in found.tolerance_reason


@pytest.fixture(scope="module")
def dory(saved, tmp_path_factory):
    """A model whose blocks enlarge a rounding a hundred times: the source, its widening by 2 and the plan."""
    wide = tmp_path_factory.mktemp("dory") / "wide"
    found = widen(saved("Dory-untied"), wide, 2, dtype="float64").verification
    return found, saved("Dory-untied"), wide, plan_widening(saved("Dory-untied"), factor=2)


def test_a_model_that_enlarges_rounding_agrees_by_what_is_measured(dory):
    """The smaller bound, which assumes that nothing is enlarged, is exceeded."""
    found, _, _, plan = dory
    assert found.agrees
    assert not found.module_by_module
    assert "one rounding to float64 in every module" in found.tolerance_reason
    assert tolerance(plan, torch.float64)[0] < found.max_rel < found.tolerance < 1e-10


@pytest.mark.parametrize("change", [2.0, 2**0.5, 1 + 1e-6])
@pytest.mark.parametrize(
    "name", ["backbone.layers.1.self_attn.v_proj.weight", "backbone.layers.2.mlp.suv_up", "lm_head.weight"]
)
def test_a_wrong_model_that_enlarges_rounding_differs(name, change, dory):
    _, source, wide, plan = dory
    tensors = load_file(wide / "model.safetensors")
    damaged = wide.with_name("damaged")
    shutil.copytree(wide, damaged, dirs_exist_ok=True)
    save_file({**tensors, name: tensors[name] * change}, damaged / "model.safetensors", metadata={"format": "pt"})
    found = verify_checkpoints(*map(open_checkpoint, (source, damaged)), plan, VerifyOptions(dtype="float64"))
    assert not found.agrees
    assert found.first_difference is not None


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_a_correct_model_agrees_in_every_type(dtype, saved, tmp_path):
    found = widen(saved("Llama-untied"), tmp_path / "wide", 3, dtype=dtype).verification
    assert found.agrees
    assert found.dtype == dtype
    assert torch.get_default_dtype() == torch.float32
