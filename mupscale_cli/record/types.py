"""What mupscale.json holds, and what documents of `--json` share with it: the types that are their only definition.

Keys are described beside their types; schemas and checks follow from both (`record/schema.py`). Importing this costs
milliseconds, so what only makes a record imports it for type checking.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict, Union, final

from mupscale_cli.plan.methods import METHODS
from mupscale_cli.record import FORMAT_VERSION
from mupscale_cli.record.schema import NotRequired, limits

_PRINTABLE = r"[^\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
*_OTHERS, _LAST = METHODS
_LARGEST_SCALE = 1e60  # its powers are still numbers

Count = Annotated[int, limits(minimum=0)]
Seed = Annotated[int, limits(minimum=0)]
Shape = Annotated[list[Count], "Elements of each dimension."]
Path = Annotated[str, limits(pattern=f"^{_PRINTABLE}*$")]
FileName = Annotated[str, limits(pattern=rf"^(?!\.{{1,2}}$)(?:(?![/\\:]){_PRINTABLE})+$")]
Hash = Annotated[str, limits(pattern="^[0-9a-f]+$")]
Figure = Union[float, Literal["inf", "-inf", "nan"]]  # JSON has no infinity and no NaN


class Counts(TypedDict):
    """A number before and after a widening."""

    before: Annotated[Count, "Of the narrow model."]
    after: Annotated[Count, "Of the wide model."]


class Axis(TypedDict):
    """An axis of the recipe."""

    size: Annotated[Count | None, "Units of the narrow model; null where it varies from place to place."]
    wide_size: Annotated[Count | None, "Units of the wide model."]
    factor: Annotated[int, "Copies of each unit.", limits(minimum=1)]


class Part(TypedDict):
    """A part of a tensor that is scaled alike."""

    coefficient: Annotated[
        float,
        "c, what a copy was multiplied by.",
        limits(minimum=1 / _LARGEST_SCALE, maximum=_LARGEST_SCALE),
    ]
    multiplicity: Annotated[int, "m, how many copies an element has.", limits(minimum=1)]


Parts = Annotated[list[Part], "Each part of the tensor that is scaled alike, in order.", limits(minItems=1)]


class Rule(TypedDict):
    """A rule of the recipe in one way in which it was applied."""

    pattern: Annotated[str, "Of tensor names."]
    layout: Annotated[str, "Of the dimensions."]
    parts: Parts
    offset: Annotated[int, "What the layer adds to the stored value."]
    shape: Shape
    wide_shape: Shape
    tensors: Annotated[list[str], "Their names."]


class Growth(TypedDict):
    """How the tensors of one model follow from those of another."""

    axes: Annotated[dict[str, Axis], "Every axis of the recipe, by name.", limits(minProperties=1)]
    parameters: Annotated[Counts, "Number of parameters."]
    rules: Annotated[list[Rule], "Each rule once for every way in which it was applied."]
    called: Annotated[dict[str, str], "Tensors for which the reference model's parameters have other names."]


class Method(TypedDict):
    """A method of growing."""

    name: Annotated[str, f"{', '.join(_OTHERS)} or {_LAST}."]
    seed: NotRequired[Annotated[Seed, "Of a random map."]]
    shrink: NotRequired[
        Annotated[
            float,
            "What the narrow weights are multiplied by, where new units are fresh.",
            limits(minimum=0, maximum=1),
        ]
    ]


class Perturbation(TypedDict):
    """Noise that tells copies apart."""

    size: Annotated[float, "Relative to what `scale` names.", limits(minimum=0, maximum=1000)]
    mode: Annotated[Literal["free", "preserving"], "Whether it moves the function."]
    scale: Annotated[Literal["spectral", "rms", "fan-in", "init"], "What the size is relative to."]
    seed: Annotated[Seed, "Of the noise."]


class SourceFile(TypedDict):
    """A file of the source."""

    bytes: Annotated[Count, "Size."]
    xxh128: Annotated[Hash, "XXH3-128 of the file, as `xxhsum -H2` prints it."]
    sha256: NotRequired[Annotated[Hash, "The SHA-256 that the Hub states of a large file."]]


SourceFiles = Annotated[dict[str, SourceFile], "Every file, by name."]


@final
class LocalSource(TypedDict):
    """A narrow checkpoint on disk."""

    path: Annotated[Path, "From the folder of the output."]
    files: SourceFiles


@final
class HubSource(TypedDict):
    """A narrow checkpoint of the Hub."""

    repo: Annotated[str, "On the Hub."]
    revision: Annotated[str, "The commit of the repository."]
    files: SourceFiles


class Written(TypedDict):
    """A weight file that was written."""

    digest: Annotated[Hash, "XXH3-128 of the XXH3-128 of each 256 KiB; `mupscale help formats` has the details."]


class RecipeUsed(TypedDict):
    """The recipe of a widening."""

    name: Annotated[str, "Of the recipe."]
    sha256: Annotated[Hash, "Of its content."]
    file: NotRequired[Annotated[Path, "Where it is not built in."]]


class OptimizerState(TypedDict):
    """The optimizer's state that was widened with the weights."""

    file: Annotated[FileName, "Beside the weights."]
    key: NotRequired[Annotated[str, "Where in the file it stands."]]
    format: Annotated[str, "The kind of file."]
    policy: Annotated[Literal["copy", "reset-new", "reset"], "What copies were given."]
    copied: NotRequired[Annotated[list[str], "Entries of the file that were copied as they are."]]
    nonfinite: NotRequired[Annotated[dict[str, int], "How many elements are NaN or infinite, of each tensor."]]
    source_digest: Annotated[Hash, "XXH3-128 of the narrow state, as `xxhsum -H2` prints it where it is one file."]
    digest: Annotated[Hash, "Of the state that was written, by the rule of `written`."]


