"""The documents that `--json` prints: the type of each, which is its only definition, and its version.

Within a version keys are only added; a key that changes or goes raises the version. Importing this costs milliseconds,
so what only makes a document imports it for type checking.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from mupscale_cli.errors import MupscaleError
from mupscale_cli.record import FORMAT_VERSION
from mupscale_cli.record.schema import NotRequired, Schema, json_schema, limits
from mupscale_cli.record.types import (
    Axis,
    Count,
    Counts,
    Figure,
    Growth,
    Method,
    Parts,
    Perturbation,
    Record,
    Seed,
    Shape,
    Verification,
    Weights,
)


class Trained(TypedDict):
    """The narrow model of the demo."""

    parameters: Annotated[Count, "Of the narrow model."]
    steps: Annotated[Count, "Of training."]
    first_loss: Annotated[float, "In nats a byte."]
    last_loss: Annotated[float, "Mean of the last ten steps."]


class Ran(TypedDict):
    """A command of the demo."""

    command: Annotated[str, "That was run."]
    printed: Annotated[dict[str, Any], "The document that it prints."]


class Demo(TypedDict):
    """What `mupscale demo` did."""

    directory: Annotated[str, "Where the models are."]
    trained: Annotated[Trained, "The narrow model."]
    commands: Annotated[list[Ran], "The commands."]
    prompt: Annotated[str, "What was continued."]
    texts: Annotated[dict[str, str], "Each model's continuation."]
    losses: Annotated[dict[str, Annotated[list[float], "Of each step."]], "Each model's, trained on."]


class Device(TypedDict):
    """Something that torch computes on."""

    name: Annotated[str, "As torch names it."]
    about: Annotated[str, "What it is."]
    bytes: Annotated[Count | None, "Memory."]
    free_bytes: Annotated[Count | None, "Of it."]


class Space(TypedDict):
    """Memory, or room on a disk."""

    bytes: Annotated[Count, "In all."]
    free_bytes: Annotated[Count, "Of them."]


class Disk(Space):
    """The disk of the current folder."""

    folder: Annotated[str, "Where output goes by default."]


class Hub(TypedDict):
    """Settings of the Hub's client; no secrets."""

    hf_home: Annotated[str, "HF_HOME, or what stands for it."]
    cache: Annotated[str, "Where downloads are kept."]
    endpoint: Annotated[str, "Without a user's name and password."]
    offline: Annotated[bool, "Whether nothing is downloaded."]
    token: Annotated[str | None, "Where the token comes from; null where there is none."]
    disk: Annotated[Space | None, "Where downloads are kept; null where the system does not tell."]


class BuiltIn(TypedDict):
    """The built-in recipes."""

    count: Annotated[Count, "How many."]
    folder: Annotated[str, "Where they are."]


class Doctor(TypedDict):
    """What `mupscale doctor` found."""

    mupscale: Annotated[str, "Version."]
    installed_in: Annotated[str, "Folder."]
    python: Annotated[str, "Version."]
    system: Annotated[str, "Operating system and architecture."]
    packages: Annotated[dict[str, str | None], "Versions; null where one is not installed."]
    extras: Annotated[dict[str, bool], "Whether all of each is there."]
    devices: Annotated[list[Device], "What torch computes on."]
    torch_problem: Annotated[str | None, "Why torch cannot be imported."]
    cores: Annotated[Count, "Of the processor."]
    memory: Annotated[Space | None, "null where the system does not tell."]
    disk: Annotated[Disk, "Of the current folder."]
    hub: Annotated[Hub, "Settings of the Hub's client; no secrets."]
    recipes: Annotated[BuiltIn, "Built in."]


class Error(TypedDict):
    """Why a command could not do what was asked."""

    exit_code: Annotated[int, "Of the command."]
    error: Annotated[str, "Its kind."]
    message: Annotated[str, "What failed, and where."]
    excerpt: Annotated[str | None, "Lines that show the place."]
    hint: Annotated[str | None, "What to do."]


class Item(TypedDict):
    """An axis or a size inside of a dimension."""

    what: Annotated[str, "An axis or a size."]
    size: Annotated[Count | None, "Of the narrow model."]
    factor: Annotated[Count | None, "Copies."]
    words: Annotated[str, "What it is."]


