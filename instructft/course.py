"""Runs the notebooks: the whole course, one lesson, or a lesson's study."""

import ast
import contextlib
import copy
import functools
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path

from instructft import report
from instructft.instance import whole_file

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = re.compile(r"(\d\d[a-z]?)_.*\.ipynb")
MEASURED = ("seconds", "peak_mb", "result")
WIDGET = "application/vnd.jupyter.widget-view+json"
SCRIPT = "Beyond one machine"  # the heading over the names of its cells


def _command(function):
    """Let Ctrl-C end a command in a sentence, and any terminal show it."""

    @functools.wraps(function)
    def command(*words, **options) -> int:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")
        try:
            return function(*words, **options)
        except KeyboardInterrupt:
            print("\nInterrupted. The same command goes on from here.")
            return 130

    return command


@_command
def run(
    *only: str, gpu: bool = False, fresh: bool = False, save: bool = False
) -> int:
    """Run the course, or the notebooks numbered `only`, and report on it.

    Continues the newest run of this kind if that did not get to its end,
    unless `fresh`. `gpu` runs the notebooks with RUN = "gpu"; `save` writes
    the outputs back to notebooks/. Returns the exit code: 0 all ran, 1 a
    cell failed, 2 the request cannot be met, 130 interrupted.
    """
    if save and gpu:
        print("--save keeps the embedded run's outputs: leave out --gpu.")
        return 2
    try:
        notebooks = _find(*only)
    except LookupError as error:
        print(error)
        return 2
    kind = {"only": sorted(set(only)), "gpu": gpu}
    folder, lock, state = _open_run(kind, fresh)
    with lock:
        for path in notebooks:
            mark, package = fingerprint(path), _package_hash()
            entry = state["done"].get(path.stem, {})
            target = folder / path.name
            if (
                target.exists()
                and entry.get("fingerprint") == mark
                and entry.get("package") == package
                and not (save and _code(path) != _code(target))
            ):
                _progress(f"{path.stem}: finished before", last=True)
                continue
            _forget(folder, state, path.stem)
            parameters = {"RUN": "gpu"} if gpu else {}
            entry = _execute(_read(path), path.stem, target, parameters)
            if entry is None:
                return 1
            entry |= {"fingerprint": mark, "package": package}
            state["done"][path.stem] = entry
            _write_state(folder, state)
        steps = {p.stem: state["done"][p.stem] for p in notebooks}
        print(report.write(folder, steps, _machine(), _versions()))
        if save and not all([_write_back(p, folder) for p in notebooks]):
            return 1
        _write_state(folder, state | {"complete": True})
    print(f"The report: {folder / 'report.html'}")
    return 0


@_command
def study(number: str) -> int:
    """Run a notebook once per combination of its STUDY, collect the results.

    The notebook's parameters cell assigns a literal dict, or a list of them:
    lists in it are swept, anything else is fixed. Writes
    data/studies/NN.json; a combination that finished before a kill is not
    run again. Returns an exit code like run's.
    """
    try:
        [path] = _find(number)
        plan = _plan(path)
    except (LookupError, ValueError) as error:
        print(error)
        return 2
    number, mark, commit = _number(path), fingerprint(path), _commit()
    notebook = _read(path)
    folder = ROOT / "runs" / f"study-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    if lock is None:
        print(f"Study {number} is already running.")
        return 2
    with lock:
        state = _read_state(folder) or {"done": {}}
        for index, parameters in enumerate(plan):
            key = _key(parameters)
            entry = state["done"].get(key, {})
            name = f"study {number}, {index + 1} of {len(plan)}: {key}"
            target = folder / f"{key}.ipynb"
            if entry.get("fingerprint") == mark and target.exists():
                _progress(f"{name}: finished before", last=True)
                continue
            _forget(folder, state, key)
            fresh = copy.deepcopy(notebook)
            entry = _execute(fresh, name, target, parameters)
            if entry is None:
                return 1
            try:
                entry |= {"fingerprint": mark, "result": _result(target)}
            except ValueError as error:
                print(error)
                return 1
            state["done"][key] = entry
            _write_state(folder, state)
        runs = [
            {k: state["done"][_key(p)][k] for k in MEASURED}
            | {"parameters": p}
            for p in plan
        ]
    record = {
        "notebook": path.name,
        "fingerprint": mark,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **commit,
        "machine": _machine(),
        "versions": _versions(),
        "runs": runs,
    }
    target = ROOT / "data" / "studies" / f"{number}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(target, json.dumps(record, indent=1, sort_keys=True) + "\n")
    print(f"{len(runs)} runs are in data/studies/{target.name}.")
    return 0


