"""What every notebook keeps to, read without running it.

A rule is a function that yields what is wrong with one notebook. A small
notebook that keeps every rule stands below, and each way to break it.
"""

import ast
import copy
import importlib
import inspect
import json
import re
import types
import typing
from collections import Counter
from functools import cache
from pathlib import Path

import nbformat
import pytest

from instructft import course, report

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TAGS = {"parameters", "report", "stable", "result", "exercise", "check"}
SHOWN = TAGS - {"parameters", "exercise"}  # these have outputs
WIDGET = "application/vnd.jupyter.widget-"

CARD = re.compile(
    r"^### Exercise \d+: .*\S +\(difficulty [1-5] of 5, \d+ minutes\)$", re.M
)
SOLUTION = re.compile(
    r"^<details><summary>Solution</summary>\n\n"
    r"```python\n(.*?\n)```\n\n</details>$",
    re.M | re.S,
)
FENCE = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


def source(cell):
    return "".join(cell["source"])


def tags(cell):
    return set(cell["metadata"].get("tags", []))


def code_cells(notebook):
    return [c for c in notebook["cells"] if c["cell_type"] == "code"]


def code(notebook):
    """All Python of a notebook: (cell id, text), fenced blocks too."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            yield cell["id"], source(cell)
        else:
            for block in FENCE.findall(source(cell)):
                yield cell["id"], block


def trees(notebook):
    """All Python of a notebook that parses: (cell id, syntax tree)."""
    for name, text in code(notebook):
        try:
            yield name, ast.parse(text)
        except SyntaxError:
            continue  # rule_code_parses says so


def bullets(text):
    return re.findall(r"^- \S.*$", text, re.M)


# The rules


def rule_ids_are_set_by_hand(number, notebook):
    ids = [cell.get("id", "") for cell in notebook["cells"]]
    for name, count in Counter(ids).items():
        if not re.fullmatch(rf"{number}-[a-z][a-z0-9-]*", name):
            yield f"cell id {name!r} is not like {number}-words"
        if count > 1:
            yield f"cell id {name!r} stands {count} times"


def rule_the_format_is_4_5(number, notebook):
    if (notebook["nbformat"], notebook["nbformat_minor"]) != (4, 5):
        yield "the format is not 4.5"
    kernel = notebook["metadata"].get("kernelspec", {}).get("name")
    if kernel != "python3":
        yield f"the kernel is {kernel}, not python3"
    try:
        nbformat.validate(nbformat.from_dict(notebook))
    except nbformat.ValidationError as error:
        yield f"not valid: {error.message}"


def rule_the_head_promises(number, notebook):
    first = notebook["cells"][0]
    head = source(first) if first["cell_type"] == "markdown" else ""
    if not re.match(rf"# {number} \S", head):
        yield f"the title is not '# {number} ...'"
    blocks = [block.strip() for block in re.split(r"\n\s*\n", head)]
    said = re.sub(r"[*`]", "", " ".join(blocks[1:2]))
    said = " ".join(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", said).split())
    if not said.endswith(".") or said != report.promise("\n\n".join(blocks)):
        yield f"the promise is not one sentence: {said!r}"
    if "**You will**" not in blocks:
        yield "the head has no **You will**"
    elif not 3 <= len(bullets(head)) <= 5:
        yield "the head has not three to five bullets"
    for part in (
        r"\*\*Needs\*\* \S",
        r"\*\*Learn\*\* \d+ min",
        r"\*\*Run\*\*",
    ):
        if not re.search(part, head):
            yield f"the head has no {part}"


def rule_the_tail_keeps_the_promise(number, notebook):
    last = notebook["cells"][-1]
    tail = source(last) if last["cell_type"] == "markdown" else ""
    parts = ("## You can now\n", "\n**Three questions.** ")
    parts += ("\n## Into your own experiment\n", "\n**Next:** ")
    places = [tail.find(part) for part in parts]
    for part, place in zip(parts, places, strict=True):
        if place < 0:
            yield f"the tail has no {part.strip()}"
    if -1 in places:
        return
    if places != sorted(places):
        yield "the tail's parts are not in order"
    done = bullets(tail[places[0] : places[1]])
    if len(done) != len(bullets(source(notebook["cells"][0]))):
        yield f"{len(done)} bullets at the end, others at the start"
    if tail[places[1] : places[2]].count("?") != 3:
        yield "not three questions"


def rule_one_parameters_cell(number, notebook):
    cells = [c for c in code_cells(notebook) if "parameters" in tags(c)]
    if len(cells) != 1:
        yield f"{len(cells)} cells are tagged parameters"
        return
    given = {}
    for node in ast.parse(source(cells[0])).body:
        if not isinstance(node, ast.Assign):
            yield "the parameters cell does more than assign"
            continue
        for target in node.targets:
            given[ast.unparse(target)] = ast.unparse(node.value)
    if given.get("RUN") != "'embedded'":
        yield 'the parameters cell has no RUN = "embedded"'
    if "SEED" not in given:
        yield "the parameters cell assigns no SEED"


def rule_tags_are_known(number, notebook):
    for cell in notebook["cells"]:
        if unknown := tags(cell) - TAGS:
            yield f"{cell['id']}: no tag is called {sorted(unknown)}"


def rule_code_parses(number, notebook):
    for name, text in code(notebook):
        try:
            ast.parse(text)
        except SyntaxError as error:
            yield f"{name}: {error}"


def rule_cells_can_be_copied(number, notebook):
    for name, text in code(notebook):
        if re.search(r"^\s*[!%]|\bpip3?\b.*\binstall\b", text, re.M):
            yield f"{name}: no shell, no magic, no pip"
    for name, tree in trees(notebook):
        for node in ast.walk(tree):
            match node:
                case ast.ImportFrom(names=[ast.alias(name="*")]):
                    yield f"{name}: a star import"
                case ast.Attribute(attr="chdir"):
                    yield f"{name}: chdir"
                case ast.Attribute(value=ast.Name(id="sys"), attr="path"):
                    yield f"{name}: sys.path"
                case ast.Constant(value=str(text)) if re.match(
                    r"/\w[^\s<]*$|[A-Za-z]:[\\/]\w|~[\w/]", text
                ):
                    yield f"{name}: {text!r} looks like an absolute path"


def rule_lines_are_short(number, notebook):
    for name, text in code(notebook):
        for line in text.splitlines():
            if len(line) > 79:
                yield f"{name}: {len(line)} columns: {line.strip()}"


def rule_outputs_are_clean(number, notebook):
    for key in ("widgets", "papermill"):
        if key in notebook["metadata"]:
            yield f"{key} in the metadata"
    for cell in code_cells(notebook):
        name = cell["id"]
        if cell["execution_count"] is not None:
            yield f"{name}: an execution count"
        if extra := cell["metadata"].keys() - {"tags"}:
            yield f"{name}: {sorted(extra)} in the metadata"
        for output in cell["outputs"]:
            kind = output["output_type"]
            if kind == "error" or output.get("name") == "stderr":
                yield f"{name}: an output of {output.get('name', kind)}"
            if output.get("execution_count") is not None:
                yield f"{name}: an execution count in an output"
            if any(WIDGET in mime for mime in output.get("data", {})):
                yield f"{name}: a widget's state"
            if re.search(r" at 0x[0-9a-f]{6}", json.dumps(output)):
                yield f"{name}: an address, other in each run"


def rule_outputs_are_there(number, notebook):
    cells = code_cells(notebook)
    if not any(cell["outputs"] for cell in cells):
        yield "no cell has an output: run with --save"
        return
    for cell in cells:
        if tags(cell) & SHOWN and not cell["outputs"]:
            yield f"{cell['id']} is tagged {sorted(tags(cell))}, shows nothing"
        if "stable" in tags(cell) and not plain(cell):
            yield f"{cell['id']} is tagged stable and has no text to compare"


def plain(cell):
    """The text of a cell's outputs."""
    return "".join(
        "".join(output.get("text", output.get("data", {}).get("text/plain")))
        for output in cell["outputs"]
        if "text" in output or "text/plain" in output.get("data", {})
    )


