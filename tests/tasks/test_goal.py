"""Widening to the sizes of another model: where its config comes from, and what the output says about it."""

import json
import shutil

import pytest

from cli_runner import run
from mupscale_cli.checkpoints.json_files import read_json
from mupscale_cli.errors import HubError, PlanError
from mupscale_cli.tasks.goal import read_goal
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen


@pytest.fixture
def target(saved, tmp_path):
    """The config of a model that is twice as wide as Llama-tied, with as many key/value heads and another theta."""
    config = read_json(saved("Llama-tied") / "config.json")
    for key in ("hidden_size", "intermediate_size", "num_attention_heads"):
        config[key] *= 2
    config |= {"rope_parameters": {**config["rope_parameters"], "rope_theta": 5e5}, "vocab_size": 1000}
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "config.json").write_text(json.dumps(config))
    return tmp_path / "large"


def test_a_directory_and_a_config_file_give_the_same_plan(target, saved):
    plans = [plan_widening(saved("Llama-tied"), to=to) for to in (target, str(target / "config.json"))]
    assert plans[0].axes == plans[1].axes
    assert plans[0].factors == {"embed": 2, "g": 2, "ffn": 2}
    assert {row.key: row.fate for row in plans[0].goal.keys} == {
        "hidden_size": "grown",
        "intermediate_size": "grown",
        "num_attention_heads": "grown",
        "rope_parameters.rope_theta": "kept",
        "vocab_size": "kept",
    }


def test_the_output_is_verified_and_its_record_names_the_target(target, saved, tmp_path):
    result = run("widen", str(saved("Llama-tied")), "--to", str(target), "-o", str(tmp_path / "wide"), "--json")
    assert result.code == 0
    document = json.loads(result.out)
    assert (document["to"], document["verification"]["agrees"]) == (str(target), True)
    assert read_json(tmp_path / "wide" / "mupscale.json")["to"] == str(target)
    assert verify(tmp_path / "wide", only=("weights",)).agrees


def test_the_default_name_of_the_output_names_the_target(target, saved):
    result = run("widen", str(saved("Llama-tied")), "--to", str(target / "config.json"), "--dry-run", "--json")
    document = json.loads(result.out)
    assert document["output"].endswith("-to-large")
    assert document["to"]["keys"][0] == {
        "key": "hidden_size", "before": 48, "target": 96, "after": 96, "fate": "grown"
    }  # fmt: off


def test_an_axis_overrides_the_target(target, saved):
    assert plan_widening(saved("Llama-tied"), to=target, axes={"ffn": 3}).factors == {"embed": 2, "g": 2, "ffn": 3}


def test_only_the_config_of_a_model_on_the_hub_is_read(hub, target, saved):
    hub.add("org/large", {"config.json": (target / "config.json").read_bytes(), "model.safetensors": b"not read"})
    plan = plan_widening(saved("Llama-tied"), to="org/large")
    assert (plan.goal.name, plan.factors["embed"]) == ("org/large", 2)
    assert not hub.asked(r"model\.safetensors")
    hub.add("org/empty", {"README.md": b""})
    with pytest.raises(HubError, match=r"`org/empty` has no config\.json"):
        read_goal("org/empty")


def test_a_job_takes_a_target_relative_to_its_file(target, saved, tmp_path):
    step = f"steps: [{{widen: {saved('Llama-tied')}, to: large, output: wide, verify: false}}]"
    (tmp_path / "job.yaml").write_text(step)
    assert run("run", str(tmp_path / "job.yaml")).code == 0
    assert read_json(tmp_path / "wide" / "config.json")["hidden_size"] == 96


def test_a_target_with_a_readout_of_its_own_unties_unless_the_user_says_otherwise(target, saved):
    config = read_json(target / "config.json")
    (target / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    plan = plan_widening(saved("Llama-tied"), to=target)
    assert plan.untied == ("lm_head.weight",)
    assert {row.key: row.fate for row in plan.goal.keys}["tie_word_embeddings"] == "grown"
    assert plan_widening(saved("Llama-tied"), to=target, tie="fold").untied == ()


def test_impossible_targets_are_refused_before_anything_is_written(target, saved, tmp_path):
    with pytest.raises(PlanError, match="`factor` and `to` conflict"):
        widen(saved("Llama-tied"), tmp_path / "wide", 2, to=target)
    with pytest.raises(PlanError, match=r"no config\.json at"):
        widen(saved("Llama-tied"), tmp_path / "wide", to=tmp_path)
    bare = shutil.copy(saved("Llama-tied") / "model.safetensors", tmp_path)
    with pytest.raises(PlanError, match=r"has no config\.json"):
        widen(bare, tmp_path / "wide", to=target, recipe="llama")
    narrow = str(saved("Llama-tied"))
    assert widen(narrow, tmp_path / "wide", 2, verify=False).output.exists()
    result = run("widen", str(tmp_path / "wide"), "--to", narrow, "-o", str(tmp_path / "wider"))
    assert result.code == 2
    assert "cannot grow to" in result.err
    assert "`hidden_size` 96 -> 48: the axis `embed` (the residual stream) cannot shrink from 96 to 48" in result.err
    assert "`--axis embed=1 --axis kv=1 --axis ffn=1` would leave these sizes as in the source" in result.err


def test_a_deeper_target_adds_blocks_and_keeps_the_function(target, saved, tmp_path):
    config = read_json(target / "config.json")
    (target / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    widened = widen(saved("Llama-tied"), tmp_path / "wide", to=target, dtype="float64")
    assert widened.verification.max_rel < 1e-12
    assert read_json(tmp_path / "wide" / "config.json")["num_hidden_layers"] == 5
    assert {row.key: row.fate for row in widened.plan.goal.keys}["num_hidden_layers"] == "grown"
