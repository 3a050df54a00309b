"""Pruning a `LightningModule` with the data of a `LightningDataModule`.

The module's own `training_step`, `validation_step` and `configure_optimizers` are used; the loop
around them is autoprune's, so that a trial can be stopped after each epoch and gone on with after a
crash. See docs/lightning.md for what of Lightning's Trainer is not used.

Raises
------
AutopruneError
    If Lightning is not installed.
"""

from __future__ import annotations

from autoprune.extras import need_extra

need_extra("lightning", "pytorch_lightning")

from autoprune.lightning.study import study_from as study_from  # noqa: E402
from autoprune.lightning.task import LightningTask as LightningTask  # noqa: E402

__all__ = ["LightningTask", "study_from"]
