"""Checkpoints as trainers save them: weights, state and everything else in one file or folder, widened in kind."""

import copy
import json
import shutil
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

from cli_runner import run
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.errors import CheckpointError, OutputError, PlanError
from mupscale_cli.record.reading import read_record
from mupscale_cli.tasks.push import push_files
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen
from training import trained

warnings.filterwarnings("ignore", message="torch.distributed is disabled")
CASE = "Llama-tied"


@pytest.fixture(scope="module")
def training():
    return trained(CASE, "adamw", torch.float32)


def content_of(training):
    """Return what a loop might save: a tied readout is stored twice, and everything that resuming needs is there."""
    model, optimizer = training
    schedule = {"base_lrs": [3e-3], "_last_lr": [1e-3], "last_epoch": 3}
    return {
        "model": model.state_dict(),
        "average": copy.deepcopy(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "scheduler": schedule,
        "step": 3,
        "loss": torch.tensor(0.5),
        "rng": torch.arange(3, dtype=torch.uint8),
        "history": [{"loss": 1.0}, {"loss": torch.tensor(2.0)}],
    }


def save_config(training, folder):
    folder.mkdir(parents=True, exist_ok=True)
    training[0].config.architectures = ["LlamaForCausalLM"]
    training[0].config.save_pretrained(folder)
    return folder


@pytest.fixture
def file(training, tmp_path):
    path = save_config(training, tmp_path / "run") / "last.pt"
    torch.save(content_of(training), path)
    return path


@pytest.fixture
def folder(training, tmp_path):
    path = save_config(training, tmp_path / "step-3")
    model, optimizer = training
    state = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=True))
    dcp.save({"model": model.state_dict(), "optimizer": state, "step": 3}, checkpoint_id=path, no_dist=True)
    return path


def reference(training, tmp_path, **options):
    """Return the tensors of the same model, widened as safetensors."""
    source = save_config(training, tmp_path / "plain")
    training[0].save_pretrained(source)
    return load_file(widen(source, tmp_path / "plain-wide", 2, verify=False, **options).output / "model.safetensors")


def test_a_file_of_torch_is_widened_in_kind(training, file, tmp_path):
    made = widen(file, factor=2)
    assert made.output.name == "last-x2.pt"
    assert made.verification.agrees
    wide = torch.load(made.output, weights_only=True)
    expected = reference(training, tmp_path)
    for stored in (wide["model"], wide["average"]):
        assert all(torch.equal(stored[name], tensor) for name, tensor in expected.items())
    readout, embedding = wide["model"]["lm_head.weight"], wide["model"]["model.embed_tokens.weight"]
    assert readout.data_ptr() == embedding.data_ptr()
    assert wide["scheduler"]["base_lrs"] == [group["lr"] for group in wide["optimizer"]["param_groups"]]
    assert (wide["step"], wide["loss"], wide["history"]) == (3, 0.5, [{"loss": 1.0}, {"loss": torch.tensor(2.0)}])
    assert torch.equal(wide["rng"], torch.arange(3, dtype=torch.uint8))
    assert verify(made.output).agrees
    assert {path.name for path in file.parent.iterdir()} == {
        *("config.json", "last.pt", "last-x2.pt", "last-x2.config.json", "last-x2.mupscale.json"),
    }


def test_a_distributed_checkpoint_is_widened_in_kind(training, folder, tmp_path):
    made = widen(folder, factor=2)
    assert made.verification.agrees
    assert verify(made.output).agrees
    names = training[0].state_dict()
    expected = reference(training, tmp_path)
    wide = {name: torch.empty_like(expected[name]) for name in names if name in expected}
    dcp.load({"model": wide}, checkpoint_id=made.output, no_dist=True)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in wide.items())


@pytest.fixture
def shards(training, tmp_path):
    path = save_config(training, tmp_path / "sharded")
    weights = training[0].state_dict()
    files = {name: f"pytorch_model-0000{1 + (n % 3 > 0)}-of-00002.bin" for n, name in enumerate(weights)}
    files["lm_head.weight"] = files["model.embed_tokens.weight"]
    for file in set(files.values()):
        torch.save({name: weights[name] for name, held in files.items() if held == file}, path / file)
    index = {"metadata": {"total_size": 0, "kept": "yes"}, "weight_map": files}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return path


