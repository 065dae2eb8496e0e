"""The teacher against a server that misbehaves in every known way."""

import asyncio
import json
import math
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from instructft import teacher as module
from instructft.instance import read_rows, write_rows
from instructft.journal import (
    Journal,
    JournalError,
    OverBudget,
    receipt,
    recorded,
    request_id,
)
from instructft.teacher import (
    LOCAL,
    NotRecorded,
    Recorded,
    Stopped,
    Teacher,
    _Came,
    local,
    price_of,
)

KEY = "sk-canary-4711"
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def ask(text="hello", **more):
    return {
        "model": "m",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 20,
        **more,
    }


def body(text="fine", reason="stop", usage=USAGE, **message):
    choice = {
        "index": 0,
        "finish_reason": reason,
        "message": {"role": "assistant", "content": text, **message},
    }
    return 200, {"id": "x", "choices": [choice], "usage": usage}


def error(status, code=None, message="no", param=None):
    return status, {
        "error": {"message": message, "code": code, "param": param}
    }


@contextmanager
def serving():
    """An endpoint: `.answer(request, count)` gives (status, body, headers)."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            size = int(self.headers["content-length"])
            request = json.loads(self.rfile.read(size))
            with made.lock:
                made.paths.append(self.path)
                made.got.append((time.monotonic(), request))
                made.keys.add(self.headers["authorization"])
                count = len(made.got)
                made.under_way += 1
                made.most = max(made.most, made.under_way)
            try:
                found = made.answer(request, count)
            finally:
                with made.lock:
                    made.under_way -= 1
            if found is None:  # hang up
                self.close_connection = True
                self.connection.close()
                return
            status, content, *headers = found
            data = content if isinstance(content, bytes) else None
            data = json.dumps(content).encode() if data is None else data
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            for name, value in headers[0].items() if headers else ():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *words):
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    made.lock, made.got, made.keys = threading.Lock(), [], set()
    made.paths = []
    made.under_way = made.most = 0
    made.answer = lambda request, count: body(
        request["messages"][0]["content"]
    )
    made.url = f"http://127.0.0.1:{made.server_port}/v1"
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def server():
    with serving() as made:
        yield made


@pytest.fixture
def make(server, tmp_path, monkeypatch):
    """Return a maker of teachers of that endpoint, with no long pauses."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr(module.random, "random", lambda: -0.99)

    def make(**more):
        given = {"base_url": server.url, "api_key": KEY} | more
        return Teacher(tmp_path / "journal.jsonl", **given)

    return make


def asks(count):
    return [ask(f"number {i}") for i in range(count)]


# --- the plain way ----------------------------------------------------------


def test_replies_come_in_order_and_once(server, make):
    def slow(request, count):
        time.sleep(0.02 * (count % 3))
        return body(request["messages"][0]["content"])

    server.answer = slow
    teacher = make(at_once=3, price=(1, 2))
    replies = teacher.ask(asks(10))
    assert [reply.text for reply in replies] == [
        f"number {i}" for i in range(10)
    ]
    assert {reply.state for reply in replies} == {"ok"}
    assert replies[0].usage == USAGE
    assert replies[0].cost == Decimal("0.00002")  # (10 * 1 + 5 * 2) / 1e6
    assert server.most == 3
    assert server.keys == {f"Bearer {KEY}"}
    # nothing is asked, or paid, twice
    assert make(price=(1, 2)).ask(asks(11)[::-1])[1:] == replies[::-1]
    assert len(server.got) == 11


def test_recorded_replies_are_those_of_the_run(make, tmp_path):
    live = make(price=(1, 2)).ask(asks(3))
    book = Recorded(tmp_path / "journal.jsonl")
    assert book.ask(asks(3)) == live
    for other in (ask("number 3"), ask("number 1", temperature=0)):
        with pytest.raises(NotRecorded, match="number .*as its journal"):
            book.ask([other])
    with pytest.raises(FileNotFoundError):
        Recorded(tmp_path / "none.jsonl")
    with open(tmp_path / "journal.jsonl", "ab") as file:
        file.write(b"torn")  # an event that was not
    assert Recorded(tmp_path / "journal.jsonl").ask(asks(3)) == live
    with open(tmp_path / "journal.jsonl", "ab") as file:
        file.write(b"\nmore\n")
    with pytest.raises(JournalError, match="journal.jsonl:7"):
        Recorded(tmp_path / "journal.jsonl")