@_command
def script(number: str) -> int:
    """Write the recipe of a notebook as a script, for `torchrun` to run.

    It goes to data/work/NN/script.py, unless an edited one lies there; what
    is in it says `script_text`. Returns an exit code: 0, or 2 if the
    notebook has no such recipe, or the edited one would be lost.
    """
    try:
        [path] = _find(number)
        text = script_text(path)
    except (LookupError, ValueError) as error:
        print(error)
        return 2
    target = ROOT / "data" / "work" / number / "script.py"
    name = target.relative_to(ROOT).as_posix()
    if target.exists() and target.read_text("utf-8", "replace") != text:
        print(f"{name} is there and differs: rename it, then run this again.")
        return 2
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(target, text)
    print(
        f"{name}: {len(text.splitlines())} lines. Edit its parameters (from "
        "RUN = on), and start it with\n  cd notebooks\n  "
        f"{shlex.quote(sys.executable)} -m torch.distributed.run "
        f"--nproc_per_node 2 ../{name}"
    )
    return 0


def script_text(path: Path | str, parameters: dict | None = None) -> str:
    """Return cells of a notebook as a script, in the order they are named.

    They are those whose ids stand between backticks in the markdown cell
    headed "Beyond one machine". `parameters` are assigned after the
    parameters cell. Raises ValueError if there is no such heading, a
    named cell is missing, or no plain Python (a magic, say).
    """
    cells = {cell.get("id"): cell for cell in _cells(path)}
    parts = [
        f'"""Made from {Path(path).name}; run it in that folder."""',
        "from IPython.display import display",
    ]
    for name in named_cells(path, SCRIPT):
        cell = cells[name]
        source = "".join(cell["source"])
        try:
            ast.parse(source)
        except SyntaxError as error:
            raise ValueError(f"{name} is no plain Python: {error}") from None
        parts.append(f"# {name}\n{source}")
        if "parameters" in _tags(cell):
            given = (parameters or {}).items()
            parts += [f"{key} = {value!r}" for key, value in given]
    return "\n\n".join(parts) + "\n"


def named_cells(path: Path | str, heading: str) -> list[str]:
    """Return the ids of code cells that a section names, in its order.

    The section is the text from a heading to the next one in the same
    markdown cell, and an id is named between backticks. Raises ValueError
    if there is no such heading or name, or no such code cell.
    """
    name, cells = Path(path).name, _cells(path)
    code = {c.get("id") for c in cells if c["cell_type"] == "code"}
    section = rf"^##+ {re.escape(heading)}\b.*?$(.*?)(?=^##+ |\Z)"
    for cell in cells:
        found = re.search(section, "".join(cell["source"]), re.M | re.S)
        if found and cell["cell_type"] == "markdown":
            named = re.findall(r"`(\d\d[a-z]?-[a-z0-9-]+)`", found[1])
            if missing := [each for each in named if each not in code]:
                raise ValueError(f"{name} has no code cell {missing[0]}.")
            if named:
                return list(dict.fromkeys(named))
    raise ValueError(f"{name} names no cells under a heading {heading!r}.")


# What a result depends on


def fingerprint(notebook_path: Path | str) -> str:
    """Hash what a notebook's result depends on: its code and the pins.

    Counted are the code cells up to the one tagged `result`, as one list of
    syntax trees, so that comments, layout and where a cell ends do not
    matter, and the lines with == of requirements.txt that name the notebook
    behind them, or none. Exercises and their checks do not count.
    """
    parts = []
    for cell in _cells(notebook_path):
        tags = _tags(cell)
        if cell["cell_type"] == "code" and not tags & {"exercise", "check"}:
            source = "".join(cell["source"])
            try:
                parts += _shape(ast.parse(source).body)
            except SyntaxError:  # IPython magics
                parts.append(source.strip())
        if "result" in tags:
            break
    number = Path(notebook_path).stem.split("_")[0]
    text = json.dumps([parts, sorted(_pins(number))])
    return hashlib.sha256(text.encode()).hexdigest()


