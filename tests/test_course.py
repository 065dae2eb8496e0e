"""Runs small notebooks of our own in a temporary course."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import (
    new_code_cell,
    new_markdown_cell,
    new_notebook,
    new_output,
)

from instructft import course, report

REPO = Path(course.__file__).resolve().parent.parent
POSIX = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
TRACE = "print(open('../trace', 'a').write('{}\\n'))"
# waits, unless ../go exists; says which process it is
WAIT = (
    "import os, pathlib, time\n"
    "pathlib.Path('../pid.part').write_text(str(os.getpid()))\n"
    "os.replace('../pid.part', '../pid')\n"
    "while not pathlib.Path('../go').exists(): time.sleep(0.05)"
)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty course: point the runner at it."""
    for name in ("notebooks", "instructft"):
        (tmp_path / name).mkdir()
    (tmp_path / "instructft" / "lesson.py").write_text("ROWS = 1\n")
    (tmp_path / "requirements.txt").write_text("nbclient==1.0  # 07\npip\n")
    machine = types.ModuleType("instructft.machine")
    machine.facts = lambda: {"device": "cpu"}
    monkeypatch.setitem(sys.modules, "instructft.machine", machine)
    monkeypatch.setattr(course, "ROOT", tmp_path)
    return tmp_path


def lay(root, name, *cells):
    """Write a notebook: a cell is text (markdown) or (source, *tags)."""
    notebook = new_notebook(cells=[])
    for index, cell in enumerate(cells):
        if isinstance(cell, str):
            made = new_markdown_cell(cell)
        else:
            made = new_code_cell(cell[0], metadata={"tags": list(cell[1:])})
        made["id"] = f"{name[:2]}-cell-{index}"
        notebook.cells.append(made)
    path = root / "notebooks" / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def edit(path, old, new):
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


def trace(root):
    """Read, and empty, the list of what ran."""
    path = root / "trace"
    lines = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def runs(root):
    return sorted(p.name for p in (root / "runs").iterdir())


def outputs(path, index):
    return json.loads(path.read_text("utf-8"))["cells"][index]["outputs"]