def test_the_same_request_twice_is_sent_once(make, server):
    one, other, again = make().ask([ask("a"), ask("b"), ask("a")])
    assert one == again and other.text == "b"
    assert len(server.got) == 2


def test_no_requests(make, server):
    assert make().ask([]) == [] and not server.got


def test_within_an_event_loop(make):
    async def cell():  # as in a notebook
        return make().ask(asks(2))

    assert len(asyncio.run(cell())) == 2


def test_starts_are_spread_over_a_minute(make, server):
    make(per_minute=600, at_once=8).ask(asks(5))
    starts = [start for start, _ in server.got]
    assert 0.3 < starts[-1] - starts[0] < 2


def said_again(request, count):
    return body(request["messages"][0]["content"])


def test_several_endpoints_share_the_work(make, server):
    """Four requests at once are two for each of two servers."""
    meet = threading.Barrier(4, timeout=30)

    def together(request, count):
        meet.wait()  # breaks if fewer than four are under way
        return said_again(request, count)

    with serving() as other:
        server.answer = other.answer = together
        urls = [server.url, other.url]
        replies = make(base_url=urls, at_once=4).ask(asks(20))
        assert [r.text for r in replies] == [f"number {i}" for i in range(20)]
        assert len(server.got) == len(other.got) == 10
        assert server.most == other.most == 2


@pytest.mark.parametrize(
    "fault",
    [
        None,  # it died
        error(401),
        error(404),
        error(503),
        (*error(429), {"retry-after": "100"}),
        (*error(429), {"retry-after": "1000"}),
    ],
)
def test_an_endpoint_that_fails_is_left_to_the_others(make, server, fault):
    """All replies come, soon, and few requests go to the one that fails."""
    with serving() as other:
        other.answer = lambda request, count: fault
        urls = [other.url, server.url]
        start = time.monotonic()
        replies = make(base_url=urls, at_once=2).ask(asks(12))
        assert [r.state for r in replies] == ["ok"] * 12
        assert 1 <= len(other.got) <= 2
        assert time.monotonic() - start < 20


REFUSES = _Came("failed", "401", stops=True)
BUSY = _Came("failed", "503", again=True)
ASKS = _Came("failed", "429", again=True, wait=100.0)
ASKS_LONG = _Came("failed", "429", stops=True, wait=1000.0)


@pytest.mark.parametrize(
    ("came", "rest"),
    [
        ([BUSY], module.REST),
        ([ASKS], 100),
        ([ASKS, BUSY], 100),  # one that was under way does not shorten it
        ([ASKS_LONG], 1000),
        ([ASKS_LONG, BUSY], 1000),
        ([REFUSES], math.inf),
        ([REFUSES, BUSY], math.inf),
    ],
)
def test_how_long_an_endpoint_is_left_alone(came, rest):
    run = object.__new__(module._Run)
    run._rests = {"a": 0.0, "b": 0.0}
    start = time.monotonic()
    for each in came:
        after = run._rested("a", each)
        assert after.again and not after.stops and after.wait == 0
    assert run._rests["a"] - start == pytest.approx(rest, abs=1)
    # where the other rests too, the soonest is waited for, if it is soon
    after = run._rested("b", ASKS)
    assert after.wait == pytest.approx(min(rest, 100), abs=1)
    assert run._rested("b", REFUSES).stops == (rest > module.LONGEST_WAIT)


