"""Tiny study files, the command run as a user runs it, and jobs for the executors."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, Protocol

from autoprune.errors import AutopruneError
from autoprune.pruning.files import write_whole

if TYPE_CHECKING:
    import pytest

Job = Generator[Any, bool, Any]
ROOT = Path(__file__).parents[1]

UNTRACKED: dict[str, Any] = {"workers": 0, "tracking_uri": "none"}
"""Settings of a search in this process that MLflow hears nothing of."""

MODELS = {
    "mlp": """\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU())
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.body(x))
""",
    "conv": """\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(12)
        self.conv3 = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        x = (self.bn3(self.conv3(x)) + x).relu()
        return self.head(x.mean((2, 3)))
""",
}
SHAPES = {"mlp": "64", "conv": "1, 8, 8"}

LEAN = "TESTS_LEAVE_OUT_PROGRAMS"
STUDY = Template("""\
import os
import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

from autoprune import FineTune, PruningStudy, Space, SupervisedTask

if "TESTS_LEAVE_OUT_PROGRAMS" in os.environ and "pytest" not in sys.modules:
    from helpers import leave_out

    leave_out(setattr)


$model

inputs, targets = load_digits(return_X_y=True)
inputs = torch.tensor(inputs[:450] / 16, dtype=torch.float32).reshape(450, $shape)
targets = torch.tensor(targets[:450])
$before
task = SupervisedTask(
    train=(inputs[:150], targets[:150]),
    valid=(inputs[150:300], targets[150:300]),
    test=(inputs[300:450], targets[300:450]),
)
$after
study = PruningStudy(
    name="$name",
    model=Net,
    example=torch.zeros(2, $shape),
    task=task,
    $dense,
    space=Space(
        epochs=$epochs,
        lr=(3e-3, 1e-2),
        batch_size=32,
        weight_decay=1e-3,
        criteria=("taylor", "l2"),
    ),
    final_epochs=$final_epochs,
    $more
)
""")


def write_study(
    path: Path,
    *,
    kind: str = "mlp",
    name: str = "tiny",
    epochs: int = 1,
    final_epochs: int = 0,
    dense: str = "train=FineTune(epochs=10, lr=1e-2, batch_size=32)",
    before: str = "",
    after: str = "",
    more: str = "",
    model: str | None = None,
) -> Path:
    """Write a study of 150 training digits to `path`.

    Parameters
    ----------
    kind
        ``mlp``, or ``conv`` with BatchNorm and a residual add.
    before, after
        Code that goes before and after the task is made.
    dense, more
        Arguments of `PruningStudy`: where the dense weights come from, and any others.
    model
        Code that defines ``Net``, in the place of the kind's own.
    """
    text = STUDY.substitute(
        model=MODELS[kind] if model is None else model,
        shape=SHAPES[kind],
        name=name,
        epochs=epochs,
        final_epochs=final_epochs,
        dense=dense,
        before=before,
        after=after,
        more=more,
    )
    path.write_text(text)
    return path


def leave_out(put: Callable[[Any, str, Any], object]) -> None:
    """Leave out of exports the programs and their proof, which take most of a tiny search's time.

    `put` sets an attribute of a module, as `setattr` does.
    """
    from autoprune import finale
    from autoprune.results import export

    def no_program(*_: object) -> None:
        raise NotImplementedError("left out")

    put(export, "_trace", no_program)
    put(finale, "verify", lambda folders, **_: {f.name: [] for f in folders})


def leave_out_programs(patch: pytest.MonkeyPatch) -> None:
    """Do so in this process, and in workers and commands that open a study of `write_study`."""
    leave_out(patch.setattr)
    patch.setenv(LEAN, "1")
    path = os.environ.get("PYTHONPATH", str(ROOT))
    patch.setenv("PYTHONPATH", os.pathsep.join([path, str(ROOT / "tests")]))


def command(*arguments: object) -> list[str]:
    """Return the command line of `autoprune`."""
    return [sys.executable, "-m", "autoprune", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Return the environment in which the command finds this very autoprune."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def run_cli(
    *arguments: object, cwd: Path, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run `autoprune` in a process of its own."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


class Here(Protocol):
    """Runs `autoprune` in this very process, which saves the imports; see the fixture `here`."""

    def __call__(self, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]: ...


def start_cli(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """Start `autoprune` in a process of its own that can be interrupted."""
    return subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A parent that ignores SIGINT, as a shell's background job does, hands that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


# --- jobs, at the top level of a module that a worker can import --------------------------------


def open_context(spec: dict[str, Any]) -> dict[str, Any]:
    return {"word": spec["word"], "jobs": []}


def open_nothing(spec: dict[str, Any]) -> None:
    raise AutopruneError(f"There is no {spec['word']}.")


def count(context: dict[str, Any], *, up_to: int) -> Job:
    heard = []
    for number in range(1, up_to + 1):
        heard.append((yield {"number": number}))
        if not heard[-1]:
            break
    return {"heard": heard}


def remember(context: dict[str, Any], *, name: str) -> Job:
    context["jobs"].append(name)
    yield {}
    return {"word": context["word"], "jobs": tuple(context["jobs"])}


def fail(context: dict[str, Any], *, fixable: bool, after: int = 0) -> Job:
    for number in range(after):
        assert (yield number)
    raise AutopruneError("Give it a bone.") if fixable else ValueError("bad dog\nvery bad")
    yield


BROKEN: dict[str, type[Exception]] = {
    "end of file": EOFError,
    "reset": ConnectionResetError,
    "refused": ConnectionRefusedError,
    "pipe": BrokenPipeError,
}
"""What a user's data raise when a file is cut short, or where they come from is away."""


