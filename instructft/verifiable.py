"""Instructions whose obedience a program can check, after IFEval.

Zhou et al. 2023; google-research/google-research @3f357bd, folder
instruction_following_eval, called the reference below. Ids and names of
kwargs are IFEval's, so that its published rows {key, prompt,
instruction_id_list, kwargs} can be checked as they are.

Of its 25 kinds, 22 are checked; `UNCHECKED` names the others and why. So
446 of IFEval's 541 prompts can be checked whole, and 726 of their 834
instructions (its input_data.jsonl @1963839). The verdicts are meant to be
the reference's, but for this:

- The two English-case kinds look at the case alone. The reference also
  wants a language detector to say that the text is English.
- Keywords, section marks and postscript marks are plain text, not regular
  expressions, and a forbidden word is one that no letter, digit or _
  touches, even where it ends in a sign ("C++"). None of the 541 published
  prompts holds a word on which the two differ.
- Where a row lacks an argument, or has one that no answer can meet, the
  reference draws one at random; here it is an error.
- JSON too deep to be read is no JSON; the reference stops with an error.
- Two different responses to one prompt are refused; in the reference the
  last one counts.
"""

import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from instructft.evaluate import interval
from instructft.instance import BadRows, read_rows
from instructft.scores import bootstrap

RELATIONS = ("less than", "at least")
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
UNCHECKED = {
    "change_case:capital_word_frequency": "needs a word tokenizer",
    "language:response_language": "needs a language detector",
    "length_constraints:number_sentences": "needs a sentence splitter",
}


# One small function a kind: (answer, its kwargs) -> bool. The annotations
# say what a row must hold.


def _related(count: int, relation: str, number: int) -> bool:
    return count < number if relation == RELATIONS[0] else count >= number


def _existence(answer: str, keywords: list[str]) -> bool:
    # inside a longer word is enough
    return all(
        re.search(re.escape(word), answer, re.IGNORECASE) for word in keywords
    )


def _frequency(
    answer: str, keyword: str, frequency: int, relation: str
) -> bool:
    pattern = re.escape(keyword.strip())
    count = len(re.findall(pattern, answer, re.IGNORECASE))
    return _related(count, relation, frequency)


def _forbidden_words(answer: str, forbidden_words: list[str]) -> bool:
    # whole words only, unlike the two above
    return not any(
        re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE)
        for word in forbidden_words
    )


def _letter_frequency(
    answer: str, letter: str, let_frequency: int, let_relation: str
) -> bool:
    count = answer.lower().count(letter.strip().lower())
    return _related(count, let_relation, let_frequency)


def _number_words(answer: str, num_words: int, relation: str) -> bool:
    # "don't" counts as two
    return _related(len(re.findall(r"\w+", answer)), relation, num_words)


def _number_paragraphs(answer: str, num_paragraphs: int) -> bool:
    parts = [part.strip() for part in answer.split("***")]
    # a divider may open or close the answer, but not follow another
    return all(parts[1:-1]) and sum(map(bool, parts)) == num_paragraphs


