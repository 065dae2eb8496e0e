"""One training example, and the files that hold many.

An *instance* is a dict with `instruction`, `input` (may be empty) and
`output`, and beside them whatever says where it came from (`source`,
`licence`, ...). Files hold one JSON object a line.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

FIELDS = ("instruction", "input", "output")


class BadRows(ValueError):
    """A file with unusable lines; `problems` names each of them."""

    def __init__(self, path, problems: list[str]):
        self.problems = problems
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


def read_rows(path: str | Path) -> list[dict]:
    """Read a JSONL file: n lines in, n dicts out.

    A byte order mark, CRLF line ends and blank lines are fine. Raises
    BadRows naming file, line, what and remedy for every unusable line;
    FileNotFoundError where there is no such file.
    """
    return _read(path, lambda row: [])


def read_instances(path: str | Path) -> list[dict]:
    """Read a JSONL file of instances and check each of them.

    Raises BadRows naming file, line, what and remedy for every unusable
    one; FileNotFoundError where there is no such file.
    """
    return _read(path, problems_of)


def _read(path: str | Path, check: Callable[[dict], list[str]]) -> list[dict]:
    rows, problems = [], []
    data = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf")
    # only the newline byte ends a line: U+2028 may stand inside a string
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"), parse_constant=_no_json)
        except UnicodeDecodeError as error:
            said = [f"byte {error.start} is not UTF-8; save the file as UTF-8"]
        except (ValueError, RecursionError) as error:
            said = [f"not JSON ({error}); write one whole JSON object here"]
        else:
            said = check(row) if isinstance(row, dict) else []
            if not isinstance(row, dict):
                kind = type(row).__name__
                said = [
                    f"a {kind}, not an object; write "
                    '{"field": ...} or delete the line'
                ]
        if said:
            problems += [f"{path}:{number}: {problem}" for problem in said]
        else:
            rows.append(row)
    if problems:
        raise BadRows(path, problems)
    return rows


def _no_json(name: str):
    raise ValueError(f"{name} is no JSON number")


def write_rows(path: str | Path, rows: Iterable[dict]) -> int:
    """Write rows as JSONL, whole or not at all; return how many.

    The file is written aside and renamed: a kill leaves the old one.
    Raises ValueError naming the row that JSON cannot hold (NaN, infinity,
    a lone surrogate), TypeError for an object that is no JSON.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    count = 0
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                try:
                    line = json.dumps(row, ensure_ascii=False, allow_nan=False)
                    line.encode("utf-8")
                except ValueError as error:
                    raise ValueError(
                        f"{path}: row {count + 1}: {error}; mend its text, "
                        "or write null for a number that is none"
                    ) from None
                file.write(line + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    return count
