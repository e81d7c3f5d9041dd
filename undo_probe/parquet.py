"""Tables on disk: written whole or not at all, and read with words for what is wrong with them."""

import os
from collections.abc import Collection
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from undo_probe.errors import UndoProbeError
from undo_probe.files import DAMAGED, atomic_file, reading

if TYPE_CHECKING:
    import pandas as pd


def write_table(table: "pd.DataFrame", path: str | os.PathLike[str]) -> None:
    """Writes a table as Parquet, without its index.

    Raises:
        UndoProbeError: it cannot be written there.
    """
    with atomic_file(path) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd", write_page_checksum=True)


def read_table(path: str | os.PathLike[str], columns: Collection[str] = ()) -> "pd.DataFrame":
    """Reads what :func:`write_table` wrote.

    Args:
        path: of the file.
        columns: those that it must have; it may have others.

    Raises:
        UndoProbeError: the file is missing, damaged, or lacks a column.
    """
    import pandas as pd

    with reading(path):
        data = Path(path).read_bytes()
    try:
        table = pd.read_parquet(BytesIO(data), page_checksum_verification=True)
    except Exception as error:  # a damaged file ends in errors of any kind
        raise UndoProbeError(f"{path} is not whole, valid Parquet: {error}{DAMAGED}") from error
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise UndoProbeError(
            f"{path} has no column {missing[0]!r} (it has {', '.join(map(str, table.columns))}): it was written by "
            "something else or by another version"
        )
    return table
