"""The documentation is true: its commands run and print its transcripts, its Python runs, its links work."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from doc_commands import DOCUMENTS, MANUAL, PAGES, ROOT, blocks, differences, lines, shell_lines, spans
from other_libraries import CONFIGS

import mupscale
import mupscale_cli
from cli_runner import commands_of, options_of, run
from helpers import MODELS, save_mlp
from mupscale_cli.architecture.loading import matched_values
from mupscale_cli.cli.pages import KINDS, page_titles
from small_models import established

TABLE, _, OTHER_TABLES = (ROOT / "recipes" / "README.md").read_text().partition("<!-- end of the table -->")
OTHER_TABLE = OTHER_TABLES.partition("## Other libraries")[2]
NET = """
import torch
config = {"width": 6, "hidden": 10}
class Net(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        shapes = config.get("shapes", {})
        width = config.get("width") or shapes["0.weight"][0]
        hidden = config.get("hidden") or shapes["2.weight"][0]
        self.layers = torch.nn.Sequential(torch.nn.Linear(5, width), torch.nn.ReLU(), torch.nn.Linear(width, hidden),
                                          torch.nn.ReLU(), torch.nn.Linear(hidden, 3))
    def forward(self, x):
        return self.layers(x)
def build(config):
    return Net(config).layers
"""
# Programs that are not run: they install, need a cluster, or are not part of mupscale.
OTHERS = ("cp", "pip", "uv", "pipx", "jq", "python", "pytest", "export", "make", "torchrun")
# Slow commands run with fewer steps and a smaller grid.
SHORTER = {"sweep": ["--steps", "1", "--batch-size", "1", "--length", "4", "--no-picture"]}
FEWER = {"--steps": {"20": "2"}, "--lr": {"2e-3,4e-3,8e-3,1.6e-2,3.2e-2": "2e-3"}, "--noise": {"0,0.2,0.4": "0.2"}}
UNCOMPARED = ("sweep",)  # its losses depend on the machine
# Slow commands that other tests run.
ELSEWHERE = {
    "mupscale widen base --factor 2 --adapter sql-lora": "tasks/test_adapters.py",
    "mupscale widen all-MiniLM-L6-v2 --factor 2": "tasks/test_modules.py",
    "mupscale demo": "cli/test_demo.py",
    "mupscale sweep mupscale-demo/tiny --data manual.txt --target 8": "sweep/test_run.py",
    "mupscale run family.yaml": "project/test_examples.py",
    "mupscale coordcheck mupscale-demo/tiny": "sweep/test_coordinates.py",
    **dict.fromkeys(
        (
            "mupscale widen outputs/checkpoint/step-1000 -o wide/checkpoint/step-1000 --factor 2",
            "mupscale hparams wide/checkpoint/step-1000 --lr 3e-4 --weight-decay 0.1 --decay all --format torchtitan",
            "mupscale widen runs/step1000 -o wide/step1000 --factor 2",
            "mupscale hparams wide/step1000 --lr 3e-4 --weight-decay 0.1 --decay all --json",
            "mupscale widen dump/checkpoints/0000001000 -o wide/checkpoints/0000001000 --factor 2",
        ),
        "tasks/test_distributed_layouts.py",
    ),
    "mupscale widen run/ep0-ba1000-rank0.pt -o wide/ep0-ba1000-rank0.pt --factor 2": "trainers/test_composer.py",
    "mupscale widen run/epoch_1 --optimizer run/recipe_state/recipe_state.pt -o wide/epoch_1 --factor 2": (
        "trainers/test_torchtune.py"
    ),
    "mupscale verify wide --model nanoGPT/reference.py:build": "trainers/test_nanogpt.py",
    "mupscale recipes infer apertus -o apertus.yaml": "infer/test_infer.py",
}


def rows(table, heading):
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] != heading:
            yield cells


# The table takes long to make. Models added since need no row in it; their own tests have the same limits.
RECENT = {
    (getattr(transformers, config).model_type, head)
    for case, (head, config, _) in MODELS.items()
    if case not in established.MODELS
}


def test_table_of_models_is_complete_and_errors_are_tiny():
    named = {(getattr(transformers, config).model_type, head) for head, config, _ in MODELS.values()}
    other_names = {config.get("architecture", case.partition("-")[2]) for case, config in CONFIGS.items()}
    assert {(cells[0], cells[1]) for cells in rows(TABLE, "model type")} | RECENT == named
    assert {cells[0] for cells in rows(OTHER_TABLE, "architecture")} == other_names
    for cells in (*rows(TABLE, "model type"), *rows(OTHER_TABLE, "architecture")):
        errors = [float(cell) for cell in cells[5:] if cell]
        assert len(errors) >= 3
        assert all(0 < error < 1e-10 for error in errors), cells


def test_recipes_page_lists_every_model_type():
    page = MANUAL / "recipes.md"
    text = page.read_text().partition("## Tied embeddings")[0]
    assert not {name for name in matched_values() if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)}


# Running them -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """Return the output folder of `mupscale demo`, with a model that is trained for three steps."""
    from mupscale_cli.tasks.demo import training

    folder = tmp_path_factory.mktemp("docs") / "mupscale-demo"
    steps, training.STEPS = training.STEPS, 3
    try:
        training.train(folder / "tiny", lambda _step, _loss: None)
    finally:
        training.STEPS = steps
    for arguments in (["-o", "tiny-x4"], ["--noise", "0.1", "-o", "tiny-x4-noisy"]):
        name = folder / arguments[-1]
        code = run("widen", str(folder / "tiny"), "-f", "4", "--no-verify", *arguments[:-1], str(name)).code
        assert code == 0
    return folder


@pytest.fixture
def sandbox(demo, hub, saved, tmp_path):
    """Change to a folder with every file that the documentation's commands name, and a Hub with its models."""
    shutil.copytree(demo, tmp_path / "mupscale-demo")
    shutil.copytree(demo / "tiny", tmp_path / "tiny")
    for name in ("narrow", "ckpt", "ckpts/step-90000"):
        shutil.copytree(saved("Llama-untied"), tmp_path / name)
    shutil.copy(saved("Llama-tied") / "model.safetensors", tmp_path / "ckpt.safetensors")
    shutil.copy(saved("Llama-tied") / "config.json", tmp_path / "ckpt.config.json")
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "mynet.py").write_text(NET)
    (tmp_path / "tiny.json").write_text('{"width": 6, "hidden": 10}')
    save_mlp(tmp_path / "narrow.safetensors")
    save_mlp(tmp_path / "mlp.safetensors")
    save_mlp(tmp_path / "net.safetensors")
    for model in ("meta-llama/Llama-3.1-70B", "HuggingFaceTB/SmolLM2-135M"):
        hub.add(model, {file.name: file.read_bytes() for file in saved("Llama-tied").iterdir()})
    return tmp_path


