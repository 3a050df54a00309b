"""A search's study once more: from where the search got it, or from whom one says it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprune import jobs
from autoprune.errors import AutopruneError
from autoprune.opening import opening_for
from autoprune.pruning.files import read_json, write_json
from autoprune.pruning.plan import fingerprint
from autoprune.results.store import Store
from autoprune.running.executor import Opening
from autoprune.study import BUILTIN, PruningStudy, find_study_file, load_study, overridden


@dataclass(frozen=True, kw_only=True, eq=False)
class Searched:
    """The study that a folder's search was of, and how workers come by it."""

    study: PruningStudy
    store: Store
    origin: PruningStudy | Path

    def opening(self, store: Store | None = None, *, in_process: bool) -> Opening:
        """Return how workers open their workbench on it, in another `store` if there is one."""
        return opening_for(
            self.origin,
            store or self.store,
            in_process=in_process,
            seed=self.study.seed,
            criteria=None,
            sparsify=None,
        )


def save_origin(store: Store, study: PruningStudy | str | Path) -> None:
    """Note where the study of a search came from; one made in Python came from no file."""
    write_json(store.origin_file, {"study": _named(study)})


def _named(study: PruningStudy | str | Path) -> str | None:
    if isinstance(study, PruningStudy):
        return None
    if str(study) in BUILTIN and not Path(study).is_file():
        return str(study)
    return str(find_study_file(study).resolve())


def reopen(out: str | Path, study: PruningStudy | str | Path | None = None) -> Searched:
    """Return the study that was searched in a folder.

    Parameters
    ----------
    study
        The study: the object, its file, or the name of a built-in one. By default what the search
        was started with.

    Raises
    ------
    AutopruneError
        If there is no search, its study is not known or gone, or `study` is another one.
    """
    store = Store(out)
    if not store.identity_file.exists():
        raise AutopruneError(f"{store.root} must hold a search, but there is no search.json in it.")
    source = _origin(store) if study is None else study
    loaded = source if isinstance(source, PruningStudy) else load_study(source)
    seed = int(read_json(store.identity_file)["seed"])
    loaded = overridden(loaded, seed=seed, criteria=None, sparsify=None)
    if fingerprint(loaded.find_groups(jobs.dense_model(loaded))) != _fingerprint(store):
        raise AutopruneError(
            f"`study` must be the one that was searched, but the model of {loaded.name!r} has "
            f"other layers or channel groups than the one in {store.root}."
        )
    origin = loaded if isinstance(source, PruningStudy) else find_study_file(source).resolve()
    return Searched(study=loaded, store=store, origin=origin)


def _origin(store: Store) -> str:
    """Return what the search was started with.

    Only a built-in study or a file outside the folder is taken: a folder that came from somebody
    else does not bring the code that is run along.
    """
    known: Any = read_json(store.origin_file) if store.origin_file.exists() else {}
    name = known.get("study") if isinstance(known, dict) else None
    if not isinstance(name, str) or not (name in BUILTIN or Path(name).is_absolute()):
        raise AutopruneError(
            f"The study that was searched must be known, but {store.root} does not say which file "
            f"it is. Name it with --study."
        )
    if name not in BUILTIN and store.root in Path(name).resolve().parents:
        raise AutopruneError(
            f"A study file must lie outside the search's folder to be run unasked, but {name} "
            f"does not. Name it with --study if you trust it."
        )
    if name not in BUILTIN and not Path(name).is_file():
        raise AutopruneError(
            f"The study that was searched must still be there, but {name} is not. Name its file "
            f"with --study."
        )
    return name


def _fingerprint(store: Store) -> str:
    return fingerprint(store.load_grouping())
