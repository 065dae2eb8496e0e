"""The notebooks run whole, with the real embedded model and few rows.

They run in a copy, by the runner that `python -m instructft run` uses.
"""

import ast
import json
import math
import os
import random
import shutil
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pytest
from test_notebook_rules import SOLUTION, code_cells, plain, source, tags

from instructft import course, sources
from instructft.instance import read_rows
from instructft.models import embedded

ROOT = Path(__file__).resolve().parent.parent
# Enough for each cell to have something to work on
SMALL = {
    "00": {},
    "01": {},
    "02a": {
        "TAUGHT": ["sentiment", "intent"],
        "WORDINGS": 5,
        "TRAIN_ROWS": 12,
        "HELD_OUT_ROWS": 6,
    },
    "02b": {},
    "03": {},
    "04": {},
    "05a": {"ROWS": 8},
    "05b": {"ROWS": 16, "HELD_OUT": 2, "PLAIN_TEXTS": 2, "SPEED": ["full"]},
    "06": {"TOKENS": 1500, "HELD_OUT": 4},
    "07": {"TOKENS": 1500, "HELD_OUT": 4},
}
ARCHIVES = {
    "02a": ["vader", "promptsource", "evals"],
    "04": ["chitchat"],
    "07": ["vader"],
}
# What these write into data/work is what data/snapshots holds, but for rows
# whose texts are not ours
SNAPSHOTS = {
    "02a": ("instances.jsonl", "02a_instances.jsonl"),
    "02b": ("instances.jsonl", "02b_instances.jsonl"),
    "03": ("set/data.jsonl", "03_set.jsonl"),
}
MEASURED = ("02a", "05b", "06", "07")  # these end in a cell tagged result


