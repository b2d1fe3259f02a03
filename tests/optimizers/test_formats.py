"""Reading, widening and writing optimizer state in every format."""

import json
import zipfile

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

from helpers import build
from mupscale_cli.checkpoints.digests import file_digest, segments_digest
from mupscale_cli.errors import CheckpointError, MupscaleError, PlanError
from mupscale_cli.optimizers.finding import open_optimizer
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen
from training import save_training, trained

ADAM = ("exp_avg", "exp_avg_sq")
Q, NORM, EMBED = "model.layers.1.self_attn.q_proj.weight", "model.norm.weight", "model.embed_tokens.weight"


# exp_avg is multiplied by 1 / (m c), its square by the square of that. Factors: embed 2, kv 3, g 1, ffn 5.
AXES = {"embed": 2, "kv": 3, "ffn": 5}


SCALES = {Q: (6, 1 / 2), NORM: (2, 1 / 2), EMBED: (2, 1)}  # m and c by hand


@pytest.fixture
def run_in_progress(tmp_path):
    """A narrow model and its AdamW in the middle of training, and a folder with the weights."""
    model, optimizer = trained("Llama-tied", "adamw", dtype=torch.float32)
    model.save_pretrained(tmp_path / "narrow")
    return model, optimizer, tmp_path / "narrow"


def narrow_states(model, optimizer):
    return {name: optimizer.state[parameter] for name, parameter in model.named_parameters()}


def check_states(before, after):
    """Check the table of the page `theory`: every copy has 1/(mc) of exp_avg, and the square of that of exp_avg_sq."""
    assert after.keys() == before.keys()
    for name, (m, c) in SCALES.items():
        for key, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
            narrow, wide = before[name][key].double(), after[name][key].double()
            expected = narrow.sum() * m / (m * c) ** power
            torch.testing.assert_close(wide.sum(), expected, rtol=1e-5, atol=1e-9)
            assert wide.numel() == m * narrow.numel()
        assert after[name]["step"] == before[name]["step"]


def check_groups(groups, lr=3e-3):
    by_name = {name: group for group in groups for name in group["param_names"]}
    assert by_name[Q]["lr"] == pytest.approx(lr / 2)
    assert by_name[Q]["weight_decay"] == pytest.approx(0.1 * 2)
    assert by_name[Q]["eps"] == pytest.approx(1e-6 / 3)
    assert by_name[EMBED]["lr"] == lr
    assert by_name[NORM]["clip_weight"] == 2 / 4


@pytest.mark.parametrize(
    "spelling", ["state.{}.{}", "optimizer.state.{}.{}", "{}.{}", "optimizer.{}.{}", "state.module.{}.{}"]
)
def test_safetensors_names_have_any_prefix(spelling, run_in_progress, tmp_path):
    model, optimizer, source = run_in_progress
    before = narrow_states(model, optimizer)
    flat = {spelling.format(name, key): value for name, state in before.items() for key, value in state.items()}
    save_file(flat, source / "optimizer.safetensors", metadata={"run": "7", "optimizer": "adamw"})
    widen(source, tmp_path / "wide", axes=AXES, verify=False)
    after = load_file(tmp_path / "wide" / "optimizer.safetensors")
    assert after.keys() == flat.keys()
    spelt = {name: {key: after[spelling.format(name, key)] for key in state} for name, state in before.items()}
    check_states(before, spelt)


