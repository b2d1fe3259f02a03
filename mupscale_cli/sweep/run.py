"""A sweep from beginning to end: prepare, let workers run the trials, gather what they say."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.digests import file_digest
from mupscale_cli.checkpoints.json_files import read_json
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.checkpoints.staging import replace_json
from mupscale_cli.errors import MupscaleError, SweepError
from mupscale_cli.plan.perturbation import Perturbation
from mupscale_cli.reports.pictures.canvas import check_matplotlib, save
from mupscale_cli.sweep.command import fill, parse_command, run_command
from mupscale_cli.sweep.grid import Point
from mupscale_cli.sweep.picture import draw_sweep
from mupscale_cli.sweep.report import sweep_document
from mupscale_cli.sweep.result import Findings, Trial, find
from mupscale_cli.sweep.settings import PROXY_RECORD, Sweep
from mupscale_cli.sweep.study import Claim, Running, Study
from mupscale_cli.sweep.widened import folder, make_widened, remove_unneeded
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.source import find_source

RESULT, PICTURE = "sweep.json", "sweep.png"
_TOKENS = "tokens.npy"
_READ_IN_PLACE = (".bin", ".npy")  # everything else is encoded or copied once, for all trials and processes
_POLL_SECONDS = 0.3

Report = Callable[[int, float], None]
Trainer = Callable[[Point, Path, Path, Report], float]


@dataclass(frozen=True)
class Status:
    """How far a sweep is, all processes together.

    Attributes:
        trials: the finished ones.
        running: those in progress.
        findings: what the finished ones say.
    """

    trials: tuple[Trial, ...]
    running: tuple[Running, ...]
    findings: Findings


@dataclass(frozen=True)
class Events:
    """What a caller wants to be told while it works.

    Attributes:
        phase: called with the name of a preparation that takes time.
        show: called now and then, and once all trials are done.
    """

    phase: Callable[[str], None] = lambda _name: None
    show: Callable[[Status], None] = lambda _status: None


@dataclass(frozen=True)
class Outcome:
    """A finished sweep.

    Attributes:
        findings: what it says.
        document: the same as JSON has it.
        result: the file that holds it.
        picture: None where none was wanted.
    """

    findings: Findings
    document: dict[str, Any]
    result: Path
    picture: Path | None


def sweep(settings: Sweep, *, jobs: int = 1, picture: bool = True, events: Events = Events()) -> Outcome:
    """Train widened proxies over a grid of learning rate and noise, and say what to train the target with.

    The trials of a directory are kept: the same call goes on where another ended, and calls in several processes
    share the work.

    Args:
        settings: the sweep.
        jobs: processes that this call runs trials in.
        picture: whether to draw one.
        events: for progress.

    Raises:
        MupscaleError: something the user can fix; finished trials are kept.
    """
    if jobs < 1:
        raise SweepError(f"`--jobs {jobs}` is not at least 1")
    if picture:
        check_matplotlib("pip install 'mupscale[sweep]', or leave it with `--no-picture`")
    study = _prepare(settings, events)
    teller = _Teller(settings, study, events)
    if jobs == 1:
        _work(settings, study, teller.tell)
    else:
        _work_side_by_side(settings, jobs, teller)
    status, document = teller.tell()
    with study.lock:
        if not study.unfinished(settings.grid):
            shutil.rmtree(folder(settings), ignore_errors=True)
    drawn = None
    if picture:
        drawn = settings.directory / PICTURE
        save(draw_sweep(status.findings, settings.title, settings.loss), drawn)
    return Outcome(status.findings, document, settings.directory / RESULT, drawn)


# Preparing ------------------------------------------------------------------------------------


def _prepare(settings: Sweep, events: Events) -> Study:
    """Check everything that can be checked before the first trial, then make what all trials share."""
    for noise in settings.grid.noises:
        Perturbation(noise, settings.noise_mode, settings.noise_scale)
    source = find_source(str(settings.checkpoint))
    if settings.command is not None:
        parse_command(settings.command)
    for factor in (*settings.grid.factors, *([settings.target] if settings.target else [])):
        plan_widening(source, factor=factor, axes=settings.axes, recipe=settings.recipe, tie=settings.tie)
    _check_directory(settings.directory)
    data = _read_data(settings, source.checkpoint)
    study = Study(settings.directory)
    study.check_fixed({**settings.fixed, "content": _content(settings, source.checkpoint)})
    with study.lock:
        if data is not None:
            _keep_tokens(settings, data)
        if settings.proxy and not settings.narrow.exists():
            _make_proxy(settings, source.checkpoint, events)
    return study


def _content(settings: Sweep, source: Checkpoint) -> dict[str, Any]:
    """What tells whether checkpoint and data are still the same; a checkpoint is trained on under the same name."""
    found: dict[str, Any] = {file.name: file_digest(file) for file in source.files}
    if settings.data is not None and settings.data.is_file():
        found[settings.data.name] = f"{settings.data.stat().st_size} bytes"  # it may be larger than a disk reads soon
    return found


def _check_directory(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise SweepError(f"`{directory}` is not a directory", hint="choose another one with `-o`")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / "locks").is_dir():
        raise SweepError(f"`{directory}` holds something that is no sweep", hint="choose another directory with `-o`")


def _read_data(settings: Sweep, source: Checkpoint) -> Any:
    """The tokens, as they are read for the first time; None where nothing is trained here."""
    needs_data = settings.command is None or bool(settings.proxy and settings.proxy.steps)
    if not needs_data:
        return None
    from mupscale_cli.sweep.data import read_tokens, split
    from mupscale_cli.sweep.models import check_causal, vocab_size
    from mupscale_cli.verification.placement import choose_device

    check_causal(source.config, source.path)
    choose_device(settings.training.device)
    if settings.data is None:
        raise SweepError(
            "nothing is given to train on",
            hint="`--data FILE`, or your own trainer with `--command`"
            + (" and `--proxy-steps 0`" if settings.command else ""),
        )
    if (settings.directory / _TOKENS).is_file():
        return None
    assert source.config is not None
    tokenizer = source.path.parent if source.is_file else source.path
    tokens = read_tokens(settings.data, tokenizer, vocab_size(source.config, source.path), settings.data_type)
    split(tokens, settings.training.length, settings.data)
    return tokens


def _keep_tokens(settings: Sweep, tokens: Any) -> None:
    import numpy as np

    assert settings.data is not None
    if settings.data.suffix in _READ_IN_PLACE:
        return
    staged = settings.directory / f".{_TOKENS}"
    with open(staged, "wb") as file:
        np.save(file, tokens)
    staged.replace(settings.directory / _TOKENS)


def _split_data(settings: Sweep) -> Any:
    from mupscale_cli.sweep.data import read_tokens, split
    from mupscale_cli.sweep.models import vocab_size

    assert settings.data is not None
    kept = settings.directory / _TOKENS
    config = find_source(str(settings.checkpoint)).checkpoint.config or {}
    path = kept if kept.is_file() else settings.data
    tokens = read_tokens(path, settings.checkpoint, vocab_size(config, settings.checkpoint), settings.data_type)
    return split(tokens, settings.training.length, settings.data)


def _make_proxy(settings: Sweep, source: Checkpoint, events: Events) -> None:
    from mupscale_cli.sweep.proxy import ProxyRequest, make_proxy

    assert settings.proxy is not None
    events.phase(f"making the proxy, {settings.proxy.steps} steps")
    lrs = settings.grid.lrs
    request = ProxyRequest(
        settings.proxy.ratio, settings.axes, settings.recipe, settings.tie, lrs[len(lrs) // 2], settings.proxy.steps
    )
    data = _split_data(settings) if settings.proxy.steps else None
    make_proxy(source, request, settings.training, data, settings.narrow, lambda _step, _loss: None)


# Running --------------------------------------------------------------------------------------


def _trainer(settings: Sweep) -> Trainer:
    """What a trial runs: point, checkpoint, a folder of its own, where to report."""
    if settings.command is not None:
        words = parse_command(settings.command)

        def run_own(point: Point, checkpoint: Path, output: Path, report: Report) -> float:
            values = {
                "checkpoint": str(checkpoint),
                "lr": repr(point.lr),
                "noise": repr(point.noise),
                "factor": str(point.factor),
                "seed": str(point.seed),
                "output": str(output),
            }
            return run_command(fill(words, values), output, report)

        return run_own
    from mupscale_cli.sweep.training import train

    data = _split_data(settings)
    return lambda point, checkpoint, _output, report: train(
        checkpoint, settings.training, data, point.lr, point.seed, report
    )


def _work(settings: Sweep, study: Study, show: Callable[[], object]) -> None:
    """Run trials until every one of the grid is finished, here or elsewhere."""
    trainer: Trainer | None = None
    while True:
        show()
        _leave_if_orphaned()
        claim = study.claim(settings.grid)
        if claim is None:
            if not study.unfinished(settings.grid):
                return
            time.sleep(_POLL_SECONDS)  # others have the rest; should they die, it is ours
            continue
        with claim:
            trainer = trainer or _trainer(settings)
            _run_trial(settings, claim, trainer, show)
        with study.lock:
            remove_unneeded(settings, claim.point, study.unfinished(settings.grid))


def _run_trial(settings: Sweep, claim: Claim, trainer: Trainer, show: Callable[[], object]) -> None:
    last = time.monotonic()

    def report(step: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last >= _POLL_SECONDS:
            last = time.monotonic()
            _leave_if_orphaned()
            claim.report(step, loss)
            show()

    checkpoint = make_widened(settings, claim.point)
    output = settings.directory / "trials" / claim.name
    shutil.rmtree(output, ignore_errors=True)  # of a killed run: a trial starts from its beginning
    claim.finish(trainer(claim.point, checkpoint.resolve(), output.resolve(), report))


def _leave_if_orphaned() -> None:
    """A worker whose sweep was killed ends too, so that a new one finds its trials free."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        sys.exit(1)


