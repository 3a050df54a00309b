"""An LSTM and a GRU classifier, searched: hidden size, parameters and latency before and after.

    python benchmarks/recurrent.py [--write]

Rows of the handwritten digits are read as sequences of 8 steps of 8 pixels. Of each front, the
smallest model that loses at most one point of validation accuracy is shown; test was read once.
`--write` puts the table into RESULTS.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from results_file import wrapped, write_section
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import autoprune
from autoprune import FineTune, PruningStudy, Space, SupervisedTask
from autoprune.training.latency import measure_together

TITLE = "Recurrent networks"
LOSS = 0.01
HIDDEN = 96
TRIALS, EPOCHS, FINAL_EPOCHS = 16, 5, 15
ABOUT = (
    "`python benchmarks/recurrent.py --write`: two-layer bidirectional classifiers of the digits, "
    f"read as 8 rows of 8 pixels; {TRIALS} trials of {EPOCHS} epochs, {FINAL_EPOCHS} final epochs, "
    "one worker, so that the trials are the same every time. Of each front, the smallest model "
    "that loses at most a point on validation (359 images); test (360 images) is read once. "
    "Latency is eager, batch 1, one thread, the two in turns."
)


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(8, HIDDEN, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * HIDDEN, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0].mean(1))


def task() -> SupervisedTask:
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8)
    x_train, x_rest, y_train, y_rest = train_test_split(
        images, labels, test_size=0.4, stratify=labels, random_state=0
    )
    x_valid, x_test, y_valid, y_test = train_test_split(
        x_rest, y_rest, test_size=0.5, stratify=y_rest, random_state=0
    )
    return SupervisedTask(train=(x_train, y_train), valid=(x_valid, y_valid), test=(x_test, y_test))


def rows_for(kind: str, folder: Path) -> list[str]:
    study = PruningStudy(
        name=kind.lower(),
        model=lambda: Recurrent(kind),
        example=torch.zeros(2, 8, 8),
        task=task(),
        train=FineTune(epochs=15, lr=3e-3),
        space=Space(epochs=EPOCHS, lr=(1e-3, 1e-2), batch_size=(32, 64)),
        final_epochs=FINAL_EPOCHS,
    )
    # One worker: the same trials every time, whatever else the machine does.
    result = autoprune.search(
        study, out=folder / kind, budget=TRIALS, workers=1, tracking_uri="none"
    )
    chosen = next(m for m in result.front if m.valid >= result.dense.valid - LOSS)
    small = result.load(chosen.name)
    dense = Recurrent(kind).eval()
    latency = measure_together({"dense": dense, "small": small}, study.example, batch_size=1)
    rows = []
    for name, score, model in (("dense", result.dense, dense), ("small", chosen, small)):
        seconds = latency[name].seconds
        rows.append(
            f"| {kind} {'dense' if name == 'dense' else chosen.name} | {model.rnn.hidden_size} "
            f"| {score.params:,} | {score.macs:,} | {score.valid:.4f} | {score.test:.4f} "
            f"| {1e3 * seconds:.2f} ms | {seconds / latency['dense'].seconds:.2f} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="refresh RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "| model | hidden size | params | MACs | valid | test | latency, batch 1 | of dense |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("LSTM", "GRU"):
            lines += rows_for(kind, Path(folder))
    print("\n".join(lines))
    if options.write:
        write_section(TITLE, "\n".join([wrapped(ABOUT), "", *lines]))


if __name__ == "__main__":
    main()