def stale_studies() -> list[str]:
    """Name each committed study that is older than its notebook or pins."""
    stale = []
    for path in sorted((ROOT / "data" / "studies").glob("*.json")):
        try:
            [notebook] = _find(path.stem)
            study = json.loads(path.read_text("utf-8"))
            fresh = study["fingerprint"] == fingerprint(notebook)
        except (LookupError, ValueError) as error:
            stale.append(f"data/studies/{path.name}: {error!s}")
            continue
        if not fresh:
            stale.append(
                f"data/studies/{path.name} is older than the cells or pins "
                f"of {notebook.name}: run `python -m instructft study "
                f"{path.stem}`"
            )
    return stale


def stale_outputs() -> list[str]:
    """Name each notebook whose saved outputs are older than its cells."""
    stale = []
    for path in _find():
        notebook = json.loads(path.read_text("utf-8"))
        saved = notebook["metadata"].get("instructft", {}).get("fingerprint")
        if saved != fingerprint(path):
            stale.append(
                f"notebooks/{path.name} has outputs "
                + ("older than its cells or pins" if saved else "of no run")
                + ": `python -m instructft run --save` renews them"
            )
    return stale


def _shape(node: object) -> object:
    """Turn a syntax tree into lists that are equal on every Python.

    (`ast.dump` is not: newer ones have more fields, and print fewer.)
    """
    if isinstance(node, list):
        return [_shape(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [
        [name, _shape(value)]
        for name, value in ast.iter_fields(node)
        if value is not None and value != []
    ]
    return [type(node).__name__, *fields]


def _package_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted((ROOT / "instructft").rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _pins(number: str = "") -> list[str]:
    """Return the pins; for a notebook, without those of others alone."""
    path = ROOT / "requirements.txt"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    found = []
    for line in lines:
        pin, _, why = line.partition("#")
        numbers = re.findall(r"\b\d\d[ab]?\b", why)
        if "==" in pin and (not number or not numbers or number in numbers):
            found.append(pin.strip())
    return found


def _versions() -> dict[str, str]:
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in [re.split(r"[^\w.-]", pin)[0] for pin in _pins()]:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _machine() -> dict[str, object]:
    from instructft.machine import facts

    return facts()


def _commit() -> dict[str, object]:
    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words], cwd=ROOT, capture_output=True, text=True
            )
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changed = git("status", "--porcelain", "--", ".", ":!data/studies")
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}


# Notebooks and their cells


def _find(*only: str) -> list[Path]:
    folder = ROOT / "notebooks"
    if not folder.is_dir():
        there = ", ".join(sorted(p.name for p in ROOT.iterdir())) or "nothing"
        raise LookupError(f"No notebooks folder in {ROOT}; there is: {there}.")
    every = [p for p in folder.iterdir() if NOTEBOOK.fullmatch(p.name)]
    there = sorted(map(_number, every))
    missing = [number for number in only if number not in there]
    if missing or not every:
        raise LookupError(
            f"No notebook {', '.join(missing) or 'at all'}; there is: "
            f"{', '.join(there) or 'none'}."
        )
    return sorted(p for p in every if not only or _number(p) in only)


def _number(path: Path) -> str:
    return path.stem.split("_")[0]


def _cells(path: Path | str) -> list[dict]:
    return json.loads(Path(path).read_text("utf-8"))["cells"]


def _tags(cell: dict) -> set[str]:
    return set(cell["metadata"].get("tags", []))


def _code(path: Path) -> list[str]:
    cells = [c for c in _cells(path) if c["cell_type"] == "code"]
    return ["".join(cell["source"]) for cell in cells]


def _read(path: Path):
    import nbformat

    return nbformat.read(path, as_version=4)


