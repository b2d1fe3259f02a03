"""LoRA adapters of peft, widened with their base model: same outputs, same training, all files accounted for."""

import json
import shutil
import warnings

import pytest
import torch
import transformers
from doc_commands import MANUAL, blocks
from safetensors.torch import load_file, save_file

import helpers
import mupscale
from cli_runner import run
from mupscale_cli import (
    WidenOptions,
    WidenStep,
    clip_grad_norm_,
    param_groups,
    plan_job,
    plan_widening,
    run_job,
    verify,
    widen,
)
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.errors import MupscaleError
from mupscale_cli.tasks.push import push_files
from mupscale_cli.verification.precision import everything_in

peft = pytest.importorskip("peft")

CONFIG = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)),
    "llama, tied": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{**CONFIG, "tie_word_embeddings": True, "attention_bias": True})
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
        )
    ),
    "mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**CONFIG, num_local_experts=2, experts_implementation="eager")
    ),
    "vit": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4
        )
    ),
}
INPUTS = {
    "vit": lambda: {"pixel_values": torch.linspace(-1, 1, 384, dtype=torch.float64).reshape(2, 3, 8, 8)},
}
# Model, options of the adapter, options of the widening.
CASES = {
    "every linear layer": ("llama", {"target_modules": LINEAR}, {"factor": 2}),
    "a factor that is no power of two": (
        "llama",
        {"target_modules": LINEAR, "use_rslora": True, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"k_proj": 5}},
        {"factor": 3},
    ),
    "no whole factor": ("llama", {"target_modules": LINEAR}, {"factor": 1.5}),
    "a balanced stream": ("llama", {"target_modules": LINEAR}, {"factor": 1.5, "spread": "balanced"}),
    "DoRA": ("llama", {"target_modules": LINEAR, "use_dora": True}, {"factor": 3}),
    "embeddings": ("llama", {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True}, {"factor": 2}),
    "whole modules": (
        "llama",
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]},
        {"factor": 2},
    ),
    "biases and trained tokens": (
        "llama, tied",
        {"target_modules": ["q_proj", "o_proj"], "bias": "all", "lora_bias": True, "trainable_token_indices": [3, 5]},
        {"factor": 2},
    ),
    "some layers of a deeper model": (
        "llama",
        {"target_modules": LINEAR, "layers_to_transform": [1], "rank_pattern": {"layers.1.mlp.up_proj": 3}},
        {"factor": 2, "layers": 5},
    ),
    "Conv1D": ("gpt2", {"target_modules": ["c_attn", "c_proj", "wte"], "fan_in_fan_out": True}, {"factor": 2}),
    "experts": (
        "mixtral",
        {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
        {"factor": 2},
    ),
    "a convolution": (
        "vit",
        {"target_modules": ["projection", "fc1"], "modules_to_save": ["classifier"]},
        {"factor": 2},
    ),
}


def save_adapter(folder, base, **options):
    """Save an adapter with random weights in float64, of a rank that no dimension has."""
    with warnings.catch_warnings(action="ignore"):
        model = peft.get_peft_model(base, peft.LoraConfig(r=5, **options), autocast_adapter_dtype=False)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in (each for each in model.parameters() if each.requires_grad):
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.2)
        model.save_pretrained(folder)


def load(base, adapter, model_class, **options):
    experts = {"experts_implementation": "eager"}
    with warnings.catch_warnings(action="ignore"):
        model = model_class.from_pretrained(base, dtype=torch.float64, **experts)
        return peft.PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False, **options).eval()


