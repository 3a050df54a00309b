"""A pruning study to start from. It runs as it is:

    autoprune doctor starter.py
    autoprune search starter.py --budget 20

Replace the three parts marked 1, 2 and 3 by your own model, data and settings.
"""

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn

from autoprune import FineTune, PruningStudy, Space, SupervisedTask


# 1. The model: a function that builds it, or the trained module itself.
def build_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(30, 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(64, 2),
    )


# 2. The data: (inputs, targets) arrays or tensors, a torch Dataset, or a DataLoader.
#    Candidates are chosen on `valid`; `test` is read once, at the very end.
inputs, targets = load_breast_cancer(return_X_y=True)
x_train, x_rest, y_train, y_rest = train_test_split(
    inputs, targets, test_size=0.4, stratify=targets, random_state=0
)
x_valid, x_test, y_valid, y_test = train_test_split(
    x_rest, y_rest, test_size=0.5, stratify=y_rest, random_state=0
)
scaler = StandardScaler().fit(x_train)

task = SupervisedTask(
    train=(scaler.transform(x_train), y_train),
    valid=(scaler.transform(x_valid), y_valid),
    test=(scaler.transform(x_test), y_test),
    loss="cross_entropy",  # or "mse", "l1", "bce_with_logits", or loss(outputs, targets)
    scorer="accuracy",  # or any scikit-learn scorer, or scorer(outputs, targets)
)

# For a training step of your own, subclass SupervisedTask and override `step`:
#
#     class MyTask(SupervisedTask):
#         def step(self, model, batch):
#             outputs = model(batch.inputs)
#             return my_loss(outputs, batch.targets), outputs

# 3. The settings. Everything but the first four lines may be left out.
study = PruningStudy(
    name="starter",
    model=build_model,
    example=torch.zeros(2, 30),  # what the model is called with; its first dimension is the batch
    task=task,
    # The trained dense model: `checkpoint="model.safetensors"` (or a .pt file with a state_dict),
    # or how to train it here:
    train=FineTune(epochs=30, lr=3e-3),
    keep=[],  # layers that must not be pruned, by glob: ["stem", "blocks.0.*"]
    space=Space(
        # A single number is fixed, a pair (low, high) is searched.
        epochs=(4, 16),
        lr=(5e-4, 2e-2),  # a wide range: the first trials try a few, and the best is gone on with
        batch_size=(32, 64, 128),
        dropout=(0.0, 0.3),
        criteria=("taylor", "fisher", "l2", "fpgm"),
    ),
    final_epochs=20,  # extra training for each model on the front
    seed=0,
)
