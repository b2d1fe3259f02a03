"""Define the documents that `--json` prints, each by its type and version.

Within a version, keys are only added; changing or removing a key raises the version. Importing this module takes
milliseconds, so code that only creates documents imports it for type checking only.
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
)


class Trained(TypedDict):
    """The narrow model of the demo."""

    parameters: Annotated[Count, "Number of parameters."]
    steps: Annotated[Count, "Number of training steps."]
    first_loss: Annotated[float, "Loss of the first step, in nats per byte."]
    last_loss: Annotated[float, "Mean loss of the last ten steps, in nats per byte."]


class Ran(TypedDict):
    """A command of the demo."""

    command: Annotated[str, "The command line."]
    printed: Annotated[dict[str, Any], "The document that it printed."]


class Demo(TypedDict):
    """Output of `mupscale demo`."""

    directory: Annotated[str, "Folder of the models."]
    trained: Annotated[Trained, "The narrow model."]
    commands: Annotated[list[Ran], "The commands."]
    prompt: Annotated[str, "Prompt of the continuations."]
    texts: Annotated[dict[str, str], "Continuation of the prompt, by model."]
    losses: Annotated[
        dict[str, Annotated[list[float], "Loss of each step."]], "Losses of continued training, by model."
    ]


class Device(TypedDict):
    """A device of torch."""

    name: Annotated[str, "Name in torch."]
    about: Annotated[str, "Description."]
    bytes: Annotated[Count | None, "Memory in bytes; null if it uses the machine's memory."]
    free_bytes: Annotated[Count | None, "Free memory in bytes; null if it uses the machine's memory."]


class Space(TypedDict):
    """Size of memory or of a disk."""

    bytes: Annotated[Count, "Total bytes."]
    free_bytes: Annotated[Count, "Free bytes."]


class Disk(Space):
    """The disk of the current folder."""

    folder: Annotated[str, "The current folder, where outputs go by default."]


class Hub(TypedDict):
    """Settings of the Hub's client, without secrets."""

    hf_home: Annotated[str, "HF_HOME or its default."]
    cache: Annotated[str, "Folder of downloads."]
    endpoint: Annotated[str, "Address of the Hub, without user name and password."]
    offline: Annotated[bool, "Whether downloads are disabled."]
    token: Annotated[str | None, "Where the token comes from; null if there is none."]
    disk: Annotated[Space | None, "Disk of the cache; null if unknown."]


class BuiltIn(TypedDict):
    """The built-in recipes."""

    count: Annotated[Count, "Number of recipes."]
    folder: Annotated[str, "Folder of the recipes."]


class Doctor(TypedDict):
    """Output of `mupscale doctor`."""

    mupscale: Annotated[str, "Version of mupscale."]
    installed_in: Annotated[str, "Folder that mupscale is installed in."]
    python: Annotated[str, "Version of Python."]
    system: Annotated[str, "Operating system and architecture."]
    packages: Annotated[dict[str, str | None], "Version of each package; null if it is not installed."]
    extras: Annotated[dict[str, bool], "Whether each extra is completely installed."]
    devices: Annotated[list[Device], "Devices of torch."]
    torch_problem: Annotated[str | None, "Why torch cannot be imported; null if it can."]
    cores: Annotated[Count, "Number of usable processor cores."]
    memory: Annotated[Space | None, "Memory of the machine; null if unknown."]
    disk: Annotated[Disk, "Disk of the current folder."]
    hub: Annotated[Hub, "Settings of the Hub's client, without secrets."]
    recipes: Annotated[BuiltIn, "The built-in recipes."]


class Error(TypedDict):
    """An error of a command."""

    exit_code: Annotated[int, "Exit code of the command."]
    error: Annotated[str, "Class of the error."]
    message: Annotated[str, "What is wrong, and where."]
    excerpt: Annotated[str | None, "Lines of the input that show the error."]
    hint: Annotated[str | None, "How to fix it."]


class Item(TypedDict):
    """An axis or a fixed size within a dimension."""

    what: Annotated[str, "Name of the axis, or the size."]
    size: Annotated[Count | None, "Size in the narrow model."]
    factor: Annotated[Count | None, "Number of copies."]
    words: Annotated[str, "Description."]


class Formula(TypedDict):
    """A factor as a formula and a value."""

    formula: Annotated[str, "Formula in c, m and axis factors."]
    value: Annotated[float | None, "Value; null if the axis factors are unknown."]


