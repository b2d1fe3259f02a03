"""What mupscale has for every model type of the installed transformers."""

import re
from pathlib import Path

import pytest
import transformers

from cli_runner import run
from mupscale_cli.errors import MupscaleError
from mupscale_cli.infer.coverage import coverage, with_drafts

TASKS = (
    *("causal-lm", "masked-lm", "seq-to-seq-causal-lm", "image-text-to-text", "image-classification"),
    *("ctc", "speech-seq-2-seq", "audio-classification"),
)
LIST = Path(__file__).with_name("types_without_recipe.txt")
HEADER = (
    "# Model types of transformers {version} with neither a recipe nor a refusal; `widen` drafts a recipe for them.\n"
    "# `python tests/infer/test_coverage.py` writes this list again.\n"
)


def missing() -> list[str]:
    return [each.name for each in coverage(TASKS) if each.outcome == "none"]


def minor(version: str) -> int:
    major, minor, *_ = version.split(".")
    return 1000 * int(major) + int(minor)


def test_only_types_of_the_newest_release_may_lack_both_recipe_and_reason():
    """Types that the list lacks are new in transformers; they have one release's time to get a recipe or a reason."""
    text = LIST.read_text(encoding="utf-8")
    listed = {line for line in text.splitlines() if not line.startswith("#")}
    release = re.search(r"transformers ([\d.]+)", text)[1]
    new = [name for name in missing() if name not in listed]
    print(f"without a recipe since transformers {release}: {', '.join(new) or 'none'}")  # noqa: T201
    age = minor(transformers.__version__) - minor(release)
    assert not new or age == 1 or age < 0, f"write recipes, entries of refusals.yaml, or the list again: {new}"


def test_every_type_has_one_outcome_and_a_refusal_its_reason():
    types = {each.name: each for each in coverage()}
    assert len(types) > 500
    assert (types["llama"].outcome, types["llama"].detail) == ("recipe", "llama")
    assert "causal-lm" in types["llama"].tasks
    assert types["timm_wrapper"].outcome == "refused"
    assert "none of its sizes" in types["timm_wrapper"].detail
    assert {each.outcome for each in types.values()} == {"recipe", "refused", "none"}


def test_drafts_are_tried_only_for_types_without_a_recipe(monkeypatch):
    def fail(config):
        raise MupscaleError(f"cannot build {config['model_type']}")

    monkeypatch.setattr("mupscale_cli.infer.coverage.draft_for", fail)
    tried = {each.name: each for each in with_drafts(coverage(["ctc", "image-text-to-text"]))}
    assert {each.outcome for each in tried.values()} <= {"recipe", "refused", "failed"}
    assert tried["llava"].outcome == "recipe"
    failed = [each for each in tried.values() if each.outcome == "failed"]
    assert all(each.detail == f"cannot build {each.name}" for each in failed)
    assert len(failed) == len([each for each in coverage(["ctc", "image-text-to-text"]) if each.outcome == "none"]) > 0


def test_the_command_counts_the_outcomes():
    result = run("recipes", "coverage", "--task", "masked-lm")
    assert result.code == 0
    assert re.search(r"\d+ model types: .*\d+ recipe", result.out)
    assert "causal-lm" not in result.out


def test_an_unknown_task_is_refused_with_those_that_exist():
    with pytest.raises(MupscaleError, match="has no task `masked-ml`"):
        coverage(["masked-ml"])


if __name__ == "__main__":
    head = HEADER.format(version=transformers.__version__)
    LIST.write_text(head + "".join(f"{name}\n" for name in missing()), encoding="utf-8")
