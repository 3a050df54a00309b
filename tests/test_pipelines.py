"""A search is a step of a pipeline: called twice, its result JSON, shown by a notebook, checked."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from fronts import FRONT, write_front
from helpers import UNTRACKED, Here, environment, leave_out_programs, write_study

import autoprune
from autoprune import AutopruneError, SearchResult
from autoprune.results import checking
from autoprune.results.checking import check, remember
from autoprune.results.result import open_result

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SearchResult, ...]]:
    """Two searches, one after the other in this process, each with its own MLflow."""
    folder = tmp_path_factory.mktemp("pipeline")
    handlers, threads = list(logging.getLogger().handlers), torch.get_num_threads()
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    drawn, results = [], []
    with pytest.MonkeyPatch.context() as patch:
        leave_out_programs(patch)
        for name, kind in (("one", "mlp"), ("other", "conv")):
            study = write_study(folder / f"{name}.py", kind=kind, name=name)
            results.append(autoprune.search(study, out=folder / name, budget=2, workers=0))
            drawn.append(torch.rand(1))
            assert mlflow.active_run() is None
    assert torch.equal(torch.cat(drawn), expected)  # as if no search had been in between
    assert logging.getLogger().handlers == handlers
    assert torch.get_num_threads() == threads
    yield tuple(results)
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.mark.usefixtures("quick_export")
def test_two_searches_in_one_process_know_nothing_of_each_other(
    pair: tuple[SearchResult, ...], tmp_path: Path
) -> None:
    one, other = pair
    assert (one.study, other.study) == ("one", "other")
    assert one.dense.params != other.dense.params
    # The second one is what it would have been without the first.
    again = autoprune.search(
        other.out.with_name("other.py"), out=tmp_path / "again", budget=2, **UNTRACKED
    )
    kept = ("params", "macs", "valid", "test")
    for mine, theirs in zip((again.dense, *again.front), (other.dense, *other.front), strict=True):
        assert [getattr(mine, k) for k in kept] == [getattr(theirs, k) for k in kept]


def test_mlflow_has_each_search_where_it_belongs(pair: tuple[SearchResult, ...]) -> None:
    for result in pair:
        client = mlflow.MlflowClient(f"sqlite:///{result.out}/mlflow.db")
        experiments = client.search_experiments()
        runs = client.search_runs([e.experiment_id for e in experiments])
        assert {run.info.status for run in runs} == {"FINISHED"}
        searches = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        assert len(searches) == 1
        assert len(runs) >= 1 + sum(result.trials.values())


def test_a_result_is_json_and_says_what_to_pick(pair: tuple[SearchResult, ...]) -> None:
    for result in pair:
        told = json.loads(json.dumps(result.to_dict(), allow_nan=False))
        assert told["study"] == result.study
        assert [model["name"] for model in told["front"]] == [m.name for m in result.front]
        assert told["chosen"]["knee"] == autoprune.pick(result.out, choose="knee").model.name
        assert told["chosen"]["best"] == result.best().name
        reread = autoprune.open_result(told["out"])
        assert reread.to_dict() == result.to_dict()


def test_a_result_without_a_front_is_json_too(tmp_path: Path) -> None:
    write_front(tmp_path, {}, exports=False)
    result = autoprune.open_result(tmp_path)
    assert json.loads(json.dumps(result.to_dict()))["chosen"] == {}
    assert "dense" in result._repr_html_()


# --- in a notebook ------------------------------------------------------------------------------


class Table(HTMLParser):
    """Collects the cells of the rows, and checks that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.pictures: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.pictures.append(str(dict(attributes)["src"]))
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_a_notebook_shows_a_result_as_a_table_and_a_picture(
    pair: tuple[SearchResult, ...],
) -> None:
    result = pair[1]
    shown = Table(result._repr_html_())
    assert [row[0] for row in shown.rows[1:]] == ["dense", *(m.name for m in result.front)]
    assert shown.rows[1][1] == f"{result.dense.params:,}"
    notes = {row[0]: row[-1] for row in shown.rows[2:]}
    assert "knee" in notes[autoprune.pick(result.out, choose="knee").model.name]
    [picture] = shown.pictures
    assert picture.startswith("data:image/png;base64,iVBOR")


def test_names_are_no_markup(tmp_path: Path) -> None:
    write_front(tmp_path, exports=False, study="<script>", metric="a&b")
    shown = autoprune.open_result(tmp_path)._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;: a&amp;b" in shown


