"""Names of parameters: the planned tensors that a parameter of the model is stored in. No torch, no data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from mupscale_cli.plan.types import Plan, TensorPlan
from mupscale_cli.text import suggest


class ParameterNames:
    """Finds the planned tensors of a model's parameters, independently of wrappers around the model."""

    def __init__(self, plan: Plan) -> None:
        self._tensors: dict[str, list[TensorPlan]] = defaultdict(list)
        for tensor in (*plan.tensors, *plan.parameters):
            self._tensors[plan.wrapping.plain(tensor.source.name)].append(tensor)
        self._wrapping = plan.wrapping
        self._is_optional = plan.recipe.is_optional
        self._saved_names = {plan.recipe.parameter_name(name): name for name in self._tensors}
        self._aliases: Mapping[str, tuple[str, ...]] = plan.recipe.aliases if plan.tie in ("fold", "config") else {}
        self._prefixes = tuple({prefix: None for words in plan.recipe.prefixes for prefix in words.values() if prefix})

    def find(self, parameter: str) -> Sequence[TensorPlan]:
        """Return the plans of a parameter's tensor: one, several if widening adds tensors, none if there is none."""
        spelling = self._spelling(parameter)
        return () if spelling is None else self._tensors[spelling]

    def suggest(self, parameter: str) -> str | None:
        """Return a hint that names a tensor with a similar name."""
        return suggest(self._wrapping.plain(parameter), self._tensors)

    def _spelling(self, parameter: str) -> str | None:
        name = self.saved_name(self._wrapping.plain(parameter))
        spellings = (
            name,
            *(name.removeprefix(prefix) for prefix in self._prefixes),
            *(prefix + name for prefix in self._prefixes),
        )
        aliases = (alias for spelling in spellings for alias in self._aliases.get(spelling, ()))
        return next((spelling for spelling in (*spellings, *aliases) if spelling in self._tensors), None)

    def saved_name(self, parameter: str) -> str:
        """Return the name in the checkpoint of a parameter of the reference model."""
        return self._saved_names.get(parameter, parameter)

    def knows(self, parameter: str) -> bool:
        """Tell whether the checkpoint has the tensor of a parameter."""
        return self._spelling(parameter) is not None

    def may_lack(self, parameter: str) -> bool:
        """Tell whether a complete checkpoint may lack a parameter, such as a table of sines that the model computes."""
        return self._is_optional(self.saved_name(self._wrapping.plain(parameter)))

    def wide_name(self, parameter: str, tensor: TensorPlan) -> str:
        """Return the name of a wide parameter, in the spelling of the narrow one."""
        plain = self._wrapping.plain
        narrow, wide = plain(tensor.source.name), plain(tensor.target.name)
        if narrow == wide and not self._wrapping.is_stripped:
            return parameter
        return self._wrapping.wrap(plain(parameter).replace(narrow, wide), like=parameter)
