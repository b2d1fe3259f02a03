"""What is there on one system only has another way beside it, and no part of the package is missing from the wheel."""

import ast
import re
import sys
from pathlib import Path

import pytest

import mupscale_cli

PACKAGE = Path(mupscale_cli.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# Modules that not every system has, and functions of `os` and `signal` that Windows lacks.
MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "msvcrt", "winreg", "select"}
FUNCTIONS = {
    "fork",
    "forkpty",
    "getuid",
    "geteuid",
    "chown",
    "fchmod",
    "pread",
    "pwrite",
    "preadv",
    "pwritev",
    "sysconf",
    "statvfs",
    "posix_fadvise",
    "posix_fallocate",
    "sync",
    "fdatasync",
    "killpg",
    "setsid",
    "getloadavg",
    "sched_getaffinity",
    "mkfifo",
    "SIGALRM",
    "alarm",
    "SIGKILL",
    "SIGHUP",
    "setitimer",
    "O_DIRECT",
}


def guards(tree):
    """The parts of a module that have another way: inside of `try` with a handler, or of a condition that asks."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and node.handlers:
            yield from (
                inner
                for part in (node.body, *(h.body for h in node.handlers))
                for child in part
                for inner in ast.walk(child)
            )
        if isinstance(node, (ast.If, ast.IfExp)):
            yield from ast.walk(node)


def asked_for(text):
    """Names that the module asks for before it uses them: `_CAN_GATHER = hasattr(os, "pwritev")`."""
    return set(re.findall(r'hasattr\((?:os|signal), "(\w+)"\)', text))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_nothing_of_one_system_is_used_without_another_way(file):
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    guarded = {id(node) for node in guards(tree)}
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            assert not {alias.name for alias in node.names} & MODULES, f"line {node.lineno}"
        if isinstance(node, ast.ImportFrom):
            assert node.module not in MODULES, f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("os", "signal"):
            assert node.attr not in FUNCTIONS - asked_for(text), f"line {node.lineno}: {node.value.id}.{node.attr}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_text_is_read_and_written_as_utf_8(file):
    """The encoding that a system uses when none is named is another one on Windows."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        named = {keyword.arg for keyword in node.keywords}
        if name in ("read_text", "write_text"):
            assert "encoding" in named, f"line {node.lineno}"
        if name == "open" and isinstance(node.func, ast.Name):
            modes = [word.value for mode in node.args[1:2] for word in ast.walk(mode) if isinstance(word, ast.Constant)]
            is_binary = "buffering" in named or any("b" in mode for mode in modes if isinstance(mode, str))
            assert "encoding" in named or is_binary, f"line {node.lineno}"


def test_the_syntax_is_that_of_the_oldest_python():
    for file in FILES:
        ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 10))
    assert sys.version_info >= (3, 10)
