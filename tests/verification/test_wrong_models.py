"""Which wrong models are noticed in which data type: right and wrong models of four families, shallow and deep."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli_runner import run
from helpers import save_model
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification.comparing import verify_checkpoints
from mupscale_cli.verification.options import VerifyOptions
from mupscale_cli.verification.result import CannotVerify

DTYPES = ("bfloat16", "float16", "float32", "float64")
# Family, the depth settings, and the names of tensors by their part in the model; a number in a name is the layer.
FAMILIES = {
    "Llama-untied": (
        ("num_hidden_layers",),
        {
            "query": "model.layers.{}.self_attn.q_proj.weight",
            "output": "model.layers.{}.self_attn.o_proj.weight",
            "gain": "model.layers.{}.post_attention_layernorm.weight",
            "down": "model.layers.{}.mlp.down_proj.weight",
            "bias": "model.layers.{}.mlp.up_proj.bias",
            "embedding": "model.embed_tokens.weight",
            "readout": "lm_head.weight",
        },
    ),
    "GPT2-tied": (
        ("n_layer",),
        {
            "query": "transformer.h.{}.attn.c_attn.weight",
            "output": "transformer.h.{}.attn.c_proj.weight",
            "gain": "transformer.h.{}.ln_2.weight",
            "down": "transformer.h.{}.mlp.c_proj.weight",
            "bias": "transformer.h.{}.mlp.c_fc.bias",
            "embedding": "transformer.wpe.weight",
            "readout": "transformer.ln_f.weight",
        },
    ),
    "Mixtral-tied": (
        ("num_hidden_layers",),
        {
            "query": "model.layers.{}.self_attn.q_proj.weight",
            "output": "model.layers.{}.self_attn.o_proj.weight",
            "gain": "model.layers.{}.post_attention_layernorm.weight",
            "down": "model.layers.{}.block_sparse_moe.experts.2.w2.weight",
            "bias": "model.layers.{}.block_sparse_moe.gate.weight",
            "embedding": "model.embed_tokens.weight",
            "readout": "model.norm.weight",
        },
    ),
    "T5-gated": (
        ("num_layers", "num_decoder_layers"),
        {
            "query": "decoder.block.{}.layer.0.SelfAttention.q.weight",
            "output": "decoder.block.{}.layer.1.EncDecAttention.o.weight",
            "gain": "encoder.block.{}.layer.1.layer_norm.weight",
            "down": "encoder.block.{}.layer.1.DenseReluDense.wo.weight",
            "bias": "decoder.block.{}.layer.2.DenseReluDense.wi_0.weight",
            "embedding": "shared.weight",
            "readout": "decoder.final_layer_norm.weight",
        },
    ),
}


def doubled(tensor):
    return tensor * 2


def halves_swapped(tensor):
    """Return the two halves of the rows in the other order: the heads of a query, or the units of a layer."""
    return tensor.roll(tensor.shape[0] // 2, 0)


# Part of the model and change: every one leaves a model that loads and runs.
NONSENSE = {
    "queries times 2": ("query", doubled),
    "no 1/k on an output projection": ("output", doubled),
    "no 1/k on a down projection": ("down", doubled),
    "a zeroed down projection or expert": ("down", torch.zeros_like),
    "a gain divided by k": ("gain", lambda tensor: tensor / 2),
    "permuted units of an output projection": ("output", halves_swapped),
    "permuted heads or input units of the queries": ("query", halves_swapped),
    "a bias or router times 2": ("bias", doubled),
    "an embedding times sqrt(2)": ("embedding", lambda tensor: tensor * 2**0.5),
    "no 1/k on the readout": ("readout", doubled),
}


@pytest.fixture(scope="module")
def pair(request, tmp_path_factory):
    """A narrow checkpoint, its widening by a factor, the plan and the number of layers."""
    case, layers, factor = request.param
    folder = tmp_path_factory.mktemp("pair")
    source = save_model(folder / "narrow", case, **dict.fromkeys(FAMILIES[case][0], layers))
    widen(source, folder / "wide", factor, verify=False)
    return case, layers, source, folder / "wide", plan_widening(source, factor=factor)


def verdict(source, wide, plan, dtype):
    """Return what the comparison says."""
    try:
        found = verify_checkpoints(open_checkpoint(source), open_checkpoint(wide), plan, VerifyOptions(dtype=dtype))
    except CannotVerify:
        return "refused"
    return "same" if found.agrees else "differs"


def spoiled(wide, name, change):
    """Change a tensor of the wide checkpoint until the next call."""
    file, right = wide / "model.safetensors", wide.with_name("right.safetensors")
    if not right.exists():
        right.write_bytes(file.read_bytes())
    tensors = load_file(right)
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})


def table(pair, nonsense, dtypes):
    """Yield a row for the right model and one for each wrong one: what it is, and the verdict in each type."""
    case, layers, source, wide, plan = pair
    yield "right", [verdict(source, wide, plan, dtype) for dtype in dtypes]
    for what in nonsense:
        part, change = NONSENSE[what]
        spoiled(wide, FAMILIES[case][1][part].format(layers // 2), change)
        yield what, [verdict(source, wide, plan, dtype) for dtype in dtypes]


def check(rows, case, dtypes):
    """Right models agree and wrong ones differ; 16-bit types may refuse if experts share a tensor."""
    for what, verdicts in rows:
        for dtype, said in zip(dtypes, verdicts, strict=True):
            expected = "same" if what == "right" else "differs"
            may_refuse = case.startswith("Mixtral") and dtype in ("bfloat16", "float16")
            assert said == expected or (may_refuse and said == "refused"), (what, dtype, said)


@pytest.mark.parametrize(
    "pair", [pytest.param(("Llama-untied", 12, 3), marks=pytest.mark.slow), ("T5-gated", 2, 2)], indirect=True, ids=str
)
def test_wrong_models_are_noticed_in_bfloat16(pair):
    nonsense = ["queries times 2", "a gain divided by k", "permuted units of an output projection"]
    check(table(pair, nonsense, ["bfloat16"]), pair[0], ["bfloat16"])


@pytest.mark.parametrize("pair", [("Mixtral-tied", 2, 2)], indirect=True, ids=str)
def test_a_type_that_cannot_tell_refuses(pair):
    """Experts that share a tensor change the next norm by less than bfloat16 resolves in this model."""
    nonsense = ["a zeroed down projection or expert"]
    rows = dict(table(pair, nonsense, ["bfloat16", "float32"]))
    assert rows == {"right": ["refused", "same"], nonsense[0]: ["refused", "differs"]}
    result = run("verify", str(pair[2]), str(pair[3]), "--dtype", "bfloat16", "--only", "function")
    assert result.code == 2
    assert "bfloat16 cannot tell this model from a wrong one" in result.err
    assert "a forgotten factor of 2 in `model.layers.*.mlp." in result.err
    assert "hint: compare with more precision: `--dtype float32`" in result.err


EVERYTHING = [(case, layers, factor) for case in FAMILIES for layers in (2, 12) for factor in (2, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("pair", EVERYTHING, indirect=True, ids=str)
def test_right_models_agree_and_wrong_ones_differ_in_every_type(pair):
    check(table(pair, NONSENSE, DTYPES), pair[0], DTYPES)
