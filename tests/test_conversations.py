"""Conversations: no message is lost in silence, and turns alternate."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructft.conversations import (
    _main,
    cleaned,
    disorder,
    from_transcript,
    mirrored,
    play,
    read_trees,
    split,
    threads,
)
from instructft.instance import BadRows, read_rows
from instructft.teacher import Reply


def say(*texts, system=""):
    roles = ("user", "assistant")
    turns = [
        {"role": roles[i % 2], "content": text} for i, text in enumerate(texts)
    ]
    return [{"role": "system", "content": system}] * bool(system) + turns


def node(text, *replies, role="assistant", quality=None, **more):
    """A message whose replies are the other side's."""
    other = {"assistant": "prompter", "prompter": "assistant"}[role]
    made = {
        "message_id": text,
        "text": text,
        "role": role,
        "replies": [reply | {"role": other} for reply in replies],
    } | more
    if quality is not None:
        made["labels"] = {"quality": {"value": quality, "count": 3}}
    return made


def turned(message, role="prompter"):
    """The same tree, roles in turn from the root."""
    other = {"assistant": "prompter", "prompter": "assistant"}[role]
    return message | {
        "role": role,
        "replies": [turned(reply, other) for reply in message["replies"]],
    }


TREE = turned(
    node(
        "q",
        node("a1", node("q2", node("a3"), node("a4")), quality=0.2),
        node("a2", quality=0.9),
        node("a5", node("q3"), quality=0.9),
        node("a6", node("q4", node("a7")), deleted=True, quality=1.0),
    )
)


def paths(found):
    return ["-".join(m["content"] for m in thread) for thread in found]


# --- trees ------------------------------------------------------------------


def test_threads_end_in_answers():
    assert paths(threads(TREE)) == ["q-a1-q2-a3", "q-a1-q2-a4", "q-a2"]
    assert paths(threads({"prompt": TREE})) == paths(threads(TREE))
    assert [disorder(thread) for thread in threads(TREE)] == [""] * 3


@pytest.mark.parametrize(
    "top_k, found",
    [
        (1, ["q-a2"]),  # of two equals the first
        (2, ["q-a2"]),  # a5 ends in a question
        (3, ["q-a2", "q-a1-q2-a3", "q-a1-q2-a4"]),
    ],
)
def test_the_best_replies_at_each_level(top_k, found):
    assert paths(threads(TREE, top_k)) == found


def test_no_label_counts_as_none_of_quality():
    tree = turned(node("q", node("a"), node("b", quality=0.1), node("c")))
    assert paths(threads(tree, 1)) == ["q-b"]
    assert paths(threads(tree, 2)) == ["q-b", "q-a"]


def test_a_deep_tree():
    tree = node("last")
    for i in range(4001):
        tree = node(str(i), tree)
    with_roles = tree
    role, message = "prompter", with_roles
    while message:
        message["role"] = role
        role = "assistant" if role == "prompter" else "prompter"
        message = message["replies"][0] if message["replies"] else None
    [thread] = threads(with_roles)
    assert len(thread) == 4002


@pytest.mark.parametrize("wrong", [{"role": "system"}, {"text": None}])
def test_a_message_that_is_none_is_named(wrong):
    tree = turned(node("q", node("a")))
    tree["replies"][0] |= wrong
    with pytest.raises(ValueError, match="message 'a' has role"):
        list(threads(tree))


def test_the_command_counts(tmp_path, capsys):
    path, out = tmp_path / "trees.jsonl", tmp_path / "threads.jsonl"
    path.write_text(f"{json.dumps({'prompt': TREE})}\n" * 2)
    assert _main(["threads", str(path), "--out", str(out)]) == 0
    said = "2 trees, 22 messages (14 answers), 6 threads\n"
    assert capsys.readouterr().out == said
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"thread-{i}" for i in range(6)]
    assert _main(["threads", str(path), "--top-k", "1"]) == 0
    assert capsys.readouterr().out.endswith(" 2 threads\n")
    packed = tmp_path / "trees.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert _main(["threads", str(packed)]) == 0
    assert capsys.readouterr().out == said


TREES = Path(__file__).parents[2] / "shared/parity/en_100_tree.jsonl"
SHAPES = Path(__file__).with_name("tree_shapes.txt")


