"""The report as a file: where it comes from, what it says and escapes, what bad input it names."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fabricate import fabricate
from helpers import environment

from autoprune.commands.report import report
from autoprune.errors import AutopruneError
from autoprune.results.report.page import write_report
from autoprune.results.report.trials import TrialFacts, is_uniform
from autoprune.results.report.words import recipe

HOSTILE = "</script><img src=x onerror=alert(1)>'\"&{{data}}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate(tmp_path_factory.mktemp("report") / "out")


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished search, to do harm to."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def data_of(page: str) -> dict[str, Any]:
    """Return what the page's scripts get."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    value: dict[str, Any] = json.loads(found[1])
    return value


def written(out: Path) -> tuple[str, dict[str, Any]]:
    page = write_report(out).read_text()
    return page, data_of(page)


class Visible(HTMLParser):
    """Collects the text that a reader sees without any script."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self._inside = ""
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._inside = tag
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text.append(data)


def visible(page: str) -> Visible:
    parser = Visible()
    parser.feed(page)
    return parser


def test_it_says_in_plain_words_which_model_to_take(finished: Path) -> None:
    page, data = written(finished)
    text = " ".join(visible(page).text)
    front = json.loads((finished / "front.json").read_text())
    within = [m for m in front["front"] if m["valid"] >= front["dense"]["valid"] - 0.01]
    smallest = min(within, key=lambda m: m["params"])
    assert f"{front['dense']['params']:,} parameters" in text
    assert "Smallest within 1 point" in text
    assert f"{smallest['params']:,}" in text
    assert f'autoprune.load("out/{smallest["path"]}", model=Net())' in text
    assert f"How {smallest['name']} was made" in text
    titled = {title: card["name"] for card in data["cards"] for title in card["titles"]}
    assert titled["Smallest within 1 point"] == smallest["name"]


def test_it_holds_every_trial_with_its_end(finished: Path) -> None:
    _, data = written(finished)
    rows = {t["name"]: t for t in data["trials"]}
    assert len(rows) == 20
    for file in (finished / "candidates").glob("*/candidate.json"):
        value = json.loads(file.read_text())
        row = rows[value["name"]]
        assert row["state"] == "complete"
        assert row["params"] == value["score"]["params"]
        assert row["valid"] == pytest.approx(value["score"]["valid"], rel=1e-4)
        assert row["curve"] == pytest.approx(value["curve"], rel=1e-4)
        assert row["widths"] == list(value["plan"]["widths"].values())
        assert value["plan"]["criterion"] in row["recipe"]
        assert len(row["losses"]) == len(value["curve"]) - 1
    states = [t["state"] for t in data["trials"]]
    assert states.count("stopped") == 20 - states.count("complete") - states.count("failed") > 0
    wide = [t for t in rows.values() if t["state"] == "complete" and max(t["widths"]) >= 8]
    assert {t["name"]: t["uniform"] for t in wide} == {
        t["name"]: int(t["name"][1:]) % 10 == 3 for t in wide
    }
    assert any(t["uniform"] for t in wide)


def test_it_tells_the_search_as_a_whole(finished: Path) -> None:
    _, data = written(finished)
    assert data["growth"]["values"] == sorted(data["growth"]["values"])
    assert len(data["growth"]["values"]) == data["states"]["complete"]
    assert sum(data["importances"]["size"].values()) == pytest.approx(1, abs=1e-3)
    assert data["blocked"][0]["layer"] == "head"
    assert data["proxies"]["epoch0"]["within_sizes"] == 0.62
    assert data["versions"]["torch"] == "2.13.0"
    assert all(g["sensitivity"] < 0 for g in data["groups"])
    assert data["harm"]["shares"] == [0.25, 0.5, 0.75]
    assert all(len(row["lost"]) == 3 and min(row["lost"]) > 0 for row in data["harm"]["rows"])


def test_bench_figures_and_baselines_are_shown(out: Path) -> None:
    file = out / "front.json"
    front = json.loads(file.read_text())
    name = front["front"][0]["name"]
    timed = {"seconds": 0.002, "spread": 0.0001, "runs": 50}
    run = {"runtime": "onnx", "batch_size": 8, "threads": 2, "device": "cpu", "cpu": "x", "time": 1}
    uniform = {"name": "uniform-1000", "params": 1000, "valid": 0.8, "test": 0.79, "key": "k"}
    added = {"bench": [{**run, "models": {"dense": timed, name: timed}}], "baselines": [uniform]}
    file.write_text(json.dumps(front | added))
    _, data = written(out)
    last = data["front"][0]["latencies"][-1]
    assert (last["engine"], last["batch_size"], last["when"]) == ("onnx", 8, "by autoprune bench")
    assert data["dense"]["latencies"][-1]["seconds"] == 0.002
    assert data["baselines"] == [{n: uniform[n] for n in ("name", "params", "valid", "test")}]


def test_commands_name_the_folder_as_it_was_given(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.parent)
    page = write_report("out", tmp_path / "elsewhere.html").read_text()
    model = data_of(page)["front"][0]
    codes = {c["title"]: c["code"] for c in model["commands"]}
    assert f'autoprune.load("out/front/{model["name"]}", model=Net())' in codes["As your own class"]
    assert f"out/front/{model['name']}/model.onnx" in codes["With ONNX Runtime"]
    for title in ("As your own class", "With PyTorch alone", "With ONNX Runtime"):
        compile(codes[title], title, "exec")


@pytest.mark.parametrize("tracked", [True, False])
def test_without_the_journal_or_records_it_shows_what_there_is(
    tracked: bool, tmp_path: Path
) -> None:
    out = fabricate(tmp_path / "out", tracked=tracked)
    if tracked:
        (out / "study.journal").unlink()
    _, data = written(out)
    assert len(data["trials"]) == 20
    assert all(t["params"] for t in data["trials"])
    assert (data["importances"] is None) == tracked


def test_names_of_others_never_become_markup(tmp_path: Path) -> None:
    out = fabricate(tmp_path / "out", name=HOSTILE, group=HOSTILE.replace("{{data}}", "") + "{}")
    page, data = written(out)
    assert data["study"] == HOSTILE
    assert data["groups"][0]["name"].startswith("</script>")
    parser = visible(page)
    assert "img" not in parser.tags
    assert parser.tags.count("script") == 3
    assert HOSTILE in " ".join(parser.text)


def test_the_page_may_load_nothing(finished: Path) -> None:
    page, _ = written(finished)
    assert "default-src 'none'" in page
    assert "unsafe" not in page.split("</head>")[0]
    addresses = set(re.findall(r"https?://[^\s\"'<>\\]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"complete": False}, "None of its 20 trials was completed"),
        ({"exported": False}, "no front was exported"),
        ({"trials": 0, "complete": False}, "No trial has ended yet"),
    ],
)
def test_without_a_front_it_says_why(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    page, _ = written(fabricate(tmp_path / "out", **settings))
    text = " ".join(visible(page).text)
    assert "This search has no front" in text
    assert words in text


def older(out: Path) -> None:
    value = json.loads((out / "search.json").read_text())
    (out / "search.json").write_text(json.dumps(value | {"format": 0}))


def altered_candidate(out: Path) -> None:
    file = next((out / "candidates").glob("*/candidate.json"))
    value = json.loads(file.read_text())
    del value["score"]
    file.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (shutil.rmtree, "is no folder"),
        (lambda out: (out / "search.json").unlink() or (out / "front.json").unlink(), "no search"),
        (older, "must be of format 1, but .* is of format 0: another version"),
        (altered_candidate, "candidate.json must be as the search wrote it"),
        (lambda out: (out / "front.json").write_text("{"), "front.json must be a readable JSON"),
        (
            lambda out: (out / "study.journal").write_text("{\n}\n{}\n"),
            "must be the search's Optuna",
        ),
    ],
)
def test_what_cannot_be_read_is_named(harm: Any, words: str, out: Path) -> None:
    harm(out)
    with pytest.raises(AutopruneError, match=words) as raised:
        write_report(out)
    assert "\n" not in str(raised.value)


def test_a_target_that_cannot_be_written_is_named(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(AutopruneError, match=r"must be a file, but .* is a folder"):
        write_report(finished, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(AutopruneError, match=r"that can be written, but .* cannot: .* --to"):
        write_report(finished, tmp_path / "file" / "report.html")


def test_the_command_needs_no_torch(out: Path) -> None:
    code = (
        "import sys\nfrom autoprune import cli\n"
        f"sys.argv = ['autoprune', 'report', {str(out)!r}]\n"
        "try:\n    cli.main()\n"
        "finally:\n    assert not {'torch', 'mlflow', 'plotly', 'matplotlib'} & {*sys.modules}\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert (out / "report.html").stat().st_size > 30_000
    assert run.stdout.startswith("Wrote ")


def test_it_opens_in_the_browser_if_asked(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    file = tmp_path / "here.html"
    report(out, to=file, open_it=False)
    assert shown == []
    report(out, to=file, open_it=True)
    assert shown == [file.as_uri()]


def test_a_recipe_is_a_sentence() -> None:
    trial = TrialFacts(
        name="t004",
        number=4,
        state="complete",
        parent="t003",
        criterion="fisher",
        epochs=9,
        tuning={"epochs": 9, "lr": 0.004, "batch_size": 64, "distill_weight": 0.0, "dropout": 0.1},
        sparsify={"method": "l1", "epochs": 3, "strength": 0.5},
        steps=2,
        reconstruct=True,
    )
    assert recipe(trial) == (
        "Cut from t003 by the criterion fisher, after 3 epochs of sparsifying with l1 "
        "(strength 0.5), in 2 steps with training between them, its readers refitted by least "
        "squares, then trained for 9 epochs with a peak learning rate of 0.004, batches of 64, "
        "dropout 0.1 and no distillation."
    )


def test_the_dense_widths_are_not_a_uniform_cut() -> None:
    channels = {"a": 16, "b": 64}
    assert not is_uniform(channels, channels)
    assert not is_uniform({"a": 4, "b": 4}, channels)
    assert is_uniform({"a": 4, "b": 16}, channels)
