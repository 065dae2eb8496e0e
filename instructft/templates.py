"""Rows of an annotated dataset become instances: P3's and Flan's templates.

`python -m instructft.templates render --p3 ag_news --rows rows.jsonl`
writes {template, prompt, completion} lines; `--flan FILE` takes patterns.
"""

import ast
import itertools
import json
import re
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from instructft.sandbox import Sandbox, TemplateError
from instructft.sources import archive

# P3


class Template(NamedTuple):
    """One of promptsource's templates, as published."""

    dataset: str  # "ag_news", "super_glue/rte"
    id: str
    name: str
    jinja: str
    answer_choices: str | None
    original_task: bool | None  # does it ask for what the dataset is for?
    choices_in_prompt: bool | None


def p3(dataset: str | None = None) -> list[Template]:
    """Return the templates published for a dataset, or all 2,085.

    Read from promptsource 0.2.3 (Apache-2.0): Bach et al., "PromptSource",
    ACL 2022. Raises KeyError with the nearest names for an unknown dataset;
    FileNotFoundError where the archive was not fetched.
    """
    found, names = [], []
    inner = re.compile(r"[^/]+/promptsource/templates/(.+)/templates\.yaml")
    with tarfile.open(archive("promptsource")) as packed:
        for member in packed:
            match = inner.fullmatch(member.name)
            if not match:
                continue
            names.append(match[1])
            if dataset in (None, match[1]):
                text = packed.extractfile(member).read().decode("utf-8")
                found += _parsed(match[1], text)
    if dataset is not None and not found:
        from difflib import get_close_matches

        near = get_close_matches(dataset, names, 5, 0.4)
        raise KeyError(f"no templates for {dataset!r}; near: {near}")
    return found


def _parsed(dataset: str, text: str) -> list[Template]:
    """Parse a templates.yaml; its tags name plain records here."""
    import yaml

    class Loader(yaml.CSafeLoader):
        pass

    def record(loader, node):
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor("!Template", record)
    Loader.add_constructor("!TemplateMetadata", record)
    templates = []
    for number, each in yaml.load(text, Loader)["templates"].items():
        metadata = each.get("metadata") or {}
        templates.append(
            Template(
                dataset,
                number,
                each["name"],
                each["jinja"],
                each.get("answer_choices"),
                metadata.get("original_task"),
                metadata.get("choices_in_prompt"),
            )
        )
    return templates


def render(
    templates: Sequence[Template],
    rows: Iterable[dict],
    truncate: bool = True,
    seconds: float = 10,
    seed: int = 0,
) -> Iterator[dict]:
    """Render every template over every row, row by row.

    Yields {"template": name, "row": index, "prompt": ..., "completion":
    ...}; where a template does not fit a row (an `if` of it is not met, a
    field is missing), "problem" says why and the two are empty. As in P3,
    `truncate` cuts each variable at 2,048 characters. `seconds` bounds 64
    rows; `seed` is for templates that choose at random.

    Raises TemplateError, before any row, for a template that is refused.
    """
    with Sandbox(seconds, seed) as sandbox:
        for template in templates:
            source = template.jinja
            if truncate:
                source = source.replace("}}", " | string | truncate(2048) }}")
            try:
                sandbox.add(source, template.answer_choices)
            except TemplateError as error:
                raise TemplateError(
                    f"{template.dataset}, {template.name}: {error}"
                ) from None
        for index, found in enumerate(sandbox.render(rows)):
            for template, parts in zip(templates, found, strict=True):
                made = {"template": template.name, "row": index}
                problem = prompt = completion = ""
                if isinstance(parts, TemplateError):
                    problem = str(parts)
                elif len(parts) != 2:
                    problem = f"gave {len(parts)} part(s), not two"
                elif not all(parts):  # P3 leaves such rows out, too
                    which = "completion" if parts[0] else "prompt"
                    problem = f"the {which} is empty"
                else:
                    prompt, completion = parts
                made |= {"prompt": prompt, "completion": completion}
                yield made | ({"problem": problem} if problem else {})


# Flan

FIELD = re.compile(r"(\{\w*\})")  # other braces are text

