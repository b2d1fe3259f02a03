"""Finding the format of optimizer state; a new format takes a class and an entry."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mupscale_cli
from helpers import mlp_tensors
from mupscale_cli.checkpoints.digests import files_digest, segments_digest
from mupscale_cli.checkpoints.header import StoredTensor
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.engine.streaming import write_tensors
from mupscale_cli.errors import CheckpointError
from mupscale_cli.optimizers import finding
from mupscale_cli.optimizers.formats.base import OpenOptions, StateFile, StateFormat, WideState
from mupscale_cli.optimizers.rules.table import OPTIMIZERS
from mupscale_cli.optimizers.state_plan import StateEntry, plan_state
from mupscale_cli.optimizers.tree import OptimizerTree
from training import trained


class Raw(StateFormat):
    """A folder with `shapes.json` and one file with the bytes of each float32 tensor."""

    markers = ("moments/shapes.json",)

    def files(self, name):
        return (f"{name}/*",)

    def recognizes(self, path):
        return (path / "shapes.json").is_file()

    def open(self, options):
        folder = options.path
        shapes = json.loads((folder / "shapes.json").read_text())
        specs = [TensorSpec(name, "F32", tuple(shape)) for name, shape in shapes.items()]
        return RawState(folder, {spec.name: StoredTensor(spec, folder / spec.name, 0) for spec in specs})


@dataclass(frozen=True)
class RawState:
    """A state of the format `Raw`."""

    path: Path
    stored: Mapping[str, StoredTensor]
    content: None = None

    @property
    def files(self):
        return tuple(tensor.file for tensor in self.stored.values())

    def load(self):
        states = {}
        for name, tensor in self.stored.items():
            parameter, _, key = name.rpartition(".")
            data = torch.frombuffer(bytearray(tensor.file.read_bytes()), dtype=torch.float32)
            states.setdefault(parameter, {})[key] = data.reshape(tensor.spec.shape)
        return OptimizerTree("flat", states, (), {})

    def widen(self, plan, policy):
        entries = [StateEntry(*name.rsplit(".", 1), tensor.spec) for name, tensor in self.stored.items()]
        rules = {entry.parameter: OPTIMIZERS["adamw"] for entry in entries}
        tensors = tuple(state.tensor for state in plan_state(plan, entries, rules, policy))

        def write(options):
            folder = options.directory / options.name
            folder.mkdir()
            for tensor in tensors:
                (folder / tensor.target.name).write_bytes(bytes(tensor.target.num_bytes))
            (folder / "shapes.json").write_text(json.dumps({t.target.name: t.target.shape for t in tensors}))
            write_tensors(tensors, self.stored, RawWriter(folder), progress=options.progress)
            written = Raw().open(OpenOptions(folder, None))
            return StateFile(options.name, {}, files_digest(written.files, segments_digest))

        return WideState(tensors, self.stored, write, {"format": "raw", "kinds": ["adamw"]})


@dataclass(frozen=True)
class RawWriter:
    """Writes tensors into the files of a folder."""

    folder: Path

    def write(self, name, start, pieces):
        with open(self.folder / name, "r+b") as stream:
            stream.seek(start)
            stream.writelines(pieces)


@pytest.fixture
def saved_with_moments(tmp_path):
    """A narrow model, and its moments in the format `Raw` and in safetensors."""
    model, optimizer = trained("Llama-tied", "adamw", dtype=torch.float32)
    states = {name: optimizer.state[parameter] for name, parameter in model.named_parameters()}
    moments = {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}
    for kind in ("raw", "safetensors"):
        model.save_pretrained(tmp_path / kind)
    save_file(moments, tmp_path / "safetensors" / "optimizer.safetensors", metadata={"optimizer": "adamw"})
    (tmp_path / "raw" / "moments").mkdir()
    for name, value in moments.items():
        (tmp_path / "raw" / "moments" / name).write_bytes(value.numpy().tobytes())
    shapes = {name: tuple(value.shape) for name, value in moments.items()}
    (tmp_path / "raw" / "moments" / "shapes.json").write_text(json.dumps(shapes))
    return tmp_path


def test_a_format_is_one_class_and_one_entry(saved_with_moments, monkeypatch):
    folder = saved_with_moments
    assert mupscale_cli.widen(folder / "raw", folder / "without", 2, verify=False).record["optimizer_state"] is None
    monkeypatch.setattr(finding, "FORMATS", (Raw(), *finding.FORMATS))
    for kind in ("raw", "safetensors"):
        widened = mupscale_cli.widen(folder / kind, folder / f"wide-{kind}", 2, verify=False)
        assert widened.record["optimizer_state"]["format"] == kind
        comparison = mupscale_cli.verify(folder / f"wide-{kind}", only=["files"])
        assert comparison.agrees
        assert comparison.files.state.num_tensors > 0
    wide = folder / "wide-raw" / "moments"
    raw = finding.open_optimizer(wide, None).load().states
    expected = finding.open_optimizer(folder / "wide-safetensors" / "optimizer.safetensors", None).load().states
    assert raw.keys() == expected.keys()
    for name, state in expected.items():
        assert all(torch.equal(raw[name][key], value) for key, value in state.items())
    names = [file.relative_to(wide.parent).as_posix() for file in wide.rglob("*")]
    assert set(finding.state_names(names)) == set(names)


def test_the_most_specific_marker_wins(tmp_path):
    names = ["optim.pt", "optimizer/.metadata", "optimizer/__0_0.distcp", "optimizer.safetensors"]
    assert finding.state_name(names) == "optimizer.safetensors"
    assert finding.state_name(names[:3]) == "optim.pt"
    assert finding.state_name(names[1:3]) == "optimizer"
    assert finding.state_names(names[1:3]) == ("optimizer/.metadata", "optimizer/__0_0.distcp")
    assert finding.state_name(["optimizer/x"]) is None
    with pytest.raises(CheckpointError, match="no optimizer state at"):
        finding.open_optimizer(tmp_path / "absent.pt", None)
    with pytest.raises(CheckpointError, match=r"it has no `\.metadata`"):
        finding.open_optimizer(tmp_path, None)


def test_the_state_of_a_single_file_begins_with_its_name(tmp_path):
    save_file(mlp_tensors(), tmp_path / "net.safetensors")
    checkpoint = open_checkpoint(tmp_path / "net.safetensors")
    for folder in ("optimizer", "net.optim", "net.optimizer_0"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / ".metadata").write_bytes(b"")
    assert finding.find_optimizer(checkpoint) == tmp_path / "net.optim"
    for name in ("net.optimizer.pt", "optimizer.safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert finding.find_optimizer(checkpoint) == tmp_path / "net.optimizer.pt"
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "net.safetensors").read_bytes())
    assert finding.find_optimizer(open_checkpoint(tmp_path)) == tmp_path / "optimizer.safetensors"


def test_the_state_of_another_trainers_model_is_refused(tmp_path):
    path = (
        tmp_path / "recipe_state.pt"
    )  # torchtune numbers gate, down and up in this order, transformers gate, up, down
    state = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2, 2)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    torch.save({"optimizer": state, "seed": 1, "epochs_run": 1, "total_epochs": 2, "max_steps_per_epoch": None}, path)
    with pytest.raises(CheckpointError, match="numbers the parameters of torchtune's own model"):
        finding.open_optimizer(path, {"model_type": "llama"})
