"""Third-party data: whole, or a sentence that says how to get it."""

import hashlib
import os
import re
import subprocess
import sys
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
                *["id", "text", "rating", "ratings"],
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