def definition(text):
    """The one function of a stub or solution: (name, its arguments)."""
    try:
        [node] = [
            node
            for node in ast.parse(text).body
            if isinstance(node, ast.FunctionDef)
        ]
    except (SyntaxError, ValueError):
        return None
    return node.name, ast.unparse(node.args)


def rule_exercises_are_whole(number, notebook):
    cells, seen = notebook["cells"], set()
    for index, cell in enumerate(cells):
        if not re.search(r"^#+ Exercise", source(cell), re.M):
            continue
        if cell["cell_type"] != "markdown":
            continue
        name, text = cell["id"], source(cell)
        seen |= {index + 1, index + 2}
        if not CARD.search(text):
            yield f"{name}: its card names no difficulty or no minutes"
        solutions = SOLUTION.findall(text)
        if len(solutions) != 1 or text.count("<details>") != 1:
            yield f"{name}: not one solution, blank lines around its fence"
            continue
        stub, check = [*cells[index + 1 : index + 3], {}, {}][:2]
        if not stub or "exercise" not in tags(stub):
            yield f"{name}: no cell tagged exercise follows"
        elif not check or "check" not in tags(check):
            yield f"{name}: no cell tagged check follows the stub"
        elif definition(solutions[0]) is None:
            yield f"{name}: the solution is not one function"
        elif definition(solutions[0]) != definition(source(stub)):
            yield f"{name}: stub and solution differ in name or arguments"
    for index, cell in enumerate(cells):
        if tags(cell) & {"exercise", "check"} and index not in seen:
            yield f"{cell['id']}: an exercise or check without its card"