class Consequence(TypedDict):
    """Factors of the hyperparameters for some optimizers."""

    optimizers: Annotated[list[str], "Optimizers with these factors."]
    lr: Annotated[Formula, "Factor of the learning rate."]
    eps: NotRequired[Annotated[Formula, "Factor of eps; absent if the optimizer has none."]]
    weight_decay: NotRequired[Annotated[Formula, "Factor of the weight decay; absent if the optimizer has none."]]


class ExplainedPart(TypedDict):
    """A part of a tensor with one coefficient and multiplicity."""

    coefficient: Annotated[Formula, "Coefficient c: the factor that each copy is multiplied by."]
    multiplicity: Annotated[Formula, "Multiplicity m: the number of copies of each element."]
    hyperparameters: Annotated[list[Consequence], "Factors of the hyperparameters in training."]


class ExplainedTensor(TypedDict):
    """An explanation of one kind of tensor."""

    names: Annotated[list[str], "Tensors of this kind, or the pattern of a rule."]
    rule: Annotated[str, "Pattern of the rule for these tensors."]
    layout: Annotated[str, "Layout of the dimensions; keep or omit."]
    when: Annotated[str | None, "Condition of the layout; null if it has none."]
    dtype: Annotated[str | None, "Data type; null without a checkpoint."]
    shape: Annotated[Shape | None, "Narrow shape; null without a checkpoint."]
    wide_shape: Annotated[Shape | None, "Wide shape; null without a checkpoint."]
    dims: Annotated[list[Annotated[list[Item], "Axes and sizes of a dimension."]], "The dimensions."]
    factors: Annotated[dict[str, int] | None, "Factors of the axes; null if they are unknown."]
    parts: Annotated[list[ExplainedPart], "Parts with one coefficient and multiplicity each."]
    remarks: Annotated[list[str], "Further remarks."]


class Explain(TypedDict):
    """An explanation of tensors: `--tensor NAME`."""

    recipe: Annotated[str, "Name of the recipe."]
    tensors: Annotated[list[ExplainedTensor], "Tensors that match NAME."]


class Topic(TypedDict):
    """A page of the manual."""

    topic: Annotated[str, "Name of the page."]
    title: Annotated[str, "Title of the page."]


class Help(TypedDict):
    """The manual: `mupscale help`."""

    topic: Annotated[str | None, "Name of the page; null for the list of pages."]
    title: Annotated[str | None, "Title of the page; null for the list of pages."]
    text: Annotated[str | None, "Text of the page as Markdown; null for the list of pages."]
    topics: Annotated[list[Topic] | None, "All pages; null for a single page."]


class Version(TypedDict):
    """The version: `mupscale version`."""

    version: Annotated[str, "Version of mupscale."]


class Narrow(TypedDict):
    """Hyperparameters of the narrow run."""

    lr: Annotated[float | None, "Learning rate; null if the optimizer computes its own."]
    weight_decay: Annotated[float, "Weight decay."]
    eps: Annotated[float | None, "eps; null if the optimizer has none."]
    betas: Annotated[list[float] | None, "Decay rates of the moments; null for the optimizer's defaults."]
    sources: Annotated[
        dict[str, Literal["option", "sweep", "state", "default"]],
        "Where each hyperparameter comes from; `state` is the optimizer state that was widened.",
    ]


class Group(TypedDict):
    """A parameter group."""

    tensors: Annotated[list[str], "Names of the parameters in the model."]
    pattern: Annotated[str, "Regular expression that matches exactly these parameters."]
    lr: Annotated[float | None, "Learning rate; null if the optimizer computes its own."]
    eps: Annotated[float | None, "eps; null if the optimizer has none."]
    weight_decay: Annotated[float, "Weight decay."]
    clip_weight: Annotated[float, "Factor of the squared norm in gradient clipping."]
    coefficient: Annotated[float | None, "Coefficient c; null if the tensors differ."]
    multiplicity: Annotated[int | None, "Multiplicity m; null if the tensors differ."]


class Swept(TypedDict):
    """The recommendation of a sweep."""

    lr: Annotated[float, "Learning rate."]
    noise: Annotated[float, "Size of the noise."]
    noise_mode: Annotated[str, "Mode of the noise: free, preserving or mixed."]
    noise_scale: Annotated[str, "What the size of the noise is relative to."]
    noise_on: Annotated[list[str], "Patterns of the names of tensors that get noise; empty for every matrix."]
    warnings: Annotated[list[str], "Reasons not to rely on the recommendation."]


