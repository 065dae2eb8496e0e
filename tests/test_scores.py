"""Rules, intervals and a judge: figures that another would find, too."""

import json
import math
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructft import scores, similarity
from instructft.evaluate import _main, interval
from instructft.instance import BadRows, read_rows
from instructft.scores import (
    OUTCOMES,
    RULES,
    bbh,
    bbh_answer,
    bootstrap,
    choice,
    exact,
    field,
    judge,
    last_number,
    number,
    paired,
    score,
    unusable,
)
from instructft.teacher import Reply

PARITY = Path(__file__).parents[2] / "shared/parity"

# --- rules ----------------------------------------------------------------


def test_exact():
    assert exact("yes", " yes\n") == 1
    assert exact("yes.", "yes") == exact("Yes", "yes") == 0


@pytest.mark.parametrize(
    "said", ["(B)", "B)", "B.", "B:", "B", "b", " (b) ", "(B).", "(B)\n"]
)
@pytest.mark.parametrize("target", ["(B)", "B", "b", "(B) Paris", "B. Paris"])
def test_an_option_by_its_letter(said, target):
    assert choice(said, target) == 1
    assert choice(said.replace("B", "A").replace("b", "a"), target) == 0


@pytest.mark.parametrize(
    ("said", "target", "hit"),
    [
        ("yes", "Yes", 1),
        (" Yes.\n", "yes", 1),
        ("not  at\nall", "Not at all", 1),
        ("Paris", "(B) Paris", 1),
        ("(B) Paris.", "(B) Paris", 1),
        ("B: paris", "Paris", 1),
        ("(B) Rome", "(B) Paris", 0),  # letter and text disagree
        ("(A) Paris", "(B) Paris", 0),
        ("(B) Rome", "B", 1),  # the target has a letter only
        ("The answer is B", "B", 0),  # not alone
        ("B or C", "B", 0),
        ("(A) (B)", "(A)", 0),  # another option
        ("A) or B) or C)", "A", 0),
        ("A) or B", "A", 0),
        ("(A) or (B), I think", "(A)", 0),
        ("(A) Paris\n(B)Rome\n(C) Oslo", "A", 0),  # the options again
        ("A. Paris\nB. Rome", "A", 0),
        ("A: Paris B: Rome", "A", 0),
        ("1) Paris 2) Rome", "1", 0),
        ("(A) Paris (B) Rome", "Paris", 0),
        # what is no other option's mark
        ("(B) Paris, so (B)", "B", 1),
        ("(B) John F. Kennedy", "B", 1),
        ("(B) Vitamin C", "B", 1),
        ("(B) f(x) = (3)", "B", 1),
        ("B. It holds, e.g. 3.5 at 12:30", "B", 1),
        ("(A) 1) e4 (B) no", "(A) 1) e4 (B) no", 1),  # texts are compared
        ("Bob", "B", 0),
        ("B", "Bob", 0),
        ("3", "(3)", 1),
        ("12) twelve", "(12)", 1),
        ("3.5", "3", 0),
        ("yes, no", "yes", 0),
        ("Zoë", "ZOË", 1),
        ("", "B", 0),
        ("()", "B", 0),
        ("", "", 0),
    ],
)
def test_an_option_named_alone(said, target, hit):
    assert choice(said, target) == hit


# made in the form of the published chains and answers, which stay there
BBH = [
    ("The ball is out. Out is part of tennis. So the answer is yes.", "yes"),
    ("Ada plays chess.\nCastling is in chess. So the answer is no.", "no"),
    ("So we need \"]\", \")\". So the answer is ] ).", "] )"),
    ("Hence \"ant\" < \"bee\" < \"o'dea\". So the answer is ant bee o'dea.",
     "ant bee o'dea"),
    ("Z = A and B = True and False = False. So the answer is False.", "False"),
    ("(A) is no word.\nThe only edit is (C). So the answer is (C).", "(C)"),
    ("3 + 5 = 8 pears. So the answer is 8.", "8"),
    ("= -9 - 12 = -21. So the answer is -21.", "-21"),
    ("The argument is deductively valid. So the answer is valid.", "valid"),
    ("True", "True"),  # asked without a chain
    ("(D)", "(D)"),
    ("> ) }", "> ) }"),
    ("ant bee cow", "ant bee cow"),
    (" No ", "No"),
    ("So the answer is yes", "yes"),  # no full stop
    ("So the answer is yes.", "yes."),  # nor does the target's count
]  # fmt: skip


