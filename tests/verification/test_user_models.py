"""Building a model with the user's own function."""

import sys

import pytest
import torch
from torch import nn

from helpers import MLP_MODULE, mlp_tensors, save_mlp
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.errors import VerifyError
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification.user_models import build_user_model, load_user_module


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("net.py", "does not name a function"),
        ("{folder}/net.py:", "does not name a function"),
        (":build", "does not name a function"),
        ("{folder}/net.py:make", "no function `make`"),
        ("{folder}/net.py:nn", "no function `nn`"),
        ("{folder}/absent.py:build", "absent.py"),
        ("{folder}/broken.py:build", "broken.py"),
        ("{folder}/needy.py:build", "no_such_package"),
        ("no_such_package.module:build", "no_such_package"),
        ("./net:build", "net"),
    ],
)
def test_an_invalid_model_option_is_an_error(reference, says, tmp_path):
    (tmp_path / "net.py").write_text(MLP_MODULE)
    (tmp_path / "broken.py").write_text("def build(:\n")
    (tmp_path / "needy.py").write_text("import no_such_package\n")
    with pytest.raises(VerifyError, match=says):
        load_user_module(reference.format(folder=tmp_path))


def test_a_model_option_can_name_an_installed_module(monkeypatch, tmp_path):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "net.py").write_text(MLP_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    module, build = load_user_module("my_package.net:build")
    assert build is module.build


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return {}", "dict"),
        ("return None", "NoneType"),
        ("return nn.Linear(5, 8)", "does not match"),
        ("model = build0(config); model[0] = nn.Linear(5, 9); return model", "does not match"),
        ("model = build0(config); model.extra = nn.Linear(2, 2); return model", "extra"),
        ("return build0(config)[:3]", "4"),
    ],
)
def test_a_model_that_does_not_match_the_checkpoint_is_an_error(body, says, mlp, tmp_path):
    (tmp_path / "own.py").write_text(f"{MLP_MODULE.replace('build', 'build0')}\ndef build(config):\n    {body}\n")
    with pytest.raises(VerifyError, match=says):
        widen(mlp[0], tmp_path / "wide.safetensors", 2, model=f"{tmp_path / 'own.py'}:build")
    assert not (tmp_path / "wide.safetensors").exists()


def test_a_model_that_fails_to_run_is_an_error(mlp, tmp_path):
    (tmp_path / "own.py").write_text(
        f"{MLP_MODULE}\nimport torch\ndef inputs(config, generator):\n    return torch.ones(2, 7)\n"
    )
    with pytest.raises(VerifyError, match="failed to run"):
        widen(mlp[0], tmp_path / "wide.safetensors", 2, model=f"{tmp_path / 'own.py'}:build")
    assert torch.get_default_dtype() == torch.float32


def test_a_build_function_gets_the_config(tmp_path):
    source = save_mlp(tmp_path / "mlp.safetensors")
    (tmp_path / "config.json").write_text('{"activation": "tanh"}')
    seen = []

    def build(config):
        seen.append(config)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))

    model = build_user_model(build, open_checkpoint(source), torch.float64)
    assert seen == [{"activation": "tanh"}]
    assert not model.training
    assert torch.equal(model[2].weight, mlp_tensors()["2.weight"].double())


def test_the_checkpoint_can_lack_buffers(tmp_path):
    def build(_config):
        model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        model.register_buffer("mask", torch.ones(3))
        return model

    model = build_user_model(build, open_checkpoint(save_mlp(tmp_path / "mlp.safetensors")), torch.float64)
    assert torch.equal(model.mask, torch.ones(3))
    assert torch.equal(model[4].weight, mlp_tensors()["4.weight"].double())


def test_a_module_of_a_file_imports_its_neighbors(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "its_neighbor.py").write_text("WIDTH = 7")
    (tmp_path / "net.py").write_text(
        "from its_neighbor import WIDTH\n\n\ndef build(_config):\n    import its_neighbor\n\n"
        "    return WIDTH + its_neighbor.WIDTH\n"
    )
    _, build = load_user_module(f"{tmp_path / 'net.py'}:build")
    assert build({}) == 14
    del sys.modules["its_neighbor"]


def test_a_package_of_the_working_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "in_folder").mkdir()
    (tmp_path / "in_folder/__init__.py").touch()
    (tmp_path / "in_folder/net.py").write_text("def build(config):\n    return config\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_user_module("in_folder.net:build")[1](3) == 3