def test_the_figure_shows_itself_and_holds_the_front(pair: tuple[SearchResult, ...]) -> None:
    figure = pair[0].figure()
    assert callable(figure._repr_html_)
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces["front"].x) == [model.params for model in pair[0].front]
    assert len(traces["trials"].x) == pair[0].trials["complete"]


@pytest.mark.usefixtures("quick_export")
def test_progress_is_lines_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path / "study.py")
    result = autoprune.search(study, out=tmp_path / "out", budget=2, verbose=True, **UNTRACKED)
    said = capsys.readouterr()
    assert said.out == ""
    assert "\x1b" not in said.err
    lines = said.err.splitlines()
    assert sum(line.startswith("[") for line in lines) == sum(result.trials.values()) == 2
    autoprune.search(study, out=tmp_path / "silent", budget=1, **UNTRACKED)
    assert capsys.readouterr() == ("", "")


CELLS = (
    "import autoprune\n"
    "result = autoprune.search('study.py', out='out', budget=1, workers=0,"
    " tracking_uri='none', verbose=True)",
    "result",
    "result.figure()",
    "autoprune.search('study.py', out='out', budget=1, workers=0, tracking_uri='none').out.name",
)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_a_notebook_runs_without_widgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    write_study(tmp_path / "study.py")
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, startup_timeout=300, resources=place).execute()
    progress, shown, figure, again = (cell.outputs for cell in notebook.cells)
    lines = [o.data["text/plain"] for o in progress if "data" in o]
    assert sum(line.startswith("[1/1] t000") for line in lines) == 1
    kinds = {kind for output in progress for kind in output.get("data", {})}
    assert kinds == {"text/plain", "text/html"}  # nothing that a widget would draw
    assert "t000" in [row[0] for row in Table(shown[0].data["text/html"]).rows]
    assert "application/vnd.plotly.v1+json" in figure[0].data
    assert again[0].data["text/plain"] == "'out'"  # the same search, which was finished


# --- the gate -----------------------------------------------------------------------------------

WORSE = {name: (params, valid - 0.004) for name, (params, valid) in FRONT.items()}
LARGER = {name: (int(params * 1.2), valid) for name, (params, valid) in FRONT.items()}


def front(folder: Path, models: dict[str, tuple[int, float]] = FRONT, **more: Any) -> Path:
    return write_front(folder, models, exports=False, **more)


def test_last_weeks_model_is_remembered_and_compared_with(tmp_path: Path, here: Here) -> None:
    front(tmp_path / "monday")
    front(tmp_path / "worse", WORSE)
    front(tmp_path / "larger", LARGER)
    run = here("check", "monday", "--against", "knee.json", "--update", cwd=tmp_path)
    assert (run.returncode, run.stdout) == (0, "Nothing to compare with yet: wrote knee.json.\n")
    kept = (tmp_path / "knee.json").read_bytes()
    run = here("check", "worse", "--against", "knee.json", "--update", cwd=tmp_path)
    assert run.returncode == 1
    assert "accuracy of the knee is 0.9660, and was 0.9700: 0.40 points worse, of 0" in run.stdout
    run = here(
        "check", "worse", "--against", "knee.json", "--max-loss", "1", "--update", cwd=tmp_path
    )
    assert run.returncode == 0
    # A loss that is allowed is no new standard: many small ones would add up.
    assert (tmp_path / "knee.json").read_bytes() == kept
    limit = ("--against", "knee.json", "--max-growth")
    run = here("check", "larger", *limit, "30", "--update", cwd=tmp_path)
    assert run.returncode == 0
    assert (tmp_path / "knee.json").read_bytes() == kept  # nor is a growth that is allowed
    run = here("check", "larger", *limit, "10", cwd=tmp_path)
    assert run.returncode == 1
    assert "has 10,800 parameters, and had 9,000: 20.0 % more, of 10 allowed." in run.stdout
    run = here("check", "larger", "--against", "monday", "--json", cwd=tmp_path)
    assert run.returncode == 0
    told = json.loads(run.stdout)
    assert (told["passed"], told["loss"], told["problems"]) == (True, 0.0, [])
    assert told["growth"] == pytest.approx(20)