def test_an_endpoint_comes_back_after_a_rest(make, server, monkeypatch):
    monkeypatch.setattr(module, "REST", 0.05)
    with serving() as other:
        other.answer = lambda request, count: (
            error(503) if count == 1 else said_again(request, count)
        )
        urls = [other.url, server.url]

        def slow(request, count):
            time.sleep(0.1)
            return said_again(request, count)

        server.answer = slow
        replies = make(base_url=urls, at_once=2).ask(asks(12))
        assert [r.state for r in replies] == ["ok"] * 12
        assert len(other.got) > 2


def test_where_all_endpoints_refuse_the_run_stops(make, server):
    with serving() as other:
        server.answer = other.answer = lambda request, count: error(401)
        with pytest.raises(Stopped, match="401"):
            make(base_url=[server.url, other.url], at_once=1).ask(asks(5))
        assert len(server.got) == len(other.got) == 1


def test_raw_text_is_gone_on_with(make, server, tmp_path):
    raw = {"model": "m", "prompt": "1. a\n2.", "max_tokens": 5, "logprobs": 1}
    choice = {"index": 0, "finish_reason": "length", "text": " b"}
    found = 200, {"choices": [choice], "usage": USAGE}
    server.answer = lambda request, count: found
    teacher = make(price=(1, 1))
    [reply] = teacher.ask([raw])
    assert (reply.text, reply.state) == (" b", "length")
    assert server.paths == ["/v1/completions"]
    assert server.got[0][1] == raw
    assert Recorded(tmp_path / "journal.jsonl").ask([raw]) == [reply]
    with pytest.raises(NotRecorded, match="c"):
        Recorded(tmp_path / "journal.jsonl").ask([raw | {"prompt": "c"}])
    longer = teacher.most(raw | {"prompt": "x" * 1000}) - teacher.most(raw)
    assert longer == Decimal(1000 - 7) / 1_000_000
    # messages have no `logprobs` that is a number of words, nor `suffix`
    [reply] = make().ask([ask() | {"suffix": "x"}])
    assert reply.state == "failed" and "suffix" in reply.reason


# --- money, before and after -----------------------------------------------


def test_estimate_is_never_below_what_is_paid(make, server, tmp_path):
    teacher = make(price=(3, 5))
    before = teacher.estimate([*asks(4), ask("number 1")])
    assert before["requests"] == 5 and before["to send"] == 4
    assert before["reply tokens, at most"] == 80 and not before["recorded"]
    paid = sum(reply.cost for reply in teacher.ask(asks(3)))
    assert 0 < paid <= before["dollars, at most"]
    after = teacher.estimate(asks(4))
    assert after["recorded"] == 3 and after["to send"] == 1
    assert after["dollars, at most"] == teacher.most(ask("number 3"))
    assert make().estimate(asks(5))["dollars, at most"] is None
    with pytest.raises(ValueError, match="max_tokens"):
        teacher.estimate([{"model": "m", "messages": []}])


def test_receipt_tells_paid_from_perhaps_and_unknown(make, server, tmp_path):
    def answer(request, count):
        text = request["messages"][0]["content"]
        if text == "crash":
            return error(500)
        return body(text, "length" if text == "long" else "stop")

    server.answer = answer
    dear = make(price=(1, 2), tries=2, at_once=1)
    dear.ask([ask("a"), ask("long"), ask("crash")])
    make().ask([ask("free")])
    lines = {line["state"]: line for line in receipt(dear.journal)}
    assert [line["calls"] for line in lines.values()] == [2, 1, 2]
    assert lines["ok"]["prompt tokens"] == 20
    assert lines["ok"]["reply tokens"] == 10
    assert lines["ok"]["dollars"] == Decimal("0.00002")
    assert lines["ok"]["price unknown"] == 1
    most = 2 * dear.most(ask("crash"))
    assert lines["failed"]["dollars, at most"] == most
    assert lines["failed"]["dollars"] == 0


def test_prices_are_looked_up():
    prompt, completion = price_of("gpt-4o-mini")
    assert 0 < prompt < completion < 100
    assert price_of("no-such-model-anywhere") is None
    assert price_of("gpt-4o-mini", "https://no.such.endpoint/v1") is None


