"""The wide model, with its carried state, takes the same optimizer steps as the narrow one."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from helpers import MODELS, build, randomize, save_model
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.rules.powers import Powers
from mupscale_cli.optimizers.rules.rule import SAME
from mupscale_cli.optimizers.rules.table import OPTIMIZERS as RULES
from mupscale_cli.tasks.planning import identity_plan, plan_widening
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification.expected_steps import ExpectedParameter, GradientHistory
from mupscale_cli.verification.inputs.batch import Inputs
from mupscale_cli.verification.optimizers import decayed_parameters
from mupscale_cli.verification.options import VerifyOptions
from mupscale_cli.verification.result import CannotVerify
from mupscale_cli.verification.steps import train_checkpoints
from mupscale_cli.verification.trainees import Start, make_trainee, take_step
from mupscale_cli.verification.training import batch_loss
from small_models.multimodal import REQUIRES
from training import CASES, OPTIMIZERS, first_steps, make, named_kind, save_training

STEPS, SLOW_STEPS = 4, 20  # a wrong rule shows after two
# Phi-3 has one tensor for queries, keys and values. If g is widened, their multiplicities differ, and eps is inexact.
AXES = {
    "Phi3": {"embed": 2, "kv": 3, "ffn": 4},
    "Qwen3": {"embed": 2, "kv": 3, "g": 2, "ffn": 4},
    "GPT2": {"h": 3, "embed": 3, "ffn": 2},
}
# The parts of these fused projections always have different coefficients or multiplicities.
FUSED = ("Bloom", "Mpt", "GPTBigCode-multi", "Falcon-multi", "FocalNet", "MobileViT2")
HEADLESS = ("ViT-pooler", "T5-encoder", "CLIPText", "CLIPVision", "SiglipText", "SiglipVision", "Dinov3ViT")
HEADLESS += (
    "Siglip2Vision",
    "DINOv3ConvNext",
    "DonutSwin",
    "MaskFormerSwin",
    "RegNet-bare",
    "CLAP-audio",
    "Qwen2AudioEncoder",
    "LasrEncoder",
    "Granite4Vision-text",
    "PPLCNet",
    "DPR",
)
# With these weights, the last ReLU gives zeros.
HEADLESS += ("DPT-depths",)
# A BatchNorm behind a pooling over the whole image normalizes the two values of the batch, which turns rounding errors
# of 1e-16 into differences of 1e-8, and of 0.1 for masks, for which `verify` asks for fewer steps.
TWO_VALUES = ("MobileNet2", "MobileViT-masks", "LeViT")
# Sines and cosines of new frequencies get weights that learn.
SINUSOIDS = ("XLNet", "Wav2Vec2Conformer-sinusoids", "Wav2Vec2Bert-sinusoids", "Parakeet")
TRAINED = [case for case in MODELS if not case.startswith((*FUSED, *HEADLESS, *SINUSOIDS, *TWO_VALUES))]
# One case per kind of architecture: dense, offset gains, mixtures of experts in four forms, latent attention, encoders,
# encoder-decoders, convolutions with and without BatchNorm, state spaces and hybrids, images with text.
KINDS = [
    "Qwen3-tied",
    "GPT2-tied",
    "Mixtral-tied",
    "Qwen2Moe-untied",
    "DeepseekV3-untied",
    "Bert-tied",
    "ModernBert-tied",
    "T5-gated",
    "ViT-classifier",
    "Swin-classifier",
    "ResNet-basic",
    "Mamba-tied",
    "Llava-clip",
]
# Relatives of those above, or their reference implementations scan, or convolve in float64.
SLOW_KINDS = [
    *("Llama-tied", "Phi3-untied", "Cohere-tied", "Nemotron-untied", "GPTNeoX-tied", "Gemma3-tied", "GptOss-tied"),
    *("Bart-tied", "ResNet-bottleneck"),
    "Mamba2-untied",
    "FalconH1-tied",
    "ConvNextV2-classifier",
    "Electra-tied",
    "Whisper-tied",
    "Lfm2-tied",
    "StableLm-parallel",
    "Dinov2-gated",
    "GraniteMoeShared-tied",
    "OPT-projected",
    "CLIP-both",
]
ALL_KINDS = [*KINDS, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW_KINDS)]
MIXED = AXES["Qwen3"]
NO_MATRICES = ("ResNet", "ConvNext")


def train(tmp_path, case, optimizer, factor=None, axes=None, steps=STEPS):
    source = save_training(tmp_path / "narrow", case, optimizer)
    widen(source, tmp_path / "wide", factor, axes, optimizer_kind=named_kind(optimizer), verify=False)
    return verify(tmp_path / "wide", dtype="float64", steps=steps).training


def check(training, steps=STEPS):
    assert training.agrees, training
    assert training.carried
    assert training.max_rel < 1e-10
    assert len(training.losses) == steps
    assert training.losses[0][0] != training.losses[-1][0]


@pytest.fixture
def steps(request):
    """The number of optimizer steps: slow tests take more."""
    return SLOW_STEPS if request.node.get_closest_marker("slow") else STEPS


@pytest.mark.parametrize("optimizer", CASES)
def test_every_optimizer(optimizer, tmp_path):
    check(train(tmp_path, "Qwen3-tied", optimizer, axes=MIXED))


@pytest.mark.parametrize("case", ALL_KINDS)
def test_every_kind_of_architecture(case, steps, tmp_path):
    axes = AXES.get(case.partition("-")[0])
    check(train(tmp_path, case, "adamw", None if axes else 3, axes, steps), steps)


@pytest.mark.parametrize(
    "case",
    [
        "Mixtral-tied",
        *(pytest.param(case, marks=pytest.mark.slow) for case in ("Qwen2Moe-untied", "GptOss-tied", "GraniteMoe-tied")),
    ],
)
def test_copied_experts_train_alike(case, tmp_path):
    """The router has to choose the same experts, with all of their copies."""
    check(train(tmp_path, case, "adamw", axes={"experts": 2, "embed": 2}))


@pytest.mark.parametrize("case", ["FocalNet", pytest.param("MobileViT2-classifier", marks=pytest.mark.slow)])
def test_only_eps_is_inexact_for_rows_that_stay_beside_rows_that_grow(case, tmp_path, monkeypatch):
    """Of one projection. Lion has no eps and takes the same steps; AdamW takes those of the other parameters."""
    check(train(tmp_path / "lion", case, "lion", 3))
    training = train(tmp_path / "adamw", case, "adamw", 3)
    assert training.agrees, training
    assert training.steps == 1
    assert training.inexact
    assert all("projection_in" in name or "qkv_proj" in name for name in training.inexact)
    (text,) = training.caveats
    assert "separate values of eps up to 3 times as large" in text
    assert "Learning rates are exact" in text
    monkeypatch.setattr("mupscale_cli.verification.training._inexact", lambda *_: (set(), ()))
    assert not train(tmp_path / "compared", case, "adamw", 3).agrees


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in TRAINED if case not in (*KINDS, *SLOW_KINDS)])
def test_every_recipe(case, steps, tmp_path):
    check(train(tmp_path, case, "adamw", 2, steps=steps), steps)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("case", [*KINDS, *SLOW_KINDS])
def test_every_kind_with_every_optimizer(case, optimizer, factor, steps, tmp_path):
    if optimizer in ("muon", "shampoo") and case.startswith(NO_MATRICES):
        pytest.skip(f"{optimizer} trains only matrices, and these are convolutions or stacks of matrices")
    check(train(tmp_path, case, optimizer, factor, steps=steps), steps)


# The allowance ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["ResNet-basic", "ResNet-bottleneck", "Llama-untied", "Gemma2-tied"])
def test_a_fresh_start_agrees(case, saved, tmp_path):
    """Adam's first steps have the size of the learning rate, however small the gradient: rounding decides some."""
    widen(saved(case), tmp_path / "wide", 3, verify=False)
    training = verify(tmp_path / "wide", dtype="float64", steps=20).training
    assert training.agrees, training
    assert training.start == "a fresh start"
    assert training.weights.moved > 1e6 * training.weights.allowed


