"""The experiments run from end to end, and training without noise is identical."""

from dataclasses import replace

import pytest

from experiments import run
from experiments.bases import FACTOR, Ladder
from experiments.identity import measure_identity
from experiments.results import load, made_with, save
from experiments.tasks import TASKS
from experiments.training import load as load_model
from experiments.training import mapped_optimizer, resume_state, train, widen
from experiments.transfer import Grid, search


def is_llama(name: str) -> bool:
    return name.startswith("llama")


@pytest.mark.parametrize(("name", "factor"), [(n, k) for n in TASKS for k in ((3,) if is_llama(n) else (2, 3))])
def test_without_noise_training_is_identical(name, factor, tmp_path):
    found = measure_identity(TASKS[name], tmp_path, factor, steps=10)
    assert len(found.wide) == 10
    # transformers rounds what the norms of a Llama divide to float32.
    assert found.difference < (2**-24 if is_llama(name) else 1e-12)
    # The model learns. One batch is a noisy measure, since the GPT's batches come from different documents.
    assert min(found.narrow[5:]) < found.narrow[0]
    # A single learning rate for all tensors trains differently.
    assert max(abs(s / n - 1) for s, n in zip(found.standard, found.narrow, strict=False)) > 1e-4


def test_a_widened_base_trains_like_the_base(tmp_path):
    """Hyperparameters that are carried through both widenings at once are those of the base, widened."""
    task = replace(TASKS["mlp-adamw"], narrow_steps=20)
    ladder, data = Ladder(task, tmp_path), task.data()
    base = ladder.base(2, 3)
    wide = widen(base, FACTOR)
    curves = []
    for model_task, file, factor in ((base.task, base.file, 1), (base.task, wide, FACTOR)):
        model = load_model(model_task, file, factor)
        optimizer = mapped_optimizer(task, model, widen(ladder.reference, 2 * factor), 0.01)
        resume_state(optimizer, file)
        curves.append(train(model, optimizer, data.batches(32, 10, 0), 10).losses)
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)  # float32
    assert curves[0][-1] < curves[0][0]


@pytest.mark.parametrize("best", [-7, 0, 3])
def test_search_continues_past_its_optimum(best):
    grid = search(lambda e: (((e - best) ** 2 + 1.0, (e - best + 0.4) ** 2 + 1.0), (0.0, 0.0)), start=0)
    assert grid.best == best
    assert grid.best_of_seeds == (best, best)
    assert best - 2 >= min(grid.seen)
    assert best + 2 <= max(grid.seen)
    assert grid.fitted == pytest.approx(best - 0.2)


def test_diverged_runs_are_not_an_optimum():
    grid = Grid({-1: (1.0, 2.0), 0: (0.5, float("inf")), 1: (3.0, 3.0)}, {})
    assert grid.best == -1


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path, capsys):
    arguments = ["mlp-sgd", "--quick", "--part", "bases", "--output", str(tmp_path)]
    file = tmp_path / "results" / "bases-mlp-sgd.json"
    run.main(arguments)
    whole = load(file)
    stopped = replace(whole, transfers=whole.transfers[:1])
    save(stopped, file)
    capsys.readouterr()
    run.main([*arguments, "--resume"])
    assert load(file).transfers == whole.transfers
    assert "spectral base" not in capsys.readouterr().out
    assert "resumed_from" in made_with(file)
    save(replace(stopped, data="of another day"), file)
    with pytest.raises(SystemExit, match="other data"):
        run.main([*arguments, "--resume"])


LONG = [pytest.param(group, marks=pytest.mark.slow) for group in ("resnet", "gpt")]


@pytest.mark.parametrize("group", ["mlp-sgd", *LONG])
def test_every_experiment_runs(group, tmp_path):
    (tmp_path / "README.md").write_text("before\n<!-- optima -->\n<!-- end -->\nafter\n")
    run.main([group, "--quick", "--output", str(tmp_path)])
    files = list((tmp_path / "results").glob("*.json"))
    assert [load(file).title for file in files]
    assert len(list((tmp_path / "figures").glob("optima-*.svg"))) == len(
        list((tmp_path / "results").glob("optima-*.json"))
    )
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n<!-- optima -->\n|")
    assert text.endswith("<!-- end -->\nafter\n")
