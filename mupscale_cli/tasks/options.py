"""Options of a widening, declared once for the Python API, the command line and job files. Imports no torch."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from mupscale_cli.checkpoints.json_files import parse_json
from mupscale_cli.engine.defaults import plain_defaults
from mupscale_cli.errors import FIELDS, PlanError
from mupscale_cli.optimizers.options import StateOptions
from mupscale_cli.optimizers.rules.table import optimizer_rule
from mupscale_cli.optimizers.state_plan import Policy
from mupscale_cli.plan import DEFAULT_SHARD_BYTES, Amount, Request, Size
from mupscale_cli.plan.methods import Method, make_method
from mupscale_cli.plan.perturbation import Mode, Perturbation, Scale
from mupscale_cli.plan.request import MAX_FACTOR, USUAL_FACTOR
from mupscale_cli.tasks.effects import refuse_idle_fields
from mupscale_cli.tasks.reading import Reading
from mupscale_cli.text import shortened
from mupscale_cli.verification.options import VerifyOptions

# Options that `--resume` may change: where the output goes, how it is verified once complete, and whether a recipe may
# be drafted, since the plan's own content is compared.
_FREE_TO_CHANGE = frozenset({"infer", "output", "overwrite", "verify", "dtype", "device", "model"})
Fields = ParamSpec("Fields")
Options = TypeVar("Options")
Subject = TypeVar("Subject")
Result = TypeVar("Result")
_NAMES = {field: option for option, field in FIELDS.items()}
_MAX_DIGITS = 18
_COUNTS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_COUNT = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([KMBT]?)")
_FACTOR = re.compile(r"[+-]?\d{1,18}(\.\d{0,18}|/\d{1,18})?")
_AXIS = re.compile(r"\s*([^=:]*[^=:\s])\s*([=:])\s*(.*?)\s*")
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class GrowthOptions:
    """What to grow, how far, and by which method; the source may be a checkpoint or a module in memory.

    Attributes:
        factor: target width over source width, for every axis that the recipe widens; whole or not.
        axes: factors, or sizes as `Size`, of single axes or keys of config.json; they override or add to `factor`.
        to: the model whose sizes to take: a config.json, a model directory, or a Hub id; `axes` override them.
        layers: number of blocks of the deeper model, if it has a single stack of blocks.
        layers_at: where new blocks go: `interleaved`, `start`, `end`, or their positions, such as `3,7`. Default:
            `interleaved`; `end` with the method `stack`.
        params: number of parameters that the output is to have, nearly; the axes grow in proportion.
        recipe: name or file of the recipe. Default: chosen by the checkpoint.
        infer: draft a recipe for a model type of transformers that has none, instead of refusing it.
        settings: values of keys of the source's config, dotted within sections, that it lacks or has wrong.
        tie: where the factor of a readout goes that shares the embedding: `fold`, `config` or `untie`.
        method: name of the method, a key of `plan.methods.METHODS`.
        noise: size of the noise that makes copies differ, relative to each tensor. Default: the method's.
        noise_mode: `free`, `preserving` or `mixed`; see `plan.perturbation.Perturbation`.
        noise_scale: what `noise` is relative to: `spectral`, `rms`, `fan-in`, `init`, `paper` or `elementwise`.
        noise_on: patterns of the names of tensors that get noise. Default: every matrix.
        seed: random seed for noise, random copy maps and initial weights.
        fresh: what the weights of fresh units are where they cannot change the function: `init` or `zero`.
        spread: how residual streams grow: `padded` or `balanced`, a key of `plan.methods.SPREADS`. Default: `padded`.
        shrink: factor that `warmstart` multiplies the narrow weights by.
        snr: signal-to-noise ratio of `hyperclone`, in dB.
        optimizer_policy: what to do with the moments: `copy`, `reset-new` or `reset`.
        allow_large_factor: accept factors above 16, which are more likely to be meant as sizes.
        allow_nonfinite: copy and count NaNs and infinities instead of refusing them.

    Raises:
        PlanError: an option has an invalid value or contradicts another.
    """

    factor: float | Fraction | None = None
    axes: Mapping[str, float | Fraction | Size] | None = None
    _: KW_ONLY
    to: str | Path | None = None
    layers: int | None = None
    layers_at: str | None = None
    params: float | None = None
    recipe: str | Path | None = None
    infer: bool = True
    settings: Mapping[str, Any] | None = None
    tie: str | None = None
    method: str = "mupscale"
    noise: float | None = None
    noise_mode: str | None = None
    noise_scale: str | None = None
    noise_on: Sequence[str] = ()
    seed: int = 0
    fresh: str | None = None
    spread: str | None = None
    shrink: float | None = None
    snr: float | None = None
    optimizer_policy: str = "copy"
    allow_large_factor: bool = False
    allow_nonfinite: bool = False

    def __post_init__(self) -> None:
        sizing = {"--factor": self.factor, "--to": self.to, "--params": self.params}
        if len(given := [name for name, value in sizing.items() if value is not None]) > 1:
            raise PlanError(f"`{given[0]}` and `{given[1]}` conflict: each gives every axis its size", hint="omit one")
        refuse_idle_fields("widen", self)
        _ = self.request, self.growth, self.policy  # raise if an option is invalid

    @property
    def request(self) -> Request:
        """What to grow, and how far."""
        factor = None if self.factor is None else _amount(self.factor, "--factor")
        assert not isinstance(factor, Size)
        axes = {name: _amount(amount, f"--axis {name}") for name, amount in (self.axes or {}).items()}
        most = MAX_FACTOR if self.allow_large_factor else USUAL_FACTOR
        layers = None if self.layers is None else Size(self.layers)
        return Request(factor, axes, most=most, layers=layers, layers_at=self.layers_at)

    @property
    def growth(self) -> tuple[Method, Perturbation | None]:
        """The method, and the noise to add to it (None for the method's own)."""
        method = make_method(
            self.method, seed=self.seed, fresh=self.fresh, spread=self.spread, shrink=self.shrink, snr=self.snr
        )
        has_details = (self.noise_mode, self.noise_scale) != (None, None) or bool(self.noise_on)
        if self.snr is not None and (self.noise is not None or has_details):
            raise PlanError(
                "`--snr` conflicts with `--noise`, `--noise-mode`, `--noise-scale` and `--noise-on`",
                hint="omit one of them; `--snr` already sets the size of the noise and makes it cancel",
            )
        if self.noise is None:
            return method, None
        usual = method.perturbation or Perturbation(self.noise)
        mode, scale = self.noise_mode or usual.mode, self.noise_scale or usual.scale
        return method, Perturbation(
            self.noise, cast("Mode", mode), cast("Scale", scale), self.seed, tuple(self.noise_on)
        )

    @property
    def policy(self) -> Policy:
        """What to do with the moments of the optimizer."""
        return StateOptions(policy=cast("Policy", self.optimizer_policy)).policy


@dataclass(frozen=True)
class _Destination:
    """The first argument of `widen` behind the checkpoint; as a base class, it comes before those of the growth."""

    output: str | Path | None = None


@dataclass(frozen=True)
class WidenOptions(GrowthOptions, _Destination):
    """How to widen a checkpoint: what to grow, and how to read, write and verify.

    Attributes:
        output: output path. Default: `NAME-x4` next to the input.
        clean_names: whether to write names of tensors without what training wrapped around them, such as `_orig_mod.`.
        adapter: folders of adapters to widen with the model; each becomes `adapters/NAME` in the output.
        layout: the trainer whose layout the checkpoint has; None to find it.
        weights_key: dotted keys that lead to the weights in a trainer's file; None for the usual ones.
        optimizer: path of the optimizer state; `auto` finds it next to the checkpoint, `none` skips it.
        optimizer_kind: names of the optimizers that the state belongs to. Default: its settings and keys tell.
        key: dotted keys that lead to the optimizer state inside a larger file.
        max_shard_size: maximum size of a file in an output directory, in bytes.
        overwrite: replace an existing output that mupscale wrote.
        verify: check that both models agree before publishing the output.
        dtype: data type of the verification; see `VerifyOptions`.
        device: device of the verification; see `VerifyOptions`.
        model: `path/or/module.py:build` of a user-defined model for the verification.

    Raises:
        PlanError: an option has an invalid value or contradicts another.
        VerifyError: the data type is unknown.
    """

    _: KW_ONLY
    clean_names: bool = False
    adapter: Sequence[str | Path] = ()
    layout: str | None = None
    weights_key: str | None = None
    optimizer: str | Path = "auto"
    optimizer_kind: str | Sequence[str] = ()
    key: str | None = None
    max_shard_size: int = DEFAULT_SHARD_BYTES
    overwrite: bool = False
    verify: bool = True
    dtype: str = "auto"
    device: str = "auto"
    model: str | None = None

    def __post_init__(self) -> None:
        if self.max_shard_size < 1:
            raise PlanError(f"the maximum shard size is {self.max_shard_size} bytes; it must be above 0")
        _ = self.verification  # refuses a type that is unknown
        super().__post_init__()

    @property
    def decisive(self) -> dict[str, Any]:
        """Every option that decides about bytes or about what is refused before they are written, as JSON."""
        names = (each.name for each in fields(WidenOptions) if each.name not in _FREE_TO_CHANGE)
        values = {name: getattr(self, name) for name in names}
        texts = {name: str(value) for name, value in values.items() if isinstance(value, Path)}
        request = self.request
        amounts = {name: str(amount) for name, amount in request.axes.items()}
        adapters = list(map(str, self.adapter))
        settings = dict(self.settings or {})
        plain = {"adapter": adapters, "noise_on": list(self.noise_on), "optimizer_kind": list(self.state.kinds)}
        return {**values, **texts, **plain, "settings": settings, "factor": str(request.factor), "axes": amounts}

    @property
    def reading(self) -> Reading:
        """What the user says about the checkpoint."""
        return Reading(self.settings, self.layout, self.weights_key)

    @property
    def state(self) -> StateOptions:
        """Options of the optimizer state."""
        names = (self.optimizer_kind,) if isinstance(self.optimizer_kind, str) else self.optimizer_kind
        return StateOptions(self.optimizer, self.policy, self.key, tuple(optimizer_rule(name).name for name in names))

    @property
    def verification(self) -> VerifyOptions:
        """Options of the verification."""
        return VerifyOptions(dtype=self.dtype, device=self.device, model=self.model, recipe=self.recipe)


def called_with(
    options: Callable[Fields, Options],
) -> Callable[[Callable[[Subject, Options], Result]], Callable[Concatenate[Subject, Fields], Result]]:
    """Decorate a function of a subject and an options object such that it takes the options' fields as arguments.

    The function is defined as `widen(checkpoint, call)` and called as `widen("tiny", factor=4, noise=0.1)`. The
    fields are declared only in their dataclass, but type checkers, editors and `help()` see them. The function runs
    with torch's own defaults of data type and device.

    Args:
        options: the dataclass.
    """

    def decorate(
        function: Callable[[Subject, Options], Result],
    ) -> Callable[Concatenate[Subject, Fields], Result]:
        @functools.wraps(function)
        def called(subject: Subject, /, *arguments: Fields.args, **fields: Fields.kwargs) -> Result:
            with plain_defaults():
                return function(subject, options(*arguments, **fields))

        signature = inspect.signature(function)
        subject, _ = signature.parameters.values()
        parameters = [subject.replace(kind=subject.POSITIONAL_ONLY), *inspect.signature(options).parameters.values()]
        called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return called

    return decorate


def option_name(field: str) -> str:
    """Return a field's name on the command line and in job files."""
    return _NAMES.get(field, field.replace("_", "-"))


def _amount(value: float | Fraction | Size, option: str) -> Amount:
    """Return a factor as the number that its decimals say: 1.2 is 6/5."""
    return value if isinstance(value, (int, Fraction, Size)) else parse_factor(str(value), option)


def parse_factor(text: str, option: str = "--factor") -> int | Fraction:
    """Parse a factor: `2`, `1.5` or `3/2`.

    Raises:
        PlanError: the text is not a number.
    """
    try:
        factor = Fraction(text) if _FACTOR.fullmatch(text.strip()) else None
    except ZeroDivisionError:
        factor = None
    if factor is None:
        given = option + ("=" if " " in option else " ")  # `--axis NAME=` or `--factor `
        raise PlanError(
            f"`{option}` is `{shortened(text, 40)}`, expected a number from 1 to {MAX_FACTOR}",
            hint=f"for instance `{given}2` or `{given}1.5`",
        )
    return factor.numerator if factor.denominator == 1 else factor


def parse_axes(texts: Sequence[str] | None) -> dict[str, int | Fraction | Size]:
    """Parse texts such as `NAME=FACTOR` and `NAME:SIZE` as a mapping.

    Raises:
        PlanError: a text does not have one of these forms, or a name occurs twice.
    """
    axes: dict[str, int | Fraction | Size] = {}
    for text in texts or ():
        match = _AXIS.fullmatch(text)
        if match is None:
            raise PlanError(
                f"`--axis {text}` is neither NAME=FACTOR nor NAME:SIZE",
                hint="for instance `--axis ffn=4`, or `--axis ffn:8192` for a size",
            )
        name, sign, value = match.groups()
        if name in axes:
            raise PlanError(f"`--axis {name}` is given twice")
        axes[name] = parse_factor(value, f"--axis {name}") if sign == "=" else _parse_units(value, name)
    return axes


def parse_settings(texts: Sequence[str] | None) -> dict[str, Any]:
    """Parse texts such as `num_attention_heads=32` as config keys and JSON values; other values are text.

    Raises:
        PlanError: a text does not have this form, or a key occurs twice.
    """
    settings: dict[str, Any] = {}
    for text in texts or ():
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise PlanError(f"`--set {text}` is not KEY=VALUE", hint="for instance `--set num_attention_heads=32`")
        if key.strip() in settings:
            raise PlanError(f"`--set {key.strip()}` is given twice")
        try:
            settings[key.strip()] = parse_json(value)
        except ValueError:
            settings[key.strip()] = value.strip()
    return settings


def _parse_units(text: str, name: str) -> Size:
    if not text.isdecimal() or len(text) > _MAX_DIGITS:
        raise PlanError(
            f"`--axis {name}:{text}` does not give a size, which is a whole number",
            hint=f"for instance `--axis {name}:2048`, or `--axis {name}=2` for a factor",
        )
    return Size(int(text))


def parse_count(text: str, option: str = "--params") -> float:
    """Parse a number of parameters: `1.2B`, `350M`.

    Raises:
        PlanError: the text is not such a number.
    """
    match = _COUNT.fullmatch(text.strip().upper())
    if match is None:
        raise PlanError(f"`{option} {text}` is not a number of parameters", hint=f"for instance `{option} 1.2B`")
    return float(Fraction(match[1]) * _COUNTS[match[2]])


def parse_size(text: str) -> int:
    """Parse a size such as `5GB`, in bytes.

    Raises:
        PlanError: the text is not a size.
    """
    digits = text.strip().upper().rstrip("BKMGT")
    unit = text.strip().upper()[len(digits) :]
    try:
        return int(float(digits) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError) as error:
        raise PlanError(
            f"`{text}` is not a size", hint="write a number and its unit, B, KB, MB, GB or TB, for instance 5GB"
        ) from error
