"""The optimizer's state in every format: read, widened, written back in kind."""

import itertools
import json
import math
import random
import shutil
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

from cli_runner import run
from helpers import build, mlp_tensors
from mupscale_cli.checkpoints.digests import file_digest, segments_digest
from mupscale_cli.checkpoints.rows import RowReader
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import CheckpointError, MupscaleError, OutputError, PlanError
from mupscale_cli.optimizers.finding import open_optimizer
from mupscale_cli.optimizers.formats.checksums import Checksum
from mupscale_cli.optimizers.formats.distributed_chunks import Chunk, ChunkedTensor
from mupscale_cli.optimizers.formats.torch_files import blank_file
from mupscale_cli.optimizers.formats.torch_reading import blank, read_torch_file
from mupscale_cli.optimizers.formats.torch_writing import ArchiveWriter, write_checksums
from mupscale_cli.tasks.verify import verify, verify_weights
from mupscale_cli.tasks.widen import widen
from training import save_state, save_training, trained

Q, NORM, EMBED = "model.layers.1.self_attn.q_proj.weight", "model.norm.weight", "model.embed_tokens.weight"
# exp_avg is multiplied by 1 / (m c), its square by the square of that. Factors: embed 2, kv 3, g 1, ffn 5.
AXES = {"embed": 2, "kv": 3, "ffn": 5}
SCALES = {Q: (6, 1 / 2), NORM: (2, 1 / 2), EMBED: (2, 1)}  # m and c by hand


@pytest.fixture
def run_in_progress(tmp_path):
    """A narrow model and its AdamW in the middle of training, and a directory with the weights."""
    model, optimizer = trained("Llama-tied", "adamw", dtype=torch.float32)
    model.save_pretrained(tmp_path / "narrow")
    return model, optimizer, tmp_path / "narrow"


def narrow_states(model, optimizer):
    return {name: optimizer.state[parameter] for name, parameter in model.named_parameters()}


def check_states(before, after):
    """Against the table of the page `theory`: every copy has 1/(mc) of exp_avg and its square of exp_avg_sq."""
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
def test_safetensors_in_every_spelling(spelling, run_in_progress, tmp_path):
    model, optimizer, source = run_in_progress
    before = narrow_states(model, optimizer)
    flat = {spelling.format(name, key): value for name, state in before.items() for key, value in state.items()}
    save_file(flat, source / "optimizer.safetensors", metadata={"run": "7"})
    widen(source, tmp_path / "wide", axes=AXES, verify=False)
    after = load_file(tmp_path / "wide" / "optimizer.safetensors")
    assert after.keys() == flat.keys()
    spelt = {name: {key: after[spelling.format(name, key)] for key in state} for name, state in before.items()}
    check_states(before, spelt)


