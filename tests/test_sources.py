"""Third-party data: whole, or a sentence that says how to get it."""

import hashlib
import os
import random
import re
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest

from instructft import sources

REPO = Path(sources.__file__).resolve().parent.parent
COUNTS = {"tweet": 4200, "amazon": 3708, "movie": 10_605, "editorial": 5190}
FETCH = "python -m instructft.sources fetch"


@pytest.fixture(scope="module")
def texts():
    """Every domain of the VADER archive; skips where nobody fetched it."""
    try:
        return {domain: sources.vader(domain) for domain in COUNTS}
    except FileNotFoundError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("INSTRUCTFT_CACHE", str(tmp_path))
    return tmp_path


# --- what is in the archive -----------------------------------------------


def test_row_counts(texts):
    assert {name: len(rows) for name, rows in texts.items()} == COUNTS
    assert set(sources.VADER_FILES) == set(COUNTS)


def test_fields(texts):
    for domain, rows in texts.items():
        for row in rows:
            assert list(row) == [
                *["id", "text", "rating", "ratings", "label"],
                *["domain", "source", "licence"],
            ]
            assert row["id"].startswith(f"{domain}-")
            assert row["domain"] == domain
            assert row["source"] == "vaderSentiment==3.3.2"
            assert row["licence"] == "MIT"
            assert isinstance(row["rating"], float)
            assert -4 <= row["rating"] <= 4
            assert len(row["ratings"]) >= 15
            assert {type(given) for given in row["ratings"]} == {int}
            assert -4 <= min(row["ratings"]) <= max(row["ratings"]) <= 4


def test_ratings_are_the_texts_own(texts):
    off = {
        domain: sum(
            abs(fmean(row["ratings"]) - row["rating"]) > 0.01 for row in rows
        )
        for domain, rows in texts.items()
    }
    # in the published file of tweets itself the means differ
    assert off == {"tweet": 196, "amazon": 0, "movie": 0, "editorial": 0}


def test_texts_are_clean(texts):
    for rows in texts.values():
        for row in rows:
            text = row["text"]
            assert text and text == text.strip()
            assert not set(text) & set("\r\n\t\ufeff\ufffd")


def test_ids_are_unique(texts):
    ids = [row["id"] for rows in texts.values() for row in rows]
    assert len(set(ids)) == len(ids) == sum(COUNTS.values())


def test_known_rows(texts):
    first = texts["amazon"][0]
    assert first["id"] == "amazon-1_1"
    assert first["rating"] == -0.9
    assert first["text"].startswith("troubleshooting ad-2500 and ad-2600")
    for rows in texts.values():
        rated = sorted(row["rating"] for row in rows)
        assert rated[0] < -2 and rated[-1] > 2


def test_called_twice_it_says_the_same(texts):
    assert sources.vader("tweet") == texts["tweet"]


# --- what is not there, or damaged ----------------------------------------


def read(name):
    """A set of SOURCES; skips where nobody fetched its archive."""
    try:
        return sources.annotated(name)
    except FileNotFoundError as error:
        if os.environ.get("CI") and name != "wordnet":
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("name", "count", "labels"),
    [
        ("vader/amazon", 3708, {"positive", "negative", "unclear"}),
        ("evals/sarcasm", 28_614, {"serious": 14_984, "sarcastic": 13_630}),
        ("evals/quartz", 3860, {"A": 1932, "B": 1928}),
        ("evals/social_iqa", 2224, {"1", "2", "3"}),
        (
            "evals/corr2cause",
            2246,
            {"contradiction": 1192, "neutral": 712, "entailment": 342},
        ),
        ("evals/unsolvable", 300, {"yes": 150, "no": 150}),
        (
            "evals/crepe",
            1520,
            {"equally likely": 1176, "more likely": 230, "less likely": 114},
        ),
        ("evals/event_categories", 879, {"Information", "Warning", "Error"}),
        ("evals/tomi", 5993, None),
        ("intents", 862, None),
        ("wordnet", 117_659, {"noun", "verb", "adjective", "adverb"}),
    ],
)
def test_sets(name, count, labels):
    rows = read(name)
    assert len(rows) == count
    for row in rows:
        assert row["id"] and row["source"] and row["licence"]
    assert len({row["id"] for row in rows}) == len(rows)
    found = Counter(row["label"] for row in rows)
    if isinstance(labels, dict):
        assert found == labels
    elif labels:
        assert set(found) == labels


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vader/movie", ""),
        ("evals/crepe", ""),
        ("evals/event_categories", "97% of the rows are 'Information'"),
        ("evals/tomi", "CC-BY-NC-4.0 forbids commercial use"),
        ("intents", ""),
        ("chitchat", ""),
    ],
)
def test_what_speaks_against_a_set(name, why):
    assert sources.refusal(read(name)) == why