class Hparams(TypedDict):
    """Hyperparameters to continue training with: `mupscale hparams`."""

    optimizer: Annotated[str, "Name of the optimizer."]
    narrow: Annotated[Narrow, "Hyperparameters of the narrow run."]
    decoupled_weight_decay: Annotated[bool, "Whether weight decay is decoupled instead of added to the gradient."]
    formulas: Annotated[dict[str, str], "Formula of each hyperparameter."]
    groups: Annotated[list[Group], "Parameter groups."]
    warnings: Annotated[list[str], "What the hyperparameters cannot reproduce exactly."]
    advice: Annotated[list[str], "Known benefits and risks for hyperparameter transfer."]
    sweep: NotRequired[Annotated[Swept, "Recommendation of the sweep; only with --from-sweep."]]


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


class Plot(TypedDict):
    """Output of `mupscale plot`."""

    output: Annotated[str, "Path of the picture."]


class PushedFile(TypedDict):
    """A file of a push."""

    path: Annotated[str, "Path in the repository."]
    bytes: Annotated[Count | None, "Size in bytes; null for a deleted file."]
    status: Annotated[
        Literal["new", "changed", "unchanged", "deleted", "unknown"],
        "What the push does to the file; unknown in a dry run if the Hub does not answer.",
    ]


class Push(TypedDict):
    """Output of `mupscale push`, with or without --dry-run."""

    repo: Annotated[str, "Repository on the Hub."]
    revision: Annotated[str, "Branch of the repository."]
    url: Annotated[str | None, "Address of the repository or pull request; null if nothing was sent."]
    commit: Annotated[str | None, "The new commit; null if there is none."]
    pull_request: Annotated[int | None, "Number of the pull request; null if there is none."]
    files: Annotated[list[PushedFile], "All files of the push."]
    card: Annotated[str, "Text of the model card."]
    warnings: Annotated[list[str], "Warnings."]


class Trial(TypedDict):
    """A trial widening of a recipe."""

    factors: Annotated[dict[str, float], "Factor of each widened axis."]
    tie: Annotated[str | None, "Treatment of a tied readout; null for the recipe's default."]
    error: Annotated[Figure | None, "Largest relative difference; null if the models were not compared."]
    problem: Annotated[str | None, "What went wrong; null if nothing did."]
    refusal: Annotated[str | None, "Why these sizes are impossible, which is no mistake; null if they are possible."]


class TriedModel(TypedDict):
    """A model that a recipe was checked on."""

    model: Annotated[str, "Name or path of the model."]
    right: Annotated[bool, "Whether the check found no mistakes."]
    problem: Annotated[str | None, "Why the check was impossible; null if it was possible."]
    mistakes: Annotated[list[str], "Mistakes visible without running the model."]
    worst: Annotated[Figure | None, "Largest relative difference of all trials."]
    trials: Annotated[list[Trial], "Trial widenings."]


class RecipeCheck(TypedDict):
    """Output of `mupscale recipes check`."""

    recipe: Annotated[str, "Name of the recipe."]
    file: Annotated[str, "File of the recipe."]
    right: Annotated[bool, "Whether the check found no mistakes."]
    axes: Annotated[Count, "Number of axes."]
    rules: Annotated[Count, "Number of rules."]
    tensors: Annotated[Count | None, "Number of tensors of the checkpoint; null without a checkpoint."]
    models: Annotated[list[TriedModel], "Models that the recipe was checked on."]


class RecipeDraft(TypedDict):
    """Output of `mupscale recipes infer`."""

    target: Annotated[str, "Model type, config or function."]
    output: Annotated[str | None, "Path of the written file; null if there is none."]
    recipe: Annotated[str, "Text of the recipe, as YAML."]
    fixed: Annotated[dict[str, str], "Axes that cannot be widened, with reasons."]
    worst: Annotated[float, "Largest relative difference of all proofs."]


class RecipeAxis(TypedDict):
    """An axis of a recipe."""

    name: Annotated[str, "Name of the axis."]
    about: Annotated[str, "Description."]
    size: Annotated[str, "Size as an expression over config.json."]
    by_factor: Annotated[bool, "Whether a bare --factor widens it."]
    fixed: Annotated[str | None, "Why it cannot be widened; null if it can."]
    grows: Annotated[list[str], "Parts of the model that grow with the axis."]
    doubled: Annotated[
        str | None, "Effect of doubling the axis on the number of parameters; null without a checkpoint."
    ]


