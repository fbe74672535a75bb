from __future__ import annotations

import numpy as np
import pytest

from autoflip_secure.data.declaration import read_declaration
from autoflip_secure.data.federation_data import split_into_silos
from autoflip_secure.data.folder import read_own_records
from autoflip_secure.data.registry import load
from autoflip_secure.errors import ConfigError, DataError

DECLARATION = 'task = "classification"\nclasses = [0, 1]\nfeatures = 2\n'
RANGES = "minimum = [0, 50]\nmaximum = [100, 100]\n"


def read(folder):
    return load(f"folder:{folder}", None, seed=0)


def test_folder_of_silos(silo_folder):
    data = read(silo_folder)
    north, south = data.natural
    assert (north.name, south.name) == ("north", "south")
    assert north.records.x.tolist() == [[50, 70.5], [61, 0], [47, 88]]
    assert north.records.y.tolist() == [0, 1, 1]
    assert north.holdout.x.tolist() == [[33, 60]]
    assert south.records.x.tolist() == [[40, 0], [55, 90]]
    assert south.records.y.tolist() == [1, 0]
    assert south.holdout is None
    assert data.train is None
    assert data.public_test is None
    assert (data.task.kind, data.task.default_model, data.task.nominal_records) == ("binary", "mlp", None)


def test_public_ranges_scale_and_clip(silo_folder):
    (silo_folder / "dataset.toml").write_text(DECLARATION + RANGES + "records = 500\n")
    (silo_folder / "public_test.csv").write_text("age,label,weight\n0,0,50\n200,1,75\n,1,\n")
    data = read(silo_folder)
    assert data.public_test.x.tolist() == [[-1, -1], [1, 0], [0, 0]]
    assert data.task.nominal_records == 500


def test_text_classes_and_spreadsheet_labels(silo_folder):
    (silo_folder / "north" / "train.csv").write_text("age,label,weight\r\n50,1.0,7\r\n\r\n51,0.0,7\r\n")
    assert read(silo_folder).natural[0].records.y.tolist() == [1, 0]
    (silo_folder / "dataset.toml").write_text(DECLARATION.replace("[0, 1]", '["yes", "no"]'))
    (silo_folder / "north" / "train.csv").write_text("age,label,weight\n50,no,7\n")
    (silo_folder / "north" / "test.csv").unlink()
    np.savez(silo_folder / "south" / "train.npz", X=np.zeros((2, 2)), y=np.array(["yes", "no"]))
    north, south = read(silo_folder).natural
    assert north.records.y.tolist() == [1]
    assert south.records.y.tolist() == [0, 1]


def test_images_in_npz(silo_folder):
    for silo in ("north", "south"):
        for file in (silo_folder / silo).iterdir():
            file.unlink()
        np.savez(silo_folder / silo / "train.npz", X=np.full((3, 1, 8, 8), 255, np.uint8), y=np.array([0, 1, 1]))
    (silo_folder / "dataset.toml").write_text(
        DECLARATION.replace("features = 2", "features = 64\nshape = [1, 8, 8]\nminimum = 0\nmaximum = 255")
    )
    data = read(silo_folder)
    assert data.task.input_shape == (1, 8, 8)
    assert data.task.default_model == "cnn6"
    assert (data.natural[0].records.x == 1).all()


def test_a_silo_reads_its_own_folder(silo_folder):
    own = read_own_records(silo_folder / "north", read_declaration(silo_folder))
    assert np.array_equal(own.records.x, read(silo_folder).natural[0].records.x)


def test_hidden_folders_and_loose_files_are_no_silos(silo_folder):
    (silo_folder / ".git").mkdir()
    (silo_folder / "notes.txt").write_text("x")
    assert len(read(silo_folder).natural) == 2


