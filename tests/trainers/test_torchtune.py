"""torchtune's own checkpointer loads a widened state dict, and its model computes and trains as the narrow one."""

import json

import pytest
import torch

import mupscale_cli as mupscale

llama3 = pytest.importorskip("torchtune.models.llama3")
qwen2 = pytest.importorskip("torchtune.models.qwen2")
training = pytest.importorskip("torchtune.training")

SIZES = {"vocab_size": 61, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"hidden_size": 24, "intermediate_size": 20, "rms_norm_eps": 1e-5}
CONFIGS = {
    "llama": {**SIZES, "model_type": "llama", "tie_word_embeddings": False},
    "qwen2": {**SIZES, "model_type": "qwen2", "tie_word_embeddings": True},
}


def build(config):
    arguments = {
        "vocab_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config["num_key_value_heads"],
        "embed_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "max_seq_len": 32,
        "norm_eps": config["rms_norm_eps"],
    }
    if config["model_type"] == "qwen2":
        return qwen2.qwen2(tie_word_embeddings=config["tie_word_embeddings"], **arguments)
    return llama3.llama3(**arguments)


def loaded(folder, out):
    """Return the model of a folder, with its weights as torchtune's recipes load them."""
    name = "ft-model-00001-of-00001.bin"
    checkpointer = training.FullModelTorchTuneCheckpointer(str(folder), [name], "LLAMA3", str(out))
    model = build(json.loads((folder / "config.json").read_text()))
    model.load_state_dict(checkpointer.load_checkpoint()["model"])
    return model.double()


def losses(model, optimizer, seeds=range(5)):
    found = []
    for seed in seeds:
        tokens = torch.randint(61, (2, 13), generator=torch.Generator().manual_seed(seed))
        logits = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        found.append(loss.item())
        loss.backward()
        mupscale.clip_grad_norm_(optimizer, 0.5)
        optimizer.step()
        optimizer.zero_grad()
    return found


@pytest.mark.parametrize("case", CONFIGS)
def test_the_widened_model_trains_as_the_narrow_one(case, tmp_path):
    folder = tmp_path / "epoch_0"
    folder.mkdir()
    torch.manual_seed(0)
    model = build(CONFIGS[case])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save(model.state_dict(), folder / "ft-model-00001-of-00001.bin")
    (folder / "config.json").write_text(json.dumps(CONFIGS[case]))
    made = mupscale.widen(folder, tmp_path / "wide", 2)
    assert made.verification.agrees
    wide_folder = made.output
    narrow, wide = loaded(folder, tmp_path / "out"), loaded(wide_folder, tmp_path / "wide-out")
    assert wide.tok_embeddings.weight.shape == (61, 48)
    plain, scaled = (torch.optim.AdamW(each.parameters(), lr=1e-2, weight_decay=0.1) for each in (narrow, wide))
    plain.param_groups[0]["clip_weight"] = 1.0
    mupscale.scale_optimizer(scaled, wide, wide_folder)
    assert losses(wide, scaled) == pytest.approx(losses(narrow, plain), rel=2e-6)


@pytest.mark.parametrize("case", CONFIGS)
def test_the_recipe_state_is_carried(case, tmp_path):
    name, out = "ft-model-00001-of-00001.bin", tmp_path / "out"
    for folder in (out, tmp_path / "base"):
        folder.mkdir()
    torch.manual_seed(0)
    narrow = build(CONFIGS[case]).double()
    for parameter in narrow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    plain = torch.optim.AdamW(narrow.parameters(), lr=1e-2, weight_decay=0.1)
    plain.param_groups[0]["clip_weight"] = 1.0
    losses(narrow, plain)
    torch.save(narrow.state_dict(), tmp_path / "base" / name)
    (tmp_path / "base" / "config.json").write_text(json.dumps(CONFIGS[case]))
    saver = training.FullModelTorchTuneCheckpointer(str(tmp_path / "base"), [name], "LLAMA3", str(out))
    progress = {"seed": 1, "epochs_run": 1, "total_epochs": 2, "max_steps_per_epoch": None}
    own = {"model": narrow.state_dict(), "optimizer": plain.state_dict(), **progress}
    saver.save_checkpoint(own, epoch=0, intermediate_checkpoint=True)

    state = out / "recipe_state" / "recipe_state.pt"
    wide_out = tmp_path / "wide"
    folder = mupscale.widen(out / "epoch_0", wide_out / "epoch_0", 2, verify=False, optimizer=str(state)).output
    resume = {"recipe_checkpoint": "epoch_0/recipe_state.pt", "should_load_recipe_state": True}
    files = ["epoch_0/model-00001-of-00001.bin"]
    loader = training.FullModelTorchTuneCheckpointer(str(tmp_path / "base"), files, "LLAMA3", str(wide_out), **resume)
    loaded = loader.load_checkpoint()
    assert loaded["epochs_run"] == 1
    wide = build(json.loads((folder / "config.json").read_text())).double()
    wide.load_state_dict(loaded["model"])
    scaled = torch.optim.AdamW(wide.parameters(), lr=1e-2, weight_decay=0.1)
    mupscale.scale_optimizer(scaled, wide, folder)
    scaled.load_state_dict(loaded["optimizer"])
    later = range(5, 10)
    assert losses(wide, scaled, later) == pytest.approx(losses(narrow, plain, later), rel=2e-6)  # norms are float32
