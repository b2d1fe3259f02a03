"""Define mupscale.json, and the parts that it shares with the documents of `--json`, by types.

Each key has its type and description; `record/schema.py` derives schemas and checks from both. Importing this module
takes milliseconds, so code that only creates records imports it for type checking only.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict, Union, final

from mupscale_cli.plan.methods import METHODS
from mupscale_cli.record import FORMAT_VERSION
from mupscale_cli.record.schema import NotRequired, limits

_PRINTABLE = r"[^\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
*_OTHERS, _LAST = METHODS
_LARGEST_SCALE = 1e60  # small enough that its powers in update rules are finite

Count = Annotated[int, limits(minimum=0)]
Seed = Annotated[int, limits(minimum=0)]
Shape = Annotated[list[Count], "Elements of each dimension."]
Path = Annotated[str, limits(pattern=f"^{_PRINTABLE}*$")]
FileName = Annotated[str, limits(pattern=rf"^(?!\.{{1,2}}$)(?:(?![/\\:]){_PRINTABLE})+$")]
Hash = Annotated[str, limits(pattern="^[0-9a-f]+$")]
Figure = Union[float, Literal["inf", "-inf", "nan"]]  # JSON has no infinity and no NaN


class Counts(TypedDict):
    """A number before and after a widening."""

    before: Annotated[Count, "Value for the narrow model."]
    after: Annotated[Count, "Value for the wide model."]


class Axis(TypedDict):
    """An axis of the recipe."""

    size: Annotated[Count | None, "Units in the narrow model; null if it varies within the model."]
    wide_size: Annotated[Count | None, "Units in the wide model; null if it varies within the model."]
    factor: Annotated[
        int, "Copies of each unit; other new units are fresh or, with `balanced`, further copies.", limits(minimum=1)
    ]


class Part(TypedDict):
    """A part of a tensor with one coefficient and multiplicity."""

    coefficient: Annotated[
        float,
        "Coefficient c: the factor that each copy was multiplied by.",
        limits(minimum=1 / _LARGEST_SCALE, maximum=_LARGEST_SCALE),
    ]
    multiplicity: Annotated[int, "Multiplicity m: the number of copies of each element.", limits(minimum=1)]


Parts = Annotated[list[Part], "Each part of the tensor that is scaled alike, in order.", limits(minItems=1)]


class Block(TypedDict):
    """The blocks of a deep network that a tensor belongs to."""

    stack: Annotated[str, "Name of the stack of blocks."]
    is_new: Annotated[bool, "Whether the block is new."]
    writes: Annotated[bool, "Whether the block's contribution to the residual stream is linear in the tensor."]


class Rule(TypedDict):
    """A rule of the recipe, applied to tensors of one shape."""

    pattern: Annotated[str, "Pattern of the tensor names."]
    layout: Annotated[str, "Layout of the dimensions."]
    parts: Parts
    offset: Annotated[int, "Value that the layer adds to the stored value."]
    shape: Shape
    wide_shape: Shape
    fill: Annotated[float | None, "Value of all elements; null if they are copies of the source's."]
    block: Annotated[Block | None, "Block of the tensors; null outside of stacks of blocks."]
    tensors: Annotated[list[str], "Names of the tensors."]


class Blocks(TypedDict):
    """A stack of blocks that became deeper."""

    size: Annotated[Count, "Number of blocks in the narrow model."]
    wide_size: Annotated[Count, "Number of blocks in the wide model."]
    sources: Annotated[list[Count], "Block of the narrow model that each block of the wide model copies."]
    new: Annotated[list[Count], "Positions of the new blocks."]


class Growth(TypedDict):
    """How the tensors of one model follow from those of another."""

    axes: Annotated[dict[str, Axis], "Every axis of the recipe, by name.", limits(minProperties=1)]
    blocks: Annotated[dict[str, Blocks], "Every stack of blocks that became deeper, by name."]
    parameters: Annotated[Counts, "Number of parameters."]
    rules: Annotated[list[Rule], "The applied rules, one entry for each layout, parts and shape."]
    called: Annotated[
        dict[str, str],
        "Names of the reference model's parameters, by tensor, where they differ from the tensor's name.",
    ]


class Method(TypedDict):
    """The method of a widening."""

    name: Annotated[str, f"{', '.join(_OTHERS)} or {_LAST}."]
    seed: NotRequired[Annotated[Seed, "Random seed of the copy maps and of initial weights."]]
    fresh: NotRequired[
        Annotated[Literal["init", "zero"], "What the weights of fresh units are where they cannot change the function."]
    ]
    spread: NotRequired[
        Annotated[
            Literal["padded", "balanced"],
            "How residual streams grow: to whole copies and fresh units, or to copies only, scaled by 1/sqrt(n).",
        ]
    ]
    shrink: NotRequired[
        Annotated[
            float,
            "Factor that the narrow weights are multiplied by if new units are fresh.",
            limits(minimum=0, maximum=1),
        ]
    ]


class Perturbation(TypedDict):
    """Noise that makes copies differ."""

    size: Annotated[float, "Size relative to `scale`.", limits(minimum=0, maximum=1000)]
    mode: Annotated[
        Literal["free", "preserving", "mixed"],
        "Whether the noise changes the function (free), does not (preserving), or shares the norm (mixed).",
    ]
    scale: Annotated[
        Literal["spectral", "rms", "fan-in", "init", "paper", "elementwise"], "What the size is relative to."
    ]
    seed: Annotated[Seed, "Random seed of the noise."]
    on: Annotated[list[str], "Patterns of the names of tensors that get noise; empty for every matrix."]


class SourceFile(TypedDict):
    """A file of the source."""

    bytes: Annotated[Count, "Size in bytes."]
    xxh128: Annotated[Hash, "XXH3-128 of the file, as `xxhsum -H2` prints it."]
    sha256: NotRequired[Annotated[Hash, "SHA-256 that the Hub reports for a large file."]]


SourceFiles = Annotated[dict[str, SourceFile], "Every file, by name."]


class Form(TypedDict):
    """What the user said about the form of a trainer's checkpoint."""

    layout: NotRequired[Annotated[str, "The layout, as in `--layout`."]]
    weights_key: NotRequired[Annotated[str, "The keys that lead to the weights, as in `--weights-key`."]]


