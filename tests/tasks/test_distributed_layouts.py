"""Checkpoints in the form of torchtitan, OLMo-core and lingua, at tiny size and without those trainers."""

import json
import pickle
import shutil
import sys
import types
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, filesystem

from mupscale_cli.checkpoints.layouts.torchtitan import Sizes
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.errors import CheckpointError, PlanError
from mupscale_cli.optimizers.rules.rule import DECOUPLED
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen

warnings.filterwarnings("ignore", message="torch.distributed is disabled")
EMBED, HEADS, KV, D, FFN, VOCAB = 8, 4, 2, 2, 12, 5
SIZES = {"n_heads": HEADS, "n_kv_heads": KV, "head_dim": D}
LINGUA = {"dim": EMBED, "n_layers": 1, **SIZES, "multiple_of": 2, "ffn_dim_multiplier": 0.6, "norm_eps": 1e-5}
_NORM = {"layer_norm": {"eps": 1e-5}}
_BLOCK = {"sequence_mixer": {**SIZES, "qk_norm": None}, "feed_forward": {"hidden_size": FFN}, **_NORM}
OLMO = {"d_model": EMBED, "vocab_size": VOCAB, "n_layers": 1, "block": {"name": "default", **_BLOCK}, "lm_head": _NORM}
SETTINGS = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "decoupled_weight_decay": True}


def weights(names):
    """Return random weights of one block, under the names of a trainer."""
    shapes = {
        **{names[key]: (VOCAB, EMBED) for key in ("embed", "head")},
        **{names[key]: (EMBED,) for key in ("norm1", "norm2", "norm")},
        names["q"]: (HEADS * D, EMBED),
        names["k"]: (KV * D, EMBED),
        names["v"]: (KV * D, EMBED),
        names["o"]: (EMBED, HEADS * D),
        **{names[key]: (FFN, EMBED) for key in ("w1", "w3")},
        names["w2"]: (EMBED, FFN),
    }
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def named(pattern, **others):
    keys = {key: pattern.format(key) for key in ("w1", "w2", "w3")}
    return {**keys, **others}


META = named(
    "layers.0.feed_forward.{}.weight",
    embed="tok_embeddings.weight",
    norm="norm.weight",
    norm1="layers.0.attention_norm.weight",
    norm2="layers.0.ffn_norm.weight",
    o="layers.0.attention.wo.weight",
)
IN_LINGUA = META | {"head": "output.weight", **{key: f"layers.0.attention.w{key}.weight" for key in "qkv"}}
FUSED = "layers.0.attention.qkv_linear.wqkv.weight"
IN_TORCHTITAN = META | {"head": "lm_head.weight", **{key: FUSED.replace("qkv.w", f"{key}.w") for key in "qkv"}}
IN_OLMO = named(
    "blocks.0.feed_forward.{}.weight",
    embed="embeddings.weight",
    head="lm_head.w_out.weight",
    norm="lm_head.norm.weight",
    norm1="blocks.0.attention_norm.weight",
    norm2="blocks.0.feed_forward_norm.weight",
    o="blocks.0.attention.w_out.weight",
    **{key: f"blocks.0.attention.w_{key}.weight" for key in "qkv"},
)


def moments(parameters):
    step = torch.tensor(3.0)
    return {n: {"step": step.clone(), "exp_avg": torch.randn(s), "exp_avg_sq": torch.rand(s)} for n, s in parameters}


def flat(parameters):
    """Return an optimizer's state with one key for each value, as torchtitan and OLMo-core store it."""
    states = {f"state.{n}.{key}": value for n, entries in moments(parameters).items() for key, value in entries.items()}
    return states | {f"param_groups.{n}.{key}": value for n, _ in parameters for key, value in SETTINGS.items()}


def loaded(path, content):
    """Load the wide checkpoint into tensors of the wide sizes, as its trainer would."""
    metadata = FileSystemReader(path).read_metadata()
    kinds = metadata.state_dict_metadata
    values = {key: torch.empty(kind.size) if hasattr(kind, "size") else None for key, kind in kinds.items()}
    dcp.load(values, checkpoint_id=path, no_dist=True)
    assert values.keys() >= content.keys()
    return values


def flattened(value, prefix=""):
    if not isinstance(value, dict):
        return {prefix[:-1]: value}
    return {key: inner for name, each in value.items() for key, inner in flattened(each, f"{prefix}{name}.").items()}


def saved(path, content):
    dcp.save(content, checkpoint_id=path, no_dist=True)
    return path


