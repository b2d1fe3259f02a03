"""A class that does not fit the plan is found before the first byte is written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mupscale_cli
from cli_runner import run
from helpers import MLP_MODULE, change_config, change_tensors
from mupscale_cli import plan_widening, widen
from mupscale_cli.architecture.loading import BUILT_IN
from mupscale_cli.engine.events import Events
from mupscale_cli.errors import PlanError, VerifyError
from mupscale_cli.tasks.source import find_source
from mupscale_cli.verification.early import require_fitting
from mupscale_cli.verification.options import VerifyOptions

# Rules that Llama's class contradicts, each with what is said.
WRONG_SHAPE = (
    '"{prefix}layers.*.self_attn.{k,v}_proj.weight": "(kv d), /embed"',
    '"{prefix}layers.*.self_attn.{k,v}_proj.weight": "., /embed"',
)
# Sizes that the class refuses and the recipe then allows.
UNGUARDED = ("not divisible or hidden_size", "not divisible or divisible or hidden_size")
LOST = (
    '"{prefix}layers.*.mlp.{gate,up}_proj.weight": "ffn, /embed"',
    '"{prefix}layers.*.mlp.gate_proj.weight": "ffn, /embed"\n  "{prefix}layers.*.mlp.up_proj.weight": omit',
)


def wrong_recipe(folder, change):
    """Write Llama's recipe with a mistake, and without the check of the config that would find it."""
    text = (BUILT_IN / "llama.yaml").read_text()
    assert change[0] in text
    file = folder / "wrong.yaml"
    file.write_text(text.replace(*change))
    return file