def prepare(file, folder, saved):
    """Create the files that only the commands of one page need."""
    if file.stem == "sweep":
        shutil.copytree(folder / "tiny", folder / "small")
        (folder / "manual.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    if file.stem == "inspect":
        (folder / "trainer.py").write_text("import json; print(json.dumps({'loss': 1.0}))")
        command = f"{shlex.quote(sys.executable)} trainer.py {{checkpoint}} {{lr}}"
        swept = [
            "sweep",
            "narrow",
            "--command",
            command,
            "-f",
            "2",
            "--noise",
            "0",
            "-o",
            "small-sweep",
            "--no-picture",
        ]
        assert run(*swept).code == 0
    if file.stem == "releases":
        shutil.copy(ROOT / "examples" / "family.yaml", folder)
    if file.stem == "pipelines":
        write_job(folder)
    if file.stem == "trust":
        assert run("widen", "narrow.safetensors", "-f", "2", "--no-verify", "-o", "wide.safetensors").code == 0
    if file.stem == "recipes":
        shutil.rmtree(folder / "ckpt")
        (folder / "path" / "to").mkdir(parents=True)
        shutil.copy(saved("Llama-untied") / "config.json", folder / "path" / "to" / "config.json")


def write_job(folder):
    (job,) = [text for text in blocks(MANUAL / "pipelines.md", "yaml") if "steps:\n  - widen" in text]
    (folder / "release.yaml").write_text(job)


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_commands_run_and_print_the_transcripts(file, sandbox, saved):
    prepare(file, sandbox, saved)
    for line in lines(file):
        if line.words[0] in OTHERS or line.words[0].startswith("."):
            continue
        assert line.words[0] == "mupscale", line
        if str(line) in ELSEWHERE:
            continue
        words = [
            FEWER.get(before, {}).get(word, word) for before, word in zip(line.words, line.words[1:], strict=False)
        ]
        words = [word.replace("$wide", "tiny-wide") for word in words]
        result = run(*words, *SHORTER.get(words[0], ()))
        expected = 2 if '"error"' in line.shown else 0
        assert result.code == expected, f"{line}\n{result.out[-2000:]}\n{result.err[-2000:]}"
        if line.into:
            Path(line.into).write_text(result.out)
        if words[0] not in UNCOMPARED:
            missing = list(differences(line.shown, result.out))
            assert missing == [], f"{line}\n{result.out}"


def known_options():
    found = {"": {"--version", "--help", "-h"}}
    for command, parameter in options_of():
        names = {*parameter.opts, *parameter.secondary_opts}
        found.setdefault(command, {"--help", "-h"}).update(name for name in names if name.startswith("-"))
    return found


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_commands_and_options_in_the_text_exist(file):
    known = known_options()
    every = set().union(*known.values()) | {"--preinstall", "--nnodes", "--install-completion"}
    commands = {" ".join(words) for words in commands_of()} | {"recipes", "plot"}
    for code in spans(file):
        words = re.split(r"[\s=]+", re.sub(r"\[|\]", "", code))
        if words[0] == "mupscale" and len(words) > 1 and words[1][0].islower():
            name = next(name for name in (" ".join(words[1:3]), words[1], "?") if name in commands or name == "?")
            assert name != "?", code
            options = [word for word in words if word.startswith("--")]
            assert set(options) <= known.get(name, every), code
        elif words[0].startswith("--"):
            assert words[0] in every, code


def test_every_command_and_option_is_documented():
    """Options that all commands have need to be documented only once."""
    text = "\n".join(file.read_text() for file in DOCUMENTS)
    missing = [
        (command, parameter.opts)
        for command, parameter in options_of()
        if command
        and parameter.opts[0].startswith("-")
        and not any(name in text for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--"))
    ]
    assert missing == []
    assert {words for words in commands_of() if words[-1] not in text} == set()


def test_links_work():
    others = (
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        ".github/SECURITY.md",
        "tests/experiments/README.md",
        "tests/fuzzing/README.md",
    )
    for file in [*DOCUMENTS, *(ROOT / name for name in others)]:
        for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text()):
            if not target.startswith("http"):
                path, _, anchor = target.partition("#")
                found = (file.parent / path) if path else file
                assert found.exists(), (file.name, target)
                if anchor:
                    titles = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
                    slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
                    assert anchor in slugs, (file.name, target)


def test_promises_name_existing_tests():
    named = set(re.findall(r"`(\w+/test_\w+\.py)`", (MANUAL / "promises.md").read_text()))
    assert len(named) > 10
    assert {name for name in named if not (ROOT / "tests" / name).is_file()} == set()


def test_every_page_has_one_kind():
    assert sorted(page for pages in KINDS.values() for page in pages) == sorted(page.stem for page in PAGES)


def test_readme_and_help_list_every_page_by_kind():
    in_order = list(page_titles())
    text = (ROOT / "README.md").read_text().partition("## The manual")[2].partition("## ")[0]
    assert re.findall(r"\| \[(\w+)\]\(mupscale_cli/cli/pages/\1\.md\)", text) == in_order
    assert re.findall(r"\| \*\*(\w+)\*\*", text.lower()) == list(KINDS)
    shown = re.findall(r"^(\w*) +(\w+) +[A-Z]", run("help").out, re.MULTILINE)
    assert [page for _kind, page in shown] == in_order
    assert [kind for kind, _page in shown if kind] == list(KINDS)
    for page in PAGES:
        shown = run("help", page.stem).out
        assert "](../" not in shown  # an installed package does not contain the sources
        links = re.sub(r"\[([^]]*)\]\((?:\.\./){3}([^)#]*)[^)]*\)", r"\1 (`\2` of the sources)", page.read_text())
        assert shown == links


def test_no_text_promises_that_a_package_index_has_mupscale():
    texts = [ROOT / "README.md", *(ROOT / "docs").iterdir(), *(ROOT / "examples").iterdir()]
    texts += [path for kind in ("py", "md", "yaml") for path in (ROOT / "mupscale_cli").rglob(f"*.{kind}")]
    # An installer looks a name up in an index unless a path stands before it.
    promise = re.compile(r"\b(?:pip|pipx|tool) install [^\n`&#]*[\s'\"]mupscale\b(?!/)|(?<!/)mupscale\[[a-z]")
    assert promise.search("pip install 'mupscale[hf]'")
    assert promise.search("`pip install -U mupscale`")
    found = [(path.name, line) for path in texts if path.is_file() for line in promise.findall(path.read_text())]
    assert found == []


# Python -------------------------------------------------------------------------------------------


def test_python_of_the_api_page_runs(sandbox, capsys):
    names = {}
    for text in blocks(MANUAL / "api.md", "python"):
        exec(compile(text, "api.md", "exec"), names)  # noqa: S102 (runs the page's code)
    printed = capsys.readouterr().out
    assert "no checkpoint at `nowhere`" in printed
    assert "/me/wide" in printed
    assert "done widened" in printed


def test_api_page_names_every_public_name():
    text = (MANUAL / "api.md").read_text()
    public = set(mupscale_cli.__all__) - {"__version__"}
    assert {name for name in public if f"`{name}`" not in text} == set()


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_names_of_the_api_exist(file):
    code = "\n".join((*blocks(file, "python"), *spans(file)))
    named = set(re.findall(r"\bmupscale\.(\w+)", code)) - {"json"}  # mupscale.json is a file
    assert {name for name in named if not hasattr(mupscale, name)} == set()
    for module, name in re.findall(r"^\s*from (mupscale[\w.]*) import (\w+)", code, re.MULTILINE):
        assert hasattr(importlib.import_module(module), name), (module, name)
    assert "import mupscale_cli" not in code


def test_python_of_the_optimizers_page_runs(demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    narrow = shutil.copytree(demo / "tiny", tmp_path / "narrow")
    model = transformers.AutoModelForCausalLM.from_pretrained(narrow)
    groups = [{"params": [], "param_names": [], "weight_decay": decay} for decay in (0.1, 0.0)]
    for name, parameter in model.named_parameters():  # only matrices decay, as in the page's loop
        groups[parameter.dim() < 2]["params"].append(parameter)
        groups[parameter.dim() < 2]["param_names"].append(name)
    optimizer = torch.optim.AdamW(groups, lr=3e-4)
    model(torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long)).loss.backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), narrow / "optimizer.pt")
    assert run("widen", "narrow", "-f", "4", "-o", "wide", "--no-verify").code == 0
    loop, muon, trainer, bits = blocks(MANUAL / "optimizers.md", "python")
    names = {"mupscale": mupscale, "torch": torch, "AutoModelForCausalLM": transformers.AutoModelForCausalLM}
    exec(compile(loop, "optimizers.md", "exec"), names)  # noqa: S102
    assert names["optimizer"].state
    exec(compile(muon, "optimizers.md", "exec"), names)  # noqa: S102
    numbers = [sum(len(group["params"]) for group in names[each].param_groups) for each in ("muon", "adamw")]
    assert min(numbers) > 0
    assert sum(numbers) == len(list(names["model"].parameters()))
    compile(trainer, "optimizers.md", "exec")  # tests/optimizers/trainers/test_transformers.py runs the same
    compile(bits, "optimizers.md", "exec")  # tests/trainers/test_bitsandbytes.py runs it