# --- batches ----------------------------------------------------------------


def answered(line, **more):
    found = {"status_code": 200, "body": body("late")[1]}
    return {"custom_id": line["custom_id"], "response": found, **more}


def test_a_batch_comes_back_into_the_journal(make, server, tmp_path):
    teacher = make(price=(1, 2), budget=1)
    known = teacher.ask([ask("number 0")])
    wanted, sent = tmp_path / "wanted.jsonl", len(server.got)
    raw = {"model": "m", "prompt": "go on", "max_tokens": 3}
    assert teacher.batch([*asks(4), raw, ask("number 3")], wanted) == 4
    lines = read_rows(wanted)
    assert [line["body"] for line in lines] == [*asks(4)[1:], raw]
    assert [line["custom_id"] for line in lines] == [
        request_id(line["body"]) for line in lines
    ]
    assert {line["method"] for line in lines} == {"POST"}
    urls = [line["url"] for line in lines]
    assert urls == ["/v1/chat/completions"] * 3 + ["/v1/completions"]
    # until it is read all of it counts as paid
    [paid, waiting] = receipt(teacher.journal)
    most = [teacher.most(line["body"]) for line in lines]
    assert waiting["dollars, at most"] == sum(most)
    # under way: left out of another file, unless it shall be paid again
    other = tmp_path / "other.jsonl"
    assert teacher.batch(asks(5), other) == 1
    assert read_rows(other)[0]["body"] == ask("number 4")
    assert receipt(teacher.journal)[1]["calls"] == 5
    assert teacher.batch([ask("number 4")], other, again=True) == 1
    assert receipt(teacher.journal)[1]["calls"] == 6

    came = tmp_path / "came.jsonl"
    late = {"code": "batch_expired", "message": f"too late, {KEY}"}
    write_rows(
        came,
        [
            answered(lines[1]),
            {"custom_id": lines[0]["custom_id"], "error": late},
            {
                "custom_id": lines[2]["custom_id"],
                "response": {"status_code": 400, "body": {"error": "bad"}},
            },
            {"custom_id": "of another journal", "response": None},
            {"custom_id": request_id(ask("number 0")), "response": None},
        ],
    )
    counts = teacher.read_batch(came)
    assert counts == {"ok": 1, "failed": 2, "unknown": 1, "known": 1}
    assert teacher.read_batch(came) == {"known": 2, "unknown": 3}
    assert KEY.encode() not in teacher.journal.read_bytes()
    states = {line["state"]: line for line in receipt(teacher.journal)}
    assert states["failed"]["dollars"] == states["ok"]["price unknown"] == 0
    twice = 2 * teacher.most(ask("number 4"))
    assert states["no answer"]["dollars, at most"] == most[3] + twice
    # what came is not sent again, what expired is
    replies = teacher.ask(asks(3))
    assert [reply.text for reply in replies] == [
        "number 0",
        "number 1",
        "late",
    ]
    assert replies[0] == known[0] and len(server.got) == sent + 1


def test_rows_of_a_killed_run_go_into_a_batch(make, server, tmp_path):
    async def killed():  # asked, and never heard of again
        await book.intend(ask(), 1)

    with Journal(make().journal) as book:
        asyncio.run(killed())
    teacher, wanted = make(price=(1, 1), budget=5), tmp_path / "wanted.jsonl"
    assert teacher.batch([ask()], wanted) == 1
    assert teacher.batch([ask()], wanted) == 0
    line = {"custom_id": request_id(ask())}
    write_rows(wanted, [answered(line)])
    assert teacher.read_batch(wanted) == {"ok": 1}
    assert teacher.ask([ask()])[0].text == "late" and not server.got
    # the first one stays paid: nobody knows
    assert [line["calls"] for line in receipt(teacher.journal)] == [1, 1]


