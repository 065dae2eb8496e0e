"""The journal: nothing paid is lost, no budget is exceeded."""

import asyncio
import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructft import journal
from instructft.journal import Journal, JournalError, OverBudget, request_id

ROOT = Path(__file__).resolve().parent.parent
ASK = {"model": "m", "messages": [{"role": "user", "content": "1 + 1?"}]}


def run(work):
    return asyncio.run(work)


async def ask(book, request, reply="2", cost="0.25", most="1", **more):
    ticket = await book.intend(request, most)
    return await book.record(ticket, "ok", reply, {"n": 1}, cost, **more)


def asks(count):
    return [ASK | {"seed": i} for i in range(count)]


def fill(path, count=5, **more):
    async def work():
        with Journal(path) as book:
            for request in asks(count):
                await ask(book, request, f"reply {request['seed']}", **more)

    run(work())


def test_what_was_recorded_is_there_again(tmp_path):
    path = tmp_path / "new" / "a.jsonl"
    fill(path)
    with Journal(path) as book:
        assert book.result(ASK | {"seed": 3}) == {
            "state": "ok",
            "reply": "reply 3",
            "usage": {"n": 1},
            "cost": "0.25",
        }
        assert book.result(ASK) is None
        assert book.paid == Decimal("1.25") and book.reserved == 0
    for line in path.read_bytes().splitlines():
        assert json.loads(line)["event"] in ("intent", "result")


def test_odd_texts_come_back_as_they_were(tmp_path):
    texts = ["\u2028", "\ud800", "\x00\n\r", "a" * 10_000, '","sum":"', ""]

    async def work():
        with Journal(tmp_path / "a") as book:
            for text in texts:
                await ask(book, {"text": text}, text)

    run(work())
    with Journal(tmp_path / "a") as book:
        for text in texts:
            assert book.result({"text": text})["reply"] == text


@given(
    st.dictionaries(st.text(), st.integers() | st.text() | st.booleans()),
    st.text(),
)
def test_another_request_has_another_id(request, name):
    turned = dict(reversed(request.items()))
    assert request_id(turned) == request_id(request)
    assert request_id(request | {name: ["x"]}) != request_id(request)


def test_a_failure_that_is_tried_again_is_no_result(tmp_path):
    async def work():
        with Journal(tmp_path / "a", budget=2) as book:
            ticket = await book.intend(ASK, 1)
            await book.record(ticket, "429", cost=0, final=False)
            assert book.result(ASK) is None and book.paid == 0
            with pytest.raises(KeyError):
                await book.record(ticket, "ok")
            await ask(book, ASK)
            assert book.result(ASK)["reply"] == "2"

    run(work())


# --- money -----------------------------------------------------------------


def test_a_budget_is_kept_before_anything_is_sent(tmp_path):
    async def work():
        with Journal(tmp_path / "a", budget=0.3) as book:
            first = await book.intend(ASK, 0.1)
            second = await book.intend(ASK, "0.2")  # exactly: no float dust
            with pytest.raises(OverBudget, match=r"budget of \$0.3"):
                await book.intend(ASK, "0.0000001")
            await book.record(first, "ok", cost="0.05")
            await book.record(second, "timeout")  # counted in full
            assert book.paid == Decimal("0.25")
            await ask(book, ASK, most="0.05", cost="0.05")
            with pytest.raises(OverBudget):
                await book.intend(ASK, "0.01")

    run(work())
    with Journal(tmp_path / "a", budget=0.3) as book:
        assert book.paid == Decimal("0.3")


def test_an_unknown_price_keeps_no_budget(tmp_path):
    async def work():
        with Journal(tmp_path / "a", budget=1) as book:
            with pytest.raises(OverBudget, match="not known"):
                await book.intend(ASK, None)
        with Journal(tmp_path / "a") as book:
            ticket = await book.intend(ASK, None)
            await book.record(ticket, "ok", "2")
            assert book.paid == 0 and book.unpriced == 1

    run(work())


@pytest.mark.parametrize("seed", range(25))
def test_no_order_of_events_exceeds_the_budget(tmp_path, seed):
    chance = random.Random(seed)
    budget = Decimal(chance.randrange(1, 40)) / 10
    bill = []

    async def row(book, request):
        for _ in range(3):
            most = Decimal(chance.randrange(1, 9)) / 10
            try:
                ticket = await book.intend(request, most)
            except OverBudget:
                return
            cost = most * chance.randrange(11) / 10
            bill.append(cost)
            await asyncio.sleep(chance.random() / 1000)
            if chance.random() < 0.1:
                return  # its answer never comes
            known = chance.random() < 0.7
            await book.record(ticket, "x", cost=cost if known else None)

    async def work():
        with Journal(tmp_path / "a", budget) as book:
            await asyncio.gather(*(row(book, r) for r in asks(12)))
            assert book.paid + book.reserved <= budget
            return book.paid + book.reserved

    counted = run(work())
    assert sum(bill) <= counted <= budget
    with Journal(tmp_path / "a", budget) as book:
        assert book.paid == counted and book.reserved == 0


# --- damage ----------------------------------------------------------------


def test_cut_at_every_byte_all_whole_lines_come_back(tmp_path):
    path = tmp_path / "a"
    fill(path, 2)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with Journal(path) as book:
            last = max((end for end in ends if end <= cut), default=0)
            lines = ends.index(last) + 1 if last else 0
            assert path.read_bytes() == whole[:last]
            assert bool(book.result(asks(2)[0])) == (lines >= 2)
            assert len(book.cut_off) == lines % 2
            assert book.paid == [0, 1, Decimal("0.25"), 1.25, 0.5][lines]
            run(ask(book, ASK))
        with Journal(path) as book:
            assert book.result(ASK)
    # what was cut off is kept beside it
    assert whole[ends[0] : ends[1] - 1] in (tmp_path / "a.torn").read_bytes()


