"""Sparsifying a parent before plans are cut from it; what was trained once is kept for others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from autoprune.pruning.evidence import top_channels
from autoprune.pruning.groups import restrict
from autoprune.pruning.plan import Plan
from autoprune.pruning.weights import load_sealed, save_sealed
from autoprune.searching.candidate import SPARSE
from autoprune.searching.space import middle_recipe
from autoprune.training.checkpoint import TrainingState
from autoprune.training.finetune import Keep
from autoprune.training.sparsify import get_sparsifier, sparsify
from autoprune.workbench import Workbench


def sparsified(
    bench: Workbench,
    plan: Plan,
    model: nn.Module,
    *,
    parent: str,
    start: TrainingState | None = None,
    keep: Keep | None = None,
) -> Generator[dict[str, Any], bool, tuple[nn.Module, str] | None]:
    """Return `model` trained with the plan's sparsifier, and the name it has in the store.

    Yields the validation score after each epoch as ``sparsify``, first of all ``sparsify_cached``:
    whether an earlier trial has trained it and its file is as it was written; one that was altered
    or torn is trained again. The recipe is the middle of the study's space, not the trial's own,
    and the seed the study's, so that every trial that asks for the same gets the same. Told to
    stop, it returns None.

    Parameters
    ----------
    model
        The parent's, on the device. It is trained in place, or left for what the store has.
    start, keep
        As in `finetune`; one that goes on does not yield ``sparsify_cached`` again.
    """
    assert plan.sparsify is not None
    name = sparse_name(plan, parent)
    file = bench.store.weights(name)
    cached = load_sealed(file) if start is None else None
    if start is None and not (yield {"sparsify_cached": cached is not None}):
        return None
    kept = bench.kept(parent)
    assert kept is not None, "single weights are not sparsified"
    if cached is not None:
        return bench.rebuilt(cached[0], kept), name
    grouping = restrict(bench.grouping, kept)
    doomed: dict[str, tuple[int, ...]] = {}
    if get_sparsifier(plan.sparsify.method).needs_targets:
        scores = bench.scores(plan.criterion, model, grouping, name=parent)
        for group, score in scores.groups.items():
            staying = set(top_channels(score, plan.widths[group]))
            doomed[group] = tuple(c for c in range(len(score)) if c not in staying)
    recipe = middle_recipe(bench.study.space, fixed_batch_size=bench.fixed_batch_size)
    for epoch in sparsify(
        model,
        bench.task,
        recipe,
        plan.sparsify,
        grouping=grouping,
        doomed=doomed,
        teacher=bench.teacher,
        seed=bench.study.seed,
        start=start,
        keep=keep,
    ):
        if not (yield {"sparsify": epoch.epoch, "valid": epoch.valid}):
            return None
    save_sealed(file, model.state_dict())
    return model, name


def sparse_name(plan: Plan, parent: str) -> str:
    """Return the name of the parent's weights sparsified for `plan`: the same for the same work."""
    assert plan.sparsify is not None
    work: dict[str, Any] = {"parent": parent, **asdict(plan.sparsify)}
    if get_sparsifier(plan.sparsify.method).needs_targets:
        widths: Mapping[str, int] = plan.widths
        work |= {"widths": dict(widths), "criterion": plan.criterion}
    digest = hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()
    return f"{SPARSE}{digest[:16]}"