def test_refusals():
    rows = [{"label": x, "licence": "MIT"} for x in "ab" * 10]
    assert not sources.refusal(rows)
    assert sources.refusal([]) == "no rows"
    bare = [*rows, {"label": "a", "licence": ""}, {"label": "b"}]
    assert sources.refusal(bare) == "2 of 22 rows name no licence"
    assert sources.refusal(rows[::2]) == "only one label, 'a'"
    assert sources.refusal(rows + rows[::2] * 17) == (
        "95% of the rows are 'a'"
    )
    assert not sources.refusal(rows + rows[::2] * 17, most=0.95)
    closed = [row | {"licence": "CC-BY-NC-4.0"} for row in rows]
    assert sources.refusal(closed)
    assert not sources.refusal(closed, noncommercial=True)
    assert not sources.refusal([{"text": "no label", "licence": "MIT"}])
    half = [*rows, {"licence": "MIT"}]
    assert sources.refusal(half) == "1 of 21 rows have no label"


@pytest.mark.parametrize(
    ("licence", "closed"),
    [
        ("CC BY NC 4.0", True),
        ("mit, cc-by-nc-sa-4.0", True),
        ("Non-Commercial use", True),
        ("research only", True),
        ("MIT", False),
        ("NCSA", False),
        ("CC-BY-SA-4.0", False),
    ],
)
def test_licences_that_forbid_commercial_use(licence, closed):
    rows = [{"licence": licence}]
    assert bool(sources.refusal(rows)) == closed
    assert not sources.refusal(rows, noncommercial=True)


def test_another_set_is_refused_with_the_names():
    with pytest.raises(KeyError, match="vader/amazon"):
        sources.annotated("evals/other")
    with pytest.raises(KeyError, match="sarcasm"):
        sources.evals("other")


def test_people_take_turns():
    rows = read("chitchat")
    assert len(rows) == 7168
    lines = 0
    for row in rows:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + [
            "user"
        ] * (len(roles) % 2)
        lines += len(roles)
    assert lines < 258_145  # utterances, before one person's are joined


GRAMMAR = {
    "expansion_rules": {"the": "(the|my)", "at": "in [<the>]"},
    "lists": {
        "level": {"range": {"from": 10, "to": 30, "step": 10}},
        "colour": {"values": [{"in": "[dark ]red"}, {"in": "(blue|navy)"}]},
    },
}


@pytest.mark.parametrize(
    ("template", "sentences"),
    [
        ("turn (on|off)", {"turn on", "turn off"}),
        ("[please] go", {"please go", "go"}),
        ("<at> bed", {"in bed", "in the bed", "in my bed"}),
        ("(up;by {level:step})", None),
        (
            "{colour}",
            {"red", "dark red", "blue", "navy"},
        ),
        (
            "a ((b|c) [d]|e) f",
            {"a b f", "a c f", "a b d f", "a c d f", "a e f"},
        ),
    ],
)
def test_sentences_of_a_grammar(template, sentences):
    chance = random.Random(0)
    drawn = {sources._sentence(template, GRAMMAR, chance) for _ in range(200)}
    assert drawn == (
        sentences
        or {f"up by {n}0" for n in "123"} | {f"by {n}0 up" for n in "123"}
    )


