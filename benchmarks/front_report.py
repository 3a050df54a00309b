"""The tables and the figure of the front benchmark, from the cells that are there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from front_tasks import MUON
from results_file import wrapped
from scipy import stats

from autoprune.pruning.files import read_json
from autoprune.searching.pareto import hypervolume, pareto

OURS = "autoprune"
FLOOR, DECADES = 0.5, 2.5
FRACTIONS = (2, 4, 8, 16, 32)
"""Times fewer parameters at which accuracies are compared."""
TITLE = "Fronts from the same epochs"
ABOUT = (
    "`python benchmarks/front.py --write`: every method has the same dense models, the same epochs "
    "of fine-tuning in all and the same recipe (one cycle, distillation from the dense model), "
    "which was tuned on validation at one size with a dense model of another seed: once for AdamW "
    "and once for Muon, a section for each. Those epochs are not charged to anybody, and "
    "autoprune's searches begin at that recipe and vary it. Dropout is off in all fine-tuning. "
    "`optuna-plain` has AdamW's usual learning rate and no distillation, whatever was tuned. "
    "Hypervolume is the share of the plane of log10 of the parameters (2.5 decades down from "
    "dense) and accuracy above 0.5 that a front dominates; fronts are always chosen on validation, "
    "and test is read only of models that were on it when they were finished. CPU seconds are of "
    "one process on one thread, with all that a method does: tracing, profiling, scoring, cutting, "
    "training, validation. All train with autoprune's own loop but for `optuna-plain`; it became "
    "quicker with ea6a74d, by a second at the start and 5 % of the training, so that CPU seconds "
    "flatter autoprune where a row is older. "
    "Differences are paired over seeds, with 95 % intervals (Student's t); "
    "positive ones are in autoprune's favour. `at equal CPU s` compares both when the quicker one "
    "had ended. `it needs` is after how much autoprune's test hypervolume has got to the method's "
    "final one, to stay there, and what share of the method's own that is. Accuracies "
    "are of the model that validation chooses among those of at most that size, in percent; "
    "differences are points. ![](front.svg)"
)
IDEAS = {
    "lineage": (OURS, "no-inherit"),
    "blocks may go": (OURS, "no-blocks"),
    "blocks go by size": (OURS, "no-depth-first"),
    "recipe by size": (OURS, "flat-recipe"),
    "trying learning rates": ("wide-rates", "wide-rates-untried"),
    "scouts": (OURS, "no-scouts"),
    "refinement": (OURS, "no-refinement"),
    "its forecast": (OURS, "no-foresight"),
    "scouts and refinement": (OURS, "chain-only"),
    "stopping early": ("stopping", OURS),
    "stopping early, random": ("random-long", "random-long-no-stopping"),
    "stopping early, TPE": ("tpe-long", "tpe-long-no-stopping"),
}
"""Each idea: a search with it, and the same search without it."""
MOMENTS = {"after 10 %": 0.1, "after 60 %": 0.6, "in the end": 1.0}
"""Shares of the epochs after which an idea's worth is looked at."""
ABOUT_IDEAS = (
    "What a search is ahead of itself with one idea off, from the rows above: differences in test "
    "hypervolume, paired over seeds, with 95 % intervals, and how many pairs; positive where the "
    "idea helps. A search does not know that it will be let run to its end, so the front on the "
    "way counts, too. Learning rates are tried where a space has many: the searches that tell what "
    "this is worth have the package's usual range, a factor of 40, instead of one of 4 around the "
    "tuned rate. Stopping early is told of other samplers as well, whose trials have 8 epochs each."
)
WITHOUT_RECIPE = ("optuna-plain",)
"""Methods that nothing of what was tuned changes."""
ABOUT_MUON = (
    "Differences in test hypervolume with 95 % intervals, paired over the seeds that both have, "
    "and how many: each method with Muon less itself with AdamW, each with the recipe that was "
    "tuned for it."
)
ABOUT_SUITED = (
    "Every method with the optimiser that suits it better on a task, ours too, by the mean of its "
    "validation hypervolumes over the seeds that were run with both. A search has Muon on these "
    "networks unless its study says otherwise."
)
Values = dict[int, float]
"""A number for each seed."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished cell."""

    method: str
    seed: int
    cell: dict[str, Any]

    @property
    def dense_params(self) -> int:
        return int(self.cell["dense"]["params"])

    @cached_property
    def curve(self) -> list[dict[str, float]]:
        """After each model: epochs, cpu, and the front's hypervolume on valid and test.

        The front is chosen on validation, whatever the split that its members are judged on.
        """
        found: list[dict[str, float]] = []
        models = self.cell["models"]
        front: list[dict[str, Any]] = []
        for model in models:
            front = _front([*front, model])
            volumes = {split: self._volume(front, split) for split in ("valid", "test")}
            found.append({"epochs": model["epochs"], "cpu": model["cpu"], **volumes})
        return found

    def _volume(self, front: Sequence[dict[str, Any]], split: str) -> float:
        return hypervolume(
            [(model["params"], model[split]) for model in front],
            dense_params=self.dense_params,
            floor=FLOOR,
            decades=DECADES,
        )

    def final(self, what: str) -> float:
        return self.curve[-1][what]

    def at(self, by: str, spent: float, split: str = "test") -> float:
        """Return the hypervolume when so many epochs or CPU seconds were spent."""
        return next((p[split] for p in reversed(self.curve) if p[by] <= spent), 0.0)

    def reaches(self, volume: float, by: str) -> float | None:
        """Return what was spent when the test hypervolume got to `volume` and stayed there."""
        since: float | None = None
        for point in self.curve:
            if point["test"] < volume:
                since = None
            elif since is None:
                since = point[by]
        return since

    def accuracy(self, fraction: int) -> float | None:
        """Return the test score of what validation would choose of at most that size."""
        small = [m for m in self.cell["models"] if m["params"] * fraction <= self.dense_params]
        front = _front(small)
        return float(front[-1]["test"]) if front else None


