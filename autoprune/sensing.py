"""Finding out which groups of a study's model hurt, whether it was searched or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoprune import jobs
from autoprune.dense import USUAL_CRITERION, prepare_dense, sensitivity_of
from autoprune.errors import AutopruneError
from autoprune.identity import dense_identity, digest_of
from autoprune.opening import opening_for
from autoprune.progress import Reporter, SilentReporter
from autoprune.pruning.criteria import get_criterion
from autoprune.pruning.files import file_digest, read_json, write_signed
from autoprune.pruning.groups import Grouping
from autoprune.pruning.plan import fingerprint
from autoprune.results.added import record
from autoprune.results.sensitivities import read_sensitivity, sensitivity_files
from autoprune.results.store import Store
from autoprune.run import DEFAULT_FOLDER, prunable_groups
from autoprune.running.inline import InlineExecutor
from autoprune.searching.candidate import DENSE
from autoprune.study import PruningStudy, load_study, overridden, path_restored
from autoprune.training.device import OwnRandomState
from autoprune.training.latency import compute_threads


@path_restored()
def sensitivity(
    study: PruningStudy | str | Path = "digits",
    *,
    out: str | Path | None = None,
    criterion: str = USUAL_CRITERION,
    fractions: Sequence[float] = jobs.FRACTIONS,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Find out which groups hurt: cut each alone, recalibrate BatchNorm, and score what is left.

    Nothing is trained but the dense model, if it has to be. The same question is answered from the
    cache in the output folder.

    Parameters
    ----------
    study
        A `PruningStudy`, the path of a study file, or the name of a built-in study.
    out
        Where its search is or may come to be; by default ``autoprune-runs/<study name>``. What a
        search there has trained is taken, and its ``sensitivity.json`` written.
    criterion
        What chooses the channels that stay.
    fractions
        Shares of a group's channels to leave.
    reporter
        Is told how far it has come.

    Returns
    -------
    dict
        What ``sensitivity.json`` holds: the dense model's ``loss`` and ``score``, and by group
        those of each cut. The loss is over calibration samples, the score on validation.

    Raises
    ------
    AutopruneError
        If the folder holds another study's search, or an argument breaks its rule.

    Examples
    --------
    >>> found = autoprune.sensitivity("my_study.py")  # doctest: +SKIP
    >>> found["groups"][0]["cells"][0]["score"]  # doctest: +SKIP
    0.981
    """
    get_criterion(criterion)
    odd = [f for f in fractions if not 0 < f < 1]
    if odd or not fractions:
        raise AutopruneError(
            f"`fractions` must be numbers between 0 and 1, both left out, but "
            f"{f'has {odd[0]:g}' if odd else 'are none'}."
        )
    reporter = reporter or SilentReporter()
    loaded = study if isinstance(study, PruningStudy) else load_study(study)
    store = Store(out if out is not None else Path(DEFAULT_FOLDER) / loaded.name)
    if store.root.exists() and not store.root.is_dir():
        raise AutopruneError(f"`--out` must be a folder, but {store.root} is a file.")
    searched = store.identity_file.exists() and store.dense_file.exists()
    if searched:
        seed = int(read_json(store.identity_file)["seed"])
        loaded = overridden(loaded, seed=seed, criteria=None, sparsify=None)
    model = jobs.dense_model(loaded)
    grouping = prunable_groups(loaded, model)
    if searched:
        place = _checked(store, grouping, loaded)
    else:
        place = Store(store.cache / digest_of(dense_identity(loaded, model, grouping)))
    opening = opening_for(loaded, place, in_process=True, seed=None, criteria=None, sparsify=None)
    executor = InlineExecutor(opening, around=OwnRandomState())
    try:
        with place.locked(), compute_threads(1):  # as workers have
            if not searched:
                place.save_grouping(grouping)
            prepare_dense(loaded, place, executor, reporter, latency=None)
            weights = file_digest(place.weights(DENSE))
            asked = {"criterion": criterion, "fractions": list(fractions), "weights": weights}
            file = store.cache / f"sensitivity-{digest_of(asked)}.json"
            if not file.exists():
                found = sensitivity_of(
                    loaded, place, executor, reporter, criterion=criterion, fractions=fractions
                )
                write_signed(file, found)
            found = read_sensitivity(file)
            if searched:
                write_signed(store.sensitivity_file, found)
    finally:
        executor.close()
    if searched:
        for problem in record(store, {}, sensitivity_files(store)):
            reporter.note(problem)
    return found


def _checked(store: Store, grouping: Grouping, study: PruningStudy) -> Store:
    if fingerprint(grouping) != fingerprint(store.load_grouping()):
        raise AutopruneError(
            f"`--out` must be empty or hold this study's search, but the search in {store.root} "
            f"is of other layers or channel groups than {study.name!r} has. Use another folder."
        )
    return store