def test_commands_hold_no_grammar():
    try:
        rows = sources.intents(draws=3)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert len(rows) > 2400
    assert len({row["label"] for row in rows}) == 42
    assert not [r for r in rows if set(r["text"]) & set("()[]{}<>|;")]
    assert rows == sources.intents(draws=3)
    assert rows != sources.intents(draws=3, seed=1)


def test_wordnet_reads_its_files(tmp_path):
    licence = "  1 This software and database is being provided\n"
    for part, line in {
        "noun": "00001740 03 n 02 ice_cream 0 gelato 0 000 | cold; sweet; "
        '"she ate it all"; "two scoops"  ',
        "verb": "00000001 29 v 01 run 0 000 01 + 02 00 | go fast  ",
        "adj": "00000002 00 s 01 galore(ip) 0 000 | in plenty  ",
        "adv": "00000003 02 r 01 well 0 000 | in a good way  ",
    }.items():
        (tmp_path / f"data.{part}").write_text(licence + line + "\n")
    noun, _, adjective, _ = sources.wordnet(tmp_path)
    assert noun["text"] == "ice cream"
    assert noun["definition"] == "cold; sweet"
    assert noun["examples"] == ["she ate it all", "two scoops"]
    assert adjective["text"] == "galore"
    assert adjective["label"] == "adjective"
    with pytest.raises(FileNotFoundError, match="wordnet-base"):
        sources.wordnet(tmp_path / "nowhere")


def test_reasoning_gym(monkeypatch):
    made = [{"question": "1 + 2 = ?", "answer": 3}]
    gym = types.ModuleType("reasoning_gym")
    gym.create_dataset = lambda task, size, seed: made * size
    monkeypatch.setitem(sys.modules, "reasoning_gym", gym)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.1.25")
    rows = sources.reasoning_gym("chain_sum", 2, seed=7)
    assert [row["id"] for row in rows] == ["chain_sum-7-0", "chain_sum-7-1"]
    assert rows[0]["answer"] == "3"
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ModuleNotFoundError, match="pip install reasoning-gym"):
        sources.reasoning_gym("chain_sum", 1)


