"""Continuing in a torch loop: parameter groups and the weighted norm."""

import pytest
import torch

from cli_runner import run
from mupscale_cli.errors import CheckpointError, PlanError
from mupscale_cli.optimizers.hyperparameters import Settings, hyperparameters
from mupscale_cli.optimizers.torch_groups import clip_grad_norm_, param_groups
from mupscale_cli.tasks.widen import widen

Q = "model.layers.0.self_attn.q_proj.weight"


def by_name_of(wide):
    hparams = hyperparameters(wide.record, Settings(lr=1e-3, weight_decay=0.1))
    return {name: group for group in hparams.groups for name in group.tensors}


def test_param_groups_of_a_model(wide):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(wide.output)
    groups = param_groups(model, wide.output, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95))
    by_name = by_name_of(wide)
    for group in groups:
        for name in group["param_names"]:
            expected = by_name[name]
            assert group["lr"] == expected.lr
            assert group["eps"] == expected.eps
            assert group["weight_decay"] == expected.weight_decay
            assert group["betas"] == (0.9, 0.95)
    assert {name for group in groups for name in group["param_names"]} == {n for n, _ in model.named_parameters()}
    only = param_groups(model, wide.output, lr=1e-3, weight_decay=0.1, decay=[Q])
    assert [group["param_names"] for group in only if group["weight_decay"]] == [[Q]]
    for decay, is_decayed in (("all", lambda _: True), ("none", lambda _: False), ("matrices", lambda p: p.dim() > 1)):
        groups = param_groups(model, wide.output, lr=1e-3, weight_decay=0.1, decay=decay)
        assert all(bool(group["weight_decay"]) == is_decayed(p) for group in groups for p in group["params"])
    with pytest.raises(PlanError, match="unknown `decay` value `some`"):
        param_groups(model, wide.output, lr=1e-3, decay="some")


def test_groups_for_another_model_are_refused(wide, saved):
    import transformers

    narrow = transformers.AutoModelForCausalLM.from_pretrained(saved("Qwen3-tied"))
    with pytest.raises(CheckpointError, match="has the shape"):
        param_groups(narrow, wide.output, lr=1)
    with pytest.raises(CheckpointError, match="is not in the widened checkpoint"):
        param_groups(torch.nn.Linear(2, 2), wide.output, lr=1)
    with pytest.raises(CheckpointError, match="not written by mupscale"):
        param_groups(narrow, saved("Qwen3-tied"), lr=1)


def test_the_weighted_norm_is_that_of_the_narrow_gradient(wide, saved):
    import transformers

    tokens = torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(0))
    norms = []
    for place in (saved("Qwen3-tied"), wide.output):
        model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float64)
        model(tokens, labels=tokens).loss.backward()
        if place == wide.output:
            groups = param_groups(model, place, lr=1)
            norm = clip_grad_norm_(groups, 0.1)
            again = clip_grad_norm_(groups, float("inf"))
            assert again == pytest.approx(0.1, rel=1e-4)
        else:
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        norms.append(norm.item())
    # The reference computes norms and softmax in float32.
    assert norms[1] == pytest.approx(norms[0], rel=16 * 2**-24)
    assert norms[0] > 0.1


def test_parameters_have_their_names_in_the_model(saved, tmp_path):
    """GPT-NeoX saves `lm_head` as `embed_out`."""
    import transformers

    wide = widen(saved("GPTNeoX-untied"), tmp_path / "wide", 2, verify=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(wide.output)
    groups = param_groups(model, wide.output, lr=1.0)
    rate = next(group["lr"] for group in groups if "lm_head.weight" in group["param_names"])
    assert rate == 1 / 2
    assert "lm_head.weight" in by_name_of(wide)


def test_groups_are_in_the_order_of_the_widened_state(saved, tmp_path):
    """StableLM has a norm for each head, in numbered modules: copies stand between the heads, not at their ends."""
    import transformers

    source = saved("StableLm-parallel")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.ones(1, 4, dtype=torch.long)).logits.square().mean().backward()
    optimizer.step()
    narrow = tmp_path / "narrow"
    model.save_pretrained(narrow)
    torch.save(optimizer.state_dict(), narrow / "optimizer.pt")
    widen(narrow, tmp_path / "wide", factor=3, verify=False)
    wide = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "wide")
    state = torch.load(tmp_path / "wide" / "optimizer.pt")
    names = [group["param_names"] for group in state["param_groups"]]
    printed = {}
    exec(run("hparams", str(tmp_path / "wide"), "--format", "torch").out, printed)  # noqa: S102 (what it prints)
    for groups in (param_groups(wide, tmp_path / "wide", lr=1e-3, decay="all"), printed["param_groups"](wide)):
        assert [group["param_names"] for group in groups] == names


def test_a_config_with_an_infinity_names_the_parameters_of_a_state(saved, tmp_path):
    """Transformers writes it as a tag, which the config's class does not read by itself."""
    import transformers

    source = saved("Mamba2-untied")
    assert '"Infinity"' in (source / "config.json").read_text()
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.ones(1, 4, dtype=torch.long)).logits.square().mean().backward()
    optimizer.step()
    model.save_pretrained(tmp_path / "narrow")
    torch.save(optimizer.state_dict(), tmp_path / "narrow" / "optimizer.pt")
    wide = widen(tmp_path / "narrow", tmp_path / "wide", 2, verify=False)
    assert "backbone.layers.0.mixer.in_proj.weight" in by_name_of(wide)
