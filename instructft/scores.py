"""Scores of texts without a model: rules, intervals, and a judge's verdicts.

A rule takes one prediction and one target and returns 0 to 1.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from decimal import Decimal
from typing import NamedTuple

from instructft.similarity import rouge_l

SAID = "the answer is"
# "(B)", "B)", "B.", "B:" or "B" alone; a number of one or two digits, too
MARK = re.compile(
    r"\(([^\W\d_]|\d\d?)\)(?: |$)"
    r"|([^\W\d_]|\d\d?)(?:[).:] |[):]?$)"
)
# Behind a mark, another option. "B." may be an initial, too: it counts where
# the first mark has a dot
OTHER = re.compile(
    r"(?<!\w)\(([^\W\d_]|\d\d?)\)"
    r"|(?<!\S)([^\W\d_]|\d\d?)[):](?!\w)"
    r"|^(?:or|and) ([^\W\d_]|\d\d?)(?!\w)"
)
DOTTED = re.compile(r"(?<!\S)([^\W\d_]|\d\d?)\.(?!\w)")
# a minus behind a digit, a letter or a bracket is a difference
NUMBER = re.compile(
    r"((?<![\w)\]])[-−])?\$?"
    r"((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
)


# what stands before the last number where it is no number alone: 1/2, 1e5,
# 10^5, \frac{1}{2}
PART = re.compile(r"(?:\d\s*/\s*|\d[eE][-+−]?|\^\{?|\}\{)$")
DRAWN_AT_ONCE = 1_000_000  # values: 8 MB


# One prediction, one target


def exact(prediction: str, target: str) -> float:
    """Return 1 if both are the same text, white space around them aside.

    >>> exact(" yes\\n", "yes"), exact("Yes", "yes")
    (1.0, 0.0)
    """
    return float(prediction.strip() == target.strip())


def choice(prediction: str, target: str) -> float:
    """Return 1 if an option is named, alone: by its letter or its text.

    Letter: "(B)", "B)", "B.", "B:" or "B". Text: "Paris", or behind a
    letter, "(B) Paris". Case, a full stop at the end and white space do not
    count. Where both sides have a letter, the letters must agree; where both
    have a text, the texts; one of the two at least must be on both sides. A
    sentence around the option is a miss: it may name another as well. So is
    a text behind the letter that holds another option's mark, where the
    target has no text to compare it with.

    >>> choice("B.", "(B)"), choice("(B) Paris", "B"), choice("paris", "Paris")
    (1.0, 1.0, 1.0)
    >>> choice("(A) Paris", "(B) Paris"), choice("I say B", "B")
    (0.0, 0.0)
    >>> choice("A) or B)", "A"), choice("(A) Paris (B) Rome", "A")
    (0.0, 0.0)
    """
    said, wanted = _option(prediction), _option(target)
    if said[0] and not wanted[1] and _names_another(*said, prediction):
        return 0.0
    pairs = [(a, b) for a, b in zip(said, wanted, strict=True) if a and b]
    return float(bool(pairs) and all(a == b for a, b in pairs))


def _option(text: str) -> tuple[str, str]:
    """Return an option's letter and text, "" for what it lacks."""
    text = " ".join(text.casefold().split()).removesuffix(".").rstrip()
    mark = MARK.match(text)
    if mark is None:
        return "", text
    return mark[1] or mark[2], text[mark.end() :]


def _names_another(letter: str, text: str, prediction: str) -> bool:
    """Say whether the text behind a letter holds another option's mark."""
    found = [*OTHER.finditer(text)]
    if prediction.split(maxsplit=1)[0].endswith("."):
        found += DOTTED.finditer(text)
    names = {each[each.lastindex] for each in found} - {letter}
    return any(name.isdigit() == letter.isdigit() for name in names)


def bbh_answer(text: str) -> str:
    """Return what follows "the answer is", to the end, without a full stop.

    The whole text if the words are not there, and what follows the last of
    them if they stand there twice.

    >>> bbh_answer("Both are False. So the answer is (B).")
    '(B)'
    >>> bbh_answer("True")
    'True'
    """
    return text.rpartition(SAID)[2].strip().removesuffix(".").rstrip()