def _tree(shape, depth=0):
    """A tree of (()()) without words; returns it and what is left."""
    replies, rest = [], shape[1:]
    while rest[0] == "(":
        reply, rest = _tree(rest, depth + 1)
        replies.append(reply)
    role = ("prompter", "assistant")[depth % 2]
    return {"text": "said", "role": role, "replies": replies}, rest[1:]


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize(
    "top_k, count", [([], 400), (["1"], 61), (["2"], 185)]
)
def test_a_hundred_published_trees(top_k, count, published, tmp_path, capsys):
    path = TREES if published else tmp_path / "trees.jsonl"
    if not published:
        shapes = SHAPES.read_text("utf-8").splitlines()[3:]
        trees = [json.dumps({"prompt": _tree(s)[0]}) for s in shapes]
        path.write_text("\n".join(trees), "utf-8")
    elif not path.is_file():
        pytest.skip(f"{TREES.name} is not here")
    words = ["--top-k", *top_k] if top_k else []
    assert _main(["threads", str(path), *words]) == 0
    said = f"100 trees, 1,167 messages (687 answers), {count} threads\n"
    assert capsys.readouterr().out == said


def test_the_command_names_what_is_wrong(tmp_path, capsys):
    path = tmp_path / "trees.jsonl"
    assert _main(["threads", str(path)]) == 1
    path.write_text(json.dumps(TREE) + "\n{")
    assert _main(["threads", str(path)]) == 1
    assert f"{path}:2" in capsys.readouterr().err
    for words in ([], ["threads", str(path), "--top-k", "0"], ["other"]):
        with pytest.raises(SystemExit):
            _main(words)


@pytest.mark.parametrize("line", ["{", "[]"])
def test_a_bad_line_of_a_packed_file_is_named(tmp_path, line):
    path = tmp_path / "trees.jsonl.gz"
    path.write_bytes(gzip.compress(f"{json.dumps(TREE)}\n{line}".encode()))
    with pytest.raises(BadRows, match=":2"):
        list(read_trees(path))


# --- two roles --------------------------------------------------------------

TALKS = [
    {
        "id": name,
        "user": f"You ask about {name}.",
        "assistant": f"You know about {name}.",
        "opening": "Begin.",
    }
    for name in ("tea", "rain")
]


class Echo:
    """Answers with what it was told last; keeps what it was asked."""

    def __init__(self, **faults):
        self.asked, self.faults = [], faults

    def ask(self, requests):
        self.asked.append(requests)
        return [self.reply(request["messages"]) for request in requests]

    def reply(self, heard):
        text = f"{len(heard)} {heard[0]['content'][4:8].strip()}"
        state = self.faults.get(text, "ok")
        return Reply(f" {text}\n", state, "why" * (state != "ok"), None, None)


def test_either_role_hears_the_other():
    teacher = Echo()
    played = play(teacher, TALKS, lambda said: "", 4, model="m", stop=["."])
    for name, made in zip(("tea", "rain"), played, strict=True):
        assert made["id"] == name and made["ended"] == "4 messages"
        assert disorder(made["messages"]) == ""
    texts = [message["content"] for message in played[0]["messages"]]
    assert texts == ["2 ask", "2 know", "4 ask", "4 know"]
    assert [len(requests) for requests in teacher.asked] == [2, 2, 2, 2]
    assert teacher.asked[2][0] == {
        "messages": [
            {"role": "system", "content": "You ask about tea."},
            {"role": "user", "content": "Begin."},
            {"role": "assistant", "content": "2 ask"},
            {"role": "user", "content": "2 know"},
        ],
        "model": "m",
        "stop": ["."],  # the request's own, beside `ends`
    }
    assert teacher.asked[3][1]["messages"] == [
        {"role": "system", "content": "You know about rain."},
        *played[1]["messages"][:3],
    ]


def test_a_conversation_ends_for_its_own_reason():
    def ends(said):
        return "enough" if said[-1]["content"] == "2 know" else ""

    [tea, rain] = play(Echo(), TALKS, ends)
    assert tea["ended"] == rain["ended"] == "enough"
    assert len(tea["messages"]) == 2
    teacher = Echo(**{"4 ask": "length"})
    [tea, _] = play(teacher, TALKS, lambda said: "")
    assert tea["ended"] == "length: why" and len(tea["messages"]) == 2