def test_safetensors_are_sharded(run_in_progress, tmp_path):
    model, optimizer, source = run_in_progress
    before = narrow_states(model, optimizer)
    flat = {f"state.{name}.{key}": value for name, state in before.items() for key, value in state.items()}
    save_file(flat, source / "optimizer.safetensors")
    widen(source, tmp_path / "wide", axes=AXES, verify=False, max_shard_size=200_000)
    index = json.loads((tmp_path / "wide" / "optimizer.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == flat.keys()
    assert len(set(index["weight_map"].values())) > 2
    again = open_optimizer(tmp_path / "wide" / "optimizer.safetensors.index.json", None).load()
    check_states(before, again.states)
    assert verify(tmp_path / "wide", steps=2).training.carried
    # And read back: the wide state, widened again.
    widen(tmp_path / "wide", tmp_path / "wider", 2, verify=False)
    assert list((tmp_path / "wider").glob("optimizer*.safetensors"))


def test_torch_file_with_names(run_in_progress, tmp_path):
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


def test_torch_file_without_names_is_read_in_the_order_of_the_trainer(run_in_progress, tmp_path):
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
    # In another order the shapes betray it.
    groups[0]["params"], groups[1]["params"] = groups[1]["params"], groups[0]["params"]
    torch.save(
        {"state": {i: before[name] for i, name in enumerate(order)}, "param_groups": groups}, source / "optimizer.pt"
    )
    with pytest.raises(CheckpointError, match="parameters"):
        widen(source, tmp_path / "other", axes=AXES, verify=False)


def test_one_file_with_model_and_optimizer(run_in_progress, tmp_path):
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
def test_distributed_checkpoints_written_and_loaded_by_torch(flat, run_in_progress, tmp_path):
    model, optimizer, source = run_in_progress
    before = {name: {k: v.clone() for k, v in state.items()} for name, state in narrow_states(model, optimizer).items()}
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    dcp.save({"optimizer": state, "model": model.state_dict()}, checkpoint_id=source / "optimizer", no_dist=True)
    with pytest.raises(CheckpointError, match="--allow-pickle") as error:
        widen(source, tmp_path / "wide", axes=AXES, verify=False)
    assert "--optimizer none" in str(error.value)
    widen(source, tmp_path / "wide", axes=AXES, verify=False, allow_pickle=True)
    check_states(before, open_optimizer(tmp_path / "wide" / "optimizer", None, allow_pickle=True).load().states)
    # torch itself loads it into a wide model's optimizer.
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


def test_what_is_wrong_in_a_distributed_checkpoint_is_told(run_in_progress, tmp_path):
    model, optimizer, source = run_in_progress
    optimizer.state[model.model.embed_tokens.weight]["exp_avg"][0] = float("nan")
    state = get_optimizer_state_dict(model, optimizer)
    dcp.save({"optimizer": state}, checkpoint_id=source / "optimizer", no_dist=True)
    with pytest.raises(CheckpointError, match="not finite"):
        widen(source, tmp_path / "wide", 3, verify=False, allow_pickle=True)
    next((source / "optimizer").glob("*.distcp")).unlink()
    with pytest.raises(CheckpointError, match="distributed checkpoint"):
        widen(source, tmp_path / "wide", 3, verify=False, allow_pickle=True)
    (source / "optimizer" / ".metadata").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="cannot read"):
        widen(source, tmp_path / "wide", 3, verify=False, allow_pickle=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["narrow"]


def test_a_disk_that_fills_up_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(RuntimeError("PytorchStreamWriter failed")))
    with pytest.raises(OutputError, match="PytorchStreamWriter"):
        blank_file(tmp_path / "x.pt", {})


# Against the narrow one, byte by byte --------------------------------------------------------


STATE_FILES = {"safetensors": "optimizer.safetensors", "torch": "optimizer.pt", "distributed": "optimizer"}


@pytest.mark.parametrize("policy", ["copy", "reset-new", "reset"])
@pytest.mark.parametrize("kind", STATE_FILES)
def test_a_state_is_compared_byte_by_byte(kind, policy, tmp_path):
    source, wide = save_state(tmp_path / "narrow", kind), tmp_path / "wide"
    widen(source, wide, axes=AXES, verify=False, optimizer_policy=policy, allow_pickle=True)
    found = verify_weights(wide, allow_pickle=True)
    assert found.agrees
    assert found.state.num_tensors == (0 if policy == "reset" else len(open_state(source, kind).stored))
    if policy == "reset":
        return
    # One bit of an element in the middle of a tensor.
    moments = {name: stored for name, stored in open_state(wide, kind).stored.items() if stored.spec.shape == (96, 96)}
    name, stored = next(iter(moments.items()))
    (place,) = stored.stretches(4 * 96 * 7 + 4 * 3, 1)
    with open(place.file, "r+b") as stream:
        stream.seek(place.offset)
        (before,) = stream.read(1)
        stream.seek(place.offset)
        stream.write(bytes([before ^ 1]))
    found = verify_weights(wide, allow_pickle=True)
    assert found.state.differences == (f"`{name}` differs, first at element (7, 3)",)
    assert not found.agrees
    assert found.differences == ()
    result = run("verify", str(wide), "--weights", "--allow-pickle")
    assert result.code == 1
    assert f"optimizer state: `{name}` differs, first at element (7, 3)" in result.out
    assert "weights: 34 tensors" in result.out


def open_state(folder, kind):
    return open_optimizer(folder / STATE_FILES[kind], None, allow_pickle=True)


def test_settings_of_a_state_are_compared(tmp_path):
    source = save_state(tmp_path / "narrow", "torch")
    widen(source, tmp_path / "wide", axes=AXES, verify=False)
    state = torch.load(tmp_path / "wide" / "optimizer.pt", weights_only=True)
    state["param_groups"][0]["lr"] *= 2
    del state["param_groups"][1]["eps"]
    state["state"].pop(3)
    state["more"] = 1
    torch.save(state, tmp_path / "wide" / "optimizer.pt")
    found = verify_weights(tmp_path / "wide").state.differences
    assert "`state/3/exp_avg` is missing" in found
    assert any(each.startswith("`param_groups/0/lr` is 0.006, planned was 0.003") for each in found)
    assert "`param_groups/1/eps` is missing" in found
    assert "`more` is not in the plan" in found
    assert not any("state/2" in each for each in found)


def test_a_narrow_state_that_changed_or_is_gone_is_told(tmp_path):
    source = save_state(tmp_path / "narrow", "torch")
    widen(source, tmp_path / "wide", 2, verify=False)
    state = torch.load(source / "optimizer.pt", weights_only=True)
    state["state"][3]["exp_avg"] += 1
    torch.save(state, source / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"is not the optimizer's state that .* was widened with"):
        verify_weights(tmp_path / "wide")
    (source / "optimizer.pt").unlink()
    result = run("verify", str(tmp_path / "wide"), "--weights", "-q")
    assert result.code == 2
    assert "the optimizer's state `optimizer.pt` is not beside" in result.err
    assert "--optimizer PATH" in result.err
    result = run("verify", str(tmp_path / "wide"), "--weights", "--optimizer", "none")
    assert result.code == 0
    assert "optimizer state: not compared: it was not asked for" in result.out
    (tmp_path / "wide" / "optimizer.pt").unlink()
    shutil.copytree(save_state(tmp_path / "again", "torch"), tmp_path / "copy")
    found = verify_weights(tmp_path / "wide", optimizer=tmp_path / "copy" / "optimizer.pt")
    assert found.state.differences == ("`optimizer.pt` is missing",)


def test_no_pickle_is_read_unless_that_is_asked_for(tmp_path):
    source = save_state(tmp_path / "narrow", "distributed")
    widen(source, tmp_path / "wide", 2, verify=False, allow_pickle=True)
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        verify_weights(tmp_path / "wide")
    found = verify_weights(tmp_path / "wide", optimizer=Path("none"))
    assert found.state is None
    assert found.as_record()["optimizer_state_skipped"] == found.without_state


def test_weights_beside_the_state_in_the_form_of_the_model(tmp_path):
    """Experts that the model keeps together, and a router by the name that it has there."""
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
    assert verify_weights(tmp_path / "wide", optimizer=tmp_path / "all.pt").agrees
    with pytest.raises(PlanError, match="whose noise would be another"):
        widen(tmp_path / "narrow", tmp_path / "noisy", 2, verify=False, **state, noise=0.1)


# Policies and kinds ---------------------------------------------------------------------------


def test_policies(tmp_path):
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


def test_state_is_left_when_asked(tmp_path):
    source = save_training(tmp_path / "narrow", "Llama-tied", "adamw", dtype=torch.float32)
    result = widen(source, tmp_path / "wide", 2, verify=False, optimizer="none")
    assert not (tmp_path / "wide" / "optimizer.pt").exists()
    assert [file.name for file in result.left] == ["optimizer.pt"]
    assert result.record["optimizer_state"] is None


def test_float32_state_and_master_weights_beside_bfloat16(tmp_path, saved):
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


def test_a_single_file_and_its_state(tmp_path):
    tensors = mlp_tensors()
    save_file(tensors, tmp_path / "net.safetensors")
    save_file({f"state.{n}.exp_avg": t for n, t in tensors.items()}, tmp_path / "net.optimizer.safetensors")
    assert run("widen", str(tmp_path / "net.safetensors"), "--factor", "2", "--no-verify").code == 0
    wide = load_file(tmp_path / "net-x2.optimizer.safetensors")
    assert wide["state.2.weight.exp_avg"].shape == (12, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({f"state.{Q}.row_moment": torch.zeros(32, 48)}), "`row_moment`.*not known"),
        (lambda s: s.update({f"state.{Q}.exp_avg": torch.zeros(32)}), "has the shape"),
        (lambda s: s.update({"state.model.other.weight.exp_avg": torch.zeros(3)}), "no such tensor"),
        (lambda s: s.update({f"state.{Q}.exp_avg_sq": torch.zeros(32, 48, dtype=torch.uint8)}), "cannot be scaled"),
        (lambda s: s.update({f"state.{Q}.exp_avg": torch.full((32, 48), float("nan"))}), "not finite"),
    ],
)
def test_states_that_are_not_understood(change, message, run_in_progress, tmp_path):
    model, optimizer, source = run_in_progress
    flat = {f"state.{n}.{k}": v.clone() for n, s in narrow_states(model, optimizer).items() for k, v in s.items()}
    change(flat)
    save_file(flat, source / "optimizer.safetensors")
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


