"""A user's day in miniature: widen, verify, interrupt, kill and resume over all recipes, and nothing piles up.

`MUPSCALE_SOAK_SECONDS` sets the duration (default: 120; every recipe gets one turn in any case),
`MUPSCALE_SOAK_SEED` the random seed.
"""

import ctypes
import gc
import hashlib
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
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import save_file

from helpers import MODELS, save_mlp, save_model
from mupscale_cli.architecture.loading import recipe_for
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.engine.events import Events
from mupscale_cli.errors import PlanError
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen

SECONDS = float(os.environ.get("MUPSCALE_SOAK_SECONDS", "120"))
SEED = int(os.environ.get("MUPSCALE_SOAK_SEED", "0"))
STORED = ("weights", "config", "files")  # the parts of a verification that run no model
GROWTH = 64 << 20  # bytes that a process may keep: caches of torch and of the allocator, not of what was done
WITH_STATE = ("llama", "qwen3", "gpt2")
SHARDS = (20_000, 50_000, 200_000, 5 * 10**9)


@dataclass
class Day:
    """The counts and folders of a day.

    Attributes:
        folder: in which everything happens.
        moments: what is random.
        done: how often each thing was done.
        models: by recipe.
    """

    folder: Path
    moments: random.Random
    done: Counter = field(default_factory=Counter)
    models: dict[str, Path] = field(default_factory=dict)


def cases():
    """Save one model for each recipe that has a model type; return them by the recipe's name."""
    import transformers

    found = {}
    for case, (_, config_class, settings) in MODELS.items():
        config = getattr(transformers, config_class)(**settings).to_dict()
        found.setdefault(recipe_for(config), case)
    return found


def model(day, recipe, case):
    if recipe not in day.models:
        path = day.models[recipe] = day.folder / "models" / recipe
        save_model(path, case)
        if recipe in WITH_STATE:
            state = {}
            for spec in open_checkpoint(path).specs:
                state[f"state.{spec.name}.step"] = torch.tensor(3.0)
                for key in ("exp_avg", "exp_avg_sq"):
                    state[f"state.{spec.name}.{key}"] = torch.rand(spec.shape)
            save_file(state, path / "optimizer.safetensors", metadata={"optimizer": "adamw"})
    return day.models[recipe]


def settings(day, source):
    """Choose factors, method, noise and shard size at random; return arguments of `widen` and of the command."""
    moments = day.moments
    while True:
        method = moments.choice(("mupscale", "mupscale", "mupscale", "net2net", "hyperclone", "warmstart"))
        mode = moments.choice((None, "free", "preserving"))
        is_noisy = mode is not None and not (method == "warmstart" and mode == "preserving")
        factor, axes = moments.choice((2, 2, 3, 4)), {}
        names = plan_widening(source, factor=2).recipe.widen
        if moments.random() < 0.3:
            factor, axes = None, {moments.choice(names): moments.choice((2, 3, 5))}
        elif moments.random() < 0.3:
            axes = {moments.choice(names): moments.choice((1, 2, 3))}
        chosen = {
            "factor": factor,
            "axes": axes,
            "method": method,
            "noise": 0.1 if is_noisy else None,
            "noise_mode": mode if is_noisy else None,
            "noise_scale": "spectral" if is_noisy else None,
            "max_shard_size": moments.choice(SHARDS),
        }
        try:
            plan = plan_widening(source, **chosen)
        except PlanError:  # axes that are linked, or that the method cannot make
            day.done["refused"] += 1
            continue
        if is_loadable(plan.config):
            return chosen
        day.done["refused by transformers"] += 1


