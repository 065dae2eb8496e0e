"""Self-Instruct's rules, on odd replies and on a published run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from instructft.instance import read_rows
from instructft.self_instruct import (
    Novelty,
    alpaca_instances,
    free_instances,
    instructions_in,
    judged,
    kept_instances,
    labelled_instances,
    replay_alpaca,
    replay_instances,
    replay_instructions,
    rule_against,
)

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT.parent / "shared/parity/self_instruct_run"


@pytest.fixture(scope="module")
def run():
    """A published run: (seed instructions, logged rows)."""
    if not RUN.is_dir():
        pytest.skip(f"no {RUN}")
    seeds = read_rows(RUN / "seed_tasks.jsonl")
    rows = read_rows(RUN / "machine_generated_instructions.jsonl")
    return [seed["instruction"] for seed in seeds], rows


# --- stage 1 ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        (" One.\n10. TWO words.\n11 . three", ["One.", "Two words.", "Three"]),
        ("a\n12.b\n13. c", ["A 12.b", "C"]),  # no space after the point
        ("\n9. first", ["First"]),
        ("  \n\t ", []),
        ("one\n\ntwo", ["One two"]),
    ],
)
def test_instructions_in(reply, found):
    assert instructions_in(reply) == found


@pytest.mark.parametrize(
    ("instruction", "rule"),
    [
        ("One two three.", "too short: 3 words"),
        ("word " * 151, "too long: 151 words"),
        ("word " * 150, ""),
        ("Please look at this Image now.", "keyword: image"),
        ("Imagine you are a pirate.", ""),
        ("Where should I go to eat?", "keyword: go to"),
        ("Write a program that counts words.", "asks for a program"),
        ("Write a programme for the evening.", "asks for a program"),
        ("'Quote' the following text please.", "starts with punctuation"),
        ("Écris une lettre de remerciement.", "starts with a character that"),
        # where two rules speak, the first of the released code is named
        ("Draw it.", "too short: 2 words"),
        ("image " * 151, "too long: 151 words"),
        ("Draw a map, then go to it.", "keyword: map"),
        ("Write a program that draws a graph.", "keyword: graph"),
        ("'Graph' is what word, please?", "keyword: graph"),
    ],
)
def test_rule_against(instruction, rule):
    assert rule_against(instruction).startswith(rule)
    assert bool(rule_against(instruction)) == bool(rule)


def test_each_candidate_has_its_verdict():
    novelty = Novelty(["Name three kinds of fruit."])
    reply = "Name three kinds of fruit!\n3. go\n4. Tell me a long story.\n5. "
    reply += "Tell me a long story."
    rules = [v.rule.split(":")[0] for v in judged(reply, "stop", novelty)]
    assert rules == [
        "too like a task of the pool",
        "too short",
        "",
        "too like a task of the pool",
    ]
    assert novelty.texts[1:] == ["Tell me a long story."]
    cut = [v.rule for v in judged(reply, "length", novelty)]
    assert cut == ["the reply was cut off"] * 4


@pytest.mark.parametrize("log", [False, True])
def test_the_threshold_is_that_of_the_released_code(log):
    seven = "one two three four five six seven"
    ten = f"{seven} a b c"
    # all seven of 7 + 13 words: 0.7 on paper, just above it in floats
    over = Novelty([f"{ten} d e f"], log=log).judge(seven)
    assert over.rule == "too like a task of the pool: 0.70"
    # seven of 10 + 10 words: exactly 0.7
    equal = Novelty([ten], log=log).judge(f"{seven} x y z")
    assert equal.rule == "" and equal.near.get(ten, 0.7) == 0.7
    assert bool(equal.near) == log  # else what is not above is not looked at


# --- stages 3 and 4 ---------------------------------------------------------


def test_labelled_instances():
    assert labelled_instances("no label at all") == []
    reply = "x\nClass label:  a \n b\nc\n\nClass label: d"
    assert labelled_instances(reply) == [("b\nc", "a"), ("", "d")]


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("nothing", []),
        ("Output: 4", [("", "4")]),
        ("Input: 2\nOutput 1: 4", [("2", "4")]),
        ("Input: 2\nOutput: 4\nInput: 3\nOutput: 9", [("2", "4")]),
        (
            "Example 1. a\nExample 2\nInput:b\nOutput:c",
            [("", "a"), ("b", "c")],
        ),
        ("For Example: x", [("", "For"), ("", ": x")]),  # as published
        ("The Input: 2\nOutput: 4", [("The Input: 2", "4")]),
    ],
)
def test_free_instances(reply, found):
    assert free_instances(reply) == found


@pytest.mark.parametrize(
    ("instances", "reason", "kept", "rules"),
    [
        ([("a", "b"), ("c", "d")], "length", [("a", "b")], ["the reply was"]),
        ([("a", "a")], "stop", [], ["output equals input"]),
        ([("", "")], "stop", [], ["output equals input"]),
        ([("a", "")], "stop", [], ["empty output"]),
        ([("a:", "b"), ("c", "d:")], "stop", [], ["ends in a colon"] * 2),
        ([("a", "b"), ("a", "c"), ("d", "e")], "stop", [], ["one input"] * 3),
        ([("", "b"), ("", "c")], "stop", [("", "b"), ("", "c")], []),
        ([("a", "b")] * 3, "stop", [("a", "b")], ["repeated"] * 2),
        ([], "length", [], []),
    ],
)
def test_kept_instances(instances, reason, kept, rules):
    found, rejected = kept_instances(instances, reason)
    assert found == kept
    assert len(rejected) == len(rules) == len(instances) - len(kept)
    for (_, rule), start in zip(rejected, rules, strict=True):
        assert rule.startswith(start)


# --- published runs ---------------------------------------------------------


def test_a_published_run_is_accepted_again(run):
    found = replay_instructions(*run)
    assert found["published"] == found["accepted"] == 54
    assert found["differing"] == []
    assert found["scores"] == found["scores equal"] == 540
    assert found["means"] == found["means equal"] == 54


def test_a_run_by_other_rules_is_told_apart(run, monkeypatch):
    seeds, rows = run
    assert replay_instructions(seeds[:-20], rows)["means equal"] < 54
    lower = [row | {"instruction": row["instruction"].lower()} for row in rows]
    assert len(replay_instructions(seeds, lower)["differing"]) > 50
    other = rows[:20] + rows[22:]
    assert len(replay_instructions(seeds, other)["differing"]) == 2
    other = [rows[1], rows[0], *rows[2:]]
    assert len(replay_instructions(seeds, other)["differing"]) == 2
    monkeypatch.setattr(Novelty.__init__, "__defaults__", (0.4, True))
    assert replay_instructions(seeds, rows)["differing"]


def alpaca(run):
    """The published run's rows in the form of an Alpaca file."""
    seeds, rows = run
    return seeds, [
        {
            "instruction": row["instruction"],
            "most_similar_instructions": row["most_similar"],
            "avg_similarity_score": row["avg_similarity_score"],
        }
        for row in rows
    ]


