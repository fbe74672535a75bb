"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autoflip_secure.data.arrays import existing_folder
from autoflip_secure.data.federation_data import LoadedData, NamedRecords
from autoflip_secure.data.folder import load_folder
from autoflip_secure.data.heart import load_heart
from autoflip_secure.data.images import load_fashion_mnist, load_mnist, load_pneumonia_mnist
from autoflip_secure.data.names import DATASETS, FOLDER_PREFIX, dataset_names
from autoflip_secure.data.packaged import load_breast_cancer, load_digits, load_mnist5k
from autoflip_secure.data.tcga_brca import load_tcga_brca
from autoflip_secure.errors import ConfigError, NotAvailable

__all__ = ["LoadedData", "NamedRecords", "load"]

PACKAGED: dict[str, Callable[[], LoadedData]] = {
    "mnist5k": load_mnist5k,
    "digits": load_digits,
    "breast-cancer": load_breast_cancer,
}
ON_DISK: dict[str, Callable[[Path], LoadedData]] = {
    "heart": load_heart,
    "tcga-brca": load_tcga_brca,
    "pneumonia-mnist": load_pneumonia_mnist,
    "mnist": load_mnist,
    "fashion-mnist": load_fashion_mnist,
}


def load(dataset: str, data_dir: Path | None, seed: int) -> LoadedData:
    """Load a data set.

    Parameters
    ----------
    dataset : str
        A name of `names.DATASETS`, or folder:PATH.
    data_dir : Path or None
        `--data-dir`; needed by the data sets that no package brings.
    seed : int
        Run seed. Every split here is fixed and public, so none depends on it; a data set that must draw would.

    Raises
    ------
    ConfigError
        Unknown name, or `--data-dir` is needed and absent.
    NotAvailable
        A known data set that is not in this version.
    DataError
        Missing or malformed files; the message names them.
    """
    del seed
    if dataset.startswith(FOLDER_PREFIX):
        path = dataset.removeprefix(FOLDER_PREFIX)
        if not path:
            raise ConfigError("--dataset folder: needs a path; write --dataset folder:PATH")
        return load_folder(Path(path).expanduser())
    info = DATASETS.get(dataset)
    if info is None:
        raise ConfigError(f"--dataset {dataset}: unknown; use one of {', '.join(dataset_names())}, or folder:PATH")
    if not info.available:
        raise NotAvailable(
            f"--dataset {dataset}: not available in this version; use one of {', '.join(dataset_names())}"
        )
    if info.subfolder is None:
        return PACKAGED[dataset]()
    if data_dir is None:
        raise ConfigError(f"--dataset {dataset}: needs --data-dir PATH, where PATH/{info.subfolder} holds its files")
    existing_folder(data_dir, f"--data-dir must name a folder that holds {info.subfolder}")
    return ON_DISK[dataset](data_dir / info.subfolder)
