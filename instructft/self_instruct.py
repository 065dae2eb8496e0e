"""Grow a pool of tasks from seeds, as Self-Instruct does, stage by stage.

Wang et al., "Self-Instruct", ACL 2023; the rules are those of its released
code (yizhongw/self-instruct), in their order. The Alpaca variant asks for
whole instances in one call (tatsu-lab/stanford_alpaca).

`python -m instructft.self_instruct replay FOLDER` runs a published run's raw
replies through these rules and compares.
"""

import json
import re
import string
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from instructft.similarity import Pool, rouge_l

# Words for what a text model cannot see or do (stage 1); Alpaca adds some.
KEYWORDS = (
    *("image", "images", "graph", "graphs", "picture", "pictures"),
    *("file", "files", "map", "maps", "draw", "plot", "go to"),
)
ALPACA_KEYWORDS = (
    *KEYWORDS,
    *("video", "audio", "music", "flowchart", "diagram"),
)


# Stage 1: instructions


def instructions_in(text: str) -> list[str]:
    r"""Take the instructions out of a reply to a numbered prompt.

    The prompt ended in a number, so the first one has none.

    >>> instructions_in(" Name a fruit.\n10. write  a Poem.\n11 . ")
    ['Name a fruit.', 'Write a poem.']
    """
    found = (
        # not str.title: all after the first letter becomes lower case
        re.sub(r"\s+", " ", part).strip().capitalize()
        for part in re.split(r"\n\d+\s?\. ", text)
    )
    return [part for part in found if part]


def rule_against(instruction: str, keywords: Sequence[str] = KEYWORDS) -> str:
    """Name the first rule that an instruction breaks; "" if none.

    >>> rule_against("Draw the town by night.")
    'keyword: draw'
    >>> rule_against("Name a fruit.")
    'too short: 3 words'
    """
    count = len(instruction.split())
    if count <= 3:
        return f"too short: {count} words"
    if count > 150:
        return f"too long: {count} words"
    for word in keywords:
        if re.search(rf"\b({word})\b", instruction, re.IGNORECASE):
            return f"keyword: {word}"
    if instruction.startswith("Write a program"):
        return "asks for a program"
    if instruction[0] in string.punctuation:
        return "starts with punctuation"
    if not instruction[0].isascii():
        return "starts with a character that is not ASCII"
    return ""


class Verdict(NamedTuple):
    """What became of one candidate, and why."""

    instruction: str
    rule: str  # what rejected it; "" if it was accepted
    near: dict[str, float]  # the most alike, ROUGE-L F, ten at most
    mean: float  # over the whole pool; 0 if no log is kept


class Novelty:
    """The pool that a candidate must be unlike: seeds, then all accepted.

    >>> novelty = Novelty(["Name three kinds of fruit."])
    >>> novelty.judge("Name three kinds of fruit, please.").rule
    'too like a task of the pool: 0.91'
    >>> novelty.judge("Describe the sea at night.").rule
    ''
    """

    def __init__(
        self, seeds: Iterable[str], above: float = 0.7, log: bool = False
    ):
        self.above, self.log = above, log
        self.texts = list(seeds)
        self._pool = Pool(self.texts)

    def judge(self, instruction: str) -> Verdict:
        """Accept a candidate into the pool, or say what it is too like.

        With `log`, scores are computed against the whole pool, as published
        logs have them: much slower, for the same verdict.
        """
        if self.log:
            scores = dict(enumerate(self._pool.scores(instruction)))
        else:
            scores = dict(self._pool.near(instruction, self.above))
        # of equal scores the first in the pool
        order = sorted(scores, key=scores.get, reverse=True)[:10]
        near = {self.texts[i]: scores[i] for i in order}
        most = max(scores.values(), default=0.0)
        mean = sum(scores.values()) / len(scores) if self.log and scores else 0
        rule = ""
        if most > self.above:
            rule = f"too like a task of the pool: {most:.2f}"
        else:
            self.add(instruction)
        return Verdict(instruction, rule, near, float(mean))

    def add(self, instruction: str) -> None:
        """Put a task into the pool, whatever it is like."""
        self.texts.append(instruction)
        self._pool.add(instruction)


