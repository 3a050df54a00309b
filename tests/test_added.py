"""What is found out of a search's models after its end: timing, sensitivity, baselines."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import write_study
from mlflow import MlflowClient
from mlflow.entities import Run

from autoprune import finale, jobs, run, sensing, uniform
from autoprune.benching import bench
from autoprune.errors import AutopruneError
from autoprune.pruning.cost import CostModel
from autoprune.pruning.evidence import top_channels
from autoprune.pruning.files import read_json, write_json
from autoprune.results.added import carried
from autoprune.results.picking import pick
from autoprune.results.result import SearchResult, open_result
from autoprune.results.sensitivities import by_harm, loss_table, read_sensitivity
from autoprune.results.store import Store
from autoprune.searched import reopen
from autoprune.sensing import sensitivity
from autoprune.uniform import baselines
from autoprune.workbench import Workbench

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]

SETTINGS: dict[str, Any] = {"workers": 0, "budget": 3}


@dataclass(frozen=True)
class Found:
    """A finished search, as MLflow was told of it."""

    study: Path
    out: Path
    result: SearchResult

    def front_file(self) -> dict[str, Any]:
        value: dict[str, Any] = read_json(self.out / "front.json")
        return value

    def runs(self) -> dict[str, Run]:
        """Return MLflow's runs by trial."""
        client = MlflowClient(f"sqlite:///{self.out / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("autoprune")
        found = client.search_runs([experiment.experiment_id])
        return {run.data.tags.get("autoprune.trial", ""): run for run in found}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    folder = tmp_path_factory.mktemp("added")
    study = write_study(folder / "study.py", epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # Proving exports takes a process of its own, and is not what these tests are about.
        patch.setattr(finale, "verify", lambda folders, **_: {f.name: [] for f in folders})
        yield Found(study, folder / "out", run.search(study, out=folder / "out", **SETTINGS))


# --- whose study it is --------------------------------------------------------------------------


def test_the_study_is_what_the_search_was_started_with(found: Found) -> None:
    searched = reopen(found.out)
    assert searched.origin == found.study.resolve()
    assert searched.study.name == "tiny"


def test_a_study_file_that_came_with_the_folder_is_not_run(found: Found, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(found.out, out)
    file = out / "evil.py"
    file.write_text(f"open({str(tmp_path / 'the-code-ran')!r}, 'w')")
    for name in (str(file), "evil.py", f"{out}/front/../evil.py"):
        write_json(out / "origin.json", {"study": name})
        with pytest.raises(AutopruneError, match="--study"):
            reopen(out)
    assert not (tmp_path / "the-code-ran").exists()


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        (None, "does not say which file it is. Name it with --study"),
        ({"study": None}, "does not say which file"),
        ({"study": "/nowhere/study.py"}, "/nowhere/study.py is not. Name its file"),
    ],
)
def test_a_study_that_is_not_known_or_gone_is_asked_for(
    found: Found, tmp_path: Path, origin: Any, words: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(found.out, out, ignore=shutil.ignore_patterns("origin.json", "candidates"))
    if origin is not None:
        write_json(out / "origin.json", origin)
    with pytest.raises(AutopruneError, match=words):
        bench(out)
    assert reopen(out, found.study).study.name == "tiny"


def test_another_study_is_refused(found: Found, tmp_path: Path) -> None:
    other = write_study(tmp_path / "other.py", kind="conv")
    with pytest.raises(AutopruneError, match="must be the one that was searched"):
        bench(found.out, study=other)


# --- timing -------------------------------------------------------------------------------------


def test_all_models_are_timed_and_the_figures_kept(found: Found) -> None:
    bench(found.out, runtimes=["onnx"], batch_size=3)
    bench(found.out, batch_size=2)
    bench(found.out, runtimes=["onnx"], batch_size=3)  # takes the first one's place
    runs = found.front_file()["bench"]
    kinds = [(run["runtime"], run["batch_size"], run["threads"]) for run in runs]
    assert kinds == [("eager", 2, 1), ("onnx", 2, 1), ("onnx", 3, 1)]
    for timed in runs:
        assert set(timed["models"]) == {"dense", *(m.name for m in found.result.front)}
        assert all(m["seconds"] > 0 and m["spread"] >= 0 for m in timed["models"].values())
        assert timed["cpu"]
    assert open_result(found.out).front == found.result.front


def test_mlflow_is_told_on_the_models_runs(found: Found) -> None:
    bench(found.out, runtimes=["eager"], threads=2)
    timed = found.front_file()["bench"][-1]["models"]
    runs = found.runs()
    for model in found.result.front:
        told = runs[model.name].data.metrics
        assert told["bench.eager.b1.t2.ms"] == pytest.approx(1e3 * timed[model.name]["seconds"])
        assert told["bench.eager.b1.t2.spread_ms"] >= 0
    assert read_json(_artifacts(runs[""]) / "front.json") == found.front_file()


def _artifacts(run: Run) -> Path:
    return Path(run.info.artifact_uri.removeprefix("file://"))


def test_the_figures_outlive_another_export(found: Found, tmp_path: Path) -> None:
    bench(found.out, runtimes=["eager"])
    before = found.front_file()["bench"]
    kept = carried(found.out / "front.json", [found.result.front[0].name])
    assert set(kept["bench"][0]["models"]) == {"dense", found.result.front[0].name}
    again = run.search(found.study, out=found.out, **SETTINGS)
    assert [m.name for m in again.front] == [m.name for m in found.result.front]
    assert found.front_file()["bench"] == before


def test_a_limit_on_latency_can_be_one_of_the_bench(found: Found) -> None:
    bench(found.out, runtimes=["onnx"])
    (timed,) = [
        r["models"]
        for r in found.front_file()["bench"]
        if (r["runtime"], r["batch_size"]) == ("onnx", 1)
    ]
    slowest = max(1e3 * timed[m.name]["seconds"] for m in found.result.front)
    fastest = min(1e3 * timed[m.name]["seconds"] for m in found.result.front)
    every = pick(found.out, max_latency=slowest, runtime="onnx")
    assert every.within == len(found.result.front)
    assert every.latency_ms == pytest.approx(1e3 * timed[every.model.name]["seconds"])
    with pytest.raises(AutopruneError, match="No model"):
        pick(found.out, max_latency=fastest * 0.999, runtime="onnx")
    with pytest.raises(AutopruneError, match=r"compile.*autoprune bench"):
        pick(found.out, max_latency=1, runtime="compile")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"runtimes": ["onxx"]}, "Unknown runtime 'onxx'.*Did you mean 'onnx'"),
        ({"runtimes": []}, "at least one of eager"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"threads": 0}, "`threads` must be at least 1"),
    ],
)
def test_what_cannot_be_timed_is_refused(found: Found, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(AutopruneError, match=words):
        bench(found.out, **asked)


def test_a_model_without_its_onnx_file_is_named(found: Found, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(found.out, out)
    name = found.result.front[0].name
    (Store(out).front / name / "model.onnx").unlink()
    with pytest.raises(AutopruneError, match=rf"{name} has none.*--runtime eager"):
        bench(out)


# --- which groups hurt --------------------------------------------------------------------------


def test_a_search_notes_which_groups_hurt_and_mlflow_shows_it(found: Found) -> None:
    noted = read_sensitivity(found.out / "sensitivity.json")
    widths = {g["name"]: [cell["width"] for cell in g["cells"]] for g in noted["groups"]}
    assert widths == {"body.0": [18, 12, 6, 3], "body.2": [12, 8, 4, 2]}
    assert noted["dense"]["score"] == pytest.approx(found.result.dense.valid)
    assert noted["seconds"] > 0
    artifacts = _artifacts(found.runs()[""])
    assert read_json(artifacts / "sensitivity.json") == noted
    assert (artifacts / "sensitivity.png").read_bytes().startswith(b"\x89PNG")


def test_each_group_is_cut_alone_by_the_criterion(found: Found) -> None:
    noted = sensitivity(found.study, out=found.out, criterion="l2", fractions=[0.25])
    searched = reopen(found.out)
    workbench = Workbench(searched.study, searched.store)
    dense = workbench.model("dense")
    for group in noted["groups"]:
        scores = workbench.scores("l2", dense, workbench.grouping, name=None).groups[group["name"]]
        kept = top_channels(scores, len(scores) // 4)
        small = workbench.model("dense")
        gone = [c for c in range(len(scores)) if c not in kept]
        with torch.no_grad():  # a channel that is 0 after its ReLU is as good as gone
            layer = small.get_submodule(group["name"])
            layer.weight[gone] = 0
            layer.bias[gone] = 0
        (cell,) = group["cells"]
        assert cell["score"] == pytest.approx(searched.study.task.evaluate(small, "valid"))
        assert cell["loss"] > noted["dense"]["loss"]


def test_the_same_question_is_answered_from_the_cache(
    found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sensitivity(found.study, out=found.out, fractions=[0.5])
    monkeypatch.setattr(sensing, "sensitivity_of", None)
    assert sensitivity(found.study, out=found.out, fractions=[0.5]) == first
    assert read_sensitivity(found.out / "sensitivity.json") == first


def test_a_study_need_not_be_searched_and_can_be_afterwards(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.py", kind="conv")
    out = tmp_path / "out"
    noted = sensitivity(study, out=out, fractions=[0.5])
    assert [p.name for p in out.iterdir()] == ["cache"]
    assert [g["name"] for g in noted["groups"]] == ["conv1", "conv2"]
    Store(out).check({"study": "tiny"})  # the folder is free
    (out / "thesis.txt").touch()
    with pytest.raises(AutopruneError, match="other files"):
        Store(out).check({"study": "tiny"})


def test_a_search_that_would_take_long_over_it_goes_without(found: Found) -> None:
    searched = reopen(found.out)
    job = jobs.sensitivity(
        Workbench(searched.study, searched.store), criterion="l2", fractions=[0.5], within=0.0
    )
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert next(job) == {"done": 1, "total": 2}
    with pytest.raises(StopIteration) as ended:
        next(job)
    assert ended.value.value["groups"] == []
    assert torch.equal(torch.get_rng_state(), before)


def test_where_lower_is_better_a_higher_score_is_lost() -> None:
    cells = [{"fraction": 0.5, "score": 3.0}, {"fraction": 0.25, "score": 1.5}]
    noted = {
        "metric": "mae",
        "higher_is_better": False,
        "criterion": "l2",
        "fractions": [0.5, 0.25],
        "dense": {"score": 2.0},
        "groups": [
            {"name": "a", "cells": cells},
            {"name": "b", "cells": cells[:1]},
            {"name": "c.block", "cells": [{"fraction": 0.0, "score": 9.0}]},
        ],
    }
    table = loss_table(noted)
    assert table.columns == ("50%", "25%", "dropped")
    assert table.lost == ((1.0, -0.5, None), (1.0, None, None), (None, None, 7.0))
    assert by_harm(table) == ["c.block", "b", "a"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"criterion": "tailor"}, "Unknown criterion 'tailor'"),
        ({"fractions": []}, "`fractions`.*are none"),
        ({"fractions": [0.5, 1.0]}, "`fractions`.*has 1"),
    ],
)
def test_what_cannot_be_sensed_is_refused(found: Found, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(AutopruneError, match=words):
        sensitivity(found.study, out=found.out, **asked)


def test_another_studys_folder_is_refused(found: Found, tmp_path: Path) -> None:
    other = write_study(tmp_path / "other.py", kind="conv")
    with pytest.raises(AutopruneError, match="other layers or channel groups"):
        sensitivity(other, out=found.out)


# --- uniformly pruned baselines -----------------------------------------------------------------


def test_baselines_have_the_fronts_sizes_recipes_and_epochs(found: Found) -> None:
    front = {m.name: m for m in found.result.front}
    done = baselines(found.out, sizes=2, workers=1)
    assert done.trained == len(done.models) == 2
    assert found.front_file()["baselines"] == list(done.models)
    store = Store(found.out)
    cost = CostModel(store.load_grouping())
    for model in done.models:
        like = store.load_candidate(model["like"])
        assert model["epochs"] == like.epochs
        assert model["finetune"] == asdict(replace(like.plan.finetune, epochs=like.epochs))
        assert model["criterion"] == like.plan.criterion
        assert model["params"] == cost.params(model["widths"]) <= model["size"]
        assert 0.0 < model["valid"] <= 1.0
        assert 0.0 < model["test"] <= 1.0
        shares = [model["widths"][g] / c for g, c in store.load_grouping().channels.items()]
        assert max(shares) - min(shares) < 1.0 / 16  # as near as whole channels allow
        nearest = min(front.values(), key=lambda m: abs(math.log(m.params / model["params"])))
        assert model["like"] == nearest.name
    sizes = [m["size"] for m in done.models]
    assert sizes == [min(m.params for m in front.values()), max(m.params for m in front.values())]


def test_baselines_are_trained_once_and_shown(
    found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = baselines(found.out, sizes=2, workers=1)
    monkeypatch.setattr(uniform, "run_all", None)
    again = baselines(found.out, sizes=2, workers=1)
    assert (again.trained, again.models) == (0, first.models)
    assert carried(found.out / "front.json", [])["baselines"] == list(first.models)
    runs = found.runs()
    told = runs[""].data.metrics
    assert told["uniform-1.valid"] == pytest.approx(first.models[0]["valid"])
    assert "uniformly pruned" in (_artifacts(runs[""]) / "front.html").read_text()


def test_baselines_of_no_size_are_refused(found: Found) -> None:
    with pytest.raises(AutopruneError, match="`sizes` must be at least 1"):
        baselines(found.out, sizes=0)
    with pytest.raises(AutopruneError, match="`workers`"):
        baselines(found.out, workers="all")