def lay_course(folder):
    """Copy what a run reads: notebooks/, data/ and the pins."""
    ignore = shutil.ignore_patterns("work", ".ipynb_checkpoints")
    for name in ("notebooks", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copy(ROOT / "requirements.txt", folder)
    (folder / "instructft").mkdir()  # the package itself stays where it is


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A copy of the course that the runner takes for its own."""
    lay_course(tmp_path)
    monkeypatch.setattr(course, "ROOT", tmp_path)
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    # the report names the machine: no torch is needed here for that
    machine = types.ModuleType("instructft.machine")
    machine.facts = lambda: {"device": "cpu"}
    monkeypatch.setitem(sys.modules, "instructft.machine", machine)
    yield tmp_path
    shutil.rmtree(tmp_path / "data" / "work", ignore_errors=True)


def find(root, number):
    [path] = (root / "notebooks").glob(f"{number}_*.ipynb")
    return path


def read(path):
    return nbformat.read(path, as_version=4)


def shrink(notebook, values):
    """Overwrite parameters in a cell after theirs, as papermill does."""
    if not values:
        return
    [index] = [
        i for i, c in enumerate(notebook.cells) if "parameters" in tags(c)
    ]
    given = {
        ast.unparse(target)
        for node in ast.parse(source(notebook.cells[index])).body
        for target in node.targets
    }
    assert set(values) <= given
    lines = [f"{name} = {value!r}" for name, value in values.items()]
    made = nbformat.v4.new_code_cell("\n".join(lines), id="small-parameters")
    notebook.cells.insert(index + 1, made)


def solve(notebook):
    """Put the solutions in place of the stubs; try the stubs at the end."""
    again, solution = [], None
    for cell in notebook.cells:
        found = SOLUTION.findall(source(cell))
        if found:
            [solution] = found
        if "exercise" in tags(cell):
            assert solution, f"{cell.id}: no solution before it"
            stub = nbformat.v4.new_code_cell(cell.source)
            cell.source, solution = solution, None
        if "check" in tags(cell):
            check = nbformat.v4.new_code_cell(cell.source)
            check.metadata["tags"] = ["check"]
            again += [stub, check]
            stub.id, check.id = f"{cell.id}-stub", f"{cell.id}-unsolved"
    assert again, "no exercise"
    notebook.cells += again


def run(root, number, capsys):
    """Run one notebook; return it with its outputs."""
    exit_code = course.run(number)
    said = capsys.readouterr().out
    assert exit_code == 0, f"\n{said}"  # names the notebook and the cell
    [path] = (root / "runs").glob(f"*/{number}_*.ipynb")
    return json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize("number", ["00", "01", "02a", "02b", "03", "04"])
def test_runs_as_it_is_and_its_stable_outputs_hold(number, root, capsys):
    need_archives(number)
    committed = json.loads(find(root, number).read_text("utf-8"))
    ran = run(root, number, capsys)
    stable = 0
    for old, new in zip(code_cells(committed), code_cells(ran), strict=True):
        where = f"{number}, cell {new['id']}"
        assert new["execution_count"], f"{where} did not run"
        if "stable" in tags(new):
            stable += 1
            assert plain(old), f"{where} has no committed output"
            assert plain(new) == plain(old), f"{where}: another output"
        if "check" in tags(new):
            assert "not yet: " in plain(new), f"{where}: {plain(new)}"
    assert stable, f"no cell of {number} is tagged stable"
    if number in SNAPSHOTS:
        written, snapshot = SNAPSHOTS[number]
        made = read_rows(root / "data" / "work" / number / written)
        ours = [row for row in made if row["licence"] == "CC0-1.0"]
        assert ours == read_rows(ROOT / "data" / "snapshots" / snapshot)


# A network of its own, in which nothing but this machine is reached
ALONE = ["unshare", "--net", "--map-root-user", "sh", "-c"]
ALONE += ['ip link set lo up && exec "$@"', "sh"]


def test_a_room_without_a_network(root, tmp_path):
    """Notebook 00, by the runner, where no route leads out."""
    try:
        subprocess.run([*ALONE, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no network namespace can be made here")
    embedded()
    code = (
        "import socket, pathlib; from instructft import course\n"
        "try: socket.create_connection(('192.0.2.1', 80), 2)\n"
        "except OSError as error: print('no way out:', error)\n"
        f"course.ROOT = pathlib.Path({str(root)!r})\n"
        "raise SystemExit(course.run('00'))"
    )
    words = [*ALONE, sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    assert "no way out: [Errno 101]" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(
    not os.environ.get("ALL_RUNS"), reason="an hour: set ALL_RUNS=1"
)
def test_in_any_order_twice_the_stable_outputs_are_the_same(root, capsys):
    """Each notebook alone, whatever ran before it in this copy."""
    everyone = list(SMALL)
    seen = []
    for seed in (1, 2):
        order = random.Random(seed).sample(everyone, len(everyone))
        outputs = {}
        for number in order:
            need_archives(number)
            ran = run(root, number, capsys)
            shutil.rmtree(root / "runs")
            for cell in code_cells(ran):
                assert cell["execution_count"], cell["id"]
                if "stable" in tags(cell):
                    outputs[cell["id"]] = plain(cell)
        with capsys.disabled():
            print(f"\n{' '.join(order)}: {len(outputs)} stable outputs")
        seen.append(outputs)
    committed = {
        cell["id"]: plain(cell)
        for number in everyone
        for cell in code_cells(read(find(root, number)))
        if "stable" in tags(cell)
    }
    assert seen[0] == seen[1] == committed


def numbers(value, way=""):
    """Every number in a result: (where, number)."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from numbers(item, f"{way}/{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from numbers(item, f"{way}/{index}")
    elif isinstance(value, (int, float)):
        yield way, value


def results(notebook):
    """What each cell tagged `result` hands on as JSON."""
    for cell in code_cells(notebook):
        if "result" in tags(cell):
            for output in cell["outputs"]:
                if "application/json" in output.get("data", {}):
                    yield output["data"]["application/json"]


@pytest.mark.parametrize("number", SMALL)
def test_with_its_solutions_every_check_says_correct(number, root, capsys):
    need_archives(number)
    path = find(root, number)
    notebook = read(path)
    solve(notebook)
    shrink(notebook, SMALL[number])
    nbformat.write(notebook, path)
    ran = run(root, number, capsys)
    for cell in code_cells(ran):
        where = f"{path.stem}, cell {cell['id']}"
        assert cell["execution_count"], f"{where} did not run"
        if cell["id"].endswith("-unsolved"):
            assert "not yet: " in plain(cell), where
        elif "check" in tags(cell):
            assert len(cell["outputs"]) == 1, where
            *_, last = plain(cell).splitlines()  # a score may stand above
            assert last == "correct", f"{where}: {plain(cell)}"
    if number in MEASURED:
        [result] = results(ran)
        found = dict(numbers(result))
        assert found
        for way, value in found.items():
            assert math.isfinite(value), f"{path.stem}, result{way}: {value}"
        assert (root / "data" / "work" / number).is_dir()


def need_archives(number):
    """Skip where an archive was not fetched; CI has to have it."""
    try:
        for name in ARCHIVES.get(number, []):
            sources.archive(name)
    except FileNotFoundError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def test_07_draws_its_rows_from_our_own_data_too(root, capsys):
    path = find(root, "07")
    notebook = read(path)
    ids = [cell.id for cell in notebook.cells]
    del notebook.cells[ids.index("07-integrated-rows") + 1 :]
    shrink(notebook, SMALL["07"] | {"RATED": "ours"})
    nbformat.write(notebook, path)
    ran = run(root, "07", capsys)
    assert all(cell["execution_count"] for cell in code_cells(ran))