@final
class LocalSource(TypedDict):
    """A narrow checkpoint on disk."""

    path: Annotated[Path, "Path relative to the folder of the output."]
    files: SourceFiles
    config: NotRequired[Annotated[dict[str, Any], "Config keys that its file lacks or has with other values."]]
    form: NotRequired[Annotated[Form, "What the user said about its form."]]


@final
class HubSource(TypedDict):
    """A narrow checkpoint on the Hub."""

    repo: Annotated[str, "Repository on the Hub."]
    revision: Annotated[str, "Commit of the repository."]
    files: SourceFiles
    config: NotRequired[Annotated[dict[str, Any], "Config keys that its file lacks or has with other values."]]
    form: NotRequired[Annotated[Form, "What the user said about its form."]]


class FileFate(TypedDict):
    """What became of a file of the source, or of all files of a folder."""

    fate: Annotated[
        Literal["carried", "rewritten", "widened", "left behind"],
        "Copied unchanged, rewritten for the wide model, widened with the weights, or absent from the output.",
    ]
    reason: Annotated[str, "What the file is, or why it is left behind."]
    files: Annotated[Count, "Number of files: 1, or more for a folder."]


class Written(TypedDict):
    """A written file."""

    digest: Annotated[Hash, "XXH3-128 of the XXH3-128 of each 256 KiB; `mupscale help formats` has the details."]


class RecipeUsed(TypedDict):
    """The recipe of a widening."""

    name: Annotated[str, "Name of the recipe."]
    sha256: Annotated[Hash, "SHA-256 of its content."]
    file: NotRequired[Annotated[Path, "Path of its file; absent for a built-in or drafted recipe."]]
    text: NotRequired[Annotated[str, "The recipe itself, in YAML, if it was drafted."]]


