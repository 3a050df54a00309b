"""A LightningModule and its data, as a user of Lightning writes them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from conftest import blobs
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy


class Net(LightningModule):
    def __init__(self, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU())
        self.head = nn.Linear(24, 3)
        self.accuracy = MulticlassAccuracy(3, average="micro")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.accuracy(logits, y)
        self.log("val_acc", self.accuracy, on_epoch=True)
        self.log_dict({"val_loss": F.cross_entropy(logits, y)})

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.hparams.lr, total_steps=self.trainer.estimated_stepping_batches
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Blobs(LightningDataModule):
    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.train, self.val = TensorDataset(*blobs(120, 0)), TensorDataset(*blobs(60, 1))
        else:
            self.test = TensorDataset(*blobs(60, 2))

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=20, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, batch_size=32)

    def test_dataloader(self) -> Any:
        return DataLoader(self.test, batch_size=32)
