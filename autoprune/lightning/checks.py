"""Whether a module can be trained and scored without a Trainer, and which way its score goes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from autoprune.errors import AutopruneError
from autoprune.lightning.kinds import base_of, is_own

Mode = Literal["min", "max"]
LOW_IS_GOOD = {"loss", "nll", "err", "error", "mse", "mae", "rmse", "perplexity", "wer", "cer"}
"""Words in the names of metrics of which less is better."""
HIGH_IS_GOOD = {
    "acc", "accuracy", "f1", "f1score", "auroc", "auc", "ap", "map", "precision", "recall", "r2",
    "iou", "miou", "dice", "bleu", "psnr", "ssim",
}  # fmt: skip
UNUSED = (
    "backward",
    "configure_gradient_clipping",
    "configure_model",
    "lr_scheduler_step",
    "on_after_batch_transfer",
    "on_before_backward",
    "on_before_batch_transfer",
    "on_before_zero_grad",
    "on_fit_end",
    "on_fit_start",
    "on_train_batch_end",
    "on_train_batch_start",
    "on_train_end",
    "on_validation_model_eval",
    "on_validation_model_train",
    "on_validation_model_zero_grad",
    "optimizer_step",
    "optimizer_zero_grad",
    "prepare_data",
    "setup",
    "transfer_batch_to_device",
)
"""Hooks that would change how a module trains, and that nothing here calls.

`setup` and `configure_model` may build layers: a model that has been cut would have its own again.
A training that is stopped has no end, and the data are read before it is known for which module.
"""


def check_hooks(module: Any, *, ignore: Sequence[str] = ()) -> None:
    """Raise `AutopruneError` for a module without the hooks that are needed, or with others."""
    name = type(module).__name__
    base = base_of(module, "LightningModule")
    if base is None:
        raise AutopruneError(f"`module` must be a LightningModule, but is a {name}.")
    for hook in ("training_step", "validation_step", "configure_optimizers"):
        if not is_own(module, base, hook):
            raise AutopruneError(
                f"A LightningModule must have a {hook} to be pruned, but {name} has none. "
                f"Define it, or use SupervisedTask, which needs none."
            )
    if not module.automatic_optimization:
        raise AutopruneError(
            f"A LightningModule must be optimised automatically, but {name} sets "
            f"automatic_optimization = False. Give it a task of its own: see docs/lightning.md."
        )
    unused = [hook for hook in UNUSED if is_own(module, base, hook) and hook not in ignore]
    if unused:
        raise AutopruneError(
            f"A LightningModule must train by training_step and configure_optimizers alone, but "
            f"{name} has {', '.join(unused)}, which autoprune does not call. Move what it does "
            f"(to __init__, the datamodule or a step), or pass ignore={unused!r} if training is "
            f"fine without."
        )


def unlogged(monitor: str, found: Mapping[str, Any]) -> AutopruneError:
    """Build the error for a metric that `validation_step` does not log."""
    names = ", ".join(sorted(found)) or "nothing"
    return AutopruneError(
        f"`monitor` must be a metric that validation_step logs, but {monitor!r} is not: it logs "
        f"{names}. Add self.log({monitor!r}, ...) to validation_step, or name another."
    )


def mode_of(monitor: str, mode: str | None) -> str:
    """Return ``min`` or ``max``: as given, or what the metric's name says."""
    if mode in get_args(Mode):
        return str(mode)
    if mode is not None:
        raise AutopruneError(f"`mode` must be 'min' or 'max', but is {mode!r}.")
    words = set(re.split(r"[^a-z0-9]+", monitor.lower()))
    low, high = words & LOW_IS_GOOD, words & HIGH_IS_GOOD
    if bool(low) != bool(high):
        return "min" if low else "max"
    raise AutopruneError(
        f"`mode` must say whether {monitor!r} is to be high or low, as its name does not. "
        f"Pass mode='max' or mode='min'."
    )
