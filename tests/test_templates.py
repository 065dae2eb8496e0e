"""P3 and Flan: the very texts that their sources would have made."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from instructft import templates
from instructft.instance import write_rows
from instructft.sandbox import TemplateError
from instructft.sources import annotated, vader
from instructft.templates import (
    Template,
    few_shot,
    fill,
    is_inverted,
    leaks,
    mixing_rates,
    options_text,
    p3,
    read_patterns,
    render,
    round_robin,
    without_options,
)

PATTERNS = Path(__file__).parents[1] / "data/patterns/patterns.json"
PARITY = Path(__file__).parents[2] / "shared/parity/p3_ag_news"
NEWS = ["World politics", "Sports", "Business", "Science and technology"]
PAIRS = [(f"{i}: {{question}}\n{{options_}}", "{answer}") for i in range(3)]
ROWS = [
    {"question": f"q{i}", "options": ["yes", "no"], "answer": "yes"}
    for i in range(8)
]


@pytest.fixture(scope="module")
def published():
    """All of P3's templates; skips where nobody fetched the archive."""
    try:
        return p3()
    except FileNotFoundError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def template(jinja, choices=None, name="mine"):
    return Template("mine", "0", name, jinja, choices, True, False)


# --- P3 -------------------------------------------------------------------


def test_every_published_template_parses(published):
    assert len(published) == 2085
    assert len({each.dataset for each in published}) == 279
    assert sum(each.original_task is True for each in published) == 1535
    assert sum(bool(each.answer_choices) for each in published) == 1145


def test_every_published_template_is_accepted(published):
    # no row: all are compiled, none is rendered
    assert list(render(published, [])) == []
    assert list(render(published, [], truncate=False)) == []


def test_names_nearby(published):
    with pytest.raises(KeyError, match="ag_news"):
        p3("agnews")
    assert {each.dataset for each in p3("super_glue/rte")} == {
        "super_glue/rte"
    }


def test_published_rows_are_rendered_again(published):
    """Rows of another project's P3, their source rows recovered."""
    if not PARITY.is_dir():
        pytest.skip(f"{PARITY} is not here")
    wanted = {
        path.stem.removeprefix("ag_news_"): [
            json.loads(line) for line in path.open(encoding="utf-8")
        ]
        for path in PARITY.glob("*.jsonl")
    }
    asked = " \nWhat label best describes this news article?"
    rows = [
        {
            "text": row["prompt"].split(asked)[0],
            "label": NEWS.index(row["completion"].split("<|")[0].strip()),
        }
        for row in wanted["classify"]
    ]
    seen = Counter()
    for made in render(p3("ag_news"), rows, truncate=False):
        row = wanted[made["template"]][made["row"]]
        assert made["prompt"] == row["prompt"].strip()
        completion = row["completion"].removesuffix("<|endoftext|>")
        assert made["completion"] == completion.strip()
        seen[made["template"]] += 1
    assert seen == Counter(dict.fromkeys(wanted, 200))


def test_social_iqa_through_its_six_templates(published):
    rows = annotated("evals/social_iqa")
    assert len(rows) == 2224
    assert Counter(row["label"] for row in rows) == {
        "1": 720,
        "2": 754,
        "3": 750,
    }
    assert all(row["question"].count("?") == 1 for row in rows)
    assert max(len(row["question"]) for row in rows) < 120
    made = list(render(p3("social_i_qa"), rows))
    assert len(made) == 6 * 2224
    assert not [each for each in made if "problem" in each]


def test_film_reviews_through_rotten_tomatoes_ten_templates(published):
    rows = [
        {"text": row["text"], "label": int(row["rating"] > 0)}
        for row in vader("movie")
        if abs(row["rating"]) >= 0.5
    ]
    assert len(rows) == 10_072
    made = Counter()
    for each in render(p3("rotten_tomatoes"), rows):
        assert "problem" not in each
        made[each["template"]] += 1
    assert len(made) == 10 and set(made.values()) == {10_072}


def test_a_row_that_does_not_fit_says_why():
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}, {}]
    made = list(
        render(
            [template("{% if label %}{{ text }} ||| {{ label }}{% endif %}")],
            rows,
        )
    )
    assert made[0] == {
        "template": "mine",
        "row": 0,
        "prompt": "a",
        "completion": "1",
    }
    for other in made[1:]:
        assert other["problem"] == "gave 1 part(s), not two"
        assert other["prompt"] == other["completion"] == ""


