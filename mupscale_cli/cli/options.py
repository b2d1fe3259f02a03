"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mupscale_cli.cli import output
from mupscale_cli.cli.completion import complete_axis, complete_checkpoint, complete_recipe
from mupscale_cli.errors import Interrupted, PlanError, Terminated
from mupscale_cli.plan.methods import DEFAULT_SHRINK, METHODS
from mupscale_cli.plan.perturbation import MODES, SCALES

if TYPE_CHECKING:
    pass

Checkpoint = Annotated[
    str,
    typer.Argument(
        help="A safetensors file, a model directory, or a Hub id (org/name, org/name@revision).",
        autocompletion=complete_checkpoint,
    ),
]
Factor = Annotated[
    str | None, typer.Option("--factor", "-f", metavar="K", help="Target width over source width, a whole number.")
]
AxisFactors = Annotated[
    list[str] | None,
    typer.Option(
        "--axis",
        "-a",
        metavar="NAME=K",
        help="The factor of one axis; overrides or adds to --factor. Repeatable.",
        autocompletion=complete_axis,
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "-r",
        metavar="NAME|FILE",
        help="The recipe; found by the checkpoint if not given.",
        autocompletion=complete_recipe,
    ),
]
Tie = Annotated[
    str | None,
    typer.Option(
        "--tie",
        metavar="fold|config|untie",
        help="Where the factor of a readout goes that shares the embedding: into the norm before it, into a key of "
        "the config, or into a tensor of its own. Not given: the recipe's choice.",
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress, no tables: only what a script would use, and warnings.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tell the reasons for what is decided, on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Tell everything, and show where an error happened.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
MethodName = Annotated[
    str,
    typer.Option("--method", "-m", metavar="NAME", help=f"One of {', '.join(METHODS)}; `mupscale` keeps everything."),
]
Shrink = Annotated[
    float | None,
    typer.Option(metavar="NUMBER", help=f"warmstart: by what the narrow weights are multiplied; {DEFAULT_SHRINK}."),
]
Snr = Annotated[
    float | None, typer.Option(metavar="DB", help="hyperclone: signal over noise in dB; without it no noise.")
]
NoiseSize = Annotated[
    float | None,
    typer.Option("--noise", metavar="T", help="Noise that tells copies apart, relative to each tensor, such as 0.1."),
]
NoiseMode = Annotated[
    str | None,
    typer.Option(metavar="|".join(MODES), help="preserving: noise that cancels, so that the function stays the same."),
]
NoiseScale = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(SCALES),
        help="What T is relative to: a matrix's spectral norm, the root mean square, 1/sqrt(fan_in), or a fresh "
        "initialisation.",
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Of noise and of random maps.")]
VerifyDtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="TYPE",
        help="Run both models in float64, float32, bfloat16 or float16. auto: float64 where it fits.",
    ),
]
VerifyDevice = Annotated[
    str,
    typer.Option(
        "--device",
        help="Where to run them, as torch names it; `spread` over all GPUs, or `disk`: weights are read when they are "
        "needed. auto: the GPU if there is one; what does not fit is spread, or read from disk.",
    ),
]
VerifyModel = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="FILE:FUNCTION", help="Your own model: a function from the config to an nn.Module."
    ),
]
OptimizerState = Annotated[
    str,
    typer.Option(
        "--optimizer", metavar="PATH|none", help="The optimizer's state. auto: beside the checkpoint if it is there."
    ),
]
OptimizerPolicy = Annotated[
    str,
    typer.Option(
        "--optimizer-policy",
        metavar="POLICY",
        help="copy its moments to all copies, `reset-new` only to the first of them, or reset them all.",
    ),
]
StateKey = Annotated[
    str | None,
    typer.Option("--key", metavar="NAME", help="Where in PATH the optimizer's state is, for instance `optimizer`."),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle", help="Read distributed checkpoints, whose metadata are a pickle that could run code."
    ),
]


Private = Annotated[bool, typer.Option("--private", help="If the repository is made, make it private.")]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="Propose the commit as a pull request.")]
CommitMessage = Annotated[str | None, typer.Option("--commit-message", metavar="TEXT", help="Of the commit.")]
WithOptimizer = Annotated[
    bool, typer.Option("--with-optimizer", help="Publish the optimizer's state, and what resuming needs, as well.")
]


_SHARED = {"quiet": Quiet, "verbose": Verbose, "debug": Debug}


def with_shared(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options that every command has: `--quiet`, `--verbose` and `--debug`."""

    @functools.wraps(command)
    def spoken(*args: Any, **given: Any) -> None:
        voice = output.Voice(**{name: given.pop(name) for name in _SHARED})
        with output.speaking(voice):
            try:
                command(*args, **given)
            except KeyboardInterrupt as stop:
                kept = getattr(stop, "resume_hint", "nothing was written")
                raise Interrupted(f"interrupted; {kept}") from stop
            except SystemExit as stop:
                if stop.code != Terminated.exit_code:
                    raise
                kept = getattr(stop, "resume_hint", None)
                raise Terminated(f"terminated; {kept}" if kept else "terminated") from stop
            except BrokenPipeError as error:  # as when piped into `head`
                output.hang_up()
                raise typer.Exit(141) from error

    signature = inspect.signature(command, eval_str=True)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
        for name, option in _SHARED.items()
    ]
    parameters = [*signature.parameters.values(), *more]
    spoken.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    spoken.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spoken


def parse_betas(text: str) -> tuple[float, float]:
    """The decay rates of an optimizer's moments.

    Raises:
        PlanError: they are not two numbers.
    """
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError as error:
        raise PlanError(f"`--betas {text}` is not two numbers", hint="for instance `--betas 0.9,0.95`") from error
    return first, second