def test_a_conversation_may_have_begun():
    begun = [talk | {"messages": say("a question")} for talk in TALKS]
    teacher = Echo()
    played = play(teacher, begun, lambda said: "", 3)
    texts = [message["content"] for message in played[0]["messages"]]
    assert texts == ["a question", "2 know", "4 ask"]
    assert begun[0]["messages"] == say("a question")  # as it was given
    assert played[0]["ended"] == "3 messages"


def test_mirrored_twice_is_the_same():
    talk = say("a", "b", "c")
    assert [m["role"] for m in mirrored(talk)] == ["assistant", "user"] + [
        "assistant"
    ]
    assert mirrored(mirrored(talk)) == talk


# --- transcripts ------------------------------------------------------------


def test_a_transcript_is_cut_at_its_marks():
    text = "A talk. [Human] a [AI] b [Human] c [AI] d [Human] e"
    turns, out = from_transcript(text)
    assert turns == say("a", "b", "c", "d")
    assert out == [
        ("A talk.", "before the first turn"),
        ("e", "a question without an answer"),
    ]


def test_a_finished_pair_at_the_end_stays():
    assert from_transcript("[Human] a [AI] b") == (say("a", "b"), [])
    turns, out = from_transcript("[Human] a [AI] b", whole=False)
    assert turns == [] and out == [("a [AI] b", "cut off")]


def test_nothing_follows_a_turn_that_is_none():
    text = "[Human] a [AI] b [Human] c [AI] d [AI] e [Human] f [AI] g"
    turns, out = from_transcript(text)
    assert turns == say("a", "b")
    assert [why for _, why in out] == [
        "two answers",
        "after a turn that is none",
    ]


PIECE = st.sampled_from(["[Human]", "[AI]", " x ", " y z ", "\n"])


@given(st.lists(PIECE, max_size=12), st.booleans())
def test_each_word_of_a_transcript_is_kept_or_listed(pieces, whole):
    text = "".join(pieces)
    turns, out = from_transcript(text, whole)
    assert not turns or disorder(turns) == ""
    kept = " ".join([m["content"] for m in turns] + [part for part, _ in out])
    marks = ("[Human]", "[AI]")

    def words_of(text):
        for mark in marks:
            text = text.replace(mark, " ")
        return sorted(text.split())

    assert words_of(kept) == words_of(text)


# --- cleaning ---------------------------------------------------------------

LONG = "a longer text than that"


@pytest.mark.parametrize(
    "roles, said",
    [
        ("ua", ""),
        ("sua", ""),
        ("uaua", ""),
        ("u", "the last turn is not an answer"),
        ("a", "turn 0 is the assistant's, not the user's"),
        ("uu", "turn 1 is the user's, not the assistant's"),
        ("usa", "turn 1 is the system's, not the assistant's"),
        ("s", "no turn"),
        ("", "no turn"),
    ],
)
def test_disorder(roles, said):
    names = {"u": "user", "a": "assistant", "s": "system"}
    assert disorder([{"role": names[r], "content": "x"} for r in roles]) == (
        said
    )


def test_cleaned():
    whole = say("question", LONG, "more", "and so on")
    assert cleaned(whole) == (whole, [])
    opening = {"role": "assistant", "content": "Hello"}
    kept, gone = cleaned([opening, *whole, *say("unanswered")])
    assert kept == whole
    assert gone == [
        (0, "an answer before the first question"),
        (5, "a question without an answer"),
    ]
    kept, gone = cleaned(say("question", LONG, "more", " \n", "x", "y"))
    assert kept == whole[:2]
    assert gone == [
        (2, "a question without an answer"),
        (3, "empty"),
        (4, "after an empty turn"),
        (5, "after an empty turn"),
    ]


@pytest.mark.parametrize(
    "messages, why",
    [
        (say("a", "b"), "only 2 characters"),
        (say("I am ChatGPT", LONG), "holds 'chatgpt'"),
        ([*say(LONG), *say(LONG, "c")], "turn 1 is the user's"),
    ],
)
def test_a_conversation_that_goes_whole(messages, why):
    kept, gone = cleaned(messages)
    assert kept == [] and [i for i, _ in gone] == [*range(len(messages))]
    assert {reason.startswith(why) for _, reason in gone} == {True}


MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system"]),
        "content": st.sampled_from(["", " ", "yes", "OpenAI", LONG]),
    }
)


@given(st.lists(MESSAGE, max_size=9))
def test_each_message_is_kept_or_listed(messages):
    kept, gone = cleaned(messages)
    left = [i for i in range(len(messages)) if i not in dict(gone)]
    assert kept == [messages[i] for i in left]
    assert len(kept) + len(gone) == len(messages)
    assert not kept or disorder(kept) == ""


# --- splitting --------------------------------------------------------------


def words(messages):
    return sum(len(m["content"].split()) + 1 for m in messages)


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=16),
    st.integers(0, 5),
    st.integers(2, 40),
)
def test_each_message_is_in_one_piece_or_left_out(sizes, system, window):
    texts = [
        " ".join([f"turn{i}"] * size)
        for i, size in enumerate(sizes[: len(sizes) // 2 * 2])
    ]
    talk = say(*texts, system="s " * system)
    if not texts:
        return
    pieces, out = split(talk, window, words)
    start = int(bool(system))
    found = [m["content"] for piece in pieces for m in piece[start:]]
    left = [talk[i]["content"] for i, _ in out]
    assert sorted(found + left) == sorted(texts)
    assert found == [text for text in texts if text not in left]
    for piece in pieces:
        assert words(piece) <= window and disorder(piece) == ""
        assert piece[:start] == talk[:start]
    for i, why in out:
        first = i - (i - start) % 2
        assert words(talk[:start] + talk[first : first + 2]) > window, why
    # greedy: a piece could not have taken the pair that follows it
    for piece, after in zip(pieces, pieces[1:], strict=False):
        at = talk.index(after[start])
        if not out:
            assert words(piece + talk[at : at + 2]) > window


def test_a_conversation_that_fits_stays_whole():
    talk = say("a", "b", "c", "d")
    assert split(talk, 8, words) == ([talk], [])
    assert split(talk, 7, words) == ([talk[:2], talk[2:]], [])


def test_what_does_not_fit_is_listed_and_parts_the_rest():
    talk = say("a", "b", "c " * 9, "d", "e", "f")
    pieces, out = split(talk, 8, words)
    assert pieces == [talk[:2], talk[4:]]
    assert out == [(2, "12 tokens with its pair, not 8")] + [
        (3, "12 tokens with its pair, not 8")
    ]


def test_only_turns_that_alternate_are_split():
    with pytest.raises(ValueError, match="clean the conversation first"):
        split(say("a"), 8, words)


# --- the data ---------------------------------------------------------------

DATA = Path(__file__).resolve().parent.parent / "data"
DIALOGUES = [
    *("conversations/dialogues.jsonl", "heldout/conversations.jsonl"),
]


@pytest.mark.parametrize("name", DIALOGUES)
def test_the_written_answers_meet_their_checks(name):
    rows = read_rows(DATA / name)
    for row in rows:
        assert disorder(row["messages"]) == "", row["id"]
        assert bool(row["checks"]) == (row["kind"] != "plain"), row["id"]
        for check in row["checks"]:
            message = row["messages"][check["turn"]]
            text, wanted = message["content"], check["text"]
            assert message["role"] == "assistant", row["id"]
            assert {
                "contains": wanted.lower() in text.lower(),
                "starts": text.startswith(wanted),
                "ends": text.endswith(wanted),
            }[check["must"]], row["id"]


def test_what_is_asked_of_held_out_dialogues_was_not_trained_on():
    trained, held_out = (
        {
            c["text"].lower()
            for row in read_rows(DATA / name)
            for c in row["checks"]
        }
        for name in DIALOGUES
    )
    assert trained and held_out and not trained & held_out


def test_planted_rows_are_in_order():
    for name in ("planted", "planted_heldout"):
        for row in read_rows(DATA / "conversations" / f"{name}.jsonl"):
            assert disorder(row["messages"]) == "", row["id"]
            assert set(row["prompts"]) == {"user", "assistant"}, row["id"]
