"""Several processes that widen one checkpoint write the bytes of a single one, or nothing if one of them dies."""

import copy
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import forked
import mupscale_cli
from mupscale_cli.checkpoints.digests import segments_digest
from mupscale_cli.engine import filling
from mupscale_cli.engine.ranks import ALONE, Ranks, join_ranks
from mupscale_cli.engine.shards import byte_share, write_shards
from mupscale_cli.errors import PlanError
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.source import find_source
from mupscale_cli.tasks.widen import widen
from training import save_state

SHARD = 30_000


@dataclass(frozen=True, slots=True)
class Threads(Ranks):
    """Ranks that are threads instead of processes; `shared` is their common state."""

    shared: Any = field(default=None, repr=False)

    def broadcast(self, value):
        if self.is_first:
            self.shared["value"] = value
        self.shared["barrier"].wait()
        found = value if self.is_first else copy.deepcopy(self.shared["value"])  # processes have nothing in common
        self.shared["barrier"].wait()
        return found

    def gather(self, value):
        self.shared["all"][self.rank] = value
        self.shared["barrier"].wait()
        found = list(self.shared["all"]) if self.is_first else []
        self.shared["barrier"].wait()
        return found


def together(size, work):
    """Run `work(ranks)` in several threads and return their results."""
    shared = {"barrier": threading.Barrier(size, timeout=60), "all": [None] * size}
    results, errors = [None] * size, []

    def run(rank):
        try:
            results[rank] = work(Threads(rank, size, shared))
        except BaseException as error:  # noqa: BLE001 (raised where the threads are awaited)
            errors.append(error)
            shared["barrier"].abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("size", [2, 7])
@pytest.mark.parametrize("case", ["plain", "noise", "single file", "random map", "experts"])
def test_any_number_of_processes_writes_the_same_bytes(case, size, saved, tmp_path):
    """Small blocks make sure that tensors at the borders of shares are cut."""
    source = find_source(saved("Mixtral-untied" if case == "experts" else "Llama-tied"))
    options = {
        "noise": {"noise": 0.1, "noise_mode": "preserving"},
        "random map": {"method": "net2net", "seed": 3},
        "single file": {"max_shard_size": 10**9},
    }
    plan = plan_widening(source, factor=3, **{"max_shard_size": SHARD, **options.get(case, {})})
    tensors = source.checkpoint.tensors

    def write(ranks, folder):
        return write_shards(plan.shards, tensors, folder, metadata={"format": "pt"}, block_bytes=6000, ranks=ranks)

    alone, folder = tmp_path / "alone", tmp_path / "together"
    alone.mkdir(), folder.mkdir()
    expected = write(ALONE, alone)
    found, *rest = together(size, lambda ranks: write(ranks, folder))
    assert rest == [None] * (size - 1)
    assert found == expected
    assert contents(folder) == contents(alone)
    assert found.digests == {file.name: segments_digest(file) for file in folder.iterdir()}


def test_every_process_gets_the_result(saved, tmp_path):
    source = saved("Llama-tied")
    expected = widen(source, tmp_path / "alone", 2, max_shard_size=SHARD)
    results = together(3, lambda ranks: widen(source, tmp_path / "wide", 2, max_shard_size=SHARD, ranks=ranks))
    assert contents(tmp_path / "wide") == contents(tmp_path / "alone")
    assert [result.record for result in results] == [expected.record] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "wide"]


