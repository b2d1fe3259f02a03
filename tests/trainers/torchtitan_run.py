"""Train a tiny Llama 3 with torchtitan's own Trainer on a CPU: `torchtitan_run.py PHASE FOLDER`; print the losses.

`narrow` trains 8 steps in FOLDER/narrow and saves after 4; `wide` resumes in FOLDER/wide what `mupscale widen` made of
that checkpoint, with the groups in FOLDER/groups.py, which `mupscale hparams` printed.
"""

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import torch

# torchtitan looks for an accelerator, its memory and its kernels: this is all that it needs of them.
torch._utils._get_available_device_type = lambda: "cpu"
for variable, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
    os.environ.setdefault(variable, value)

import torchtitan.trainer  # noqa: E402
from checkouts import free_port  # noqa: E402
from torchtitan.components import metrics  # noqa: E402
from torchtitan.components.checkpointer import CheckpointManager  # noqa: E402
from torchtitan.components.dataloader import BaseDataLoader  # noqa: E402
from torchtitan.components.loss import CrossEntropyLoss  # noqa: E402
from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer, default_adamw  # noqa: E402
from torchtitan.components.optimizer.optimizer import ParamGroupConfig  # noqa: E402
from torchtitan.components.tokenizer import BaseTokenizer  # noqa: E402
from torchtitan.config.configs import DebugConfig, TrainingConfig  # noqa: E402
from torchtitan.models import llama3  # noqa: E402
from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm, attention  # noqa: E402
from torchtitan.models.llama3 import Llama3Model, model_registry  # noqa: E402

import mupscale  # noqa: E402

VOCABULARY, LENGTH, CLIP = 64, 16, 0.2
NARROW = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "hidden_dim": 48}
NARROW |= {"vocab_size": VOCABULARY, "norm_eps": 1e-5}


class NoMemory:
    """The memory of a device that has no counters."""

    device_name = "cpu"

    def __getattr__(self, name):
        return lambda *_: SimpleNamespace(
            max_reserved_gib=0, max_reserved_pct=0, max_active_gib=0, max_active_pct=0, num_alloc_retries=0, num_ooms=0
        )


def causal(q, k, v, *, scale=None, enable_gqa=True, **_):
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=enable_gqa)
    return out, None


metrics.build_device_memory_monitor = NoMemory
attention.FlexAttention._compiled_flex_attn = staticmethod(causal)
torchtitan.trainer.dist_utils.set_pg_timeouts = lambda **_: None


class Data(BaseDataLoader):
    """Batches that depend on their number alone."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        """What torchtitan builds it from."""

        def build(self, **options):
            return Data(options["local_batch_size"])

    def __init__(self, rows):
        self.number, self.rows = 0, rows

    def __iter__(self):
        while True:
            generator = torch.Generator().manual_seed(self.number)
            tokens = torch.randint(VOCABULARY, (self.rows, LENGTH + 1), generator=generator)
            self.number += 1
            positions = torch.arange(LENGTH).expand(self.rows, -1)
            yield {"input": tokens[:, :-1], "positions": positions}, tokens[:, 1:].contiguous()

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state):
        self.number = state["number"]


class Tokenizer(BaseTokenizer):
    """Of data that are tokens already."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        """What torchtitan builds it from."""

        def build(self, **_):
            return Tokenizer()

    def __init__(self):
        pass

    def encode(self, *_):
        return []

    def decode(self, *_):
        return ""

    def get_vocab_size(self):
        return VOCABULARY


def model(sizes):
    """Return the config of a model, as the config functions of torchtitan make it."""
    dim, names = sizes["dim"], ("n_layers", "dim", "n_heads", "n_kv_heads", "hidden_dim")
    rope = ComplexRoPE.Config(dim=sizes["head_dim"], max_seq_len=LENGTH, theta=10000)
    return Llama3Model.Config(
        dim=dim,
        vocab_size=VOCABULARY,
        tok_embeddings=Embedding.Config(
            num_embeddings=VOCABULARY, embedding_dim=dim, param_init=llama3._EMBEDDING_INIT
        ),
        norm=RMSNorm.Config(normalized_shape=dim, param_init=llama3._NORM_INIT),
        lm_head=Linear.Config(in_features=dim, out_features=VOCABULARY, param_init=llama3._output_linear_init(dim)),
        layers=llama3._build_llama3_layers(**{name: sizes[name] for name in names}, rope=rope, attn_backend="flex"),
    )


def trained(folder, sizes, optimizer):
    """Train up to step 8, from the last checkpoint in the folder if there is one; return the losses."""
    spec = replace(model_registry("debugmodel", attn_backend="flex"), model=model(sizes))
    config = torchtitan.trainer.Trainer.Config(
        model_spec=spec,
        dump_folder=str(folder),
        loss=CrossEntropyLoss.Config(global_vocab_size=VOCABULARY),
        optimizer=optimizer,
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=2, total_steps=40, decay_ratio=0.8),
        training=TrainingConfig(
            local_batch_size=4,
            seq_len=LENGTH,
            steps=8,
            disable_cuda_graphs=True,
            mixed_precision_param="float32",
            max_norm=CLIP,
        ),
        tokenizer=Tokenizer.Config(),
        dataloader=Data.Config(),
        metrics=metrics.MetricsProcessor.Config(log_freq=1),
        checkpoint=CheckpointManager.Config(enable=True, interval=4, last_save_model_only=False),
        debug=DebugConfig(seed=3, save_config_file="config.json", enable_structured_logging=False),
    )
    config.activation_checkpoint = None
    trainer = torchtitan.trainer.Trainer(config)
    losses = []
    trainer.metrics_processor.log = lambda _step, loss, *_, **__: losses.append(float(loss))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # gains of 1 would hide how they are copied; a checkpoint replaces them
        for parameter in trainer.model_parts[0].parameters():
            if parameter.dim() < 2:
                local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
                local.copy_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
    if folder.name == "wide":  # the line of the page `trainers`
        torchtitan.trainer.dist_utils.clip_grad_norm_ = lambda _, max_norm, **__: mupscale.clip_grad_norm_(
            [group for each in trainer.optimizers for group in each.param_groups], max_norm
        )
    trainer.train()
    trainer.close()
    return losses


def main(phase, folder):
    os.environ["MASTER_PORT"] = str(free_port())
    folder = Path(folder)
    if phase == "narrow":
        losses = trained(folder / phase, NARROW, default_adamw(lr=3e-3, weight_decay=0.1))
    else:
        names = {}
        exec(  # noqa: S102 (what `hparams` printed)
            (folder / "groups.py").read_text(), {"ParamGroupConfig": ParamGroupConfig}, names
        )
        sizes = json.loads((folder / "wide/checkpoint/step-4/config.json").read_text())
        losses = trained(folder / phase, sizes, OptimizersContainer.Config(param_groups=names["param_groups"]))
    torch.distributed.destroy_process_group()
    sys.stdout.write(json.dumps(losses) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
