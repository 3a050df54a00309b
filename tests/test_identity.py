"""A folder holds one search: what counts as another one, and beginning anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import UNTRACKED, write_study
from torch.utils.data import DataLoader, TensorDataset

from autoprune import SupervisedTask, jobs, run
from autoprune.errors import AutopruneError
from autoprune.results.changes import what_changed
from autoprune.results.store import Store
from autoprune.training import fingerprints
from autoprune.training.fingerprints import answers, content_digest, split_fingerprint

pytestmark = pytest.mark.usefixtures("quick_export")

SETTINGS: dict[str, Any] = UNTRACKED | {"budget": 2}
OTHER_CODE = """\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU())
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.body(x).tanh())
"""
LOSS = """\
def smooth(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1)


Plain = SupervisedTask
SupervisedTask = lambda **given: Plain(loss=smooth, scorer="accuracy", **given)
"""


def no_program(*_: object) -> None:
    raise NotImplementedError("left out")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autoprune.results.export._trace", no_program)
        patch.setattr("autoprune.finale.verify", lambda folders, **_: {f.name: [] for f in folders})
        run.search(write_study(folder / "study.py"), out=folder / "out", **SETTINGS)
    return folder / "out"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"before": "inputs[7, 3] += 0.5"}, "its training data changed"),
        ({"before": "targets[200] = 9 - targets[200]"}, "its validation data changed"),
        ({"before": "inputs[449, 0] = 0.77"}, "its test data changed"),
        ({"model": OTHER_CODE}, "its model's code or layers changed"),
        ({"before": LOSS}, "its loss changed"),
        ({"epochs": 2}, "its epochs is 1, not 2"),
        ({"final_epochs": 3}, "its final_epochs is 0, not 3"),
        ({"dense": "train=FineTune(epochs=9, lr=0.01, batch_size=32)"}, "train.epochs is 10, not"),
        ({"more": "seed=4,"}, "its seed is 0, not 4"),
        ({"more": 'keep=["body.0"],'}, "its model is"),
    ],
)  # fmt: skip
def test_a_changed_study_is_refused_with_what_changed(
    searched: Path, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    before = {p: p.stat().st_mtime_ns for p in searched.rglob("*")}
    with pytest.raises(AutopruneError) as refused:
        run.search(write_study(tmp_path / "study.py", **changes), out=searched, **SETTINGS)
    said = str(refused.value)
    assert words in said
    assert "--fresh" in said
    assert "another folder" in said
    assert "\n" not in said
    assert {p: p.stat().st_mtime_ns for p in searched.rglob("*")} == before


def test_test_data_may_be_mended_until_they_were_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> float:
        raise AutopruneError("The scorer must have classes.")

    out, other = tmp_path / "out", "targets[449] = 9 - targets[449]"
    study = write_study(tmp_path / "study.py", before=other)
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "_tested", fails)
        with pytest.raises(AutopruneError, match="must have classes"):
            run.search(study, out=out, **SETTINGS)
    first = json.loads((out / "search.json").read_text())
    trials = {p: p.read_bytes() for p in out.glob("candidates/*/candidate.json")}
    assert trials
    result = run.search(write_study(study), out=out, **SETTINGS)
    assert result.trials["complete"] == 2
    assert {p: p.read_bytes() for p in out.glob("candidates/*/candidate.json")} == trials
    known = json.loads((out / "search.json").read_text())
    assert known["data"]["test"] != first["data"]["test"]
    assert known | {"data": first["data"]} == first
    with pytest.raises(AutopruneError, match="its test data changed"):
        run.search(write_study(study, before=other), out=out, **SETTINGS)


def test_a_study_file_that_says_the_same_in_other_words_is_the_same(
    searched: Path, tmp_path: Path
) -> None:
    same = write_study(tmp_path / "study.py", before="# a remark\nunused = 3")
    assert run.search(same, out=searched, **SETTINGS).trials["complete"] == 2


def test_a_search_of_an_earlier_version_can_be_gone_on_with(searched: Path) -> None:
    known = json.loads((searched / "search.json").read_text())
    for key in ("study_settings", "train", "checkpoint", "weights", "data", "answers"):
        old = {k: v for k, v in known.items() if k != key}
        assert what_changed(old, known) is None
    old = json.loads(json.dumps(known))
    del old["study_settings"]["optimizer"], old["train"]["optimizer"]
    assert what_changed(old, known) is None
    muon = {**known, "study_settings": known["study_settings"] | {"optimizer": "muon"}}
    assert what_changed(old, muon) == "its optimizer is 'adamw', not 'muon'"
    assert what_changed(known, known | {"metric": "r2"}) == "its metric is 'accuracy', not 'r2'"


# --- beginning anew -----------------------------------------------------------------------------


def test_fresh_begins_anew_and_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    study, out = write_study(tmp_path / "study.py"), tmp_path / "out"
    run.search(study, out=out, **SETTINGS)
    first = json.loads((out / "search.json").read_text())
    (out / "candidates" / "t077").mkdir()
    (out / "underway").mkdir(exist_ok=True)
    (out / "underway" / "left.safetensors").touch()
    write_study(study, epochs=2)
    run.search(study, out=out, fresh=True, **SETTINGS)
    second = json.loads((out / "search.json").read_text())
    assert second["id"] != first["id"]
    assert "clearing" not in second
    assert second["study_settings"]["epochs"] == 2
    assert not (out / "candidates" / "t077").exists()
    assert not (out / "underway" / "left.safetensors").exists()
    run.search(study, out=out, **SETTINGS)  # and it is gone on with as any other
    assert json.loads((out / "search.json").read_text()) == second


def test_fresh_where_there_is_nothing_is_a_search(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.py")
    assert run.search(study, out=tmp_path / "out", fresh=True, **SETTINGS).front


@pytest.mark.parametrize("name", ["thesis.txt", ".git", "frontier"])
def test_fresh_deletes_nothing_beside_foreign_files(
    searched: Path, name: str, tmp_path: Path
) -> None:
    (searched / name).touch()
    try:
        with pytest.raises(AutopruneError, match=f"nothing else, but .* also holds {name}"):
            run.search(write_study(tmp_path / "study.py"), out=searched, fresh=True, **SETTINGS)
        assert (searched / "front.json").exists()
    finally:
        (searched / name).unlink()


def test_fresh_deletes_nothing_that_is_not_ours(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "dense").mkdir()
    study = write_study(tmp_path / "study.py")
    with pytest.raises(AutopruneError, match="other files"):
        run.search(study, out=out, fresh=True, **SETTINGS)
    (out / "search.json").write_text('{"query": "cats"}')
    with pytest.raises(AutopruneError, match=r"search\.json that is none of ours"):
        run.search(study, out=out, fresh=True, **SETTINGS)
    assert (out / "dense").is_dir()


def test_fresh_deletes_nothing_under_a_running_search(searched: Path, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.py")
    with Store(searched).locked(), pytest.raises(AutopruneError, match="Only one search"):
        run.search(study, out=searched, fresh=True, **SETTINGS)
    assert (searched / "front.json").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_search_that_was_killed_in_its_first_write_begins_again(
    fresh: bool, tmp_path: Path
) -> None:
    for name in (".lock", ".search.json.ab12"):
        (tmp_path / name).touch()
    store = Store(tmp_path)
    with store.locked():
        assert store.open({"seed": 1}, fresh=fresh)["seed"] == 1
    assert store.identity_file.exists()


def test_a_fresh_start_that_was_killed_is_finished_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "out")
    with store.locked():
        old = store.open({"seed": 0})
        (store.root / "candidates" / "t000").mkdir(parents=True)
        with monkeypatch.context() as patch:
            patch.setattr("autoprune.results.store.shutil.rmtree", _killed)
            with pytest.raises(KeyboardInterrupt):
                store.open({"seed": 1}, fresh=True)
        assert (store.root / "candidates" / "t000").exists()
        new = store.open({"seed": 1})
    assert not (store.root / "candidates").exists()
    assert new["id"] != old["id"]
    assert new["seed"] == 1
    assert "clearing" not in new


def _killed(path: Path) -> None:
    raise KeyboardInterrupt


# --- fingerprints -------------------------------------------------------------------------------


def test_a_digest_sees_a_change_of_any_kind() -> None:
    x = torch.arange(24.0).reshape(4, 6)
    digests = {
        content_digest(tensors)
        for tensors in ([x], [x.reshape(6, 4)], [x.double()], [x, x], [x + 1], [x.flip(0)], [])
    }
    assert len(digests) == 7
    assert content_digest([x.t().contiguous().t()]) == content_digest([x])


def test_much_data_is_digested_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "MOST_BYTES", 400)
    x = torch.randn(1000, 4)
    assert content_digest([x]) == content_digest([x.clone()])
    assert content_digest([x]) != content_digest([x * 1.01])
    assert content_digest([x]) != content_digest([x[:-1]])


def loaders(shift: float, *, shuffle: bool = False, noisy: bool = False) -> SupervisedTask:
    class Noisy(TensorDataset):
        def __getitem__(self, index: Any) -> Any:
            x, y = super().__getitem__(index)
            return (x + torch.rand(()), y) if noisy else (x, y)

    x, y = torch.arange(80.0).reshape(20, 4) + shift, torch.arange(20) % 2
    loader = DataLoader(Noisy(x, y), batch_size=8, shuffle=shuffle)
    return SupervisedTask(train=loader, valid=(x, y))


def test_a_loader_is_known_by_its_first_batch_unless_that_is_drawn_anew() -> None:
    known = split_fingerprint(loaders(0.0), "train")
    assert known is not None
    assert split_fingerprint(loaders(0.0), "train") == known
    assert split_fingerprint(loaders(1.0), "train") != known
    assert split_fingerprint(loaders(0.0, noisy=True), "train") is None
    assert split_fingerprint(loaders(0.0, shuffle=True), "train") is None
    assert split_fingerprint(loaders(0.0), "test") is None


def test_what_a_model_does_shows_in_its_answers_not_in_its_weights(task: SupervisedTask) -> None:
    relu = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    gelu = torch.nn.Sequential(relu[0], torch.nn.GELU(), relu[2])
    other = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    state = torch.get_rng_state()
    found = [answers(net, torch.ones(2, 8), task) for net in (relu, gelu, other)]
    assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[2] != found[1]
    assert what_changed({"answers": found[0]}, {"answers": found[1]}) is not None
    near = {"answers": {k: v and [x * (1 + 1e-5) for x in v] for k, v in found[0].items()}}
    assert what_changed({"answers": found[0]}, near) is None
