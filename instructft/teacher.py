"""Ask a language model: any OpenAI-compatible endpoint, or recorded replies.

The client's own retries are off: here every try stands in the journal
first, with the most it may cost. A key is read from the environment or
given; it reaches no file, no message and no output.
"""

import asyncio
import inspect
import math
import os
import random
import secrets
import ssl
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from decimal import Decimal
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

from instructft.instance import read_rows, write_rows
from instructft.journal import Journal, OverBudget, recorded, request_id

ADDED = 256  # tokens that an endpoint's template may put around a prompt
CHAT = "chat/completions"
LOCAL = "SmolLM2-135M-Instruct"  # the embedded model, as `local` names it
APART = 0.002  # seconds between the first requests of a run
REST = 30  # seconds without requests for an endpoint of several that failed
LONGEST_WAIT = 120  # seconds; an endpoint that asks for more stops the run
AGAIN = {408, 409, 429, 500, 502, 503, 504, 529}  # worth another try
FATAL = {401, 402, 403, 404}  # no other row will fare better
# What a reply may do without; no other parameter is ever left out
OPTIONAL = {
    *("temperature", "top_p", "seed", "frequency_penalty"),
    *("presence_penalty", "logit_bias", "logprobs", "top_logprobs", "user"),
}


class Reply(NamedTuple):
    """What came of one request."""

    text: str
    state: str  # ok, length, refused, filtered, empty, malformed or failed
    reason: str  # why it is not ok
    usage: dict | None  # tokens: prompt_tokens, completion_tokens
    cost: Decimal | None  # dollars; None if nobody knows


class Stopped(RuntimeError):
    """The run ended early; `replies` holds what came, None for the rest."""

    def __init__(self, why: str, replies: list[Reply | None]):
        self.replies = replies
        done = sum(reply is not None for reply in replies)
        super().__init__(
            f"stopped after {done:,} of {len(replies):,} replies: {why}; what "
            "came is in the journal, and the same call goes on from there"
        )


class NotRecorded(KeyError):
    """No reply to this request was recorded."""

    def __str__(self) -> str:
        return self.args[0]


