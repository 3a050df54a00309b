import torch

from autoprune.pruning.rows import ROWS_PER_SAMPLE, rows_at, some_places, some_rows


def test_rows_are_the_same_places_of_every_sample() -> None:
    sizes = (12, 11)
    samples = torch.tensor([0.0, 1_000.0, 2_000.0])[:, None]
    where = (samples + torch.arange(132.0)).reshape(3, 1, *sizes)
    places = some_places(sizes, torch.Generator().manual_seed(0))
    rows = rows_at(where, places).reshape(3, ROWS_PER_SAMPLE)
    assert len(rows[0].unique()) == ROWS_PER_SAMPLE
    assert torch.equal(rows - rows[0], samples.expand_as(rows))
    assert len(some_places((3, 2), torch.Generator())[0]) == 6


def test_few_rows_are_all_taken() -> None:
    generator = torch.Generator().manual_seed(0)
    assert some_rows(2 * ROWS_PER_SAMPLE, 2, generator) is None
    chosen = some_rows(1_000, 2, generator)
    assert chosen is not None
    assert len(chosen.unique()) == 2 * ROWS_PER_SAMPLE
    assert 500 < chosen[-1] < 1_000