class Formula(TypedDict):
    """What something is multiplied by."""

    formula: Annotated[str, "In c, m and factors."]
    value: Annotated[float | None, "null where the factors are open."]


class Consequence(TypedDict):
    """What hyperparameters are multiplied by under some optimizers."""

    optimizers: Annotated[list[str], "For which it is the same."]
    lr: Annotated[Formula, "Of the learning rate."]
    eps: NotRequired[Annotated[Formula, "Of eps; absent where the optimizer has none."]]
    weight_decay: Annotated[Formula, "Of the weight decay."]


class ExplainedPart(TypedDict):
    """A part of a tensor that is scaled alike."""

    coefficient: Annotated[Formula, "c, what a copy is multiplied by."]
    multiplicity: Annotated[Formula, "m, how many copies an element has."]
    hyperparameters: Annotated[list[Consequence], "What training needs."]


class ExplainedTensor(TypedDict):
    """One kind of tensor in words."""

    names: Annotated[list[str], "Tensors of this kind, or the pattern of a rule."]
    rule: Annotated[str, "The pattern that they follow."]
    layout: Annotated[str, "Of the dimensions; keep or omit."]
    when: Annotated[str | None, "The condition under which it is so."]
    dtype: Annotated[str | None, "null without a checkpoint."]
    shape: Annotated[Shape | None, "null without a checkpoint."]
    wide_shape: Annotated[Shape | None, "null without a checkpoint."]
    dims: Annotated[list[Annotated[list[Item], "What one dimension is made of."]], "Every dimension."]
    factors: Annotated[dict[str, int] | None, "Of the axes; null where they are open."]
    parts: Annotated[list[ExplainedPart], "Each part that is scaled alike."]
    remarks: Annotated[list[str], "What else there is to know."]


class Explain(TypedDict):
    """One tensor in words: `--tensor NAME`."""

    recipe: Annotated[str, "Name."]
    tensors: Annotated[list[ExplainedTensor], "Those that were meant."]


class Topic(TypedDict):
    """A page of the manual."""

    topic: Annotated[str, "Its name."]
    title: Annotated[str, "Of the page."]


class Help(TypedDict):
    """The manual: `mupscale help`."""

    topic: Annotated[str | None, "The page; null for the list."]
    title: Annotated[str | None, "Its title."]
    text: Annotated[str | None, "As Markdown."]
    topics: Annotated[list[Topic] | None, "Every page; null of a single page."]


class Narrow(TypedDict):
    """Hyperparameters of the narrow run."""

    lr: Annotated[float, "Learning rate."]
    weight_decay: Annotated[float, "Weight decay."]
    eps: Annotated[float | None, "null where the optimizer has none."]
    betas: Annotated[list[float] | None, "Decay rates of the moments; null for the optimizer's own."]


class Group(TypedDict):
    """A parameter group."""

    tensors: Annotated[list[str], "Parameters, by their names in the model."]
    pattern: Annotated[str, "A regular expression that matches them and no other."]
    lr: Annotated[float, "Learning rate."]
    eps: Annotated[float | None, "null where the optimizer has none."]
    weight_decay: Annotated[float, "Weight decay."]
    clip_weight: Annotated[float, "What the squared norm is multiplied by when clipping."]
    coefficient: Annotated[float | None, "c; null where that of the tensors differs."]
    multiplicity: Annotated[int | None, "m; null where that of the tensors differs."]


class Swept(TypedDict):
    """What a sweep found."""

    lr: Annotated[float, "Learning rate."]
    noise: Annotated[float, "Size of the noise."]
    noise_mode: Annotated[str, "free or preserving."]
    noise_scale: Annotated[str, "What it is relative to."]
    warnings: Annotated[list[str], "Reasons not to rely on it."]


class Hparams(TypedDict):
    """The hyperparameters to continue with: `mupscale hparams`."""

    optimizer: Annotated[str, "Which."]
    narrow: Annotated[Narrow, "Of the narrow run."]
    decoupled_weight_decay: Annotated[bool, "Else it is added to the gradient."]
    formulas: Annotated[dict[str, str], "How each value follows."]
    groups: Annotated[list[Group], "Parameter groups."]
    warnings: Annotated[list[str], "What cannot be exact."]
    advice: Annotated[list[str], "What is known to help or to break transfer."]
    sweep: NotRequired[Annotated[Swept, "What the sweep found; with --from-sweep."]]