def test_long_variables_are_cut_as_in_p3():
    text = "word " * 1000
    [whole, cut] = [
        next(render([template("{{ text }} ||| x")], [{"text": text}], cut))
        for cut in (False, True)
    ]
    assert whole["prompt"] == text.strip()
    assert len(cut["prompt"]) <= 2048 and cut["prompt"].endswith("word...")


def test_a_refused_template_is_named_before_any_row():
    def rows():
        raise AssertionError("no row may be read")
        yield

    bad = template("{% include 'x' %} ||| y", name="the bad one")
    with pytest.raises(TemplateError, match="mine, the bad one: .*include"):
        list(render([template("{{ a }} ||| b"), bad], rows()))


def test_faster_than_compiling_for_each_row(published):
    """promptsource compiles each template again for each row."""
    from jinja2 import BaseLoader, Environment

    news = p3("ag_news")
    rows = [{"text": f"News {i}. " * 20, "label": i % 4} for i in range(300)]
    env = Environment(loader=BaseLoader)
    start = time.process_time()
    theirs = []
    for row in rows[:30]:
        for each in news:
            jinja = each.jinja.replace("}}", " | string | truncate(2048) }}")
            choices = env.from_string(each.answer_choices).render(**row)
            listed = [c.strip() for c in choices.split("|||")]
            text = env.from_string(jinja).render(**row, answer_choices=listed)
            theirs.append([part.strip() for part in text.split("|||")])
    slow = (time.process_time() - start) / len(theirs)
    start = time.monotonic()
    ours = [[m["prompt"], m["completion"]] for m in render(news, rows)]
    fast = (time.monotonic() - start) / len(ours)
    assert ours[: len(theirs)] == theirs
    assert slow > 5 * fast, f"{1 / slow:.0f} and {1 / fast:.0f} a second"


# --- Flan -----------------------------------------------------------------


def test_fill_as_flan_does():
    row = {"a": "{b}", "b": "x", "n": 3, "f": 0.5, "yes": True}
    assert fill("{a} {b}", row) == "{b} x"  # what is filled in stays
    assert fill("{n} {f} {yes}", row) == "3 0.500000 true"
    assert fill("{ a } {a-b} {{a}} }{", row) == "{ a } {a-b} {{b}} }{"
    assert fill("", row) == ""
    with pytest.raises(KeyError, match="no field 'c'"):
        fill("{c}", row)


def test_options():
    assert fill("{options_}", ROWS[0]) == "OPTIONS:\n- yes\n- no"
    assert fill("{options_}", {"options_": "own"}) == "own"
    assert options_text(["one"]) == "OPTIONS:\n- one"
    assert without_options("{q}\n\n{options_str}") == "{q}"
    assert is_inverted(("Ask for {answer}.", "{question}"))
    assert not is_inverted(PAIRS[0])


def test_options_with_marks():
    assert options_text(["x", "y"], "Pick one:", "AB") == (
        "Pick one:\nA x\nB y"
    )
    with pytest.raises(ValueError, match="1 marks for 2 options"):
        options_text(["x", "y"], marks="A")


def made(*pairs, template="t"):
    """Rendered rows of a template: pairs of prompt and completion."""
    keys = ("prompt", "completion")
    return [
        {"template": template, "row": row} | dict(zip(keys, pair, strict=True))
        for row, pair in enumerate(pairs)
    ]


@pytest.mark.parametrize(
    ("rows", "flags"),
    [
        # options, and the template's own words, stand in every prompt
        ([("Fine. yes or no?", "yes"), ("Bad. Yes or no?", "no")], [0, 0]),
        ([("The same or not the same?", "same"), ("The same?", "no")], [1, 0]),
        ([("A yes: yes or no?", "yes"), ("A no: yes or no?", "no")], [1, 1]),
        # part of a word is not the word
        ([("Is it noon?", "no"), ("Is it night?", "yes")], [0, 0]),
        ([("A cat, A or B?", "A"), ("a dog, A or B?", "B")], [1, 0]),
        ([("Nothing", ""), ("", "x")], [0, 0]),
        ([], []),
    ],
)
def test_leaks(rows, flags):
    assert leaks(made(*rows)) == [bool(flag) for flag in flags]


