"""Curate rows by the million: the same rules, on as many machines as it takes.

What costs time, reading and judging, is spread over a Ray cluster. What
does not, finding twins and writing, is done here, and by the same code as
without one: so a cluster keeps the very rows that one process keeps.
"""

import hashlib
import json
import logging
import os
import pickle
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

TWIN = "a twin of a row before it"
TORN = "not a JSON object"


class _Part(NamedTuple):
    """The lines that start in some bytes of a file."""

    file: str
    start: int
    end: int


class _Verdicts(NamedTuple):
    """What became of a part's n rows."""

    names: list[str]  # rules
    codes: "np.ndarray"  # (n,): which of them
    keys: "np.ndarray"  # (n, 2): a hash's 128 bits, 0 without a key


# What judges a row: the rule that it breaks ("" if none), and a key (None if
# it has none): of rows with one key the first that breaks no rule is kept
Judge = Callable[[dict], tuple[str, str | None]]


def curate(
    files: Sequence[str | Path],
    make: Callable[[], Judge],
    out: str | Path,
    ray: bool = False,
    part: int = 16 << 20,
) -> dict[str, int]:
    """Write the rows of JSONL files that break no rule; count the others.

    Each process that judges calls `make` once: there a tokenizer may be
    loaded. What is kept goes to `out`, each line as it stood, in the order
    of the files; of what is not, file, byte and rule go to a file beside
    it, `<out's name>-left-out.jsonl`. `ray` has the rows judged by a Ray
    cluster, `part` bytes at a time: the one that `ray.init` joined, else
    one of this machine's cores. All its nodes must see the files.

    Here it takes about 30 bytes of memory a row. Returns {"kept": n, rule:
    n, ...}. Raises FileNotFoundError before anything is judged; ValueError
    with file and byte of a row on which `make`'s judge fails, and
    ModuleNotFoundError where ray is not installed, before anything is
    written.
    """
    import numpy as np
    from tqdm.auto import tqdm

    parts = [each for file in files for each in _parts(Path(file), part)]
    judged: list = [None] * len(parts)
    found = (_on_ray if ray else _here)(parts, make)
    for number, verdicts in tqdm(found, total=len(parts), unit="part"):
        judged[number] = verdicts
    rules = sorted({"", TWIN}.union(*(each.names for each in judged)))
    codes = [
        np.array([rules.index(name) for name in each.names], np.int32)[
            each.codes
        ]
        for each in judged
    ]
    code = np.concatenate([np.empty(0, np.int32), *codes])
    none = np.empty((0, 2), np.uint64)
    key = np.concatenate([none, *(each.keys for each in judged)])
    may = np.flatnonzero((code == rules.index("")) & key.any(1))
    _, first = np.unique(key[may], axis=0, return_index=True)
    code[np.delete(may, first)] = rules.index(TWIN)
    counts = Counter(rules[i] for i in code)
    verdict = iter(code)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f"{out.stem}-left-out.jsonl")
    with ExitStack() as stack:
        kept, left_out = (
            stack.enter_context(_whole(path)) for path in (out, beside)
        )
        for each in parts:
            for place, line in _lines(each):
                rule = rules[next(verdict)]
                if not rule:
                    kept.write(line.rstrip(b"\r\n") + b"\n")
                    continue
                said = {"file": each.file, "byte": place, "rule": rule}
                left_out.write(json.dumps(said).encode() + b"\n")
    kept_rows = counts.pop("", 0)
    return {"kept": kept_rows, **dict(counts.most_common())}


def _parts(path: Path, size: int) -> list[_Part]:
    """Cut a file where nobody needs to read it first."""
    whole = path.stat().st_size
    return [
        _Part(str(path.resolve()), start, min(start + size, whole))
        for start in range(0, whole, size)
    ]


def _lines(part: _Part) -> Iterator[tuple[int, bytes]]:
    """Yield (byte, line) of each line that starts in a part, blanks not."""
    with open(part.file, "rb") as file:
        if part.start:  # the line that is under way is another part's
            file.seek(part.start - 1)
            file.readline()
        place = file.tell()
        while place < part.end and (line := file.readline()):
            text = line if place else line.removeprefix(b"\xef\xbb\xbf")
            if text.strip():
                yield place, text
            place += len(line)


def _judged(part: _Part, judge: Judge) -> _Verdicts:
    """Judge a part's rows, in order."""
    import numpy as np

    names: dict[str, int] = {}
    codes, keys = [], bytearray()
    for place, line in _lines(part):
        rule, key = TORN, None
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            try:
                rule, key = judge(row)
            except Exception as error:
                raise ValueError(
                    f"{part.file}, byte {place}: the judge fails on this row "
                    f"({error!r}); let it return a rule for such rows"
                ) from error
        codes.append(names.setdefault(rule, len(names)))
        digest = bytes(16)
        if key is not None:
            said = key.encode("utf-8", "surrogatepass")
            digest = hashlib.blake2b(said, digest_size=16).digest()
        keys += digest
    table = np.frombuffer(bytes(keys), np.uint64).reshape(-1, 2)
    return _Verdicts(list(names), np.array(codes, np.int32), table)


def _here(parts: list[_Part], make) -> Iterator[tuple[int, _Verdicts]]:
    """Judge one part after the other."""
    yield from enumerate(map(partial(_judged, judge=make()), parts))


class _Judging:
    """What a process of the cluster does, again and again."""

    def __init__(self, make):
        self._judge = make()

    def __call__(self, batch: dict) -> dict:
        [number], [part] = batch["number"], batch["part"]
        verdicts = _judged(_Part(*pickle.loads(part)), self._judge)
        return {"number": [number], "verdicts": [pickle.dumps(verdicts)]}


def _on_ray(parts: list[_Part], make) -> Iterator[tuple[int, _Verdicts]]:
    """Judge parts wherever the cluster has a core, in any order."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    try:
        import ray
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "ray is not installed: run `python -m pip install -e '.[ray]'`, "
            "or leave out ray=True"
        ) from None
    if not ray.is_initialized() and "RAY_ADDRESS" not in os.environ:
        ray.init(include_dashboard=False, _node_ip_address="127.0.0.1")
    # `curate` shows how far it is
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    cores = int(ray.cluster_resources()["CPU"])
    items = [
        {"number": number, "part": pickle.dumps(tuple(part))}
        for number, part in enumerate(parts)
    ]
    found = ray.data.from_items(items, override_num_blocks=len(items))
    found = found.map_batches(
        _Judging,
        fn_constructor_args=[make],
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=max(1, cores), max_tasks_in_flight_per_actor=2
        ),
    )
    for row in found.iter_rows():
        yield int(row["number"]), pickle.loads(row["verdicts"])


@contextmanager
def _whole(path: Path) -> Iterator:
    """Write a file aside; it takes its place when all of it is there."""
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
