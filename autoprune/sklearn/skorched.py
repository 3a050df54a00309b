"""skorch's nets in the place of a module: theirs is the dense network, and how it is trained.

skorch itself is not imported: who has a net has imported it.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor, nn

if TYPE_CHECKING:
    from autoprune.sklearn.data import Data


class LogProbabilities(nn.Module):
    """Turns the probabilities that a network answers with into logits.

    Cross-entropy of these is the likelihood loss of the probabilities, whose sum is 1.

    >>> LogProbabilities()(torch.tensor([[0.25, 0.75]])).softmax(1)
    tensor([[0.2500, 0.7500]])
    """

    def forward(self, probabilities: Tensor) -> Tensor:
        return torch.log(probabilities + torch.finfo(probabilities.dtype).eps)


def is_net(module: Any) -> bool:
    """Return whether `module` is one of skorch's nets."""
    return any(base.__module__.partition(".")[0] == "skorch" for base in type(module).__mro__)


def fitted_net(net: Any, data: Data, *, seed: int) -> Any:
    """Return `net`, or if it is not fitted yet, a clone that is fitted to the training data.

    Raises
    ------
    ValueError
        If it is to be fitted to samples that have weights: skorch knows of none.
    """
    if getattr(net, "initialized_", False):
        return net
    if data.weights is not None:
        raise ValueError(
            "A skorch net must be fitted before it is used with sample weights, but is not. "
            "Fit it, and pass FrozenEstimator(net)."
        )
    net = clone(net)
    targets = data.targets
    if data.classes is None:
        targets = targets.reshape(len(targets), -1)
    if data.classes is None or _is(net.criterion, nn.BCEWithLogitsLoss):
        targets = targets.astype(np.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net.fit(data.inputs, targets)
    return net


def initialised(net: Any) -> Any:
    """Return `net`, or if it has no module yet, a clone that has one, untrained."""
    if getattr(net, "initialized_", False):
        return net
    with torch.random.fork_rng(devices=[]):
        return clone(net).initialize()


def module_of(net: Any) -> nn.Module:
    """Return a copy of a net's module, on the CPU, that answers with logits or numbers.

    The net is fitted or `initialised`.

    Raises
    ------
    ValueError
        If the net's criterion has no counterpart here.
    """
    criterion = net.criterion_
    if not isinstance(criterion, KNOWN) or getattr(criterion, "weight", None) is not None:
        names = ", ".join(kind.__name__ for kind in KNOWN)
        raise ValueError(
            f"The criterion of a skorch net must be one of {names}, without weights, "
            f"but is {criterion}."
        )
    module: nn.Module = copy.deepcopy(net.module_).cpu().eval()
    if isinstance(criterion, nn.NLLLoss):  # skorch takes the logarithm of what the module answers
        return nn.Sequential(OrderedDict(probabilities=module, logarithm=LogProbabilities()))
    return module


KNOWN = (nn.NLLLoss, nn.CrossEntropyLoss, nn.BCEWithLogitsLoss, nn.MSELoss)


def _is(criterion: Any, kind: type) -> bool:
    made = criterion if isinstance(criterion, type) else type(criterion)
    return issubclass(made, kind)