class Comparison(TypedDict):
    """Two tensors that were compared."""

    what: Annotated[str, "What was compared."]
    max_abs: Annotated[Figure, "Largest absolute difference."]
    max_rel: Annotated[Figure, "The same over the largest magnitude of the narrow model's."]


class Distance(TypedDict):
    """How far two parameters are apart."""

    what: Annotated[str, "What was compared."]
    max_rel: Annotated[Figure, "Largest difference over the largest magnitude of the narrow model's."]


class Stored(TypedDict):
    """How far a stored tensor is from the planned one."""

    what: Annotated[str, "Which tensor."]
    units: Annotated[Figure, "Its distance in units in the last place."]


class Training(TypedDict):
    """Whether both models take the same optimizer steps."""

    agrees: Annotated[bool, "Whether they do."]
    steps: Annotated[Count, "How many were taken."]
    optimizer: Annotated[str, "Which, with what."]
    max_rel: Annotated[Figure, "Largest relative difference of the losses."]
    tolerance: Annotated[float, "Largest one that rounding explains."]
    tolerance_reason: Annotated[str, "How that follows."]
    losses: Annotated[
        list[Annotated[list[Figure], "Of the narrow and of the wide model.", limits(minItems=2, maxItems=2)]],
        "Before each step.",
    ]
    weights_tolerance: Annotated[float, "The tolerance for weights."]
    weights: Annotated[Distance, "The parameter that is farthest off in the end."]
    stored: Annotated[Stored, "The stored weight or state that is farthest from the planned one."]
    state_compared: Annotated[bool, "Whether a carried optimizer state was compared."]
    without_noise: Annotated[bool, "Whether the noise was taken away."]
    start: Annotated[str, "From which state both began."]
    first_difference: Annotated[Distance | None, "The first update that went wrong."]


