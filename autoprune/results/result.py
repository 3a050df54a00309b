"""A search's result: the front, as values, read from ``front.json`` without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from autoprune.errors import AutopruneError
from autoprune.pruning.files import read_json

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn


FORMAT = 1
"""Version of ``front.json``; the first ones did not say theirs."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model on the front, or the dense one."""

    name: str
    trial: int | None
    params: int
    macs: int
    """Multiply-accumulates per sample."""
    size_bytes: int
    valid: float
    test: float | None
    path: str
    """Its folder, relative to the search's output folder."""
    memory_bytes: int | None = None
    """Peak memory of the activations of one sample."""
    latency_ms: float | None = field(default=None, compare=False)
    """Milliseconds for a batch, measured at the end of the search: no two searches agree on it."""


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found."""

    out: Path
    study: str
    metric: str
    higher_is_better: bool
    dense: Model
    front: tuple[Model, ...]
    """By ascending parameters."""
    trials: dict[str, int]
    """How many trials ended as complete, stopped and failed."""
    epochs: int = 0
    """Epochs of training in all trials, with sparsifiers and in the final stage too."""
    proxies: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """How well what was known of a trial before its training told its final score, by the proxy's
    name: rank correlations, `within_sizes` and `pooled`, and how many trials they are of."""
    build: Callable[[], nn.Module] | None = None
    """Builds the dense model, where the result came from a search in this process."""

    def best(self, *, max_params: int | None = None, min_accuracy: float | None = None) -> Model:
        """Return the best-scoring model within `max_params`, the smallest one of those equal.

        With `min_accuracy`, the smallest model that is at least that good on validation.

        Raises
        ------
        AutopruneError
            If no model on the front is within the limits; the message names the nearest.
        """
        within = self.within(max_params=max_params, min_accuracy=min_accuracy)
        if not within:
            raise AutopruneError(self.nothing_within(max_params, min_accuracy))
        if min_accuracy is not None:
            return within[0]
        return max(within, key=lambda m: (self._goodness(m), -m.params))

    def within(
        self, *, max_params: int | None = None, min_accuracy: float | None = None
    ) -> tuple[Model, ...]:
        """Return the models of the front within the limits, by ascending parameters."""
        sign = 1.0 if self.higher_is_better else -1.0
        return tuple(
            m
            for m in self.front
            if (max_params is None or m.params <= max_params)
            and (min_accuracy is None or self._goodness(m) >= sign * min_accuracy)
        )

    def nothing_within(self, max_params: int | None, min_accuracy: float | None) -> str:
        """Say that no model is within the limits, and what the nearest ones are."""
        limits = []
        if max_params is not None:
            limits.append(f"at most {max_params:,} parameters")
        if min_accuracy is not None:
            word = "at least" if self.higher_is_better else "at most"
            limits.append(f"{self.metric} {word} {min_accuracy:g}")
        if not self.front:
            return "The front is empty: no trial was completed."
        smallest, best = self.front[0], max(self.front, key=lambda m: (self._goodness(m), m.params))
        return (
            f"No model on the front has {' and '.join(limits)}: the smallest is {smallest.name} "
            f"({smallest.params:,} parameters, {smallest.valid:.4f}), the best {best.name} "
            f"({best.params:,}, {best.valid:.4f})."
        )

    def _goodness(self, model: Model) -> float:
        return model.valid if self.higher_is_better else -model.valid

    def load(self, name: str, *, model: nn.Module | None = None) -> nn.Module:
        """Return a front model as a torch module.

        Parameters
        ----------
        name
            Its name, e.g. ``t017``.
        model
            The dense model's code; not needed for the result of a search in this process.
        """
        from autoprune.results.load import load

        entry = next((m for m in self.front if m.name == name), None)
        if entry is None:
            names = ", ".join(m.name for m in self.front)
            raise AutopruneError(f"`name` must be on the front ({names}), but is {name!r}.")
        if model is None:
            if self.build is None:
                raise AutopruneError(
                    "Pass `model`, the dense model: its class is not in the files."
                )
            model = self.build()
        return load(self.out / entry.path, model=model)

    def to_dataframe(self) -> pd.DataFrame:
        """Return the dense model and the front as a table, one row a model."""
        import pandas as pd

        return pd.DataFrame([asdict(m) for m in (self.dense, *self.front)])


def open_result(out: str | Path, *, build: Callable[[], nn.Module] | None = None) -> SearchResult:
    """Read the result of a search from its output folder.

    Raises
    ------
    AutopruneError
        If the folder holds no finished search, or its ``front.json`` was altered.
    """
    out = Path(out)
    file = out / "front.json"
    if not file.exists():
        started = (out / "search.json").exists()
        raise AutopruneError(
            f"{out} must hold a finished search, but "
            + (
                "its search is not finished. Run the same `autoprune search` again to go on."
                if started
                else "there is no front.json in it."
            )
        )
    value = read_json(file)
    known = value.get("format", FORMAT) if isinstance(value, dict) else FORMAT
    if known != FORMAT:
        raise AutopruneError(
            f"{file} must be of format {FORMAT}, but is of format {known}: another version of "
            f"autoprune wrote it. Read it with that version, or search again in another folder."
        )
    try:
        names = {f.name for f in fields(Model)}
        models = [
            Model(**{n: fact for n, fact in m.items() if n in names})
            for m in (value["dense"], *value["front"])
        ]
        return SearchResult(
            out=out.resolve(),
            study=value["study"],
            metric=value["metric"],
            higher_is_better=value["higher_is_better"],
            dense=models[0],
            front=tuple(models[1:]),
            trials=value["trials"],
            epochs=value.get("epochs", 0),
            proxies=value.get("proxies", {}),
            build=build,
        )
    except (KeyError, TypeError) as error:
        raise AutopruneError(
            f"{file} must be what a search wrote, but reading it gave {type(error).__name__}: "
            f"{error}. Was it altered?"
        ) from error