# The shares of Flan 2022's parts, and the most rows a task of each counts
# for (google-research/FLAN, flan/v2; Longpre et al. 2023).
FLAN_2022 = {"flan": 0.4, "t0": 0.32, "niv2": 0.2, "cot": 0.05, "dialog": 0.03}
CAPS_2022 = {
    "flan": 30_000,
    "t0": 20_000,
    "niv2": 5_000,
    "cot": 100_000,
    "dialog": 200_000,
}


def options_text(
    options: Sequence[str],
    head: str = "OPTIONS:",
    marks: Sequence[str] | None = None,
) -> str:
    r"""List the options as Flan does (flan/preprocessors.py).

    Flan 2022 draws another head and other marks for some rows; a mark may
    then be the answer (flan/v2/preprocessors.py).

    >>> options_text(["yes", "no"])
    'OPTIONS:\n- yes\n- no'
    >>> options_text(["yes", "no"], "Choose:", ["(a)", "(b)"])
    'Choose:\n(a) yes\n(b) no'

    Raises ValueError if there are fewer marks than options.
    """
    marks = ["-"] * len(options) if marks is None else marks
    if len(marks) < len(options):
        raise ValueError(f"{len(marks)} marks for {len(options)} options")
    lines = [
        f"{mark} {text}" for mark, text in zip(marks, options, strict=False)
    ]
    return "\n".join([head, *lines])


def fill(pattern: str, row: dict) -> str:
    """Put a row's fields into a pattern, as Flan's formatter does.

    `{options_}` and `{options_str}` are made of the row's `options`, unless
    the row has them.

    >>> fill("Is {this} a {noun}? {", {"this": "cat", "noun": "noun"})
    'Is cat a noun? {'

    Raises KeyError naming a field that the row lacks.
    """
    return "".join(
        _value(part[1:-1], row) if FIELD.fullmatch(part) else part
        for part in FIELD.split(pattern)
    )


def _value(name: str, row: dict) -> str:
    if name in row:
        value = row[name]
    elif name in ("options_", "options_str") and "options" in row:
        value = options_text(row["options"])
    else:
        raise KeyError(f"the row has no field {name!r}, only {list(row)}")
    if isinstance(value, bool):  # as tensorflow writes them
        return str(value).lower()
    return f"{value:f}" if isinstance(value, float) else str(value)


def without_options(pattern: str) -> str:
    r"""Take the options out of an input pattern (flan/utils.py).

    >>> without_options("Is it true?\n{options_}")
    'Is it true?'
    """
    for name in ("{options_}", "{options_str}"):
        pattern = pattern.replace(name, "")
    return pattern.strip()


def is_inverted(patterns: tuple[str, str], answer: str = "answer") -> bool:
    """Say whether an (input, target) pair gives the answer and asks back.

    >>> is_inverted(("Write a {answer} review.", "{text}"))
    True
    """
    return f"{{{answer}}}" in patterns[0]


def round_robin(
    patterns: Sequence[tuple[str, str]],
    rows: Iterable[dict],
    whole: bool = True,
) -> Iterator[dict]:
    """Give row i pattern i mod n, n patterns in turn, as Flan 2021 does.

    Yields {"template": number, "row": index, "prompt", "completion"}. Like
    the source, leaves out the rows of a last round that is not full, unless
    `whole` is False. Raises KeyError naming row and field.
    """
    size = len(patterns)
    for start, batch in enumerate(_batches(rows, size)):
        if len(batch) < size and whole:
            return
        for number, row in enumerate(batch):
            index = start * size + number
            try:
                prompt, completion = (
                    fill(part, row) for part in patterns[number]
                )
            except KeyError as error:
                raise KeyError(
                    f"row {index}, pattern {number}: {error.args[0]}"
                ) from None
            yield {
                "template": number,
                "row": index,
                "prompt": prompt,
                "completion": completion,
            }


def _batches(rows: Iterable[dict], size: int) -> Iterator[list[dict]]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, size)):
        yield batch


