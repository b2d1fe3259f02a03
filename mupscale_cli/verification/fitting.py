"""Comparing a plan with the class of the wide model, which is built without data, before anything is written."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from mupscale_cli.checkpoints.libraries import Library
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.dtypes import DTYPES, TensorSpec
from mupscale_cli.errors import PlanError
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.plan.config import with_changes
from mupscale_cli.text import counted, listed, shortened
from mupscale_cli.verification.builders import choose_builders
from mupscale_cli.verification.classes import model_class_of, read_config, without_data
from mupscale_cli.verification.inputs.user import user_inputs
from mupscale_cli.verification.models import LOADING, can_stream, package_of
from mupscale_cli.verification.options import VerifyOptions
from mupscale_cli.verification.placement import Placement
from mupscale_cli.verification.result import CannotVerify
from mupscale_cli.verification.streamed import ChangesWeightError
from mupscale_cli.verification.transformers import import_transformers
from mupscale_cli.verification.user_models import load_user_module, stated_config, user_config

_log = logging.getLogger(__name__)  # `--debug` shows it
_MAX_TRIED = 12  # config keys that are set back, one at a time, to find the one that a class refuses
_MAX_NAMED = 3  # axes in a message
_MAX_LENGTH = 300  # characters of what a class says


@dataclass(frozen=True)
class Difference:
    """A tensor that a class has in another shape than a checkpoint.

    Attributes:
        name: its name in the class.
        stored: its shape in the checkpoint; None if the checkpoint lacks it.
        own: its shape in the class; None if the class lacks it.
    """

    name: str
    stored: tuple[int, ...] | None
    own: tuple[int, ...] | None


@dataclass(frozen=True)
class Fit:
    """How the tensors of a checkpoint fit a class.

    Attributes:
        class_name: name of the class, or what a user calls it.
        differences: the tensors that do not fit.
        refusal: why the class cannot be built from the config; None if it can.
    """

    class_name: str
    differences: tuple[Difference, ...] = ()
    refusal: str | None = None

    @property
    def names(self) -> set[str]:
        return {difference.name for difference in self.differences}

    @property
    def fits(self) -> bool:
        return self.refusal is None and not self.differences


Compare = Callable[[Mapping[str, Any] | None, Sequence[TensorSpec]], Fit]


def require_fitting(narrow: Checkpoint, plan: Plan, options: VerifyOptions) -> bool:
    """Check that the class of the wide model accepts its config and has the planned names and shapes.

    Tensors get the class's names as verification gives them, but no data is read and no memory taken. Of what does not
    fit, only what the widening has caused is refused here: a class that does not fit the source either is left to
    verification, which says so, and at once if the source is on this machine.

    Args:
        narrow: the source.
        plan: plan of its widening.
        options: the user-defined model, if any.

    Returns:
        Whether the class fits; False if that is unknown.

    Raises:
        PlanError: the class refuses the wide config, or has other tensors.
        VerifyError: the source does not fit its class, or a user-defined model has no inputs.
    """
    try:
        compare = _comparison(narrow, plan, options)
        if compare is None:
            return False
        wide = compare(plan.config, [tensor.target for tensor in plan.tensors])
        if wide.fits:
            _require_inputs(narrow, plan, options)
            return True
        before = compare(narrow.config, narrow.specs)
    except CannotVerify as reason:
        _log.debug("the class is not compared with the plan: %s", reason.message)
        return False
    if before.fits:
        raise _error(wide, plan, compare)
    if all(file.is_file() for file in narrow.files):
        load, _ = choose_builders(options, plan, is_streamed=options.model is None and can_stream(narrow))
        try:
            load(narrow, Placement(torch.float64, torch.device("cpu")))
        except (CannotVerify, ChangesWeightError) as reason:
            _log.debug("the class is not compared with the plan: %s", reason)
    return False


def _require_inputs(narrow: Checkpoint, plan: Plan, options: VerifyOptions) -> None:
    """Check that the inputs of a user-defined model can be made.

    Raises:
        VerifyError: the user's function fails, or the inputs cannot be inferred.
    """
    if options.model is None:
        return
    module, build = load_user_module(options.model)
    config = user_config(narrow)
    user_inputs(module, config, plan, torch.Generator().manual_seed(options.seed), without_data(lambda: build(config)))


def _comparison(narrow: Checkpoint, plan: Plan, options: VerifyOptions) -> Compare | None:
    """Return how to compare a config and tensors with the class that verification uses; None if it has none."""
    if options.model is not None:
        _, build = load_user_module(options.model)
        return partial(_compare_built, "your model", build, plan.wrapping.plain)
    layout = None if narrow.trained is None else narrow.trained.layout
    if narrow.config is None or (layout is not None and layout.recipe is not None and layout.library is None):
        return None
    library = narrow.library
    if library.load is not None or (layout is not None and layout.library is not None):
        package = package_of(library)
        return partial(_compare_with_library, library, package)

    def compare(config: Mapping[str, Any] | None, specs: Sequence[TensorSpec]) -> Fit:
        plain = tuple(replace(spec, name=plan.wrapping.plain(spec.name)) for spec in specs)
        found = compare_with_transformers(json.dumps(config), plain)
        needed = (each for each in found.differences if each.stored or not plan.recipe.is_optional(each.name))
        return replace(found, differences=tuple(needed))

    return compare if find_spec("transformers") and find_spec("accelerate") else None


@lru_cache(maxsize=16)  # a job asks when it plans a step and when it runs it
def compare_with_transformers(config_text: str, specs: tuple[TensorSpec, ...]) -> Fit:
    """Load tensors without data into a class of transformers, which gives them their names and forms.

    Raises:
        CannotVerify: transformers does not have the class, or it computes with the data that it loads.
    """
    transformers = import_transformers()
    config = json.loads(config_text)
    model_class = model_class_of(transformers, config, [spec.name for spec in specs])
    tensors = {spec.name: torch.empty(spec.shape, dtype=DTYPES[spec.dtype].torch, device="meta") for spec in specs}
    try:
        model, info = model_class.from_pretrained(
            None,
            config=read_config(transformers, model_class, config),
            state_dict=tensors,
            dtype=torch.float64,
            device_map={"": "meta"},
            **LOADING,
        )
    except NotImplementedError as error:  # how torch says that there is no data to compute with
        raise CannotVerify(f"{model_class.__name__} cannot be loaded without data: {error}") from error
    except Exception as error:  # noqa: BLE001 (a class may raise anything)
        return Fit(model_class.__name__, refusal=_said(error))
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    differences = [Difference(name, tuple(stored), tuple(shape)) for name, stored, shape in info["mismatched_keys"]]
    differences += [Difference(name, None, own.get(name, ())) for name in info["missing_keys"]]
    return Fit(model_class.__name__, tuple(sorted(differences, key=lambda each: each.name)))


def _compare_with_library(
    library: Library, package: Any, config: Mapping[str, Any] | None, specs: Sequence[TensorSpec]
) -> Fit:
    """Compare tensors with the model that another library builds, which may rename them when it reads them."""

    def build(config: Mapping[str, Any]) -> nn.Module:
        return library.build(package, config)

    found = _compare_built(library.name, build, lambda name: name, config, specs)
    return replace(found, differences=tuple(each for each in found.differences if each.stored and each.own))


def _compare_built(
    name: str,
    build: Callable[[dict[str, Any]], nn.Module],
    plain: Callable[[str], str],
    config: Mapping[str, Any] | None,
    specs: Sequence[TensorSpec],
) -> Fit:
    """Compare tensors with the model that a function builds from a config."""
    stored = {plain(spec.name): spec.shape for spec in specs}
    try:
        model = without_data(lambda: build(stated_config(config, specs)))
        own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        named = list(model.named_parameters(remove_duplicate=False))
    except Exception as error:  # noqa: BLE001 (the user's own code may raise anything)
        return Fit(name, refusal=_said(error))
    loaded = {id(value) for key, value in named if key in stored}  # a tied parameter has several names
    missing = [Difference(key, None, own.get(key, ())) for key, value in named if id(value) not in loaded]
    others = [Difference(key, shape, own.get(key)) for key, shape in stored.items() if own.get(key) != shape]
    return Fit(name, tuple(sorted((*missing, *others), key=lambda each: each.name)))


def _said(error: Exception) -> str:
    """Return what an error says, in a line."""
    return shortened(" ".join(str(error).split()) or type(error).__name__, _MAX_LENGTH)


def _error(wide: Fit, plan: Plan, compare: Compare) -> PlanError:
    """Return the error for a class that fits the source and not the plan."""
    if wide.refusal is not None:
        message = f"{wide.class_name} refuses the wide config: {wide.refusal}"
        return PlanError(message, hint=_other_sizes(_causes(plan, compare), plan))
    first, *others = wide.differences
    tensor = _tensor_of(first.name, plan)
    more = f"; {counted(len(others), 'further difference')}" if others else ""
    if first.stored is None:
        message = f"{wide.class_name} has `{first.name}` ({_text(first.own)}) by the wide config; the plan lacks it"
    elif first.own is None:
        message = f"the plan has `{first.name}` ({_text(first.stored)}); {wide.class_name} lacks it by the wide config"
    else:
        message = (
            f"`{first.name}` is {_text(first.stored)} in the plan, but {_text(first.own)} in {wide.class_name} "
            "by the wide config"
        )
    hint = _other_sizes(_causes(plan, compare, first) or _axes_of(tensor, first), plan)
    if tensor is not None:
        where = f"`{plan.recipe.path}`" if plan.recipe.path is not None else f"the recipe `{plan.recipe.name}`"
        hint = f"the rule `{tensor.rule}: {tensor.layout}` of {where} contradicts the config; {hint}"
    return PlanError(f"{message}{more}", hint=hint)


def _text(shape: Iterable[int] | None) -> str:
    return "x".join(map(str, shape or ())) or "a single number"


def _other_sizes(suspects: Iterable[str], plan: Plan) -> str:
    """Return the hint to choose other sizes of some axes; of all that grow, if none of them is suspect."""
    grown = plan.factors.keys()
    axes = [axis for axis in suspects if axis in grown] or [*grown]
    keep = " or ".join(f"`--axis {axis}=1`" for axis in axes[:_MAX_NAMED])
    return f"choose another size of {listed(axes, _MAX_NAMED)}" + (f", or keep it: {keep}" if len(grown) > 1 else "")


def _tensor_of(name: str, plan: Plan) -> TensorPlan | None:
    """Return the plan of the tensor that a class knows by a name; its base model's name may lack a prefix."""
    for tensor in (*plan.tensors, *plan.parameters):
        own = plan.parameter_name(tensor.target.name)
        if name == own or name.endswith(f".{own}") or own.endswith(f".{name}"):
            return tensor
    return None