class NarrowGroup(TypedDict):
    """Parameters that had the same hyperparameters in the narrow run."""

    optimizer: Annotated[str, "Optimizer that the settings belong to."]
    decoupled_weight_decay: Annotated[bool, "Whether its weight decay is `p -= lr wd p`."]
    settings: Annotated[dict[str, Any], "Its settings, as the narrow state has them."]
    parameters: Annotated[str, "Regular expression that matches exactly these parameters, under their wide names."]


class OptimizerState(TypedDict):
    """The optimizer state that was widened with the weights."""

    file: Annotated[FileName | None, "Name of the file or folder next to the weights; null if it is in their own."]
    files: NotRequired[Annotated[list[FileName], "Further files of the state; absent if there are none."]]
    key: NotRequired[Annotated[str, "Dotted keys that lead to the state within the file."]]
    format: Annotated[str, "Format of the file."]
    kinds: Annotated[list[str], "Optimizers that the state belongs to."]
    named: NotRequired[Annotated[list[str], "Optimizers that the user named; absent if the state told."]]
    policy: Annotated[Literal["copy", "reset-new", "reset"], "How the moments of copies were initialized."]
    groups: NotRequired[
        Annotated[list[NarrowGroup], "Groups of the narrow optimizer; absent if the format has no groups."]
    ]
    copied: NotRequired[Annotated[list[str], "Entries of the file that were copied unchanged."]]
    nonfinite: NotRequired[Annotated[dict[str, int], "Number of NaNs and infinities, by tensor."]]
    source_digest: Annotated[Hash, "XXH3-128 of the narrow state; the output of `xxhsum -H2` if it is a single file."]
    digest: Annotated[Hash, "Digest of the wide state, computed as in `written`."]


class Comparison(TypedDict):
    """A comparison of two tensors."""

    what: Annotated[str, "Name of what was compared."]
    max_abs: Annotated[Figure, "Largest absolute difference."]
    max_rel: Annotated[Figure, "Largest absolute difference over the largest magnitude in the narrow model."]


class StepComparison(TypedDict):
    """The difference of a wide parameter from the planned one after some steps, relative to its largest element."""

    what: Annotated[str, "Name of the parameter."]
    max_rel: Annotated[Figure, "Largest difference of an element."]
    allowed: Annotated[Figure, "Largest difference that rounding explains: `factor` times the parameter's response."]
    moved: Annotated[Figure, "How far an element has come since the first step."]


class Training(TypedDict):
    """Whether both models take the same optimizer steps."""

    agrees: Annotated[bool, "Whether all steps agree, and everything stored is as planned."]
    steps: Annotated[Count, "Number of steps."]
    optimizer: Annotated[str, "Optimizer and its hyperparameters."]
    losses: Annotated[
        list[
            Annotated[list[Figure], "Loss of the narrow model and of the wide model.", limits(minItems=2, maxItems=2)]
        ],
        "Losses before each step.",
    ]
    max_rel: Annotated[Figure, "Largest relative difference of the losses."]
    tolerance: Annotated[Figure, "Largest relative difference of the losses that rounding explains: factor x response."]
    response: Annotated[
        Figure,
        "Largest relative change of the narrow model's losses if its parameters move to neighboring numbers before "
        "each step.",
    ]
    factor: Annotated[float, "How many times such a change rounding explains."]
    factor_reason: Annotated[str, "Formula of the factor."]
    weights: Annotated[
        StepComparison, "Parameter that comes closest to what is allowed, or exceeds it most, at the end."
    ]
    first_difference: Annotated[
        StepComparison | None,
        "Parameter that differs most after the first step, or if none does then, after the last; null if none does.",
    ]
    ignored_elements: Annotated[
        Count, "Narrow elements that were not compared, because their gradients were only rounding errors."
    ]
    stored_differences: Annotated[
        list[str], "Stored weights, state entries and settings that are not exactly the planned ones."
    ]
    state_compared: Annotated[bool, "Whether a widened optimizer state was compared."]
    removed: Annotated[
        list[str],
        "What was removed before training, since it changes the steps: noise, initial weights of fresh units.",
    ]
    start: Annotated[str, "State that both models started from."]
    frozen: Annotated[list[str], "Stacks of blocks that are deeper in the wide model, whose new blocks were frozen."]
    inexact: NotRequired[
        Annotated[list[str], "Parameters that were not compared: no single value of some setting fits all their parts."]
    ]