class Guidance(TypedDict):
    """The figures of a growth."""

    parameters: Annotated[float, "After over before."]
    flops_per_token: Annotated[Counts, "Floating-point operations, forward."]
    advice: Annotated[list[str], "What is known of such growths."]


class Change(TypedDict):
    """A key of config.json that changes."""

    key: Annotated[str, "Of config.json."]
    before: Annotated[Any, "Any value."]
    after: Annotated[Any, "Any value."]


class PlannedTensor(TypedDict):
    """A tensor of the output."""

    name: Annotated[str, "Of the wide tensor."]
    source: Annotated[str, "The narrow tensor that it is made from."]
    rule: Annotated[str, "The pattern that it follows."]
    dtype: Annotated[str, "As safetensors names it."]
    shape: Shape
    wide_shape: Shape
    layout: Annotated[str, "Of the dimensions."]
    parts: Parts
    bytes: Annotated[Count, "Of the narrow tensor."]
    wide_bytes: Annotated[Count, "Of the wide one."]
    rounded: Annotated[bool, "Whether scaled values are rounded."]


class Tree(TypedDict):
    """A module of a network, or a tensor of it."""

    name: Annotated[str, "Of the module or tensor; of several that are alike, their range."]
    tensors: Annotated[Count, "How many it has."]
    bytes: Annotated[Count, "Of the narrow ones."]
    wide_bytes: Annotated[Count, "Of the wide ones."]
    children: NotRequired[Annotated[list[Tree], "What the module is made of; a tensor has none."]]
    dtype: NotRequired[Annotated[str, "Of a tensor."]]
    shape: NotRequired[Shape]
    wide_shape: NotRequired[Shape]
    rule: NotRequired[Annotated[str, "The pattern that a tensor follows."]]
    layout: NotRequired[Annotated[str, "Of its dimensions."]]
    parts: NotRequired[Parts]


class Plan(TypedDict):
    """What `mupscale widen --dry-run` would do."""

    recipe: Annotated[str, "Name of the recipe."]
    output: Annotated[str | None, "Where it would be written."]
    axes: Annotated[dict[str, Axis], "Every axis of the recipe, by name."]
    parameters: Annotated[Counts, "Number of parameters."]
    method: Annotated[Method, "How it grows."]
    perturbation: Annotated[Perturbation | None, "The noise that tells copies apart; null where there is none."]
    growth: Annotated[Guidance | None, "What this growth is; null where nothing is widened."]
    bytes: Annotated[Count, "Of the weights."]
    files: Annotated[dict[str, Count], "Bytes of every weight file."]
    config: Annotated[list[Change], "What changes in config.json."]
    omitted: Annotated[list[str], "Tensors that are left out."]
    tensors: Annotated[list[PlannedTensor], "Every tensor of the output."]
    tree: Annotated[list[Tree], "The same as a tree of modules, with those that are alike once."]


class Inspect(Plan):
    """What is in a checkpoint: `mupscale inspect`."""

    path: Annotated[str, "Of the checkpoint, or its id on the Hub."]
    record: Annotated[Record | None, "How it came to be; null where mupscale did not write it."]


class Plot(TypedDict):
    """What `mupscale plot` drew."""

    output: Annotated[str, "The picture."]


class PushedFile(TypedDict):
    """A file of a push."""

    path: Annotated[str, "In the repository."]
    bytes: Annotated[Count | None, "Size; null of one that is removed."]
    status: Annotated[Literal["new", "changed", "unchanged", "deleted"], "What happens to it."]


class Push(TypedDict):
    """What `mupscale push` did, or with --dry-run would do."""

    repo: Annotated[str, "On the Hub."]
    revision: Annotated[str, "The branch."]
    url: Annotated[str | None, "Of the repository or pull request; null where nothing was sent."]
    commit: Annotated[str | None, "That it made."]
    pull_request: Annotated[int | None, "Its number."]
    files: Annotated[list[PushedFile], "Every file."]
    card: Annotated[str, "The model card."]
    warnings: Annotated[list[str], "What to know before."]


