"""Instances and their files: what is read, what is refused, and how."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructft.instance import (
    BadRows,
    append_row,
    instance,
    problems_of,
    read_instances,
    read_rows,
    stream_rows,
    write_rows,
)

GOOD = {"instruction": "Add.", "input": "1+1", "output": "2"}
LINE = json.dumps(GOOD).encode()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.jsonl"


def faults(path, content, read=read_rows):
    """Read a file that must be refused; return what is said of each line."""
    path.write_bytes(content)
    with pytest.raises(BadRows) as caught:
        read(path)
    said = caught.value.problems
    assert all(problem in str(caught.value) for problem in said[:20])
    return said


# --- one instance ---------------------------------------------------------


def test_instance_keeps_where_it_came_from():
    made = instance("Add.", "1+1", "2", source="us", licence="CC0-1.0")
    assert made == GOOD | {"source": "us", "licence": "CC0-1.0"}
    assert list(made)[:3] == ["instruction", "input", "output"]


def test_instance_says_every_problem_at_once():
    with pytest.raises(ValueError) as caught:
        instance(" ", output="")
    assert "instruction is empty: say what to do" in str(caught.value)
    assert "output is empty: write the expected" in str(caught.value)


@pytest.mark.parametrize(
    "row, problem",
    [
        (None, "a row is a NoneType: write a JSON object"),
        ([GOOD], "a row is a list: write a JSON object"),
        ({"input": "", "output": "x"}, "instruction is missing: add it"),
        (GOOD | {"input": None}, "input is NoneType: write a string"),
        (GOOD | {"output": 2}, "output is int: write a string"),
        (GOOD | {"instruction": ["x"]}, "instruction is list: write a str"),
        (GOOD | {"instruction": "\n\t "}, "instruction is empty: say"),
        (GOOD | {"output": "\u2003"}, "output is empty: write the"),
        (GOOD | {"output": " 1+1\n"}, "output equals input: write what"),
    ],
)
def test_problem_and_remedy(row, problem):
    [said] = problems_of(row)
    assert said.startswith(problem)


@pytest.mark.parametrize(
    "row",
    [
        GOOD,
        GOOD | {"input": ""},
        GOOD | {"extra": None},
        GOOD | {"output": "\u200b"},  # seen by no one, yet a character
    ],
)
def test_sound_instances(row):
    assert problems_of(row) == []


# --- reading --------------------------------------------------------------


@pytest.mark.parametrize(
    "content, count",
    [
        (b"", 0),
        (b"\n\r\n \n\t\n", 0),
        (LINE, 1),
        (LINE + b"\n", 1),
        (b"\xef\xbb\xbf" + LINE, 1),
        (b"\xef\xbb\xbf", 0),
        (LINE + b"\r\n" + LINE + b"\r\n", 2),
        (LINE + b"\n\n\n" + LINE, 2),
        (b"  " + LINE + b" \n", 1),
    ],
)
def test_fine_files(path, content, count):
    path.write_bytes(content)
    assert read_rows(path) == [GOOD] * count
    assert list(stream_rows(path)) == [GOOD] * count
    if count < 2:
        assert read_instances(path) == [GOOD] * count


@pytest.mark.parametrize(
    "bad, reason",
    [
        (LINE[:-9], "not JSON"),
        (b"null", "a NoneType, not an object"),
        (b"[1, 2]", "a list, not an object"),
        (b'"text"', "a str, not an object"),
        (b"3", "a int, not an object"),
        (b'{"a": "\xe9"}', "byte 7 is not UTF-8; save the file as UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "is not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not JSON"),
        (LINE + LINE, "not JSON"),
        (b"\xef\xbb\xbf" + LINE, "not JSON"),  # a mark amid joined files
        (LINE + b"\r" + LINE, "not JSON"),
        ("{}".encode("utf-16"), "is not UTF-8"),
        (b"# a comment", "not JSON"),
    ],
)
def test_bad_line_is_named(path, bad, reason):
    said = faults(path, LINE + b"\n\n" + bad + b"\n" + LINE)
    assert len(said) == 1
    assert said[0].startswith(f"{path}:3: ") and reason in said[0]
    # the torn last line of a killed program
    [last] = faults(path, LINE + b"\n" + bad)
    assert last.startswith(f"{path}:2: ")


def test_huge_number_is_named(path):
    path.write_bytes(LINE + b'\n{"n": ' + b"1" * 5000 + b"}\n")
    try:
        read_rows(path)
    except BadRows as error:
        assert error.problems[0].startswith(f"{path}:2: ")
    else:
        raise AssertionError("read")


def test_every_bad_line_is_told_the_first_twenty_shown(path):
    said = faults(path, b"\n".join([LINE, b"null", b"{"] * 30))
    assert [int(s.split(":")[1]) for s in said] == [
        n for n in range(1, 91) if n % 3 != 1
    ]
    with pytest.raises(BadRows) as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}: 60 unusable lines\n")
    assert str(caught.value).endswith("\n... and 40 more")
    assert len(str(caught.value).splitlines()) == 22


def test_bad_instances_are_named(path):
    bad = [GOOD | {"output": ""}, {"input": ""}]
    content = b"\n".join([LINE, *(json.dumps(b).encode() for b in bad)])
    said = faults(path, content, read_instances)
    assert [s.removeprefix(f"{path}:")[:3] for s in said] == [
        "2: ",
        "3: ",
        "3: ",
    ]
    assert "output is empty" in said[0]
    assert "instruction is missing" in said[1]


def test_bad_instance_is_named_by_its_line(path):
    content = LINE + b"\n\n\n" + json.dumps(GOOD | {"output": ""}).encode()
    [said] = faults(path, content, read_instances)
    assert said.startswith(f"{path}:4: output is empty")


def test_line_separators_inside_a_string(path):
    odd = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\rh"
    path.write_text(
        json.dumps(GOOD | {"input": odd}, ensure_ascii=False) + "\n", "utf-8"
    )
    assert read_rows(path) == [GOOD | {"input": odd}]


def test_huge_line(path):
    row = GOOD | {"input": "é🙂x" * 1_000_000}
    assert write_rows(path, [row, GOOD]) == 2
    assert path.stat().st_size > 6e6
    assert read_instances(path) == [row, GOOD]


def test_no_such_file(path):
    with pytest.raises(FileNotFoundError):
        read_rows(path)


# --- writing --------------------------------------------------------------


def files(path):
    return {p.name: p.read_bytes() for p in path.parent.iterdir()}


def test_written_in_plain_utf8(path):
    assert write_rows(path, [GOOD | {"output": "zwei\n½ 🙂"}]) == 1
    assert files(path) == {
        "rows.jsonl": '{"instruction": "Add.", "input": "1+1", '
        '"output": "zwei\\n½ 🙂"}\n'.encode()
    }
    if os.name != "nt":
        assert path.stat().st_mode & 0o777 == 0o644


def test_no_rows_make_an_empty_file(path):
    assert write_rows(path, []) == 0
    assert path.read_bytes() == b""


def test_folders_are_made(tmp_path):
    assert write_rows(tmp_path / "a" / "b" / "c.jsonl", [GOOD]) == 1
    assert write_rows(str(tmp_path / "d.jsonl"), iter([GOOD] * 3)) == 3


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_generator_leaves_the_old_file(path, error):
    def rows():
        yield GOOD | {"output": "new"}
        raise error

    with pytest.raises(error):  # where there is no old one, too
        write_rows(path, rows())
    assert files(path) == {}
    write_rows(path, [GOOD])
    before = files(path)
    with pytest.raises(error):
        write_rows(path, rows())
    assert files(path) == before


@pytest.mark.parametrize(
    "value, error, said",
    [
        ({1}, TypeError, "not JSON serializable"),
        (float("nan"), ValueError, "row 2: .*not JSON compliant.* null"),
        ([float("inf")], ValueError, "row 2: .*not JSON compliant"),
        ("\ud800", ValueError, "row 2: .*surrogates not allowed"),
    ],
)
def test_unwritable_rows_leave_the_old_file(path, value, error, said):
    write_rows(path, [GOOD])
    before = files(path)
    with pytest.raises(error, match=said):
        write_rows(path, [GOOD, {"a": value}])
    assert files(path) == before


def test_the_old_file_stays_until_the_new_is_whole(path, monkeypatch):
    write_rows(path, [GOOD])
    before = path.read_bytes()

    def watch(aside, target):
        assert Path(target).read_bytes() == before
        assert read_rows(aside) == [GOOD, GOOD]
        raise OSError("killed")

    monkeypatch.setattr(os, "replace", watch)
    with pytest.raises(OSError, match="killed"):
        write_rows(path, [GOOD, GOOD])
    assert list(files(path).values()) == [before]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=50)
@given(rows=st.lists(st.dictionaries(st.text(), JSON), max_size=4))
def test_what_is_written_is_read_again(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        assert write_rows(path, rows) == len(rows)
        assert path.read_bytes().count(b"\n") == len(rows)
        assert read_rows(path) == rows
        # and so it is after a Windows editor was at it
        content = path.read_bytes().replace(b"\n", b"\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + content)
        assert read_rows(path) == rows


@given(text=st.text(min_size=1).filter(str.strip))
def test_any_text_makes_an_instance(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        row = instance(text, output=text)
        write_rows(path, [row])
        assert read_instances(path) == [row]


def test_not_a_number_is_not_json(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": NaN}\n')
    with pytest.raises(BadRows, match=r"rows.jsonl:2: not JSON \(NaN is no"):
        read_rows(path)


# --- files as they come ---------------------------------------------------


def line(**other):
    return json.dumps(GOOD | other).encode()


FIRST, LAST = line(input="first"), line(input="last")
MALFORMED = {
    "cut": LINE[:-9],
    "cut in a string": LINE[:20],
    "cut in an escape": b'{"instruction": "a\\u12',
    "an opening brace": b"{",
    "a closing brace": b"}",
    "a comma at the end": LINE + b",",
    "two rows": LINE + LINE,
    "an array of rows": b"[" + LINE + b"]",
    "null": b"null",
    "true": b"true",
    "a number": b"17",
    "a string": b'"Add."',
    "an empty object": b"{}",
    "an empty array": b"[]",
    "single quotes": b"{'instruction': 'Add.'}",
    "a comment": b"// a comment",
    "csv": b"Add.,1+1,2",
    "yaml": b"instruction: Add.",
    "html": b"<html><body>404</body></html>",
    "NaN": b'{"instruction": "a", "input": "", "output": NaN}',
    "infinity": b'{"instruction": "a", "input": "", "output": -Infinity}',
    "a raw tab": LINE.replace(b"Add", b"A\td"),
    "a raw null byte": LINE.replace(b"Add", b"A\x00d"),
    "null bytes": b"\x00" * 50,
    "latin-1": line().replace(b"Add.", "Zoë".encode("latin-1")),
    "utf-16": line().decode().encode("utf-16"),
    "half a character": line().replace(b"Add.", b"\xf0\x9f\x99"),
    "an encoded surrogate": line().replace(b"Add.", b"\xed\xa0\x80"),
    "a second byte order mark": b"\xef\xbb\xbf" + LINE,
    "nested too deep": b"[" * 100_000,
    "a huge number": b'{"instruction": ' + b"9" * 5000 + b"}",
    "no instruction": b'{"input": "1+1", "output": "2"}',
    "no input": b'{"instruction": "Add.", "output": "2"}',
    "no output": b'{"instruction": "Add.", "input": "1+1"}',
    "capital names": b'{"Instruction": "Add.", "Input": "", "Output": "2"}',
    "instruction is null": line(instruction=None),
    "input is a list": line(input=["1", "1"]),
    "output is a number": line(output=2),
    "output is an object": line(output={"sum": 2}),
    "instruction is empty": line(instruction=""),
    "output is empty": line(output=""),
    "output is blank": line(output=" \n\t"),
    "output is input": line(output="1+1"),
    "a row twice": FIRST,
}


@pytest.mark.parametrize("bad", MALFORMED.values(), ids=MALFORMED)
def test_malformed_lines_are_named_and_good_rows_kept(path, bad):
    path.write_bytes(FIRST + b"\n" + bad + b"\n" + LAST + b"\n")
    with pytest.raises(BadRows) as caught:
        read_instances(path)
    assert [row["input"] for row in caught.value.rows] == ["first", "last"]
    lines = bad.count(b"\n") + 1
    assert caught.value.problems
    for problem in caught.value.problems:
        where, _, what = problem.partition(f"{path}:")
        number, _, what = what.partition(": ")
        assert not where and int(number) in range(2, 2 + lines)
        assert ";" in what or ": " in what or "(" in what  # a remedy
    # the same as the last line, without a line end: a torn file
    path.write_bytes(FIRST + b"\n" + bad)
    with pytest.raises(BadRows):
        read_instances(path)


def test_enough_malformed_files():
    assert len(MALFORMED) >= 40


def test_a_line_of_100_mb(path):
    with path.open("wb") as file:
        file.write(FIRST + b"\n")
        for _ in range(100):
            file.write(b"x" * 2**20)
        file.write(b"\n" + LAST)
    with pytest.raises(BadRows) as caught:
        read_instances(path)
    [problem] = caught.value.problems
    assert problem == f"{path}:2: longer than 16 MB; write one row a line"
    assert [row["input"] for row in caught.value.rows] == ["first", "last"]


def test_a_stream_stops_at_the_first_bad_line(path):
    path.write_bytes(FIRST + b"\n" + LAST + b"\nnull\n" + LINE)
    rows = stream_rows(path)
    assert [next(rows)["input"], next(rows)["input"]] == ["first", "last"]
    with pytest.raises(BadRows, match="rows.jsonl:3: a NoneType"):
        next(rows)


# --- one row more ---------------------------------------------------------


def test_rows_are_appended(path):
    for i in range(3):
        append_row(path, GOOD | {"input": str(i)})
    assert [row["input"] for row in read_rows(path)] == ["0", "1", "2"]


def test_a_torn_line_costs_no_new_row(path):
    path.write_bytes(FIRST + b"\n" + LINE[:20])
    append_row(path, GOOD)
    with pytest.raises(BadRows) as caught:
        read_rows(path)
    assert caught.value.rows == [json.loads(FIRST), GOOD]
    assert [p.split(": ")[0] for p in caught.value.problems] == [f"{path}:2"]


def test_what_json_cannot_hold_is_not_appended(path):
    append_row(path, GOOD)
    with pytest.raises(ValueError, match="the new row: .*surrogates"):
        append_row(path, {"a": "\ud800"})
    assert read_rows(path) == [GOOD]