def judged(
    reply: str, finish_reason: str, novelty: Novelty
) -> Iterator[Verdict]:
    """Judge each instruction of one stage-1 reply, in order.

    A reply that was cut off by its length is rejected whole.
    """
    for instruction in instructions_in(reply):
        rule = rule_against(instruction)
        if finish_reason == "length":
            rule = "the reply was cut off"
        if rule:
            yield Verdict(instruction, rule, {}, 0.0)
        else:
            yield novelty.judge(instruction)


# Stage 2: is it classification?


def is_classification(reply: str) -> bool:
    """Read a stage-2 reply: only Yes, yes and YES say so.

    >>> is_classification(" Yes\\n"), is_classification("Yes, it is")
    (True, False)
    """
    return reply.strip() in ("Yes", "yes", "YES")


# Stages 3 and 4: instances


def labelled_instances(reply: str) -> list[tuple[str, str]]:
    r"""Read a reply of a classification task: (input, output), label first.

    >>> labelled_instances("Class label: good\nI like it.\nClass label: bad")
    [('I like it.', 'good'), ('', 'bad')]
    """
    found = []
    for part in reply.split("Class label:")[1:]:
        label, _, asked = part.strip().partition("\n")
        found.append((asked.strip(), label.strip()))
    return found


OUTPUT = re.compile(r"Output\s*\d*\s*:")
INPUT = re.compile(r"Input\s*\d*\s*:")
EXAMPLE = re.compile(r"Example\s?\d*\.?")


def free_instances(reply: str) -> list[tuple[str, str]]:
    r"""Read a reply of another task: (input, output), input first.

    >>> free_instances("Example 1\nInput: 2\nOutput: 4\nExample 2\nOutput: 6")
    [('2', '4'), ('', '6')]
    """
    reply = reply.strip()
    if EXAMPLE.search(reply):
        parts = [p.strip() for p in EXAMPLE.split(reply) if p.strip()]
    else:
        parts = [reply] if OUTPUT.search(reply) else []
    return [_input_output(part) for part in parts]


def _input_output(text: str) -> tuple[str, str]:
    pieces = OUTPUT.split(text)
    asked, answer = pieces[:2] if len(pieces) > 1 else ("", text)
    answer = INPUT.split(answer)[0]  # a second pair is dropped
    match = INPUT.match(asked := asked.strip())
    return asked[match.end() if match else 0 :].strip(), answer.strip()


def kept_instances(
    instances: Sequence[tuple[str, str]], finish_reason: str
) -> tuple[list[tuple[str, str]], list[tuple[tuple[str, str], str]]]:
    """Part a task's instances into those kept and (instance, rule) rejected.

    The last of a reply cut off by its length goes; then what is empty,
    equal or ends in a colon; then all of them, if one input has two
    outputs; then repetitions. (The released code then samples at most 5.)

    >>> kept_instances([("2", "4"), ("2", "4"), ("3", "")], "stop")
    ([('2', '4')], [(('3', ''), 'empty output'), (('2', '4'), 'repeated')])
    """
    kept, rejected = list(instances), []
    if finish_reason == "length" and kept:
        rejected.append((kept.pop(), "the reply was cut off"))
    whole = []
    for one in kept:
        asked, answer = one
        if asked == answer:
            rejected.append((one, "output equals input"))
        elif not answer:
            rejected.append((one, "empty output"))
        elif asked.endswith(":") or answer.endswith(":"):
            rejected.append((one, "ends in a colon"))
        else:
            whole.append(one)
    outputs: dict[str, set[str]] = {}
    for asked, answer in whole:
        outputs.setdefault(asked, set()).add(answer)
    if any(asked and len(found) > 1 for asked, found in outputs.items()):
        rule = "one input of the task has two outputs"
        return [], rejected + [(one, rule) for one in whole]
    unique = list(dict.fromkeys(whole))
    seen: set[tuple[str, str]] = set()
    for one in whole:
        if one in seen:
            rejected.append((one, "repeated"))
        seen.add(one)
    return unique, rejected


# The Alpaca variant: whole instances from one call