def test_shards_with_an_index_are_widened_in_kind(training, shards, tmp_path):
    made = widen(shards, factor=2)
    assert made.verification.agrees
    assert verify(made.output).agrees
    narrow, wide = (json.loads((path / "pytorch_model.bin.index.json").read_text()) for path in (shards, made.output))
    assert wide["weight_map"] == narrow["weight_map"]
    loaded = {file: torch.load(made.output / file, weights_only=True) for file in set(wide["weight_map"].values())}
    tensors = {name: loaded[file][name] for name, file in wide["weight_map"].items()}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in reference(training, tmp_path).items())
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert wide["metadata"] == {"total_size": total, "kept": "yes"}
    assert {file.name for file in made.output.iterdir()} - {"mupscale.json"} == {f.name for f in shards.iterdir()}


def test_a_missing_shard_is_one_message(shards):
    (shards / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match=r"exist: `pytorch_model-00002-of-00002.bin` \(1 of 2 shards"):
        open_checkpoint(shards)


def test_both_train_the_same_from_the_state(file):
    made = widen(file, factor=2, verify=False)
    assert verify(made.output, steps=3, only=("function",)).agrees


@pytest.mark.parametrize("source", ["file", "folder"])
def test_noise_is_that_of_safetensors(source, training, tmp_path, request):
    path = request.getfixturevalue(source)
    made = widen(path, factor=2, noise=0.1, verify=False)
    expected = reference(training, tmp_path, noise=0.1)
    stored = open_checkpoint(made.output).tensors
    assert stored.keys() >= expected.keys()
    assert verify(made.output, only=("weights", "files")).agrees
    if source == "file":
        wide = torch.load(made.output, weights_only=True)["model"]
        assert all(torch.equal(wide[name], tensor) for name, tensor in expected.items())


def test_several_processes_write_the_same_bytes(file, tmp_path):
    made = [
        widen(file, tmp_path / f"{count}.pt", 2, verify=False, processes=count).record["written"] for count in (1, 3)
    ]
    assert made[0] == made[1]


def test_a_state_that_is_not_widened_is_left_out(file):
    wide = torch.load(widen(file, factor=2, optimizer="none", verify=False).output, weights_only=True)
    assert "optimizer" not in wide
    reset = torch.load(
        widen(file, file.with_name("reset.pt"), 2, optimizer_policy="reset", verify=False).output, weights_only=True
    )
    assert reset["optimizer"]["state"] == {}


def test_unnamed_parameters_are_named_by_the_weights_of_the_file(training, file):
    content = content_of(training)
    for group in content["optimizer"]["param_groups"]:
        group.pop("param_names")
    torch.save(content, file)
    made = widen(file, factor=2, verify=False)
    wide = torch.load(made.output, weights_only=True)["optimizer"]
    shapes = {tuple(tensor.shape) for tensor in torch.load(made.output, weights_only=True)["model"].values()}
    assert {tuple(state["exp_avg"].shape) for state in wide["state"].values()} <= shapes


def test_keys_may_be_given(training, tmp_path):
    path = save_config(training, tmp_path / "run") / "odd.ckpt"
    content = content_of(training)
    torch.save({"parts": [{"weights": content["model"]}], "optims": [content["optimizer"]]}, path)
    with pytest.raises(CheckpointError, match=r"no weights at the usual keys; it holds `parts`, `optims`") as refusal:
        widen(path, factor=2)
    assert "--weights-key" in refusal.value.hint
    made = widen(path, factor=2, weights_key="parts.0.weights", key="optims.0")
    assert made.verification.agrees
    assert verify(made.output).agrees


def test_a_second_optimizer_is_not_passed_over(training, file):
    content = content_of(training)
    torch.save({**content, "optimizers": [content["optimizer"]]}, file)
    with pytest.raises(PlanError, match="another optimizer's state at `optimizers/0`"):
        widen(file, factor=2)
    made = widen(file, factor=2, optimizer="none", verify=False)
    assert torch.load(made.output, weights_only=True).keys() == content.keys() - {"optimizer"}


def test_a_state_at_an_unusual_key_is_widened_or_left_out(training, file):
    content = content_of(training)
    content["mine"] = {"state of training": [content.pop("optimizer")]}
    torch.save(content, file)
    with pytest.raises(PlanError, match="at the unusual key `mine/state of training/0`") as refusal:
        widen(file, factor=2)
    assert "`--key mine.state of training.0`" in refusal.value.hint
    made = widen(file, factor=2, key="mine.state of training.0", verify=False)
    assert made.record["optimizer_state"]["kinds"] == ["adamw"]
    made = widen(file, factor=2, optimizer="none", verify=False, overwrite=True)
    assert torch.load(made.output, weights_only=True)["mine"] == {}