def rows(fused):
    """Return queries, keys and values of torchtitan's fused parameter: key/value head by key/value head."""
    blocks = fused.reshape(-1, HEADS // KV + 2, D, fused.shape[1])
    return blocks[:, :-2].flatten(0, 2), blocks[:, -2].flatten(0, 1), blocks[:, -1].flatten(0, 1)


@pytest.fixture
def torchtitan(tmp_path):
    narrow = weights(IN_TORCHTITAN)
    separate = {IN_TORCHTITAN[key] for key in "qkv"}
    shapes = [(n, tensor.shape) for n, tensor in narrow.items() if n not in separate]
    parameters = [*shapes, (FUSED, ((HEADS + 2 * KV) * D, EMBED))]
    content = narrow | {
        "optimizer": flat(parameters),
        "lr_scheduler": {"last_epoch": 3},
        "train_state": {"step": 3},
        "dataloader": {"dp_rank_0": b"\x80", "world_size": 1},
    }
    path = saved(tmp_path / "step-3", content)
    sizes = {"dim": EMBED, "n_layers": 1, **SIZES, "hidden_dim": FFN, "norm_eps": 1e-5}
    (path / "config.json").write_text(json.dumps(sizes))
    return path, content


def test_torchtitan_state_of_the_fused_parameter_follows_its_parts(torchtitan):
    path, content = torchtitan
    made = widen(path, factor=2, verify=False)
    wide = loaded(made.output, flattened(content))
    assert wide["lr_scheduler.last_epoch"] == 3
    assert wide["dataloader.dp_rank_0"] == b"\x80"
    state = content["optimizer"]
    for part, tensor in zip("qkv", rows(wide[f"optimizer.state.{FUSED}.exp_avg"]), strict=True):
        narrow = dict(zip("qkv", rows(state[f"state.{FUSED}.exp_avg"]), strict=True))[part]
        heads = narrow.reshape(KV, -1, EMBED).repeat_interleave(2, 0).flatten(0, 1)
        assert torch.equal(tensor, heads.repeat_interleave(2, 1) / 2)  # c = 1/2, m = 4
    assert wide[f"optimizer.param_groups.{FUSED}.lr"] == pytest.approx(5e-4)
    assert wide["optimizer.param_groups.norm.weight.lr"] == 1e-3
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 8, "n_kv_heads": 4, "head_dim": 2, "hidden_dim": 24}
    assert json.loads((made.output / "config.json").read_text()) == {**sizes, "norm_eps": 1e-5}
    assert verify(made.output, only=("weights", "config", "files")).agrees


def model_of_torchtitan(dim, heads, kv_heads, head_dim, ffn, vocabulary, layers):
    """Return a Llama 3 as torchtitan's saved config describes it."""
    block = {
        "attention": {"n_heads": heads, "n_kv_heads": kv_heads, "qkv_linear": {"head_dim": head_dim}},
        "feed_forward": {"w1": {"out_features": ffn}},
    }
    model = {"dim": dim, "vocab_size": vocabulary, "layers": [block] * layers, "norm": {"eps": 1e-5}}
    return {"name": "llama3", "model": {**model, "enable_weight_tying": False}}


def test_torchtitan_sizes_come_from_its_own_config():
    spec = model_of_torchtitan(32, 4, None, 8, 48, 64, layers=2)
    sizes = Sizes("config.json").read({"model_spec": spec})
    assert sizes == {
        "name": "llama3",
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 4,
        "head_dim": 8,
        "hidden_dim": 48,
        "vocab_size": 64,
        "norm_eps": 1e-5,
        "enable_weight_tying": False,
    }


def test_torchtitan_config_of_another_model_is_refused():
    config = {"model_spec": {"name": "flux", "model": {"hidden_size": 32}}}
    with pytest.raises(CheckpointError, match=r"flux.*layers"):
        Sizes("config.json").read(config)


@pytest.fixture
def foreign_metadata(monkeypatch):
    """Let the metadata name OLMo-core's class instead of torch's, without OLMo-core."""
    module = types.ModuleType("olmo_core.distributed.checkpoint.filesystem")
    own = type("_StorageInfo", (filesystem._StorageInfo,), {"__module__": module.__name__})
    module._StorageInfo = own

    def rename(path):
        metadata = FileSystemReader(path).read_metadata()
        for index, info in metadata.storage_data.items():
            metadata.storage_data[index] = own(info.relative_path, info.offset, info.length)
        with monkeypatch.context() as patch:
            for name in ("olmo_core", "olmo_core.distributed", "olmo_core.distributed.checkpoint", module.__name__):
                patch.setitem(sys.modules, name, module)
            (path / ".metadata").write_bytes(pickle.dumps(metadata))

    return rename


def test_olmo_core_progress_goes_along(tmp_path, foreign_metadata):
    narrow = weights(IN_OLMO)
    content = {"model": narrow, "optim": flat([(name, tensor.shape) for name, tensor in narrow.items()])}
    path = tmp_path / "step3"
    foreign_metadata(saved(path / "model_and_optim", content))
    run = {"model": OLMO, "trainer": {"save_folder": "runs"}}
    (path / "config.json").write_text(json.dumps(run))
    (path / ".metadata.json").write_text("{}")
    (path / "train").mkdir()
    torch.save({"global_step": 3}, path / "train" / "rank0.pt")
    made = widen(path, factor=2, verify=False)
    wide = loaded(made.output / "model_and_optim", flattened(content))
    assert wide["model.blocks.0.attention.w_k.weight"].shape == (2 * KV * D, 2 * EMBED)
    assert wide["optim.param_groups.lm_head.w_out.weight.lr"] == 5e-4
    config = json.loads((made.output / "config.json").read_text())
    assert (config["trainer"], config["model"]["block"]["sequence_mixer"]["n_heads"]) == ({"save_folder": "runs"}, 8)
    assert torch.load(made.output / "train" / "rank0.pt", weights_only=True) == {"global_step": 3}
    assert (made.output / ".metadata.json").read_text() == "{}"
    assert verify(made.output, only=("weights", "config", "files")).agrees