def alpaca_instances(
    reply: str, finish_reason: str, first: int = 4
) -> Iterator[tuple[dict, str]]:
    r"""Read one reply of the one-call prompt: (instance, rule against it).

    The prompt showed `first` - 1 tasks and ended in "4. Instruction:". An
    item that is not whole has only its text, as `instruction`; the last one
    of a reply cut off by its length goes. Rules as `rule_against`, with
    Alpaca's keywords; novelty is for the caller to judge.

    >>> text = " Name a pet.\n4. Input:\n<noinput>\n4. Output:\nCat.\n###\n5."
    >>> [rule for _, rule in alpaca_instances(text, "stop")]
    ['too short: 3 words', 'not a whole item']
    """
    parts = f"{first}. Instruction:{reply}".split("###")
    for number, part in enumerate(parts, start=first):
        if finish_reason == "length" and number == first + len(parts) - 1:
            yield {"instruction": part.strip()}, "the reply was cut off"
            continue
        fields = re.split(rf"{number}\.\s+(Instruction|Input|Output):", part)
        if len(fields) != 7:
            yield {"instruction": part.strip()}, "not a whole item"
            continue
        asked, given, answer = (text.strip() for text in fields[2::2])
        given = "" if given.lower() == "<noinput>" else given
        one = {"instruction": asked, "input": given, "output": answer}
        yield one, rule_against(asked, ALPACA_KEYWORDS) if asked else "empty"


# python -m instructft.self_instruct replay


def _lines(path: Path) -> list[dict]:
    from instructft.instance import read_rows

    return read_rows(path)


def replay_instructions(seeds: Sequence[str], rows: Sequence[dict]) -> dict:
    """Run the raw replies of published stage-1 rows through our rules.

    `rows` are those of machine_generated_instructions.jsonl. Returns the
    counts `published`, `accepted`, `rejected` by rule, `scores` (logged
    similarities), `scores equal`, `means equal`, `above 0.7`, and `differing`:
    (how, text).
    """
    novelty = Novelty(seeds, log=True)
    verdicts: list[Verdict] = []
    last = None
    for row in rows:
        if row["metadata"] == last:
            continue  # another instruction of the same reply
        last = row["metadata"]
        if last.get("response") is None:
            continue
        [choice, *_] = last["response"]["choices"]
        verdicts += judged(choice["text"], choice["finish_reason"], novelty)
    ours = [verdict for verdict in verdicts if not verdict.rule]
    rules = Counter(
        verdict.rule.split(":")[0] for verdict in verdicts if verdict.rule
    )
    return {
        "candidates": len(verdicts),
        "rejected": dict(rules),
        **_compared(rows, ours),
    }


def replay_alpaca(seeds: Sequence[str], rows: Sequence[dict]) -> dict:
    """Judge the instructions of a published Alpaca file (regen.json) again.

    Its raw replies are not kept, so only novelty and the logged
    similarities can be compared. Returns counts as `replay_instructions`.
    """
    novelty, ours = Novelty(seeds, log=True), []
    rules = {"too like a task of the pool": 0}
    for row in rows:
        verdict = novelty.judge(row["instruction"])
        if verdict.rule:
            rules["too like a task of the pool"] += 1
            # it is in the published pool all the same
            novelty.add(row["instruction"])
        ours.append(verdict)
    found = _compared(rows, ours, "most_similar_instructions")
    found["accepted"] = len(rows) - sum(rules.values())
    return {"candidates": len(rows), "rejected": rules, **found}


def _compared(
    rows: Sequence[dict], ours: Sequence[Verdict], name: str = "most_similar"
) -> dict:
    published = [row["instruction"] for row in rows]
    accepted = [verdict.instruction for verdict in ours]
    here, there = set(accepted), set(published)
    differing = [("not accepted by us", t) for t in published if t not in here]
    differing += [
        ("accepted by us alone", t) for t in accepted if t not in there
    ]
    both = zip(
        (text for text in published if text in here),
        (text for text in accepted if text in there),
        strict=False,
    )
    differing += [("other order", *pair) for pair in both if len({*pair}) > 1]
    by_text = {verdict.instruction: verdict for verdict in ours}
    pairs = [
        (row, by_text[row["instruction"]])
        for row in rows
        if row["instruction"] in by_text
    ]
    logged = [
        (score, rouge_l(row["instruction"], text))
        for row, _ in pairs
        for text, score in row.get(name, {}).items()
    ]
    means = [
        (row["avg_similarity_score"], mine.mean)
        for row, mine in pairs
        if "avg_similarity_score" in row
    ]
    return {
        "published": len(rows),
        "accepted": len(ours),
        "differing": differing,
        "scores": len(logged),
        "scores equal": sum(a == b for a, b in logged),
        "means": len(means),
        "means equal": sum(abs(a - b) < 1e-12 for a, b in means),
        "above 0.7": sum(
            max(row.get(name, {"": 0}).values(), default=0) > 0.7
            for row in rows
        ),
    }


