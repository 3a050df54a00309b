"""A user's mistake: one line that names the thing and the way out, exit code 2, nothing written."""

from __future__ import annotations

import hashlib
import os
import shlex
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from fronts import write_front
from helpers import Here, run_cli, write_study
from torch import nn

from autoprune.pruning.files import write_json
from autoprune.pruning.weights import save_model
from autoprune.results.spool import Destination, save_destination
from autoprune.results.store import Store

Prepare = Callable[[Path], object]


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A command that cannot be carried out, and what its message must say."""

    command: str
    words: tuple[str, ...]
    prepare: Prepare = lambda folder: write_study(folder / "study.py")
    in_process: bool = True
    """Whether the command may run in this very process, which saves the imports."""


class Bomb:
    """Unpickling it runs code, which leaves a trace."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("the-code-ran",)


def study(**parts: str) -> Prepare:
    return lambda folder: write_study(folder / "study.py", **parts)  # type: ignore[arg-type]


def text(content: str) -> Prepare:
    return lambda folder: (folder / "study.py").write_text(content)


def checkpoint(content: object) -> Prepare:
    def prepare(folder: Path) -> None:
        write_study(folder / "study.py", dense='checkpoint="dense.pt"')
        torch.save(content, folder / "dense.pt")

    return prepare


def search_of(**identity: str) -> Prepare:
    def prepare(folder: Path) -> None:
        write_study(folder / "study.py")
        Store(folder / "out").open(identity)

    return prepare


def foreign_files(folder: Path) -> None:
    write_study(folder / "study.py")
    (folder / "out").mkdir()
    (folder / "out" / "thesis.txt").write_text("three years of work")


def out_file(folder: Path) -> None:
    write_study(folder / "study.py")
    (folder / "out").write_text("not a folder")


def finished_search(folder: Path) -> None:
    def model(name: str, params: int) -> dict[str, object]:
        numbers = {"trial": 1, "params": params, "macs": 1, "size_bytes": 1}
        return {"name": name, "valid": 0.9, "test": 0.8, "path": f"front/{name}", **numbers}

    front = {
        "study": "tiny",
        "metric": "accuracy",
        "higher_is_better": True,
        "dense": model("dense", 5000),
        "front": [model("t007", 1234), model("t003", 4321)],
        "trials": {"complete": 2, "stopped": 0, "failed": 0},
    }
    write_json(folder / "out" / "front.json", front)


def database(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "mlflow.db").touch()


def spooled(folder: Path) -> None:
    store = Store(folder / "out")
    store.open({"study": "tiny"})
    save_destination(store.spool, Destination.of("https://bob:pw@host", "autoprune"))


def front(folder: Path) -> None:
    write_study(folder / "study.py")
    write_front(folder / "out")


def empty_folder(folder: Path) -> None:
    (folder / "out").mkdir()


def other_checkpoint(folder: Path) -> None:
    write_study(folder / "study.py", dense='checkpoint="dense.safetensors"')
    save_model(folder / "dense.safetensors", nn.Linear(64, 10))


def other_shapes(folder: Path) -> None:
    write_study(folder / "study.py", dense='checkpoint="dense.safetensors"')
    body = nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 16))
    net = nn.ModuleDict({"body": body, "head": nn.Linear(16, 10)})
    save_model(folder / "dense.safetensors", net)


ONE_LAYER = """\
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(64, 10))
"""

SPACE = "Settings = Space\nSpace = lambda **given: Settings(**given, {})"
"""Gives the study's space one more setting."""

