"""A study from a Hugging Face model and its tokenised data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.errors import AutopruneError
from autoprune.pruning.forward import map_tensors
from autoprune.pruning.group_rules import ASKS, Stay, Tie
from autoprune.pruning.groups import ChannelGroup
from autoprune.pruning.layers import SELECTED
from autoprune.pruning.plan import FineTune
from autoprune.searching.space import Space
from autoprune.study import PruningStudy
from autoprune.training.scoring import Scorer
from autoprune.transformers.collating import Collator
from autoprune.transformers.configs import governed
from autoprune.transformers.task import TransformersTask

USUAL = Space(
    epochs=(2, 8),
    lr=(3e-5, 1e-3),
    optimizer="adamw",  # that it was trained with before, at such rates
    batch_size=(16, 32),
    weight_decay=(1e-4, 1e-1),
    dropout=None,
)
NOT_IN_CONFIG = "the config has no attribute for its width alone (uniform=True)"


def study_from(
    model: nn.Module | Callable[[], nn.Module],
    *,
    train: Any,
    valid: Any,
    test: Any = None,
    collator: Collator | None = None,
    scorer: str | Scorer | None = None,
    uniform: bool = False,
    name: str | None = None,
    example: Any = None,
    train_dense: FineTune | None = None,
    space: Space = USUAL,
    **settings: Any,
) -> PruningStudy:
    """Make a study of a Hugging Face model and tokenised data.

    Parameters
    ----------
    model
        The model with its head, fine-tuned or not, or a function that builds it.
    train, valid, test, collator, scorer
        As in `TransformersTask`.
    uniform
        Whether widths are to be the same in all layers and only those that the config can say may
        change: then plain ``AutoModel...from_pretrained`` loads what `save_pretrained` writes.
        Without, each layer has widths and heads of its own, and
        `autoprune.transformers.from_pretrained` loads it.
    name
        Names the study; by default the config's `model_type`.
    example
        Inputs that the model is called with, without labels; by default two training samples.
    train_dense
        How to train the dense model first; by default it is taken as it is.
    space
        What is searched; by default learning rates and epochs that suit a pretrained model.
    **settings
        Of `PruningStudy`: ``checkpoint``, ``keep``, ``final_epochs``, ``seed``, ...

    Raises
    ------
    AutopruneError
        If the model is none of Hugging Face's, its head is not known, the data do not fit, or with
        `uniform` no width is in the config, or the space asks for what no config can say.

    Examples
    --------
    >>> study = study_from(model, train=train, valid=valid)  # doctest: +SKIP
    >>> autoprune.search(study, budget=50)  # doctest: +SKIP
    """
    with torch.random.fork_rng(devices=[]):
        built: Any = model() if not isinstance(model, nn.Module) and callable(model) else model
    config: Any = getattr(built, "config", None)
    if not hasattr(config, "model_type"):
        raise AutopruneError(
            f"`model` must be a Hugging Face model with a config, but is a {type(built).__name__}. "
            f"Use PruningStudy with SupervisedTask for others."
        )
    task = TransformersTask(
        built, train=train, valid=valid, test=test, collator=collator, scorer=scorer
    )
    if example is None:
        batch = next(iter(task.batches("train", batch_size=2, seed=0)))
        example = map_tensors(lambda tensor: tensor[:2], batch.inputs)
    form = _Form()
    own: nn.Module = copy.deepcopy(model) if isinstance(model, nn.Module) else built
    prepared = form.given(own)
    study = PruningStudy(
        name=name or str(config.model_type),
        model=prepared if isinstance(model, nn.Module) else _Builder(model, form),
        example=example,
        task=task,
        train=train_dense,
        space=space,
        **settings,
    )
    if not uniform:
        return study
    form = _uniform(study, prepared)
    study = replace(study, space=replace(study.space, depth=False))
    if isinstance(model, nn.Module):
        return replace(study, model=form.given(prepared))
    return replace(study, model=_Builder(model, form))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Form:
    """What a study's model has beside what it was built with."""

    asks: tuple[Tie | Stay, ...] = ()
    ordered: tuple[ChannelGroup, ...] = ()
    """Groups whose channels are put in the order of their strength."""

    def given(self, model: nn.Module) -> nn.Module:
        """Make a model answer with tensors alone and ask for `asks`, in place."""
        config: Any = model.eval().config
        if getattr(config, "use_cache", False):
            config.use_cache = False  # of use in generation alone; `save_pretrained` puts it back
            config.autoprune_use_cache = True
        setattr(model, ASKS, self.asks)
        for group in self.ordered:
            _by_strength(model, group)
        return model