def test_a_better_model_is_the_new_standard(tmp_path: Path, here: Here) -> None:
    remember(front(tmp_path / "worse", WORSE), tmp_path / "knee.json")
    front(tmp_path / "new")
    run = here("check", "new", "--against", "knee.json", "--update", cwd=tmp_path)
    assert run.stdout == "The knee is no worse: 9,000 parameters (+0.0 %), accuracy 0.9700 " + (
        "(+0.40 points).\n"
    )
    assert json.loads((tmp_path / "knee.json").read_text())["model"]["valid"] == 0.97


def test_where_size_has_no_limit_the_score_alone_sets_the_standard(tmp_path: Path) -> None:
    file = tmp_path / "knee.json"
    remember(front(tmp_path / "out"), file)
    larger = front(tmp_path / "larger", LARGER)
    assert check(larger, against=file).sets_standard
    assert not check(larger, against=file, max_growth=30).sets_standard
    assert not check(front(tmp_path / "worse", WORSE), against=file, max_loss=1).sets_standard


def test_a_search_is_read_once_for_check_and_update(
    tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def counted(out: Path) -> SearchResult:
        read.append(out)
        return open_result(out)

    remember(front(tmp_path / "worse", WORSE), tmp_path / "knee.json")
    out = front(tmp_path / "new")
    monkeypatch.setattr(checking, "open_result", counted)
    run = here("check", out, "--against", tmp_path / "knee.json", "--update", cwd=tmp_path)
    assert (run.returncode, read) == (0, [out])
    assert json.loads((tmp_path / "knee.json").read_text())["model"]["valid"] == 0.97


def test_a_score_that_is_the_same_is_no_loss_of_minus_nothing(tmp_path: Path, here: Here) -> None:
    kind: dict[str, Any] = {"metric": "loss", "higher_is_better": False, "dense": (10_000, 2.0)}
    for name, lost in (("one", 0.0), ("other", 1e-12)):
        front(tmp_path / name, {"t1": (100, 3.0), "t2": (900, 2.0 + lost)}, **kind)
    for name in ("one", "other"):
        run = here("check", name, "--against", "one", cwd=tmp_path)
        assert "(+0.0 %), loss 2.0000 (+0.00 points)" in run.stdout
    assert "-0.0" not in json.dumps(check(tmp_path / "one", against=tmp_path / "one").to_json())


def test_lower_may_be_better(tmp_path: Path) -> None:
    kind: dict[str, Any] = {"metric": "loss", "higher_is_better": False, "dense": (10_000, 2.0)}
    one = front(tmp_path / "one", {"t1": (100, 3.0), "t2": (900, 2.0)}, **kind)
    other = front(tmp_path / "other", {"t1": (100, 3.0), "t2": (900, 2.1)}, **kind)
    found = check(other, against=one, choose="best", max_loss=4)
    assert found.loss == pytest.approx(5)  # hundredths of the dense model's 2.0
    assert not found.passed
    assert check(one, against=other, choose="best").passed


BAD = {
    "no file": (
        ["--against", "nowhere.json"],
        "but there is no nowhere.json. `--update` writes it",
    ),
    "no search": (["--against", "empty"], "empty must hold a finished search"),
    "another metric": (["--against", "f1"], "must have the same metric to be compared"),
    "another choice": (["--against", "knee.json", "--choose", "best"], "must have the same choice"),
    "not ours": (["--against", "other.json"], "must be what `autoprune check --update` wrote"),
    "no model": (["--against", "list.json"], "must be what `autoprune check --update` wrote"),
    "folder": (["--against", "f1", "--update"], "must come with a file, but --against is a folder"),
    "negative": (["--against", "knee.json", "--max-loss", "-1"], "must be at least 0, but is -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_compared_is_one_line_and_exit_code_2(
    case: str, tmp_path: Path, here: Here
) -> None:
    options, message = BAD[case]
    remember(front(tmp_path / "out"), tmp_path / "knee.json")
    front(tmp_path / "f1", metric="f1")
    (tmp_path / "empty").mkdir()
    told = json.loads((tmp_path / "knee.json").read_text())
    odd = told | {"model": told["model"] | {"params": "many"}}
    (tmp_path / "other.json").write_text(json.dumps(odd))
    (tmp_path / "list.json").write_text(json.dumps(told | {"model": [1]}))
    run = here("check", "out", *options, cwd=tmp_path)
    assert run.returncode == 2
    assert message in run.stderr
    assert run.stderr.count("\n") == 1


def test_choices_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AutopruneError, match="Did you mean 'knee'"):
        check(front(tmp_path), against=tmp_path, choose="kneee")
