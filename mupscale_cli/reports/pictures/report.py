"""Write a verification as one self-contained HTML file: inline pictures, no scripts, no network."""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mupscale_cli import __version__
from mupscale_cli.errors import PictureError
from mupscale_cli.reports.guidance import coverage_notes
from mupscale_cli.reports.pictures.canvas import inline_svg
from mupscale_cli.reports.pictures.verification import draw_errors, draw_losses, module_errors, step_losses
from mupscale_cli.reports.pictures.weights import Blocks, draw_weights
from mupscale_cli.text import count_text

if TYPE_CHECKING:
    from mupscale_cli.record.types import Function, Record, Verification

_CSS = """
:root { --ink: #1b1b2f; --gray: #6b7080; --rule: #e4e6ec; --good: #1f7a4d; --bad: #b3261e; --soft: #f7f8fa; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; color: var(--ink); background: white;
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--rule); }
p { margin: .4rem 0; }
.gray { color: var(--gray); }
.verdict { display: inline-block; margin: .8rem 0 .2rem; padding: .3rem .9rem; border-radius: 999px; color: white;
           background: var(--good); font-weight: 600; }
.verdict.bad { background: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; }
th, td { padding: .25rem 1.4rem .25rem 0; text-align: left; vertical-align: top; }
th { color: var(--gray); font-weight: 600; border-bottom: 1px solid var(--rule); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.bad td { color: var(--bad); font-weight: 600; }
code, pre { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { background: var(--soft); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; white-space: pre; }
figure { margin: .6rem 0; }
figure svg { max-width: 100%; height: auto; }
figcaption { color: var(--gray); font-size: .9rem; }
summary { cursor: pointer; }
@media print { body { max-width: none; padding: 0; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""

_SIZES = (
    "Each axis is a set of units that are copied together, named as in the recipe, the architecture's description. "
    "A factor of 2 makes two of every unit. A source's XXH3-128 is a checksum of the file that was widened."
)
_COMPARISONS = (
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
    title = f"{_last(wide)}, widened from {_source(record)}"
    sections = [
        _heading(title, verification),
        _section("What was widened", _caption(_SIZES), _sizes(record), _facts(record)),
        _section("What was compared", *_compared(verification)),
        *_pictures(wide, verification, blocks),
        _section("Reproduce", _commands(wide)),
        _section(
            "All figures",
            _details("Record of the widening (mupscale.json)", record),
            _details("Verification", verification),
        ),
    ]
    body = "\n".join(sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n{body}\n"
        f'<p class="gray">written by mupscale {_text(__version__)}</p>\n</body>\n</html>\n'
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or path


def _source(record: Record) -> str:
    source = record["source"]
    return f"{source['repo']} at {source['revision']}" if "repo" in source else _last(str(source["path"]))


def _section(title: str, *content: str) -> str:
    return "\n".join((f"<section>\n<h2>{_text(title)}</h2>", *content, "</section>"))


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[str] = ()) -> str:
    """Render a table; a row that starts with `!` is marked as wrong."""
    kinds = [' class="number"' if column in numbers else "" for column in columns]
    lines = ["".join(f"<th{kind}>{_text(name)}</th>" for kind, name in zip(kinds, columns, strict=True))]
    marks = [""]
    for row in rows:
        is_wrong = row[0] == "!"
        cells = row[1:] if is_wrong else row
        lines.append("".join(f"<td{kind}>{_text(cell)}</td>" for kind, cell in zip(kinds, cells, strict=True)))
        marks.append(' class="bad"' if is_wrong else "")
    body = "\n".join(f"<tr{mark}>{line}</tr>" for mark, line in zip(marks, lines, strict=True))
    return f'<div class="scroll"><table>\n{body}\n</table></div>'


def _heading(title: str, verification: Verification) -> str:
    verdict = verdict_text(verification)
    mark = "" if verification["agrees"] else " bad"
    function = verification["function"]
    where = f"{function['dtype']} on {function['device']}, {function['inputs']}" if function else "no model was run"
    return (
        f'<header>\n<h1>{_text(title)}</h1>\n<p class="verdict{mark}">{_text(verdict)}</p>\n'
        f'<p class="gray">{_text(where)}</p>\n{_paragraph(_introduction(function))}\n</header>'
    )


def _introduction(function: Function | None) -> str:
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
    return _table(("", "narrow", "factor", "wide"), rows, ("narrow", "factor", "wide"))


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
    return _table(("", "value"), rows)


def _compared(verification: Verification) -> Iterable[str]:
    """Describe what was compared in each part of a verification."""
    if function := verification["function"]:
        yield _caption(_COMPARISONS)
        yield _comparisons(function)
        yield from _notes(function)
    if weights := verification["weights"]:
        result = "every byte matches source, rule and noise" if weights["agrees"] else weights["differences"][0]
        yield _paragraph(f"weights: {weights['tensors']} tensors, {result}")
    if config := verification["config"]:
        result = "as planned" if config["agrees"] else config["differences"][0]
        yield _paragraph(f"config.json: {config['keys']} keys, {result}")
    if files := verification["files"]:
        state = files.get("optimizer_state", {}).get("differences", [])
        result = "as planned" if files["agrees"] else [*files["differences"], *state][0]
        yield _paragraph(f"files: {', '.join(files['files'])}, {result}")
    for part, reason in verification["skipped"].items():
        yield _paragraph(f"{part}: not compared: {reason}")


def _comparisons(function: Function) -> str:
    keeps, tolerance = function["keeps_function"], function["tolerance"]
    rows: list[tuple[object, ...]] = []
    for each in function["comparisons"]:
        wrong = keeps and not float(each["max_rel"]) <= tolerance
        row = (each["what"], _number(each["max_rel"]), _number(each["max_abs"]))
        rows.append(("!", *row) if wrong else row)
    if worst := function["worst_module"]:
        what = f"worst of {function['modules_compared']} modules, {worst['what']}"
        rows.append((what, _number(worst["max_rel"]), _number(worst["max_abs"])))
    numbers = ("largest relative", "largest absolute")
    return _table(("compared", *numbers), rows, numbers)


def _number(value: object) -> str:
    return f"{float(str(value)):.1e}"


def _notes(function: Function) -> Iterable[str]:
    if function["keeps_function"]:
        yield _paragraph(f"tolerance {_number(function['tolerance'])} = {function['tolerance_reason']}")
    if rounding := function["rounding"]:
        yield _paragraph(
            f"storing {function['rounded_tensors']} tensors rounds scaled values or means, which changes the logits by "
            f"{_number(rounding['max_rel'])}; the comparison leaves this rounding out"
        )
    yield from map(_paragraph, coverage_notes(function["missing"], function["unused"]))
    if first := function["first_difference"]:
        yield _paragraph(f"first module that differs: {first['what']}, by {_number(first['max_rel'])} relative")
    if plain := function["unperturbed"]:
        worst = max((float(each["max_rel"]) for each in plain["comparisons"]), default=0.0)
        verdict = "same function" if plain["agrees"] else "the models differ"
        yield _paragraph(f"without its noise: {verdict}, {worst:.1e} relative, tolerance {_number(plain['tolerance'])}")


def _caption(text: str) -> str:
    return f'<p class="gray">{_text(text)}</p>'


def _paragraph(text: str) -> str:
    return f"<p>{_text(text)}</p>"


def _pictures(wide: str, verification: Verification, blocks: Blocks | None) -> Iterable[str]:
    function = verification["function"]
    without = ", without its noise" if function and function["unperturbed"] else ""
    try:
        modules = module_errors(verification, wide)
    except PictureError as error:
        yield _section("Module by module", _paragraph(error.message))
    else:
        figure = draw_errors(modules, f"{len(modules.names)} modules{without}")
        caption = (
            "Each dot is a module's output, in execution order: its largest difference from the value that the narrow "
            "model's output predicts, relative to the narrow output's largest magnitude."
        )
        yield _section("Module by module", _figure(figure, "modules", caption))
    if training := verification["training"]:
        title = f"{training['steps']} steps of {training['optimizer']} from {training['start']}"
        caption = (
            "Both models take the same optimizer steps in float64, on random inputs, so the losses mean nothing by "
            "themselves. The lower panel shows how far they differ; the dashed line is what rounding may change."
        )
        yield _section("Step by step", _figure(draw_losses(step_losses(verification, wide), title), "steps", caption))
    if blocks is not None:
        caption = (
            "Corners of one tensor before and after widening. Lines separate the copies of one unit, or of one run of "
            "units, from the next. Each copy is c times the original, and there are m copies. Each picture has its own "
            "color range."
        )
        yield _section("One tensor", _figure(draw_weights(blocks), "tensor", caption))


def _figure(figure: Any, prefix: str, caption: str) -> str:
    return f"<figure>\n{inline_svg(figure, prefix)}\n<figcaption>{_text(caption)}</figcaption>\n</figure>"


def _commands(wide: str) -> str:
    name = shlex.quote(wide)
    lines = (f"mupscale verify {name}", f"mupscale verify {name} --steps 20", f"mupscale hparams {name} --lr LR")
    return f"<pre>{_text(chr(10).join(lines))}</pre>"


def _details(title: str, content: Mapping[str, Any]) -> str:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return f"<details>\n<summary>{_text(title)}</summary>\n<pre>{_text(text)}</pre>\n</details>"
