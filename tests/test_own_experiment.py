"""What a notebook's end tells a reader to copy runs in an empty notebook.

Only the imports and the parameters stand before it, and what the text says
is the reader's own.
"""

import nbformat
import pytest
from test_notebook_rules import tags
from test_notebook_runs import (
    SMALL,
    find,
    need_archives,
    read,
    root,  # noqa: F401  (a fixture)
    run,
    shrink,
)

from instructft import course

HEADING = "Into your own experiment"
NOTEBOOKS = ["00", "01", "02a", "02b", "03", "04", "05a", "05b", "06", "07"]
ROWS = (
    "[{'messages': [{'role': 'user', 'content': f'What is {i} + {i}?'}, "
    "{'role': 'assistant', 'content': f'It is {i + i}.'}]} "
    "for i in range(24)]"
)
# The reader's own, before what was copied: code, or cells of the notebook
GIVEN = {
    "01": ["torn = Path('../data/seeds/tasks.jsonl')"],
    "05a": "05a-model 05a-rows 05a-text 05a-config 05a-trainer".split(),
    "05b": [
        "SYSTEM = 'Be brief.'\n"
        "rows = [{'instruction': f'What is {i} + {i}?', 'input': '', "
        "'output': f'It is {i + i}.'} for i in range(24)]"
    ],
    "06": [f"train = [row['messages'] for row in {ROWS}]"],
    "07": [f"SYSTEM = 'Be brief.'\ntrain = {ROWS}"],
}
# What the text says to change in them
CHANGED = {
    "02a-leaks": [
        ('    "P3 rotten_tomatoes": leaking(film_made),\n', ""),
        ('    "P3 social_i_qa": leaking(social_made, social_answers),\n', ""),
    ],
    "04-counts": [("role_plays + from_topics", "role_plays")],
}
# What it says to write behind them
AFTER = {
    "05b": "built('QLoRA', rows, 1e-3).train()",
}


@pytest.mark.parametrize("number", NOTEBOOKS)
def test_what_is_copied_runs_alone(number, root, capsys):  # noqa: F811
    need_archives(number)
    path = find(root, number)
    notebook = read(path)
    cells = {cell.id: cell for cell in notebook.cells}
    named = course.named_cells(path, HEADING)
    assert named
    kept = [cells[f"{number}-imports"]]
    kept += [c for c in notebook.cells if "parameters" in tags(c)]
    for text in GIVEN.get(number, []):
        own = cells.get(text) or nbformat.v4.new_code_cell(text)
        kept.append(own)
    for name in named:
        for old, new in CHANGED.get(name, []):
            assert old in cells[name].source, name
            cells[name].source = cells[name].source.replace(old, new)
        kept.append(cells[name])
    if number in AFTER:
        kept.append(nbformat.v4.new_code_cell(AFTER[number]))
    notebook.cells = kept
    shrink(notebook, SMALL.get(number, {}))
    nbformat.write(notebook, path)
    made = run(root, number, capsys)
    assert all(cell["execution_count"] for cell in made["cells"])
