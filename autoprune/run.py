"""A search from beginning to end, in one place, readable top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from autoprune import jobs
from autoprune.errors import AutopruneError
from autoprune.identity import identity_of
from autoprune.joined import check_joined
from autoprune.opening import opening_for
from autoprune.progress import Reporter, SilentReporter
from autoprune.pruning.cost import CostModel
from autoprune.pruning.groups import Grouping
from autoprune.pruning.plan import OptimizerName
from autoprune.results.diagnosis import mostly_blocked
from autoprune.results.result import SearchResult
from autoprune.results.store import Store
from autoprune.running.cluster import Cluster, Needs, connected
from autoprune.searched import save_origin
from autoprune.searching.objectives import DEFAULT_COSTS, costs_among
from autoprune.searching.optuna_study import opened
from autoprune.searching.space import SearchSpace, choices, names_in
from autoprune.searchrun import SearchRun
from autoprune.settings import Settings
from autoprune.shipping import checkpoint_of, luggage_of
from autoprune.study import PruningStudy, find_study_file, load_study, overridden, path_restored
from autoprune.terminal import reporter_for
from autoprune.training.finetune import dropout_layers
from autoprune.training.optimizers import muons_share
from autoprune.training.rehearsal import check_test

DEFAULT_FOLDER = "autoprune-runs"
DEAR = 0.5
"""How much arithmetic Muon may add to training's own, as a share of it, to be the usual one."""


@path_restored()
def search(
    study: PruningStudy | str | Path = "digits",
    *,
    out: str | Path | None = None,
    fresh: bool = False,
    seed: int | None = None,
    criteria: Sequence[str] | None = None,
    sparsify: Sequence[str] | None = None,
    reporter: Reporter | None = None,
    verbose: bool = False,
    **settings: Any,
) -> SearchResult:
    """Search for smaller models that nobody could improve on both counts at once.

    Parameters
    ----------
    study
        A `PruningStudy`, the path of a study file, or the name of a built-in study.
    out
        Where everything goes; by default ``autoprune-runs/<study name>``. A folder that holds this
        very search is gone on with, one that holds another is refused.
    fresh
        Delete what a search has left in `out`, and begin anew. Other files are never deleted.
    seed, criteria, sparsify
        Replace the study's own.
    reporter
        Is told where the search stands.
    verbose
        Without a reporter: print where it stands, as the command does. That is a picture in a
        terminal, and a line a trial in a notebook or a log.
    **settings
        The fields of `Settings`: ``budget``, ``budget_epochs``, ``timeout``, ``trial_timeout``,
        ``workers``, ``engine``, ``address``, ``cpus_per_trial``,
        ``gpus_per_trial``, ``sampler``, ``strategy``, ``objectives``, ``latency_engine``,
        ``latency_batch``, ``objective``, ``accuracy_weight``, ``early_stop``, ``inherit``,
        ``storage``, ``join``, ``tracking_uri``, ``experiment``, ``register``, ``extras``.

    Raises
    ------
    AutopruneError
        If something in the study or the settings must be mended first; nothing is written then.

    Examples
    --------
    >>> result = autoprune.search("digits", budget=50)  # doctest: +SKIP
    >>> result.best(min_accuracy=0.98).params  # doctest: +SKIP
    """
    unknown = set(settings) - set(Settings.__dataclass_fields__)
    if unknown:
        raise TypeError(f"search() got unexpected arguments: {', '.join(sorted(unknown))}")
    chosen = Settings(**settings)
    criteria = None if criteria is None else names_in(criteria)
    sparsify = None if sparsify is None else names_in(sparsify)
    loaded = load_study(study) if not isinstance(study, PruningStudy) else study
    loaded = overridden(loaded, seed=seed, criteria=criteria, sparsify=sparsify)
    origin = loaded if isinstance(study, PruningStudy) else find_study_file(study).resolve()
    model = jobs.dense_model(loaded)
    grouping = prunable_groups(loaded, model)
    costs = _costs(chosen, loaded)
    space = space_of(loaded, model, grouping)
    store = Store(out if out is not None else Path(DEFAULT_FOLDER) / loaded.name)
    check_test(loaded.task, model)
    identity = identity_of(loaded, model, grouping, space, chosen, costs)
    store.check(identity, fresh=fresh)
    with (
        _told(reporter, verbose=verbose) as told,
        opened(chosen.storage) as storage,
        _cluster(chosen) as cluster,
    ):
        if storage is not None and chosen.join is not None:
            check_joined(storage, chosen.join, identity)
        warning = mostly_blocked(grouping)
        if warning is not None:
            told.note(warning)
        with store.locked():
            known = store.open(identity, fresh=fresh)
            save_origin(store, study)
            search_run = SearchRun(
                study=loaded,
                settings=chosen,
                grouping=grouping,
                space=space,
                costs=costs,
                store=store,
                search_id=known["id"],
                reporter=told,
                identity=identity,
                storage=storage,
                opening=opening_for(
                    origin,
                    store,
                    in_process=chosen.workers == 0,
                    threads=1 if cluster is None else max(1, int(chosen.cpus_per_trial)),
                    checkpoint=None if cluster is None else checkpoint_of(loaded),
                    seed=seed,
                    criteria=criteria,
                    sparsify=sparsify,
                ),
                cluster=None if cluster is None else (cluster, luggage_of(origin, loaded)),
            )
            return search_run.run()


