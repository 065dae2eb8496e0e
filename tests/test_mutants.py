"""The runner of mutants: each can be made, and it tells who survives."""

import ast
from pathlib import Path

import mutants
import pytest
from mutants import MUTANTS, ROOT, SURVIVED, Mutant, first_failure, main

QUICK = next(m for m in MUTANTS if m.name == "mask-off-by-one")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_can_be_made(mutant):
    assert mutants.missing(mutant) == ""
    assert mutant.new != mutant.old
    assert (ROOT / "tests" / mutant.tests).is_file()
    text = (ROOT / "instructft" / mutant.file).read_text("utf-8")
    ast.parse(text.replace(mutant.old, mutant.new))


def test_there_are_enough_each_with_its_name():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20


def test_a_mutant_is_caught(capsys):
    before = (ROOT / "instructft" / QUICK.file).read_bytes()
    assert main([QUICK.name]) == 0
    said = capsys.readouterr().out
    assert "test_text.py: pass" in said
    assert "mask-off-by-one" in said and "test_labels" in said
    assert "1 of 1 mutants caught" in said
    assert (ROOT / "instructft" / QUICK.file).read_bytes() == before


def test_harmless_or_lost_mutants_are_told(capsys):
    harmless = QUICK._replace(name="harmless", new=QUICK.old + "  # so")
    lost = QUICK._replace(name="lost", old="no such line")
    assert main([], [harmless, lost]) == 1
    said = capsys.readouterr().out
    assert SURVIVED in said and "0 times in instructft/masking.py" in said
    assert "0 of 2 mutants caught" in said


def test_tests_that_fail_anyway_catch_nothing(capsys, monkeypatch):
    monkeypatch.setattr(mutants, "tested", lambda *_: (1, "FAILED a.py::b"))
    assert main([QUICK.name]) == 1
    said = capsys.readouterr().out
    assert "DO NOT PASS" in said and "not tried" in said


@pytest.mark.parametrize("status", [None, 0, 2, 5])
def test_only_a_failed_test_catches(status, capsys, monkeypatch):
    def run(copy, *_):
        text = (copy / "instructft" / QUICK.file).read_text("utf-8")
        return (0 if QUICK.old in text else status), "ERROR tests/a.py"

    monkeypatch.setattr(mutants, "tested", run)
    assert main([QUICK.name]) == 1


def test_the_copy_must_be_what_is_imported(tmp_path):
    with pytest.raises(RuntimeError, match="not from"):
        mutants.check_what_is_imported(Path(tmp_path).resolve() / "copy")


def test_unknown_names():
    assert main(["nobody"]) == 2
    assert main(["a"], [Mutant("b", "", "", "", "", "")]) == 2


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ("x\nFAILED tests/test_a.py::test_b[c d - e] - assert", "test_b"),
        ("ERROR tests/test_a.py::test_b - OSError", "test_b"),
        ("ERROR tests/test_a.py", ""),
        ("2 passed", ""),
    ],
)
def test_first_failure(output, name):
    assert first_failure(output) == name
