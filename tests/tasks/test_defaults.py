"""Results do not depend on the data type and device that a process creates its own tensors with."""

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cli_runner import run
from mupscale_cli.infer.infer import infer
from mupscale_cli.optimizers.torch_groups import clip_grad_norm_, param_groups
from mupscale_cli.optimizers.trainers.scaling import scale_optimizer
from mupscale_cli.sweep.coordinates import check_coordinates
from mupscale_cli.sweep.grid import make_grid
from mupscale_cli.sweep.run import sweep
from mupscale_cli.sweep.settings import Proxy, Sweep, Training
from mupscale_cli.tasks.growing.grow import grow
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen
from training import save_training

# Noise of both modes, sized by a measured norm; fresh units with initial weights; optimizer state.
RUNS = {
    "free": {"factor": 2, "noise": 0.1},
    "preserving": {"factor": 3, "noise": 0.1, "noise_mode": "preserving", "noise_scale": "rms"},
    "fresh": {"factor": 1.5, "fresh": "init"},
}


@contextmanager
def defaults(dtype, device):
    """Give the process other defaults for a block, as a training script does."""
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def files(folder):
    """Return the bytes of every written file but the record, which holds times."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "mupscale.json"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_training(tmp_path_factory.mktemp("defaults") / "narrow", "Llama-tied", "adamw")


@pytest.fixture(scope="module")
def usual(source, tmp_path_factory):
    """The files that each run writes with torch's own defaults."""
    folder = tmp_path_factory.mktemp("usual")
    return {name: files(widen(source, folder / name, verify=False, **run).output) for name, run in RUNS.items()}


ALL = [(t, d) for t in (torch.float32, torch.float64, torch.bfloat16, torch.float16) for d in ("cpu", "meta")]
FAST = [(torch.float64, "meta"), (torch.bfloat16, "cpu")]


@pytest.mark.parametrize(
    ("dtype", "device"), [*FAST, *(pytest.param(*each, marks=pytest.mark.slow) for each in ALL if each not in FAST)]
)
def test_the_defaults_of_the_process_change_nothing(dtype, device, source, usual, tmp_path):
    with defaults(dtype, device):
        for name, run in RUNS.items():
            assert files(widen(source, tmp_path / name, verify=False, **run).output) == usual[name], name
        result = verify(tmp_path / "free", dtype="float64", steps=2)
        assert (torch.get_default_dtype(), torch.get_default_device().type) == (dtype, device)
    assert result.agrees
    assert result.training.agrees


@dataclass(frozen=True)
class Made:
    """What a process made before it chose other defaults.

    Attributes:
        source: a narrow checkpoint with AdamW's state.
        wide: the checkpoint, widened.
        narrow: the narrow model; `optimizer` has taken a step on it.
        optimizer: its AdamW.
        model: the wide model.
        tokens: training data.
        folder: an empty folder.
    """

    source: Path
    wide: Path
    narrow: Any
    optimizer: Any
    model: Any
    tokens: Path
    folder: Path


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    import transformers

    folder = tmp_path_factory.mktemp("made")
    wide = widen(source, folder / "wide", 2, verify=False).output
    narrow, model = (transformers.AutoModelForCausalLM.from_pretrained(each) for each in (source, wide))
    optimizer = torch.optim.AdamW(narrow.parameters(), lr=1e-3)
    tokens = torch.tensor([[1, 2, 3]])
    narrow(tokens, labels=tokens).loss.backward()
    optimizer.step()
    np.save(folder / "tokens.npy", np.arange(400, dtype=np.uint16) % 7)
    return Made(source, wide, narrow, optimizer, model, folder / "tokens.npy", folder)


def groups_of(optimizer):
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def grown(made, _tmp_path):
    scheduler = torch.optim.lr_scheduler.LambdaLR(made.optimizer, lambda step: 1 / (1 + step))
    grown = grow(made.narrow, made.optimizer, scheduler=scheduler, factor=2, noise=0.1)
    tensors = {**grown.model.state_dict(), **dict(grown.model.named_buffers())}
    state = {f"{i}.{key}": x for i, entries in enumerate(grown.optimizer.state.values()) for key, x in entries.items()}
    return {**tensors, **state, "groups": groups_of(grown.optimizer)}


def scaled(made, _tmp_path):
    optimizer = torch.optim.AdamW(made.model.parameters(), lr=1e-3)
    scale_optimizer(optimizer, made.model, made.wide)
    return {"groups": groups_of(optimizer)}


def hyperparameters(made, _tmp_path):
    return {"document": json.loads(run("hparams", str(made.wide), "--lr", "1e-3", "--json").out)}


def small_sweep(made, tmp_path, factors, *, proxy=None):
    training = Training(2, batch_size=2, length=8, clip=0, device="cpu")
    grid = make_grid(factors, [1e-3], [0.1], 1)
    return Sweep("narrow", made.source, tmp_path / "sweep", grid, 4, training=training, data=made.tokens, proxy=proxy)


def swept(made, tmp_path):
    document = sweep(small_sweep(made, tmp_path, [2], proxy=Proxy(2, 2)), picture=False).document
    return {"losses": [trial["loss"] for trial in document["trials"]]}


def coordinates(made, tmp_path):
    return {"layers": repr(check_coordinates(small_sweep(made, tmp_path, [2, 3, 4])).layers)}


def drafted(_made, _tmp_path):
    return {"recipe": infer("llama").text}


CALLS = (grown, scaled, hyperparameters, swept, coordinates, drafted)
FAST_CALLS = [(grown, each) for each in FAST] + [(call, FAST[0]) for call in (scaled, hyperparameters, swept)]


@pytest.mark.parametrize(
    ("call", "chosen"),
    [
        pytest.param(call, each, marks=[] if (call, each) in FAST_CALLS else pytest.mark.slow)
        for call in CALLS
        for each in ALL[1:]
    ],
)
def test_the_defaults_of_the_process_change_no_call(call, chosen, made, tmp_path):
    expected = call(made, tmp_path / "usual")
    with defaults(*chosen):
        result = call(made, tmp_path / "other")
        assert (torch.get_default_dtype(), torch.get_default_device().type) == chosen
    assert result.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(result[key], value, rtol=0, atol=0)
        else:
            assert result[key] == value


def test_parameter_groups_with_other_defaults(source, tmp_path):
    import transformers

    widen(source, tmp_path / "wide", 2, verify=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "wide")
    expected = param_groups(model, tmp_path / "wide", lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    norm = clip_grad_norm_(expected, float("inf"))
    with defaults(torch.float16, "meta"):
        groups = param_groups(model, tmp_path / "wide", lr=1e-3)
        assert torch.equal(clip_grad_norm_(groups, float("inf")), norm)
    assert [group["lr"] for group in groups] == [group["lr"] for group in expected]