def _told(reporter: Reporter | None, *, verbose: bool) -> AbstractContextManager[Reporter]:
    """Return who is told where the search stands."""
    if reporter is None and verbose:
        return reporter_for(quiet=False)
    return nullcontext(reporter or SilentReporter())


def _cluster(settings: Settings) -> AbstractContextManager[Cluster | None]:
    """Return the connection to where trials run, if that is not this machine."""
    if settings.engine == "local":
        return nullcontext()
    return connected(
        settings.address, Needs(cpus=settings.cpus_per_trial, gpus=settings.gpus_per_trial)
    )


def prunable_groups(study: PruningStudy, model: nn.Module) -> Grouping:
    """Find the channel groups of the study's model; raise `AutopruneError` if there are none."""
    grouping = study.find_groups(model)
    if not grouping.groups:
        reasons = "; ".join(f"{b.layer}: {b.reason}" for b in grouping.blocked[:4])
        raise AutopruneError(
            f"A model must have at least one group of channels that can be pruned, "
            f"but this one has none ({reasons or 'it has no layers with weights'})."
        )
    return grouping


def _costs(settings: Settings, study: PruningStudy) -> tuple[str, ...]:
    """Return what the score is traded against; raise `AutopruneError` for other objectives."""
    costs = costs_among(settings.objectives, metric=study.task.metric)
    if settings.objective == "weighted" and costs != DEFAULT_COSTS:
        raise AutopruneError(
            f"`objectives` must be the score and params for objective 'weighted', but is "
            f"{','.join(settings.objectives)}. Leave it out, or use objective 'pareto'."
        )
    return costs


def space_of(study: PruningStudy, model: nn.Module, grouping: Grouping) -> SearchSpace:
    """Return what is searched; raise `AutopruneError` if no group has anything to lose."""
    space = SearchSpace(
        channels={g.name: g.channels for g in grouping.groups},
        space=study.space,
        has_dropout=bool(dropout_layers(model)),
        fixed_batch_size=getattr(study.task, "fixed_batch_size", None),
        blocks=grouping.blocks,
        usual_optimizer=_usual_optimizer(study, model, grouping),
    )
    if all(len(widths) == 1 for widths in space.allowed.values()):
        rules = ", ".join(
            f"{name}={getattr(space.space, name)!r}"
            for name in ("round_to", "min_width", "max_sparsity")
        )
        raise AutopruneError(
            f"At least one group must be allowed to lose channels, but with {rules} none of the "
            f"{len(space.allowed)} is. The widest has {max(space.channels.values())} channels."
        )
    return space


def _usual_optimizer(study: PruningStudy, model: nn.Module, grouping: Grouping) -> OptimizerName:
    """Return Muon; AdamW where Muon is dear, single weights are pruned, or the task has its own."""
    if study.space.granularity != "channel" or hasattr(study.task, "optimisation"):
        return "adamw"
    smallest = min(choices(study.space.batch_size))
    batch_size = getattr(study.task, "fixed_batch_size", None) or smallest
    macs = CostModel(grouping).macs(grouping.channels)
    return "muon" if muons_share(model, macs=macs, batch_size=batch_size) <= DEAR else "adamw"
