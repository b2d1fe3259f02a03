"""A source that is replaced or changed while it is read is refused: no output is a mixture of two."""

import shutil

import pytest

from mupscale_cli.architecture.loading import BUILT_IN
from mupscale_cli.engine.events import Events
from mupscale_cli.errors import MupscaleError
from mupscale_cli.tasks.options import WidenOptions
from mupscale_cli.tasks.planning import plan_source
from mupscale_cli.tasks.source import find_source
from mupscale_cli.tasks.widen import widen
from training import save_state

RECIPE = "extends: base\nmatch: {model_type: [llama]}\n"
OPTIONS = {"factor": 2, "max_shard_size": 30_000}


def rename(file):
    """Replace a file by an equal one, as `mv` does."""
    other = file.with_name("other")
    shutil.copy2(file, other)
    other.replace(file)


def rewrite(file):
    """Change bytes in place, and keep the size."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    with open(file, "r+b") as stream:
        stream.write(content)


def remove(file):
    file.unlink()


@pytest.fixture
def narrow(tmp_path):
    """Save a checkpoint in some form with everything that an output can be made from; return its path."""

    def save(kind, *, is_file=False):
        folder = save_state(tmp_path / "narrow", kind)
        (folder / "tokenizer.json").write_text("{}")
        (folder / "notes.md").write_text("not an input")
        (tmp_path / "mine.yaml").write_text(RECIPE)
        shutil.copy(BUILT_IN / "llama.yaml", tmp_path / "base.yaml")
        if not is_file:
            return folder
        (folder / "config.json").rename(folder / "model.config.json")
        for path in folder.glob("optimizer*"):
            path.rename(folder / f"model.{path.name}")
        return folder / "model.safetensors"

    return save


def change_in(phase, change, file):
    """Return events that change a file once, when a phase starts."""
    changed = []

    def started(name, _total):
        if name == phase and not changed:
            changed.append(name)
            change(file)

    return Events(phase=started)


def refused(source, target, **options):
    """Widen; return the message of the error that must come, and check that nothing was published."""
    with pytest.raises(MupscaleError) as error:
        widen(source, target, **OPTIONS, **options)
    assert list(target.parent.iterdir()) == [], error.value
    assert error.value.exit_code == 2
    return error.value.message


FILES = [
    ("torch", False, "model.safetensors"),
    ("torch", False, "config.json"),
    ("torch", False, "tokenizer.json"),
    ("torch", False, "optimizer.pt"),
    ("safetensors", False, "optimizer.safetensors"),
    ("distributed", False, "optimizer/.metadata"),
    ("distributed", False, "optimizer/__0_0.distcp"),
    ("torch", True, "model.safetensors"),
    ("torch", True, "model.config.json"),
    ("torch", True, "model.optimizer.pt"),
    ("torch", False, "../mine.yaml"),
    ("torch", False, "../base.yaml"),
]


@pytest.mark.parametrize("change", [rename, rewrite], ids=lambda change: change.__name__)
@pytest.mark.parametrize(("kind", "is_file", "name"), FILES)
def test_a_file_that_changes_while_the_output_is_written(kind, is_file, name, change, narrow, tmp_path):
    source = narrow(kind, is_file=is_file)
    folder = source.parent if is_file else source
    file = (folder / name).resolve()
    if change is rename and file.suffix == ".yaml":
        pytest.skip("an equal recipe is the same recipe")
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / f"wide{source.suffix}"
    recipe = tmp_path / "mine.yaml"
    events = change_in("widening", change, file)
    message = refused(source, target, recipe=recipe, verify=False, events=events)
    assert "changed while" in message
    assert file.name in message or file.name == "base.yaml"  # which mine.yaml extends


@pytest.mark.parametrize("phase", ["hashing source", "optimizer state", "verifying"])
@pytest.mark.parametrize("is_verified", [True, False])
def test_a_source_that_changes_at_any_moment(phase, is_verified, narrow, tmp_path):
    if phase == "verifying" and not is_verified:
        pytest.skip("there is no such moment")
    source = narrow("torch")
    (tmp_path / "out").mkdir()
    events = change_in(phase, rename, source / "model.safetensors")
    message = refused(source, tmp_path / "out" / "wide", verify=is_verified, events=events)
    assert "`model.safetensors` changed while" in message.replace(f"{source}/", "")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("change", [rename, rewrite, remove], ids=lambda change: change.__name__)
def test_a_source_that_changes_between_plan_and_run(name, change, narrow, tmp_path):
    path = narrow("torch")
    source = find_source(path)
    plan = plan_source(source, WidenOptions(factor=2, max_shard_size=30_000))
    (tmp_path / "out").mkdir()
    change(path / name)
    message = refused(source, tmp_path / "out" / "wide", plan=plan, verify=False)
    assert name in message


def test_what_is_no_input_may_change(narrow, tmp_path):
    source = narrow("torch")
    widen(
        source,
        tmp_path / "x" / "wide",
        **OPTIONS,
        verify=False,
        events=change_in("widening", rename, source / "notes.md"),
    )
    assert (tmp_path / "x" / "wide").is_dir()