def test_leaks_among_a_rows_own_options():
    rows = made(
        ("Left?\n- a red bus\n- a tram", "a tram"),
        ("A tin. Left?\n- a tin\n- a box", "a tin"),
    )
    assert leaks(rows) == [True, True]
    options = [["a red bus", "a tram"], ["a tin", "a box"]]
    assert leaks(rows, options) == [False, True]


def test_each_template_has_its_own_answers():
    one = made(("A no: no?", "no"), ("Yes: no?", "yes"), template=1)
    two = made(("no", "no no"), ("yes", "yes yes"), template=2)
    assert leaks(one + two) == [True, True, False, False]


def test_leaks_where_there_is_nothing_to_compare():
    one_answer = [("A good film: good or bad?", "good")] * 3
    assert leaks(made(*one_answer)) == [False] * 3
    rows = [*made(("Good or bad?", "good"), ("Good or bad?", "bad"))]
    rows.append(rows[0] | {"prompt": "", "completion": "", "problem": "x"})
    assert leaks(rows) == [False] * 3


def test_leaks_of_an_answer_within_a_sentence():
    rows = made(("In: yes. Is it?", "It is yes."), ("In: no.", "It is no."))
    assert leaks(rows) == [False, False]
    answers = [{"answer": "yes"}, {"answer": "no"}]
    rows = [row | more for row, more in zip(rows, answers, strict=True)]
    assert leaks(rows) == [True, True]


def test_leaks_in_a_script_without_spaces():
    rows = made(("这是好的吗", "好"), ("这是的吗", "坏"))
    assert leaks(rows) == [True, False]


def test_round_robin_drops_an_unfinished_round():
    made = list(round_robin(PAIRS, iter(ROWS)))
    assert [(m["row"], m["template"]) for m in made] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 0),
        (4, 1),
        (5, 2),
    ]
    assert made[4]["prompt"] == "1: q4\nOPTIONS:\n- yes\n- no"
    assert made[4]["completion"] == "yes"
    assert len(list(round_robin(PAIRS, ROWS, whole=False))) == 8
    with pytest.raises(KeyError, match="row 1, pattern 1: .* 'question'"):
        list(round_robin(PAIRS, [ROWS[0], {"answer": ""}, ROWS[2]]))


def test_few_shot_as_seqio_joins_it():
    shots = [
        {"prompt": "How many states?", "completion": "50"},
        {"prompt": "How many cents?", "completion": "100"},
    ]
    asked = {"prompt": "Who?", "completion": "John", "row": 3}
    # Flan 2021's marks, and the example in seqio's own docstring
    assert few_shot(shots, asked, "0 ", " X 1 ", " X ") == {
        "prompt": "0 How many states? X 1 50 X 0 How many cents? X 1 100 X "
        "0 Who? X 1",
        "completion": "John",
        "row": 3,
    }
    assert few_shot([], asked)["prompt"] == "Who?"
    assert asked["prompt"] == "Who?"


@pytest.mark.parametrize("most, kept", [(0, 0), (7, 0), (8, 1), (20, 2)])
def test_shots_that_do_not_fit_are_left_out(most, kept):
    shots = [{"prompt": "a b c", "completion": "d"}] * 2
    asked = {"prompt": "e f g h", "completion": "i"}
    found = templates.that_fit(shots, asked, most, lambda t: len(t.split()))
    assert found == shots[:kept]


def test_mixing_rates_match_the_formula():
    sizes = {"a": 10, "b": 3000, "c": 3001, "d": 1_000_000}
    assert mixing_rates(sizes) == {
        "a": 10 / 9010,
        "b": 3000 / 9010,
        "c": 3000 / 9010,
        "d": 3000 / 9010,
    }
    assert mixing_rates(sizes, cap=1) == dict.fromkeys(sizes, 0.25)
    assert sum(mixing_rates(sizes, 10**9).values()) == pytest.approx(1)
    with pytest.raises(ValueError, match="no rows"):
        mixing_rates({"a": 0})


