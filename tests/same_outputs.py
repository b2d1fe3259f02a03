"""Run a fixed set of commands on two commits and compare what they write, print and exit with.

    python tests/same_outputs.py BASE [HEAD]

A change that should not alter what the program does proves it here: every file that a command writes has the same
bytes, every document of `--json` and every mupscale.json says the same, every exit code is the same. Digests, times,
versions and wording may differ (`VARYING`); everything else that does is listed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

from helpers import MODELS, save_mlp, save_model
from training import save_state

ROOT = Path(__file__).parent.parent
GIT = ("git", "-C", str(ROOT))
OPTIMIZERS = ("adamw", "adam", "nadam", "radam", "adamax", "sgd", "lion", "adagrad", "rmsprop", "muon")
FORMS = ("table", "yaml", "torch", "torchtitan", "nemo", "megatron", "bsh")
# Keys of documents whose values depend on the day, the machine or the wording, or are digests.
VARYING = {
    "seconds",
    "free",
    "free_bytes",
    "message",
    "hint",
    "excerpt",
    "reason",
    "reasons",
    "warnings",
    "about",
    "advice",
    "format_version",
    "source_digest",
    "tolerance_reason",
    "note",
    "notes",
    "hash",
    "hashes",
    "digest",
    "digests",
    "sha256",
    "xxh128",
    "mupscale",
    "time",
    "created",
    "text",
}

JOB = """
steps:
  - widen: llama
    factor: 2
    output: job/llama-x2
  - verify: job/llama-x2
    steps: 2
"""

OTHER = """
widen llama -f 2 -o wide
widen llama -f 3 -o wide-x3
widen llama -a ffn=3 -a kv=2 --no-verify -o wide-axes
widen sharded -f 2 --max-shard-size 30KB -o wide-sharded
widen mlp.safetensors -f 4 -r mlp --no-verify -o wide.safetensors
widen llama -f 2 --tie fold -o tie-fold
widen llama -f 2 --tie untie -o tie-untie
widen models/Granite-tied -f 2 --tie config -o tie-config
verify wide
verify llama wide-x3 --only weights
verify llama noise-free-rms
verify models/Qwen2-tied wide
inspect wide
inspect torch-copy --tensor q_proj
inspect llama --tree
widen llama -f 2 --dry-run --tensor lm_head
run release.yaml --dry-run
run release.yaml
recipes list
recipes show llama
recipes show bert
recipes show clip
recipes check llama
recipes infer arcee
push wide org/name --dry-run
"""
REFUSED = """
widen missing -f 2
widen empty -f 2
widen broken.safetensors -f 2
widen contradictory -f 2
widen llama -f 0
widen llama -f 1.5
widen llama -a nothing=2
widen llama -f 2 -o wide
widen llama -f 2 --noise -1
widen llama -f 2 --method nothing
widen llama -f 2 --dtype fp32 -o other
widen llama -f 2 --optimizer missing.pt -o other
widen mlp.safetensors -f 2
verify llama
verify missing wide
hparams wide
hparams llama --lr 1e-3
hparams wide --lr 1e-3 --optimizer nothing
recipes show nothing
run missing.yaml
push llama org/name --dry-run
"""

# A child process runs this program in the folder of one commit: every command, through the real entry point.
DRIVER = """
import contextlib, io, json, signal, sys
import torch
torch.set_num_threads(1)
from mupscale_cli.cli.main import main

