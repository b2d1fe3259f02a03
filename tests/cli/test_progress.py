"""Progress on a terminal and in a log, and the summary of a widening."""

import io
import re

from rich.console import Console
from rich.progress import Progress

from cli_runner import run
from helpers import save_mlp
from mupscale_cli.cli import progress


class Clock:
    """A clock that tests set."""

    now = 0.0

    def __call__(self):
        return self.now


def console(width=1000, **options):
    return Console(file=io.StringIO(), width=width, highlight=False, **options)


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_log_has_one_line_per_phase():
    log, clock = console(), Clock()
    with progress.show_progress(log, live=False, clock=clock) as events:
        events.phase("widening", 2_000_000)
        for _ in range(10):
            clock.now += 1
            events.advance(200_000)
        events.phase("verifying", 0)
    assert log.file.getvalue() == "widening (2.0 MB)\nverifying\n"


def test_log_shows_progress_of_a_long_phase_every_minute():
    log, clock = console(), Clock()
    with progress.show_progress(log, live=False, clock=clock) as events:
        events.phase("widening", 10_000_000_000)
        for _ in range(100):
            clock.now += 1.5
            events.advance(100_000_000)
    assert log.file.getvalue().splitlines() == [
        "widening (10.0 GB)",
        "widening: 40%, 4.0 GB of 10.0 GB, 66.7 MB/s, 1 min 30 s left",
        "widening: 80%, 8.0 GB of 10.0 GB, 66.7 MB/s, 30 s left",
    ]


def test_terminal_shows_one_bar_and_keeps_a_line_per_phase():
    for width in (80, 200):
        terminal, clock = console(width, force_terminal=True), Clock()
        with progress.show_progress(terminal, live=True, clock=clock) as events:
            events.phase("widening", 2_000_000)
            for _ in range(4):
                clock.now += 1
                events.advance(500_000)
            events.phase("verifying", 0)
            clock.now += 3
        text = plain(terminal.file.getvalue())
        kept = [line.strip() for line in re.split(r"[\r\n]+", text) if " in " in line or line.startswith("verifying")]
        assert "widening         2.0 MB in 4 s (500.0 kB/s)" in kept
        assert "verifying        3 s" in kept
        assert all(len(line) <= width for line in re.split(r"[\r\n]+", text))


def test_bar_shows_bytes_speed_and_time_left():
    clock = Clock()
    bars = Progress(console=console(), get_time=clock)
    task = bars.add_task("widening", total=4_000_000)
    for _ in range(2):
        clock.now += 1
        bars.advance(task, 1_000_000)
    assert progress._Figures().render(bars.tasks[0]).plain == "2.0 MB of 4.0 MB, 1.0 MB/s, 2 s left"
    bars.add_task("verifying", total=None)
    clock.now += 3
    assert progress._Figures().render(bars.tasks[1]).plain == "3 s"


def test_summary_shows_before_and_after(saved, tmp_path):
    wide = tmp_path / "wide"
    result = run("widen", str(saved("Llama-tied")), "-f", "4", "-o", str(wide))
    assert result.code == 0
    summary = result.out.partition("same function (")[2]
    for line in (
        r"parameters +23\.9 k +344 k  x14\.4",
        r"layers +2 +2",
        r"heads +4 +16  x4",
        r"key/value heads +2 +8  x4",
        r"bytes +95\.4 kB +1\.4 MB  in 1 file, F32",
        r"equivalence  same function: largest relative difference \d\.\de-1\d, tolerance \d.* \(float64 on cpu, 20 mod",
        rf"written      {re.escape(str(wide))}, in ",
        rf"  mupscale hparams {re.escape(str(wide))} --lr LR",
        rf"  mupscale verify {re.escape(str(wide))} --steps 20",
        rf"  mupscale push {re.escape(str(wide))} ORG/NAME",
    ):
        assert re.search(line, summary), line
    assert not any(line.endswith(" ") for line in result.out.splitlines())
    assert "\x1b" not in result.out + result.err
    assert result.err.splitlines() == [
        "building the class without data",
        "hashing source (99.7 kB)",
        "widening (1.4 MB)",
        "reading back",
        "verifying",
        "running narrow model (420.1 kB)",
        "running wide model (5.7 MB)",
    ]


def test_summary_without_verification_and_config(tmp_path):
    result = run("widen", str(save_mlp(tmp_path / "net.safetensors")), "--factor", "2", "--noise", "0.1")
    assert re.search(r"equivalence  not verified: ", result.out)
    assert re.search(r"growth       method mupscale; free noise 0\.1", result.out)
    assert "heads" not in result.out
    assert f"  mupscale verify {tmp_path / 'net-x2.safetensors'}  # compare both models" in result.out


def test_summary_with_noise_compares_without_it_too(saved, tmp_path):
    result = run("widen", str(saved("Llama-tied")), "-f", "2", "-o", str(tmp_path / "w"), "--noise", "0.1")
    assert re.search(
        r"equivalence  differs as intended: .* relative; same function without noise: largest relative", result.out
    )


def test_model_that_differs_has_no_summary(saved, tmp_path):
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text('extends: llama\ntensors:\n  "{prefix}layers.*.mlp.down_proj.weight": "embed, ffn"\n')
    result = run("widen", str(saved("Llama-tied")), "-f", "2", "-r", str(recipe), "-o", str(tmp_path / "w"))
    assert result.code == 1
    assert "written" not in result.out
    assert "next" not in result.out
