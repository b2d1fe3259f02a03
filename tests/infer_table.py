"""Infer a recipe for every model type of transformers, and write the results to a table.

    python tests/infer_table.py causal-lm -o infer-results.json
    python tests/infer_table.py causal-lm --again failed      # repeat the types that failed

Each type runs in its own process with a time limit, two at a time. Types with a result in the file are skipped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ONE = """
import json, sys, warnings
warnings.filterwarnings("ignore")
import torch
torch.set_num_threads(1)
from mupscale_cli.errors import MupscaleError
from mupscale_cli.infer.errors import InferError, TinyError
from mupscale_cli.infer.infer import infer
notes = []
try:
    result = infer(sys.argv[1], sys.argv[2], note=notes.append)
    axes = result.draft.movable if result.draft else ["c"]
    outcome = {"status": "verified", "error": result.worst, "axes": axes, "fixed": result.fixed, "text": result.text,
               "tied": bool(result.draft and result.draft.tied),
               "untied": not result.draft or result.draft.untied is not None}
except TinyError as error:
    outcome = {"status": "not built", "reason": error.message}
except InferError as error:
    outcome = {"status": "refused" if "no axis of" in error.message else "failed", "reason": str(error)}
except MupscaleError as error:
    outcome = {"status": "failed", "reason": str(error)}
except Exception as error:
    import traceback
    outcome = {"status": "failed", "reason": repr(error), "traceback": traceback.format_exc()[-1500:]}
print("RESULT" + json.dumps({**outcome, "notes": notes}))
"""


def types(task: str) -> list[str]:
    """Return the model types of a task, except those whose config contains other configs."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto as auto

    names = {
        "causal-lm": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "masked-lm": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "seq2seq-lm": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "image-classification": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    }[task]
    return [name for name in names if not getattr(CONFIG_MAPPING[name], "sub_configs", {})]


def one(model_type: str, task: str, limit: float) -> dict[str, Any]:
    """Infer one model type in its own process; `limit` is in seconds."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", ONE, model_type, task], capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return {"status": "failed", "reason": f"not finished after {limit:.0f} s"}
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT")), None)
    if line is None:
        return {"status": "failed", "reason": f"the process ended: {done.stderr[-300:]}"}
    return json.loads(line.removeprefix("RESULT"))


def table(results: dict[str, dict[str, Any]]) -> str:
    """Format results as a markdown table."""
    rows = ["| type | status | error | axes | fixed axes, or reason |", "|---|---|---|---|---|"]
    for name, result in sorted(results.items()):
        error = f"{result['error']:.0e}" if "error" in result else ""
        why = ", ".join(result.get("fixed", {})) or (result.get("reason", "").splitlines() or [""])[0][:160]
        why = why.replace("|", "/").replace("][", r"]\[")  # in Markdown, a cell ends at `|`, and `][` makes a link
        rows.append(f"| {name} | {result['status']} | {error} | {' '.join(result.get('axes', []))} | {why} |")
    return "\n".join(rows)


def main() -> None:
    """Infer the missing types of a task, and write all results as JSON and as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="causal-lm, masked-lm, seq2seq-lm or image-classification.")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("infer-results.json"),
        help="Results as JSON. Default: infer-results.json.",
    )
    parser.add_argument("--again", nargs="*", default=[], help="Repeat the types with these names or statuses.")
    parser.add_argument("--limit", type=float, default=90.0, help="Time limit for each type, in seconds. Default: 90.")
    parser.add_argument("--only", nargs="*", help="Run only these types.")
    options = parser.parse_args()
    every = json.loads(options.output.read_text()) if options.output.exists() else {}
    results: dict[str, dict[str, Any]] = every.setdefault(options.task, {})
    names = [name for name in types(options.task) if not options.only or name in options.only]
    todo = [
        name
        for name in names
        if name not in results or name in options.again or results[name]["status"] in options.again
    ]

    def work(name: str) -> None:
        result = one(name, options.task, options.limit)
        results[name] = result
        options.output.write_text(json.dumps(every, indent=1))
        print(f"{result['status']:10} {name}: {result.get('error', '')} {result.get('reason', '')[:150]!r}", flush=True)  # noqa: T201 (a script)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, todo))
    options.output.with_suffix(".md").write_text(
        "\n\n".join(f"## {task}\n\n{table(found)}" for task, found in every.items()) + "\n"
    )
    print(Counter(result["status"] for result in results.values()))  # noqa: T201 (a script)


if __name__ == "__main__":
    main()