def _axes_of(tensor: TensorPlan | None, difference: Difference) -> tuple[str, ...]:
    """Return the axes that a tensor's layout has where its shape differs from the class's."""
    if tensor is None or difference.stored is None or difference.own is None:
        return ()
    dims = tensor.layout.partition("|")[0].split(",")
    if not len(dims) == len(difference.stored) == len(difference.own):
        return _names(tensor.layout)
    pairs = zip(dims, difference.stored, difference.own, strict=True)
    return tuple(dict.fromkeys(name for dim, stored, own in pairs if stored != own for name in _names(dim)))


def _names(layout: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[A-Za-z_][\w.]*", layout))


def _causes(plan: Plan, compare: Compare, difference: Difference | None = None) -> list[str]:
    """Return the axes that the config keys depend on whose old value alone makes the class fit.

    Args:
        plan: the plan.
        compare: compares the class with tensors.
        difference: the tensor that has to fit. Default: the class must accept the config.
    """
    specs = [tensor.target for tensor in plan.tensors]
    axes: dict[str, None] = {}
    for change in plan.config_changes[:_MAX_TRIED]:
        found = compare(with_changes(plan.config or {}, [replace(change, after=change.before)]), specs)
        if found.refusal is None and (difference is None or difference.name not in found.names):
            axes |= {name: None for rule in plan.recipe.config if rule.key == change.key for name in rule.names}
    return [axis for axis in plan.factors if axis in axes]
