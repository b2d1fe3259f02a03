"""Test pictures and the report: their content, and that they appear complete or not at all."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import torch
from safetensors.torch import load_file

from cli_runner import run
from mupscale_cli.errors import OutputError, PictureError
from mupscale_cli.plan.copies import FRESH
from mupscale_cli.reports.pictures import canvas
from mupscale_cli.reports.pictures.verification import (
    draw_errors,
    draw_losses,
    module_errors,
    read_verification,
    step_losses,
)
from mupscale_cli.reports.pictures.weights import boundaries, choose_tensor, draw_weights, read_blocks
from mupscale_cli.tasks.recorded import replan_widening

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def wide(saved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    assert run("widen", str(saved("Llama-tied")), "-f", "4", "-o", str(folder / "wide"), "--no-verify").code == 0
    return folder / "wide"


@pytest.fixture(scope="module")
def verified(wide):
    """Run `verify --steps 3`; return its JSON document and its report."""
    result = run("verify", str(wide), "--steps", "3", "--json", "--report", str(wide.parent / "out.html"))
    assert result.code == 0, result.err
    (wide.parent / "verified.json").write_text(result.out)
    return json.loads(result.out), (wide.parent / "out.html").read_text()


# Pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "source", "suffix"),
    [
        ("weights", "wide", "png"),
        ("weights", "wide", "svg"),
        ("errors", "verified.json", "svg"),
        ("steps", "verified.json", "png"),
        ("steps", "wide", "svg"),
    ],
)
def test_picture_format_follows_the_file_name(kind, source, suffix, wide, verified, tmp_path):
    out = tmp_path / f"picture.{suffix}"
    result = run("plot", kind, str(wide.parent / source), "-o", str(out))
    assert result.code == 0, result.err
    start = {"png": b"\x89PNG", "svg": b"<?xml"}[suffix]
    assert out.read_bytes().startswith(start)
    assert [file.name for file in tmp_path.iterdir()] == [out.name]


def test_plot_errors_verifies_a_checkpoint_and_leaves_its_record(wide, tmp_path):
    record = (wide / "mupscale.json").read_bytes()
    assert run("plot", "errors", str(wide), "-o", str(tmp_path / "errors.svg")).code == 0
    assert "self_attn.q_proj" in (tmp_path / "errors.svg").read_text()
    assert (wide / "mupscale.json").read_bytes() == record


def test_equal_pictures_are_equal_files(wide, tmp_path):
    for name in ("a.svg", "b.svg"):
        assert run("plot", "weights", str(wide), "-o", str(tmp_path / name)).code == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize("name", ["q_proj", "down_proj", "embed_tokens", "norm.weight"])
def test_blocks_are_corners_of_the_stored_tensors(name, wide, saved):
    widening = replan_widening(wide)
    tensor = choose_tensor(widening.plan, name)
    blocks = read_blocks(widening, tensor, 30)
    for file, block, key in (
        (saved("Llama-tied"), blocks.narrow, tensor.source.name),
        (wide, blocks.wide, tensor.target.name),
    ):
        stored = load_file(file / "model.safetensors")[key].double()
        stored = stored if stored.dim() > 1 else stored[:, None]
        assert torch.equal(block, stored[: block.shape[0], : block.shape[1]])
    rows, columns = (torch.tensor(sources) for sources in blocks.sources)
    assert torch.equal(blocks.wide, tensor.coefficient * blocks.narrow[rows][:, columns])


def test_boundaries_separate_copied_units_and_runs():
    assert boundaries([0, 0, 1, 1, 2, 2]) == [2, 4]
    assert boundaries([0, 1, 2, 0, 1, 2]) == [3]
    assert boundaries([0, 1, FRESH, FRESH]) == [2]


def test_default_tensor_grows_in_both_dimensions(wide):
    plan = replan_widening(wide).plan
    assert choose_tensor(plan, None).multiplicity == 16
    figure = draw_weights(read_blocks(replan_widening(wide), choose_tensor(plan, "q_proj")))
    assert figure.get_suptitle() == "model.layers.0.self_attn.q_proj.weight:  (kv g d), /embed | #d^0.5"
    assert "c = 1/4, m = 16" in figure.axes[1].get_title(loc="left")


def test_draw_errors_rings_modules_beyond_the_tolerance(verified):
    modules = module_errors(verified[0], "wide")
    assert len(modules.names) == verified[0]["function"]["modules_compared"] == 20
    (panel,) = draw_errors(modules, "title").axes
    dots = [line for line in panel.lines if line.get_marker() == "o"]
    assert sum(len(line.get_xdata()) for line in dots) == 20
    worse = [{"what": "a", "max_rel": "inf"}, {"what": "b", "max_rel": 0.0}]
    wrong = {**verified[0], "function": {**verified[0]["function"], "modules": worse}}
    (panel,) = draw_errors(module_errors(wrong, "wide"), "title").axes
    assert [list(line.get_xdata()) for line in panel.lines if line.get_label() == "beyond the tolerance"] == [[0]]


def test_draw_losses_draws_both_curves_and_their_difference(verified):
    curves = step_losses(verified[0], "wide")
    above, below = draw_losses(curves, "title").axes
    assert [list(line.get_ydata()) for line in above.lines] == [list(curves.narrow), list(curves.wide)]
    assert len(below.lines[0].get_ydata()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("weights", "WIDE", "-o", "x.gif"), "end its name in .png or .svg"),
        (("weights", "WIDE", "-o", "there.png"), "`there.png` exists"),
        (("weights", "WIDE", "-o", "no/x.png"), "the folder `no` does not exist"),
        (("weights", "WIDE", "-t", "qproj"), "no tensor is named `qproj`"),
        (("errors", "other.json"), "was not printed by `mupscale verify --json`"),
        (("steps", "NARROW"), "was not written by mupscale"),
        (("sweep", "other.json"), "was not written by `mupscale sweep`"),
    ],
)
def test_invalid_plot_is_refused(arguments, message, wide, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.png").write_text("mine")
    (tmp_path / "other.json").write_text("{}")
    places = {"WIDE": str(wide), "NARROW": str(saved("Llama-tied"))}
    result = run("plot", *(places.get(word, word) for word in arguments))
    assert (result.code, message in result.err) == (2, True), result.err
    assert (tmp_path / "there.png").read_text() == "mine"


def test_plot_steps_without_steps_is_refused(saved, tmp_path):
    run("widen", str(saved("Llama-tied")), "-f", "2", "-o", str(tmp_path / "w"), "--no-verify")
    result = run("plot", "steps", str(tmp_path / "w"), "-o", str(tmp_path / "x.png"))
    assert (result.code, "has no steps" in result.err) == (2, True)


def test_missing_matplotlib_is_reported(wide, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for line in (("plot", "weights", str(wide), "-o", "x.png"), ("verify", str(wide), "--report", "x.html")):
        result = run(*line)
        assert result.code == 2
        assert "install the extra `plot` (`mupscale help install`)" in result.err


def test_plot_sweep_draws_a_saved_sweep(tmp_path):
    trials = [
        {"factor": f, "noise": n, "lr": lr, "seed": 0, "loss": 2.0 + lr * f + n, "diverged": False}
        for f in (2, 4)
        for n in (0.0, 0.1)
        for lr in (0.1, 0.2)
    ]
    document = {
        "schema_version": 1,
        "complete": True,
        "checkpoint": "runs/tiny",
        "command": None,
        "proxy": None,
        "grid": {"factors": [2, 4], "lrs": [0.1, 0.2], "noises": [0.0, 0.1], "seeds": [0]},
        "trials": trials,
        "recommendation": None,
    }
    (tmp_path / "sweep.json").write_text(json.dumps(document))
    assert run("plot", "sweep", str(tmp_path), "-o", str(tmp_path / "s.svg")).code == 0
    text = (tmp_path / "s.svg").read_text()
    for label in ("tiny", "x2 wide", "x4 wide", "noise 0.1", "best for every width: lr 0.1, noise 0"):
        assert label in text


def test_failed_picture_keeps_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "x.png"
    file.write_text("before")
    monkeypatch.setattr(canvas.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OutputError, match="cannot write"):
        canvas.publish(file, b"after")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.png"]
    assert file.read_text() == "before"


# The report -----------------------------------------------------------------------------------


class Page(HTMLParser):
    """Parses an HTML document strictly: every element is closed, in order."""

    VOID = {"meta", "br", "hr", "img", "link", "input"}  # noqa: RUF012

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_report_is_self_contained(verified):
    page = Page(verified[1])
    assert page.tags.count("svg") == 3
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    places = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert all(place.startswith(("#", "data:image/png;base64,")) for place in places)
    assert not re.search(r"url\((?!#)|@import", verified[1])
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {place.removeprefix("#") for place in places if place.startswith("#")} <= set(ids)


def test_report_shows_the_verification(verified):
    verification, text = verified
    shown = " ".join(Page(text).text)
    assert "same function, and the same 3 steps" in shown
    assert "wide, widened from narrow" in shown
    for comparison in verification["function"]["comparisons"]:
        assert comparison["what"] in shown
        assert f"{comparison['max_rel']:.1e}" in shown
    assert "mupscale verify" in shown


def test_report_of_different_models(saved, tmp_path):
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text('extends: llama\ntensors:\n  "{prefix}layers.*.mlp.down_proj.weight": "embed, ffn"\n')
    wide, report = str(tmp_path / "wide"), tmp_path / "<out>.html"
    run("widen", str(saved("Llama-tied")), "-f", "2", "-r", str(recipe), "--no-verify", "-o", wide)
    assert run("verify", wide, "--report", str(report)).code == 1
    page = Page(report.read_text())
    assert "the models differ" in "".join(page.text)
    assert ("class", "bad") in page.attributes
    assert "first module that differs: model.layers.0.mlp.down_proj" in "".join(page.text)


def test_invalid_report_is_refused_before_the_verification(wide, tmp_path):
    (tmp_path / "there.html").write_text("mine")
    for arguments, message in (
        (("--report", str(tmp_path / "there.html")), "exists"),
        (("--report", "out.pdf"), "does not end in .html"),
        (("--report", "out.html", "--only", "weights"), "add `--only function`"),
    ):
        result = run("verify", str(wide), *arguments)
        assert (result.code, message in result.err) == (2, True)


@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="needs a browser")
def test_report_renders_in_a_browser(verified, wide, tmp_path):
    """The browser shows three pictures, and nothing is wider than the window."""
    browser = next(filter(None, map(shutil.which, BROWSERS)))
    page = tmp_path / "out.html"
    probe = (
        "<script>onload = () => { const sizes = [...document.querySelectorAll('svg')]"
        ".map(e => e.getBoundingClientRect());"
        "document.body.dataset.found = JSON.stringify([sizes.length, sizes.every(s => s.width > 200 && s.height > 100),"
        "document.documentElement.scrollWidth <= innerWidth,"
        "document.querySelectorAll('parsererror').length]) }</script>"
    )
    page.write_text(verified[1].replace("</body>", f"{probe}</body>"))
    line = (
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1000,800",
        "--virtual-time-budget=2000",
        "--dump-dom",
        page.as_uri(),
    )
    result = subprocess.run(line, capture_output=True, text=True, check=True, timeout=120)
    assert 'data-found="[3,true,true,0]"' in result.stdout


def test_damaged_verification_is_reported(tmp_path):
    (tmp_path / "verified.json").write_text('{"agrees": true, "function": {}, "weights": null}')
    with pytest.raises(PictureError, match="is damaged: `training` is missing"):
        read_verification(tmp_path / "verified.json")
    with pytest.raises(PictureError, match="no module of `x` was compared"):
        module_errors({"function": {"modules": [], "unperturbed": None}}, "x")
    with pytest.raises(PictureError, match="no module of `x` was compared"):
        module_errors({"function": None}, "x")
