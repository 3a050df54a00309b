"""The package as installed: quick to import, its command, a new study."""

from __future__ import annotations

import ast
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import Here, environment, run_cli, write_study

import autoprune

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

HEAVY = ("torch", "mlflow", "optuna", "sklearn", "pandas", "matplotlib", "rich.live")


def python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.parametrize("module", ["autoprune", "autoprune.cli"])
def test_importing_it_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    assert python(code) == "[]"


def test_a_search_imports_nothing_that_only_some_want() -> None:
    late = ("sqlalchemy", "scipy.stats")  # a database for the study, and the report's correlations
    code = f"import sys, autoprune.run; print([m for m in {late} if m in sys.modules])"
    assert python(code) == "[]"


def test_neither_groups_nor_training_import_the_compiler() -> None:
    code = (
        "import sys, torch\n"
        "from autoprune import FineTune, SupervisedTask\n"
        "from autoprune.pruning.graph import find_groups\n"
        "from autoprune.training.finetune import finetune\n"
        "x, y = torch.randn(64, 4), torch.arange(64) % 3\n"
        "task = SupervisedTask(train=(x, y), valid=(x, y))\n"
        "net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))\n"
        "groups = find_groups(net, x)\n"
        "epochs = list(finetune(net, task, FineTune(epochs=2, lr=0.01)))\n"
        "print(len(groups.channels), len(epochs), 'torch._dynamo' in sys.modules)\n"
    )
    assert python(code) == "1 2 False"


def test_public_names_stay_what_they_are_whatever_was_imported_first() -> None:
    code = (
        "import types, autoprune, autoprune.run, autoprune.results.ui\n"
        "from autoprune import PruningStudy, SupervisedTask\n"
        "names = [n for n in autoprune.__all__ if not n.startswith('_')]\n"
        "values = {n: getattr(autoprune, n) for n in names}\n"
        "print([n for n, v in values.items() if isinstance(v, types.ModuleType)])\n"
        "assert callable(autoprune.search) and len(names) > 10\n"
    )
    assert python(code) == "[]"
    with pytest.raises(AttributeError, match="no attribute 'serch'"):
        _ = autoprune.serch


def test_version(tmp_path: Path) -> None:
    run = run_cli("--version", cwd=tmp_path)
    assert (run.returncode, run.stdout) == (0, f"{autoprune.__version__}\n")


def test_without_a_command_it_shows_the_commands(tmp_path: Path) -> None:
    run = run_cli("--help", cwd=tmp_path)
    assert run.returncode == 0
    for name in ("search", "front", "doctor", "new", "ui", "pick", "bench", "compare"):
        assert name in run.stdout


def test_every_command_shows_examples_of_itself() -> None:
    from autoprune.cli import app

    for command in app.registered_commands:
        assert command.callback is not None
        shown = command.epilog or ""
        assert shown.startswith("Example"), command.callback.__name__
        assert f"autoprune {command.callback.__name__}" in shown


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `new my_net.py` and a short search of it have been run."""
    folder = tmp_path_factory.mktemp("started")
    new = run_cli("new", "my_net.py", cwd=folder)
    assert new.returncode == 0, new.stderr
    assert "autoprune search my_net.py" in new.stdout
    return folder


@pytest.mark.parametrize("name", ["my study", "it's", 'tri"""ple', "back\\slash\\x", "end\\"])
def test_a_new_study_of_any_name_is_python_and_its_commands_run(
    name: str, tmp_path: Path, here: Here
) -> None:
    said = here("new", f"{name}.py", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    told = said.stdout.partition("Next: ")[2]
    docstring = ast.get_docstring(ast.parse((tmp_path / f"{name}.py").read_text()))
    assert docstring is not None
    commands = [line for line in (told, *docstring.splitlines()) if line.strip().startswith("auto")]
    assert [shlex.split(line)[:3] for line in commands] == [
        ["autoprune", command, f"{name}.py"] for command in ("search", "doctor", "search")
    ]


@pytest.mark.usefixtures("quick_export")
def test_a_search_says_what_to_run_next_in_a_folder_of_any_name(tmp_path: Path, here: Here) -> None:
    study = write_study(tmp_path / "study.py")
    options = ("--budget", 1, "--workers", 0, "--tracking-uri", "none", "--no-extras", "--quiet")
    said = here("search", study, "--out", "it's out", *options, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    told = dict(line.split(": ", 1) for line in said.stdout.splitlines()[-2:])
    assert shlex.split(told["Report"]) == ["autoprune", "report", "it's out", "--open"]
    assert shlex.split(told["Review"]) == ["autoprune", "ui", "it's out"]


def test_doctor_accepts_a_new_study(started: Path, here: Here) -> None:
    run = here("doctor", "my_net.py", cwd=started)
    assert run.returncode == 0, run.stderr
    assert "my_net: 12,354 parameters" in run.stdout
    assert 30 * 128 + 128 + 128 * 64 + 64 + 64 * 2 + 2 == 12_354
    groups = [line.split()[:2] for line in run.stdout.splitlines() if "%)" in line]
    assert groups == [["0", "128"], ["2", "64"]]


@pytest.mark.parametrize(
    ("asked", "size", "code", "word"),
    [("5000", 5_000, 0, "can"), ("5k", 5_000, 0, "can"), ("30", 30, 1, "cannot")],
)
def test_doctor_says_whether_a_size_can_be_reached(
    asked: str, size: int, code: int, word: str, started: Path, here: Here
) -> None:
    run = here("doctor", "my_net.py", "--max-params", asked, cwd=started)
    assert run.returncode == code, run.stderr
    least = 30 + 1 + 1 + 1 + 2 + 2
    assert run.stdout.splitlines()[-1] == (
        f"At most {size:,} parameters {word} be reached: the smallest possible model has {least}."
    )
    told = here("doctor", "my_net.py", "--max-params", asked, "--json", cwd=started)
    assert told.returncode == code
    value = json.loads(told.stdout)
    assert (value["max_params"], value["reachable"]) == (size, word == "can")
    assert [layer["name"] for layer in value["layers"]] == ["0", "2", "5"]


@pytest.mark.long
def test_a_new_study_is_searched_and_its_front_shown(started: Path, here: Here) -> None:
    run = run_cli(
        "search", "my_net.py", "--budget", 2, "--workers", 0, "--tracking-uri", "none", cwd=started
    )
    assert run.returncode == 0, run.stderr
    out = started / "autoprune-runs" / "my_net"
    value = json.loads((out / "front.json").read_text())
    assert value["trials"]["complete"] == 2
    for model in value["front"]:
        assert model["verified"]
        assert f"{model['params']:,}" in run.stdout
    shown = here("front", "autoprune-runs/my_net", "--json", cwd=started)
    assert shown.returncode == 0, shown.stderr
    front = json.loads(shown.stdout)["front"]
    assert [m["name"] for m in front] == [m["name"] for m in value["front"]]
    smallest = min(m["params"] for m in front)
    limited = here("front", out, "--max-params", smallest, "--json", cwd=started)
    assert [m["params"] for m in json.loads(limited.stdout)["front"]] == [smallest]