@pytest.mark.slow
@pytest.mark.parametrize("case", TRAINED)
def test_a_fresh_start_of_every_recipe_agrees(case, saved, tmp_path):
    widen(saved(case), tmp_path / "wide", 3, verify=False)
    assert verify(tmp_path / "wide", dtype="float64", steps=20).training.agrees


def test_the_allowance_is_a_multiple_of_the_measured_response(tmp_path):
    training = train(tmp_path, "Llama-tied", "adamw", 3)
    record = training.as_record()
    assert record["factor"] == 8 * 144**0.5  # the longest sum: 3 times 48 units
    assert record["factor_reason"] == "8 sqrt(n), n = 144"
    assert record["tolerance"] == record["factor"] * record["response"]
    # A loss cannot be known more closely than 2^-52; disturbing last bits changes it by a few of those.
    assert 2**-52 <= record["response"] < 100 * 2**-52
    assert 2**-53 < training.weights.allowed / training.factor < 1e-14


def test_what_rounding_leaves_of_a_gradient_that_cancels_is_not_compared(tmp_path):
    """The biases of LeViT's keys cancel in the softmax; one's gradient is 0 in the narrow model, not in the wide one.

    Their BatchNorm makes values as well, so the parameter has other gradients.
    """
    wide = tmp_path / "wide"
    widen(save_model(tmp_path / "narrow", "LeViT"), wide, 2, verify=False)
    training = verify(wide, dtype="float64", steps=1).training
    assert training.agrees, training


