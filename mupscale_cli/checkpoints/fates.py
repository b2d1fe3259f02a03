"""What becomes of the files of a checkpoint: one table of kinds of files, and the plan that follows from it.

Nothing beside a tensor is copied or dropped in silence. Files that refer to each other, such as an adapter's config and
its weights, are one kind, so that the output never has one without the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Literal, NamedTuple

from mupscale_cli.checkpoints.libraries import CONFIGS
from mupscale_cli.errors import CheckpointError
from mupscale_cli.text import bytes_text

RECORD = "mupscale.json"
DRAFT = "recipe.yaml"  # a drafted recipe, beside the output that was planned by it
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
_MAX_CARRIED_BYTES = 1 << 30  # the largest vocabularies take a twentieth

Fate = Literal["carried", "rewritten", "widened", "left behind"]


class Decision(NamedTuple):
    """What becomes of a file, and what it is or why."""

    fate: Fate
    reason: str


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file.

    Attributes:
        about: what the files are; the reason for their fate.
        fate: what becomes of them.
        patterns: their names, without regard to case. `*` matches no `/`; a final `/` matches everything in a folder.
        with_state: what becomes of them if an optimizer state is widened with the weights. Default: the same.
        is_foreign_state: whether they hold an optimizer state in a form that cannot be widened.
    """

    about: str
    fate: Fate
    patterns: tuple[str, ...]
    with_state: Fate | None = None
    is_foreign_state: bool = False

    def has(self, name: str) -> bool:
        """Return whether a file, by its path in the checkpoint's folder, is of this kind."""
        return any(_matches(name.lower(), pattern) for pattern in self.patterns)

    def decide(self, *, with_state: bool = False) -> Decision:
        """Return what becomes of the files."""
        if self.with_state is None:
            return Decision(self.fate, self.about)
        if with_state:
            return Decision(self.with_state, self.about)
        return Decision(self.fate, f"{self.about}; goes along only with an optimizer state")