def test_alpaca_files_are_judged_again(run):
    seeds, rows = alpaca(run)
    found = replay_alpaca(seeds, rows)
    assert found["accepted"] == found["published"] == found["means equal"]
    again = replay_alpaca(seeds, rows + rows[:3])
    assert again["rejected"] == {"too like a task of the pool": 3}
    assert again["accepted"] == 54


def raw(instruction, reply, reason="stop"):
    return {
        "instruction": instruction,
        "raw_instances": reply,
        "instance_metadata": {
            "response": {"choices": [{"finish_reason": reason}]}
        },
    }


RAW = [
    raw("Is it good?", "Class label: yes\nfine\nClass label: no\nbad"),
    raw("Double it.", "Example 1\nInput: 2\nOutput: 4\nExample 2\nOutput: 6"),
    raw("Say it.", "nothing of use"),
]
KINDS = {"Is it good?": True, "Double it.": False, "Say it.": False}
PARSED = [
    ("Is it good?", "fine", "yes"),
    ("Is it good?", "bad", "no"),
    ("Double it.", "", "6"),
    ("Double it.", "2", "4"),
]


def rows_of(parsed):
    keys = ("instruction", "input", "output")
    return [dict(zip(keys, row, strict=True)) for row in parsed]


def test_instances_are_parsed_again():
    found = replay_instances(RAW, KINDS, rows_of(PARSED))
    assert found["differing"] == []
    assert found["published"] == found["parsed"] == 4
    assert found["classification"] == 1
    assert found["tasks without an instance"] == 1
    for other in (PARSED[1:], [*PARSED, ("Say it.", "", "so")]):
        assert replay_instances(RAW, KINDS, rows_of(other))["differing"]