def _work_side_by_side(settings: Sweep, jobs: int, teller: _Teller) -> None:
    context = multiprocessing.get_context("spawn")  # CUDA cannot be used in a forked process
    errors = context.SimpleQueue()
    threads = max(1, (os.cpu_count() or 1) // jobs)
    workers = [context.Process(target=_worker, args=(settings, threads, errors), daemon=True) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers) and errors.empty():
            teller.tell()
            time.sleep(_POLL_SECONDS)
        if not errors.empty():
            raise errors.get()
        failed = next((worker.exitcode for worker in workers if worker.exitcode), None)
        if failed is not None:
            raise SweepError(
                f"a process that ran trials ended with {failed}",
                hint="the same command goes on where it ended; fewer `--jobs` may help",
            )
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def _worker(settings: Sweep, threads: int, errors: Any) -> None:
    """A process that runs trials; what the user can fix is told by the one that started it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends us
    if settings.command is None:
        import torch

        torch.set_num_threads(threads)
    try:
        _work(settings, Study(settings.directory), lambda: None)
    except MupscaleError as error:
        errors.put(error)


# Telling --------------------------------------------------------------------------------------


class _Teller:
    """Tells how far a sweep is, to the caller and on disk, so that a killed one leaves what it knew."""

    def __init__(self, settings: Sweep, study: Study, events: Events) -> None:
        self._settings = settings
        self._study = study
        self._events = events
        self._document: dict[str, Any] = {}
        self._num_told = -1

    def tell(self) -> tuple[Status, dict[str, Any]]:
        """The state of all processes together."""
        trials = tuple(self._study.results(self._settings.grid))
        status = Status(trials, tuple(self._study.running()), find(self._settings.grid, trials))
        if len(trials) != self._num_told:
            proxy = read_json(self._settings.narrow / PROXY_RECORD) if self._settings.proxy else None
            self._document = sweep_document(self._settings, trials, status.findings, proxy)
            replace_json(self._settings.directory / RESULT, self._document)
            self._num_told = len(trials)
        self._events.show(status)
        return status, self._document
