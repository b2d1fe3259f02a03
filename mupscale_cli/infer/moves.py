"""Propose changes to the assumptions about one axis, likely ones first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction

from mupscale_cli.infer.shapes import CandidateAxis
from mupscale_cli.infer.trials import Outcome, State, TrialRunner
from mupscale_cli.infer.vocabulary import kind_of

ZERO, HALF, ONE = Fraction(0), Fraction(1, 2), Fraction(1)
_NUM_LIKELY_FORMS = 6
Move = Callable[[State], State]


class Moves:
    """Proposes states that differ from a given one in one or two assumptions."""

    def __init__(self, runner: TrialRunner) -> None:
        self.groups = runner.groups
        self.last_norm = runner.last_norm
        self.aliases = runner.axes.aliases
        self.config = runner.architecture.config
        self.modules = runner.narrow.outputs.keys()

    def neighbors(self, state: State, axis: CandidateAxis, outcome: Outcome) -> Iterator[State]:
        """Yield states that are one change away, then two; changes close to the first difference come first."""
        if outcome.problem:
            yield from self._with_other_keys(state, axis)
        near = self._groups_near(outcome)
        moves = [*self._moves(state, axis, near)]
        for move in moves:
            yield move(state)
        far = [*self._moves(state, axis, [index for index in range(len(self.groups)) if index not in near])]
        likely = moves[:16]
        for position, first in enumerate(likely):
            for second in likely[position + 1 :]:
                yield second(first(state))
        for move in far:
            yield move(state)
        if not outcome.problem:
            yield from self._with_other_keys(state, axis)
        for position, first in enumerate(moves[:40]):
            for second in moves[position + 1 : 40]:
                yield second(first(state))

    def _groups_near(self, outcome: Outcome) -> list[int]:
        """Return the groups inside the first module that differs, or else those outside all layers."""
        if outcome.first:
            inside = [
                index
                for index, group in enumerate(self.groups)
                if any(name.startswith(f"{outcome.first}.") for name in group.names)
            ]
            if inside:
                return inside
        layers = [name for name in self.modules if re.search(r"\.\d+$", name)]
        return [
            index
            for index, group in enumerate(self.groups)
            if group.owner == self.last_norm or not any(group.names[0].startswith(f"{name}.") for name in layers)
        ]

    def _with_other_keys(self, state: State, axis: CandidateAxis) -> Iterator[State]:
        """Yield states in which other config keys move with the axis."""
        moving = {key for name, key, _ in state.keys if name == axis.name}
        if moving:
            yield replace(state, keys=tuple(entry for entry in state.keys if entry[0] != axis.name))
        for power in (1, -1):
            for key, value in self.config.items():
                is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and value
                if is_number and key not in dict(axis.keys) and key not in moving and _may_move(key, value):
                    yield replace(state, keys=(*state.keys, (axis.name, key, power)))

    def _moves(self, state: State, axis: CandidateAxis, indices: list[int]) -> Iterator[Move]:
        names = [axis.name, *(alias for alias, product in self.aliases.items() if axis.name in product)]
        relevant = [index for index in indices if self.groups[index].axes & set(names)]
        for stream in (name for name in names if kind_of(name) == "embed"):
            yield from self._residual_moves(relevant, stream)
        yield from self._form_moves(state, relevant, axis.name, slice(_NUM_LIKELY_FORMS))
        yield from self._contraction_moves(state, relevant)
        yield from self._piece_moves(state, relevant, axis.name)
        yield from self._power_moves(relevant, names)
        yield from self._form_moves(state, relevant, axis.name, slice(_NUM_LIKELY_FORMS, None))

    def _siblings(self, index: int) -> list[int]:
        """Return the groups of the same module, such as a weight and its bias, which are scaled together."""
        owner = self.groups[index].owner
        return [other for other, group in enumerate(self.groups) if group.owner == owner and owner]

    def _residual_moves(self, indices: list[int], stream: str) -> Iterator[Move]:
        """Yield usual powers of the residual stream on embeddings and on the last norm."""
        norms = [i for i in indices if self.groups[i].owner == self.last_norm]
        embeddings = [i for i in indices if self.groups[i].module == "Embedding"]
        for index in norms[:1]:
            norm = self._siblings(index)
            for exponent, offset in ((-HALF, 0), (-HALF, 1), (-ONE, 1), (-ONE, 0), (ZERO, 0), (ONE, 0)):
                yield _set_power(norm, stream, exponent, offset)
            for offset in (0, 1):
                yield _both(_set_power(embeddings, stream, -HALF), _set_power(norm, stream, -HALF, offset))
        if embeddings:
            yield _set_power(embeddings, stream, -HALF)
            for index in embeddings:
                yield _set_power([index], stream, -HALF)

    def _power_moves(self, indices: list[int], names: list[str]) -> Iterator[Move]:
        for index in indices:
            group = self.groups[index]
            for axis in names:
                if axis not in group.axes:
                    continue
                together = self._siblings(index) if group.module in ("Linear", "Conv1D", "Bias", "Norm") else [index]
                for exponent in (-HALF, -ONE, HALF, ONE, ZERO):
                    yield _set_power([i for i in together if axis in self.groups[i].axes], axis, exponent)

    def _form_moves(self, state: State, indices: list[int], axis: str, some: slice) -> Iterator[Move]:
        for index in indices:
            for dim, dimension in enumerate(self.groups[index].dims):
                if axis not in dimension.axes:
                    continue
                for form in range(len(dimension.forms))[some]:
                    if form != state.choices[index].forms[dim]:
                        yield self._set_form(index, dim, form)

    def _contraction_moves(self, state: State, indices: list[int]) -> Iterator[Move]:
        for index in indices:
            group = self.groups[index]
            if group.module in ("Parameter", "Linear?", "Norm", "Bias", "Depthwise"):
                for contraction in range(len(group.contractions)):
                    if contraction != state.choices[index].contraction:
                        yield _set_contraction(index, contraction)

    def _piece_moves(self, state: State, indices: list[int], axis: str) -> Iterator[Move]:
        for index in indices:
            for dim in range(len(self.groups[index].dims)):
                form = state.choices[index].form(self.groups[index], dim)
                if len(form.pieces) < 2:
                    continue
                for piece, content in enumerate(form.pieces):
                    if axis in content.items or axis in form.prefix:
                        for exponent in (-ONE, -HALF, ZERO):
                            yield self._set_piece_power(index, dim, piece, axis, exponent)

    def _with_bias(self, index: int, dim: int) -> list[tuple[int, int]]:
        """Return a dimension of a weight, and that of its bias, each as group and dimension."""
        size = self.groups[index].dims[dim].polynomial
        siblings = (other for other in self._siblings(index) if other != index and len(self.groups[other].dims) == 1)
        return [(index, dim), *((other, 0) for other in siblings if self.groups[other].dims[0].polynomial == size)]

    def _set_form(self, index: int, dim: int, form: int) -> Move:
        places = self._with_bias(index, dim)
        wanted = self.groups[index].dims[dim].forms[form]

        def move(state: State) -> State:
            for group, position in places:
                forms = self.groups[group].dims[position].forms
                if wanted in forms:
                    choice = state.choices[group].with_form(position, forms.index(wanted))
                    state = state.with_choice(group, choice)
            return state

        return move

    def _set_piece_power(self, index: int, dim: int, piece: int, axis: str, exponent: Fraction) -> Move:
        places = self._with_bias(index, dim)

        def move(state: State) -> State:
            for group, position in places:
                if piece < len(state.choices[group].form(self.groups[group], position).pieces):
                    state = state.with_choice(group, state.choices[group].with_piece(position, piece, axis, exponent))
            return state

        return move


def _may_move(key: str, value: object) -> bool:
    if isinstance(value, float):
        return bool(re.search(r"scal|mult|factor|expand|alpha|temperature|base", key)) and "init" not in key
    return not re.search(r"_ids?$|vocab|position|layer|seed|num_labels|initializer|rope_theta|chunk", key)


def _set_power(indices: list[int], axis: str, exponent: Fraction, offset: int = 0) -> Move:
    def move(state: State) -> State:
        for index in indices:
            state = state.with_choice(index, state.choices[index].with_power(axis, exponent, offset))
        return state

    return move


def _set_contraction(index: int, contraction: int) -> Move:
    return lambda state: state.with_choice(index, replace(state.choices[index], contraction=contraction))


def _both(first: Move, second: Move) -> Move:
    return lambda state: second(first(state))
