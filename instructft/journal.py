"""Every reply on disk before it is used: intent, reply, cost.

A journal is one file that only grows, a line an event. Before a request is
sent, its *intent* stands there with the most it may cost; when the answer
has come, its *result* does. Both are synced to the disk before anything
goes on. Whatever is killed, and when: no paid reply is lost, and an intent
without a result counts as paid in full.
"""

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Set
from decimal import Decimal
from pathlib import Path
from zlib import crc32


class JournalError(ValueError):
    """A journal that cannot be used as it is; says where and the remedy."""


class OverBudget(RuntimeError):
    """The next request might cost more than is left."""


def request_id(request: dict) -> str:
    """Name a request by its content: another parameter, another name.

    >>> request_id({"model": "m", "n": 1})[:8]
    'af0555f4'
    >>> request_id({"n": 1, "model": "m"})[:8]
    'af0555f4'
    """
    return hashlib.sha256(_SORTED(request).encode("ascii")).hexdigest()


_SORTED = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode


def _json(value) -> bytes:
    # ASCII, so that lone surrogates and U+2028 cannot break a line
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def recorded(path: str | Path) -> dict[str, dict]:
    """Return a journal's final results by request id; reads only.

    Raises JournalError for a line that is not whole, FileNotFoundError
    where there is no such file.
    """
    intents, results = {}, {}
    for event in _events(path):
        if event["event"] == "intent":
            intents[event["ticket"]] = event["id"]
        elif event["final"]:
            results[intents[event["ticket"]]] = _public(event)
    return results


def receipt(path: str | Path) -> list[dict]:
    """Add up a journal, by model and state: what was asked and paid.

    A line: `model`, `state` ("no answer" where none came), `calls`, prompt
    and reply `tokens`, `dollars` paid for sure, `dollars, at most` for calls
    of which nobody knows, and `price unknown`, calls that no price was given
    for. Raises as `recorded`.
    """
    intents, lines = {}, {}
    for event in _events(path):
        if event["event"] == "intent":
            intents[event["ticket"]] = event
            continue
        _enter(lines, intents.pop(event["ticket"]), event)
    for intent in intents.values():
        _enter(lines, intent, {"state": "no answer", "cost": None})
    return list(lines.values())


def _enter(lines: dict, intent: dict, result: dict) -> None:
    model, state = intent["request"].get("model", ""), result["state"]
    line = lines.setdefault(
        (model, state),
        {
            "model": model,
            "state": state,
            "calls": 0,
            "prompt tokens": 0,
            "reply tokens": 0,
            "dollars": Decimal(0),
            "dollars, at most": Decimal(0),
            "price unknown": 0,
        },
    )
    usage = result.get("usage") or {}
    line["calls"] += 1
    line["prompt tokens"] += usage.get("prompt_tokens") or 0
    line["reply tokens"] += usage.get("completion_tokens") or 0
    if result["cost"] is not None:
        line["dollars"] += Decimal(result["cost"])
    elif intent["most"] is not None:
        line["dollars, at most"] += Decimal(intent["most"])
    else:
        line["price unknown"] += 1


def _events(path: str | Path) -> Iterator[dict]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            event = _event(line)
            if event is not None:
                yield event
            elif file.read(1):  # a torn last line is an event that was not
                raise JournalError(
                    f"{path}:{number}: not a whole line: put back a copy"
                )


