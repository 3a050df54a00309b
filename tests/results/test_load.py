"""Exported folders that were damaged, altered or mixed up: refused with one line, never loaded."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import ABSENT, PLAN, WEIGHTS, sign, write
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import build, grouped, noise_like, same_state
from torch import nn

import autoprune
from autoprune.errors import AutopruneError
from autoprune.pruning.cut import cut


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two exports of one model and one of another; not to be written to."""
    root = tmp_path_factory.mktemp("exports")
    for folder, net, every in (("half", "residual", 2), ("third", "residual", 3),
                               ("other", "conv_bn", 2)):  # fmt: skip
        write(root / folder, net, every)
    return root


@pytest.fixture
def folder(exports: Path, tmp_path: Path) -> Path:
    """A copy of an export to be tampered with."""
    return shutil.copytree(exports / "half", tmp_path / "half")


@pytest.fixture
def dense() -> Iterator[nn.Module]:
    """The dense model to load into, which must come out as it went in."""
    model, _ = build("residual")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    yield model
    assert same_state(model.state_dict(), before)


def refused(folder: Path, model: nn.Module) -> str:
    """Return the one line with which a folder is refused."""
    with pytest.raises(AutopruneError) as caught:
        autoprune.load(folder, model=model)
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    return said


def test_an_untouched_export_is_loaded(folder: Path, dense: nn.Module) -> None:
    loaded = autoprune.load(folder, model=dense)
    expected = write(folder, "residual", 2)
    assert same_state(loaded.state_dict(), expected.state_dict())
    inputs = noise_like(torch.zeros(2, 3, 8, 8))
    with torch.no_grad():
        assert torch.equal(loaded(inputs), expected(inputs))


# --- damage -------------------------------------------------------------------------------------


def damaged(exports: Path, scratch: Path, file: str, content: bytes) -> Path:
    folder = scratch / "damaged"
    shutil.copytree(exports / "half", folder, dirs_exist_ok=True)
    (folder / file).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.mark.parametrize("file", [PLAN, WEIGHTS])
@settings(max_examples=25)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_is_refused(file: str, share: float, exports: Path, scratch: Path) -> None:
    whole = (exports / "half" / file).read_bytes().rstrip()
    folder = damaged(exports, scratch, file, whole[: int(share * len(whole))])
    assert file in refused(folder, build("residual")[0])


@pytest.mark.parametrize("file", [PLAN, WEIGHTS])
@settings(max_examples=40)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_single_flipped_bit_is_refused(
    file: str, share: float, bit: int, exports: Path, scratch: Path
) -> None:
    content = bytearray((exports / "half" / file).read_bytes())
    content[int(share * len(content))] ^= 1 << bit
    folder = damaged(exports, scratch, file, bytes(content))
    assert file in refused(folder, build("residual")[0])


@pytest.mark.parametrize("file", [PLAN, WEIGHTS])
@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"[]", b"null", b"\xff\xfe" * 9])
def test_a_file_of_something_else_is_refused(
    file: str, content: bytes, folder: Path, dense: nn.Module
) -> None:
    (folder / file).write_bytes(content)
    assert file in refused(folder, dense)


@pytest.mark.parametrize("file", [PLAN, WEIGHTS])
def test_a_missing_file_is_named(file: str, folder: Path, dense: nn.Module) -> None:
    (folder / file).unlink()
    assert file in refused(folder, dense)


@pytest.mark.parametrize("file", [PLAN, WEIGHTS])
def test_a_folder_in_a_files_place_is_refused(file: str, folder: Path, dense: nn.Module) -> None:
    (folder / file).unlink()
    (folder / file).mkdir()
    assert file in refused(folder, dense)


# --- files that belong elsewhere ----------------------------------------------------------------


@pytest.mark.parametrize("donor", ["third", "other"])
@pytest.mark.parametrize("file", [PLAN, WEIGHTS])
def test_a_file_of_another_export_is_refused(
    file: str, donor: str, exports: Path, folder: Path, dense: nn.Module
) -> None:
    shutil.copy(exports / donor / file, folder / file)
    said = refused(folder, dense)
    assert WEIGHTS in said
    assert "checksum" in said


@pytest.mark.parametrize("net", ["conv_bn", "dense", "mlp"])
def test_an_export_does_not_load_into_another_model(net: str, folder: Path) -> None:
    assert "right model" in refused(folder, build(net)[0])


def test_an_export_does_not_load_into_a_narrower_model(folder: Path) -> None:
    smallest = dict.fromkeys(grouped("residual").channels, (0,))
    narrow = cut(build("residual")[0], grouped("residual"), smallest)
    assert "right model" in refused(folder, narrow)


# --- plans that were altered and signed again ---------------------------------------------------


@pytest.mark.parametrize("params", [0, -1, 10**9, "many", 3.5, None, ABSENT])
def test_a_plan_must_have_the_models_parameters(
    params: Any, folder: Path, dense: nn.Module
) -> None:
    sign(folder, params=params)
    refused(folder, dense)


@pytest.mark.parametrize("digest", ["", "0" * 64, 7, [], None, ABSENT])
def test_a_plan_must_know_its_weights(digest: Any, folder: Path, dense: nn.Module) -> None:
    sign(folder, sha256=digest)
    refused(folder, dense)


def resave(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Alter the weights and make the plan agree with the new file."""
    from safetensors.torch import load_file, save_file

    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)
    sign(folder, sha256=hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("head.bias"), "head.bias"),
        (lambda s: s.update({"extra": torch.zeros(1)}), "extra"),
        (lambda s: s.update({"head.weight": torch.zeros(3, 17)}), "head.weight"),
        (lambda s: s.update({"head.weight": torch.zeros(24)}), "head.weight"),
        (lambda s: s.update({"head.weight": torch.zeros(3, 7)}), "parameters"),
        (lambda s: s.clear(), "tensors"),
    ],
    ids=["one missing", "one more", "too wide", "other rank", "too narrow", "none"],
)
def test_weights_of_other_shapes_are_refused(
    change: Callable[[dict[str, torch.Tensor]], object],
    words: str,
    folder: Path,
    dense: nn.Module,
) -> None:
    resave(folder, change)
    assert words in refused(folder, dense)


class Bomb:
    """Unpickling it runs code, which leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_a_pickle_in_the_weights_place_is_not_run(folder: Path, dense: nn.Module) -> None:
    torch.save({"head.weight": Bomb(folder / "the-code-ran")}, folder / WEIGHTS)
    sign(folder, sha256=hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest())
    assert WEIGHTS in refused(folder, dense)
    assert not (folder / "the-code-ran").exists()
