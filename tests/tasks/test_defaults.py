"""Results do not depend on the data type and device that a process creates its own tensors with."""

from contextlib import contextmanager

import pytest
import torch

from mupscale_cli.optimizers.torch_groups import clip_grad_norm_, param_groups
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
