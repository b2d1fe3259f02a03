"""Read and write optimizer state in safetensors files, which hold only tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.digests import files_digest
from mupscale_cli.checkpoints.formats.safetensors import merge_headers, require_shards, weight_map
from mupscale_cli.checkpoints.header import StoredTensor, read_header
from mupscale_cli.checkpoints.output_files import write_json
from mupscale_cli.errors import CheckpointError
from mupscale_cli.optimizers.formats.base import OpenOptions, StateFile, StateFormat, WideState, WriteOptions
from mupscale_cli.optimizers.identity import identify_all
from mupscale_cli.optimizers.state_plan import Policy, StateEntry, plan_state
from mupscale_cli.optimizers.tree import OptimizerTree
from mupscale_cli.plan import Plan, Shard, split_into_shards
from mupscale_cli.plan.names import ParameterNames

_INDEX = ".safetensors.index.json"
_KINDS = "optimizer"  # metadata: the names of the optimizers, separated by commas
_PREFIXES = ("optimizer.state.", "state.", "optimizer.", "")


class Safetensors(StateFormat):
    """`state.PARAMETER.KEY` in one safetensors file, or in several with an index."""

    markers = ("optimizer.safetensors", "optimizer.safetensors.index.json")
    has_groups = False

    def files(self, name: str) -> tuple[str, ...]:
        stem = name.removesuffix(_INDEX)
        return (name,) if stem == name else (name, f"{stem}-*-of-*.safetensors")

    def recognizes(self, path: Path) -> bool:
        return path.suffix in (".safetensors", ".json") and path.is_file()

    def open(self, options: OpenOptions) -> SafetensorsState:
        path = options.path
        files = [path]
        if path.suffix == ".json":
            files = [path.parent / shard for shard in dict.fromkeys(weight_map(path).values())]
            require_shards(path, {file.name: file.is_file() for file in files})
        headers = [read_header(file) for file in files]
        # A reset state has no tensors.
        stored = merge_headers(headers, path) if any(header.tensors for header in headers) else {}
        metadata = {"format": "pt", **headers[0].metadata}
        kinds = options.kinds or tuple(filter(None, metadata.get(_KINDS, "").split(",")))
        return SafetensorsState(path, tuple(files), stored, metadata, kinds)


@dataclass(frozen=True)
class SafetensorsState:
    """`state.PARAMETER.KEY` in one safetensors file, or in several with an index."""

    path: Path
    files: tuple[Path, ...]
    stored: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    kinds: tuple[str, ...] = ()

    @property
    def content(self) -> dict[str, str]:
        return dict(self.metadata)

    def load(self) -> OptimizerTree:
        from safetensors import safe_open

        tensors: dict[str, Any] = {}
        for file in self.files:
            with safe_open(file, framework="pt") as opened:
                tensors |= {name: opened.get_tensor(name) for name in list(opened.keys())}
        prefix = next(prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in tensors))
        states: dict[str, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            parameter, _, key = name.removeprefix(prefix).rpartition(".")
            states.setdefault(parameter, {})[key] = tensor
        return OptimizerTree("flat", states, (), {}, self.kinds)

    def widen(self, plan: Plan, policy: Policy) -> WideState:
        entries = self._entries(plan)
        states_of: dict[str, dict[str, Any]] = {}
        for entry in entries:
            states_of.setdefault(entry.parameter, {})[entry.key] = entry.spec
        kinds = identify_all((), states_of, self.kinds)
        states = plan_state(plan, entries, kinds.rules, policy)
        metadata = {**self.metadata, _KINDS: ",".join(kinds.names)}
        tensors = tuple(state.tensor for state in states)

        def write(options: WriteOptions) -> StateFile | None:
            from mupscale_cli.engine.shards import write_shards

            stem = options.name.removesuffix(".index.json").removesuffix(".safetensors")
            shards = split_into_shards(tensors, options.max_shard_bytes, f"{stem}{{suffix}}.safetensors")
            shards = shards or (Shard(f"{stem}.safetensors", ()),)  # a reset state is an empty file
            converted = write_shards(
                shards,
                self.stored,
                options.directory,
                metadata=metadata,
                progress=options.progress,
                allow_nonfinite=options.allow_nonfinite,
                ranks=options.ranks,
            )
            if converted is None:
                return None
            digests = {options.directory / shard.file: converted.digests[shard.file] for shard in shards}
            digest = files_digest(digests, digests.__getitem__)
            if len(shards) == 1:
                return StateFile(f"{stem}.safetensors", converted.nonfinite, digest, digests=digests)
            weight_map = {tensor.target.name: shard.file for shard in shards for tensor in shard.tensors}
            total = sum(shard.num_bytes for shard in shards)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            write_json(options.directory / f"{stem}{_INDEX}", index)
            return StateFile(f"{stem}{_INDEX}", converted.nonfinite, digest, digests=digests)

        return WideState(
            tensors, self.stored, write, {"format": "safetensors", "kinds": list(kinds.names)}, content=metadata
        )

    def _entries(self, plan: Plan) -> list[StateEntry]:
        """Split the tensors' names into parameters and keys, after the prefix with which the parameters are known."""
        if not self.stored:
            raise CheckpointError(f"`{self.path}` holds no tensors")
        names = ParameterNames(plan)
        for prefix in _PREFIXES:
            if all(name.startswith(prefix) for name in self.stored):
                parsed = [(*name.removeprefix(prefix).rpartition(".")[::2], t.spec) for name, t in self.stored.items()]
                if any(names.knows(parameter) for parameter, _, _ in parsed):
                    return [StateEntry(parameter, key, spec) for parameter, key, spec in parsed]
        raise CheckpointError(
            f"`{self.path}` has no state for any parameter of this checkpoint",
            hint="name its tensors like `state.PARAMETER.exp_avg`; "
            f"the first is called `{next(iter(self.stored), '')}`",
        )
