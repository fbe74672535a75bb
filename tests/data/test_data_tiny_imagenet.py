from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from autoflip_secure.data.registry import load
from autoflip_secure.data.tiny_imagenet import load_tiny_imagenet
from autoflip_secure.errors import DataError

IDS = [f"n{number:08d}" for number in range(300, 100, -1)]  # not in alphabetical order, like the published list


def jpeg(colour, side=64, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, (side, side), colour).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """200 classes of one picture whose red tells the class, and three pictures to score on."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "wnids.txt").write_text("\n".join(IDS) + "\n")
    for label, name in enumerate(IDS):
        images = folder / "train" / name / "images"
        images.mkdir(parents=True)
        (images / f"{name}_0.JPEG").write_bytes(jpeg((label, 0, 0)))
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for number, label in enumerate((7, 199, 0)):
        (folder / "val" / "images" / f"val_{number}.JPEG").write_bytes(jpeg((0, label, 0)))
        lines.append(f"val_{number}.JPEG\t{IDS[label]}\t0\t32\t44\t62")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def folder(template, tmp_path):
    """A copy whose pictures are links and whose lists may be rewritten."""
    copy = tmp_path / "tiny-imagenet-200"
    (copy / "val").mkdir(parents=True)
    (copy / "train").symlink_to(template / "train")
    (copy / "val" / "images").symlink_to(template / "val" / "images")
    for name in ("wnids.txt", "val/val_annotations.txt"):
        (copy / name).write_text((template / name).read_text())
    return copy


def test_published_layout(folder):
    data = load("tiny-imagenet", folder.parent, seed=0)
    assert (len(data.train), len(data.public_test)) == (200, 3)
    assert data.train.x.shape == (200, 3, 64, 64)
    assert data.train.y.tolist() == list(range(200))
    assert data.public_test.y.tolist() == [7, 199, 0]
    assert np.allclose(data.train.x[:, 0].mean(axis=(1, 2)) * 255, np.arange(200), atol=3)
    assert np.allclose(data.public_test.x[1, 1] * 255, 199, atol=3)
    assert data.task.class_names == tuple(IDS)
    assert data.task.nominal_records == 200


def replace_picture(folder, content):
    """The first class's pictures get a folder of their own, with this one in it."""
    train = folder / "train"
    source = train.resolve()
    train.unlink()
    train.mkdir()
    for entry in source.iterdir():
        if entry.name != IDS[0]:
            (train / entry.name).symlink_to(entry)
    (train / IDS[0] / "images").mkdir(parents=True)
    path = train / IDS[0] / "images" / "odd.JPEG"
    if content is not None:
        path.write_bytes(content)
    return path


def test_grey_pictures_get_three_channels(folder):
    replace_picture(folder, jpeg(90, mode="L"))
    assert np.allclose(load_tiny_imagenet(folder).train.x[0] * 255, 90, atol=3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (jpeg((0, 0, 0), side=65), "a picture of 65 x 65, not 64 x 64"),
        (jpeg((0, 0, 0))[:-300], "not a whole JPEG file"),
        (b"", "not a whole JPEG file"),
    ],
)
def test_malformed_picture(folder, content, said):
    path = replace_picture(folder, content)
    with pytest.raises(DataError, match=said) as caught:
        load_tiny_imagenet(folder)
    assert str(caught.value).startswith(f"{path}: ")


def test_class_without_pictures(folder):
    path = replace_picture(folder, None)
    with pytest.raises(DataError, match=r"holds no file \*\.JPEG") as caught:
        load_tiny_imagenet(folder)
    assert str(caught.value).startswith(f"{path.parent}: ")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("wnids.txt", "\n".join(IDS[:-1]), "wnids.txt: lists 199 classes, not 200"),
        ("wnids.txt", "\n".join(IDS[:-1] + IDS[:1]), "wnids.txt:200: not a new WordNet id"),
        ("wnids.txt", "\n".join(["../val", *IDS[1:]]), "wnids.txt:1: not a new WordNet id"),
        ("wnids.txt", "\n".join(["n99999999", *IDS[1:]]), "n99999999/images: no such folder"),
        ("wnids.txt", b"\xff\xfe\x00", "wnids.txt: cannot be read as UTF-8"),
        ("val/val_annotations.txt", "", "val_annotations.txt: is empty"),
        ("val/val_annotations.txt", "val_0.JPEG", "val_annotations.txt:1: not a new file name"),
        ("val/val_annotations.txt", "val_0.JPEG\tn1\n", "val_annotations.txt:1: not a new file name"),
        ("val/val_annotations.txt", f"../val_0.JPEG\t{IDS[0]}\n", "val_annotations.txt:1: not a new file name"),
        ("val/val_annotations.txt", f"val_0.JPEG\t{IDS[0]}\n" * 2, "val_annotations.txt:2: not a new file name"),
        ("val/val_annotations.txt", f"val_9.JPEG\t{IDS[0]}\n", "val_9.JPEG: no such file"),
    ],
)
def test_malformed_lists(folder, file, content, said):
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        load_tiny_imagenet(folder)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["wnids.txt", "val/val_annotations.txt"])
def test_missing_list(folder, file):
    (folder / file).unlink()
    with pytest.raises(DataError, match=f"{file}: no such file"):
        load_tiny_imagenet(folder)