@pytest.mark.parametrize(
    ("licence", "why"),
    [
        ("apache-2.0", ""),
        (["mit"], ""),
        (["mit", "cc-by-nc-4.0"], "mit, cc-by-nc-4.0 forbids commercial use"),
        (None, "2 of 2 rows name no licence"),
    ],
)
def test_hub_rows_carry_the_cards_licence(hub, licence, why):
    asked = hub(
        licence, [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    )
    rows = sources.hub("some/set", "train", "abc")
    assert asked == {"repo": "some/set", "split": "train", "revision": "abc"}
    assert rows[1]["text"] == "b"
    assert rows[1]["source"] == "some/set@abc"
    assert sources.refusal(rows) == why


def test_hub_columns_are_not_overwritten(hub):
    hub("mit", [{"text": "a", "source": "a book"}])
    with pytest.raises(ValueError, match="columns .*source.*rename"):
        sources.hub("some/set", "train", "abc")


@pytest.fixture
def hub(monkeypatch):
    """A hub with one set: give it a licence and rows."""

    def lay(licence, rows):
        asked = {}

        def load(repo, config, split, revision):
            asked.update(repo=repo, split=split, revision=revision)
            return rows

        card = types.SimpleNamespace(card_data={"license": licence})
        monkeypatch.setattr("datasets.load_dataset", load)
        monkeypatch.setattr(
            "huggingface_hub.dataset_info", lambda repo, revision: card
        )
        return asked

    return lay


def test_unknown_domain(cache):
    with pytest.raises(KeyError, match="choose one of .*'editorial'"):
        sources.vader("amazn")


def test_archive_missing(cache):
    for call in (
        lambda: sources.archive("vader"),
        lambda: sources.vader("tweet"),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            call()
        assert f"`{FETCH}`" in str(caught.value)
        assert "vaderSentiment==3.3.2" in str(caught.value)


def test_the_small_set_of_ours_is_there(cache):
    with pytest.raises(FileNotFoundError) as caught:
        sources.archive("vader")
    [named] = re.findall(r"data/\w+", str(caught.value))
    assert list((REPO / named).iterdir())


def lay(cache, content=b"damaged"):
    path = cache / "archives" / sources.ARCHIVES["vader"].file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def test_archive_damaged(cache):
    path = lay(cache)
    found = hashlib.sha256(b"damaged").hexdigest()
    for call in (
        lambda: sources.archive("vader"),
        lambda: sources.vader("tweet"),
        lambda: sources.fetch("vader"),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        for part in (str(path), found, "delete it", f"`{FETCH}`"):
            assert part in str(caught.value)
    assert path.read_bytes() == b"damaged"


# --- fetching -------------------------------------------------------------


@pytest.fixture
def pip(monkeypatch):
    """Play pip: `pip.content` is what it brings, `pip.fails` what it says."""

    class Pip:
        content, fails, commands = b"the archive", None, []

        def __call__(self, command, **options):
            self.commands.append(command)
            aside = Path(command[command.index("--dest") + 1])
            self.listed = (aside / "requirements.txt").read_text()
            name = sources.ARCHIVES["vader"].file
            if self.fails is None:
                (aside / name).write_bytes(self.content)
            else:
                (aside / name).write_bytes(self.content[:4])
            return subprocess.CompletedProcess(
                command, int(self.fails is not None), "", self.fails or ""
            )

    played = Pip()
    played.commands = []
    monkeypatch.setattr(sources.subprocess, "run", played)
    known = sources.ARCHIVES["vader"]._replace(
        sha256=hashlib.sha256(played.content).hexdigest()
    )
    monkeypatch.setitem(sources.ARCHIVES, "vader", known)
    return played


def test_fetch(cache, pip):
    path = sources.fetch("vader")
    assert path.read_bytes() == pip.content
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    [command] = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--require-hashes" in command and "--no-deps" in command
    assert "--no-binary=:all:" in command  # the archive of the source
    assert pip.listed == (
        "vaderSentiment==3.3.2 --hash=sha256:"
        f"{sources.ARCHIVES['vader'].sha256}\n"
    )
    assert sources.fetch("vader") == path
    assert len(pip.commands) == 1


def test_fetch_hears_no_notice_of_pip(cache, pip):
    sources.fetch("vader")
    assert "--disable-pip-version-check" in pip.commands[0]


@pytest.mark.parametrize(
    "said, shown",
    [
        ("Looking\nERROR: No matching distribution found\n", "ERROR: No ma"),
        ("", "no message"),
    ],
)
def test_fetch_fails(cache, pip, said, shown):
    pip.fails = said
    with pytest.raises(RuntimeError) as caught:
        sources.fetch("vader")
    for part in ("vaderSentiment==3.3.2", shown, "network", f"`{FETCH}`"):
        assert part in str(caught.value)
    assert "Looking" not in str(caught.value)
    assert not list((cache / "archives").iterdir())
    pip.fails = None  # and again, with a network
    assert sources.fetch("vader").read_bytes() == pip.content


def test_fetched_something_else(cache, pip):
    pip.content = b"another"
    with pytest.raises(ValueError, match="sha256"):
        sources.fetch("vader")
    assert not list((cache / "archives").iterdir())


@pytest.mark.parametrize("words", [[], ["get"], ["fetch", "vader"]])
def test_command_line(cache, words):
    done = subprocess.run(
        [sys.executable, "-m", "instructft.sources", *words],
        cwd=REPO,
        env=os.environ | {"INSTRUCTFT_CACHE": str(cache)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.strip() == f"usage: {FETCH}"


def test_command_line_says_what_is_wrong(cache):
    lay(cache)
    done = subprocess.run(
        [sys.executable, "-m", "instructft.sources", "fetch"],
        cwd=REPO,
        env=os.environ | {"INSTRUCTFT_CACHE": str(cache)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "delete it" in done.stderr
    assert "Traceback" not in done.stderr