def test_opposite_gradients_that_cancel_to_zero_are_rounding_errors(tmp_path):
    """Those of a bias in front of a BatchNorm over two values: exactly 0 in the narrow model, not in the wide one."""
    history = GradientHistory(nn.Parameter(torch.zeros(3)), 8.0)
    history.add(torch.tensor([0.0, 1e-16, -2e-16]), torch.tensor([0.0, -1e-16, 1e-16]))
    assert history.only_rounding.all()
    history.add(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]))
    assert history.only_rounding.tolist() == [False, False, True]  # the first one must stay 0
    untouched = GradientHistory(nn.Parameter(torch.zeros(3)), 8.0)
    untouched.add(torch.zeros(3), torch.zeros(3))
    assert not untouched.only_rounding.any()
    assert untouched.rounding == 0  # so all of them must stay 0


def test_a_gradient_of_zero_must_be_one_in_the_wide_model_or_a_rounding_error(saved):
    """Tokens that no text has do not move, and biases of keys that cancel may."""
    plan = plan_widening(saved("Llama-untied"), factor=2)
    tensor = next(tensor for tensor in plan.tensors if tensor.target.name == "model.norm.weight")
    (size,) = tensor.source.shape
    history = GradientHistory(nn.Parameter(torch.zeros(size)), 8.0)
    gradient = torch.ones(size, dtype=torch.float64).index_fill(0, torch.tensor([0, 1]), 0.0)
    history.add(gradient, gradient * (1 + 2**-50))
    assert history.zeros.nonzero().flatten().tolist() == [0, 1]
    expected = ExpectedParameter(
        tensor=tensor,
        narrow=gradient,
        allowed=0.0,
        moved=1.0,
        ignored=history.only_rounding,
        zeros=history.zeros,
        gradient_rounding=history.rounding,
        has_rate=True,
        has_gradient=history.has_gradient,
    )
    bound = 8 * 2**-50 / 2  # a gradient of two copies is half of the original's
    wide = torch.full((2 * size,), 0.5, dtype=torch.float64)
    wide[:4] = torch.tensor([0.0, bound, 2 * bound, bound / 2], dtype=torch.float64)
    assert expected.ignored_copies(wide).nonzero().flatten().tolist() == [1, 3]
    assert not expected.ignored_copies(None).any()
    assert not replace(expected, gradient_rounding=0.0).ignored_copies(wide).any()