class Trial(TypedDict):
    """One way in which a recipe was tried."""

    factors: Annotated[dict[str, int], "Of the axes that were widened."]
    tie: Annotated[str | None, "Where the readout's factor went."]
    error: Annotated[Figure | None, "Largest relative difference."]
    problem: Annotated[str | None, "What went wrong."]


class TriedModel(TypedDict):
    """A model that a recipe was tried on."""

    model: Annotated[str, "Which one."]
    right: Annotated[bool, "Whether nothing is wrong."]
    problem: Annotated[str | None, "Why it came to nothing."]
    mistakes: Annotated[list[str], "Seen without running it."]
    worst: Annotated[Figure | None, "Largest difference of all trials."]
    trials: Annotated[list[Trial], "Widenings."]


class RecipeCheck(TypedDict):
    """What `mupscale recipes check` found."""

    recipe: Annotated[str, "Name."]
    file: Annotated[str, "Where it was read."]
    right: Annotated[bool, "Whether nothing is wrong."]
    axes: Annotated[Count, "How many."]
    rules: Annotated[Count, "How many."]
    tensors: Annotated[Count | None, "Of the checkpoint that it was held against."]
    models: Annotated[list[TriedModel], "That it was tried on."]


class RecipeDraft(TypedDict):
    """What `mupscale recipes infer` drafted."""

    target: Annotated[str, "A model type, config or function."]
    output: Annotated[str | None, "The file that was written."]
    recipe: Annotated[str, "The recipe, as YAML."]
    fixed: Annotated[dict[str, str], "Axes that cannot be widened, and why."]
    worst: Annotated[float, "Largest relative difference of its proof."]


class RecipeAxis(TypedDict):
    """An axis of a recipe."""

    name: Annotated[str, "Of the axis."]
    about: Annotated[str, "In words."]
    size: Annotated[str, "An expression over config.json."]
    by_factor: Annotated[bool, "Whether a bare --factor widens it."]
    fixed: Annotated[str | None, "Why it cannot be widened."]
    grows: Annotated[list[str], "Parts of the model that grow with it."]
    doubled: Annotated[str | None, "What twice of it makes of the parameters; null without a checkpoint."]


class Choice(TypedDict):
    """A layout of a rule, and its condition."""

    layout: Annotated[str, "Of the dimensions."]
    when: Annotated[str | None, "A condition on the config; null for the others."]


class RecipeRule(TypedDict):
    """A rule of a recipe."""

    pattern: Annotated[str, "Of tensor names."]
    choices: Annotated[list[Choice], "The first one whose condition holds."]


class Recipe(TypedDict):
    """A recipe: `mupscale recipes show`."""

    name: Annotated[str, "Of the recipe."]
    about: Annotated[str, "In words."]
    model_types: Annotated[list[str], "Of config.json."]
    file: Annotated[str, "Where it was read."]
    sha256: Annotated[str, "Of its content."]
    axes: Annotated[list[RecipeAxis], "Sets of interchangeable units."]
    groups: Annotated[dict[str, Annotated[list[str], "Axes."]], "Names that stand for several axes."]
    linked: Annotated[dict[str, str], "Axes that the config ties together."]
    tie: Annotated[list[str] | None, "Where a shared readout's factor can go: fold, config, untie; the default first."]
    tensors: Annotated[list[RecipeRule], "The rules."]
    definitions: Annotated[dict[str, str], "Names for expressions."]


class ListedRecipe(TypedDict):
    """A recipe in the list of all."""

    name: Annotated[str, "Of the recipe."]
    model_types: Annotated[list[str], "Of config.json."]
    about: Annotated[str, "In words."]
    axes: Annotated[list[str], "Names."]


class Recipes(TypedDict):
    """The built-in recipes: `mupscale recipes list`."""

    recipes: Annotated[list[ListedRecipe], "All of them."]


class StepError(TypedDict):
    """Why a step failed."""

    error: Annotated[str, "Its kind."]
    message: Annotated[str, "What failed."]
    hint: Annotated[str | None, "What to do."]


