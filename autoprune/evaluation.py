"""Evaluating a plan, stage by stage: load, then score, cut, mend and train until it is reached."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import nn

from autoprune.pruning.compensate import compensated
from autoprune.pruning.criteria import get_criterion
from autoprune.pruning.cut import cut
from autoprune.pruning.evidence import top_channels
from autoprune.pruning.groups import restrict
from autoprune.pruning.masks import count_nonzero, masked, masks_of
from autoprune.pruning.plan import FineTune, Plan
from autoprune.pruning.reconstruct import reconstructed
from autoprune.pruning.steps import steps_of
from autoprune.pruning.weights import save_model
from autoprune.sparsified import sparsified
from autoprune.training.calibrate import recalibrate
from autoprune.training.checkpoint import SECONDS, Keeper, TrainingState
from autoprune.training.finetune import Epoch, Keep, finetune, scored
from autoprune.training.latency import measure
from autoprune.training.regularise import StayingZero
from autoprune.workbench import Job, Workbench

_T = TypeVar("_T")

RECALIBRATION_SAMPLES = 512
RECALIBRATION_BATCH = 128
STEP_SEED = 1_000_000_000
"""What an earlier step's training adds to the seed."""


def evaluate(
    bench: Workbench,
    *,
    name: str,
    plan: dict[str, Any],
    parent: str,
    seed: int,
    latency: Mapping[str, Any] | None = None,
    checkpoint: Mapping[str, Any] | None = None,
) -> Job:
    """Cut a plan from its parent's weights, fine-tune it with distillation, score each epoch.

    Yields the score after the cut to the plan's widths (epoch 0) and after every epoch. A plan of
    several steps yields the epochs before that, too, with their `step`: their scores are of wider
    models; and so does one with a sparsifier (see `sparsified`). Told to stop, it saves nothing
    and returns None; else the weights are in the store when it returns. `latency` holds the engine
    and the batch size by which the cut model's latency is measured; without it, none is.

    `checkpoint` holds the name of the file that an earlier attempt may have left, and the `seconds`
    between two of its own. What that attempt yielded comes first, in one list, as ``resumed``.
    """
    clock = Clock()
    wanted = Plan.from_json(plan)
    log = _Log(bench, checkpoint, clock)
    if log.heard and not (yield {"resumed": list(log.heard)}):
        return None
    with clock("load"):
        source = Source(
            model=bench.model(parent),
            widths=bench.widths(parent),
            kept=bench.kept(parent),
            name=parent,
        )
    steps = steps_of(wanted, source.widths)
    if wanted.sparsify is not None and wanted.widths != source.widths and log.stage <= SPARSIFYING:
        with clock("sparsify"):
            sparse = yield from log.of(
                sparsified(
                    bench,
                    wanted,
                    source.model,
                    parent=parent,
                    start=log.start(SPARSIFYING),
                    keep=log.keeping(SPARSIFYING, source.kept),
                ),
            )
        if sparse is None:
            return None
        source = replace(source, model=sparse[0], name=sparse[1])
        with clock("calibrate"):  # the weights moved faster than BatchNorm's averages
            recalibrate(source.model, _batches(bench))
    for number, step in enumerate(steps, 1):
        if number < log.stage:
            continue
        last = step is steps[-1]
        tuning = replace(wanted.finetune, epochs=step.epochs)
        resumed = number == log.stage
        if resumed:
            source = log.source(step.widths)
        else:
            source = pruned(bench, wanted, source, step.widths, clock)
        if last and not resumed:
            with clock("evaluate"):
                valid = scored(bench.task, source.model, 0, tuning)
            with clock("measure"):
                measured = measured_latency(bench, source.model, latency)
            if not (yield log.noted({"epoch": 0, "valid": valid, **measured})):
                return None
        with clock("train"):
            for epoch in _trained(
                bench,
                source.model,
                tuning,
                seed=seed if last else seed + STEP_SEED * number,
                start=log.start(number),
                keep=log.keeping(number, source.kept),
            ):
                told: dict[str, Any] = {"epoch": epoch.epoch, "valid": epoch.valid}
                told |= {"loss": epoch.loss} if last else {"step": number}
                if not (yield log.noted(told)):
                    return None
                if last and epoch.epoch == step.epochs:
                    break  # no checkpoint is worth it any more
    with clock("save"):
        digest = save_model(bench.store.weights(name), source.model)
    return {
        "valid": log.heard[-1]["valid"],
        "params": count_nonzero(source.model, bench.grouping.weights.values()),
        "macs": bench.cost.macs(wanted.widths),
        "size_bytes": bench.store.weights(name).stat().st_size,
        "sha256": digest,
        "plan": replace(wanted, kept=source.kept).to_json(),
        "seconds": clock.seconds,
    }


SPARSIFYING = 0
"""The stage before the first step."""


