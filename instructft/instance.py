"""One training example, and the files that hold many.

An *instance* is a dict with `instruction`, `input` (may be empty) and
`output`, and beside them whatever says where it came from (`source`,
`licence`, ...). Files hold one JSON object a line.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

FIELDS = ("instruction", "input", "output")
LONGEST_LINE = 16 * 2**20  # bytes; more is no row but a lost line end


class BadRows(ValueError):
    """A file with unusable lines; `problems` names each of them.

    `rows` holds the good ones: nothing is lost for one bad line.
    """

    def __init__(self, path, problems: list[str], rows: Sequence[dict] = ()):
        self.problems, self.rows = problems, list(rows)
        more = f"\n... and {len(problems) - 20} more" * (len(problems) > 20)
        super().__init__(
            f"{path}: {len(problems)} unusable lines\n"
            + "\n".join(problems[:20])
            + more
        )


def instance(
    instruction: str, input: str = "", output: str = "", **provenance: object
) -> dict:
    """Make one instance and check it.

    >>> instance("Name a colour.", output="Blue")
    {'instruction': 'Name a colour.', 'input': '', 'output': 'Blue'}

    Raises ValueError with every problem, each with its remedy.
    """
    made = {
        "instruction": instruction,
        "input": input,
        "output": output,
        **provenance,
    }
    if problems := problems_of(made):
        raise ValueError("; ".join(problems))
    return made


def problems_of(row: object) -> list[str]:
    """Say what is wrong with an instance, one remedy each.

    >>> problems_of({"instruction": "Add.", "input": "1+1", "output": ""})
    ['output is empty: write the expected answer']
    >>> problems_of({"instruction": "Add.", "input": "1+1", "output": "2"})
    []
    """
    if not isinstance(row, dict):
        kind = type(row).__name__
        return [f"a row is a {kind}: write a JSON object with {FIELDS}"]
    said = []
    for field in FIELDS:
        if field not in row:
            said.append(f"{field} is missing: add it ('' if it is empty)")
        elif not isinstance(row[field], str):
            kind = type(row[field]).__name__
            said.append(f"{field} is {kind}: write a string")
    if said:
        return said
    if not row["instruction"].strip():
        said.append("instruction is empty: say what to do")
    if not row["output"].strip():
        said.append("output is empty: write the expected answer")
    elif row["output"].strip() == row["input"].strip():
        said.append("output equals input: write what should change")
    return said


def read_rows(
    path: str | Path, check: Callable[[dict], list[str]] = lambda row: []
) -> list[dict]:
    """Read a JSONL file: n lines in, n dicts out.

    A byte order mark, CRLF line ends and blank lines are fine. `check`
    says what is wrong with a row, with its remedy. Raises BadRows naming
    file, line, what and remedy for every unusable line; FileNotFoundError
    where there is no such file.
    """
    rows, problems = [], []
    for row, said in _lines(path, check):
        if said:
            problems += said
        else:
            rows.append(row)
    if problems:
        raise BadRows(path, problems, rows)
    return rows


def read_instances(path: str | Path) -> list[dict]:
    """Read a JSONL file of instances and check each of them.

    Raises BadRows naming file, line, what and remedy for every unusable
    one, a second row with the same three fields among them;
    FileNotFoundError where there is no such file.
    """
    seen: set[tuple] = set()

    def check(row: dict) -> list[str]:
        if said := problems_of(row):
            return said
        key = tuple(row[field] for field in FIELDS)
        if key in seen:
            return ["the same as a row before; delete one of the two"]
        seen.add(key)
        return []

    return read_rows(path, check)


def stream_rows(path: str | Path) -> Iterator[dict]:
    """Yield the rows of a JSONL file one by one, however long it is.

    Raises BadRows at the first unusable line.
    """
    for row, problems in _lines(path, lambda row: []):
        if problems:
            raise BadRows(path, problems)
        yield row


def _lines(path, check) -> Iterator[tuple[dict, list[str]]]:
    """Yield (row, problems) of each line that is not blank."""
    number = 0
    # only the newline byte ends a line: U+2028 may stand inside a string
    with open(path, "rb") as file:
        while line := file.readline(LONGEST_LINE):
            number += 1
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            row, said = {}, []
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = file.readline(LONGEST_LINE)
                size = LONGEST_LINE >> 20
                said = [f"longer than {size} MB; write one row a line"]
            elif line.strip():
                row, said = parse_line(line, check)
            else:
                continue
            yield row, [f"{path}:{number}: {what}" for what in said]


def parse_line(
    line: bytes, check: Callable[[dict], list[str]] = lambda row: []
) -> tuple[dict, list[str]]:
    """Read one line of a JSONL file: its row, and what is wrong with it.

    `check` is asked for more that may be wrong. The row is empty if the
    line is no JSON object.

    >>> parse_line(b'{"a": NaN}')[1][0][:27]
    'not JSON (NaN is no JSON nu'
    """
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_no_json)
    except UnicodeDecodeError as error:
        return {}, [f"byte {error.start} is not UTF-8; save the file as UTF-8"]
    except (ValueError, RecursionError) as error:
        return {}, [f"not JSON ({error}); write one whole JSON object here"]
    if not isinstance(row, dict):
        kind = type(row).__name__
        return {}, [
            f"a {kind}, not an object; write "
            '{"field": ...} or delete the line'
        ]
    return row, check(row)


def _no_json(name: str):
    raise ValueError(f"{name} is no JSON number")


def write_rows(path: str | Path, rows: Iterable[dict]) -> int:
    """Write rows as JSONL, whole or not at all; return how many.

    The file is written aside and renamed: a kill leaves the old one.
    Raises ValueError naming the row that JSON cannot hold (NaN, infinity,
    a lone surrogate), TypeError for an object that is no JSON.
    """
    path, count = Path(path), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        for row in rows:
            file.write(_line(row, f"{path}: row {count + 1}"))
            count += 1
    return count


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file to be written, whole or not at all.

    It is written aside, and takes its place when the context is left.
    """
    path = Path(path)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def append_row(path: str | Path, row: dict) -> None:
    """Put one row at the end of a JSONL file, on the disk before it returns.

    Makes the file if there is none. A last line that a kill has cut stays
    as it is, and the row starts on a line of its own. Raises as write_rows.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = _line(row, f"{path}: the new row")
    with open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _line(row: dict, where: str) -> bytes:
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8") + b"\n"
    except ValueError as error:
        raise ValueError(
            f"{where}: {error}; mend its text, or write null for a number "
            "that is none"
        ) from None
