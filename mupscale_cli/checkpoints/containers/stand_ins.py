"""Read pickles of torch that name classes of trainers, and write them back, without importing or running those classes.

A stand-in takes the place of a class. It keeps what the pickle gives the class, and is pickled under the class's name.
Names outside the two tables are refused, as `torch.load(weights_only=True)` refuses them.
"""

from __future__ import annotations

import copyreg
import pickle
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import torch

# Classes that pickle their attributes.
_OBJECTS = (
    "argparse.Namespace",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
# Classes and functions that pickle their arguments.
_VALUES = (
    "datetime.timedelta",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "torch.torch_version.TorchVersion",
)
_MEMBERS = ("builtins.getattr",)
_LOCK = threading.Lock()  # of the process's list of safe globals


class ObjectStandIn(dict[str, Any]):
    """An object's attributes. It is a mapping, so tensors and values in it are found like all others."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.update(state)

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return copyreg.__newobj__, (type(self),), dict(self)  # type: ignore[attr-defined]


class ValueStandIn:
    """A value, as its pickle makes it.

    Attributes:
        arguments: what the class or function is called with.
        state: what it is given afterward; None if nothing.
    """

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> ValueStandIn:
        made = super().__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return (type(self), self.arguments) if self.state is None else (type(self), self.arguments, self.state)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__ == self.__dict__

    def __hash__(self) -> int:
        return hash((type(self), self.arguments))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.arguments))})"


class MemberStandIn(ValueStandIn):
    """A member of an enumeration, which Python 3.11.0 to 3.11.3 pickle as `getattr(CLASS, NAME)`."""

    def __new__(cls, *arguments: Any) -> Any:
        kind, name = arguments
        if not (isinstance(kind, type) and issubclass(kind, ValueStandIn) and isinstance(name, str)):
            raise pickle.UnpicklingError("GLOBAL builtins.getattr of no enumeration")
        return super().__new__(cls, *arguments)


PLAIN_ONLY = (
    "only tensors and plain values are read, since a pickle could run code; where the file is made, save "
    "`model.state_dict()` for a model and `config.to_dict()` for its config"
)


@cache
def _stand_ins() -> dict[str, type]:
    """Return the stand-in of every name."""
    kinds = ((_OBJECTS, ObjectStandIn), (_VALUES, ValueStandIn), (_MEMBERS, MemberStandIn))
    return {name: _stand_in(name, base) for names, base in kinds for name in names}


def _stand_in(name: str, base: type) -> type:
    module, _, qualified = name.rpartition(".")
    return type(qualified, (base,), {"__module__": module, "__qualname__": qualified})


def load(file: Path | BinaryIO, device: str) -> Any:
    """Load what torch.save wrote, with stand-ins, and without running its code.

    Args:
        file: the file, or a stream of one.
        device: where to put its tensors.

    Raises:
        pickle.UnpicklingError: it names a class or function outside the tables.
    """
    try:
        with _only_stand_ins():
            return torch.load(file, weights_only=True, map_location=device)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None:
            raise
        raise pickle.UnpicklingError(f"it contains code: `{named[1]}`") from error


@contextmanager
def _only_stand_ins() -> Iterator[None]:
    """Let torch.load know the stand-ins, and of the classes that the process has declared safe only torch's own."""
    with _LOCK:
        declared = torch.serialization.get_safe_globals()
        own = [each for each in declared if getattr(each, "__module__", "").startswith("torch.")]
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([*own, *((made, name) for name, made in _stand_ins().items())])
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(declared)


class Pickler(pickle._Pickler):  # noqa: SLF001 (the one in C cannot be extended)
    """Pickle a stand-in under its class's name, which other picklers look up and do not find."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj not in _stand_ins().values():
            super().save_global(obj, name)  # type: ignore[misc]
            return
        self.write(pickle.GLOBAL + f"{obj.__module__}\n{obj.__qualname__}\n".encode())  # type: ignore[attr-defined]
        self.memoize(obj)  # type: ignore[attr-defined]
