"""Damage wide checkpoints in every way, forge their records to match, and count what `mupscale verify` notices.

    python tests/verification/mutants.py                     # all architectures, about ten minutes
    python tests/verification/mutants.py Llama-tied GPT2-tied

Prints a table by kind of damage, and every mutant that nothing noticed. Exits with 1 if there is one, since each mutant
changes a tensor, a key, a setting or a file. Digests in the record are computed again, as a forger would, so the table
measures the comparison with the source and not that of digests.
"""

from __future__ import annotations

import gc
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script, it is not in the path of the tests

import torch
import transformers
from safetensors.torch import load_file, save_file

from helpers import build
from mupscale_cli.checkpoints.digests import files_digest, segments_digest
from mupscale_cli.errors import MupscaleError
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification.options import PARTS
from training import make, random_loss

# Settings that make every branch of the function reachable with few tokens.
ROPE = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 20}
CASES: dict[str, dict[str, Any]] = {
    "Llama-tied": {"rope_parameters": ROPE, "max_position_embeddings": 20},
    "Qwen3-tied": {},
    "Gemma2-tied": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "Mixtral-untied": {"num_local_experts": 6, "sliding_window": 6},
    "GPT2-tied": {},
    "T5-gated": {"relative_attention_max_distance": 40},
    "Bert-tied": {"max_position_embeddings": 64},
    "Mamba2-tied": {},
    "ResNet-basic": {},
}
WEIGHTS, CONFIG, STATE, RECORD = "model.safetensors", "config.json", "optimizer.pt", "mupscale.json"
STORED = ("weights", "config", "files")  # parts that run no model, and take milliseconds
Change = Callable[[Path, random.Random], None]


@dataclass(frozen=True)
class Mutant:
    """One way to damage a checkpoint.

    Attributes:
        kind: the row of the table.
        what: the damaged tensor, key or file.
        change: damages a folder.
    """

    kind: str
    what: str
    change: Change

    @property
    def is_functional(self) -> bool:
        """Whether the damage may change the function, so that running the models may notice it as well."""
        return self.kind.startswith("weights: ") or any(topic in self.kind for topic in _TOPICS)


@dataclass(frozen=True)
class Outcome:
    """What `verify` found in a mutant.

    Attributes:
        kind, what: those of the mutant.
        noticed_by: parts of the verification that differ, or `error` if it could not read the mutant.
    """

    kind: str
    what: str
    noticed_by: tuple[str, ...] = field(default=())


# Checkpoints -------------------------------------------------------------------------------------