class Journal:
    """The events of one file; opened by one process at a time.

    `budget`, in dollars, is never exceeded: what was paid, plus the most
    that each request under way may cost, stays at or below it. Money is
    counted as decimals, exactly.

    Raises JournalError if another process writes there, or if a line other
    than the last is damaged. A torn last line is moved to a file beside it,
    with `.torn` at its name's end.
    """

    def __init__(
        self, path: str | Path, budget: Decimal | float | None = None
    ):
        from filelock import FileLock, Timeout

        self.path = Path(path)
        self.budget = None if budget is None else Decimal(str(budget))
        self.paid = Decimal(0)  # results, and intents that were cut off
        self.reserved = Decimal(0)  # intents under way
        self.unpriced = 0  # requests whose price nobody knows
        self._results: dict[str, dict] = {}
        self._open: dict[int, dict] = {}  # intents without a result
        self._late: dict[int, dict] = {}  # the same, of an earlier process
        self._count = 0  # intents so far
        self._queue: list[tuple[bytes, dict, asyncio.Future]] = []
        self._flusher: asyncio.Task | None = None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(f"{self.path}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise JournalError(
                f"{self.path} is in use by another process: wait for it, or "
                "give this one a file of its own"
            ) from None
        try:
            self._file = os.open(
                self.path,
                os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0),
                0o644,
            )
            try:
                self._size = self._read()
                os.lseek(self._file, self._size, os.SEEK_SET)
            except BaseException:
                os.close(self._file)
                raise
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go; what was intended and recorded stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._lock.release()

    @property
    def answered(self) -> Set[str]:
        """Return the ids of all requests with a final result."""
        return self._results.keys()

    def result(self, request: dict) -> dict | None:
        """Return the final result of a request, or None if there is none.

        A result: {"state": "ok", "reply": ..., "usage": ..., "cost": "0.1"}.
        """
        return self._results.get(request_id(request))

    def afford(self, costs: Iterable[Decimal | float | None]) -> None:
        """Raise OverBudget if requests of such costs could exceed it."""
        costs = list(costs)
        if self.budget is None or not costs:
            return
        if None in costs:
            raise OverBudget(
                f"{self.path}: the price of this model is not known, so a "
                "budget cannot be kept: give its price, or no budget"
            )
        more = sum((Decimal(str(cost)) for cost in costs), Decimal(0))
        if self.paid + self.reserved + more > self.budget:
            raise OverBudget(
                f"{self.path}: ${self.paid} paid and ${self.reserved} under "
                f"way; {len(costs):,} more of up to ${more} could exceed the "
                f"budget of ${self.budget}"
            )

    async def intend(
        self,
        request: dict,
        most: Decimal | float | None,
        batch: bool = False,
    ) -> int:
        """Write that a request is about to be sent; return its ticket.

        `most` is what it may cost, in dollars; None if nobody knows; `batch`
        says that its answer comes by a file, to another process. Raises
        OverBudget, before anything is written, if that is more than is
        left, or if there is a budget and the price is not known.
        """
        self.afford([most])
        cost = Decimal(0) if most is None else Decimal(str(most))
        ticket, self._count = self._count, self._count + 1
        event = {
            "event": "intent",
            "ticket": ticket,
            "id": request_id(request),
            "most": None if most is None else str(cost),
            "at": round(time.time(), 3),
            "request": request,
            **({"batch": True} if batch else {}),
        }
        # counted before the wait, so that no other can spend it meanwhile
        self._apply(event)
        await self._append(event)
        return ticket

    async def record(
        self,
        ticket: int,
        state: str,
        reply: object = None,
        usage: dict | None = None,
        cost: Decimal | float | None = None,
        final: bool = True,
    ) -> dict:
        """Write what came of an intent; return the result once it is safe.

        `cost` None means unknown: then the most it may have cost is counted
        as paid. `final` False is for a failure that is tried again: the
        request has no result yet. Raises KeyError for a ticket that is not
        open.
        """
        if ticket not in self._open and ticket not in self._late:
            raise KeyError(f"{self.path}: no request with ticket {ticket}")
        event = {
            "event": "result",
            "ticket": ticket,
            "state": state,
            "final": final,
            "cost": None if cost is None else str(Decimal(str(cost))),
            "usage": usage,
            "at": round(time.time(), 3),
            "reply": reply,
        }
        return await self._append(event)

    async def settle(self) -> None:
        """Wait until all that was handed over is on the disk."""
        while self._flusher is not None:
            await asyncio.shield(self._flusher)

    def _apply(self, event: dict) -> dict:
        """Take one event into the counts; return a result's public part."""
        if event["event"] == "intent":
            self._count = max(self._count, event["ticket"] + 1)
            self._open[event["ticket"]] = event
            self.reserved += Decimal(event["most"] or 0)
            return event
        ticket = event["ticket"]
        late = ticket in self._late
        intent = (self._late if late else self._open).pop(ticket)
        most = Decimal(intent["most"] or 0)
        if late:  # it was counted as paid
            self.paid -= most
            self.unpriced -= intent["most"] is None
        else:
            self.reserved -= most
        known = event["cost"] is not None
        self.paid += Decimal(event["cost"]) if known else most
        self.unpriced += not known and intent["most"] is None
        result = _public(event)
        if event["final"]:
            self._results[intent["id"]] = result
        return result

    # the file

    def _read(self) -> int:
        """Take in what the file holds; return the bytes that are whole."""
        whole = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                event = _event(line)
                if event is None:
                    rest = line + file.read()
                    if rest.count(b"\n") > line.count(b"\n"):
                        raise JournalError(
                            f"{self.path}:{number}: damaged at byte {whole}; "
                            "the lines after it are whole: put back a copy, "
                            "or delete this line and lose one event"
                        )
                    with open(f"{self.path}.torn", "ab") as torn:
                        torn.write(rest + b"\n")
                    os.ftruncate(self._file, whole)
                    os.fsync(self._file)
                    break
                try:
                    self._apply(event)
                except KeyError:
                    raise JournalError(
                        f"{self.path}:{number}: a result without its intent; "
                        f"lines are missing before byte {whole}: put back a "
                        "copy"
                    ) from None
                whole += len(line)
        # cut off before their answers came: they may have been paid
        for intent in self._open.values():
            self.paid += Decimal(intent["most"] or 0)
            self.unpriced += intent["most"] is None
        self._late, self._open = self._open, {}
        self.reserved = Decimal(0)
        return whole

    @property
    def cut_off(self) -> dict[str, int]:
        """Return requests whose answers never came: {id: ticket}.

        They count as paid. A batch's answers come when another process has
        the journal: `record` takes these tickets too.
        """
        return {intent["id"]: t for t, intent in self._late.items()}

    @property
    def in_batches(self) -> Set[str]:
        """Return the ids of requests whose answers come by a file."""
        late = self._late.values()
        return {intent["id"] for intent in late if intent.get("batch")}

    async def _append(self, event: dict) -> dict:
        """Write an event; return it, or the result, when it is on the disk.

        Those that wait at the same time share one sync.
        """
        loop = asyncio.get_running_loop()
        body = _json(event)
        line = body[:-1] + b',"sum":"%08x"}\n' % crc32(body)
        done = loop.create_future()
        self._queue.append((line, event, done))
        if self._flusher is None:
            self._flusher = loop.create_task(self._flush())
        # a reply that was paid for is written even if its row is given up
        return await asyncio.shield(done)

    async def _flush(self) -> None:
        while self._queue:
            batch, self._queue = self._queue, []
            lines = b"".join(line for line, _, _ in batch)
            error = None
            try:
                await asyncio.to_thread(self._sync, lines)
            except OSError as caught:
                error = OSError(
                    caught.errno,
                    f"{caught.strerror}: nothing more is sent; make room, "
                    "and the same cell goes on from here",
                    str(self.path),
                )
            for _, event, done in batch:
                if error:
                    done.set_exception(error)
                    done.exception()  # if its row was given up, nobody asks
                elif event["event"] == "result":
                    done.set_result(self._apply(event))
                else:
                    done.set_result(event)
        self._flusher = None

    def _sync(self, data: bytes) -> None:
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(self._file, left) :]
            getattr(os, "fdatasync", os.fsync)(self._file)
        except OSError:
            os.ftruncate(self._file, self._size)  # no half a line
            os.lseek(self._file, self._size, os.SEEK_SET)
            raise
        self._size += len(data)


def _public(event: dict) -> dict:
    return {name: event[name] for name in ("state", "reply", "usage", "cost")}


def _event(line: bytes) -> dict | None:
    """Return a line's event; None if it is not whole."""
    body, mark, end = line.rpartition(b',"sum":"')
    if not mark or len(end) != 11 or not end.endswith(b'"}\n'):
        return None
    body += b"}"
    if end[:8] != b"%08x" % crc32(body):
        return None
    return json.loads(body)
