"""Checkpoints without all weights of the reference class, and with weights that the class ignores."""

import shutil

import pytest

from helpers import change_config, change_tensors, save_model
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.errors import VerifyError
from mupscale_cli.tasks.widen import widen


def without(directory, *parts):
    """Remove every tensor whose name contains one of the parts."""
    return change_tensors(
        directory, lambda tensors: {n: t for n, t in tensors.items() if not any(part in n for part in parts)}
    )


def encoder(directory, prefix):
    """Save a BERT encoder without its pooler, as sentence encoders are published."""
    save_model(directory, "Bert-tied")
    change_config(directory, architectures=["BertModel"])
    return change_tensors(
        directory,
        lambda tensors: {
            prefix + name.removeprefix("bert."): value for name, value in tensors.items() if not name.startswith("cls.")
        },
    )


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_an_encoder_without_the_pooler_of_its_class_is_verified_without_it(prefix, tmp_path):
    function = widen(encoder(tmp_path / "narrow", prefix), tmp_path / "wide", 2).verification
    assert function.agrees
    assert function.max_rel > 0
    assert function.missing == ("pooler.dense.bias", "pooler.dense.weight")
    assert not any("pooler" in name for name in open_checkpoint(tmp_path / "wide").tensors)


def test_a_module_without_weights_is_not_compared(saved, tmp_path):
    complete = saved("ViT-pooler")
    lacking = without(shutil.copytree(complete, tmp_path / "narrow"), "pooler")
    checks = [widen(source, tmp_path / f"wide-{source.parent.name}", 2).verification for source in (complete, lacking)]
    modules = ({comparison.what for comparison in check.modules} for check in checks)
    assert set.difference(*modules) == {"pooler.dense"}
    assert [len(check.missing) for check in checks] == [0, 2]


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("Llama-untied", ["lm_head"]),  # the logits depend on it
        ("Llama-untied", ["0.self_attn.q_proj.bias"]),
        ("Bert-pretraining", ["pooler"]),  # a stored head depends on it
        ("Bert-pooler", ["classifier"]),
    ],
)
def test_a_checkpoint_without_needed_weights_is_refused(case, parts, saved, tmp_path):
    """Recipes call all these tensors optional, since other configs have none."""
    narrow = without(shutil.copytree(saved(case), tmp_path / "narrow"), *parts)
    with pytest.raises(VerifyError, match=r"lacks|missing"):
        widen(narrow, tmp_path / "wide", 2)
    assert not (tmp_path / "wide").exists()
