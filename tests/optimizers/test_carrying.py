"""Carrying optimizer state along when weights are widened."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli_runner import run
from helpers import mlp_tensors
from mupscale_cli.errors import PlanError
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen
from training import save_training, trained

Q, NORM, EMBED = "model.layers.1.self_attn.q_proj.weight", "model.norm.weight", "model.embed_tokens.weight"


# exp_avg is multiplied by 1 / (m c), its square by the square of that. Factors: embed 2, kv 3, g 1, ffn 5.
AXES = {"embed": 2, "kv": 3, "ffn": 5}


def test_weights_saved_with_the_state_may_have_the_form_of_the_model(tmp_path):
    """The model stacks the experts and names the router differently."""
    model, optimizer = trained("Mixtral-untied", "adamw", dtype=torch.float32)
    model.save_pretrained(tmp_path / "narrow")
    content = {"step": 4, "model": model.state_dict(), "training": {"optimizer": optimizer.state_dict()}}
    torch.save(content, tmp_path / "all.pt")
    state = {"optimizer": str(tmp_path / "all.pt"), "key": "training.optimizer"}
    widen(tmp_path / "narrow", tmp_path / "wide", 2, {"experts": 2}, verify=False, **state)
    import transformers

    wide = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "wide").state_dict()
    stored = torch.load(tmp_path / "wide" / "all.pt", weights_only=True)
    assert stored["model"].keys() == wide.keys()
    assert all(torch.equal(tensor, wide[name]) for name, tensor in stored["model"].items())
    assert verify(tmp_path / "wide", only=["weights", "files"], optimizer=tmp_path / "all.pt").agrees
    with pytest.raises(PlanError, match="for which the noise would differ"):
        widen(tmp_path / "narrow", tmp_path / "noisy", 2, verify=False, **state, noise=0.1)


def test_state_is_omitted_on_request(tmp_path):
    source = save_training(tmp_path / "narrow", "Llama-tied", "adamw", dtype=torch.float32)
    result = widen(source, tmp_path / "wide", 2, verify=False, optimizer="none")
    assert not (tmp_path / "wide" / "optimizer.pt").exists()
    assert [file.name for file in result.files if file.fate == "left behind"] == ["optimizer.pt"]
    assert result.record["optimizer_state"] is None


def test_float32_state_and_master_weights_of_bfloat16_weights(tmp_path, saved):
    source = shutil.copytree(saved("Llama-tied", dtype=torch.bfloat16), tmp_path / "narrow")
    weights = load_file(source / "model.safetensors")
    flat = {f"state.{n}.fp32_param": w.float() + 1e-4 for n, w in weights.items()}
    flat |= {f"state.{n}.exp_avg": w.float() for n, w in weights.items()}
    save_file(flat, source / "optimizer.safetensors")
    widen(source, tmp_path / "wide", axes=AXES, verify=False)
    wide = load_file(tmp_path / "wide" / "optimizer.safetensors")
    master = wide[f"state.{Q}.fp32_param"].double().reshape(2, 3, 16, 48, 2)
    narrow = flat[f"state.{Q}.fp32_param"].double().reshape(2, 16, 48)
    assert all(torch.equal(master[:, copy].sum(-1), narrow) for copy in range(3))
    assert wide[f"state.{Q}.exp_avg"].dtype == torch.float32


def test_the_state_of_a_single_file_is_widened(tmp_path):
    tensors = mlp_tensors()
    save_file(tensors, tmp_path / "net.safetensors")
    save_file({f"state.{n}.exp_avg": t for n, t in tensors.items()}, tmp_path / "net.optimizer.safetensors")
    assert run("widen", str(tmp_path / "net.safetensors"), "--factor", "2", "--no-verify").code == 0
    wide = load_file(tmp_path / "net-x2.optimizer.safetensors")
    assert wide["state.2.weight.exp_avg"].shape == (12, 16)