def pieces(tensor):
    return (memoryview(bytearray(tensor.reshape(-1).view(torch.uint8).numpy())),)


def test_torch_files_are_written_without_their_data_in_memory(tmp_path):
    specs = [TensorSpec("a/0", "BF16", (3, 2)), TensorSpec("b", "I64", ())]
    content = {"a": [blank(specs[0])], "b": blank(specs[1]), "c": [1, "x"]}
    blanks = blank_file(tmp_path / "x.pt", content)
    with ArchiveWriter(blanks) as writer:
        writer.write("a/0", 4, pieces(torch.full((4,), 2.0).bfloat16()))
        writer.write("a/0", 0, pieces(torch.full((2,), 1.0).bfloat16()))
        writer.write("b", 0, pieces(torch.tensor(7)))
    write_checksums(blanks, [{name: checksum.stretches for name, checksum in writer.checksums.items()}])
    found = torch.load(tmp_path / "x.pt", weights_only=True)
    assert found["a"][0].tolist() == [[1, 1], [2, 2], [2, 2]]
    assert (found["b"].item(), found["c"]) == (7, [1, "x"])
    assert zipfile.ZipFile(tmp_path / "x.pt").testzip() is None
    assert {t.spec for t in read_torch_file(tmp_path / "x.pt").tensors.values()} == set(specs)