class _Log:
    """What a job has yielded, and its checkpoint: what an earlier attempt left, and its own.

    Attributes
    ----------
    heard
        What was yielded, the earlier attempt's included.
    stage
        The stage that the earlier attempt was in: `SPARSIFYING`, or the number of a step; before
        all of them without one.
    """

    def __init__(
        self, bench: Workbench, checkpoint: Mapping[str, Any] | None, clock: Clock
    ) -> None:
        self._bench = bench
        self._clock = clock
        self._keeper = Keeper(
            file=bench.store.checkpoint(checkpoint["name"]) if checkpoint else None,
            seconds=checkpoint["seconds"] if checkpoint else SECONDS,
        )
        self._saved = self._keeper.load()
        self.heard: list[dict[str, Any]] = []
        self.stage = SPARSIFYING - 1
        if self._saved is not None:
            about = self._saved.about
            self.heard, self.stage = list(about["heard"]), about["stage"]
            clock.seconds |= about["seconds"]

    def noted(self, told: dict[str, Any]) -> dict[str, Any]:
        """Take note of what is about to be yielded."""
        self.heard.append(told)
        return told

    def of(self, job: Generator[dict[str, Any], bool, _T]) -> Generator[Any, bool, _T]:
        """Yield and return what a stage's own generator does, and take note of it."""
        try:
            told = next(job)
            while True:
                told = job.send((yield self.noted(told)))
        except StopIteration as end:
            found: _T = end.value
            return found

    def start(self, stage: int) -> TrainingState | None:
        """Return where the training of a stage stood, if that is what was interrupted."""
        return self._saved.training if self._saved is not None and stage == self.stage else None

    def source(self, widths: Mapping[str, int]) -> Source:
        """Return the model that was being trained."""
        assert self._saved is not None
        kept = self._saved.about["kept"]
        return Source(
            model=self._bench.rebuilt(self._saved.model, kept),
            widths=dict(widths),
            kept=kept and {name: tuple(channels) for name, channels in kept.items()},
            name=None,
        )

    def keeping(self, stage: int, kept: Mapping[str, tuple[int, ...]] | None) -> Keep:
        """Return what a stage's training offers its state to, a model with the `kept` channels."""

        def about() -> dict[str, Any]:
            seconds = dict(self._clock.seconds)
            return {"stage": stage, "kept": kept, "heard": self.heard, "seconds": seconds}

        return lambda state: self._keeper.offer(state, about)


def measured_latency(
    bench: Workbench, model: nn.Module, how: Mapping[str, Any] | None
) -> dict[str, float]:
    """Return a model's latency as a score holds it; nothing if it is not to be measured."""
    if how is None:
        return {}
    found = measure(model, bench.study.example, **how)
    return {"latency": found.seconds, "latency_spread": found.spread}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model on its way to the plan's widths."""

    model: nn.Module
    widths: Mapping[str, int]
    kept: Mapping[str, tuple[int, ...]] | None
    """Which of the dense channels it has; None where single weights are pruned."""
    name: str | None
    """Whose weights these are: a finished candidate's, or the sparsified ones in the store; None
    once they are no one's."""


def pruned(
    bench: Workbench, plan: Plan, source: Source, widths: Mapping[str, int], clock: Clock
) -> Source:
    """Score the source's channels, cut it to `widths`, and mend what can be without training."""
    if widths == source.widths:
        return source
    if source.kept is None:
        return _masked(bench, plan, source, widths, clock)
    grouping = restrict(bench.grouping, source.kept)
    with clock("score"):
        scores = bench.scores(plan.criterion, source.model, grouping, name=source.name)
    with clock("cut"):
        chosen = {
            name: tuple(range(widths[name]))
            if name in grouping.blocks
            else top_channels(scores.groups[name], widths[name])
            for name in grouping.channels
        }
        whole = source.model
        if get_criterion(plan.criterion).compensates:
            whole = compensated(whole, grouping, chosen, scores.input_means)
        model = cut(whole, grouping, chosen)
    if plan.reconstruct:
        with clock("reconstruct"):
            inputs = [batch.inputs for batch in _batches(bench)]
            model = reconstructed(source.model, model, grouping, chosen, inputs)
    with clock("calibrate"):
        recalibrate(model, _batches(bench))
    # A block that the source lacks is not among what was chosen from.
    kept = {n: tuple(source.kept[n][i] for i in chosen.get(n, ())) for n in widths}
    return Source(model=model, widths=dict(widths), kept=kept, name=None)


def _masked(
    bench: Workbench, plan: Plan, source: Source, widths: Mapping[str, int], clock: Clock
) -> Source:
    """Score the source's single weights, and set to zero what goes."""
    with clock("score"):
        scores = bench.weight_scores(plan.criterion, source.model)
    with clock("cut"):
        model = masked(source.model, bench.grouping, scores, widths, plan.granularity)
    with clock("calibrate"):
        recalibrate(model, _batches(bench))
    return Source(model=model, widths=dict(widths), kept=None, name=None)


def _trained(
    bench: Workbench,
    model: nn.Module,
    settings: FineTune,
    *,
    seed: int,
    start: TrainingState | None,
    keep: Keep,
) -> Iterator[Epoch]:
    """Fine-tune; single weights that were pruned stay zero."""
    zeros = masks_of(model, bench.grouping)
    return finetune(
        model,
        bench.task,
        settings,
        teacher=bench.teacher,
        seed=seed,
        regulariser=StayingZero(model, zeros) if zeros else None,
        start=start,
        keep=keep,
    )


def _batches(bench: Workbench) -> Iterator[Any]:
    return bench.training_batches(samples=RECALIBRATION_SAMPLES, batch_size=RECALIBRATION_BATCH)


class Clock:
    """Sums the seconds spent in named parts of a job."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[part] = self.seconds.get(part, 0.0) + spent
