"""A finished run's model, written as files that need nothing of this package to be used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from autoflip_secure.data.task import Task
from autoflip_secure.errors import ConfigError, ProtocolError, StorageError
from autoflip_secure.export.comparison import compare
from autoflip_secure.export.forms import INPUT, OUTPUT, as_graphs, as_tensors
from autoflip_secure.export.network import example_records, inference_network, reads_symbols
from autoflip_secure.federation.model_payload import ModelPayload
from autoflip_secure.federation.provisioning import RunFolder, load_task
from autoflip_secure.models.architectures import MODELS
from autoflip_secure.models.layout import load_flat_parameters
from autoflip_secure.models.spec import build
from autoflip_secure.storage import storing, write_atomically

__all__ = ["export_run"]

SCHEMA = 1
FIGURES_FILE = "export.json"
EXAMPLE_RECORDS = 2


def export_run(run: Path, output: Path | None) -> tuple[Path, dict[str, Any]]:
    """Write model.safetensors, model.pt2, model.onnx and export.json; files of an earlier export are replaced.

    All are made before the first is written, each is replaced as a whole, and export.json, which has the hash of every
    other, comes last.

    Parameters
    ----------
    run : Path
        Directory of a finished run.
    output : Path or None
        Folder to write, made where it does not exist; RUN/export.

    Returns
    -------
    (Path, dict)
        The folder, and what export.json holds.

    Raises
    ------
    ConfigError
        No finished run, or an output that is not a folder of its own.
    StorageError
        The run's model cannot be read, or the disk refused.
    """
    folder = RunFolder(run)
    if not folder.config.exists():
        raise ConfigError(f"{run}: is not the directory of a run")
    if not folder.summary.exists():
        raise ConfigError(f"{run}: no summary.json there; the run is not finished, go on with sim --resume {run}")
    target = run / "export" if output is None else output
    if target.exists() and not target.is_dir():
        raise ConfigError(f"--output {target}: is not a folder; name another")
    if target.resolve() == run.resolve():
        raise ConfigError(f"--output {target}: is the run itself, whose model.safetensors is another; name another")
    payload, task = _read(folder)
    files, figures = _make(payload, task, folder.path.resolve().name)
    with storing(target):
        target.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_atomically(target / name, data)
    write_atomically(target / FIGURES_FILE, json.dumps(figures, indent=2).encode())
    return target, figures


def _read(folder: RunFolder) -> tuple[ModelPayload, Task]:
    try:
        return ModelPayload.from_bytes(folder.model.read_bytes()), load_task(folder)
    except OSError as error:
        raise StorageError(f"cannot read {error.filename}: {error.strerror}; nothing was written") from error
    except ProtocolError as error:
        raise StorageError(f"{folder.model} is damaged: {error}; nothing was written") from error


def _make(payload: ModelPayload, task: Task, run: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    spec = payload.spec
    net = build(spec)
    load_flat_parameters(net, torch.from_numpy(payload.weights))
    about = {
        "run": run,
        "model": spec.name,
        "widths": list(spec.widths),
        "input_shape": list(spec.input_shape),
        "outputs": spec.outputs,
        "task": task.kind,
        "classes": list(task.class_names),
        "mask_hash": payload.mask_hash().hex(),
    }
    tensors = as_tensors(net, {key: v if isinstance(v, str) else json.dumps(v) for key, v in about.items()})
    network = inference_network(spec, net)
    program, graph = as_graphs(network, example_records(spec, EXAMPLE_RECORDS, torch.Generator().manual_seed(0)))
    files = {"model.safetensors": tensors, "model.pt2": program, "model.onnx": graph}
    figures = {
        "schema": SCHEMA,
        **about,
        "input": {
            "name": INPUT,
            "type": "int64" if reads_symbols(spec) else "float32",
            "shape": ["batch", *spec.input_shape],
            "meaning": _meaning(payload),
        },
        "output": {
            "name": OUTPUT,
            "shape": ["batch", spec.outputs],
            "meaning": "log hazard ratio to the baseline" if task.kind == "survival" else "logits by class",
        },
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
        },
        **compare(spec, network, int(payload.mask.sum())),
    }
    return files, figures


def _meaning(payload: ModelPayload) -> str:
    if reads_symbols(payload.spec):
        return f"numbers of symbols, 0 to {payload.spec.outputs - 1}; others are not checked"
    records = "records scaled as the silos' own are"
    if MODELS[payload.spec.name].scattering:
        return f"{records}; their fixed features are computed inside model.pt2 and model.onnx"
    return records
