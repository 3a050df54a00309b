import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import NETS, build, grouped, same_state

from autoprune.errors import AutopruneError
from autoprune.pruning.cut import cut, load_state
from autoprune.pruning.files import read_json, write_json, write_whole
from autoprune.pruning.weights import load_checkpoint, load_tensors, save_model, save_tensors


@pytest.mark.parametrize("name", NETS)
def test_a_cut_model_survives_the_disk(name: str, tmp_path: Path) -> None:
    model, _ = build(name)
    kept = {g: tuple(range(0, count, 2)) for g, count in grouped(name).channels.items()}
    small = cut(model, grouped(name), kept)
    digest = save_model(tmp_path / "model.safetensors", small)
    state = load_tensors(tmp_path / "model.safetensors", sha256=digest)
    assert same_state(load_state(model, state).state_dict(), small.state_dict())


def test_the_checksum_is_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "x.safetensors"
    digest = save_tensors(file, {"x": torch.arange(3.0)})
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()


def test_views_are_saved_whole(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    save_tensors(tmp_path / "x", {"view": base.T, "same": base})
    assert same_state(load_tensors(tmp_path / "x"), {"same": base, "view": base.T})


def test_altered_weights_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    digest = save_tensors(file, {"x": torch.zeros(3)})
    save_tensors(file, {"x": torch.ones(3)})
    with pytest.raises(AutopruneError, match=r"checksum .* altered or cut short"):
        load_tensors(file, sha256=digest)
    assert load_tensors(file)["x"].sum() == 3


def test_torn_and_missing_weights_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_tensors(file, {"x": torch.zeros(30)})
    file.write_bytes(file.read_bytes()[:50])
    for path in (file, tmp_path / "nowhere"):
        with pytest.raises(AutopruneError, match=f"{path.name}.* must be a safetensors file"):
            load_tensors(path)


# --- dense checkpoints --------------------------------------------------------------------------

STATE = {"weight": torch.arange(4.0), "bias": torch.ones(2)}


@pytest.mark.parametrize(
    "content",
    [STATE, {"state_dict": STATE, "epoch": 3}, {"model": STATE}, {"model_state_dict": STATE}],
)
def test_a_checkpoint_may_be_wrapped(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    assert same_state(load_checkpoint(tmp_path / "model.pt"), STATE)


def test_a_checkpoint_may_be_safetensors(tmp_path: Path) -> None:
    save_tensors(tmp_path / "model.safetensors", STATE)
    loaded = load_checkpoint(tmp_path / "model.safetensors")
    assert {n: t.tolist() for n, t in loaded.items()} == {n: t.tolist() for n, t in STATE.items()}


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    torch.save({"weight": Trap(tmp_path / "sprung")}, tmp_path / "model.pt")
    with pytest.raises(AutopruneError, match="must hold tensors only"):
        load_checkpoint(tmp_path / "model.pt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.zeros(2)], torch.zeros(2)])
def test_a_checkpoint_must_hold_a_state(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(AutopruneError, match="must hold a state_dict"):
        load_checkpoint(tmp_path / "model.pt")


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(AutopruneError, match=r"none at .*nowhere\.pt"):
        load_checkpoint(tmp_path / "nowhere.pt")


# --- whole files --------------------------------------------------------------------------------


def test_a_crash_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "value.json"
    write_json(file, {"a": 1})

    def crash(*_: object) -> None:
        raise OSError("disk gone")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="disk gone"):
        write_json(file, {"a": 2})
    assert read_json(file) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_broken_json_is_named(tmp_path: Path) -> None:
    write_whole(tmp_path / "value.json", b'{"a": ')
    for name in ("value.json", "nowhere.json"):
        with pytest.raises(AutopruneError, match=f"{name} must be a readable JSON file"):
            read_json(tmp_path / name)