@pytest.mark.parametrize("case", ["HGNet2-affine", pytest.param("GroupViT-both", marks=pytest.mark.slow)])
def test_parameters_in_front_of_a_batch_norm_agree(case, tmp_path):
    """A single number that all channels share may be exactly where it was without the disturbance."""
    training = train(tmp_path, case, "adamw", 2, steps=SLOW_STEPS)
    assert training.agrees, training
    assert training.weights.allowed > 0


def test_gradients_that_are_rounding_errors_are_not_compared(tmp_path):
    """The bias of attention's keys cancels in the softmax, and Lion follows the sign of its rounding errors."""
    training = train(tmp_path, "GPT2-tied", "lion", 2)
    check(training)
    assert training.ignored == 2 * 32  # of two layers, the keys' third of the biases
    assert train(tmp_path / "llama", "Llama-tied", "lion", 2).ignored == 0


@pytest.mark.parametrize(
    ("case", "head"),
    [
        ("SpeechT5", "SpeechT5ForTextToSpeech"),
        pytest.param("SpeechT5", "SpeechT5ForSpeechToSpeech", marks=pytest.mark.slow),
        pytest.param("Swin-classifier", "SwinForMaskedImageModeling", marks=pytest.mark.slow),
        pytest.param("DPT-depths", "DPTForDepthEstimation", marks=pytest.mark.slow),
    ],
)
def test_a_head_that_predicts_sound_or_images_trains(case, head, tmp_path):
    _, config_class, settings = MODELS[case]
    model = getattr(transformers, head)(getattr(transformers, config_class)(**settings))
    randomize(model).save_pretrained(tmp_path / "narrow")
    widen(tmp_path / "narrow", tmp_path / "wide", 2, verify=False)
    assert verify(tmp_path / "wide", dtype="float64", steps=2).training.agrees


# The mode of a step -------------------------------------------------------------------------------


