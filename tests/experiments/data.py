"""Real data that comes with a dependency or with this repository: digits as images, documents as bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

_ROOT = Path(__file__).parent.parent.parent
_DOCUMENTS = (
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "mupscale_cli/tasks/demo/corpus.txt",
    "recipes/*.md",
    "recipes/*.yaml",
)
CONTEXT = 32  # bytes
VOCABULARY = 128  # ASCII; every other byte is written as 127
_MAX_SHIFT = 2  # pixels of 8: moved digits are a task that a narrow network does not exhaust
_NUM_JUDGED = 1024  # images on which losses are compared
_NUM_JUDGED_WINDOWS = 96  # pieces of text likewise


@dataclass(frozen=True)
class Examples:
    """Inputs and what a model should say to them."""

    inputs: Tensor
    targets: Tensor

    def pick(self, indices: Tensor) -> Examples:
        return Examples(self.inputs[indices], self.targets[indices])

    def to(self, dtype: torch.dtype) -> Examples:
        """The same with floating-point inputs in a dtype; tokens stay what they are."""
        return Examples(self.inputs.to(dtype) if self.inputs.is_floating_point() else self.inputs, self.targets)


@dataclass(frozen=True)
class Data:
    """What models are trained on, and the fixed parts on which they are judged.

    Attributes:
        train: all the examples for training.
        seen: some of them, the same for every model, whose loss is the training loss.
        held_out: examples that no model is trained on.
    """

    train: Examples
    seen: Examples
    held_out: Examples

    def to(self, dtype: torch.dtype) -> Data:
        return Data(self.train.to(dtype), self.seen.to(dtype), self.held_out.to(dtype))

    def judged_on(self, count: int) -> Data:
        """The same with fewer examples that models are judged on."""
        some = torch.arange(count)
        return Data(self.train, self.seen.pick(some), self.held_out.pick(some))

    def batches(self, size: int, count: int, seed: int) -> Iterator[Examples]:
        """Random examples for `count` steps."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            yield self.train.pick(torch.randint(len(self.train.targets), (size,), generator=generator))


def _shifted(images: Examples) -> Examples:
    """Every image in every position that is at most `_MAX_SHIFT` pixels away, in each direction."""
    side = images.inputs.shape[-1]
    padded = functional.pad(images.inputs, (_MAX_SHIFT,) * 4)
    offsets = range(2 * _MAX_SHIFT + 1)
    moved = [padded[..., y : y + side, x : x + side] for y in offsets for x in offsets]
    return Examples(torch.cat(moved), images.targets.repeat(len(moved)))


def _some(examples: Examples, count: int) -> Examples:
    return examples.pick(torch.randperm(len(examples.targets), generator=torch.Generator().manual_seed(0))[:count])


@cache
def _digits() -> Data:
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = torch.tensor(loaded.images, dtype=torch.float32)[:, None] / 16  # 16 is white
    images = (images - images.mean()) / images.std()
    # A blank pixel is what surrounds a digit, and what moving it brings in.
    blank = images.min()
    everything = _some(Examples(images - blank, torch.tensor(loaded.target)), len(images))
    count = len(images) // 5
    train, held_out = (
        _shifted(everything.pick(torch.arange(start, end))) for start, end in ((count, len(images)), (0, count))
    )
    train, held_out = (Examples(part.inputs + blank, part.targets) for part in (train, held_out))
    return Data(train, _some(train, _NUM_JUDGED), _some(held_out, _NUM_JUDGED))


def flat_digits() -> Data:
    """Moved digits of scikit-learn as vectors of 64 pixels."""
    return _mapped(_digits(), lambda images: images.flatten(1))


def coloured_digits() -> Data:
    """Moved digits of scikit-learn as images of three equal channels."""
    return _mapped(_digits(), lambda images: images.expand(-1, 3, -1, -1))


def _mapped(data: Data, of) -> Data:
    return Data(*(Examples(of(part.inputs), part.targets) for part in (data.train, data.seen, data.held_out)))


def document_bytes() -> tuple[list[Tensor], list[Tensor]]:
    """The documents of this repository: of each the first nine tenths, and the rest."""
    files = sorted({file for pattern in _DOCUMENTS for file in _ROOT.glob(pattern)})
    contents = [torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8).long() for file in files]
    contents = [tokens.clamp(max=VOCABULARY - 1) for tokens in contents]
    cuts = [len(tokens) * 9 // 10 for tokens in contents]
    pairs = list(zip(contents, cuts, strict=True))
    return [tokens[:cut] for tokens, cut in pairs], [tokens[cut:] for tokens, cut in pairs]


@cache
def documents() -> Data:
    """Documents of this repository as bytes; of every document the last tenth is held out."""
    train, held_out = (_windows(torch.cat(parts)) for parts in document_bytes())
    return Data(train, _some(train, _NUM_JUDGED_WINDOWS), _some(held_out, _NUM_JUDGED_WINDOWS))


def _windows(tokens: Tensor) -> Examples:
    pieces = tokens.unfold(0, CONTEXT + 1, 1)
    return Examples(pieces[:, :-1], pieces[:, 1:])