def bbh(prediction: str, target: str) -> float:
    """Return 1 if a BIG-Bench Hard answer is the target, letter by letter.

    The prompts of suzgunmirac/BIG-Bench-Hard (@9ee07bd) end their examples
    in "So the answer is X." (chain of thought) or give X alone (direct); the
    repository holds no scorer. This rule gives its published accuracies of
    code-davinci-002 on the tasks that were read, 250 rows each: 88.4 %
    (boolean_expressions, direct) and 97.6 % (sports_understanding, chain of
    thought). A text cut off before the words is wrong; the target is read
    as the prediction is.

    >>> bbh("It is part of soccer. So the answer is no.", "no")
    1.0
    """
    return float(bbh_answer(prediction) == bbh_answer(target))


def last_number(text: str) -> Decimal | None:
    """Return the last number of a text; None if there is none.

    Commas between thousands, a dollar sign and a dot behind it are left out.

    >>> last_number("He pays 3 * $400 = $1,200.")
    Decimal('1200')
    >>> last_number("10-4"), last_number("A: -4.50"), last_number("none")
    (Decimal('4'), Decimal('-4.50'), None)
    """
    found = NUMBER.findall(text)
    if not found:
        return None
    minus, digits = found[-1]
    value = Decimal(digits.replace(",", ""))
    return value.copy_negate() if minus else value  # -value is rounded


def number(prediction: str, target: str) -> float:
    """Return 1 if the last number of both is the same: 3 is 3.0.

    Of a GSM8K solution that is its answer: "A: 18" in openai/
    grade-school-math (@3101c7d), data/example_model_solutions.jsonl, "#### 18"
    in its data (dataset.py compares what follows the sign as text, without
    commas; a solution without the sign is wrong there).

    >>> number("She makes 9 * 2 = $<<9*2=18>>18 a day.\\nA: 18", "#### 18")
    1.0
    >>> number("A: 90,000", "90000.0"), number("eighteen", "18")
    (1.0, 0.0)

    Raises ValueError if the target has no number.
    """
    wanted = last_number(target)
    if wanted is None:
        raise ValueError(f"no number in the target {target!r}: write one")
    return float(last_number(prediction) == wanted)


RULES: dict[str, Callable[[str, str], float]] = {
    "exact": exact,
    "choice": choice,
    "bbh": bbh,
    "number": number,
    "rouge_l": rouge_l,
}


def score(rule: str, prediction: str, target: str | Sequence[str]) -> float:
    """Return a rule's score, 0 to 1; of several targets, the best one's.

    Any of several targets will do, as with openai/evals' `ideal`.

    >>> score("exact", "no", ["No", "no"]), score("rouge_l", "a b", "a b c")
    (1.0, 0.8)

    Raises ValueError for an unknown rule, no target, or as the rule does.
    """
    if rule not in RULES:
        raise ValueError(f"no rule {rule!r}: choose one of {list(RULES)}")
    targets = [target] if isinstance(target, str) else list(target)
    if not targets:
        raise ValueError("no target: give at least one")
    return max(RULES[rule](prediction, each) for each in targets)


def field(row: dict, name: str) -> object:
    """Return a row's field; a dot leads into a field that is an object.

    >>> field({"175b": {"solution": "A: 18"}}, "175b.solution")
    'A: 18'

    Raises KeyError if it is not there.
    """
    if name in row or "." not in name:
        return row[name]
    outer, inner = name.split(".", 1)
    if not isinstance(row.get(outer), dict):
        raise KeyError(name)
    return field(row[outer], inner)


def unusable(
    row: dict,
    rule: str,
    prediction: str = "prediction",
    target: str = "target",
) -> list[str]:
    """Say why a row cannot be scored, with its remedy; [] if it can.

    >>> unusable({"prediction": "A: 18", "target": ""}, "number")
    ['target is empty: write the expected answer']
    """
    said, found = [], {}
    for name in (prediction, target):
        try:
            found[name] = field(row, name)
        except KeyError:
            said.append(f"{name} is missing: add it, or name another field")
    if prediction in found and not isinstance(found[prediction], str):
        kind = type(found[prediction]).__name__
        said.append(f"{prediction} is {kind}: write a string")
    if target in found:
        wanted = found[target]
        wanted = wanted if isinstance(wanted, list) else [wanted]
        said += [] if wanted else [f"{target} is an empty list: add a string"]
        faults = {_fault(rule, each) for each in wanted} - {""}
        said += [f"{target} {fault}" for fault in sorted(faults)]
    if not isinstance(row.get("task", ""), str):
        kind = type(row["task"]).__name__
        said.append(f"task is {kind}: write a string, or leave it out")
    return said