def undeclared(parameters):
    """Return a state whose settings do not tell Adam from AdamW."""
    declared = tuple(f".{key}" for key in DECOUPLED)
    return {key: value for key, value in flat(parameters).items() if not key.endswith(declared)}


@pytest.fixture
def olmo_core(tmp_path):
    """A function that saves a checkpoint of OLMo-core whose config names the class of an optimizer's config."""

    def make(name):
        narrow = weights(IN_OLMO)
        path = tmp_path / f"step-{name}"
        state = undeclared([(name, tensor.shape) for name, tensor in narrow.items()])
        saved(path / "model_and_optim", {"model": narrow, "optim": state})
        optimizer = {"optim": {"_CLASS_": f"olmo_core.optim.{name}"}} if name else {}
        (path / "config.json").write_text(json.dumps({"model": OLMO, "train_module": optimizer}))
        return path

    return make


def test_olmo_core_names_the_optimizer_in_its_config(olmo_core):
    known = {"AdamWConfig": "AdamW", "SkipStepLionConfig": "Lion", "SkipStepAdamWConfig": "AdamW", "AdamConfig": "Adam"}
    paths = {name: olmo_core(name) for name in known}
    assert {name: open_checkpoint(path).trained.optimizers(()) for name, path in paths.items()} == {
        name: (optimizer,) for name, optimizer in known.items()
    }
    made = widen(paths["AdamConfig"], factor=2, verify=False)
    assert made.record["optimizer_state"]["kinds"] == ["adam"]
    with pytest.raises(PlanError, match="adamw or adam"):
        widen(olmo_core(""), factor=2, verify=False)
    with pytest.raises(PlanError, match="unknown optimizer `NoOp`"):
        widen(olmo_core("NoOpConfig"), factor=2, verify=False)


def test_torchtitan_names_the_optimizers_in_its_config(torchtitan):
    path, content = torchtitan
    state = content["optimizer"]
    parameters = [
        (key[len("state.") : -len(".exp_avg")], state[key].shape) for key in state if key.endswith(".exp_avg")
    ]
    shutil.rmtree(path)
    saved(path, content | {"optimizer": undeclared(parameters)})

    def configured(*names):
        groups = [{"pattern": ".*", "optimizer_name": name, "optimizer_kwargs": {}} for name in names]
        spec = model_of_torchtitan(EMBED, HEADS, KV, D, FFN, VOCAB, layers=1)
        (path / "config.json").write_text(json.dumps({"model_spec": spec, "optimizer": {"param_groups": groups}}))
        return path

    assert open_checkpoint(configured("DistMuon", "AdamW", "AdamW")).trained.optimizers(()) == ("DistMuon", "AdamW")
    with pytest.raises(PlanError, match="adamw or adam"):
        widen(configured(), factor=2, verify=False)
    made = widen(configured("Adam"), factor=2, verify=False)
    assert made.record["optimizer_state"]["kinds"] == ["adam"]


def test_lingua_schedule_gets_a_rate_for_each_group(tmp_path):
    narrow = weights(IN_LINGUA)
    states = moments([(name, tensor.shape) for name, tensor in narrow.items()])
    content = {"model": narrow, "optim": {"state": states, "param_groups": [{**SETTINGS, "params": list(narrow)}]}}
    path = saved(tmp_path / "checkpoints" / "0000000003", content)
    (path / "params.json").write_text(json.dumps({"name": "tiny", "model": LINGUA | {"init_std_factor": "disabled"}}))
    schedule = {"base_lrs": [1e-3], "last_epoch": 3, "_last_lr": [5e-4], "lr_lambdas": [{}]}
    progress = {"step": 3, "data_loader_state": {"seed": 1}, "scheduler": schedule}
    (path / "train_state_00000.json").write_text(json.dumps(progress))
    made = widen(path, factor=2, verify=False)
    wide = json.loads((made.output / "train_state_00000.json").read_text())
    assert (wide["step"], wide["data_loader_state"]) == (3, {"seed": 1})
    assert sorted(wide["scheduler"]["base_lrs"]) == [5e-4, 5e-4, 1e-3]
    assert len(wide["scheduler"]["_last_lr"]) == len(wide["scheduler"]["lr_lambdas"]) == 3
    params = json.loads((made.output / "params.json").read_text())
    assert (params["name"], params["model"]["dim"], params["model"]["multiple_of"]) == ("tiny", 16, 4)
    assert verify(made.output, only=("weights", "config", "files")).agrees
