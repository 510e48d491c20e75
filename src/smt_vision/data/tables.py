"""Tables in files: CSV, TSV, Parquet and JSON lines, row by row, in bounded memory."""

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ..bounds import short
from ..extras import require

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl")
MAX_BYTES = 1 << 31  # of a file
MAX_LINE = 1 << 20  # characters
MAX_CELL = 1 << 17  # characters, the limit of Python's csv too
MAX_COLUMNS = 100_000
MAX_ROWS_PER_BYTE = 16  # of a Parquet file: no two rows are equal
BATCH_ROWS = 1024  # of a Parquet file in memory at once

Cell = str | list[str]
Rows = Iterator[tuple[str, Mapping[int, Cell]]]


class Table(NamedTuple):
    """A file's column names and rows.

    Args:
        header: Column names.
        rows: A function that reads the given columns: where each row is, e.g. ``line 7``, and its cells by column.
    """

    header: list[str]
    rows: Callable[[Sequence[int]], Rows]


def open_table(path: Path) -> Table:
    """Open a table.

    Raises:
        ValueError: The file is too large, is not of the format that its suffix says, or its header is invalid. Reading
            the rows may raise it as well.
        ImportError: It is a Parquet file, and pyarrow is not installed.
    """
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path}: {size} bytes; expected a file of at most {MAX_BYTES} bytes")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        table = _open_parquet(path)
    else:
        lines = _lines(path)
        table = _open_json_lines(path, lines) if suffix == ".jsonl" else _open_csv(path, lines, suffix)
    if len(table.header) > MAX_COLUMNS:
        raise ValueError(f"{path}: {len(table.header)} columns; expected at most {MAX_COLUMNS}")
    return table


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text in UTF-8, with their ends, of bounded length."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        number = 0
        try:
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise ValueError(f"{path}: line {number} has more than {MAX_LINE} characters")
                yield line
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: line {_undecodable(path)}: not text in UTF-8 ({error.reason}); save the file as "
                             "UTF-8 (in Excel: CSV UTF-8)") from error  # fmt: skip


def _undecodable(path: Path) -> int:
    """Number of the first line that is not UTF-8."""
    number = 0
    with open(path, "rb") as file:
        while line := file.readline(4 * MAX_LINE):
            number += 1
            try:
                line.decode()
            except UnicodeDecodeError:
                break
    return number


def _open_csv(path: Path, lines: Iterator[str], suffix: str) -> Table:
    first = next(lines, "")
    delimiter = "\t" if suffix == ".tsv" else ","
    if suffix == ".csv" and "," not in first:  # some programs write semicolons or tabs
        delimiter = ";" if ";" in first else "\t" if "\t" in first else ","
    # Strict: quotes in the wrong place are an error.
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)

    def read() -> Iterator[tuple[str, list[str]]]:
        while True:
            row = f"line {reader.line_num + 1}"
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise ValueError(
                    f'{path}: {row}: {error}; expected cells separated by {delimiter!r}, and quoted by " where they '
                    "contain it"
                ) from error
            if cells is None:
                return
            if any(map(str.strip, cells)):
                yield row, cells

    content = read()
    header = [cell.strip() for cell in next(content, ("", []))[1]]

    def rows(used: Sequence[int]) -> Rows:
        for row, cells in content:
            if len(cells) != len(header):
                raise ValueError(
                    f"{path}: {row} has {len(cells)} cells, the header has {len(header)}; quote cells that contain "
                    f"{delimiter!r}"
                )
            yield row, {i: cells[i] for i in used}

    return Table(header, rows)


def _open_json_lines(path: Path, lines: Iterator[str]) -> Table:
    def read() -> Iterator[tuple[str, dict[str, Any]]]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}: line {number}: invalid JSON ({error})") from error
            if not isinstance(content, dict):
                raise ValueError(
                    f"{path}: line {number}: found {short(content)}; expected an object, e.g. "
                    '{"file_name": "1.jpg", "label": "cat"}'
                )
            yield f"line {number}", content

    keys: dict[str, None] = {}
    for _, content in read():  # a key may be in some lines only, e.g. "split" in those of validation images
        keys.update(dict.fromkeys(content))
        if len(keys) > MAX_COLUMNS:
            break
    header, lines = list(keys), _lines(path)

    def rows(used: Sequence[int]) -> Rows:
        for row, content in read():
            if missing := [header[i] for i in used if header[i] not in content]:
                raise ValueError(f"{path}: {row} lacks {missing[0]!r}, which other lines have; use null for no value")
            yield row, {i: _cell(content[header[i]], f"{path}: {row}", header[i]) for i in used}

    return Table(header, rows)


def _open_parquet(path: Path) -> Table:
    parquet, arrow = require("pyarrow.parquet", "data"), require("pyarrow", "data")
    failures = (arrow.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError, NotImplementedError)

    def damaged(error: Exception) -> ValueError:
        return ValueError(f"{path}: not a Parquet file that can be read ({error}); write it again")

    try:
        schema = parquet.read_schema(path)
        header = list(schema.names)
        # As dictionaries, repeated texts take memory once.
        texts = [f.name for f in schema if arrow.types.is_string(f.type) or arrow.types.is_large_string(f.type)]
        file = parquet.ParquetFile(path, read_dictionary=texts)
        count = file.metadata.num_rows
    except failures as error:
        raise damaged(error) from error
    if not 0 <= count <= MAX_ROWS_PER_BYTE * path.stat().st_size:
        raise ValueError(f"{path}: {count} rows in {path.stat().st_size} bytes; write it again")

    def rows(used: Sequence[int]) -> Rows:
        number = 0
        names = [header[i] for i in used]
        try:
            for batch in file.iter_batches(BATCH_ROWS, columns=names, use_threads=False):
                columns = [batch.column(name) for name in names]
                for name, column in zip(names, columns, strict=True):
                    _check_texts(column, arrow, f"{path}: column {name!r}")
                for values in zip(*(column.to_pylist() for column in columns), strict=True):
                    number += 1
                    where = f"{path}: row {number}"
                    yield (
                        f"row {number}",
                        {i: _cell(value, where, header[i]) for i, value in zip(used, values, strict=True)},
                    )
        except failures as error:
            raise error if str(path) in str(error) else damaged(error) from error
        finally:
            file.close()

    return Table(header, rows)


def _check_texts(column: Any, arrow: Any, where: str) -> None:
    values = column.dictionary if arrow.types.is_dictionary(column.type) else column
    if arrow.types.is_string(values.type) and len(values):
        import pyarrow.compute as compute

        longest = compute.max(compute.binary_length(values)).as_py() or 0
        if longest > MAX_CELL:
            raise ValueError(f"{where}: a text of {longest} bytes; expected at most {MAX_CELL}")


def _cell(value: Any, where: str, name: str) -> Cell:
    """A value of JSON or Parquet as the text that CSV would have; a list stays one."""
    if isinstance(value, list):
        inner = [_cell(item, where, name) for item in value]
        if all(isinstance(item, str) for item in inner):
            return [str(item) for item in inner]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool | int | float | str):
        text = str(value)
        if len(text) <= MAX_CELL:
            return text
    raise ValueError(f"{where}: {short(value)} in column {name!r}; expected text, a number or a list of texts")
