"""`autoflip-secure export` on a tiny real run: files that stand alone, and one line for whatever is wrong."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from autoflip_secure import storage
from autoflip_secure.cli import main
from autoflip_secure.federation import client_app
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.models.layout import flatten_parameters, load_flat_parameters
from autoflip_secure.models.spec import build

SMALL = ("--dataset", "digits", "--silos", "3", "--rounds", "3", "--colluders", "0", "--workers", "0", "--quiet")
FILES = {"model.safetensors", "model.pt2", "model.onnx", "export.json"}
STAND_ALONE = """
import sys, numpy, torch
x = torch.from_numpy(numpy.load(sys.argv[2]))
with torch.no_grad():
    numpy.save(sys.argv[3], torch.export.load(sys.argv[1]).module()(x).numpy())
assert not any(name.startswith("autoflip_secure") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three rounds that keeps half the operations and a fifth of the weights."""
    client_app.close_silos()
    run = tmp_path_factory.mktemp("export") / "run"
    options = ("--prune-flops", "0.5", "--prune-threshold", "0.8", "--run-dir", str(run))
    assert main(["sim", *SMALL, *options]) == 0
    return run


@pytest.fixture(scope="module")
def exported(finished: Path) -> Path:
    assert main(["export", str(finished)]) == 0
    return finished / "export"


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The run, for tests that damage it."""
    return Path(shutil.copytree(finished, tmp_path / "copy", ignore=shutil.ignore_patterns("export")))


def test_the_files_are_the_runs_model(finished: Path, exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == FILES
    payload = ModelPayload.from_bytes((finished / "model.safetensors").read_bytes())
    figures = json.loads((exported / "export.json").read_text())
    summary = json.loads((finished / "summary.json").read_text())
    with safe_open(exported / "model.safetensors", "pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    net = build(payload.spec)
    net.load_state_dict(tensors)
    assert np.array_equal(flatten_parameters(net).numpy(), payload.weights)
    assert not payload.weights[~payload.mask].any()
    assert figures["pruned"]["parameters_live"] == summary["params_live"] == payload.mask.sum()
    assert summary["params_live"] < figures["pruned"]["parameters"] < figures["dense"]["parameters"]
    assert figures["dense"]["parameters"] == summary["params_dense"]
    assert figures["pruned"]["flops"] == summary["flops_live"]
    assert figures["dense"]["flops"] == summary["flops_dense"]
    assert (about["run"], about["model"]) == ("run", "cnn-tanh")
    assert json.loads(about["widths"]) == list(payload.spec.widths)
    assert json.loads(about["input_shape"]) == [1, 8, 8]
    assert json.loads(about["classes"]) == [str(digit) for digit in range(10)]
    assert about["mask_hash"] == payload.mask_hash().hex()
    for name, file in figures["files"].items():
        data = (exported / name).read_bytes()
        assert file == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_the_program_runs_without_this_package(finished: Path, exported: Path, tmp_path: Path) -> None:
    payload = ModelPayload.from_bytes((finished / "model.safetensors").read_bytes())
    net = build(payload.spec)
    load_flat_parameters(net, torch.from_numpy(payload.weights))
    records = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    np.save(tmp_path / "x.npy", records)
    command = [sys.executable, "-c", STAND_ALONE, str(exported / "model.pt2"), "x.npy", "y.npy"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = net(torch.from_numpy(records))
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "y.npy")), expected, rtol=1e-4, atol=1e-4)


def test_an_earlier_export_is_replaced_and_the_table_printed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "a" / "b"
    target.mkdir(parents=True)
    for name in FILES:
        (target / name).write_text("old")
    (target / "notes.txt").write_text("mine")
    assert main(["export", str(finished), "--output", str(target)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "flops" in printed.out
    assert printed.out.splitlines()[-1] == str(target)
    assert all((target / name).read_bytes() != b"old" for name in FILES)
    assert {path.name for path in target.iterdir()} == FILES | {"notes.txt"}
    assert (target / "notes.txt").read_text() == "mine"


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    assert main(["export", *map(str, arguments)]) == code
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_is_no_finished_run_is_refused(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not the directory of a run" in refused(capsys, 2, tmp_path / "nowhere")
    (copy / "summary.json").unlink()
    assert f"sim --resume {copy}" in refused(capsys, 2, copy)
    assert not (copy / "export").exists()


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_damaged_model_is_refused(copy: Path, capsys: pytest.CaptureFixture[str], keep: int) -> None:
    model = copy / "model.safetensors"
    model.write_bytes(model.read_bytes()[:keep])
    assert f"{model} is damaged" in refused(capsys, 3, copy)
    model.unlink()
    assert f"cannot read {model}" in refused(capsys, 3, copy)
    assert not (copy / "export").exists()


def test_outputs_that_cannot_be_are_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = (copy / "model.safetensors").read_bytes()
    assert "is not a folder" in refused(capsys, 2, copy, "--output", copy / "config.toml")
    assert "the run itself" in refused(capsys, 2, copy, "--output", copy)
    assert (copy / "model.safetensors").read_bytes() == model
    assert "cannot write" in refused(capsys, 3, copy, "--output", copy / "config.toml" / "deeper")


def test_a_full_disk_leaves_the_earlier_export(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "export").mkdir()
    (copy / "export" / "model.safetensors").write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "fsync", full)
    assert "No space left" in refused(capsys, 3, copy)
    assert [path.name for path in (copy / "export").iterdir()] == ["model.safetensors"]
    assert (copy / "export" / "model.safetensors").read_text() == "old"
