"""Write a verification as one self-contained HTML file: inline pictures, no scripts, no network."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mupscale_cli.errors import PictureError
from mupscale_cli.reports.guidance import coverage_notes
from mupscale_cli.reports.pictures.canvas import inline_svg
from mupscale_cli.reports.pictures.page import (
    caption,
    details,
    escaped,
    last_part,
    number,
    page,
    paragraph,
    section,
    table,
)
from mupscale_cli.reports.pictures.verification import draw_errors, draw_losses, module_errors, step_losses
from mupscale_cli.reports.pictures.weights import Blocks, draw_weights
from mupscale_cli.text import count_text

if TYPE_CHECKING:
    from mupscale_cli.record.types import Function, Record, Verification

SIZES = (
    "Each axis is a set of units that are copied together, named as in the recipe, the architecture's description. "
    "A factor of 2 makes two of every unit. A source's XXH3-128 is a checksum of the file that was widened."
)
COMPARISONS = (
    "Both networks ran on the same inputs. A relative difference is the largest difference between two numbers of an "
    "output, divided by the output's largest magnitude. Even equal functions differ by rounding, because sums are "
    "longer in the wide network: up to the tolerance, which is derived from the data type and the sizes."
)


def report(wide: str, record: Record, verification: Verification, blocks: Blocks | None) -> str:
    """Return the report of a verification.

    Args:
        wide: path of the wide checkpoint.
        record: record of its widening.
        verification: the verification, as `--json` prints it.
        blocks: blocks of one tensor before and after, None to show none.

    Returns:
        An HTML document that depends only on the arguments: it has no dates or names of machines.
    """
    title = f"{last_part(wide)}, widened from {source_name(record)}"
    sections = [
        _heading(title, verification),
        section("What was widened", caption(SIZES), _sizes(record), _facts(record)),
        section("What was compared", *_compared(verification)),
        *_pictures(wide, verification, blocks),
        section("Reproduce", _commands(wide)),
        section(
            "All figures",
            details("Record of the widening (mupscale.json)", record),
            details("Verification", verification),
        ),
    ]
    return page(title, sections)


def source_name(record: Record) -> str:
    """Return the name of the checkpoint that was widened."""
    source = record["source"]
    return f"{source['repo']} at {source['revision']}" if "repo" in source else last_part(str(source["path"]))


def _heading(title: str, verification: Verification) -> str:
    verdict = verdict_text(verification)
    mark = "" if verification["agrees"] else " bad"
    function = verification["function"]
    where = f"{function['dtype']} on {function['device']}, {function['inputs']}" if function else "no model was run"
    return (
        f'<header>\n<h1>{escaped(title)}</h1>\n<p class="verdict{mark}">{escaped(verdict)}</p>\n'
        f'<p class="gray">{escaped(where)}</p>\n{paragraph(introduction(function))}\n</header>'
    )


def introduction(function: Function | None) -> str:
    """Explain the page to someone who knows nothing about it."""
    aim = (
        "the wide network computes the same function"
        if function is None or function["keeps_function"]
        else "the wide network starts close to the narrow one; its function is changed on purpose"
    )
    return (
        "mupscale widens a trained network without training it: it copies units, such as neurons and attention heads, "
        f"and divides the weights that sum over copies, so that {aim}. This page says what was widened, how both "
        "networks were compared, and what was found."
    )


def verdict_text(verification: Verification) -> str:
    """Summarize a verification in a few words."""
    function, training = verification["function"], verification["training"]
    if not verification["agrees"]:
        keeps = not function or function["keeps_function"]
        return "the models differ" if keeps else "the models do not differ as intended"
    if not function:
        return "as planned"
    trained = f", and the same {training['steps']} steps" if training else ""
    return f"same function{trained}" if function["keeps_function"] else f"differs as intended{trained}"


def _sizes(record: Record) -> str:
    parameters = record["parameters"]
    before, after = parameters["before"], parameters["after"]
    ratio = f"x{after / before:.3g}" if before else ""
    rows: list[tuple[object, ...]] = [("parameters", count_text(before), ratio, count_text(after))]
    for name, axis in record["axes"].items():
        size, wide = (("varies" if axis[key] is None else axis[key]) for key in ("size", "wide_size"))
        rows.append((name, size, f"x{axis['factor']}", wide))
    return table(("", "narrow", "factor", "wide"), rows, ("narrow", "factor", "wide"))


def _facts(record: Record) -> str:
    noise = record["perturbation"]
    rows: list[tuple[object, ...]] = [
        ("recipe", record["recipe"]["name"]),
        ("method", record["method"]["name"]),
        ("noise", f"{noise['mode']}, {noise['size']:g} of {noise['scale']}, seed {noise['seed']}" if noise else "none"),
    ]
    if state := record["optimizer_state"]:
        rows.append(("optimizer state", f"{state['file']} ({state['policy']})"))
    for name, file in record["source"]["files"].items():
        rows.append(("source", f"{name}, XXH3-128 {file['xxh128']}"))
    return table(("", "value"), rows)


def _compared(verification: Verification) -> Iterable[str]:
    """Describe what was compared in each part of a verification."""
    if function := verification["function"]:
        yield caption(COMPARISONS)
        yield _comparisons(function)
        yield from _notes(function)
    if weights := verification["weights"]:
        result = "every byte matches source, rule and noise" if weights["agrees"] else weights["differences"][0]
        yield paragraph(f"weights: {weights['tensors']} tensors, {result}")
    if config := verification["config"]:
        result = "as planned" if config["agrees"] else config["differences"][0]
        yield paragraph(f"config.json: {config['keys']} keys, {result}")
    if files := verification["files"]:
        state = files.get("optimizer_state", {}).get("differences", [])
        result = "as planned" if files["agrees"] else [*files["differences"], *state][0]
        yield paragraph(f"files: {', '.join(files['files'])}, {result}")
    for part, reason in verification["skipped"].items():
        yield paragraph(f"{part}: not compared: {reason}")


def _comparisons(function: Function) -> str:
    keeps, tolerance = function["keeps_function"], function["tolerance"]
    rows: list[tuple[object, ...]] = []
    for each in function["comparisons"]:
        wrong = keeps and not float(each["max_rel"]) <= tolerance
        row = (each["what"], number(each["max_rel"]), number(each["max_abs"]))
        rows.append(("!", *row) if wrong else row)
    if worst := function["worst_module"]:
        what = f"worst of {function['modules_compared']} modules, {worst['what']}"
        rows.append((what, number(worst["max_rel"]), number(worst["max_abs"])))
    numbers = ("largest relative", "largest absolute")
    return table(("compared", *numbers), rows, numbers)


def _notes(function: Function) -> Iterable[str]:
    if function["keeps_function"]:
        yield paragraph(f"tolerance {number(function['tolerance'])} = {function['tolerance_reason']}")
    if rounding := function["rounding"]:
        yield paragraph(
            f"storing {function['rounded_tensors']} tensors rounds scaled values or means, which changes the logits by "
            f"{number(rounding['max_rel'])}; the comparison leaves this rounding out"
        )
    yield from map(paragraph, coverage_notes(function["missing"], function["unused"]))
    if first := function["first_difference"]:
        yield paragraph(f"first module that differs: {first['what']}, by {number(first['max_rel'])} relative")
    if plain := function["unperturbed"]:
        worst = max((float(each["max_rel"]) for each in plain["comparisons"]), default=0.0)
        verdict = "same function" if plain["agrees"] else "the models differ"
        yield paragraph(f"without its noise: {verdict}, {worst:.1e} relative, tolerance {number(plain['tolerance'])}")


def _pictures(wide: str, verification: Verification, blocks: Blocks | None) -> Iterable[str]:
    function = verification["function"]
    without = ", without its noise" if function and function["unperturbed"] else ""
    try:
        modules = module_errors(verification, wide)
    except PictureError as error:
        yield section("Module by module", paragraph(error.message))
    else:
        figure = draw_errors(modules, f"{len(modules.names)} modules{without}")
        caption = (
            "Each dot is a module's output, in execution order: its largest difference from the value that the narrow "
            "model's output predicts, relative to the narrow output's largest magnitude."
        )
        yield section("Module by module", _figure(figure, "modules", caption))
    if training := verification["training"]:
        title = f"{training['steps']} steps of {training['optimizer']} from {training['start']}"
        caption = (
            "Both models take the same optimizer steps in float64, on random inputs, so the losses mean nothing by "
            "themselves. The lower panel shows how far they differ; the dashed line is what rounding may change."
        )
        yield section("Step by step", _figure(draw_losses(step_losses(verification, wide), title), "steps", caption))
    if blocks is not None:
        caption = (
            "Corners of one tensor before and after widening. Lines separate the copies of one unit, or of one run of "
            "units, from the next. Each copy is c times the original, and there are m copies. Each picture has its own "
            "color range."
        )
        yield section("One tensor", _figure(draw_weights(blocks), "tensor", caption))


def _figure(figure: Any, prefix: str, caption: str) -> str:
    return f"<figure>\n{inline_svg(figure, prefix)}\n<figcaption>{escaped(caption)}</figcaption>\n</figure>"


def _commands(wide: str) -> str:
    name = shlex.quote(wide)
    lines = (f"mupscale verify {name}", f"mupscale verify {name} --steps 20", f"mupscale hparams {name} --lr LR")
    return f"<pre>{escaped(chr(10).join(lines))}</pre>"