def _front(models: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return pareto(models, score=lambda m: m["valid"], costs=lambda m: [m["params"]])


# --- numbers with their intervals ---------------------------------------------------------------


def interval(values: Sequence[float]) -> float | None:
    """Return half the width of the mean's 95 % interval (Student's t); None for a single value."""
    if len(values) < 2:
        return None
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(stats.t.ppf(0.975, len(values) - 1)) * spread


def shown(values: Sequence[float], form: str = ".3f") -> str:
    return f"{np.mean(values):{form}}" if len(values) else "-"


def paired(ours: Values, theirs: Values, *, form: str = "+.3f", factor: float = 1.0) -> str:
    """Return the mean difference over the seeds that both have, with its interval."""
    both = sorted(set(ours) & set(theirs))
    return with_interval([factor * (ours[seed] - theirs[seed]) for seed in both], form)


def with_interval(values: Sequence[float], form: str = "+.3f") -> str:
    """Return the mean and half the width of its interval, if there are enough values for one."""
    half = interval(values)
    return shown(values, form) + ("" if half is None else f" ± {half:{form.lstrip('+')}}")


# --- tables -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Results:
    """All runs of a task."""

    task: str
    title: str
    runs: dict[str, dict[int, Run]]
    """By method and seed."""

    def final(self, method: str) -> Values:
        """Return a method's test hypervolumes in the end."""
        return self.of(method, lambda r: r.final("test"))

    def of(self, method: str, what: Callable[[Run], float | None]) -> Values:
        found = {seed: what(run) for seed, run in self.runs.get(method, {}).items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def equal_seconds(self, method: str) -> str:
        """Return how far ours is ahead when both have spent what the quicker one took."""
        ours, theirs = self.runs.get(OURS, {}), self.runs[method]
        both = sorted(set(ours) & set(theirs))
        limits = {s: min(ours[s].final("cpu"), theirs[s].final("cpu")) for s in both}
        return paired(
            {s: ours[s].at("cpu", limits[s]) for s in both},
            {s: theirs[s].at("cpu", limits[s]) for s in both},
        )

    def reached(self, method: str, by: str) -> str:
        """Return what ours spends to get to a method's final hypervolume, and its share."""
        ours, theirs = self.runs.get(OURS, {}), self.runs[method]
        both = sorted(set(ours) & set(theirs))
        found = {s: ours[s].reaches(theirs[s].final("test"), by) for s in both}
        spent = {s: value for s, value in found.items() if value is not None}
        if not spent:
            return "never" if both else "-"
        mean = np.mean(list(spent.values()))
        text = f"{mean:.0f} (1/{np.mean([theirs[s].final(by) for s in spent]) / mean:.1f})"
        never = f", never in {len(both) - len(spent)} of {len(both)}"
        return text + (never if len(spent) < len(both) else "")

    def main_table(self) -> str:
        rows = [
            "| method | seeds | epochs | CPU s | valid | test | valid - test "
            "| autoprune ahead by | at equal CPU s | epochs it needs | CPU s it needs |",
            "|" + " --- |" * 11,
        ]
        ours = self.final(OURS)
        for method in self.runs:
            columns = {
                what: list(self.of(method, lambda r, w=what: r.final(w)).values())  # type: ignore[misc]
                for what in ("epochs", "cpu", "valid", "test")
            }
            gap = [v - t for v, t in zip(columns["valid"], columns["test"], strict=True)]
            cells = [method, str(len(gap)), shown(columns["epochs"], ".0f")]
            cells += [shown(columns["cpu"], ".0f"), shown(columns["valid"])]
            cells += [shown(columns["test"]), shown(gap, "+.3f")]
            if method == OURS:
                cells += ["", "", "", ""]
            else:
                cells += [paired(ours, self.final(method)), self.equal_seconds(method)]
                cells += [self.reached(method, by) for by in ("epochs", "cpu")]
            rows.append(f"| {' | '.join(cells)} |")
        return "\n".join(rows)

    def gains(self, ahead: str, method: str, share: float) -> list[float]:
        """Return how far one method is ahead of another after a share of the epochs, by seed."""
        ours, theirs = (
            self.of(name, lambda r: r.at("epochs", share * r.final("epochs")))
            for name in (ahead, method)
        )
        return [ours[seed] - theirs[seed] for seed in sorted(set(ours) & set(theirs))]

    def accuracy_table(self) -> str:
        head = " | ".join(f"1/{f}" for f in FRACTIONS)
        ahead = " | ".join(f"ahead at 1/{f}" for f in FRACTIONS)
        rows = [f"| method | {head} | {ahead} |", "|" + " --- |" * (1 + 2 * len(FRACTIONS))]
        for method in self.runs:
            cells = [method]
            at = {f: self.of(method, lambda r, f=f: r.accuracy(f)) for f in FRACTIONS}  # type: ignore[misc]
            cells += [self._accuracies(method, at[f]) for f in FRACTIONS]
            for f in FRACTIONS:
                ours = self.of(OURS, lambda r, f=f: r.accuracy(f))  # type: ignore[misc]
                text = paired(ours, at[f], form="+.1f", factor=100)
                cells.append("" if method == OURS else text)
            rows.append(f"| {' | '.join(cells)} |")
        return "\n".join(rows)

    def _accuracies(self, method: str, values: Values) -> str:
        count = len(self.runs[method])
        fewer = f" ({len(values)} of {count})" if 0 < len(values) < count else ""
        return (f"{100 * np.mean(list(values.values())):.1f}" if values else "-") + fewer

    def notes(self) -> list[str]:
        """Return what methods said of their runs, each once."""
        found: dict[str, list[int]] = {}
        for method, runs in self.runs.items():
            for seed, run in runs.items():
                for note in run.cell["notes"]:
                    found.setdefault(f"{method}: {note}", []).append(seed)
        return [
            f"* {text} (seed {', '.join(map(str, seeds))})"
            for text, seeds in found.items()
            if not text.startswith(f"{OURS}: ")
        ]

    def about(self) -> str:
        """Return what was the same for all: dense model, recipe and code."""
        cells = {s: r.cell["dense"] for runs in self.runs.values() for s, r in runs.items()}
        params = {int(dense["params"]) for dense in cells.values()}
        valid, test = (np.mean([d[split] for d in cells.values()]) for split in ("valid", "test"))
        count = " or ".join(f"{p:,}" for p in sorted(params))
        any_run = next(iter(next(iter(self.runs.values())).values()))
        recipe = ", ".join(f"{name} {value}" for name, value in any_run.cell["recipe"].items())
        commits = {r.cell.get("commit", "?") for runs in self.runs.values() for r in runs.values()}
        return (
            f"Dense: {count} parameters, valid {valid:.3f}, test {test:.3f} (means over seeds). "
            f"Tuned recipe: {recipe}. Taken at {', '.join(sorted(str(c)[:7] for c in commits))}."
        )


def ideas_table(results: Sequence[Results]) -> str:
    """Return what each idea is worth on each task, on the way and in the end."""
    titles = " | ".join([*(each.title for each in results), "all pairs"])
    rows = [f"| idea | switched off in | of the epochs | {titles} |"]
    rows.append("|" + " --- |" * (4 + len(results)))
    for idea, (ahead, method) in IDEAS.items():
        for moment, share in MOMENTS.items():
            gains = [each.gains(ahead, method, share) for each in results]
            cells = map(_with_count, [*gains, [gain for each in gains for gain in each]])
            if any(gains):
                rows.append(f"| {idea} | `{method}` | {moment} | {' | '.join(cells)} |")
    return "\n".join(rows)


def pooled_table(results: Sequence[Results]) -> str:
    """Return what each idea is worth over all tasks, whatever the optimiser."""
    rows = [f"| idea | {' | '.join(MOMENTS)} |", "|" + " --- |" * (1 + len(MOMENTS))]
    for idea, (ahead, method) in IDEAS.items():
        gains = [
            [gain for each in results for gain in each.gains(ahead, method, share)]
            for share in MOMENTS.values()
        ]
        if any(gains):
            rows.append(f"| {idea} | {' | '.join(map(_with_count, gains))} |")
    return "\n".join(rows)


def _with_count(values: Sequence[float]) -> str:
    return f"{with_interval(values)} ({len(values)})" if values else "-"


def muon_pairs(results: Sequence[Results]) -> list[tuple[Results, Results]]:
    """Return the tasks that there are with both optimisers: with AdamW, and with Muon."""
    of = {each.task: each for each in results}
    return [(adamw, of[task + MUON]) for task, adamw in of.items() if task + MUON in of]


def muon_table(results: Sequence[Results]) -> str:
    """Return what Muon changes for each method, on each task."""
    pairs = muon_pairs(results)
    titles = " | ".join(adamw.title for adamw, _ in pairs)
    rows = [f"| with Muon less with AdamW | {titles} |", "|" + " --- |" * (1 + len(pairs))]
    for method in _in_both(pairs):
        gains = [_ahead(muon, method, adamw, method) for adamw, muon in pairs]
        rows.append(f"| {method} | {' | '.join(map(_with_count, gains))} |")
    return "\n".join(rows)


def suited(pair: tuple[Results, Results]) -> Results:
    """Return a task's results where every method has the optimiser that suits it better.

    Which one that is, the mean of its validation hypervolumes says; AdamW, if there is only that.
    """
    searches = {method for idea in IDEAS.values() for method in idea} - {OURS}
    runs: dict[str, dict[int, Run]] = {}
    for method in pair[0].runs:
        best = _better(pair, method)
        name = "Muon" if best.task.endswith(MUON) else "AdamW"
        if method not in searches:
            told = method in (OURS, *WITHOUT_RECIPE)
            runs[method if told else f"{method}, {name}"] = best.runs[method]
    return Results(task=pair[0].task, title=pair[0].title, runs=runs)


def _in_both(pairs: Sequence[tuple[Results, Results]]) -> list[str]:
    """Return the methods that were run with both optimisers on every task."""
    found = [m for m in pairs[0][0].runs if all(m in each.runs for pair in pairs for each in pair)]
    return [method for method in found if method not in WITHOUT_RECIPE]


def _better(pair: tuple[Results, Results], method: str) -> Results:
    """Return the results with the optimiser that suits a method, by the seeds that both have."""
    valid = [each.of(method, lambda r: r.final("valid")) for each in pair]
    common = sorted(set(valid[0]) & set(valid[1]))
    if not common:
        return pair[0]
    means = [float(np.mean([scores[seed] for seed in common])) for scores in valid]
    return pair[means.index(max(means))]


def _ahead(these: Results, method: str, those: Results, other: str) -> list[float]:
    """Return how far a method is ahead of another one, each of its own results, by seed."""
    ours, theirs = these.final(method), those.final(other)
    return [ours[seed] - theirs[seed] for seed in sorted(set(ours) & set(theirs))]


def folder_of(task: str, method: str, *, like: str | None) -> str:
    """Return the task among whose cells a method's are; `like` is the same but for its recipe."""
    return like if like is not None and method in WITHOUT_RECIPE else task


def load(
    cells: Path,
    titles: Mapping[str, str],
    methods: Sequence[str],
    *,
    like: Mapping[str, str | None],
) -> list[Results]:
    """Return the results of each task of which there are any, methods in the order given.

    `like` says which task a task is but for its recipe.
    """
    found: list[Results] = []
    for task, title in titles.items():
        runs: dict[str, dict[int, Run]] = {}
        for method in methods:
            folder = folder_of(task, method, like=like[task])
            files = sorted((cells / folder).glob(f"{method}-s[0-9]*.json"))
            for cell in map(read_json, files):
                run = Run(method=method, seed=cell["seed"], cell=cell)
                runs.setdefault(method, {})[run.seed] = run
        if runs:
            found.append(Results(task=task, title=title, runs=runs))
    return found


# --- the section --------------------------------------------------------------------------------


def section(
    results: Sequence[Results],
    *,
    tasks: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
) -> str:
    """Return the benchmark's section of RESULTS.md, with what is missing."""
    parts = [wrapped(ABOUT)]
    for each in results:
        parts += [f"### {each.title}", wrapped(each.about()), each.main_table()]
        parts += ["Test accuracy by size:", each.accuracy_table()]
        parts += ["\n".join(map(wrapped, each.notes()))] if each.notes() else []
    with_ideas = [r for r in results if any(idea in r.runs for _, idea in IDEAS.values())]
    if with_ideas:
        parts += ["### What each idea is worth", wrapped(ABOUT_IDEAS)]
        for name in ("AdamW", "Muon"):
            some = [r for r in with_ideas if r.task.endswith(MUON) == (name == "Muon")]
            parts += [f"With {name}:", ideas_table(some)] if some else []
        if len({r.task.endswith(MUON) for r in with_ideas}) > 1:
            parts += ["All pairs, with either:", pooled_table(with_ideas)]
    if muon_pairs(results):
        parts += ["### Muon or AdamW", wrapped(ABOUT_MUON), muon_table(results)]
        parts += ["### Each with the optimiser that suits it", wrapped(ABOUT_SUITED)]
        for pair in muon_pairs(results):
            ours, each = _better(pair, OURS), suited(pair)
            parts += [f"{each.title}; ours with {'Muon' if ours is pair[1] else 'AdamW'}:"]
            parts += [each.main_table(), each.accuracy_table()]
    there = {r.task: r.runs for r in results}
    for task in tasks:
        runs = there.get(task, {})
        run = {seed for of_method in runs.values() for seed in of_method}
        lacking = {m: [s for s in seeds if s in run - {*runs.get(m, ())}] for m in methods}
        listed = [
            method + (f" (seed {', '.join(map(str, missing))})" if method in runs else "")
            for method, missing in lacking.items()
            if missing
        ]
        if listed:
            parts.append(wrapped(f"Not run on {task}: {'; '.join(listed)}."))
    return "\n\n".join(parts)