class Recorded:
    """Replies of an earlier run, from its journal: no endpoint, no cost.

    Raises NotRecorded, with the prompt and the remedy, for any request that
    is not there word for word.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._results = recorded(path)

    def ask(
        self, requests: Sequence[dict], progress: bool = False
    ) -> list[Reply]:
        """Return the replies to n requests, in order; nothing to wait for."""
        return [self._reply(request) for request in requests]

    def _reply(self, request: dict) -> Reply:
        result = self._results.get(request_id(request))
        if result is None:
            last = request.get("prompt")
            if last is None:
                last = request.get("messages", [{}])[-1].get("content", "")
            raise NotRecorded(
                f"no reply is recorded in {self.path} for this request (model "
                f"{request.get('model')!r}): {last[-200:]!r}. Ask a "
                "Teacher with that file as its journal to record one"
            )
        return _reply(result)


class Teacher:
    """An endpoint, asked for many replies at once, through a journal.

    `base_url` and `api_key` default to OPENAI_BASE_URL and OPENAI_API_KEY.
    With a list of base_urls, of servers of one model that take one key, the
    least busy is asked. One that fails is left alone for `REST` seconds, or
    as long as it asks, while there is another; one that refuses the key or
    does not know the model, for good. Each such try counts among `tries`.
    `price` is in dollars for a million tokens, (prompt, completion); None
    if unknown, and then no budget can be kept. At most `at_once` requests
    are under way, and at most `per_minute` are sent in a minute.

    `dropped` says, after a run, which parameters an endpoint refused and
    what was sent instead; `failures` counts tries by reason.
    """

    def __init__(
        self,
        journal: str | Path,
        base_url: str | Sequence[str] | None = None,
        api_key: str | None = None,
        price: tuple[float, float] | None = None,
        budget: float | None = None,
        at_once: int = 4,
        per_minute: float | None = None,
        tries: int = 6,
        timeout: float = 120,
    ):
        self.journal = Path(journal)
        given = base_url or os.environ.get("OPENAI_BASE_URL")
        self.base_urls = [given] if isinstance(given, str) else given or [None]
        self._key = api_key or os.environ.get("OPENAI_API_KEY") or ""
        self.price = price and tuple(Decimal(str(each)) for each in price)
        self.budget, self.at_once, self.tries = budget, at_once, tries
        self.timeout = timeout
        self._apart = 60 / per_minute if per_minute else 0.0
        self.dropped: dict[str, str] = {}
        self.failures: dict[str, int] = {}

    def ask(
        self, requests: Sequence[dict], progress: bool = False
    ) -> list[Reply]:
        """Return the replies to n requests, in order.

        A request is what `client.chat.completions.create` takes: {"model":
        ..., "messages": [...], "max_tokens": ..., ...}; with "prompt"
        instead of "messages" it is for `client.completions.create`, raw text
        to go on with. Those that the journal answers are not sent again. A
        row that fails is a Reply that says why. Raises Stopped for what no
        row would survive: the budget, a wrong key, an unknown model, a full
        disk.
        """
        for request in requests:
            self.most(request)  # what has no bound is refused before any
        ids = [request_id(request) for request in requests]
        once = dict(zip(ids, requests, strict=True))  # twins are sent once
        run = _Run(self, list(once.values()))
        worker = threading.Thread(target=run.work, daemon=True)
        worker.start()  # a notebook's own event loop is busy with the cell
        try:
            for _ in run.watched(worker, progress):
                pass
        except KeyboardInterrupt:
            run.stop("interrupted")  # what is under way is still recorded
            worker.join(self.timeout)
            raise
        if run.error is not None:
            raise run.error
        came = dict(zip(once, run.replies, strict=True))
        replies = [came[each] for each in ids]
        if run.why:
            raise Stopped(run.why, replies)
        return replies

    def most(self, request: dict) -> Decimal | None:
        """Return the most that a request may cost, in dollars.

        A token is a byte or more, so the bytes of its text, and `ADDED` for
        what the endpoint puts around it, bound the prompt; `max_tokens`
        bounds the reply, `n` times. None if the price is unknown; raises
        ValueError if the reply has no bound.
        """
        if self.price is None:
            return None
        limit = _reply_limit(request)
        if not limit and self.price[1]:
            raise ValueError(
                "a request without max_tokens has no bound on its cost: set "
                "it, or give no price"
            )
        size = ADDED + sum(
            # names of roles and marks between messages: 16 tokens is ample
            len(str(message.get("content", "")).encode("utf-8", "replace"))
            + 16
            for message in request.get("messages", [])
        )
        size += len(str(request.get("prompt", "")).encode("utf-8", "replace"))
        size += len(str(request.get("response_format", "")))
        size += len(str(request.get("tools", "")))
        tokens = (size, limit)
        pairs = zip(tokens, self.price, strict=True)
        return sum((n * each for n, each in pairs), Decimal(0)) / 1_000_000

    def estimate(self, requests: Sequence[dict]) -> dict:
        """Say what n requests may cost at most, before any is sent.

        Returns `requests`, `recorded` (the journal answers them: free),
        `to send`, `reply tokens, at most` and `dollars, at most` (None if
        the price is unknown), without a retry.
        """
        known = recorded(self.journal) if self.journal.is_file() else {}
        once = {request_id(request): request for request in requests}
        fresh = [each for name, each in once.items() if name not in known]
        most = [self.most(request) for request in fresh]
        return {
            "requests": len(requests),
            "recorded": len(once) - len(fresh),
            "to send": len(fresh),
            "reply tokens, at most": sum(map(_reply_limit, fresh)),
            "dollars, at most": None
            if None in most
            else sum(most, Decimal(0)),
        }

    def batch(
        self, requests: Sequence[dict], path: str | Path, again: bool = False
    ) -> int:
        """Write what the journal lacks as a file for a Batch API.

        Endpoints answer such a file within a day, mostly at half the price
        (`price` is then that of the batch). Each row is intended in the
        journal: until its result is read, it counts as paid, and `ask` would
        send it (and pay it) apart. Rows of an earlier file that has not come
        back are left out, unless `again`: then they are paid again. Returns
        how many were written. Raises OverBudget before the file is.
        """
        once = {request_id(request): request for request in requests}
        with Journal(self.journal, self.budget) as book:
            under_way = {} if again else book.in_batches
            lines = _run(self._batched(book, once, under_way))
        write_rows(path, lines)
        return len(lines)

    async def _batched(self, book: Journal, once: dict, under_way) -> list:
        fresh = {
            name: request
            for name, request in once.items()
            if name not in under_way and name not in book.answered
        }
        most = [self.most(request) for request in fresh.values()]
        book.afford(most)
        pairs = zip(fresh.values(), most, strict=True)
        await asyncio.gather(*(book.intend(*pair, True) for pair in pairs))
        return [
            {
                "custom_id": name,
                "method": "POST",
                "url": f"/v1/{'completions' if 'prompt' in request else CHAT}",
                "body": request,
            }
            for name, request in fresh.items()
        ]

    def read_batch(self, path: str | Path) -> dict[str, int]:
        """Take a Batch API's result file into the journal; count by state.

        `ask` then answers from there. A row that the endpoint gave up
        (expired, refused) costs nothing and may be asked again. Rows that
        are not in the journal, or have their result, are counted as
        `unknown` and `known`. Raises BadRows for lines that are no JSON.
        """
        with Journal(self.journal, self.budget) as book:
            return _run(self._from_batch(book, read_rows(path)))

    async def _from_batch(self, book: Journal, rows: list[dict]) -> dict:
        counts: dict[str, int] = {}
        run, tickets, events = _Run(self, []), book.cut_off, []
        for row in rows:
            name = row.get("custom_id")
            answer = row.get("response") or {}
            if name not in tickets:
                state = "known" if name in book.answered else "unknown"
                counts[state] = counts.get(state, 0) + 1
                continue
            if row.get("error") or answer.get("status_code") != 200:
                why = self.scrubbed(row.get("error") or answer.get("body"))
                came = _Came("failed", f"batch: {why}", cost=Decimal(0))
            else:
                came = run._read(answer.get("body"))
            event = book.record(
                tickets.pop(name),
                came.state,
                {"text": came.text, "reason": came.reason},
                came.usage,
                came.cost,
                came.state not in ("failed", "malformed"),
            )
            events.append(event)
            counts[came.state] = counts.get(came.state, 0) + 1
        await asyncio.gather(*events)  # they share their syncs
        return counts

    def cost(self, usage: dict | None) -> Decimal | None:
        """Return what a reply cost, in dollars; None if nobody knows."""
        if self.price is None or not usage:
            return None
        names = ("prompt_tokens", "completion_tokens")
        if not all(isinstance(usage.get(name), int) for name in names):
            return None
        pairs = zip((usage[name] for name in names), self.price, strict=True)
        return sum((n * each for n, each in pairs), Decimal(0)) / 1_000_000

    def scrubbed(self, text: object) -> str:
        """Return a message without the key, and not too long."""
        said = str(text)
        if self._key:
            said = said.replace(self._key, "[key]")
        return said if len(said) <= 300 else said[:297] + "..."


def price_of(
    model: str, base_url: str | None = None
) -> tuple[float, float] | None:
    """Return a model's price in dollars for a million tokens.

    (prompt, completion), from the tables of the package genai-prices, as
    old as the package; None if the model is not in them. Where the price
    depends on the length of the prompt, the highest. `base_url` tells apart
    endpoints that sell the same model.

    >>> price_of("a-model-of-mine") is None
    True
    """
    from genai_prices import Usage, calc_price

    where = {"provider_api_url": base_url} if base_url else {}
    pairs = []
    for tokens in (1000, 1_000_000):
        usage = Usage(input_tokens=tokens, output_tokens=tokens)
        try:
            found = calc_price(usage, model, **where)
        except LookupError:
            return None
        times = Decimal(1_000_000) / tokens
        pairs.append((found.input_price * times, found.output_price * times))
    prompt, completion = map(max, *pairs)
    return float(prompt), float(completion)


@contextmanager
def local(
    slots: int = 8,
    context: int = 2048,
    threads: int = 2,
    gguf: str | Path | None = None,
) -> Iterator[tuple[str, str]]:
    """Serve the embedded model on this machine: (base_url, key).

    `gguf` is the file of another model, to be served in its place.

    llama.cpp's own server, inside this process, by the package xllamacpp;
    it listens on 127.0.0.1 only. `slots` requests are answered at once,
    each of at most `context` tokens with its reply. Even at temperature 0 a
    few replies differ from run to run: what is answered beside them, and
    prompts still in memory, change roundings.

    >>> with local() as (base_url, key):  # doctest: +SKIP
    ...     Teacher("replies.jsonl", base_url, key).ask(requests)

    Raises ModuleNotFoundError where there is no wheel of xllamacpp, and
    FileNotFoundError if there is no such file.
    """
    if gguf is not None and not Path(gguf).is_file():
        raise FileNotFoundError(f"{gguf} is not there: write it first")
    try:
        import xllamacpp
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "xllamacpp is not installed: run `python -m pip install -r "
            "requirements.txt`, or give another endpoint's base_url"
        ) from None
    from instructft.models import gguf_file

    key = secrets.token_hex(16)
    settings = xllamacpp.CommonParams()
    settings.model.path = str(gguf or gguf_file())
    settings.model_alias = {Path(gguf).stem if gguf else LOCAL}
    settings.hostnames = ["127.0.0.1"]
    settings.api_keys = [key]
    settings.n_parallel = slots
    settings.n_ctx = slots * context
    settings.cpuparams.n_threads = threads
    settings.warmup = False
    settings.verbosity = -1
    server = xllamacpp.Server(settings)
    try:
        yield f"{server.listening_address}/v1", key
    finally:
        time.sleep(0.1)  # deleted in its first moment it would hang
        del server


class _Run:
    """One call of `Teacher.ask`, in a thread and an event loop of its own."""

    def __init__(self, teacher: Teacher, requests: list[dict]):
        self.teacher, self.requests = teacher, requests
        self.replies: list[Reply | None] = [None] * len(requests)
        self.why, self.error = "", None
        self.done = self.tokens = 0
        self.paid = Decimal(0)
        self._next_start = 0.0

    def stop(self, why: str) -> None:
        self.why = self.why or why

    def work(self) -> None:
        try:
            asyncio.run(self._all())
        except Exception as error:  # raised again where `ask` was called
            self.error = error

    def watched(self, worker, progress: bool) -> Iterator[None]:
        """Show how far the run is until it ends."""
        from tqdm.auto import tqdm

        with tqdm(total=len(self.requests), disable=not progress) as bar:
            while worker.is_alive():
                worker.join(0.1)
                bar.update(self.done - bar.n)
                bar.set_postfix_str(
                    f"{self.tokens:,} tokens, ${self.paid:.4f}", refresh=False
                )
                yield
            bar.update(self.done - bar.n)

    async def _all(self) -> None:
        from openai import AsyncOpenAI, DefaultAioHttpClient

        teacher = self.teacher
        waiting = iter(enumerate(self.requests))
        # rows that pause before another try leave their place to others
        workers = min(teacher.at_once * 2, len(self.requests))
        self._slots = asyncio.Semaphore(teacher.at_once)
        # sent and not yet on the disk: a kill may have these paid again
        self._unsafe = asyncio.Semaphore(teacher.at_once * 9 // 8)
        # some wait for the disk while all that may be under way are
        self._ahead = asyncio.Semaphore(teacher.at_once * 9 // 8 + 1)
        self._settled = asyncio.Event()
        clients = [
            AsyncOpenAI(
                base_url=url,
                api_key=teacher._key or "none",
                max_retries=0,
                timeout=teacher.timeout,
                http_client=DefaultAioHttpClient(verify=_trusted()),
            )
            for url in teacher.base_urls
        ]
        self._busy = dict.fromkeys(clients, 0)  # requests under way
        self._rests = dict.fromkeys(clients, 0.0)  # until when
        with Journal(teacher.journal, teacher.budget) as book:
            self.paid = book.paid
            async with AsyncExitStack() as stack:
                for client in clients:
                    await stack.enter_async_context(client)
                await asyncio.gather(
                    *(
                        self._worker(book, waiting, number)
                        for number in range(workers)
                    )
                )
            await book.settle()

    async def _worker(self, book: Journal, waiting, number: int) -> None:
        # all at once would be answered at once, each waiting for the others;
        # and endpoints refuse a crowd
        await asyncio.sleep(number * APART)
        for place, request in waiting:
            if self.why:
                return
            try:
                result = await self._row(book, request)
            except (OverBudget, OSError) as error:  # the disk's, not the net's
                self.stop(str(error))
                self._settled.set()  # nobody shall wait for this one
                return None
            except Exception as error:  # ours: the others still come home
                self.error = error
                self.stop(type(error).__name__)
                self._settled.set()
                return None
            if result is None:
                return None
            reply = _reply(result)
            self.replies[place] = reply
            self.done += 1
            self.paid = book.paid
            self.tokens += (reply.usage or {}).get("total_tokens") or 0
        return None

    async def _row(self, book: Journal, request: dict) -> dict | None:
        """Return a request's result: the journal's, or a new one."""
        if (found := book.result(request)) is not None:
            return found
        most = self.teacher.most(request)
        for left in reversed(range(self.teacher.tries)):
            async with self._ahead:
                ticket = await self._intend(book, request, most)
                if ticket is None:
                    return None
                await self._unsafe.acquire()
            try:
                async with self._slots:
                    came = await self._sent(request)
                await asyncio.sleep(0)  # the next is sent before this is kept
                if came.state != "ok":
                    counts = self.teacher.failures
                    name = came.reason.split(":")[0] or came.state
                    counts[name] = counts.get(name, 0) + 1
                last = not came.again or not left
                result = await book.record(
                    ticket,
                    came.state,
                    self._kept(came, request),
                    came.usage,
                    came.cost,
                    # what failed is asked again by the next call
                    last and came.state not in ("failed", "malformed"),
                )
            finally:
                self._unsafe.release()
            self._settled.set()
            if came.stops:
                return None
            if last:
                return result
            tried = self.teacher.tries - left
            pause = min(30, 0.25 * 2 ** (tried - 1)) * (1 + random.random())
            await asyncio.sleep(max(came.wait, 0 if came.now else pause))
        return None

    async def _sent(self, request: dict) -> "_Came":
        """Send a request, if the run goes on; stop the run if it must."""
        await self._turn()
        if self.why:  # it is not sent, and costs nothing
            return _Came("failed", self.why, stops=True, cost=Decimal(0))
        now = time.monotonic()
        client = min(
            self._busy, key=lambda c: (max(self._rests[c], now), self._busy[c])
        )
        self._busy[client] += 1
        try:
            came = await self._once(client, request)
        finally:
            self._busy[client] -= 1
        came = self._rested(client, came)
        if came.stops:  # before the place is another's
            self.stop(came.reason)
        return came

    def _rested(self, client, came: "_Came") -> "_Came":
        """Leave an endpoint alone that failed, if there are others."""
        if len(self._rests) == 1 or came.now or not (came.again or came.stops):
            return came
        now = time.monotonic()
        for_good = came.stops and not came.wait
        until = math.inf if for_good else now + max(REST, came.wait)
        self._rests[client] = max(self._rests[client], until)
        soonest = min(self._rests.values()) - now
        if came.stops and soonest <= LONGEST_WAIT:  # the others may yet do
            came = came._replace(stops=False, again=True)
        return came._replace(wait=min(came.wait, max(0.0, soonest)))

    async def _intend(self, book: Journal, request, most) -> int | None:
        """Reserve what a request may cost; None if the run has stopped.

        Waits while those under way may yet cost less than was reserved.
        """
        while not self.why:
            try:
                return await book.intend(request, most)
            except OverBudget:
                if not book.reserved:
                    raise
                self._settled.clear()
                await self._settled.wait()
        return None

    async def _turn(self) -> None:
        """Wait until another request may start."""
        if self.teacher._apart:
            now = time.monotonic()
            start = max(now, self._next_start)
            self._next_start = start + self.teacher._apart
            await asyncio.sleep(start - now)

    async def _once(self, client, request: dict) -> "_Came":
        """Send a request once, and say what came."""
        import httpx2  # the openai client's own
        import openai

        sent = self._negotiated(request)
        raw = "prompt" in request
        if unknown := sorted(request.keys() - _parameters(raw)):
            why = f"request: the client takes no {unknown}"
            return _Came("failed", why, cost=Decimal(0))
        try:
            # `create` would walk through every field of request and reply
            response = await client.post(
                "/completions" if raw else f"/{CHAT}",
                body=sent,
                cast_to=httpx2.Response,
            )
            body = response.json()
        except openai.APIStatusError as error:
            return self._refused(error, request)
        except openai.APIConnectionError as error:
            cause = error
            while cause.__cause__:  # its transport calls all of them timeouts
                cause = cause.__cause__
            if isinstance(cause, TimeoutError):
                return _Came("failed", "timeout: no reply in time", again=True)
            why = self.teacher.scrubbed(cause)
            return _Came("failed", f"connection: {why}", again=True)
        except ValueError as error:  # not JSON
            why = self.teacher.scrubbed(error)
            return _Came("malformed", f"not JSON: {why}", again=True)
        return self._read(body)

    def _refused(self, error, request: dict) -> "_Came":
        """Say what an HTTP status asks for."""
        status, why = error.status_code, self.teacher.scrubbed(error)
        free = Decimal(0)  # an endpoint that refuses charges nothing
        if status in FATAL or error.code == "insufficient_quota":
            return _Came("failed", f"{status}: {why}", stops=True, cost=free)
        if status == 400 and self._give_way(error, request):
            return _Came(
                "failed", f"400: {why}", again=True, now=True, cost=free
            )
        if status not in AGAIN:
            return _Came("failed", f"{status}: {why}", cost=free)
        wait = _retry_after(error.response.headers)
        if wait > LONGEST_WAIT:
            until = time.strftime("%H:%M", time.localtime(time.time() + wait))
            why = f"the endpoint asks to wait until {until} ({wait:.0f} s)"
            return _Came(
                "failed", f"{status}: {why}", stops=True, wait=wait, cost=free
            )
        # after a 500 or a timeout nobody knows whether it was charged
        cost = free if status == 429 else None
        return _Came(
            "failed", f"{status}: {why}", again=True, wait=wait, cost=cost
        )

    def _kept(self, came: "_Came", request: dict) -> dict:
        """Return what the journal keeps of a try: also what was not sent."""
        kept = {"text": came.text, "reason": came.reason}
        given_up = [
            name
            for name in request
            if f"{request['model']}: {name}" in self.teacher.dropped
        ]
        return kept | ({"dropped": given_up} if given_up else {})

    def _negotiated(self, request: dict) -> dict:
        """Leave out, or rename, what this model's endpoint refused."""
        sent = dict(request)
        for name in list(sent):
            if f"{request['model']}: {name}" in self.teacher.dropped:
                value = sent.pop(name)
                if name == "max_tokens":
                    sent["max_completion_tokens"] = value
        return sent

    def _give_way(self, error, request: dict) -> bool:
        """Note a parameter that the endpoint refuses; say if one was new."""
        text = str(error)
        name = error.param if error.param in request else None
        if name is None and "max_completion_tokens" in text:
            name = "max_tokens"
        refused = error.code in ("unsupported_parameter", "unsupported_value")
        key = f"{request['model']}: {name}"
        if name not in request or key in self.teacher.dropped:
            return False
        if name == "max_tokens" and "max_completion_tokens" in text:
            self.teacher.dropped[key] = "sent as max_completion_tokens"
            return True
        if refused and name in OPTIONAL:
            self.teacher.dropped[key] = "left out"
            return True
        return False

    def _read(self, body) -> "_Came":
        """Say what a reply with status 200 holds."""
        if not isinstance(body, dict) or not body.get("choices"):
            why = self.teacher.scrubbed(body)
            return _Came("malformed", f"no choices: {why}", again=True)
        usage = body.get("usage")
        usage = usage if isinstance(usage, dict) else None
        found = {"usage": usage, "cost": self.teacher.cost(usage)}
        choice = body["choices"][0]
        message = choice.get("message") or {}
        text = message.get("content") or choice.get("text") or ""
        reason = choice.get("finish_reason")
        if message.get("refusal"):
            return _Came("refused", message["refusal"], text, **found)
        if reason == "content_filter":
            return _Came("filtered", "the endpoint's filter", text, **found)
        if reason == "length":
            why = "cut off at max_tokens"
            return _Came("length", why, text, **found)
        if not text.strip() and not message.get("tool_calls"):
            return _Came("empty", "no text", text, **found)
        return _Came("ok", "", text, **found)


