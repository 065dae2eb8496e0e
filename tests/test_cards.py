"""Cards: who wrote what under which terms, and what is never given on."""

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from instructft import cards
from instructft.cards import (
    LicenceError,
    dataset_card,
    ledger,
    licence_problems,
    publish,
)
from instructft.instance import read_rows

ROOT = Path(__file__).resolve().parent.parent
ROW = {"instruction": "Add.", "input": "1+1", "output": "2"}
GOOD = ROW | {"source": "us", "licence": "CC0-1.0"}
TALK = {
    "messages": [
        {"role": "user", "content": "Hello there"},
        {"role": "assistant", "content": "Hello"},
    ],
    "source": "us",
    "licence": "MIT",
}
# put together here, so that none stands in this file
KEYS = {
    "openai": "sk-" + "proj-" + "a1B2" * 5,
    "hub": "hf_" + "Abc123" * 6,
    "amazon": "AKIA" + "ABCD1234" * 2,
}


def of(*licences, **other):
    return [ROW | {"licence": licence} | other for licence in licences]


def parts(card):
    """A card as (front matter, text of each section)."""
    _, front, body = card.split("---\n", 2)
    pieces = re.split(r"^## (.*)\n", body, flags=re.M)
    sections = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    return yaml.safe_load(front), sections


def cells(table):
    """The cells of each line of a Markdown table, read as GitHub does."""
    lines = [x for x in table.splitlines() if x.startswith("|")]
    return [
        [
            re.sub(r"\\(.)", r"\1", cell.strip())
            for cell in re.findall(r"\|((?:\\.|[^|\\])*)(?=\|)", line)
        ]
        for line in lines
    ]


def tree(folder):
    """Every path below a folder, with its bytes."""
    return {
        path.relative_to(folder): path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


# --- the ledger -------------------------------------------------------------


def test_the_ledger_counts_each_combination_most_first():
    rows = [GOOD, TALK, GOOD | {"teacher": "a"}, TALK, TALK, GOOD]
    assert ledger(rows) == [
        {"source": "us", "licence": "MIT", "teacher": "", "rows": 3},
        {"source": "us", "licence": "CC0-1.0", "teacher": "", "rows": 2},
        {"source": "us", "licence": "CC0-1.0", "teacher": "a", "rows": 1},
    ]


def test_what_is_missing_null_or_a_list_can_be_counted():
    rows = [{}, {"licence": None}, {"licence": ["MIT", "0BSD"]}]
    assert ledger(rows, by=["licence"]) == [
        {"licence": "", "rows": 2},
        {"licence": "MIT, 0BSD", "rows": 1},
    ]


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["source", "licence", "teacher"]),
            st.sampled_from(["a", "b", ""]),
        )
    )
)
def test_the_ledger_loses_no_row(rows):
    lines = ledger(rows)
    counts = [line["rows"] for line in lines]
    assert sum(counts) == len(rows) and counts == sorted(counts)[::-1]
    kinds = {tuple(line.values())[:-1] for line in lines}
    assert len(kinds) == len(lines)


# --- the licence gate -------------------------------------------------------

PERMISSIVE = [
    *("CC0-1.0", "Unlicense", "0BSD", "MIT", "Apache-2.0", "BSD-2-Clause"),
    *("BSD-3-Clause", "CC-BY-4.0", "ODC-By-1.0", "CDLA-Permissive-2.0"),
]
# each licence that is refused, with the words that say why
REFUSED = [
    ("CC-BY-NC-4.0", "no commercial use"),
    ("CC-BY-NC-SA-4.0", "no commercial use"),
    ("cc-by-nc-3.0", "no commercial use"),
    ("CC BY-NC 4.0", "no commercial use"),
    ("research only", "no commercial use"),
    ("for non-commercial use", "no commercial use"),
    ("NonCommercial", "no commercial use"),
    ("mit, cc-by-nc-4.0", "no commercial use"),
    ("CC-BY-ND-4.0", "no changed versions"),
    ("no derivatives", "no changed versions"),
    ("WordNet", "no SPDX identifier"),
    ("CC-BY-SA", "no SPDX identifier"),
    ("MIT, and beer", "no SPDX identifier"),
    ("MIT OR Apache-2.0", "no SPDX identifier"),
    ("a provider's terms of use", "compete"),
    ("ToS", "compete"),
]
FIELDS = ["licence", "wording", "teacher_licence"]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("name", PERMISSIVE)
def test_permissive_licences_pass_in_every_field(name, field):
    row = GOOD | {field: name}
    assert licence_problems([row, GOOD]) == []
    assert licence_problems([row | {field: name.lower()}]) == []


