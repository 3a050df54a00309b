"""What travels to other machines: the files of each job, and the code of a study."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from helpers import write_study

from autoprune import jobs, load_study
from autoprune.errors import AutopruneError
from autoprune.pruning.plan import FineTune, Plan, Sparsify
from autoprune.results.store import Store
from autoprune.shipping import Shipping, luggage_of
from autoprune.sparsified import sparse_name


def test_it_knows_the_files_of_every_job(tmp_path: Path) -> None:
    made = {
        function
        for function in vars(jobs).values()
        if inspect.isgeneratorfunction(function)
        and "bench" in inspect.signature(function).parameters
    }
    assert jobs.evaluate in made
    assert made == set(Shipping(Store(tmp_path))._freight)


def test_a_trial_takes_its_parent_along_and_brings_its_weights_back(tmp_path: Path) -> None:
    plan = Plan(
        widths={"a": 3},
        criterion="l2",
        finetune=FineTune(epochs=1, lr=1e-3),
        sparsify=Sparsify(method="l1", strength=1.0, epochs=1),
    )
    freight = Shipping(Store(tmp_path))(
        jobs.evaluate,
        {
            "name": "t2",
            "plan": plan.to_json(),
            "parent": "t1",
            "checkpoint": {"name": "w", "seconds": 1.0},
        },
    )
    weights = [f"candidates/t1/{n}" for n in ("weights.safetensors", "candidate.json")]
    sparse = f"sparse/{sparse_name(plan, 't1').rpartition('/')[2]}/weights.safetensors"
    assert {*weights, "dense/groups.json", "dense/weights.safetensors"} <= set(freight.needs)
    assert {"underway/w.safetensors", "candidates/t1/scores.safetensors"} <= set(freight.needs)
    assert sparse.split("/")[0] in {path.split("/")[0] for path in freight.leaves}
    assert "candidates/t2/weights.safetensors" in freight.leaves
    assert not set(weights) & set(freight.leaves)
    assert freight.keeps == ("underway/w.safetensors",)


def test_a_studys_code_and_checkpoint_go_along_and_its_data_does_not(tmp_path: Path) -> None:
    file = write_study(tmp_path / "study.py", dense="checkpoint='elsewhere/weights.pt'")
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "package" / "inner").mkdir(parents=True)
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "inner" / "sizes.json").write_text("{}")
    (tmp_path / "package" / "inner" / "large.bin").write_bytes(bytes(2 << 20))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images.bin").write_bytes(b"1")
    weights = tmp_path / "elsewhere" / "weights.pt"
    weights.parent.mkdir()
    weights.write_bytes(b"2")
    folders = luggage_of(file, load_study(file)).folders
    assert set(folders[str(tmp_path)]) == {
        "study.py",
        "beside.py",
        "package/__init__.py",
        "package/inner/sizes.json",
    }
    assert {name: p.content for name, p in folders[str(weights.parent)].items()} == {
        "weights.pt": b"2"
    }


def test_a_folder_of_too_much_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoprune.shipping.LARGEST_LUGGAGE", 10)
    file = write_study(tmp_path / "study.py")
    with pytest.raises(AutopruneError, match="Give the study its own folder"):
        luggage_of(file, load_study(file))
