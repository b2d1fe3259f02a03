"""Train a small causal language model on the text in corpus.txt."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mupscale_cli.errors import MupscaleError, install_extra
from mupscale_cli.optimizers.torch_groups import param_groups
from mupscale_cli.verification.transformers import import_transformers

_CORPUS = Path(__file__).with_name("corpus.txt")
_CONTEXT = 64
_BATCH = 16
_LEARNING_RATE = 5e-3
_WARMUP = 20
_DECAY = 0.1
_BETAS = (0.9, 0.95)
_CONTINUED_RATE = 1e-3  # constant, which makes losses easy to compare
STEPS = 600
CONTINUED = 20

# Llama's shape with everything that makes widening hard: grouped queries and tied embeddings.
_CONFIG = {
    "vocab_size": 256,  # bytes
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 160,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
}


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model.

    Attributes:
        first_loss: loss of the first step, in nats per byte.
        last_loss: mean loss of the last ten steps, in nats per byte.
        num_parameters: number of the model's parameters.
    """

    first_loss: float
    last_loss: float
    num_parameters: int


def train(directory: Path, progress: Callable[[int, float], None]) -> Trained:
    """Train the demo model for `STEPS` steps; save model, tokenizer and optimizer state.

    Args:
        directory: the output directory.
        progress: called after each step with the step's number and loss.

    Raises:
        MupscaleError: transformers is not installed.
    """
    transformers = import_transformers(
        MupscaleError("transformers, which the demo needs, is not installed", hint=install_extra("hf"))
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_CONFIG))
        optimizer = torch.optim.AdamW(model.named_parameters(), lr=_LEARNING_RATE, betas=_BETAS, weight_decay=_DECAY)
        losses = _train(model, optimizer, progress)
    model.save_pretrained(directory)
    for group in optimizer.param_groups:
        group["lr"] = _CONTINUED_RATE
    torch.save(optimizer.state_dict(), directory / "optimizer.pt")
    _tokenizer(transformers).save_pretrained(directory)
    return Trained(losses[0], sum(losses[-10:]) / 10, sum(p.numel() for p in model.parameters()))


def continue_text(directory: Path, prompt: str, num_bytes: int) -> str:
    """Continue a prompt with a saved model by greedy decoding; return the prompt and the text."""
    transformers = import_transformers()
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer(prompt, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=num_bytes, do_sample=False, pad_token_id=0)
    return str(tokenizer.decode(tokens[0]))


def continue_training(directory: Path, *, widened: bool) -> list[float]:
    """Train a saved model for `CONTINUED` more steps from its optimizer state; return the losses in nats per byte.

    Args:
        directory: directory of the model and its optimizer.pt.
        widened: whether the model was widened, so that its parameter groups come from its record.
    """
    transformers = import_transformers()
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    settings: dict[str, Any] = {"lr": _CONTINUED_RATE, "weight_decay": _DECAY, "betas": _BETAS}
    if widened:
        optimizer = torch.optim.AdamW(param_groups(model, directory, **settings, decay=lambda _name, _tensor: True))
    else:
        optimizer = torch.optim.AdamW(model.named_parameters(), **settings)
    optimizer.load_state_dict(torch.load(directory / "optimizer.pt", weights_only=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return [_step(model, optimizer, batch) for batch in _batches(CONTINUED)]


def _batches(count: int) -> Iterator[Tensor]:
    """Yield batches of random excerpts, one token per byte; shape (`_BATCH`, `_CONTEXT`)."""
    tokens = torch.tensor(list(_CORPUS.read_bytes()))
    for _ in range(count):
        starts = torch.randint(len(tokens) - _CONTEXT, (_BATCH, 1))
        yield tokens[starts + torch.arange(_CONTEXT)]


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> float:
    loss = model(input_ids=batch, labels=batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, progress: Callable[[int, float], None]) -> list[float]:
    losses = []
    for step, batch in enumerate(_batches(STEPS)):
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * _schedule(step)
        losses.append(_step(model, optimizer, batch))
        progress(step + 1, losses[-1])
    return losses


def _schedule(step: int) -> float:
    """Return a step's share of the learning rate: linear warmup, then a cosine decay to a tenth."""
    if step < _WARMUP:
        return (step + 1) / _WARMUP
    done = (step - _WARMUP) / (STEPS - _WARMUP)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def _tokenizer(transformers: Any) -> Any:
    """Return a tokenizer that maps each byte to the token of the same number."""
    tokenizers: Any = importlib.import_module("tokenizers")
    # Byte-level tokenizers represent each of the 256 bytes by a printable character.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    vocabulary = {stand_ins[byte]: byte for byte in range(256)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