def few_shot(
    shots: Sequence[dict],
    asked: dict,
    question: str = "",
    answer: str = "\n",
    apart: str = "\n\n",
) -> dict:
    r"""Put solved rows before a question, each {"prompt", "completion"}.

    As seqio's fewshot_preprocessor joins them: `question` stands before
    every prompt, `answer` after it, `apart` after a completion, and the
    whole does not end in white space that `answer` ends in.

    >>> few_shot([{"prompt": "1+1", "completion": "2"}],
    ...     {"prompt": "2+2", "completion": "4"}, "Q: ", "\nA: ")
    {'prompt': 'Q: 1+1\nA: 2\n\nQ: 2+2\nA:', 'completion': '4'}
    """
    solved = "".join(
        question + shot["prompt"] + answer + shot["completion"] + apart
        for shot in shots
    )
    return asked | {
        "prompt": solved + question + asked["prompt"] + answer.rstrip()
    }


def that_fit(
    shots: Sequence[dict],
    asked: dict,
    most: int,
    count: Callable[[str], int],
) -> list[dict]:
    """Keep the first shots that leave room for the question.

    `count` gives a text's tokens. Shots are kept as long as they and the
    asked prompt have `most` tokens or fewer in sum (flan/preprocessors.py,
    prune_fewshot_examples_by_length: Flan 2021 takes 960, 2022 1,920).

    >>> shots = [{"prompt": "a b", "completion": "c"}] * 3
    >>> asked = {"prompt": "d e", "completion": ""}
    >>> len(that_fit(shots, asked, 9, lambda text: len(text.split())))
    2
    """
    room = most - count(asked["prompt"])
    kept = []
    for shot in shots:
        room -= count(shot["prompt"]) + count(shot["completion"])
        if room < 0:
            break
        kept.append(shot)
    return kept


def mixing_rates(sizes: dict[str, int], cap: int = 3000) -> dict[str, float]:
    """Return each task's share: its size, at most `cap`, over the sum.

    Examples-proportional mixing (Raffel et al. 2020), with Flan 2021's cap.

    >>> mixing_rates({"small": 1000, "big": 90_000})
    {'small': 0.25, 'big': 0.75}

    Raises ValueError if no task has a row.
    """
    counted = {task: min(size, cap) for task, size in sizes.items()}
    total = sum(counted.values())
    if total <= 0:
        raise ValueError(f"no rows to mix in {sizes}")
    return {task: count / total for task, count in counted.items()}


def read_patterns(path: str | Path) -> dict[str, list[tuple[str, str]]]:
    """Read Flan's pattern sets: {task: [(input, target), ...]}.

    From JSON, or from a Python file with a literal `PATTERNS` (such as
    FLAN's own flan/templates.py), which is parsed and never executed. One
    bare list of pairs is the set of a task named like the file.
    Raises ValueError naming the file, the task and what is wrong.
    """
    wanted = (
        "write {task: [[input, target], ...]} as JSON, or a literal PATTERNS "
        "in Python"
    )
    try:
        text = Path(path).read_text("utf-8")
        if str(path).endswith(".py"):
            [value] = [
                line.value
                for line in ast.parse(text).body
                if isinstance(line, ast.Assign)
                and getattr(line.targets[0], "id", "") == "PATTERNS"
            ]
            sets = ast.literal_eval(value)
        else:
            sets = json.loads(text)
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"{path}: {error}; {wanted}") from None
    if isinstance(sets, (list, tuple)):
        sets = {Path(path).stem: sets}
    if not isinstance(sets, dict) or not sets:
        raise ValueError(f"{path}: no pattern sets; {wanted}")
    found = {}
    for task, patterns in sets.items():
        if not isinstance(patterns, (list, tuple)) or not patterns:
            raise ValueError(f"{path}: {task}: no patterns; {wanted}")
        for i, pair in enumerate(patterns):
            if (
                not isinstance(pair, (list, tuple))
                or len(pair) != 2
                or not all(isinstance(part, str) for part in pair)
            ):
                raise ValueError(
                    f"{path}: {task}, pattern {i}: {pair!r}; write two "
                    "strings, input and target"
                )
        found[task] = [(asked, answer) for asked, answer in patterns]
    return found


