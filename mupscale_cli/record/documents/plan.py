"""Documents of `--json`: plans, and what `inspect` finds."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from mupscale_cli.record.schema import NotRequired
from mupscale_cli.record.types import Axis, Count, Counts, Method, Parts, Perturbation, Record, Shape


class Guidance(TypedDict):
    """Figures and advice for a widening."""

    parameters: Annotated[float, "Ratio of the numbers of parameters, wide to narrow."]
    flops_per_token: Annotated[Counts, "Floating-point operations of the forward pass per token."]
    advice: Annotated[list[str], "Known facts about such widenings."]


class Change(TypedDict):
    """A changed key of config.json."""

    key: Annotated[str, "Name of the key."]
    before: Annotated[Any, "Value in the narrow config."]
    after: Annotated[Any, "Value in the wide config."]


class TargetKey(TypedDict):
    """A key of config.json that differs between the source and the model whose sizes are taken."""

    key: Annotated[str, "Name of the key."]
    before: Annotated[Any, "Value in the narrow config; null if it is absent."]
    target: Annotated[Any, "Value in the target's config; null if it is absent."]
    after: Annotated[Any, "Value in the wide config."]
    fate: Annotated[
        Literal["grown", "kept", "adapted"],
        "grown: the target's value. kept: the narrow model's. adapted: another, which the widening needs.",
    ]


class GoalComparison(TypedDict):
    """The model whose sizes are taken."""

    name: Annotated[str, "Path or Hub id."]
    keys: Annotated[list[TargetKey], "Every key that differs."]


class ProposedShape(TypedDict):
    """A shape with about the requested number of parameters."""

    axes: Annotated[dict[str, int], "Size of every axis that grows."]
    parameters: Annotated[Count, "Number of parameters."]
    flops_per_token: Annotated[Count, "FLOPs of a forward pass per token."]
    bytes: Annotated[Count, "Size of the weights in bytes."]


class PlannedTensor(TypedDict):
    """A tensor of the output."""

    name: Annotated[str, "Name of the wide tensor."]
    source: Annotated[str, "Name of the narrow tensor."]
    rule: Annotated[str, "Pattern of its rule."]
    dtype: Annotated[str, "Data type as named by safetensors."]
    shape: Shape
    wide_shape: Shape
    layout: Annotated[str, "Layout of the dimensions."]
    parts: Parts
    bytes: Annotated[Count, "Size of the narrow tensor in bytes."]
    wide_bytes: Annotated[Count, "Size of the wide tensor in bytes."]
    rounded: Annotated[bool, "Whether scaled values are rounded to the data type."]


class Tree(TypedDict):
    """A module of a network, or one of its tensors."""

    name: Annotated[str, "Name of the module or tensor; a range for several equal ones."]
    tensors: Annotated[Count, "Number of tensors."]
    bytes: Annotated[Count, "Size of the narrow tensors in bytes."]
    wide_bytes: Annotated[Count, "Size of the wide tensors in bytes."]
    children: NotRequired[Annotated[list[Tree], "Parts of a module; absent for a tensor."]]
    dtype: NotRequired[Annotated[str, "Data type of a tensor."]]
    shape: NotRequired[Shape]
    wide_shape: NotRequired[Shape]
    rule: NotRequired[Annotated[str, "Pattern of a tensor's rule."]]
    layout: NotRequired[Annotated[str, "Layout of a tensor's dimensions."]]
    parts: NotRequired[Parts]


class PlannedFile(TypedDict):
    """What becomes of a file of the source."""

    name: Annotated[str, "Path in the source's folder; that of a folder that is not looked into ends with `/`."]
    bytes: Annotated[Count | None, "Size in bytes; null for a folder or a link that is not followed."]
    fate: Annotated[
        Literal["carried", "rewritten", "widened", "left behind"],
        "Copied unchanged, rewritten for the wide model, widened with the weights, or absent from the output.",
    ]
    reason: Annotated[str, "What the file is, or why it is left behind."]


class DiskNeeds(TypedDict):
    """A file system that outputs or downloads are written to."""

    place: Annotated[str, "A directory on the file system."]
    needed: Annotated[Count, "Bytes to write."]
    free: Annotated[Count, "Free bytes."]
    has_room: Annotated[bool, "Whether there are enough free bytes."]


class MemoryNeeds(TypedDict):
    """The memory that a command needs."""

    needed: Annotated[Count, "Peak memory in bytes."]
    free: Annotated[Count | None, "Free memory in bytes; null if unknown."]


class Duration(TypedDict):
    """Estimated seconds of each phase of a widening."""

    start: Annotated[float, "Until the first byte is read."]
    hash: Annotated[float, "Hashing the source."]
    write: Annotated[float, "Computing and writing the output."]
    read_back: Annotated[float, "Comparing the written bytes with their hashes."]
    verify: Annotated[float, "Running both models; 0 if they are not compared."]
    total: Annotated[float, "All phases."]


class Plan(TypedDict):
    """Output of `mupscale widen --dry-run`."""

    recipe: Annotated[str, "Name of the recipe."]
    output: Annotated[str | None, "Path of the output; null if there is none."]
    axes: Annotated[dict[str, Axis], "Every axis of the recipe, by name."]
    parameters: Annotated[Counts, "Number of parameters."]
    method: Annotated[Method, "Method of the widening."]
    perturbation: Annotated[Perturbation | None, "Noise that makes copies differ; null if there is none."]
    growth: Annotated[Guidance | None, "Figures and advice for the widening; null if nothing is widened."]
    bytes: Annotated[Count, "Size of the weights in bytes."]
    files: Annotated[dict[str, Count], "Size of each weight file in bytes."]
    fates: NotRequired[Annotated[list[PlannedFile], "What becomes of every file of the source."]]
    optimizer_kinds: NotRequired[Annotated[list[str], "Optimizers that the state to widen belongs to."]]
    disks: NotRequired[Annotated[list[DiskNeeds], "File systems of the output and of the Hub's cache."]]
    memory: NotRequired[Annotated[MemoryNeeds, "Memory for writing and verifying."]]
    seconds: NotRequired[Annotated[Duration, "Estimated time, if the disk keeps up and nothing is downloaded."]]
    config: Annotated[list[Change], "Changes of config.json."]
    to: Annotated[GoalComparison | None, "The model whose sizes are taken; null if there is none."]
    omitted: Annotated[list[str], "Tensors of the source that are omitted."]
    notes: Annotated[list[str], "What the recipe says about this widening."]
    tensors: Annotated[list[PlannedTensor], "Every tensor of the output."]
    tree: Annotated[list[Tree], "The tensors as a tree of modules, with equal modules merged."]
    proposals: NotRequired[
        Annotated[list[ProposedShape], "Shapes near the number of `--params`, best first; the first one is planned."]
    ]


class Inspect(Plan):
    """The content of a checkpoint: `mupscale inspect`."""

    path: Annotated[str, "Path of the checkpoint, or its id on the Hub."]
    record: Annotated[Record | None, "Record of its widening; null if mupscale did not write it."]


class Description(TypedDict):
    """What a file or folder is that cannot be widened: `mupscale inspect`."""

    path: Annotated[str, "Path, or id on the Hub."]
    about: Annotated[str, "What it is, and why it cannot be widened."]
    hint: Annotated[str | None, "What to do, for instance the command that converts it."]
    tensors: Annotated[list[str] | None, "Names of its tensors; null if it holds no safetensors weights."]
