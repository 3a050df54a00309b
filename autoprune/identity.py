"""What makes two runs one search."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from autoprune.pruning.groups import Grouping
from autoprune.pruning.plan import fingerprint
from autoprune.redaction import redacted
from autoprune.searching.space import SearchSpace
from autoprune.settings import Settings
from autoprune.study import PruningStudy
from autoprune.training.fingerprints import answers, content_digest, split_fingerprint


def identity_of(
    study: PruningStudy,
    model: nn.Module,
    grouping: Grouping,
    space: SearchSpace,
    settings: Settings,
    costs: Sequence[str],
) -> dict[str, Any]:
    """Return what must be the same for two runs to be one search.

    Parameters
    ----------
    model
        The study's dense model, on the CPU, as it is before any training.
    costs
        What the score is traded against, by the objectives' names.
    """
    identity = {
        **dense_identity(study, model, grouping),
        "space": {name: str(value) for name, value in space.distributions.items()},
        "objectives": ["score", *costs],
        "latency": settings.latency if "latency" in costs else None,
        "objective": settings.objective,
        "accuracy_weight": settings.accuracy_weight if settings.objective == "weighted" else None,
        "study_settings": {
            **asdict(study.space),
            "optimizer": space.optimizer,
            "final_epochs": study.final_epochs,
        },
        "join": settings.join,
        "storage": settings.storage and digest_of(redacted(settings.storage)),
    }
    value: dict[str, Any] = json.loads(json.dumps(identity))
    return value


def dense_identity(study: PruningStudy, model: nn.Module, grouping: Grouping) -> dict[str, Any]:
    """Return what must be the same for two dense models, trained or not, to be one."""
    return {
        "study": study.name,
        "model": fingerprint(grouping),
        "metric": study.task.metric,
        "higher_is_better": study.task.higher_is_better,
        "seed": study.seed,
        "train": study.train and asdict(study.train),
        "checkpoint": _checkpoint_digest(study),
        "weights": _weights_digest(study, model),
        "data": {
            "train": split_fingerprint(study.task, "train"),
            "valid": split_fingerprint(study.task, "valid"),
            "test": split_fingerprint(study.task, "test"),
        },
        "answers": answers(model, study.example, study.task),
    }


def digest_of(value: Any) -> str:
    """Return a short digest of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _checkpoint_digest(study: PruningStudy) -> str | None:
    if study.checkpoint is None:
        return None
    return hashlib.sha256(Path(study.checkpoint).read_bytes()).hexdigest()


def _weights_digest(study: PruningStudy, model: nn.Module) -> str | None:
    """Return a digest of the weights of a module that the study takes as it is."""
    if not isinstance(study.model, nn.Module) or study.train or study.checkpoint:
        return None
    return content_digest(tensor for _, tensor in sorted(model.state_dict().items()))
