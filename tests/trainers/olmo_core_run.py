"""Train a tiny model with OLMo-core's own Trainer: `olmo_core_run.py PHASE FOLDER KIND`; print the losses by step.

`narrow` trains 8 steps and saves after 4; `wide` resumes from what `mupscale widen` made of that checkpoint, which lies
in FOLDER/wide, with the groups in FOLDER/hparams.json.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from olmo_core.data import NumpyDataLoaderConfig, NumpyFSLDatasetConfig, TokenizerConfig
from olmo_core.nn.feed_forward import FeedForwardConfig
from olmo_core.nn.transformer import TransformerConfig
from olmo_core.optim import AdamWConfig, CosWithWarmup, OptimGroupOverride
from olmo_core.train import Duration, TrainerConfig, prepare_training_environment, teardown_training_environment
from olmo_core.train.callbacks import CheckpointerCallback, ConfigSaverCallback
from olmo_core.train.callbacks.callback import Callback
from olmo_core.train.train_module import TransformerTrainModule, TransformerTrainModuleConfig

import mupscale_cli as mupscale

LENGTH, VOCABULARY, CLIP = 16, 64, 0.1
KINDS = {"llama": {"n_kv_heads": 2}, "olmo2": {"qk_norm": True, "block_name": "reordered_norm"}}
NARROW = {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": VOCABULARY}


@dataclass
class Losses(Callback):
    """Keeps the loss of each step."""

    def __post_init__(self):
        self.found = {}

    def log_metrics(self, step, metrics):
        if (loss := metrics.get("train/CE loss")) is not None:
            self.found[step] = float(loss)


def clip(module, max_norm, *_args, **_options):
    return mupscale.clip_grad_norm_(module.optim, max_norm)


def trainer_of(folder, run, model_config, overrides):
    data = folder / "tokens.npy"
    if not data.exists():
        np.random.default_rng(0).integers(0, VOCABULARY, 10_000).astype(np.uint16).tofile(data)
    tokenizer = TokenizerConfig(vocab_size=VOCABULARY, eos_token_id=0, pad_token_id=1)
    dataset = NumpyFSLDatasetConfig(
        paths=[str(data)], sequence_length=LENGTH, tokenizer=tokenizer, work_dir=str(folder)
    )
    module = TransformerTrainModuleConfig(
        rank_microbatch_size=4 * LENGTH,
        max_sequence_length=LENGTH,
        max_grad_norm=CLIP,
        optim=AdamWConfig(lr=3e-3, eps=1e-8, weight_decay=0.1, group_overrides=overrides),
        scheduler=CosWithWarmup(warmup=2),
    ).build(model_config.build(init_device="cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.model.parameters():
            if parameter.dim() < 2:
                parameter.copy_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
    loader = NumpyDataLoaderConfig(global_batch_size=4 * LENGTH, seed=0).build(
        dataset.build(), dp_process_group=module.dp_process_group
    )
    trainer = TrainerConfig(
        save_folder=str(run),
        metrics_collect_interval=1,
        max_duration=Duration.steps(8),
        device="cpu",
        callbacks={
            "checkpointer": CheckpointerCallback(save_interval=4, save_async=False),
            "config_saver": ConfigSaverCallback(),
            "losses": Losses(),
        },
    ).build(module, loader)
    trainer.callbacks["config_saver"].config = {"model": model_config.as_config_dict()}
    return trainer


def main(phase, folder, kind):
    prepare_training_environment(seed=1, backend="gloo")
    folder, overrides = Path(folder), None
    if phase == "narrow":
        ffn = FeedForwardConfig(hidden_size=48, bias=False)
        model = TransformerConfig.llama_like(**NARROW, **KINDS[kind], feed_forward=ffn)
    else:
        TransformerTrainModule._clip_grad_norm = clip
        model = TransformerConfig.from_dict(json.loads((folder / "wide/step4/config.json").read_text())["model"])
        keys = ("lr", "eps", "weight_decay", "clip_weight")
        overrides = [
            OptimGroupOverride(params=group["tensors"], opts={key: group[key] for key in keys})
            for group in json.loads((folder / "hparams.json").read_text())["groups"]
        ]
    trainer = trainer_of(folder, folder / phase, model, overrides)
    trainer.fit()
    sys.stdout.write(json.dumps(trainer.callbacks["losses"].found) + "\n")
    teardown_training_environment()


if __name__ == "__main__":
    main(*sys.argv[1:])