@cache
def names_in(module):
    """What a module of ours holds at its top; None if there is none."""
    path = ROOT / "instructft" / f"{module}.py"
    if not path.is_file():
        return None
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
            continue
        for part in ast.walk(node):
            match part:
                case ast.Name(id=name, ctx=ast.Store()):
                    found.add(name)
                case ast.alias(name=name, asname=other):
                    found.add(other or name)
    return found


def rule_what_is_imported_exists(number, notebook):
    modules = set()  # whole modules of ours
    for name, tree in trees(notebook):
        for node in ast.walk(tree):
            match node:
                case ast.ImportFrom(module="instructft", names=names):
                    for alias in names:
                        modules.add(alias.asname or alias.name)
                        if names_in(alias.name) is None:
                            yield f"{name}: no instructft.{alias.name}"
                case ast.ImportFrom(module=str(home), names=names):
                    if not home.startswith("instructft."):
                        continue
                    there = names_in(home.split(".", 1)[1])
                    for alias in names:
                        if alias.name not in (there or set()):
                            yield f"{name}: no {home}.{alias.name}"
                case ast.Attribute(value=ast.Name(id=home), attr=attribute):
                    known = names_in(home) if home in modules else None
                    if known is not None and attribute not in known:
                        yield f"{name}: no instructft.{home}.{attribute}"


def rule_pins_name_the_notebook(number, notebook):
    """A pinned package that the cells import has the number behind it."""
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    numbers = {
        line.split("==")[0]: re.findall(r"\b\d\d[ab]?\b", line.split("#")[1])
        for line in lines
        if "==" in line and "#" in line and not line.startswith("#")
    }
    for name, tree in trees(notebook):
        for node in ast.walk(tree):
            match node:
                case ast.Import(names=[ast.alias(name=module), *_]):
                    pass
                case ast.ImportFrom(module=str(module)):
                    pass
                case _:
                    continue
            named = numbers.get(module.split(".")[0])
            if named and number not in named:
                yield f"{name}: requirements.txt: {module} lacks {number}"


RULES = {
    name.removeprefix("rule_"): rule
    for name, rule in list(globals().items())
    if name.startswith("rule_")
}


