"""Run a sweep: prepare it, run its trials in one or more processes, and evaluate them."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.digests import file_digest, files_digest
from mupscale_cli.checkpoints.json_files import read_json
from mupscale_cli.checkpoints.output_files import replace_json
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.engine.defaults import plain_defaults
from mupscale_cli.errors import MupscaleError, SweepError
from mupscale_cli.optimizers.finding import find_optimizer, open_optimizer
from mupscale_cli.record.changes import source_files
from mupscale_cli.reports.pictures.canvas import check_matplotlib, save
from mupscale_cli.sweep.command import fill, parse_command, run_command
from mupscale_cli.sweep.cost import Cost, sweep_cost
from mupscale_cli.sweep.grid import Point
from mupscale_cli.sweep.picture import draw_sweep
from mupscale_cli.sweep.report import sweep_document
from mupscale_cli.sweep.result import Findings, Trial, evaluate_trials
from mupscale_cli.sweep.settings import PROXY_RECORD, Sweep
from mupscale_cli.sweep.study import Claim, Running, Study
from mupscale_cli.sweep.widened import checkpoints_folder, make_widened, remove_unneeded
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.text import counted

RESULT, PICTURE = "sweep.json", "sweep.png"
_TOKENS = "tokens.npy"
_READ_IN_PLACE = (".bin", ".npy")  # other data is converted once, for all trials and processes
_POLL_SECONDS = 0.3
_FAR = 10  # a proxy with fewer than a tenth of the checkpoint's steps is far less trained

Report = Callable[[int, float], None]
Trainer = Callable[[Point, Path, Path, Report], float]


@dataclass(frozen=True)
class Status:
    """Progress of a sweep in all processes.

    Attributes:
        trials: finished trials.
        running: trials in progress.
        findings: results of the finished trials.
    """

    trials: tuple[Trial, ...]
    running: tuple[Running, ...]
    findings: Findings


@dataclass(frozen=True)
class Events:
    """Callbacks that report progress.

    Attributes:
        phase: called with a description of each long preparation.
        note: called with each finding that should stay visible.
        show: called a few times per second, and once after the last trial.
    """

    phase: Callable[[str], None] = lambda _name: None
    note: Callable[[str], None] = lambda _text: None
    show: Callable[[Status], None] = lambda _status: None


@dataclass(frozen=True)
class Outcome:
    """Result of a finished sweep.

    Attributes:
        findings: losses, optima and the recommendation.
        document: the same as a JSON document.
        result: file that holds the document.
        picture: file of the picture, None if none was drawn.
        cost: what the sweep costs.
    """

    findings: Findings
    document: dict[str, Any]
    result: Path
    picture: Path | None
    cost: Cost


@plain_defaults()
def sweep(settings: Sweep, *, jobs: int = 1, picture: bool = True, events: Events = Events()) -> Outcome:
    """Train widened models over a grid of learning rates and noises, and recommend a pair for the target.

    Finished trials are kept in the directory: a later call with the same settings continues the sweep, and calls in
    several processes share its trials.

    Args:
        settings: settings of the sweep.
        jobs: number of processes to run trials in.
        picture: whether to draw the losses.
        events: callbacks that report progress.

    Raises:
        MupscaleError: the settings, the checkpoint, the data or a trial are at fault; finished trials are kept.
    """
    if jobs < 1:
        raise SweepError(f"`--jobs {jobs}` is not at least 1")
    if picture:
        check_matplotlib("sweep", "omit the picture with `--no-picture`")
    study = _prepare(settings, events)
    publisher = _Publisher(settings, study, events)
    if jobs == 1:
        _run_trials(settings, study, publisher.publish)
    else:
        _run_workers(settings, jobs, publisher)
    status, document = publisher.publish()
    with study.lock:
        if not study.unfinished(settings.grid):
            shutil.rmtree(checkpoints_folder(settings), ignore_errors=True)
    picture_file = settings.directory / PICTURE if picture else None
    if picture_file:
        save(draw_sweep(status.findings, settings.title, settings.loss), picture_file)
    return Outcome(status.findings, document, settings.directory / RESULT, picture_file, publisher.cost)


# Preparation ----------------------------------------------------------------------------------


def _prepare(settings: Sweep, events: Events) -> Study:
    """Check all inputs before the first trial, then create what the trials share."""
    for noise in settings.grid.noises:
        settings.perturbation(noise)
    source = settings.find_source()
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
            _save_tokens(settings, data)
        if settings.proxy and not settings.narrow.exists():
            _make_proxy(settings, source.checkpoint, events)
    return study


def _content(settings: Sweep, source: Checkpoint) -> dict[str, Any]:
    """Hash checkpoint and data, since training may overwrite a checkpoint, and data may be prepared again."""
    content: dict[str, Any] = {name: file_digest(file) for name, file in source_files(source).items()}
    if (data := settings.data) is None:
        return content
    files = [file for file in data.rglob("*") if file.is_file()] if data.is_dir() else [data]
    return {**content, "data": files_digest(files)}


def _check_directory(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise SweepError(f"`{directory}` is not a directory", hint="choose another one with `-o`")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / "locks").is_dir():
        raise SweepError(f"`{directory}` is not empty and not a sweep", hint="choose another directory with `-o`")


def _read_data(settings: Sweep, source: Checkpoint) -> Any:
    """Read and check the tokens; return None if the built-in trainer is not used or they are saved already."""
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
            "no training data",
            hint="add `--data FILE`, or bring your own trainer with `--command`"
            + (" and `--proxy-steps 0`" if settings.command else ""),
        )
    if (settings.directory / _TOKENS).is_file():
        return None
    assert source.config is not None
    tokenizer = source.path.parent if source.is_file else source.path
    tokens = read_tokens(settings.data, tokenizer, vocab_size(source.config, source.path), settings.data_type)
    split(tokens, settings.training.length, settings.data)
    return tokens


def _save_tokens(settings: Sweep, tokens: Any) -> None:
    """Save the tokens to the directory, unless their file can be read in place."""
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
    saved = settings.directory / _TOKENS
    config = settings.find_source().checkpoint.config or {}
    path = saved if saved.is_file() else settings.data
    tokens = read_tokens(path, settings.checkpoint, vocab_size(config, settings.checkpoint), settings.data_type)
    return split(tokens, settings.training.length, settings.data)


def _make_proxy(settings: Sweep, source: Checkpoint, events: Events) -> None:
    from mupscale_cli.sweep.proxy import ProxyRequest, make_proxy

    assert settings.proxy is not None
    trials = f"{counted(len(settings.grid), 'trial')} of {counted(settings.training.steps, 'step')}"
    events.phase(f"creating {settings.title} ({counted(settings.proxy.steps, 'training step')}), for {trials}")
    lrs = settings.grid.lrs
    request = ProxyRequest(
        settings.proxy.ratio, settings.axes, settings.recipe, settings.tie, lrs[len(lrs) // 2], settings.proxy.steps
    )
    data = _split_data(settings) if settings.proxy.steps else None
    losses: list[float] = []
    make_proxy(source, request, settings.training, data, settings.narrow, lambda _step, loss: losses.append(loss))
    if losses:
        events.note(_proxy_advice(losses[-1], settings.proxy.steps))


def _proxy_advice(loss: float, steps: int) -> str:
    """Return how to tell whether a proxy is trained as far as the checkpoint, whose own loss nothing records."""
    return (
        f"the proxy ends with a loss of {loss:.4g} after {counted(steps, 'step')}; if the checkpoint's loss on this "
        "data is far lower, the proxy is far less trained, and the best rates may differ: raise `--proxy-steps`"
    )


def _proxy_warnings(settings: Sweep) -> tuple[str, ...]:
    """Compare the proxy's training with the steps that the checkpoint's optimizer state counts, if it has one."""
    source = settings.find_source().checkpoint
    path = find_optimizer(source)
    if settings.proxy is None or path is None or find_spec("torch") is None:
        return ()
    from mupscale_cli.optimizers.progress import steps_taken

    try:
        taken = steps_taken(open_optimizer(path, source.config, trained=source.trained))
    except MupscaleError:  # of a state that a sweep with a proxy does not need
        return ()
    steps = settings.proxy.steps
    if taken is None or steps * _FAR >= taken:
        return ()
    warning = (
        f"the proxy was trained for {counted(steps, 'step')} and the checkpoint for {taken}, and the best learning "
        f"rate depends on how far a model is trained: raise `--proxy-steps` to {-(-taken // _FAR)} or more"
    )
    return (warning,)


# Trials ---------------------------------------------------------------------------------------


def _trainer(settings: Sweep) -> Trainer:
    """Return the function that trains one trial: the user's command or the built-in trainer."""
    if settings.command is not None:
        words = parse_command(settings.command)

        def train_with_command(point: Point, checkpoint: Path, output: Path, report: Report) -> float:
            values = {
                "checkpoint": str(checkpoint),
                "lr": repr(point.lr),
                "noise": repr(point.noise),
                "factor": str(point.factor),
                "seed": str(point.seed),
                "output": str(output),
            }
            return run_command(fill(words, values), output, report)

        return train_with_command
    from mupscale_cli.sweep.training import train

    data = _split_data(settings)
    return lambda point, checkpoint, _output, report: train(
        checkpoint, settings.training, data, point.lr, point.seed, report
    )


