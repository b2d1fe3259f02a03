"""Widen with a fault at each system call that touches the output; check what is left, and what comes of it.

    python tests/faults.py [--sample 3] [--seed 0] [--only file distributed] [--faults EIO kill broken]

A call fails once (EIO), a call that changes something kills its process (kill), or a call fails together with all that
follow (broken). Whatever a run writes and wherever it is struck, the old output or the new one is there afterwards, at
the latest when the next run has begun; `--resume` ends with the bytes of an undisturbed run; and nothing stays that no
message names.

The calls are intercepted by the library of fault.c, which is preloaded, so this needs Linux and a C compiler. Every run
is forked from one process that has imported everything: a point takes a tenth of a second, all take hours.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mupscale_cli.checkpoints.publication import PUBLICATION
from mupscale_cli.checkpoints.staging import recover
from mupscale_cli.engine.events import Events
from mupscale_cli.errors import MupscaleError
from mupscale_cli.tasks.widen import widen

COUNT = 1
FAULTS = {"EIO": 2, "kill": 3, "broken": 4}  # fails once, kills, fails from then on
SHARD = 60_000
LIBRARY = ctypes.CDLL(None)  # the preloaded one


@dataclass(frozen=True)
class Kind:
    """A kind of checkpoint, and the names of a narrow and a wide one."""

    title: str
    narrow: str
    wide: str = "wide"

    @property
    def is_file(self) -> bool:
        return "." in self.wide


PLAIN = (Kind("directory", "net"), Kind("file", "net.safetensors", "wide.safetensors"))
CONTAINERS = (
    Kind("torch file", "net.pt", "wide.pt"),
    Kind("torch shards", "shards"),
    Kind("distributed", "dcp"),
    Kind("fsdp", "fsdp"),  # weights and state in a folder each
    Kind("zero", "zero"),  # two ranks' files, written as a folder for each parameter
    Kind("nanochat", "nanochat"),  # two ranks' files, written as two
)


@dataclass(frozen=True)
class Scenario:
    """What a run writes, and how."""

    kind: Kind
    overwrite: bool
    state: bool
    processes: int

    def __str__(self) -> str:
        words = (self.kind.title, "overwrite" if self.overwrite else "new")
        state = "with state" if self.state else "without state"
        return f"{', '.join(words)}, {state}, {self.processes} process{'es' * (self.processes > 1)}"


SCENARIOS = [
    *itertools.starmap(Scenario, itertools.product(PLAIN, (False, True), (False, True), (1, 2))),
    *itertools.starmap(Scenario, itertools.product(CONTAINERS, (False, True), (True,), (1, 2))),
]


@dataclass(frozen=True)
class Outcome:
    """How a forked run ended: its error, and the notes that it printed."""

    error: str | None
    notes: tuple[str, ...]
    is_expected: bool = True  # the command line would have shown one message and exited with 2


class Trial:
    """Runs of one scenario in one folder."""

    def __init__(self, root: Path, scenario: Scenario) -> None:
        self.root, self.scenario = root, scenario
        self.out = root / "trial" / "out"

    @property
    def target(self) -> Path:
        return self.out / self.scenario.kind.wide

    def run(self, **more: object) -> Outcome:
        """Widen in a forked process."""
        scenario = self.scenario
        options = {
            "factor": 2,
            "max_shard_size": SHARD,
            "optimizer": "auto" if scenario.state else "none",
            "overwrite": scenario.overwrite,
            "processes": scenario.processes,
            "verify": False,
        }
        narrow = self.root / "source" / scenario.kind.narrow
        return forked(lambda note: widen(narrow, self.target, **{**options, **more}, events=Events(note=note)))

    def recover(self) -> Outcome:
        """Do what the next run for this output does first."""
        return forked(lambda note: recover(self.target, note))

    def prepare(self) -> None:
        """Empty the folder, and put the old output there if it is to be replaced."""
        shutil.rmtree(self.out.parent, ignore_errors=True)
        if self.scenario.overwrite:
            shutil.copytree(self._old, self.out)
        else:
            self.out.mkdir(parents=True)

    @property
    def _old(self) -> Path:
        folder = self.root / "old" / self.scenario.kind.title
        if not folder.exists():
            self.out.mkdir(parents=True, exist_ok=True)
            outcome = self.run(factor=3, optimizer="auto", overwrite=False)
            assert outcome.error is None, outcome
            folder.parent.mkdir(exist_ok=True)
            self.out.rename(folder)
        return folder

    def expected(self, fault: str) -> tuple[dict[str, str], dict[str, str], int]:
        """Return the files of the old and of the new output, and the number of calls that a fault may strike."""
        self.prepare()
        old = files_of(self.out)
        LIBRARY.fault_arm(os.fsencode(self.out), COUNT, fault == "kill", 0)
        outcome = self.run()
        count = LIBRARY.fault_disarm()
        assert outcome.error is None, outcome
        assert not hidden(self.out)
        return old, files_of(self.out), count


def forked(work: Callable[[Callable[[str], None]], object]) -> Outcome:
    """Run a function in a forked process, and wait for that and its own children."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        notes: list[str] = []
        try:
            work(notes.append)
            outcome = [None, notes, True]
        except BaseException as error:  # noqa: BLE001 (the parent judges it)
            is_expected = isinstance(error, (MupscaleError, OSError))
            text = (
                f"{type(error).__name__}: {error}" if is_expected else traceback.format_exc(limit=-1).replace("\n", " ")
            )
            outcome = [text, notes, is_expected]
        LIBRARY.fault_disarm()
        os.write(writing, json.dumps(outcome).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as stream:
        text = stream.read()  # ends with the last process that holds the other end
    _, status = os.waitpid(child, 0)
    if not text:
        assert os.WIFSIGNALED(status), status
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        return Outcome("killed", ())
    error, notes, is_expected = json.loads(text)
    return Outcome(error, tuple(notes), is_expected)


def files_of(out: Path) -> dict[str, str]:
    """Return the digest of each file below a folder, without the hidden entries beside the output."""
    visible = [path for path in out.iterdir() if not path.name.startswith(".")]
    files = (file for path in visible for file in (path.rglob("*") if path.is_dir() else (path,)))
    return {str(file.relative_to(out)): digest(file) for file in files if file.is_file()}


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def hidden(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if path.name.startswith("."))


@dataclass(frozen=True)
class Point:
    """A fault, and everything after it that is not as promised."""

    call: str
    wrong: tuple[str, ...] = ()


def problems(trial: Trial, fault: str, number: int, old: dict[str, str], new: dict[str, str]) -> Point:
    """Run with a fault at the given call, then recover and resume."""
    trial.prepare()
    LIBRARY.fault_arm(os.fsencode(trial.out), FAULTS[fault], fault == "kill", number)
    outcome = trial.run()
    LIBRARY.fault_disarm()
    call = ctypes.string_at(LIBRARY.fault_call()).decode().replace(str(trial.out), "")
    if not call:
        return Point("")
    return Point(call, (*after_fault(trial, fault, outcome, old, new), *after_recovery(trial, old, new)))


def after_fault(trial: Trial, fault: str, outcome: Outcome, old: dict[str, str], new: dict[str, str]) -> Iterator[str]:
    """Yield what is wrong with the end of a run and the state that it left."""
    found = files_of(trial.out)
    is_half = any((trial.out / name / PUBLICATION).exists() for name in hidden(trial.out))
    if not outcome.is_expected:
        yield f"crashed: {outcome.error}"
    if outcome.error is None and found != new:
        yield "ended well, but the output is not the new one"
    elif is_half and fault == "broken":  # nothing can be restored then
        if found not in (old, new) and trial.target.name in found:
            yield f"{outcome.error}, and left {sorted(found)}"
    elif is_half and trial.scenario.kind.is_file and trial.target.name not in found:
        pass  # a file and its companions do not appear in one step
    elif outcome.error == "killed" and found not in (old, new):
        yield f"was killed, and left {sorted(found)}"
    elif outcome.error not in (None, "killed") and found != old:
        yield f"{outcome.error}, and left {sorted(found)}"


def after_recovery(trial: Trial, old: dict[str, str], new: dict[str, str]) -> Iterator[str]:
    """Yield what is wrong with what the next run makes of it, without `--resume` and with it."""
    left = hidden(trial.out)
    recovered = trial.recover()
    if recovered.error:
        yield f"recovery failed: {recovered.error}"
    found = files_of(trial.out)
    if found not in (old, new):
        yield f"recovered, and left {sorted(found)}"
    removed = [name for name in left if name not in hidden(trial.out) and ".partial-" in name]
    if unnamed := [name for name in removed if not any(name in note for note in recovered.notes)]:
        yield f"removed without a word: {unnamed}"
    if found != new:
        resumed = trial.run(resume=True)
        if resumed.error:
            yield f"cannot be resumed: {resumed.error}"
        if files_of(trial.out) != new:
            yield "resumed to another output"
    if rest := hidden(trial.out):
        yield f"left behind: {rest}"


def make_source(folder: Path) -> None:
    """Save a model in the middle of training, as each kind of checkpoint."""
    import nanochat_files
    import torch
    import torch.distributed.checkpoint as dcp
    import transformers
    import zero_files
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    from helpers import build
    from training import make, random_loss

    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    model = build("Llama-tied", num_hidden_layers=1, dtype=torch.float32)
    optimizer = make("sgd", list(model.named_parameters()), [])
    random_loss(model, torch.Generator().manual_seed(1)).backward()
    optimizer.step()
    state, weights = optimizer.state_dict(), model.state_dict()
    for name in ("net", "shards", "dcp", "fsdp", "zero"):
        model.config.save_pretrained(folder / name)

    model.save_pretrained(folder / "net")
    torch.save(state, folder / "net" / "optimizer.pt")
    for name in ("model.safetensors", "config.json", "optimizer.pt"):  # a single file with companions
        shutil.copy(folder / "net" / name, folder / f"net.{name.removeprefix('model.')}")
    torch.save({"model": weights, "optimizer": state, "step": 1}, folder / "net.pt")

    files = {name: f"pytorch_model-0000{1 + (number > 2)}-of-00002.bin" for number, name in enumerate(weights)}
    files["lm_head.weight"] = files["model.embed_tokens.weight"]
    for file in set(files.values()):
        torch.save({name: weights[name] for name, held in files.items() if held == file}, folder / "shards" / file)
    index = {"metadata": {"total_size": 0}, "weight_map": files}
    (folder / "shards" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    torch.save(state, folder / "shards" / "optimizer.pt")

    named = get_optimizer_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": named, "step": 1}, checkpoint_id=folder / "dcp", no_dist=True)
    dcp.save({"model": weights}, checkpoint_id=folder / "fsdp" / "pytorch_model_fsdp_0", no_dist=True)
    dcp.save({"optimizer": named}, checkpoint_id=folder / "fsdp" / "optimizer_0", no_dist=True)

    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    groups = tuple(tuple(n for n, shape in shapes.items() if (len(shape) > 1) == many) for many in (True, False))
    tensors = zero_files.tensors_of(shapes)
    zero_files.write_partitioned(folder / "zero" / "global_step7", 1, tensors, groups, processes=2)
    (folder / "zero" / "latest").write_text("global_step7")
    nanochat_files.save(folder / "nanochat", 2)


def strike(root: Path, fault: str, scenario: Scenario, sample: int | None, pick: random.Random) -> tuple[int, int]:
    """Try all calls of a scenario, or a sample of them; return how many faults there were, and how many mattered."""
    trial = Trial(root, scenario)
    old, new, count = trial.expected(fault)
    numbers = range(1, count + 1) if sample is None else pick.sample(range(1, count + 1), min(sample, count))
    found = [problems(trial, fault, number, old, new) for number in numbers]
    for number, point in zip(numbers, found, strict=True):
        if point.wrong:
            say(f"{scenario}, {fault} {number}, {point.call}: {'; '.join(point.wrong)}")
    struck = sum(bool(point.call) for point in found)  # threads do not always make the same number of calls
    say(f"{scenario}, {fault}: {struck} of {count} calls")
    return struck, sum(bool(point.wrong) for point in found)


def run_preloaded(root: Path) -> int:
    """Compile the library and run this program again with it; return the exit code."""
    library = root / "fault.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, Path(__file__).with_name("fault.c")], check=True)  # noqa: S607
    arguments = [sys.executable, *sys.argv, "--root", str(root)]
    return subprocess.run(arguments, env={**os.environ, "LD_PRELOAD": str(library)}, check=False).returncode


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="number of points of each scenario and fault. Default: all.")
    parser.add_argument("--seed", type=int, default=0, help="Random seed of the sample.")
    parser.add_argument("--runs", type=int, help="number of pairs of a scenario and a fault, at random. Default: all.")
    parser.add_argument("--only", nargs="+", default=[""], help="Only scenarios that begin so, such as `file, new`.")
    parser.add_argument("--faults", nargs="+", default=["EIO", "kill"], choices=list(FAULTS))
    parser.add_argument("--source", type=Path, help="Folder that `make_source` filled. Default: made for this run.")
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)  # of the process with the library
    chosen = parser.parse_args()
    if chosen.root is None:
        memory = Path("/dev/shm")  # noqa: S108 (on a disk, all this takes longer)
        with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
            if chosen.source is None:
                make_source(Path(folder) / "source")
            else:
                shutil.copytree(chosen.source, Path(folder) / "source")
            sys.exit(run_preloaded(Path(folder)))
    import torch

    LIBRARY.fault_call.restype = ctypes.c_void_p
    LIBRARY.fault_disarm.restype = ctypes.c_long
    torch.set_num_threads(1)
    for kind in (*PLAIN, *CONTAINERS):  # import everything
        widen(
            chosen.root / "source" / kind.narrow, chosen.root / "warm" / kind.title / kind.wide, factor=2, verify=False
        )
    assert threading.active_count() == 1  # so that processes can be forked
    began, pick = time.monotonic(), random.Random(chosen.seed)
    scenarios = [scenario for scenario in SCENARIOS if str(scenario).startswith(tuple(chosen.only))]
    runs = list(itertools.product(scenarios, chosen.faults))
    if chosen.runs is not None:
        runs = pick.sample(runs, min(chosen.runs, len(runs)))
    results = [strike(chosen.root, fault, scenario, chosen.sample, pick) for scenario, fault in runs]
    points, wrong = (sum(each) for each in zip(*results, strict=True))
    say(f"{points} points in {time.monotonic() - began:.0f} s, {wrong} not as promised")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
