"""Which options have no effect in which situation: one table for the commands, the Python API and job files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from mupscale_cli.errors import OptionError


@dataclass(frozen=True)
class Idle:
    """Options that have no effect in a situation.

    Attributes:
        options: their names, separated by spaces.
        facts: what the situation depends on, separated by spaces: other options, or facts about the checkpoint. The
            command line knows the latter; job files and programs may share options among several checkpoints.
        holds: whether the situation holds, given these facts.
        why: the situation, as the end of a message; `{fact}` is filled in.
        hint: what would give the options an effect, if anything does.
    """

    options: str
    facts: str
    holds: Callable[..., bool]
    why: str
    hint: str | None = None


def _is_none(value: Any) -> bool:
    return value is None


def _is_false(value: Any) -> bool:
    return value is False


def _is_true(value: Any) -> bool:
    return value is True


def _is_zero(value: Any) -> bool:
    return bool(value == 0)


_STATE = Idle(
    "key optimizer_kind optimizer_policy", "optimizer", lambda optimizer: optimizer == "none", "with `--optimizer none`"
)
_NOISE = "noise_mode noise_scale noise_on"
_MODELS = "dtype device model"

IDLE: Mapping[str, tuple[Idle, ...]] = {
    "widen": (
        Idle(
            _NOISE, "noise snr", lambda noise, snr: noise is None and snr is None, "without `--noise`", "`--noise 0.1`"
        ),
        Idle(_MODELS, "verify", _is_false, "with `--no-verify`"),
        Idle("tensor", "dry_run", _is_false, "without `--dry-run`", "`--dry-run`"),
        Idle(
            "private push_revision create_pr commit_message with_optimizer",
            "push_to_hub",
            _is_none,
            "without `--push-to-hub`",
            "`--push-to-hub ORG/NAME`",
        ),
        _STATE,
        Idle(
            "key optimizer_kind optimizer_policy",
            "state",
            _is_none,
            "because no optimizer state is beside the checkpoint",
            "`--optimizer PATH`",
        ),
        Idle("max_shard_size", "is_sharded", _is_false, "because the output has the files of its source"),
    ),
    "run": (Idle("report", "dry_run", _is_true, "with `--dry-run`, which writes nothing"),),
    "verify": (
        Idle(
            f"{_MODELS} seed steps report",
            "only",
            lambda only: bool(only) and "function" not in only,
            "because `--only` excludes running the models",
            "`--only function`",
        ),
        Idle(
            "optimizer",
            "only steps",
            lambda only, steps: bool(only) and "files" not in only and not steps,
            "because `--only` excludes the optimizer state",
            "`--only files`",
        ),
        Idle("overwrite", "report", _is_none, "without `--report`", "`--report FILE.html`"),
    ),
    "hparams": (
        Idle("json yaml", "format", lambda form: form != "table", "with `--format {format}`"),
        Idle("json", "yaml", _is_true, "with `--yaml`"),
        Idle("eps", "has_eps", _is_false, "because {optimizer} has no eps"),
        Idle("betas", "has_betas", _is_false, "because {optimizer} has no betas"),
        Idle("adjust_lr", "has_shape_factor", _is_false, "because {optimizer} has no factor for the shape of a matrix"),
        Idle("decay decoupled", "decays", _is_false, "without weight decay", "`--weight-decay NUMBER`"),
        Idle("depth", "is_deeper", _is_false, "because the model has as many blocks as its source"),
    ),
    "sweep": (
        _STATE,
        Idle(_NOISE, "largest_noise", _is_zero, "without noise", "`--noise 0.1`"),
        Idle("lr_steps", "has_one_lr", _is_false, "because `--lr` lists the learning rates"),
        Idle("proxy_steps", "ratio", _is_none, "without `--proxy`", "`--proxy 4`"),
        Idle(
            "data data_type steps batch_size length weight_decay betas eps clip schedule warmup device",
            "trains",
            _is_false,
            "because `--command` trains every model",
            "`--proxy R` to train a proxy",
        ),
        Idle("data_type", "is_raw", _is_false, "because `--data` is no .bin file"),
    ),
    "coordcheck": (
        _STATE,
        Idle(_NOISE, "noise", _is_zero, "without noise", "`--noise 0.1`"),
        Idle("output overwrite", "picture", _is_false, "with `--no-picture`"),
    ),
    "plot errors": (Idle(_MODELS, "is_verified", _is_true, "because a saved verification is drawn"),),
    "recipes check": (Idle("model model_type", "run", _is_false, "with `--no-run`"),),
    "recipes infer": (Idle("overwrite", "output", _is_none, "without `--output`", "`--output FILE`"),),
}


def idle_options(command: str, given: Collection[str], facts: Mapping[str, Any]) -> Iterator[tuple[str, Idle]]:
    """Yield the given options that have no effect, with the reason.

    Args:
        command: a key of `IDLE`.
        given: names of options that the user gave.
        facts: the values of all options, and what else is known; a row that needs others is passed over.
    """
    for row in IDLE.get(command, ()):
        names = row.facts.split()
        if facts.keys() >= set(names) and row.holds(*(facts[name] for name in names)):
            yield from ((option, row) for option in row.options.split() if option in given)


def refuse_idle(command: str, given: Collection[str], facts: Mapping[str, Any]) -> None:
    """Refuse options that have no effect.

    Args:
        command: a key of `IDLE`.
        given: names of options that the user gave.
        facts: as for `idle_options`.

    Raises:
        OptionError: there is such an option.
    """
    for option, row in idle_options(command, given, facts):
        flag = f"`--{option.replace('_', '-')}`"
        add = "" if row.hint is None else f"add {row.hint}, or "
        raise OptionError(f"{flag} has no effect {row.why.format_map(facts)}", hint=f"{add}omit {flag}")


def refuse_idle_fields(command: str, options: Any) -> None:
    """Refuse options of a dataclass that have no effect with each other; those that differ from their defaults count.

    Raises:
        OptionError: there is such an option.
    """
    refuse_idle(command, given_fields(options), vars(options))


def given_fields(options: Any) -> set[str]:
    """Return the names of a dataclass's fields that differ from their defaults."""
    return {each.name for each in fields(options) if getattr(options, each.name) != each.default}