results = {}
for name, words in json.load(open("commands.json")).items():
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["mupscale", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    results[name] = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
    print(f"{code} mupscale {name}", file=sys.stderr)
json.dump(results, open("results.json", "w"))
"""


def make_inputs(folder: Path) -> None:
    """Save the narrow checkpoints that the commands read."""
    for case in MODELS:
        save_model(folder / "models" / case, case)
    shutil.copytree(folder / "models" / "Llama-tied", folder / "llama")
    save_model(folder / "sharded", "Qwen3-untied", max_shard_size="20KB")
    save_mlp(folder / "mlp.safetensors")
    for kind in ("safetensors", "torch", "distributed"):
        save_state(folder / f"state-{kind}", kind)
    (folder / "release.yaml").write_text(JOB)
    (folder / "broken.safetensors").write_bytes((folder / "mlp.safetensors").read_bytes()[:100])
    (folder / "empty").mkdir()
    shutil.copytree(folder / "llama", folder / "contradictory")
    config = json.loads((folder / "llama" / "config.json").read_text())
    (folder / "contradictory" / "config.json").write_text(json.dumps({**config, "hidden_size": 50}))


def commands() -> Iterator[str]:
    """Yield every command line, in the order to run them in."""
    for case in MODELS:
        yield f"widen models/{case} -f 2 --dry-run"
        yield f"inspect models/{case}"
    for case in ("GPT2-tied", "Mixtral-untied", "Bert-tied", "T5-gated", "Mamba-untied", "CLIP-both", "Gemma2-tied"):
        yield f"widen models/{case} -f 2 -o wide-{case}"
    for mode in ("free", "preserving"):
        for scale in ("spectral", "rms", "fan-in"):
            yield f"widen llama -f 2 --noise 0.1 --noise-mode {mode} --noise-scale {scale} -o noise-{mode}-{scale}"
    for method in ("net2net", "hyperclone", "warmstart"):
        yield f"widen llama -f 2 --method {method} --seed 3 -o method-{method}"
    for kind in ("safetensors", "torch", "distributed"):
        for policy in ("copy", "reset-new", "reset"):
            yield f"widen state-{kind} -f 2 --no-verify --optimizer-policy {policy} -o {kind}-{policy}"
        yield f"verify {kind}-copy --only weights --only files"
        yield f"verify {kind}-copy --steps 2"
    yield from filter(None, OTHER.splitlines())
    for optimizer in OPTIMIZERS:
        yield f"hparams wide --lr 1e-3 --weight-decay 0.1 --optimizer {optimizer}"
    for form in FORMS:
        yield f"hparams wide --lr 1e-3 --weight-decay 0.1 --format {form}"
    yield from filter(None, REFUSED.splitlines())


def run_commit(commit: str, inputs: Path, work: Path) -> dict[str, dict[str, Any]]:
    """Run every command with the package of a commit in a separate folder; return output and exit code of each."""
    checkout, folder = work / f"checkout-{commit}", work / commit
    subprocess.run([*GIT, "worktree", "add", "--quiet", "--detach", checkout, commit], check=True)
    try:
        shutil.copytree(inputs, folder)
        words = {line: [*line.split(), *(() if "--format" in line else ("--json",))] for line in commands()}
        (folder / "commands.json").write_text(json.dumps(words))
        environ = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with (work / f"{commit}.log").open("w") as log:
            subprocess.run([sys.executable, "-c", DRIVER], cwd=folder, env=environ, stderr=log, check=True)
    finally:
        subprocess.run([*GIT, "worktree", "remove", "--force", checkout], check=True)
    return read_results(folder)


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the output of the commands that ran in a folder, without the folder's path."""
    return json.loads((folder / "results.json").read_text().replace(str(folder), "FOLDER"))


def stable(document: Any) -> Any:
    """Remove the keys of a document that may differ between runs or wordings."""
    if isinstance(document, dict):
        return {key: stable(value) for key, value in document.items() if key not in VARYING}
    return [stable(value) for value in document] if isinstance(document, list) else document


def content(file: Path) -> Any:
    """Return the content of a file to compare: its bytes, or the stable part of a JSON document or a single file."""
    if file.suffix == ".json":
        return stable(json.loads(file.read_text()))
    if file.suffix == ".safetensors" and file.stat().st_size > 100:  # one input is a truncated file
        with safe_open(file, "pt") as opened:
            metadata = {key: value for key, value in (opened.metadata() or {}).items() if key != "mupscale"}
            recorded = "mupscale" in (opened.metadata() or {})
            tensor_names = opened.keys()
            # A single file has its record in the header: compare its tensors instead of all bytes.
            names = {name: opened.get_tensor(name) for name in tensor_names} if recorded else {}
        if recorded:
            return metadata, {name: (str(value.dtype), value.tolist()) for name, value in names.items()}
    return hashlib.sha256(file.read_bytes()).hexdigest()


def differences(path: str, before: Any, after: Any) -> Iterator[str]:
    """Yield the differences of two documents, one place per line."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            if key not in before or key not in after:
                yield f"{path}.{key}: only {'before' if key in before else 'after'}"
            else:
                yield from differences(f"{path}.{key}", before[key], after[key])
        if [*before] != [*after] and set(before) == set(after):
            yield f"{path}: other order of keys"
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from differences(f"{path}[{index}]", old, new)
    elif before != after:
        yield f"{path}: {str(before)[:80]} -> {str(after)[:80]}"


def files_of(folder: Path) -> dict[str, Path]:
    """Return every file in a folder, except those of this program."""
    own = ("commands.json", "results.json")
    return {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in own
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("head", nargs="?", default="HEAD")
    parser.add_argument("--work", type=Path, help="keep everything here, and do not run a commit twice")
    options = parser.parse_args()
    names = [
        subprocess.check_output([*GIT, "rev-parse", "--short", commit], text=True).strip()
        for commit in (options.base, options.head)
    ]
    work = options.work or Path(tempfile.mkdtemp())
    inputs = work / "inputs"
    if not inputs.exists():
        make_inputs(inputs)
    results = []
    for name in names:
        done = work / name / "results.json"
        results.append(read_results(done.parent) if done.exists() else run_commit(name, inputs, work))
    before, after = results
    found = []
    for line in commands():
        old, new = before[line], after[line]
        if old["code"] != new["code"]:
            found.append(f"mupscale {line}: exit code {old['code']} -> {new['code']}")
        elif "--format" in line:
            found += [f"mupscale {line}: other output"] if old["out"] != new["out"] else []
        else:
            parsed = [stable(json.loads(result["out"])) for result in (old, new)]
            found += [f"mupscale {line}: {place}" for place in differences("", *parsed)]
    old_files, new_files = (files_of(work / name) for name in names)
    found += [f"{name}: only before" for name in old_files if name not in new_files]
    found += [f"{name}: only after" for name in new_files if name not in old_files]
    for name in old_files.keys() & new_files.keys():
        found += differences(name, content(old_files[name]), content(new_files[name]))
    found.append(
        f"{len(before)} commands, {len(old_files)} files, {len(found)} differences between {names[0]} and {names[1]}"
    )
    sys.stdout.write("\n".join([*found, ""]))
    sys.exit(len(found) > 1)


if __name__ == "__main__":
    main()