class Merging(nn.Module):
    """A layer that evaluates with other weights, as one of LoRA may, and that drops units at random in training."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.frozen = nn.BatchNorm1d(4)
        self.normalized = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.5)
        self.is_merged = False
        self.kept = None

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        self.is_merged = not mode
        if mode:
            self.kept = None
        return self

    def forward(self, values):
        assert not self.is_merged
        if self.kept is None or self.training:
            self.kept = 2 * self.weight
        return self.normalized(self.frozen(self.dropout(values) * self.kept))


def test_a_step_runs_in_the_mode_of_training_without_dropout():
    """Its class hears that training goes on, so that it keeps nothing from the step before and merges nothing."""
    model = Merging().eval()
    start = Start([({"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}, ["weight"])], {}, ["adamw"])
    trainee = make_trainee(model, start)
    values = torch.arange(12.0).reshape(3, 4).sin()
    losses = [take_step(trainee, lambda net, _: net(values).square().mean() + net.kept.sum(), 0) for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]
    assert not model.dropout.training
    assert not model.frozen.training
    assert model.normalized.training
    assert (model.frozen.num_batches_tracked, model.normalized.num_batches_tracked) == (0, 3)


# Steps that show nothing --------------------------------------------------------------------------


def change_groups(folder, change):
    """Change every parameter group of a stored state."""
    file = folder / "optimizer.pt"
    state = torch.load(file, weights_only=True)
    for group in state["param_groups"]:
        change(group)
    torch.save(state, file)


def finished(tmp_path, settings):
    """Widen a checkpoint whose schedule has ended: its groups have other settings than in the middle of training."""
    source = save_training(tmp_path / "narrow", "Llama-tied", "adamw")
    change_groups(source, lambda group: group.update(settings))
    widen(source, tmp_path / "wide", 3, verify=False)
    return tmp_path / "wide"


def test_a_finished_run_is_continued_with_its_initial_rate(tmp_path):
    wide = finished(tmp_path, {"lr": 0.0, "initial_lr": 3e-3})
    training = verify(wide, dtype="float64", steps=STEPS).training
    check(training)
    assert "lr 0.003" in training.optimizer
    assert training.weights.moved > 1e-3
    change_groups(wide, lambda group: group.update(initial_lr=group["initial_lr"] * 1.01))
    wrong = verify(wide, dtype="float64", steps=STEPS).training
    assert not wrong.steps_agree
    assert any("initial_lr" in name for name in wrong.stored_differences)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"lr": 0.0}, "every learning rate in the optimizer state is 0"), ({"lr": 1e-15}, "cannot show that both models")],
)
def test_steps_that_move_nothing_are_refused(settings, reason, tmp_path):
    wide = finished(tmp_path, settings)
    with pytest.raises(CannotVerify, match=reason) as refused:
        verify(wide, dtype="float64", steps=2)
    assert "--optimizer none" in refused.value.hint
    assert verify(wide, dtype="float64", steps=2, optimizer=Path("none")).training.agrees


def test_frozen_parameters_stay_and_the_others_are_compared(tmp_path):
    source = save_training(tmp_path / "narrow", "Llama-tied", "adamw")
    file = source / "optimizer.pt"
    state = torch.load(file, weights_only=True)
    (group,) = state["param_groups"]
    frozen = {**group, "lr": 0.0, "params": group["params"][:5], "param_names": group["param_names"][:5]}
    rest = {**group, "params": group["params"][5:], "param_names": group["param_names"][5:]}
    torch.save({**state, "param_groups": [frozen, rest]}, file)
    widen(source, tmp_path / "wide", 3, verify=False)
    check(verify(tmp_path / "wide", dtype="float64", steps=STEPS).training)
    change_groups(tmp_path / "wide", lambda group: group.update(lr=group["lr"] or 1e-9))
    assert not verify(tmp_path / "wide", dtype="float64", steps=STEPS).training.steps_agree


@pytest.mark.parametrize("case", ["Marian-tied", pytest.param("Whisper-tied", marks=pytest.mark.slow)])
def test_what_a_class_freezes_is_not_trained(case, saved, tmp_path):
    """Their tables of sines have no gradient in training, so that no optimizer moves them."""
    frozen = {name for name, parameter in build(case).named_parameters() if not parameter.requires_grad}
    assert frozen
    assert not frozen & decayed_parameters(build(case)).keys()
    widen(saved(case), tmp_path / "wide", 2, verify=False)
    assert verify(tmp_path / "wide", dtype="float64", steps=2).training.agrees


def test_a_frozen_table_that_no_checkpoint_has_leaves_its_group(tmp_path):
    """`AdamW(model.parameters())` lists Marian's tables of sines, which are not saved, without a state."""
    source = save_training(tmp_path / "narrow", "Marian-tied", "adamw")
    table = "model.encoder.embed_positions.weight"
    file = source / "optimizer.pt"
    state = torch.load(file, weights_only=True)
    (group,) = state["param_groups"]
    assert table in group["param_names"]
    widen(source, tmp_path / "wide", 2, verify=False)
    check(verify(tmp_path / "wide", dtype="float64", steps=STEPS).training)
    groups = torch.load(tmp_path / "wide" / "optimizer.pt", weights_only=True)["param_groups"]
    frozen = {name for name in group["param_names"] if "embed_positions" in name}
    assert {name for wide in groups for name in wide["param_names"]} == set(group["param_names"]) - frozen
    number = group["param_names"].index(table)
    torch.save({**state, "state": {**state["state"], number: state["state"][0]}}, file)
    with pytest.raises(PlanError, match=f"has state for `{re.escape(table)}`, but the checkpoint has no"):
        widen(source, tmp_path / "trained", 2, verify=False)


