"""The lines that `widen` prints continue the run in the trainer that wrote the checkpoint."""

import shutil

import pytest
import torch
import transformers

import mupscale
from cli_runner import run
from helpers import build
from mupscale_cli.optimizers.trainers.writers import WRITERS, continuing_lines
from mupscale_cli.tasks.widen import widen

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


def test_a_file_of_torch_save_continues_in_a_loop(tmp_path):
    model = build("Llama-untied")
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-3)
    tokens = torch.ones(1, 3, dtype=torch.long)
    model(tokens, labels=tokens).loss.backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, tmp_path / "narrow.pt")
    (tmp_path / "narrow.config.json").write_text(model.config.to_json_string())
    widened = widen(tmp_path / "narrow.pt", tmp_path / "wide.pt", 2, verify=False)
    model = transformers.AutoModelForCausalLM.from_config(type(model.config)(**widened.plan.config))
    state = torch.load(widened.output)["optimizer"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    names = {"mupscale": mupscale, "model": model, "optimizer": optimizer, "state": state, "max_norm": CLIP}
    exec("\n".join(widened.into_trainer), names)  # noqa: S102 (what a user pastes)
    assert [group["lr"] for group in optimizer.param_groups] == [group["lr"] for group in state["param_groups"]]
    torch.save({"model": content["model"]}, tmp_path / "weights.pt")
    shutil.copy(tmp_path / "narrow.config.json", tmp_path / "weights.config.json")
    assert widen(tmp_path / "weights.pt", tmp_path / "wider.pt", 2, verify=False).into_trainer == ()
