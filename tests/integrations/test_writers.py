"""The lines that `widen` prints continue the run in the trainer that wrote the checkpoint."""

import shutil

import pytest
import torch
import transformers

import mupscale
from cli_runner import run
from mupscale_cli.integrations.writers import WRITERS, continuing_lines

CLIP = 0.3
REL = 16 * 2**-24  # the reference computes norms, softmax and rotary tables in float32: some roundings of it


@pytest.mark.parametrize(
    ("names", "call"),
    [
        (["trainer_state.json", "optimizer.pt", "rng_state.pth"], "mupscale.WideTrainer(model, args, "),
        (["optimizer.bin", "random_states_0.pkl", "scheduler.bin"], "accelerator.load_state('out/wide')"),
        (["optimizer.pt"], "optimizer.load_state_dict(state)"),
    ],
)
def test_the_files_tell_the_trainer(names, call):
    lines = continuing_lines(names, "out/wide")
    assert any(line.startswith(call) for line in lines)
    for line in lines:
        compile(line, "next", "exec")


def test_every_trainer_has_its_own_files():
    assert [writer.file for writer in WRITERS].index("*") == len(WRITERS) - 1


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).train()


def train(model, optimizer, clip):
    losses = []
    for seed in range(3):
        tokens = torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(seed))
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        norm = clip(optimizer)
        optimizer.step()
        losses.append(loss.item())
    assert norm > CLIP, "clipping did nothing, so that it was not tried"
    return losses


def test_a_loop_continues_with_the_printed_lines(saved, tmp_path):
    narrow = shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")
    model = load(narrow)
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-3)

    def plain(_optimizer):
        return torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)

    train(model, optimizer, plain)
    model.save_pretrained(narrow)
    torch.save(optimizer.state_dict(), narrow / "optimizer.pt")
    expected = train(model, optimizer, plain)
    wide = tmp_path / "wide"
    printed = run("widen", str(narrow), "-f", "2", "-o", str(wide), "--no-verify").out
    assert f"mupscale hparams {wide}  #" in printed  # the state has the hyperparameters
    *setting_up, clipping = printed.partition("\ncontinue training\n")[2].strip().splitlines()
    model = load(wide)
    names = {"mupscale": mupscale, "model": model, "max_norm": CLIP, "state": torch.load(wide / "optimizer.pt")}
    names["optimizer"] = torch.optim.AdamW(model.parameters(), lr=1e-3)
    exec("\n".join(line.strip() for line in setting_up), names)  # noqa: S102 (what a user pastes)

    def weighted(_optimizer):
        return eval(clipping.strip(), names)  # noqa: S307 (likewise)

    assert train(model, names["optimizer"], weighted) == pytest.approx(expected, rel=REL)
