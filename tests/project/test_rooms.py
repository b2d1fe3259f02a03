"""The rooms of the package: which room imports which, and which modules do not import torch."""

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mupscale_cli

PACKAGE = Path(mupscale_cli.__file__).parent

# A room may import the rooms of the levels above it. CONTRIBUTING.md explains this table.
ROOMS = [
    {"text"},
    {"errors", "dtypes"},
    {"files"},
    {"architecture", "checkpoints"},
    {"plan"},
    {"engine"},
    {"record"},
    {"optimizers"},
    {"verification"},
    {"infer"},
    {"tasks"},
    {"reports"},
    {"sweep"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}

NO_TORCH = [
    "errors",
    "dtypes",
    "files",
    "checkpoints.libraries",
    "text",
    "architecture.loading",
    "architecture.matching",
    "plan",
    "plan.copies",
    "plan.dims",
    "plan.methods",
    "plan.names",
    "plan.perturbation",
    "checkpoints.journal",
    "engine.blocks",
    "engine.memory",
    "engine.ranks",
    "record.changes",
    "record.making",
    "record.reading",
    "optimizers.multipliers",
    "optimizers.options",
    "optimizers.recorded",
    "optimizers.identity",
    "optimizers.rules.table",
    "optimizers.state_plan",
    "optimizers.hyperparameters",
    "optimizers.trainers.formats",
    "reports.guidance",
    "tasks.card",
    "engine.events",
    "tasks.check",
    "tasks.options",
    "tasks.planning",
    "tasks.resume",
    "tasks.source",
    "tasks.push",
    "tasks.widen",
    "tasks.writing",
    "verification.options",
    "cli.main",
]


def name_of(file):
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room_of(name):
    return name.split(".")[0]


def imported(file):
    """Yield the project's modules that a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mupscale_cli"):
            base = node.module.removeprefix("mupscale_cli").lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                path = PACKAGE / inner.replace(".", "/")
                yield inner if path.with_suffix(".py").exists() or path.is_dir() else base


OUTSIDE = ("", "__main__")  # what the rooms are for
MODULES = {name_of(file): file for file in PACKAGE.rglob("*.py") if name_of(file) not in OUTSIDE}


@pytest.mark.parametrize("name", MODULES)
def test_room_imports_only_rooms_above_it(name):
    own = room_of(name)
    for other in filter(None, imported(MODULES[name])):
        assert room_of(other) == own or LEVEL[room_of(other)] < LEVEL[own], f"{name} imports {other}"


def test_imports_have_no_cycle():
    TopologicalSorter({name: {*imported(file)} - {"", name} for name, file in MODULES.items()}).prepare()


def test_table_lists_every_room_and_the_root_is_small():
    assert {room_of(name) for name in MODULES} == set(LEVEL)
    entries = {path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert len(entries) <= 18


def test_expansion_does_not_import_checkpoints():
    assert not any(room_of(name) == "checkpoints" for name in imported(MODULES["engine.expand"]))


def test_only_the_hub_package_imports_huggingface_hub():
    users = {name for name, file in MODULES.items() if "huggingface_hub" in file.read_text()}
    assert {name for name in users if not name.startswith("checkpoints.hub.")} == {"plan.shards"}


HEAVY = ("torch", "transformers", "matplotlib")


def loaded(code, *arguments):
    """Return the heavy modules that a process has imported when it ends."""
    program = f"{code}\nimport sys\nprint('LOADED', *(name for name in {HEAVY} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[-1].split()[1:]


IMPORTS = """
import importlib, json, sys
first = {}
for module in json.loads(sys.argv[1]):
    importlib.import_module(f"mupscale_cli.{module}")
    first |= {name: first.get(name, module) for name in json.loads(sys.argv[2]) if name in sys.modules}
print(json.dumps(first))
"""


def test_planning_needs_no_torch():
    """Import all modules in one process, and name the first one that brings a heavy module along."""
    words = [json.dumps(NO_TORCH), json.dumps(HEAVY)]
    result = subprocess.run([sys.executable, "-c", IMPORTS, *words], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == {}


COMMANDS = """
import json, sys
from mupscale_cli.cli.main import main
for line, code in json.loads(sys.argv[1]):
    sys.argv = ["mupscale", *line]
    try:
        main()
    except SystemExit as end:
        assert end.code == code, (line, end.code)
    else:
        assert code is None, line
"""
MISTAKES = (
    "widen {0}/none -f 2",
    "widen {0} -f 2.3",
    "widen {0} -f 2 --axis none=2",
    "widen {0} -f 2 --optimizer none.pt",
    "verify {0}/none",
    "verify {0}",
    "inspect {0}/none",
    "hparams {0}",
    "sweep {0}/none --data none",
    "coordcheck {0}/none --data none",
    "push {0} no/where",
    "run {0}/none.yaml",
    "plot weights {0}",
    "recipes show none",
    "recipes check llama {0}/none",
    "none",
)


def test_help_plans_and_mistakes_wait_for_neither_torch_nor_transformers(saved):
    narrow = str(saved("Llama-tied"))
    lines = [(["--help"], 0), (["recipes", "list"], 0), (["inspect", narrow], 0), (["push", "--help"], 0)]
    lines += [(["widen", narrow, "--factor", "2", "--dry-run", "--no-verify"], 0), (["sweep", "--help"], 0)]
    lines += [(line.format(narrow).split(), 2) for line in MISTAKES]
    assert not {"torch", "transformers"} & set(loaded(COMMANDS, json.dumps(lines)))  # `plot` looks for matplotlib


def test_widening_imports_torch_alone(saved):
    narrow = str(saved("Llama-tied"))
    line = ["widen", narrow, "-f", "2", "--no-verify", "-o", f"{narrow}-wide"]
    assert loaded(COMMANDS, json.dumps([(line, 0)])) == ["torch"]
