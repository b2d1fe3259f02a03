"""The optimizer state and the hyperparameters of a deeper model: new blocks start from the beginning."""

import pytest
import torch

import training
from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.hyperparameters import Settings, hyperparameters
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A model in the middle of training with NAdam, and its deeper version."""
    folder = tmp_path_factory.mktemp("deep")
    source = training.save_training(folder / "narrow", "Llama-untied", "nadam")
    widened = widen(source, folder / "deep", layers=4, dtype="float64")
    return widened, torch.load(source / "optimizer.pt"), torch.load(widened.output / "optimizer.pt")


def by_name(state):
    groups = state["param_groups"]
    names = {n: name for g in groups for n, name in zip(g["params"], g["param_names"], strict=True)}
    return {names[number]: entries for number, entries in state["state"].items()}


def test_new_blocks_have_the_state_before_the_first_step(deep):
    _, narrow, wide = deep
    before, after = map(by_name, (narrow, wide))
    for name, entries in after.items():
        number = name.split(".")[2] if ".layers." in name else None
        if number in ("1", "3"):
            assert entries["mu_product"] == 1
            assert all(not entries[key].any() for key in ("step", "exp_avg", "exp_avg_sq"))
        else:
            source = name.replace(".layers.2.", ".layers.1.")
            assert all(torch.equal(value, before[source][key]) for key, value in entries.items())


def test_torch_loads_the_state_in_the_order_of_the_model(deep):
    import transformers

    widened, _, state = deep
    model = transformers.AutoModelForCausalLM.from_pretrained(widened.output, dtype=torch.float64)
    (group,) = state["param_groups"]
    assert group["param_names"] == [name for name, _ in model.named_parameters()]
    optimizer = torch.optim.NAdam(model.named_parameters(), decoupled_weight_decay=True)
    optimizer.load_state_dict(state)
    model(input_ids=torch.arange(12)[None]).logits.square().mean().backward()
    optimizer.step()
    moved = dict(model.named_parameters())["model.layers.1.mlp.down_proj.weight"]
    assert moved.any()


def test_old_blocks_take_the_same_steps_from_the_carried_state(deep):
    found = verify(deep[0].output, steps=3)
    assert found.agrees
    assert (found.training.start, found.training.frozen) == ("carried state", ("layers",))


def test_completep_scales_what_blocks_write_with(deep):
    record = deep[0].record
    plain, scaled = (
        {name: group for group in hyperparameters(record, settings).groups for name in group.tensors}
        for settings in (Settings(1e-3, weight_decay=0.1), Settings(1e-3, weight_decay=0.1, depth="completep"))
    )
    written, inside, outside = (
        f"model.{name}.weight" for name in ("layers.3.mlp.down_proj", "layers.0.mlp.up_proj", "embed_tokens")
    )
    ratios = {
        name: (scaled[name].lr / plain[name].lr, scaled[name].eps / plain[name].eps)
        for name in (written, inside, outside)
    }
    assert ratios == {written: (0.5, 1), inside: (1, 0.5), outside: (1, 1)}
    assert scaled[written].weight_decay == 2 * plain[written].weight_decay
    assert any("new blocks" in warning for warning in hyperparameters(record, Settings(1e-3)).warnings)
    with pytest.raises(PlanError, match="for AdamW"):
        hyperparameters(record, Settings(1e-3, optimizer="sgd", depth="completep"))