def test_rates_of_2022():
    assert sum(templates.FLAN_2022.values()) == pytest.approx(1)
    assert set(templates.FLAN_2022) == set(templates.CAPS_2022)


def test_our_patterns():
    sets = read_patterns(PATTERNS)
    sizes = {"unseen": 5, "inverted": 3, "cot": 5}
    for task, pairs in sets.items():
        kind = task.rpartition("_")[2]
        assert len(pairs) == sizes.get(kind, 10), task
        assert len(set(pairs)) == len(pairs)
        for pair in pairs:
            assert is_inverted(pair) == (kind == "inverted"), pair
            assert all(part == part.strip() for part in pair)
            asked = without_options(pair[0])
            assert asked and "options" not in asked
    assert sum(map(len, sets.values())) == 173
    assert sum(kind.rpartition("_")[2] not in sizes for kind in sets) == 12


@pytest.mark.parametrize("form", ["json", "py"])
def test_pattern_files(tmp_path, form):
    path = tmp_path / f"patterns.{form}"
    sets = {"nli": PAIRS, "qa": PAIRS[:1]}
    text = json.dumps(sets) if form == "json" else f"x = 1\nPATTERNS = {sets}"
    path.write_text(text)
    assert read_patterns(path) == sets
    text = json.dumps(PAIRS) if form == "json" else f"PATTERNS = {PAIRS}"
    path.write_text(text)
    assert read_patterns(path) == {"patterns": PAIRS}


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.json", "{"),
        ("a.json", '{"nli": [["one"]]}'),
        ("a.json", '{"nli": [["one", 2]]}'),
        ("a.json", '{"nli": ["ab"]}'),
        ("a.json", '{"nli": [{"input": "a", "target": "b"}]}'),
        ("a.json", '{"nli": []}'),
        ("a.json", '{"nli": "ten"}'),
        ("a.json", "{}"),
        ("a.json", '"nli"'),
        ("a.json", "\udce4"),
        ("a.py", "PATTERNS = dict(a=1)"),
        ("a.py", "OTHER = {}"),
        ("a.py", "PATTERNS = {'a': open('x')}"),
    ],
)
def test_bad_pattern_files(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, "utf-8", "surrogateescape")
    with pytest.raises(ValueError, match=f"{name}.*write "):
        read_patterns(path)


# --- the command ----------------------------------------------------------


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "instructft.templates", "render", *words],
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def test_command_p3(published, tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"text": "Ünder way", "label": 1}, {"text": "no label"}])
    done = command("--p3", "ag_news", "--rows", str(path))
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert [list(row) for row in made] == [
        ["template", "prompt", "completion"]
    ] * 7
    assert {row["completion"] for row in made} == {"Sports", "Athlete"}
    assert done.stderr.count("row 1, ") == 7
    assert "row 1, classify: the completion is empty" in done.stderr
    assert done.stderr.endswith("7 rendered, 7 not\n")


def test_command_flan(tmp_path):
    rows, patterns = tmp_path / "rows.jsonl", tmp_path / "patterns.json"
    write_rows(rows, ROWS)
    patterns.write_text(json.dumps({"nli": PAIRS, "qa": PAIRS[:1]}))
    shared = ["--flan", str(patterns), "--rows", str(rows)]
    done = command(*shared, "--task", "nli")
    assert done.returncode == 0
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(made) == 24 and made[1]["template"] == "nli-1"
    done = command(*shared)
    assert done.returncode == 1 and "choose --task of" in done.stderr


def test_command_names_what_is_wrong(published, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": 0}\n{"text":\n')
    done = command("--p3", "ag_news", "--rows", str(path))
    assert done.returncode == 1 and "rows.jsonl:2: not JSON" in done.stderr
    done = command("--p3", "agnews", "--rows", str(path))
    assert done.returncode == 1 and "near: ['ag_news'" in done.stderr
    done = command("--p3", "ag_news", "--rows", str(tmp_path / "none"))
    assert done.returncode == 1 and "none" in done.stderr
    done = command(
        "--p3", "ag_news", "--rows", str(path), "--template", "none"
    )
    assert done.returncode == 1 and "'which_section'" in done.stderr
    assert "Traceback" not in done.stderr