def test_logits_of_a_decoder_are_compared_with_its_own_words():
    """The encoder of Florence-2 reads images as well as words, so that its sequence is longer."""

    class Output(dict):
        logits = torch.zeros(2, 5, 7, requires_grad=True)

    inputs = Inputs((), {"input_ids": torch.zeros(2, 9).long(), "decoder_input_ids": torch.full((2, 5), 3)}, "")
    loss = batch_loss(lambda _model, _step: inputs, lambda output: output.logits, 0)
    value = loss(lambda **_keywords: Output(), 0)
    value.backward()
    assert value.item() == pytest.approx(math.log(7))
    assert Output.logits.grad[..., 3].lt(0).sum() == 2 * 4
    del inputs.keywords["decoder_input_ids"]
    assert loss(lambda **_keywords: Output(), 0).item() != pytest.approx(math.log(7))


# Default decay ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", ["Gemma3-tied", "Nemotron-untied", "Mamba-tied", "T5-gated", "ResNet-basic", "CLIP-both"]
)
def test_a_fresh_start_decays_what_the_trainer_decays(case):
    from transformers import Trainer

    model = build(case)
    decayed = decayed_parameters(model)
    trainer = set(Trainer.get_decay_parameter_names(None, model))  # names tied parameters several times
    assert {name for name in decayed if decayed[name]} == trainer & decayed.keys()
    assert set(decayed.values()) == {True, False}


def test_a_scaled_offset_gain_is_not_decayed_after_a_fresh_start(saved, tmp_path):
    """The Trainer's list of names lets `norm_key` of Qwen4 decay, which a larger gain cannot do in the same step."""
    name = "model.layers.0.ple.norm_key.weight"
    assert decayed_parameters(build("Qwen4ExpText-tied"))[name]
    widen(saved("Qwen4ExpText-tied"), tmp_path / "wide", 2, verify=False)
    assert verify(tmp_path / "wide", dtype="float64", steps=2).training.agrees


@pytest.mark.slow
def test_no_offset_gain_is_decayed(saved):
    """Decay acts on the stored difference from 1, not on the gain, so it cannot be preserved."""
    decayed_by_name = ("ple.norm_key.weight", "ple.norm_query.weight", "ple.norm_conv.weight")
    offsets = 0
    for case in (case for case in MODELS if case not in REQUIRES):
        decayed = decayed_parameters(build(case))
        plan = identity_plan(open_checkpoint(saved(case)), None)
        for tensor in plan.tensors:
            if tensor.offset:
                offsets += 1
                name = plan.recipe.parameter_name(tensor.target.name)
                assert not decayed[name] or name.endswith(decayed_by_name)
    assert offsets > 20


# Mistakes -----------------------------------------------------------------------------------------


def spoil(folder, name, change):
    """Give one parameter of a stored state a group of its own, and change that group and its state entries."""
    file = folder / "optimizer.pt"
    state = torch.load(file, weights_only=True)
    for group in list(state["param_groups"]):
        if name in group["param_names"]:
            place = group["param_names"].index(name)
            number = group["params"].pop(place)
            group["param_names"].pop(place)
            own = {**group, "params": [number], "param_names": [name]}
            state["param_groups"].append(own)
            change(own, state["state"][number])
    state["param_groups"] = [group for group in state["param_groups"] if group["params"]]
    torch.save(state, file)


def multiply(key, factor):
    """Return a change for `spoil`: multiply a setting, or every moment if `key` is `state`."""

    def change(group, entries):
        if key == "state":
            for value in entries.values():
                if isinstance(value, torch.Tensor) and value.dim():  # not a count of steps
                    value.mul_(factor)
        else:
            group[key] *= factor

    return change


SPOILED = {
    "Llama-tied": "model.layers.1.mlp.down_proj.weight",
    "GPT2-tied": "transformer.h.0.attn.c_attn.weight",
    "Mixtral-tied": "model.layers.1.mlp.gate.weight",
    "T5-gated": "decoder.block.1.layer.1.EncDecAttention.o.weight",
    "ResNet-basic": "resnet.encoder.stages.1.layers.0.layer.1.convolution.weight",
}
WRONG = [("lr", 2), ("lr", 1.01), ("state", 2)]