def test_safetensors_are_sharded(run_in_progress, tmp_path):
    model, optimizer, source = run_in_progress
    before = narrow_states(model, optimizer)
    flat = {f"state.{name}.{key}": value for name, state in before.items() for key, value in state.items()}
    save_file(flat, source / "optimizer.safetensors", metadata={"optimizer": "adamw"})
    widen(source, tmp_path / "wide", axes=AXES, verify=False, max_shard_size=200_000)
    index = json.loads((tmp_path / "wide" / "optimizer.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == flat.keys()
    assert len(set(index["weight_map"].values())) > 2
    again = open_optimizer(tmp_path / "wide" / "optimizer.safetensors.index.json", None).load()
    check_states(before, again.states)
    assert verify(tmp_path / "wide", steps=2).training.carried
    # All its files are recorded, so that it can be replaced; it can be read and widened again.
    widen(source, tmp_path / "wide", 2, verify=False, max_shard_size=200_000, overwrite=True)
    widen(tmp_path / "wide", tmp_path / "wider", 2, verify=False)
    assert list((tmp_path / "wider").glob("optimizer*.safetensors"))


def test_torch_file_with_names_is_widened(run_in_progress, tmp_path):
    model, optimizer, source = run_in_progress
    torch.save(optimizer.state_dict(), source / "optimizer.pt")
    result = widen(source, tmp_path / "wide", axes=AXES, verify=False)
    noted = result.record["optimizer_state"]
    assert {key: noted[key] for key in ("file", "format", "policy")} == {
        "file": "optimizer.pt",
        "format": "torch",
        "policy": "copy",
    }
    assert noted["source_digest"] == file_digest(source / "optimizer.pt")
    assert noted["digest"] == segments_digest(tmp_path / "wide" / "optimizer.pt")
    file = tmp_path / "wide" / "optimizer.pt"
    assert zipfile.ZipFile(file).testzip() is None
    wide = torch.load(file, weights_only=True)
    names = [name for group in wide["param_groups"] for name in group["param_names"]]
    check_states(narrow_states(model, optimizer), {name: wide["state"][i] for i, name in enumerate(names)})
    check_groups(wide["param_groups"])


def test_torch_file_without_names_has_the_order_of_the_trainer(run_in_progress, tmp_path):
    import transformers

    model, optimizer, source = run_in_progress
    chosen = set(transformers.Trainer.get_decay_parameter_names(None, model))
    decayed = [name for name, _ in model.named_parameters() if name in chosen]
    order = [*decayed, *(name for name, _ in model.named_parameters() if name not in chosen)]
    settings = optimizer.state_dict()["param_groups"][0]
    plain = {key: value for key, value in settings.items() if key not in ("params", "param_names")}
    before = narrow_states(model, optimizer)
    groups = [
        {**plain, "params": list(range(len(decayed)))},
        {**plain, "params": list(range(len(decayed), len(order)))},
    ]
    torch.save(
        {"state": {i: before[name] for i, name in enumerate(order)}, "param_groups": groups}, source / "optimizer.pt"
    )
    widen(source, tmp_path / "wide", axes=AXES, verify=False)
    wide = torch.load(tmp_path / "wide" / "optimizer.pt", weights_only=True)
    names = [name for group in wide["param_groups"] for name in group["param_names"]]
    check_states(before, {name: wide["state"][i] for i, name in enumerate(names)})
    # Another order is noticed by the shapes.
    groups[0]["params"].reverse()
    torch.save(
        {"state": {i: before[name] for i, name in enumerate(order)}, "param_groups": groups}, source / "optimizer.pt"
    )
    with pytest.raises(CheckpointError, match="parameters"):
        widen(source, tmp_path / "other", axes=AXES, verify=False)


def test_one_file_may_hold_model_and_optimizer(run_in_progress, tmp_path):
    model, optimizer, source = run_in_progress
    content = {
        "model": model.state_dict(),
        "training": {"adam": optimizer.state_dict()},
        "iter_num": 3,
        "rng": torch.get_rng_state(),
    }
    torch.save(content, tmp_path / "ckpt.pt")
    state = {"optimizer": tmp_path / "ckpt.pt", "key": "training.adam"}
    result = widen(source, tmp_path / "wide", axes=AXES, verify=False, **state)
    wide = torch.load(tmp_path / "wide" / "ckpt.pt", weights_only=True)
    assert wide["iter_num"] == 3
    assert torch.equal(wide["rng"], content["rng"])
    weights = load_file(tmp_path / "wide" / "model.safetensors")
    assert all(torch.equal(wide["model"][name], weights[name]) for name in weights)
    check_groups(wide["training"]["adam"]["param_groups"])
    assert result.record["optimizer_state"]["copied"] == ["iter_num", "rng"]
    with pytest.raises(CheckpointError, match="holds model, training"):
        widen(source, tmp_path / "other", axes=AXES, optimizer=tmp_path / "ckpt.pt")


@pytest.mark.parametrize("flat", [False, True])
def test_torch_writes_the_narrow_and_loads_the_wide_distributed_checkpoint(flat, run_in_progress, tmp_path):
    model, optimizer, source = run_in_progress
    before = {name: {k: v.clone() for k, v in state.items()} for name, state in narrow_states(model, optimizer).items()}
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    dcp.save({"optimizer": state, "model": model.state_dict()}, checkpoint_id=source / "optimizer", no_dist=True)
    widen(source, tmp_path / "wide", axes=AXES, verify=False)
    check_states(before, open_optimizer(tmp_path / "wide" / "optimizer", None).load().states)
    # torch loads it into the optimizer of a wide model.
    import transformers

    wide = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "wide")
    fresh = torch.optim.AdamW(wide.parameters(), lr=1.0)
    for parameter in wide.parameters():
        moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
        fresh.state[parameter] = {"step": torch.tensor(0.0), **moments}
    target = {"optimizer": get_optimizer_state_dict(wide, fresh, options=options), "model": wide.state_dict()}
    dcp.load(target, checkpoint_id=tmp_path / "wide" / "optimizer", no_dist=True)
    set_optimizer_state_dict(wide, fresh, target["optimizer"], options=options)
    check_states(before, {name: fresh.state[parameter] for name, parameter in wide.named_parameters()})
    dcp_to_torch_save(tmp_path / "wide" / "optimizer", tmp_path / "x.pt")
    weights = load_file(tmp_path / "wide" / "model.safetensors")
    stored = torch.load(tmp_path / "x.pt", weights_only=False)["model"]
    assert all(torch.equal(stored[name], weights[name]) for name in weights)


def test_damage_of_a_distributed_checkpoint_is_reported(run_in_progress, tmp_path):
    model, optimizer, source = run_in_progress
    optimizer.state[model.model.embed_tokens.weight]["exp_avg"][0] = float("nan")
    state = get_optimizer_state_dict(model, optimizer)
    dcp.save({"optimizer": state}, checkpoint_id=source / "optimizer", no_dist=True)
    with pytest.raises(CheckpointError, match="not finite"):
        widen(source, tmp_path / "wide", 3, verify=False)
    next((source / "optimizer").glob("*.distcp")).unlink()
    with pytest.raises(CheckpointError, match="distributed checkpoint"):
        widen(source, tmp_path / "wide", 3, verify=False)
    (source / "optimizer" / ".metadata").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="cannot read"):
        widen(source, tmp_path / "wide", 3, verify=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["narrow"]


def test_policies_differ_in_the_copies(tmp_path):
    source = save_training(tmp_path / "narrow", "Llama-tied", "adamw", dtype=torch.float32)
    before = open_optimizer(source / "optimizer.pt", None).load().states[Q]["exp_avg"]
    for policy in ("copy", "reset-new", "reset"):
        widen(source, tmp_path / policy, axes=AXES, verify=False, optimizer_policy=policy)
    copied = open_optimizer(tmp_path / "copy" / "optimizer.pt", None).load().states[Q]["exp_avg"]
    first = open_optimizer(tmp_path / "reset-new" / "optimizer.pt", None).load().states[Q]["exp_avg"]
    # Rows are (kv g d) with kv x3 and g x1, columns are embed x2; the first copies are those of the copied state.
    rows = [((kv * 3) * 2 + g) * 8 + d for kv in range(2) for g in range(2) for d in range(8)]
    assert torch.equal(first[rows][:, ::2], copied[rows][:, ::2])
    assert torch.count_nonzero(first) == torch.count_nonzero(before)
    reset = torch.load(tmp_path / "reset" / "optimizer.pt", weights_only=True)
    assert reset["state"] == {}
    check_groups(reset["param_groups"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({f"state.{Q}.row_moment": torch.zeros(32, 48)}), "entry `row_moment` that is unknown"),
        (lambda s: s.update({f"state.{Q}.exp_avg": torch.zeros(32)}), "has the shape"),
        (lambda s: s.update({f"state.other.weight.{k}": torch.zeros(3) for k in ADAM}), "no such tensor"),
        (lambda s: s.update({f"state.{Q}.exp_avg_sq": torch.zeros(32, 48, dtype=torch.uint8)}), "cannot be scaled"),
        (lambda s: s.update({f"state.{Q}.exp_avg": torch.full((32, 48), float("nan"))}), "not finite"),
    ],
)
def test_unknown_or_unusable_states_are_refused(change, message, run_in_progress, tmp_path):
    model, optimizer, source = run_in_progress
    flat = {f"state.{n}.{k}": v.clone() for n, s in narrow_states(model, optimizer).items() for k, v in s.items()}
    change(flat)
    save_file(flat, source / "optimizer.safetensors", metadata={"optimizer": "adamw"})
    with pytest.raises(MupscaleError, match=f"(?s){message}"):
        widen(source, tmp_path / "wide", 2, verify=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["narrow"]


def test_a_state_that_could_run_code_is_not_read(run_in_progress, tmp_path):
    _, _, source = run_in_progress
    torch.save({"state": {}, "param_groups": [], "x": PlanError}, source / "optimizer.pt")
    with pytest.raises(CheckpointError, match="cannot read"):
        widen(source, tmp_path / "wide", 2, verify=False)
    (source / "optimizer.pt").write_bytes(b"not a zip")
    with pytest.raises(CheckpointError, match=r"torch\.save"):
        widen(source, tmp_path / "wide", 2, verify=False)


def test_a_state_with_names_needs_no_model(tmp_path):
    """No config is given, so transformers cannot build the model."""
    model = build("Llama-tied")
    torch.save(torch.optim.AdamW(model.named_parameters()).state_dict(), tmp_path / "optimizer.pt")
    tree = open_optimizer(tmp_path / "optimizer.pt", None).load()
    assert len(tree.numbers) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"absmax1": torch.zeros(6), "qmap1": torch.zeros(256)}, "`absmax1` that is unknown in AdamW"),
        ({"inner": {"absmax1": torch.zeros(6)}}, "`inner` that contains further values"),
        ([torch.zeros(32, 48)], "contains further values"),
        (0.5, "that is unknown in AdamW"),
    ],
)
def test_nothing_in_a_state_is_passed_over(value, message, run_in_progress, tmp_path):
    """Such as scales of bitsandbytes that belong to no entry of 8 bits, one level down."""
    _, optimizer, source = run_in_progress
    content = optimizer.state_dict()
    content["state"][0]["__bnb_optimizer_quant_state__"] = value
    torch.save(content, source / "optimizer.pt")
    with pytest.raises(PlanError, match=message) as refused:
        widen(source, tmp_path / "wide", 2, verify=False)
    assert "--optimizer none" in refused.value.hint


def test_the_optimizer_can_be_named(run_in_progress, tmp_path):
    """Before torch 2.7, groups did not tell whether weight decay is decoupled."""
    _, optimizer, source = run_in_progress
    content = optimizer.state_dict()
    for group in content["param_groups"]:
        del group["decoupled_weight_decay"]
    torch.save(content, source / "optimizer.pt")
    with pytest.raises(PlanError, match=r"adamw or adam: its groups do not say whether the weight decay of 0\.1"):
        widen(source, tmp_path / "wide", 2, verify=False)
    wide = widen(source, tmp_path / "wide", 2, optimizer_kind="adam", verify=False)
    carried = wide.record["optimizer_state"]
    assert (carried["kinds"], carried["named"]) == (["adam"], ["adam"])
    assert verify(tmp_path / "wide", only=["files"]).agrees