class Choice(TypedDict):
    """A layout of a rule and its condition."""

    layout: Annotated[str, "Layout of the dimensions."]
    when: Annotated[str | None, "Condition on the config; null if it always applies."]


class RecipeRule(TypedDict):
    """A rule of a recipe."""

    pattern: Annotated[str, "Pattern of the tensor names."]
    choices: Annotated[list[Choice], "Layouts; the first one whose condition holds applies."]


class Recipe(TypedDict):
    """A recipe: `mupscale recipes show`."""

    name: Annotated[str, "Name of the recipe."]
    about: Annotated[str, "Description."]
    match: Annotated[dict[str, Annotated[list[str], "Values, or wildcards."]], "Config keys that choose the recipe."]
    file: Annotated[str, "File of the recipe."]
    sha256: Annotated[str, "SHA-256 of its content."]
    axes: Annotated[list[RecipeAxis], "Sets of interchangeable units."]
    groups: Annotated[dict[str, Annotated[list[str], "Names of the axes."]], "Names for several axes."]
    linked: Annotated[dict[str, str], "Axes that the config links to others."]
    tie: Annotated[list[str] | None, "Treatments of a tied readout: fold, config, untie; the default comes first."]
    tensors: Annotated[list[RecipeRule], "The rules."]
    definitions: Annotated[dict[str, str], "Named expressions."]


class ListedRecipe(TypedDict):
    """An entry in the list of recipes."""

    name: Annotated[str, "Name of the recipe."]
    match: Annotated[dict[str, Annotated[list[str], "Values, or wildcards."]], "Config keys that choose the recipe."]
    about: Annotated[str, "Description."]
    axes: Annotated[list[str], "Names of the axes."]


class Recipes(TypedDict):
    """The built-in recipes: `mupscale recipes list`."""

    recipes: Annotated[list[ListedRecipe], "All built-in recipes."]


class CoveredType(TypedDict):
    """A model type of transformers."""

    name: Annotated[str, "Value of `model_type` in config.json."]
    tasks: Annotated[list[str], "Tasks that transformers has a class for."]
    outcome: Annotated[
        Literal["recipe", "refused", "drafted", "failed", "none"],
        "What mupscale has for it; `drafted` or `failed` if drafting was tried.",
    ]
    detail: Annotated[str, "Recipes, axes of the draft, or the reason; empty if there is none."]


class Coverage(TypedDict):
    """The model types of transformers and the recipes: `mupscale recipes coverage`."""

    types: Annotated[list[CoveredType], "The model types, by name."]


class StepError(TypedDict):
    """The error of a failed step."""

    error: Annotated[str, "Class of the error."]
    message: Annotated[str, "What is wrong, and where."]
    hint: Annotated[str | None, "How to fix it."]


class Step(TypedDict):
    """A step of a job file."""

    number: Annotated[int, "Number of the step, from 1.", limits(minimum=1)]
    kind: Annotated[Literal["widen", "verify", "push"], "Action of the step."]
    title: Annotated[str, "Description."]
    status: Annotated[Literal["to do", "done", "skipped", "differs", "failed", "not run"], "Status or result."]
    reason: Annotated[str, "Why it has this status."]
    target: Annotated[str, "Path that it writes, verifies or pushes."]
    parameters: Annotated[Counts | None, "Numbers of parameters of a widening; null for other steps."]
    disk_bytes: Annotated[Count, "Bytes to write."]
    download_bytes: Annotated[Count, "Bytes to download from the Hub."]
    memory_bytes: Annotated[Count, "Peak memory in bytes."]
    verification: Annotated[Verification | None, "Result of the verification; null if there is none."]
    url: Annotated[str | None, "Address of a pushed repository or pull request; null for other steps."]
    error: Annotated[StepError | None, "Error of a failed step; null for other steps."]


class Run(TypedDict):
    """Output of `mupscale run`, with or without --dry-run."""

    file: Annotated[str, "The job file."]
    dry_run: Annotated[bool, "Whether the steps were only planned."]
    exit_code: Annotated[int, "Exit code of the command."]
    steps: Annotated[list[Step], "The steps in order."]
    disks: Annotated[list[DiskNeeds], "File systems that the job writes to, the Hub's cache included."]
    download_bytes: Annotated[Count, "Bytes that all steps download."]
    memory: Annotated[MemoryNeeds, "Memory of this machine."]


class SweptState(TypedDict):
    """The optimizer state that every trial starts from."""

    path: Annotated[str, "auto, none or a path."]
    policy: Annotated[str, "How the moments of copies are initialized."]