class Weights(TypedDict):
    """Whether every byte is what source, rule and noise make of it."""

    agrees: Annotated[bool, "Whether all of them are."]
    tensors: Annotated[Count, "How many were compared."]
    bytes: Annotated[Count, "Of their data."]
    differences: Annotated[list[str], "What is wrong, each with the tensor's name."]
    optimizer_state: NotRequired[
        Annotated[Weights, "The same for the optimizer's state; absent where none was carried or compared."]
    ]
    optimizer_state_skipped: NotRequired[Annotated[str, "Why a state that was carried was not compared."]]


class VerifiedWith(TypedDict):
    """The options of a verification."""

    dtype: Annotated[str, "As asked for."]
    device: Annotated[str, "As asked for."]
    own_model: Annotated[bool, "Whether `--model` was given."]
    seed: Annotated[int, "Of the inputs."]
    steps: Annotated[Count, "Optimizer steps."]


class Verification(TypedDict):
    """Whether two models agree, and how closely."""

    agrees: Annotated[bool, "Whether everything holds that was planned."]
    dtype: Annotated[str, "In which both models ran."]
    device: Annotated[str, "Where they ran."]
    inputs: Annotated[str, "What they were given."]
    tolerance: Annotated[float, "Largest relative difference that rounding explains."]
    tolerance_reason: Annotated[str, "How that follows from the data types."]
    comparisons: Annotated[list[Comparison], "Of the outputs, each on its own inputs.", limits(minItems=1)]
    modules_compared: Annotated[Count, "Modules whose outputs were compared as well."]
    worst_module: Annotated[Comparison | None, "The one with the largest difference."]
    first_difference: Annotated[Comparison | None, "The first one, in execution order, beyond the tolerance."]
    rounding: Annotated[
        Comparison | None,
        "How far storing scaled tensors in their type moves the outputs; null where nothing is rounded.",
    ]
    rounded_tensors: Annotated[Count, "How many tensors that are."]
    training: Annotated[Training | None, "Whether both take the same steps; null where that was not tried."]
    keeps_function: Annotated[bool, "Whether the models are to agree."]
    unperturbed: Annotated[Verification | None, "The same without the noise; null where there is none."]
    weights: Annotated[Weights | None, "Whether what is stored is what was planned; null where that was not tried."]
    options: NotRequired[Annotated[VerifiedWith, "The options of `mupscale verify`; only in mupscale.json."]]
    modules: NotRequired[
        Annotated[list[Comparison], "Of every module, in execution order; only in what `--json` prints."]
    ]


class Record(Growth):
    """mupscale.json: what was done to a checkpoint."""

    format_version: Annotated[int, "Of mupscale.json.", limits(minimum=FORMAT_VERSION, maximum=FORMAT_VERSION)]
    mupscale_version: Annotated[str, "That wrote it."]
    source: Annotated[LocalSource | HubSource, "The narrow checkpoint."]
    written: Annotated[dict[str, Written], "Every weight file, by name."]
    recipe: Annotated[RecipeUsed, "The architecture."]
    shared: Annotated[dict[str, str], "Tensors that the output lacks, and those that stand for them."]
    omitted: Annotated[list[str], "Tensors that were left out."]
    tie: Annotated[str | None, "fold, config or untie; null where readout and embedding share nothing."]
    rounded: Annotated[list[str], "Tensors whose scaled values are rounded."]
    method: Annotated[Method, "How it grows."]
    perturbation: Annotated[Perturbation | None, "The noise that tells copies apart; null where there is none."]
    noise: Annotated[
        dict[str, Annotated[float, limits(minimum=0)]], "The noise's standard deviation, of each tensor that has some."
    ]
    nonfinite: Annotated[dict[str, int], "How many elements are NaN or infinite, of each tensor that has some."]
    overflowed: Annotated[list[str], "Tensors in which noise went beyond the type."]
    optimizer_state: Annotated[OptimizerState | None, "null where none was carried."]
    verification: Annotated[Verification | None, "The last one; null where there was none."]
