"""Exported folders for tests of loading: written, altered, and signed again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nets import build, grouped
from torch import nn

from autoprune.pruning.cut import cut
from autoprune.pruning.files import checksum, write_signed
from autoprune.pruning.plan import FineTune, Plan
from autoprune.pruning.weights import save_model

PLAN, WEIGHTS = "plan.json", "model.safetensors"
ABSENT = "absent"
FINETUNE = FineTune(epochs=1, lr=1e-3)


def write(folder: Path, net: str, every: int) -> nn.Module:
    """Write what an export's loading needs: a net of `tests/nets.py`, every n-th channel kept."""
    model, _ = build(net)
    kept = {g: tuple(range(0, count, every)) for g, count in grouped(net).channels.items()}
    small = cut(model, grouped(net), kept)
    content = {
        "params": sum(p.numel() for p in small.parameters()),
        "sha256": save_model(folder / WEIGHTS, small),
        **Plan(widths={}, criterion="l2", finetune=FINETUNE).with_kept(kept).to_json(),
    }
    write_signed(folder / PLAN, content)
    return small


def sign(folder: Path, **changes: Any) -> None:
    """Alter a plan and give it the checksum of what it says now; `ABSENT` removes an entry."""
    plan = json.loads((folder / PLAN).read_text()) | changes
    plan = {k: v for k, v in plan.items() if v is not ABSENT}
    (folder / PLAN).write_text(json.dumps(plan | {"checksum": checksum(plan)}))