def start(root, call="run()"):
    """Start a run in a process of its own; wait until it waits."""
    code = (
        "import signal, sys; from pathlib import Path;"
        # a shell's background job has it ignored, and so its children
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from instructft import course;"
        f"course.ROOT = Path({str(root)!r}); sys.exit(course.{call})"
    )
    env = os.environ | {"PYTHONPATH": str(REPO)}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until((root / "pid").exists)
    return process, int((root / "pid").read_text())


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_import_is_light():
    code = (
        "import sys, instructft.course; heavy = {'papermill', 'nbformat', "
        "'nbclient', 'psutil', 'torch'} & set(sys.modules); print(heavy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPO,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "set()", done.stderr


def test_runs_in_order_with_this_interpreter(root, monkeypatch, capsys):
    for name in ("10_last", "02b_third", "02a_second", "00_first"):
        lay(root, name, "# T\nP.", (TRACE.format(name),))
    (root / "notebooks" / "notes_00.ipynb").write_text("not ours")
    facts = (
        "import os, pathlib, sys\n"
        "print(sys.executable, pathlib.Path.cwd().name, RUN,\n"
        "      os.environ['OMP_WAIT_POLICY'],\n"
        "      os.environ['HF_HUB_DISABLE_TELEMETRY'],\n"
        "      os.environ['TOKENIZERS_PARALLELISM'],\n"
        "      os.environ.get('HF_HUB_OFFLINE'))"
    )
    lay(root, "01_facts", ("RUN = 'embedded'", "parameters"), (facts,))
    # a kernel of the same name that would not even start
    kernel = root / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    spec = {"argv": ["no-such-python"], "display_name": "no", "language": "no"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(root / "jupyter"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    assert course.run() == 0
    assert trace(root) == ["00_first", "02a_second", "02b_third", "10_last"]
    [folder] = runs(root)
    executed = root / "runs" / folder / "01_facts.ipynb"
    said = outputs(executed, 1)[0]["text"]
    assert "".join(said).split() == [
        sys.executable,
        *["notebooks", "embedded", "passive", "1", "false", "1"],
    ]
    shown = capsys.readouterr().out
    assert "\r" not in shown
    assert [line.split(":")[0] for line in shown.splitlines()[:2]] == [
        "00_first",
        "01_facts",
    ]
    assert str(root / "runs" / folder / "report.html") in shown

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert course.run("01", gpu=True) == 0
    assert "\r01_facts: cell " in capsys.readouterr().out
    new = (set(runs(root)) - {folder}).pop()
    executed = root / "runs" / new / "01_facts.ipynb"
    said = "".join(outputs(executed, 2)[0]["text"])
    assert said.split()[2:] == ["gpu", "passive", "1", "false", "None"]


def test_a_failure_stops_the_run_and_the_next_goes_on(root, capsys):
    first = lay(root, "00_a", (TRACE.format("a"),))
    second = lay(root, "01_b", "# B", (TRACE.format("b") + "\n1 / 0  # here",))
    lay(root, "02_c", (TRACE.format("c"),))
    assert course.run() == 1
    said = capsys.readouterr().out
    for part in (
        "01_b: failed in cell 01-cell-1",
        "    1 / 0",
        "ZeroDivisionError",
    ):
        assert part in said
    assert "\x1b" not in said
    assert trace(root) == ["a", "b"]

    edit(first, "print", "  # a comment\\nprint")
    assert course.run() == 1
    assert trace(root) == ["b"]

    (root / "instructft" / "lesson.py").write_text("ROWS = 2\n")
    assert course.run() == 1
    assert trace(root) == ["a", "b"]

    edit(first, "'a'", "'a+'")  # the mode of open(): other code
    edit(second, "1 / 0", "1 / 1")
    assert course.run() == 0
    assert trace(root) == ["a", "b", "c"]
    assert len(runs(root)) == 1
    assert not list(root.rglob("*.failed.ipynb"))


def test_fresh_and_torn_runs_start_anew(root, capsys):
    lay(root, "00_a", (TRACE.format("a"),))
    lay(root, "01_b", ("import os; os.kill(os.getpid(), 9)",))
    assert course.run() == 1
    assert "kernel" in capsys.readouterr().out.lower()
    [old] = runs(root)
    state = root / "runs" / old / "state.json"
    state.write_text(state.read_text()[:-9])
    lay(root, "01_b", ("pass",))
    assert course.run() == 0
    assert f"{state} is torn" in capsys.readouterr().out
    assert trace(root) == ["a", "a"]
    assert len(runs(root)) == 2


@POSIX
def test_a_killed_run_leaves_no_kernel_and_is_continued(root):
    lay(root, "00_a", (TRACE.format("a"),))
    lay(root, "01_b", (TRACE.format("b") + "\n" + WAIT,))
    process, kernel = start(root)
    [folder] = runs(root)
    assert not gone(kernel)
    # a second run at once has a folder of its own
    kind = {"only": [], "gpu": False}
    other, lock, _ = course._open_run(kind, fresh=False)
    with lock:
        assert other.name != folder
    shutil.rmtree(other)

    process.kill()
    process.wait()
    until(lambda: gone(kernel), 5)
    assert trace(root) == ["a", "b"]
    (root / "go").touch()
    assert course.run() == 0
    assert trace(root) == ["b"]
    assert runs(root) == [folder]


@POSIX
def test_ctrl_c_ends_the_kernel(root):
    lay(root, "00_a", (WAIT,))
    process, kernel = start(root)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=90)
    assert process.returncode == 130
    assert gone(kernel)
    assert "Interrupted" in said and "Traceback" not in said


def test_counts_the_memory_of_the_kernel_and_its_children(root):
    hold = "held = b'x' * (150 << 20)"
    lay(root, "01_alone", (hold,))
    child = f"import time; {hold}; time.sleep(1)"
    command = f"[sys.executable, '-c', {child!r}]"
    code = f"import subprocess, sys; {hold}; subprocess.run({command})"
    lay(root, "02_child", (code,))
    assert course.run() == 0
    states = [json.loads(p.read_text()) for p in root.rglob("state.json")]
    peaks = {k: v["peak_mb"] for s in states for k, v in s["done"].items()}
    assert 150 < peaks["01_alone"] < 300 < peaks["02_child"] < 600


def test_says_what_exists(root, capsys):
    lay(root, "00_a", ("1",))
    lay(root, "02a_b", ("1",))
    assert course.run("07") == 2
    assert course.run("00", "7") == 2
    assert course.study("07") == 2
    assert capsys.readouterr().out.count("00, 02a") == 3
    assert course.run(gpu=True, save=True) == 2
    shutil.rmtree(root / "notebooks")
    capsys.readouterr()
    assert course.run() == 2
    assert "requirements.txt" in capsys.readouterr().out
    assert not (root / "runs").exists()


def test_runs_those_named_and_no_other(root, capsys):
    for name in ("00_a", "01_b", "02a_c"):
        lay(root, name, (TRACE.format(name),))
    assert course.run("02a", "00") == 0
    assert trace(root) == ["00_a", "02a_c"]
    assert course.run("00", "02a", "00") == 0  # complete: another one
    assert trace(root) == ["00_a", "02a_c"]
    assert len(runs(root)) == 2


def test_a_script_holds_the_named_cells(root, capsys):
    """In the order of their names, with the values that are given."""
    names = "## Beyond one machine\n`07-cell-3`, then `07-cell-1`.\n\n"
    cells = ["# T", ("import sys",), (names,), ("SEED = 0", "parameters")]
    path = lay(root, "07_a", *cells, names + "## More\n`07-cell-2`")
    text = course.script_text(path, {"SEED": 3})
    order = ["# 07-cell-3", "SEED = 0", "SEED = 3", "# 07-cell-1", "sys"]
    places = [text.index(each) for each in order]
    assert places == sorted(places) and "07-cell-2" not in text
    assert course.script("07") == 0
    written = (root / "data/work/07/script.py").read_text("utf-8")
    assert written == course.script_text(path)
    compile(written, "script.py", "exec")
    said = capsys.readouterr().out
    assert f"{sys.executable} -m torch.distributed.run" in said
    # what was edited is not lost
    assert course.script("07") == 0
    edit(root / "data/work/07/script.py", "SEED = 0", "SEED = 5")
    assert course.script("07") == 2
    assert "is there and differs" in capsys.readouterr().out
    assert "SEED = 5" in (root / "data/work/07/script.py").read_text()
    edit(path, "import sys", "%pip list")
    assert course.script("07") == 2
    assert "07-cell-1 is no plain Python" in capsys.readouterr().out
    edit(path, "`07-cell-1`", "`07-cell-0`")
    assert course.script("07") == 2
    assert "has no code cell 07-cell-0" in capsys.readouterr().out
    lay(root, "00_b", "# T", ("1",))
    assert course.script("00") == 2
    assert "names no cells" in capsys.readouterr().out


def test_report_shows_what_is_tagged(tmp_path):
    stream = new_output("stream", text="a<b &\n")
    noise = new_output("stream", name="stderr", text="noise")
    hidden = new_output("stream", text="hidden")
    rich = {"text/html": "<i>it</i>", "text/plain": "it, plain"}
    figure = {"image/png": "iVBO\nRw0K", "text/plain": "<Figure 1x1>"}
    shown = [new_output("display_data", data=d) for d in (rich, figure)]
    markdown = "# Seven & more\n\n**See** a `run`\nthrough. Not this.\n"
    fence = "### Counts\n```python\n# not a heading\n```\n"
    cells = [
        new_markdown_cell(markdown),
        new_code_cell("0", outputs=[hidden]),
        new_markdown_cell("## Early"),
        new_markdown_cell(fence),
        new_code_cell(
            "1", metadata={"tags": ["report"]}, outputs=[stream, noise]
        ),
        new_code_cell("2", metadata={"tags": ["report"]}, outputs=shown),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "07_x.ipynb")
    steps = {"07_x": {"seconds": 61.4, "peak_mb": 321}}
    text = report.write(tmp_path, steps, {"cores": 2}, {"torch": "2.13.0"})
    page = (tmp_path / "report.html").read_text("utf-8")

    assert text == (tmp_path / "report.txt").read_text("utf-8")
    assert "See a run through.\n1 min 1 s, 321 MB at most\n" in text
    assert "Counts\n    a<b &\n\nCounts\n    it, plain\n    (in rep" in text
    assert "cores       2" in text and "torch 2.13.0" in text
    assert "<h2>Seven &amp; more</h2>" in page
    assert "<h3>Counts</h3>\n<pre>a&lt;b &amp;</pre>" in page
    assert "<div><i>it</i></div>" in page
    assert 'src="data:image/png;base64,iVBORw0K"' in page
    for form in (text, page):
        assert "Seven" in form
        for absent in ("hidden", "noise", "Not this", "Early", "a heading"):
            assert absent not in form
    assert "http" not in page.replace("http-equiv", "")


def test_fingerprint_sees_code_and_pins_only(root):
    cells = [
        "# Title",
        ("SEED = 0", "parameters"),
        ("def f(x):  # why\n    return None", "build"),
        ("%time f(1)",),
        ("mine = None", "exercise"),
        ("check(mine)", "check"),
        ("f(SEED)", "result"),
        ("'after'",),
    ]
    path = lay(root, "07_x", *cells)
    first = course.fingerprint(path)
    # the same on every Python: it is committed
    assert first.startswith("84cfdc9e8766")

    def changed(index, *cell):
        other = [*cells[:index], cell, *cells[index + 1 :]]
        return course.fingerprint(lay(root, "07_y", *other)) != first

    assert not changed(2, "def f( x ):\n\n  return None  # because", "build")
    assert not changed(4, "mine = 3", "exercise")
    assert not changed(5, "check(mine, 2)", "check")
    assert not changed(7, "'later'")
    split = [*cells[:6], ("import this",), *cells[6:]]
    whole = [*cells[:6], ("import this\nf(SEED)", "result"), cells[7]]
    assert course.fingerprint(lay(root, "07_y", *split)) == (
        course.fingerprint(lay(root, "07_z", *whole))
    )
    assert changed(1, "SEED = 1", "parameters")
    assert changed(2, "def f(x):\n    return False", "build")
    assert changed(3, "%time f(2)")
    assert changed(4, "mine = 3")
    assert changed(6, "f(SEED + 1)", "result")

    pins = root / "requirements.txt"
    pins.write_text("pip>=3\nnbclient==1.0  # 05, 07\n")
    assert course.fingerprint(path) == first
    pins.write_text("nbclient==1.0  # 05, 07\npip==3  # 05a 10\n")
    assert course.fingerprint(path) == first  # a pin of others alone
    for other in ("pip==3  # 05 07", "pip==3", "pip==3  # all; >= 4.6.2"):
        pins.write_text(f"nbclient==1.0  # 05, 07\n{other}\n")
        assert course.fingerprint(path) != first
    pins.write_text("nbclient==1.1\n")
    assert course.fingerprint(path) != first


def test_study_sweeps_resumes_and_grows_stale(root, monkeypatch, capsys):
    study = '{"SEED": [0, 1], "ROWS": 640, "NAME": ["a/b"]}'
    path = lay(
        root,
        "07_x",
        (f"SEED, ROWS = 0, 5\nNAME = ''\nSTUDY = {study}", "parameters"),
        (TRACE.format("{SEED}").replace("('{", "(f'{"),),
        ("import pathlib\nassert not SEED or pathlib.Path('../go').exists()",),
        (
            "from IPython.display import JSON\n"
            "JSON({'loss': SEED + 0.5, 'rows': ROWS, 'name': NAME})",
            "result",
        ),
    )
    assert course.study("07") == 1
    assert trace(root) == ["0", "1"]
    assert not (root / "data").exists()
    (root / "go").touch()
    assert course.study("07") == 0
    assert trace(root) == ["1"]

    target = root / "data" / "studies" / "07.json"
    record = json.loads(target.read_text("utf-8"))
    assert list(record) == sorted(record)
    assert record["notebook"] == "07_x.ipynb"
    assert record["fingerprint"] == course.fingerprint(path)
    assert record["commit"] is None and record["dirty"] is False
    assert record["machine"] == {"device": "cpu"}
    assert set(record["versions"]) == {"python", "nbclient"}
    assert [run["result"] for run in record["runs"]] == [
        {"loss": 0.5, "rows": 640, "name": "a/b"},
        {"loss": 1.5, "rows": 640, "name": "a/b"},
    ]
    assert record["runs"][1]["parameters"] == {
        "SEED": 1,
        "ROWS": 640,
        "NAME": "a/b",
    }
    assert record["runs"][0]["seconds"] > 0 < record["runs"][0]["peak_mb"]
    assert str(root) not in target.read_text("utf-8")

    assert course.stale_studies() == []
    edit(path, "0.5", "0.25")
    [sentence] = course.stale_studies()
    assert "07.json" in sentence and "study 07" in sentence
    path.unlink()
    assert len(course.stale_studies()) == 1


def test_study_of_several_sweeps(root):
    study = '[{"SEED": [0, 1]}, {"SEED": 1, "WAYS": [["a"], ["b", "c"]]}]'
    path = lay(
        root,
        "07_x",
        (f"SEED = 0\nWAYS = []\nSTUDY = {study}", "parameters"),
        ("from IPython.display import JSON\nJSON({'ways': WAYS})", "result"),
    )
    assert course.study("07") == 0
    record = json.loads((root / "data/studies/07.json").read_text("utf-8"))
    runs = [(r["parameters"], r["result"]["ways"]) for r in record["runs"]]
    assert runs == [
        ({"SEED": 0}, []),
        ({"SEED": 1}, []),
        ({"SEED": 1, "WAYS": ["a"]}, ["a"]),
        ({"SEED": 1, "WAYS": ["b", "c"]}, ["b", "c"]),
    ]
    assert course.stale_studies() == [] and path.exists()


@pytest.mark.parametrize(
    ("parameters", "part"),
    [
        ('SEED = 0\nSTUDY = {"SEEDS": [1]}', "names SEEDS"),
        ('SEED = 0\nSTUDY = {"SEED": []}', "SEED has no value"),
        ('SEED = 0\nSTUDY = {"SEED": range(3)}', "must assign STUDY"),
        ("SEED = 0", "must assign STUDY"),
        ("SEED = 0\nSTUDY = [1]", "must assign STUDY"),
        ('SEED = 0\nSTUDY = [{"SEED": 1}, {"ROWS": 1}]', "names ROWS"),
    ],
)
def test_study_says_what_is_wrong(root, capsys, parameters, part):
    lay(root, "07_x", (parameters, "parameters"), ("1", "result"))
    assert course.study("07") == 2
    assert part in capsys.readouterr().out


def test_save_keeps_sources_and_drops_the_rest(root):
    source = "import sys\nprint('out')\nprint('err', file=sys.stderr)\n1 + 1"
    widget = {"text/plain": "slider", course.WIDGET: {"model_id": "1"}}
    slider = f"display({widget}, raw=True)  "
    path = lay(root, "00_a", "# A  \nB.\n", (source,), (slider,))
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["widgets"] = {"state": {}}
    notebook.cells[1].execution_count = 12
    notebook.cells[1].metadata["execution"] = {"iopub.status.busy": "1"}
    notebook.cells[2].outputs = [new_output("stream", text="old")]
    nbformat.write(notebook, path)
    before = json.loads(path.read_text("utf-8"))["cells"]
    assert len(course.stale_outputs()) == 1

    assert course.run(save=True) == 0
    saved = json.loads(path.read_text("utf-8"))
    for old, new in zip(before, saved["cells"], strict=True):
        assert [old[k] for k in ("id", "source")] == [
            new[k] for k in ("id", "source")
        ]
        assert "execution" not in new["metadata"]
        assert new.get("execution_count") is None
    kinds = [o["output_type"] for o in saved["cells"][1]["outputs"]]
    assert kinds == ["stream", "execute_result"]
    assert saved["cells"][1]["outputs"][0]["text"] == ["out\n"]
    assert saved["cells"][1]["outputs"][1]["execution_count"] is None
    [shown] = saved["cells"][2]["outputs"]
    assert shown["data"] == {"text/plain": ["slider"]}
    assert not {"widgets", "papermill"} & set(saved["metadata"])
    assert course.stale_outputs() == []
    # nothing is left for nbstripout to do
    text = path.read_text("utf-8")
    options = ["--drop-output-type", "stream:stderr", "--keep-output"]
    keys = "metadata.widgets cell.metadata.execution"
    options += ["--keep-id", "--extra-keys", keys, str(path)]
    strip = [sys.executable, "-m", "nbstripout", *options]
    subprocess.run(strip, check=True)
    assert path.read_text("utf-8") == text
    edit(path, "1 + 1", "1 + 2")
    assert len(course.stale_outputs()) == 1


def test_save_refuses_a_notebook_edited_meanwhile(root, capsys):
    code = (
        "import pathlib\nme = pathlib.Path('00_a.ipynb')\n"
        "me.write_text(me.read_text().replace('40', '41'))"
    )
    path = lay(root, "00_a", (code,), ("x = 1 + 40",))
    assert course.run(save=True) == 1
    assert "edited" in capsys.readouterr().out
    assert outputs(path, 0) == []