def test_a_batch_keeps_the_budget(make, server, tmp_path):
    wanted = tmp_path / "wanted.jsonl"
    each = make(price=(1, 2)).most(asks(1)[0])
    poor = make(price=(1, 2), budget=3 * each)
    with pytest.raises(OverBudget, match="4 more of up to"):
        poor.batch(asks(4), wanted)
    assert not wanted.exists() and receipt(poor.journal) == []
    assert poor.batch(asks(3), wanted) == 3
    with pytest.raises(Stopped, match="budget"):
        poor.ask([ask("number 7")])
    assert not server.got


# --- what looks like success ------------------------------------------------


@pytest.mark.parametrize(
    ("found", "state", "calls"),
    [
        (body("cut", "length"), "length", 1),
        (body("", "stop"), "empty", 1),
        (body(None, "stop"), "empty", 1),
        (body(" \n", "stop"), "empty", 1),
        (body("", "stop", refusal="I will not"), "refused", 1),
        (body("", "content_filter"), "filtered", 1),
        ((200, {"choices": []}), "malformed", 3),
        ((200, {"error": {"message": "busy"}}), "malformed", 3),
        ((200, b"<html>"), "malformed", 3),
        ((200, b'"text"'), "malformed", 3),
        ((200, b""), "malformed", 3),
    ],
)
def test_states(server, make, found, state, calls):
    server.answer = lambda request, count: found
    [reply] = make(tries=3).ask([ask()])
    assert reply.state == state and reply.reason
    assert len(server.got) == calls
    # it was paid: it is kept, and not asked again; but an outage may end
    lasts = state != "malformed"
    assert make(tries=3).ask([ask()]) == [reply]
    assert len(server.got) == (calls if lasts else 2 * calls)
    server.answer = lambda request, count: body("whole")
    [later] = make().ask([ask()])
    assert later == reply if lasts else later.text == "whole"


def test_a_reply_without_usage_has_no_known_cost(server, make):
    server.answer = lambda request, count: body(usage=None)
    teacher = make(price=(1, 1), budget=1)
    [reply] = teacher.ask([ask()])
    assert reply.cost is None and reply.usage is None


# --- what fails -------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        error(429),
        error(500),
        error(503),
        error(408),
        None,
        (429, error(429)[1], {"retry-after": "0.05"}),
        (200, b"{"),
    ],
)
def test_tried_again(server, make, fault):
    server.answer = lambda request, count: fault if count < 3 else body()
    teacher = make()
    [reply] = teacher.ask([ask()])
    assert reply.state == "ok" and len(server.got) == 3
    assert sum(teacher.failures.values()) == 2
    if fault and len(fault) == 3:
        assert server.got[1][0] - server.got[0][0] >= 0.05


def test_one_rows_failure_costs_no_other(server, make):
    def answer(request, count):
        odd = request["messages"][0]["content"] in ("number 1", "number 4")
        return error(400, message="bad row") if odd else body()

    server.answer = answer
    replies = make().ask(asks(6))
    states = [reply.state for reply in replies]
    assert states == ["ok", "failed", "ok", "ok", "failed", "ok"]
    assert "bad row" in replies[1].reason and len(server.got) == 6
    server.answer = lambda request, count: body()
    # failures are asked again by the next call, the others are not
    assert {r.state for r in make().ask(asks(6))} == {"ok"}
    assert len(server.got) == 8


def test_a_row_that_fails_each_time_says_so(server, make):
    server.answer = lambda request, count: error(500, message="broken")
    [reply] = make(tries=3).ask([ask()])
    assert reply.state == "failed" and "broken" in reply.reason
    assert len(server.got) == 3


@pytest.mark.parametrize(
    "fault",
    [
        error(401),
        error(403),
        error(404, "model_not_found"),
        error(429, "insufficient_quota"),
        (429, error(429)[1], {"retry-after": "7200"}),
    ],
)
def test_what_stops_the_run(server, make, fault):
    server.answer = lambda request, count: body() if count < 3 else fault
    with pytest.raises(Stopped) as stopped:
        make(at_once=1).ask(asks(9))
    assert len(server.got) == 3  # no call after it
    replies = stopped.value.replies
    assert [reply.text for reply in replies[:2]] == ["fine"] * 2
    assert replies[2:] == [None] * 7
    assert "2 of 9" in str(stopped.value)
    if len(fault) == 3:
        assert "asks to wait until" in str(stopped.value)
    server.answer = lambda request, count: body()
    assert len(make().ask(asks(9))) == 9 and len(server.got) == 10


