"""A whole search on a tiny network: what it finds, exports, records, and how it goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from helpers import MODELS, UNTRACKED, Here, leave_out_programs, write_study
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState
from pretending import completed, driver_on
from torch import nn

import autoprune
from autoprune import jobs, run
from autoprune.driver import Driver
from autoprune.errors import AutopruneError
from autoprune.progress import SilentReporter, Status
from autoprune.pruning.cost import CostModel
from autoprune.pruning.plan import FineTune, Plan
from autoprune.results.choosing import worth_a_look
from autoprune.results.report.page import write_report
from autoprune.results.report.trials import read_trials
from autoprune.results.result import Model, SearchResult, open_result
from autoprune.results.store import Store
from autoprune.results.tracking import NullTracker, TrialRecord
from autoprune.running.executor import Done, Event, Progress
from autoprune.searching.candidate import Candidate, Score, trial_name
from autoprune.searching.proxies import EPOCH0, correlations, spearman
from autoprune.searching.sampler import PruningSampler
from autoprune.searching.space import SearchSpace, Space
from autoprune.settings import Settings
from autoprune.study import load_study

# Third parties warn of one another, and not of anything that a study or autoprune does.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]

BUDGET = 5
SETTINGS: dict[str, Any] = {"workers": 0, "budget": BUDGET}


@dataclass(frozen=True)
class Found:
    """A finished search."""

    study: Path
    out: Path
    result: SearchResult

    @property
    def store(self) -> Store:
        return Store(self.out)

    def front_file(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.out / "front.json").read_text())
        return value


def trials_of(out: Path, name: str = "tiny") -> list[FrozenTrial]:
    """Return the trials that a search's own journal holds."""
    backend = optuna.storages.journal.JournalFileBackend(str(out / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name=name, storage=storage).trials


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    """A search with all there is: a final stage, exports, MLflow."""
    folder = tmp_path_factory.mktemp("found")
    study = write_study(folder / "study.py", kind="conv", epochs=2, final_epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        more = SETTINGS | {"register": "tiny-models"}
        yield Found(study, folder / "out", run.search(study, out=folder / "out", **more))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "study.py")


# --- the result and its files -------------------------------------------------------------------


def test_the_front_ascends_in_both_and_is_smaller_than_the_dense_model(found: Found) -> None:
    front = found.result.front
    assert front
    params, valid = [m.params for m in front], [m.valid for m in front]
    assert params == sorted(set(params))
    assert valid == sorted(set(valid))
    assert max(params) < found.result.dense.params == 2426
    assert found.result.dense.valid > 0.4  # chance is 0.1: there was something to keep
    assert found.result.best().valid > 0.3


def test_the_front_beats_every_other_trial(found: Found) -> None:
    for trial in trials_of(found.out):
        score = found.store.load_candidate(trial_name(trial.number)).score
        assert any(m.params <= score.params and m.valid >= score.valid for m in found.result.front)


def test_front_json_says_what_was_found(found: Found) -> None:
    value = found.front_file()
    assert value["format"] == 1
    assert (value["study"], value["metric"], value["higher_is_better"]) == (
        "tiny",
        "accuracy",
        True,
    )
    assert value["seed"] == 0
    assert value["trials"] == {"complete": BUDGET, "stopped": 0, "failed": 0}
    assert [b["layer"] for b in value["blocked"]] == ["head"]
    assert "output" in value["blocked"][0]["reason"]
    assert value["versions"]["torch"] == torch.__version__
    assert value["versions"]["autoprune"] == autoprune.__version__
    assert value["dense"]["path"] == "dense"
    for entry, model in zip(value["front"], found.result.front, strict=True):
        assert {f: entry[f] for f in asdict(model)} == asdict(model)
        assert entry["name"] == trial_name(entry["trial"])
        assert entry["formats"] == ["safetensors", "pt2", "onnx"]
        assert entry["problems"] == []
        assert entry["verified"] is True
        assert entry["path"] == f"front/{entry['name']}"
        assert 0 <= entry["test"] <= 1
        folder = found.out / entry["path"]
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics == {k: v for k, v in entry.items() if k != "path"}
        assert sorted(p.name for p in folder.iterdir()) == sorted(
            ["metrics.json", "model.onnx", "model.pt2", "model.safetensors", "plan.json"]
        )
    names = {m.name for m in found.result.front}
    assert {p.name for p in (found.out / "front").iterdir()} == names
    assert not (found.out / "front.new").exists()


def test_the_folder_gives_the_same_result(found: Found) -> None:
    again = open_result(found.out)
    assert again.front == found.result.front
    assert again.dense == found.result.dense
    assert again.trials == found.result.trials


CLEAN_RUN = """
import json, sys
sys.modules["autoprune"] = None
try:
    import autoprune
except ImportError:
    pass
else:
    raise SystemExit("autoprune could be imported")
import numpy as np, onnxruntime, torch
inputs = np.load("inputs.npy")
counts = {}
for name, folder in json.loads(sys.argv[1]).items():
    program = torch.export.load(f"{folder}/model.pt2")
    counts[name] = sum(p.numel() for p in program.parameters())
    with torch.no_grad():
        np.save(f"{name}.pt2.npy", program.module()(torch.from_numpy(inputs)).numpy())
    session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
    (output,) = session.run(None, {session.get_inputs()[0].name: inputs})
    np.save(f"{name}.onnx.npy", output)
print(json.dumps(counts))
"""


@dataclass(frozen=True)
class CleanRun:
    """What the exported programs answered in a process that cannot import autoprune."""

    inputs: torch.Tensor
    params: dict[str, int]
    answers: dict[tuple[str, str], np.ndarray]


@pytest.fixture(scope="module")
def clean_run(found: Found, tmp_path_factory: pytest.TempPathFactory) -> CleanRun:
    folder = tmp_path_factory.mktemp("elsewhere")
    inputs = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    np.save(folder / "inputs.npy", inputs.numpy())
    models = {m.name: str(found.out / m.path) for m in found.result.front}
    process = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", CLEAN_RUN, json.dumps(models)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    answers = {
        (name, kind): np.load(folder / f"{name}.{kind}.npy")
        for name in models
        for kind in ("pt2", "onnx")
    }
    return CleanRun(inputs, json.loads(process.stdout), answers)


def test_exported_programs_answer_as_the_model_at_another_batch_size(
    found: Found, clean_run: CleanRun
) -> None:
    for entry in found.result.front:
        model = found.result.load(entry.name)
        assert not model.training
        with torch.no_grad():
            expected = model(clean_run.inputs).numpy()
        assert expected.std() > 0
        for kind in ("pt2", "onnx"):
            np.testing.assert_allclose(
                clean_run.answers[entry.name, kind], expected, rtol=0, atol=1e-4
            )