def _plan(path: Path) -> list[dict]:
    """Spell out the STUDY of a notebook, one dict of parameters per run."""
    tagged = {tag: c for c in reversed(_cells(path)) for tag in _tags(c)}
    for tag in ("parameters", "result"):
        if tag not in tagged:
            raise ValueError(f"{path.name} has no cell tagged `{tag}`.")
    assigned = {}
    try:
        for line in ast.parse("".join(tagged["parameters"]["source"])).body:
            for node in ast.walk(line):
                match node:
                    case ast.Name(id=name, ctx=ast.Store()):
                        assigned[name] = getattr(line, "value", None)
        study = ast.literal_eval(assigned["STUDY"])
        json.dumps(study)
        sweeps = [
            {k: v if isinstance(v, list) else [v] for k, v in part.items()}
            for part in (study if isinstance(study, list) else [study])
        ]
    except (KeyError, SyntaxError, TypeError, ValueError, AttributeError):
        raise ValueError(
            f"The parameters cell of {path.name} must assign STUDY, a dict "
            "(or a list of dicts) written out with plain values, such as "
            '{"SEED": [0, 1, 2]}.'
        ) from None
    for name, values in [pair for swept in sweeps for pair in swept.items()]:
        if name not in assigned:
            raise ValueError(
                f"STUDY in {path.name} names {name}, which its parameters "
                f"cell does not assign; it assigns: {', '.join(assigned)}."
            )
        if not values:
            raise ValueError(f"STUDY in {path.name}: {name} has no value.")
    return [
        dict(zip(swept, values, strict=True))
        for swept in sweeps
        for values in itertools.product(*swept.values())
    ]


def _key(parameters: dict) -> str:
    text = json.dumps(parameters, sort_keys=True)
    words = re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")[:60]
    return f"{words}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _result(path: Path) -> dict:
    cell = next(cell for cell in _cells(path) if "result" in _tags(cell))
    for output in cell["outputs"]:
        result = output.get("data", {}).get("application/json")
        if isinstance(result, dict):
            return result
    raise ValueError(
        f"The cell tagged `result` in {path.name} showed no dict as JSON; "
        "let it end in IPython.display.JSON(...)."
    )


# Execution