def split(state):
    """Return an optimizer's state dict as that of two optimizers: of the parameters with an even number, and others."""
    (group,) = state["param_groups"]
    parts = []
    for odd in (0, 1):
        own = [n for n in group["params"] if n % 2 == odd]
        names = [group["param_names"][n] for n in own]
        settings = {**group, "lr": group["lr"] / (1 + odd), "params": list(range(len(own))), "param_names": names}
        parts.append({"state": {i: state["state"][n] for i, n in enumerate(own)}, "param_groups": [settings]})
    return parts


@pytest.mark.parametrize("kind", [list, lambda parts: dict(zip(("a", "b"), parts, strict=True))])
def test_several_optimizers_are_widened_together(kind, training, file):
    content = content_of(training)
    parts = split(content.pop("optimizer"))
    schedules = [{"base_lrs": [part["param_groups"][0]["lr"]], "last_epoch": 3} for part in parts]
    torch.save({**content, "optimizers": kind(parts), "scheduler": schedules}, file)
    made = widen(file, factor=2)
    assert made.verification.agrees
    assert verify(made.output, steps=2).agrees
    wide = torch.load(made.output, weights_only=True)
    optimizers = wide["optimizers"]
    for part, schedule, one in zip(
        parts, wide["scheduler"], optimizers.values() if isinstance(optimizers, dict) else optimizers, strict=True
    ):
        groups = one["param_groups"]
        named = {n: name for group in groups for n, name in zip(group["params"], group["param_names"], strict=True)}
        assert sorted(named.values()) == sorted(part["param_groups"][0]["param_names"])
        assert schedule["base_lrs"] == [group["lr"] for group in groups]
        assert all(one["state"][n]["exp_avg"].shape == wide["model"][name].shape for n, name in named.items())


def test_two_optimizers_of_one_parameter_are_refused(training, file):
    content = content_of(training)
    torch.save({**content, "optimizer": [content["optimizer"]] * 2}, file)
    with pytest.raises(CheckpointError, match="0 and 1 both have the parameter"):
        widen(file, factor=2)


def test_an_output_replaces_only_an_output(file):
    made = widen(file, factor=2, verify=False)
    widen(file, factor=2, verify=False, overwrite=True)
    assert verify(made.output, only=("weights", "files")).agrees
    made.output.with_name("last-x2.mupscale.json").unlink()
    with pytest.raises(OutputError, match="was not written by mupscale"):
        widen(file, factor=2, verify=False, overwrite=True)


def test_changed_bytes_are_noticed(file, folder):
    for path in (file, folder):
        made = widen(path, factor=2, verify=False)
        largest = max([made.output] if made.output.is_file() else made.output.iterdir(), key=lambda p: p.stat().st_size)
        data = bytearray(largest.read_bytes())
        data[len(data) // 2] ^= 1
        largest.write_bytes(data)
        try:
            agrees = verify(made.output, only=("weights", "files")).agrees
        except CheckpointError:  # the byte is in a pickle, which depends on the version of Python
            agrees = False
        assert not agrees


def test_code_in_a_pickle_is_refused(tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"model": {"x": torch.zeros(2)}, "config": shutil.copy}, path)
    result = run("widen", str(path), "--factor", "2")
    assert result.code == 2
    assert "cannot read" in result.err


def test_an_unknown_layout_is_one_message(file):
    result = run("widen", str(file), "--factor", "2", "--layout", "nobody")
    assert result.code == 2
    assert "unknown layout `nobody`" in result.err


def test_a_file_is_published_under_its_own_name_with_the_state_in_it(file):
    made = widen(file, factor=2)
    checkpoint = open_checkpoint(made.output)
    with pytest.raises(CheckpointError, match="in the same file") as refusal:
        push_files(checkpoint, read_record(checkpoint), "org/name", with_optimizer=False)
    assert "--with-optimizer" in refusal.value.hint
    files = push_files(checkpoint, read_record(checkpoint), "org/name", with_optimizer=True)
    assert {each.name for each in files} == {"last-x2.pt", "config.json", "mupscale.json"}


def test_the_command_reads_what_the_key_names(training, tmp_path):
    path = save_config(training, tmp_path / "run") / "net.pt"
    torch.save({"net": training[0].state_dict(), "step": 3}, path)
    for wrong in (("--weights-key", "nope"), ("--layout", "nobody"), ()):
        result = run("widen", str(path), "--factor", "2", "--dry-run", *wrong)
        assert (result.code, result.out) == (2, "")
    assert run("widen", str(path), "--factor", "2", "--weights-key", "net").code == 0
    assert run("inspect", str(path), "--weights-key", "net").code == 0
    assert verify(path.with_name("net-x2.pt")).agrees