def make_pair(folder: Path, case: str) -> Path:
    """Save a random model with everything that a checkpoint may have, and widen it; return the wide folder."""
    narrow, wide = folder / "narrow", folder / "wide"
    model = build(case, **CASES[case])
    optimizer = make("adamw", list(model.named_parameters()), [])
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        random_loss(model, generator).backward()
        optimizer.step()
        model.zero_grad()
    model.save_pretrained(narrow)
    torch.save(optimizer.state_dict(), narrow / STATE)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    torch.save(scheduler.state_dict(), narrow / "scheduler.pt")
    (narrow / "trainer_state.json").write_text(json.dumps({"global_step": 2, "epoch": 0.5}))
    (narrow / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {f"t{i}": i for i in range(50)}}}))
    (narrow / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    generation = narrow / "generation_config.json"
    generation.write_text(json.dumps({"do_sample": True, "temperature": 0.7, "eos_token_id": 2}))
    widen(narrow, wide, 2, verify=False)
    return wide


def forge(wide: Path) -> None:
    """Compute all digests of the record again, so that they match the damaged files."""
    file = wide / RECORD
    record = json.loads(file.read_text())
    weights = sorted(path.name for path in wide.glob("*.safetensors"))
    record["written"] = {name: {"digest": segments_digest(wide / name)} for name in weights}
    known = {*weights, STATE, RECORD}
    others = (path for path in sorted(wide.iterdir()) if path.is_file() and path.name not in known)
    record["others"] = {path.name: {"digest": segments_digest(path)} for path in others}
    if record["optimizer_state"] and (wide / STATE).is_file():
        record["optimizer_state"]["digest"] = files_digest([wide / STATE], segments_digest)
    file.write_text(json.dumps(record))


def judge(wide: Path, mutant: Mutant, seed: int, parts: Sequence[str] = STORED) -> Outcome:
    """Damage a copy of a checkpoint, forge its record, and verify some parts: plain `verify` notices what these do."""
    copy = wide.with_name("mutant")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(wide, copy)
    mutant.change(copy, random.Random(f"{seed} {mutant.kind} {mutant.what}"))
    forge(copy)
    try:
        found = verify(copy, only=parts)
    except MupscaleError:
        return Outcome(mutant.kind, mutant.what, ("error",))
    checks = {part: getattr(found, part) for part in PARTS}
    differing = (part for part, check in checks.items() if check is not None and not check.agrees)
    return Outcome(mutant.kind, mutant.what, tuple(differing))


# Weights -----------------------------------------------------------------------------------------


def weight_mutants(wide: Path) -> Iterator[Mutant]:
    """Yield each kind of damage for each kind of tensor: matrices, vectors, embeddings, experts."""
    tensors = load_file(wide / WEIGHTS)
    floats = {name: value for name, value in tensors.items() if value.is_floating_point() and value.numel() > 1}
    for name, value in _one_of_each_kind(floats).items():
        yield _on_tensor("scaled", name, lambda w, _: w.mul_(1.0 + 2.0**-10))
        yield _on_tensor("one element by one ulp", name, _nudge)
        if value.dim() == 1:
            continue
        yield _on_tensor("a share moved between copies", name, _move_share)
        yield _on_tensor("rows swapped or zeroed", name, _swap_rows)
        yield _on_tensor("rows swapped or zeroed", name, lambda w, rng: w[rng.randrange(len(w))].zero_())
        if value.dim() == 2 and value.shape[0] == value.shape[1]:
            yield _on_tensor("transposed", name, lambda w, _: w.copy_(w.T.clone()))
    for name in floats:
        if "relative_attention_bias" in name:
            yield _on_tensor("a far relative distance", name, lambda w, _: w[-1].mul_(2))
        elif "position_embeddings" in name or "wpe" in name:
            yield _on_tensor("the last position", name, lambda w, _: w[-1].mul_(2))
        elif any(part in name for part in ("embed_tokens", "embeddings.word", "wte", "shared", "backbone.embeddings")):
            yield _on_tensor("the embedding of a token", name, lambda w, rng: w[rng.randrange(1, len(w))].mul_(2))
        elif "expert" in name:
            yield _on_tensor("a weight of an expert", name, lambda w, _: w.mul_(2))
    some = next(iter(floats))
    yield _on_tensors("tensors removed, added, of another type", some, lambda tensors, _: tensors.pop(some))
    yield _on_tensors(
        "tensors removed, added, of another type", "more", lambda tensors, _: tensors.update(more=torch.ones(3))
    )
    yield _on_tensors(
        "tensors removed, added, of another type",
        some,
        lambda tensors, _: tensors.update({some: tensors[some].double()}),
    )


def _one_of_each_kind(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the last tensor of each name, numbers of layers and experts aside."""
    kinds: dict[str, str] = {}
    for name in tensors:
        kinds[".".join("*" if part.isdigit() else part for part in name.split("."))] = name
    return {name: tensors[name] for name in kinds.values()}


def _on_tensor(kind: str, name: str, change: Callable[[torch.Tensor, random.Random], Any]) -> Mutant:
    def damage(tensors: dict[str, torch.Tensor], rng: random.Random) -> None:
        before = tensors[name].clone()
        change(tensors[name], rng)
        if torch.equal(before, tensors[name]):  # copies are equal, and so may be what was exchanged
            _nudge(tensors[name], rng)

    return _on_tensors(kind, name, damage)


def _on_tensors(kind: str, name: str, change: Callable[[dict[str, torch.Tensor], random.Random], Any]) -> Mutant:
    def damage(folder: Path, rng: random.Random) -> None:
        tensors = {key: value.clone() for key, value in load_file(folder / WEIGHTS).items()}
        change(tensors, rng)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return Mutant(f"weights: {kind}", name, damage)


def _nudge(values: torch.Tensor, rng: random.Random) -> None:
    flat = values.view(-1)
    place = rng.randrange(len(flat))
    flat[place] = torch.nextafter(flat[place], torch.tensor(torch.inf, dtype=flat.dtype))


def _move_share(values: torch.Tensor, rng: random.Random) -> None:
    """Move half of an element to its neighbor, which keeps the sum over both."""
    pairs = values.reshape(len(values), -1)
    row, column = rng.randrange(len(pairs)), rng.randrange(pairs.shape[1] // 2) * 2
    half = pairs[row, column] / 2
    pairs[row, column] -= half
    pairs[row, min(column + 1, pairs.shape[1] - 1)] += half
    values.copy_(pairs.reshape(values.shape))


def _swap_rows(values: torch.Tensor, rng: random.Random) -> None:
    first, second = rng.sample(range(len(values)), 2) if len(values) > 1 else (0, 0)
    values[[first, second]] = values[[second, first]].clone()


# Config ------------------------------------------------------------------------------------------


def config_mutants(wide: Path) -> Iterator[Mutant]:
    """Yield a change and a removal of every key of config.json, nested ones too, and a new key."""
    config = json.loads((wide / CONFIG).read_text())
    for place, value in _leaves(config, ()):
        name = ".".join(map(str, place))
        yield _on_config(_topic(name), name, place, _other_value(value))
        yield _on_config("keys removed or added", name, place, None, removed=True)
    yield _on_config("keys removed or added", "more", ("more",), 1)


_TOPICS = {
    "windows, layer types, positions": ("sliding_window", "layer_types", "positions"),
    "rotary positions": ("rope",),
    "dropout": ("drop",),
    "eps and activations": ("eps", "act"),
    "tied embeddings and token ids": ("tie_word", "token_id"),
}


def _topic(key: str) -> str:
    return next((topic for topic, words in _TOPICS.items() if any(word in key for word in words)), "all other keys")


def _leaves(value: Any, place: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*place, key))
    else:
        yield place, value


def _other_value(value: Any) -> Any:
    """Return another value of the same type."""
    if value is None:
        return 1
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return 2 * value or 1
    if isinstance(value, float):
        return 1.5 * value or 0.5
    if isinstance(value, str):
        return {"silu": "gelu", "gelu": "relu", "gelu_new": "relu", "relu": "gelu"}.get(value, f"{value}x")
    if isinstance(value, list):
        return value[::-1] if value[::-1] != value else [*value, *value[:1], None][: len(value) + 1]
    return {"more": 1}


def _on_config(kind: str, name: str, place: Sequence[Any], value: Any, *, removed: bool = False) -> Mutant:
    def damage(folder: Path, _rng: random.Random) -> None:
        config = json.loads((folder / CONFIG).read_text())
        section = config
        for key in place[:-1]:
            section = section[key]
        if removed:
            del section[place[-1]]
        else:
            section[place[-1]] = value
        (folder / CONFIG).write_text(json.dumps(config))

    return Mutant(f"config: {kind}", name, damage)


# Optimizer state ---------------------------------------------------------------------------------


def state_mutants(wide: Path) -> Iterator[Mutant]:
    """Yield damage of moments, steps, groups and settings."""
    state = torch.load(wide / STATE, weights_only=True)
    numbers = sorted(state["state"])
    for entry in ("exp_avg", "exp_avg_sq"):
        for number in (numbers[0], numbers[-1]):
            place = ("state", number, entry)
            yield _on_state("moments", place, _nudge)
            yield _on_state("moments", place, lambda v, _: v.mul_(2) if bool(v.any()) else v.fill_(1))
            yield _on_state("moments", place, lambda v, _: v.zero_() if bool(v.any()) else v.fill_(1))
    yield _on_state("steps, states swapped or removed", ("state", numbers[0], "step"), lambda v, _: v.add_(1))
    yield _on_content("steps, states swapped or removed", partial(_swap_states, numbers))
    yield _on_content("steps, states swapped or removed", lambda s, _: s["state"].pop(numbers[0]))
    for key, value in state["param_groups"][0].items():
        if key in ("params", "param_names"):
            yield _on_content("groups and their settings", partial(_reverse_group, key))
        else:
            yield _on_content("groups and their settings", partial(_set_group, key, _other_value(value)), key)
    yield _on_content("groups and their settings", lambda s, _: s["param_groups"].pop())
    yield _on_content("groups and their settings", lambda s, _: s.update(more=1))


def _swap_states(numbers: Sequence[int], state: dict[str, Any], _rng: random.Random) -> None:
    states = state["state"]
    pairs = ((a, b) for a in numbers for b in numbers if a < b and not _same_moments(states[a], states[b]))
    first, second = next(pairs)
    states[first], states[second] = states[second], states[first]


def _same_moments(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return first["exp_avg"].shape != second["exp_avg"].shape or torch.equal(first["exp_avg"], second["exp_avg"])


def _reverse_group(key: str, state: dict[str, Any], _rng: random.Random) -> None:
    group = max(state["param_groups"], key=lambda group: len(group["params"]))
    if len(group["params"]) > 1:
        group[key] = group[key][::-1]
    else:  # each group has one parameter
        groups = state["param_groups"]
        groups[0][key], groups[1][key] = groups[1][key], groups[0][key]


def _set_group(key: str, value: Any, state: dict[str, Any], _rng: random.Random) -> None:
    state["param_groups"][0][key] = value


def _on_state(kind: str, place: Sequence[Any], change: Callable[[torch.Tensor, random.Random], Any]) -> Mutant:
    def damage(state: Any, rng: random.Random) -> None:
        for key in place:
            state = state[key]
        change(state, rng)

    return _on_content(kind, damage, "/".join(map(str, place)))


def _on_content(kind: str, change: Callable[[dict[str, Any], random.Random], Any], what: str = STATE) -> Mutant:
    def damage(folder: Path, rng: random.Random) -> None:
        state = torch.load(folder / STATE, weights_only=True)
        change(state, rng)
        torch.save(state, folder / STATE)

    return Mutant(f"state: {kind}", what, damage)


# Files and record --------------------------------------------------------------------------------


def file_mutants(wide: Path) -> Iterator[Mutant]:
    """Yield damage of every other file."""
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja", "trainer_state.json"):
        yield _on_file("a byte changed, truncated", name, _flip)
        yield _on_file("a byte changed, truncated", name, lambda file, _: file.write_bytes(file.read_bytes()[:-1]))
        yield _on_file("removed, added", name, lambda file, _: file.unlink())
    yield _on_file("removed, added", "extra.safetensors", lambda file, _: save_file({"x": torch.ones(1)}, file))
    for name in ("added_tokens.json", "LICENSE", "model.safetensors.index.json", "rng_state.pth"):
        yield _on_file("removed, added", name, lambda file, _: file.write_text("{}"))
    for name in (STATE, "scheduler.pt", CONFIG):
        yield _on_file("removed, added", name, lambda file, _: file.unlink())
    yield _on_file("scheduler, metadata of weights", "scheduler.pt", _change_scheduler)
    yield _on_file("scheduler, metadata of weights", WEIGHTS, _change_metadata)


def _on_file(kind: str, name: str, change: Callable[[Path, random.Random], Any]) -> Mutant:
    return Mutant(f"files: {kind}", name, lambda folder, rng: change(folder / name, rng))


def _flip(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1
    file.write_bytes(data)


def _change_scheduler(file: Path, _rng: random.Random) -> None:
    state = torch.load(file, weights_only=True)
    state["base_lrs"][0] *= 2
    torch.save(state, file)


def _change_metadata(file: Path, _rng: random.Random) -> None:
    save_file(load_file(file), file, metadata={"format": "tf"})


def record_mutants(wide: Path) -> Iterator[Mutant]:
    """Yield lies of the record about what the plan decides, and about what was widened."""
    record = json.loads((wide / RECORD).read_text())
    axis = next(name for name, axis in record["axes"].items() if axis["factor"] > 1)
    part = ("rules", 0, "parts", 0)
    yield _on_record("an axis", ("axes", axis, "wide_size"), 1)
    yield _on_record("a factor", ("axes", axis, "factor"), 3)
    yield _on_record("a coefficient", (*part, "coefficient"), 0.125)
    yield _on_record("a multiplicity", (*part, "multiplicity"), 7)
    yield _on_record("a shape", ("rules", 0, "shape"), [1])
    yield _on_record("the number of parameters", ("parameters", "after"), 1)
    yield _on_record("the rules of a tensor", ("rules", 0, "tensors"), ["nothing"])
    yield _on_record("names of parameters", ("called", "nothing"), "something")
    yield _on_record("shared tensors", ("shared", "nothing"), "something")
    yield _on_record("the method", ("method",), {"name": "net2net", "seed": 0})
    yield _on_record("noise that is not there", ("perturbation",), _NOISE)
    yield _on_record("the policy of the state", ("optimizer_state", "policy"), "reset")
    yield _on_record("no optimizer state", ("optimizer_state",), None)
    yield _on_record("digests of the source", ("source", "files", CONFIG, "xxh128"), "0" * 32)
    yield _on_record("another recipe", ("recipe", "name"), "mlp")


_NOISE = {"size": 0.1, "mode": "free", "scale": "spectral", "seed": 0, "on": []}


def _on_record(kind: str, place: Sequence[Any], value: Any) -> Mutant:
    def damage(folder: Path, _rng: random.Random) -> None:
        record = json.loads((folder / RECORD).read_text())
        section = record
        for key in place[:-1]:
            section = section[key]
        assert section.get(place[-1]) != value
        section[place[-1]] = value
        (folder / RECORD).write_text(json.dumps(record))

    return Mutant("record: what it says about the plan", f"{kind}: {'/'.join(map(str, place))}", damage)


# All of them -------------------------------------------------------------------------------------


def mutants_of(wide: Path) -> list[Mutant]:
    """Return every mutant of a checkpoint."""
    kinds = (weight_mutants, config_mutants, state_mutants, file_mutants, record_mutants)
    return [mutant for kind in kinds for mutant in kind(wide)]


def judge_all(case: str, seed: int = 0) -> list[Outcome]:
    """Judge every mutant of an architecture."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    gc.collect()
    gc.freeze()  # every verification collects garbage
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        wide = make_pair(Path(folder), case)
        sound = verify(wide)
        assert sound.agrees, (case, sound)
        return [
            judge(wide, mutant, seed, tuple(PARTS) if mutant.is_functional else STORED) for mutant in mutants_of(wide)
        ]


_GROUPS = ["weights", "config", "state", "files", "record"]


def table(outcomes: Sequence[Outcome]) -> str:
    """Return a table of the mutants that were noticed and tried, by kind."""
    tried, noticed = Counter(), Counter()
    for outcome in outcomes:
        tried[outcome.kind] += 1
        noticed[outcome.kind] += bool(outcome.noticed_by)
    by_function = Counter(outcome.kind for outcome in outcomes if "function" in outcome.noticed_by)
    rows = [
        f"| {kind} | {noticed[kind]} of {tried[kind]} | {by_function[kind] or ''} |"
        for kind in sorted(tried, key=lambda kind: _GROUPS.index(kind.partition(":")[0]))
    ]
    total = f"| **all** | **{noticed.total()} of {tried.total()}** | **{by_function.total()}** |"
    return "\n".join(("| damage | noticed | by running the models |", "|---|---:|---:|", *rows, total))


def main() -> None:
    """Judge all architectures, or those that are named, and print the table."""
    cases = sys.argv[1:] or list(CASES)
    with ProcessPoolExecutor(2) as pool:
        results = dict(zip(cases, pool.map(judge_all, cases), strict=True))
    lines = [table([outcome for outcomes in results.values() for outcome in outcomes])]
    survivors = [(case, o) for case, outcomes in results.items() for o in outcomes if not o.noticed_by]
    lines += [f"NOT NOTICED: {case}: {outcome.kind}: {outcome.what}" for case, outcome in survivors]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
