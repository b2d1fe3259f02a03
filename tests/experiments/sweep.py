"""Test the recommendation of `mupscale sweep`, which comes from small widths, at the target width."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE.parent))

from experiments.data import CONTEXT, VOCABULARY, document_bytes  # noqa: E402 (after the path is set)
from experiments.results import fill  # noqa: E402
from experiments.transfer import power  # noqa: E402
from mupscale_cli.engine.threads import one_thread  # noqa: E402
from mupscale_cli.sweep import training  # noqa: E402
from mupscale_cli.sweep.grid import Grid  # noqa: E402
from mupscale_cli.sweep.run import sweep  # noqa: E402
from mupscale_cli.sweep.settings import Sweep, Training  # noqa: E402

WIDTHS, TARGET = (2, 4), 8
_RATES, _NOISES = range(-12, -6), range(-3, 2)  # exponents e of 2^(e/2)
_SEEDS = (0, 1)  # at the target; the sweep uses one, its default
_AROUND = range(-2, 3)  # grid steps
_NARROW = Training(steps=2000, length=CONTEXT, clip=0)
_NARROW_LR = power(-12)
_TRIAL = Training(steps=200, length=CONTEXT, weight_decay=0.1, schedule="cosine")
_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 40,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class TargetLosses:
    """Held-out losses at the target width, for the seeds that did not diverge.

    Attributes:
        lr: exponent of the recommended learning rate.
        noise: exponent of the recommended noise.
        lr_shift: grid steps between the best learning rates of the swept widths.
        noise_shift: grid steps between the best noises of the swept widths.
        rates: losses by grid steps away from the recommended learning rate, with the recommended noise.
        noises: losses by grid steps away from the recommended noise, with the recommended learning rate.
    """

    lr: int
    noise: int
    lr_shift: int
    noise_shift: int
    rates: dict[int, tuple[float, ...]]
    noises: dict[int, tuple[float, ...]]


def make_narrow(folder: Path, tokens: np.ndarray) -> None:
    """Train a small Llama and save it with `save_pretrained`, next to its optimizer's state."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_LLAMA))
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=_NARROW_LR, betas=_NARROW.betas)
    training.run(model, optimizer, _NARROW, tokens, -1, lambda _step, _loss: None)
    model.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")


def measure(folder: Path) -> TargetLosses:
    """Sweep small widths, then train the target with the recommended hyperparameters and with nearby ones."""
    train, held_out = (torch.cat(parts).numpy() for parts in document_bytes())
    data = folder / "documents.npy"
    # A sweep holds out the last tenth of its data, here the last tenth of every document.
    np.save(data, np.concatenate([train, held_out]))
    make_narrow(folder / "small", train)
    grid = Grid(WIDTHS, tuple(map(power, _RATES)), tuple(map(power, _NOISES)), _SEEDS[:1])
    settings = Sweep("small", folder / "small", folder / "sweep", grid, TARGET, training=_TRIAL, data=data)
    recommendation = sweep(settings, picture=False).findings.recommendation
    assert recommendation is not None
    lr, noise = (round(2 * np.log2(value)) for value in (recommendation.lr, recommendation.noise))

    def at_target(rates: tuple[int, ...], noises: tuple[int, ...]) -> dict[tuple[int, int], Any]:
        cross = Grid((TARGET,), tuple(map(power, rates)), tuple(map(power, noises)), _SEEDS)
        cells = sweep(replace(settings, grid=cross), picture=False).findings
        return {(e, t): cells.cell(TARGET, power(t), power(e)) for e in rates for t in noises}

    around = tuple(_AROUND)
    by_rate = at_target(tuple(lr + step for step in around), (noise,))
    by_noise = at_target((lr,), tuple(noise + step for step in around))
    return TargetLosses(
        lr,
        noise,
        recommendation.lr_shift,
        recommendation.noise_shift,
        {step: by_rate[lr + step, noise].losses for step in around},
        {step: by_noise[lr, noise + step].losses for step in around},
    )


def table(losses_at_target: Mapping[str, Any]) -> str:
    """Tabulate mean losses by grid steps from the recommendation."""
    steps = list(losses_at_target["rates"])
    lines = [
        ["at the target", *(f"{int(step):+d}" if int(step) else "recommended" for step in steps)],
        ["---", *["---:"] * len(steps)],
    ]
    for what, key in (("learning rate", "rates"), ("noise", "noises")):
        lines.append([what, *(_mean_text(losses) for losses in losses_at_target[key].values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mean_text(losses: tuple[float, ...]) -> str:
    if len(losses) < len(_SEEDS):
        return "diverged"
    return f"{fmean(losses):.3f} ± {(max(losses) - min(losses)) / 2:.3f}"


def main() -> None:
    """Run the experiment, save its results and fill the table."""
    with tempfile.TemporaryDirectory() as folder, one_thread():
        losses_at_target = asdict(measure(Path(folder)))
    (_HERE / "results" / "sweep.json").write_text(json.dumps(losses_at_target) + "\n")
    document = _HERE / "README.md"
    document.write_text(fill(document.read_text(), {"sweep": table(losses_at_target)}))
    sys.stdout.write(f"{table(losses_at_target)}\n")


if __name__ == "__main__":
    main()
