"""`check_model` finds the mistakes of wrong recipes."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from cli_runner import run
from helpers import MLP_MODULE, save_mlp
from mupscale_cli.architecture.loading import BUILT_IN, load_recipe
from mupscale_cli.errors import MupscaleError
from mupscale_cli.tasks.check import check_model, smallest_factors, unrelated_sizes
from mupscale_cli.tasks.planning import identity_plan, plan_widening
from mupscale_cli.tasks.source import find_source

# Families of six shapes, each with a case in which every rule counts.
FAMILIES = {
    "llama": "Llama-untied",
    "gemma": "Gemma3-tied",
    "gpt2": "GPT2-tied",
    "mixtral": "Mixtral-untied",
    "t5": "T5-tied",
    "mamba": "Mamba-tied",
}
TENSORS = re.compile(r"^tensors:\n", re.MULTILINE)


def full_text(name):
    """Return the text of a recipe and the name of the recipe that it extends, if any."""
    text = (BUILT_IN / f"{name}.yaml").read_text()
    parent = re.search(r"^extends: (\w+)\n", text, re.MULTILINE)
    return text, parent and parent[1]


def mutations(text, fixed):
    """Yield every text that lacks one `/`, one exponent, power or axis of a layout, or tells another norm.

    Skip axes that are never widened: their layout may as well be `.`.
    """
    start = TENSORS.search(text).end()
    body = text[start:]
    for found in re.finditer(r'(?<=[:\s{])"((?:[^"{}]|@)*)"(?=[}\s]|$)', body, re.MULTILINE):
        layout = found[1]
        if not layout or layout.startswith(("keep", "omit")) or "*" in layout or "==" in layout:
            continue
        where = text[: start + found.start()].count("\n") + 1
        bar = layout.find("|") if "|" in layout else len(layout)
        changes = [
            *((m.start(), m.end(), "") for m in re.finditer(r"/", layout)),
            *((m.start(), m.end(), "") for m in re.finditer(r"(?:@\w+)?\^-?[\d.]+", layout)),
            *((m.start(), m.end(), "") for m in re.finditer(r"#\w+\^(?!0\b)[\d.-]+ ?| of \w+", layout)),
            *((m.start(), m.end(), {"rms": "layer", "layer": "rms"}[m[0]]) for m in re.finditer("rms|layer", layout)),
            *(
                (m.start(), m.end(), ".")
                for m in re.finditer(r"(?<![\w^@|#])(?<!\| )\b[a-z]+\b(?!\^)", layout[:bar])
                if m[0] not in fixed
            ),
        ]
        for first, last, instead in changes:
            changed = layout[:first] + instead + layout[last:]
            place = start + found.start() + 1
            mutant = text[:place] + changed + text[place + len(layout) :]
            yield f"line {where}: {layout} -> {changed}", mutant


def grown(checked):
    """Return the axes that grow in each trial; an axis that cannot grow any more is a difference, too."""
    return [set(trial.factors) for trial in checked.trials]


def notices(mutant, source, folder, right):
    file = folder / "mutant.yaml"
    file.write_text(mutant)
    try:
        checked = check_model(source, file, quick=True)
    except MupscaleError:
        return True
    return not checked.passed or grown(checked) != right


def planned(model, recipe):
    """Return what the tensors of a model become at unrelated sizes; which of them silence a new block is left out."""
    source = find_source(model)
    sizes = unrelated_sizes(identity_plan(source.checkpoint, recipe).recipe, source.checkpoint)
    plan = plan_widening(source, axes=sizes, recipe=recipe)
    return [replace(tensor, layout="", block=None) for tensor in plan.tensors]


def survivors(name, saved, folder):
    """Return the mutations that `check_model` misses, apart from those that change nothing."""
    text, parent = full_text(name)
    if parent:
        (folder / f"{parent}.yaml").write_text((BUILT_IN / f"{parent}.yaml").read_text())
    source = saved(FAMILIES[name])
    tried = list(mutations(text, load_recipe(name).fixed))
    assert len(tried) >= 4
    right, plan = grown(check_model(source, name, quick=True)), planned(source, name)
    return [
        what
        for what, mutant in tried
        if not notices(mutant, source, folder, right) and planned(source, folder / "mutant.yaml") != plan
    ]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "mixtral" else pytest.mark.slow) for n in FAMILIES])
def test_every_mutation_is_noticed(name, saved, tmp_path):
    text, _ = full_text(name)
    lines = text.splitlines()
    missed = [what for what in survivors(name, saved, tmp_path) if not _unused(lines, what, name, saved)]
    assert not missed


def _unused(lines, what, name, saved):
    """Return whether the changed line is a rule, or an alternative, that does not apply to this model."""
    number = int(re.match(r"line (\d+)", what)[1])
    plan = identity_plan(find_source(saved(FAMILIES[name])).checkpoint)
    used = {
        choice.text.origin.line
        for rule in plan.recipe.tensors
        for choice in rule.choices
        if any(t.rule == rule.pattern.text and t.layout == choice.text.value for t in plan.tensors)
    }
    return number not in used


def test_static_mistakes_are_named(saved, tmp_path):
    text = (BUILT_IN / "llama.yaml").read_text()
    file = tmp_path / "wrong.yaml"
    file.write_text(
        text.replace('"embed, /(kv g d)"', '"embed, (kv g d)"').replace(
            'mlp.{gate,up}_proj.weight": "ffn, /embed"', 'mlp.{gate,up}_proj.weight": "/ffn, /embed"'
        )
    )
    checked = check_model(saved("Llama-untied"), file, quick=True)
    assert len(checked.mistakes) == 2
    assert "o_proj.weight`: Linear sums over dimension 1, which is widened without `/`: `embed, (kv g d)`" in str(
        checked.mistakes
    )
    assert "Linear does not sum over dimension 0, which has a `/`: `/ffn, /embed`" in str(checked.mistakes)


def test_a_key_missing_from_the_config_section_is_reported(saved, tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text((BUILT_IN / "llama.yaml").read_text().replace("  intermediate_size: ffn\n", ""))
    checked = check_model(saved("Llama-untied"), file, quick=True)
    problem = checked.trials[0].problem
    assert "the axis `ffn` has size 40 in the widened config, but 80 in the widened tensors" in problem


def test_smallest_factors_include_linked_axes(saved):
    def factors(case, axis):
        checkpoint = find_source(saved(case)).checkpoint
        return smallest_factors(load_recipe(case.partition("-")[0].lower()), checkpoint, axis, 3)

    assert factors("Llama-tied", "g") == {"g": 3}
    assert factors("Llama-tied", "d") == {"d": 3}
    assert factors("Bloom-tied", "embed") == {"embed": 3, "d": 3, "ffn": 3}
    assert factors("Mamba-tied", "embed") == {"embed": 3}


@pytest.mark.slow
def test_the_command_on_a_built_in_recipe():
    result = run("recipes", "check", "arcee")
    assert result.code == 0
    text, untied, tied = result.out.splitlines()
    assert text.startswith("arcee: 5 axes")
    assert re.fullmatch(r"arcee, untied: 18 widenings, all equal within \de-1[45]", untied)
    assert re.fullmatch(r"arcee, tied: 19 widenings, all equal within \de-1[45]", tied)


def test_the_command_on_a_user_defined_model(tmp_path):
    (tmp_path / "net.py").write_text(MLP_MODULE)
    source = save_mlp(tmp_path / "net.safetensors")
    result = run("recipes", "check", "mlp", str(source), "--model", f"{tmp_path / 'net.py'}:build")
    assert result.code == 0, result.out + result.err
    assert "all equal within" in result.out
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((BUILT_IN / "mlp.yaml").read_text().replace('"hidden, /hidden"', '"hidden, hidden"'))
    result = run("recipes", "check", str(wrong), str(source), "--model", f"{tmp_path / 'net.py'}:build")
    assert result.code == 1
    assert "`{prefix}*.weight`: Linear sums over dimension 1, which is widened without `/`" in result.out
    assert "first module that differs: 2" in result.out
    assert run("recipes", "check", "mlp", "--model", "net.py:build").code == 2


def test_the_command_with_no_run():
    result = run("recipes", "check", "llama", "--no-run")
    assert result.code == 0
    assert result.out == "llama: 5 axes, 20 rules, no mistakes in the text\n"
    assert Path(BUILT_IN).is_dir()