@pytest.mark.parametrize(("said", "target"), BBH)
def test_big_bench_hard(said, target):
    assert bbh(said, target) == 1
    assert bbh(said, f"{target} ") == 1
    assert bbh(said, target + "x") == bbh(said, target.swapcase() + "x") == 0


@pytest.mark.parametrize(
    ("said", "target"),
    [
        ("B = not False and True = not False and True = not", "True"),  # cut
        ("The final stack is \"(\". So the answer is empty.", ")"),
        ("So the answer is yes. It may be.", "yes"),  # goes on
        ("So the answer is Yes.", "yes"),
        ("So the answer is (A) whitecake.", "(A)"),
        ("", "yes"),
    ],
)  # fmt: skip
def test_big_bench_hard_misses(said, target):
    assert bbh(said, target) == 0


def test_the_last_answer_counts():
    assert bbh_answer("the answer is no. Wait: the answer is yes.") == "yes"
    assert bbh_answer("the answer is 3.5..") == "3.5."


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("She makes 9 * 2 = $<<9*2=18>>18 a day.\nA: 18", "18"),
        ("#### 18", "18"),
        ("So she sells 1,200 of 13,456 eggs\nA: 90,000", "90000"),
        ("A: 1,234,567", "1234567"),
        ("It costs $1,000.50.", "1000.50"),
        ("A: -129025", "-129025"),
        ("a loss of -$5", "-5"),
        ("a loss of $-5", "-5"),
        ("a loss of −5", "-5"),
        ("16-3", "3"),
        ("(2+3)-4", "4"),
        ("= -3", "-3"),
        ("x=-3.", "-3"),
        ("She pays .75", "0.75"),
        ("0.3", "0.3"),
        ("cut at 5 * 1", "1"),
        ("5 * 1/2 = $<<5*1/2=2.5>>2.5.", "2.5"),
        ("20%", "20"),
        ("1,2,3", "3"),
        ("in 2024, 16 eggs", "16"),
        ("1,2345", "2345"),
        ("room 12, 400 beds", "400"),
        ("eighteen", None),
        ("", None),
        (". , $ -", None),
        # more digits than decimal's 28
        (
            "-1234567890123456789012345678901",
            "-1234567890123456789012345678901",
        ),
    ],
)
def test_the_last_number(text, value):
    assert last_number(text) == (None if value is None else Decimal(value))


def test_numbers_are_compared_by_value():
    assert number("A: 3.0", "3") == number("A: 3,000", "A: 3000") == 1
    assert number("A: 3", "A: 3000") == number("none", "0") == 0
    # floats would call these equal
    assert number("10000000000000001", "10000000000000002") == 0
    with pytest.raises(ValueError, match="no number in the target 'none'"):
        number("18", "none")


@given(value=st.decimals(-(10**9), 10**9, places=2), text=st.text("ab =$\n"))
def test_a_number_is_found_however_it_is_written(value, text):
    assert last_number(f"{text} {value}") == value
    assert last_number(f"7 {text} {value:,}.") == value


def test_several_targets():
    ideal = ["(B)", "Paris"]
    assert score("choice", "paris", ideal) == score("choice", "B", ideal) == 1
    assert score("exact", "b", ideal) == 0
    assert score("rouge_l", "a b", ["c", "a b c"]) == 0.8
    assert score("rouge_l", "a b", "a b c") == similarity.rouge_l(
        "a b", "a b c"
    )
    with pytest.raises(ValueError, match="at least one"):
        score("exact", "", [])
    with pytest.raises(ValueError, match="no rule 'f1': choose one of"):
        score("f1", "a", "a")


TEXTS = st.text("ab(1.) ,$-", max_size=12)


@given(said=TEXTS, target=TEXTS)
@pytest.mark.parametrize("rule", RULES)
def test_a_score_is_a_share(rule, said, target):
    row = {"prediction": said, "target": target}
    if unusable(row, rule):
        return
    assert 0 <= score(rule, said, target) <= 1
    assert score(rule, target, target) == 1


