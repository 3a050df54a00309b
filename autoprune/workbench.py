"""What the jobs of one worker share: study, store, device, models and channel scores."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from autoprune.pruning.cost import CostModel
from autoprune.pruning.criteria import CRITERIA, Criterion, get_criterion, score_groups
from autoprune.pruning.cut import load_state
from autoprune.pruning.evidence import Evidence, collect
from autoprune.pruning.forward import batch_size_of
from autoprune.pruning.groups import Grouping
from autoprune.pruning.masks import weight_scores
from autoprune.pruning.weights import load_sealed, load_tensors, save_sealed
from autoprune.results.store import Store
from autoprune.searching.candidate import DENSE
from autoprune.study import PruningStudy, StudySource
from autoprune.training.device import drawn, pick_device, use_threads
from autoprune.training.distill import Teacher, to_batch
from autoprune.training.task import Batch

Job = Generator[dict[str, Any], bool, dict[str, Any] | None]

CALIBRATION_SAMPLES = 256
CALIBRATION_BATCH = 64

INPUT_MEANS = "mean of inputs"
"""Under which name the readers' mean inputs lie in a file of scores."""


@dataclass(frozen=True, kw_only=True)
class ChannelScores:
    """What one criterion says of a model's channels."""

    groups: Mapping[str, Tensor]
    """Scores by group, [channels]."""
    input_means: Mapping[str, Tensor]
    """Mean of each entry of the inputs, by weight of the layer that reads them; empty if the
    criterion needs no data."""


