"""The options of widening, declared once for the Python API, the command line and job files. No torch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar, cast

from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.options import StateOptions
from mupscale_cli.optimizers.state_plan import Policy
from mupscale_cli.plan import DEFAULT_SHARD_BYTES
from mupscale_cli.plan.methods import Method, make_method
from mupscale_cli.plan.perturbation import Mode, Perturbation, Scale
from mupscale_cli.verification.options import VerifyOptions

Fields = ParamSpec("Fields")
Options = TypeVar("Options")
Subject = TypeVar("Subject")
Result = TypeVar("Result")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class WidenOptions:
    """How to widen a checkpoint.

    Attributes:
        output: path to write to; `NAME-x4` beside the input if not given.
        factor: target width over source width, for every axis that the recipe widens.
        axes: factors of single axes, which override or add to `factor`.
        recipe: name or file of the recipe; found by the checkpoint if not given.
        tie: for a readout that shares the embedding, where its factor goes: `fold`, `config` or `untie`.
        method: how the model grows, a key of `plan.methods.METHODS`.
        noise: size of the noise that tells copies apart, relative to each tensor; the method's own if not given.
        noise_mode: `free` or `preserving`; see `plan.perturbation.Perturbation`.
        noise_scale: what `noise` is relative to: `spectral`, `rms`, `fan-in` or `init`.
        seed: of the noise and of random copy maps.
        shrink: for `warmstart`, by what the narrow weights are multiplied.
        snr: for `hyperclone`, signal over noise in dB.
        optimizer: path of the optimizer's state; `auto` finds it beside the checkpoint, `none` leaves it.
        optimizer_policy: what becomes of its moments: `copy`, `reset-new` or `reset`.
        key: dotted keys that lead to the state in a file that holds more.
        allow_pickle: read distributed checkpoints, whose metadata are a pickle.
        max_shard_size: largest file of a directory, in bytes.
        overwrite: replace an existing output that mupscale wrote.
        allow_nonfinite: copy NaNs and infinities, and count them; else they are refused.
        verify: check at the end that both models agree.
        dtype: data type to verify in; see `VerifyOptions`.
        device: device to verify on; see `VerifyOptions`.
        model: `path/or/module.py:build` of a user-defined model, to verify with.

    Raises:
        PlanError: an option has no meaning, or does not go with another.
    """

    output: str | Path | None = None
    factor: int | None = None
    axes: Mapping[str, int] | None = None
    _: KW_ONLY
    recipe: str | Path | None = None
    tie: str | None = None
    method: str = "mupscale"
    noise: float | None = None
    noise_mode: str | None = None
    noise_scale: str | None = None
    seed: int = 0
    shrink: float | None = None
    snr: float | None = None
    optimizer: str | Path = "auto"
    optimizer_policy: str = "copy"
    key: str | None = None
    allow_pickle: bool = False
    max_shard_size: int = DEFAULT_SHARD_BYTES
    overwrite: bool = False
    allow_nonfinite: bool = False
    verify: bool = True
    dtype: str = "auto"
    device: str = "auto"
    model: str | None = None

    def __post_init__(self) -> None:
        if self.max_shard_size < 1:
            raise PlanError(f"the largest shard size is {self.max_shard_size} bytes; it must be above 0")
        _ = self.growth, self.state  # which refuse what has no meaning

    @property
    def growth(self) -> tuple[Method, Perturbation | None]:
        """The method, and the noise that was asked for."""
        method = make_method(self.method, seed=self.seed, shrink=self.shrink, snr=self.snr)
        has_details = (self.noise_mode, self.noise_scale) != (None, None)
        if self.snr is not None and (self.noise is not None or has_details):
            raise PlanError(
                "`--snr` already says how large the noise is, and that it cancels; leave `--noise` and its options away"
            )
        if self.noise is None:
            if has_details:
                raise PlanError(
                    "`--noise-mode` and `--noise-scale` say how noise is added, but there is none",
                    hint="give its size, for instance `--noise 0.1`",
                )
            return method, None
        usual = method.perturbation or Perturbation(self.noise)
        mode, scale = self.noise_mode or usual.mode, self.noise_scale or usual.scale
        return method, Perturbation(self.noise, cast("Mode", mode), cast("Scale", scale), self.seed)

    @property
    def state(self) -> StateOptions:
        """What becomes of the optimizer's state."""
        return StateOptions(self.optimizer, cast("Policy", self.optimizer_policy), self.key, self.allow_pickle)

    @property
    def verification(self) -> VerifyOptions:
        """How the output is verified."""
        return VerifyOptions(dtype=self.dtype, device=self.device, model=self.model, recipe=self.recipe)


def called_with(
    options: Callable[Fields, Options],
) -> Callable[[Callable[[Subject, Options], Result]], Callable[Concatenate[Subject, Fields], Result]]:
    """Let a function of a subject and its options be called with the fields of the options.

    What is written as `widen(checkpoint, call)` is called as `widen("tiny", factor=4, noise=0.1)`. The fields are
    declared once, in their dataclass; type checkers, editors and `help()` see them all the same.

    Args:
        options: the dataclass.
    """

    def decorate(
        function: Callable[[Subject, Options], Result],
    ) -> Callable[Concatenate[Subject, Fields], Result]:
        @functools.wraps(function)
        def called(subject: Subject, /, *arguments: Fields.args, **fields: Fields.kwargs) -> Result:
            return function(subject, options(*arguments, **fields))

        own = inspect.signature(function)
        subject, _ = own.parameters.values()
        parameters = [subject.replace(kind=subject.POSITIONAL_ONLY), *inspect.signature(options).parameters.values()]
        called.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        return called

    return decorate


def option_name(field: str) -> str:
    """Return what the command line and job files call a field."""
    return "axis" if field == "axes" else field.replace("_", "-")


def parse_factor(text: str | None, option: str = "--factor") -> int | None:
    """Parse a factor as a whole number.

    Raises:
        PlanError: it is not one.
    """
    if text is None:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise PlanError(
            f"`{option}` is `{text}`; a factor is a whole number of at least 1",
            hint="units are copied whole, so 1.5 copies do not exist",
        ) from error


def parse_axes(texts: Sequence[str] | None) -> dict[str, int]:
    """Parse `NAME=K` texts as a mapping.

    Raises:
        PlanError: one is not of that form, or an axis stands twice.
    """
    axes: dict[str, int] = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        name = name.strip()
        if not separator or not name:
            raise PlanError(f"`--axis {text}` is not of the form NAME=K", hint="for instance `--axis ffn=4`")
        if name in axes:
            raise PlanError(f"`--axis {name}` is given twice")
        factor = parse_factor(value.strip(), f"--axis {name}")
        assert factor is not None
        axes[name] = factor
    return axes


def parse_size(text: str) -> int:
    """Parse a size such as `5GB`, in bytes.

    Raises:
        PlanError: it is none.
    """
    digits = text.strip().upper().rstrip("BKMGT")
    unit = text.strip().upper()[len(digits) :]
    try:
        return int(float(digits) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError) as error:
        raise PlanError(
            f"`{text}` is not a size", hint="write a number and B, KB, MB, GB or TB, for instance 5GB"
        ) from error