def test_no_server(make):
    teacher = make(base_url="http://127.0.0.1:9/v1", tries=2)
    [reply] = teacher.ask([ask()])
    assert reply.state == "failed" and reply.reason.startswith("connection")


def test_too_slow(server, make):
    server.answer = lambda request, count: time.sleep(0.5) or body()
    [reply] = make(timeout=0.1, tries=1).ask([ask()])
    assert reply.state == "failed" and reply.reason.startswith("timeout")


def test_an_unknown_parameter_is_named(make, server):
    [reply] = make().ask([ask(temprature=1)])
    assert reply.state == "failed" and "temprature" in reply.reason
    assert not server.got


# --- what an endpoint will not take -----------------------------------------


def test_parameters_are_negotiated_and_named(server, make):
    def picky(request, count):
        if "max_tokens" in request:
            return error(
                400,
                "unsupported_parameter",
                "'max_tokens' is not supported: use 'max_completion_tokens'",
                "max_tokens",
            )
        if "temperature" in request:
            return error(400, "unsupported_value", "only 1", "temperature")
        return body()

    server.answer = picky
    teacher = make(at_once=1)
    replies = teacher.ask([ask(f"{i}", temperature=0) for i in range(3)])
    assert {reply.state for reply in replies} == {"ok"}
    assert len(server.got) == 5  # two refusals, then three replies
    assert server.got[-1][1]["max_completion_tokens"] == 20
    assert teacher.dropped == {
        "m: max_tokens": "sent as max_completion_tokens",
        "m: temperature": "left out",
    }


# --- money and keys ---------------------------------------------------------


def test_the_budget_stops_before_it_is_exceeded(server, make):
    one = make(price=(1, 1)).most(ask("number 0"))
    teacher = make(price=(1, 1), budget=float(one) * 1.2, at_once=1)
    with pytest.raises(Stopped, match="budget"):
        teacher.ask(asks(9))
    # real costs are below the bound, so that more than two fit
    assert 2 <= len(server.got) < 9
    assert len(server.got) * Decimal("0.000015") <= one


def test_a_tight_budget_waits_for_what_is_under_way(server, make):
    # reserved in full only two fit, but each costs a twentieth of that
    one = make(price=(1, 1)).most(ask("number 0"))
    teacher = make(price=(1, 1), budget=float(one) * 2.5, at_once=8)
    replies = teacher.ask(asks(20))
    assert {reply.state for reply in replies} == {"ok"}
    assert 1 <= server.most <= 2


def test_a_budget_wants_a_price_and_a_bound(make, server):
    with pytest.raises(Stopped, match="not known"):
        make(budget=1).ask([ask()])
    request = ask()
    del request["max_tokens"]
    with pytest.raises(ValueError, match="max_tokens"):
        make(price=(1, 1), budget=1).ask([request])
    assert not server.got


@pytest.mark.parametrize("text", ["a", "ü" * 50, "\U0001f600" * 9, ""])
def test_the_bound_is_never_below_a_tokenizers_count(make, text, tokenizer):
    teacher = make(price=(1_000_000, 0))
    count = len(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True
        )["input_ids"]
    )
    assert teacher.most(ask(text)) >= count  # it adds a system message


def test_the_key_is_nowhere(server, make, tmp_path, capfd):
    server.answer = lambda request, count: error(
        401, "invalid_api_key", f"wrong key: {KEY}"
    )
    teacher = make()
    with pytest.raises(Stopped) as stopped:
        teacher.ask([ask()], progress=True)
    seen = f"{stopped.value!s} {stopped.value!r} {teacher!r}"
    seen += "".join(capfd.readouterr())
    for path in tmp_path.iterdir():
        seen += path.read_text("utf-8", "replace")
    import traceback

    seen += "".join(traceback.format_exception(stopped.value))
    assert KEY not in seen and "[key]" in seen


