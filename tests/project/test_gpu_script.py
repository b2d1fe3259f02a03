"""The script for machines with a GPU: its cases exist, and no case hides another."""

import importlib.util
import sys
from pathlib import Path

import pytest

from helpers import MODELS
from mupscale_cli.dtypes import FLOATS

FILE = Path(__file__).parent.parent / "gpu" / "run.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("gpu_run", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_run"] = module  # dataclasses look there for their module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_run"]


def test_cases_name_models_and_types_that_exist(script):
    assert set(script.SHAPES) <= set(MODELS)
    assert set(script.DTYPES) <= set(FLOATS)
    names = [case.name for case in script.cases("cuda", small=False)]
    assert len(names) == len(set(names)) > len(script.SHAPES) * len(script.DTYPES)


def test_a_failing_case_does_not_hide_the_others_and_the_budget_is_kept(script, tmp_path):
    def fail(folder):
        raise ValueError("out of memory\nin detail")

    chosen = [
        script.Case("bad", fail, 0),
        script.Case("long", fail, 1000),
        script.Case("good", lambda _: (1e-15, 1e-13, "cuda"), 0),
    ]
    rows = script.run_cases(chosen, tmp_path, 100)
    assert [(row.case, row.outcome) for row in rows] == [("bad", "FAILED"), ("long", "skipped"), ("good", "agrees")]
    assert rows[0].remark == "ValueError: out of memory"
    assert script.markdown(rows).splitlines()[-1].startswith("| good | agrees | 1.0e-15 | 1.0e-13 |")


def test_a_case_runs_without_a_gpu(script, tmp_path):
    (case,) = (case for case in script.cases("cpu", small=True) if case.name == "ResNet-basic, float64")
    assert script.measured(case, tmp_path).outcome == "agrees"