def _run_trials(settings: Sweep, study: Study, show: Callable[[], object]) -> None:
    """Run trials until every trial of the grid is finished, here or in another process."""
    trainer: Trainer | None = None
    while True:
        show()
        _exit_if_orphaned()
        claim = study.claim(settings.grid)
        if claim is None:
            if not study.unfinished(settings.grid):
                return
            time.sleep(_POLL_SECONDS)  # other processes run the rest; if they die, this one takes over
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
            _exit_if_orphaned()
            claim.report(step, loss)
            show()

    checkpoint = make_widened(settings, claim.point)
    output = settings.directory / "trials" / claim.name
    shutil.rmtree(output, ignore_errors=True)  # left by a killed run; a trial starts from the beginning
    claim.finish(trainer(claim.point, checkpoint.resolve(), output.resolve(), report))


def _exit_if_orphaned() -> None:
    """Exit a worker whose sweep was killed, so that its trial is free for the next sweep."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        sys.exit(1)


def _run_workers(settings: Sweep, jobs: int, publisher: _Publisher) -> None:
    """Run the trials in worker processes; raise the first worker's error here."""
    context = multiprocessing.get_context("spawn")  # CUDA does not work in a forked process
    errors = context.SimpleQueue()
    threads = max(1, (os.cpu_count() or 1) // jobs)
    workers = [context.Process(target=_worker, args=(settings, threads, errors), daemon=True) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers) and errors.empty():
            publisher.publish()
            time.sleep(_POLL_SECONDS)
        if not errors.empty():
            raise errors.get()
        failed = next((worker.exitcode for worker in workers if worker.exitcode), None)
        if failed is not None:
            raise SweepError(
                f"a worker process exited with {failed}",
                hint="run the same command again to continue; fewer `--jobs` may help",
            )
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def _worker(settings: Sweep, threads: int, errors: Any) -> None:
    """Run trials in a worker process; put an error that the user can fix on the queue."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which terminates the workers
    if settings.command is None:
        import torch

        torch.set_num_threads(threads)
    try:
        _run_trials(settings, Study(settings.directory), lambda: None)
    except MupscaleError as error:
        errors.put(error)


# Progress -------------------------------------------------------------------------------------


class _Publisher:
    """Publishes a sweep's progress to the caller and to `sweep.json`, which a killed sweep leaves behind."""

    def __init__(self, settings: Sweep, study: Study, events: Events) -> None:
        self._settings = settings
        self._study = study
        self._events = events
        self._document: dict[str, Any] = {}
        self._num_published = -1  # finished trials in the document
        self._warnings = _proxy_warnings(settings)
        self.cost = sweep_cost(settings)

    def publish(self) -> tuple[Status, dict[str, Any]]:
        """Publish the progress of all processes; return it with the current document."""
        trials = tuple(self._study.results(self._settings.grid))
        findings = evaluate_trials(self._settings.grid, trials).with_warnings(self._warnings)
        status = Status(trials, tuple(self._study.running()), findings)
        if len(trials) != self._num_published:
            proxy = read_json(self._settings.narrow / PROXY_RECORD) if self._settings.proxy else None
            self._document = sweep_document(self._settings, trials, findings, proxy, self.cost)
            replace_json(self._settings.directory / RESULT, self._document)
            self._num_published = len(trials)
        self._events.show(status)
        return status, self._document
