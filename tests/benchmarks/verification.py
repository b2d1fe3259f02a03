"""Time of `mupscale verify --only function` relative to loading and running both models with plain transformers.

The baseline runs, for each model, `from_pretrained`, one forward pass, a padded batch, and greedy generation of eight
tokens.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import peak_private_bytes, repeated, report, save_llama

import mupscale_cli

_LIBRARIES = "import torch, transformers, accelerate, mupscale_cli.tasks.verify"
_PLAIN = """
import sys, torch, transformers
dtype = getattr(torch, sys.argv[3])
torch.manual_seed(0)
ids = torch.randint(512, (2, 16))
for path in sys.argv[1:3]:
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager").eval()
    with torch.no_grad():
        model(input_ids=ids)
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
        model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
    del model
"""


def seconds(code: str, *arguments: str) -> float:
    """Run Python code in a new process and return the seconds it takes."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100, help="size of the narrow checkpoint in MB (bfloat16)")
    parser.add_argument("--factor", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        narrow, wide = save_llama(Path(name) / "narrow", options.megabytes * 10**6), Path(name) / "wide"
        mupscale_cli.widen(narrow, wide, options.factor, verify=False)
        size = sum(file.stat().st_size for file in wide.glob("*.safetensors"))
        for dtype in options.dtypes:
            ours = "import mupscale_cli as m, sys;"
            ours += f"assert m.verify(sys.argv[1], only=('function',), dtype={dtype!r}).agrees"
            beyond = (peak_private_bytes(ours, str(wide)) - peak_private_bytes(_LIBRARIES)) / 1e6
            one = [ours, str(wide)]
            other = [_PLAIN, str(narrow), str(wide), dtype]
            ratio, spread = repeated(
                lambda one=one, other=other: seconds(*one) / seconds(*other),  # type: ignore[misc]
                options.repetitions,
            )
            rows.append((dtype, f"{size / 1e9:.2f} GB", ratio, spread, beyond))
    columns = ("type", "wide model", "ratio", "spread", "MB beyond the libraries")
    report(columns, rows, as_json=options.json)


if __name__ == "__main__":
    main()
