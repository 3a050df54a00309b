"""What runs say of themselves in MLflow: Markdown for people."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from autoprune.pruning.plan import Plan
from autoprune.results.choosing import WorthALook
from autoprune.results.result import Model, SearchResult

RUN_LINK = "run:"
"""Begins links to trials' runs; they get the runs' addresses when the note is delivered."""


def plan_note(plan: Plan, *, parent: str) -> str:
    """Say how a candidate is made.

    >>> from autoprune.pruning.plan import FineTune
    >>> tuning = FineTune(epochs=6, lr=0.01, distill_weight=0.5)
    >>> plan_note(Plan(widths={}, criterion="l2", finetune=tuning), parent="t003")
    'Cut from `t003` by l2; trained 6 epochs at lr 0.01, batch size 64, distillation 0.5.'
    >>> tuning = FineTune(epochs=1, lr=0.02, optimizer="muon")
    >>> plan_note(Plan(widths={}, criterion="l1", finetune=tuning), parent="dense")
    'Cut from `dense` by l1; trained 1 epoch by Muon at lr 0.02, batch size 64.'
    """
    tuning = plan.finetune
    cut = f"Cut from `{parent}` by {plan.criterion}"
    if plan.granularity != "channel":
        cut += f", {plan.granularity} granularity"
    if plan.sparsify is not None:
        s = plan.sparsify
        cut += f", after {_count(s.epochs, 'epoch')} of {s.method} (strength {s.strength:g})"
    if plan.steps > 1:
        cut += f", in {plan.steps} steps"
    if plan.reconstruct:
        cut += ", readers refitted by least squares"
    parts = [f"lr {tuning.lr:.3g}", f"batch size {tuning.batch_size}"]
    if tuning.distill_weight:
        parts.append(f"distillation {tuning.distill_weight:g}")
    if tuning.dropout is not None:
        parts.append(f"dropout {tuning.dropout:g}")
    by = " by Muon" if tuning.optimizer == "muon" else ""
    return f"{cut}; trained {_count(tuning.epochs, 'epoch')}{by} at {', '.join(parts)}."


def model_line(model: Model, dense: Model, metric: str) -> str:
    """Say in a line what a model of the front is."""
    line = (
        f"{model.params:,} parameters ({model.params / dense.params:.1%} of the dense model's), "
        f"{metric} {model.valid:.4g} on validation"
    )
    if model.test is not None:
        line += f", {model.test:.4g} on test"
    if model.latency_ms is not None:
        line += f", {model.latency_ms:.3g} ms a batch"
    return line


def front_note(
    result: SearchResult,
    chosen: WorthALook[Model],
    *,
    trials: Mapping[str, str],
    register: str | None = None,
) -> str:
    """Return the description of a search's run: which models to look at, and how to load them.

    Parameters
    ----------
    trials
        The trial that each model was logged by: its own, or that of its final stage.
    register
        The registered model that the front's are versions of.
    """
    dense, out = result.dense, shlex.quote(str(result.out))
    latency = all(m.latency_ms is not None for m in (dense, *result.front))
    head = ["", "run", "parameters", "of dense", f"{result.metric}, validation", "test"]
    rows = [["dense", f"[dense]({RUN_LINK}dense)", *_figures(dense, dense, latency=latency)]]
    for title, model in _titles(chosen):
        run = f"[{model.name}]({RUN_LINK}{trials[model.name]})"
        rows.append([title, run, *_figures(model, dense, latency=latency)])
    if latency:
        head.append("ms a batch")
    table = [head, ["---"] * len(head), *rows]
    smallest = (
        ""
        if chosen.smallest is not None
        else f"No model is within a point of the dense one's {result.metric}. "
    )
    if register is None:
        knee = f"runs:/<id of the run of {chosen.knee.name}>/model"
    else:
        knee = f"models:/{register}@knee"
    lines = [
        f"**{len(result.front)} models from {result.front[0].params:,} to "
        f"{result.front[-1].params:,} parameters**; the dense model has {dense.params:,}. "
        f"{_ended(result.trials)}, {result.epochs:,} epochs of training in all.",
        "",
        *("| " + " | ".join(row) + " |" for row in table),
        "",
        f"{smallest}All were chosen on validation; test was scored once, at the end. A point is "
        f"{chosen.point:g}. The knee is where a smaller model begins to cost much.",
        "",
        "```python",
        "import mlflow",
        "",
        f'model = mlflow.pyfunc.load_model("{knee}")',
        "```",
        "",
        f"`autoprune report {out}` writes all of it on one page; `front.html`, among the "
        f"artifacts, is the front to hover over. Runs on the front: `tags.front = 'true'`.",
    ]
    return "\n".join(lines)


def _titles(chosen: WorthALook[Model]) -> list[tuple[str, Model]]:
    """Return the models worth a look, each once, and what they are."""
    titles = [("knee", chosen.knee), ("best score", chosen.best)]
    if chosen.smallest is not None:
        titles.insert(0, ("smallest within a point", chosen.smallest))
    found: dict[str, tuple[str, Model]] = {}
    for title, model in titles:
        before = found.get(model.name)
        found[model.name] = (title if before is None else f"{before[0]}, {title}", model)
    return list(found.values())


def _figures(model: Model, dense: Model, *, latency: bool) -> list[str]:
    figures = [
        f"{model.params:,}",
        f"{model.params / dense.params:.1%}",
        f"{model.valid:.4f}",
        "" if model.test is None else f"{model.test:.4f}",
    ]
    return [*figures, f"{model.latency_ms:.3g}"] if latency else figures


def _ended(trials: Mapping[str, int]) -> str:
    words = {"complete": "finished", "stopped": "were stopped early", "failed": "failed"}
    parts = [f"{n} {words.get(state, state)}" for state, n in trials.items() if n]
    return f"Trials: {', '.join(parts)}" if parts else "No trial ended"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
