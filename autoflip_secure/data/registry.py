"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autoflip_secure.data.arrays import existing_folder
from autoflip_secure.data.cifar import load_cifar10, load_cifar100
from autoflip_secure.data.federation_data import LoadedData, NamedRecords
from autoflip_secure.data.femnist import load_femnist
from autoflip_secure.data.folder import load_folder
from autoflip_secure.data.heart import load_heart
from autoflip_secure.data.images import load_fashion_mnist, load_mnist, load_pneumonia_mnist
from autoflip_secure.data.names import DATASETS, FOLDER_PREFIX, DatasetInfo, dataset_names
from autoflip_secure.data.packaged import load_breast_cancer, load_digits, load_mnist5k
from autoflip_secure.data.shakespeare import load_shakespeare
from autoflip_secure.data.tcga_brca import load_tcga_brca
from autoflip_secure.data.tiny_imagenet import load_tiny_imagenet
from autoflip_secure.data.writers import load_mnist_writers
from autoflip_secure.errors import ConfigError, DataError

__all__ = ["LoadedData", "NamedRecords", "load"]

PACKAGED: dict[str, Callable[[], LoadedData]] = {
    "mnist5k": load_mnist5k,
    "digits": load_digits,
    "breast-cancer": load_breast_cancer,
}
ON_DISK: dict[str, Callable[..., LoadedData]] = {
    "heart": load_heart,
    "tcga-brca": load_tcga_brca,
    "pneumonia-mnist": load_pneumonia_mnist,
    "mnist": load_mnist,
    "fashion-mnist": load_fashion_mnist,
    "mnist-writers": load_mnist_writers,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "tiny-imagenet": load_tiny_imagenet,
    "femnist": load_femnist,
    "shakespeare": load_shakespeare,
}
"""Each takes the folders of its data set, in the order of `DatasetInfo.subfolders`; where either will do, one."""


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
    if not info.subfolders:
        return PACKAGED[dataset]()
    word = " or " if info.either else " and "
    if data_dir is None:
        places = word.join(f"PATH/{name}" for name in info.subfolders)
        raise ConfigError(f"--dataset {dataset}: needs --data-dir PATH, with its files in {places}")
    existing_folder(data_dir, f"--data-dir must name a folder that holds {word.join(info.subfolders)}")
    return ON_DISK[dataset](*_folders(data_dir, info))


def _folders(data_dir: Path, info: DatasetInfo) -> list[Path]:
    """Those to read: all, or the first that is there where either will do."""
    folders = [data_dir / name for name in info.subfolders]
    if not info.either:
        return folders
    present = [folder for folder in folders if folder.is_dir()]
    if not present:
        raise DataError(f"{data_dir}: there is no folder {' or '.join(info.subfolders)}; correct --data-dir")
    return present[:1]
