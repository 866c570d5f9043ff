"""Compare arms with the Hugging Face Trainer: a small ViT with random weights, on digits. Downloads nothing.

    python examples/hf_trainer.py

Needs the extras ``vision``, ``language`` and ``train``. Writes runs/hf-trainer/report.html.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from torch.utils.data import Dataset
from transformers import (
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from preconditioned_attention.lab.comparison import Prepare, compare
from preconditioned_attention.lab.data.digits import load_digits

BATCH_SIZE = 64
MODEL = {
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_labels": 10,
}


class WithNames(Dataset):
    """A dataset whose examples are dictionaries with the names of the model's arguments."""

    def __init__(self, dataset: Dataset) -> None:
        """Keep ``dataset``, whose examples are pairs of image and label."""
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        image, label = self.dataset[index]
        return {"pixel_values": image, "labels": label}


def make_run(steps: int) -> Callable[[Prepare, int, float], dict]:
    """The function that ``compare`` calls for every arm, seed and learning rate."""
    train, validation, test = map(WithNames, load_digits())

    def run(prepare: Prepare, seed: int, learning_rate: float) -> dict:
        model = ViTForImageClassification(ViTConfig(**MODEL))
        prepare(model)  # applies the arm; before the Trainer makes the optimizer
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                seed=seed,  # also decides the order of the batches
                learning_rate=learning_rate,
                max_steps=steps,
                per_device_train_batch_size=BATCH_SIZE,
                per_device_eval_batch_size=300,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            )
            trainer = Trainer(model=model, args=arguments, train_dataset=train, compute_metrics=compute_accuracy)
            trainer.remove_callback(PrinterCallback)  # do not print every step; the losses are in the log
            outcome = trainer.train()
            return {
                "validation": trainer.evaluate(validation)["eval_accuracy"],
                "test": trainer.evaluate(test)["eval_accuracy"],
                "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
                "seconds_per_step": outcome.metrics["train_runtime"] / steps,
            }

    return run


def compute_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """The share of images that are classified correctly."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("runs/hf-trainer"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # the model is too small to gain from more
    compare(
        make_run(options.steps),
        seeds=range(options.seeds),
        learning_rates=[1e-3, 3e-3, 1e-2],
        output=options.output,
        title="Hugging Face ViT on digits",
        settings={"steps": options.steps, "batch_size": BATCH_SIZE, "model": MODEL},
        overwrite=True,
    )


if __name__ == "__main__":
    main()