def read(context: dict[str, Any], *, kind: str) -> Job:
    yield os.getpid()
    raise BROKEN[kind]("sample 7")


def end_itself(context: dict[str, Any]) -> Job:
    yield os.getpid()
    print("famous last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def meet(context: dict[str, Any], *, folder: str, me: str, other: str) -> Job:
    """Wait for a job that runs at the same time."""
    yield {}
    (Path(folder) / me).touch()
    deadline = time.monotonic() + 20
    while not (Path(folder) / other).exists():
        if time.monotonic() > deadline:
            return {"met": False}
        time.sleep(0.01)
    return {"met": True}


def sleep(context: dict[str, Any], *, seconds: float) -> Job:
    yield os.getpid()
    time.sleep(seconds)
    return {}


def open_marking(spec: dict[str, Any]) -> dict[str, Any]:
    """Open a context, and leave a mark for each time that this process does."""
    with (Path(spec["word"]) / f"{os.getpid()}").open("a") as mark:
        mark.write("x")
    return open_context(spec)


def open_slowly(spec: dict[str, Any]) -> dict[str, Any]:
    time.sleep(2.5)
    return open_context(spec)


def hang(context: dict[str, Any], *, folder: str) -> Job:
    """Never end, nor the process that was started for it."""
    yield {}
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (Path(folder) / "child").write_text(str(child.pid))
    while True:
        time.sleep(1)


def crawl(context: dict[str, Any], *, seconds: float) -> Job:
    while True:
        time.sleep(seconds)
        yield {}


def eat(context: dict[str, Any], *, kind: str) -> Job:
    yield os.getpid()
    if kind == "python":
        raise MemoryError
    import torch

    if kind == "gpu":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    torch.empty(1 << 60, dtype=torch.uint8)


def fill(context: dict[str, Any], *, folder: str) -> Job:
    """Write more than the process may: the very error is real."""
    yield {}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        write_whole(Path(folder) / "large", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def open_folder(spec: dict[str, Any]) -> Path:
    return Path(spec["folder"])


def copy(context: Path, *, sources: list[str], target: str) -> Job:
    """Join files of the context's folder in another, and say what else is there."""
    yield {"folder": str(context)}
    there = sorted(str(p.relative_to(context)) for p in context.rglob("*") if p.is_file())
    (context / "saved").mkdir(exist_ok=True)
    (context / "saved" / "half").write_bytes(b"half")
    yield {}
    joined = b"".join((context / source).read_bytes() for source in sources)
    (context / target).parent.mkdir(exist_ok=True)
    (context / target).write_bytes(joined)
    (context / "secret").write_bytes(b"left behind")
    return {"there": there}
