"""Say what a data set or model is, where it is from and what is owed for it.

The provenance ledger, the licence gate, the cards, and a folder with all of
it, ready to be given on. Provenance stands in each row: `source`, `licence`
(of the data), `wording` (licence of the template's words), `teacher` (the
model that wrote the output), `teacher_licence` (terms for its outputs).
"""

import ast
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from instructft.evaluate import interval
from instructft.instance import FIELDS, problems_of, write_rows

LICENCES = {  # field: of what
    "licence": "data",
    "wording": "templates' words",
    "teacher_licence": "teacher's outputs",
}
# SPDX identifiers, by what they ask for
BY_ID = {
    "free": {"CC0-1.0", "Unlicense", "0BSD"},
    "notice": {
        *("MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause"),
        *("CC-BY-4.0", "ODC-By-1.0", "CDLA-Permissive-2.0"),
    },
    "share-alike": {
        *("CC-BY-SA-4.0", "CC-BY-NC-SA-4.0", "ODbL-1.0", "GPL-3.0"),
    },
}
# What gives a licence away, in its id or in anybody's words for it
BY_WORD = {
    "non-commercial": r"\bnc\b|non.?commercial|research|academic",
    "no derivatives": r"\bnd\b|no.?deriv",
    "terms": r"\bterms\b|\btos\b|usage polic|compet",
}
DUTIES = {
    "free": "nothing",
    "notice": "keep its notices and name its authors",
    "share-alike": "give on what is made of it under the same licence",
    "non-commercial": "no commercial use",
    "no derivatives": "no changed versions",
    "terms": "such terms may forbid to train a model that competes",
    "unknown": "no SPDX identifier that is known here",
}
MISSING = {
    "licence": "no licence; write that of the data into `licence`, or drop "
    "them",
    "teacher_licence": "a teacher without terms; write those for its "
    "outputs into `teacher_licence`, or drop them",
}
SPELT = {
    **{name.lower(): name for names in BY_ID.values() for name in names},
    "odc-by": "ODC-By-1.0",
    "odbl": "ODbL-1.0",
    "gpl-3.0-only": "GPL-3.0",
    "gpl-3.0-or-later": "GPL-3.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "cc-by-nd-4.0": "CC-BY-ND-4.0",
    "cc-by-nc-nd-4.0": "CC-BY-NC-ND-4.0",
}
# The hub's names, where they are not the identifier in small letters
HUB = {"ODC-By-1.0": "odc-by", "ODbL-1.0": "odbl", "0BSD": "other"}
# What looks like a key of OpenAI's kind, of Hugging Face, of Amazon
KEY = re.compile(
    r"(?<![A-Za-z0-9])"
    r"(sk-[A-Za-z0-9_-]{20}|hf_[A-Za-z0-9]{30}|AKIA[A-Z0-9]{16})"
)
MOST = 40  # lines of the ledger in a card
# What a model card must say of its base and of what training took
BASE = ("name", "revision", "licence")
COST = ("tokens", "minutes", "memory_gb", "machine")
# What an adapter is given on with: pickles, such as training_args.bin, a
# checkpoint's trainer_state.json with its paths, and other cards stay behind
GIVEN_ON = {
    *("adapter_config.json", "adapter_model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "vocab.txt", "merges.txt"),
    *("spiece.model", "sentencepiece.bpe.model"),
}
TEXT = {".json", ".jinja", ".txt"}  # where a key could be read


class LicenceError(ValueError):
    """Rows that may not be given on as they are; `problems` says why."""

    def __init__(self, folder: str | Path, problems: list[str]):
        self.problems = problems
        super().__init__(f"{folder} is not written: " + "\n".join(problems))


# The ledger


def ledger(
    rows: Sequence[dict],
    by: Sequence[str] = ("source", "licence", "teacher"),
) -> list[dict]:
    """Count the rows of each combination of fields, most first.

    A missing field is "". Instances and conversations alike.

    >>> ledger([{"licence": "MIT"}, {}, {"licence": "MIT"}], by=["licence"])
    [{'licence': 'MIT', 'rows': 2}, {'licence': '', 'rows': 1}]
    """
    counted = Counter(tuple(_text(row.get(f)) for f in by) for row in rows)
    return [
        {**dict(zip(by, values, strict=True)), "rows": count}
        for values, count in counted.most_common()
    ]


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return "" if value is None else str(value).strip()


# The licence gate


def licence_problems(
    rows: Sequence[dict], allow: Sequence[str] = ()
) -> list[str]:
    """List what speaks against giving these rows on; [] if nothing does.

    A checklist and no legal advice: it knows a few licences by their SPDX
    identifiers, reads none, and believes what the rows say. A line for each
    kind of problem: how many rows, the first of them, the remedy. `allow`
    names licences that you have read and accept. Share-alike rows may
    stand beside free ones and those that ask for a notice, no others.

    >>> rows = [{"licence": "MIT"}, {"licence": "CC-BY-NC-4.0"}]
    >>> licence_problems(rows)  # doctest: +NORMALIZE_WHITESPACE
    ['1 row, first rows[1]: CC-BY-NC-4.0: no commercial use; drop them, or
    read it and name it in `allow`']
    """
    allow = [allow] if isinstance(allow, str) else allow
    accepted = {name.lower() for each in allow for name in _names(each)}
    every = {name for row in rows for _, name in _licences(row)}
    found: dict[str, dict[str, list[int]]] = {}
    for i, row in enumerate(rows):
        for kind, name in _faults(row, every):
            if name.lower() not in accepted:
                found.setdefault(kind, {}).setdefault(name, []).append(i)
    return [_line(kind, by_name) for kind, by_name in found.items()]


def _faults(row: dict, every: set[str]) -> Iterator[tuple[str, str]]:
    """Yield (kind, licence) of what speaks against a row."""
    if not _text(row.get("licence")):
        yield "licence", ""
    if _text(row.get("teacher")) and not _text(row.get("teacher_licence")):
        yield "teacher_licence", ""
    easy = {"free", "notice"}
    for _, name in _licences(row):
        # those beside it that cannot follow a share-alike licence
        stuck = any(easy.isdisjoint(_kinds(o)) for o in every - {name})
        for kind in _kinds(name):
            if kind not in easy and (kind != "share-alike" or stuck):
                yield kind, name


def _line(kind: str, by_name: dict[str, list[int]]) -> str:
    rows = set().union(*by_name.values())
    count = _count(len(rows), "row")
    said = MISSING.get(kind)
    if not said:
        duty = DUTIES[kind]
        if kind == "share-alike":
            duty += ", which rows beside it cannot"
        said = f"{', '.join(sorted(by_name))}: {duty}; drop them, or read "
        said += "it and name it in `allow`"
    return f"{count}, first rows[{min(rows)}]: {said}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _licences(row: dict) -> Iterator[tuple[str, str]]:
    """Yield (field, licence) of each licence that a row names."""
    for field in LICENCES:
        for name in _names(_text(row.get(field))):
            yield field, name


@cache
def _names(text: str) -> tuple[str, ...]:
    """Part "mit, CC BY 4.0" into SPDX ids; what is not known stays whole."""
    parts = re.split(r"\s*[,;]\s*|(?i:\s+and\s+)", text)
    names = tuple(_spelt(part) for part in parts if part)
    if any("unknown" in _kinds(name) for name in names):
        return (_spelt(text),)
    return names


def _spelt(text: str) -> str:
    words = text.split()
    return SPELT.get("-".join(words).lower(), " ".join(words))


@cache
def _kinds(name: str) -> tuple[str, ...]:
    kinds = [kind for kind, names in BY_ID.items() if name in names]
    kinds += [k for k, w in BY_WORD.items() if re.search(w, name, re.I)]
    return tuple(kinds) or ("unknown",)


# The card of a data set


def dataset_card(
    rows: Sequence[dict],
    title: str,
    summary: str,
    language: str = "en",
    rejected: Mapping[str, int] | None = None,
    **sections: str,
) -> str:
    """Write the README.md of a data set, as the Hugging Face hub reads it.

    It says only what rows and arguments say. `rejected` gives the number of
    rows that each rule rejected. `sections` are Markdown: how_it_was_made
    and known_limits, and any other under its own name. Raises ValueError if
    there are no rows, or naming those of no known shape.

    >>> row = {"instruction": "Add.", "input": "1+1", "output": "2"}
    >>> card = dataset_card([row | {"licence": "MIT"}], "Sums", "One sum.")
    >>> card.splitlines()[:3]
    ['---', 'pretty_name: Sums', 'license: mit']
    """
    _check_shapes(rows)
    made = {"how_it_was_made": "Not stated.", **sections}
    limits = made.pop("known_limits", "Not stated.")
    parts = [
        ("What it is", _contents(rows)),
        ("Where the rows come from", _origins(rows)),
        *((name.replace("_", " "), text) for name, text in made.items()),
        ("What was rejected, and why", _rejections(rejected)),
        ("Known limits", limits),
        ("Licence and notices owed", _owed(rows)),
        ("Examples", _examples(rows)),
    ]
    title = " ".join(title.split())
    return _page(_about(rows, title, language), title, summary, parts)


def _page(about: dict, title: str, summary: str, parts: list) -> str:
    """Put YAML front matter, title, summary and sections together."""
    import yaml

    front = yaml.safe_dump(about, sort_keys=False, allow_unicode=True)
    texts = [f"---\n{front}---", f"# {title}", summary.strip()]
    for heading, text in parts:
        texts += [f"## {heading[:1].upper()}{heading[1:]}", text.strip()]
    return "\n\n".join(texts) + "\n"


def _about(rows: Sequence[dict], title: str, language: str) -> dict:
    """Return what the front matter says of the rows."""
    tags = ["instruction-tuning"]
    tags += ["conversational"] * any("messages" in row for row in rows)
    tags += ["synthetic"] * any(_text(row.get("teacher")) for row in rows)
    files = [{"split": "train", "path": "data.jsonl"}]
    return {
        "pretty_name": title,
        **_licence_of_all(rows),
        "language": [language],
        "size_categories": [_size(len(rows))],
        "task_categories": ["text-generation"],
        "tags": tags,
        "configs": [{"config_name": "default", "data_files": files}],
    }


def _licence_of_all(rows: Sequence[dict]) -> dict[str, str]:
    """Return the hub's id of the one licence, or `other` and their names."""
    names = sorted({name for row in rows for _, name in _licences(row)})
    bare = sum(not _text(row.get("licence")) for row in rows)
    if not names:
        return {"license": "unknown"}
    if len(names) == 1 and not bare and names[0] in SPELT.values():
        known = HUB.get(names[0], names[0].lower())
        if known != "other":
            return {"license": known}
    slug = re.sub(r"[^a-z0-9.]+", "-", "-and-".join(names).lower())
    details = f"{', '.join(names)}; each row names its own"
    if bare:
        details += f", but for {bare:,} whose data have none"
    return {
        "license": "other",
        "license_name": slug.strip("-"),
        "license_details": details,
    }


def _size(count: int) -> str:
    """Name a size as the hub does.

    >>> _size(999), _size(1000), _size(2 * 10**6)
    ('n<1K', '1K<n<10K', '1M<n<10M')
    """
    marks = [f"{n}{unit}" for unit in "KMB" for n in (1, 10, 100)] + ["1T"]
    above = max(len(str(count)) - 3, 0)
    return f"{marks[above - 1]}<n<{marks[above]}" if above else "n<1K"


def _contents(rows: Sequence[dict]) -> str:
    talks = [row["messages"] for row in rows if "messages" in row]
    alone = [row for row in rows if "messages" not in row]
    counts = {}
    if alone:
        counts = {
            f"words of {field}": [_words(row[field]) for row in alone]
            for field in FIELDS
        }
    if talks:
        said = [_words(turn["content"]) for talk in talks for turn in talk]
        counts["turns of a conversation"] = [len(talk) for talk in talks]
        counts["words of a turn"] = said
    lines = [
        {"Length": what, "mean": f"{sum(n) / len(n):.1f}", "most": max(n)}
        for what, n in counts.items()
    ]
    kinds = {"instance": len(alone), "conversation": len(talks)}
    number = " and ".join(_count(n, kind) for kind, n in kinds.items() if n)
    fields = dict.fromkeys(f"`{field}`" for row in rows for field in row)
    return f"{number}. Fields: {', '.join(fields)}.\n\n{_table(lines)}"


def _words(text: str) -> int:
    return len(text.split())


def _origins(rows: Sequence[dict]) -> str:
    fields = ("source", "licence", "wording", "teacher", "teacher_licence")
    by = [f for f in fields if any(_text(row.get(f)) for row in rows)]
    if not by:
        return "No row says."
    lines = ledger(rows, by)
    table, rest = _table(lines[:MOST]), lines[MOST:]
    if rest:
        count = sum(line["rows"] for line in rest)
        table += f"\n\nAnd {len(rest):,} more such lines, {count:,} rows."
    return table


def _rejections(rejected: Mapping[str, int] | None) -> str:
    if rejected is None:
        return "Not stated."
    lines = [
        {"Rule": rule, "rows": count}
        for rule, count in Counter(rejected).most_common()
    ]
    return _table(lines) if lines else "Nothing."


def _owed(rows: Sequence[dict]) -> str:
    counted = Counter(pair for row in rows for pair in {*_licences(row)})
    if bare := sum(not _text(row.get("licence")) for row in rows):
        counted["licence", ""] = bare
    lines = [
        {
            "Licence": name or "none named",
            "of the": LICENCES[field],
            "rows": count,
            "asks": "; ".join(DUTIES[k] for k in _kinds(name)) if name else "",
        }
        for (field, name), count in sorted(counted.items())
    ]
    return (
        f"{_table(lines)}\n\nWhose notices they are says the table of where "
        "the rows come from. This is a checklist and no legal advice."
    )


def _examples(rows: Sequence[dict], longest: int = 1500) -> str:
    texts = []
    for i in sorted({0, len(rows) // 2}):
        text = json.dumps(rows[i], ensure_ascii=False, indent=2)
        cut = text[:longest] + " ..." * (len(text) > longest)
        texts.append(f"```json\n{cut}\n```")
    return "\n\n".join(texts)


def _table(lines: Sequence[dict]) -> str:
    """Write dicts with the same keys as a Markdown table."""
    cells = [lines[0], ["---"] * len(lines[0])]
    cells += [line.values() for line in lines]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in cells)


def _cell(value: object) -> str:
    r"""Write a value so that it cannot leave its cell.

    >>> print(_cell("a|b\nc"))
    a\|b c
    """
    text = f"{value:,}" if isinstance(value, int) else str(value)
    text = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return " ".join(text.split())


# The card of a model


def model_card(
    title: str,
    summary: str,
    rows: Sequence[dict],
    *,
    base: Mapping[str, str],
    settings: Mapping[str, object],
    shares: Mapping[str, tuple[float, float, int]],
    cost: Mapping[str, object],
    versions: Mapping[str, str],
    how_to_load: str,
    known_limits: str,
    losses: Mapping[str, tuple[float, float]] | None = None,
    language: str = "en",
    allow: Sequence[str] = (),
    **sections: str,
) -> str:
    """Write the README.md of an adapter, as the Hugging Face hub reads it.

    It says only what the arguments say, and asks nobody. `rows` are those
    trained on; `base` has the base model's name, revision (or a hash) and
    licence; `settings` is the recipe; `shares` maps what was measured to
    (before, after, rows), and gets 95 % Wilson intervals; `losses` to
    (before, after); `cost` has tokens, minutes, memory_gb and machine;
    `how_to_load` is Python. `sections` are Markdown, under their own names.

    Raises ValueError naming each fact that is missing or empty, shares that
    are none, and Python that cannot be read; LicenceError with all
    `licence_problems` of rows and base.
    """
    _check_shapes(rows)
    given = {
        "title": title,
        "summary": summary,
        **{f"base[{key!r}]": base.get(key) for key in BASE},
        "settings": settings,
        "shares": shares,
        **{f"cost[{key!r}]": cost.get(key) for key in COST},
        "versions": versions,
        "how_to_load": how_to_load,
        "known_limits": known_limits,
    }
    # 0 is a fact
    missing = [name for name, fact in given.items() if fact in (None, "", {})]
    missing += [
        f"shares[{name!r}], its rows" for name in shares if not shares[name][2]
    ]
    if missing:
        raise ValueError(f"the card lacks {', '.join(missing)}: give each")
    for name, (*pair, _) in shares.items():
        if not all(0 <= share <= 1 for share in pair):
            raise ValueError(
                f"shares[{name!r}] are {pair}: give shares from 0 to 1"
            )
    try:
        ast.parse(how_to_load)
    except SyntaxError as error:
        raise ValueError(f"how_to_load is no Python: {error}") from None
    every = [*rows, {"licence": base["licence"]}]
    if problems := licence_problems(every, allow):
        raise LicenceError(
            f"the card of {title} (rows[{len(rows)}] is the base model)",
            problems,
        )
    parts = [
        ("How to load it", f"```python\n{how_to_load.strip()}\n```"),
        ("What it learned from", f"{_contents(rows)}\n\n{_origins(rows)}"),
        ("Before and after", _measured(shares, losses or {})),
        ("How it was trained", _pairs("Setting", settings)),
        ("What it took", _pairs("What", {key: cost[key] for key in COST})),
        *((name.replace("_", " "), text) for name, text in sections.items()),
        ("Known limits", known_limits),
        ("Licence and notices owed", _owed_by_model(rows, base)),
        ("Versions", _pairs("Package", versions)),
    ]
    about = {
        **_licence_of_model(rows, base["licence"]),
        "language": [language],
        "library_name": "peft",
        "base_model": base["name"],
        "base_model_relation": "adapter",
        "pipeline_tag": "text-generation",
        "tags": ["instruction-tuning", "lora"],
    }
    return _page(about, " ".join(title.split()), summary, parts)


def _licence_of_model(rows: Sequence[dict], base: str) -> dict[str, str]:
    """Return the base's licence if no row names another, but for free ones.

    Else `other`: one licence does not stand for the notices of another.

    >>> _licence_of_model([{"licence": "CC0-1.0"}], "Apache-2.0")
    {'license': 'apache-2.0'}
    >>> _licence_of_model([{"licence": "Apache-2.0"}], "MIT")["license"]
    'other'
    """
    named = {name for row in rows for _, name in _licences(row)}
    if all(n in _names(base) or _kinds(n) == ("free",) for n in named):
        return _licence_of_all([{"licence": base}])
    found = _licence_of_all([*rows, {"licence": base}])
    if "license_details" in found:
        rest = ", ".join(sorted(named))
        found["license_details"] = f"base model: {base}; rows: {rest}"
    return found


def _measured(shares: Mapping, losses: Mapping) -> str:
    lines = []
    for name, (before, after, count) in shares.items():
        line = {"Share": name, "rows": count}
        for when, share in (("before", before), ("after", after)):
            low, high = interval(share, count)
            line[when] = f"{share:.1%} ({low:.1%} to {high:.1%})"
        lines.append(line)
    text = (
        f"{_table(lines)}\n\nIn brackets: 95 % Wilson intervals. Both columns "
        "come from the same rows: intervals that overlap do not mean that "
        "there is no difference."
    )
    more = [
        {"Loss": name, "before": f"{a:.3f}", "after": f"{b:.3f}"}
        for name, (a, b) in losses.items()
    ]
    return f"{text}\n\n{_table(more)}" if more else text


def _pairs(what: str, facts: Mapping[str, object]) -> str:
    return _table([{what: k, "value": v} for k, v in facts.items()])


def _owed_by_model(rows: Sequence[dict], base: Mapping[str, str]) -> str:
    asks = [
        DUTIES[k] for name in _names(base["licence"]) for k in _kinds(name)
    ]
    return (
        f"The base model, {base['name']} (revision: {base['revision']}), is "
        f"under {base['licence']}, which asks: {'; '.join(asks)}. The rows:"
        f"\n\n{_owed(rows)}"
    )


# The folder


def publish(
    folder: str | Path,
    rows: Sequence[dict],
    card: str,
    allow: Sequence[str] = (),
    rejected: Sequence[dict] = (),
) -> Path:
    """Write data.jsonl, README.md and, if given, rejected.jsonl.

    Returns the folder. All is looked at before anything is written. A new
    folder appears whole; in one that is there each file is replaced whole,
    the card last.

    >>> row = {"instruction": "Add.", "input": "1+1", "output": "2"}
    >>> publish("sums", [row], "# Sums")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    instructft.cards.LicenceError: sums is not written: 1 row, first ...

    Raises LicenceError with all `licence_problems`, also of the rejected;
    ValueError naming each row that is neither instance nor conversation,
    the place (never the text) of what looks like an API key, or a
    rejected.jsonl from before, if none is given now.
    """
    folder = Path(folder)
    _check_shapes(rows, rejected)
    _check_keys(rows, "rows")
    _check_keys(rejected, "rejected")
    _check_keys([{"README.md": card}], "card")
    problems = licence_problems(rows, allow)
    problems += [f"rejected: {p}" for p in licence_problems(rejected, allow)]
    if problems:
        raise LicenceError(folder, problems)
    if not rejected and (folder / "rejected.jsonl").exists():
        raise ValueError(
            f"{folder} holds a rejected.jsonl from before: give `rejected`, "
            "or delete the file"
        )
    _write(folder.resolve(), rows, card, rejected)
    return folder


def publish_adapter(
    folder: str | Path, adapter: str | Path, card: str, base: str
) -> Path:
    """Write a folder with an adapter, its tokenizer and its card.

    `adapter` is where a trainer saved it; only files of `GIVEN_ON` are
    taken, byte for byte. In adapter_config.json alone the base model becomes
    `base`, "owner/name": training on a local copy wrote that copy's path.
    Returns the folder; it appears as that of `publish` does.

    Raises FileNotFoundError if there is no adapter, and ValueError for a
    base of another form, for a folder that holds anything but what is
    written now, and naming the place (never the text) of what looks like an
    API key.
    """
    folder, adapter = Path(folder), Path(adapter)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", base):
        raise ValueError(f"base is {base!r}: give the hub's 'owner/name'")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (adapter / name).is_file():
            raise FileNotFoundError(
                f"{adapter} has no {name}: `trainer.save_model(folder)` "
                "writes it"
            )
    taken = [p for p in adapter.iterdir() if p.name in GIVEN_ON]
    there = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    if other := sorted(there - {"README.md", *(p.name for p in taken)}):
        raise ValueError(
            f"{folder} holds {', '.join(other)}, which would be given on "
            "with the rest: name a folder of its own"
        )
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    config["base_model_name_or_path"] = base
    texts = {
        "README.md": card,
        "adapter_config.json": json.dumps(config, indent=2) + "\n",
    }
    for path in taken:
        text = path.read_text("utf-8") if path.suffix in TEXT else ""
        _check_keys([{path.name: text}], "file")
    for name, text in texts.items():
        _check_keys([{name: text}], "file")

    def fill(made: Path) -> None:
        for path in taken:
            shutil.copyfile(path, made / path.name)
        for name, text in texts.items():
            (made / name).write_text(text, "utf-8", newline="\n")

    _place(folder.resolve(), fill)
    return folder


def _write(folder: Path, rows, card: str, rejected) -> None:
    def fill(made: Path) -> None:
        write_rows(made / "data.jsonl", rows)
        if rejected:
            write_rows(made / "rejected.jsonl", rejected)
        (made / "README.md").write_text(card, "utf-8", newline="\n")

    _place(folder, fill)


def _place(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder aside; move it, or its files, where they belong."""
    near = next(p for p in (folder, *folder.parents) if p.is_dir())
    with tempfile.TemporaryDirectory(dir=near, prefix=".publish-") as aside:
        made = Path(aside) / "made"
        made.mkdir()
        fill(made)
        if folder.is_dir():
            # sorted from behind: rejected, data, README
            for path in sorted(made.iterdir(), reverse=True):
                os.replace(path, folder / path.name)
        else:
            folder.parent.mkdir(parents=True, exist_ok=True)
            made.rename(folder)


def _check_shapes(rows: Sequence[dict], rejected: Sequence = ()) -> None:
    if not rows:
        raise ValueError("no rows: give at least one")
    said = [
        f"rows[{i}]: {problem}"
        for i, row in enumerate(rows)
        for problem in _shape_problems(row)
    ]
    said += [
        f"rejected[{i}] is a {type(row).__name__}: give a dict"
        for i, row in enumerate(rejected)
        if not isinstance(row, dict)
    ]
    if said:
        more = f"\n... and {len(said) - 20:,} more" * (len(said) > 20)
        raise ValueError("\n".join(said[:20]) + more)


def _shape_problems(row: object) -> list[str]:
    if not isinstance(row, dict) or "messages" not in row:
        return problems_of(row)
    talk = row["messages"]
    if not isinstance(talk, list) or not talk:
        return ["messages is no list, or empty: write at least one message"]
    return [
        f"messages[{i}] lacks a role or a content: write both, as strings"
        for i, turn in enumerate(talk)
        if not isinstance(turn, dict)
        or not isinstance(turn.get("role"), str)
        or not isinstance(turn.get("content"), str)
    ]


def _check_keys(rows: Sequence[dict], what: str) -> None:
    for i, row in enumerate(rows):
        for field, value in row.items():
            if any(map(KEY.search, _strings([field, value]))):
                shown = f"{what}[{i}], field {field!r}"
                if KEY.search(str(field)):  # not even there
                    shown = f"{what}[{i}], the name of a field"
                raise ValueError(
                    f"{shown}: this looks like an API key; take it out, and "
                    "revoke it where it is from"
                )


def _strings(value: object) -> Iterator[str]:
    """Yield every text in a value, names of fields among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings([*value, *value.values()])
    elif isinstance(value, Iterable):
        for item in value:
            yield from _strings(item)
