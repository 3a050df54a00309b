"""The study: what a user brings. And loading it from a study file."""

from __future__ import annotations

import base64
import contextlib
import copy
import hashlib
import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from autoprune.errors import AutopruneError, Rules, check_values, first_line, is_whole
from autoprune.pruning.criteria import CRITERIA
from autoprune.pruning.forward import map_tensors, tensors_of
from autoprune.pruning.graph import find_groups
from autoprune.pruning.groups import Grouping
from autoprune.pruning.layers import GROUP_RULES
from autoprune.pruning.masks import weight_groups
from autoprune.pruning.plan import FineTune
from autoprune.searching.space import Space, with_criteria, with_sparsify
from autoprune.training.device import SEEDS
from autoprune.training.sparsify import SPARSIFIERS
from autoprune.training.task import Task, missing_methods

NAME_RULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
BUILTIN = ("digits", "starter")


@dataclass(frozen=True, kw_only=True, eq=False)
class PruningStudy:
    """A trained (or trainable) model, its data, and what to search.

    Parameters
    ----------
    name
        Letters, digits, ``.``, ``_`` and ``-``; names folders and the MLflow experiment's runs.
    model
        A module, or a function without arguments that builds it.
    example
        Inputs as the model is called with them: a tensor, a tuple (positional) or a dict (by
        keyword). Its first dimension is the batch.
    task
        The data, the loss and the score; see `SupervisedTask`.
    checkpoint
        A safetensors file or a state_dict saved by torch: the trained dense model.
    train
        How to train the dense model, if there is no checkpoint. With neither, the model is taken
        as it is.
    keep
        Glob patterns of layers that never lose channels.
    prune_inputs
        Whether the first layers may read fewer input features. They then pick what they read
        themselves, so that the model is called as before.
    prune_embeddings
        Whether the size of embeddings, and of all that is added to them, may be pruned.
    space
        What is searched.
    final_epochs
        Epochs that each model on the front gets at the end; 0 leaves them as the search did.
    seed
        Fixes everything that is drawn; 0 <= seed < 2**32.
    device
        ``auto`` takes the first GPU, or the CPU.

    Raises
    ------
    AutopruneError
        If an argument breaks its rule.
    """

    name: str
    model: nn.Module | Callable[[], nn.Module]
    example: Any
    task: Task
    checkpoint: str | Path | None = None
    train: FineTune | None = None
    keep: Sequence[str] = ()
    prune_inputs: bool = False
    prune_embeddings: bool = False
    space: Space = field(default_factory=Space)
    final_epochs: int = 0
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        check_values(self, STUDY_RULES)
        if not isinstance(self.model, nn.Module) and not callable(self.model):
            raise AutopruneError(
                f"`model` must be a torch module or a function that builds one, "
                f"but is a {type(self.model).__name__}."
            )
        if not tensors_of(self.example):
            raise AutopruneError("`example` must hold at least one tensor, but holds none.")
        odd = _first_non_tensor(self.example)
        if odd is not None:
            raise AutopruneError(
                f"`example` must hold tensors only, but holds {odd}. "
                f"Give such arguments their value in the model."
            )
        object.__setattr__(self, "example", map_tensors(lambda t: t.detach().cpu(), self.example))
        lacking = missing_methods(self.task)
        if lacking:
            raise AutopruneError(
                f"`task` must have {', '.join(lacking)}, but a {type(self.task).__name__} has not. "
                f"See SupervisedTask."
            )
        check_values(self.task, TASK_RULES, prefix="task.")
        if self.checkpoint is not None and self.train is not None:
            raise AutopruneError("A study must have `checkpoint` or `train`, not both.")

    def build(self) -> nn.Module:
        """Return a fresh dense model, untrained weights drawn from the study's seed.

        Raises
        ------
        AutopruneError
            If the model function fails or returns no module.
        """
        if isinstance(self.model, nn.Module):
            return copy.deepcopy(self.model).cpu()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            try:
                model = self.model()
            except Exception as error:
                raise AutopruneError(
                    f"The study's `model` function must build a module, but raised "
                    f"{first_line(error)}."
                ) from error
        if not isinstance(model, nn.Module):
            raise AutopruneError(
                f"The study's `model` function must return a torch module, "
                f"but returned a {type(model).__name__}."
            )
        return model.cpu()

    def find_groups(self, model: nn.Module) -> Grouping:
        """Find what the study may prune of its model: channels and blocks, or single weights."""
        grouping = find_groups(
            model,
            self.example,
            keep=self.keep,
            prune_inputs=self.prune_inputs,
            embeddings=self.prune_embeddings,
        )
        if self.space.granularity != "channel":
            return weight_groups(grouping, self.space.granularity, keep=self.keep)
        return replace(grouping, blocks=()) if self.space.depth is False else grouping