def replay_instances(
    raw: Sequence[dict], kinds: dict[str, bool], published: Sequence[dict]
) -> dict:
    """Parse the raw instances of a published run and compare.

    `raw` are the rows of machine_generated_instances.jsonl, `kinds` says
    of each instruction whether it is classification, `published` are the
    rows of all_generated_instances.jsonl. The released code orders a task's
    instances by chance and keeps five, so the sets are compared.
    """
    ours: dict[str, set] = {}
    classified = empty = 0
    for row in raw:
        kind = kinds[row["instruction"]]
        read = labelled_instances if kind else free_instances
        [choice, *_] = row["instance_metadata"]["response"]["choices"]
        kept, _ = kept_instances(
            read(row["raw_instances"]), choice["finish_reason"]
        )
        classified += kind
        empty += not kept
        ours.setdefault(row["instruction"].strip(), set()).update(kept)
    theirs: dict[str, set] = {}
    for row in published:
        pair = row["input"], row["output"]
        theirs.setdefault(row["instruction"], set()).add(pair)
    missing = [
        (task, pair)
        for task, pairs in theirs.items()
        for pair in pairs - ours.get(task, set())
    ]
    extra = [
        (task, pair)
        for task, pairs in ours.items()
        if len(theirs.get(task, ())) < min(len(pairs), 5)
        for pair in pairs - theirs.get(task, set())
    ]
    return {
        "tasks": len(raw),
        "classification": classified,
        "tasks without an instance": empty,
        "published": sum(map(len, theirs.values())),
        "parsed": sum(min(len(pairs), 5) for pairs in ours.values()),
        "differing": missing + extra,
    }


def _replay_folder(folder: Path) -> list[tuple[str, dict]]:
    found = []
    seeds = [
        row["instruction"] for row in _lines(_one(folder, "seed_tasks.jsonl"))
    ]
    rows = _lines(_one(folder, "machine_generated_instructions.jsonl"))
    found.append(("instructions", replay_instructions(seeds, rows)))
    if raw := sorted(folder.rglob("machine_generated_instances.jsonl")):
        kinds = {
            row["instruction"]: is_classification(row["is_classification"])
            for path in sorted(folder.rglob("is_clf_or_not*.jsonl"))
            for row in _lines(path)
        }
        published = _lines(_one(folder, "all_generated_instances.jsonl"))
        found.append(
            ("instances", replay_instances(_lines(raw[0]), kinds, published))
        )
    return found


def _one(folder: Path, name: str) -> Path:
    paths = sorted(folder.rglob(name))
    if not paths:
        raise FileNotFoundError(
            f"no {name} in {folder}: give the folder of a published run"
        )
    return paths[0]


def _main(words: list[str]) -> int:
    import argparse

    from instructft.instance import BadRows

    parser = argparse.ArgumentParser(
        prog="python -m instructft.self_instruct",
        description="Run a published run's raw replies through our rules.",
    )
    verb = parser.add_subparsers(required=True).add_parser("replay")
    verb.add_argument("folder", nargs="?", type=Path)
    verb.add_argument("--alpaca", type=Path, metavar="FILE")
    verb.add_argument("--seeds", type=Path, metavar="FILE")
    asked = verb.parse_args(words[1:]) if words[:1] == ["replay"] else None
    if asked is None or (asked.folder is None) == (asked.alpaca is None):
        parser.error("replay takes a FOLDER, or --alpaca FILE")
    try:
        if asked.folder:
            found = _replay_folder(asked.folder)
        else:
            path = asked.seeds or _one(asked.alpaca.parent, "seed_tasks.jsonl")
            seeds = [row["instruction"] for row in _lines(path)]
            one = asked.alpaca.suffix == ".jsonl"
            rows = (
                _lines(asked.alpaca)
                if one
                else json.loads(asked.alpaca.read_text("utf-8"))
            )
            found = [("alpaca", replay_alpaca(seeds, rows))]
    except (BadRows, OSError, KeyError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    same = True
    for name, facts in found:
        for fact, value in facts.items():
            if fact == "differing":
                print(f"{name}: differing: {len(value)}")
                for line in value[:5]:
                    print("   ", *(repr(part) for part in line))
            else:
                print(f"{name}: {fact}: {value}")
        same &= not facts["differing"]
        same &= facts.get("scores") == facts.get("scores equal")
        same &= facts.get("means") == facts.get("means equal")
    print("the same" if same else "NOT the same")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