def test_checksums_of_pieces_in_any_order():
    generator = random.Random(0)
    data = memoryview(generator.randbytes(100_000))
    for count in (0, 1, 2, 300):
        cuts = [0, *sorted(generator.sample(range(1, len(data)), count)), len(data)]
        stretches = list(itertools.pairwise(cuts))
        generator.shuffle(stretches)
        parts = [Checksum(), Checksum()]
        for low, high in stretches:
            middle = (low + high) // 2
            parts[generator.randrange(2)].add(low, [data[low:middle], data[middle:high]])
        whole = Checksum()
        assert whole.of(len(data)) is None
        for part in parts:
            whole.merge(part.stretches)
        assert whole.stretches == {0: (len(data), zlib.crc32(data))}
        assert whole.of(len(data)) == zlib.crc32(data)
        assert whole.of(len(data) + 1) is None


def boxes(shape, cuts):
    """The corner and the shape of every box between cuts of each dimension."""
    sides = [list(itertools.pairwise((0, *cut, size))) for cut, size in zip(cuts, shape, strict=True)]
    for sides_of_box in itertools.product(*sides):
        yield tuple(low for low, _ in sides_of_box), tuple(high - low for low, high in sides_of_box)


@pytest.mark.parametrize(
    ("shape", "cuts"),
    [
        ((), ()),
        ((7,), ((2, 5),)),
        ((8, 5), ((3, 4), ())),  # as FSDP has it
        ((8, 5), ((), (2,))),  # as tensor parallelism of columns has it
        ((8, 5), ((4,), (1, 3))),
        ((4, 6, 5), ((1,), (2, 4), ())),
        ((4, 3, 5), ((), (), (2,))),
        ((4, 3, 5), ((2,), (1,), (1, 4))),
    ],
)
def test_chunks_of_any_shape_are_read_where_they_lie(shape, cuts, tmp_path):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    data = bytes(tensor.reshape(-1).view(torch.uint8).numpy())
    chunks = []
    with open(tmp_path / "all.distcp", "wb") as stream:
        for corner, sizes in boxes(shape, cuts):
            part = tensor[tuple(slice(low, low + size) for low, size in zip(corner, sizes, strict=True))]
            start = stream.tell()
            torch.save(part.clone().contiguous(), stream)
            spec = TensorSpec("x", "BF16", sizes)
            chunks.append(Chunk(spec, corner, tmp_path / "all.distcp", start, stream.tell() - start))
    random.Random(0).shuffle(chunks)
    stored = ChunkedTensor(TensorSpec("x", "BF16", shape), "x", tuple(chunks))
    row = 2 * math.prod(shape[1:])
    with RowReader() as reader:
        for low, high in itertools.combinations(range(0, len(data) + 1, row), 2):
            found = memoryview(bytearray(high - low))
            reader.read(stored, low, found)
            assert found == data[low:high]
        if len(chunks) > 1:
            for wrong in (chunks[1:], [*chunks, chunks[0]]):
                broken = ChunkedTensor(stored.spec, "x", tuple(wrong))
                with pytest.raises(CheckpointError, match="missing or overlap"):
                    reader.read(broken, 0, memoryview(bytearray(len(data))))
        lying = replace(chunks[0], spec=replace(chunks[0].spec, dtype="F16"))
        with pytest.raises(CheckpointError, match="does not hold what its metadata say"):
            reader.read(
                ChunkedTensor(replace(stored.spec, dtype="F16"), "x", (lying, *chunks[1:])),
                0,
                memoryview(bytearray(len(data))),
            )


