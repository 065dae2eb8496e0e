"""What is made of the notebooks: the README's tables, and no dead name.

`python tests/test_readme.py write` makes the tables anew.
"""

import json
import re
import sys

import pytest
from test_repo import NOTEBOOKS, ROOT, pages

from instructft import report

MAP = ROOT / "notebooks" / "methodology.json"
METHODOLOGY = ROOT.parent / "shared" / "METHODOLOGY.txt"
PART = "<!-- {} -->\n\n{}\n\n<!-- end of {} -->"
STEPS = {
    "01": "Crafting instances",
    "02": "Dataset creation",
    "03": "Building datasets",
    "04": "Conversation datasets",
    "05": "Tuning pretrained models",
    "06": "Conversations again",
    "07": "In summary",
}


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(name):
    """A notebook's cells by id."""
    found = json.loads((ROOT / name).read_text("utf-8"))["cells"]
    return {cell["id"]: cell for cell in found}


def notebooks_table():
    """Each notebook's number, promise and minutes, from its head."""
    rows = []
    for name in NOTEBOOKS:
        lesson = report.lesson(ROOT / name)
        head = "".join(next(iter(cells(name).values()))["source"])
        learn = re.search(r"\*\*Learn\*\* (\d+) minutes", head)[1]
        run = re.search(r"\*\*Run\*\* ([^,:;.(]+)", head)[1]
        run = re.sub(r"\b(embedded|on 2 cores)\b", "", run).strip()
        number = lesson["title"].split()[0]
        rows.append([f"[{number}]({name})", lesson["promise"], learn, run])
    return table(["notebook", "promise", "minutes to learn", "run"], rows)


def entries():
    return json.loads(MAP.read_text("utf-8"))


def methodology_table():
    """Each statement of the seven steps, and the cells that do it."""
    rows, before = [], None
    for entry in entries():
        step = entry["step"]
        where = []
        for place in entry["cells"]:
            name, cell = place.split("#")
            number = name.split("_")[0]
            where.append(f"[{number}](notebooks/{name}) `{cell}`")
        title = "" if step == before else f"**{step}** {STEPS[step]}"
        rows.append([title, entry["statement"], ", ".join(where)])
        before = step
    return table(["step", "says", "done in"], rows)


PARTS = {"notebooks": notebooks_table, "methodology": methodology_table}


def rendered(text):
    """The README with its parts made anew."""
    for name, make in PARTS.items():
        pattern = f"<!-- {name} -->.*?<!-- end of {name} -->"
        new = PART.format(name, make(), name)
        text, count = re.subn(pattern, lambda _, n=new: n, text, flags=re.S)
        assert count == 1, f"README.md has no part `{name}`"
    return text


def test_the_readme_is_what_the_notebooks_say():
    text = (ROOT / "README.md").read_text("utf-8")
    assert rendered(text) == text, "python tests/test_readme.py write"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("| [03](notebooks", "| [04](notebooks"),
        ("`01-instance`", "`01-instances`"),
        ("minutes to learn", "minutes"),
    ],
)
def test_a_planted_mismatch_is_found(old, new):
    text = (ROOT / "README.md").read_text("utf-8")
    assert old in text
    wrong = text.replace(old, new, 1)
    assert rendered(wrong) != wrong


def undone(entry):
    """The cells of a statement that are not there, or not run."""
    for place in entry["cells"]:
        name, _, cell = place.partition("#")
        found = cells(f"notebooks/{name}").get(cell)
        if found is None or found["cell_type"] != "code":
            yield place
        elif {"exercise", "check"} & {*found["metadata"].get("tags", [])}:
            yield place


@pytest.mark.parametrize(
    "entry", entries(), ids=lambda entry: f"{entry['step']} {entry['words']}"
)
def test_each_statement_has_a_cell_that_is_run(entry):
    """Every code cell is run by test_notebook_runs: here, that it is one."""
    assert entry["cells"] and not list(undone(entry))


@pytest.mark.parametrize(
    "place", ["#01-nowhere", "#01-title", "#01-exercise-1-stub"]
)
def test_a_statement_without_a_cell_is_found(place):
    place = "01_crafting_instances.ipynb" + place
    assert list(undone({"cells": [place]})) == [place]


def statements(text):
    """(step, line) of each statement of the seven steps."""
    step = None
    for line in text.splitlines():
        head = re.match(r"#+ Step (\d\d)", line)
        if head:
            step = head[1]
        elif line.startswith("# I'm"):
            return
        elif (
            step and line.strip() and line[0] not in "#" and "---" not in line
        ):
            yield step, line


@pytest.mark.skipif(
    not METHODOLOGY.is_file(), reason="the methodology's text is not here"
)
def test_the_map_has_every_statement():
    """Each line of the text is some entry's, each entry is some line's."""
    left = {(entry["step"], entry["words"]) for entry in entries()}
    said = list(statements(METHODOLOGY.read_text("utf-8")))
    assert {step for step, _ in said} == set(STEPS)
    for step, line in said:
        mine = {(s, words) for s, words in left if s == step and words in line}
        if not mine:
            assert line.rstrip().endswith((":", "!")), (step, line)
        left -= mine
    assert not left


NAMED = re.compile(r"`(\d\d[ab]?)-([a-z0-9-]+)`")


def strangers(name, page):
    """Cells that a page names and that are not there."""
    prose = re.sub(r"^```.*?^```", "", page, flags=re.M | re.S)
    for number, rest in NAMED.findall(prose):
        [home] = [n for n in NOTEBOOKS if n.startswith(f"notebooks/{number}_")]
        if f"{number}-{rest}" not in cells(home):
            yield f"{number}-{rest}"


@pytest.mark.parametrize(
    ("name", "page"), [pytest.param(*p, id=p[0]) for p in pages()]
)
def test_cells_that_are_named_are_there(name, page):
    assert not list(strangers(name, page))


def test_a_cell_that_is_not_there_is_found():
    page = "See `01-nowhere`, `01-record` and `02a-tasks`."
    assert list(strangers("README.md", page)) == ["01-nowhere"]


if __name__ == "__main__":
    if sys.argv[1:] != ["write"]:
        sys.exit("usage: python tests/test_readme.py write")
    readme = ROOT / "README.md"
    text = rendered(readme.read_text("utf-8"))
    readme.write_text(text, "utf-8", newline="\n")
