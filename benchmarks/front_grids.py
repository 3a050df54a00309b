"""Methods without a search, on our own cuts: grids of sizes, and chains of them."""

from __future__ import annotations

from front_bench import Bench, chain_length, sizes, spread
from front_record import Record

from autoprune.searching.allocation import Shape

GRID_SIZES = 12


def grid(bench: Bench, record: Record, *, eta: float) -> None:
    """Cut each of 12 sizes from the dense model, and share the epochs out among them."""
    least = bench.allocator.least_params / bench.dense_params
    shares = sizes(min(GRID_SIZES, bench.epochs), least=least)
    for number, (share, epochs) in enumerate(
        zip(shares, spread(bench.epochs, len(shares)), strict=True)
    ):
        widths = bench.widths(share, Shape(eta=eta))
        small = bench.pruned(bench.whole(), widths, bench.recipe["criterion"])
        valid = bench.tune(small.model, bench.settings(epochs), number=number)
        record.add(small.model, valid, epochs=epochs)


def chain(bench: Bench, record: Record, *, length: int) -> None:
    """Cut sizes in descending order, eta = 0.5, each from the last one's fine-tuned weights."""
    least = bench.allocator.least_params / bench.dense_params
    shares = sizes(length, least=least)
    small = bench.whole()
    for number, (share, epochs) in enumerate(
        zip(shares, spread(bench.epochs, length), strict=True)
    ):
        widths = bench.widths(share, Shape(eta=0.5))
        small = bench.pruned(small, widths, bench.recipe["criterion"])
        valid = bench.tune(small.model, bench.settings(epochs), number=number)
        record.add(small.model, valid, epochs=epochs)


def full_chain(bench: Bench, record: Record) -> None:
    chain(bench, record, length=chain_length(bench.epochs))


def half_chain(bench: Bench, record: Record) -> None:
    """Half as many sizes, with twice the epochs each."""
    chain(bench, record, length=max(chain_length(bench.epochs) // 2, 1))


def double_chain(bench: Bench, record: Record) -> None:
    """Twice as many sizes, with half the epochs each."""
    chain(bench, record, length=min(2 * chain_length(bench.epochs), bench.epochs))


def constant_width(bench: Bench, record: Record) -> None:
    grid(bench, record, eta=0.0)


def eta_half(bench: Bench, record: Record) -> None:
    grid(bench, record, eta=0.5)