@dataclass(frozen=True, eq=False)
class _Builder:
    """Builds a model and gives it a form."""

    model: Callable[[], nn.Module]
    form: _Form

    def __call__(self) -> nn.Module:
        return self.form.given(self.model())


def _uniform(study: PruningStudy, model: nn.Module) -> _Form:
    """Return what ties the groups that the config has a width for, and keeps the rest."""
    if study.space.depth:
        raise AutopruneError(
            "With uniform=True `space.depth` must not be True, as no config says which layers were "
            "left out. Leave one of them out."
        )
    if study.space.granularity != "channel":
        raise AutopruneError(
            f"With uniform=True `space.granularity` must be 'channel', but is "
            f"{study.space.granularity!r}, which changes no width. Leave uniform out."
        )
    grouping = study.find_groups(model)
    found = list(governed(model, grouping))
    if not found:
        raise AutopruneError(
            f"With uniform=True a config must have an attribute for a width, but that of "
            f"{type(model).__name__} has none that can be pruned alone. Leave uniform out: "
            f"autoprune.transformers.from_pretrained loads any widths."
        )
    tied = [group for each in found for group in each.groups]
    names = {group.name for group in tied}
    others = [group for group in grouping.groups if group.name not in names]
    ties = [Tie(places=tuple(_root(group) for group in each.groups)) for each in found]
    stays = [
        Stay(tensor=tensor, dim=dim, reason=NOT_IN_CONFIG) for tensor, dim in map(_root, others)
    ]
    return _Form(asks=(*ties, *stays), ordered=tuple(tied))


def _root(group: ChannelGroup) -> tuple[str, int]:
    """Return a parameter, and its dimension, that has each of a group's channels in order."""
    parts = [s for s in group.slices if s.tensor.rpartition(".")[2] != SELECTED]
    piece = next((s for s in parts if s.role == "out"), parts[0])  # features of inputs are read
    return piece.tensor, piece.dim


def _by_strength(model: nn.Module, group: ChannelGroup) -> None:
    """Put a group's channels in the order of their norms, in place: the model answers the same.

    Channels that have the same number in several layers go together; now they are alike.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    strength = torch.zeros(group.channels)
    for piece in group.slices:
        values = parameters[piece.tensor].detach().float().cpu()
        strength += _rows(values, piece.dim, piece.index).square().sum(1)
    order = strength.argsort(descending=True).numpy()
    seen: set[tuple[int, int, bytes]] = set()
    for piece in group.slices:
        parameter = parameters[piece.tensor]
        key = (id(parameter), piece.dim, piece.index.tobytes())
        if key in seen:
            continue
        seen.add(key)
        places = np.arange(parameter.shape[piece.dim])
        places[piece.index.reshape(-1)] = piece.index[order].reshape(-1)
        with torch.no_grad():
            parameter.copy_(parameter.index_select(piece.dim, torch.from_numpy(places)))


def _rows(values: Tensor, dim: int, index: Any) -> Tensor:
    """Return a channel's entries in each row, [channels, entries]."""
    along = values.movedim(dim, 0)[torch.from_numpy(index)]
    return along.reshape(len(index), -1)


def config_of(model: nn.Module) -> Any:
    """Return a copy of a model's config as its user had it."""
    config: Any = copy.deepcopy(model.config)
    if getattr(config, "autoprune_use_cache", False):
        config.use_cache = True
        del config.autoprune_use_cache
    return config
