"""A learner's way: JupyterLab in a browser, Run All, nothing red.

Wants the browser extra and a Chromium: on the PATH, or named by CHROMIUM.
"""

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import psutil
import pytest
from test_notebook_runs import (
    SMALL,
    find,
    lay_course,
    need_archives,
    read,
    shrink,
)

from instructft import __main__ as bootstrap
from instructft.instance import read_rows

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(
        None,
        map(shutil.which, ("chromium", "chromium-browser", "google-chrome")),
    ),
    None,
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--no-first-run"]
SECONDS = 420  # for one notebook, on a busy machine
HERE = {"127.0.0.1", "localhost", "::1"}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium"),
]
playwright = pytest.importorskip("playwright.sync_api")

# The notebook in front, as the page itself knows it
FRONT = "window.jupyterapp?.shell.currentWidget"
IDLE = f"{FRONT}?.sessionContext?.session?.kernel?.status === 'idle'"
CELLS = f"""() => [...{FRONT}.content.model.cells].map(cell => ({{
    id: cell.id, type: cell.type, count: cell.executionCount ?? null,
    tags: cell.getMetadata('tags') ?? [],
    outputs: cell.type === 'code' ? cell.outputs.toJSON() : []}}))"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A JupyterLab on a copy of the course: (address, process, log)."""
    lay_course(tmp_path)
    notebooks = tmp_path / "notebooks"
    monkeypatch.setattr(bootstrap, "NOTEBOOKS", str(notebooks))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = bootstrap.lab_command(sys.executable)
    # only so that the test finds it and can look into the page
    command += ["--no-browser", f"--ServerApp.port={port}"]
    command += ["--ServerApp.port_retries=0", "--LabApp.expose_app_in_browser"]
    command[-1] += "=True"
    token = secrets.token_hex(16)
    own = {f"JUPYTER_{k}_DIR": k for k in ("CONFIG", "DATA", "RUNTIME")}
    env = bootstrap.surroundings(sys.executable)
    env |= {name: str(tmp_path / folder) for name, folder in own.items()}
    env |= {"JUPYTER_TOKEN": token, "PYTHONPATH": str(ROOT)}
    log = tmp_path / "lab.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, cwd=tmp_path, env=env, stdout=out, stderr=out
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/api", server, log)
        yield f"{address}/lab/tree/{{}}?reset&token={token}", server, log
    finally:
        family = [server.pid, *(p.pid for p in children(server))]
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        for pid in family:
            with contextlib.suppress(psutil.Error):
                psutil.Process(pid).kill()
        server.wait()
        shutil.rmtree(tmp_path / "data" / "work", ignore_errors=True)


def wait_for(url, server, log):
    end = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError):
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                url, timeout=5
            )
            return
        assert server.poll() is None, log.read_text("utf-8")
        assert time.monotonic() < end, log.read_text("utf-8")
        time.sleep(0.2)


def children(server):
    with contextlib.suppress(psutil.Error):
        return psutil.Process(server.pid).children(recursive=True)
    return []


def peers(server):
    """The hosts that the server and its kernels are connected to."""
    found = set()
    for process in [psutil.Process(server.pid), *children(server)]:
        with contextlib.suppress(psutil.Error):
            for each in process.net_connections("inet"):
                if each.raddr:
                    found.add(each.raddr.ip.removeprefix("::ffff:"))
    return found


def outside(urls):
    """The addresses that are not of this machine."""
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https", "ws", "wss"):
            if parts.hostname not in HERE:
                yield url


def test_the_rule_for_addresses_can_fail():
    here = ["http://127.0.0.1:1/x", "ws://localhost/y", "data:,x", "blob:x"]
    away = ["https://example.org/x.js", "http://127.0.0.1.example.org/"]
    assert list(outside(here + away)) == away


@pytest.fixture
def page():
    """A page of a Chromium that does nothing of its own: (page, urls)."""
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        seen = []
        context.on("request", lambda request: seen.append(request.url))
        made = context.new_page()
        made.on("websocket", lambda socket: seen.append(socket.url))
        yield made, seen
        browser.close()


def cells_of(page):
    return [c for c in page.evaluate(CELLS) if c["type"] == "code"]


def errors_in(cells):
    return [
        f"{cell['id']}: {output.get('ename')}: {output.get('evalue')}"
        for cell in cells
        for output in cell["outputs"]
        if output["output_type"] == "error"
    ]


