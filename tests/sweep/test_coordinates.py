"""The coordinate check finds hyperparameters that are wrong for the width, and its picture shows them."""

import json
import math

import pytest

from cli_runner import run
from mupscale_cli.reports.pictures.canvas import ACCENT, style
from mupscale_cli.sweep.coordinates import Coordinates, Layer, slope
from mupscale_cli.sweep.coordinates_picture import draw_coordinates
from training import save_training

SMALL = ("--steps", "2", "--batch-size", "8", "--length", "16", "--noise", "0.05", "--lr", "3e-4", "--json")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    return save_training(tmp_path_factory.mktemp("coordinates") / "narrow", "Llama-tied", "adamw")


def checked(narrow, *options):
    result = run("coordcheck", str(narrow), "-f", "2,4", *SMALL, *options)
    return json.loads(result.out), result.code


def read(found):
    layers = tuple(
        Layer(each["name"], each["expected"], each["sizes"], each["changes"], each["slope"]) for each in found["layers"]
    )
    return Coordinates(tuple(found["factors"]), found["steps"], layers)


def lines(found):
    """Return the label and the color of each line of the picture, and the slope of its change at the last step."""
    with style():
        panel = draw_coordinates(read(found), "narrow").axes[-1]
    return {
        line.get_label().partition(":")[0]: (line.get_color(), slope(line.get_xdata(), line.get_ydata()))
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


def test_slope_is_the_power_of_the_width():
    assert slope([2, 4, 8], [3.0, 6.0, 12.0]) == pytest.approx(1)
    assert slope([2, 4, 8], [0.0, 0.0, 0.0]) is None
    assert math.isnan(slope([2, 4], [1.0, math.nan]))
    assert not Layer("", (1, 1), ((1, 1),), ((0, 0),), math.nan).is_stable


def test_one_width_is_refused(narrow):
    result = run("coordcheck", str(narrow), "-f", "2")
    assert result.code == 2
    assert "compares widths" in result.err
