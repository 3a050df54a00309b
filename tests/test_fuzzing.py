"""Files from anywhere: whatever is in them, reading them gives a value or one of our errors.

``FUZZ=100`` tries a hundred times as many.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import PLAN, WEIGHTS, sign, write
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import build, same_state
from torch import nn

import autoprune
from autoprune.errors import AutopruneError
from autoprune.pruning.files import checksum, write_signed
from autoprune.pruning.weights import load_sealed, save_sealed
from autoprune.results.result import SearchResult, open_result
from autoprune.tables import print_front

many = settings(max_examples=50 * int(os.environ.get("FUZZ", "1")))

FOREIGN = ["", ".", "..", "../../etc/passwd", "/etc/passwd", "a/b", "a\\..\\b", "a\0b", "x" * 5000]
"""Names that lead to no file, or to one of another folder."""
NASTY = [*FOREIGN, "\ud800", "a\nb", "[/red]", "__class__", "checksum", "e\u0301", "\x1b[2J"]
texts = st.sampled_from(NASTY) | st.text(max_size=6)
numbers = (
    st.integers(-3, 40)
    | st.sampled_from([2**31, 2**63, 2**64, -(2**70), 10**4000])
    | st.floats()
    | st.sampled_from([float("inf"), float("nan"), -0.0, 1e308])
)
leaves = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)


def ours(call: Callable[[], Any]) -> Any:
    """Return what a call gives; None if that is one of our errors, of one line."""
    try:
        return call()
    except AutopruneError as error:
        said = str(error)
    assert len(said.splitlines()) == 1
    assert len(said) < 9000
    return None


@st.composite
def alterations(draw: st.DrawFn, value: Any) -> Any:
    """Draw a JSON value with one place in it replaced, removed, or with something added."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        name = draw(st.sampled_from(sorted(value)))
        kind = draw(st.integers(0, 9))
        rest = {k: v for k, v in value.items() if k != name}
        if kind == 0:
            return rest
        if kind == 1:
            return value | {draw(texts): draw(values)}
        if kind == 2:
            return rest | {draw(texts): value[name]}
        return value | {name: draw(alterations(value[name]))}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], draw(alterations(value[place])), *value[place + 1 :]]
    return draw(values)


