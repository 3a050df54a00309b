"""A search's result: the front, as values, read from ``front.json`` without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from autoprune.errors import AutopruneError, first_line
from autoprune.pruning.files import check_signed, read_json
from autoprune.results.choosing import worth_a_look
from autoprune.results.html import as_html

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

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON has it: for a pipeline's next step, or a file.

        Beside the fields, ``chosen`` names the models that are worth a look: ``smallest``
        (within a point of the dense model; None if there is none), ``knee`` and ``best``.

        Examples
        --------
        >>> json.dumps(result.to_dict())  # doctest: +SKIP
        """
        chosen: dict[str, str | None] = {}
        if self.front:
            worth = worth_a_look(
                self.front, dense=self.dense, higher_is_better=self.higher_is_better
            )
            chosen = {
                what: None if model is None else model.name for what, model in worth.by_name.items()
            }
        return {
            "out": str(self.out),
            "study": self.study,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "dense": asdict(self.dense),
            "front": [asdict(model) for model in self.front],
            "chosen": chosen,
            "trials": dict(self.trials),
            "epochs": self.epochs,
            "proxies": {name: dict(found) for name, found in self.proxies.items()},
        }

    def figure(self) -> Any:
        """Return the front over all trials as a plotly figure, which a notebook shows."""
        from autoprune.results.drawing import interactive
        from autoprune.results.store import Store

        return interactive(Store(self.out))

    def _repr_html_(self) -> str:
        """Show the front in a notebook: a table, and the picture beside it in the folder."""
        return as_html(self)


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
    read = read_json(file)
    known = read.get("format", FORMAT) if isinstance(read, dict) else FORMAT
    if known != FORMAT:
        raise AutopruneError(
            f"{file} must be of format {FORMAT}, but is of format {known!r:.80}: another version "
            f"of autoprune wrote it. Read it with that version, or search again in another folder."
        )
    again = "Run the same `autoprune search` again."
    value = check_signed(file, read, way_out=again, required=False)
    try:
        models = [_model(entry) for entry in (value["dense"], *value["front"])]
        told = checked({name: value[name] for name in TOLD if name in value}, TOLD)
        for proxy in told.get("proxies", {}).values():
            checked({name: proxy[name] for name in PROXY}, PROXY)
        return SearchResult(
            out=out.resolve(), dense=models[0], front=tuple(models[1:]), build=build, **told
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AutopruneError(
            f"{file} must be what a search wrote, but reading it gave {first_line(error)}. "
            f"Was it altered?"
        ) from error


TOLD: dict[str, Any] = {
    "study": str,
    "metric": str,
    "higher_is_better": bool,
    "trials": dict,
    "epochs": int,
    "proxies": dict,
}
"""What ``front.json`` says beside the models, and what that may be."""
PROXY: dict[str, Any] = {"within_sizes": float | None, "bins": int, "binned": int}
"""What is shown of a proxy's correlations, and what that may be."""


@cache
def _model_hints() -> Mapping[str, Any]:
    return get_type_hints(Model)


def _model(entry: Mapping[str, Any]) -> Model:
    known = {f.name: entry[f.name] for f in fields(Model) if f.name in entry}
    model = Model(**checked(known, _model_hints()))
    path = PurePosixPath(model.path)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"path {model.path!r} leads out of the folder")
    return model


def checked(values: dict[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """Return values that were read; raise `TypeError` for one that is not as its name's hint says.

    >>> checked({"params": 12, "valid": 1}, {"params": int, "valid": float | None})
    {'params': 12, 'valid': 1}
    """
    for name, value in values.items():
        hint = hints[name]
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        allowed = list(kinds)
        if float in allowed:
            allowed.append(int)
        odd = isinstance(value, str) and not value.isprintable()
        if odd or not isinstance(value, tuple(allowed)):
            raise TypeError(f"{name} {str(value)[:80]!r}")
    return values