def test_a_full_disk_stops_the_run(make, monkeypatch):
    import errno

    from instructft import journal

    def full(file, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal.os, "write", full)
    with pytest.raises(Stopped, match="make room"):
        make().ask(asks(3))


def test_a_mistake_of_ours_loses_no_reply(server, make, monkeypatch):
    def slow(request, count):
        time.sleep(0.2 if count == 1 else 0)
        return body()

    server.answer = slow
    read, mistakes = module._Run._read, []

    def broken(self, found):
        if not mistakes:
            mistakes.append(found)
            raise RuntimeError("a mistake")
        return read(self, found)

    monkeypatch.setattr(module._Run, "_read", broken)
    with pytest.raises(RuntimeError, match="a mistake"):
        make(at_once=2).ask(asks(2))
    assert len(server.got) == 2
    # the slow one came home: only the other is asked again
    again = make().ask(asks(2))
    assert {reply.state for reply in again} == {"ok"}
    assert len(server.got) == 3


# --- on this machine --------------------------------------------------------


def test_the_local_endpoint(tmp_path):
    pytest.importorskip("xllamacpp")
    questions = ["Name a fruit.", "Say hello.", "What is 2 + 2?", "Sing!"]
    requests = [
        ask(text, model=LOCAL, seed=1, temperature=0.7) for text in questions
    ]
    with local(slots=4, context=256) as (base_url, key):
        assert base_url.startswith("http://127.0.0.1:")
        together = Teacher(tmp_path / "a", base_url, key, (0, 0), budget=0)
        replies = together.ask(requests)
        one = Teacher(tmp_path / "b", base_url, key, at_once=1)
        alone = one.ask(requests[::-1])[::-1]
        with pytest.raises(Stopped, match="401"):
            Teacher(tmp_path / "c", base_url, "another key").ask(requests)
    assert {reply.state for reply in replies} <= {"ok", "length"}
    assert [reply.text for reply in replies] == [r.text for r in alone]
    assert all(reply.cost == 0 for reply in replies)
    assert len({reply.text for reply in replies}) == 4
    # it went away with its block
    [reply] = Teacher(tmp_path / "d", base_url, key, tries=1).ask(requests[:1])
    assert reply.state == "failed"


# --- killed -----------------------------------------------------------------

CHILD = """
import sys
from instructft.teacher import Teacher
wish = [
    {"model": "m", "max_tokens": 5, "seed": seed,
     "messages": [{"role": "user", "content": f"number {seed}"}]}
    for seed in range(int(sys.argv[3]))
]
replies = Teacher(
    sys.argv[1], sys.argv[2], "none", price=(1, 1), at_once=4
).ask(wish)
assert [r.text for r in replies] == [w["messages"][0]["content"] for w in wish]
"""


