"""A model of nanochat's kind: norms without gains, value embeddings, and gates that read the first channels."""

import torch
from torch import nn
from torch.nn import functional

CHANNELS = 4  # that the gates read; nanochat's read 12 and 24


def norm(x):
    return functional.rms_norm(x, x.shape[-1:], eps=1e-7)


class Layer(nn.Module):
    """A block of attention, whose values take in embeddings through a gate, and a feed-forward layer."""

    def __init__(self, c, is_gated):
        super().__init__()
        embed, kv = c["n_embd"], c["n_kv_head"]
        self.group, self.size = c["n_head"] // kv, embed // c["n_head"]
        width = kv * self.size
        attn = {"c_q": (embed, embed), "c_k": (embed, width), "c_v": (embed, width), "c_proj": (embed, embed)}
        if is_gated:
            attn["ve_gate"] = (CHANNELS, kv)
        self.attn = nn.ModuleDict({name: nn.Linear(*sizes, bias=False) for name, sizes in attn.items()})
        mlp = {"c_fc": (embed, 4 * embed), "c_proj": (4 * embed, embed)}
        self.mlp = nn.ModuleDict({name: nn.Linear(*sizes, bias=False) for name, sizes in mlp.items()})

    def forward(self, x, embedded):
        y, d = norm(x), self.size
        q, k, v = (self.attn[name](y).unflatten(-1, (-1, d)) for name in ("c_q", "c_k", "c_v"))
        if embedded is not None:
            gate = 3 * torch.sigmoid(self.attn["ve_gate"](y[..., :CHANNELS]))
            v = v + gate.unsqueeze(-1) * embedded.unflatten(-1, (-1, d))
        q, k, v = (each.transpose(1, 2) for each in (norm(q), norm(k), v))
        k, v = (each.repeat_interleave(self.group, 1) for each in (k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
        x = x + self.attn["c_proj"](mixed.transpose(1, 2).flatten(-2))
        return x + self.mlp["c_proj"](functional.relu(self.mlp["c_fc"](norm(x))).square())


class GPT(nn.Module):
    """The whole model."""

    def __init__(self, c):
        super().__init__()
        embed, layers, vocab = c["n_embd"], c["n_layer"], c["vocab_size"]
        blocks = nn.ModuleList(Layer(c, i % 2 == 1) for i in range(layers))
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(vocab, embed), "h": blocks})
        width = embed // c["n_head"] * c["n_kv_head"]
        self.value_embeds = nn.ModuleDict({str(i): nn.Embedding(vocab, width) for i in range(1, layers, 2)})
        self.lm_head, self.smear_gate = nn.Linear(embed, vocab, bias=False), nn.Linear(CHANNELS, 1, bias=False)
        self.resid_lambdas, self.x0_lambdas = nn.Parameter(torch.ones(layers)), nn.Parameter(torch.ones(layers))
        self.smear_lambda, self.backout_lambda = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, input_ids):
        x = norm(self.transformer["wte"](input_ids))
        gate = self.smear_lambda * torch.sigmoid(self.smear_gate(x[:, 1:, :CHANNELS]))
        x = first = middle = torch.cat([x[:, :1], x[:, 1:] + gate * x[:, :-1]], dim=1)
        for i, block in enumerate(self.transformer["h"]):
            x = self.resid_lambdas[i] * x + self.x0_lambdas[i] * first
            x = block(x, self.value_embeds[str(i)](input_ids) if str(i) in self.value_embeds else None)
            middle = x if i == 0 else middle
        return self.lm_head(norm(x - self.backout_lambda * middle))


def build(config):
    return GPT(config)


CONFIG = {"n_embd": 24, "n_head": 4, "n_kv_head": 2, "n_layer": 2, "vocab_size": 40, "sequence_len": 16}