def test_a_file_stays_open_until_every_tensor_is_complete(tmp_path, monkeypatch):
    """Also where two threads see at once that one of them is."""
    specs = [TensorSpec("a", "I64", (2,)), TensorSpec("b", "I64", ())]
    blanks = blank_file(tmp_path / "x.pt", {spec.name: blank(spec) for spec in specs})
    closed = []
    monkeypatch.setattr(ArchiveWriter, "_close", lambda _self, file, **_: closed.append(file.name))
    with ArchiveWriter(blanks) as writer:
        writer.write("a", 0, pieces(torch.tensor([1, 2])))
        writer.write("a", 16, pieces(torch.tensor([], dtype=torch.int64)))  # the other thread, which looks later
        assert closed == []
        writer.write("b", 0, pieces(torch.tensor(3)))
        assert closed == ["x.pt"]
        writer.write("b", 8, pieces(torch.tensor([], dtype=torch.int64)))
        assert closed == ["x.pt"]
        monkeypatch.undo()


def test_build_is_not_needed_where_names_are_known(tmp_path):
    """A state with names is read without transformers building anything."""
    model = build("Llama-tied")
    torch.save(torch.optim.AdamW(model.named_parameters()).state_dict(), tmp_path / "optimizer.pt")
    tree = open_optimizer(tmp_path / "optimizer.pt", None).load()
    assert len(tree.numbers) == len(list(model.parameters()))
