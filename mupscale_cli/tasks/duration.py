"""How long a widening will take, estimated from the speeds that `tests/benchmarks/default.py` measured. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from mupscale_cli.engine.cores import MAX_WORKERS, num_cores
from mupscale_cli.plan import Plan

# Seconds, and seconds of a core for each GB or each billion parameters (page `promises`); a fast disk is assumed.
_START = 1.5  # Python, the plan and torch
_LIBRARY = 2.2  # importing what builds the models
_HASH, _WRITE, _READ_BACK, _VERIFY = 0.15, 0.9, 0.05, 5.0


@dataclass(frozen=True)
class Duration:
    """The estimated seconds of each phase of a widening.

    Attributes:
        start: until the first byte is read.
        hash: hashing the source.
        write: computing and writing the output.
        read_back: comparing the written bytes with their hashes.
        verify: running both models; 0 if they are not compared.
    """

    start: float
    hash: float
    write: float
    read_back: float
    verify: float

    @property
    def total(self) -> float:
        return self.start + self.hash + self.write + self.read_back + self.verify

    @property
    def parts(self) -> dict[str, float]:
        """The phases as people see them, in whole seconds, which add up; none is left out that takes one."""
        seconds = {
            "to start": self.start,
            "to write": self.hash + self.write + self.read_back,
            "to verify": self.verify,
        }
        whole = {what: float(round(each)) for what, each in seconds.items()}
        return {what: each for what, each in whole.items() if each} or {"to start": 1.0}

    def as_record(self) -> dict[str, float]:
        return {**asdict(self), "total": self.total}


def widening_duration(plan: Plan, state_bytes: tuple[int, int], *, verify: bool) -> Duration:
    """Estimate how long a widening takes on this machine, if its disk keeps up with its cores.

    Args:
        plan: the plan of the weights.
        state_bytes: size of the optimizer state before and after.
        verify: whether both models are run.
    """
    before = sum(tensor.source.num_bytes for tensor in plan.tensors) + state_bytes[0]
    after = plan.num_bytes + state_bytes[1]
    compared = _LIBRARY + _VERIFY * sum(plan.num_parameters) / 1e9 / num_cores() if verify else 0.0
    write = _WRITE * after / 1e9 / min(num_cores(), MAX_WORKERS)
    return Duration(_START, _HASH * before / 1e9, write, _READ_BACK * after / 1e9, compared)