def test_of_many_instances_any_five_may_be_published():
    reply = "".join(f"Example {i}\nInput: {i}\nOutput: x" for i in range(8))
    row, names = [raw("Say x.", reply)], {"Say x.": False}
    five = [("Say x.", str(i), "x") for i in range(3, 8)]
    assert not replay_instances(row, names, rows_of(five))["differing"]
    assert replay_instances(row, names, rows_of(five[1:]))["differing"]


# --- the command ------------------------------------------------------------


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "instructft.self_instruct", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def lay(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_command(run, tmp_path):
    done = command("replay", RUN)
    assert done.returncode == 0, done.stderr
    assert "instructions: accepted: 54" in done.stdout
    assert done.stdout.endswith("the same\n")

    seeds, rows = run
    lay(tmp_path / "seed_tasks.jsonl", [{"instruction": s} for s in seeds])
    lay(tmp_path / "machine_generated_instructions.jsonl", rows)
    lay(tmp_path / "machine_generated_instances.jsonl", RAW)
    lay(
        tmp_path / "is_clf_or_not_davinci_template_1.jsonl",
        [
            {"instruction": name, "is_classification": " Yes" * kind}
            for name, kind in KINDS.items()
        ],
    )
    (tmp_path / "finetuning").mkdir()
    made = tmp_path / "finetuning" / "all_generated_instances.jsonl"
    lay(made, rows_of(PARSED))
    done = command("replay", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "instances: parsed: 4" in done.stdout
    lay(made, rows_of(PARSED[1:]))
    done = command("replay", tmp_path)
    assert done.returncode == 1
    assert done.stdout.endswith("NOT the same\n")

    (tmp_path / "regen.json").write_text(json.dumps(alpaca(run)[1]))
    done = command("replay", "--alpaca", tmp_path / "regen.json")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("words", [[], ["replay"], ["replay", "nowhere"]])
def test_command_says_what_is_wrong(words):
    done = command(*words)
    assert done.returncode and "Traceback" not in done.stderr
    assert "FOLDER" in done.stderr or "give the folder" in done.stderr


# --- the Alpaca variant -----------------------------------------------------


def one_call(items, first=4):
    """A reply as the one-call prompt wants it, its head taken off."""
    parts = [
        f"{i}. Instruction: {asked}\n{i}. Input:\n{given}\n"
        f"{i}. Output:\n{answer}\n"
        for i, (asked, given, answer) in enumerate(items, start=first)
    ]
    return "###\n".join(parts).removeprefix(f"{first}. Instruction:")


def test_alpaca_items_are_read_back():
    items = [
        ("Name a fruit that floats.", "<noinput>", "An apple."),
        ("Say the time in words.", "16:45", "a quarter to five\nin 2. Input:"),
        ("Draw the town by night.", "", "x"),
        ("Write a program that adds.", "", "x"),
        ("write a program that adds.", "", "x"),
        ("Describe this song to me, or its music.", "", "x"),
    ]
    found = list(alpaca_instances(one_call(items), "stop"))
    assert found[0] == (
        {
            "instruction": "Name a fruit that floats.",
            "input": "",
            "output": "An apple.",
        },
        "",
    )
    assert found[1][0]["output"].endswith("in 2. Input:")
    rules = [rule for _, rule in found]
    assert rules == [
        *("", "", "keyword: draw", "asks for a program", ""),
        "keyword: music",
    ]
    # as text-davinci-003 was cut off: only the last item goes
    cut = list(alpaca_instances(one_call(items), "length"))
    assert [rule for _, rule in cut] == [*rules[:-1], "the reply was cut off"]


def test_alpaca_items_out_of_step_are_not_whole():
    text = one_call(
        [("Name a fruit now.", "", "Fig"), ("Sing it now.", "", "La")]
    )
    moved = text.replace("5. Output", "6. Output")
    rules = [rule for _, rule in alpaca_instances(moved, "stop")]
    assert rules == ["", "not a whole item"]
    assert [rule for _, rule in alpaca_instances("", "stop")] == [
        "not a whole item"
    ]
    empty = one_call([("", "", "Fig")])
    assert [rule for _, rule in alpaca_instances(empty, "stop")] == ["empty"]