def test_every_notebook_is_one_of_the_course():
    assert PATHS
    for path in PATHS:
        assert course.NOTEBOOK.fullmatch(path.name), path.name


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem[:3])
def test_rule(path, rule):
    notebook = json.loads(path.read_text("utf-8"))
    said = list(RULES[rule](path.stem.split("_")[0], notebook))
    assert not said, f"{path.name}\n" + "\n".join(said)


def test_no_output_is_older_than_its_cells():
    assert course.stale_outputs() == []


def test_no_study_is_older_than_its_cells():
    assert course.stale_studies() == []


# A notebook that keeps every rule, and the ways to break each

HEAD = """# 09 An example

See **one** [rule](x.md) kept.

**You will**

- read
- write
- run

**Needs** [00](00.ipynb). **Learn** 5 minutes. **Run** under a minute.
"""
TAIL = """## You can now

- read
- write
- run

**Three questions.** Who? What? Why?

## Into your own experiment

Copy all.

**Next:** nothing.
"""
EXERCISE = """### Exercise 1: add   (difficulty 1 of 5, 5 minutes)

Return the sum.

<details><summary>Solution</summary>

```python
def add(a, b):
    return a + b
```

</details>
"""


def example():
    """A small notebook that keeps every rule."""
    v4 = nbformat.v4
    out = v4.new_output("stream", text="1\n")
    shown = v4.new_output("execute_result", data={"text/plain": "1"})
    cells = [
        v4.new_markdown_cell(HEAD),
        v4.new_code_cell("from instructft import show\nimport os"),
        v4.new_code_cell("RUN = 'embedded'  # or 'gpu'\nSEED = 0"),
        v4.new_code_cell("show.table([{'a': '1/2 of it'}])"),
        v4.new_markdown_cell(EXERCISE),
        v4.new_code_cell("def add(a, b):\n    return None"),
        v4.new_code_cell("print(add(1, 2))", outputs=[out]),
        v4.new_markdown_cell(TAIL),
    ]
    cells[3].outputs = [shown]
    for index, cell in enumerate(cells):
        cell["id"] = f"09-cell-{index}"
    kinds = {2: "parameters", 3: "stable", 5: "exercise", 6: "check"}
    for index, tag in kinds.items():
        cells[index].metadata["tags"] = [tag]
    made = v4.new_notebook(cells=cells)
    made.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
    }
    made.nbformat_minor = 5
    return json.loads(json.dumps(made))


def change(index, old, new):
    """A way to break a notebook: edit the text of one cell."""

    def edit(notebook):
        cell = notebook["cells"][index]
        assert old in cell["source"]
        cell["source"] = cell["source"].replace(old, new)

    return edit


def put(*way, value):
    """A way to break a notebook: set a value down there."""

    def edit(notebook):
        *down, last = way
        for key in down:
            notebook = notebook[key]
        notebook[last] = value

    return edit


def drop(index):
    return lambda notebook: notebook["cells"].pop(index)


def cell(index, *way, value):
    return put("cells", index, *way, value=value)