TASK_RULES: Rules = {
    "metric": (
        lambda v: isinstance(v, str) and v.isprintable() and bool(v),
        "a name of printable characters on one line",
    ),
    "higher_is_better": (lambda v: isinstance(v, bool), "True or False"),
}
STUDY_RULES: Rules = {
    "name": (
        lambda v: isinstance(v, str) and NAME_RULE.fullmatch(v) is not None,
        "1 to 64 letters, digits, '.', '_' or '-' and start with a letter or digit",
    ),
    "checkpoint": (
        lambda v: isinstance(v, str | Path | None),
        "the path of a file (weights that are loaded already belong in `model`)",
    ),
    "train": (
        lambda v: v is None or (isinstance(v, FineTune) and v.epochs > 0),
        "a FineTune of at least 1 epoch, such as FineTune(epochs=30, lr=0.01)",
    ),
    "keep": (
        lambda v: isinstance(v, list | tuple) and all(isinstance(each, str) for each in v),
        "a list of patterns",
    ),
    "prune_inputs": (lambda v: isinstance(v, bool), "True or False"),
    "prune_embeddings": (lambda v: isinstance(v, bool), "True or False"),
    "space": (lambda v: isinstance(v, Space), "a Space, such as Space(epochs=(5, 20))"),
    "final_epochs": (lambda v: is_whole(v, 0), "a whole number of at least 0"),
    "seed": (lambda v: is_whole(v, 0, SEEDS), "a whole number, 0 <= seed < 2**32"),
    "device": (lambda v: isinstance(v, str | torch.device), "text such as 'cpu' or 'cuda:0'"),
}


