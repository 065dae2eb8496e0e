"""Instructions a program can check: IFEval's rules, and its arithmetic."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructft import verifiable
from instructft.instance import read_rows, write_rows
from instructft.scores import bootstrap
from instructft.verifiable import (
    CHECKERS,
    UNCHECKED,
    _main,
    accuracy,
    follows,
    problems_of,
    variants,
    verdicts,
)

TABLE = Path(__file__).parent / "verdicts.jsonl"
# IFEval's own file, where somebody has put it
PUBLISHED = Path(__file__).parents[2] / "shared/parity/ifeval/input_data.jsonl"
# One good set of kwargs a kind
GOOD = {
    "change_case:english_capital": {},
    "change_case:english_lowercase": {},
    "combination:repeat_prompt": {"prompt_to_repeat": "Name a tree."},
    "combination:two_responses": {},
    "detectable_content:number_placeholders": {"num_placeholders": 2},
    "detectable_content:postscript": {"postscript_marker": "P.S."},
    "detectable_format:constrained_response": {},
    "detectable_format:json_format": {},
    "detectable_format:multiple_sections": {
        "section_spliter": "Day",
        "num_sections": 2,
    },
    "detectable_format:number_bullet_lists": {"num_bullets": 2},
    "detectable_format:number_highlighted_sections": {"num_highlights": 2},
    "detectable_format:title": {},
    "keywords:existence": {"keywords": ["rain", "sun"]},
    "keywords:forbidden_words": {"forbidden_words": ["rain", "C++"]},
    "keywords:frequency": {
        "keyword": "rain",
        "frequency": 2,
        "relation": "at least",
    },
    "keywords:letter_frequency": {
        "letter": "!",
        "let_frequency": 2,
        "let_relation": "less than",
    },
    "length_constraints:nth_paragraph_first_word": {
        "num_paragraphs": 2,
        "nth_paragraph": 2,
        "first_word": "rain",
    },
    "length_constraints:number_paragraphs": {"num_paragraphs": 2},
    "length_constraints:number_words": {
        "num_words": 3,
        "relation": "at least",
    },
    "punctuation:no_comma": {},
    "startend:end_checker": {"end_phrase": "Good night."},
    "startend:quotation": {},
}
# Texts in which the marks of all kinds turn up
TEXTS = st.lists(
    st.sampled_from(
        ["rain", "Rain", "sun", "C++", "Day 1", "P.S.", "[a]", "<<a>>"]
        + ["* a", "- a", "*a*", "**", "***", "******", '"', "{}", "```"]
        + ["Name a tree.", "Good night.", "My answer is no.", ",", "!"]
        + [" ", "\n", "\n\n", "\u2028"]
    )
    | st.text(max_size=3),
    max_size=12,
).map("".join)


def row(*kinds, **more):
    kwargs = [GOOD.get(kind, {}) for kind in kinds]
    made = {"prompt": "?", "instruction_id_list": list(kinds)}
    return made | {"kwargs": kwargs} | more


# --- the rules ------------------------------------------------------------


def test_the_verdicts_written_by_hand():
    wrong = []
    rows = read_rows(TABLE)
    for each in rows:
        asked = row(each["kind"]) | {"kwargs": [each["kwargs"]]}
        found = verdicts(asked, each["answer"])
        said = {"strict": [each["strict"]], "loose": [each["loose"]]}
        if found != said:
            wrong.append((each, found))
    assert not wrong
    assert len(rows) >= 300
    assert {each["kind"] for each in rows} == set(CHECKERS)


@pytest.mark.parametrize(
    ("kind", "answer", "kwargs", "good"),
    [
        ("change_case:english_capital", "RAIN 7", {}, True),
        ("change_case:english_capital", "RAIN a", {}, False),
        ("change_case:english_capital", "77", {}, False),
        ("change_case:english_lowercase", "ein hut, été", {}, True),
        ("change_case:english_lowercase", "a Bee", {}, False),
        ("combination:repeat_prompt", "\n name a TREE. Oak", {}, True),
        ("combination:repeat_prompt", '"Name a tree."', {}, False),
        ("combination:two_responses", "a******b", {}, True),
        ("combination:two_responses", "******\na\n******b******", {}, True),
        ("combination:two_responses", "a ****** a", {}, False),
        ("combination:two_responses", "a************b", {}, False),
        ("combination:two_responses", "a***b", {}, False),
        ("detectable_content:number_placeholders", "[] [\n] [a]", {}, True),
        ("detectable_content:number_placeholders", "[a\n] [b]", {}, False),
        ("detectable_content:postscript", "a p. s. b", {}, True),
        ("detectable_content:postscript", "PS: b", {}, False),
        (
            "detectable_content:postscript",
            "p. p.s",
            {"postscript_marker": "P.P.S"},
            True,
        ),
        (
            "detectable_content:postscript",
            "NB: rain",
            {"postscript_marker": "nb:"},
            True,
        ),
        (
            "detectable_content:postscript",
            "nbx rain",
            {"postscript_marker": "NB."},
            False,
        ),
        (
            "detectable_format:constrained_response",
            "Well. My answer is maybe. So",
            {},
            True,
        ),
        (
            "detectable_format:constrained_response",
            "my answer is yes.",
            {},
            False,
        ),
        ("detectable_format:json_format", "```JSON\n[1]\n```", {}, True),
        ("detectable_format:json_format", '"text"', {}, True),
        ("detectable_format:json_format", "{'a': 1}", {}, False),
        ("detectable_format:json_format", "Here: {}", {}, False),
        ("detectable_format:json_format", "[" * 100_000, {}, False),
        ("detectable_format:multiple_sections", "Day 1 aDay2", {}, True),
        ("detectable_format:multiple_sections", "Day 1 day 2", {}, False),
        ("detectable_format:number_bullet_lists", "* a\n  - b", {}, True),
        ("detectable_format:number_bullet_lists", "* a\n---\n", {}, True),
        ("detectable_format:number_bullet_lists", "* a\n** b", {}, False),
        ("detectable_format:number_bullet_lists", "*\n* b", {}, False),
        ("detectable_format:number_bullet_lists", "* a\n" * 3, {}, False),
        (
            "detectable_format:number_highlighted_sections",
            "*a* **b**",
            {},
            True,
        ),
        (
            "detectable_format:number_highlighted_sections",
            "*a* ** ** *b\n*",
            {},
            False,
        ),
        ("detectable_format:title", "Well\n<< a >> b", {}, True),
        ("detectable_format:title", "<< >>", {}, False),
        ("detectable_format:title", "<<a\n>>", {}, False),
        ("keywords:existence", "Trains run, SUNNY", {}, True),
        ("keywords:existence", "rain", {}, False),
        ("keywords:existence", "axb", {"keywords": ["a.b"]}, False),
        ("keywords:forbidden_words", "trains", {}, True),
        ("keywords:forbidden_words", "a RAIN-coat", {}, False),
        ("keywords:forbidden_words", "In c++.", {}, False),
        ("keywords:frequency", "Rain trains", {}, True),
        ("keywords:frequency", "rain", {}, False),
        ("keywords:frequency", "rain", {"relation": "less than"}, True),
        ("keywords:letter_frequency", "a!", {}, True),
        ("keywords:letter_frequency", "a!!", {}, False),
        ("keywords:letter_frequency", "Aa", {"letter": "a"}, False),
        (
            "length_constraints:nth_paragraph_first_word",
            "a\n\n\"Rain, it's\n\n",
            {},
            True,
        ),
        (
            "length_constraints:nth_paragraph_first_word",
            "a\n\n\n\nrain",  # a blank one keeps its place
            {},
            False,
        ),
        (
            "length_constraints:nth_paragraph_first_word",
            "a\n\nrain\n\nb",
            {},
            False,
        ),
        (
            "length_constraints:nth_paragraph_first_word",
            "a\n\nrain-coat",
            {},
            False,
        ),
        ("length_constraints:number_paragraphs", "***a\n***\nb***", {}, True),
        ("length_constraints:number_paragraphs", "a\n\nb", {}, False),
        ("length_constraints:number_paragraphs", "a******b", {}, False),
        ("length_constraints:number_words", "don't - do", {}, True),
        ("length_constraints:number_words", "two-words", {}, False),
        ("punctuation:no_comma", "a; b，c", {}, True),
        ("punctuation:no_comma", "1,000", {}, False),
        ("startend:end_checker", 'So: "good NIGHT."\n', {}, True),
        ("startend:end_checker", "Good night. Bye", {}, False),
        ("startend:quotation", ' "a"\n', {}, True),
        ("startend:quotation", "“a”", {}, False),
        ("startend:quotation", '"', {}, False),
    ],
)
def test_borders(kind, answer, kwargs, good):
    assert follows(kind, answer, **GOOD[kind] | kwargs) is good


def test_the_kinds():
    assert len(CHECKERS) == 22 and len(UNCHECKED) == 3
    assert not CHECKERS.keys() & UNCHECKED.keys()
    assert CHECKERS.keys() == GOOD.keys()


@pytest.mark.parametrize("kind", GOOD)
@given(answer=TEXTS)
def test_what_holds_for_every_kind(kind, answer):
    found = verdicts(row(kind), answer)
    [strict], [loose] = found["strict"], found["loose"]
    assert strict is follows(kind, answer, **GOOD[kind])
    assert loose >= strict
    if follows(kind, answer.strip(), **GOOD[kind]):
        # a line of talk before it, behind it, or both is forgiven
        for more in ("Sure:\n{}", "{}\nBye", "Sure:\n{}\nBye"):
            more = more.format(answer)
            assert verdicts(row(kind), more)["loose"] == [True], more
    empty = verdicts(row(kind), " \n" * len(answer))
    assert empty == {"strict": [False], "loose": [False]}


@pytest.mark.parametrize(
    "kind, relation, number",
    [
        ("keywords:frequency", "relation", "frequency"),
        ("keywords:letter_frequency", "let_relation", "let_frequency"),
        ("length_constraints:number_words", "relation", "num_words"),
    ],
)
@given(answer=TEXTS.filter(str.strip), least=st.integers(0, 6))
def test_either_less_or_at_least(kind, relation, number, answer, least):
    kwargs = GOOD[kind] | {number: least}
    less, more = (
        follows(kind, answer, **kwargs | {relation: said})
        for said in ("less than", "at least")
    )
    assert less is not more


@given(answer=TEXTS)
def test_exactly_one_number_is_exact(answer):
    for kind, name in (
        ("detectable_format:number_bullet_lists", "num_bullets"),
        ("length_constraints:number_paragraphs", "num_paragraphs"),
    ):
        hits = [follows(kind, answer, **{name: n}) for n in range(20)]
        assert sum(hits) <= 1


@given(answer=TEXTS.filter(str.strip), value=st.recursive(st.text(), st.lists))
def test_made_to_follow(answer, value):
    assert follows("startend:quotation", f'"{answer}"')
    assert follows("punctuation:no_comma", answer.replace(",", "") + ".")
    text = json.dumps(value)
    for wrapped in (text, f"```json\n{text}\n```", f"\n```\n{text}```\n"):
        assert follows("detectable_format:json_format", wrapped)
    repeat = {"prompt_to_repeat": answer}
    assert follows("combination:repeat_prompt", answer + " ok", **repeat)
    phrase = {"end_phrase": "Good night."}
    assert follows("startend:end_checker", answer + "good night. ", **phrase)


@given(answer=TEXTS, word=st.from_regex(r"\w+", fullmatch=True))
def test_a_word_of_letters_is_whole_where_a_regex_says_so(answer, word):
    touched = re.search(rf"\b{word}\b", answer, re.IGNORECASE)
    kind = "keywords:forbidden_words"
    free = follows(kind, answer, forbidden_words=[word])
    assert free is (bool(answer.strip()) and not touched)


def test_the_eight_forms():
    assert variants("*a*\n\nb *c*\nd") == [
        *("*a*\n\nb *c*\nd", "a\n\nb c\nd"),
        *("b *c*\nd", "b c\nd"),
        *("*a*\n\nb *c*", "a\n\nb c"),
        *("b *c*", "b c"),
    ]


def test_arguments_are_read_once_a_verdict(monkeypatch):
    read, calls = verifiable._arguments, []

    def counted(kind, kwargs):
        calls.append(kind)
        return read(kind, kwargs)

    monkeypatch.setattr(verifiable, "_arguments", counted)
    kinds = ["punctuation:no_comma", "startend:quotation"]
    verdicts(row(*kinds), "a\nb")
    assert calls == kinds


def test_loose_forgives_lines_and_stars_and_nothing_else():
    asked = row("startend:quotation")
    for answer, loose in (
        ('Sure:\n"a"', True),
        ('"a"\nBye', True),
        ('Sure:\n*"a"*\nBye', True),
        ('Sure:\n\n"a"', True),
        ('Sure:\nWell:\n"a"', False),
        ('_"a"_', False),
    ):
        expected = {"strict": [False], "loose": [loose]}
        assert verdicts(asked, answer) == expected, answer


# --- rows -----------------------------------------------------------------


def test_a_row_as_it_is_published_elsewhere():
    # the hub's copy holds every name in every kwargs, most of them null
    names = {name: None for kwargs in GOOD.values() for name in kwargs}
    kinds = ["punctuation:no_comma", "keywords:frequency"]
    asked = row(*kinds, key=1000)
    asked["kwargs"] = [names | each for each in asked["kwargs"]]
    asked["kwargs"][1]["frequency"] = 2.0  # as pandas writes it
    found = verdicts(asked, "Rain and rain")
    assert found == {"strict": [True, True], "loose": [True, True]}


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("keywords:exist", {}, "keywords:exist is unknown; write one of"),
        ("keywords:existence", {"keywords": None}, "lacks ['keywords']; add"),
        ("keywords:existence", {"keywords": "rain"}, "write a list of words"),
        ("keywords:existence", {"keywords": []}, "write a list of words"),
        ("keywords:existence", {"keywords": [" "]}, "write a list of words"),
        ("punctuation:no_comma", {"num_words": 3}, "takes no ['num_words']"),
        ("keywords:frequency", {"relation": "at most"}, "write one of"),
        ("keywords:frequency", {"frequency": -1}, "a whole number, 0 or"),
        ("keywords:frequency", {"frequency": 1.5}, "a whole number, 0 or"),
        ("keywords:frequency", {"frequency": 1e999}, "a whole number, 0 or"),
        ("keywords:frequency", {"frequency": True}, "a whole number, 0 or"),
        ("keywords:frequency", {"frequency": "2"}, "a whole number, 0 or"),
        ("keywords:letter_frequency", {"letter": "ab"}, "one character"),
        ("startend:end_checker", {"end_phrase": " "}, "write a text"),
        (
            "length_constraints:nth_paragraph_first_word",
            {"nth_paragraph": 3},
            "no paragraph 3 of 2; lower nth_paragraph",
        ),
        (
            "length_constraints:nth_paragraph_first_word",
            {"nth_paragraph": 0},
            "a whole number, 1 or more",
        ),
    ],
)
def test_a_bad_argument_names_row_kind_and_remedy(kind, change, words):
    kwargs = GOOD.get(kind, {}) | change
    with pytest.raises(ValueError, match=re.escape(words)):
        follows(kind, "", **kwargs)
    asked = row(kind, key=1012) | {"kwargs": [kwargs]}
    with pytest.raises(ValueError, match="row 1012: ") as caught:
        verdicts(asked, "")
    assert kind in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": None}, "prompt is no text"),
        ({"instruction_id_list": "no_comma"}, "name at least one"),
        ({"instruction_id_list": []}, "name at least one"),
        ({"kwargs": []}, "write a list of 1"),
        ({"kwargs": [None]}, "write a kind and an object"),
        ({"instruction_id_list": [3]}, "write a kind and an object"),
    ],
)
def test_a_bad_row(change, words):
    [said] = problems_of(row("punctuation:no_comma") | change)
    assert words in said


@pytest.mark.parametrize("kind", UNCHECKED)
def test_what_cannot_be_checked_is_never_guessed(kind):
    with pytest.raises(ValueError, match=UNCHECKED[kind]):
        follows(kind, "A text.")
    asked = row(kind, "punctuation:no_comma")
    found = {"strict": [None, True], "loose": [None, True]}
    assert verdicts(asked, "A text.") == found
    nothing = {"count": 0, "strict": None, "loose": None}
    whole = {"count": 1, "strict": 1.0, "loose": 1.0}
    assert accuracy([asked], ["A text."]) == {
        "prompt": nothing,
        "instruction": whole,
        "kinds": {"punctuation:no_comma": whole},
        "unchecked": {kind: 1},
        "left_out": 1,
    }


def test_accuracy_counts_prompts_and_instructions():
    rows = [
        row("punctuation:no_comma", "startend:quotation"),
        row("punctuation:no_comma"),
        row("startend:quotation"),
    ]
    found = accuracy(rows, ['Well\n"a"', "a, b", '"a, b"'])
    assert found["prompt"] == {"count": 3, "strict": 1 / 3, "loose": 2 / 3}
    assert found["instruction"] == {"count": 4, "strict": 0.5, "loose": 0.75}
    assert found["kinds"] == {
        "punctuation:no_comma": {"count": 2, "strict": 0.5, "loose": 0.5},
        "startend:quotation": {"count": 2, "strict": 0.5, "loose": 1.0},
    }
    assert found["unchecked"] == {} and found["left_out"] == 0
    for answers in ([], ["a"]):
        with pytest.raises(ValueError, match="give one answer"):
            accuracy(rows[: len(answers)] * 2, answers)


@pytest.mark.skipif(
    not PUBLISHED.is_file(), reason="IFEval's input_data.jsonl is not here"
)
def test_the_published_prompts():
    rows = read_rows(PUBLISHED, problems_of)
    kinds = Counter(k for each in rows for k in each["instruction_id_list"])
    assert len(rows) == 541 and kinds.total() == 834
    assert kinds.keys() == CHECKERS.keys() | UNCHECKED.keys()
    found = accuracy(rows, ["A text."] * len(rows))
    assert found["prompt"]["count"] == 446
    assert found["instruction"]["count"] == 726

    def without(*needs):
        lists = [each["instruction_id_list"] for each in rows]
        return sum(not any(k.startswith(needs) for k in ks) for ks in lists)

    other = ("language", "length_constraints:number_sentences")
    assert without(*other) == 464
    assert without(*other, "change_case") == 387
    # so no word of theirs shows where ours are plain text
    for each in rows:
        for kwargs in each["kwargs"]:
            names = ("keyword", "section_spliter")
            words = [kwargs[name] for name in names if name in kwargs]
            words += kwargs.get("keywords", [])
            words += kwargs.get("forbidden_words", [])
            assert all(re.fullmatch(r"\w+", word) for word in words)
            assert kwargs.get("postscript_marker", "P.S.") in ("P.S.", "P.P.S")


# --- python -m instructft.verifiable --------------------------------------


def test_the_command(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    kinds = ["punctuation:no_comma", "language:response_language"]
    rows = [
        row(*kinds, prompt="One", response="a"),
        row("punctuation:no_comma", prompt="Two", response="a\nb, c"),
    ]
    write_rows(path, rows)
    assert _main([str(path)]) == 0
    said = capsys.readouterr().out
    # Wilson's ends of 0 and 1 of 1, and 1 and 2 of 2; two prompts are drawn
    assert [re.split(r"\s{2,}", line) for line in said.splitlines()] == [
        ["", "count", "strict", "95 % interval", "loose", "95 % interval"],
        ["prompts", "1", "0.0%", "0.0 to 79.3", "100.0%", "20.7 to 100.0"],
        ["instructions", "2", "50.0%", "0.0 to 100.0"]
        + ["100.0%", "34.2 to 100.0"],
        ["punctuation:no_comma", "2", "50.0%", "9.5 to 90.5"]
        + ["100.0%", "34.2 to 100.0"],
        [
            "not checked: 1 x language:response_language, which needs a "
            "language detector"
        ],
        ["prompts left out for that: 1"],
    ]
    # the same from two files, as the reference has them, in another order
    responses, asked = tmp_path / "responses.jsonl", tmp_path / "asked.jsonl"
    pairs = [{k: each[k] for k in ("prompt", "response")} for each in rows]
    write_rows(responses, [{"prompt": "Three", "response": ""}, *pairs[::-1]])
    write_rows(asked, [each | {"response": None} for each in rows])
    assert _main([str(asked), "--responses", str(responses)]) == 0
    assert capsys.readouterr().out == said


def test_the_command_draws_whole_prompts(tmp_path, capsys):
    two = ["punctuation:no_comma", "startend:quotation"]
    rows = [
        row(*two, prompt=f"Prompt {i}", response=['"a"', "a, b"][i % 4 == 0])
        for i in range(40)
    ]
    path = tmp_path / "rows.jsonl"
    write_rows(path, rows)
    assert _main([str(path)]) == 0
    line = capsys.readouterr().out.splitlines()[2]
    good = [i % 4 != 0 for i in range(40) for _ in two]
    low, high = bootstrap(good, [i // 2 for i in range(80)])
    ends = f"{100 * low:.1f} to {100 * high:.1f}"
    assert line.split("  ")[-1] == ends and "75.0%" in line
    alone = bootstrap(good)
    assert high - low > 1.2 * (alone[1] - alone[0]), "the test cannot fail"
    # one prompt says nothing of others, unless all alike
    for answer, ends in (('"a, b"', "-"), ('"a"', "20.7 to 100.0")):
        write_rows(path, [rows[0] | {"response": answer}])
        assert _main([str(path)]) == 0
        line = capsys.readouterr().out.splitlines()[2]
        assert line.split("  ")[-1].strip() == ends


def test_the_command_names_file_line_and_remedy(tmp_path, capsys):
    path, responses = tmp_path / "rows.jsonl", tmp_path / "responses.jsonl"
    good = json.dumps(row("punctuation:no_comma", response="a"))
    lines = [
        good,
        "",
        "{",
        json.dumps(row("keywords:exist", response="a")),
        json.dumps(row("punctuation:no_comma")),
    ]
    path.write_text("\n".join(lines), "utf-8")
    assert _main([str(path)]) == 1
    said = capsys.readouterr().err
    assert f"{path}:3: not JSON" in said
    assert f"{path}:4: keywords:exist is unknown; write one of" in said
    assert f"{path}:5: response is no text; add it, or give" in said
    assert f"{path}:1:" not in said

    path.write_text(good, "utf-8")
    pair = {"prompt": "?", "response": "a"}
    for rows, words in (
        ([], f"{path}:1: its prompt has no response in {responses}; add it"),
        ([pair, pair | {"response": "b"}], f"{responses}:2: another response"),
        ([{"prompt": "?"}], f"{responses}:1: write two texts"),
    ):
        write_rows(responses, rows)
        assert _main([str(path), "--responses", str(responses)]) == 1
        assert words in capsys.readouterr().err
    listed = row("punctuation:no_comma", prompt=["?"])
    write_rows(responses, [pair])
    write_rows(path, [listed])
    assert _main([str(path), "--responses", str(responses)]) == 1
    assert f"{path}:1: prompt is no text" in capsys.readouterr().err
    path.write_text(good, "utf-8")
    write_rows(responses, [pair, pair])
    assert _main([str(path), "--responses", str(responses)]) == 0
    write_rows(path, [])
    assert _main([str(path)]) == 1
    assert "is empty" in capsys.readouterr().err
    assert _main([str(tmp_path / "nowhere")]) == 1
