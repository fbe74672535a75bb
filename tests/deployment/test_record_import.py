"""`silo data`: a silo's tables become its records, whole or not at all, and malformed ones are named by place."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest

from autoflip_secure.data.silo_folder import read_silo
from autoflip_secure.data.task import Task
from autoflip_secure.deployment.record_import import import_records
from autoflip_secure.errors import DataError, InputError
from tests.deployment.conftest import TASK, federation_text, write_table
from tests.deployment.test_homes import every_kill


@pytest.fixture
def make_silo(make_parties):
    def make(task: str = TASK, name: str = "federation"):
        federation = make_parties(name, enrolled=4, text=federation_text(task=task))
        federation.install()
        return federation.silos["hospital-a"]

    return make


def test_a_fifth_is_held_back_by_the_records_themselves(make_silo, tmp_path: Path) -> None:
    home, table = make_silo(), write_table(tmp_path / "own", 200)
    made = import_records(home, table)
    assert made.train + made.holdout == 200
    assert 20 < made.holdout < 65
    assert made.patients is None
    data = read_silo(home.data, Task.from_json(home.installed().task))
    assert len(data.train) == made.train
    assert stat.S_IMODE(home.data.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in home.data.iterdir()} == {0o600}
    # One record more leaves all others in their part.
    with open(table / "train.csv", "a") as file:
        file.write("9,9,9,1\n")
    import_records(home, table, replace=True)
    after = read_silo(home.data)
    old, new = ({row.tobytes() for row in part.x} for part in (data.train, after.train))
    assert old <= new
    assert len(new - old) <= 1


def test_own_test_records_are_kept_as_they_are(make_silo, tmp_path: Path) -> None:
    home, table = make_silo(), write_table(tmp_path / "own", 50)
    write_table(tmp_path / "test", 10, seed=1)
    (tmp_path / "test" / "train.csv").rename(table / "test.csv")
    made = import_records(home, table)
    assert (made.train, made.holdout) == (50, 10)


def test_a_federation_that_scores_on_own_tests_needs_them(make_silo, tmp_path: Path) -> None:
    home, table = make_silo(TASK + 'scoring = "own-test"\n'), write_table(tmp_path / "own", 50)
    with pytest.raises(DataError, match=r"neither test\.csv nor test\.npz"):
        import_records(home, table)
    assert not home.data.exists()


def test_where_public_records_are_scored_nothing_is_held_back(make_silo, tmp_path: Path) -> None:
    write_table(tmp_path / "public", 20)
    path = tmp_path / "public" / "train.csv"
    home = make_silo(TASK + f'public_test = "{path}"\n')
    table = write_table(tmp_path / "own", 50)
    made = import_records(home, table)
    assert (made.train, made.holdout) == (50, 0)
    assert read_silo(home.data).holdout is None
    (table / "test.csv").write_text((table / "train.csv").read_text())
    with pytest.raises(DataError, match="scores on public ones"):
        import_records(home, table, replace=True)


def test_patients_are_counted_and_stay_in_one_part(make_silo, tmp_path: Path) -> None:
    home = make_silo(TASK + 'patient = "id"\n')
    (tmp_path / "own").mkdir()
    rows = [f"p{i // 2},{i % 7},{i % 5},{i % 3},{i % 2}" for i in range(100)]
    (tmp_path / "own" / "train.csv").write_text("id,a,b,c,label\n" + "\n".join(rows) + "\n")
    made = import_records(home, tmp_path / "own")
    assert made.patients == 50
    data = read_silo(home.data, Task.from_json(home.installed().task))
    assert not set(data.train.group) & set(data.holdout.group)


def test_arrays_are_read_too(make_silo, tmp_path: Path) -> None:
    home = make_silo()
    (tmp_path / "own").mkdir()
    x = np.random.default_rng(0).normal(size=(50, 3))
    np.savez(tmp_path / "own" / "train.npz", X=x, y=np.arange(50) % 2)
    assert import_records(home, tmp_path / "own").train > 0


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("1,2,x,1", r"train\.csv:62:3: column 'c' does not hold a finite number"),
        ("1,2,3,7", r"train\.csv:62:4: the label is not one of"),
        ("1,2,3", r"train\.csv:62:4: the line has 3 cells"),
        ("1,2,3,1,1", r"train\.csv:62:5: the line has 5 cells"),
        ('"1,2,3,1', r"train\.csv:62"),
        ("1,2,inf,1", r"train\.csv:62:3"),
    ],
)
def test_a_malformed_table_is_named_by_file_line_and_column_and_nothing_is_kept(
    make_silo, tmp_path: Path, line: str, complaint: str
) -> None:
    home, table = make_silo(), write_table(tmp_path / "own")
    with open(table / "train.csv", "a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=complaint):
        import_records(home, table)
    assert not home.data.exists()


def test_a_folder_without_tables_is_named(make_silo, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    home = make_silo()
    for folder, complaint in (("empty", "holds neither"), ("none", "no such folder")):
        with pytest.raises(DataError, match=complaint):
            import_records(home, tmp_path / folder)


def test_records_come_after_the_bundle(make_parties, tmp_path: Path) -> None:
    home = make_parties(enrolled=4).silos["hospital-a"]
    with pytest.raises(InputError, match="no bundle is installed"):
        import_records(home, write_table(tmp_path / "own"))


def test_other_records_take_their_place_only_on_demand_and_never_half(make_silo, tmp_path: Path, monkeypatch) -> None:
    home = make_silo()
    first, second = write_table(tmp_path / "one", 50), write_table(tmp_path / "two", 80, seed=1)
    before = import_records(home, first)
    with pytest.raises(InputError, match=r"give --replace.*stays spent"):
        import_records(home, second)
    sizes = set()

    def check() -> None:
        home.require_whole()
        data = read_silo(home.data)
        sizes.add((len(data.train), len(data.holdout)))

    every_kill(lambda: import_records(home, second, replace=True), check, monkeypatch)
    last = import_records(home, second, replace=True)
    assert last.replaced
    assert sizes == {(before.train, before.holdout), (last.train, last.holdout)}
    assert not [path.name for path in home.path.iterdir() if path.name.startswith(".data")]


def test_a_malformed_second_import_keeps_the_first(make_silo, tmp_path: Path) -> None:
    home = make_silo()
    table = write_table(tmp_path / "one", 50)
    import_records(home, table)
    before = (home.data / "train.npz").read_bytes()
    (table / "train.csv").write_text("a,b,c,label\n1,2,3,9\n")
    with pytest.raises(DataError):
        import_records(home, table, replace=True)
    assert (home.data / "train.npz").read_bytes() == before
