"""Files of a checkpoint that are copied along with its weights."""

import os
import shutil

from mupscale_cli.tasks.widen import widen
from outputs import listing

CARRIED = {
    "tokenizer.json": '{"model": {"type": "BPE"}}',
    "tokenizer_config.json": "{}",
    "generation_config.json": "{}",
    "special_tokens_map.json": "{}",
    "tokenizer.model": "\x00sentencepiece",
    "vocab.txt": "a\nb\n",
    "merges.txt": "a b\n",
    "chat_template.jinja": "{{ messages }}",
    "modeling_own.py": "x = 1\n",
    "LICENSE": "words",
}


LEFT = {
    "README.md": "The card of the narrow model",
    "trainer_state.json": "{}",
    "training_args.bin": "pickle",
    "pytorch_model.bin.index.json": "{}",
    ".gitattributes": "*",
    "eval_results.json": "{}",
}


def test_files_for_loading_are_copied_and_the_others_reported(saved, tmp_path):
    source = shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")
    for name, content in {**CARRIED, **LEFT}.items():
        (source / name).write_text(content)
    (source / "runs").mkdir()
    widened = widen(source, tmp_path / "wide", 2, verify=False)
    own = {"config.json", "model.safetensors", "mupscale.json"}
    assert set(listing(tmp_path / "wide")) == own | CARRIED.keys()
    for name, content in CARRIED.items():
        assert (tmp_path / "wide" / name).read_text() == content
    assert {file.name for file in widened.files if file.fate == "left behind"} == LEFT.keys()


def test_links_in_a_cache_are_followed(saved, tmp_path):
    """The Hub's cache consists of links to blobs; copied links would break when the cache is cleared."""
    blobs = shutil.copytree(saved("Llama-tied"), tmp_path / "blobs")
    (blobs / "tokenizer.json").write_text("{}")
    narrow = tmp_path / "snapshots" / "main"
    narrow.mkdir(parents=True)
    for file in blobs.iterdir():
        (narrow / file.name).symlink_to(os.path.relpath(file, narrow))
    widen(narrow, tmp_path / "wide", 2, verify=False)
    assert "tokenizer.json" in listing(tmp_path / "wide")
    assert not [file for file in (tmp_path / "wide").iterdir() if file.is_symlink()]