def _execute(notebook, name: str, target: Path, parameters: dict):
    """Execute a notebook into `target`: its cost, or None and why."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal
    from nbformat import writes
    from papermill.parameterize import parameterize_notebook

    if parameters:
        notebook.metadata.setdefault("papermill", {})
        for cell in notebook.cells:  # papermill looks at every cell's
            cell.metadata.setdefault("tags", [])
        notebook = parameterize_notebook(
            notebook, parameters, kernel_name="python3", language="python"
        )
    # Without a folder of specs ipykernel's own is left: this interpreter.
    specs = KernelSpecManager(kernel_dirs=[])
    client = NotebookClient(
        notebook,
        AsyncKernelManager(
            kernel_name="python3",
            kernel_spec_manager=specs,
            transport_encryption="auto",
        ),
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(ROOT / "notebooks")}},
    )
    failed = target.with_suffix(".failed.ipynb")
    meter = {"cell": 0, "cells": len(notebook.cells), "peak_mb": 0.0}
    start = time.monotonic()
    log = target.parent / "kernel.log"
    try:
        with (
            log.open("w") as out,
            _kernel(client, parameters, out),
            _measured(client.km.provisioner.pid, name, start, meter),
        ):
            for index, cell in enumerate(notebook.cells):
                meter["cell"] = index + 1
                client.execute_cell(cell, index)
    except (CellControlSignal, RuntimeError) as error:
        _write(failed, writes(notebook))
        cell = notebook.cells[max(meter["cell"] - 1, 0)]
        _progress(f"{name}: failed in cell {cell.get('id')}", last=True)
        print(_explain(cell, error, log))
        print(f"\nWhat ran: {failed}\nThe same command goes on from here.")
        return None
    _write(target, writes(notebook))
    failed.unlink(missing_ok=True)
    seconds, peak = round(time.monotonic() - start, 1), round(meter["peak_mb"])
    _progress(f"{name}: {seconds:.0f} s, {peak} MB at most", last=True)
    return {"seconds": seconds, "peak_mb": peak}


def _kernel(client, parameters: dict, out):
    """Start the client's kernel; leaving the context shuts it down."""
    env = os.environ | {
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # the progress line is ours; bars would end up in saved outputs
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    if parameters.get("RUN") != "gpu":
        env["HF_HUB_OFFLINE"] = "1"
    return client.setup_kernel(
        cleanup_kc=True, env=env, stdout=out, stderr=subprocess.STDOUT
    )


@contextlib.contextmanager
def _measured(pid: int, name: str, start: float, meter: dict):
    """Measure the memory of a process tree and show how far it is."""
    done = threading.Event()

    def watch() -> None:
        last = False
        while not last:
            last = done.wait(0.25)
            meter["peak_mb"] = max(meter["peak_mb"], _resident_mb(pid))
            _progress(
                f"{name}: cell {meter['cell']} of {meter['cells']}, "
                f"{time.monotonic() - start:.0f} s, {meter['peak_mb']:.0f} MB"
            )

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _resident_mb(pid: int) -> float:
    import psutil

    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += each.memory_info().rss
    return total / 10**6


def _progress(text: str, last: bool = False) -> None:
    """Show a line that the next one replaces, unless it is the last.

    Where the output is not a terminal, show the last ones only.
    """
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        end = "\n" if last else ""
        print("\r" + text[:width].ljust(width), end=end, flush=True)
    elif last:
        print(text, flush=True)


def _explain(cell, error: Exception, log: Path) -> str:
    lines = cell.source.splitlines()
    shown = lines[:8] + ["..."] * (len(lines) > 8)
    outputs = cell.get("outputs", [])
    errors = [o for o in outputs if o.output_type == "error"]
    if errors:
        trace = "\n".join(errors[-1].traceback).splitlines()
        what = f"{errors[-1].ename}: {errors[-1].evalue}"
    else:
        trace = log.read_text("utf-8", errors="replace").splitlines()
        what = f"{error} (a dead kernel often means: out of memory)"
    text = "\n".join(
        ["", *[f"    {line}" for line in shown], "", what, "", *trace[-25:]]
    )
    text = text.rstrip()
    return text if sys.stdout.isatty() else report.ANSI.sub("", text)


# Files that a kill leaves whole


def _write(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text.encode("utf-8"))


def _write_state(folder: Path, state: dict) -> None:
    _write(folder / "state.json", json.dumps(state, indent=1))


def _read_state(folder: Path) -> dict | None:
    path = folder / "state.json"
    try:
        state = json.loads(path.read_text("utf-8"))
        if isinstance(state["done"], dict):
            return state
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        pass
    print(f"{path} is torn: it counts as absent.")
    return None


def _forget(folder: Path, state: dict, name: str) -> None:
    """Take back that a notebook finished, before it is run again."""
    if state["done"].pop(name, None):
        _write_state(folder, state)


def _lock(folder: Path):
    """Hold a folder until the process ends; None if another one holds it."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / "lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        return None


def _open_run(kind: dict, fresh: bool):
    """Hold the newest unfinished run of this kind, or else a new one."""
    runs = ROOT / "runs"
    old = sorted(runs.glob("[0-9]*-[0-9]*"), reverse=True)
    for folder in [] if fresh else old:
        state = _read_state(folder)
        if not state or state.get("kind") != kind:
            continue
        if state.get("complete"):
            break
        lock = _lock(folder)
        if lock is not None:  # else another run is at work there
            print(f"Going on in {folder}")
            return folder, lock, _read_state(folder)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for count in itertools.count(1):
        folder = runs / (stamp if count == 1 else f"{stamp}-{count}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            break
    state = {"kind": kind, "done": {}}
    lock = _lock(folder)
    _write_state(folder, state)
    return folder, lock, state


def _write_back(path: Path, folder: Path) -> bool:
    """Give a notebook its cleaned outputs; False if it was edited since."""
    from nbformat import writes

    notebook, ran = _read(path), _read(folder / path.name)
    if _code(path) != _code(folder / path.name):
        print(f"{path.name} was edited during the run: not saved. Run again.")
        return False
    executed = iter([c for c in ran.cells if c.cell_type == "code"])
    for cell in notebook.cells:
        for key in ("papermill", "execution", "collapsed", "scrolled"):
            cell.metadata.pop(key, None)
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        outputs = next(executed).outputs
        cell.outputs = [o for o in outputs if o.get("name") != "stderr"]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = None
            output.get("data", {}).pop(WIDGET, None)
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    notebook.metadata["instructft"] = {"fingerprint": fingerprint(path)}
    _write(path, writes(notebook) + "\n")
    return True
