from __future__ import annotations

import io
import lzma
import tarfile

import numpy as np
import pytest
from PIL import Image

from autoflip_secure.data.cifar import load_cifar10, load_cifar100
from autoflip_secure.data.cifar_jpeg import JPEG_ARCHIVE
from autoflip_secure.data.cifar_names import CIFAR10_NAMES, CIFAR100_NAMES
from autoflip_secure.data.registry import load
from autoflip_secure.errors import DataError

FILES_10 = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]


def record(*labels, red=0, green=0, blue=0):
    """A picture of one colour, but for its first row, which is white, as the published layout orders it."""
    channels = [np.full((32, 32), value, np.uint8) for value in (red, green, blue)]
    for channel in channels:
        channel[0] = 255
    return bytes(labels) + b"".join(channel.tobytes() for channel in channels)


@pytest.fixture
def cifar10(tmp_path):
    folder = tmp_path / "cifar10"
    (folder / "cifar-10-batches-bin").mkdir(parents=True)
    for label, name in enumerate(FILES_10):
        content = record(label, red=51) + record(9, blue=102)
        (folder / "cifar-10-batches-bin" / name).write_bytes(content)
    return folder


@pytest.fixture
def cifar100(tmp_path):
    folder = tmp_path / "cifar100" / "cifar-100-binary"
    folder.mkdir(parents=True)
    (folder / "train.bin").write_bytes(record(19, 99, green=255) + record(0, 7) + record(3, 4))
    (folder / "test.bin").write_bytes(record(1, 2))
    return folder.parent


def test_binary_cifar10(cifar10):
    data = load("cifar10", cifar10.parent, seed=0)
    assert (len(data.train), len(data.public_test), data.natural) == (10, 2, None)
    assert data.train.y.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert data.public_test.y.tolist() == [5, 9]
    first = data.train.x[0]
    assert first.shape == (3, 32, 32)
    assert (first[:, 0] == 1).all()  # the row that is white in every channel
    assert np.allclose(first[0, 1:], 0.2)
    assert not first[1:, 1:].any()
    assert data.task.nominal_records == 10
    assert data.task.note == ""
    assert data.task.class_names[9] == "truck"


def test_binary_cifar100_takes_the_fine_label(cifar100):
    data = load("cifar100", cifar100.parent, seed=0)
    assert data.train.y.tolist() == [99, 7, 4]
    assert data.public_test.y.tolist() == [2]
    assert (data.train.x[0, 1] == 1).all()
    assert len(set(CIFAR100_NAMES)) == data.task.classes == 100
    assert list(CIFAR100_NAMES) == sorted(CIFAR100_NAMES)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has 0 bytes"),
        (record(1)[:-1], "has 3072 bytes, which is no multiple of 3073"),
        (record(1) + record(10), "record 1 has label 10, not below 10"),
        (None, "no such file"),
    ],
)
def test_malformed_cifar10(cifar10, content, said):
    path = cifar10 / "cifar-10-batches-bin" / FILES_10[2]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        load_cifar10(cifar10)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (record(1, 2) + b"x", "no multiple of 3074"),
        (record(20, 2), "record 0 has label 20, not below 20"),
        (record(1, 100), "record 0 has label 100, not below 100"),
    ],
)
def test_malformed_cifar100(cifar100, content, said):
    path = cifar100 / "cifar-100-binary" / "train.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        load_cifar100(cifar100)
    assert str(caught.value).startswith(f"{path}: ")


def test_pickles_are_refused_unread(tmp_path):
    for folder, name in ((tmp_path / "a", "cifar-10-batches-py"), (tmp_path / "b", "cifar-100-python")):
        (folder / name).mkdir(parents=True)
        loader = load_cifar10 if "10-" in name else load_cifar100
        with pytest.raises(DataError, match=f"{name}: Python pickles, which are not read"):
            loader(folder)


def jpeg(side=32, colour=(255, 0, 0), mode="RGB", kind="JPEG"):
    buffer = io.BytesIO()
    Image.new(mode, (side, side), colour).save(buffer, kind)
    return buffer.getvalue()


GOOD = {f"{part}/{name}/0000.jpg": jpeg() for part in ("train", "test") for name in CIFAR10_NAMES}


