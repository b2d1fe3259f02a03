"""Real data from a dependency and from this repository: images of digits, and documents as bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

ROOT = Path(__file__).parent.parent.parent
_DOCUMENTS = (
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "mupscale_cli/tasks/demo/corpus.txt",
    "recipes/*.md",
    "recipes/*.yaml",
)
CONTEXT = 32  # bytes
VOCABULARY = 128  # ASCII; all other bytes become 127
_MAX_SHIFT = 2  # pixels of 8; a narrow network cannot learn shifted digits perfectly
_NUM_EVALUATED_IMAGES = 1024
_NUM_EVALUATED_WINDOWS = 96


@dataclass(frozen=True)
class Examples:
    """Inputs and their targets."""

    inputs: Tensor
    targets: Tensor

    def pick(self, indices: Tensor) -> Examples:
        return Examples(self.inputs[indices], self.targets[indices])

    def to(self, dtype: torch.dtype) -> Examples:
        """Convert floating-point inputs to a dtype. Tokens do not change."""
        return Examples(self.inputs.to(dtype) if self.inputs.is_floating_point() else self.inputs, self.targets)


@dataclass(frozen=True)
class Data:
    """Training data, and fixed examples to evaluate models on.

    Attributes:
        train: all training examples.
        seen: a fixed part of the training examples; its loss is the training loss.
        held_out: examples that no model is trained on.
    """

    train: Examples
    seen: Examples
    held_out: Examples

    def to(self, dtype: torch.dtype) -> Data:
        return Data(self.train.to(dtype), self.seen.to(dtype), self.held_out.to(dtype))

    @property
    def digest(self) -> str:
        """A digest of the training examples, which tells whether two runs had the same."""
        return hashlib.sha256(self.train.inputs.contiguous().numpy().tobytes()).hexdigest()[:16]

    def with_evaluated(self, count: int) -> Data:
        """Evaluate models on fewer examples."""
        some = torch.arange(count)
        return Data(self.train, self.seen.pick(some), self.held_out.pick(some))

    def batches(self, size: int, count: int, seed: int) -> Iterator[Examples]:
        """Yield `count` random batches."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            yield self.train.pick(torch.randint(len(self.train.targets), (size,), generator=generator))


def _shifted(images: Examples) -> Examples:
    """Shift every image by up to `_MAX_SHIFT` pixels in each direction."""
    side = images.inputs.shape[-1]
    padded = functional.pad(images.inputs, (_MAX_SHIFT,) * 4)
    offsets = range(2 * _MAX_SHIFT + 1)
    shifted = [padded[..., y : y + side, x : x + side] for y in offsets for x in offsets]
    return Examples(torch.cat(shifted), images.targets.repeat(len(shifted)))


def _sample(examples: Examples, count: int) -> Examples:
    return examples.pick(torch.randperm(len(examples.targets), generator=torch.Generator().manual_seed(0))[:count])


@cache
def _digits() -> Data:
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = torch.tensor(loaded.images, dtype=torch.float32)[:, None] / 16  # 16 is white
    images = (images - images.mean()) / images.std()
    blank = images.min()  # shifting pads with zeros, so blank pixels are zero until then
    everything = _sample(Examples(images - blank, torch.tensor(loaded.target)), len(images))
    count = len(images) // 5
    train, held_out = (
        _shifted(everything.pick(torch.arange(start, end))) for start, end in ((count, len(images)), (0, count))
    )
    train, held_out = (Examples(part.inputs + blank, part.targets) for part in (train, held_out))
    return Data(train, _sample(train, _NUM_EVALUATED_IMAGES), _sample(held_out, _NUM_EVALUATED_IMAGES))


def flat_digits() -> Data:
    """Return shifted digits of scikit-learn as vectors of 64 pixels."""
    return _mapped(_digits(), lambda images: images.flatten(1))


def color_digits() -> Data:
    """Return shifted digits of scikit-learn as images with three equal channels."""
    return _mapped(_digits(), lambda images: images.expand(-1, 3, -1, -1))


def _mapped(data: Data, transform: Callable[[Tensor], Tensor]) -> Data:
    return Data(*(Examples(transform(part.inputs), part.targets) for part in (data.train, data.seen, data.held_out)))


def document_bytes(root: Path = ROOT) -> tuple[list[Tensor], list[Tensor]]:
    """Return the documents of a checkout as tokens: the first nine tenths of each, and the rest of each."""
    files = sorted({file for pattern in _DOCUMENTS for file in root.glob(pattern)})
    contents = [torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8).long() for file in files]
    contents = [tokens.clamp(max=VOCABULARY - 1) for tokens in contents]
    cuts = [len(tokens) * 9 // 10 for tokens in contents]
    pairs = list(zip(contents, cuts, strict=True))
    return [tokens[:cut] for tokens, cut in pairs], [tokens[cut:] for tokens, cut in pairs]


@cache
def documents(root: Path = ROOT) -> Data:
    """Return the documents of a checkout as bytes. The last tenth of every document is held out."""
    train, held_out = (_windows(torch.cat(parts)) for parts in document_bytes(root))
    return Data(train, _sample(train, _NUM_EVALUATED_WINDOWS), _sample(held_out, _NUM_EVALUATED_WINDOWS))


def _windows(tokens: Tensor) -> Examples:
    pieces = tokens.unfold(0, CONTEXT + 1, 1)
    return Examples(pieces[:, :-1], pieces[:, 1:])