def test_python_of_the_growing_page_runs(sandbox, capsys):
    names = {}
    for text in blocks(MANUAL / "growing.md", "python"):
        exec(compile(text, "growing.md", "exec"), names)  # noqa: S102 (runs the page's code)
    assert "Linear(in_features=5, out_features=24" in capsys.readouterr().out


# Pipelines ----------------------------------------------------------------------------------------

PIPELINES = MANUAL / "pipelines.md"


def test_commands_of_the_github_workflow_run(sandbox):
    write_job(sandbox)
    (workflow,) = [yaml.safe_load(text) for text in blocks(PIPELINES, "yaml") if "runs-on" in text]
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    ours = [line for command in commands for line in shell_lines(command) if line.words[0] == "mupscale"]
    assert len(ours) == 2
    for line in ours:
        result = run(*line.words[1:])
        assert result.code == 0, result.err
    assert line.into == "release.json"
    assert json.loads(result.out)["exit_code"] == 0


MAKE = shutil.which("make")


@pytest.mark.skipif(MAKE is None, reason="needs make")
def test_commands_of_the_makefile_run(sandbox):
    (text,) = blocks(PIPELINES, "make")
    (sandbox / "Makefile").write_text(text)

    def make():
        found = subprocess.run([MAKE, "-n", "tiny-x2/mupscale.json"], capture_output=True, text=True, check=True)
        return found.stdout

    for line in shell_lines(make()):
        assert line.words[0] == "mupscale"
        assert run(*line.words[1:]).code == 0
    assert "up to date" in make()
