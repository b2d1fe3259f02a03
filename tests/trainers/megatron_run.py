"""Build a tiny GPTModel of Megatron Core: `megatron_run.py PHASE FOLDER FORM`.

`narrow` randomizes it, saves it to FOLDER in the format `torch_dist`, and prints its losses on some batches. `wide`
loads FOLDER, which `mupscale widen` wrote, into a model of its sizes and prints the losses on the same batches. FORM is
`homogeneous`, one tensor for all layers, or `separate`, one for each.
"""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path

import torch

# Megatron Core asks for devices and generators of CUDA even if it computes on the CPU.
torch.cuda.current_device = lambda: "cpu"
torch.cuda.is_available = lambda: False
torch.cuda.synchronize = lambda *_: None

from megatron.core import dist_checkpointing, parallel_state  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: E402
from megatron.core.models.gpt.gpt_model import GPTModel  # noqa: E402
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402

from trainer_runs import token_batches  # noqa: E402

VOCABULARY, LENGTH = 64, 16
SIZES = {
    "hidden_size": 32,
    "ffn_hidden_size": 40,
    "num_layers": 3,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 8,
}


# Of Megatron-LM, which writes them with every checkpoint.
ARGUMENTS = {
    "padded_vocab_size": VOCABULARY,
    "group_query_attention": True,
    "swiglu": True,
    "untie_embeddings_and_output_weights": True,
    "params_dtype": torch.float32,
    "normalization": "RMSNorm",
}


def build(sizes):
    config = TransformerConfig(
        **sizes,
        use_cpu_initialization=True,
        pipeline_dtype=torch.float32,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
    )
    return GPTModel(
        config,
        get_gpt_layer_local_spec(normalization="RMSNorm"),
        VOCABULARY,
        LENGTH,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=False,
    )


def losses(model):
    positions = torch.arange(LENGTH)[None]
    mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).triu(1)
    with torch.no_grad():
        return [
            model(batch, positions.expand_as(batch), mask, labels=batch.roll(-1, 1)).mean().item()
            for batch in token_batches(4, VOCABULARY, length=LENGTH)
        ]


def main():
    phase, folder, form = sys.argv[1], Path(sys.argv[2]), {"non_homogeneous_layers": sys.argv[3] == "separate"}
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="29541", RANK="0", WORLD_SIZE="1")
    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel()
    CudaRNGStatesTracker.fork = lambda *_: contextlib.nullcontext()  # there is no dropout
    if phase == "narrow":
        model = build(SIZES)
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.dim() == 1)
        folder.mkdir(parents=True)
        common = {"args": argparse.Namespace(**SIZES, **ARGUMENTS), "iteration": 3, "checkpoint_version": 3.0}
        dist_checkpointing.save({**common, "model": model.sharded_state_dict(prefix="", metadata=form)}, str(folder))
    else:
        saved = dist_checkpointing.load_common_state_dict(str(folder))["args"]
        model = build({name: getattr(saved, name) for name in SIZES})
        loaded = dist_checkpointing.load({"model": model.sharded_state_dict(prefix="", metadata=form)}, str(folder))
        model.load_state_dict(loaded["model"])
    sys.stdout.write(json.dumps(losses(model)) + "\n")


if __name__ == "__main__":
    main()