def test_killed_at_any_moment_nothing_is_lost_or_paid_again(server, tmp_path):
    """KILLS=200 makes it long."""
    kills, rows = int(os.environ.get("KILLS", 5)), 400
    chance = random.Random(0)
    billed, lock = Counter(), threading.Lock()

    def answer(request, count):
        time.sleep(chance.uniform(0.002, 0.02))
        with lock:  # it is charged, whoever hears of it
            billed[request["seed"]] += 1
        return body(request["messages"][0]["content"])

    server.answer = answer
    server.handle_error = lambda *words: None  # who asked is dead
    done, extra, sets = 0, [], 0
    while done < kills:
        path = tmp_path / f"{sets}.jsonl"
        billed.clear()
        killed = 0
        command = [sys.executable, "-c", CHILD, path, server.url, str(rows)]
        while True:
            child = subprocess.Popen(command, stderr=subprocess.PIPE)
            before = sum(billed.values())
            target = before + chance.randrange(1, rows // 10)
            while sum(billed.values()) < target and child.poll() is None:
                time.sleep(0.001)
            if done < kills and child.poll() is None:
                time.sleep(chance.uniform(0, 0.01))
                child.kill()
                killed, done = killed + 1, done + 1
            said = child.communicate()[1]
            if child.returncode == 0:
                break
            assert not said  # killed, and by nothing else
        final = recorded(path)  # whole, every line of it
        assert len(final) == len(billed) == rows
        assert {result["state"] for result in final.values()} == {"ok"}
        again = sum(billed.values()) - rows
        assert again <= 4 * killed, f"{again} paid again by {killed} kills"
        counted = sum(line["calls"] for line in receipt(path))
        assert counted >= sum(billed.values())  # no bill is a surprise
        extra.append(again)
        sets += 1
    print(f"{done} kills, {sets} sets, paid again a kill {sum(extra) / done}")


def test_no_budget_is_exceeded_whatever_fails(server, make, tmp_path):
    """The endpoint keeps the bill itself. BUDGETS=500 makes it long."""
    spent = 0
    for case in range(int(os.environ.get("BUDGETS", 40))):
        chance = random.Random(case)
        price = [chance.choice((0.5, 3, 40, 1000)) for _ in range(2)]
        bill, lock = [], threading.Lock()

        def answer(request, count, chance=chance, bill=bill, lock=lock):
            kind = chance.random()
            if kind < 0.1:
                return error(429)
            tokens = chance.randrange(request["max_tokens"] + 1)
            usage = {"prompt_tokens": 9, "completion_tokens": tokens}
            with lock:
                bill.append(usage)  # also where the answer then gets lost
            if kind < 0.2:
                return None
            if kind < 0.3:
                return error(500)
            if kind < 0.4:
                return body(usage=None)
            return body(reason="length" if kind < 0.5 else "stop", usage=usage)

        server.answer = answer
        wish = [
            ask(f"{case} {i}", max_tokens=chance.randrange(1, 60))
            for i in range(chance.randrange(1, 15))
        ]
        teacher = make(price=tuple(price), at_once=chance.randrange(1, 9))
        teacher.journal = tmp_path / f"{case}.jsonl"
        whole = teacher.estimate(wish)["dollars, at most"]
        teacher.budget = whole * Decimal(str(chance.uniform(0.05, 2)))
        for _ in range(chance.randrange(1, 4)):  # and again, from there
            try:
                replies = teacher.ask(wish)
                assert len(replies) == len(wish)
            except Stopped as stopped:
                assert "budget" in str(stopped)
        paid = sum(teacher.cost(usage) for usage in bill)
        assert paid <= teacher.budget, f"case {case}: {paid}"
        spent += bool(paid)
    assert spent > case / 2


def test_no_bound_is_dropped_to_please_an_endpoint(server, make, tmp_path):
    """Left out, the limit of a reply would be none: no budget could hold."""

    def answer(request, count):
        for name in ("max_completion_tokens", "response_format", "seed"):
            if name in request:
                return error(400, "unsupported_parameter", name, name)
        return body()

    server.answer = answer
    bound = {"max_completion_tokens": 9}
    form = {"response_format": {"type": "json_object"}}
    wish = [ask() | bound, ask() | form, ask(seed=1)]
    teacher = make(price=(1, 1), budget=1, at_once=1)
    states = [reply.state for reply in teacher.ask(wish)]
    assert states == ["failed", "failed", "ok"]
    assert teacher.dropped == {"m: seed": "left out"}
    # the journal says what the reply was made without
    [kept] = recorded(teacher.journal).values()
    assert kept["reply"]["dropped"] == ["seed"]


def test_no_money_left_stops_the_run(server, make):
    server.answer = lambda request, count: error(402, message="pay first")
    with pytest.raises(Stopped, match="402: .*pay first"):
        make(at_once=1).ask(asks(5))
    assert len(server.got) == 1
