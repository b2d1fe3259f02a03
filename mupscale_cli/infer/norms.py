"""Find the norms of an architecture by experiment: what each one subtracts, what it follows, and where its eps is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mupscale_cli.infer.architecture import Architecture
from mupscale_cli.infer.layouts import Group
from mupscale_cli.infer.vocabulary import module_of
from mupscale_cli.infer.words import Norm
from mupscale_cli.verification.precision import everything_in

LARGE_EPS = 1e-2  # in the tiny model: a wrong eps must show
_FAR = 1e4  # size of inputs beside which any eps vanishes
_CLOSE = 1e-5


@dataclass(frozen=True)
class Norms:
    """The norms of an architecture, by the pattern of the group of their gains or biases.

    Attributes:
        words: each norm.
        eps: what fixes its eps: a config key, a list of them, or a number. Absent if its module does not tell.
    """

    words: Mapping[str, Norm]
    eps: Mapping[str, str]


def find_norms(architecture: Architecture, groups: Iterable[Group], model: nn.Module) -> Norms:
    """Find the norms of an architecture.

    Args:
        architecture: the architecture.
        groups: its tensors.
        model: its tiny model, with random values.
    """
    owners = _owners(architecture, model)
    gains = {group.pattern: group for group in groups if len(group.dims) == 1 and group.axes}
    modules = {pattern: [owners.get(name, "") for name in group.names] for pattern, group in gains.items()}
    found = {
        pattern: norm
        for pattern, names in modules.items()
        if all(names) and (norm := _norm_of(model.get_submodule(names[0]))) is not None
    }
    before = _followed(architecture, model, {name for pattern in found for name in modules[pattern]})
    words = {}
    for pattern, norm in found.items():
        in_front = {before.get(name) for name in modules[pattern]}
        of = in_front.pop() if len(in_front) == 1 else None
        if of is not None and of.isdigit():  # an item of a list, which no recipe can name alone
            continue
        words[pattern] = replace(norm, of=of, offset=0 if _is_bias(gains[pattern].names[0]) else norm.offset)
    return Norms(words, _eps(architecture, model, {pattern: modules[pattern][0] for pattern in found}))


def _owners(architecture: Architecture, model: nn.Module) -> dict[str, str]:
    """Return the module of each gain and bias on disk, found by its random values: loading may rename tensors."""
    loaded = {tuple(each.tolist()): name for name, each in model.named_parameters() if each.dim() == 1}
    stored = architecture.disk_tensors(model)
    names = {name: loaded.get(tuple(each.tolist())) for name, each in stored.items() if each.dim() == 1}
    return {name: found.rpartition(".")[0] for name, found in names.items() if found is not None}


def _norm_of(module: nn.Module) -> Norm | None:
    """Tell whether a module normalizes its last dimension, and how; None if it does not."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 1:
        return None
    inputs = torch.randn(3, 5, len(weight), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * _FAR
    try:
        with everything_in(torch.float64), torch.no_grad():
            output, scaled, shifted = (module(each) for each in (inputs, 3 * inputs, inputs + _FAR))
            bare = torch.func.functional_call(module, {"weight": torch.zeros_like(weight)}, (inputs,))
    except Exception:  # noqa: BLE001 (a module that takes other inputs is none that this tells apart)
        return None
    if not isinstance(output, Tensor) or output.shape != inputs.shape or not _agree(output, scaled):
        return None
    is_constant = _agree(bare, bare[:1, :1].expand_as(bare))  # zero, or the bias
    return Norm("layer" if _agree(output, shifted) else "rms", 0 if is_constant else 1, None)


def _agree(expected: Tensor, actual: Tensor) -> bool:
    return bool((expected - actual).abs().max() <= _CLOSE * (1 + expected.abs().max()))


def _followed(architecture: Architecture, model: nn.Module, norms: set[str]) -> dict[str, str]:
    """Return the module whose output each norm takes as it is, by the last part of its name on disk."""
    given: dict[str, Tensor] = {}
    followed: dict[str, str] = {}
    handles = []
    for name, module in model.named_modules():
        if name in norms:
            handles.append(module.register_forward_pre_hook(_comparing(name, given, followed)))
        elif name and getattr(getattr(module, "weight", None), "ndim", 0) == 2 and not isinstance(module, nn.Embedding):
            handles.append(module.register_forward_hook(_keeping(name, given)))
    try:
        architecture.run(model)
    finally:
        for handle in handles:
            handle.remove()
    stored = {name: each.flatten().sort().values for name, each in architecture.disk_tensors(model).items()}
    return {norm: _module_on_disk(model, source, stored) for norm, source in followed.items()}


def _module_on_disk(model: nn.Module, module: str, stored: Mapping[str, Tensor]) -> str:
    """Return the name of a module on disk, without its parents, found by its values: loading may rename or split it."""
    if f"{module}.weight" in stored:
        return module_of(f"{module}.weight")
    values = model.get_parameter(f"{module}.weight").detach().flatten()
    return module_of(next((name for name, others in stored.items() if _contains(others, values)), f"{module}.weight"))


def _keeping(name: str, given: dict[str, Tensor]) -> Callable[[nn.Module, object, object], None]:
    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            given[name] = output.detach().flatten().sort().values

    return keep


def _comparing(
    name: str, given: Mapping[str, Tensor], followed: dict[str, str]
) -> Callable[[nn.Module, tuple[object, ...]], None]:
    def compare(_module: nn.Module, inputs: tuple[object, ...]) -> None:
        if name not in followed and inputs and isinstance(inputs[0], Tensor):
            values = inputs[0].detach().flatten()
            source = next((other for other, output in reversed(list(given.items())) if _contains(output, values)), None)
            if source is not None:
                followed[name] = source

    return compare


def _contains(ordered: Tensor, values: Tensor) -> bool:
    """Tell whether all values are among the ordered ones: a layer's output, or a part of it, in another shape."""
    if len(values) > len(ordered) or not len(values) or ordered.dtype != values.dtype:
        return False
    places = torch.searchsorted(ordered, values).clamp(max=len(ordered) - 1)
    return bool((ordered[places] == values).all())


def _eps(architecture: Architecture, model: nn.Module, modules: Mapping[str, str]) -> dict[str, str]:
    """Return what fixes the eps of each module, by the pattern of its gains."""
    keys, own = eps_keys(architecture), _numbers(model)
    other = {key: _numbers(architecture.build({**architecture.config, key: 2 * LARGE_EPS})) for key in keys}
    found = {}
    for pattern, module in modules.items():
        moving = [key for key in keys if other[key].get(module) != own[module]]
        fixed = [value for name, value in own[module].items() if "eps" in name]
        if moving:
            found[pattern] = moving[0] if len(moving) == 1 else f"[{', '.join(moving)}]"
        elif fixed:
            found[pattern] = f"{fixed[0]:.10f}".rstrip("0")
    return found


def eps_keys(architecture: Architecture) -> list[str]:
    """Return the config keys that hold the eps of norms."""
    return [key for key, value in architecture.config.items() if "eps" in key.rpartition(".")[2] and _is_number(value)]


def _numbers(model: nn.Module) -> dict[str, dict[str, float]]:
    """Return the numbers that each module keeps as attributes."""
    return {
        name: {key: value for key, value in vars(module).items() if _is_number(value)}
        for name, module in model.named_modules()
    }


def _is_number(value: object) -> bool:
    return isinstance(value, float)


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] in ("bias", "beta")