@pytest.fixture
def llama(tmp_path):
    """Return a folder with a model, `base`, and an adapter of it, `sql-lora`."""
    model = helpers.randomize(MODELS["llama"]().double())
    model.save_pretrained(tmp_path / "base")
    save_adapter(tmp_path / "sql-lora", model, target_modules=["q_proj", "down_proj"])
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_a_wide_adapter_changes_the_wide_model_as_the_narrow_one_does(case, tmp_path):
    name, options, growth = CASES[case]
    model = helpers.randomize(MODELS[name]().double())
    model.save_pretrained(tmp_path / "base")
    inputs = INPUTS.get(name, lambda: {"input_ids": torch.arange(16).reshape(2, 8)})()
    save_adapter(tmp_path / "sql-lora", model, **options)
    widen(tmp_path / "base", tmp_path / "w", adapter=[tmp_path / "sql-lora"], verify=False, **growth)
    plain = type(model).from_pretrained(tmp_path / "base", dtype=torch.float64, experts_implementation="eager").eval()
    with everything_in(torch.float64), torch.no_grad():
        without = plain(**inputs).logits
        narrow = load(tmp_path / "base", tmp_path / "sql-lora", type(model))(**inputs).logits
        wide = load(tmp_path / "w", tmp_path / "w/adapters/sql-lora", type(model))(**inputs).logits
    size = narrow.abs().max()
    assert (narrow - without).abs().max() > 0.05 * size
    assert (narrow - wide).abs().max() < 1e-13 * size  # 8 u L sqrt(n) with L = 16 products and n = 48 is 1e-13


def test_a_wide_adapter_trains_as_the_narrow_one(llama):
    save_adapter(
        llama / "dora",
        transformers.LlamaForCausalLM.from_pretrained(llama / "base"),
        target_modules=["q_proj", "down_proj"],
        use_dora=True,
        modules_to_save=["lm_head"],
    )
    widen(llama / "base", llama / "w", factor=2, adapter=[llama / "sql-lora", llama / "dora"], verify=False)
    ids = torch.arange(32).reshape(2, 16)
    for name in ("sql-lora", "dora"):
        runs = []
        with everything_in(torch.float64):
            for base, adapter in (("base", name), ("w", f"w/adapters/{name}")):
                model = load(llama / base, llama / adapter, transformers.LlamaForCausalLM, is_trainable=True)
                trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
                hyperparameters = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-8}
                groups = [{"params": trained, "clip_weight": 1.0, **hyperparameters}]
                if base == "w":
                    groups = param_groups(model, llama / "w", decay="all", adapter=name, **hyperparameters)
                optimizer, losses = torch.optim.AdamW(groups), []
                for _ in range(6):
                    loss = model(input_ids=ids, labels=ids).loss
                    optimizer.zero_grad()
                    loss.backward()
                    clip_grad_norm_(optimizer, 0.1)
                    optimizer.step()
                    losses.append(loss.item())
                runs.append(torch.tensor(losses))
        assert runs[0][-1] < 0.9 * runs[0][0]
        assert torch.allclose(*runs, rtol=1e-12, atol=0)


def test_the_page_is_true(llama, monkeypatch, capsys):
    monkeypatch.chdir(llama)
    (command,) = blocks(MANUAL / "adapters.md", "sh")
    assert run(*command.split()[1:]).code == 0
    names = {"mupscale": mupscale}
    loading, _, grouping = blocks(MANUAL / "adapters.md", "python")
    exec(loading, names)  # noqa: S102 (documentation)
    exec(grouping, names)  # noqa: S102 (documentation)
    assert {group["lr"] for group in names["groups"]} == {1e-4, 5e-5}
    rows = run("hparams", "base-x2", "--lr", "1e-4", "--adapter", "sql-lora").out
    assert "lora_A.default.weight" in rows
    refused = run("hparams", "base-x2", "--lr", "1e-4", "--adapter", "chat")
    assert (refused.code, "known: `sql-lora`" in refused.err) == (2, True)