def test_all_permissive_ones_pass_side_by_side():
    assert licence_problems(of(*PERMISSIVE, " AND ".join(PERMISSIVE))) == []
    assert licence_problems(of("odc-by", "CC BY 4.0", ["mit", "0bsd"])) == []
    assert licence_problems([]) == []


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("name, words", REFUSED)
def test_each_class_is_refused_in_every_field(name, words, field):
    bad = GOOD | {field: name}
    [said] = licence_problems([GOOD, bad, GOOD, bad])
    assert words in said
    assert said.startswith("2 rows, first rows[1]: ")
    assert "drop them" in said and "`allow`" in said
    assert licence_problems([GOOD, bad], allow=[name]) == []
    assert licence_problems([GOOD, bad], allow=name.upper()) == []
    assert licence_problems([GOOD, bad], allow=["MIT"]) != []


def test_a_row_without_a_licence_is_refused():
    for bare in ({}, {"licence": ""}, {"licence": None}, {"licence": []}):
        [said] = licence_problems([GOOD, ROW | bare], allow=["", "MIT"])
        assert said.startswith("1 row, first rows[1]: no licence")
        assert "into `licence`" in said


def test_a_teacher_needs_terms():
    taught = GOOD | {"teacher": "a-model"}
    [said] = licence_problems([GOOD, taught, taught | {"teacher_licence": ""}])
    assert said.startswith("2 rows, first rows[1]: ")
    assert "into `teacher_licence`" in said
    assert licence_problems([taught | {"teacher_licence": "MIT"}]) == []


def test_both_faults_of_one_licence_are_said():
    said = licence_problems(of("CC-BY-NC-ND-4.0"))
    assert len(said) == 2
    assert "no commercial use" in said[0] and "no changed" in said[1]


SHARED = ["CC-BY-SA-4.0", "ODbL-1.0", "GPL-3.0"]


@pytest.mark.parametrize("name", SHARED)
def test_share_alike_goes_with_itself_and_the_permissive_alone(name):
    assert licence_problems(of(name, *PERMISSIVE, name.lower())) == []
    for other in {*SHARED, "CC-BY-NC-SA-4.0"} - {name}:
        assert f"{name}" in "\n".join(licence_problems(of(name, other)))
        [said] = licence_problems(of(name, other), allow=[other])
        assert name in said and "same licence" in said
    # beside what was accepted as it is, too
    [said] = licence_problems(of("MIT", name, "mine"), allow=["mine"])
    assert said.startswith(f"1 row, first rows[1]: {name}: ")


def test_share_alike_words_and_data_in_one_row():
    row = GOOD | {"licence": "odbl", "wording": "GPL-3.0-or-later"}
    [said] = licence_problems([row])
    assert "GPL-3.0, ODbL-1.0" in said and said.startswith("1 row,")


def test_one_line_a_kind_however_many_licences():
    rows = of("MIT", "CC-BY-NC-4.0", "research only", "CC-BY-NC-4.0", "mine")
    said = licence_problems([*rows, ROW])
    assert len(said) == 3
    assert said[0].startswith("3 rows, first rows[1]: CC-BY-NC-4.0, research")
    assert said[1].startswith("1 row, first rows[4]: mine")
    assert said[2].startswith("1 row, first rows[5]: no licence")


@given(st.text())
def test_no_unknown_word_passes(word):
    known = {name.lower() for name in [*PERMISSIVE, *SHARED]}
    if word.strip().lower() not in known:
        assert licence_problems([GOOD | {"licence": word}])


# --- the card ---------------------------------------------------------------


def test_the_front_matter_is_what_the_hub_reads():
    about, _ = parts(dataset_card([GOOD] * 3, "Sums: a: b", "One sum."))
    assert about == {
        "pretty_name": "Sums: a: b",
        "license": "cc0-1.0",
        "language": ["en"],
        "size_categories": ["n<1K"],
        "task_categories": ["text-generation"],
        "tags": ["instruction-tuning"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data.jsonl"}],
            }
        ],
    }


def test_the_front_matter_keeps_odd_words():
    """Norwegian's code is false in YAML, and a title may look like an end."""
    card = dataset_card([GOOD], "a\n---\n# b", "c", language="no")
    about, _ = parts(card)
    assert about["language"] == ["no"]
    assert about["pretty_name"] == "a --- # b"
    assert "\n# a --- # b\n" in card


def test_tags_say_what_the_rows_are():
    about, _ = parts(dataset_card([TALK | {"teacher": "a"}], "t", "s"))
    assert about["tags"][1:] == ["conversational", "synthetic"]