def write_archive(folder, members, mode="w:xz"):
    folder.mkdir(exist_ok=True)
    path = folder / JPEG_ARCHIVE
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def special(name, kind, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return name, member


def test_jpeg_copy(tmp_path):
    members = [special("train", tarfile.DIRTYPE), special("train/cat", tarfile.DIRTYPE), *GOOD.items()]
    members.append(("train/frog/0001.jpg", jpeg(colour=90, mode="L")))
    write_archive(tmp_path / "cifar10-jpeg", members)
    data = load("cifar10", tmp_path, seed=0)
    assert data.train.y.tolist() == [*range(10), 6]
    assert data.public_test.y.tolist() == list(range(10))
    assert np.allclose(data.train.x[0].mean(axis=(1, 2)), (1, 0, 0), atol=0.02)
    assert np.allclose(data.train.x[10], 90 / 255, atol=0.02)
    assert "lossy" in data.task.note
    assert "not comparable" in data.task.note
    assert data.task.nominal_records == 11


def test_the_original_goes_before_the_copy(cifar10):
    write_archive(cifar10, list(GOOD.items()))
    assert load_cifar10(cifar10).task.note == ""


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (("../evil.jpg", jpeg()), "not a picture such as"),
        (("/train/cat/0001.jpg", jpeg()), "not a picture such as"),
        (("train/cat/../0001.jpg", jpeg()), "not a picture such as"),
        (("train/cat/0001.jpg.exe", jpeg()), "not a picture such as"),
        (("train/cat/notes.txt", b"hello"), "not a picture such as"),
        (special("train/cat/0001.jpg", tarfile.SYMTYPE, "/etc/passwd"), "not a picture such as"),
        (special("train/cat/0001.jpg", tarfile.LNKTYPE, "train/cat/0000.jpg"), "not a picture such as"),
        (special("train/cat/0001.jpg", tarfile.CHRTYPE), "not a picture such as"),
        (("train/cat/0000.jpg", jpeg()), "or there twice"),
        (("train/kitten/0001.jpg", jpeg()), "no class is named kitten"),
        (("train/cat/0001.jpg", jpeg(side=33)), "a picture of 33 x 33, not 32 x 32"),
        (("train/cat/0001.jpg", jpeg()[:-200]), "not a whole JPEG file"),
        (("train/cat/0001.jpg", jpeg(kind="PNG")), "not a whole JPEG file"),
        (("train/cat/0001.jpg", b""), "not a whole JPEG file"),
        (("train/cat/0001.jpg", bytes(70_000)), "70000 bytes are too large"),
    ],
)
def test_odd_members(tmp_path, odd, said):
    path = write_archive(tmp_path / "cifar10-jpeg", [*GOOD.items(), odd])
    with pytest.raises(DataError, match=said) as caught:
        load_cifar10(path.parent)
    assert str(caught.value).startswith(f"{path}: member '{odd[0]}'")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 20, -40, -3000])
def test_damaged_archive(tmp_path, keep):
    rng = np.random.default_rng(0)
    noise = [(f"train/cat/{i:04d}.jpg", jpeg() + rng.bytes(2000)) for i in range(1, 9)]
    path = write_archive(tmp_path / "cifar10-jpeg", [*GOOD.items(), *noise])
    content = path.read_bytes()
    path.write_bytes(content[:keep] if keep >= 0 else content[: len(content) + keep])
    with pytest.raises(DataError, match=r"not a whole tar\.xz archive") as caught:
        load_cifar10(path.parent)
    assert str(caught.value).startswith(f"{path}: ")


def test_damage_behind_the_last_member(tmp_path):
    """Where the checksums of xz are, which tar has no reason to read."""
    path = write_archive(tmp_path / "cifar10-jpeg", GOOD.items(), mode="w")
    content = bytearray(lzma.compress(path.read_bytes() + bytes(100_000)))
    path.write_bytes(content)
    assert len(load_cifar10(path.parent).train) == 10
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"not a whole tar\.xz archive"):
        load_cifar10(path.parent)


def test_an_archive_that_is_not_xz_or_lacks_a_part(tmp_path):
    path = write_archive(tmp_path / "cifar10-jpeg", GOOD.items(), mode="w:gz")
    with pytest.raises(DataError, match=r"not a whole tar\.xz archive"):
        load_cifar10(path.parent)
    write_archive(path.parent, [member for member in GOOD.items() if member[0].startswith("train")])
    with pytest.raises(DataError, match="holds no picture of the part test"):
        load_cifar10(path.parent)


@pytest.mark.slow
def test_the_whole_jpeg_copy(shared_data):
    data = load("cifar10", shared_data, seed=0)
    assert np.bincount(data.train.y).tolist() == [5000] * 10
    assert np.bincount(data.public_test.y).tolist() == [1000] * 10
    # The channels' means that are known of CIFAR-10: nothing is swapped, nothing scaled twice.
    assert np.allclose(data.train.x.mean(axis=(0, 2, 3)), (0.4914, 0.4822, 0.4465), atol=5e-4)