def is_loadable(config):
    """Return whether transformers accepts a config: its Llama requires a hidden size divisible by the heads."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        try:
            transformers.AutoConfig.from_pretrained(folder)
        except StrictDataclassClassValidationError:
            return False
    return True


def options(chosen):
    words = [f"--factor={chosen['factor']}"] if chosen["factor"] else []
    words += [f"--axis={name}={factor}" for name, factor in chosen["axes"].items()]
    words += [f"--method={chosen['method']}", f"--max-shard-size={chosen['max_shard_size']}B"]
    for name in ("noise", "noise_mode", "noise_scale"):
        words += [f"--{name.replace('_', '-')}={chosen[name]}"] if chosen[name] else []
    return words


def contents(path):
    """Hash the files of an output without the figures of its verification."""
    found = {}
    for file in sorted(path.rglob("*")):
        data = file.read_bytes() if file.is_file() else b""
        if file.name == "mupscale.json":
            data = json.dumps({**json.loads(data), "verification": None, "source": None}).encode()
        found[file.name] = hashlib.sha256(data).hexdigest()
    return found


def partial(target):
    return [path for path in target.parent.iterdir() if path.name.startswith(f".{target.name}.partial-")]


def several(day):
    """Choose a random number of processes, or 1 if forking is not supported."""
    return day.moments.randint(1, 3) if sys.platform == "linux" else 1


def cycle(day, source):
    """Widen once, undisturbed or not, and check the output."""
    chosen, work = settings(day, source), day.folder / "work"
    target = work / "wide"
    with_verify = day.moments.random() < 0.3
    kind = day.moments.choices(("undisturbed", "interrupted", "killed"), (6, 3, 1))[0]
    day.done[kind] += 1
    if kind != "undisturbed":
        widen(source, work / "expected", **chosen, verify=False)
        {"interrupted": interrupt, "killed": kill}[kind](day, source, target, chosen, with_verify)
    if not target.exists():
        widened = widen(
            source, target, **chosen, verify=with_verify, resume=kind != "undisturbed", processes=several(day)
        )
        assert not with_verify or widened.verification is None or widened.verification.agrees, widened
        day.done["verified"] += with_verify
    if kind != "undisturbed":
        assert contents(target) == contents(work / "expected"), (source, chosen, kind)
        shutil.rmtree(work / "expected")
    assert verify(target, only=STORED, processes=several(day)).agrees, (source, chosen)
    if day.moments.random() < 0.1:
        assert verify(target).agrees, (source, chosen)
        day.done["verified again"] += 1
    assert [path.name for path in work.iterdir()] == ["wide"], (source, chosen, kind)
    assert not [path for path in target.iterdir() if path.name.startswith(".")]
    shutil.rmtree(target)


def interrupt(day, source, target, chosen, with_verify):
    """Interrupt this process after a random number of bytes or when verification starts."""
    total = plan_widening(source, **chosen).num_bytes
    limit, seen = day.moments.randrange(total), []

    def advance(count):
        seen.append(count)
        if sum(seen) > limit:
            raise KeyboardInterrupt

    def phase(name, _total):
        if name == "verifying":
            raise KeyboardInterrupt

    stop = Events(phase=phase) if with_verify else Events(advance=advance)
    with pytest.raises(KeyboardInterrupt):
        widen(source, target, **chosen, verify=with_verify, events=stop, processes=several(day))
    assert not target.exists()
    day.done["left to resume"] += bool(partial(target))


def kill(day, source, target, chosen, with_verify):
    """Kill a process at a random moment of copying or of verifying."""
    words = [str(source), "-o", str(target), *options(chosen), *([] if with_verify else ["--no-verify"])]
    words += ["--processes", str(several(day))]
    process = subprocess.Popen(
        [sys.executable, "-m", "mupscale_cli", "widen", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    for line in process.stderr:
        if line.startswith("verifying" if with_verify else "widening"):
            break
    time.sleep(day.moments.random() * (12 if with_verify else 0.1))
    process.kill()
    _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors
    day.done["killed while verifying"] += with_verify and process.returncode != 0
    day.done["killed while writing"] += not with_verify and process.returncode != 0
    day.done["left to resume"] += bool(partial(target))
    assert target.exists() == (process.returncode == 0) or not partial(target)


def file_cycle(day, source):
    """Widen a single file without a config and check the output."""
    target = day.folder / "work" / "net.safetensors"
    widen(source, target, day.moments.choice((2, 3, 4)), recipe="mlp", noise=0.1, verify=False)
    assert verify(target, only=STORED).agrees
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    target.unlink()
    day.done["files"] += 1


def return_freed_memory():
    """Make the GNU C library return freed blocks of more than a megabyte to the system at once (mallopt(3))."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD


def held(temporary):
    """Count descriptors, threads and temporary files of this process; return them and its memory in bytes."""
    gc.collect()
    return_freed_memory()
    descriptors = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    files = sorted(name for name in descriptors if name.startswith("/") and "/dev/" not in name and "/fd" not in name)
    threads = [thread.name for thread in threading.enumerate()]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    left = sorted(path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor"))  # torch's own
    return (files, threads, left), pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts what Linux tells of a process")
def test_a_day_of_use_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    day = Day(tmp_path, random.Random(SEED))
    recipes, network = cases(), save_mlp(tmp_path / "narrow.safetensors")
    turns, end = list(recipes), time.monotonic() + SECONDS
    day.moments.shuffle(turns)
    before, baseline, peak = None, 0, 0
    while turns or time.monotonic() < end:
        if not turns and before is None:
            before, baseline = held(temporary)
            day.done["first round"] = day.done.total()
        recipe = turns.pop() if turns else day.moments.choice(list(recipes))
        source = model(day, recipe, recipes[recipe])
        cycle(day, source)
        if day.moments.random() < 0.1:
            file_cycle(day, network)
        day.done["cycles"] += 1
        if before is not None:
            now, memory = held(temporary)
            peak = max(peak, memory)
            assert now == before, (recipe, day.done)
    grown = max(0, peak - baseline)
    with capsys.disabled():
        print(  # noqa: T201 (what a run is for)
            f"\n{dict(day.done)}, {len(recipes)} recipes, memory {baseline >> 20} MB + {grown >> 20} MB"
        )
    assert before is None or grown < GROWTH
    assert held(temporary)[0][2] == []