ADAPTER = Kind(
    "an adapter of the narrow model without safetensors weights and config; save it again with peft",
    "left behind",
    (ADAPTER_CONFIG, "adapter_model.*", "adapter_model-*"),
)
_STATE = Kind("optimizer state that is not widened", "left behind", ("optimizer*", "optimizer*/", "optim.pt", "optim/"))
# The first kind that a file belongs to decides. Weights with their config and index, and the files of a widened
# optimizer state, are decided by those who find them. What only describes the narrow model, such as its card, would be
# wrong for the wide one.
KINDS: tuple[Kind, ...] = (
    Kind("hidden files", "left behind", (".*", ".*/")),
    Kind("the narrow model's own record of a widening", "left behind", (RECORD,)),
    Kind("the config of another library", "left behind", CONFIGS),
    Kind(
        "learning rate scheduler with a rate for each group of parameters",
        "left behind",
        ("scheduler.pt", "scheduler.bin"),
        with_state="rewritten",
    ),
    Kind(
        "progress of training (step, data, random numbers, loss scale)",
        "left behind",
        (
            *("trainer_state.json", "rng_state*.pth", "scaler.pt", "scaler.bin"),
            *("random_states_*.pkl", "sampler*.bin", "dl_state_dict*.bin"),
        ),
        with_state="carried",
    ),
    Kind(
        "objects registered by your training code; check that they do not depend on the model's sizes",
        "left behind",
        ("custom_checkpoint_*.pkl",),
        with_state="carried",
    ),
    Kind(
        "further models and optimizers of the same training; widen each model by itself",
        "left behind",
        (
            *("model_[0-9]*.safetensors", "pytorch_model_[0-9]*.bin", "pytorch_model_[0-9]*/"),
            *("optimizer_[1-9]*.bin", "optimizer_[1-9]*/", "scheduler_[0-9]*.bin"),
        ),
    ),
    _STATE,
    Kind(
        "the name of DeepSpeed's last step, and its programs for partitioned files",
        "left behind",
        ("latest", "latest_universal", "zero_to_fp32.py", "zero_to_torch.py"),
    ),
    Kind(
        "DeepSpeed's training state; `--layout deepspeed` widens it, with its own weights",
        "left behind",
        ("global_step*/", "zero_pp_rank_*", "bf16_zero_pp_rank_*", "mp_rank_*", "*_optim_states.pt"),
        is_foreign_state=True,
    ),
    Kind(
        "the number of Megatron's last iteration",
        "left behind",
        ("latest_checkpointed_iteration.txt", "latest_train_state.pt"),
    ),
    Kind(
        "Megatron's training state; `--layout megatron` widens its weights",
        "left behind",
        ("iter_[0-9]*/",),
        is_foreign_state=True,
    ),
    ADAPTER,
    Kind(
        "quantization of the narrow weights",
        "left behind",
        (
            *("quantize_config.json", "quant_config.json", "hf_quant_config.json", "quantization_config.json"),
            *("quant_log.csv", "measurement.json", "imatrix*", "*.imatrix", "recipe.yaml"),
        ),
    ),
    Kind(
        "sizes of the narrow model for other programs",
        "left behind",
        (
            *("params.json", "hparams.*", "hyperparams.*", "config.yaml", "config.yml", "config.toml"),
            *("model_config.*", "model_args.*", "model_index.json"),
            *("config_mlx.json", "genai_config.json", "*-config.json.bak", "mergekit_config.y*ml"),
        ),
    ),
    Kind("adapters of the narrow model; widen each with `--adapter`", "left behind", ("adapters/",)),
    Kind(
        "folders of sentence-transformers that modules.json does not name",
        "left behind",
        ("[0-9]*_*/",),
    ),
    Kind(
        "card, evaluations and training settings of the narrow model",
        "left behind",
        (
            *("readme*", "model_card*", "all_results.json", "train_results.json", "*eval*_results.json"),
            *("*_results.txt", "metrics.json", "training_args.bin", "training_args.json"),
        ),
    ),
    Kind(
        "logs of the narrow model's training",
        "left behind",
        (
            *("runs/", "log/", "logs/", "wandb/", "tensorboard/", "lightning_logs/", "mlruns/"),
            *("events.out.*", "*.log", "*.tfevents.*", "profile_*.json", "nohup.out"),
        ),
    ),
    Kind(
        "another checkpoint; widen it by itself",
        "left behind",
        ("checkpoint-*/", "checkpoint_*/", "epoch*/", "meta_[0-9]*.json"),
    ),
    Kind(
        "read with the tokenizer or the processor",
        "carried",
        ("additional_chat_templates/", "*tokenizer/", "processor/", "language_model/", "speaker_embeddings/"),
    ),
    Kind(
        "weights in other formats, or of other parts",
        "left behind",
        (
            *("*.bin", "*.pt", "*.pth", "*.pt2", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.ot", "*.npz", "*.npy"),
            *("*.onnx", "*.onnx_data", "*.onnx.data", "*.gguf", "*.ggml", "*.llamafile", "*.tflite", "*.xml"),
            *(
                "*.engine",
                "*.nemo",
                "*.mlmodel",
                "*.mlpackage/",
                "*.data-*",
                "*.index",
                "*.index.json",
                "checklist.chk",
            ),
            *("onnx/", "openvino/", "original/", "consolidated/", "gguf/", "coreml/", "mlx/", "metal/", "tflite/"),
            *("flax*/", "tf*/", "jax/", "orbax/", "saved_model/", "tensorrt/", "nemo/", "int4/", "int8/", "fp16/"),
        ),
    ),
    Kind("the config beside another weight file, such as a widened one", "left behind", ("*.config.json",)),
    Kind("tensors that do not belong to the model; widen them by themselves", "left behind", ("*.safetensors",)),
    Kind("terms of use", "carried", ("licen[cs]e*", "notice*", "copying*", "use_policy*")),
    Kind(
        "read with the tokenizer, the processor or the model's own code, or for generation",
        "carried",
        (
            *("*.json", "*.txt", "*.model", "*.model.v[0-9]*", "*.jinja", "*.py"),
            *("*.tiktoken", "*.vocab", "*.merges", "*.codes", "*.spm"),
        ),
    ),
)
_UNKNOWN = Decision("left behind", "not known to be read with the model")
_UNREADABLE = Decision("left behind", "a link to a folder or to nothing, or a folder without permission")


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """What becomes of one file.

    Attributes:
        name: its path in the checkpoint's folder, with `/`; that of a folder which is not looked into ends with `/`.
        num_bytes: its size in bytes; None for a folder that is not looked into, and for a link to nothing.
        fate: `carried` unchanged, `rewritten` for the wide model, `widened` with the weights, or `left behind`.
        reason: what it is, or why.
    """

    name: str
    num_bytes: int | None
    fate: Fate
    reason: str


def plan_files(
    sizes: Mapping[str, int | None], decided: Mapping[str, Decision] = MappingProxyType({})
) -> tuple[PlannedFile, ...]:
    """Plan what becomes of every file of a folder.

    Args:
        sizes: size in bytes of every file, by its path in the folder; None for what cannot be read.
        decided: what becomes of weights and of everything else that the table does not decide.

    Raises:
        CheckpointError: a file to copy is larger than 1 GiB.
    """
    planned = tuple(
        PlannedFile(name, size, *(decided.get(name) or _decide(name, size))) for name, size in sorted(sizes.items())
    )
    for file in planned:
        if file.fate == "carried" and (file.num_bytes or 0) > _MAX_CARRIED_BYTES:
            raise CheckpointError(
                f"`{file.name}` is larger than {bytes_text(_MAX_CARRIED_BYTES)}, the limit for files to copy",
                hint="move it out of the model's folder",
            )
    return planned


def grouped(files: Iterable[PlannedFile]) -> dict[Decision, dict[str, int]]:
    """Group files by what becomes of them and why.

    Returns:
        For each decision, the number of files by name; a folder whose files share it counts as one name.
    """
    files = tuple(files)
    decisions: dict[str, set[Decision]] = {}
    for file in files:
        decisions.setdefault(_top(file.name), set()).add(Decision(file.fate, file.reason))
    groups: dict[Decision, dict[str, int]] = {}
    for file in files:
        name = _top(file.name) if len(decisions[_top(file.name)]) == 1 else file.name
        names = groups.setdefault(Decision(file.fate, file.reason), {})
        names[name] = names.get(name, 0) + 1
    return groups


def _top(name: str) -> str:
    """Return the folder in a checkpoint that a path leads into, with a final `/`, or else the file."""
    return "".join(name.partition("/")[:2])


def may_hold_weights(name: str) -> bool:
    """Return whether a file may hold weights, by its path: not if it is known as a part of a trainer's state."""
    kind = kind_of(name)
    return kind is None or (kind is not _STATE and kind.with_state is None)


def kind_of(name: str) -> Kind | None:
    """Return the kind of a file, by its path in the checkpoint's folder; None if the table does not have it."""
    return next((kind for kind in KINDS if kind.has(name)), None)


def _decide(name: str, size: int | None) -> Decision:
    kind = kind_of(name)
    found = _UNKNOWN if kind is None else kind.decide()
    return _UNREADABLE if size is None and found.fate != "left behind" else found


def _matches(name: str, pattern: str) -> bool:
    """Return whether a path matches a pattern; that of a folder must match the first part of the path."""
    folder, slash, _ = name.partition("/")
    if pattern.endswith("/"):
        return bool(slash) and fnmatchcase(folder, pattern[:-1])
    return not slash and fnmatchcase(name, pattern)