class Tensors(TypedDict):
    """Whether every byte of some tensors matches source, rule and noise."""

    agrees: Annotated[bool, "Whether all bytes match."]
    tensors: Annotated[Count, "Number of compared tensors."]
    bytes: Annotated[Count, "Size of the compared tensors in bytes."]
    differences: Annotated[list[str], "Differences, each with the name of its tensor."]


class ConfigKeys(TypedDict):
    """Whether config.json is the planned one."""

    agrees: Annotated[bool, "Whether all keys match."]
    keys: Annotated[Count, "Number of compared keys, including those of nested objects."]
    differences: Annotated[list[str], "Differences, each with its key."]


class Files(TypedDict):
    """Whether all files other than weights and config.json are the planned ones."""

    agrees: Annotated[bool, "Whether all files match."]
    files: Annotated[list[str], "Names of the compared files."]
    differences: Annotated[list[str], "Differences, each with the name of its file."]
    optimizer_state: NotRequired[
        Annotated[Tensors, "Result for the optimizer state; absent if none was widened or compared."]
    ]
    optimizer_state_skipped: NotRequired[Annotated[str, "Why the optimizer state was not compared; absent if it was."]]


class VerifiedWith(TypedDict):
    """The options of a verification."""

    only: Annotated[list[str], "Values of `--only`; empty for everything."]
    dtype: Annotated[str, "Value of `--dtype`."]
    device: Annotated[str, "Value of `--device`."]
    own_model: Annotated[bool, "Whether `--model` was given."]
    seed: Annotated[int, "Random seed of the inputs."]
    steps: Annotated[Count, "Number of optimizer steps."]


class Function(TypedDict):
    """Whether two models compute the same, and how closely."""

    agrees: Annotated[bool, "Whether the models agree as planned."]
    dtype: Annotated[str, "Data type that both models ran in."]
    device: Annotated[str, "Device that both models ran on."]
    inputs: Annotated[str, "Description of the inputs."]
    tolerance: Annotated[float, "Largest relative difference that rounding explains."]
    tolerance_reason: Annotated[str, "Derivation of the tolerance from the data types."]
    module_by_module: Annotated[
        bool,
        "Whether each module of the wide model started from the narrow model's values, so that differences did not add "
        "up.",
    ]
    comparisons: Annotated[list[Comparison], "Comparison of the outputs for each set of inputs.", limits(minItems=1)]
    modules_compared: Annotated[Count, "Number of modules with compared outputs."]
    worst_module: Annotated[Comparison | None, "Module with the largest difference."]
    first_difference: Annotated[
        Comparison | None, "First module, in execution order, with a difference beyond the tolerance."
    ]
    rounding: Annotated[
        Comparison | None,
        "Change of the outputs by rounding scaled values, and means that fresh units hold, to their data type; null if "
        "nothing is rounded.",
    ]
    rounded_tensors: Annotated[Count, "Number of rounded tensors."]
    keeps_function: Annotated[bool, "Whether the widening should keep the function."]
    unperturbed: Annotated[Function | None, "Result without the noise; null if there is no noise."]
    missing: Annotated[
        list[str], "Parameters of the reference class that the checkpoint lacks; nothing that needs them was compared."
    ]
    unused: Annotated[
        list[str],
        "Tensors that the reference class ignores, so that they are no part of the function: only their values can be "
        "checked, against source and rule.",
    ]
    modules: NotRequired[
        Annotated[list[Comparison], "Comparison of each module, in execution order; only in the output of `--json`."]
    ]


