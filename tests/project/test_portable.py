"""The package runs on every system: features of one system have a fallback, and files are UTF-8."""

import ast
import re
import sys
from pathlib import Path

import pytest

import mupscale_cli

PACKAGE = Path(mupscale_cli.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# Modules that some systems lack, and names of `os` and `signal` that Windows lacks.
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
    """Yield the nodes of a module that have a fallback: inside a `try` with handlers, or under a condition."""
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


def names_checked(text):
    """Return the names that a module checks with `hasattr`, as in `_CAN_GATHER = hasattr(os, "pwritev")`."""
    return set(re.findall(r'hasattr\((?:os|signal), "(\w+)"\)', text))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_names_of_one_system_have_a_fallback(file):
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
            assert node.attr not in FUNCTIONS - names_checked(text), f"line {node.lineno}: {node.value.id}.{node.attr}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_text_is_read_and_written_as_utf_8(file):
    """The default encoding differs on Windows."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        named = {keyword.arg for keyword in node.keywords}
        if name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute):  # not `files.read_text`
            assert "encoding" in named, f"line {node.lineno}"
        if name == "open" and isinstance(node.func, ast.Name):
            modes = [word.value for mode in node.args[1:2] for word in ast.walk(mode) if isinstance(word, ast.Constant)]
            is_binary = "buffering" in named or any("b" in mode for mode in modes if isinstance(mode, str))
            assert "encoding" in named or is_binary, f"line {node.lineno}"


def test_syntax_is_that_of_the_oldest_supported_python():
    for file in FILES:
        ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 10))
    assert sys.version_info >= (3, 10)