@st.composite
def damages(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw what may become of a file: cut, with bytes altered, put in or left out, or another."""
    place = draw(st.integers(0, max(len(content) - 1, 0)))
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return (
            content[:place]
            + bytes([content[place] ^ draw(st.integers(1, 255))])
            + content[place + 1 :]
        )
    if kind == 2:
        return content[:place] + draw(st.binary(min_size=1, max_size=9)) + content[place:]
    if kind == 3:
        return content[:place] + content[place + draw(st.integers(1, 99)) :]
    return draw(st.binary(max_size=99))


DEEP = [
    "[" * 100_000 + "]" * 100_000,
    '{"a":' * 100_000 + "1" + "}" * 100_000,
    "[" * 900 + "]" * 900,
    "[" * 1_000_000,
    "9" * 5000,
    '{"params": ' + "9" * 5000 + "}",
    '{"a": 1, "a": 2}',
    "\ufeff{}",
    "NaN",
    '"\\ud800"',
]
"""JSON, or nearly, that readers stumble over."""


# --- an exported model --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export as it was written; not to be written to."""
    folder = tmp_path_factory.mktemp("sound")
    write(folder, "residual", 2)
    return folder


@pytest.fixture(scope="module")
def scratch(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(sound, tmp_path_factory.mktemp("scratch") / "export"))


def reset(scratch: Path, sound: Path) -> None:
    for name in (PLAN, WEIGHTS):
        (scratch / name).write_bytes((sound / name).read_bytes())


def loaded(folder: Path) -> nn.Module | None:
    model: nn.Module | None = ours(lambda: autoprune.load(folder, model=build("residual")[0]))
    return model


@pytest.mark.parametrize("signed", [False, True])
@many
@given(data=st.data())
def test_an_altered_plan(signed: bool, data: st.DataObject, sound: Path, scratch: Path) -> None:
    reset(scratch, sound)
    plan = json.loads((sound / PLAN).read_text())
    expected = loaded(sound)
    assert expected is not None
    changed = data.draw(alterations(plan))
    if signed and isinstance(changed, dict):
        changed["checksum"] = checksum(changed)
    (scratch / PLAN).write_text(json.dumps(changed))
    model = loaded(scratch)
    if not signed and json.dumps(changed) != json.dumps(plan):
        assert model is None
    if model is not None:  # what was altered says nothing of the weights
        assert same_state(model.state_dict(), expected.state_dict())


@pytest.mark.parametrize("text", DEEP, ids=range(len(DEEP)))
@pytest.mark.parametrize("name", ["plan.json", "front.json"])
def test_json_that_readers_stumble_over(text: str, name: str, sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text(text)
    read = loaded if name == PLAN else open_result
    assert ours(lambda: read(tmp_path)) is None


@pytest.mark.parametrize("name", [PLAN, WEIGHTS])
@many
@given(data=st.data())
def test_a_damaged_file_of_an_export(
    name: str, data: st.DataObject, sound: Path, scratch: Path
) -> None:
    reset(scratch, sound)
    content = (sound / name).read_bytes()
    damaged = data.draw(damages(content))
    (scratch / name).write_bytes(damaged)
    model = loaded(scratch)
    if damaged.strip() != content.strip() and name == WEIGHTS:
        assert model is None


def put_weights(folder: Path, content: bytes) -> None:
    """Put weights into an export, and have the plan agree with them."""
    (folder / WEIGHTS).write_bytes(content)
    sign(folder, sha256=hashlib.sha256(content).hexdigest())


@many
@given(data=st.data())
def test_damaged_weights_whose_checksum_fits(
    data: st.DataObject, sound: Path, scratch: Path
) -> None:
    reset(scratch, sound)
    put_weights(scratch, data.draw(damages((sound / WEIGHTS).read_bytes())))
    loaded(scratch)


DTYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2",
          "F8_E8M0", "F4", "U16", "U64", "C64", "X", "", "f32"]  # fmt: skip


@many
@given(data=st.data())
def test_a_header_of_weights_that_was_altered(
    data: st.DataObject, sound: Path, scratch: Path
) -> None:
    reset(scratch, sound)
    content = (sound / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, tensors = json.loads(content[8 : 8 + length]), content[8 + length :]
    if data.draw(st.booleans()):
        header = data.draw(alterations(header))
    else:
        name = data.draw(st.sampled_from(sorted(header)))
        header[name]["dtype"] = data.draw(st.sampled_from(DTYPES))
        sizes = st.lists(st.sampled_from([0, 1, 2, 3, 2**40, 2**63]), max_size=4)
        header[name]["shape"] = data.draw(sizes | st.just(header[name]["shape"]))
    text = json.dumps(header).encode()
    said = data.draw(st.sampled_from([len(text), len(text) + 1, 0, 2**40, 2**64 - 1]))
    put_weights(scratch, struct.pack("<Q", said) + text + tensors)
    loaded(scratch)


@many
@given(data=st.data())
def test_tensors_that_fit_or_nearly(data: st.DataObject, sound: Path, scratch: Path) -> None:
    from safetensors.torch import load_file, save

    reset(scratch, sound)
    state = load_file(sound / WEIGHTS)
    name = data.draw(st.sampled_from(sorted(state)))
    kinds = [torch.float16, torch.int64, torch.bool, torch.float64, torch.complex64, torch.uint8]
    size = [data.draw(st.integers(0, s)) for s in state[name].shape]
    state[name] = torch.zeros(size, dtype=data.draw(st.sampled_from(kinds)))
    if data.draw(st.booleans()):
        names = texts.filter(str.isprintable) | st.sampled_from(["head.selected", "bn1.selected"])
        state[data.draw(names)] = torch.tensor(data.draw(st.sampled_from([[10**9], [-1], []])))
    put_weights(scratch, save(state))
    params = sum(t.numel() for n, t in state.items() if "running" not in n and "num" not in n)
    sign(scratch, params=params)
    loaded(scratch)


# --- a sealed file ------------------------------------------------------------------------------


@many
@given(data=st.data())
def test_a_damaged_sealed_file_counts_as_none(data: st.DataObject, scratch: Path) -> None:
    file = scratch / "sealed.safetensors"
    save_sealed(file, {"a": torch.arange(5.0), "b": torch.tensor(3)}, "text")
    content = file.read_bytes()
    damaged = data.draw(damages(content))
    file.write_bytes(damaged)
    found = load_sealed(file)
    if found is not None:  # a space more or less in the header is no change
        assert found[1] == "text"
        assert torch.equal(found[0]["a"], torch.arange(5.0))


# --- what is no file ----------------------------------------------------------------------------


@contextlib.contextmanager
def in_place_of(file: Path, kind: str) -> Iterator[None]:
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        targets = {
            "device": "/dev/zero",
            "loop": file.name,
            "nowhere": "nowhere",
            "other": "/etc/passwd",
        }
        file.symlink_to(targets[kind])
    yield


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop", "nowhere", "other"])
@pytest.mark.parametrize("name", [PLAN, WEIGHTS, "front.json", "model.onnx"])
def test_a_pipe_a_device_or_a_link_in_a_files_place(
    name: str, kind: str, sound: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "export"))
    sign(folder, files={"model.onnx": "0" * 64})
    with in_place_of(folder / name, kind):
        if name == "front.json":
            with pytest.raises(AutopruneError):
                open_result(folder)
        elif name == "model.onnx" and kind in ("loop", "nowhere"):
            assert loaded(folder) is not None  # none of the files is needed to load the model
        else:
            assert loaded(folder) is None


@pytest.mark.parametrize("name", [*FOREIGN, "../export/model.safetensors", "\ud800", "a\nb"])
def test_names_that_lead_elsewhere_are_refused(name: str, sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "export"))
    sign(folder, files={name: "0" * 64})
    with pytest.raises(AutopruneError, match=r"plan\.json must have a checksum for each file"):
        autoprune.load(folder, model=build("residual")[0])