@pytest.mark.parametrize(
    "rows, name",
    [
        (of("MIT", "mit"), "mit"),
        (of("ODC-By-1.0"), "odc-by"),
        (of("ODbL"), "odbl"),
        (of("CC-BY-NC-4.0"), "cc-by-nc-4.0"),
        (of("MIT", wording="MIT"), "mit"),
        ([ROW], "unknown"),
    ],
)
def test_one_licence_is_named_as_the_hub_names_it(rows, name):
    about, _ = parts(dataset_card(rows, "t", "s"))
    assert about["license"] == name
    assert not {"license_name", "license_details"} & about.keys()


@pytest.mark.parametrize(
    "rows, name, said",
    [
        (of("MIT", "CC0-1.0"), "cc0-1.0-and-mit", "CC0-1.0, MIT"),
        (of("MIT", wording="CC0-1.0"), "cc0-1.0-and-mit", "CC0-1.0, MIT"),
        (of("MIT", teacher_licence="Own!"), "mit-and-own", "MIT, Own!"),
        (of("0BSD"), "0bsd", "0BSD"),  # the hub has no such id
        (of("MIT", ""), "mit", "but for 1 whose data have none"),
    ],
)
def test_a_mixture_is_other_and_named(rows, name, said):
    about, _ = parts(dataset_card(rows, "t", "s"))
    assert about["license"] == "other"
    assert about["license_name"] == name
    assert said in about["license_details"]