class Step(TypedDict):
    """A step of a job file."""

    number: Annotated[int, "From 1.", limits(minimum=1)]
    kind: Annotated[Literal["widen", "verify", "push"], "What it does."]
    title: Annotated[str, "In words."]
    status: Annotated[Literal["to do", "done", "skipped", "differs", "failed", "not run"], "What came of it."]
    reason: Annotated[str, "Why."]
    target: Annotated[str, "What it writes or works on."]
    parameters: Annotated[Counts | None, "Of a widening."]
    disk_bytes: Annotated[Count, "To write."]
    download_bytes: Annotated[Count, "To fetch from the Hub."]
    memory_bytes: Annotated[Count, "At most."]
    verification: Annotated[Verification | Weights | None, "Of a step that verified."]
    url: Annotated[str | None, "Of a push."]
    error: Annotated[StepError | None, "Why it failed."]


class JobDisk(TypedDict):
    """A file system that a job writes to."""

    place: Annotated[str, "A directory on it."]
    needed: Annotated[Count, "Bytes."]
    free: Annotated[Count, "Bytes."]
    has_room: Annotated[bool, "Whether that is enough."]


class JobMemory(TypedDict):
    """Memory that a job needs."""

    needed: Annotated[Count, "Bytes, at most."]
    free: Annotated[Count | None, "Bytes; null where the system does not tell."]


class Run(TypedDict):
    """What `mupscale run` did, or with --dry-run would do."""

    file: Annotated[str, "The job file."]
    dry_run: Annotated[bool, "Whether nothing was done."]
    exit_code: Annotated[int, "Of the command."]
    steps: Annotated[list[Step], "In their order."]
    disks: Annotated[list[JobDisk], "Every file system that is written to."]
    download_bytes: Annotated[Count, "Of all steps."]
    memory: Annotated[JobMemory, "Of this machine."]


class SweptState(TypedDict):
    """The optimizer's state that every trial starts from."""

    path: Annotated[str, "auto, none or a path."]
    policy: Annotated[str, "What copies are given."]


class SweptTraining(TypedDict):
    """What the built-in trainer does."""

    steps: Annotated[Count, "Optimizer steps."]
    batch_size: Annotated[Count, "Sequences a step."]
    length: Annotated[Count, "Tokens a sequence."]
    weight_decay: Annotated[float, "Decoupled, of the matrices."]
    betas: Annotated[list[float], "Decay rates of the moments.", limits(minItems=2, maxItems=2)]
    eps: Annotated[float, "Of the optimizer."]
    clip: Annotated[float, "Largest norm of the gradient; 0 for no clipping."]
    schedule: Annotated[str, "constant or cosine."]
    warmup: Annotated[Count, "Steps of linear warm-up."]
    optimizer: Annotated[str, "Which."]


class SweptProxy(Growth):
    """A narrow model that a sweep made, and how the checkpoint follows from it."""

    ratio: Annotated[int, "Width of the checkpoint over that of the proxy.", limits(minimum=1)]
    steps: Annotated[Count, "For which it was trained."]


class Settings(TypedDict):
    """What every trial of a sweep has in common."""

    checkpoint: Annotated[str, "What was widened."]
    axes: Annotated[dict[str, int], "Factors of single axes."]
    recipe: Annotated[str | None, "As asked for."]
    tie: Annotated[str | None, "As asked for."]
    optimizer_state: Annotated[SweptState, "What every trial starts from."]
    noise_mode: Annotated[str, "free or preserving."]
    noise_scale: Annotated[str, "What the size of noise is relative to."]
    training: Annotated[SweptTraining | None, "What the built-in trainer does; null with a command."]
    data: Annotated[str | None, "What is trained on."]
    command: Annotated[str | None, "The own trainer."]


class Grid(TypedDict):
    """What a sweep tries."""

    factors: Annotated[list[int], "Widths."]
    lrs: Annotated[list[float], "Learning rates."]
    noises: Annotated[list[float], "Sizes of noise."]
    seeds: Annotated[list[Seed], "Of noise and batches."]