IMPORT = "import os"
BREAKS = {
    "ids_are_set_by_hand": [
        cell(1, "id", value="2f9c1e"),
        cell(1, "id", value="09-cell-0"),
        cell(1, "id", value="08-cell-1"),
    ],
    "the_format_is_4_5": [
        put("nbformat_minor", value=4),
        put("metadata", "kernelspec", "name", value="conda-x"),
        cell(1, "cell_type", value="other"),
    ],
    "the_head_promises": [
        change(0, "# 09 An", "# 08 An"),
        change(0, "kept.", "kept. Then more."),
        change(0, "See **one** [rule](x.md) kept.\n\n", ""),
        change(0, "**You will**", "**You may**"),
        change(0, "- read\n", ""),
        change(0, "**Needs**", "Needs"),
        change(0, "**Learn** 5 minutes", "**Learn** quickly"),
        change(0, "**Run**", ""),
    ],
    "the_tail_keeps_the_promise": [
        change(-1, "## You can now", "## Done"),
        change(-1, "- read\n", ""),
        change(-1, "Who? ", ""),
        change(-1, "## Into your own experiment", "## Copy"),
        change(-1, "**Next:**", "Next:"),
        drop(-1),
    ],
    "one_parameters_cell": [
        cell(2, "metadata", "tags", value=[]),
        cell(1, "metadata", "tags", value=["parameters"]),
        change(2, "SEED", "SEEDS"),
        change(2, "'embedded'", "'gpu'"),
        change(2, "SEED = 0", "SEED = 0\nprint(SEED)"),
    ],
    "tags_are_known": [cell(3, "metadata", "tags", value=["stabel"])],
    "code_parses": [
        change(3, "show.table(", "show.table(("),
        change(4, "def add(a, b):", "def add(a, b:"),
    ],
    "cells_can_be_copied": [
        change(1, IMPORT, "!pip install x"),
        change(1, IMPORT, "%cd .."),
        change(1, IMPORT, "from os import *"),
        change(1, IMPORT, "import os\nos.chdir('..')"),
        change(1, IMPORT, "import sys\nsys.path.append('..')"),
        change(1, IMPORT, "open('/data/x')"),
        change(1, IMPORT, "open('C:/data/x')"),
        change(1, IMPORT, "open('~/x')"),
        change(4, "return a + b", "return open('/data/x')"),
    ],
    "lines_are_short": [
        change(1, IMPORT, "x = 1" + " " * 70 + "# why"),
    ],
    "outputs_are_clean": [
        put("metadata", "widgets", value={}),
        put("metadata", "papermill", value={}),
        cell(3, "execution_count", value=3),
        cell(3, "outputs", 0, "execution_count", value=3),
        cell(3, "metadata", "execution", value={}),
        cell(3, "outputs", 0, "data", WIDGET + "view+json", value={}),
        cell(3, "outputs", 0, "data", "text/plain", value="<f at 0x7f12ab>"),
        cell(6, "outputs", 0, "name", value="stderr"),
        cell(6, "outputs", 0, "output_type", value="error"),
    ],
    "outputs_are_there": [
        cell(3, "outputs", value=[]),
        cell(3, "outputs", 0, "data", value={"image/png": "x"}),
        cell(6, "outputs", value=[]),
    ],
    "exercises_are_whole": [
        change(4, "(difficulty 1 of 5, 5 minutes)", ""),
        change(4, "difficulty 1", "difficulty 6"),
        change(4, ", 5 minutes", ""),
        change(4, "</summary>\n\n", "</summary>\n"),
        change(4, "```\n\n</details>", "```\n</details>"),
        change(4, "```python", "```"),
        change(4, "def add(a, b)", "def add(b, a)"),
        change(4, "def add(a, b)", "def plus(a, b)"),
        change(4, "def add(a, b):\n    return a + b", "a + b"),
        change(4, "### Exercise 1", "### Try 1"),
        cell(5, "metadata", "tags", value=[]),
        cell(6, "metadata", "tags", value=[]),
        drop(5),
        drop(6),
    ],
    "what_is_imported_exists": [
        change(1, "import show", "import shows"),
        change(1, IMPORT, "from instructft.masking import label"),
        change(1, IMPORT, "from instructft.masks import labels"),
        change(3, "show.table", "show.tables"),
    ],
    # the example is 09, which no pin names
    "pins_name_the_notebook": [
        change(1, IMPORT, "import trl"),
        change(1, IMPORT, "from peft.tuners import lora"),
    ],
}


@pytest.mark.parametrize("rule", RULES)
def test_the_example_keeps_the_rule_and_each_break_is_found(rule):
    assert not list(RULES[rule]("09", example()))
    for number, spoil in enumerate(BREAKS[rule]):
        broken = copy.deepcopy(example())
        spoil(broken)
        assert list(RULES[rule]("09", broken)), f"break {number} of {rule}"


# Recipes against the installed libraries: cells for a GPU, on a CPU, unrun

