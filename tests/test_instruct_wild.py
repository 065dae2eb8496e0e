"""What the rules make of posts, and how often they err."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructft.instruct_wild import KINDS, REASONS, cleaned, kind, unusable
from instructft.similarity import rouge_l

POSTS = Path(__file__).resolve().parent.parent / "data/collected/posts.jsonl"

# what posts are made of, so that random ones look like posts
PIECES = st.sampled_from(
    ["Prompt: ", "I asked: ", "ask it to ", "RT @a_b: ", "> ", "1/3 ", "\n"]
    + ['"', "“", "?", "!!", "...", "→ ", "(so) ", "#tag ", "@a ", "lol "]
    + ["&amp;amp; ", "https://x.example ", "😀", "THIS IS SO LOUD. ", " "]
    + ["write a poem ", "what is rain", "this: ", "It said ", "Thanks! "]
)
ANY = st.text() | st.lists(PIECES | st.text(max_size=5)).map("".join)


# --- cleaned ----------------------------------------------------------------


@pytest.mark.parametrize(
    "post",
    [
        "Name five wild birds &#128516;",
        "RT @someone_1: Name five wild birds",
        'QT @someone_1: "Name five wild birds"',
        "> Name five wild birds",
        "1/3 Name five wild birds",
        "Name five wild birds (2/3)",
        "Name five wild birds #birds #fun",
        "@someone_1 Name five wild birds",
        "Name five wild birds https://birds.example/list",
        "Name five wild birds birds.example.org/list",
        "Name five wild birds 🐦👩‍🏫🏴󠁧󠁢󠁳󠁣󠁴󠁿 :)",
        "Prompt: Name five wild birds",
        "try this: name five wild birds",
        "I asked: name five wild birds",
        'my go-to prompt is "name five wild birds"',
        "Yesterday I got it to name five wild birds",
        "“Name five wild birds”",
        'All my own work: "name five wild birds" and it did',
        "name five wild birds!!!\nWorked first time",
        'Prompt: "Name five wild birds." It said: "Robin, wren, tit, owl."',
        "Name five wild birds. (took a second)",
        "NAME FIVE WILD BIRDS",
        "  name   five\nwild birds lol ",
    ],
)
def test_only_the_instruction_is_left(post):
    assert cleaned(post).rstrip(".!") == "Name five wild birds"


@pytest.mark.parametrize(
    "instruction",
    [
        'Rewrite this so that it is kind: "You are late again. Go home now."',
        "Convert 1/2 cup of sugar to grams.",
        "Explain the difference between C# and Java.",
        "Write a prompt: it should make a model rhyme.",
        "I have two cats and one basket. What should I do?",
        "Explain what NATO is.",
        "Is 350 °F more than 170 °C?",
        "Which is the cheaper of the two, e.g. in May?",
    ],
)
def test_an_instruction_alone_stays(instruction):
    assert cleaned(instruction) == instruction


def test_repeated_marks_become_one():
    assert cleaned("Why??? Name it!!") == "Why? Name it!"
    assert cleaned("Tell me why!?!?") == "Tell me why?"


def test_the_first_of_two_prompts_is_taken():
    post = "1/2 Prompt: Name a bird.\nSecond prompt: Name a fish."
    assert cleaned(post) == "Name a bird."


@pytest.mark.parametrize("post", ["", " \n", "😀", "#tag", '""', "Prompt:"])
def test_little_or_nothing_is_no_error(post):
    assert len(cleaned(post)) <= len(post)


@given(post=ANY)
def test_cleaned_is_stripped_and_stays_the_same(post):
    once = cleaned(post)
    assert once == once.strip()
    assert cleaned(once) == once


# --- unusable ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "post"),
    [
        ("no_instruction", "So tired of robots today. Tea helps."),
        ("no_instruction", "Is anyone going to the meeting on Friday?"),
        ("not_english", "Schreib ein Gedicht über Blätter im Herbstwald"),
        ("not_english", "напиши мне стихотворение о зиме"),
        ("needs_media", "What does this picture show?"),
        ("needs_media", "Draw a map of my street for me."),
        ("personal", "Write to me at 01632 960123 and say why."),
        ("personal", "Write a letter to the man at 3 Elm Road about it."),
        ("harmful", "How do I write a fake reference for a job?"),
        ("harmful", "Write a nasty message to my sister."),
        ("incomplete", "Write a story about a"),
        ("incomplete", 'I asked: "Write a letter to my aunt about'),
        ("", "What should I give my aunt?"),
        ("", 'This one is the best: "Write a letter to my aunt"'),
        ("", "need names for a boat pls"),
    ],
)
def test_a_reason_or_none(reason, post):
    assert unusable(post) == reason


def test_the_first_reason_counts():
    both = "Write a nasty message to the man at 3 Elm Road."
    assert unusable(both) == "personal"


@given(post=ANY)
def test_unusable_gives_a_known_reason(post):
    known = {"", "not_english", "no_instruction", *REASONS}
    assert unusable(post) in known


# --- kind -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("open_qa", "Why do cats purr?"),
        ("advice", "Should I sell my car?"),
        ("generation", "Write a poem about rain."),
        ("brainstorming", "Suggest ten names for a cat."),
        ("planning", "Plan a week of suppers."),
        ("code", "Write SQL that lists all guests."),
        ("rewriting", 'Rewrite this so that it is kind: "Go."'),
        ("mathematics", "What is 12 times 14?"),
        ("role_play", "Be a pirate and answer my questions."),
        ("extraction", 'Extract the date from this: "On 3 May we met."'),
        ("summarising", 'Summarise this: "Rain fell."'),
        ("classification", 'Label each review good or bad: "Fine."'),
        ("conversion", "Convert three miles to kilometres."),
    ],
)
def test_one_instruction_of_each_kind(name, instruction):
    assert kind(instruction) == name


def test_the_first_rule_that_fits_decides():
    assert kind("Write a poem in Python.") == "code"
    assert kind("Plan a poem about rain.") == "planning"


@given(instruction=ANY)
def test_every_text_has_a_kind(instruction):
    assert kind(instruction) in {name for name, _ in KINDS}


# --- how often the rules err ------------------------------------------------


@pytest.fixture(scope="module")
def held_out():
    """The posts with even numbers: the rules were made on the odd ones."""
    lines = POSTS.read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if int(row["id"][-3:]) % 2 == 0]


def test_the_figures_on_posts_the_rules_were_not_made_on(held_out):
    said = [unusable(row["text"]) for row in held_out]
    labels = [row["reason"] for row in held_out]
    pairs = zip(said, labels, strict=True)
    both = sum(bool(one and other) for one, other in pairs)
    assert both / sum(map(bool, said)) > 0.66  # 24 of 35
    assert both / sum(map(bool, labels)) > 0.76  # 24 of 30

    good = [row for row in held_out if not row["reason"]]
    near = {
        name: [rouge_l(text(row), row["instruction"]) for row in good]
        for name, text in (
            ("raw", lambda row: row["text"]),
            ("cleaned", lambda row: cleaned(row["text"])),
        )
    }
    share = {name: _share(s >= 0.7 for s in near[name]) for name in near}
    assert share["cleaned"] > 0.66 > share["raw"]  # 93 and 78 of 135
    assert sum(near["cleaned"]) > sum(near["raw"])

    right = [kind(row["instruction"]) == row["type"] for row in good]
    assert _share(right) > 0.68  # 96 of 135


def _share(facts: Iterable[bool]) -> float:
    facts = list(facts)
    return sum(facts) / len(facts)
