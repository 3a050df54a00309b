"""Optimal Brain Surgeon for channels: which can go one after the other, the others adjusted.

Hassibi & Stork 1993; over a layer's inputs as in Frantar & Alistarh 2022 (OBC), a channel at a time
as in Kurtic et al. 2023 (ZipLM). With H the second moments of what a layer reads and W_c its
weights on channel c, to leave out c and to adjust all other weights as best one can costs

    error_c = trace(W_c^T ([H^-1]_cc)^-1 W_c)

of squared output error. Then W -= H^-1[:, c] ([H^-1]_cc)^-1 W_c, and H^-1 loses c in the same way,
which is a step of Cholesky's method on H^-1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from autoprune.pruning.groups import ChannelGroup, IntArray
from autoprune.pruning.moments import Moments

RIDGE = 1e-4
"""What is added to H, as a share of its mean diagonal: weights move no further than they must."""
PANEL = 64
"""Entries that are eliminated before H^-1 and W are written anew."""


def read_entries(group: ChannelGroup) -> dict[tuple[str, int], IntArray]:
    """Return the entries that a group's channels are read by, [channels, entries].

    By tensor and dimension: a layer that reads a channel twice has one slice for each.
    """
    found: dict[tuple[str, int], list[IntArray]] = {}
    for piece in group.slices:
        if piece.role == "in":
            found.setdefault((piece.tensor, piece.dim), []).append(piece.index)
    return {key: np.concatenate(parts, axis=1) for key, parts in found.items()}


class Reader:
    """What one layer reads of a group's channels, less those that have been eliminated.

    Parameters
    ----------
    inverse
        H^-1, [entries, entries]: first those of the channels, channel by channel, then the others
        that the layer reads, which stay.
    weights
        Of the same entries, [entries, outputs].
    channels, size
        How many of the channels there are, and with how many entries each.
    """

    def __init__(self, inverse: Tensor, weights: Tensor, *, channels: int, size: int) -> None:
        self.size = size
        self._inverse = inverse
        self._weights = weights
        own = weights[: channels * size].reshape(channels, size, -1)
        self._products = own @ own.mT
        """W_c W_c^T of each channel, [channels, size, size]."""
        square = inverse[: channels * size, : channels * size]
        blocks = square.reshape(channels, size, channels, size).diagonal(dim1=0, dim2=2)
        self._blocks = blocks.movedim(-1, 0).clone()
        """[H^-1]_cc of each channel, [channels, size, size]."""
        # What is yet to be taken from both: H^-1 - steps steps^T, W - steps parts.
        self._steps = inverse.new_zeros(len(inverse), 0)
        self._parts = inverse.new_zeros(0, weights.shape[1])

    @classmethod
    def of(cls, weight: Tensor, dim: int, index: IntArray, moments: Moments) -> Reader:
        """Prepare the layer that reads channel c by the entries `index[c]` along `dim`."""
        device = moments.sums.device
        if moments.sums.dtype != torch.float64:  # a device without it
            device = torch.device("cpu")
        hessian = moments.hessian.to(device).double()
        weights = weight.to(device).double()
        if dim == 1:  # [outputs, inputs, *kernel]: each tap of the window is an entry
            weights = weights.movedim(0, -1).reshape(len(hessian), -1)
        else:  # [inputs, outputs, *kernel] of a transposed convolution
            weights = weights.flatten(1)
        taps = len(hessian) // weight.shape[dim]
        own = (index[:, :, None] * taps + np.arange(taps)).reshape(len(index), -1)
        others = np.setdiff1d(np.arange(len(hessian)), own)
        order = torch.from_numpy(np.concatenate([own.reshape(-1), others])).to(device)
        hessian, weights = hessian[order][:, order], weights[order]
        if weights.shape[1] > len(weights):  # outputs count by their inner products alone
            weights = torch.linalg.qr(weights.T, mode="r").R.T.contiguous()
        scale = hessian.diagonal().mean()
        hessian.diagonal().add_(RIDGE * torch.where(scale > 0, scale, torch.ones_like(scale)))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        return cls(inverse, weights, channels=len(index), size=own.shape[1])

    def errors(self) -> Tensor:
        """Return what the elimination of each channel would cost, [channels]."""
        if self.size == 1:
            return (self._products / self._blocks)[:, 0, 0]
        factors = torch.linalg.cholesky(self._blocks)
        solved = torch.cholesky_solve(self._products, factors)
        return solved.diagonal(dim1=1, dim2=2).sum(1)

    def eliminate(self, channel: int) -> None:
        """Take a channel away and adjust the weights on all others."""
        here = slice(channel * self.size, (channel + 1) * self.size)
        column = self._inverse[:, here] - self._steps @ self._steps[here].T
        factor = torch.linalg.cholesky(column[here])
        step = torch.linalg.solve_triangular(factor.T, column, upper=True, left=False)
        weights = self._weights[here] - self._steps[here] @ self._parts
        part = torch.linalg.solve_triangular(factor, weights, upper=False)
        # W_c W_c^T and [H^-1]_cc once W - step part and H^-1 - step step^T hold.
        across = self._weights @ part.T - self._steps @ (self._parts @ part.T)
        mine = step[: self._products.shape[0] * self.size].reshape(-1, self.size, self.size)
        crossed = mine @ across[: len(mine) * self.size].reshape(mine.shape).mT
        self._products += mine @ (part @ part.T) @ mine.mT - crossed - crossed.mT
        self._blocks -= mine @ mine.mT
        self._blocks[channel] = torch.eye(self.size, dtype=step.dtype, device=step.device)
        self._steps = torch.cat([self._steps, step], 1)
        self._parts = torch.cat([self._parts, part])

    def settle(self, left: Tensor) -> None:
        """Write H^-1 and W anew, of the channels in the mask `left` alone."""
        left = left.to(self._blocks.device)
        others = left.new_ones(len(self._inverse) - len(left) * self.size)
        stays = torch.cat([left.repeat_interleave(self.size), others])
        steps = self._steps[stays]
        self._inverse = self._inverse[stays][:, stays].addmm_(steps, steps.T, alpha=-1)
        self._weights = self._weights[stays].addmm_(steps, self._parts, alpha=-1)
        self._products, self._blocks = self._products[left], self._blocks[left]
        self._steps, self._parts = steps[:, :0], self._parts[:0]


def elimination(readers: Sequence[Reader]) -> tuple[Tensor, Tensor]:
    """Eliminate all channels, each time the one of the least error, summed over `readers`.

    Returns
    -------
    order
        The channels, first eliminated first, [channels].
    errors
        By how much each raised the error of those before it, [channels]. Both are on the CPU.
    """
    every = max(PANEL // max(reader.size for reader in readers), 1)
    order, errors = [], []
    names = torch.arange(len(readers[0].errors()))
    left = torch.ones(len(names), dtype=torch.bool)
    while len(names):
        costs = torch.stack([r.errors().cpu() for r in readers]).sum(0)
        channel = int(costs.masked_fill(~left, torch.inf).argmin())
        left[channel] = False
        order.append(names[channel])
        errors.append(costs[channel])
        for reader in readers:
            reader.eliminate(channel)
        if len(order) % every == 0 or not left.any():
            for reader in readers:
                reader.settle(left)
            names, left = names[left], left[left]
    return torch.stack(order), torch.stack(errors).clamp_min(0)