SIGNATURES = {
    "SFTConfig": "trl:SFTConfig",
    "SFTTrainer": "trl:SFTTrainer",
    "LoraConfig": "peft:LoraConfig",
    "BitsAndBytesConfig": "transformers:BitsAndBytesConfig",
    "OpenAI": "openai:OpenAI",
    "completions.create": "openai.resources.chat:Completions.create",
}
# Gone, or on their way out, though some are still taken
REFUSED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing",
    "tokenizer": "processing_class",
    "max_seq_length": "max_length",
    "warmup_ratio": "warmup_steps below 1",
    "evaluation_strategy": "eval_strategy",
    "torch_dtype": "dtype",
}


@cache
def keywords(called):
    """The named parameters of a library's callable; **others do not count."""
    home, way = SIGNATURES[called].split(":")
    found = importlib.import_module(home)
    for name in way.split("."):
        found = getattr(found, name)
    if isinstance(found, type):
        found = found.__init__
    named = inspect.signature(found).parameters.values()
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {p.name for p in named if p.kind not in kinds} - {"self"}


def called(node):
    """The key of SIGNATURES that a call is of, if any."""
    if not isinstance(node, ast.Call):
        return None
    name = ast.unparse(node.func)
    for key in SIGNATURES:
        if name == key or name.endswith(f".{key}"):
            return key
    return None


def drift(tree):
    """What a recipe passes that the installed library does not name."""
    for node in ast.walk(tree):
        key = called(node)
        if not key:
            continue
        for given in node.keywords:
            name = given.arg
            if name is None:
                if key != "completions.create":  # a request is one dict
                    yield f"{key}: write the keywords out, no **"
            elif name in REFUSED:
                yield f"{key}: {name} is old, write {REFUSED[name]}"
            elif name not in keywords(key):
                yield f"{key} takes no {name}"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem[:3])
def test_recipes_name_what_the_libraries_take(path):
    notebook = json.loads(path.read_text("utf-8"))
    said = [
        f"{path.name}, {name}: {fault}"
        for name, tree in trees(notebook)
        for fault in drift(tree)
    ]
    assert not said, "\n".join(said)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        ("SFTConfig(output_dir='x', max_length=3)", ""),
        ("trl.SFTConfig(max_lenght=3)", "no max_lenght"),
        ("SFTConfig(max_seq_length=3)", "write max_length"),
        ("SFTConfig(warmup_ratio=0.1)", "write warmup_steps"),
        ("SFTConfig(gradient_checkpointing=True)", "write activation"),
        ("SFTConfig(evaluation_strategy='no')", "write eval_strategy"),
        ("SFTConfig(**more)", "no **"),
        ("client.chat.completions.create(**request)", ""),
        ("client.chat.completions.create(max_token=3)", "no max_token"),
        ("SFTTrainer(model=m, processing_class=t)", ""),
        ("SFTTrainer(tokenizer=t)", "write processing_class"),
        ("SFTTrainer(packing=True)", "no packing"),
        ("LoraConfig(r=8, lora_alpha=16)", ""),
        ("LoraConfig(rank=8)", "no rank"),
        ("BitsAndBytesConfig(load_in_4bit=True)", ""),
        ("BitsAndBytesConfig(load_in_4bits=True)", "no load_in_4bits"),
        ("f(x, trainer=[SFTTrainer(trainset=x)])", "no trainset"),
    ],
)
def test_a_misspelt_recipe_is_found(call, part):
    said = list(drift(ast.parse(call)))
    assert len(said) == bool(part) and part in "".join(said)


QLORA = next((p for p in PATHS if p.name.startswith("07_")), None)
BUILT = ("SFTConfig", "LoraConfig", "BitsAndBytesConfig")


def cards():
    """The keys of CARDS in notebook 07."""
    notebook = json.loads(QLORA.read_text("utf-8"))
    for _, tree in trees(notebook):
        for node in tree.body:
            if isinstance(node, ast.Assign):
                if ast.unparse(node.targets[0]) == "CARDS":
                    return list(ast.literal_eval(node.value))
    return []