@pytest.mark.parametrize("line", range(9))
def test_a_damaged_middle_line_is_refused(tmp_path, line):
    path = tmp_path / "a"
    fill(path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b"ok", b"OK").replace(b"1 + 1", b"1 + 2")
    path.write_bytes(damaged := b"".join(lines))
    offset = sum(map(len, lines[:line]))
    with pytest.raises(JournalError, match=f"a:{line + 1}: .*byte {offset};"):
        Journal(path)
    assert path.read_bytes() == damaged


def test_a_result_without_its_intent_is_refused(tmp_path):
    fill(tmp_path / "a")
    lines = (tmp_path / "a").read_bytes().splitlines(keepends=True)
    (tmp_path / "a").write_bytes(b"".join(lines[1:]))
    with pytest.raises(JournalError, match="a:1: a result without"):
        Journal(tmp_path / "a")


def test_an_intent_without_a_result_counts_as_paid(tmp_path):
    async def work():
        with Journal(tmp_path / "a") as book:
            await book.intend(ASK, "0.5")

    run(work())
    with Journal(tmp_path / "a") as book:
        assert book.paid == Decimal("0.5")
        assert list(book.cut_off) == [request_id(ASK)]
        assert book.result(ASK) is None


def test_nothing_goes_on_before_it_is_synced(tmp_path, monkeypatch):
    path, name = tmp_path / "a", "fdatasync"
    name = name if hasattr(os, name) else "fsync"
    sync, synced = getattr(os, name), []

    def noted(file):
        sync(file)
        synced.append(path.stat().st_size)

    async def work():
        with Journal(path) as book:
            ticket = await book.intend(ASK, 1)
            assert synced[-1:] == [path.stat().st_size]
            await book.record(ticket, "ok", "2")
            assert synced[-1] == path.stat().st_size

    monkeypatch.setattr(journal.os, name, noted)
    run(work())
    assert len(synced) == 2


def test_one_writer(tmp_path):
    with Journal(tmp_path / "a"):
        code = (
            "from instructft.journal import Journal, JournalError\n"
            f"try: Journal({str(tmp_path / 'a')!r})\n"
            "except JournalError as error: print(error)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert "in use by another process" in done.stdout, done
    Journal(tmp_path / "a").close()


def test_a_full_disk_stops_and_goes_on(tmp_path, monkeypatch):
    path, write = tmp_path / "a", os.write
    fill(path, 1)
    whole = path.read_bytes()

    def full(file, data):
        if len(data) > 20:
            return write(file, bytes(data[:20]))
        raise OSError(errno.ENOSPC, "No space left on device")

    async def work(book):
        await asyncio.gather(*(ask(book, r) for r in asks(3)))

    with Journal(path) as book:
        monkeypatch.setattr(journal.os, "write", full)
        with pytest.raises(OSError, match="make room"):
            run(work(book))
        monkeypatch.setattr(journal.os, "write", write)
        assert path.read_bytes() == whole
        run(ask(book, ASK))
    with Journal(path) as book:
        assert book.result(ASK) and not book.cut_off


def test_a_row_given_up_is_still_recorded(tmp_path):
    async def work():
        with Journal(tmp_path / "a") as book:
            ticket = await book.intend(ASK, 1)
            task = asyncio.create_task(book.record(ticket, "ok", "2"))
            await asyncio.sleep(0)
            task.cancel()
            await book.settle()
            assert book.result(ASK)["reply"] == "2"

    run(work())
    with Journal(tmp_path / "a") as book:
        assert book.result(ASK)["reply"] == "2"


# --- killed ----------------------------------------------------------------

WORKER = textwrap.dedent(
    """
    import asyncio, os, sys
    from instructft.journal import Journal

    bill = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def row(book, turns, number):
        async with turns:
            request = {"number": number}
            if book.result(request):
                return
            ticket = await book.intend(request, 1)
            os.write(bill, b"%d\\n" % number)  # what the server counts
            await asyncio.sleep(0.01)
            await book.record(ticket, "ok", f"reply {number}", cost=1)
            os.write(1, b"%d\\n" % number)  # used: it must be on the disk

    async def work():
        turns = asyncio.Semaphore(4)
        with Journal(sys.argv[1]) as book:
            await asyncio.gather(*(row(book, turns, n) for n in range(200)))

    asyncio.run(work())
    """
)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_again_and_again_no_reply_is_lost(tmp_path):
    path, bill = tmp_path / "a", tmp_path / "bill"
    words = [sys.executable, "-c", WORKER, str(path), str(bill)]
    chance, kills, used = random.Random(0), 0, set()
    while True:
        worker = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE)
        try:
            first = worker.stdout.readline()  # up and at work
            time.sleep(chance.random() * 0.1)
            worker.send_signal(signal.SIGKILL)
        finally:
            rest, _ = worker.communicate()
        used |= {*(first + rest).split()}
        if worker.returncode == 0:
            break
        kills += 1
        assert kills < 60
        with Journal(path) as book:  # always readable
            for number in used:
                assert book.result({"number": int(number)})
    assert kills >= 5
    with Journal(path) as book:
        for number in range(200):
            result = book.result({"number": number})
            assert result["reply"] == f"reply {number}"
        paid = len(bill.read_bytes().splitlines())
        assert 200 <= paid <= 200 + 4 * kills
        assert book.paid >= paid  # never less than the server's bill