def test_natural_silos_only_where_they_are(silo_folder, make_records):
    data = read(silo_folder)
    assert split_into_silos(data, None, None, seed=0) == data.natural
    assert split_into_silos(data, "natural", 2, seed=0) == data.natural
    with pytest.raises(ConfigError, match=r"--silos 10: .* has 2 natural silos"):
        split_into_silos(data, None, 10, seed=0)
    with pytest.raises(ConfigError, match=r"--partition iid: .*use --partition natural"):
        split_into_silos(data, "iid", 2, seed=0)
    with pytest.raises(ConfigError, match=r"--partition natural: digits does not come by silo"):
        split_into_silos(load("digits", None, 0), "natural", None, seed=0)
    pooled = split_into_silos(load("digits", None, 0), "iid", 12, seed=0)
    assert [silo.name for silo in pooled][:2] == ["silo-01", "silo-02"]
    assert sum(len(silo.records) for silo in pooled) == 1442


def replace(text, old, new):
    assert old in text
    return text.replace(old, new)


TABLE = "age,label,weight\n50,0,70.5\n61,1,\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "1:1: the file is empty"),
        ("age,label,weight\n", "2:1: there are no records"),
        (replace(TABLE, "label", "class"), "1: no column is named label"),
        (replace(TABLE, "age", "label"), "1:2: the column has the name of column 1"),
        (replace(TABLE, "age", ""), "1:1: the column has no name"),
        (replace(TABLE, "61,1,", "61,1"), "3:3: the line has 2 cells, not 3"),
        (replace(TABLE, "61,1,", "61,1,2,3"), "3:4: the line has 4 cells, not 3"),
        (replace(TABLE, "70.5", "seventy"), "2:3: column 'weight' does not hold a finite number"),
        (replace(TABLE, "70.5", "1_0"), "2:3: column 'weight' does not hold a finite number"),
        (replace(TABLE, "70.5", "nan"), "2:3: column 'weight' does not hold a finite number"),
        (replace(TABLE, "70.5", "1e39"), "2:3: column 'weight' does not hold a finite number"),
        (replace(TABLE, "61,1,", "61,2,"), "3:2: the label is not one of 0, 1"),
        (replace(TABLE, "61,1,", "61,,"), "3:2: the label is not one of 0, 1"),
        (replace(TABLE, "70.5", '"70.5'), "3: "),
        (TABLE.replace(",", ";"), "1: no column is named label"),
        ("age,label\n1,0\n", "1: there are 1 feature columns; dataset.toml says features = 2"),
        (b"age,label,weight\n50,0,\xff\n", "2: not UTF-8"),
    ],
)
def test_malformed_table(silo_folder, content, said):
    path = silo_folder / "north" / "train.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        read(silo_folder)
    assert str(caught.value).startswith(f"{path}:{said}")
    assert "\n" not in str(caught.value)


def test_errors_quote_no_cell(silo_folder):
    path = silo_folder / "north" / "train.csv"
    header = "age,label,weight\n"
    for content in (header + "SMITH,0,1", header + "1,SMITH,1", "SMITH,SMITH,1", "SMITH,0,1", header + "SMITH,1"):
        path.write_text(content)
        with pytest.raises(DataError) as caught:
            read(silo_folder)
        assert "SMITH" not in str(caught.value)


def test_silos_with_other_columns(silo_folder):
    (silo_folder / "south" / "train.npz").unlink()
    (silo_folder / "south" / "train.csv").write_text("weight,label,age\n1,0,1\n")
    with pytest.raises(DataError, match=r"south/train\.csv:1:1: the column is 'weight' where .*test\.csv|train\.csv"):
        read(silo_folder)
    (silo_folder / "dataset.toml").write_text(DECLARATION + 'columns = ["weight", "age"]\n')
    with pytest.raises(DataError, match=r"north/train\.csv:1:1: the column is 'age' where dataset\.toml has 'weight'"):
        read(silo_folder)


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (np.zeros((2, 3)), np.zeros(2, int), r"X is float64 of shape \(2, 3\)"),
        (np.array([["a", "b"]]), np.zeros(1, int), "X is <U1"),
        (np.zeros((2, 2)), np.zeros(3, int), "y has shape"),
        (np.zeros((2, 2)), np.array([0, 5]), r"y\[1\] is not one of 0, 1"),
        (np.zeros((2, 2)), np.array([0, np.nan]), r"y\[1\] is not one of 0, 1"),
        (np.zeros((2, 2)), np.array(["0", "1"]), r"y\[0\] is not one of 0, 1"),
        (np.array([[0, np.inf], [0, 0]]), np.zeros(2, int), r"X\[0, 1\] is not a finite number"),
    ],
)
def test_malformed_arrays(silo_folder, x, y, said):
    path = silo_folder / "south" / "train.npz"
    np.savez(path, X=x, y=y)
    with pytest.raises(DataError, match=said) as caught:
        read(silo_folder)
    assert str(caught.value).startswith(f"{path}: ")