def recipe(run, card):
    """What 07 hands to each library: ({class name: keywords}, RECIPE).

    Runs its parameters cell and the cell with CARDS as they stand, then
    the lines that build a config, with recorders for the classes.
    """
    import torch

    dtype = torch.float16 if card == "T4" else torch.bfloat16
    asked = {}

    def recorder(name):
        return lambda **given: asked.setdefault(name, given)

    names = {name: recorder(name) for name in BUILT}
    names |= {"torch": torch, "Path": Path, "embedded": lambda: "a folder"}
    names["machine"] = types.SimpleNamespace(dtype=lambda: dtype)
    for cell in code_cells(json.loads(QLORA.read_text("utf-8"))):
        text = source(cell)
        if "parameters" in tags(cell):
            exec(text, names)
            names |= {"RUN": run, "CARD": card}
        elif re.search(r"^CARDS = ", text, re.M):
            exec(text, names)
        else:
            for node in ast.parse(text).body:
                if (
                    isinstance(node, ast.Assign)
                    and called(node.value) in BUILT
                ):
                    exec(ast.unparse(node), names)
    assert set(asked) == set(BUILT)
    return asked, names["RECIPE"]


def fits(value, kind):
    """Tell whether a value is of an annotated type, as far as is plain."""
    kinds = typing.get_args(kind) or (kind,)
    plain = {bool, int, float, str, dict, list, type(None)}
    if not set(kinds) <= plain:
        return True
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (
        isinstance(value, int) and float in kinds
    )


def test_the_rule_for_types_can_fail():
    assert fits(1, float) and fits(None, int | None) and fits(True, bool)
    assert not fits("2e-4", float) and not fits(0.5, int)
    assert not fits("yes", bool | None) and not fits(True, int)


@pytest.mark.parametrize("card", cards())
def test_the_gpu_recipe_builds_for_each_card(card, tmp_path):
    import torch
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig
    from trl import SFTConfig

    asked, chosen = recipe("gpu", card)
    _, embedded = recipe("embedded", card)
    assert chosen.keys() == embedded.keys()

    given = asked["SFTConfig"]
    assert given["use_cpu"] is False
    hints = typing.get_type_hints(SFTConfig)
    for name, value in given.items():
        assert fits(value, hints[name]), f"{name}={value!r}: {hints[name]}"
    half = given["bf16"], given["fp16"]
    assert half == ((False, True) if card == "T4" else (True, False))
    here = {"use_cpu": True, "output_dir": str(tmp_path)}
    config = SFTConfig(**given | here)
    for name in given.keys() - here.keys() - {"report_to"}:
        assert getattr(config, name) == given[name], name

    bits = BitsAndBytesConfig(**asked["BitsAndBytesConfig"])
    assert bits.load_in_4bit and bits.bnb_4bit_quant_type == "nf4"
    assert isinstance(bits.bnb_4bit_compute_dtype, torch.dtype)
    LoraConfig(**asked["LoraConfig"])


def test_the_gpu_recipe_adapts_every_layer_of_a_7b_model():
    from accelerate import init_empty_weights
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Qwen2Config

    # Qwen2.5-7B-Instruct, from its published config
    published = Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        tie_word_embeddings=False,
    )
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(published)
    assert model.num_parameters() == 7_615_616_512
    assert {p.device.type for p in model.parameters()} == {"meta"}

    lora = LoraConfig(**recipe("gpu", cards()[0])[0]["LoraConfig"])
    rank = lora.r
    with init_empty_weights():
        adapted = get_peft_model(model, lora)
    hit = Counter(
        name.split(".")[-1]
        for name, module in adapted.named_modules()
        if getattr(module, "lora_A", None)
    )
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    kinds = (*attention, "gate_proj", "up_proj", "down_proj")
    assert hit == dict.fromkeys(kinds, 28)
    wide, narrow, deep = 3584, 512, 18944
    each = 2 * (wide + wide) + 2 * (wide + narrow) + 3 * (wide + deep)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 28 * rank * each
