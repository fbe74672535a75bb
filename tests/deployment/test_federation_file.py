"""FEDERATION.toml: what may stand in it, and that a mistake is named by file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoflip_secure.data.task import Task
from autoflip_secure.deployment.federation_file import declared, federation_task, read_federation_file
from autoflip_secure.errors import InputError
from tests.deployment.conftest import TASK, federation_text


def read(tmp_path: Path, text: str):
    path = tmp_path / "FEDERATION.toml"
    path.write_text(text)
    return read_federation_file(path)


def test_a_file_reads_as_it_is_written(tmp_path: Path) -> None:
    text = federation_text(hosts=("fl.example.org", "10.0.0.1"), port=9000, task=TASK + "records = 500\n")
    federation = read(tmp_path, text)
    assert federation.name == "cardiology"
    assert federation.coordinator.address == "fl.example.org:9000"
    assert federation.scoring == "held-back"
    declaration = declared(federation.declaration_text)
    task = federation_task(federation.name, declaration, federation.scoring)
    assert (task.name, task.input_shape, task.nominal_records) == ("folder:cardiology", (3,), 400)
    assert federation_task("cardiology", declaration, "own-test").nominal_records == 500
    assert Task.from_json(task.to_json()) == task


def test_an_address_of_six_words_is_bracketed(tmp_path: Path) -> None:
    assert read(tmp_path, federation_text(hosts=("2001:db8::1",))).coordinator.address == "[2001:db8::1]:8000"


def test_survival_and_patients_are_declared_as_in_a_folder_of_ones_own(tmp_path: Path) -> None:
    task = (
        'task = "survival"\nfeatures = 2\ncuts = [4.0]\nhazards = [0.03, 0.03]\npatient = "id"\npatients = 100\n'
        'scoring = "own-test"\n'
    )
    federation = read(tmp_path, federation_text(task=task))
    made = federation_task(federation.name, declared(federation.declaration_text), federation.scoring)
    assert (made.kind, made.unit, made.nominal_records) == ("survival", "patient", 100)


GOOD = federation_text()


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('name = "cardiology"\n', "", r"toml:1: name: is missing"),
        ('name = "cardiology"', 'name = "a b"', r"toml:1: name: .*a silo's name is|toml:1: name: "),
        ('name = "cardiology"', "name = 5", r"toml:1: name: "),
        ('"hospital-b", ', '"hospital-a", ', r"toml:2: silos: a silo is named twice"),
        ('"hospital-b", ', '"Hospital-A", ', r"toml:2: silos: a silo is named twice"),
        ('"hospital-b", "hospital-c", "hospital-d"', '"b"', r"toml:2: silos: "),
        ('"hospital-b", ', '"../b", ', r"toml:2: silos: "),
        ('["127.0.0.1"]', "[]", r"toml:5: coordinator\.hosts: "),
        ('["127.0.0.1"]', '["https://x"]', r"toml:5: coordinator\.hosts: .*neither a host name"),
        ('["127.0.0.1"]', '["0.0.0.0"]', r"toml:5: coordinator\.hosts: .*neither a host name"),
        ('["127.0.0.1"]', '["127.0.0.1.5"]', r"toml:5: coordinator\.hosts: .*neither a host name"),
        ('["127.0.0.1"]', '["::0001"]', r"toml:5: coordinator\.hosts: .*neither a host name"),
        ('["127.0.0.1"]', '["A.example.org"]', r"toml:5: coordinator\.hosts: .*neither a host name"),
        ('["127.0.0.1"]', '["127.0.0.1", "127.0.0.1"]', r"toml:5: coordinator\.hosts: a host is named twice"),
        ("port = 8000", "port = 0", r"toml:6: coordinator\.port: "),
        ("port = 8000", "port = 70000", r"toml:6: coordinator\.port: "),
        ("port = 8000", "prot = 8000", r"toml:6: coordinator\.prot: unknown key"),
        ("features = 3\n", "", r"features is missing"),
        ("features = 3", "features = -3", r"toml:11: features: not a positive"),
        ("features = 3", "feathers = 3", r"toml:11: feathers: unknown key"),
        ("features = 3", 'features = 3\nscoring = "maybe"', r"toml:12: scoring: not one of"),
        ("features = 3", 'features = 3\nscoring = "public"', r"toml:12: scoring = .* belong"),
        ("features = 3", 'features = 3\npublic_test = "x.csv"\nscoring = "held-back"', r"toml:12: .* belong"),
        ("features = 3", 'features = 3\npublic_test = "x.exe"', r"toml:12: public_test: name a"),
        ("features = 3", "features = ", r"toml:11:\d+: not TOML"),
        ("[task]", "[tusk]", r"toml:\d+: task: is missing|toml:8: tusk: unknown key"),
        ("[coordinator]", "validity_days = 0\n[coordinator]", r"toml:4: validity_days: "),
    ],
)
def test_a_mistake_is_named_by_file_line_and_key(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError, match=complaint):
        read(tmp_path, GOOD.replace(old, new, 1))


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_federation_file(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        read_federation_file(tmp_path / "binary.toml")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_changed_file_is_read_or_refused_and_never_crashes(tmp_path_factory, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(GOOD)))
    cut = data.draw(st.integers(0, 5))
    put = data.draw(st.text(st.characters(codec="utf-8"), max_size=4))
    path = tmp_path_factory.mktemp("f") / "FEDERATION.toml"
    path.write_text(GOOD[:place] + put + GOOD[place + cut :])
    try:
        federation = read_federation_file(path)
    except InputError:
        return
    federation_task(federation.name, declared(federation.declaration_text), federation.scoring)