@pytest.mark.parametrize(
    ("case", "optimizer"),
    [("Llama-tied", "adamw"), ("GPT2-tied", "sgd"), ("Mixtral-tied", "lion"), ("ResNet-basic", "adamw")]
    + [
        pytest.param(case, optimizer, marks=pytest.mark.slow)
        for case in SPOILED
        for optimizer in OPTIMIZERS
        if not (optimizer == "muon" and case.startswith(NO_MATRICES))
    ],
)
def test_a_mistake_in_one_parameter_is_found_by_its_steps(case, optimizer, tmp_path):
    """The steps themselves tell, and name the parameter; not only the comparison of what is stored."""
    source = save_training(tmp_path / "narrow", case, optimizer)
    widen(source, tmp_path / "wide", 2, optimizer_kind=named_kind(optimizer), verify=False)
    right = (tmp_path / "wide" / "optimizer.pt").read_bytes()
    for key, factor in WRONG:
        if key == "state" and optimizer == "lion":
            continue  # a step has only the sign of the state
        (tmp_path / "wide" / "optimizer.pt").write_bytes(right)
        spoil(tmp_path / "wide", SPOILED[case], multiply(key, factor))
        training = verify(tmp_path / "wide", dtype="float64", steps=2).training
        assert training.stored_differences, (key, factor)
        if key != "state":
            assert training.first_difference.what == SPOILED[case], (key, factor)


@pytest.mark.parametrize(("key", "factor"), [("lr", 3.0), ("eps", 1.5), ("weight_decay", 1.1)])
def test_a_wrong_hyperparameter_is_found(key, factor, tmp_path):
    source = save_training(tmp_path / "narrow", "Llama-tied", "adamw")
    widen(source, tmp_path / "wide", 3, verify=False)
    spoil(tmp_path / "wide", SPOILED["Llama-tied"], multiply(key, factor))
    found = verify(tmp_path / "wide", dtype="float64", steps=2).training
    assert not found.steps_agree
    assert found.first_difference.what == SPOILED["Llama-tied"]
    assert found.stored_differences == (f"setting `{key}` of {SPOILED['Llama-tied']}",)


@pytest.mark.parametrize("key", ["lr", "eps", "weight_decay"])
def test_a_wrong_rule_is_found(key, tmp_path, monkeypatch):
    """Give a multiplier c^2 instead of its own power of c. Both files follow the wrong rule, so only the steps tell."""
    rule = RULES["adamw"]
    formulas = {**rule.formulas(decoupled=True), key: Powers(c=2)}
    monkeypatch.setattr(type(rule), "formulas", lambda *_: formulas)
    found = train(tmp_path, "Llama-tied", "adamw", 2)
    assert not found.stored_differences
    assert not found.steps_agree
    assert found.first_difference is not None


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
def test_a_wrong_rule_of_the_state_is_found(key, tmp_path, monkeypatch):
    rule = RULES["adamw"]
    monkeypatch.setitem(RULES, "adamw", replace(rule, state={**rule.state, key: SAME}))
    found = train(tmp_path, "Llama-tied", "adamw", 2)
    assert not found.stored_differences
    assert not found.steps_agree


def one_ulp(value):
    value.view(-1)[7] = torch.nextafter(value.view(-1)[7], torch.tensor(torch.inf, dtype=value.dtype))


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_last_bit_of_the_state_is_found_and_named(key, dtype, tmp_path):
    source = save_training(tmp_path / "narrow", "Llama-tied", "adamw", dtype=dtype)
    widen(source, tmp_path / "wide", 3, verify=False)
    name = "model.layers.1.mlp.up_proj.weight"
    spoil(tmp_path / "wide", name, lambda _group, entries: one_ulp(entries[key]))
    found = verify(tmp_path / "wide", dtype="float64", steps=2).training
    assert found.stored_differences == (f"{key} of {name}",)
    assert found.steps_agree  # from the planned state