def test_folder_layout_errors(silo_folder):
    with pytest.raises(DataError, match="no such folder"):
        read(silo_folder / "absent")
    (silo_folder / "east").mkdir()
    with pytest.raises(DataError, match=r"east: holds neither train\.csv nor train\.npz"):
        read(silo_folder)
    (silo_folder / "east").rmdir()
    (silo_folder / "south" / "train.csv").write_text(TABLE)
    with pytest.raises(DataError, match=r"south: holds both train\.csv and train\.npz; keep one"):
        read(silo_folder)


def test_no_silo_at_all(tmp_path):
    (tmp_path / "dataset.toml").write_text(DECLARATION)
    with pytest.raises(DataError, match="there is no silo"):
        read(tmp_path)


def test_missing_declaration_shows_the_three_lines(silo_folder):
    (silo_folder / "dataset.toml").unlink()
    with pytest.raises(DataError) as caught:
        read(silo_folder)
    for line in ('task = "classification"', "classes = [0, 1]", "features = 13"):
        assert line in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (DECLARATION + "features = 3\n", ":4:13: not TOML"),
        (DECLARATION + "minimum = [\n", ":5:1: not TOML|: not TOML"),
        (replace(DECLARATION, "features = 2\n", ""), ": features is missing"),
        (DECLARATION + "feature_names = 3\n", ":4: feature_names: unknown key"),
        (replace(DECLARATION, "classification", "regression"), ":1: task: only"),
        (replace(DECLARATION, "[0, 1]", "[0]"), ":2: classes: "),
        (replace(DECLARATION, "[0, 1]", "[0, 0]"), ":2: classes: "),
        (replace(DECLARATION, "[0, 1]", "[0, true]"), ":2: classes: "),
        (replace(DECLARATION, "[0, 1]", '["a", " b"]'), ":2: classes: "),
        (replace(DECLARATION, "= 2", "= 2.5"), ":3: features: "),
        (replace(DECLARATION, "= 2", "= 0"), ":3: features: "),
        (DECLARATION + "records = -1\n", ":4: records: "),
        (DECLARATION + "shape = [1, 2]\n", ":4: shape: "),
        (DECLARATION + 'columns = ["a"]\n', ":4: columns: "),
        (DECLARATION + "minimum = 0\n", ":4: minimum: give minimum and maximum"),
        (DECLARATION + "minimum = [0]\nmaximum = [1, 1]\n", ":4: minimum: not a finite number or a list of 2"),
        (DECLARATION + "minimum = [0, nan]\nmaximum = [1, 1]\n", ":4: minimum: not a finite"),
        (DECLARATION + f"minimum = [0, 1{400 * '0'}]\nmaximum = [1, 1]\n", ":4: minimum: not a finite"),
        (DECLARATION + "minimum = [0, 1]\nmaximum = [1, 1]\n", ":5: maximum: feature 2"),
    ],
)
def test_malformed_declaration(silo_folder, content, said):
    path = silo_folder / "dataset.toml"
    path.write_text(content)
    with pytest.raises(DataError, match=f"^{path}({said})") as caught:
        read(silo_folder)
    assert "\n" not in str(caught.value)