# --- rows -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "rule", "part"),
    [
        ({"target": "a"}, "exact", "prediction is missing: add it, or name"),
        ({"prediction": "a"}, "exact", "target is missing"),
        ({"prediction": None, "target": "a"}, "exact", "prediction is None"),
        ({"prediction": "a", "target": 3}, "exact", "target is int: write a"),
        ({"prediction": "a", "target": []}, "exact", "target is an empty lis"),
        ({"prediction": "a", "target": ["a", 3]}, "bbh", "target is int"),
        ({"prediction": "a", "target": " "}, "bbh", "target is empty"),
        ({"prediction": "a", "target": "a"}, "number", "'a' has no number"),
        ({"prediction": "a", "target": "1/2"}, "number", "'1/2' ends in a fr"),
        ({"prediction": "a", "target": "3 / -4."}, "number", "only -4 would"),
        ({"prediction": "a", "target": "1e5"}, "number", "only 5 would count"),
        ({"prediction": "a", "target": "2.5E-3"}, "number", "write it as a d"),
        ({"prediction": "a", "target": "= 10^6"}, "number", "a power, of whi"),
        ({"prediction": "a", "target": r"\frac{1}{2}"}, "number", "fraction"),
        ({"prediction": "a", "target": "1/2 = 0.5"}, "number", None),
        ({"prediction": "a", "target": "km/h: 5"}, "number", None),
        ({"prediction": "a", "target": " ."}, "bbh", "target is empty"),
        ({"prediction": "a", "target": "猫"}, "rouge_l", "no word to compare"),
        ({"prediction": "a", "target": "."}, "choice", "no word to compare"),
        ({"prediction": "a", "target": "a", "task": 3}, "bbh", "task is int"),
        ({"prediction": "a", "target": "a", "task": "x"}, "exact", None),
        ({"prediction": "", "target": ["a", "b"]}, "exact", None),
        ({"prediction": "", "target": "猫"}, "choice", None),
    ],
)
def test_rows_that_cannot_be_scored(row, rule, part):
    said = unusable(row, rule)
    assert len(said) == bool(part)
    assert not part or part in said[0]


def test_fields_inside_fields():
    row = {"a": {"b.c": 1, "b": {"c": 2}}, "a.d": 3, "e": "text"}
    assert [field(row, n) for n in ("a.b.c", "a.d", "e")] == [1, 3, "text"]
    for name in ("x", "a.x", "e.x", "a.b.c.d"):
        with pytest.raises(KeyError, match=name.split(".")[-1]):
            field(row, name)


