"""Every test can fail."""

import ast
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent.parent
# Calls that raise on failure: those of pytest, torch and jsonschema, and our runner of hostile input.
FAILING = {"raises", "warns", "fail", "assert_close", "validate", "run_target"}


@cache
def nodes():
    """Return the nodes of all files of the tests."""
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in TESTS.rglob("*.py"))
    return [node for tree in trees for node in ast.walk(tree)]


def calls(function):
    """Return the names of the functions that a function calls, without their modules."""
    called = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
    return {getattr(name, "id", getattr(name, "attr", "")) for name in called}


def can_fail(function, checking):
    own = any(isinstance(node, (ast.Assert, ast.Raise)) for node in ast.walk(function))
    return own or bool(calls(function) & checking)


def test_every_test_asserts_something():
    functions = [node for node in nodes() if isinstance(node, ast.FunctionDef)]
    checking, before = FAILING, set()
    while checking != before:  # helpers of helpers
        before = checking
        checking = checking | {function.name for function in functions if can_fail(function, checking)}
    tests = [function for function in functions if function.name.startswith("test_")]
    assert len(tests) > 500
    assert not [function.name for function in tests if not can_fail(function, checking)]


def test_no_assertion_is_a_constant():
    asserted = [node for node in nodes() if isinstance(node, ast.Assert)]
    alternatives = [each for node in asserted for each in getattr(node.test, "values", [node.test])]
    assert not [ast.unparse(each) for each in alternatives if isinstance(each, (ast.Constant, ast.Tuple))]