def _fault(rule: str, target: object) -> str:
    """Say why nothing could ever reach a target; "" if something can."""
    if not isinstance(target, str):
        return f"is {type(target).__name__}: write a string, or a list of them"
    if not target.strip() or rule == "bbh" and not bbh_answer(target):
        return "is empty: write the expected answer"
    if rule == "number":
        if not (found := [*NUMBER.finditer(target)]):
            return (
                f"{target!r} has no number: write one, or choose another rule"
            )
        if PART.search(target[: found[-1].start()]):
            return (
                f"{target!r} ends in a fraction or a power, of which only "
                f"{found[-1][0]} would count: write it as a decimal number"
            )
    if rule in ("choice", "rouge_l") and not score(rule, target, target):
        return f"{target!r} has no word to compare: choose another rule"
    return ""


# How sure a mean is


def bootstrap(
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a mean.

    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter
    13. Rows are drawn anew, with replacement, `draws` times. Rows that
    depend on each other (one question's under several seeds, one
    conversation's turns) are given the same entry in `groups`: then whole
    groups are drawn. Too narrow with few rows or groups (a dozen), and of no
    width if all values are equal: for a share, see `evaluate.interval`.

    >>> low, high = bootstrap([0, 1] * 50)
    >>> round(low, 2), round(high, 2)
    (0.4, 0.6)

    Raises ValueError with fewer than two rows or groups, for a value that
    is no finite number, or if `groups` and `values` differ in length.
    """
    import numpy as np

    _refuse_gaps("values", values)
    values = np.asarray(values, np.float64)
    sums, sizes = values, np.ones(len(values))
    if groups is not None:
        if len(groups) != len(values):
            raise ValueError(
                f"{len(groups)} groups for {len(values)} values: give each "
                "value the name of its group"
            )
        places: dict[Hashable, int] = {}
        at = [places.setdefault(each, len(places)) for each in groups]
        at = np.asarray(at, np.intp)
        sums, sizes = np.bincount(at, values), np.bincount(at)
    if len(sums) < 2:
        what = "rows" if groups is None else "groups"
        raise ValueError(
            f"{len(sums)} {what} have no spread to draw from: give two or more"
        )
    chance, means = np.random.default_rng(seed), []
    some = max(1, DRAWN_AT_ONCE // len(sums))
    for start in range(0, draws, some):
        size = (min(some, draws - start), len(sums))
        drawn = chance.integers(len(sums), size=size)
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)


def _refuse_gaps(name: str, values: Sequence[float]) -> None:
    """Raise ValueError for the first value that is no finite number."""
    for place, value in enumerate(values):
        try:
            good = math.isfinite(value)
        except TypeError:  # None, a text
            good = False
        if not good:
            raise ValueError(
                f"{name}[{place}] is {value}: give a finite number, or leave "
                "its row out"
            )


class Difference(NamedTuple):
    """A mean difference and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def paired(
    before: Sequence[float],
    after: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Difference:
    """Return how much higher `after` is than `before`, row by row.

    The mean difference and its `bootstrap` interval, by drawing pairs: what
    makes a row hard is in both and falls out.

    >>> paired([0, 0, 1, 0] * 25, [1, 0, 1, 1] * 25).mean
    0.5

    Raises ValueError if the lengths differ, and as `bootstrap` does.
    """
    _refuse_gaps("before", before)
    _refuse_gaps("after", after)
    if len(before) != len(after):
        raise ValueError(
            f"{len(before)} values before and {len(after)} after: give the "
            "same rows, in the same order"
        )
    pairs = zip(before, after, strict=True)
    gains = [float(new) - float(old) for old, new in pairs]
    ends = bootstrap(gains, groups, draws, seed)
    return Difference(sum(gains) / len(gains), *ends)


# A judge


class Judged(NamedTuple):
    """What a judge said of n pairs, each asked in both orders."""

    outcomes: list[str]  # n; see `judge`
    counts: dict[str, int]  # pairs by outcome
    places: dict[str, int]  # 2n verdicts, unreadable and failed ones too
    first_place_wins: float | None  # share of the readable verdicts
    replies: list[tuple[str, str]]  # n: as given, and swapped


OUTCOMES = (
    *("one", "other", "tie", "flipped", "tie in one"),
    *("unreadable", "failed"),
)
VERDICTS = ("first", "second", "tie")


def judge(
    pairs: Sequence[tuple[str, str, str]],
    ask: object,
    prompt: Callable[[str, str, str], list[dict]],
    verdict: Callable[[str], str | None],
    **asking: object,
) -> Judged:
    """Let a judge compare two answers to each question, in both orders.

    A pair is (question, one answer, the other). `prompt(question, first,
    second)` makes the messages, and `verdict(reply)` reads "first",
    "second" or "tie" from the reply, or None if it cannot. `ask` is a
    function of messages that returns the reply, an object whose
    `.reply(messages)` does, or a Teacher or Recorded: then `asking` is the
    rest of each request (model, max_tokens, and so on) and all are sent at
    once. A reply that is not whole (refused, filtered, cut off, failed) is
    not read: it counts as failed, and `replies` holds its text, or "[state:
    reason]" where it has none.

    Outcomes: `one` or `other` won both times, `tie` both times; `flipped`
    (the place won, not the answer), `tie in one` order only; `failed` in one
    or both, else `unreadable` in one or both. Only the first three are a
    judgement of the answers. `first_place_wins` (ties are in its
    denominator) against `places`' second is the judge's bias for a place: of
    GPT-4's 4,480 verdicts in artidoro/qlora, eval/ratings-gpt4, the first
    place won 56.1 %, the second 30.2 %, and 20.5 % of 2,227 pairs flipped.

    Raises ValueError for a verdict that is none of these.
    """
    asked = [
        prompt(question, *answers)
        for question, one, other in pairs
        for answers in ((one, other), (other, one))
    ]
    said = _replies(ask, asked, asking)
    read = []
    for text, whole in said:
        each = verdict(text) if whole else "failed"
        if whole and each is not None and each not in VERDICTS:
            raise ValueError(
                f"the verdict of {text[-200:]!r} was read as {each!r}: "
                f"return one of {list(VERDICTS)}, or None"
            )
        read.append(each or "unreadable")
    outcomes = [
        _outcome(*both) for both in zip(read[::2], read[1::2], strict=True)
    ]
    places = Counter(read)
    readable = sum(places[name] for name in VERDICTS)
    texts = [text for text, _ in said]
    return Judged(
        outcomes,
        {name: outcomes.count(name) for name in OUTCOMES},
        {name: places[name] for name in (*VERDICTS, "unreadable", "failed")},
        places["first"] / readable if readable else None,
        list(zip(texts[::2], texts[1::2], strict=True)),
    )


def _replies(
    ask, asked: list[list[dict]], asking: dict
) -> list[tuple[str, bool]]:
    """Return the reply to each, and whether it is whole."""
    if hasattr(ask, "ask"):
        replies = ask.ask([{"messages": each} | asking for each in asked])
        said = []
        for text, state, reason, *_ in replies:
            whole = state == "ok"
            shown = text if whole or text.strip() else f"[{state}: {reason}]"
            said.append((shown, whole))
        return said
    if asking:
        raise ValueError(
            f"{sorted(asking)} is for a Teacher or Recorded: put it into "
            "your own function"
        )
    texts = [getattr(ask, "reply", ask)(each) for each in asked]
    return [
        ("[failed: no reply]", False) if text is None else (text, True)
        for text in texts
    ]


def _outcome(given: str, swapped: str) -> str:
    """Say what two verdicts mean, the second with places swapped."""
    for name in ("failed", "unreadable"):
        if name in (given, swapped):
            return name
    if "tie" in (given, swapped):
        return "tie" if given == swapped else "tie in one"
    if given == swapped:
        return "flipped"
    return "one" if given == "first" else "other"
