"""Define the options that several commands share, and parse their values."""

from __future__ import annotations

import functools
import inspect
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from mupscale_cli.cli import consoles, logs, output
from mupscale_cli.cli.completion import complete_axis, complete_checkpoint, complete_recipe
from mupscale_cli.cli.consoles import COLORS
from mupscale_cli.errors import Interrupted, PlanError, SweepError, Terminated
from mupscale_cli.plan import Amount
from mupscale_cli.plan.methods import DEFAULT_SHRINK, FRESH, METHODS, SPREADS
from mupscale_cli.plan.perturbation import MODES, SCALES
from mupscale_cli.tasks.options import parse_factor, parse_settings
from mupscale_cli.tasks.reading import Reading

size_option = partial(typer.Option, rich_help_panel="New shape")
unit_option = partial(typer.Option, rich_help_panel="New units")
reading_option = partial(typer.Option, rich_help_panel="Reading the checkpoint")
state_option = partial(typer.Option, rich_help_panel="Optimizer state")
output_option = partial(typer.Option, rich_help_panel="Output")
verification_option = partial(typer.Option, rich_help_panel="Verification")
publishing_option = partial(typer.Option, rich_help_panel="Publishing")

Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A safetensors or torch.save file, a folder of a model or of a trainer, or a model on the Hub "
        "(org/name or org/name@revision).",
        autocompletion=complete_checkpoint,
    ),
]
Factor = Annotated[
    str | None,
    size_option("--factor", "-f", metavar="K", help="How many times as wide the model becomes, such as 2 or 1.5."),
]
AxisFactors = Annotated[
    list[str] | None,
    size_option(
        "--axis",
        "-a",
        metavar="NAME=K|NAME:SIZE",
        help="Factor of one axis, or the size that it gets; overrides `--factor` for this axis. NAME can also be a key "
        "of config.json, such as hidden_size. Repeatable.",
        autocompletion=complete_axis,
    ),
]
Target = Annotated[
    str | None,
    size_option(
        "--to",
        metavar="TARGET",
        help="Grow to the sizes of another model of this architecture: a config.json, a model directory, or a model on "
        "the Hub. Everything but sizes stays as it is.",
        autocompletion=complete_checkpoint,
    ),
]
Layers = Annotated[
    int | None,
    size_option("--layers", metavar="N", help="Number of blocks in the new model. New ones start as the identity."),
]
LayersAt = Annotated[
    str | None,
    size_option(
        "--layers-at",
        metavar="PLACE",
        help="Where new blocks go: interleaved, start, end, or their positions, such as 3,7. Default: interleaved.",
    ),
]
Parameters = Annotated[
    str | None,
    size_option(
        "--params",
        metavar="N",
        help="Grow in proportion to about N parameters, such as 1.2B, in sizes that suit the hardware. With --dry-run, "
        "list the nearest shapes.",
    ),
]
RecipeName = Annotated[
    str | None,
    reading_option(
        "--recipe",
        "-r",
        metavar="NAME|FILE",
        help="Recipe to use. Default: the one that fits the checkpoint.",
        autocompletion=complete_recipe,
    ),
]
Infer = Annotated[
    bool,
    reading_option(
        "--infer/--no-infer",
        help="Draft a recipe for a model type of transformers that has none. Takes up to two minutes, once.",
    ),
]
Tie = Annotated[
    str | None,
    unit_option(
        "--tie",
        metavar="fold|config|untie",
        help="Where to put the factor 1/k of a readout that shares the embedding's tensor: into the norm before it, "
        "into a key of the config, or into a tensor of its own. Default: the recipe's first choice.",
    ),
]
CleanNames = Annotated[
    bool,
    output_option(
        "--clean-names",
        help="Write names of tensors without what training wrapped around them, such as `_orig_mod.` and `module.`. "
        "Default: keep them.",
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Print only results, warnings and errors: no progress and no report of the work."
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Explain decisions on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Log everything on stderr, and print tracebacks.")]
Color = Annotated[
    str,
    typer.Option(
        "--color",
        metavar="WHEN",
        help=f"When to color output: {', '.join(COLORS[:-1])} or {COLORS[-1]}. auto: on a terminal, unless NO_COLOR, "
        "FORCE_COLOR or CLICOLOR say otherwise. Default: auto.",
        show_default=False,
    ),
]
LogFile = Annotated[
    Path | None,
    typer.Option(
        "--log-file", metavar="PATH", help="Append all that `--debug` logs to a file, with times. Default: none."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else.")]
MethodName = Annotated[
    str,
    unit_option(
        "--method",
        "-m",
        metavar="NAME",
        help=f"How to make new units: {', '.join(METHODS)}. `mupscale` keeps function and training exactly.",
    ),
]
Fresh = Annotated[
    str | None,
    unit_option(
        metavar="|".join(FRESH),
        help="Weights of fresh units that cannot change the function, if a size is not a multiple: initial ones, so "
        "that the new width learns at once, or zeros, so that training stays the same too (except for streams under "
        "LayerNorm). Default: init.",
    ),
]
Spread = Annotated[
    str | None,
    unit_option(
        metavar="|".join(SPREADS),
        help="How residual streams under RMSNorm grow: to whole copies, padded with fresh units; or to copies only, "
        "balanced and scaled by 1/sqrt(n), so that SGD and Muon keep their learning rates. Default: padded.",
    ),
]
Shrink = Annotated[
    float | None,
    unit_option(metavar="NUMBER", help=f"warmstart: factor of the narrow weights. Default: {DEFAULT_SHRINK}."),
]
Snr = Annotated[
    float | None, unit_option(metavar="DB", help="hyperclone: signal-to-noise ratio in dB. Default: no noise.")
]
NoiseSize = Annotated[
    float | None,
    unit_option("--noise", metavar="T", help="Amount of noise that makes copies differ, such as 0.1. Default: none."),
]
NoiseMode = Annotated[
    str | None,
    unit_option(
        metavar="|".join(MODES),
        show_default=False,
        help="Kind of noise. preserving: it cancels, so the function stays the same. mixed: weights and noise share "
        "the norm, sqrt(1 - T) W + sqrt(T) Z. Default: free.",
    ),
]
NoiseScale = Annotated[
    str | None,
    unit_option(
        metavar="|".join(SCALES),
        show_default=False,
        help="Unit of T: the matrix's spectral norm, the tensor's root mean square, 1/sqrt(fan_in), the standard "
        "deviation of a fresh initialization, the paper's 1/(k sqrt(fan_in)), or each element's absolute value. "
        "Default: spectral.",
    ),
]
NoiseOn = Annotated[
    list[str] | None,
    unit_option(
        metavar="PATTERN",
        help="Names of the tensors that get noise, such as 'model.layers.*'. Repeatable. Default: every matrix.",
        show_default=False,
    ),
]
Seed = Annotated[int, unit_option(metavar="N", help="Random seed for noise and random maps.")]
VerifyDtype = Annotated[
    str,
    verification_option(
        "--dtype",
        metavar="TYPE",
        help="Data type to run both models in: float64, float32, bfloat16 or float16. auto: float64 if it fits. Below "
        "float64, each module is compared by itself; a type in which a wrong model could pass is refused.",
    ),
]
VerifyDevice = Annotated[
    str,
    verification_option(
        "--device",
        metavar="NAME",
        help="Device to run both models on, such as cuda:1. auto: the GPU, if any.",
    ),
]
VerifyModel = Annotated[
    str | None,
    verification_option(
        "--model", metavar="FILE:FUNCTION", help="Your own model class: a function from the config to an nn.Module."
    ),
]
Adapters = Annotated[
    list[Path] | None,
    reading_option(
        "--adapter",
        metavar="DIR",
        help="A LoRA adapter of this model, as peft saves it, to widen as well, to adapters/NAME in the output. An "
        "adapter beside the weights needs no option. Repeatable.",
    ),
]
OptimizerState = Annotated[
    str,
    state_option(
        "--optimizer",
        metavar="PATH|auto|none",
        help="Optimizer state to widen. auto: the state next to the checkpoint, if any.",
    ),
]
OptimizerKind = Annotated[
    list[str] | None,
    state_option(
        "--optimizer-kind",
        metavar="NAME",
        help="Optimizer that the state belongs to, if its settings and keys do not tell. Repeatable, for a file of "
        "several.",
    ),
]
OptimizerPolicy = Annotated[
    str,
    state_option(
        "--optimizer-policy",
        metavar="POLICY",
        help="What to do with optimizer state. copy: widen it. reset-new: keep it for the first copy of each unit "
        "only. reset: start from zero.",
    ),
]
StateKey = Annotated[
    str | None,
    state_option("--key", metavar="NAME", help="Key of the optimizer state inside PATH, such as `optimizer`."),
]

Private = Annotated[bool, publishing_option("--private", help="Create the repository as private.")]
CreatePr = Annotated[bool, publishing_option("--create-pr", help="Open a pull request with the commit.")]
CommitMessage = Annotated[
    str | None,
    publishing_option(
        "--commit-message", metavar="TEXT", help='Commit message. Default: "Upload NAME, widened by mupscale".'
    ),
]
WithOptimizer = Annotated[
    bool,
    publishing_option("--with-optimizer", help="Also publish the optimizer state and the files that resuming needs."),
]

_Settings = Annotated[
    list[str] | None,
    reading_option(
        "--set",
        metavar="KEY=VALUE",
        help="Value of a key that the checkpoint's config.json lacks or has wrong, such as num_attention_heads=32. "
        "Repeatable. Without config.json, the shapes of the tensors give most of them.",
    ),
]
_LayoutName = Annotated[
    str | None,
    reading_option(
        "--layout",
        metavar="NAME",
        help="The trainer that wrote the checkpoint, if its files do not tell. See `mupscale help trainers`.",
    ),
]
_WeightsKey = Annotated[
    str | None,
    reading_option(
        "--weights-key", metavar="KEYS", help="Where the weights are in a file of torch.save: `state.model`."
    ),
]
_READING = {"settings": _Settings, "layout": _LayoutName, "weights_key": _WeightsKey}
_COMMON: dict[str, tuple[Any, Any]] = {
    "quiet": (Quiet, False),
    "verbose": (Verbose, False),
    "debug": (Debug, False),
    "color": (Color, "auto"),
    "log_file": (LogFile, None),
}


def with_common(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that every command has, and turn interruptions into errors."""

    @functools.wraps(command)
    def wrapper(*args: Any, **values: Any) -> None:
        said = {name: values.pop(name) for name in _COMMON}
        log_file = said.pop("log_file")
        with _interruptible(), logs.manner_of(consoles.Manner(**said), log_file):
            try:
                command(*args, **values)
            except KeyboardInterrupt as stop:
                kept = getattr(stop, "resume_hint", None)
                raise Interrupted(f"interrupted; {kept}" if kept else "interrupted") from stop
            except SystemExit as stop:
                if stop.code != Terminated.exit_code:
                    raise
                kept = getattr(stop, "resume_hint", None)
                raise Terminated(f"terminated; {kept}" if kept else "terminated") from stop
            except BrokenPipeError as error:  # for example piped into `head`
                output.discard_stdout()
                raise typer.Exit(output.BROKEN_PIPE) from error

    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=option)
        for name, (option, default) in _COMMON.items()
    ]
    return _with_parameters(wrapper, (*inspect.signature(command, eval_str=True).parameters.values(), *flags))


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt within the context, unless it is ignored."""
    before = signal.getsignal(signal.SIGINT)
    if callable(before):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if callable(before):
            signal.signal(signal.SIGINT, before)


def with_reading(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter `reading` by the options that say how to read its checkpoint."""

    @functools.wraps(command)
    def wrapper(*args: Any, **values: Any) -> None:
        said = {name: values.pop(name) for name in _READING}
        reading = Reading(parse_settings(said.pop("settings")), **said)
        command(*args, **values, reading=reading)

    signature = inspect.signature(command, eval_str=True)
    options = [signature.parameters["reading"].replace(name=n, default=None, annotation=o) for n, o in _READING.items()]
    parameters = [
        each for old in signature.parameters.values() for each in (options if old.name == "reading" else [old])
    ]
    return _with_parameters(wrapper, parameters)


def _with_parameters(wrapper: Callable[..., None], parameters: Sequence[inspect.Parameter]) -> Callable[..., None]:
    """Give a wrapper of a command the parameters that typer makes options and arguments of."""
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def parse_whole(text: str, option: str) -> int:
    """Parse the factor of a sweep, whose models all grow by whole factors.

    Raises:
        PlanError: the text is not a number.
        SweepError: it is not a whole number.
    """
    return whole(parse_factor(text, option), option)


def whole(amount: Amount, option: str) -> int:
    """Return a factor of a sweep, whose models all grow by whole factors.

    Raises:
        SweepError: it is not a whole number.
    """
    if not isinstance(amount, int):
        raise SweepError(f"`{option}` is not a whole factor, and all models of a sweep grow by whole factors")
    return amount


def parse_betas(text: str) -> tuple[float, float]:
    """Parse the decay rates of an optimizer's moments, such as `0.9,0.95`.

    Raises:
        PlanError: the text is not two numbers.
    """
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError as error:
        raise PlanError(f"`--betas {text}` is not two numbers", hint="for example `--betas 0.9,0.95`") from error
    return first, second
