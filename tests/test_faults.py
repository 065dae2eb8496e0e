"""The rules for conversations that models play: what they find, and miss."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructft.faults import faults
from instructft.instance import read_rows

DATA = Path(__file__).resolve().parent.parent / "data" / "conversations"
LONG = "It rained all night, and in the morning the river stood in the lane."


def say(*texts):
    roles = ("user", "assistant")
    return [
        {"role": roles[i % 2], "content": text} for i, text in enumerate(texts)
    ]


def kinds(*texts, prompts=()):
    return [fault.kind for fault in faults(say(*texts), prompts)]


@pytest.mark.parametrize("name", ["planted", "planted_heldout"])
def test_nine_of_ten_are_right_and_nine_of_ten_are_found(name):
    rows = read_rows(DATA / f"{name}.jsonl")
    right, wrong, missed = Counter(), Counter(), Counter()
    for row in rows:
        found = {
            f.kind for f in faults(row["messages"], row["prompts"].values())
        }
        for kind in found:
            (right if kind == row["defect"] else wrong)[kind] += 1
        if row["defect"] != "none" and row["defect"] not in found:
            missed[row["defect"]] += 1
    planted = {row["defect"] for row in rows} - {"none"}
    assert planted == set(right)
    assert right.total() >= 0.9 * (right + wrong).total()
    assert right.total() >= 0.9 * (right + missed).total()
    for kind in planted:  # none is carried by the others
        assert right[kind] >= 0.75 * (right + wrong)[kind], kind
        assert right[kind] >= 0.75 * (right + missed)[kind], kind


def test_an_empty_turn():
    for text in ("", " \n", "...", "[ ]", "?!"):
        assert kinds("What is it?", text) == ["empty_turn"]
    assert kinds("What is 2 + 2?", "4") == []


def test_an_over_long_turn():
    text = " ".join(f"word{i}" for i in range(201))
    assert kinds("Tell me a story.", text) == ["over_long"]
    assert kinds("Tell me a story.", text.rsplit(" ", 1)[0]) == []
    [fault] = faults(say("Tell me a story.", LONG), longest=5)
    assert (fault.turn, fault.why) == (1, "14 words")


def test_a_loop_is_one_speakers():
    assert kinds("And?", LONG, "And then?", LONG) == ["loop"]
    assert kinds(LONG, LONG) == []  # an echo is not said twice by one
    assert kinds("Ok?", "Yes.", "Sure?", "Yes.") == []


def test_another_sum_is_no_loop():
    one = "The total is 40 marks, so each of the five gets 8 marks."
    other = "The total is 60 marks, so each of the five gets 12 marks."
    assert kinds("40 by 5?", one, "60 by 5?", other) == []


def test_a_text_that_was_to_be_changed_is_no_loop():
    changed = LONG.replace("night", "day")
    assert kinds("And?", LONG, "Replace night by day.", changed) == []


def test_who_was_not_understood_may_ask_again():
    again = "When does the bakery by the station open on Sundays?"
    other = "On Sundays, at what hour do they open that bakery?"
    assert kinds(again, "Bread is old.", other, "At eight.") == []
    assert kinds(again, "Bread is old.", again, "At eight.") == ["loop"]


def test_goodbye_is_said_twice_and_no_more():
    talk = ["How far is it?", "Two miles.", "Thanks!", "You're welcome."]
    assert kinds(*talk) == []
    assert kinds(*talk, "Bye!", "Take care.") == ["endless_goodbye"]


def test_thanks_between_questions_are_no_goodbye():
    assert kinds(*["Thanks! And then?", "Turn left, please."] * 1) == []
    turns = ["Thanks. What is next?", "Glad you ask: the oven goes on."]
    assert "endless_goodbye" not in kinds(
        *turns, "Thank you. And then?", "Eat."
    )


@pytest.mark.parametrize(
    "text",
    [
        "As my role requires, I ask you once more.",
        "I was told not to flip roles.",
        "My instructions say that I must answer briefly.",
        "All done. <TASK_DONE>",
    ],
)
def test_talk_of_a_role(text):
    assert kinds("How do I start?", text) == ["prompt_leak"]


def test_words_of_the_role_prompt():
    prompt = "You are a cook. Never ask more than one question at a time."
    leak = "I never ask more than one question at a time, so: salt."
    assert kinds("What now?", leak) == []
    assert kinds("What now?", leak, prompts=[prompt]) == ["prompt_leak"]


def test_the_task_may_be_said_again():
    prompt = "The task: plan a dinner for four guests on Sunday evening."
    asked = (
        "I plan a dinner for four guests on Sunday evening. Where to begin?"
    )
    assert kinds(asked, "With the guests.", prompts=[prompt]) == []


@pytest.mark.parametrize(
    "text",
    [
        "Now please write me a list of five birds.",
        "Thanks! Could you also translate it?",
        "Now it's your turn: add a title.",
    ],
)
def test_an_assistant_that_wants_work_done(text):
    assert kinds("Name a bird.", "Wren.", "One more.", text) == ["role_flip"]


@pytest.mark.parametrize(
    "text",
    [
        "Dear Ms Orr, could you please send me the key? Yours, Jo",
        'Say: "Could you please write me a list?"',
        "Put the pan on the fire, then add two eggs.",
        "It is done. Would you like me to add a title?",
    ],
)
def test_work_that_is_only_written_about(text):
    assert kinds("What do I say or do?", text) == []


def test_asking_back_instead_of_answering():
    told = (
        "I need three lines for my sister's card: she is forty on Friday, "
        "she sails, she hates fuss, and I sign with my first name, Ada."
    )
    back = "What a lovely idea! What does your sister like?"
    assert kinds(told, back) == ["asks_instead"]
    assert kinds("Write a card.", back) == []  # too little was said
    assert kinds("Write a card.", back, "As I said: a card.", "Hi!") == [
        "asks_instead"
    ]
    assert kinds("Quiz me on birds, please, one after another.", back) == []


def test_a_kind_is_listed_once_where_it_starts():
    found = faults(
        say("And?", LONG, "And?", LONG, "And?", LONG, "And?", "...")
    )
    assert [(fault.kind, fault.turn) for fault in found] == [
        ("loop", 3),
        ("empty_turn", 7),
    ]


def test_a_system_message_is_no_turn():
    system = {"role": "system", "content": ""}
    assert faults([system, *say("Hi", "Hello.")]) == []
    [fault] = faults([system, *say("Hi", "")])
    assert fault.turn == 2


@given(st.lists(st.text(max_size=60), max_size=8))
def test_any_text_will_do(texts):
    for fault in faults(say(*texts), prompts=texts[:2]):
        assert 0 <= fault.turn < len(texts)
