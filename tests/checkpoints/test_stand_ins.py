"""Pickles that name harmless classes of trainers are read and written back without those classes."""

import argparse
import datetime as dt
import enum
import pathlib
import sys
from types import ModuleType

import pytest
import torch

from mupscale_cli.checkpoints.containers.blank import save_blank
from mupscale_cli.checkpoints.containers.torch_file import read_torch_file
from mupscale_cli.errors import CheckpointError

SCALER = "deepspeed.runtime.fp16.loss_scaler"
CONFIG = "deepspeed.runtime.zero.config"


@pytest.fixture
def classes(monkeypatch):
    """Modules with the classes that DeepSpeed pickles; the first one counts what is done with it."""

    class LossScaler:
        made = 0

        def __new__(cls):
            LossScaler.made += 1
            return super().__new__(cls)

    class ZeroStageEnum(int, enum.Enum):
        weights = 3

    for module, each in ((SCALER, LossScaler), (CONFIG, ZeroStageEnum)):
        each.__module__, each.__qualname__ = module, each.__name__
        stored = ModuleType(module)
        setattr(stored, each.__name__, each)
        parents = module.split(".")
        for count in range(1, len(parents)):
            monkeypatch.setitem(sys.modules, ".".join(parents[:count]), ModuleType(parents[count - 1]))
        monkeypatch.setitem(sys.modules, module, stored)
    return LossScaler, ZeroStageEnum


def test_objects_are_mappings_and_are_written_back_as_objects(classes, tmp_path):
    scaler_class, stage = classes
    scaler = scaler_class()
    scaler.cur_scale = 128.0
    content = {
        "scaler": scaler,
        "stage": stage.weights,
        "args": argparse.Namespace(hidden_size=32, path=pathlib.PurePosixPath("x"), moments=torch.ones(2)),
        "time": dt.timedelta(seconds=3),
        "random": torch.zeros(3).numpy(),
    }
    content["args"].path = pathlib.PosixPath("a/b")
    torch.save(content, tmp_path / "a.pt")
    made = scaler_class.made
    read = read_torch_file(tmp_path / "a.pt")
    assert read.content["args"]["hidden_size"] == 32
    assert dict(read.content["scaler"]) == {"cur_scale": 128.0}
    assert ("args", "moments") in read.tensors

    save_blank(tmp_path / "b.pt", read.content)
    assert scaler_class.made == made
    again = read_torch_file(tmp_path / "b.pt")
    assert again.content["stage"] == read.content["stage"]
    by_name = f"getattr(<class '{CONFIG}.ZeroStageEnum'>, 'weights')"  # as Python 3.11.0 to 3.11.3 store a member
    assert repr(again.content["stage"]) in ("ZeroStageEnum(3)", by_name)
    loaded = torch.load(tmp_path / "b.pt", weights_only=False)
    assert type(loaded["scaler"]) is scaler_class
    assert loaded["scaler"].cur_scale == 128.0
    assert loaded["stage"] is stage.weights
    assert loaded["args"].hidden_size == 32
    assert loaded["args"].path == pathlib.PosixPath("a/b")
    assert loaded["time"] == content["time"]
    assert (loaded["random"] == content["random"]).all()


def test_classes_that_the_process_declared_safe_do_not_run(classes, tmp_path):
    scaler_class, _ = classes
    torch.save({"scaler": scaler_class()}, tmp_path / "a.pt")
    made = scaler_class.made
    declared = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals([scaler_class]):
        assert dict(read_torch_file(tmp_path / "a.pt").content["scaler"]) == {}
        assert scaler_class in torch.serialization.get_safe_globals()
    assert scaler_class.made == made
    assert set(torch.serialization.get_safe_globals()) == declared


def test_other_names_are_refused(tmp_path):
    torch.save({"x": pytest.approx}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="approx"):
        read_torch_file(tmp_path / "a.pt")


class Joined:
    """Pickled as a method of a string."""

    def __reduce__(self):
        return getattr, ("", "join")


def test_members_that_python_3_11_pickles_by_name_are_read(classes, monkeypatch, tmp_path):
    """From 3.11.0 to 3.11.3, which Debian 12 has, an enumeration's member is `getattr(CLASS, NAME)`."""
    _, stage = classes
    monkeypatch.setattr(stage, "__reduce_ex__", lambda member, _: (getattr, (type(member), member.name)))
    torch.save({"stage": stage.weights}, tmp_path / "a.pt")
    save_blank(tmp_path / "b.pt", read_torch_file(tmp_path / "a.pt").content)
    assert torch.load(tmp_path / "b.pt", weights_only=False)["stage"] is stage.weights
    torch.save({"x": Joined()}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=r"it contains code: `builtins\.getattr`") as refusal:
        read_torch_file(tmp_path / "c.pt")
    assert "`config.to_dict()`" in refusal.value.text
