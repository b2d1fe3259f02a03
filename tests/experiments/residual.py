"""A residual network under RMSNorm: the smallest model that `--spread balanced` is for."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Adds a two-layer network of the normed stream to the stream."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, stream: Tensor) -> Tensor:
        return stream + self.down(functional.relu(self.up(self.norm(stream))))


class Residual(nn.Module):
    """Classifies images of digits.

    Args:
        width: size of the residual stream.
        inner: size of the hidden layer of each block.
        depth: number of blocks.
    """

    def __init__(self, width: int, inner: int, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(64, width, bias=False)
        self.blocks = nn.ModuleList(Block(width, inner) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 10, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        stream = self.embed(images)
        for block in self.blocks:
            stream = block(stream)
        return self.head(self.norm(stream))