class Verification(TypedDict):
    """Whether a wide checkpoint is what the plan makes of its source."""

    agrees: Annotated[bool, "Whether nothing differs in the parts that were compared."]
    function: Annotated[Function | None, "Comparison of what both models compute; null if they did not run."]
    training: Annotated[Training | None, "Result of training both models; null if they were not trained."]
    weights: Annotated[Tensors | None, "Comparison of every element; null if there was none."]
    config: Annotated[ConfigKeys | None, "Comparison of config.json; null if there was none."]
    files: Annotated[Files | None, "Comparison of all other files; null if there was none."]
    skipped: Annotated[dict[str, str], "Parts that were requested but could not be compared, and why."]
    options: NotRequired[Annotated[VerifiedWith, "Options of `mupscale verify`; only in mupscale.json."]]


class AdapterSource(TypedDict):
    """A narrow adapter."""

    path: Annotated[Path, "Path relative to the folder of the output."]
    digest: Annotated[Hash, "XXH3-128 of the XXH3-128 of its config and of its weights."]


class Adapter(TypedDict):
    """An adapter that was widened with its base model."""

    source: Annotated[AdapterSource, "The narrow adapter."]
    rules: Annotated[list[Rule], "The applied rules, one entry for each layout, parts and shape."]
    called: Annotated[dict[str, str], "Names of the parameters in a model with this adapter, by tensor."]


class Module(TypedDict):
    """The tensors of a module behind the model."""

    type: Annotated[str, "Class of the module, as in modules.json."]
    rules: Annotated[list[Rule], "The applied rules, one entry for each layout, parts and shape."]


class Record(Growth):
    """mupscale.json: how a checkpoint was widened."""

    format_version: Annotated[
        int, "Version of the format of mupscale.json.", limits(minimum=FORMAT_VERSION, maximum=FORMAT_VERSION)
    ]
    mupscale_version: Annotated[str, "Version of mupscale that wrote the record."]
    source: Annotated[LocalSource | HubSource, "The narrow checkpoint."]
    fates: Annotated[
        dict[str, FileFate], "What became of every file of the source, by name; a folder of files alike is one entry."
    ]
    written: Annotated[dict[str, Written], "Every weight file, by name."]
    others: Annotated[
        dict[str, Written], "Every other written file except the optimizer state and the record, by name."
    ]
    recipe: Annotated[RecipeUsed, "The recipe."]
    to: Annotated[str | None, "Path or Hub id of the model whose sizes were taken; null if there was none."]
    shared: Annotated[dict[str, str], "Tensors absent from the output, and the tensors used in their place."]
    omitted: Annotated[list[str], "Tensors of the source that were omitted."]
    tie: Annotated[
        str | None, "Treatment of a tied readout: fold, config or untie; null if readout and embedding are not tied."
    ]
    clean_names: NotRequired[
        Annotated[bool, "True if names were written without what training wrapped around them; else absent."]
    ]
    rounded: Annotated[list[str], "Tensors with rounded values."]
    method: Annotated[Method, "Method of the widening."]
    perturbation: Annotated[Perturbation | None, "Noise that makes copies differ; null if there is none."]
    noise: Annotated[
        dict[str, Annotated[float, limits(minimum=0)]],
        "Standard deviation of the noise, by tensor; relative to each element with the scale `elementwise`.",
    ]
    nonfinite: Annotated[dict[str, int], "Number of NaNs and infinities, by tensor."]
    overflowed: Annotated[list[str], "Tensors in which the noise exceeded the range of the data type."]
    optimizer_state: Annotated[OptimizerState | None, "Widened optimizer state; null if there is none."]
    adapters: Annotated[
        dict[str, Adapter], "Widened adapters, by their folder in the output; `.` for one beside the weights."
    ]
    modules: Annotated[dict[str, Module], "Widened modules of sentence-transformers, by their folder in the output."]
    verification: Annotated[Verification | None, "Last verification; null if there was none."]