def test_all_that_count_parameters_agree(found: Found, clean_run: CleanRun) -> None:
    from safetensors.torch import load_file

    study = load_study(found.study)
    cost = CostModel(found.store.load_grouping())
    trained = [name for name, _ in study.build().named_parameters()]
    for entry in found.result.front:
        folder = found.out / entry.path
        tensors = load_file(folder / "model.safetensors")
        plan = json.loads((folder / "plan.json").read_text())
        assert sum(tensors[name].numel() for name in trained) == entry.params
        assert sum(p.numel() for p in found.result.load(entry.name).parameters()) == entry.params
        assert clean_run.params[entry.name] == entry.params
        assert plan["params"] == entry.params
        assert cost.params(plan["widths"]) == entry.params
        assert cost.macs(plan["widths"]) == entry.macs


def test_proxies_are_judged_and_drawn(found: Found, recorded: Recorded) -> None:
    candidates = [found.store.load_candidate(trial_name(t.number)) for t in trials_of(found.out)]
    expected = correlations(candidates, {EPOCH0: {c.name: c.curve[0] for c in candidates}})
    assert expected[EPOCH0].candidates == BUDGET
    assert expected[EPOCH0].pooled is not None
    said = found.front_file()["proxies"]
    assert said == {EPOCH0: asdict(expected[EPOCH0])} == found.result.proxies
    assert open_result(found.out).proxies == said
    (parent,) = recorded.parents
    assert parent.data.metrics["proxy.epoch0.pooled"] == pytest.approx(expected[EPOCH0].pooled)
    assert "epochs" in parent.data.metrics
    page = (found.out / "proxy.html").read_text()
    for each in candidates:
        assert f"{each.name}, {each.score.params:,} parameters" in page
    artifacts = {a.path for a in recorded.client.list_artifacts(parent.info.run_id)}
    assert {"proxy.png", "proxy.html"} <= artifacts


class Predicting(optuna.samplers.RandomSampler):
    """Draws at random, and leaves a prediction with each trial."""

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        study._storage.set_trial_user_attr(trial._trial_id, "predicted", -float(trial.number))