class _Came(NamedTuple):
    """What came of one try, and what to do next."""

    state: str
    reason: str
    text: str = ""
    usage: dict | None = None
    cost: Decimal | None = None
    again: bool = False
    now: bool = False  # again, without a pause
    stops: bool = False
    wait: float = 0.0


def _reply(result: dict) -> Reply:
    cost = result["cost"]
    return Reply(
        result["reply"]["text"],
        result["state"],
        result["reply"]["reason"],
        result["usage"],
        None if cost is None else Decimal(cost),
    )


def _run(work: Coroutine) -> object:
    """Run a coroutine; a notebook's own event loop is busy with the cell."""
    with ThreadPoolExecutor(1) as apart:
        return apart.submit(asyncio.run, work).result()


@cache
def _trusted() -> ssl.SSLContext:
    """Return the certificates that are trusted; slow to read."""
    return ssl.create_default_context()


def _reply_limit(request: dict) -> int:
    """Return the most tokens that a request asks for; 0 if it sets none."""
    limit = request.get("max_completion_tokens", request.get("max_tokens"))
    return (limit or 0) * request.get("n", 1)


@cache
def _parameters(raw: bool) -> frozenset[str]:
    """Return the names that the client's `create` takes."""
    from openai.resources import chat, completions

    kind = completions if raw else chat.completions
    return frozenset(
        inspect.signature(kind.AsyncCompletions.create).parameters
    )


def _retry_after(headers) -> float:
    """Return the seconds that a Retry-After header asks for; 0 if none."""
    said = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0