def _first_non_tensor(value: Any) -> Any:
    """Return a leaf of a nest that is no tensor, as text; None if all are."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return next((odd for v in value if (odd := _first_non_tensor(v)) is not None), None)
    return None if isinstance(value, torch.Tensor) else repr(value)


@dataclass(frozen=True, kw_only=True)
class StudySource:
    """Where a worker gets the study from: its file, or for one made in Python, its bytes."""

    path: str | None = None
    code: str | None = None
    """What `cloudpickle` made of the object, in base64. It goes from one process of ours straight
    to another; no such bytes are ever read from a file."""
    seed: int | None = None
    criteria: tuple[str, ...] | None = None
    sparsify: tuple[str, ...] | None = None
    checkpoint: str | None = None
    """Where the dense weights lie on this machine, if not where the study says."""

    def load(self) -> PruningStudy:
        if self.path is not None:
            study = load_study(self.path)
        else:
            import cloudpickle

            assert self.code is not None
            own, study = cloudpickle.loads(base64.b64decode(self.code))
            for registry, entries in zip(REGISTRIES, own, strict=True):
                registry.update(entries)
        if self.checkpoint is not None:
            study = replace(study, checkpoint=self.checkpoint)
        return overridden(study, seed=self.seed, criteria=self.criteria, sparsify=self.sparsify)


def source_of(study: PruningStudy | str | Path) -> StudySource:
    """Return how a worker process can get `study`.

    Raises
    ------
    AutopruneError
        If a study made in Python cannot be sent to another process.
    """
    if not isinstance(study, PruningStudy):
        return StudySource(path=str(study))
    import cloudpickle

    try:
        code = cloudpickle.dumps((_own_entries(), study))
        return StudySource(code=base64.b64encode(code).decode())
    except Exception as error:
        raise AutopruneError(
            f"A study must be able to go to another process, but packing it raised "
            f"{first_line(error)}. Put it in a study file, or use workers=0."
        ) from error


REGISTRIES: tuple[dict[Any, Any], ...] = (CRITERIA, GROUP_RULES, SPARSIFIERS)
"""Where a user may have registered something of their own."""


def _own_entries() -> list[dict[Any, Any]]:
    """Return what was registered outside autoprune, by registry."""
    return [
        {key: entry for key, entry in registry.items() if not _is_ours(entry)}
        for registry in REGISTRIES
    ]


def _is_ours(entry: Any) -> bool:
    made = getattr(entry, "score", None) or getattr(entry, "make", type(entry))
    home = made.__module__
    return str(home).startswith("autoprune.")


def overridden(
    study: PruningStudy,
    *,
    seed: int | None = None,
    criteria: Sequence[str] | None = None,
    sparsify: Sequence[str] | None = None,
) -> PruningStudy:
    """Return `study` with another seed, other criteria or other sparsifiers, where given."""
    if seed is not None:
        study = replace(study, seed=seed)
    if criteria is not None:
        study = replace(study, space=with_criteria(study.space, criteria))
    if sparsify is not None:
        study = replace(study, space=with_sparsify(study.space, sparsify))
    return study


def find_study_file(name: str | Path) -> Path:
    """Return the path of a study file, given its path or the name of a built-in one.

    Raises
    ------
    AutopruneError
        If there is no such file, or it is none of Python's.
    """
    path = Path(name)
    there = os.path.isfile(path)  # of a name that is too long, too
    if there and path.suffix == ".py":
        return path
    if str(name) in BUILTIN:
        here = Path(__file__).parent
        for folder in (here / "builtin", here.parent / "studies"):
            if (folder / f"{name}.py").is_file():
                return folder / f"{name}.py"
    if there:
        check_suffix(path)
    new = shlex.quote(f"{path.stem or 'my_study'}.py")
    raise AutopruneError(
        f"A study must be a Python file or one of {', '.join(BUILTIN)}, but there is no file "
        f"{str(name)!r}. `autoprune new {new}` writes one to start from."
    )


def check_suffix(path: Path) -> None:
    """Raise `AutopruneError` unless a study file's name is one that Python can import."""
    if path.suffix != ".py":
        raise AutopruneError(f"A study file's name must end in .py, but {str(path)!r} does not.")


def load_study(name: str | Path) -> PruningStudy:
    """Run a study file and return its `study`.

    A study file is the user's own code, and the only code that autoprune runs. Its folder comes
    first on `sys.path` while it runs, and stays last, for what its functions import when called.

    Raises
    ------
    AutopruneError
        If the file is missing, raises, or defines no `study`.
    """
    path = find_study_file(name).resolve()
    module = _run_file(path)
    if not hasattr(module, "study"):
        raise AutopruneError(
            f"A study file must define `study = PruningStudy(...)`, but {path.name} does not."
        )
    study = module.study
    if not isinstance(study, PruningStudy):
        raise AutopruneError(
            f"`study` in {path.name} must be a PruningStudy, but is a {type(study).__name__}."
        )
    if study.checkpoint is not None:
        return replace(study, checkpoint=path.parent / study.checkpoint)
    return study


def _run_file(path: Path) -> ModuleType:
    # The same file has the same module name in every process, so its classes can be named.
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"autoprune_study_{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except AutopruneError as error:
        raise AutopruneError(f"{path.name}: {error}") from error
    except (Exception, SystemExit) as error:
        line = _line_in(error, path)
        raise AutopruneError(
            f"The study file must run, but {path.name}{line} raised {first_line(error)}."
        ) from error
    finally:
        with contextlib.suppress(ValueError):  # the file may have changed the path itself
            sys.path.remove(folder)
    if folder not in sys.path:  # last: what has the name of a library does not take its place
        sys.path.append(folder)
    return module


@contextlib.contextmanager
def path_restored() -> Iterator[None]:
    """Leave `sys.path` as it was; a study file's folder is on it while its study is in use."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before


def _line_in(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError) and error.lineno:
        return f", line {error.lineno},"
    line, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = f", line {trace.tb_lineno},"
        trace = trace.tb_next
    return line