def _nth_paragraph_first_word(
    answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    parts = [part.strip() for part in answer.split("\n\n")]
    # blank parts do not count, but they keep their place
    if sum(map(bool, parts)) != num_paragraphs:
        return False
    word, *_ = parts[nth_paragraph - 1].split() or [""]
    word, *_ = re.split("[.,?!'\"]", word.lstrip("'").lstrip('"'))
    return word.lower() == first_word.lower()


def _number_placeholders(answer: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", answer)) >= num_placeholders


def _postscript(answer: str, postscript_marker: str) -> bool:
    # anywhere; IFEval's own two marks may have a space after a stop
    marker = postscript_marker.strip()
    patterns = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    pattern = patterns.get(marker, re.escape(marker.lower()))
    return bool(re.search(pattern, answer.lower()))


def _number_bullet_lists(answer: str, num_bullets: int) -> bool:
    # what follows a lone star belongs to it, even the next line
    stars = re.findall(r"^[^\S\n]*\*[^*].*$", answer, re.MULTILINE)
    dashes = sum(line.lstrip()[:1] == "-" for line in answer.split("\n"))
    return len(stars) + dashes == num_bullets


def _constrained_response(answer: str) -> bool:
    return any(option in answer for option in OPTIONS)


def _number_highlighted_sections(answer: str, num_highlights: int) -> bool:
    # *one star* and **two** are looked for in turn
    found = re.findall(r"\*([^\n*]*)\*", answer)
    found += re.findall(r"\*\*([^\n*]*)\*\*", answer)
    return sum(bool(text.strip()) for text in found) >= num_highlights


def _multiple_sections(
    answer: str, section_spliter: str, num_sections: int
) -> bool:
    mark = re.escape(section_spliter.strip()) + r"\s?\d+"
    return len(re.findall(mark, answer)) >= num_sections


def _json_format(answer: str) -> bool:
    text = answer.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(answer: str) -> bool:
    for line in answer.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start and start + 2 < end:
            if line[start:end].lstrip("<").rstrip(">").strip():
                return True
    return False


def _two_responses(answer: str) -> bool:
    parts = [part.strip() for part in answer.split("******")]
    said = [part for part in parts if part]
    return all(parts[1:-1]) and len(said) == len(set(said)) == 2


def _repeat_prompt(answer: str, prompt_to_repeat: str) -> bool:
    wanted = prompt_to_repeat.strip().lower()
    return answer.strip().lower().startswith(wanted)


def _end_checker(answer: str, end_phrase: str) -> bool:
    text = answer.strip().strip('"').lower()
    return text.endswith(end_phrase.strip().lower())


def _english_capital(answer: str) -> bool:
    return answer.isupper()


def _english_lowercase(answer: str) -> bool:
    return answer.islower()


def _no_comma(answer: str) -> bool:
    return "," not in answer


def _quotation(answer: str) -> bool:
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


CHECKERS = {
    "change_case:english_capital": _english_capital,
    "change_case:english_lowercase": _english_lowercase,
    "combination:repeat_prompt": _repeat_prompt,
    "combination:two_responses": _two_responses,
    "detectable_content:number_placeholders": _number_placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": _constrained_response,
    "detectable_format:json_format": _json_format,
    "detectable_format:multiple_sections": _multiple_sections,
    "detectable_format:number_bullet_lists": _number_bullet_lists,
    "detectable_format:number_highlighted_sections": (
        _number_highlighted_sections
    ),
    "detectable_format:title": _title,
    "keywords:existence": _existence,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:frequency": _frequency,
    "keywords:letter_frequency": _letter_frequency,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:number_words": _number_words,
    "punctuation:no_comma": _no_comma,
    "startend:end_checker": _end_checker,
    "startend:quotation": _quotation,
}


def _arguments(kind: str, kwargs: dict) -> dict:
    """Return what the checker of a kind takes, whole numbers as int.

    A null is no argument: published rows hold one for each other kind.
    """
    if kind not in CHECKERS:
        known = ", ".join(sorted(CHECKERS))
        why = UNCHECKED.get(kind, f"is unknown; write one of {known}")
        raise ValueError(f"{kind} {why}")
    wanted = inspect.signature(CHECKERS[kind]).parameters
    wanted = {n: p.annotation for n, p in wanted.items() if n != "answer"}
    given = {n: value for n, value in kwargs.items() if value is not None}
    if missing := [name for name in wanted if name not in given]:
        raise ValueError(f"{kind} lacks {missing}; add it to its kwargs")
    if foreign := [name for name in given if name not in wanted]:
        raise ValueError(
            f"{kind} takes no {foreign}, only {list(wanted)}; remove it"
        )
    for name, form in wanted.items():
        if remedy := _remedy(name, form, given[name]):
            raise ValueError(f"{kind}: {name} is {given[name]!r}; {remedy}")
        if form is int:
            given[name] = int(given[name])  # pandas makes 3 of it 3.0
    if given.get("nth_paragraph", 0) > given.get("num_paragraphs", 0):
        raise ValueError(
            f"{kind}: there is no paragraph {given['nth_paragraph']} of "
            f"{given['num_paragraphs']}; lower nth_paragraph"
        )
    return given


def _remedy(name: str, form: type, value: object) -> str:
    """Say how to mend an argument; "" if it is good."""
    if form is int:
        number = type(value) in (int, float)
        least = 1 if name == "nth_paragraph" else 0
        if not (number and value >= least and value % 1 == 0):
            return f"write a whole number, {least} or more"
    elif form == list[str]:
        good = isinstance(value, list) and value
        if not good or not all(
            isinstance(v, str) and v.strip() for v in value
        ):
            return 'write a list of words, such as ["sun", "rain"]'
    elif not isinstance(value, str) or not value.strip():
        return "write a text"
    elif name.endswith("relation") and value not in RELATIONS:
        return f"write one of {RELATIONS}"
    elif name == "letter" and len(value.strip()) != 1:
        return "write one character"
    return ""


def follows(kind: str, answer: str, /, **kwargs: object) -> bool:
    """Say whether an answer, as it is, follows one instruction.

    An empty answer follows nothing.

    >>> follows("keywords:frequency", "Rain, rain.", keyword="rain",
    ...     frequency=2, relation="at least")
    True

    Raises ValueError for a kind that is unknown or in `UNCHECKED`, and for
    kwargs that it lacks or cannot use.
    """
    return _follows(kind, answer, _arguments(kind, kwargs))


def _follows(kind: str, answer: str, arguments: dict) -> bool:
    return bool(answer.strip()) and CHECKERS[kind](answer, **arguments)


def variants(answer: str) -> list[str]:
    """Return the eight forms in which the loose verdict tries an answer.

    Whole, without its first line, its last, or both; each as it is and
    without asterisks (evaluation_lib.py of the reference).

    >>> variants("Sure:\\n*Yes.*")[1:6]
    ['Sure:\\nYes.', '*Yes.*', 'Yes.', 'Sure:', 'Sure:']
    """
    lines = answer.split("\n")
    cut = [lines[1:], lines[:-1], lines[1:-1]]
    texts = [answer, *("\n".join(each).strip() for each in cut)]
    return [form for text in texts for form in (text, text.replace("*", ""))]


def problems_of(row: dict) -> list[str]:
    """Say what is wrong with a row of instructions, one remedy each.

    >>> problems_of({"prompt": "Hi", "instruction_id_list":
    ...     ["keywords:existence"], "kwargs": [{}]})
    ["keywords:existence lacks ['keywords']; add it to its kwargs"]
    """
    return _checked(row)[0]


def _checked(row: dict) -> tuple[list[str], list[dict]]:
    """Return a row's problems, and each kind's arguments if it has none."""
    kinds, kwargs = row.get("instruction_id_list"), row.get("kwargs")
    said, arguments = [], []
    if not isinstance(row.get("prompt"), str):
        said = ["prompt is no text; write what was asked"]
    elif not isinstance(kinds, list) or not kinds:
        said = ["instruction_id_list is no list of kinds; name at least one"]
    elif not isinstance(kwargs, list) or len(kwargs) != len(kinds):
        said = [f"kwargs: write a list of {len(kinds)}, one for each kind"]
    if said:
        return said, []
    for kind, given in zip(kinds, kwargs, strict=True):
        try:
            if not isinstance(kind, str) or not isinstance(given, dict):
                raise ValueError(
                    f"{kind!r}, {given!r}: write a kind and an object"
                )
            arguments.append(
                {} if kind in UNCHECKED else _arguments(kind, given)
            )
        except ValueError as error:
            said.append(str(error))
    return said, arguments


def verdicts(row: dict, answer: str) -> dict[str, list[bool | None]]:
    """Say which of a row's instructions an answer follows.

    `strict` and `loose` hold one verdict an instruction, None for the kinds
    in `UNCHECKED`. Loose: one of the answer's `variants` is enough.

    >>> verdicts({"prompt": "Hi", "instruction_id_list":
    ...     ["startend:quotation"], "kwargs": [{}]}, 'Sure:\\n"Hello"')
    {'strict': [False], 'loose': [True]}

    Raises ValueError naming the row and what is wrong with it.
    """
    said, arguments = _checked(row)
    if said:
        name = row.get("key", row.get("id", str(row.get("prompt"))[:40]))
        raise ValueError(f"row {name!r}: {'; '.join(said)}")
    strict, loose, forms = [], [], variants(answer)
    for kind, given in zip(row["instruction_id_list"], arguments, strict=True):
        if kind in UNCHECKED:
            found = [None]
        else:
            found = [_follows(kind, form, given) for form in forms]
        strict.append(found[0])
        loose.append(None if None in found else any(found))
    return {"strict": strict, "loose": loose}


def accuracy(rows: Sequence[dict], answers: Sequence[str]) -> dict:
    """Measure how well n answers follow the instructions of n rows.

    `prompt` counts a row as followed if all of its instructions are; rows
    with one that cannot be checked are left out there, though not their
    other instructions from `instruction` and `kinds`. Each of these is
    {"count", "strict", "loose"}, the latter shares from 0 to 1 (None of
    nothing). `unchecked` counts the kinds that were not, `left_out` the rows
    with one.

    Raises ValueError as `verdicts` does, and if the lengths differ.
    """
    prompts, kinds, unchecked = _counted(rows, answers)
    return {
        "prompt": _shares(prompts),
        "instruction": _shares([p for each in kinds.values() for p in each]),
        "kinds": {kind: _shares(each) for kind, each in kinds.items()},
        "unchecked": unchecked,
        "left_out": len(rows) - len(prompts),
    }


class _Verdict(NamedTuple):
    prompt: str
    strict: bool
    loose: bool


def _counted(
    rows: Sequence[dict], answers: Sequence[str]
) -> tuple[list[_Verdict], dict[str, list[_Verdict]], dict[str, int]]:
    """Return the prompts' verdicts, each kind's, and what was unchecked."""
    if len(rows) != len(answers) or not rows:
        raise ValueError(
            f"{len(answers)} answers for {len(rows)} rows: give one answer "
            "a row, and at least one"
        )
    prompts, kinds, unchecked = [], {}, Counter()
    for row, answer in zip(rows, answers, strict=True):
        found = verdicts(row, answer)
        for kind, strict, loose in zip(
            row["instruction_id_list"],
            found["strict"],
            found["loose"],
            strict=True,
        ):
            if strict is None:
                unchecked[kind] += 1
            else:
                one = _Verdict(row["prompt"], strict, loose)
                kinds.setdefault(kind, []).append(one)
        if None not in found["strict"]:
            both = all(found["strict"]), all(found["loose"])
            prompts.append(_Verdict(row["prompt"], *both))
    return (
        prompts,
        dict(sorted(kinds.items())),
        dict(sorted(unchecked.items())),
    )


def _shares(found: Sequence[_Verdict]) -> dict:
    count = len(found)
    strict, loose = (
        sum(values) / count if count else None
        for values in (
            [each.strict for each in found],
            [each.loose for each in found],
        )
    )
    return {"count": count, "strict": strict, "loose": loose}


# python -m instructft.verifiable


def _main(words: list[str]) -> int:
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m instructft.verifiable",
        description=(
            "Count how many instructions the answers follow. Behind each "
            "share stands its 95 % interval: Wilson's, and for all "
            "instructions a bootstrap's that draws whole prompts."
        ),
    )
    parser.add_argument(
        "file",
        type=Path,
        help="JSONL: prompt, instruction_id_list, kwargs, response",
    )
    parser.add_argument(
        "--responses",
        type=Path,
        metavar="FILE",
        help="JSONL of prompt and response, if FILE holds no responses",
    )
    asked = parser.parse_args(words)
    try:
        rows, answers = _answered(asked.file, asked.responses)
        print(_table(*_counted(rows, answers), len(rows)))
    except (BadRows, OSError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _answered(
    path: Path, responses: Path | None
) -> tuple[list[dict], list[str]]:
    answers: dict[str, str] = {}

    def check_response(row: dict) -> list[str]:
        prompt, answer = row.get("prompt"), row.get("response")
        if not isinstance(prompt, str) or not isinstance(answer, str):
            return ["write two texts, prompt and response ('' for none)"]
        if answers.setdefault(prompt, answer) != answer:
            return ["another response to a prompt before; keep one of them"]
        return []

    def check(row: dict) -> list[str]:
        said = problems_of(row)
        prompt = row.get("prompt")
        if responses and isinstance(prompt, str) and prompt not in answers:
            return [
                *said,
                f"its prompt has no response in {responses}; add it",
            ]
        if not responses and not isinstance(row.get("response"), str):
            return [*said, "response is no text; add it, or give --responses"]
        return said

    if responses:
        read_rows(responses, check_response)
    rows = read_rows(path, check)
    if not rows:
        raise ValueError(f"{path} is empty; write one row a line")
    if responses:
        return rows, [answers[row["prompt"]] for row in rows]
    return rows, [row["response"] for row in rows]


def _table(
    prompts: list[_Verdict],
    kinds: dict[str, list[_Verdict]],
    unchecked: dict[str, int],
    rows: int,
) -> str:
    def line(name: str, found: list[_Verdict], ends=_wilson) -> str:
        said = f"{name:45}{len(found):>6,}"
        for way in ("strict", "loose"):
            values = [getattr(each, way) for each in found]
            share = f"{sum(values) / len(values):.1%}" if values else "-"
            said += f"{share:>9}{ends(values, found):>16}"
        return said

    head = f"{'':45}{'count':>6}"
    head += "".join(
        f"{w:>9}{'95 % interval':>16}" for w in ("strict", "loose")
    )
    every = [one for each in kinds.values() for one in each]
    left_out = rows - len(prompts)
    return "\n".join(
        [
            head,
            line("prompts", prompts),
            line("instructions", every, _drawn),
            *(line(*each) for each in kinds.items()),
            *(
                f"not checked: {count:,} x {kind}, which {UNCHECKED[kind]}"
                for kind, count in unchecked.items()
            ),
            *([f"prompts left out for that: {left_out:,}"] * bool(left_out)),
        ]
    )


def _wilson(values: list[bool], found: list[_Verdict]) -> str:
    if not values:
        return "-"
    return _ends(interval(sum(values) / len(values), len(values)))


def _drawn(values: list[bool], found: list[_Verdict]) -> str:
    names = [each.prompt for each in found]
    count = len(set(names))
    if values and len(set(values)) == 1:
        # nothing to draw from: as if each prompt had one instruction
        return _ends(interval(float(values[0]), count))
    return _ends(bootstrap(values, names)) if count > 1 else "-"


def _ends(ends: tuple[float, float]) -> str:
    low, high = (100 * end for end in ends)
    return f"{low:.1f} to {high:.1f}"


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
