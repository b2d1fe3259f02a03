"""Examples that the help of commands ends with."""

from __future__ import annotations

_EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "widen": (
        ("mupscale widen tiny -f 2", "writes and verifies tiny-x2"),
        ("mupscale widen tiny -a ffn=8 -a kv=2", "two axes only"),
        ("mupscale widen tiny --to 1b/config.json", "the sizes of another model"),
        ("mupscale widen tiny --params 1.2B --dry-run", "shapes near 1.2 billion"),
        ("mupscale widen org/tiny -f 4 --noise 0.1", "from the Hub; copies differ"),
    ),
    "verify": (
        ("mupscale verify tiny-x4", "against its source"),
        ("mupscale verify tiny-x4 --steps 20", "and over 20 training steps"),
        ("mupscale verify tiny tiny-x4", "if the source has moved"),
    ),
    "inspect": (
        ("mupscale inspect tiny", "recipe, axes and tensors"),
        ("mupscale inspect tiny --tensor q_proj", "one tensor in words"),
    ),
    "hparams": (
        ("mupscale hparams tiny-x4 --lr 3e-4", "groups and their rates"),
        ("mupscale hparams tiny-x4 --format trainer", "lines for a script"),
    ),
    "sweep": (("mupscale sweep tiny --target 8 --data text.jsonl", ""),),
    "coordcheck": (("mupscale coordcheck tiny", "sizes of activations"),),
    "push": (
        ("mupscale push tiny-x4 org/tiny-x4 --dry-run", "shows files and card"),
        ("mupscale push tiny-x4 org/tiny-x4 --private", "publishes them"),
    ),
    "run": (("mupscale run family.yaml --dry-run", "what its steps need"),),
    "help": (("mupscale help trainers", ""),),
    "schema": (("mupscale schema widen", ""),),
    "recipes show": (("mupscale recipes show llama", ""),),
    "recipes infer": (("mupscale recipes infer net.py:build -o net.yaml", "a module of your own"),),
}


def examples(command: str) -> str | None:
    """Return the examples of a command as text, one line for each."""
    pairs = _EXAMPLES.get(command)
    if pairs is None:
        return None
    width = max(len(line) for line, _ in pairs)
    return "\n".join(["Examples:", *(f"  {line:{width}}  {what}".rstrip() for line, what in pairs)])