def leaks(
    made: Sequence[dict], options: Sequence[Sequence[str]] | None = None
) -> list[bool]:
    """Say of each rendered row whether its prompt gives the answer away.

    True where the answer (`answer`, where a row has it, else the whole
    completion) stands in the prompt, as whole words, more often than in a
    prompt of the same template with another answer: words of the template
    itself do not count, and rows of one answer alone say nothing.
    `options`, where each row has its own, lists those of row i at i: an
    answer that stands there no more often than another option is not given
    away. One row may be chance, or the task's way (an answer cited from a
    passage); a template that does it in most rows is at fault. At most 100
    other prompts of a template are looked at.

    >>> rows = [("A good film: good or bad?", "good"), ("Good or bad?", "bad")]
    >>> leaks([{"template": 0, "prompt": p, "completion": c} for p, c in rows])
    [True, False]
    """
    answers = [each.get("answer", each["completion"]) for each in made]
    others: dict = {}
    for each, answer in zip(made, answers, strict=True):
        if not each.get("problem"):
            same = others.setdefault(each["template"], [])
            same.append((answer, each["prompt"]))
    usual: dict = {}
    found = []
    for each, answer in zip(made, answers, strict=True):
        times = _occurs(answer, each["prompt"])
        if not times or each.get("problem"):
            found.append(False)
            continue
        key = each["template"], answer
        if key not in usual:
            elsewhere = (
                _occurs(answer, prompt)
                for other, prompt in others[each["template"]]
                if other != answer
            )
            usual[key] = min(itertools.islice(elsewhere, 100), default=times)
        rivals = [
            _occurs(option, each["prompt"])
            for option in (options[each["row"]] if options else ())
            if option != answer
        ]
        found.append(times > max(usual[key], *rivals, 0))
    return found


def _occurs(words: str, text: str) -> int:
    if len(words) > 1:  # an option's letter A is not the article
        words, text = words.casefold(), text.casefold()
    if not words or words not in text:
        return 0
    if not words.isascii():  # scripts without spaces have no such bounds
        return text.count(words)
    return len(re.findall(rf"(?<!\w){re.escape(words)}(?!\w)", text))


# python -m instructft.templates


def _main(words: list[str]) -> int:
    import argparse

    from instructft.instance import BadRows, stream_rows

    parser = argparse.ArgumentParser(
        prog="python -m instructft.templates",
        description="Render templates over rows: lines of JSON on stdout.",
    )
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("render")
    kind = verb.add_mutually_exclusive_group(required=True)
    kind.add_argument("--p3", metavar="DATASET", help="such as ag_news")
    kind.add_argument("--flan", metavar="FILE", help="patterns, .json or .py")
    verb.add_argument("--task", help="of the patterns' file, if it has many")
    verb.add_argument("--rows", required=True, metavar="FILE")
    verb.add_argument("--template", help="this one alone (P3's name)")
    verb.add_argument("--no-truncate", action="store_true")
    verb.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(words)
    written = problems = 0
    try:
        for made in _rendered(asked, stream_rows(asked.rows)):
            if "problem" in made:
                problems += 1
                print(
                    f"{asked.rows}: row {made['row']}, {made['template']}: "
                    f"{made['problem']}",
                    file=sys.stderr,
                )
                continue
            written += 1
            keys = ("template", "prompt", "completion")
            print(json.dumps({key: made[key] for key in keys}))
    except BrokenPipeError:
        return 1
    except (BadRows, KeyError, OSError, ValueError) as error:
        what = error.args[0] if isinstance(error, KeyError) else error
        print(what, file=sys.stderr)
        return 1
    print(f"{written} rendered, {problems} not", file=sys.stderr)
    return 0


def _rendered(asked, rows: Iterable[dict]) -> Iterator[dict]:
    if asked.p3:
        templates = p3(asked.p3)
        if asked.template:
            names = [each.name for each in templates]
            if asked.template not in names:
                raise ValueError(
                    f"{asked.p3} has no template {asked.template!r}, only "
                    f"{names}"
                )
            templates = [t for t in templates if t.name == asked.template]
        yield from render(
            templates, rows, not asked.no_truncate, seed=asked.seed
        )
        return
    sets = read_patterns(asked.flan)
    task = asked.task or next(iter(sets))
    if len(sets) > 1 and not asked.task or task not in sets:
        raise ValueError(f"{asked.flan}: choose --task of {list(sets)}")
    for index, row in enumerate(rows):
        for number, pair in enumerate(sets[task]):
            made = {"template": f"{task}-{number}", "row": index}
            try:
                prompt, completion = (fill(part, row) for part in pair)
            except KeyError as error:
                yield made | {"problem": error.args[0]}
            else:
                yield made | {"prompt": prompt, "completion": completion}


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