class SweepTrial(TypedDict):
    """A finished trial of a sweep."""

    factor: Annotated[int, "Width."]
    noise: Annotated[float, "Its size."]
    lr: Annotated[float, "Learning rate."]
    seed: Annotated[Seed, "Of noise and batches."]
    loss: Annotated[float | None, "null where it diverged."]
    diverged: Annotated[bool, "Whether it did."]


class Cell(TypedDict):
    """A point of a sweep's grid over all seeds."""

    factor: Annotated[int, "Width, over the narrow model's."]
    noise: Annotated[float, "Its size."]
    lr: Annotated[float, "Learning rate."]
    loss: Annotated[float | None, "Mean over seeds; null where one diverged."]
    spread: Annotated[float, "Half of the range over seeds."]
    num_seeds: Annotated[Count, "Trials."]
    num_diverged: Annotated[Count, "Of them."]


class Recommendation(TypedDict):
    """What a sweep recommends."""

    lr: Annotated[float, "Learning rate.", limits(minimum=0)]
    noise: Annotated[float, "Its size.", limits(minimum=0)]
    noise_mode: Annotated[str, "free or preserving."]
    noise_scale: Annotated[str, "What it is relative to."]
    target: Annotated[int | None, "The width that is wanted."]
    lr_shift: Annotated[Count, "Grid steps between the widths' best learning rates."]
    noise_shift: Annotated[Count, "The same of noise."]
    warnings: Annotated[list[str], "Reasons not to rely on it."]


class Sweep(Settings):
    """What `mupscale sweep` found; also the content of its sweep.json."""

    complete: Annotated[bool, "Whether every trial is done."]
    grid: Annotated[Grid, "What is tried."]
    trials: Annotated[list[SweepTrial], "Finished ones."]
    cells: Annotated[list[Cell], "The same over all seeds."]
    optima: Annotated[list[Cell], "The best one of each width."]
    recommendation: Annotated[Recommendation | None, "null where every trial diverged."]
    proxy: Annotated[SweptProxy | None, "How the checkpoint follows from the proxy; null without one."]


class Verify(Verification):
    """What `mupscale verify` found."""

    wide: Annotated[str, "What was verified."]


class VerifyWeights(Weights):
    """What `mupscale verify --weights` found."""

    wide: Annotated[str, "What was verified."]


class Pushed(TypedDict):
    """Where a widened checkpoint was published."""

    repo: Annotated[str, "On the Hub."]
    url: Annotated[str, "Of the repository or pull request."]
    commit: Annotated[str, "That it made."]


class Widen(Record):
    """What `mupscale widen` did: its record, and where it is."""

    output: Annotated[str | None, "What was written; null where the models differ."]
    pushed: Annotated[Pushed | None, "null where nothing was published."]


DOCUMENTS: dict[str, type] = {
    "demo": Demo,
    "doctor": Doctor,
    "error": Error,
    "explain": Explain,
    "help": Help,
    "hparams": Hparams,
    "inspect": Inspect,
    "plan": Plan,
    "plot": Plot,
    "push": Push,
    "recipe-check": RecipeCheck,
    "recipe-draft": RecipeDraft,
    "recipe": Recipe,
    "recipes": Recipes,
    "record": Record,  # mupscale.json
    "run": Run,
    "sweep": Sweep,
    "verify": Verify,
    "verify-weights": VerifyWeights,
    "widen": Widen,
}
VERSIONS = {**dict.fromkeys(DOCUMENTS, 1), "record": FORMAT_VERSION}


def document_head(name: str) -> dict[str, Any]:
    """The keys that every document begins with: its name and its version."""
    return {"schema": name, "schema_version": VERSIONS[name]}


def load_schema(name: str) -> Schema:
    """The JSON Schema of a document, generated from its type.

    Raises:
        MupscaleError: there is no such document.
    """
    if name not in DOCUMENTS:
        raise MupscaleError(f"there is no schema `{name}`", hint=f"known: {', '.join(DOCUMENTS)}")
    is_record = name == "record"  # mupscale.json has its version under a key of its own
    head = {} if is_record else {key: {"const": value} for key, value in document_head(name).items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:mupscale:{name}" + ("" if is_record else f":{VERSIONS[name]}"),
        **json_schema(DOCUMENTS[name], head),
    }
