"""Conversations: played by models, from trees, cleaned, and split."""

import gzip
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from instructft.instance import BadRows, stream_rows

if TYPE_CHECKING:
    from instructft.teacher import Recorded, Teacher

OPEN_ASSISTANT = {"prompter": "user", "assistant": "assistant"}


def threads(tree: dict, top_k: int | None = None) -> Iterator[list[dict]]:
    """Yield the conversations of a message tree, root to leaf, as messages.

    A tree is a message {"text", "role": "prompter" or "assistant",
    "replies": [...]}, or {"prompt": message} (OpenAssistant's export).
    Only paths that end in an answer without replies are taken; a deleted
    message is left out, with all below it. `top_k` follows the best replies
    only, by the people's mean label for quality, 0 where there is none
    (allenai/open-instruct, convert_oasst1_data).

    Raises ValueError naming a message of another role, or without a text.
    """
    waiting = [([], tree.get("prompt", tree))]
    while waiting:
        above, message = waiting.pop()
        if message.get("deleted"):
            continue
        role, text = message.get("role"), message.get("text")
        if role not in OPEN_ASSISTANT or not isinstance(text, str):
            raise ValueError(
                f"message {message.get('message_id')!r} has role {role!r} "
                f"and text {text!r}: give each message a text and one of the "
                f"roles {list(OPEN_ASSISTANT)}"
            )
        path = [*above, {"role": OPEN_ASSISTANT[role], "content": text}]
        replies = message.get("replies") or []
        if not replies and role == "assistant":
            yield path
        stay = [reply for reply in replies if not reply.get("deleted")]
        if top_k is not None:
            stay = sorted(stay, key=_quality, reverse=True)[:top_k]
        waiting += [(path, reply) for reply in reversed(stay)]


def _quality(message: dict) -> float:
    label = (message.get("labels") or {}).get("quality") or {}
    return label.get("value", 0.0)


def read_trees(path: str | Path) -> Iterator[dict]:
    """Yield the trees of a JSONL file, one by one; it may end in .gz.

    Raises BadRows naming file, line and remedy for an unusable line.
    """
    if Path(path).suffix != ".gz":
        yield from stream_rows(path)
        return
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                tree = json.loads(line)
            except ValueError as error:
                raise BadRows(path, [f"{path}:{number}: {error}"]) from None
            if not isinstance(tree, dict):
                raise BadRows(path, [f"{path}:{number}: no object; give one"])
            yield tree


def mirrored(messages: Sequence[dict]) -> list[dict]:
    """Return a conversation as the one who plays the user sees it.

    >>> mirrored([{"role": "user", "content": "Hi"}])
    [{'role': 'assistant', 'content': 'Hi'}]
    """
    other = {"user": "assistant", "assistant": "user"}
    return [
        {"role": other[message["role"]], "content": message["content"]}
        for message in messages
    ]


def play(
    teacher: "Teacher | Recorded",
    talks: Sequence[dict],
    ends: Callable[[list[dict]], str],
    most: int = 12,
    **asking: object,
) -> list[dict]:
    """Let a model play both roles of conversations, turn by turn.

    A talk is {"id", "user", "assistant", "opening"}: the system message of
    either role, and what the one who plays the user hears first; it may
    hold the first "messages" of the conversation, too. Either hears the
    other as its user (histories mirrored, as in camel-ai/camel).
    `asking` is the rest of each request: model, max_tokens, and so on.

    Returns {"id", "messages", "ended"} for each talk; `ended` is what
    `ends(messages)` said after a turn ("" goes on), why a reply was not
    whole, or that `most` messages were reached. All talks are asked a turn
    at once. What the teacher's journal holds is not asked again, so a run
    that was killed goes on in mid-conversation. Raises as `ask` does.
    """
    played = [
        {"id": t["id"], "messages": [*t.get("messages", [])], "ended": ""}
        for t in talks
    ]
    while True:
        under_way = [
            (talk, made)
            for talk, made in zip(talks, played, strict=True)
            if not made["ended"]
        ]
        if not under_way:
            return played
        replies = teacher.ask(
            [
                {"messages": _heard(talk, made["messages"])} | asking
                for talk, made in under_way
            ]
        )
        for (_, made), reply in zip(under_way, replies, strict=True):
            said = made["messages"]
            if reply.state != "ok":
                made["ended"] = f"{reply.state}: {reply.reason}"
                continue
            role = ("user", "assistant")[len(said) % 2]
            said.append({"role": role, "content": reply.text.strip()})
            made["ended"] = ends(said)
            if len(said) >= most and not made["ended"]:
                made["ended"] = f"{most} messages"


def _heard(talk: dict, messages: list[dict]) -> list[dict]:
    """What the one whose turn it is has heard so far."""
    if len(messages) % 2:
        return [{"role": "system", "content": talk["assistant"]}, *messages]
    return [
        {"role": "system", "content": talk["user"]},
        {"role": "user", "content": talk["opening"]},
        *mirrored(messages),
    ]


def from_transcript(
    text: str,
    whole: bool = True,
    user: str = "[Human]",
    assistant: str = "[AI]",
) -> tuple[list[dict], list[tuple[str, str]]]:
    """Cut a text in which a model wrote both sides: (turns, left out).

    What is left out is listed as (text, why): what precedes the first mark,
    a question without an answer, one with two, and all that follows; if the
    text is not `whole`, its last answer too, which was cut off.
    project-baize/baize-chatbot drops the last question in any case, and so
    loses a finished pair.

    >>> from_transcript("[Human] Hi [AI] Hello. [Human] And")
    ([{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': \
'Hello.'}], [('And', 'a question without an answer')])
    """
    before, *chunks = text.split(user)
    out = [(before.strip(), "before the first turn")] * bool(before.strip())
    turns: list[dict] = []
    ended = False
    for number, chunk in enumerate(chunks, start=1):
        question, *answers = chunk.split(assistant)
        cut = not whole and number == len(chunks) and answers
        why = "after a turn that is none" if ended else ""
        why = why or ("" if answers else "a question without an answer")
        why = why or ("two answers" if len(answers) > 1 else "")
        why = why or ("cut off" if cut else "")
        if why:
            ended = True
            out.append((chunk.strip(), why))
            continue
        turns.append({"role": "user", "content": question.strip()})
        turns.append({"role": "assistant", "content": answers[0].strip()})
    return turns, out