BAD = {
    # --- the study file ---
    "no such study": Bad(
        command="search nowhere.py",
        words=("nowhere.py", "digits", "autoprune new nowhere.py"),
        in_process=False,
    ),
    "study that does not end in .py": Bad(
        command="search study.txt",
        prepare=lambda folder: write_study(folder / "study.txt"),
        words=("must end in .py", "'study.txt'"),
    ),
    "no such study, of an odd name": Bad(
        command="search 'no where.py'", words=("`autoprune new 'no where.py'`",)
    ),
    "study with a name that is too long": Bad(
        command=f"search {'a' * 300}.py", words=("no file 'aaaaa", "Python file")
    ),
    "study raises": Bad(
        command="search study.py",
        prepare=study(before='raise ValueError("no data today")'),
        words=("study.py, line", "ValueError: no data today"),
    ),
    "study with a syntax error": Bad(
        command="search study.py",
        prepare=text("import torch\nstudy = = 3\n"),
        words=("study.py, line 2", "SyntaxError"),
        in_process=False,
    ),
    "study that exits": Bad(
        command="doctor study.py",
        prepare=text("raise SystemExit('bye')\n"),
        words=("study.py, line 1", "SystemExit: bye"),
    ),
    "no study in the file": Bad(
        command="search study.py", prepare=text("x = 1\n"), words=("study.py", "study = Pruning")
    ),
    "study of another type": Bad(
        command="search study.py",
        prepare=text("study = {'name': 'x'}\n"),
        words=("study.py", "PruningStudy", "dict"),
    ),
    "name with a slash": Bad(
        command="search study.py", prepare=study(name="a/b"), words=("`name`", "'a/b'", "letters")
    ),
    "keep that is a pattern": Bad(
        command="search study.py",
        prepare=study(more='keep="body.*",'),
        words=("`keep` must be a list of patterns", "'body.*'"),
    ),
    "keep that is none": Bad(
        command="search study.py", prepare=study(more="keep=None,"), words=("`keep`", "None")
    ),
    "training that is a number": Bad(
        command="search study.py",
        prepare=study(dense="train=30"),
        words=("`train` must be a FineTune", "FineTune(epochs=30", "30."),
    ),
    "training of no epochs": Bad(
        command="search study.py",
        prepare=study(dense="train=FineTune(epochs=0, lr=0.1)"),
        words=("`train`", "at least 1 epoch"),
    ),
    "training of fewer than no epochs": Bad(
        command="search study.py",
        prepare=study(dense="train=FineTune(epochs=-1, lr=0.1)"),
        words=("study.py", "`FineTune.epochs`", "at least 0", "-1"),
    ),
    "space that is a dict": Bad(
        command="search study.py",
        prepare=study(after="Space = dict"),
        words=("`space` must be a Space", "dict"),
    ),
    "checkpoint that is loaded": Bad(
        command="search study.py",
        prepare=study(dense="checkpoint=Net().state_dict()"),
        words=("`checkpoint` must be the path of a file", "`model`", "OrderedDict"),
    ),
    "final epochs that are no whole number": Bad(
        command="search study.py",
        prepare=study(final_epochs="2.5"),
        words=("`final_epochs` must be a whole number", "2.5"),
    ),
    "seed that is none": Bad(
        command="search study.py",
        prepare=study(more="seed=None,"),
        words=("`seed`", "0 <= seed < 2**32", "None"),
    ),
    "seed that is no whole number": Bad(
        command="search study.py", prepare=study(more="seed=1.5,"), words=("`seed`", "1.5")
    ),
    "seed below 0": Bad(
        command="search study.py --seed -1", words=("`seed`", "0 <= seed < 2**32", "-1")
    ),
    "seed too large": Bad(
        command="search study.py --seed 4294967296", words=("`seed`", "2**32", "4294967296")
    ),
    "seed far too large": Bad(
        command="search study.py --seed 9999999999999999999999", words=("`seed`", "2**32")
    ),
    "device that is none": Bad(
        command="search study.py", prepare=study(more="device=None,"), words=("`device`", "'cpu'")
    ),
    "keep matches nothing": Bad(
        command="search study.py",
        prepare=study(more='keep=["stem.*"],'),
        words=("keep", "stem.*"),
    ),
    "example does not fit": Bad(
        command="search study.py",
        prepare=study(model=ONE_LAYER.replace("64", "63")),
        words=("example", "64"),
    ),
    "nothing to prune": Bad(
        command="search study.py",
        prepare=study(model=ONE_LAYER),
        words=("at least one group", "can be pruned"),
    ),
    "NaN in the data": Bad(
        command="search study.py",
        prepare=study(before="inputs[200, 3] = float('nan')"),
        words=("valid data", "finite", "1 of its values", "study file"),
    ),
    "data of different lengths": Bad(
        command="search study.py",
        prepare=study(before="inputs = inputs[:100]"),
        words=("train inputs and targets", "same length", "100 and 150"),
    ),
    "test data that the model cannot take": Bad(
        command="search study.py",
        prepare=study(
            after="half = inputs[:150], targets[:150]\n"
            "task = SupervisedTask(train=half, valid=half, test=(inputs[:, :7], targets))",
        ),
        words=("test data", "RuntimeError: mat1 and mat2", "test split"),
    ),
    "unknown scorer": Bad(
        command="search study.py",
        prepare=study(
            after='SupervisedTask(train=task, valid=task, scorer="acuracy")',
        ),
        words=("Unknown scorer 'acuracy'", "Did you mean 'accuracy'"),
    ),
    "metric of two lines": Bad(
        command="search study.py",
        prepare=study(after='task.metric = "top-1\\n%"'),
        words=("`task.metric`", "printable", r"'top-1\n%'"),
    ),
    "no metric": Bad(
        command="search study.py", prepare=study(after='task.metric = ""'), words=("`task.metric`",)
    ),
    "metric that is neither high nor low": Bad(
        command="search study.py",
        prepare=study(after="task.higher_is_better = None"),
        words=("`task.higher_is_better`", "True or False", "None"),
    ),
    "range upside down": Bad(
        command="search study.py",
        prepare=study(after="Space(lr=(1e-2, 1e-3))"),
        words=("`space.lr`", "low < high", "(0.01, 0.001)"),
    ),
    "fewest channels of a group there is not": Bad(
        command="search study.py --out out",
        prepare=study(before=SPACE.format("min_width={'body.3': 8}")),
        words=("`space.min_width`", "Unknown group 'body.3'", "Did you mean 'body."),
    ),
    "fewest channels above a group's own": Bad(
        command="search study.py --out out",
        prepare=study(before=SPACE.format("min_width={'body.2': 17}")),
        words=("`space.min_width`", "'body.2' has 16 and 17", "Lower it"),
    ),
    "widths rounded to more than there is": Bad(
        command="search study.py --out out",
        prepare=study(before=SPACE.format("round_to=32")),
        words=("allowed to lose channels", "round_to=32", "24 channels"),
    ),
    # --- the checkpoint ---
    "no such checkpoint": Bad(
        command="search study.py --workers 0",
        prepare=study(dense='checkpoint="nowhere.pt"'),
        words=("checkpoint", "nowhere.pt"),
    ),
    "checkpoint of another model": Bad(
        command="search study.py --workers 0",
        prepare=other_checkpoint,
        words=("checkpoint", "6 tensors", "'bias' and 7 more"),
    ),
    "checkpoint of other sizes": Bad(
        command="search study.py --workers 0",
        prepare=other_shapes,
        words=("checkpoint", "'body.0.", "(24"),
    ),
    "checkpoint that is code": Bad(
        command="search study.py --workers 0",
        prepare=checkpoint(Bomb()),
        words=("dense.pt", "tensors only", "state_dict"),
    ),
    "checkpoint without weights": Bad(
        command="search study.py --workers 0",
        prepare=checkpoint([1, 2]),
        words=("dense.pt", "state_dict"),
    ),
    # --- the options ---
    "unknown command": Bad(
        command="serch study.py", words=("No such command 'serch'", "--help"), in_process=False
    ),
    "unknown option": Bad(command="search study.py --bugdet 3", words=("--bugdet", "--help")),
    "unknown criterion": Bad(
        command="search study.py --criteria l2,tailor",
        words=("Unknown criterion 'tailor'", "Did you mean 'taylor'"),
    ),
    "no criteria": Bad(command="search study.py --criteria ,", words=("criteria", "at least one")),
    "unknown sparsifier": Bad(
        command="search study.py --sparsify none,group_laso",
        words=("Unknown sparsifier 'group_laso'", "Did you mean 'group_lasso'", "none"),
    ),
    "no sparsifiers": Bad(
        command="search study.py --sparsify ,", words=("sparsify", "at least one")
    ),
    "unknown sampler": Bad(
        command="search study.py --sampler tpee",
        words=("Unknown sampler 'tpee'", "nsga2", "Did you mean 'tpe'"),
    ),
    "unknown objective": Bad(
        command="search study.py --objective best", words=("'best'", "pareto", "weighted")
    ),
    "unknown cost": Bad(
        command="search study.py --objectives accuracy,latancy",
        words=("Unknown objective 'latancy'", "Did you mean 'latency'"),
    ),
    "no cost": Bad(
        command="search study.py --objectives accuracy",
        words=("`objectives`", "at least one of params", "but is accuracy"),
    ),
    "no score": Bad(
        command="search study.py --objectives params,macs",
        words=("`objectives`", "the score (accuracy or score)", "params,macs"),
    ),
    "weighted with latency": Bad(
        command="search study.py --objective weighted --objectives accuracy,params,latency",
        words=("`objectives`", "'weighted'", "accuracy,params,latency", "'pareto'"),
    ),
    "unknown latency engine": Bad(
        command="search study.py --latency-engine onxx",
        words=("Unknown latency engine 'onxx'", "Did you mean 'onnx'"),
    ),
    "latency of no samples": Bad(
        command="search study.py --latency-batch 0",
        words=("`latency_batch`", "at least 1", "0"),
    ),
    "no budget": Bad(command="search study.py --budget 0", words=("`budget`", "at least 1", "0")),
    "budget that is a word": Bad(
        command="search study.py --budget many", words=("--budget", "integer")
    ),
    "negative workers": Bad(
        command="search study.py --workers -1", words=("`workers`", "at least 0", "-1")
    ),
    "workers that is a word": Bad(
        command="search study.py --workers all", words=("`workers`", "'auto'", "'all'")
    ),
    "no time": Bad(command="search study.py --timeout 0", words=("`timeout`", "more than 0")),
    "no time for a trial": Bad(
        command="search study.py --trial-timeout 0", words=("`trial_timeout`", "more than 0")
    ),
    "time for a trial in this process": Bad(
        command="search study.py --trial-timeout 9 --workers 0",
        words=("`trial_timeout`", "worker processes", "workers=1"),
    ),
    "weight above 1": Bad(
        command="search study.py --objective weighted --accuracy-weight 2",
        words=("`accuracy_weight`", "between 0 and 1", "2"),
    ),
    "no experiment": Bad(
        command="search study.py --experiment ''", words=("`experiment`", "MLflow", "but is ''")
    ),
    "no tracking server": Bad(
        command="search study.py --tracking-uri ' '",
        words=("`tracking_uri`", "'none'", "left out", "but is ' '"),
    ),
    # --- the output folder ---
    "another study's folder": Bad(
        command="search study.py --out out",
        prepare=search_of(study="other"),
        words=("--out", "'other'", "'tiny'", "another folder"),
    ),
    "another model's folder": Bad(
        command="search study.py --out out",
        prepare=search_of(study="tiny", model="0123"),
        words=("--out", "model", "'0123'", "another folder"),
    ),
    "fresh over foreign files": Bad(
        command="search study.py --out out --fresh",
        prepare=foreign_files,
        words=("--out", "other files", "another folder"),
    ),
    "foreign files": Bad(
        command="search study.py --out out",
        prepare=foreign_files,
        words=("--out", "other files", "another folder"),
    ),
    "out is a file": Bad(
        command="search study.py --out out", prepare=out_file, words=("--out", "folder", "file")
    ),
    "out below a file": Bad(
        command="search study.py --out out/below",
        prepare=out_file,
        words=("--out", "written", "out/below"),
    ),
    "out cannot be made": Bad(
        command="search study.py --out /proc/nope",
        words=("--out", "written", "/proc/nope"),
        in_process=False,
    ),
    "out with a name that is too long": Bad(
        command=f"search study.py --out {'a' * 300}", words=("--out", "written", "too long")
    ),
    # --- the other commands ---
    "new over a file": Bad(
        command="new study.py", words=("study.py", "must not exist", "another name")
    ),
    "new without .py": Bad(command="new study.txt", words=("study.txt", ".py")),
    "new with a name that is too long": Bad(
        command=f"new {'a' * 300}.py", words=("FILE", "File name too long")
    ),
    "new below a file": Bad(
        command="new study.py/mine.py", words=("study.py/mine.py", "can be written")
    ),
    "doctor asked for no parameters": Bad(
        command="doctor study.py --max-params 0", words=("`max_params`", "more than 0", "0")
    ),
    "doctor asked for an unknown unit": Bad(
        command="doctor study.py --max-params 50kb", words=("`max_params`", "50k or 1.5M", "'kb'")
    ),
    "doctor without a file": Bad(
        command="doctor nowhere.py", words=("nowhere.py", "autoprune new nowhere.py")
    ),
    "front of nothing": Bad(
        command="front out", prepare=empty_folder, words=("out", "finished search", "front.json")
    ),
    "front of an unfinished search": Bad(
        command="front out",
        prepare=search_of(study="tiny"),
        words=("out", "not finished", "same `autoprune search` again"),
    ),
    "front with a name that is too long": Bad(
        command=f"front {'a' * 300}", words=("A path must be", "'aaaa", "too long", "shorter")
    ),
    "front too small": Bad(
        command="front out --max-params 1",
        prepare=finished_search,
        words=("at most 1 parameters", "smallest is t007", "1,234"),
    ),
    "front with an unknown unit": Bad(
        command="front out --max-params 5kb",
        prepare=finished_search,
        words=("max_params", "50k or 1.5M", "'kb'"),
    ),
    "front too good": Bad(
        command="front out --min-accuracy 0.99",
        prepare=finished_search,
        words=("at least 0.99", "best t003", "4,321"),
    ),
    "altered front": Bad(
        command="front out",
        prepare=lambda folder: write_json(folder / "out" / "front.json", {"front": []}),
        words=("front.json", "altered"),
    ),
    "front of another version": Bad(
        command="front out",
        prepare=lambda folder: write_front(folder / "out", exports=False, format=7),
        words=("front.json", "format 1", "format 7", "another version"),
    ),
    "report of nothing": Bad(
        command="report out", prepare=empty_folder, words=("OUT", "out", "search.json")
    ),
    "report of an older version": Bad(
        command="report out",
        prepare=lambda folder: write_json(folder / "out" / "search.json", {"format": 0}),
        words=("search.json", "format 1", "format 0", "another version"),
    ),
    "report to a folder": Bad(
        command="report out --to .",
        prepare=search_of(study="tiny"),
        words=("--to", "a file", "report.html"),
    ),
    "pick of nothing": Bad(
        command="pick out", prepare=empty_folder, words=("out", "finished search", "front.json")
    ),
    "pick of no folder": Bad(command="pick nowhere", words=("nowhere", "finished search")),
    "pick of an unfinished search": Bad(
        command="pick out --knee",
        prepare=search_of(study="tiny"),
        words=("out", "not finished", "same `autoprune search` again"),
    ),
    "pick of an empty front": Bad(
        command="pick out", prepare=lambda folder: write_front(folder / "out", {}), words=("empty",)
    ),
    "pick of two kinds": Bad(
        command="pick out --knee --best", prepare=front, words=("--best", "--knee", "Leave one out")
    ),
    "pick with an unknown unit": Bad(
        command="pick out --max-latency 2min",
        prepare=front,
        words=("max_latency", "2ms, 500us", "unknown unit 'min'"),
    ),
    "pick of none": Bad(
        command="pick out --max-params 0.5k",
        prepare=front,
        words=("at most 500 parameters", "t007 (1,000", "t003 (9,000"),
    ),
    "pick into a file": Bad(
        command="pick out --to study.py", prepare=front, words=("`to`", "study.py is a file")
    ),
    "pick below a file": Bad(
        command="pick out --to study.py/model", prepare=front, words=("`to`", "can be written")
    ),
    "pick over another folder": Bad(
        command="pick out --to . --overwrite", prepare=front, words=("`to`", "other files")
    ),
    "pick that overwrites nowhere": Bad(
        command="pick out --overwrite", prepare=front, words=("--overwrite", "--to")
    ),
    "bench of nothing": Bad(
        command="bench out", prepare=empty_folder, words=("out", "finished search", "front.json")
    ),
    "bench of an unfinished search": Bad(
        command="bench out", prepare=search_of(study="tiny"), words=("not finished",)
    ),
    "bench by an unknown runtime": Bad(
        command="bench out --runtime onxx",
        prepare=front,
        words=("Unknown runtime 'onxx'", "Did you mean 'onnx'"),
    ),
    "bench of no samples": Bad(
        command="bench out --batch-size 0", prepare=front, words=("`batch_size`", "at least 1")
    ),
    "sensitivity of nowhere": Bad(
        command="sensitivity nowhere.py", words=("nowhere.py", "autoprune new nowhere.py")
    ),
    "sensitivity of an odd share": Bad(
        command="sensitivity study.py --fractions 0.5,2", words=("`fractions`", "has 2")
    ),
    "sensitivity of a word": Bad(
        command="sensitivity study.py --fractions half", words=("`--fractions`", "'half'")
    ),
    "sensitivity by an unknown criterion": Bad(
        command="sensitivity study.py --criterion tailor",
        words=("Unknown criterion 'tailor'", "Did you mean 'taylor'"),
    ),
    "sensitivity to no picture": Bad(
        command="sensitivity study.py --to hurts.pdf",
        words=("`--to`", ".png or .html", "hurts.pdf"),
    ),
    "sensitivity to nowhere": Bad(
        command="sensitivity study.py --to nowhere/hurts.png", words=("`--to`", "'nowhere' is not")
    ),
    "sensitivity with a file as OUT": Bad(
        command="sensitivity study.py --out out", prepare=out_file, words=("--out", "is a file")
    ),
    "baselines of nothing": Bad(
        command="baselines out", prepare=empty_folder, words=("out", "finished search")
    ),
    "baselines of no size": Bad(
        command="baselines out --sizes 0", prepare=front, words=("`sizes`", "at least 1")
    ),
    "baselines of an empty front": Bad(
        command="baselines out",
        prepare=lambda folder: write_front(folder / "out", {}),
        words=("front", "empty"),
    ),
    "compare with nothing": Bad(
        command="compare out nowhere", prepare=front, words=("nowhere", "finished search")
    ),
    "compare with another metric": Bad(
        command="compare out other",
        prepare=lambda folder: (
            write_front(folder / "out", exports=False),
            write_front(folder / "other", exports=False, metric="f1"),
        ),
        words=("one task", "their metrics differ", "accuracy in", "f1 in"),
    ),
    "check that is remembered nowhere": Bad(
        command="check out --against /proc/knee.json --update",
        prepare=front,
        words=("`--against`", "/proc/knee.json", "written"),
    ),
    "check that is remembered below a file": Bad(
        command="check out --against study.py/knee.json --update",
        prepare=front,
        words=("`--against`", "study.py/knee.json", "written"),
    ),
    "sync of nothing": Bad(
        command="sync out", prepare=empty_folder, words=("OUT", "out", "holds no records")
    ),
    "sync to nowhere": Bad(
        command="sync out --tracking-uri htp://bob:pw@host",
        prepare=spooled,
        words=("tracking URI", "htp://***@host", "--tracking-uri"),
    ),
    "sync without the secret": Bad(
        command="sync out",
        prepare=spooled,
        words=("tracking URI", "secret", "--tracking-uri", "https://***@host"),
    ),
    "sync of a folder that lost its identity": Bad(
        command="sync out --tracking-uri https://host",
        prepare=lambda folder: (folder / "out" / "spool").mkdir(parents=True),
        words=("search.json", "readable"),
    ),
    "ui of nothing": Bad(
        command="ui out", prepare=empty_folder, words=("out", "MLflow database", "--tracking-uri")
    ),
    "ui on a port there is not": Bad(
        command="ui out --port 99999", prepare=database, words=("--port", "port < 65536", "99999")
    ),
    "ui on a port below all": Bad(
        command="ui out --port -1", prepare=database, words=("--port", "1 <= port", "-1")
    ),
    "ui on a busy port": Bad(
        command="ui out --port {port}",
        prepare=database,
        words=("port", "{port}", "Choose another with --port"),
    ),
}


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def contents(folder: Path) -> dict[str, str]:
    """Return every file and folder below `folder` with a digest of what is in it."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        )
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_mistake_is_one_line_and_writes_nothing(
    bad: Bad,
    tmp_path: Path,
    busy_port: int,
    here: Here,
) -> None:
    bad.prepare(tmp_path)
    before = contents(tmp_path)
    arguments = shlex.split(bad.command.format(port=busy_port))
    process = (here if bad.in_process else run_cli)(*arguments, cwd=tmp_path)
    code, said = process.returncode, process.stderr
    assert code == 2, said
    assert said.startswith("autoprune: ")
    assert said.endswith("\n")
    assert len(said.splitlines()) == 1, said
    assert "Traceback" not in said
    for word in bad.words:
        assert word.format(port=busy_port) in said
    assert contents(tmp_path) == before
