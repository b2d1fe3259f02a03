"""Widen and verify on a GPU: every shape in every type, training steps, noise, placement, and a model of billions.

`PYTHONPATH=tests python tests/gpu/run.py` ends within eight minutes on one GPU and prints a table as Markdown. A case
that fails or no longer fits into the time does not hide the others. `--device cpu --small` runs them on tiny models.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import mupscale_cli
from helpers import save_model

SHAPES = (
    "Llama-tied",
    "GPT2-tied",
    "Mixtral-untied",
    "DeepseekV3-untied",
    "Mamba2-tied",
    "T5-tied",
    "ViT-pooler",
    "ResNet-basic",
)
DTYPES = ("float64", "float32", "bfloat16")
STEPS = 5
_LARGE = {  # 1.1 billion parameters, so that the wide model has four
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 64,
}


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: the model and what is done with it.
        run: does it in an empty folder; returns the largest relative difference, its tolerance and a remark.
        seconds: what it takes at most on a GPU; it is skipped if less is left.
    """

    name: str
    run: Callable[[Path], tuple[float | None, float | None, str]]
    seconds: float


@dataclass(frozen=True)
class Row:
    """What became of a case; memory in bytes, time in seconds."""

    case: str
    outcome: str
    difference: float | None = None
    tolerance: float | None = None
    seconds: float = 0.0
    memory: int = 0
    remark: str = ""


def cases(device: str, *, small: bool) -> Iterator[Case]:
    """Yield every case, the short ones first."""
    for shape in SHAPES:
        for dtype in DTYPES:
            yield Case(f"{shape}, {dtype}", _verified(shape, device, dtype=dtype), 20)
    yield Case(f"Llama, {STEPS} training steps", _trained("Llama-tied", device), 30)
    yield Case("Llama, noise 0.1", _verified("Llama-tied", device, widening={"noise": 0.1}, dtype="float64"), 20)
    yield Case("Llama, fresh units (x1.5)", _verified("Llama-tied", device, factor=1.5, dtype="float64"), 20)
    for place in ("spread", "disk") if device.startswith("cuda") else ("disk",):
        yield Case(f"Llama, weights: {place}", _verified("Llama-tied", place, dtype="float32"), 30)
    changes = {} if small else _LARGE
    name = "Llama, small" if small else "Llama, 1.1 B to 4.2 B parameters"
    for dtype in ("bfloat16", "float64"):
        yield Case(f"{name}, {dtype}", _verified("Llama-untied", device, dtype=dtype, changes=changes), 120)


def _verified(
    shape: str,
    device: str,
    *,
    dtype: str,
    factor: float = 2,
    widening: dict[str, Any] | None = None,
    changes: dict[str, Any] | None = None,
) -> Callable[[Path], tuple[float | None, float | None, str]]:
    def run(folder: Path) -> tuple[float | None, float | None, str]:
        if changes:
            _save_large(folder / "narrow", changes)
        else:
            save_model(folder / "narrow", shape)
        growth = {**(widening or {}), **({"fresh": "zero"} if factor != int(factor) else {})}
        started = time.perf_counter()
        mupscale_cli.widen(folder / "narrow", folder / "wide", factor, verify=False, processes=None, **growth)
        written = time.perf_counter() - started
        found = mupscale_cli.verify(folder / "wide", only=("function",), dtype=dtype, device=device)
        function = found.function
        assert function is not None
        compared = function.unperturbed or function
        if not found.agrees:
            raise AssertionError(f"the models differ by {compared.max_rel:.1e}, tolerance {compared.tolerance:.1e}")
        return compared.max_rel, compared.tolerance, f"{function.device}; widening {written:.1f} s"

    return run


def _trained(shape: str, device: str) -> Callable[[Path], tuple[float | None, float | None, str]]:
    def run(folder: Path) -> tuple[float | None, float | None, str]:
        save_model(folder / "narrow", shape)
        mupscale_cli.widen(folder / "narrow", folder / "wide", 2, verify=False)
        found = mupscale_cli.verify(folder / "wide", only=("function",), steps=STEPS, device=device)
        if not found.agrees:
            raise AssertionError("the models train differently")
        return None, None, f"{STEPS} steps in float64 agree"

    return run


def _save_large(folder: Path, changes: dict[str, Any]) -> None:
    """Save a Llama in bfloat16 with random weights, made on the GPU if there is one: on the CPU that takes minutes."""
    import transformers

    config = transformers.LlamaConfig(**changes, tie_word_embeddings=False)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measured(case: Case, folder: Path) -> Row:
    """Run a case; an error becomes its row."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        try:
            difference, tolerance, remark = case.run(Path(name))
            outcome = "agrees"
        except Exception as error:  # noqa: BLE001 (the table says what failed)
            difference, tolerance, outcome = None, None, "FAILED"
            remark = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return Row(case.name, outcome, difference, tolerance, time.perf_counter() - started, memory, remark)


def run_cases(chosen: Sequence[Case], folder: Path, budget: float) -> list[Row]:
    """Run cases in order; those that no longer fit into the budget of seconds are named as skipped."""
    rows, ends = [], time.monotonic() + budget
    for case in chosen:
        left = ends - time.monotonic()
        if left < case.seconds:
            rows.append(Row(case.name, "skipped", remark=f"{left:.0f} s left of {budget:.0f} s"))
        else:
            rows.append(measured(case, folder))
        sys.stderr.write(f"{rows[-1].outcome}: {case.name} {rows[-1].remark}\n")
    return rows


def hardware() -> str:
    """Return the hardware and the versions that the figures belong to."""
    import transformers

    has_gpu = torch.cuda.is_available()
    gpu = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if has_gpu else "no GPU"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{gpu}; {os.cpu_count()} cores, {platform.system()}; {versions}; mupscale {mupscale_cli.__version__}"


def markdown(rows: Sequence[Row]) -> str:
    """Return the table."""
    lines = [
        "| case | outcome | difference | tolerance | seconds | GPU memory | remark |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        figures = ("" if each is None else f"{each:.1e}" for each in (row.difference, row.tolerance))
        memory = f"{row.memory / 1e9:.2f} GB" if row.memory else ""
        cells = (row.case, row.outcome, *figures, f"{row.seconds:.1f}", memory, row.remark.replace("|", "/"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run the cases and print the table; 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a tiny model instead of the one of billions")
    parser.add_argument("--seconds", type=float, default=460, help="time for all cases together")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases with this text in their name")
    parser.add_argument("--folder", type=Path, help="where to write models. Default: a temporary folder.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch finds no GPU; `--device cpu --small` tries the script without one")
    chosen = [case for case in cases(options.device, small=options.small) if options.only in case.name]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = run_cases(chosen, Path(folder), options.seconds)
    if options.json:
        text = json.dumps({"hardware": hardware(), "rows": [asdict(row) for row in rows]}, indent=2)
    else:
        text = f"{hardware()}\n\n{markdown(rows)}"
    sys.stdout.write(f"{text}\n")
    return int(any(row.outcome == "FAILED" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