def disorder(messages: Sequence[dict]) -> str:
    """Say where user and assistant do not take turns; "" if they do.

    A system message may stand first; then the user begins, and the
    assistant has the last word.

    >>> disorder([{"role": "user", "content": "Hi"}])
    'the last turn is not an answer'
    """
    turns = [*messages]
    if turns and turns[0]["role"] == "system":
        turns = turns[1:]
    for number, turn in enumerate(turns):
        wanted = ("user", "assistant")[number % 2]
        if turn["role"] != wanted:
            return f"turn {number} is the {turn['role']}'s, not the {wanted}'s"
    if len(turns) % 2:
        return "the last turn is not an answer"
    return "" if turns else "no turn"


def cleaned(
    messages: Sequence[dict],
    words: Sequence[str] = ("openai", "chatgpt"),
    least: int = 16,
) -> tuple[list[dict], list[tuple[int, str]]]:
    """Clean a collected conversation: (what is kept, what went and why).

    What went is listed by its index. An answer before the first question
    goes, and a question without an answer at the end; an empty turn ends
    the conversation. Nothing is kept where the turns do not alternate, a
    turn holds one of the `words`, in any case, or fewer than `least`
    characters are left in all (lm-sys/FastChat, clean_sharegpt.py).
    """
    gone: dict[int, str] = {}
    stay = list(range(len(messages)))
    if stay and messages[0]["role"] == "assistant":
        gone[stay.pop(0)] = "an answer before the first question"
    empty = [i for i in stay if not messages[i]["content"].strip()]
    for i in [i for i in stay if empty and i >= empty[0]]:
        gone[i] = "empty" if i == empty[0] else "after an empty turn"
        stay.remove(i)
    if stay and messages[stay[-1]]["role"] == "user":
        gone[stay.pop()] = "a question without an answer"
    kept = [messages[i] for i in stay]
    text = " ".join(message["content"] for message in kept).lower()
    if kept:
        why = disorder(kept)
        found = [word for word in words if word.lower() in text]
        why = why or (f"holds {found[0]!r}" if found else "")
        size = sum(len(message["content"]) for message in kept)
        why = why or (f"only {size} characters" if size < least else "")
        if why:
            gone |= dict.fromkeys(stay, why)
            kept = []
    return kept, sorted(gone.items())


def split(
    messages: Sequence[dict],
    window: int,
    size: Callable[[Sequence[dict]], int],
) -> tuple[list[list[dict]], list[tuple[int, str]]]:
    """Split a conversation into pieces that fit a window of tokens.

    Returns (pieces, what was left out and why, by index). A piece is whole
    pairs of question and answer, as many as fit; `size` counts the tokens
    of messages. A system message stands first in every piece. Each other
    message is in one piece, or is left out because its pair alone does not
    fit; FastChat's split loses the last pair in silence.

    Raises ValueError if the turns do not alternate.
    """
    if why := disorder(messages):
        raise ValueError(f"{why}: clean the conversation first")
    start = messages[0]["role"] == "system"
    system = list(messages[:start])
    pieces: list[list[dict]] = []
    out: list[tuple[int, str]] = []
    piece = system
    for i in range(start, len(messages), 2):
        pair = list(messages[i : i + 2])
        if size(system + pair) > window:
            why = f"{size(system + pair)} tokens with its pair, not {window}"
            out += [(i, why), (i + 1, why)]
            # what follows may hang on what is left out: a new piece
            pieces, piece = [*pieces, piece], system
        elif size(piece + pair) > window:
            pieces, piece = [*pieces, piece], system + pair
        else:
            piece = piece + pair
    pieces = [p for p in [*pieces, piece] if len(p) > len(system)]
    return pieces, out


def _main(words: list[str]) -> int:
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m instructft.conversations",
        description="Turn trees of messages into conversations.",
    )
    verb = parser.add_subparsers(required=True).add_parser("threads")
    verb.add_argument("file", type=Path)
    verb.add_argument("--top-k", type=int, metavar="K")
    verb.add_argument("--out", type=Path, metavar="FILE", help="JSONL")
    asked = verb.parse_args(words[1:]) if words[:1] == ["threads"] else None
    if asked is None or (asked.top_k is not None and asked.top_k < 1):
        parser.error("threads takes a FILE, and a --top-k of 1 or more")
    trees = counted = answers = 0
    made: list[dict] = []
    try:
        for tree in read_trees(asked.file):
            trees += 1
            waiting = [tree.get("prompt", tree)]
            while waiting:
                message = waiting.pop()
                counted += 1
                answers += message.get("role") == "assistant"
                waiting += message.get("replies") or []
            made += [
                {"id": f"thread-{len(made) + i}", "messages": each}
                for i, each in enumerate(threads(tree, asked.top_k))
            ]
        if asked.out:
            from instructft.instance import write_rows

            write_rows(asked.out, made)
    except (BadRows, OSError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(
        f"{trees:,} trees, {counted:,} messages ({answers:,} answers), "
        f"{len(made):,} threads"
    )
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
