"""Two searches side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fronts import FRONT, write_front

from autoprune.errors import AutopruneError
from autoprune.pruning.files import write_json
from autoprune.results.comparing import compare, verdict
from autoprune.searching.pareto import hypervolume


def test_one_plane_for_both_and_the_better_front_covers_more(tmp_path: Path) -> None:
    worse = {name: (params, valid - 0.03) for name, (params, valid) in FRONT.items()}
    both = compare(
        write_front(tmp_path / "one", exports=False),
        write_front(tmp_path / "other", worse, dense=(300_000, 0.99), exports=False),
    )
    one, other = both.sides
    # As MLflow has it, but both from the larger dense model.
    points = [(params, valid) for params, valid in FRONT.values()]
    assert one.hypervolume == hypervolume(points, dense_params=300_000, floor=0.5)
    assert other.hypervolume < one.hypervolume
    assert other.hypervolume_test is not None
    assert other.hypervolume_test < other.hypervolume
    assert verdict(both).startswith(f"{one.out} covers more")
    assert "the first is ahead at 6, the second at 0" in verdict(both)


def test_at_equal_sizes_the_best_that_is_no_larger_counts(tmp_path: Path) -> None:
    other = {"t001": (500, 0.7), "t002": (4_000, 0.96), "t003": (90_000, 0.98)}
    both = compare(
        write_front(tmp_path / "one", exports=False),
        write_front(tmp_path / "other", other, exports=False),
    )
    sizes = [at.params for at in both.sizes]
    assert (sizes[0], sizes[-1], len(sizes)) == (1_000, 90_000, 6)
    assert [at.names for at in both.sizes] == [
        ("t007", "t001"),
        ("t007", "t001"),
        ("t007", "t002"),
        ("t003", "t002"),
        ("t003", "t002"),
        ("t011", "t003"),
    ]
    assert both.sizes[0].scores == (0.90, 0.7)


def test_where_lower_is_better_lower_covers_more(tmp_path: Path) -> None:
    kind: dict[str, Any] = {"metric": "mae", "higher_is_better": False, "exports": False}
    one = write_front(tmp_path / "one", {"t1": (100, 3.0), "t2": (900, 2.0)}, **kind)
    other = write_front(tmp_path / "other", {"t1": (100, 4.0), "t2": (900, 2.0)}, **kind)
    both = compare(one, other)
    assert both.sides[0].hypervolume > both.sides[1].hypervolume > 0
    assert both.reference.floor == -4.0
    assert "the first is ahead at 5, the second at 0" in verdict(both)


@pytest.mark.parametrize(
    ("differs", "words"),
    [
        ({"metric": "f1"}, "their metrics differ: accuracy in .*one, f1 in .*other"),
        ({"higher_is_better": False}, "their directions differ"),
        ({"objectives": ["accuracy", "latency"]}, "their objectives differ: accuracy,params"),
        ({"front": []}, "other has not"),
    ],
)
def test_others_tasks_and_objectives_are_refused_by_name(
    tmp_path: Path, differs: dict[str, Any], words: str
) -> None:
    one = write_front(tmp_path / "one", exports=False)
    other = write_front(tmp_path / "other", FRONT if "front" not in differs else {}, exports=False,
                        **{k: v for k, v in differs.items() if k != "front"})  # fmt: skip
    with pytest.raises(AutopruneError, match=words):
        compare(one, other)


def test_other_data_are_refused_by_name(tmp_path: Path) -> None:
    outs = [write_front(tmp_path / name, exports=False) for name in ("one", "other")]
    for out, digest in zip(outs, ("12ab", "34cd"), strict=True):
        write_json(out / "search.json", {"data": {"valid": digest, "test": None}})
    with pytest.raises(AutopruneError, match="their validation data differ: 12ab in"):
        compare(*outs)
