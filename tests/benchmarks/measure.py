"""Helpers of the benchmarks: checkpoints of a given size, timing, memory of a process, tables."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from mupscale_cli.checkpoints.header import encode_header
from mupscale_cli.dtypes import TensorSpec


def save_llama(
    directory: Path,
    num_bytes: int,
    dtype: torch.dtype = torch.bfloat16,
    hidden: int = 1024,
    vocabulary: int = 512,
    *,
    is_tied: bool = True,
) -> Path:
    """Save a Llama checkpoint with random weights, about `num_bytes` of them in layers; return its directory."""
    heads = hidden // 64
    per_layer = 12 * hidden * hidden * dtype.itemsize
    layers = max(1, round(num_bytes / per_layer))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "vocab_size": vocabulary,
        "intermediate_size": 8 * hidden // 3 // 256 * 256,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "num_hidden_layers": layers,
        "tie_word_embeddings": is_tied,
        "head_dim": 64,
    }
    ffn = config["intermediate_size"]
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    shapes |= {} if is_tied else {"lm_head.weight": (vocabulary, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (ffn, hidden) for name in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, ffn)
        shapes |= {f"{prefix}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    directory.mkdir()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(max(ffn, vocabulary) * hidden, generator=generator).to(dtype)
    tensors = {name: noise[: torch.Size(shape).numel()].reshape(shape).clone() for name, shape in shapes.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def save_headers(directory: Path, num_shards: int, num_layers: int) -> Path:
    """Save a Llama checkpoint (501 billion parameters with 156 layers) as sparse files; return its directory."""
    hidden, ffn, vocab = 16384, 53248, 128256
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "vocab_size": vocab,
        "intermediate_size": ffn,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_hidden_layers": num_layers,
        "tie_word_embeddings": False,
    }
    shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (hidden, hidden) for name in "qo"}
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (8 * 128, hidden) for name in "kv"}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (ffn, hidden) for name in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, ffn)
        shapes |= {f"{prefix}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}
    return _save_sparse(directory, num_shards, config, shapes)


def save_expert_headers(directory: Path, num_shards: int, num_layers: int, num_experts: int) -> Path:
    """Save a checkpoint like Kimi K2 (a trillion parameters with 61 layers of 384 experts) as sparse files."""
    hidden, ffn, expert, vocab, heads, query, latent = 7168, 18432, 2048, 163840, 64, 1536, 512
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "hidden_size": hidden,
        "vocab_size": vocab,
        "intermediate_size": ffn,
        "moe_intermediate_size": expert,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "num_hidden_layers": num_layers,
        "first_k_dense_replace": 1,
        "n_routed_experts": num_experts,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 1,
        "topk_group": 1,
        "q_lora_rank": query,
        "kv_lora_rank": latent,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "tie_word_embeddings": False,
    }
    shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}self_attn.q_a_proj.weight": (query, hidden),
            f"{prefix}self_attn.q_a_layernorm.weight": (query,),
            f"{prefix}self_attn.q_b_proj.weight": (heads * 192, query),
            f"{prefix}self_attn.kv_a_proj_with_mqa.weight": (latent + 64, hidden),
            f"{prefix}self_attn.kv_a_layernorm.weight": (latent,),
            f"{prefix}self_attn.kv_b_proj.weight": (heads * 256, latent),
            f"{prefix}self_attn.o_proj.weight": (hidden, heads * 128),
        }
        names = ["mlp."] if layer == 0 else ["mlp.shared_experts.", *(f"mlp.experts.{i}." for i in range(num_experts))]
        inner = ffn if layer == 0 else expert
        for name in names:
            shapes |= {f"{prefix}{name}{kind}_proj.weight": (inner, hidden) for kind in ("gate", "up")}
            shapes[f"{prefix}{name}down_proj.weight"] = (hidden, inner)
        if layer:
            shapes[f"{prefix}mlp.gate.weight"] = (num_experts, hidden)
            shapes[f"{prefix}mlp.gate.e_score_correction_bias"] = (num_experts,)
        shapes |= {f"{prefix}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}
    return _save_sparse(directory, num_shards, config, shapes)


def _save_sparse(directory: Path, num_shards: int, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Path:
    """Save a checkpoint in bfloat16 whose data takes no space on disk; return its directory."""
    specs = [TensorSpec(name, "BF16", shape) for name, shape in shapes.items()]
    directory.mkdir()
    weight_map = {}
    for shard in range(num_shards):
        shard_specs = specs[shard * len(specs) // num_shards : (shard + 1) * len(specs) // num_shards]
        file = directory / f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        header = encode_header(shard_specs, {"format": "pt"})
        with open(file, "wb") as stream:
            stream.write(header)
            stream.truncate(len(header) + sum(spec.num_bytes for spec in shard_specs))
        weight_map |= {spec.name: file.name for spec in shard_specs}
    total = sum(spec.num_bytes for spec in specs)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def save_adam(directory: Path, form: str) -> None:
    """Save Adam's moments in float32 next to a checkpoint as `safetensors`, `pt`, or `dcp` (PyTorch distributed)."""
    weights = load_file(directory / "model.safetensors")
    states = {name: {key: torch.ones(w.shape) for key in ("exp_avg", "exp_avg_sq")} for name, w in weights.items()}
    if form == "safetensors":
        flat = {f"state.{name}.{key}": t for name, state in states.items() for key, t in state.items()}
        save_file(flat, directory / "optimizer.safetensors")
        return
    settings = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).state_dict()["param_groups"][0]
    if form == "dcp":
        groups = [{**settings, "params": list(states)}]
        dcp.save({"state": states, "param_groups": groups}, checkpoint_id=directory / "optimizer", no_dist=True)
        return
    group = {**settings, "params": list(range(len(states))), "param_names": list(states)}
    torch.save({"state": dict(enumerate(states.values())), "param_groups": [group]}, directory / "optimizer.pt")


def kinds(directory: Path) -> tuple[str, ...]:
    """Return the optimizer kinds to name when a checkpoint is widened: a state without groups does not tell its own."""
    return ("adamw",) if (directory / "optimizer.safetensors").exists() else ()


def command_seconds(*arguments: str) -> tuple[float, float]:
    """Run `python ARGUMENTS`, which may fail, in a new process and return the wall and processor seconds it takes."""
    started = time.perf_counter()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, *arguments], **quiet) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime


def peak_private_bytes(code: str, *arguments: str) -> int:
    """Run Python code and return the peak anonymous memory of the process and its children, in bytes (Linux only).

    Memory is sampled every 20 ms; shared pages count once.
    """
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(map(_private_bytes, (process.pid, *_children(process.pid)))))
            time.sleep(0.02)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, code)
    return peak


def _children(process: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:  # it has just ended
        return []


def _private_bytes(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))


def repeated(measure: Callable[[], float], times: int) -> tuple[float, float]:
    """Measure several times; return the median and the spread (largest divided by smallest)."""
    values = [measure() for _ in range(times)]
    return statistics.median(values), max(values) / min(values)


def report(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, as_json: bool) -> None:
    """Print results as a table or as JSON."""
    if as_json:
        sys.stdout.write(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=2) + "\n")
        return
    table = Table(*columns, box=None, header_style="bold")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
