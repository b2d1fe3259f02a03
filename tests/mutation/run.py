"""Break the core on purpose, one small change at a time, and check that the tests notice.

    python tests/mutation/run.py [--sample 60] [--seed 0] [--only 'plan/*.py']

Changes are drawn at random from all those that the operators below can make in the modules of `CORE`. For each change,
the tests of its room run in a copy of the project. A change that no test notices reveals a missing test, or makes no
difference: it is reported as SURVIVED, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import ast
import copy
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# Modules, and the tests to run after the test of the same name.
CORE = {
    "architecture/[dels]*.py": ("tests/architecture",),
    "architecture/pa*.py": ("tests/architecture",),
    "plan/*.py": ("tests/plan",),
    "engine/expand.py": ("tests/engine/test_streaming.py", "tests/engine/test_shards.py"),
    "engine/splitting.py": ("tests/engine/test_expand.py",),
    "optimizers/rules/powers.py": ("tests/optimizers", "tests/verification/test_training.py"),
}
SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Mutant:
    """A module with one change.

    Attributes:
        module: its path in the package.
        line: the line of the change.
        before: the changed expression or statement.
        after: what replaces it.
        text: the source text of the whole module.
    """

    module: str
    line: int
    before: str
    after: str
    text: str


def mutate(node: ast.AST) -> ast.AST | None:
    """Return a changed copy of a node, or None if no operator applies."""
    mutated = copy.deepcopy(node)
    match mutated:
        case ast.Compare(ops=[operator]) if type(operator) in SWAPS:
            mutated.ops = [SWAPS[type(operator)]()]
        case ast.BinOp(op=operator) | ast.BoolOp(op=operator) if type(operator) in SWAPS:
            mutated.op = SWAPS[type(operator)]()
        case ast.UnaryOp(op=ast.Not()):
            return mutated.operand
        case ast.Constant(value=bool(value)):
            mutated.value = not value
        case ast.Constant(value=int(value)):
            mutated.value = value + 1
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            mutated.value = ast.Constant(None)
        case ast.If() | ast.IfExp():
            mutated.test = ast.UnaryOp(ast.Not(), mutated.test)
        case _:
            return None
    return mutated


def mutants_of(module: str) -> Iterator[Mutant]:
    """Yield every possible change of a module, except in annotations."""
    tree = ast.parse((ROOT / "mupscale_cli" / module).read_text(encoding="utf-8"))
    for parent in list(ast.walk(tree)):
        for field, value in list(ast.iter_fields(parent)):
            siblings = value if isinstance(value, list) else [value]
            for index, node in enumerate(siblings):
                if not isinstance(node, ast.AST) or field in ("annotation", "returns"):
                    continue
                mutated = mutate(node)
                if mutated is None:
                    continue
                new_value = [*siblings[:index], mutated, *siblings[index + 1 :]] if isinstance(value, list) else mutated
                setattr(parent, field, new_value)
                text = ast.unparse(ast.fix_missing_locations(tree))
                setattr(parent, field, value)
                texts = [ast.unparse(each).partition("\n")[0] for each in (node, mutated)]
                yield Mutant(module, node.lineno, *texts, text)  # type: ignore[attr-defined]


def run_tests(mutant: Mutant, tests: list[str], project: Path, limit: float) -> str:
    """Run tests on a copy of the project with a mutant in it.

    Args:
        mutant: the change.
        tests: the test files.
        project: the copy of the project.
        limit: seconds for the tests.

    Returns:
        `noticed`, `SURVIVED` or `too slow`.
    """
    file = project / "mupscale_cli" / mutant.module
    original = file.read_text(encoding="utf-8")
    file.write_text(mutant.text, encoding="utf-8")
    child = multiprocessing.get_context("fork").Process(target=_run_pytest, args=(tests, project))
    try:
        child.start()
        child.join(limit)
        if child.exitcode is None:
            os.killpg(child.pid or 0, signal.SIGKILL)
            child.join()
            return "too slow"
        return "noticed" if child.exitcode else "SURVIVED"
    finally:
        file.write_text(original, encoding="utf-8")


def _run_pytest(tests: list[str], project: Path) -> None:
    """Run tests in a forked process, which has already imported torch and transformers."""
    os.setsid()
    os.chdir(project)
    os.environ["PYTHONPATH"] = str(project)
    sys.path.insert(0, str(project))
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)
        os.dup2(null.fileno(), 2)
    code = pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", f"--rootdir={project}", *tests])
    os._exit(int(code))


def main() -> int:
    """Draw mutants, run the tests on each, and print the outcomes and the score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=60, help="Number of changes. Default: 60.")
    parser.add_argument("--seed", type=int, default=0, help="Random seed. Default: 0.")
    parser.add_argument("--only", default="*", help="Change only modules that match, such as `plan/*.py`.")
    parser.add_argument("--limit", type=float, default=180, help="Seconds for the tests of one change. Default: 180.")
    options = parser.parse_args()
    import torch  # noqa: F401 (for the children)
    import transformers  # noqa: F401

    package = ROOT / "mupscale_cli"
    tests_of = {
        str(file.relative_to(package)): list(tests)
        for pattern, tests in CORE.items()
        for file in sorted(package.glob(pattern))
        if file.relative_to(package).match(options.only)
    }
    mutants = [mutant for module in tests_of for mutant in mutants_of(module)]
    drawn = random.Random(options.seed).sample(mutants, min(options.sample, len(mutants)))
    outcomes = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        for number, mutant in enumerate(drawn, start=1):
            room, name = mutant.module.split("/")
            direct = f"tests/{room}/test_{name}"
            tests = [direct, *tests_of[mutant.module]] if (ROOT / direct).is_file() else tests_of[mutant.module]
            outcome = run_tests(mutant, tests, project, options.limit)
            outcomes[outcome] += 1
            change = f"{mutant.module}:{mutant.line}: `{mutant.before}` -> `{mutant.after}`"
            sys.stdout.write(f"[{number}/{len(drawn)}] {outcome:8}  {change}\n")
            sys.stdout.flush()
    counts = ", ".join(f"{count} {name}" for name, count in outcomes.items())
    sys.stdout.write(f"{counts} of {len(drawn)} drawn from {len(mutants)}\n")
    return int(outcomes["SURVIVED"] > 0)


if __name__ == "__main__":
    sys.exit(main())