def run_all(page, lab, path):
    """Open a notebook, run all of its cells, wait for the last.

    Returns its code cells, and whom the server and its kernels met.
    """
    address, server, log = lab
    page.goto(address.format(path.name))
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    page.wait_for_function(IDLE, timeout=60_000)
    page.evaluate("() => { jupyterapp.commands.execute('runmenu:run-all') }")
    end, met = time.monotonic() + SECONDS, set()
    while True:
        met |= peers(server)
        cells = cells_of(page)
        waiting = [cell["id"] for cell in cells if not cell["count"]]
        if errors_in(cells) or not waiting and page.evaluate(IDLE):
            return cells, met
        assert time.monotonic() < end, f"{path.name}: {waiting} did not run"
        assert server.poll() is None, log.read_text("utf-8")
        page.wait_for_timeout(500)


def write(notebook, path):
    """Write it without outputs: what is seen was then shown now."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)


def keep_until(path, last):
    """Cut a notebook after the cell of that id."""
    notebook = read(path)
    ids = [cell.id for cell in notebook.cells]
    del notebook.cells[ids.index(last) + 1 :]
    write(notebook, path)


def test_the_form_of_01_by_keyboard_and_mouse(lab, page, tmp_path):
    page, _ = page
    path = find(tmp_path, "01")
    keep_until(path, "01-form")
    cells, _ = run_all(page, lab, path)
    assert not errors_in(cells)
    boxes = page.locator(".jp-OutputArea .widget-textarea textarea")
    save = page.locator(".jp-OutputArea button.widget-button")
    boxes.first.scroll_into_view_if_needed()
    assert boxes.count() == 3
    off = "b => b.disabled"
    page.wait_for_function(off, arg=save.element_handle())
    boxes.first.click()
    page.keyboard.type("Say it in Latin.")
    page.keyboard.press("Tab")
    page.keyboard.type("<b>peace</b>")
    page.keyboard.press("Tab")
    page.keyboard.type("<b>peace</b>")
    shown = page.locator(".jp-OutputArea .widget-output")
    shown.get_by_text("output equals input").first.wait_for()
    page.wait_for_function(off, arg=save.element_handle())
    boxes.nth(2).fill("pax")
    shown.get_by_text("assistant").first.wait_for()
    assert shown.get_by_text("<b>peace</b>").count()  # text, not markup
    save.click()
    shown.get_by_text("saved in").first.wait_for()
    # once more, by keyboard alone
    boxes.first.focus()
    for text in ("Say it in Latin.", "war", "bellum"):
        page.keyboard.type(text)
        page.keyboard.press("Tab")
    page.wait_for_function("b => !b.disabled", arg=save.element_handle())
    save.focus()
    page.keyboard.press("Enter")
    page.wait_for_function(off, arg=save.element_handle())
    rows = read_rows(tmp_path / "data/work/01/mine.jsonl")
    assert [row["output"] for row in rows] == ["pax", "bellum"]
    assert rows[0]["input"] == "<b>peace</b>"


def test_the_slider_of_02a_by_keyboard_and_mouse(lab, page, tmp_path):
    need_archives("02a")
    page, _ = page
    path = find(tmp_path, "02a")
    keep_until(path, "02a-p3-browse")
    cells, _ = run_all(page, lab, path)
    assert not errors_in(cells)
    handle = page.locator(".jp-OutputArea .noUi-handle")
    handle.scroll_into_view_if_needed()
    seen = page.locator(".jp-OutputArea .widget-output")
    row = page.locator(".jp-OutputArea .widget-readout")
    first = seen.inner_text()
    assert row.inner_text() == "0" and "I was wondering" in first
    handle.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "([e, old]) => e.innerText !== old && e.innerText.includes('tokens')",
        arg=[seen.element_handle(), first],
    )
    assert row.inner_text() == "1"
    second = seen.inner_text()
    bar = page.locator(".jp-OutputArea .noUi-target").bounding_box()
    middle = bar["x"] + bar["width"] / 2, bar["y"] + bar["height"] / 2
    page.mouse.click(*middle)
    page.wait_for_function(
        "([e, old]) => e.innerText !== old && e.innerText.includes('tokens')",
        arg=[seen.element_handle(), second],
    )
    assert 20 < int(row.inner_text()) < 40
    page.screenshot(path=tmp_path / "02a-slider.png")


def test_rows_of_03_are_judged_by_keyboard_and_mouse(lab, page, tmp_path):
    page, _ = page
    path = find(tmp_path, "03")
    keep_until(path, "03-judge")
    cells, _ = run_all(page, lab, path)
    assert not errors_in(cells)
    area = page.locator(".jp-OutputArea").filter(
        has=page.locator(".widget-checkbox")
    )
    boxes = area.locator("input[type=checkbox]")
    seen = area.locator(".widget-output")
    following = area.locator("button.widget-button")
    boxes.first.scroll_into_view_if_needed()
    assert boxes.count() == 4
    seen.get_by_text("row 1 of 50").wait_for()
    boxes.nth(0).click()
    boxes.nth(2).click()
    following.click()
    seen.get_by_text("row 2 of 50").wait_for()
    assert not boxes.nth(0).is_checked()
    # the next one by keyboard alone
    boxes.nth(3).focus()
    page.keyboard.press("Space")
    following.focus()
    page.keyboard.press("Enter")
    seen.get_by_text("row 3 of 50").wait_for()
    page.screenshot(path=tmp_path / "03-judge.png")
    rows = read_rows(tmp_path / "data/work/03/labels.jsonl")
    assert [list(row.values())[1:] for row in rows] == [
        [True, False, True, False],
        [False, False, False, True],
    ]
    assert len({row["id"] for row in rows}) == 2


def test_either_role_of_04_is_taken_in_the_browser(lab, page, tmp_path):
    need_archives("04")
    page, _ = page
    path = find(tmp_path, "04")
    keep_until(path, "04-stage")
    cells, _ = run_all(page, lab, path)
    assert not errors_in(cells)
    area = page.locator(".jp-OutputArea").filter(
        has=page.get_by_role("button", name="Next turn")
    )
    line = area.locator("input[type=text]")
    seen = area.locator(".widget-output")
    line.scroll_into_view_if_needed()
    line.click()
    page.keyboard.type("Which <b>herb</b> grows in the shade?")
    page.keyboard.press("Enter")
    seen.get_by_text("Which <b>herb</b> grows in the shade?").wait_for()
    area.get_by_role("button", name="Next turn").click()
    seen.get_by_text("assistant").wait_for(timeout=60_000)
    page.screenshot(path=tmp_path / "04-stage.png")
    # the other role, by keyboard alone
    start = area.get_by_role("button", name="Start over")
    start.focus()
    page.keyboard.press("Enter")
    seen.get_by_text("assistant").wait_for(state="detached")
    area.get_by_role("button", name="Next turn").focus()
    page.keyboard.press("Enter")
    seen.get_by_text("user").wait_for(timeout=60_000)
    line.focus()
    page.keyboard.type("Parsley.")
    page.keyboard.press("Enter")
    seen.get_by_text("Parsley.").wait_for()


def keep_only(path, ids, *others):
    """Cut a notebook to these cells; `others` come before the last."""
    notebook = read(path)
    notebook.cells = [cell for cell in notebook.cells if cell.id in ids]
    assert len(notebook.cells) == len(ids)
    made = [nbformat.v4.new_code_cell(text) for text in others]
    notebook.cells[-1:-1] = made
    write(notebook, path)


def test_the_xray_of_05a_by_keyboard_and_mouse(lab, page, tmp_path):
    """The notebook's own cell, with a stand-in for the losses."""
    page, _ = page
    path = find(tmp_path, "05a")
    rows = (
        "tokenizer = AutoTokenizer.from_pretrained(embedded())\n"
        "ids = [tokenizer(t).input_ids for t in ('red', 'blue', 'green')]\n"
        "seen = [(each, each) for each in ids]\n"
        "before = [[3.0] * len(each) for each in ids]\n"
        "after = [[0.1] * len(each) for each in ids]"
    )
    keep_only(path, ["05a-imports", "05a-xray"], rows)
    cells, _ = run_all(page, lab, path)
    assert not errors_in(cells)
    area = page.locator(".jp-OutputArea").filter(
        has=page.get_by_role("button", name="before")
    )
    seen = area.locator(".widget-output")
    seen.get_by_text("red", exact=True).wait_for()
    shown = {"before": seen.inner_html()}
    area.get_by_role("button", name="after").click()
    page.wait_for_function(
        "([e, old]) => e.innerHTML !== old && e.innerText.includes('red')",
        arg=[seen.element_handle(), shown["before"]],
    )
    area.locator(".noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    seen.get_by_text("blue", exact=True).wait_for()
    page.screenshot(path=tmp_path / "05a-xray.png")


@pytest.mark.parametrize("number", ["06", "07"])
def test_the_chat_by_keyboard_and_mouse(number, lab, page, tmp_path):
    """The notebook's own cell, with a stand-in for the tuned model."""
    page, _ = page
    path = find(tmp_path, number)
    said = "[f'<b>{len(asked[0])}</b> heard' if 'x' in str(asked) else 1 / 0]"
    before = (
        "SYSTEM, LONGEST = 'Be brief.', 40\n"
        "tuned = model = trainer = tokenizer = type('T', (), {})()\n"
        "trainer.model = merged = tuned\n"
        f"def answers(model, tokenizer, asked, *more): return {said}"
    )
    keep_only(path, [f"{number}-imports", f"{number}-chat"], before)
    cells, _ = run_all(page, lab, path)
    assert not errors_in(cells)
    area = page.locator(".jp-OutputArea").filter(
        has=page.get_by_role("button", name="Start over")
    )
    line = area.locator("input[type=text]")
    seen = area.locator(".widget-output")
    line.click()
    page.keyboard.type("x <i>one</i>")
    page.keyboard.press("Enter")
    seen.get_by_text("x <i>one</i>").wait_for()  # text, not markup
    first = seen.get_by_text(re.compile(r"<b>\d</b> heard"))
    first.wait_for()
    count = int(re.search(r"\d", first.inner_text())[0])
    page.keyboard.type("x two")
    page.keyboard.press("Enter")
    second = seen.get_by_text(f"<b>{count + 2}</b> heard")
    second.wait_for()
    # a failure is seen, and by keyboard alone it starts over
    area.get_by_role("button", name="Start over").focus()
    page.keyboard.press("Enter")
    second.wait_for(state="detached")
    line.focus()
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    seen.get_by_text("no answer: ZeroDivisionError").wait_for()
    page.screenshot(path=tmp_path / f"{number}-chat.png")


def test_will_it_fit_of_07_by_keyboard_and_mouse(lab, page, tmp_path):
    page, _ = page
    path = find(tmp_path, "07")
    keep_until(path, "07-will-it-fit")
    cells, _ = run_all(page, lab, path)
    assert not errors_in(cells)
    area = page.locator(".jp-OutputArea").filter(
        has=page.get_by_role("button", name="qlora")
    )
    seen = area.locator(".widget-output")
    changed = "([e, old]) => e.innerHTML !== old && e.innerHTML.length > 200"

    def after(act):
        """Do something, and wait until another picture is shown."""
        old = seen.inner_html()
        act()
        page.wait_for_function(
            changed, arg=[seen.element_handle(), old], timeout=60_000
        )

    seen.scroll_into_view_if_needed()
    after(lambda: area.get_by_role("button", name="full").click())
    area.locator(".noUi-handle").first.focus()
    after(lambda: page.keyboard.press("ArrowRight"))
    area.get_by_role("button", name="qlora").focus()
    after(lambda: page.keyboard.press("Enter"))
    after(lambda: area.locator("input[type=checkbox]").click())
    after(lambda: area.locator("select").nth(0).select_option(index=1))
    page.screenshot(path=tmp_path / "07-will-it-fit.png")


@pytest.mark.parametrize("name", NAMES)
def test_run_all_in_the_browser(name, lab, page, tmp_path):
    page, urls = page
    number = name.split("_")[0]
    need_archives(number)
    path = tmp_path / "notebooks" / name
    notebook = read(path)
    shrink(notebook, SMALL.get(number, {}))
    write(notebook, path)

    cells, met = run_all(page, lab, path)
    page.screenshot(path=tmp_path / f"{number}-end.png")
    page.evaluate(f"() => {FRONT}.content.scrollToItem(0)")
    page.wait_for_timeout(1000)
    page.screenshot(path=tmp_path / f"{number}-start.png")

    assert not errors_in(cells), f"{name}\n" + "\n".join(errors_in(cells))
    red = '[data-mime-type="application/vnd.jupyter.error"]'
    assert page.locator(red).count() == 0
    for cell in cells:
        if "report" in cell["tags"]:
            assert cell["outputs"], f"{name}, {cell['id']} shows nothing"
    assert urls and not list(outside(urls))
    assert met <= HERE, f"the server or a kernel met {met - HERE}"
    said = lab[2].read_text("utf-8")
    logged = re.findall(r"\b(?:https?|wss?)://[^\s'\"]+", said)
    assert not list(outside(logged))
