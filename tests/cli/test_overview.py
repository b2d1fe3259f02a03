"""The list of commands, and their help."""

import subprocess
import sys

import pytest
import typer

import mupscale_cli
from cli_runner import run
from mupscale_cli.cli.commands import application
from mupscale_cli.cli.overview import overview


def test_overview_lists_the_real_commands_without_importing_them():
    whole, listed = (typer.main.get_command(each) for each in (application(), overview()))
    first_lines = {name: command.help.split("\n\n")[0].replace("\n", " ") for name, command in whole.commands.items()}
    assert {name: command.help for name, command in listed.commands.items()} == first_lines
    assert list(listed.commands) == list(whole.commands)
    assert [parameter.opts for parameter in listed.params] == [parameter.opts for parameter in whole.params]
    assert listed.help == whole.help
    heavy = ("mupscale_cli.plan", "mupscale_cli.cli.widen", "yaml", "torch")
    code = "import sys; sys.argv = ['mupscale', '--help']\nfrom mupscale_cli.cli.main import main\ntry: main()\n"
    code += f"finally: print(*[name for name in {heavy} if name in sys.modules], 'END')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "END"


@pytest.mark.parametrize("words", [["--version"], ["version"]])
def test_version(words):
    assert run(*words).out.strip() == mupscale_cli.__version__


@pytest.mark.parametrize("command", [["winden"], ["widen", "x", "--fctor", "2"], ["widen"]])
def test_usage_errors_exit_with_2(command):
    assert run(*command).code == 2
