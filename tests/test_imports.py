"""Imports go one way, and what needs no torch does not wait for it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mupscale_cli

PACKAGE = Path(mupscale_cli.__file__).parent
# Each module may import those before it.
ORDER = [
    "_version",
    "errors",
    "schemas",
    "figures",
    "specs",
    "maps",
    "language",
    "perturbation",
    "methods",
    "pages",
    "document",
    "parts",
    "recipe",
    "matching",
    "layout",
    "plan.types",
    "plan.factors",
    "plan.environment",
    "plan.axes",
    "plan.tied",
    "plan.tensors",
    "plan.config",
    "plan.shards",
    "plan.make",
    "plan",
    "outline",
    "guidance",
    "scaling",
    "explain",
    "state",
    "blocks",
    "repeats",
    "checkpoint.header",
    "checkpoint.source",
    "checkpoint.digest",
    "checkpoint.lock",
    "checkpoint.scratch",
    "checkpoint.target",
    "checkpoint.shard",
    "checkpoint.journal",
    "record",
    "ranks",
    "splitting",
    "expand",
    "noise",
    "finite",
    "workers",
    "forks",
    "streaming",
    "convert",
    "hub.ids",
    "hub.environment",
    "hub.failures",
    "hub.bars",
    "hub.reading",
    "hub.publishing",
    "optimizer.groups",
    "optimizer.torchfile",
    "optimizer.tree",
    "optimizer.content",
    "optimizer.order",
    "optimizer.files",
    "optimizer.checksums",
    "optimizer.archives",
    "optimizer.torchstate",
    "optimizer.chunks",
    "optimizer.distributed",
    "optimizer.loading",
    "optimizer.trainer",
    "hyperparameters",
    "card",
    "hub.card",
    "formats",
    "handoff",
    "verification.result",
    "memory",
    "environment",
    "verification.placement",
    "verification.precision",
    "verification.activations",
    "verification.inputs",
    "verification.models",
    "verification.optimizers",
    "verification.training",
    "verification.weights",
    "verification.run",
    "verification",
    "preparing",
    "carrying",
    "widening",
    "pushing",
    "verifying",
    "jobs.steps",
    "jobs.standing",
    "jobs.planning",
    "jobs.doing",
    "jobs",
    "checking",
    "demo.training",
    "inferring.tiny",
    "inferring.architecture",
    "inferring.shapes",
    "inferring.axes",
    "inferring.candidates",
    "inferring.derived",
    "inferring.trials",
    "inferring.search",
    "inferring.write",
    "inferring.stages",
    "inferring.infer",
    "sweeping.grid",
    "sweeping.settings",
    "sweeping.result",
    "sweeping.report",
    "pictures.canvas",
    "pictures.sweep",
    "pictures.verification",
    "pictures.weights",
    "pictures.report",
    "sweeping.command",
    "sweeping.study",
    "sweeping.widened",
    "sweeping.models",
    "sweeping.data",
    "sweeping.training",
    "sweeping.proxy",
    "sweeping.run",
    "cli.failures",
    "cli.overview",
    "cli.completion",
    "cli.tables",
    "cli.progress",
    "cli.output",
    "cli.tree",
    "cli.explain",
    "cli.options",
    "cli.documents",
    "cli.render",
    "cli.summary",
    "cli.push",
    "cli.widen",
    "cli.verify",
    "cli.inspect",
    "cli.hparams",
    "cli.recipes",
    "cli.plot",
    "cli.sweep_view",
    "cli.sweep",
    "cli.demo",
    "cli.doctor",
    "cli.manual",
    "cli.jobfile",
    "cli.run",
    "cli.commands",
    "cli.main",
]
LATER = {  # imported when a command needs them, not when the module is
    "cli.failures": {"cli.output"},
    "optimizer.files": {"convert", "optimizer.torchstate", "optimizer.distributed"},
}
NO_TORCH = [
    "errors",
    "specs",
    "maps",
    "perturbation",
    "methods",
    "guidance",
    "language",
    "document",
    "parts",
    "recipe",
    "matching",
    "layout",
    "plan",
    "scaling",
    "state",
    "blocks",
    "repeats",
    "checkpoint.journal",
    "memory",
    "ranks",
    "checking",
    "record",
    "hyperparameters",
    "formats",
    "card",
    "preparing",
    "widening",
    "pushing",
    "cli.main",
]


def name_of(file):
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imported(file):
    """The project's modules that a file imports, at its top or inside of functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mupscale_cli"):
            base = node.module.removeprefix("mupscale_cli").lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                yield inner if (PACKAGE / (inner.replace(".", "/") + ".py")).exists() else base


EMPTY = ("", "__main__", "checkpoint", "cli", "demo", "hub", "inferring", "optimizer", "pictures", "sweeping")
FILES = [file for file in PACKAGE.rglob("*.py") if name_of(file) not in EMPTY]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_go_one_way(file):
    name = name_of(file)
    assert name in ORDER
    for other in imported(file):
        if other and other not in LATER.get(name, ()):
            assert ORDER.index(other) < ORDER.index(name), f"{name} imports {other}"


def test_the_order_names_no_module_that_is_gone():
    assert set(ORDER) == {name_of(file) for file in FILES}


def test_expansion_and_files_do_not_know_one_another():
    assert "expand" not in {name for file in (PACKAGE / "checkpoint").glob("*.py") for name in imported(file)}
    assert not any(name.startswith("checkpoint") for name in imported(PACKAGE / "expand.py"))


def test_the_hub_has_one_door():
    users = {name_of(file) for file in FILES if "huggingface_hub" in file.read_text()}
    assert {name for name in users if not name.startswith("hub.")} == {"plan.shards"}


def loaded(code, *arguments):
    """Which of the heavy modules a process has imported when it is done."""
    heavy = ("torch", "transformers", "optuna", "matplotlib")
    program = f"{code}\nimport sys\nprint('LOADED', *(name for name in {heavy} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize("module", NO_TORCH)
def test_planning_needs_no_torch(module):
    assert loaded(f"import mupscale_cli.{module}") == []


COMMAND = """
import sys
from mupscale_cli.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


def test_help_and_dry_run_import_neither_torch_nor_transformers(saved):
    assert loaded(COMMAND, "--help") == []
    assert loaded(COMMAND, "widen", "--help") == []
    assert loaded(COMMAND, "sweep", "--help") == []
    assert loaded(COMMAND, "widen", str(saved("Llama-tied")), "--factor", "2", "--dry-run") == []
    assert loaded(COMMAND, "inspect", str(saved("Llama-tied"))) == []
    assert loaded(COMMAND, "recipes", "list") == []
    assert loaded(COMMAND, "push", "--help") == []
    output = f"{saved('Llama-tied')}-wide"
    assert loaded(COMMAND, "widen", str(saved("Llama-tied")), "-f", "2", "--no-verify", "-o", output) == ["torch"]