# --- front.json ---------------------------------------------------------------------------------


def model_entry(name: str, params: int) -> dict[str, Any]:
    return {
        "name": name, "trial": 1, "params": params, "macs": 9, "size_bytes": 4 * params,
        "memory_bytes": None, "valid": 0.9, "test": 0.8, "path": f"front/{name}",
        "latency_ms": 1.5, "latencies": [], "formats": ["safetensors"], "verified": True,
    }  # fmt: skip


FRONT: dict[str, Any] = {
    "format": 1,
    "study": "tiny",
    "metric": "accuracy",
    "higher_is_better": True,
    "seed": 0,
    "dense": model_entry("dense", 5000),
    "front": [model_entry("t007", 1234), model_entry("t003", 4321)],
    "trials": {"complete": 2, "stopped": 0, "failed": 0},
    "epochs": 7,
    "proxies": {
        "epoch0": {"within_sizes": 0.5, "pooled": 0.6, "bins": 2, "binned": 9, "candidates": 9}
    },
}


def shown(result: SearchResult) -> None:
    """Do with a result what the commands do."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        print_front(result)
    said.getvalue().encode()
    ours(lambda: result.best(max_params=2000))
    ours(lambda: result.best(min_accuracy=0.99))
    for model in result.front:
        ours(lambda m=model: result.load(m.name, model=nn.Linear(2, 2)))  # type: ignore[misc]


def test_an_untouched_front_is_read(tmp_path: Path) -> None:
    write_signed(tmp_path / "front.json", FRONT)
    result = open_result(tmp_path)
    assert [(m.name, m.params) for m in result.front] == [("t007", 1234), ("t003", 4321)]
    shown(result)


@pytest.mark.parametrize("signed", [False, True])
@many
@given(data=st.data())
def test_an_altered_front(signed: bool, data: st.DataObject, scratch: Path) -> None:
    file = scratch / "front.json"
    write_signed(file, FRONT)
    changed = data.draw(alterations(json.loads(file.read_text())))
    if signed and isinstance(changed, dict):
        changed["checksum"] = checksum(changed)
    file.write_text(json.dumps(changed))
    result = ours(lambda: open_result(scratch))
    if result is not None:
        shown(result)


@many
@given(data=st.data())
def test_a_damaged_front(data: st.DataObject, scratch: Path) -> None:
    file = scratch / "front.json"
    write_signed(file, FRONT)
    content = file.read_bytes()
    file.write_bytes(data.draw(damages(content)))
    result = ours(lambda: open_result(scratch))
    if result is not None:
        assert [m.name for m in result.front] == ["t007", "t003"]
        assert result.front[0].params == 1234


@pytest.mark.parametrize("path", ["../x", "/etc", "front/../../x", "..", "a/.."])
def test_a_front_that_leads_out_of_its_folder_is_refused(path: str, tmp_path: Path) -> None:
    write_signed(
        tmp_path / "front.json", FRONT | {"front": [model_entry("t1", 9) | {"path": path}]}
    )
    with pytest.raises(AutopruneError, match=r"front\.json.*path"):
        open_result(tmp_path)