@pytest.fixture
def folder(saved, tmp_path, monkeypatch):
    """The current folder, with a narrow model."""
    shutil.copytree(saved("Llama-untied"), tmp_path / "narrow")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names_in(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("how", ["widen", "dry-run", "run"])
def test_a_planned_shape_that_the_class_does_not_have_is_refused_before_the_first_byte(how, folder):
    wrong_recipe(folder, WRONG_SHAPE)
    (folder / "job.yaml").write_text("steps:\n  - {widen: narrow, factor: 2, recipe: wrong.yaml}\n")
    before = names_in(folder)
    arguments = ("widen", "narrow", "--factor", "2", "--recipe", "wrong.yaml")
    found = {
        "widen": lambda: run(*arguments),
        "dry-run": lambda: run(*arguments, "--dry-run"),
        "run": lambda: run("run", "job.yaml"),
    }[how]()
    assert found.code == 2
    assert "`model.layers.0.self_attn.k_proj.weight` is 16x96 in the plan, but 32x96 in LlamaForCausalLM" in found.err
    assert "3 further differences" in found.err
    assert "the rule `{prefix}layers.*.self_attn.{k,v}_proj.weight: ., /embed` of `wrong.yaml`" in found.err
    assert found.err.rstrip().endswith("choose another size of `kv`, or keep it: `--axis kv=1`")
    assert "Traceback" not in found.err
    assert names_in(folder) == before


def test_without_verification_nothing_is_refused(folder):
    recipe = wrong_recipe(folder, WRONG_SHAPE)
    widen("narrow", "wide", 2, recipe=recipe, verify=False)
    with pytest.raises(
        VerifyError, match=r"k_proj.weight of 16x96, expected 32x96"
    ):  # which is what widen found in the end
        from mupscale_cli.tasks.verify import verify

        verify("wide", only=("function",))


def test_a_class_that_refuses_the_wide_config_is_named_with_the_axis(folder):
    recipe = wrong_recipe(folder, UNGUARDED)
    before = names_in(folder)
    with pytest.raises(PlanError) as error:
        widen("narrow", "wide", axes={"kv": 5, "ffn": 2}, recipe=recipe)
    assert error.value.message.startswith("LlamaForCausalLM refuses the wide config: ")
    assert "not a multiple of the number of attention heads" in error.value.message
    assert error.value.hint == "choose another size of `kv`, or keep it: `--axis kv=1`"
    assert names_in(folder) == before


def test_a_parameter_that_the_plan_lacks_is_named(folder):
    recipe = wrong_recipe(folder, LOST)
    with pytest.raises(PlanError, match=r"LlamaForCausalLM has `model.layers.0.mlp.up_proj.weight` \(80x96\)"):
        widen("narrow", "wide", 2, recipe=recipe)


def test_a_source_that_does_not_fit_its_class_is_refused_before_the_first_byte(folder):
    change_tensors(
        folder / "narrow", lambda tensors: {name: each for name, each in tensors.items() if "up_proj" not in name}
    )
    before = names_in(folder)
    with pytest.raises(VerifyError, match=r"`narrow` does not match LlamaForCausalLM: missing keys .*up_proj"):
        widen("narrow", "wide", 2)
    assert names_in(folder) == before


def test_a_model_of_the_user_that_ignores_the_wide_config_is_refused(mlp, tmp_path):
    (tmp_path / "own.py").write_text(
        f"{MLP_MODULE.replace('build', 'build0')}\ndef build(config):\n"
        "    sizes = {'0': (8, 5), '2': (6, 8), '4': (3, 6)}\n"
        "    return build0({'shapes': {f'{name}.weight': shape for name, shape in sizes.items()}})\n"
    )
    before = names_in(tmp_path)
    with pytest.raises(PlanError, match=r"`0.bias` is 16 in the plan, but 8 in your model"):
        widen(mlp[0], tmp_path / "wide.safetensors", 2, model=f"{tmp_path / 'own.py'}:build")
    assert names_in(tmp_path) - {"__pycache__"} == before


def test_a_model_of_the_user_that_needs_data_to_be_built_is_left_to_verification(mlp, tmp_path):
    (tmp_path / "own.py").write_text(
        f"{MLP_MODULE.replace('build', 'build0')}\ndef build(config):\n"
        "    model = build0(config)\n    float(model[0].weight.sum())\n    return model\n"
    )
    assert widen(mlp[0], tmp_path / "wide.safetensors", 2, model=f"{tmp_path / 'own.py'}:build").verification.agrees


@pytest.mark.parametrize(
    ("inputs", "says"), [("raise ValueError('none today')", "`inputs` of .* failed: ValueError.'none today'")]
)
def test_inputs_of_the_user_that_cannot_be_made_are_refused_before_the_first_byte(inputs, says, mlp, tmp_path):
    (tmp_path / "own.py").write_text(f"{MLP_MODULE}\ndef inputs(config, generator):\n    {inputs}\n")
    before = names_in(tmp_path)
    with pytest.raises(VerifyError, match=says):
        plan_only = Events(phase=lambda name, _total: pytest.fail(name) if name == "widening" else None)
        widen(mlp[0], tmp_path / "wide.safetensors", 2, model=f"{tmp_path / 'own.py'}:build", events=plan_only)
    assert names_in(tmp_path) - {"__pycache__"} == before


def fits(checkpoint, **options):
    source = find_source(checkpoint)
    return require_fitting(source.checkpoint, plan_widening(source, **options), VerifyOptions())


@pytest.mark.parametrize("case", ["Llama-tied", "Mixtral-untied", "GPT2-tied", "Bert-tied", "Whisper-tied"])
def test_a_plan_fits_the_class_through_the_names_that_verification_gives(case, saved):
    assert fits(saved(case), factor=2)


def test_the_steps_of_a_job_start_from_plans(folder):
    """The source of the second step does not exist yet."""
    recipe = wrong_recipe(folder, WRONG_SHAPE)
    (folder / "job.yaml").write_text(
        "steps:\n  - {widen: narrow, factor: 2}\n  - {widen: narrow-x2, factor: 2, recipe: wrong.yaml}\n"
    )
    found = run("run", "job.yaml", "--dry-run", "--json")
    assert found.code == 2
    assert (
        "step 2 (widen): `model.layers.0.self_attn.k_proj.weight` is 32x192 in the plan, but 64x192"
        in json.loads(found.out)["message"]
    )
    recipe.unlink()


def test_a_class_that_transformers_lacks_is_left_to_verification(folder):
    change_config(folder / "narrow", architectures=["NoSuchModel"])
    assert not fits(folder / "narrow", factor=2)
    assert "NoSuchModel" in widen("narrow", "wide", 2).skipped


@pytest.mark.skipif(sys.platform != "linux", reason="nothing is forked there")
def test_nothing_is_computing_when_processes_are_forked(folder):
    """A thread of a library might hold a lock in the child."""
    code = (
        "import os\nfrom mupscale_cli.engine import processes\nrun_forked = processes.run_forked\n"
        "def watched(size, *rest):\n    print('torch' in sys.modules, len(os.listdir('/proc/self/task')), flush=True)\n"
        "    return run_forked(size, *rest)\nimport sys\nprocesses.run_forked = watched"
    )
    program = f"{code}\nfrom mupscale_cli.cli.main import main\nmain()"
    arguments = ("widen", "narrow", "--factor", "2", "--processes", "2", "--json")
    path = os.pathsep.join([str(Path(mupscale_cli.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    found = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        # Torch may use several threads; those of numpy's OpenBLAS, which it stops before a fork, would count as well.
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[0] == "True 1"
