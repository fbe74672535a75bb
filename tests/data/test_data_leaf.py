from __future__ import annotations

import json

import numpy as np
import pytest

from autoflip_secure.data.femnist import load_femnist
from autoflip_secure.data.registry import load
from autoflip_secure.data.shakespeare import LEAF_ALPHABET, load_shakespeare
from autoflip_secure.errors import DataError


def image(value):
    return [value] * 783 + [1.0]


def write(folder, part, users, file="all_data_0.json"):
    path = folder / "data" / part / file
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "users": list(users),
        "num_samples": [len(user["y"]) for user in users.values()],
        "user_data": users,
    }
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def femnist(tmp_path):
    folder = tmp_path / "femnist"
    write(folder, "train", {"f2": {"x": [image(0.5), image(0.25)], "y": [3, 61]}, "f1": {"x": [image(0)], "y": [0]}})
    write(folder, "train", {"f3": {"x": [image(1)] * 3, "y": [10, 36, 5]}}, "all_data_1.json")
    write(folder, "test", {name: {"x": [image(0.75)], "y": [label]} for label, name in enumerate(("f1", "f2", "f3"))})
    return folder


def test_femnist_by_writer(femnist):
    data = load("femnist", femnist.parent, seed=0)
    assert [(silo.name, silo.records.y.tolist(), silo.holdout.y.tolist()) for silo in data.natural] == [
        ("f1", [0], [0]),
        ("f2", [3, 61], [1]),
        ("f3", [10, 36, 5], [2]),
    ]
    assert data.public_test is None
    assert data.default_partition == "natural"
    assert data.train.y.tolist() == [0, 3, 61, 10, 36, 5]
    second = data.natural[1].records.x
    assert second.shape == (2, 1, 28, 28)
    assert (second[0, 0, 0, 0], second[0, 0, 27, 26], second[0, 0, 27, 27]) == (0.5, 0.5, 1)
    assert data.task.nominal_records == 6
    assert (data.task.classes, data.task.default_model) == (62, "femnist-cnn")
    assert [data.task.class_names[label] for label in (9, 10, 35, 36, 61)] == ["9", "A", "Z", "a", "z"]


def test_split_by_user_scores_on_other_writers(femnist):
    write(femnist, "test", {"f9": {"x": [image(0)], "y": [7]}, "f8": {"x": [image(0)], "y": [8]}})
    data = load_femnist(femnist)
    assert sorted(data.public_test.y.tolist()) == [7, 8]
    assert [silo.holdout for silo in data.natural] == [None] * 3


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ({"x": [image(0)[:-1]], "y": [0]}, "x is not 1 lists of 784 numbers"),
        ({"x": [image(0), [0]], "y": [0, 0]}, "x is not 2 lists of 784 numbers"),
        ({"x": [["0.5"] * 784], "y": [0]}, "x is not 1 lists of 784 numbers"),
        ({"x": [image(1.01)], "y": [0]}, "a pixel of x is not between 0 and 1"),
        ({"x": [image(float("nan"))], "y": [0]}, "a pixel of x is not between 0 and 1"),
        ({"x": [image(0)], "y": [62]}, "y is not one class from 0 to 61"),
        ({"x": [image(0)], "y": [-1]}, "y is not one class from 0 to 61"),
        ({"x": [image(0)], "y": [1.0]}, "y is not one class from 0 to 61"),
        ({"x": [image(0)], "y": ["1"]}, "y is not one class from 0 to 61"),
        ({"x": [image(0)], "y": [[1, 2]]}, "y is not one class from 0 to 61"),
        ({"x": [image(0)] * 2, "y": [0]}, "has no lists x and y of 1 samples"),
        ({"x": [], "y": []}, "has no lists x and y of 0 samples"),
        ({"y": [0]}, "has no lists x and y of 1 samples"),
    ],
)
def test_malformed_femnist_user(femnist, user, said):
    path = write(femnist, "train", {"f1": {"x": [image(0)], "y": [0]}, "f2": user})
    with pytest.raises(DataError) as caught:
        load_femnist(femnist)
    assert str(caught.value).startswith(f"{path}: user 'f2': {said}")
    assert "\n" not in str(caught.value)


