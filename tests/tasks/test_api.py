"""The public functions, called with paths and plain values."""

import inspect
import subprocess
import sys

import pytest

import mupscale_cli as mupscale


@pytest.mark.parametrize("name", [name for name in mupscale.__all__ if name != "__version__"])
def test_every_public_name_is_documented_and_typed(name):
    found = getattr(mupscale, name)
    assert callable(found)
    assert inspect.getdoc(found)
    if inspect.isfunction(found):
        signature = inspect.signature(found)
        annotations = [parameter.annotation for parameter in signature.parameters.values()]
        assert inspect.Parameter.empty not in (*annotations, signature.return_annotation)


def test_a_star_import_has_all_names():
    names = {}
    exec("from mupscale_cli import *", names)  # noqa: S102 (there is no other way to write it in a function)
    assert set(mupscale.__all__) <= names.keys()


def test_an_unknown_name_raises_an_attribute_error():
    assert not hasattr(mupscale, "widden")
    with pytest.raises(AttributeError, match="widden"):
        mupscale.widden  # noqa: B018


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_plan_widen_verify(kind, saved, tmp_path):
    plan = mupscale.plan_widening(kind(saved("Llama-tied")), factor=2)
    widened = mupscale.widen(kind(saved("Llama-tied")), kind(tmp_path / "wide"), factor=2)
    assert widened.plan.num_parameters == plan.num_parameters
    assert widened.output == tmp_path / "wide"
    assert widened.verification.agrees
    found = mupscale.verify(kind(widened.output), dtype="float32")
    assert isinstance(found, mupscale.Verification)
    assert found.agrees


def test_recipes_are_loaded_by_name_or_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: llama\n")
    by_name, by_file = mupscale.load_recipe("llama"), mupscale.load_recipe(tmp_path / "mine.yaml")
    assert isinstance(by_name, mupscale.Recipe)
    assert by_name.name == "llama"
    assert by_file.name == "mine"
    assert by_file.axis_names == by_name.axis_names == ("embed", "kv", "g", "d", "ffn")


@pytest.mark.parametrize(
    "call",
    [
        lambda folder: mupscale.widen(folder / "absent", factor=2),
        lambda folder: mupscale.plan_widening(folder / "absent.safetensors", factor=2),
        lambda folder: mupscale.verify(folder, folder),
        lambda folder: mupscale.load_recipe("lama"),  # noqa: ARG005
        lambda folder: mupscale.load_recipe(folder / "absent.yaml"),
    ],
)
def test_problems_that_a_user_can_fix_raise_one_kind_of_error(call, tmp_path):
    with pytest.raises(mupscale.MupscaleError) as caught:
        call(tmp_path)
    assert caught.value.message
    assert str(caught.value).startswith(caught.value.message)


def test_planning_in_a_script_imports_no_torch(saved):
    plan = "import sys, mupscale_cli as m; m.plan_widening(sys.argv[1], factor=2); m.widen"
    script = f"{plan}; assert 'torch' not in sys.modules"
    result = subprocess.run(
        [sys.executable, "-c", script, str(saved("Llama-tied"))], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
