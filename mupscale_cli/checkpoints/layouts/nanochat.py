"""nanochat: files of the weights, the sizes, and the optimizer's state in each process, numbered by the step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from mupscale_cli.checkpoints.containers.base import Container
from mupscale_cli.checkpoints.layouts.base import ConfigPlace, Layout, StateFiles

_COSINE = " * 0.5 * (1 + math.cos(math.pi * it / num_iterations))"
_DECAY = 'group["weight_decay"] = muon_weight_decay'


def _next_lines(path: str) -> tuple[str, ...]:
    """Name what scripts/base_train.py has to know of the wide model."""
    tag = quote(Path(path).name)
    return (
        f"python -m scripts.base_train --model-tag={tag} --resume-from-step=STEP --aspect-ratio=WIDE",
        "  # WIDE is n_embd / depth of the wide model. Give --total-batch-size and --num-iterations as numbers, other",
        "  # options as before, and NARROW_DECAY as the narrow run printed it (`Scaling weight decay from ... to`):",
        f"- {_DECAY}",
        f'+ {_DECAY} * group["weight_decay_factor"]',
        f"- return weight_decay_scaled{_COSINE}",
        f"+ return NARROW_DECAY{_COSINE}",
    )


def _rank_files(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Container:
    from mupscale_cli.checkpoints.containers.rank_files import RankFiles

    return RankFiles.beside(path, shapes)


NANOCHAT = Layout(
    name="nanochat",
    title="nanochat",
    patterns=("model_[0-9]*.pt",),
    marks=("transformer.wte.weight", "resid_lambdas"),
    weights=("",),
    config=ConfigPlace("meta_[0-9]*.json", "model_config"),
    state_files=StateFiles(
        lambda weights: f"{weights.removesuffix('.pt').replace('model', 'optim')}_rank0.pt", _rank_files
    ),
    recipe="nanochat_gpt",
    own_code="beside its folder `nanochat`",
    next_lines=_next_lines,
)