WHOLE = {"users": ["f1"], "num_samples": [1], "user_data": {"f1": {"x": [image(0)], "y": [0]}}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps(WHOLE)[:-5], "not a whole JSON file"),
        ("[" * 100_000, "not a whole JSON file"),
        (b"\xff\xfe", "not a whole JSON file"),
        ("[]", "is no object with a member users"),
        (json.dumps({**WHOLE, "users": {}}), "users and num_samples are not lists"),
        (json.dumps({**WHOLE, "user_data": []}), "users and num_samples are not lists"),
        (json.dumps({**WHOLE, "users": ["f1", "f2"]}), "names 2 users but 1 numbers"),
        (json.dumps({**WHOLE, "users": ["f5"]}), "user 'f5': has no lists"),
        (json.dumps({**WHOLE, "users": [""]}), "user '' is not named"),
        (json.dumps({**WHOLE, "users": ["a\nb"]}), "is not named by printable text"),
        (json.dumps({**WHOLE, "num_samples": [2]}), "user 'f1': has no lists x and y of 2"),
        (json.dumps({"users": ["f1"], "num_samples": [1]}), "no object with a member user_data"),
    ],
)
def test_malformed_leaf_file(femnist, content, said):
    path = femnist / "data" / "train" / "all_data_0.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        load_femnist(femnist)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_users_that_do_not_match(femnist):
    write(femnist, "train", {"f3": {"x": [image(0)], "y": [0]}}, "again_0.json")
    with pytest.raises(DataError, match=r"all_data_1\.json: user 'f3': is there twice"):
        load_femnist(femnist)
    (femnist / "data" / "train" / "again_0.json").unlink()
    write(femnist, "test", {"f2": {"x": [image(0)], "y": [0]}})
    with pytest.raises(DataError, match="user 'f1' is in one of train and test only"):
        load_femnist(femnist)
    for path in (femnist / "data" / "test").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="test: holds no user"):
        load_femnist(femnist)


TEXT = "shall i compare thee to a summer's day? thou art more lovely and more temperate: rough winds"


@pytest.fixture
def shakespeare(tmp_path):
    folder = tmp_path / "shakespeare"
    for part, start in (("train", 0), ("test", 3)):
        users = {
            name: {"x": [TEXT[i : i + 80] for i in starts], "y": [TEXT[i + 80] for i in starts]}
            for name, starts in (("PLAY_ROMEO", range(start, start + 3)), ("PLAY_JULIET", range(start, start + 2)))
        }
        write(folder, part, users)
    return folder


def test_leaf_shakespeare(shakespeare):
    data = load("shakespeare", shakespeare.parent, seed=0)
    assert [(silo.name, len(silo.records), len(silo.holdout)) for silo in data.natural] == [
        ("PLAY_JULIET", 2, 2),
        ("PLAY_ROMEO", 3, 3),
    ]
    romeo = data.natural[1].records
    assert romeo.x.shape == (3, 80)
    symbols = LEAF_ALPHABET.symbols
    assert "".join(symbols[int(number)] for number in romeo.x[1]) == TEXT[1:81]
    assert "".join(symbols[label] for label in romeo.y) == TEXT[80:83]
    assert data.public_test is None
    assert (data.task.input_shape, data.task.classes, data.task.nominal_records) == ((80,), 80, 5)
    assert data.task.default_model == "char-lstm"
    assert "windows overlap" in data.task.note
    assert "Tiny" not in data.task.note


def test_leaf_alphabet_is_numbered_as_published():
    assert len(set(LEAF_ALPHABET.symbols)) == 80
    # From LEAF's own list: newline first, the blank second, closing brace last.
    assert LEAF_ALPHABET.numbers("\n !0AZ[az}").tolist() == [0, 1, 2, 11, 25, 50, 51, 53, 78, 79]
    assert LEAF_ALPHABET.numbers("|é\U0001f600\ud800").tolist() == [-1] * 4


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ({"x": [TEXT[:79]], "y": ["a"]}, "x is not a list of texts of 80 characters"),
        ({"x": [[0] * 80], "y": ["a"]}, "x is not a list of texts of 80 characters"),
        ({"x": [TEXT[:80]], "y": ["ab"]}, "y is not one character"),
        ({"x": [TEXT[:80]], "y": [3]}, "y is not one character"),
        ({"x": [TEXT[:79] + "é"], "y": ["a"]}, "a character is not among the 80 of LEAF"),
        ({"x": [TEXT[:80]], "y": ["\t"]}, "a character is not among the 80 of LEAF"),
        ({"x": [TEXT[:80]], "y": ["\ud800"]}, "a character is not among the 80 of LEAF"),
    ],
)
def test_malformed_leaf_shakespeare(shakespeare, user, said):
    path = write(shakespeare, "test", {"PLAY_ROMEO": user})
    with pytest.raises(DataError) as caught:
        load_shakespeare(shakespeare)
    assert str(caught.value).startswith(f"{path}: user 'PLAY_ROMEO': {said}")


def test_silos_share_the_memory_of_the_whole(femnist):
    data = load_femnist(femnist)
    assert all(np.shares_memory(data.train.x, silo.records.x) for silo in data.natural)
