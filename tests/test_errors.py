"""Errors: options are flags on the command line and arguments in Python."""

import pytest
from torch import nn

import mupscale
from cli_runner import run
from mupscale_cli.errors import MupscaleError, PlanError


@pytest.mark.parametrize(
    ("flag", "argument"),
    [
        ("`--noise-mode`", "`noise_mode`"),
        ("`--noise 0.1`", "`noise=0.1`"),
        ("`--tie untie`", '`tie="untie"`'),
        ("`--model FILE:FUNCTION`", "`model=FILE:FUNCTION`"),
        ("`--no-verify`", "`verify=False`"),
        ("`--axis ffn=4`", '`axes={"ffn": 4}`'),
        ("`--axis ffn:8192`", '`axes={"ffn": Size(8192)}`'),
        ("`--axis ffn`", '`axes["ffn"]`'),
        ("`--set rope.theta=1e-4`", '`settings={"rope.theta": 1e-4}`'),
        ("`mupscale verify --only weights`", "`mupscale verify --only weights`"),
        ("`--only weights --only files`, `--seed`", "`--only weights --only files`, `seed`"),
        ("`--factor 1.5 --axis ffn=4 --axis kv:3`", '`factor=1.5, axes={"ffn": 4, "kv": Size(3)}`'),
    ],
)
def test_a_flag_of_a_message_is_an_argument_in_python(flag, argument):
    error = MupscaleError(f"see {flag}", hint=f"omit {flag}")
    assert str(error) == f"see {argument}\nhint: omit {argument}"
    assert error.text == f"see {flag}\nhint: omit {flag}"


def test_the_api_and_the_command_each_speak_their_own_words(saved):
    with pytest.raises(PlanError, match=r"`noise_mode` has no effect without `noise`\n.*`noise=0\.1`"):
        mupscale.grow(nn.Linear(2, 2), factor=2, noise_mode="free")
    shown = run("widen", str(saved("Llama-tied")), "--factor", "2", "--noise-mode", "free").err
    assert "`--noise-mode` has no effect without `--noise`" in " ".join(shown.split())
