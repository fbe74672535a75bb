from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoflip_secure.data.characters import WINDOW, windows
from autoflip_secure.data.plays import TINY_ALPHABET, read_speakers
from autoflip_secure.data.registry import load
from autoflip_secure.data.shakespeare import FEWEST_CHARACTERS, TEST_STRIDE, TRAIN_STRIDE, load_shakespeare
from autoflip_secure.errors import DataError


def spelled(numbers):
    return "".join(TINY_ALPHABET.symbols[int(number)] for number in numbers)


def saying(word, characters):
    """A speech of so many characters, the newline of its last line included, in which no two windows are equal."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = (f"{word} {''.join(parts)} " for parts in itertools.product(letters, repeat=3))
    text = ""
    while len(text) < characters:
        text += next(words)
    return text[: characters - 1] + "\n"


@pytest.fixture
def play(tmp_path):
    folder = tmp_path / "tiny-shakespeare"
    folder.mkdir()
    # Romeo says just enough: the halves get a newline between them.
    romeo, juliet = saying("love", FEWEST_CHARACTERS - 1), saying("night", 3000)
    halves = romeo[:1000], romeo[1000:]
    (folder / "input.txt").write_text(
        f"ROMEO:\n{halves[0]}\n\nServant:\nMy lord:\nwhat now?\n\nJULIET:\n{juliet}\nAll:\n\nROMEO:\n{halves[1]}"
    )
    return folder


def test_speeches_are_put_together_by_speaker(play):
    said = read_speakers(play / "input.txt")
    assert list(said) == ["ROMEO", "Servant", "JULIET"]
    assert said["Servant"] == "My lord:\nwhat now?\n"
    romeo = saying("love", FEWEST_CHARACTERS - 1)
    assert said["ROMEO"] == romeo[:1000] + "\n" + romeo[1000:]


def test_speakers_with_enough_text_are_silos(play):
    data = load("shakespeare", play.parent, seed=0)
    assert [silo.name for silo in data.natural] == ["ROMEO", "JULIET"]
    assert all(silo.holdout is None for silo in data.natural)
    assert len(data.train) == data.task.nominal_records == sum(len(silo.records) for silo in data.natural)
    assert data.task.classes == len(TINY_ALPHABET.symbols) == 65
    assert data.task.class_names[:2] == ("newline", "space")
    assert "not LEAF's" in data.task.note


def test_the_last_fifth_is_scored_and_shares_no_character_with_training(play):
    data = load_shakespeare(play)
    text = read_speakers(play / "input.txt")["JULIET"]
    cut = round(len(text) * 0.8)
    juliet = data.natural[1].records
    assert len(juliet) == -(-(cut - WINDOW) // TRAIN_STRIDE)
    trained = [spelled(x) + spelled([y]) for x, y in zip(juliet.x, juliet.y, strict=True)]
    assert trained == [text[i : i + WINDOW + 1] for i in range(0, cut - WINDOW, TRAIN_STRIDE)]
    tested = [spelled(x) + spelled([y]) for x, y in zip(data.public_test.x, data.public_test.y, strict=True)]
    assert tested[-len(range(cut, len(text) - WINDOW, TEST_STRIDE)) :] == [
        text[i : i + WINDOW + 1] for i in range(cut, len(text) - WINDOW, TEST_STRIDE)
    ]
    assert not any(window in text[:cut] for window in tested)


@given(st.integers(0, 400), st.integers(1, 90))
def test_windows_tell_every_next_character_once(length, stride):
    numbers = np.arange(length)
    found = windows(numbers, stride)
    if length <= WINDOW:
        assert found is None
        return
    assert found.y.tolist() == list(range(WINDOW, length, stride))
    assert np.array_equal(found.x[:, -1], found.y - 1)
    assert np.array_equal(found.x[:, 0], found.y - WINDOW)


@pytest.mark.parametrize(
    ("change", "place", "said"),
    [
        (lambda text: text.replace("My lord", "My l\u00f6rd"), ":5:5: ", "Tiny Shakespeare does not have"),
        (lambda text: text.replace("My lord", "My\tlord"), ":5:3: ", "Tiny Shakespeare does not have"),
        (lambda text: text.replace("Servant:", "Servant"), ":4: ", "without its speaker's name"),
        (lambda text: text.replace("Servant:", ":"), ":4: ", "without its speaker's name"),
        (lambda text: "ROMEO:\nLove.\n", ": ", "no speaker says 2,000 characters"),
        (lambda text: "", ": ", "no speaker says 2,000 characters"),
    ],
)
def test_malformed_play(play, change, place, said):
    path = play / "input.txt"
    path.write_text(change(path.read_text()), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_shakespeare(play)
    assert str(caught.value).startswith(f"{path}{place}")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tiny_shakespeare(shared_data):
    data = load("shakespeare", shared_data, seed=0)
    assert len(data.natural) == 99
    assert 70_000 < len(data.train) < 75_000
    assert 4_000 < len(data.public_test) < 5_000
    # Every character of the alphabet occurs, and none outside it does.
    assert set(np.unique(data.train.x)) | set(np.unique(data.train.y)) <= set(range(65))
    romeo = next(silo.records for silo in data.natural if silo.name == "ROMEO")
    assert len(np.unique(romeo.x, axis=0)) == len(romeo)