def test_a_last_bit_of_a_weight_is_found_and_named(saved, tmp_path):
    widen(saved("Llama-tied"), tmp_path / "wide", 3, verify=False)
    file = tmp_path / "wide" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    one_ulp(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})
    narrow, wide = open_checkpoint(saved("Llama-tied")), open_checkpoint(tmp_path / "wide")
    plan = plan_widening(narrow.path, factor=3)
    found = train_checkpoints(narrow, wide, plan, VerifyOptions(steps=1))
    assert found.stored_differences == (name,)


def without_a_state(group, entries):
    entries.clear()


def with_another_entry(group, entries):
    entries["max_exp_avg_sq"] = entries["exp_avg_sq"].clone()


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda group, _: group.update(amsgrad=True), "setting `amsgrad` of {}"),
        (lambda group, _: group.update(betas=(0.5, 0.999)), "setting `betas` of {}"),
        (lambda group, _: group.pop("eps"), "setting `eps` of {}"),
        (lambda group, _: group.update(new=1), "setting `new` of {}"),
        (without_a_state, "exp_avg of {}"),
        (with_another_entry, "max_exp_avg_sq of {}"),
    ],
)
def test_a_state_of_another_form_is_a_difference_and_no_crash(change, difference, tmp_path):
    source = save_training(tmp_path / "narrow", "Llama-tied", "adamw")
    widen(source, tmp_path / "wide", 2, verify=False)
    spoil(tmp_path / "wide", SPOILED["Llama-tied"], change)
    found = verify(tmp_path / "wide", dtype="float64", steps=2).training
    assert difference.format(SPOILED["Llama-tied"]) in found.stored_differences
    assert not found.agrees


def test_without_a_state_both_start_from_zero(saved, tmp_path):
    widen(saved("Qwen2-tied", dtype=torch.bfloat16), tmp_path / "wide", 3, verify=False)
    found = verify(tmp_path / "wide", dtype="float64", steps=5).training
    assert found.agrees
    assert not found.carried
    # Stored bfloat16 weights are compared exactly, but training starts from the unrounded values.
    assert not found.stored_differences


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_stack_of_linear_layers(optimizer, tmp_path):
    """A user-defined model without a config; the state is matched by the names of the parameters."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build(config):\n"
        "    sizes = [config['shapes'][f'{i}.weight'] for i in (0, 2, 4)]\n"
        "    layers = [nn.Linear(columns, rows) for rows, columns in sizes]\n"
        "    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])\n"
    )
    generator = torch.Generator().manual_seed(0)
    layers = [torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)]
    model = randomize(torch.nn.Sequential(*layers).double())
    made = make(optimizer, list(model.named_parameters()), [])
    for _ in range(first_steps(optimizer)):
        model(torch.randn(16, 5, generator=generator, dtype=torch.float64)).square().mean().backward()
        made.step()
        model.zero_grad()
    kind = named_kind(optimizer)
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    torch.save(made.state_dict(), tmp_path / "net.optimizer.pt")
    widen(tmp_path / "net.safetensors", tmp_path / "wide.safetensors", 3, optimizer_kind=kind, verify=False)
    model = f"{tmp_path / 'net.py'}:build"
    check(verify(tmp_path / "wide.safetensors", dtype="float64", steps=STEPS, model=model).training)


@pytest.mark.slow
def test_training_that_amplifies_rounding_is_refused(saved, tmp_path):
    """Dory with random weights, norms included, where one step makes a difference a hundred times larger."""
    widen(saved("Dory-untied", dtype=torch.float64), tmp_path / "wide", 2, verify=False)
    with pytest.raises(CannotVerify, match="training amplifies rounding errors"):
        verify(tmp_path / "wide", steps=20)