class SweptTraining(TypedDict):
    """Settings of the built-in trainer."""

    steps: Annotated[Count, "Number of optimizer steps."]
    batch_size: Annotated[Count, "Sequences per step."]
    length: Annotated[Count, "Tokens per sequence."]
    weight_decay: Annotated[float, "Decoupled weight decay of matrices."]
    betas: Annotated[list[float], "Decay rates of the moments.", limits(minItems=2, maxItems=2)]
    eps: Annotated[float, "eps of the optimizer."]
    clip: Annotated[float, "Maximum norm of the gradient; 0 disables clipping."]
    schedule: Annotated[str, "Schedule of the learning rate: constant or cosine."]
    warmup: Annotated[Count, "Steps of linear warm-up."]
    optimizer: Annotated[str, "Name of the optimizer."]


class SweptProxy(Growth):
    """The proxy of a sweep, and how the checkpoint follows from it."""

    ratio: Annotated[int, "Width of the checkpoint over that of the proxy.", limits(minimum=1)]
    steps: Annotated[Count, "Number of steps that the proxy was trained for."]


class Settings(TypedDict):
    """The settings shared by all trials of a sweep."""

    checkpoint: Annotated[str, "Path or id of the checkpoint to widen."]
    axes: Annotated[dict[str, int], "Factors of single axes."]
    recipe: Annotated[str | None, "Requested recipe; null for the default."]
    reading: Annotated[list[str], "Options that say how to read the checkpoint: --set, --layout, --weights-key."]
    tie: Annotated[str | None, "Requested treatment of a tied readout; null for the default."]
    optimizer_state: Annotated[SweptState, "Optimizer state that every trial starts from."]
    noise_mode: Annotated[str, "Mode of the noise: free, preserving or mixed."]
    noise_scale: Annotated[str, "What the size of the noise is relative to."]
    noise_on: Annotated[list[str], "Patterns of the names of tensors that get noise; empty for every matrix."]
    training: Annotated[SweptTraining | None, "Settings of the built-in trainer; null with a user-defined command."]
    data: Annotated[str | None, "Training data; null with a user-defined command."]
    command: Annotated[str | None, "User-defined training command; null for the built-in trainer."]


class Grid(TypedDict):
    """The grid of a sweep."""

    factors: Annotated[list[int], "Factors of the width."]
    lrs: Annotated[list[float], "Learning rates."]
    noises: Annotated[list[float], "Sizes of noise."]
    seeds: Annotated[list[Seed], "Random seeds of noise and batches."]


class SweepTrial(TypedDict):
    """A finished trial of a sweep."""

    factor: Annotated[int, "Factor of the width."]
    noise: Annotated[float, "Size of the noise."]
    lr: Annotated[float, "Learning rate."]
    seed: Annotated[Seed, "Random seed of noise and batches."]
    loss: Annotated[float | None, "Final loss; null if the trial diverged."]
    diverged: Annotated[bool, "Whether the trial diverged."]


class Cell(TypedDict):
    """A point of a sweep's grid, over all seeds."""

    factor: Annotated[int, "Factor of the width."]
    noise: Annotated[float, "Size of the noise."]
    lr: Annotated[float, "Learning rate."]
    loss: Annotated[float | None, "Mean loss over the seeds; null if a trial diverged."]
    spread: Annotated[float, "Half of the range over the seeds."]
    num_seeds: Annotated[Count, "Number of trials."]
    num_diverged: Annotated[Count, "Number of diverged trials."]


class Recommendation(TypedDict):
    """The recommendation of a sweep."""

    lr: Annotated[float, "Learning rate.", limits(minimum=0)]
    noise: Annotated[float, "Size of the noise.", limits(minimum=0)]
    noise_mode: Annotated[str, "Mode of the noise: free, preserving or mixed."]
    noise_scale: Annotated[str, "What the size of the noise is relative to."]
    noise_on: Annotated[list[str], "Patterns of the names of tensors that get noise; empty for every matrix."]
    target: Annotated[int | None, "Requested factor of the width; null if there is none."]
    lr_shift: Annotated[Count, "Grid steps between the best learning rates of the widths."]
    noise_shift: Annotated[Count, "Grid steps between the best noise sizes of the widths."]
    warnings: Annotated[list[str], "Reasons not to rely on the recommendation."]


class TrialCost(TypedDict):
    """Operations of a trained model."""

    factor: Annotated[int, "Width over that of the narrow model."]
    flops_per_token: Annotated[int, "FLOPs of a forward pass per token."]


