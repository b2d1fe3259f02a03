"""What becomes of every file of a folder: the table of kinds, subfolders, halves of pairs, links."""

import pytest
import torch
from safetensors.torch import save_file

from mupscale_cli.checkpoints.fates import KINDS, grouped, kind_of, plan_files
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.cli.pages import page_text
from mupscale_cli.errors import CheckpointError

CARRIED = """LICENSE NOTICE.txt tokenizer.json vocab.json merges.txt bpe.codes spiece.model
    tokenizer.model.v3 tekken.json
    preprocessor_config.json processor_config.json generation_config.json chat_template.jinja modeling_own.py
    additional_chat_templates/rag.jinja qformer_tokenizer/vocab.txt alphabet.json language_model/5gram.bin
    speaker_embeddings_path.json speaker_embeddings/v2/en_speaker_0_prompt.npy"""
LEFT = """.gitattributes .cache/ README.md mupscale.json eval_results.json training_args.bin events.out.tfevents.1
    runs/a/b
    pytorch_model.bin pytorch_model-00001-of-00002.bin pytorch_model.bin.index.json tf_model.h5 flax_model.msgpack
    rust_model.ot model.onnx onnx/model.onnx onnx/config.json openvino/openvino_model.xml model-q4.gguf ema.safetensors
    original/params.json original/tokenizer.model consolidated.00.pth params.json hparams.yaml config.yaml
    quantize_config.json imatrix.dat mergekit_config.yml sparse_linear.pt adapter_config.json adapter_model.safetensors
    checkpoint-40/model.safetensors checkpoint-40/tokenizer.json global_step10/mp_rank_00_model_states.pt latest
    zero_to_fp32.py iter_0000010/x model_1.safetensors optimizer_1.bin notes.docx src/train.py"""
WITH_STATE = """trainer_state.json rng_state_0.pth scaler.pt random_states_0.pkl sampler.bin dl_state_dict.bin
    custom_checkpoint_0.pkl scheduler.pt scheduler.bin"""


@pytest.mark.parametrize(("names", "fate"), [(CARRIED, "carried"), (LEFT, "left behind"), (WITH_STATE, "left behind")])
def test_every_file_has_a_fate_and_a_reason(names, fate):
    planned = plan_files(dict.fromkeys(names.split(), 1))
    assert [file.name for file in planned if file.fate != fate] == []
    assert all(file.reason for file in planned)


def test_files_that_resuming_needs_share_the_fate_of_the_optimizer_state():
    decisions = {name: kind_of(name).decide(with_state=True).fate for name in WITH_STATE.split()}
    assert {name for name, fate in decisions.items() if fate == "rewritten"} == {"scheduler.pt", "scheduler.bin"}
    assert set(decisions.values()) == {"carried", "rewritten"}


@pytest.mark.parametrize(
    "pair",
    [
        "adapter_config.json adapter_model.safetensors",
        "pytorch_model.bin.index.json pytorch_model-00001-of-00002.bin",
        "params.json consolidated.00.pth",
        "latest global_step10/mp_rank_00_model_states.pt zero_to_fp32.py",
        "vocab.txt bpe.codes",
        "alphabet.json language_model/unigrams.txt",
        "speaker_embeddings_path.json speaker_embeddings/a.npy",
        "openvino_model.xml openvino_model.bin",
        "model.onnx model.onnx_data",
    ],
)
def test_halves_of_a_pair_share_their_fate(pair):
    assert len({file.fate for file in plan_files(dict.fromkeys(pair.split(), 1))}) == 1


def test_names_are_compared_without_regard_to_case():
    assert [file.fate for file in plan_files({"Readme.md": 1, "license": 1})] == ["left behind", "carried"]


def test_folders_whose_files_share_a_fate_count_as_one_name():
    sizes = dict.fromkeys(("runs/a", "runs/b/c", "README.md", "modes/x.json"), 1)
    groups = {decision.reason: names for decision, names in grouped(plan_files(sizes)).items()}
    assert {"runs/": 2} in groups.values()
    assert {"README.md": 1} in groups.values()


@pytest.fixture
def folder(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    save_file({"a": torch.zeros(2)}, model / "model.safetensors")
    (model / "config.json").write_text("{}")
    return model


def test_a_folder_is_listed_with_its_subfolders(folder):
    (folder / "onnx" / "deep").mkdir(parents=True)
    (folder / "onnx" / "deep" / "model.onnx").write_text("x")
    (folder / ".git" / "objects").mkdir(parents=True)
    (folder / ".git" / "objects" / "0").write_text("x")
    (folder / "linked").symlink_to(folder.parent, target_is_directory=True)
    (folder / "tokenizer.json").symlink_to("nowhere")
    planned = {file.name: file for file in open_checkpoint(folder).plan_files()}
    own = {"config.json", "model.safetensors"}
    assert planned.keys() == own | {"onnx/deep/model.onnx", ".git/", "linked/", "tokenizer.json"}
    assert {planned[name].fate for name in planned.keys() - own} == {"left behind"}
    assert planned["tokenizer.json"].reason.startswith("a link")


def test_a_link_out_of_the_folder_is_refused_in_subfolders_too(folder):
    (folder.parent / "secret").write_text("s")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "a.jinja").symlink_to(folder.parent / "secret")
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        open_checkpoint(folder).plan_files()


def test_a_file_that_is_too_large_to_copy_is_refused():
    with pytest.raises(CheckpointError, match="larger than"):
        plan_files({"tokenizer.json": 1 << 31})


def test_a_folder_that_holds_only_an_adapter_is_refused(folder):
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"task_type": "SEQ_CLS"}')
    with pytest.raises(CheckpointError, match="an adapter, not a model") as error:
        open_checkpoint(folder)
    assert "AutoPeftModelForSequenceClassification.from_pretrained" in error.value.hint
    assert "merge_and_unload" in error.value.hint


def test_the_page_shows_the_table():
    rows = [line.strip("| ").split(" | ") for line in page_text("files").splitlines() if line.startswith("| ")]
    expected = [
        [kind.about, kind.fate, kind.with_state or kind.fate, " ".join(f"`{name}`" for name in kind.patterns)]
        for kind in KINDS
    ]
    assert [row for row in rows if len(row) == 4 and row[0] != "kind"] == expected
