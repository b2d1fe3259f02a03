"""Write the section of a model card that says how the model was widened.

The section depends only on the record and, like the record, contains no dates, paths or machine names.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from mupscale_cli.optimizers.hyperparameters import Settings, hyperparameters
from mupscale_cli.plan.methods import METHODS
from mupscale_cli.plan.request import USUAL_FACTOR
from mupscale_cli.text import count_text, growth_factor, listed, number_text, starred

if TYPE_CHECKING:
    from mupscale_cli.record.types import Function, Record, Verification

BEGIN, END = "<!-- mupscale begin -->", "<!-- mupscale end -->"
_UNKNOWN_SOURCE = "CHECKPOINT"
_MOST_NAMES = 10  # of files in one line


def card_section(record: Record, name: str) -> str:
    """Return the section, including its markers.

    Args:
        record: the model's mupscale.json.
        name: the model's name without its organization.
    """
    paragraphs = [
        BEGIN,
        "## Widened with mupscale",
        _origin(record, name),
        _purpose(record),
        _axes(record),
        _growth(record),
        "### Equivalence",
        *_equivalence(record),
        "### Continue training",
        *_hyperparameters(record),
        "### Reproduce",
        *_reproduce(record, name),
        END,
    ]
    return "\n\n".join(paragraphs)


def with_section(text: str, section: str) -> str:
    """Replace the section in a card's text, or append it if there is none."""
    begin, end = text.find(BEGIN), text.find(END)
    if 0 <= begin < end:
        return text[:begin] + section + text[end + len(END) :]
    return f"{text.rstrip()}\n\n{section}\n" if text.strip() else f"{section}\n"


def has_section(text: str) -> bool:
    """Return whether a card has a section by mupscale."""
    return 0 <= text.find(BEGIN) < text.find(END)


def _origin(record: Record, name: str) -> str:
    source = record["source"]
    if "repo" in source:
        base = f"[`{source['repo']}`](https://huggingface.co/{source['repo']}) (commit `{source['revision']}`)"
    else:
        base = "the checkpoint whose digests `mupscale.json` lists"
    version = record["mupscale_version"]
    return f"`{name}` was widened by mupscale {version}, without training, from {base}."


def _purpose(record: Record) -> str:
    method, noise = METHODS[record["method"]["name"]], record["perturbation"]
    is_exact = method.is_copying and (method.adds_identity or not record["blocks"])
    if is_exact and (not noise or noise["mode"] == "preserving"):
        return (
            "It is a starting point for further training: used as it is, it computes the same function as its source, "
            "no better and at a higher cost."
        )
    return "It is a starting point for further training, not a model to use as it is: it computes another function."


def _axes(record: Record) -> str:
    rows = [
        (f"`{axis}`", size["size"], growth_factor(size["size"], size["wide_size"], size["factor"]), size["wide_size"])
        for axis, size in record["axes"].items()
    ]
    return _table(("axis", "before", "factor", "after"), rows)


def _growth(record: Record) -> str:
    before, after = record["parameters"]["before"], record["parameters"]["after"]
    change = f"{count_text(before)} to {count_text(after)}, x{after / max(before, 1):.3g}"
    lines = [f"- parameters: {before:,} before, {after:,} after ({change})"]
    method, noise = record["method"], record["perturbation"]
    more = [f"seed {method['seed']}"] if "seed" in method else []
    more += [f"shrink {method['shrink']:g}"] if "shrink" in method else []
    lines.append(f"- method: `{method['name']}`{' (' + ', '.join(more) + ')' if more else ''}")
    if noise:
        size = f"{noise['size']:.3g} relative to {noise['scale']}"
        size += f" on {', '.join(f'`{pattern}`' for pattern in noise['on'])}" if noise["on"] else ""
        lines.append(f"- perturbation: {noise['mode']} noise of {size}, seed {noise['seed']}")
    else:
        lines.append("- perturbation: none; copies have equal gradients until noise makes them different")
    recipe = record["recipe"]
    kind = "recipe file" if "file" in recipe else "recipe"
    lines.append(f"- {kind}: `{recipe['name']}` (sha256 `{recipe['sha256'][:12]}`)")
    if record["tie"]:
        lines.append(f"- tied readout (it shares the embedding): `{record['tie']}`")
    state = record["optimizer_state"]
    if state:
        lines.append(f"- optimizer state: widened (policy `{state['policy']}`)")
    lines += _files(record)
    return "\n".join(lines)


def _files(record: Record) -> Iterable[str]:
    """Yield which of the source's files beside the weights were carried, and which were left behind and why."""
    fates = record["fates"].items()
    if carried := [name for name, entry in fates if entry["fate"] == "carried"]:
        yield f"- files carried unchanged: {listed(carried, _MOST_NAMES)}"
    reasons = dict.fromkeys(entry["reason"] for _, entry in fates if entry["fate"] == "left behind")
    for reason in reasons:
        names = [name for name, entry in fates if (entry["fate"], entry["reason"]) == ("left behind", reason)]
        yield f"- files left behind ({reason}): {listed(names, _MOST_NAMES)}"


def _equivalence(record: Record) -> Iterable[str]:
    verification = record["verification"]
    if verification is None:
        yield "**Not verified**: the two models have not been compared. `mupscale verify` compares them."
        return
    if function := verification["function"]:
        yield from _function(function)
    else:
        yield "The two models have not been run. `mupscale verify` compares what they compute."
    yield "\n".join(_further(verification))


