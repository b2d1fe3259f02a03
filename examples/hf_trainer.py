"""Widen a checkpoint of the Trainer of transformers, and resume from it: python hf_trainer.py MODEL FOLDER"""

import sys
from importlib import resources

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import mupscale

source, folder = sys.argv[1:]
text = torch.tensor(list((resources.files("mupscale_cli.tasks.demo") / "corpus.txt").read_bytes()))
data = [{"input_ids": piece, "labels": piece} for piece in text.split(64)[:-1]]


def settings(output):
    return TrainingArguments(
        output,
        max_steps=8,
        save_steps=4,
        logging_steps=1,
        learning_rate=1e-3,
        weight_decay=0.1,
        lr_scheduler_type="cosine",
        per_device_train_batch_size=4,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
    )


def losses(trainer):
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


# The narrow run: eight steps, with a checkpoint after four.
narrow = Trainer(AutoModelForCausalLM.from_pretrained(source), settings(f"{folder}/narrow"), train_dataset=data)
narrow.train()

# Widen the checkpoint, and take the other four steps with the wide model.
checkpoint = f"{folder}/wide/checkpoint-4"
mupscale.widen(f"{folder}/narrow/checkpoint-4", checkpoint, factor=2)
model = AutoModelForCausalLM.from_pretrained(checkpoint)
wide = mupscale.WideTrainer(model, settings(f"{folder}/wide"), train_dataset=data)
wide.train(resume_from_checkpoint=checkpoint)

print("step  narrow    wide")
for step in range(5, 9):
    print(f"{step:4}  {losses(narrow)[step]:.4f}  {losses(wide)[step]:.4f}")