def test_adapters_are_verified_with_the_output(llama):
    shutil.copytree(llama / "sql-lora", llama / "other")
    adapters = [llama / "sql-lora", llama / "other"]
    widened = widen(llama / "base", llama / "w", factor=2, adapter=adapters, verify=False)
    assert set(widened.record["adapters"]) == {"adapters/sql-lora", "adapters/other"}
    config = json.loads((llama / "w/adapters/other/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(llama / "w")
    parts = {"only": ("weights", "config", "files")}
    assert verify(llama / "w", **parts).agrees
    file = llama / "w/adapters/other/adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] += 1
    save_file(tensors, file, {"format": "pt"})
    assert len(verify(llama / "w", **parts).weights.differences) == 1
    (llama / "other/adapter_config.json").write_text("{}")
    with pytest.raises(MupscaleError, match="not the one that"):
        verify(llama / "w", **parts)


def test_every_file_of_an_adapter_has_a_fate(llama, monkeypatch):
    monkeypatch.chdir(llama)
    for name in ("README.md", "tokenizer.json", "config.json"):
        (llama / "sql-lora" / name).write_text("{}")
    torch.save({}, llama / "sql-lora/optimizer.pt")
    command = ("widen", "base", "-f", "2", "--adapter", "sql-lora", "--no-verify")
    plan = run(*command, "--dry-run", "--json")
    fates = {
        file["name"]: file["fate"] for file in json.loads(plan.out)["fates"] if file["name"].startswith("adapters/")
    }
    assert fates == {
        "adapters/sql-lora/adapter_config.json": "rewritten",
        "adapters/sql-lora/adapter_model.safetensors": "widened",
        "adapters/sql-lora/tokenizer.json": "carried",
        "adapters/sql-lora/README.md": "left behind",
        "adapters/sql-lora/config.json": "left behind",
        "adapters/sql-lora/optimizer.pt": "left behind",
    }
    result = run(*command)
    assert (result.code, "optimizer state that is not widened" in result.out) == (0, True)
    written = {file.name for file in (llama / "base-x2/adapters/sql-lora").iterdir()}
    assert written == {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
    (llama / "base-x2/adapters/sql-lora/tokenizer.json").write_text("[]")
    assert verify(llama / "base-x2", only=("files",)).files.differences == (
        "`tokenizer.json` differs from the source's, first at byte 0",
    )


def test_a_wide_adapter_is_widened_again(llama):
    widen(llama / "base", llama / "w", factor=2, adapter=[llama / "sql-lora"], verify=False)
    once = widen(llama / "w", llama / "w2", factor=2, verify=False)
    assert not once.record["adapters"]
    left = {file.name: file.reason for file in once.files if file.name.startswith("adapters/")}
    assert set(left.values()) == {"adapters of the narrow model; widen each with `--adapter`"}
    again = widen(llama / "w", llama / "w4", factor=2, adapter=[llama / "w/adapters/sql-lora"], verify=False)
    assert verify(llama / "w4", only=("weights", "config", "files")).agrees
    assert {file.fate for file in again.files if file.name.startswith("adapters/")} == {"widened", "rewritten"}
    names = (tensor.target.shape for tensor in again.plan.tensors if "q_proj" in tensor.target.name)
    assert (64, 64) in names


def test_a_published_adapter_names_the_repository_and_no_folder(llama):
    shutil.copytree(llama / "sql-lora", llama / "private/sql-lora")
    widen(llama / "base", llama / "w", factor=2, adapter=[llama / "private/sql-lora"], verify=False)
    checkpoint = open_checkpoint(llama / "w")
    assert checkpoint.record["adapters"]["adapters/sql-lora"]["source"]["path"] == "private/sql-lora"
    files = {
        file.name: file.content for file in push_files(checkpoint, checkpoint.record, "me/wide", with_optimizer=False)
    }
    assert json.loads(files["adapters/sql-lora/adapter_config.json"])["base_model_name_or_path"] == "me/wide"
    assert "adapters/sql-lora/adapter_model.safetensors" in files
    assert b"private" not in files["mupscale.json"]


def test_a_job_writes_again_if_an_adapter_changed(llama):
    options = WidenOptions(llama / "w", 2, adapter=(llama / "sql-lora",), verify=False)
    steps = (WidenStep(str(llama / "base"), options),)
    assert [done.status for done in run_job(plan_job(steps))] == ["done"]
    assert [done.status for done in run_job(plan_job(steps))] == ["skipped"]
    config = llama / "sql-lora/adapter_config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(MupscaleError, match="its adapters differ"):
        plan_job(steps)


def test_two_adapters_of_one_name_are_refused(llama):
    shutil.copytree(llama / "sql-lora", llama / "more/sql-lora")
    with pytest.raises(MupscaleError, match="two adapters are called `sql-lora`"):
        widen(llama / "base", llama / "w", factor=2, adapter=[llama / "sql-lora", llama / "more/sql-lora"])


def test_an_adapter_beside_the_weights_is_widened_without_being_named(llama):
    for file in (llama / "sql-lora").glob("adapter_*"):
        shutil.copy(file, llama / "base")
    widen(llama / "base", llama / "w", factor=2)
    assert verify(llama / "w").agrees  # transformers loads the adapter with the model
    wide = load_file(llama / "w/adapter_model.safetensors")
    assert wide["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].shape == (5, 32)
    with warnings.catch_warnings(action="ignore"):
        assert transformers.AutoModelForCausalLM.from_pretrained(llama / "w")._hf_peft_config_loaded


def test_a_head_that_only_the_adapter_has_is_widened(llama):
    model = transformers.LlamaForSequenceClassification.from_pretrained(llama / "base", dtype=torch.float64)
    save_adapter(llama / "cls", model, target_modules=["q_proj"], task_type="SEQ_CLS")
    widen(llama / "base", llama / "w", factor=2, adapter=[llama / "cls"], verify=False)
    wide, narrow = (load_file(path / "adapter_model.safetensors") for path in (llama / "w/adapters/cls", llama / "cls"))
    (score,) = (name for name in wide if "score" in name)
    assert torch.equal(wide[score], narrow[score].repeat_interleave(2, 1) / 2)


def test_added_tokens_are_widened(llama):
    model = transformers.LlamaForCausalLM.from_pretrained(llama / "base", dtype=torch.float64)
    model.resize_token_embeddings(54)
    save_adapter(llama / "more", model, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    widen(llama / "base", llama / "w", factor=2, adapter=[llama / "more"], verify=False)
    wide = load_file(llama / "w/adapters/more/adapter_model.safetensors")
    whole = {name: tuple(tensor.shape) for name, tensor in wide.items() if "lora_" not in name}
    assert {"base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"} <= whole.keys()
    assert set(whole.values()) == {(54, 32)}


REFUSED = {
    "another kind": ({"peft_type": "IA3"}, {}, "cannot widen an adapter of the type `IA3`"),
    "repeated layers": ({"layer_replication": [[0, 2], [1, 2]]}, {}, "repeats layers"),
    "virtual tokens": ({"peft_type": "PREFIX_TUNING"}, {}, "train it again on the wide model"),
    "unknown tensors": ({}, {"base_model.model.model.layers.0.self_attn.q_proj.lora_E": (5, 1)}, "unknown kind"),
    "another model": (
        {},
        {"base_model.model.model.layers.7.mlp.up_proj.lora_A.weight": (5, 16)},
        "no such tensor",
    ),
    "another size": ({}, {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (5, 8)}, "does not fit"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_that_cannot_be_widened_is_refused_before_anything_is_written(case, llama):
    config, tensors, message = REFUSED[case]
    file = llama / "sql-lora/adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    if tensors:
        changed = {name: torch.zeros(shape) for name, shape in tensors.items()}
        save_file(changed, llama / "sql-lora/adapter_model.safetensors")
    with pytest.raises(MupscaleError) as refused:
        widen(llama / "base", llama / "w", factor=2, adapter=[llama / "sql-lora"], verify=False)
    assert message in str(refused.value)
    assert not (llama / "w").exists()


def test_dora_needs_rows_whose_norms_grow_alike(llama):
    model = transformers.LlamaForCausalLM.from_pretrained(llama / "base")
    save_adapter(llama / "dora", model, target_modules=["q_proj"], use_dora=True)
    for growth in ({"factor": 2, "noise": 0.1}, {"factor": 1.5}):
        with pytest.raises(MupscaleError, match="DoRA"):
            widen(llama / "base", llama / "w", adapter=[llama / "dora"], verify=False, **growth)


def test_a_folder_without_an_adapter_is_refused(llama):
    for missing in ("adapter_model.safetensors", "adapter_config.json"):
        (llama / "sql-lora" / missing).unlink()
        with pytest.raises(MupscaleError, match=f"no `{missing}`"):
            widen(llama / "base", llama / "w", factor=2, adapter=[llama / "sql-lora"], verify=False)
    assert plan_widening(llama / "base", factor=2).factors