def _function(function: Function) -> Iterable[str]:
    base = function["unperturbed"]
    if base is not None and not function["keeps_function"]:
        yield "The noise changes the function. These figures are for the model without its noise."
    elif not function["keeps_function"]:
        yield "This method changes the function on purpose. The figures say by how much the models differ."
    shown = base or function
    yield (
        f"`mupscale verify` ran both models in {shown['dtype']} on {shown['inputs']}"
        + (f" and compared {shown['modules_compared']} modules." if shown["modules_compared"] else ".")
    )
    rows = [(c["what"], _error(c["max_rel"]), _error(c["max_abs"])) for c in shown["comparisons"]]
    if shown["worst_module"]:
        worst = shown["worst_module"]
        rows.append((f"worst module (`{worst['what']}`)", _error(worst["max_rel"]), _error(worst["max_abs"])))
    yield _table(("compared", "largest relative difference", "largest absolute"), rows)


def _further(verification: Verification) -> Iterable[str]:
    """Yield a list entry for everything else that was verified."""
    function = verification["function"]
    shown = function and (function["unperturbed"] or function)
    if shown:
        yield f"- tolerance: {shown['tolerance']:.1e} = {shown['tolerance_reason']}"
    if shown and shown["rounding"]:
        yield (
            f"- {shown['rounded_tensors']} tensors were rounded to their data type, which moves the outputs by "
            f"{_error(shown['rounding']['max_rel'])}"
        )
    if weights := verification["weights"]:
        yield f"- every byte of {weights['tensors']} tensors matches source, rule and noise"
    if config := verification["config"]:
        yield f"- {config['keys']} keys of config.json are as planned"
    if training := verification["training"]:
        yield (
            f"- {training['steps']} steps of {training['optimizer']} on both models: losses differ by at most "
            f"{_error(training['max_rel'])}"
        )


def _error(value: float | str) -> str:
    return f"{value:.1e}" if isinstance(value, float | int) else value


def _hyperparameters(record: Record) -> Iterable[str]:
    result = hyperparameters(record, Settings(lr=1.0, weight_decay=1.0, eps=1.0))
    yield (
        "With AdamW, the model trains as the narrow one did if each group uses the values of the narrow run multiplied "
        "by these:"
    )
    rows = [
        (
            ", ".join(dict.fromkeys(f"`{starred(name)}`" for name in group.tensors)),
            number_text(group.multipliers.lr),
            number_text(group.multipliers.eps),
            number_text(group.multipliers.weight_decay) if group.is_decayed else "",
            number_text(group.clip_weight),
        )
        for group in result.groups
    ]
    yield _table(("tensors", "lr", "eps", "weight decay", "clip weight"), rows)
    yield (
        "Weight decay is listed for the tensors that usually decay (matrices). Betas, schedules and step counts stay "
        "the same. Clip by the square root of the sum of clip weight x squared norm. `mupscale hparams` covers other "
        "optimizers and the formats of trainers."
    )
    for warning in result.warnings:
        yield f"Note: {warning}."


def _reproduce(record: Record, name: str) -> Iterable[str]:
    yield f"```sh\n{reproducing_command(record, name)}\n```"
    if "repo" not in record["source"]:
        yield f"`{_UNKNOWN_SOURCE}` is the checkpoint whose digests `mupscale.json` lists."
    if "file" in record["recipe"]:
        yield "The recipe is a separate file; `mupscale.json` contains its SHA-256."


def reproducing_command(record: Record, name: str) -> str:
    """Return the command line that makes the same files again.

    Args:
        record: the model's mupscale.json.
        name: the output's name.
    """
    source, recipe = record["source"], record["recipe"]
    words = ["mupscale", "widen", f"{source['repo']}@{source['revision']}" if "repo" in source else _UNKNOWN_SOURCE]
    for axis, size in record["axes"].items():
        before, after, copies = size["size"], size["wide_size"], size["factor"]
        if before != after and before and after and after != before * copies:
            words += ["--axis", f"{axis}:{after}"]
        elif copies > 1:
            words += ["--axis", f"{axis}={copies}"]
    if any(size["factor"] > USUAL_FACTOR for size in record["axes"].values()):
        words.append("--allow-large-factor")
    for stack, blocks in record["blocks"].items():
        words += ["--axis", f"{stack}:{blocks['wide_size']}"]
        if len(record["blocks"]) == 1 and record["method"]["name"] != "stack":
            words += ["--layers-at", ",".join(map(str, blocks["new"]))]
    # The folder belongs to the machine where the model was widened, and its separators may be those of Windows.
    words += ["--recipe", PurePosixPath(recipe["file"].replace("\\", "/")).name if "file" in recipe else recipe["name"]]
    if record["tie"]:
        words += ["--tie", record["tie"]]
    words += ["--clean-names"] if record.get("clean_names") else []
    words += _growth_options(record)
    state = record["optimizer_state"]
    if state:
        words += [word for name in state.get("named", ()) for word in ("--optimizer-kind", name)]
    if state and state["policy"] != "copy":
        words += ["--optimizer-policy", state["policy"]]
    return shlex.join([*words, "-o", name])


def _growth_options(record: Record) -> list[str]:
    """Return the options that select method and noise."""
    method, noise = record["method"], record["perturbation"]
    words = [] if method["name"] == "mupscale" else ["--method", method["name"]]
    if "shrink" in method:
        words += ["--shrink", repr(method["shrink"])]
    if method.get("fresh", "init") != "init":
        words += ["--fresh", method["fresh"]]
    if method.get("spread", "padded") != "padded":
        words += ["--spread", method["spread"]]
    if noise:
        words += ["--noise", repr(noise["size"]), "--noise-mode", noise["mode"], "--noise-scale", noise["scale"]]
        words += [word for pattern in noise["on"] for word in ("--noise-on", pattern)]
    seed = noise["seed"] if noise else method.get("seed", 0)
    return [*words, "--seed", str(seed)] if seed else words


def _table(columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