@pytest.mark.parametrize(
    "count, size",
    [
        (1, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (10_000, "10K<n<100K"),
        (999_999, "100K<n<1M"),
        (10**6, "1M<n<10M"),
        (10**9, "1B<n<10B"),
        (10**12 - 1, "100B<n<1T"),
    ],
)
def test_sizes(count, size):
    assert cards._size(count) == size


WHOSE = ["data", "templates' words", "teacher's outputs"]
IDS = {  # what else than itself a card calls a name
    "CC BY-NC 4.0": ["CC-BY-NC-4.0"],
    "mit, cc-by-nc-4.0": ["MIT", "CC-BY-NC-4.0"],
}
names = st.sampled_from([*PERMISSIVE, *(name for name, _ in REFUSED), ""])


@given(st.lists(st.tuples(names, names, names), min_size=1, max_size=9))
def test_a_card_holds_every_licence_and_its_rows(triples):
    rows = [ROW | dict(zip(FIELDS, triple, strict=True)) for triple in triples]
    _, sections = parts(dataset_card(rows, "t", "s"))
    table = cells(sections["Licence and notices owed"])[2:]
    counted = {(name, of_what): int(n) for name, of_what, n, _ in table}
    wanted = Counter()
    for triple in triples:
        for whose, name in zip(WHOSE, triple, strict=True):
            wanted.update((each, whose) for each in IDS.get(name, [name]))
        wanted["none named", "data"] += not triple[0]
    assert counted == {k: n for k, n in wanted.items() if k[0] and n}


def test_each_kind_of_licence_says_what_it_asks():
    rows = of("CC0-1.0", "MIT", "CC-BY-SA-4.0", "CC-BY-NC-ND-4.0", "mine")
    _, sections = parts(dataset_card(rows, "t", "s"))
    table = cells(sections["Licence and notices owed"])[2:]
    asks = {line[0]: line[-1] for line in table}
    assert asks["CC0-1.0"] == "nothing"
    assert "notices" in asks["MIT"]
    assert "same licence" in asks["CC-BY-SA-4.0"]
    assert asks["CC-BY-NC-ND-4.0"] == "no commercial use; no changed versions"
    assert "known" in asks["mine"]
    assert "no legal advice" in sections["Licence and notices owed"]


def test_numbers_are_those_of_the_rows():
    long = {"instruction": "Add these two.", "output": "It is 2", "input": ""}
    talks = [TALK, TALK | {"messages": TALK["messages"] * 2}]
    card = dataset_card([GOOD, GOOD | long, *talks], "t", "s")
    _, sections = parts(card)
    text = sections["What it is"]
    assert "2 instances and 2 conversations." in text
    assert "`instruction`, `input`, `output`, `source`, `licence`" in text
    assert cells(text)[2:] == [
        ["words of instruction", "2.0", "3"],
        ["words of input", "0.5", "1"],
        ["words of output", "2.0", "3"],
        ["turns of a conversation", "3.0", "4"],
        ["words of a turn", "1.5", "2"],
    ]


def test_a_card_speaks_of_no_shape_that_is_not_there():
    _, sections = parts(dataset_card([TALK], "t", "s"))
    assert "1 conversation." in sections["What it is"]
    assert "instruction" not in sections["What it is"]
    _, sections = parts(dataset_card([GOOD], "t", "s"))
    assert "turn" not in sections["What it is"]


def test_the_ledger_is_a_table_and_its_end_is_counted():
    rows = [GOOD, *(GOOD | {"source": f"s{i}"} for i in range(cards.MOST + 4))]
    _, sections = parts(dataset_card([*rows, GOOD], "t", "s"))
    text = sections["Where the rows come from"]
    table = cells(text)
    assert table[0] == ["source", "licence", "rows"]  # no empty columns
    assert table[2] == ["us", "CC0-1.0", "2"]
    assert len(table) == cards.MOST + 2
    assert "And 5 more such lines, 5 rows." in text


def test_sections_stand_under_their_names_and_nothing_is_made_up():
    _, bare = parts(dataset_card([ROW], "t", "s"))
    for name in ("How it was made", "Known limits"):
        assert bare[name].strip() == "Not stated."
    assert bare["What was rejected, and why"].strip() == "Not stated."
    assert bare["Where the rows come from"].strip() == "No row says."
    card = dataset_card(
        *([GOOD], "t", "A summary."),
        how_it_was_made="By hand.",
        known_limits="Only sums.",
        of_GPUs="None.",
        examples="See below.",
    )
    _, told = parts(card)
    assert told["How it was made"].strip() == "By hand."
    assert told["Known limits"].strip() == "Only sums."
    assert told["Of GPUs"].strip() == "None."
    assert "\n## Examples\n\nSee below.\n" in card  # ours hides no one's
    assert "\n# t\n\nA summary.\n" in card


def test_rejections_are_listed_most_first():
    found = {"too short": 2, "a | b\nc": 1_234}
    _, told = parts(dataset_card([GOOD], "t", "s", rejected=found))
    table = cells(told["What was rejected, and why"])
    assert table[2:] == [["a | b c", "1,234"], ["too short", "2"]]
    _, told = parts(dataset_card([GOOD], "t", "s", rejected={}))
    assert told["What was rejected, and why"].strip() == "Nothing."


@given(st.text(alphabet="a|\\\n\r\u2028 <", min_size=1))
def test_a_cell_holds_whatever_is_put_into_it(text):
    [*_, line] = cells(cards._table([{"a": text, "b": 7}]))
    assert line == [" ".join(text.split()).replace("<", "&lt;"), "7"]


def test_two_rows_are_shown_and_long_ones_cut():
    rows = [GOOD | {"output": f"```{i}"} for i in range(4)]
    _, sections = parts(dataset_card(rows, "t", "s"))
    shown = re.findall(
        r"^```json\n(.*?)\n```$", sections["Examples"], re.M | re.S
    )
    assert [json.loads(text) for text in shown] == [rows[0], rows[2]]
    card = dataset_card([GOOD | {"output": "é" * 9_999}], "t", "s")
    assert 1_000 < card.count("é") < 2_000 and "é ...\n```\n" in card


@pytest.mark.parametrize("rows", [[], [GOOD, {}], [{"messages": []}]])
def test_no_card_for_what_is_no_data_set(rows):
    with pytest.raises(ValueError, match=r"no rows|rows\[1\]|messages"):
        dataset_card(rows, "t", "s")


# --- the folder -------------------------------------------------------------


def test_publish_writes_all_that_was_given(tmp_path):
    folder = tmp_path / "new" / "sums"
    rows = [GOOD, TALK]
    thrown = [GOOD | {"output": "", "rule": "empty output"}]
    card = dataset_card(rows, "Sümme", "s")
    assert publish(folder, rows, card, rejected=thrown) == folder
    assert read_rows(folder / "data.jsonl") == rows
    assert read_rows(folder / "rejected.jsonl") == thrown
    assert (folder / "README.md").read_bytes() == card.encode()
    assert len(tree(tmp_path)) == 5  # no file from on the way


def test_publish_again_replaces_its_own_files_alone(tmp_path):
    publish(tmp_path, [GOOD], "one")
    (tmp_path / "LICENSE").write_text("kept")
    publish(str(tmp_path), [TALK], "two")
    assert sorted(os.listdir(tmp_path)) == [
        *("LICENSE", "README.md", "data.jsonl"),
    ]
    assert read_rows(tmp_path / "data.jsonl") == [TALK]
    assert (tmp_path / "README.md").read_text() == "two"


def test_a_new_folder_can_be_read_by_others(tmp_path):
    publish(tmp_path / "new", [GOOD], "c")
    (tmp_path / "plain").mkdir()
    modes = [(tmp_path / n).stat().st_mode for n in ("new", "plain")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("name, near", [("there", "there"), ("a/b", ".")])
def test_files_are_made_on_the_disk_they_are_for(
    tmp_path, monkeypatch, name, near
):
    """A rename from another disk fails, and so does a parent not ours."""
    (tmp_path / "there").mkdir()
    places, real = [], cards.tempfile.TemporaryDirectory

    def noted(dir=None, **more):
        places.append(dir)
        return real(dir=dir, **more)

    monkeypatch.setattr(cards.tempfile, "TemporaryDirectory", noted)
    publish(tmp_path / name, [GOOD], "c")
    assert places == [(tmp_path / near).resolve()]


REFUSALS = [
    ({"rows": []}, "no rows"),
    ({"rows": [GOOD, ROW]}, r"rows\[1\]: no licence"),
    ({"rejected": [ROW]}, r"rejected: 1 row, first rows\[0\]: no licence"),
    ({"rejected": [("a", 1)]}, r"rejected\[0\] is a tuple"),
    ({"rows": [GOOD, GOOD | {"output": " "}]}, r"rows\[1\]: output is empty"),
    ({"rows": [GOOD, 7]}, r"rows\[1\]: a row is a int"),
    ({"rows": [TALK | {"messages": []}]}, r"rows\[0\]: messages is no list"),
    ({"rows": [TALK | {"messages": "hi"}]}, "messages is no list"),
    ({"rows": [TALK | {"messages": ["hi"]}]}, r"messages\[0\] lacks a role"),
    (
        {"rows": [TALK | {"messages": [{"role": "user", "content": None}]}]},
        r"rows\[0\]: messages\[0\] lacks",
    ),
    ({"rows": [TALK | {"messages": [{"content": "a"}]}]}, "lacks a role"),
    ({"rows": [GOOD | {"score": math.nan}]}, "row 1: .*JSON"),
    ({"rejected": [GOOD | {"score": math.inf}]}, "row 1: .*JSON"),
    ({"card": "\ud800"}, "surrogate"),
    ({"rows": [GOOD | {"note": KEYS["hub"]}]}, r"rows\[0\], field 'note'"),
]


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("change, said", REFUSALS)
def test_nothing_is_written_when_it_is_refused(tmp_path, change, said, there):
    folder = tmp_path / "deep" / "sums"
    if there:
        folder.mkdir(parents=True)
        (folder / "data.jsonl").write_text("as it was")
    before = tree(tmp_path)
    asked = {"rows": [GOOD], "card": "a card", "rejected": []} | change
    with pytest.raises(ValueError, match=said):
        publish(folder, **asked)
    assert tree(tmp_path) == before
    publish(folder, [GOOD], "a card")  # what was changed is what was wrong


def test_a_failed_move_leaves_no_half_of_a_new_folder(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(cards.Path, "write_text", full)
    with pytest.raises(OSError, match="disk full"):
        publish(tmp_path / "new", [GOOD], "c")
    assert tree(tmp_path) == {}


def test_the_licence_error_lists_every_problem(tmp_path):
    rows = of("CC-BY-NC-4.0", "")
    with pytest.raises(LicenceError) as caught:
        publish(tmp_path / "x", rows, "c")
    assert caught.value.problems == licence_problems(rows)
    assert len(caught.value.problems) == 2
    assert all(line in str(caught.value) for line in caught.value.problems)
    with pytest.raises(LicenceError):
        publish(tmp_path / "x", rows[:1], "c", allow=["MIT"])
    publish(tmp_path / "x", rows[:1], "c", allow=["CC-BY-NC-4.0"])


def test_old_rejected_rows_are_not_left_beside_new_ones(tmp_path):
    publish(tmp_path, [GOOD], "one", rejected=[GOOD])
    before = tree(tmp_path)
    with pytest.raises(ValueError, match="rejected.jsonl from before"):
        publish(tmp_path, [TALK], "two")
    assert tree(tmp_path) == before
    publish(tmp_path, [TALK], "two", rejected=[TALK])
    assert read_rows(tmp_path / "rejected.jsonl") == [TALK]


def with_text(text):
    """The same text wherever it may hide: (what publish gets, where)."""
    talk = [{"role": "user", "content": f"mine:\n{text}."}]
    return [
        ({"rows": [GOOD, GOOD | {"output": text}]}, "rows[1], field 'output'"),
        ({"rows": [TALK | {"messages": talk}]}, "rows[0], field 'messages'"),
        ({"rows": [GOOD | {"a": {"b": [text]}}]}, "rows[0], field 'a'"),
        ({"rows": [GOOD | {"a": {text: 1}}]}, "rows[0], field 'a'"),
        ({"rows": [GOOD | {f"my {text}": 1}]}, "rows[0], the name of a field"),
        ({"rows": [GOOD | {"licence": text}]}, "rows[0], field 'licence'"),
        ({"rejected": [GOOD | {"a": text}]}, "rejected[0], field 'a'"),
        ({"card": f"a card, KEY={text}"}, "card[0], field 'README.md'"),
    ]


@pytest.mark.parametrize("case", range(8))
@pytest.mark.parametrize("key", KEYS.values(), ids=list(KEYS))
def test_a_key_is_refused_and_never_shown(tmp_path, key, case):
    change, where = with_text(key)[case]
    with pytest.raises(ValueError) as caught:
        publish(tmp_path / "x", **{"rows": [GOOD], "card": "c"} | change)
    said = str(caught.value)
    assert where in said and "API key" in said
    assert key[-8:] not in said and key[:12] not in said
    assert caught.value.__cause__ is None and not tree(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "ask sk-learn, or the hf_hub",
        "a task-oriented-dialogue-of-two-people",
        "AKIA and so on",
        "sk-" + "a" * 19,
        "hf_" + "a" * 29,
        "AKIA" + "A" * 15,
    ],
)
def test_what_is_no_key_passes(tmp_path, text):
    for i, (change, _) in enumerate(with_text(text)):
        asked = {"rows": [GOOD], "card": "c", "allow": [text]} | change
        publish(tmp_path / str(i), **asked)


def test_the_module_is_light():
    code = (
        "import sys, instructft.cards\n"
        "print(*sorted({'yaml', 'torch', 'numpy', 'datasets', "
        "'huggingface_hub'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


# The card of a model

FACTS = {
    "base": {
        "name": "owner/small-model",
        "revision": "0123abc",
        "licence": "Apache-2.0",
    },
    "settings": {"r": 16, "learning_rate": 2e-4},
    "shares": {"exact match, films": (0.0, 0.79, 96)},
    "cost": {
        "tokens": 11_951,
        "minutes": 2.2,
        "memory_gb": 3.7,
        "machine": "2 cores",
    },
    "versions": {"trl": "1.16.0"},
    "how_to_load": "model = load()",
    "known_limits": "One word at a time.",
}


def card_of(rows=(GOOD,), **change):
    return cards.model_card("Mood", "It answers.", rows, **FACTS | change)


def test_a_model_card_says_all_it_was_told():
    front, said = parts(card_of([GOOD, TALK], losses={"plain": (3.77, 3.81)}))
    assert front == {
        "license": "other",
        "license_name": "apache-2.0-and-cc0-1.0-and-mit",
        "license_details": "base model: Apache-2.0; rows: CC0-1.0, MIT",
        "language": ["en"],
        "library_name": "peft",
        "base_model": "owner/small-model",
        "base_model_relation": "adapter",
        "pipeline_tag": "text-generation",
        "tags": ["instruction-tuning", "lora"],
    }
    assert "```python\nmodel = load()\n```" in said["How to load it"]
    assert "1 instance and 1 conversation" in said["What it learned from"]
    assert ["us", "MIT", "1"] in cells(said["What it learned from"])
    measured = cells(said["Before and after"])
    assert measured[2] == [
        *("exact match, films", "96"),
        *("0.0% (0.0% to 3.8%)", "79.0% (69.8% to 86.0%)"),
    ]
    assert ["plain", "3.770", "3.810"] in measured
    assert "Both columns come from the same rows" in said["Before and after"]
    assert ["learning_rate", "0.0002"] in cells(said["How it was trained"])
    assert ["tokens", "11,951"] in cells(said["What it took"])
    assert ["memory_gb", "3.7"] in cells(said["What it took"])
    assert said["Known limits"].strip() == "One word at a time."
    owed = said["Licence and notices owed"]
    assert "owner/small-model (revision: 0123abc)" in owed
    assert "under Apache-2.0, which asks: keep its notices" in owed
    assert ["MIT", "data", "1", cards.DUTIES["notice"]] in cells(owed)
    assert ["trl", "1.16.0"] in cells(said["Versions"])


LACKS = [
    *((f"{what}[{key!r}]", {what: FACTS[what] | {key: None}})
      for what, keys in (("base", "name revision licence"),
                         ("cost", "tokens minutes memory_gb machine"))
      for key in keys.split()),
    *((name, {name: {}}) for name in ("settings", "shares", "versions")),
    *((name, {name: ""}) for name in ("how_to_load", "known_limits")),
    ("its rows", {"shares": {"films": (0.0, 0.8, 0)}}),
]  # fmt: skip


@pytest.mark.parametrize("named, change", LACKS)
def test_a_missing_fact_is_named(named, change):
    with pytest.raises(ValueError, match=re.escape(named)) as refused:
        card_of(**change)
    assert str(refused.value).startswith("the card lacks")
    assert str(refused.value).endswith(": give each")


def test_all_missing_facts_are_named_at_once_and_0_is_none_of_them():
    cost = {"tokens": 0, "minutes": 0, "memory_gb": 1}
    with pytest.raises(ValueError, match="'machine'.*versions") as refused:
        card_of(cost=cost, versions={})
    assert "tokens" not in str(refused.value)


@pytest.mark.parametrize("pair", [(0, 79.0), (-0.1, 0.8), (math.nan, 0.8)])
def test_what_is_no_share_is_named(pair):
    named = r"shares\['films'\].*from 0 to 1"
    with pytest.raises(ValueError, match=named):
        card_of(shares={"all": (0, 1, 9), "films": (*pair, 96)})


def test_what_nobody_could_run_is_no_way_to_load():
    with pytest.raises(ValueError, match="how_to_load is no Python"):
        card_of(how_to_load="model = load(")


@pytest.mark.parametrize(
    "base, rows, name",
    [
        ("Apache-2.0", ["Apache-2.0", "CC0-1.0"], "apache-2.0"),
        ("MIT", ["Apache-2.0"], "other"),  # its notices are not MIT's
        ("MIT", ["MIT", "CC-BY-4.0"], "other"),
        ("CC0-1.0", ["CC0-1.0"], "cc0-1.0"),
        ("CC0-1.0", ["MIT"], "other"),  # the rows ask for more
        ("Apache-2.0", ["CC-BY-SA-4.0"], "other"),
        ("CC-BY-SA-4.0", ["CC0-1.0"], "cc-by-sa-4.0"),
        ("CC-BY-SA-4.0", ["MIT"], "other"),
    ],
)
def test_the_licence_comes_of_base_and_rows(base, rows, name):
    about = FACTS["base"] | {"licence": base}
    front, _ = parts(card_of(of(*rows), base=about))
    assert front["license"] == name
    if name == "other":
        assert base in front["license_details"]
        assert all(row in front["license_details"] for row in rows)


def test_no_card_for_what_may_not_be_given_on():
    with pytest.raises(LicenceError, match="CC-BY-NC-4.0: no commercial use"):
        card_of(of("CC0-1.0", "CC-BY-NC-4.0"))
    llama = FACTS["base"] | {"licence": "Llama 3.2 terms"}
    said = r"rows\[1\] is the base model.*\n?.*first rows\[1\].*terms"
    with pytest.raises(LicenceError, match=said):
        card_of(base=llama)
    front, owed = parts(card_of(base=llama, allow=["Llama 3.2 terms"]))
    assert front["license"] == "other"
    assert "Llama 3.2 terms" in front["license_details"]
    with pytest.raises(ValueError, match="no rows"):
        card_of([])


def no_network(monkeypatch):
    """Let nobody look up an address or connect."""
    import socket

    def called(*_, **__):
        raise AssertionError("somebody called")

    monkeypatch.setattr(socket, "getaddrinfo", called)
    monkeypatch.setattr(socket.socket, "connect", called)


@pytest.mark.parametrize("kind", ["dataset", "model"])
def test_the_hub_reads_the_cards_and_nobody_calls_it(kind, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    no_network(monkeypatch)
    if kind == "model":
        card = hub.ModelCard(card_of(of("MIT", "CC-BY-SA-4.0")))
        assert card.data.base_model == "owner/small-model"
        assert card.data.library_name == "peft"
    else:
        rows = of("MIT", "CC-BY-SA-4.0")
        card = hub.DatasetCard(dataset_card(rows, "Sums", "Some."))
        assert card.data.pretty_name == "Sums"
    assert card.data.license == "other" and card.data.language == ["en"]
    assert yaml.safe_load(card.data.to_yaml()) == card.data.to_dict()


# The folder of an adapter


@pytest.fixture
def adapter(tmp_path):
    """What a trainer leaves: pickle, draft card and a machine's path."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"base_model_name_or_path": "/home/me/models/a", "r": 16}
    files = {
        "adapter_config.json": json.dumps(config),
        "adapter_model.safetensors": "weights",
        "README.md": "base_model: /home/me/models/a",
        "tokenizer.json": "{}",
        "chat_template.jinja": "{{ x }}",
        "trainer_state.json": '"/home/me/runs/checkpoint-1"',
        "training_args.bin": "a pickle",
        "optimizer.pt": "a pickle",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "tokenizer.model").write_bytes(PIECES)
    (folder / "checkpoint-1").mkdir()
    return folder


GIVEN = [
    *("README.md", "adapter_config.json", "adapter_model.safetensors"),
    *("chat_template.jinja", "tokenizer.json", "tokenizer.model"),
]
PIECES = b"\n\x0e\n\x05<unk>\x15\xff\r\n"  # SentencePiece: no text


def test_an_adapter_is_given_on_without_pickles_and_paths(adapter, tmp_path):
    folder = tmp_path / "given"
    made = cards.publish_adapter(folder, adapter, "# A card", "owner/base")
    assert made == folder and sorted(os.listdir(folder)) == GIVEN
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config == {"base_model_name_or_path": "owner/base", "r": 16}
    assert (folder / "README.md").read_text() == "# A card"
    weights = (folder / "adapter_model.safetensors").read_text()
    assert weights == "weights"
    assert (folder / "tokenizer.model").read_bytes() == PIECES
    for path in folder.iterdir():
        assert b"/home/me" not in path.read_bytes()
    cards.publish_adapter(folder, adapter, "# Again", "owner/base")
    assert (folder / "README.md").read_text() == "# Again"
    assert len(os.listdir(tmp_path)) == 2  # nothing from on the way


def test_an_adapter_is_refused_before_anything_is_written(adapter, tmp_path):
    folder = tmp_path / "given"
    for base in ("/home/me/models/a", "name", "a/b/c", ""):
        with pytest.raises(ValueError, match="owner/name"):
            cards.publish_adapter(folder, adapter, "c", base)
    with pytest.raises(ValueError, match="holds checkpoint-1, optimizer.pt"):
        cards.publish_adapter(adapter, adapter, "c", "owner/base")
    full = tmp_path / "full"
    for foreign in ("secrets.json", "NOTES.md", "vocab.json"):
        full.mkdir()
        (full / foreign).write_text("{}")
        with pytest.raises(ValueError, match=f"holds {foreign}, which"):
            cards.publish_adapter(full, adapter, "c", "owner/base")
        assert os.listdir(full) == [foreign]
        (full / foreign).unlink()
        full.rmdir()
    (adapter / "tokenizer.json").write_text(f'{{"a": "{KEYS["hub"]}"}}')
    with pytest.raises(ValueError, match="field 'tokenizer.json'"):
        cards.publish_adapter(folder, adapter, "c", "owner/base")
    (adapter / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="field 'README.md'") as refused:
        cards.publish_adapter(folder, adapter, KEYS["hub"], "owner/base")
    assert KEYS["hub"] not in str(refused.value)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="trainer.save_model"):
        cards.publish_adapter(folder, adapter, "c", "owner/base")
    assert not folder.exists()


# The cell that uploads, as notebook 07 has it


def push_cell():
    """The notebook's own cell, behind its own default for PUSH."""
    path = ROOT / "notebooks" / "07_qlora_sft.ipynb"
    found = json.loads(path.read_text("utf-8"))["cells"]
    texts = {cell["id"]: "".join(cell["source"]) for cell in found}
    [default] = re.findall("^PUSH = .*$", texts["07-parameters"], re.M)
    return f"{default}\n{texts['07-push']}"


class FakeHub:
    """Notes what it is asked, and chooses files as the hub's client does."""

    calls = []

    def __init__(self, **how):
        self.calls.append(("token", how["token"]))

    def create_repo(self, name, private, exist_ok):
        self.calls.append(("create", name, private))

    def upload_folder(self, repo_id, folder_path, ignore_patterns):
        from huggingface_hub.utils import filter_repo_objects

        there = sorted(os.listdir(folder_path))
        sent = filter_repo_objects(there, ignore_patterns=ignore_patterns)
        self.calls.append(("upload", repo_id, list(sent)))


def test_nothing_is_pushed_unless_it_is_asked_for(monkeypatch, capsys):
    no_network(monkeypatch)
    monkeypatch.setattr(FakeHub, "calls", [])
    monkeypatch.delenv("HF_TOKEN", raising=False)
    exec(push_cell(), {"HfApi": FakeHub, "os": os, "WORK": None})
    assert FakeHub.calls == []
    assert "nothing left" in capsys.readouterr().out


def test_a_push_takes_the_adapter_and_its_card(adapter, monkeypatch, capsys):
    pytest.importorskip("huggingface_hub")
    no_network(monkeypatch)
    monkeypatch.setattr(FakeHub, "calls", [])
    monkeypatch.setenv("HF_TOKEN", KEYS["hub"])
    work = adapter.parent
    cards.publish_adapter(work / "release", adapter, "# A", "owner/base")
    (work / "release" / "training_args.bin").write_text("a pickle")
    on = push_cell().replace("PUSH = None", 'PUSH = "me/mine"', 1)
    exec(on, {"HfApi": FakeHub, "os": os, "WORK": work})
    assert FakeHub.calls == [
        ("token", KEYS["hub"]),
        ("create", "me/mine", True),
        ("upload", "me/mine", GIVEN),
    ]
    assert KEYS["hub"] not in push_cell() + capsys.readouterr().out


def test_a_push_without_a_token_in_the_environment_fails(monkeypatch):
    monkeypatch.setattr(FakeHub, "calls", [])
    monkeypatch.delenv("HF_TOKEN", raising=False)
    on = push_cell().replace("PUSH = None", 'PUSH = "me/mine"', 1)
    with pytest.raises(KeyError, match="HF_TOKEN"):
        exec(on, {"HfApi": FakeHub, "os": os, "WORK": None})
    assert FakeHub.calls == []
