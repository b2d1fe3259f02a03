"""The coordinate check finds hyperparameters that are wrong for the width, and its picture shows them."""

import json

import pytest

from cli_runner import run
from mupscale_cli.reports.pictures.canvas import ACCENT, style
from mupscale_cli.sweep.coordinates import Coordinates, Layer
from mupscale_cli.sweep.coordinates_picture import draw_coordinates
from mupscale_cli.sweep.slopes import fit
from training import save_training

SMALL = ("--steps", "2", "--batch-size", "8", "--length", "16", "--noise", "0.05", "--lr", "3e-4", "--json")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    return save_training(tmp_path_factory.mktemp("coordinates") / "narrow", "Llama-tied", "adamw")


def checked(narrow, *options):
    result = run("coordcheck", str(narrow), "-f", "2,4,8", "--seeds", "1", *SMALL, *options)
    return json.loads(result.out), result.code


def read(found):
    layers = tuple(
        Layer(each["name"], each["expected"], each["sizes"], each["changes"], each["slope"], found["uncertainty"])
        for each in found["layers"]
    )
    return Coordinates(tuple(found["factors"]), len(found["seeds"]), found["steps"], layers)


def lines(found):
    """Return the label and the color of each line of the picture, and the slope of its change at the last step."""
    with style():
        panel = draw_coordinates(read(found), "narrow").axes[-1]
    return {
        line.get_label().partition(":")[0]: (
            line.get_color(),
            fit(line.get_xdata(), [[value] for value in line.get_ydata()]).slope,
        )
        for line in panel.get_lines()
    }


def test_mapped_hyperparameters_change_all_widths_alike(narrow, tmp_path):
    picture = tmp_path / "check.png"
    found, code = checked(narrow, "-o", str(picture))
    assert code == 0
    assert found["agrees"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    drawn = lines(found)
    assert len(drawn) == 12
    assert all(color != ACCENT and abs(power) < 0.25 for color, power in drawn.values())


def test_one_learning_rate_for_all_widths_shows_in_the_picture(narrow):
    """Adam's step is then as long at every width, so hidden layers change by about the first power of the width."""
    found, code = checked(narrow, "--one-lr", "--no-picture")
    assert code == 1
    assert not found["agrees"]
    drawn = lines(found)
    for name in ("self_attn.v_proj", "mlp.up_proj", "mlp.down_proj"):
        color, power = drawn[f"model.layers.*.{name}"]
        assert color == ACCENT
        assert power == pytest.approx(1, abs=0.3)
    assert drawn["model.embed_tokens"][0] != ACCENT  # whose learning rate is the narrow run's


def test_without_noise_all_widths_agree(narrow):
    found, code = checked(narrow, "--noise", "0", "--no-picture")
    assert code == 0
    assert max(abs(layer["slope"]) for layer in found["layers"] if layer["slope"] is not None) < 1e-3
    assert all(layer["sizes"][0] == pytest.approx(layer["expected"]) for layer in found["layers"])


def layer(slope, uncertainty):
    return Layer("block.0.up", (1, 1), ((1, 1),), ((0, 0),), slope, uncertainty)


@pytest.mark.parametrize(
    ("slope", "uncertainty", "verdict"),
    [
        (0.1, 0.2, True),  # 1/2 is ruled out
        (0.24, 0.2, True),
        (0.26, 0.2, False),  # nearer to 1/2, and 0 is ruled out
        (-0.26, 0.2, False),
        (0.26, 0.3, None),
        (0.1, 0.41, None),
        (0.6, 0.5, False),
        (None, 0.5, True),
        (float("nan"), 0.0, False),  # diverged
    ],
)
def test_a_verdict_rules_the_other_one_out(slope, uncertainty, verdict):
    assert layer(slope, uncertainty).is_stable is verdict


def test_an_open_check_says_how_many_seeds_would_decide_it():
    found = Coordinates((2, 4, 8), 2, 1, (layer(0.1, 0.5), layer(0.0, 0.5)))
    assert found.agrees is None
    assert found.summary == "undecided for 2 of 2 layers; `--seeds 9` should be enough"


def test_an_open_check_fails(narrow):
    """Noise as large as the weights leaves the exponents of two widths open."""
    options = ("--noise", "1", "--steps", "1", "--batch-size", "2", "--length", "8", "--no-picture", "--json")
    result = run("coordcheck", str(narrow), "-f", "2,4", "--seeds", "2", *options)
    found = json.loads(result.out)
    assert found["agrees"] in (None, False)
    assert result.code == (2 if found["agrees"] is None else 1)
    assert None in [each["stable"] for each in found["layers"]]


def test_one_width_is_refused(narrow):
    result = run("coordcheck", str(narrow), "-f", "2")
    assert result.code == 2
    assert "compares widths" in result.err


def test_two_widths_with_one_seed_are_refused(narrow):
    """Two points always lie on a line, so the check could not tell noise from a mistake."""
    result = run("coordcheck", str(narrow), "-f", "2,4", "--seeds", "1")
    assert result.code == 2
    assert "fits exactly" in result.err
    assert "--seeds 2" in result.err
