"""Tables on disk: whole or absent, and a damaged one is said to be damaged."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undo_probe.errors import UndoProbeError
from undo_probe.parquet import read_table, write_table

TABLE = pd.DataFrame({"arm": ["UNDO", "é", None], "value": [0.5, np.nan, -1.0], "n": [1, 2, 3]})


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_table(TABLE.set_axis([7, 8, 9]), path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]
    pd.testing.assert_frame_equal(read_table(path, ["value", "arm"]), TABLE)


def test_a_missing_file_or_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(UndoProbeError, match=r"cannot read .*a.parquet: No such file"):
        read_table(tmp_path / "a.parquet")
    write_table(TABLE, tmp_path / "a.parquet")
    with pytest.raises(
        UndoProbeError, match=r"a.parquet has no column 'seed' \(it has arm, value, n\): it was"
    ):
        read_table(tmp_path / "a.parquet", ["n", "seed"])


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not Parquet at all", b"PAR1" + bytes(50) + b"PAR1"])
def test_something_else_is_no_table(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(
        UndoProbeError, match=r"a.parquet is not whole, valid Parquet: (.|\n)*restore it or remove it"
    ):
        read_table(tmp_path / "a.parquet")


@settings(max_examples=100, deadline=None)
@given(at=st.floats(0.2, 0.7), flip=st.integers(1, 255))
def test_a_changed_byte_never_changes_a_number(
    tmp_path_factory: pytest.TempPathFactory, at: float, flip: int
) -> None:
    """Pages bear checksums of what they hold; their headers, at either end of these bytes, have none."""
    path = tmp_path_factory.mktemp("table") / "a.parquet"
    table = pd.DataFrame({"value": np.arange(500) / 7})
    write_table(table, path)
    data = bytearray(path.read_bytes())
    pages = data.index(b"value", len(data) // 2)  # the first name in the footer: what is before are pages
    data[4 + int(at * (pages - 4))] ^= flip
    path.write_bytes(bytes(data))
    try:
        found = read_table(path)
    except UndoProbeError:
        return
    pd.testing.assert_frame_equal(found, table)


def test_a_write_that_fails_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    write_table(TABLE, path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(UndoProbeError, match="no space is left"):
        write_table(TABLE.head(1), path)
    pd.testing.assert_frame_equal(read_table(path), TABLE)
