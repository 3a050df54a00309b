"""Sparsifiers: training that drives whole channels to zero before anything is cut.

A sparsifier gets a `Scope` (the channels, how long training lasts, how strong to be) and returns
the hooks that act around each step. Add your own with `@sparsifier("name")`.

Usual strengths follow from the training ahead: a penalty is set by what it adds up to over all
steps, so that it means the same whatever the epochs, the learning rate and the weights' size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from autoprune.errors import unknown
from autoprune.pruning.groups import Grouping
from autoprune.pruning.plan import FineTune, Sparsify
from autoprune.training.checkpoint import TrainingState
from autoprune.training.device import device_of, drawn
from autoprune.training.distill import Teacher, to_batch
from autoprune.training.finetune import Epoch, Keep, finetune, loss_of, step_count
from autoprune.training.gates import Closed, HardConcrete, TargetedDropout, VariationalDropout
from autoprune.training.optimise import optimisation_for
from autoprune.training.regularise import Channels, Regulariser, Scope, channels_of
from autoprune.training.shrinking import L1, BatchNormL1, GroupLasso, GrowingL2
from autoprune.training.task import Task

Make = Callable[[Scope], Regulariser]


@dataclass(frozen=True, kw_only=True)
class Sparsifier:
    """A named way to train a model to need fewer channels."""

    name: str
    make: Make
    needs_targets: bool
    """Whether it must know which channels the plan would remove."""


SPARSIFIERS: dict[str, Sparsifier] = {}


def sparsifier(name: str, *, needs_targets: bool = False) -> Callable[[Make], Make]:
    """Register a sparsifier under `name`: a class or function that makes the hooks from a scope.

    With `needs_targets`, each group's `doomed` says which channels the plan would remove.

    Examples
    --------
    >>> from autoprune.training.regularise import scale
    >>> @sparsifier("fade")
    ... class Fade(Regulariser):
    ...     def __init__(self, scope):
    ...         self.scope = scope
    ...
    ...     def after_step(self, lr):
    ...         for group in self.scope.groups:
    ...             scale(group.parts, group.full(1 - lr * self.scope.strength))
    >>> del SPARSIFIERS["fade"]
    """

    def register(make: Make) -> Make:
        SPARSIFIERS[name] = Sparsifier(name=name, make=make, needs_targets=needs_targets)
        return make

    return register


sparsifier("l1")(L1)
sparsifier("group_lasso")(GroupLasso)
sparsifier("bn_l1")(BatchNormL1)
sparsifier("l2", needs_targets=True)(GrowingL2)
sparsifier("targeted_dropout", needs_targets=True)(TargetedDropout)
sparsifier("variational_dropout")(VariationalDropout)
sparsifier("hard_concrete")(HardConcrete)


def get_sparsifier(name: str) -> Sparsifier:
    """Look a sparsifier up; raise `AutopruneError` with the choices if there is none."""
    if name not in SPARSIFIERS:
        raise unknown("sparsifier", name, SPARSIFIERS)
    return SPARSIFIERS[name]


def sparsify(
    model: nn.Module,
    task: Task,
    settings: FineTune,
    chosen: Sparsify,
    *,
    grouping: Grouping,
    doomed: Mapping[str, Sequence[int]] | None = None,
    teacher: Teacher | None = None,
    seed: int = 0,
    start: TrainingState | None = None,
    keep: Keep | None = None,
) -> Iterator[Epoch]:
    """Train `model` in place with a sparsifier and yield its validation score after each epoch.

    After the last epoch it is a plain model again, of the same shapes. With a strength of 0, this
    is fine-tuning.

    Parameters
    ----------
    settings
        How to train; the epochs are those of `chosen`.
    grouping
        Describes `model`.
    doomed
        Channels that the plan would remove, by group; what `needs_targets` asks for.
    teacher, seed, start, keep
        As in `finetune`.

    Raises
    ------
    TrialError
        If the loss or the score is not a number.
    """
    method = get_sparsifier(chosen.method)
    settings = replace(settings, epochs=chosen.epochs)
    steps = step_count(task, settings, seed=seed)
    regulariser = Regulariser()
    if chosen.strength > 0 and steps > 0:
        groups = channels_of(model, grouping, doomed=doomed)
        ahead = optimisation_for(task, model, settings, steps=steps)
        with torch.no_grad():
            regulariser = method.make(
                Scope(
                    groups=groups,
                    steps=steps,
                    total_lr=ahead.total_rate(),
                    strength=chosen.strength,
                    stake=_stake(model, task, groups, settings, teacher=teacher, seed=seed),
                    generator=torch.Generator(device_of(model)).manual_seed(seed),
                )
            )
    yield from finetune(
        model,
        task,
        settings,
        teacher=teacher,
        seed=seed,
        regulariser=regulariser,
        start=start,
        keep=keep,
    )


@torch.no_grad()
def _stake(
    model: nn.Module,
    task: Task,
    groups: Sequence[Channels],
    settings: FineTune,
    *,
    teacher: Teacher | None,
    seed: int,
) -> float:
    """Return how much larger the loss of a training batch is when every channel is closed."""
    batches = task.batches("train", batch_size=settings.batch_size, seed=seed)
    batch = to_batch(next(drawn(batches, seed)), device_of(model))
    was_training = model.training
    model.eval()
    own = float(loss_of(model, task, batch, settings, teacher))
    with Closed(groups).settled():
        closed = float(loss_of(model, task, batch, settings, teacher))
    model.train(was_training)
    return max(closed - own, 0.0)