def every_content(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("kind", ["safetensors", "torch", "distributed"])
def test_processes_share_the_optimizer_state(kind, tmp_path, monkeypatch):
    """Small blocks make sure that most tensors are cut, and each process has a part of most checksums."""
    monkeypatch.setattr(filling, "write_tensors", partial(filling.write_tensors, block_bytes=6000))
    source = save_state(tmp_path / "narrow", kind)
    widened = {
        size: together(
            size,
            lambda ranks, size=size: widen(
                source, tmp_path / f"wide-{size}", 3, verify=False, ranks=ranks, max_shard_size=SHARD
            ),
        )[0]
        for size in (1, 2, 5)
    }
    alone = every_content(tmp_path / "wide-1")
    assert every_content(tmp_path / "wide-2") == alone
    assert every_content(tmp_path / "wide-5") == alone
    assert widened[5].record == widened[1].record
    made_by_torch = [tmp_path / "wide-5" / name for name in alone if name.endswith((".pt", ".distcp"))]
    archived = [file for file in made_by_torch if zipfile.is_zipfile(file)]  # plain values are pickles
    assert bool(archived) == (kind != "safetensors")
    assert all(zipfile.ZipFile(file).testzip() is None for file in archived)


def test_nonfinite_values_are_counted_once(saved, tmp_path):
    source = shutil.copytree(saved("Mixtral-untied"), tmp_path / "narrow")
    tensors = load_file(source / "model.safetensors")
    for name, value in tensors.items():
        if name.endswith(("lm_head.weight", "experts.1.w2.weight")):
            value.view(-1)[[0, -1]] = float("nan")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    counts = [
        together(
            size,
            lambda ranks, size=size: widen(
                source,
                tmp_path / f"wide-{size}",
                2,
                {"experts": 2},
                verify=False,
                allow_nonfinite=True,
                ranks=ranks,
                max_shard_size=SHARD,
            ),
        )[0].record["nonfinite"]
        for size in (1, 4)
    ]
    assert counts[0] == counts[1]
    assert set(counts[0].values()) == {2}
    assert len(counts[0]) == 3


def test_shares_are_even_and_complete():
    for total in (0, 1, 10, 1001):
        for size in (1, 3, 16):
            shares = [Ranks(rank, size).share(total) for rank in range(size)]
            assert [begin for begin, _ in shares] == [0, *(end for _, end in shares[:-1])]
            assert shares[-1][1] == total
            assert max(end - begin for begin, end in shares) - min(end - begin for begin, end in shares) <= 1


def test_byte_shares_take_the_same_time(saved):
    """Noise takes longer than copying, so a process whose tensors have noise gets fewer bytes."""
    source = find_source(saved("Llama-tied"))
    plan = plan_widening(source, factor=2, noise=0.1)
    tensors = plan.tensors
    noisy = [tensor for tensor in tensors if tensor.noise is not None]
    assert 0 < len(noisy) < len(tensors)
    cuts = [byte_share(tensors, Ranks(rank, 5)) for rank in range(5)]
    assert [begin for begin, _ in cuts] == [0, *(end for _, end in cuts[:-1])]
    assert cuts[-1][1] == plan.num_bytes
    assert byte_share((), Ranks(1, 2)) == (0, 0)
    pure = [tensor for tensor in tensors if tensor.noise is None]
    first, second = (byte_share([*pure, *noisy], Ranks(rank, 2)) for rank in range(2))
    assert sum(tensor.target.num_bytes for tensor in pure) < first[1] == second[0]


def test_variables_of_other_launchers_are_ignored():
    """Clusters set these variables in shells that run a single command."""
    with join_ranks({"RANK": "0", "WORLD_SIZE": "8", "MASTER_ADDR": "host", "MASTER_PORT": "1"}) as ranks:
        assert ranks == ALONE


# With torchrun --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="gloo on the CPU is built for Linux")
def test_only_one_process_prints_the_plan(saved, tmp_path):
    options = ["-o", str(tmp_path / "wide"), "--factor", "2"]
    found = torchrun("-m", "mupscale_cli", "widen", str(saved("Llama-tied")), *options, "--dry-run", "--json")
    assert json.loads(found.stdout)["schema"]  # one document


# One of two processes, with the variables that torchrun sets; the second is killed in the middle of its work.
DYING = """
import os, signal
import mupscale_cli.engine.streaming as streaming
os.environ |= {variables}
write, blocks = streaming._expand, []
def dying(*arguments):
    blocks.append(1)
    if os.environ["RANK"] == "1" and len(blocks) == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(*arguments)
streaming._expand = dying
"""


def torchrun(*arguments, processes=2):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        *arguments,
    ]
    path = str(Path(mupscale_cli.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.skipif(sys.platform != "linux", reason="gloo on the CPU is built for Linux")
def test_torchrun(saved, tmp_path):
    source = str(saved("Llama-tied"))
    options = ["--factor", "2", "--max-shard-size", f"{SHARD}B", "--noise", "0.1"]
    found = torchrun("-m", "mupscale_cli", "widen", source, "-o", str(tmp_path / "wide"), *options, "--json")
    assert found.returncode == 0, found.stderr
    document = json.loads(found.stdout)  # of one process, not of each
    assert document["verification"]["agrees"]
    widen(source, tmp_path / "alone", 2, max_shard_size=SHARD, noise=0.1, verify=True)
    assert contents(tmp_path / "wide") == contents(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="gloo on the CPU is built for Linux")
def test_an_error_in_all_processes_is_reported_once(saved, tmp_path):
    options = ["widen", str(saved("Llama-tied")), "-o", str(tmp_path / "wide"), "--axis", "fnn=2"]
    found = torchrun("-m", "mupscale_cli", *options, processes=3)
    assert found.returncode != 0
    assert found.stderr.count("error in process 0 of 3: `llama` has no axis `fnn`") == 1
    assert found.stderr.count("did you mean") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_some_processes_ends_all_and_is_reported_once():
    def plan(rank):
        if rank in (1, 3):
            raise PlanError(f"{rank} cannot")

    def work(ranks):
        try:
            with ranks.fail_together():
                plan(ranks.rank)
        except (PlanError, SystemExit) as error:
            return str(error)

    assert together(4, work) == ["2", "1 cannot", "2", "2"]
    with pytest.raises(PlanError), ALONE.fail_together():
        plan(1)
    with ALONE.fail_together():
        plan(0)


@pytest.mark.skipif(sys.platform != "linux", reason="gloo on the CPU is built for Linux")
def test_a_dead_process_fails_the_job_and_the_run_can_be_resumed(saved, tmp_path):
    source, target = saved("Llama-tied"), tmp_path / "wide"
    words = ["widen", str(source), "-o", str(target), "--factor", "2", "--max-shard-size", f"{SHARD}B", "--no-verify"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"TORCHELASTIC_RUN_ID": "one", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    first, second = (forked.start(*words, code=DYING.format(variables={**job, "RANK": str(rank)})) for rank in (0, 1))
    _, errors = first.communicate()
    second.communicate()
    assert first.returncode == 2, errors
    assert second.returncode == -signal.SIGKILL
    assert not target.exists()
    assert "another process of this job has ended" in errors
    assert "Traceback" not in errors
    (kept,) = tmp_path.glob(".wide.partial-*")
    assert {file.name for file in kept.glob(".mupscale-journal*")} >= {".mupscale-journal.json"}
    widened = widen(source, target, 2, max_shard_size=SHARD, verify=False, resume=True)
    assert widened.output == target
    widen(source, tmp_path / "alone", 2, max_shard_size=SHARD, verify=False)
    assert contents(target) == contents(tmp_path / "alone")
    assert not list(tmp_path.glob(".wide*"))
