"""What the report says in plain words: which model to take, how it was made, how to load it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoprune.results.choosing import WorthALook, point_of
from autoprune.results.mlflow_database import database_url
from autoprune.results.report.trials import TrialFacts
from autoprune.results.result import Model, SearchResult
from autoprune.searching.candidate import DENSE

Command = dict[str, str]
"""How to do something: ``title``, ``note`` and ``code``."""


def advice(result: SearchResult, chosen: WorthALook[Model]) -> list[dict[str, Any]]:
    """Return the models worth a look, each once, with what it is and why to take it."""
    score = "Most accurate" if result.metric == "accuracy" else "Best score"
    cards = [("knee", "At the knee", chosen.knee), ("best", score, chosen.best)]
    if chosen.smallest is not None:
        cards.insert(0, ("smallest", f"Smallest within {point_words(result)}", chosen.smallest))
    found: dict[str, dict[str, Any]] = {}
    for kind, title, model in cards:
        card = found.setdefault(model.name, {"name": model.name, "titles": [], "why": ""})
        card["titles"].append(title)
        card["why"] = card["why"] or _why(kind, result, model)
    return list(found.values())


def _why(kind: str, result: SearchResult, model: Model) -> str:
    if kind == "smallest":
        return f"Take it if you can lose {point_words(result)}: {_compared(result, model)}."
    if kind == "knee":
        return f"Below it, a smaller model begins to cost much: {_compared(result, model)}."
    return f"Take it if size comes second: {_compared(result, model)}."


def _compared(result: SearchResult, model: Model) -> str:
    """Say how a model does against the dense one."""
    size = f"{times(result.dense.params, model.params)} the dense model's size"
    sign = 1 if result.higher_is_better else -1
    lost = sign * (result.dense.valid - model.valid)
    if abs(lost) < 5e-5 * max(abs(result.dense.valid), 1):
        return f"{size}, and as good on validation"
    word = "worse" if lost > 0 else "better"
    return f"{size}, and {difference(result, abs(lost))} {word} on validation"


def difference(result: SearchResult, lost: float) -> str:
    """Return a difference of scores as people say it: in points where scores are shares."""
    if result.higher_is_better and 0 <= result.dense.valid <= 1:
        return f"{100 * lost:.2g} points" if f"{100 * lost:.2g}" != "1" else "1 point"
    return f"{lost:.3g}"


def point_words(result: SearchResult) -> str:
    """Return what a point is called."""
    if result.higher_is_better and 0 <= result.dense.valid <= 1:
        return "1 point"
    return f"1% ({point_of(result.dense.valid, higher_is_better=result.higher_is_better):.3g})"


def times(dense: int, params: int) -> str:
    """Return a size as a share of the dense one.

    >>> times(1000, 250), times(1000, 900), times(100_000, 42)
    ('1/4 of', '90% of', '1/2,381 of')
    """
    ratio = dense / max(params, 1)
    return f"1/{ratio:,.0f} of" if ratio >= 2.5 else f"{100 / ratio:.0f}% of"


def recipe(trial: TrialFacts) -> str:
    """Say how a candidate was made, as a sentence.

    >>> tuning = {"epochs": 6, "lr": 0.01, "batch_size": 32, "distill_weight": 0.5}
    >>> recipe(TrialFacts(name="t1", number=1, state="complete", criterion="l2", tuning=tuning))
    'Cut from the dense model by the criterion l2, then trained for 6 epochs with a peak learning \
rate of 0.01, batches of 32 and distillation from the dense model (weight 0.5).'
    >>> tuning = {"epochs": 1, "lr": 0.02, "optimizer": "muon"}
    >>> recipe(TrialFacts(name="t2", number=2, state="complete", criterion="l1", tuning=tuning))
    'Cut from the dense model by the criterion l1, then trained for 1 epoch with Muon, a peak \
learning rate of 0.02 and no distillation.'
    """
    tuning = trial.tuning or {}
    epochs = int(tuning.get("epochs", trial.epochs))
    if trial.is_final:
        made = f"{trial.parent}, trained on for another {_count(epochs, 'epoch')}"
    else:
        made = f"{_cut(trial)}, then trained for {_count(epochs, 'epoch')}"
    with_ = ["Muon"] if tuning.get("optimizer") == "muon" else []
    if "lr" in tuning:
        with_.append(f"a peak learning rate of {tuning['lr']:.3g}")
    if "batch_size" in tuning:
        with_.append(f"batches of {tuning['batch_size']}")
    if tuning.get("weight_decay"):
        with_.append(f"weight decay {tuning['weight_decay']:.2g}")
    if tuning.get("dropout"):
        with_.append(f"dropout {tuning['dropout']:.2g}")
    with_.append(_distilled(tuning))
    return f"{made} with {', '.join(with_[:-1])}{' and ' if with_[:-1] else ''}{with_[-1]}."


def _distilled(tuning: Mapping[str, Any]) -> str:
    weight = tuning.get("distill_weight")
    if not weight:
        return "no distillation"
    heat = f", temperature {tuning['temperature']:.2g}" if tuning.get("temperature") else ""
    return f"distillation from the dense model (weight {weight:.2g}{heat})"


def _cut(trial: TrialFacts) -> str:
    parent = "the dense model" if trial.parent == DENSE else trial.parent
    words = f"Cut from {parent} by the criterion {trial.criterion}"
    if trial.granularity == "weight":
        words = f"Single weights of {parent} set to zero by the criterion {trial.criterion}"
    elif trial.granularity == "2:4":
        words = f"Two of every four weights of {parent} set to zero by {trial.criterion}"
    if trial.sparsify:
        epochs = _count(int(trial.sparsify["epochs"]), "epoch")
        words += f", after {epochs} of sparsifying with {trial.sparsify['method']}"
        words += f" (strength {trial.sparsify['strength']:.2g})"
    if trial.steps > 1:
        words += f", in {trial.steps} steps with training between them"
    if trial.reconstruct:
        words += ", its readers refitted by least squares"
    return words


def commands(
    result: SearchResult, model: Model, entry: Mapping[str, Any], *, out: Path, run: str | None
) -> list[Command]:
    """Return how to load and serve a model of the front.

    Parameters
    ----------
    entry
        Its entry in ``front.json``.
    out
        The output folder, as it is to be shown.
    run
        Its run in the search's own MLflow database, if it has one.
    """
    folder, formats = out / model.path, entry.get("formats", ["safetensors"])
    found = [
        {
            "title": "As your own class",
            "note": "Net stands for the class that the study file builds. It can be trained on.",
            "code": f"import autoprune\n\nmodel = autoprune.load({_text(folder)}, model=Net())",
        }
    ]
    if "pt2" in formats:
        found.append(
            {
                "title": "With PyTorch alone",
                "note": "Neither your class nor autoprune is needed.",
                "code": f"import torch\n\n"
                f"program = torch.export.load({_text(folder / 'model.pt2')})\n"
                "outputs = program.module()(inputs)",
            }
        )
    if "onnx" in formats:
        found.append(
            {
                "title": "With ONNX Runtime",
                "note": "No PyTorch is needed. Inputs are NumPy arrays.",
                "code": f"import onnxruntime\n\nfile = {_text(folder / 'model.onnx')}\n"
                "session = onnxruntime.InferenceSession(file)\n"
                "name = session.get_inputs()[0].name\noutputs = session.run(None, {name: inputs})",
            }
        )
    quoted = shlex.quote(str(out))
    if run is not None:
        database = shlex.quote(database_url(out / "mlflow.db"))
        found.append(
            {
                "title": "Serve it over HTTP",
                "note": "Answers POST requests to http://127.0.0.1:5001/invocations.",
                "code": f"export MLFLOW_TRACKING_URI={database}\n"
                "mlflow models serve -p 5001 \\\n  --env-manager local \\\n"
                f"  -m runs:/{run}/model",
            }
        )
        found.append(
            {
                "title": "Review it in MLflow",
                "note": "All trials, their curves and pictures.",
                "code": f"autoprune ui {quoted}",
            }
        )
    return found


def _text(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