# --- the command ----------------------------------------------------------


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_command_scores_by_task(tmp_path, capsys):
    rows = [
        {"task": task, "prediction": f"So the answer is {said}.", "target": t}
        for task, said, t in [
            ("sports", "yes", "yes"),
            ("sports", "no", "yes"),
            ("a longer name", "(A)", "(A)"),
            ("sports", "no", "no"),
        ]
        * 10
    ]
    path = write(tmp_path / "said.jsonl", rows)
    assert _main(["score", path, "--rule", "bbh"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "task            rows  mean    95 % interval"
    assert lines[0] == "a longer name     10  1.0000  0.7225 to 1.0000"
    low, high = interval(20 / 30, 30)
    assert lines[1] == f"sports            30  0.6667  {low:.4f} to {high:.4f}"
    assert lines[2] == "all               40  0.7500  0.5981 to 0.8581"
    assert _main(["score", path, "--rule", "exact"]) == 0
    assert "40  0.0000  0.0000 to 0.0876" in capsys.readouterr().out


def test_only_shares_between_hit_and_miss_are_drawn(tmp_path, capsys):
    rows = [
        {"prediction": said, "target": "a b c"} for said in ("a b", "a b c")
    ]
    path = write(tmp_path / "said.jsonl", rows)
    assert _main(["score", path, "--rule", "rouge_l"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("all       2  0.9000  0.8000 to 1.0000\n")
    write(tmp_path / "said.jsonl", rows[:1])
    assert _main(["score", path, "--rule", "rouge_l"]) == 0
    assert capsys.readouterr().out.endswith("0.8000  one row has none\n")


def test_the_command_takes_other_names(tmp_path, capsys):
    rows = [{"6b": {"solution": "A: 3"}, "ideal": ["3.0", "x 4"]}] * 2
    path = write(tmp_path / "said.jsonl", rows)
    words = ["--prediction", "6b.solution", "--target", "ideal"]
    assert _main(["score", path, "--rule", "number", *words]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1:] == ["all       2  1.0000  0.3424 to 1.0000"]
    write(tmp_path / "said.jsonl", rows[:1])
    assert _main(["score", path, "--rule", "number", *words]) == 0
    assert capsys.readouterr().out.endswith("1.0000  0.2065 to 1.0000\n")


def test_the_command_names_every_bad_line_first(tmp_path, capsys):
    path = tmp_path / "said.jsonl"
    good = json.dumps({"prediction": "a", "target": "a", "task": "x"})
    bad = json.dumps({"prediction": "a", "target": "a"})
    path.write_text(f'{good}\n\n{{"prediction": 3}}\n{bad}\n{{\n{good}\n')
    assert _main(["score", str(path), "--rule", "exact"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "BadRows" in err
    for at, what in (
        (3, "target is missing: add it"),
        (3, "prediction is int: write a string"),
        (4, "some rows have a task and some not"),
        (5, "not JSON"),
    ):
        assert f"{path}:{at}: {what}" in err
    for text in ("", None):
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
        assert _main(["score", str(path), "--rule", "exact"]) == 1
        out, err = capsys.readouterr()
        assert out == "" and str(path) in err
    for words in (
        [],
        ["score", str(path)],
        ["score", str(path), "--rule", "x"],
    ):
        with pytest.raises(SystemExit):
            _main(words)


def test_the_command_by_its_name(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prediction": "B", "target": "(B)"}])
    command = [sys.executable, "-m", "instructft.evaluate", "score", path]
    done = subprocess.run(
        [*command, "--rule", "choice"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "1.0000" in done.stdout


def test_rows_are_read_with_a_check(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"a": 1}, {"a": 2}])
    assert len(read_rows(path, lambda row: [])) == 2
    with pytest.raises(BadRows, match=":2: too much") as error:
        read_rows(path, lambda row: ["too much"] * (row["a"] > 1))
    assert error.value.rows == [{"a": 1}]


# --- published outputs ----------------------------------------------------

SUFFIX = "_few_shot_template_0-255000"


def bbh_files(folder):
    """Each task's outputs and published accuracy, as the repository has them.

    Yields (setting/task, rows, per cent); .json with "outputs", or .jsonl.
    """
    for path in sorted(folder.rglob(f"*{SUFFIX}.json*")):
        task = path.name.split(SUFFIX)[0]
        if path.suffix == ".jsonl":
            if path.with_suffix(".json").is_file():
                continue  # the same rows in their later form
            rows = read_rows(path)
        else:
            rows = json.loads(path.read_text("utf-8"))["outputs"]
        [said] = path.parent.glob(f"{task}{SUFFIX}_eval_metrics.json*")
        yield (
            f"{path.parent.name}/{task}",
            rows,
            json.loads(said.read_text("utf-8"))["accuracy"],
        )


def bbh_differing(folder):
    """The tasks whose accuracy is not the published one, and how many."""
    count, wrong = 0, {}
    for name, rows, published in bbh_files(folder):
        hits = [bbh(row["prediction"], row["target"]) for row in rows]
        ours = 100 * sum(hits) / len(hits)
        count += 1
        if ours != pytest.approx(published, abs=1e-6):
            wrong[name] = ours, published
    return wrong, count


MODELS = {
    "6b_finetuning": 21.68,
    "6b_verification": 39.04,
    "175b_finetuning": 34.72,
    "175b_verification": 56.25,
}


def gsm8k_flags(path):
    """How many flags agree, of how many, and each model's per cent."""
    rows, agree, hits = read_rows(path), 0, Counter()
    for row in rows:
        for name in MODELS:
            ours = number(row[name]["solution"], row["ground_truth"])
            agree += ours == row[name]["is_correct"]
            hits[name] += ours
    shares = {name: round(100 * hits[name] / len(rows), 2) for name in MODELS}
    return agree, len(rows) * len(MODELS), shares


def test_files_in_the_published_forms_are_counted(tmp_path):
    rows = [
        {"input": "Q: Is it?\nA:", "prediction": said, "target": target}
        for said, target in [*BBH[:3], ("cut", "yes")]
    ]
    for setting, newer in (("direct", True), ("cot", False)):
        home = tmp_path / f"code-davinci-002-{setting}"
        home.mkdir()
        old = home / f"web_of_lies{SUFFIX}.jsonl"
        write(old, rows if not newer else rows[:1])
        if newer:
            whole = {"canary": "", "outputs": rows}
            old.with_suffix(".json").write_text(json.dumps(whole))
        write(
            home / f"web_of_lies{SUFFIX}_eval_metrics.jsonl",
            [{"accuracy": 75.0 if newer else 75.1}],
        )
    wrong, count = bbh_differing(tmp_path)
    assert count == 2
    assert wrong == {"code-davinci-002-cot/web_of_lies": (75.0, 75.1)}
    solved = {"is_correct": True, "solution": "9 * 2 = <<9*2=18>>18\nA: 18"}
    missed = {"is_correct": True, "solution": "9 + 2 = <<9+2=11>>11\nA: 11"}
    row = dict.fromkeys(MODELS, solved) | {"175b_verification": missed}
    row["ground_truth"] = "She sells 9.\nA: 18"
    path = tmp_path / "solutions.jsonl"
    agree, count, shares = gsm8k_flags(write(path, [row]))
    assert (agree, count, shares["175b_verification"]) == (3, 4, 0)


@pytest.mark.skipif(
    not (PARITY / "bbh").is_dir(),
    reason="not here: code-davinci-002-outputs/ of suzgunmirac/BIG-Bench-Hard "
    "@9ee07bd (27 tasks, -cot and -direct, with *_eval_metrics.jsonl of "
    "@e26f26d beside them), in shared/parity/bbh",
)
def test_published_big_bench_hard_accuracies():
    assert bbh_differing(PARITY / "bbh") == ({}, 54)


SOLUTIONS = PARITY / "gsm8k/example_model_solutions.jsonl"


@pytest.mark.skipif(
    not SOLUTIONS.is_file(),
    reason="not here: grade_school_math/data/example_model_solutions.jsonl of "
    "openai/grade-school-math @3101c7d, in shared/parity/gsm8k",
)
def test_published_gsm8k_flags():
    assert gsm8k_flags(SOLUTIONS) == (5276, 5276, MODELS)


# --- intervals ------------------------------------------------------------


def test_bootstrap_is_seeded_and_near_the_normal_interval():
    values = np.random.default_rng(5).normal(3, 2, 400)
    found = bootstrap(values)
    assert found == bootstrap(list(values)) != bootstrap(values, seed=1)
    half = 1.96 * values.std() / 20
    wanted = (values.mean() - half, values.mean() + half)
    assert found == pytest.approx(wanted, abs=0.03)
    assert bootstrap([2, 2, 2]) == (2, 2)


@pytest.mark.parametrize("groups", [None, [i // 2 for i in range(50)]])
def test_bootstrap_is_the_same_in_pieces(monkeypatch, groups):
    values = np.random.default_rng(5).normal(size=50)
    whole = bootstrap(values, groups, draws=200)
    for values_at_once in (1, 170, 1000):
        monkeypatch.setattr(scores, "DRAWN_AT_ONCE", values_at_once)
        assert bootstrap(values, groups, draws=200) == whole


def test_groups_of_one_are_rows():
    values = np.random.default_rng(5).normal(size=50)
    names = [f"g{i}" for i in range(50)]
    assert bootstrap(values, names) == bootstrap(values)


def covered(draw, interval, truth, times=400):
    """The share of `times` intervals that hold the truth."""
    chance = np.random.default_rng(0)
    hits = 0
    for seed in range(times):
        low, high = interval(draw(chance), seed)
        hits += low <= truth <= high
    return hits / times


def clustered(chance):
    """100 groups of five rows; half of the variance is the group's."""
    return (
        chance.normal(size=(100, 1)) + chance.normal(size=(100, 5))
    ).ravel()


GROUPS = [i // 5 for i in range(500)]


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda chance: chance.normal(1, 2, 100), 1),
        (lambda chance: chance.random(100) < 0.3, 0.3),
        (lambda chance: chance.exponential(1, 100), 1),
    ],
    ids=["normal", "share", "skewed"],
)
def test_bootstrap_covers_the_mean(draw, truth):
    share = covered(draw, lambda v, s: bootstrap(v, None, 500, s), truth)
    assert 0.92 <= share <= 0.98


def test_only_whole_groups_cover_the_mean():
    whole = covered(clustered, lambda v, s: bootstrap(v, GROUPS, 500, s), 0)
    assert 0.92 <= whole <= 0.98
    rows = covered(clustered, lambda v, s: bootstrap(v, None, 500, s), 0)
    assert rows < 0.85, "rows that depend on each other were taken for many"


def test_pairs_cover_the_difference_and_are_narrower():
    chance = np.random.default_rng(0)
    hits, narrower = 0, 0
    for seed in range(400):
        hard = chance.normal(0, 3, 100)
        before = hard + chance.normal(size=100)
        after = hard + chance.normal(0.5, 1, 100)
        found = paired(before, after, draws=500, seed=seed)
        assert found.mean == pytest.approx((after - before).mean())
        hits += found.low <= 0.5 <= found.high
        low, high = bootstrap(after, draws=500, seed=seed)
        narrower += found.high - found.low < high - low
    assert 0.92 <= hits / 400 <= 0.98
    assert narrower == 400


def test_paired_has_a_sign():
    assert paired([0] * 9, [1] * 9) == (1, 1, 1)
    assert paired([1] * 9, [0] * 9).high == -1
    names = [0] * 5 + [1] * 5
    low, high = paired([0] * 10, [0, 1] * 5, groups=names)[1:]
    assert (low, high) == (0.4, 0.6)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: bootstrap([]), "0 rows have no spread"),
        (lambda: bootstrap([1]), "1 rows"),
        (lambda: bootstrap([1, 2], ["a", "a"]), "1 groups"),
        (lambda: bootstrap([1, 2], ["a"]), "1 groups for 2 values"),
        (lambda: paired([1, 2], [1]), "2 values before and 1 after"),
        (lambda: bootstrap([1, None, None]), r"values\[1\] is None: give a"),
        (lambda: bootstrap(np.array([1, math.nan])), r"values\[1\] is nan"),
        (lambda: bootstrap([math.inf, 1], [0, 1]), r"values\[0\] is inf"),
        (lambda: bootstrap([1, 0, "1"]), r"values\[2\] is 1: give a"),
        (lambda: paired([0, math.nan], [0, 1]), r"before\[1\] is nan"),
        (lambda: paired([0, 1], [None, 1]), r"after\[0\] is None"),
    ],
)
def test_no_interval(call, part):
    with pytest.raises(ValueError, match=part):
        call()


# --- a judge --------------------------------------------------------------

PAIRS = [("Q1", "good", "bad"), ("Q2", "bad", "good"), ("Q3", "x", "y")]


def pairwise(question, first, second):
    text = f"{question}: [1] {first} [2] {second} Which?"
    return [{"role": "user", "content": text}]


def read(reply):
    return {"1": "first", "2": "second", "=": "tie"}.get(reply.strip())


def by_quality(messages):
    """An honest judge: good before bad, else a tie."""
    text = messages[-1]["content"]
    if "good" not in text:
        return "="
    return "1" if text.index("good") < text.index("bad") else " 2\n"


def test_an_honest_judge():
    found = judge(PAIRS, by_quality, pairwise, read)
    assert found.outcomes == ["one", "other", "tie"]
    assert found.places == {
        "first": 2,
        "second": 2,
        "tie": 2,
        "unreadable": 0,
        "failed": 0,
    }
    assert found.first_place_wins == pytest.approx(2 / 6)
    assert found.replies[1] == (" 2\n", "1")
    assert sum(found.counts.values()) == 3 and set(found.counts) == {*OUTCOMES}


@pytest.mark.parametrize(("reply", "share"), [("1", 1), ("2", 0)])
def test_a_judge_of_places_judges_nothing(reply, share):
    found = judge(PAIRS, lambda messages: reply, pairwise, read)
    assert found.outcomes == ["flipped"] * 3
    assert found.first_place_wins == share


CUT = Reply("1 because", "length", "cut off at max_tokens", None, None)


@pytest.mark.parametrize(
    ("given_", "swapped", "outcome", "first_place_wins"),
    [
        ("1", "2", "one", 0.5),
        ("2", "1", "other", 0.5),
        ("=", "=", "tie", 0),
        ("1", "1", "flipped", 1),
        ("2", "2", "flipped", 0),
        ("1", "=", "tie in one", 0.5),
        ("=", "1", "tie in one", 0.5),
        ("2", "=", "tie in one", 0),
        ("=", "2", "tie in one", 0),
        ("I like both", "1", "unreadable", 1),
        ("1", "I like both", "unreadable", 1),
        ("", "2", "unreadable", 0),
        ("=", "", "unreadable", 0),
        ("", "I like both", "unreadable", None),
        (CUT, "1", "failed", 1),
        ("=", CUT, "failed", 0),
        ("", CUT, "failed", None),
        (CUT, CUT, "failed", None),
    ],
)
def test_every_outcome(given_, swapped, outcome, first_place_wins):
    class Asked:
        def ask(self, requests):
            return [
                Reply(each, "ok", "", None, None)
                if isinstance(each, str)
                else each
                for each in (given_, swapped)
            ]

    found = judge(PAIRS[:1], Asked(), pairwise, read)
    assert found.outcomes == [outcome]
    assert found.counts == dict.fromkeys(OUTCOMES, 0) | {outcome: 1}
    assert sum(found.places.values()) == 2
    assert found.first_place_wins == first_place_wins


def test_a_judge_with_a_reply_method_and_no_pairs():
    class Local:
        def reply(self, messages):
            return by_quality(messages)

    assert judge(PAIRS, Local(), pairwise, read).outcomes[0] == "one"
    assert judge([], Local(), pairwise, read).first_place_wins is None


def test_a_teacher_is_asked_once_and_says_why_it_failed():
    came = [
        Reply("1", "ok", "", None, None),
        Reply("2", "ok", "", None, None),
        Reply("1 is", "length", "cut off at max_tokens", None, None),
        Reply("", "refused", "I would rather not", None, None),
        Reply(" \n", "filtered", "the endpoint's filter", None, None),
        Reply("both", "ok", "", None, None),
    ]

    class Asked:
        def ask(self, requests):
            self.requests = requests
            return came

    teacher, heard = Asked(), []

    def verdict(reply):
        heard.append(reply)
        return read(reply)

    found = judge(PAIRS, teacher, pairwise, verdict, model="m", max_tokens=9)
    assert heard == ["1", "2", "both"], "a reply that is not whole was read"
    assert found.outcomes == ["one", "failed", "failed"]
    assert found.counts["failed"] == 2 and found.counts["unreadable"] == 0
    assert found.places["failed"] == 3 and found.places["unreadable"] == 1
    assert found.first_place_wins == 0.5
    assert found.replies[1:] == [
        ("1 is", "[refused: I would rather not]"),
        ("[filtered: the endpoint's filter]", "both"),
    ]
    assert len(teacher.requests) == 6
    assert teacher.requests[1] == {
        "messages": pairwise("Q1", "bad", "good"),
        "model": "m",
        "max_tokens": 9,
    }


def test_a_judge_that_says_nothing():
    found = judge(PAIRS[:1], lambda messages: None, pairwise, read)
    assert found.outcomes == ["failed"]
    assert found.replies == [("[failed: no reply]",) * 2]


def test_what_is_no_verdict():
    with pytest.raises(ValueError, match="'=' was read as 'TIE': return one"):
        judge(PAIRS[2:], by_quality, pairwise, lambda reply: "TIE")
    with pytest.raises(ValueError, match="'=' was read as 'failed'"):
        judge(PAIRS[2:], by_quality, pairwise, lambda reply: "failed")
    with pytest.raises(ValueError, match="'model'"):
        judge(PAIRS, by_quality, pairwise, read, model="m")