class Workbench:
    """What the jobs of one worker share, each part made when it is first needed."""

    def __init__(self, study: PruningStudy, store: Store) -> None:
        self.study = study
        self.store = store
        self.task = study.task
        self.device = pick_device(study.device)

    @cached_property
    def grouping(self) -> Grouping:
        return self.store.load_grouping()

    @cached_property
    def cost(self) -> CostModel:
        return CostModel(self.grouping)

    @cached_property
    def untrained(self) -> nn.Module:
        """The dense model as the study builds it; it gives the code to load weights into."""
        return self.study.build()

    @cached_property
    def teacher(self) -> Teacher:
        return Teacher(self.model(DENSE), self.task)

    @property
    def fixed_batch_size(self) -> int | None:
        """The batch size of a training loader, which autoprune cannot change."""
        return getattr(self.task, "fixed_batch_size", None)

    def model(self, name: str) -> nn.Module:
        """Return a fresh copy of a finished candidate's model (or the dense one) on the device."""
        known = self.store.load_candidate(name).sha256 if self.store.has_candidate(name) else None
        state = load_tensors(self.store.weights(name), sha256=known)
        return self.rebuilt(state, self.kept(name))

    def rebuilt(
        self, state: Mapping[str, Tensor], kept: Mapping[str, Sequence[int]] | None
    ) -> nn.Module:
        """Return a model of this state, with the `kept` dense channels, on the device."""
        dropped = () if kept is None else self.grouping.dropped(kept)
        return load_state(self.untrained, state, dropped=dropped).to(self.device)

    def kept(self, name: str) -> Mapping[str, tuple[int, ...]] | None:
        """Return which dense channels a finished candidate has; None if weights are pruned."""
        if self.grouping.weights:
            return None
        if name == DENSE:
            return self.grouping.all_kept()
        kept = self.store.load_candidate(name).plan.kept
        assert kept is not None, "a finished candidate's plan has its kept channels"
        return kept

    def widths(self, name: str) -> dict[str, int]:
        """Return the widths of a finished candidate, or of the dense model."""
        if name == DENSE:
            return self.grouping.channels
        return dict(self.store.load_candidate(name).plan.widths)

    def weight_scores(self, criterion: str, model: nn.Module) -> dict[str, Tensor]:
        """Score every single weight of a model, on its own weights."""
        chosen = get_criterion(criterion)
        evidence = self._evidence(model, self.grouping, [chosen])
        return weight_scores(criterion, evidence, self.grouping)

    def scores(
        self, criterion: str, model: nn.Module, grouping: Grouping, *, name: str | None
    ) -> ChannelScores:
        """Score a model's channels on its own weights.

        The calibration pass on a finished candidate gives the scores of all criteria that need it,
        and is cached under its `name`; None is for weights that are no candidate's.
        """
        chosen = get_criterion(criterion)
        if not chosen.needs_data:
            evidence = self._evidence(model, grouping, [chosen])
            return ChannelScores(groups=score_groups(criterion, evidence, grouping), input_means={})
        if name is None:
            found = self._measured([chosen], model, grouping)
        else:
            found = self._cached(name, chosen, model, grouping)
        return ChannelScores(groups=_part(found, criterion), input_means=_part(found, INPUT_MEANS))

    def _cached(
        self, name: str, criterion: Criterion, model: nn.Module, grouping: Grouping
    ) -> dict[str, Tensor]:
        file = self.store.scores(name)
        cached, _ = load_sealed(file) or ({}, "")  # altered scores are measured again
        if not _part(cached, criterion.name):  # never asked for, or registered since
            # Curvature and moments take long: they are measured only when they are asked for.
            wanted = [c for c in CRITERIA.values() if c.needs_data and c.extras == criterion.extras]
            cached |= self._measured(wanted, model, grouping)
            save_sealed(file, cached)
        return cached

    def _measured(
        self, criteria: list[Criterion], model: nn.Module, grouping: Grouping
    ) -> dict[str, Tensor]:
        """Return scores as ``criterion/group``, and the readers' mean inputs."""
        evidence = self._evidence(model, grouping, criteria)
        scores = {
            f"{criterion.name}/{group}": score
            for criterion in criteria
            for group, score in score_groups(criterion.name, evidence, grouping).items()
        }
        means = {f"{INPUT_MEANS}/{tensor}": s.mean for tensor, s in evidence.inputs.items()}
        return scores | means

    def _evidence(
        self, model: nn.Module, grouping: Grouping, criteria: Sequence[Criterion]
    ) -> Evidence:
        """Gather what criteria need: weights alone, or a calibration pass."""
        if not any(c.needs_data for c in criteria):
            return collect(model, grouping, seed=self.study.seed)
        return collect(
            model,
            grouping,
            batches=self.training_batches(
                samples=CALIBRATION_SAMPLES, batch_size=CALIBRATION_BATCH
            ),
            loss=lambda m, b: self.task.step(m, b)[0],
            curvature=any(c.needs_curvature for c in criteria),
            moments=any(c.needs_moments for c in criteria),
            seed=self.study.seed,
        )

    @cached_property
    def calibration_samples(self) -> int:
        """How many samples channels are scored on: what is asked for, or all there are."""
        batches = self.training_batches(samples=CALIBRATION_SAMPLES, batch_size=CALIBRATION_BATCH)
        return sum(batch_size_of(batch.inputs) for batch in batches)

    def training_batches(self, *, samples: int, batch_size: int) -> Iterator[Batch]:
        """Yield the same few training batches every time."""
        batches = self.task.batches("train", batch_size=batch_size, seed=self.study.seed)
        seen = 0
        for batch in drawn(batches, self.study.seed):
            yield to_batch(batch, self.device)
            seen += batch_size_of(batch.inputs)  # a loader keeps its own batch size
            if seen >= samples:
                return


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}/"
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def open_workbench(spec: Mapping[str, Any]) -> Workbench:
    """Open a worker's workbench from what the driver sent."""
    if spec["threads"]:
        use_threads(spec["threads"])
    source = dict(spec["source"])
    if source["criteria"] is not None:
        source["criteria"] = tuple(source["criteria"])
    if source["sparsify"] is not None:
        source["sparsify"] = tuple(source["sparsify"])
    return Workbench(StudySource(**source).load(), Store(spec["out"]))
