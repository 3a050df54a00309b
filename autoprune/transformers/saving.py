"""Pruned Hugging Face models on disk, as Hugging Face has them: a config and safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import AutopruneError, first_line
from autoprune.pruning.cut import load_state
from autoprune.pruning.files import read_json
from autoprune.pruning.forward import count_params, shared_names
from autoprune.pruning.layers import Skipped
from autoprune.pruning.weights import load_tensors
from autoprune.transformers.configs import fitted, shapes_by, shapes_of
from autoprune.transformers.study import config_of

KEY = "autoprune"
"""Entry of ``config.json`` of a model whose shapes the config cannot say."""
CONFIG, WEIGHTS = "config.json", "model.safetensors"
GENERATION = "generation_config.json"
WHOLE = "1000GB"


def save_pretrained(model: Any, folder: str | Path) -> bool:
    """Write a pruned model in the way of Hugging Face: ``config.json`` and ``model.safetensors``.

    Where a config can say the model's shapes, it does, and ``from_pretrained`` of the model's own
    class loads the folder. Else the config stays the dense model's, with an entry ``autoprune`` of
    the sizes that differ, and `from_pretrained` here loads it.

    Parameters
    ----------
    model
        What a search's result loads: a Hugging Face model with smaller layers. It is not changed.

    Returns
    -------
    bool
        Whether Hugging Face's own ``from_pretrained`` loads it.

    Raises
    ------
    AutopruneError
        If the model is none of Hugging Face's.
    """
    if not hasattr(getattr(model, "config", None), "to_dict"):
        raise AutopruneError(
            f"`model` must be a Hugging Face model with a config, but is a {type(model).__name__}. "
            f"Save others by safetensors."
        )
    folder = Path(folder)
    config = config_of(model)
    said = None if _dropped(model) else fitted(model)
    if said is not None:
        before = model.config.to_dict()
        for name, value in said.to_dict().items():
            if before.get(name) != value:
                setattr(config, name, value)
    else:
        dense, own = shapes_by(model, config) or {}, shapes_of(model)
        sizes = {n: list(s) for n, s in own.items() if dense.get(n) != s}
        setattr(config, KEY, {"sizes": sizes, "dropped": _dropped(model)})
    kept = model.config
    try:
        model.config = config
        # By the names that the model has: those of older versions need sizes that agree.
        model.save_pretrained(folder, max_shard_size=WHOLE, save_original_format=False)
    finally:
        model.config = kept
    return said is not None


def _dropped(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Skipped)]


def from_pretrained(folder: str | Path, *, model_class: type[nn.Module] | None = None) -> nn.Module:
    """Load a model that `save_pretrained` wrote, whatever its widths.

    Parameters
    ----------
    folder
        With ``config.json`` and ``model.safetensors``. Nothing is downloaded.
    model_class
        The model's class, if it is not transformers' own.

    Returns
    -------
    nn.Module
        A model of its class, in evaluation mode; its layers are as small as the weights are, and of
        their types. It generates by what ``generation_config.json`` says, if that is there.

    Raises
    ------
    AutopruneError
        If files are missing, or are of another class.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise AutopruneError(
            f"`folder` must hold {CONFIG} and {WEIGHTS}, but {folder} does not. "
            f"autoprune.transformers.save_pretrained writes them."
        )
    told = read_json(folder / CONFIG)
    kind: Any = model_class or _class_named(folder, told)
    try:
        config = kind.config_class.from_pretrained(folder, local_files_only=True)
        with torch.random.fork_rng(devices=[]):
            dense = kind(config)
    except Exception as error:
        raise AutopruneError(
            f"{folder / CONFIG} must be a config of {kind.__name__}, but building a model of it "
            f"raised {first_line(error)}."
        ) from error
    if (folder / GENERATION).is_file():
        dense.generation_config = _generation(folder)
    entry = told.get(KEY)
    dropped = entry.get("dropped", ()) if isinstance(entry, Mapping) else ()
    state = load_tensors(folder / WEIGHTS)
    for further, first in shared_names(dense).items():  # a tied weight is written once
        if further not in state and first in state:
            state[further] = state[first]
        elif first not in state and further in state:
            state[first] = state[further]
    for name, tensor in (*dense.named_parameters(), *dense.named_buffers()):
        if name in state:
            tensor.data = tensor.data.to(state[name].dtype)
    small = load_state(dense, state, dropped=tuple(map(str, dropped))).eval()
    assert count_params(small) <= count_params(dense)
    return small


def _generation(folder: Path) -> Any:
    import transformers

    try:
        return transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise AutopruneError(
            f"{folder / GENERATION} must be a config of transformers, but reading it raised "
            f"{first_line(error)}. Remove it to generate by the model's own."
        ) from error


def _class_named(folder: Path, told: Mapping[str, Any]) -> Any:
    import transformers

    names = told.get("architectures") if isinstance(told, Mapping) else None
    named = names[0] if isinstance(names, list) and names else None
    kind = getattr(transformers, str(named), None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise AutopruneError(
            f"{folder / CONFIG} must name a model of transformers, but names {named!r}. "
            f"Pass model_class."
        )
    return kind