class SweepCost(TypedDict):
    """What a sweep costs. FLOPs are those of a forward pass per token."""

    target: Annotated[int, "FLOPs of the large model."]
    trials: Annotated[list[TrialCost], "FLOPs of the trained models."]
    proxy: Annotated[int | None, "FLOPs of the proxy; null without one."]
    saved: Annotated[float, "How many times cheaper a trial is than one at the target, on average."]
    total: Annotated[
        float | None,
        "All trials and the training of the proxy, in trials at the target; null with a user-defined command.",
    ]


class Sweep(Settings):
    """Output of `mupscale sweep`; also the content of sweep.json."""

    complete: Annotated[bool, "Whether all trials are finished."]
    cost: Annotated[SweepCost, "What the sweep costs, compared with tuning at the target."]
    grid: Annotated[Grid, "The grid."]
    trials: Annotated[list[SweepTrial], "Finished trials."]
    cells: Annotated[list[Cell], "Results over all seeds."]
    optima: Annotated[list[Cell], "Best cell of each width."]
    recommendation: Annotated[Recommendation | None, "Recommended settings; null if every trial diverged."]
    proxy: Annotated[SweptProxy | None, "The proxy, and how the checkpoint follows from it; null without a proxy."]


class CheckedLayer(TypedDict):
    """Activations of a layer in a coordinate check."""

    name: Annotated[str, "Name of the module."]
    stable: Annotated[bool | None, "Whether its change does not depend on the width; null if noise hides it."]
    slope: Annotated[
        Figure | None, "Exponent of the width with which the change at the last step grows; null if nothing changes."
    ]
    expected: Annotated[list[Figure], "Mean absolute activation before training without noise, by width."]
    sizes: Annotated[list[list[Figure]], "Mean absolute activation, by step and width."]
    changes: Annotated[
        list[list[Figure]], "Mean absolute change since step 0, relative to `expected`, by step and width."
    ]


class Coordcheck(TypedDict):
    """Output of `mupscale coordcheck`."""

    checkpoint: Annotated[str, "Path of the checkpoint."]
    agrees: Annotated[bool | None, "Whether all layers are stable; null if noise hides it."]
    factors: Annotated[list[int], "Widths over that of the checkpoint."]
    steps: Annotated[Count, "Number of optimizer steps."]
    lr: Annotated[float, "Learning rate of the narrow run."]
    noise: Annotated[float, "Size of the noise."]
    seeds: Annotated[list[int], "Random seeds."]
    uncertainty: Annotated[Figure, "How far any slope may be from the true exponent."]
    layers: Annotated[list[CheckedLayer], "All layers, in the order in which they run."]
    picture: Annotated[str | None, "File of the picture; null if none was drawn."]


class Verify(Verification):
    """Output of `mupscale verify`."""

    wide: Annotated[str, "The verified checkpoint."]


class Pushed(TypedDict):
    """The repository that a widened checkpoint was published in."""

    repo: Annotated[str, "Repository on the Hub."]
    url: Annotated[str, "Address of the repository or pull request."]
    commit: Annotated[str, "The new commit."]


class Widen(Record):
    """Output of `mupscale widen`: its record and the path of the output."""

    output: Annotated[str | None, "Path of the output; null if the models differ."]
    pushed: Annotated[Pushed | None, "Where it was published; null if it was not."]


DOCUMENTS: dict[str, type] = {
    "coordcheck": Coordcheck,
    "coverage": Coverage,
    "demo": Demo,
    "doctor": Doctor,
    "error": Error,
    "description": Description,
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
    "version": Version,
    "widen": Widen,
}
VERSIONS = {**dict.fromkeys(DOCUMENTS, 1), "record": FORMAT_VERSION}


def document_head(name: str) -> dict[str, Any]:
    """Return the first keys of every document: its name and its version."""
    return {"schema": name, "schema_version": VERSIONS[name]}


def load_schema(name: str) -> Schema:
    """Return the JSON Schema of a document, generated from its type.

    Raises:
        MupscaleError: no document has this name.
    """
    if name not in DOCUMENTS:
        raise MupscaleError(f"unknown schema `{name}`", hint=f"known: {', '.join(DOCUMENTS)}")
    is_record = name == "record"  # mupscale.json has its own key for the version
    head = {} if is_record else {key: {"const": value} for key, value in document_head(name).items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:mupscale:{name}" + ("" if is_record else f":{VERSIONS[name]}"),
        **json_schema(DOCUMENTS[name], head),
    }
