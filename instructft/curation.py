"""Curate rows by the million: the same rules, on as many machines as it takes.

What costs time, reading and judging, is spread over a Ray cluster. What
does not, finding twins and writing, is done here, and by the same code as
without one: so a cluster keeps the very rows that one process keeps.
"""

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from instructft.instance import LONGEST_LINE, parse_line, whole_file

if TYPE_CHECKING:
    import numpy as np

KEPT = "kept"
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
    progress: bool = False,
) -> dict[str, int]:
    """Write the rows of JSONL files that break no rule; count the others.

    Each process that judges calls `make` once: there a tokenizer may be
    loaded. What is kept goes to `out`, line by line in the order of the
    files, byte for byte but for line ends; of what is not, file, byte and
    rule go to a file beside it, named `...-left-out.jsonl`.

    `ray` has the rows judged by a Ray cluster, `part` bytes at a time: the
    one that RAY_ADDRESS or `ray.init` names, else one of this machine's
    cores (Ray listens on its address in your network). Its nodes must see
    the files, and have this package and the module of `make`; a notebook's
    own functions travel by themselves.

    Returns {"kept": n, rule: n, ...}. It takes about 130 bytes of memory a
    row, at most. Before anything is judged it raises FileNotFoundError,
    IsADirectoryError, ModuleNotFoundError where ray is not installed, and
    ValueError where `out` would replace what is read; later, and with
    nothing written, ValueError with file and byte of a row on which the
    judge fails, or if a file was changed meanwhile.
    """
    import numpy as np
    from tqdm.auto import tqdm

    if part < 1:
        raise ValueError(f"part is {part}: give bytes, 1 or more")
    out = Path(out)
    beside = out.with_name(f"{out.stem}-left-out.jsonl")
    for each in (out, beside):
        if each.resolve() in {Path(file).resolve() for file in files}:
            raise ValueError(f"{each} is read: give `out` another name")
        if each.is_dir():
            raise IsADirectoryError(f"{each} is a folder: name a file")
    parts = [each for file in files for each in _parts(Path(file), part)]
    before = [_state(each) for each in parts]
    out.parent.mkdir(parents=True, exist_ok=True)
    judged: list = [None] * len(parts)
    found = (_on_ray if ray else _here)(parts, make)
    for number, verdicts in tqdm(
        found, total=len(parts), unit="part", disable=not progress
    ):
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
    lengths = [len(each) for each in codes]
    del judged, codes
    may = np.flatnonzero((code == rules.index("")) & key.any(1))
    _, first = np.unique(key[may], axis=0, return_index=True)
    code[np.delete(may, first)] = rules.index(TWIN)
    verdict = iter(code)
    with whole_file(out) as kept, whole_file(beside) as left_out:
        for each, left in zip(parts, lengths, strict=True):
            for place, line in _lines(each):
                left -= 1
                rule = rules[next(verdict, 0)]
                if not rule:
                    kept.write(line.rstrip(b"\r\n") + b"\n")
                    continue
                said = {"file": each.file, "byte": place, "rule": rule}
                left_out.write(json.dumps(said).encode() + b"\n")
            if left:
                raise ValueError(f"{each.file} is not as it was judged")
        if before != [_state(each) for each in parts]:
            raise ValueError("a file was changed meanwhile: run again")
    counts = np.bincount(code, minlength=len(rules)).tolist()
    others = sorted(zip(counts, rules, strict=True), reverse=True)
    kept_rows = counts[rules.index("")]
    return {KEPT: kept_rows} | {rule: n for n, rule in others if n and rule}


def _state(part: _Part) -> tuple[int, int]:
    """Return what changes with a file."""
    found = os.stat(part.file)
    return found.st_size, found.st_mtime_ns


def _parts(path: Path, size: int) -> list[_Part]:
    """Cut a file where nobody needs to read it first."""
    whole = path.stat().st_size
    return [
        _Part(str(path.resolve()), start, min(start + size, whole))
        for start in range(0, whole, size)
    ]


def _lines(part: _Part) -> Iterator[tuple[int, bytes]]:
    """Yield (byte, line) of each line that starts in a part, blanks not.

    Of a line of 16 MB or more only so much: it is no row.
    """
    with open(part.file, "rb") as file:

        def pass_by(line: bytes) -> None:
            """Read on to the end of a line, or of the part."""
            while line[-1:] not in (b"", b"\n") and file.tell() < part.end:
                line = file.readline(LONGEST_LINE)

        if part.start:  # the line that is under way is another part's
            file.seek(part.start - 1)
            pass_by(file.readline(LONGEST_LINE))
        place = file.tell()
        while place < part.end and (line := file.readline(LONGEST_LINE)):
            text = line if place else line.removeprefix(b"\xef\xbb\xbf")
            if text.strip():
                yield place, text
            pass_by(line)
            place = file.tell()


def _judged(part: _Part, judge: Judge) -> _Verdicts:
    """Judge a part's rows, in order."""
    import numpy as np

    names: dict[str, int] = {}
    codes, keys = [], bytearray()
    for place, line in _lines(part):
        row, problems = parse_line(line)
        if len(line) >= LONGEST_LINE and not line.endswith(b"\n"):
            problems = ["too long"]
        rule, digest = TORN, bytes(16)
        try:
            if not problems:
                found = judge(row)
                if not isinstance(found, tuple) or len(found) != 2:
                    raise TypeError(f"{found!r} is no (rule, key)")
                rule, key = found
                if not isinstance(rule, str) or rule == KEPT:
                    raise TypeError(f"{rule!r} is no name of a rule")
                if key is not None:
                    said = key.encode("utf-8", "surrogatepass")
                    digest = hashlib.blake2b(said, digest_size=16).digest()
        except Exception as error:
            raise ValueError(
                f"{part.file}, byte {place}: the judge fails on this row "
                f"({error!r}); let it return a rule for such rows"
            ) from error
        codes.append(names.setdefault(rule, len(names)))
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
        try:
            found = _judged(_Part(*pickle.loads(part)), self._judge)
        except ValueError as error:  # raised again where `curate` was called
            found = error
        return {"number": [number], "found": [pickle.dumps(found)]}


def _seen(make, files: list[str]) -> list[int]:
    """Take what a node is to judge with; return the files' sizes there."""
    return [os.stat(file).st_size for file in files]


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
    if not parts:
        return
    ours = not ray.is_initialized()
    if ours:  # a cluster that RAY_ADDRESS names brings its own settings
        where = os.environ.get("RAY_ADDRESS", "local")
        local = {"include_dashboard": False} if where == "local" else {}
        ray.init(where, **local)
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        _ask_each_node(make, sorted({part.file for part in parts}))
        cores = int(ray.cluster_resources().get("CPU", 1))
        most = max(1, min(cores, len(parts)))
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
                min_size=1,
                initial_size=most,
                max_size=most,
                max_tasks_in_flight_per_actor=2,
            ),
        )
        for row in found.iter_rows():
            verdicts = pickle.loads(row["found"])
            if isinstance(verdicts, ValueError):
                raise verdicts
            yield int(row["number"]), verdicts
    finally:
        context.enable_progress_bars = bars
        if ours:
            ray.shutdown()


def _ask_each_node(make, files: list[str]) -> None:
    """Raise where a node lacks `make` or the files.

    Else an actor would be started there again and again, for ever.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = _seen(None, files)
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ask = ray.remote(_seen).options(
                num_cpus=0, scheduling_strategy=there
            )
            if ray.get(ask.remote(make, files)) != here:
                name = node["NodeManagerHostname"]
                raise ValueError(f"{name} sees other files than this machine")
