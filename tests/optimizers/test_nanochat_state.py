"""nanochat's optimizer files: stacks of matrices, cut to the processes, widened and written in the same form."""

import json
from itertools import zip_longest

import pytest
import torch
from nanochat_files import cut, save, state_of

from mupscale_cli.errors import CheckpointError
from mupscale_cli.tasks.widen import widen


def load(folder):
    """Return the content of the files of all processes."""
    files = sorted(folder.glob("optim_*.pt"))
    return [torch.load(file, weights_only=True) for file in files]


@pytest.fixture
def widened(tmp_path):
    """A function that widens the state of a given number of processes and returns the wide content of each."""

    def made(ranks, **options):
        widen(save(tmp_path / f"narrow{ranks}", ranks), tmp_path / f"wide{ranks}", verify=False, **options)
        return load(tmp_path / f"wide{ranks}")

    return made


def test_files_of_several_processes_are_cut_as_nanochat_cuts_them(widened):
    (whole,) = widened(1, factor=2)
    for ranks in (2, 3):
        for found, expected in zip_longest(widened(ranks, factor=2), cut(whole, ranks)):
            assert found["param_groups"] == expected["param_groups"]
            assert found["state"].keys() == expected["state"].keys()
            for number, entries in expected["state"].items():
                for key, value in entries.items():
                    part = found["state"][number][key]
                    if isinstance(value, torch.Tensor):  # matrices of zeros that pad a stack need not be there
                        assert torch.equal(part, value[: len(part)]), (number, key)
                        assert not value[len(part) :].any()
                    else:
                        assert part == value


def test_groups_and_stacks_are_those_of_the_wide_model(widened, tmp_path):
    (content,) = widened(1, factor=2)
    weights = torch.load(tmp_path / "wide1" / "model_000010.pt", weights_only=True)
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    expected, gate = state_of(shapes), 8
    assert [group["params"] for group in content["param_groups"]] == [g["params"] for g in expected["param_groups"]]
    for number, entries in expected["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor) and (number, key) != (gate, "second_momentum_buffer"):
                assert content["state"][number][key].shape == value.shape, (number, key)
    assert content["state"][gate].keys() == {"momentum_buffer"}  # 2 rows of 4 became 4, so averages change sides
    sizes = json.loads((tmp_path / "wide1" / "meta_000010.json").read_text())
    assert (sizes["model_config"]["n_embd"], sizes["model_config"]["n_head"], sizes["step"]) == (48, 8, 10)


def test_stacked_moments_are_those_of_their_matrices(widened, tmp_path):
    """Of a hidden matrix doubled in both directions, m c = 2 divides momentum; m / 2 = 2 divides the squares."""
    (content,) = widened(1, factor=2)
    (narrow,) = load(tmp_path / "narrow1")
    number = next(
        n for n, own in narrow["state"].items() if own.get("momentum_buffer", own.get("exp_avg")).shape == (4, 24, 24)
    )
    before, after = narrow["state"][number], content["state"][number]
    units = torch.arange(48)
    stream, heads = units % 24, units // 24 * 12 + units % 12  # tiled channels; key/value heads side by side
    one = 1  # c_proj of the first layer, after c_q
    expected = before["momentum_buffer"][one][stream][:, heads] / 2
    assert torch.equal(after["momentum_buffer"][one], expected)
    assert torch.equal(after["second_momentum_buffer"][one], before["second_momentum_buffer"][one][stream] / 2)


def test_files_of_other_steps_stay_behind(tmp_path):
    folder = save(tmp_path / "narrow", 2)
    for file in list(folder.iterdir()):
        (folder / file.name.replace("000010", "000005")).write_bytes(file.read_bytes())
    made = widen(folder, tmp_path / "wide", 2, verify=False)
    written = {file.name for file in (tmp_path / "wide").iterdir()} - {"mupscale.json"}
    assert written == {file.name for file in folder.iterdir() if "000010" in file.name}
    assert {file.name for file in made.files if file.fate == "widened" and file.name.startswith("optim")} == {
        "optim_000010_rank0.pt",
        "optim_000010_rank1.pt",
    }
    assert made.record["optimizer_state"]["files"] == ["optim_000010_rank1.pt"]
    assert widen(folder, tmp_path / "wide", 3, verify=False, overwrite=True).is_new  # all of it is its own


def test_a_missing_process_is_named(tmp_path):
    folder = save(tmp_path / "narrow", 3)
    (folder / "optim_000010_rank1.pt").unlink()
    with pytest.raises(CheckpointError, match="are those of ranks `0`, `2`"):
        widen(folder, tmp_path / "wide", 2)


def test_groups_of_another_version_are_refused(tmp_path):
    folder = save(tmp_path / "narrow", 1)
    content = torch.load(folder / "optim_000010_rank0.pt", weights_only=True)
    content["param_groups"] = content["param_groups"][:-1]
    torch.save(content, folder / "optim_000010_rank0.pt")
    with pytest.raises(CheckpointError, match="nanochat makes groups of"):
        widen(folder, tmp_path / "wide", 2)


def test_a_stack_with_several_learning_rates_is_refused(tmp_path):
    """What reads fresh units of the stream is scaled down, and what writes the stream is scaled up."""
    folder = save(tmp_path / "narrow", 1)
    with pytest.raises(CheckpointError, match="one group of nanochat's optimizer"):
        widen(folder, tmp_path / "wide", axes={"embed": "3/2", "kv": "3/2", "ffn": "3/2"}, verify=False)