def test_without_extras_a_search_leaves_weights_and_plans(tmp_path: Path, here: Here) -> None:
    write_study(tmp_path / "tiny.py")
    out = tmp_path / "out"
    lean = ("--budget", 2, "--workers", 0, "--tracking-uri", "none", "--no-extras")
    ended = here("search", "tiny.py", "--out", out, *lean, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    result = open_result(out, build=load_study(tmp_path / "tiny.py").build)
    left = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    folders = {f"front/{model.name}" for model in result.front}
    exported = {name for name in left if name.startswith("front/")}
    files = ("model.safetensors", "plan.json", "metrics.json")
    assert exported == {f"{folder}/{file}" for folder in folders for file in files}
    assert not {name for name in left if name.endswith((".png", ".html", ".onnx"))}
    assert "sensitivity.json" not in left
    for entry in json.loads((out / "front.json").read_text())["front"]:
        assert entry["verified"]
        assert entry["formats"] == ["safetensors"]
        small = result.load(entry["name"])
        assert sum(p.numel() for p in small.parameters()) == entry["params"]
    assert not [m for m in result.front if m.latency_ms is not None]
    assert here("report", out, "--to", tmp_path / "report.html", cwd=tmp_path).returncode == 0
    assert here("pick", out, "--knee", "--to", tmp_path / "knee", cwd=tmp_path).returncode == 0


def test_a_registry_wants_programs(tmp_path: Path) -> None:
    with pytest.raises(AutopruneError, match="`register` must go with programs"):
        run.search("digits", out=tmp_path / "out", extras=False, register="tiny")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("quick_export")
def test_a_samplers_predictions_are_judged_too(study: Path, tmp_path: Path) -> None:
    result = run.search(study, out=tmp_path / "out", sampler=Predicting(seed=0), **SETTINGS)
    ended = trials_of(tmp_path / "out")
    expected = spearman([-t.number for t in ended], [t.user_attrs["valid"] for t in ended])
    assert result.proxies["predicted"]["pooled"] == pytest.approx(expected)
    assert set(result.proxies) == {EPOCH0, "predicted"}


# --- loading an export --------------------------------------------------------------------------


@pytest.fixture
def exported(found: Found, tmp_path: Path) -> Path:
    """A copy of an exported model's folder, to be tampered with."""
    return shutil.copytree(found.out / found.result.front[-1].path, tmp_path / "exported")


@pytest.fixture
def net(found: Found) -> nn.Module:
    return load_study(found.study).build()


def test_an_export_loads_into_its_own_class(found: Found, exported: Path, net: nn.Module) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    small = autoprune.load(exported, model=net)
    assert type(small) is type(net)
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(small(x), found.result.load(found.result.front[-1].name)(x))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_an_altered_safetensors_is_refused(exported: Path, net: nn.Module) -> None:
    file = exported / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(AutopruneError, match=r"model\.safetensors.*altered"):
        autoprune.load(exported, model=net)


@pytest.mark.parametrize(
    "alter",
    [
        lambda plan: plan | {"params": plan["params"] + 1},
        lambda plan: plan | {"sha256": "0" * 64},
        lambda plan: plan | {"widths": {name: w + 1 for name, w in plan["widths"].items()}},
        lambda plan: {k: v for k, v in plan.items() if k != "sha256"},
        lambda plan: "nothing like a plan",
    ],
    ids=["params", "checksum", "widths", "no checksum", "no plan"],
)
def test_an_altered_plan_is_refused(
    exported: Path, net: nn.Module, alter: Callable[[dict[str, Any]], object]
) -> None:
    file = exported / "plan.json"
    file.write_text(json.dumps(alter(json.loads(file.read_text()))))
    with pytest.raises(AutopruneError):
        autoprune.load(exported, model=net)


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx"])
def test_an_altered_program_is_refused(exported: Path, net: nn.Module, name: str) -> None:
    content = bytearray((exported / name).read_bytes())
    content[len(content) // 2] ^= 1
    (exported / name).write_bytes(bytes(content))
    with pytest.raises(AutopruneError, match=rf"{name} must have the checksum .*altered"):
        autoprune.load(exported, model=net)


def test_a_torn_plan_and_a_missing_folder_are_refused(exported: Path, net: nn.Module) -> None:
    file = exported / "plan.json"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(AutopruneError, match=r"plan\.json.*cut short"):
        autoprune.load(exported, model=net)
    with pytest.raises(AutopruneError, match="nowhere"):
        autoprune.load(exported / "nowhere", model=net)


def test_another_models_class_is_refused(exported: Path, net: nn.Module) -> None:
    with pytest.raises(AutopruneError, match="right model"):
        autoprune.load(exported, model=nn.Linear(64, 10))
    net.conv1 = nn.Conv2d(1, 1, 3, padding=1, bias=False)  # too narrow for what was exported
    with pytest.raises(AutopruneError, match=r"conv1\.weight.*right model"):
        autoprune.load(exported, model=net)


# --- MLflow -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """What MLflow holds of a search."""

    client: MlflowClient
    experiment: str
    parents: list[Run]
    children: dict[str, Run]
    """The trials' runs, by the tag `autoprune.trial`."""
    dense: Run

    @classmethod
    def of(cls, out: Path) -> Recorded:
        client = MlflowClient(tracking_uri=f"sqlite:///{out}/mlflow.db")
        experiment = client.get_experiment_by_name("autoprune").experiment_id
        runs = list(client.search_runs([experiment]))
        children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
        by_trial = {r.data.tags["autoprune.trial"]: r for r in children}
        dense = by_trial.pop("dense")
        return cls(client, experiment, [r for r in runs if r not in children], by_trial, dense)

    def on_front(self) -> set[str]:
        """Return which trials' runs say that they are on the front."""
        runs = self.children.items()
        return {name.removesuffix("-final") for name, r in runs if r.data.tags["front"] == "true"}


@pytest.fixture(scope="module")
def recorded(found: Found) -> Recorded:
    return Recorded.of(found.out)


def test_one_parent_run_holds_the_front_and_the_settings(found: Found, recorded: Recorded) -> None:
    (parent,) = recorded.parents
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "tiny"
    assert parent.data.params["study"] == "tiny"
    assert parent.data.tags["setting.sampler"] == "pruning"
    assert parent.data.tags["setting.budget"] == str(BUDGET)
    assert parent.data.tags["seed"] == "0"
    assert parent.data.metrics["front_size"] == len(found.result.front)
    assert parent.data.metrics["trials_complete"] == BUDGET
    artifacts = {a.path for a in recorded.client.list_artifacts(parent.info.run_id)}
    assert {"front.json", "front.png", "front.html"} <= artifacts
    for child in (recorded.dense, *recorded.children.values()):
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_the_dense_model_has_a_run_to_compare_the_others_with(
    found: Found, recorded: Recorded
) -> None:
    run, dense = recorded.dense, found.result.dense
    assert run.info.run_name == f"dense 100% params {dense.valid:.3f}"
    assert (run.data.tags["kind"], run.data.tags["front"]) == ("dense", "false")
    assert run.data.metrics["params"] == dense.params
    assert run.data.metrics["params_fraction"] == 1.0
    assert run.data.metrics["valid"] == dense.valid
    assert run.data.metrics["test"] == dense.test


def test_the_description_leads_to_the_models_worth_a_look(found: Found, recorded: Recorded) -> None:
    (parent,) = recorded.parents
    note = parent.data.tags["mlflow.note.content"]
    chosen = worth_a_look(found.result.front, dense=found.result.dense)
    assert chosen.by_name["best"] is not None
    for alias, model in chosen.by_name.items():
        if model is None:  # none of so small a search need qualify
            assert f"worth.{alias}" not in parent.data.tags
            continue
        name = model.name
        trial = parent.data.tags[f"worth.{alias}"]
        run = recorded.children[trial]
        assert trial.removesuffix("-final") == name
        link = f"[{name}](#/experiments/{recorded.experiment}/runs/{run.info.run_id})"
        (row,) = [line for line in note.splitlines() if link in line]
        assert f"| {model.params:,} |" in row
        assert f"| {model.valid:.4f} | {model.test:.4f} |" in row
    assert f"/runs/{recorded.dense.info.run_id})" in note
    assert "(run:" not in note


def test_a_run_says_how_its_model_was_made(found: Found, recorded: Recorded) -> None:
    for name, child in recorded.children.items():
        candidate = found.store.load_candidate(name)
        assert f"{candidate.score.params / 2426:.1%} params" in child.info.run_name
        note = child.data.tags["mlflow.note.content"]
        assert note.startswith(f"Cut from `{candidate.parent}` by {candidate.plan.criterion}")
        assert f"{candidate.plan.finetune.epochs} epoch" in note


def test_a_registered_model_predicts_where_autoprune_cannot_be_imported(
    found: Found, recorded: Recorded
) -> None:
    """As whoever serves it has it: by its alias, from the tracking server, without pickle."""
    inputs = np.random.default_rng(1).random((3, 1, 8, 8), dtype=np.float32)
    code = (
        "import json, sys, numpy\n"
        "sys.modules['autoprune'] = None\n"  # any import of it fails
        "import mlflow\n"
        "inputs = numpy.array(json.load(sys.stdin), dtype='float32')\n"
        "found = {}\n"
        "for alias in ('knee', 'best'):\n"
        "    model = mlflow.pyfunc.load_model(f'models:/tiny-models@{alias}')\n"
        "    found[alias] = numpy.asarray(model.predict(inputs)).tolist()\n"
        "print(json.dumps(found))\n"
    )
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        input=json.dumps(inputs.tolist()),
        env=os.environ
        | {
            "MLFLOW_TRACKING_URI": f"sqlite:///{found.out}/mlflow.db",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    (parent,) = recorded.parents
    for alias, answer in json.loads(process.stdout.splitlines()[-1]).items():
        name = parent.data.tags[f"worth.{alias}"].removesuffix("-final")
        with torch.no_grad():
            expected = found.result.load(name)(torch.from_numpy(inputs))
        np.testing.assert_allclose(np.asarray(answer), expected.numpy(), rtol=0, atol=1e-4)


def test_every_trial_is_a_run_with_its_parameters_and_curve(
    found: Found, recorded: Recorded, tmp_path: Path
) -> None:
    names = {trial_name(t.number) for t in trials_of(found.out)}
    assert len(names) == BUDGET
    assert names == {name for name in recorded.children if not name.endswith("-final")}
    for trial in trials_of(found.out):
        name = trial_name(trial.number)
        ours = recorded.children[name]
        candidate = found.store.load_candidate(name)
        assert ours.info.status == "FINISHED"
        assert ours.data.tags["state"] == "complete"
        for key, value in trial.params.items():
            assert ours.data.params[key] == str(value)
        assert {k for k in ours.data.params if k.startswith("sparsity/")} == {
            f"sparsity/{group}" for group in candidate.plan.widths
        }
        assert ours.data.params["parent"] == candidate.parent
        assert ours.data.metrics["params"] == candidate.score.params
        assert ours.data.metrics["macs"] == candidate.score.macs
        history = recorded.client.get_metric_history(ours.info.run_id, "valid")
        by_step = {point.step: point.value for point in history}
        assert [by_step[step] for step in sorted(by_step)] == list(candidate.curve)
        assert len(candidate.curve) == 3  # after the cut, and two epochs
        assert candidate.curve[-1] == candidate.score.valid == ours.data.metrics["valid"]
        artifacts = {a.path for a in recorded.client.list_artifacts(ours.info.run_id)}
        assert {"plan.json", "sparsity.png"} <= artifacts
        file = recorded.client.download_artifacts(ours.info.run_id, "plan.json", str(tmp_path))
        assert Plan.from_json(json.loads(Path(file).read_text())) == candidate.plan


def test_the_front_tag_is_on_the_front_alone(found: Found, recorded: Recorded) -> None:
    assert recorded.on_front() == {m.name for m in found.result.front}
    tagged = [r for r in recorded.children.values() if r.data.tags["front"] == "true"]
    assert len(tagged) == len(found.result.front)
    for child in tagged:
        entry = next(
            m for m in found.result.front if m.name == child.data.tags["autoprune.trial"][:4]
        )
        assert child.data.metrics["final_valid"] == entry.valid
        assert child.data.metrics["test"] == entry.test
        assert child.data.metrics["params"] == entry.params


def test_logged_models_lie_in_the_folder_and_predict_the_same(
    found: Found, recorded: Recorded
) -> None:
    import mlflow.pyfunc

    by_run = {r.info.run_id: name for name, r in recorded.children.items()}
    logged = recorded.client.search_logged_models([recorded.experiment])
    names = {by_run[m.source_run_id].removesuffix("-final"): m for m in logged}
    assert names.keys() == {m.name for m in found.result.front}
    inputs = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    for name, model in names.items():
        place = Path(model.artifact_location.removeprefix("file://"))
        assert place.is_relative_to(found.out)
        answer = mlflow.pyfunc.load_model(str(place)).predict(inputs)
        with torch.no_grad():
            expected = found.result.load(name)(torch.from_numpy(inputs))
        np.testing.assert_allclose(np.asarray(answer), expected.numpy(), rtol=0, atol=1e-4)


def test_a_recorded_search_has_a_report_of_its_trials(found: Found, tmp_path: Path) -> None:
    page = write_report(found.out, tmp_path / "report.html").read_text()
    for trial in trials_of(found.out):
        assert trial_name(trial.number) in page
    trials = read_trials(found.out, found.store.load_grouping(), [])
    assert {t.name for t in trials if not t.is_final} == {
        trial_name(t.number) for t in trials_of(found.out)
    }


def test_nothing_is_written_outside_the_folder(found: Found, recorded: Recorded) -> None:
    names = {p.name for p in found.study.parent.iterdir()} - {"__pycache__"}
    assert names == {"study.py", "out"}


# --- lineage ------------------------------------------------------------------------------------


def test_children_keep_a_part_of_what_their_parents_kept(found: Found) -> None:
    parents = []
    channels = found.store.load_grouping().channels
    for trial in trials_of(found.out):
        candidate = found.store.load_candidate(trial_name(trial.number))
        assert trial.user_attrs["parent"] == candidate.parent
        parents.append(candidate.parent)
        if candidate.parent == "dense":
            above = {name: range(count) for name, count in channels.items()}
        else:
            above = found.store.load_candidate(candidate.parent).plan.kept
        assert candidate.plan.kept.keys() == channels.keys()
        for name, kept in candidate.plan.kept.items():
            assert len(kept) == candidate.plan.widths[name]
            assert set(kept) <= set(above[name])
    assert parents[0] == "dense"
    assert set(parents) != {"dense"}


def test_final_models_are_the_front_trained_on(found: Found) -> None:
    finals = trials_of(found.out, "tiny-final")
    assert finals
    for trial in finals:
        origin = found.store.load_candidate(trial.user_attrs["parent"])
        final = found.store.load_candidate(f"{origin.name}-final")
        assert final.plan.kept == origin.plan.kept
        assert final.plan.finetune.epochs == 1
        assert final.epochs == origin.epochs + 1


@pytest.mark.usefixtures("quick_export")
def test_steps_and_reconstruction_are_searched(tmp_path: Path) -> None:
    file = write_study(tmp_path / "study.py", kind="conv", epochs=3, final_epochs=1)
    more = 'criteria=("flap", "hessian"), steps=(1, 2), reconstruct=(False, True),'
    file.write_text(file.read_text().replace('criteria=("taylor", "l2"),', more))
    settings = UNTRACKED | {"budget": 8, "sampler": "random", "seed": 1, "early_stop": False}
    result = run.search(file, out=tmp_path / "out", **settings)
    assert result.front
    store = Store(tmp_path / "out")
    lengths = set()
    for trial in trials_of(tmp_path / "out"):
        assert trial.state == TrialState.COMPLETE
        candidate = store.load_candidate(trial_name(trial.number))
        assert candidate.plan.steps == trial.params["steps"]
        assert ("reconstruct" in trial.user_attrs["seconds"]) == trial.params["reconstruct"]
        lengths.add((candidate.plan.steps, len(candidate.curve)))
    assert lengths == {(1, 4), (2, 3)}


# --- again, and on ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repeated(found: Found, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """The same search once more, in another folder, without MLflow."""
    out = tmp_path_factory.mktemp("repeated") / "out"
    with pytest.MonkeyPatch.context() as patch:
        leave_out_programs(patch)
        result = run.search(found.study, out=out, budget=BUDGET, **UNTRACKED)
    return Found(found.study, out, result)


def outcome(trial: FrozenTrial) -> tuple[object, ...]:
    attributes = {k: v for k, v in trial.user_attrs.items() if k != "seconds"}
    return trial.number, trial.state, trial.params, trial.values, attributes


def test_the_same_seed_gives_the_same_search(found: Found, repeated: Found) -> None:
    ours = [outcome(t) for t in trials_of(found.out)]
    assert [outcome(t) for t in trials_of(repeated.out)] == ours
    assert repeated.result.front == found.result.front
    assert len({str(t[2]) for t in ours}) == BUDGET


@pytest.mark.usefixtures("quick_export")
def test_another_seed_gives_another_search(repeated: Found, tmp_path: Path) -> None:
    run.search(repeated.study, out=tmp_path / "out", budget=1, seed=1, **UNTRACKED)
    (trial,) = trials_of(tmp_path / "out")
    assert trial.params != trials_of(repeated.out)[0].params


@pytest.mark.usefixtures("quick_export")
def test_running_again_adds_nothing_and_a_higher_budget_goes_on(
    repeated: Found, tmp_path: Path
) -> None:
    out = shutil.copytree(repeated.out, tmp_path / "out")
    before = [outcome(t) for t in trials_of(out)]
    finals = len(trials_of(out, "tiny-final"))
    again = run.search(repeated.study, out=out, budget=BUDGET, **UNTRACKED)
    assert [outcome(t) for t in trials_of(out)] == before
    assert len(trials_of(out, "tiny-final")) == finals
    assert again.front == repeated.result.front

    more = run.search(repeated.study, out=out, budget=BUDGET + 2, **UNTRACKED)
    after = [outcome(t) for t in trials_of(out)]
    assert after[:BUDGET] == before
    assert len(after) == BUDGET + 2
    assert more.trials["complete"] == BUDGET + 2


@pytest.mark.usefixtures("quick_export")
def test_a_search_that_goes_on_repeats_no_trial(study: Path, tmp_path: Path) -> None:
    for budget in (2, 4):
        run.search(study, out=tmp_path / "out", budget=budget, sampler="random", **UNTRACKED)
    trials = trials_of(tmp_path / "out")
    assert len(trials) == 4
    assert len({str(t.params) for t in trials}) == 4


class Notes(SilentReporter):
    """Keeps what a search wants to stay on the screen."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


SMALL_IS_GOOD = """\
class SmallIsGood(SupervisedTask):
    def evaluate(self, model, split):
        return 1 / sum(p.numel() for p in model.parameters())


SupervisedTask = SmallIsGood
"""


@pytest.mark.usefixtures("quick_export")
def test_mlflow_follows_a_raised_budget(tmp_path: Path) -> None:
    # Where the smallest is the best, a smaller model drives every other one off the front.
    study = write_study(tmp_path / "study.py", before=SMALL_IS_GOOD)
    fronts = []
    for budget in (1, 4):
        reporter = Notes()
        result = run.search(
            study, out=tmp_path / "out", budget=budget, workers=0, reporter=reporter
        )
        fronts.append({m.name for m in result.front})
        assert not [note for note in reporter.notes if "MLflow" in note]
        recorded = Recorded.of(tmp_path / "out")
        (parent,) = recorded.parents
        assert len(recorded.children) == parent.data.metrics["trials_complete"] == budget
        assert parent.data.tags["setting.budget"] == str(budget)
        assert recorded.on_front() == fronts[-1]
    assert fronts[0].isdisjoint(fronts[1])


def test_a_folder_has_one_driver_at_a_time(repeated: Found, tmp_path: Path) -> None:
    out = shutil.copytree(repeated.out, tmp_path / "out")
    with (
        Store(out).locked(),
        pytest.raises(AutopruneError, match="Only one search may write"),
    ):
        run.search(repeated.study, out=out, budget=BUDGET + 1, **UNTRACKED)
    assert len(trials_of(out)) == BUDGET


# --- objectives and samplers --------------------------------------------------------------------


@pytest.mark.usefixtures("quick_export")
def test_a_weighted_search_has_one_objective_and_a_front(study: Path, tmp_path: Path) -> None:
    result = run.search(
        study,
        out=tmp_path / "out",
        budget=4,
        objective="weighted",
        accuracy_weight=0.3,
        **UNTRACKED,
    )
    assert result.front
    for trial in trials_of(tmp_path / "out"):
        score = Store(tmp_path / "out").load_candidate(trial_name(trial.number)).score
        removed = 1 - score.params / result.dense.params
        assert trial.values == [pytest.approx(0.3 * score.valid + 0.7 * removed)]


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """A search that latency is an objective of."""
    folder = tmp_path_factory.mktemp("timed")
    study = write_study(folder / "study.py", kind="conv", final_epochs=1)
    result = run.search(
        study,
        out=folder / "out",
        objectives="accuracy,params,latency",
        latency_batch=3,
        budget=5,
        **UNTRACKED,
    )
    return Found(study, folder / "out", result)


def test_latency_is_an_objective(timed: Found) -> None:
    trials = trials_of(timed.out)
    for trial in trials:
        score = timed.store.load_candidate(trial_name(trial.number)).score
        assert score.latency is not None
        assert score.latency > 0
        assert trial.values == [score.valid, score.params, score.latency]
        assert trial.user_attrs["latency"] == score.latency

    def beaten(trial: FrozenTrial) -> bool:
        return any(
            o.values != trial.values
            and o.values[0] >= trial.values[0]
            and all(a <= b for a, b in zip(o.values[1:], trial.values[1:], strict=True))
            for o in trials
        )

    names = {trial_name(t.number) for t in trials if not beaten(t)}
    assert {m.name for m in timed.result.front} <= names
    value = timed.front_file()
    assert value["objectives"] == ["accuracy", "params", "latency"]
    dense = json.loads(timed.store.dense_file.read_text())
    assert dense["latency"] > 0


def test_models_of_the_same_widths_have_the_same_latency(timed: Found) -> None:
    for trial in trials_of(timed.out, "tiny-final"):
        origin = timed.store.load_candidate(trial.user_attrs["parent"]).score
        final = timed.store.load_candidate(f"{trial.user_attrs['parent']}-final").score
        assert (final.latency, final.latency_spread) == (origin.latency, origin.latency_spread)


def test_latency_of_the_front_is_measured_at_the_end_in_every_search(
    found: Found, timed: Found
) -> None:
    for search, batch in ((found, 1), (timed, 3)):
        value = search.front_file()
        for entry in (value["dense"], *value["front"]):
            engines = {x["engine"]: x for x in entry["latencies"]}
            assert set(engines) == {"eager", "onnx"}
            assert entry["latency_ms"] == 1e3 * engines["eager"]["seconds"] > 0
            for latency in engines.values():
                assert (latency["batch_size"], latency["threads"]) == (batch, 1)
                assert latency["spread"] >= 0
        assert search.result.dense.latency_ms == value["dense"]["latency_ms"]
        for entry, model in zip(value["front"], search.result.front, strict=True):
            assert entry["latency_ms"] == model.latency_ms
    recorded = Recorded.of(found.out)
    for model in found.result.front:
        runs = [r for n, r in recorded.children.items() if n.removesuffix("-final") == model.name]
        assert model.latency_ms in [r.data.metrics.get("final_latency_ms") for r in runs]


@pytest.mark.usefixtures("quick_export")
def test_a_search_over_other_objectives_is_another_search(timed: Found, tmp_path: Path) -> None:
    out = shutil.copytree(timed.out, tmp_path / "out")
    for other in ({}, {"objectives": "accuracy,params,latency", "latency_batch": 2}):
        with pytest.raises(AutopruneError, match=r"holds another: its (objectives|latency)"):
            run.search(timed.study, out=out, budget=1, **other, **UNTRACKED)
    swapped = ("latency", "score", "params")  # the same ones
    again = run.search(
        timed.study, out=out, objectives=swapped, latency_batch=3, budget=5, **UNTRACKED
    )
    assert again.trials == timed.result.trials


@pytest.mark.usefixtures("quick_export")
def test_exact_costs_are_objectives_without_a_measurement(study: Path, tmp_path: Path) -> None:
    result = run.search(
        study, out=tmp_path / "out", objectives="score,memory,macs,size", budget=4, **UNTRACKED
    )
    store = Store(tmp_path / "out")
    cost = CostModel(store.load_grouping())
    for trial in trials_of(tmp_path / "out"):
        candidate = store.load_candidate(trial_name(trial.number))
        score = candidate.score
        assert score.latency is None
        assert score.memory == cost.memory(candidate.plan.widths)
        assert trial.values == [score.valid, score.macs, score.size_bytes, score.memory]
    assert all(m.memory_bytes <= result.dense.memory_bytes for m in result.front)


@pytest.mark.usefixtures("quick_export")
def test_a_model_that_cannot_be_timed_is_exported_all_the_same(tmp_path: Path) -> None:
    fixed = MODELS["mlp"].replace("self.body(x)", "self.body(x.reshape(-1, 2, 64).flatten(0, 1))")
    reporter = Notes()
    study = write_study(tmp_path / "study.py", model=fixed)
    result = run.search(study, out=tmp_path / "out", budget=1, reporter=reporter, **UNTRACKED)
    assert [m.latency_ms for m in (result.dense, *result.front)] == [None, None]
    assert any("batch of 1" in note for note in reporter.notes)
    with pytest.raises(AutopruneError, match=r"batch of 1.*batch size"):
        run.search(study, out=tmp_path / "o", objectives="score,latency", budget=1, **UNTRACKED)


@pytest.mark.usefixtures("quick_export")
def test_a_search_tries_learning_rates_and_tells_its_samplers_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def advice(sampler: PruningSampler, study: optuna.Study) -> str:
        return f"{len(study.trials)} trials advise it"

    monkeypatch.setattr(PruningSampler, "advice", advice)
    study = write_study(tmp_path / "study.py")
    study.write_text(study.read_text().replace("lr=(3e-3, 1e-2)", "lr=(1e-3, 8e-3)"))
    reporter = Notes()
    run.search(study, out=tmp_path / "out", budget=24, reporter=reporter, **UNTRACKED)
    assert "24 trials advise it" in reporter.notes
    tried = [trial.params["lr"] for trial in trials_of(tmp_path / "out")][:2]
    assert tried == pytest.approx([1e-3 * 8**0.25, 1e-3 * 8**0.75])


@pytest.mark.usefixtures("quick_export")
def test_a_search_of_a_mostly_blocked_network_says_so(tmp_path: Path) -> None:
    wide = MODELS["mlp"].replace("nn.Linear(16, 10)", "nn.Linear(16, 900)")
    reporter = Notes()
    study = write_study(tmp_path / "study.py", model=wide)
    run.search(study, out=tmp_path / "out", budget=1, reporter=reporter, **UNTRACKED)
    (said,) = [note for note in reporter.notes if "doctor" in note]
    assert "own channels stay" in said
    assert "(head)" in said


@pytest.mark.usefixtures("quick_export")
def test_searched_widths_are_rounded(tmp_path: Path) -> None:
    before = "Plain = Space\nSpace = lambda **given: Plain(**given, round_to=8, min_width=9)"
    study = write_study(tmp_path / "study.py", before=before)
    run.search(study, out=tmp_path / "out", budget=4, sampler="random", **UNTRACKED)
    widths = [
        Store(tmp_path / "out").load_candidate(trial_name(t.number)).plan.widths
        for t in trials_of(tmp_path / "out")
    ]
    assert {w for found in widths for w in found.values()} <= {16, 24}


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random"])
def test_every_sampler_of_optuna_searches(sampler: str, study: Path, tmp_path: Path) -> None:
    result = run.search(study, out=tmp_path / "out", budget=3, sampler=sampler, **UNTRACKED)
    trials = trials_of(tmp_path / "out")
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 3
    assert len({str(t.params) for t in trials}) == 3
    for trial in trials:
        score = Store(tmp_path / "out").load_candidate(trial_name(trial.number)).score
        assert trial.values == [score.valid, score.params]
    assert result.front


# --- early stop, with jobs that only pretend ----------------------------------------------------

EPOCHS = 4


class Pretender:
    """An executor whose every job has the same validation curve."""

    slots = 1

    def __init__(self, cost: CostModel, store: Store, curve: list[float]) -> None:
        self.cost = cost
        self.store = store
        self.curve = curve
        self.earlier: list[float] = []
        """Scores it has before its final widths."""
        self.latency = 0.1
        self.interrupted = False
        self.started: list[str] = []
        self.answers: list[bool] = []
        self.arguments: dict[str, Any] = {}

    def submit(self, job: str, function: object, **arguments: Any) -> None:
        assert function is jobs.evaluate
        self.started.append(job)
        self.arguments = arguments
        self.answers = []

    def next_event(self) -> Event:
        if self.interrupted:
            raise KeyboardInterrupt
        name = self.arguments["name"]
        epoch = len(self.answers)
        if self.answers and not self.answers[-1]:
            return Done(job=name, value=None)
        if epoch < len(self.earlier):
            value = {"step": 1, "epoch": epoch + 1, "valid": self.earlier[epoch]}
            return Progress(job=name, value=value)
        epoch -= len(self.earlier)
        if epoch < len(self.curve):
            value = {"epoch": epoch, "valid": self.curve[epoch]}
            if epoch == 0 and self.arguments["latency"] is not None:
                value |= {"latency": self.latency, "latency_spread": 0.01}
            return Progress(job=name, value=value)
        return completed(self.arguments, self.curve[-1], self.cost, self.store)

    def answer(self, job: str, *, go_on: bool) -> None:
        self.answers.append(go_on)

    def close(self) -> None: ...


class Listener(NullTracker):
    """A tracker that keeps its records."""

    def __init__(self) -> None:
        self.records: list[TrialRecord] = []

    def trial(self, record: TrialRecord) -> None:
        self.records.append(record)


def finished(cost: CostModel, *, number: int, width: int, valid: float) -> Candidate:
    widths = dict.fromkeys(cost.names, width)
    return Candidate(
        name=trial_name(number),
        trial=number,
        plan=Plan(widths=widths, criterion="l2", finetune=FineTune(epochs=EPOCHS, lr=1e-3)),
        score=Score(valid=valid, params=cost.params(widths), macs=1, size_bytes=1),
        parent="dense",
        epochs=EPOCHS,
        curve=(valid,) * (EPOCHS + 1),
    )


@dataclass
class Bench:
    """A driver on pretended jobs, three tiny candidates finished at 0.9 or little less."""

    driver: Driver
    executor: Pretender
    tracker: Listener
    study: optuna.Study


@pytest.fixture
def bench(found: Found, tmp_path: Path) -> Callable[..., Bench]:
    def make(curve: list[float], **settings: Any) -> Bench:
        grouping = found.store.load_grouping()
        cost = CostModel(grouping)
        store = Store(tmp_path / "out")
        executor, tracker = Pretender(cost, store, curve), Listener()
        space = SearchSpace(
            channels=grouping.channels, space=Space(epochs=EPOCHS), has_dropout=False
        )
        driver = driver_on(executor, space, cost, store, tracker=tracker, **settings)
        for number, end in ((900, 0.9), (901, 0.89), (902, 0.89)):
            candidate = finished(cost, number=number, width=1, valid=end)
            course = (0.9, 0.88, 0.9, 0.88, end)  # noise, and nothing left to learn
            driver.pool.candidates[candidate.name] = replace(candidate, curve=course)
        study = optuna.create_study(
            directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=0)
        )
        return Bench(driver, executor, tracker, study)

    return make


def test_a_dominated_trial_is_stopped_at_the_first_rung(bench: Callable[..., Bench]) -> None:
    b = bench([0.1] * (EPOCHS + 1))
    b.driver.search(b.study, budget=1, deadline=None)
    (trial,) = b.study.trials
    assert b.executor.answers == [True, True, False]
    assert trial.state == TrialState.PRUNED
    assert trial.user_attrs["curve"] == [0.1, 0.1, 0.1]
    assert trial.intermediate_values == {}
    assert trial_name(trial.number) not in b.driver.pool.candidates
    (record,) = b.tracker.records
    assert record.state == "stopped"
    assert record.metrics["valid"] == 0.1


@pytest.mark.parametrize(
    ("curve", "early_stop"),
    [([0.1] * (EPOCHS + 1), False), ([0.1, 0.85, 0.91, 0.92, 0.93], True)],
    ids=["not wanted", "not dominated"],
)
def test_other_trials_are_not_stopped(
    bench: Callable[..., Bench], curve: list[float], early_stop: bool
) -> None:
    b = bench(curve, early_stop=early_stop)
    b.driver.search(b.study, budget=1, deadline=None)
    (trial,) = b.study.trials
    assert b.executor.answers == [True] * (EPOCHS + 1)
    assert trial.state == TrialState.COMPLETE
    assert b.driver.pool.candidates[trial_name(trial.number)].curve == tuple(curve)
    assert b.tracker.records[0].state == "complete"


@pytest.mark.parametrize(
    ("sampler", "early_stop", "stops"),
    [
        ("pruning", None, False),
        ("pruning", True, True),
        ("tpe", None, True),
        ("tpe", False, False),
        (RandomSampler(), None, True),
    ],
)
def test_trials_are_stopped_as_suits_the_sampler_unless_asked(
    sampler: Any, early_stop: bool | None, stops: bool
) -> None:
    assert Settings(sampler=sampler, early_stop=early_stop).stops_early == stops


@pytest.mark.parametrize("inherit", [False, True])
def test_a_trial_with_inherited_weights_may_be_further_behind(
    bench: Callable[..., Bench], inherit: bool
) -> None:
    b = bench([0.1, 0.6, 0.7, 0.95, 0.95], inherit=inherit)
    widest = max(b.executor.cost.channels)
    parent = finished(b.executor.cost, number=903, width=int(widest), valid=0.95)
    b.driver.pool.candidates[parent.name] = parent
    b.driver.search(b.study, budget=1, deadline=None)
    (trial,) = b.study.trials
    assert trial.user_attrs["parent"] == (parent.name if inherit else "dense")
    assert trial.state == (TrialState.COMPLETE if inherit else TrialState.PRUNED)


def test_wider_models_scores_stop_nothing_and_are_no_part_of_the_curve(
    bench: Callable[..., Bench],
) -> None:
    standing: list[tuple[int, int, float | None]] = []

    class Watcher(SilentReporter):
        def update(self, status: Status) -> None:
            standing.extend((r.epoch, r.epochs, r.valid) for r in status.running)

    b = bench([0.92, 0.93, 0.94], reporter=Watcher())
    b.executor.earlier = [0.1, 0.1]  # as bad as can be, at each of what would be rungs
    b.driver.search(b.study, budget=1, deadline=None)
    (trial,) = b.study.trials
    assert trial.state == TrialState.COMPLETE
    assert trial.user_attrs["curve"] == [0.92, 0.93, 0.94]
    candidate = b.driver.pool.candidates[trial_name(trial.number)]
    assert candidate.curve == (0.92, 0.93, 0.94)
    assert candidate.epochs == EPOCHS
    (record,) = b.tracker.records
    assert record.curves["valid_earlier_steps"] == [0.1, 0.1]
    assert [s[0] for s in standing] == [0, 1, 2, 2, 3, 4]
    assert [s[2] for s in standing] == [None, None, None, 0.92, 0.93, 0.94]


@pytest.mark.parametrize(("earlier", "stops"), [(1, True), (2, False)])
def test_trials_of_several_steps_are_judged_by_the_epochs_at_their_widths(
    bench: Callable[..., Bench], earlier: int, stops: bool
) -> None:
    # Of four epochs three are left, in which there is a rung, or two, in which there is none.
    b = bench([0.1] * (EPOCHS + 1 - earlier))
    b.executor.earlier = [0.9] * earlier
    b.driver.search(b.study, budget=1, deadline=None)
    (trial,) = b.study.trials
    assert trial.state == (TrialState.PRUNED if stops else TrialState.COMPLETE)
    assert len(trial.user_attrs["curve"]) == (3 if stops else EPOCHS + 1 - earlier)


@pytest.mark.parametrize(("latency", "stops"), [(0.25, True), (0.125, False)])
def test_a_dominated_trial_that_is_faster_is_not_stopped(
    bench: Callable[..., Bench], latency: float, stops: bool
) -> None:
    b = bench(
        [0.1] * (EPOCHS + 1),
        costs=("params", "latency"),
        latency={"engine": "eager", "batch_size": 1},
    )
    for name, candidate in b.driver.pool.candidates.items():
        score = replace(candidate.score, latency=0.2)
        b.driver.pool.candidates[name] = replace(candidate, score=score)
    b.executor.latency = latency
    b.driver.search(b.study, budget=1, deadline=None)
    (trial,) = b.study.trials
    assert trial.state == (TrialState.PRUNED if stops else TrialState.COMPLETE)
    (record,) = b.tracker.records
    assert record.metrics["latency_ms"] == 1e3 * latency
    if not stops:
        score = b.driver.pool.candidates[trial_name(trial.number)].score
        assert (score.latency, score.latency_spread) == (latency, 0.01)
        assert trial.user_attrs["latency"] == latency


def test_a_final_stage_that_goes_on_takes_the_front_of_now(bench: Callable[..., Bench]) -> None:
    b = bench([0.99] * (EPOCHS + 1))
    small, middle, large, better = (
        finished(b.executor.cost, number=number, width=width, valid=valid)
        for number, (width, valid) in enumerate([(2, 0.5), (4, 0.6), (6, 0.7), (3, 0.8)])
    )
    b.driver.pool.candidates = {c.name: c for c in (small, middle, large)}
    b.executor.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        b.driver.finish(b.study, epochs=EPOCHS)
    b.driver.park(b.study)
    assert b.executor.started == ["t002-final"]  # the largest takes longest, so it begins

    b.executor.interrupted, b.executor.started = False, []
    b.driver.pool.candidates[better.name] = better  # nobody needs the middle and the large one now
    chosen = b.driver.finish(b.study, epochs=EPOCHS)
    assert b.executor.started == ["t003-final", "t000-final"]
    assert {name: c.name for name, c in chosen.items()} == {
        "t000": "t000-final",
        "t003": "t003-final",
    }


# --- failing trials -----------------------------------------------------------------------------

SICK = """\
class Sick(SupervisedTask):
    def step(self, model, batch):
        loss, outputs = super().step(model, batch)
        params = sum(p.numel() for p in model.parameters())
        return loss * (float("nan") if params < {limit} else 1.0), outputs


SupervisedTask = Sick
"""


@pytest.mark.usefixtures("quick_export")
def test_a_trial_with_a_nan_loss_fails_and_the_search_goes_on(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.py", before=SICK.format(limit=200))
    result = run.search(study, out=tmp_path / "out", budget=3, **UNTRACKED)
    trials = trials_of(tmp_path / "out")
    failed = [t for t in trials if t.state == TrialState.FAIL]
    assert failed
    for trial in failed:
        assert "loss must stay finite" in trial.user_attrs["cause"]
        assert "nan" in trial.user_attrs["cause"]
        assert not Store(tmp_path / "out").has_candidate(trial_name(trial.number))
    assert result.trials == {"complete": 3, "stopped": 0, "failed": len(failed)}
    assert all(m.params >= 200 for m in result.front)


def test_five_failures_in_a_row_end_the_search(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.py", before=SICK.format(limit=2000))
    with pytest.raises(AutopruneError, match=r"5 trials in a row failed.*finite"):
        run.search(study, out=tmp_path / "out", budget=20, **UNTRACKED)
    assert [t.state for t in trials_of(tmp_path / "out")] == [TrialState.FAIL] * 5
    assert not (tmp_path / "out" / "front.json").exists()


# --- the result as a value ----------------------------------------------------------------------


def made(*, higher_is_better: bool = True) -> SearchResult:
    sign = 1 if higher_is_better else -1
    models = [
        Model(
            name=name,
            trial=number,
            params=params,
            macs=params,
            size_bytes=4 * params,
            valid=sign * valid,
            test=None,
            path=f"front/{name}",
        )
        for number, (name, params, valid) in enumerate(
            [("t001", 100, 0.5), ("t002", 200, 0.75), ("t003", 400, 0.875), ("dense", 800, 0.9)]
        )
    ]
    return SearchResult(
        out=Path("out"),
        study="made",
        metric="score",
        higher_is_better=higher_is_better,
        dense=models[-1],
        front=tuple(models[:-1]),
        trials={"complete": 3},
    )


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_best_and_within_keep_to_the_limits(higher_is_better: bool) -> None:
    result, sign = made(higher_is_better=higher_is_better), 1 if higher_is_better else -1
    assert result.best().name == "t003"
    assert result.best(max_params=399).name == "t002"
    assert result.best(max_params=200).name == "t002"
    assert result.best(min_accuracy=sign * 0.6).name == "t002"
    assert result.best(min_accuracy=sign * 0.75).name == "t002"
    assert [m.name for m in result.within(max_params=200)] == ["t001", "t002"]
    assert [m.name for m in result.within(min_accuracy=sign * 0.75)] == ["t002", "t003"]
    assert [m.name for m in result.within(max_params=200, min_accuracy=sign * 0.6)] == ["t002"]
    assert result.within(max_params=99) == ()


def test_best_names_the_nearest_when_nothing_is_within() -> None:
    with pytest.raises(AutopruneError, match=r"at most 99 parameters.*smallest is t001 \(100 "):
        made().best(max_params=99)
    with pytest.raises(AutopruneError, match=r"score at least 0\.95.*best t003 \(400, 0\.8750\)"):
        made().best(min_accuracy=0.95)
    with pytest.raises(AutopruneError, match=r"score at most -0\.95"):
        made(higher_is_better=False).best(min_accuracy=-0.95)


def test_a_result_as_a_table(found: Found) -> None:
    table = found.result.to_dataframe()
    assert list(table["name"]) == ["dense", *(m.name for m in found.result.front)]
    assert list(table["params"]) == [2426, *(m.params for m in found.result.front)]
    assert {"macs", "size_bytes", "valid", "test", "path"} <= set(table.columns)


def test_only_models_on_the_front_can_be_loaded(found: Found) -> None:
    with pytest.raises(AutopruneError, match=found.result.front[0].name):
        found.result.load("t999")
    with pytest.raises(AutopruneError, match="`model`"):
        open_result(found.out).load(found.result.front[0].name)
