"""ROUGE-L to the last bit, and a pool that never decides otherwise."""

import json
import subprocess
import sys
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructft import similarity
from instructft.similarity import (
    Pool,
    groups,
    minhash_pairs,
    overlaps,
    rouge_l,
    words,
)

RUN = Path(__file__).parents[2] / "shared/parity/self_instruct_run"
TEXTS = st.lists(st.sampled_from("a b c d e 7".split()), max_size=9).map(
    " ".join
)


def by_hand(a, b):
    """ROUGE-L by the textbook's recursion."""
    one, other = words(a), words(b)

    @cache
    def common(i, j):
        if i == len(one) or j == len(other):
            return 0
        if one[i] == other[j]:
            return 1 + common(i + 1, j + 1)
        return max(common(i + 1, j), common(i, j + 1))

    size = common(0, 0)
    if not size:
        return 0.0
    precision, recall = size / len(other), size / len(one)
    return 2 * precision * recall / (precision + recall)


@given(a=TEXTS, b=TEXTS)
def test_rouge_l_by_hand(a, b):
    assert rouge_l(a, b) == by_hand(a, b)


def test_a_long_text():
    a = "one two three four " * 100
    assert rouge_l(a, a) == 1.0
    assert rouge_l(a, a.replace("two", "too")) == 0.75
    blocks = SequenceMatcher(None, words(a), words(a)).get_matching_blocks()
    assert sum(block.size for block in blocks) == 400


@pytest.mark.parametrize(
    "a, b, score",
    [
        ("", "", 0.0),
        ("a", "", 0.0),
        ("A", "a", 1.0),
        ("It's", "it s", 1.0),
        ("你好", "你好", 0.0),  # the gate is blind to other scripts
        ("naïve", "na ve", 1.0),
    ],
)
def test_odd_texts(a, b, score):
    assert rouge_l(a, b) == score


def test_exactly_seven_tenths_hangs_on_the_floats():
    """The reference rejects about half of the pairs that are exactly 0.7."""
    over = 0
    pairs = [
        (common, size, other)
        for size in range(1, 151)
        for other in range(1, 151)
        for common in range(1, min(size, other) + 1)
        if 20 * common == 7 * (size + other)
    ]
    for common, size, other in pairs:
        precision, recall = common / other, common / size
        over += 2 * precision * recall / (precision + recall) > 0.7
    # METHODS: 272 of 531
    assert (over, len(pairs)) == (272, 531)
    [(common, size, other)] = [p for p in pairs if p == (7, 10, 10)]
    a = " ".join(f"w{i}" for i in range(10))
    b = " ".join(f"w{i}" if i < 7 else f"x{i}" for i in range(10))
    assert rouge_l(a, b) == 2 * 0.7 * 0.7 / (0.7 + 0.7) == 0.7
    assert Pool([a]).near(b, above=0.7) == []


@settings(max_examples=60)
@given(texts=st.lists(TEXTS, max_size=30), new=TEXTS)
@pytest.mark.parametrize("above", [0.0, 0.3, 0.7])
def test_the_pool_finds_what_all_pairs_find(above, texts, new):
    pool = Pool(texts)
    assert len(pool) == len(texts)
    assert pool.near(new, above) == [
        (i, score)
        for i, text in enumerate(texts)
        if (score := rouge_l(text, new)) > above
    ]


def test_the_pool_grows():
    pool = Pool()
    for i in range(300):
        assert pool.near(f"a{i} b{i} c{i}", 0) == []
        pool.add(f"a{i} b{i} c{i}")
    assert pool.near("b7 c7", 0.7) == [(7, 0.8)]


@given(texts=st.lists(TEXTS, max_size=12))
def test_groups_are_what_chains_of_pairs_join(texts):
    number = groups(texts, above=0.5)
    for i, a in enumerate(texts):
        assert number[i] <= i and number[number[i]] == number[i]
        for j, b in enumerate(texts[:i]):
            if a == b or rouge_l(a, b) > 0.5:
                assert number[i] == number[j]
    # and no text joins a group without a reason
    for i, a in enumerate(texts):
        if number[i] != i:
            assert any(
                a == b or rouge_l(a, b) > 0.5
                for j, b in enumerate(texts)
                if j != i and number[j] == number[i]
            )


def test_a_published_run_has_the_same_scores():
    if not RUN.is_dir():
        pytest.skip(f"{RUN} is not here")
    seeds, made = (
        [json.loads(line) for line in (RUN / name).open(encoding="utf-8")]
        for name in (
            "seed_tasks.jsonl",
            "machine_generated_instructions.jsonl",
        )
    )
    pool = [seed["instruction"] for seed in seeds]
    for row in made:
        text = row["instruction"]
        for other, score in row["most_similar"].items():
            assert rouge_l(other, text) == score
        every = [rouge_l(other, text) for other in pool]
        assert sum(every) / len(every) == pytest.approx(
            row["avg_similarity_score"], abs=1e-12
        )
        assert max(every) <= 0.7
        pool.append(text)
    assert (len(seeds), len(made)) == (175, 54)


def test_the_bench_keeps_what_the_plain_loop_keeps():
    texts = similarity._grown(400)
    kept = []
    for text in texts:
        if all(rouge_l(text, other) <= 0.7 for other in kept):
            kept.append(text)
    assert similarity._accepted(texts) == kept
    assert 300 < len(kept) < 400  # some are near-duplicates


@pytest.mark.parametrize("words", [["1000"], ["no"], ["bench", "5"]])
def test_the_command_says_how(words):
    done = subprocess.run(
        [sys.executable, "-m", "instructft.similarity", *words],
        capture_output=True,
        text=True,
    )
    assert done.returncode and "usage: " in done.stderr


def test_the_bench_prints_a_table():
    done = subprocess.run(
        [sys.executable, "-m", "instructft.similarity", "bench", "1000"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *_, head, line = done.stdout.splitlines()
    assert head.split()[:3] == ["texts", "accepted", "CPU-s"]
    assert line.split()[0] == "1,000" and 800 < int(line.split()[1]) < 1000


# --- MinHash, and what stands in held-out texts ------------------------------


def pairs_above(texts, above):
    return {
        (i, j)
        for j, other in enumerate(texts)
        for i, one in enumerate(texts[:j])
        if rouge_l(one, other) > above
    }


def test_minhash_finds_most_and_not_all():
    texts = similarity._grown(1200)
    exact = pairs_above(texts[:300], 0.7)
    wide = minhash_pairs(texts[:300], rows=2, bands=64)
    assert exact <= wide and len(wide) > 5 * len(exact)
    pool, exact = Pool(), set()
    for j, text in enumerate(texts):
        exact |= {(i, j) for i, _ in pool.near(text, 0.7)}
        pool.add(text)
    found = [
        len(minhash_pairs(texts, *how) & exact) / len(exact)
        for how in ((4, 32), (6, 21), (16, 8))
    ]
    assert found[0] > 0.9 and found[0] >= found[1] > found[2]


def test_minhash_sees_sets_of_words_only():
    texts = ["the dog bit the man", "The man bit the dog!", "", "?", "日本"]
    assert minhash_pairs(texts) == {(0, 1)}
    assert rouge_l(*texts[:2]) < 0.7
    assert minhash_pairs(texts, seed=1) == {(0, 1)}
    assert minhash_pairs([]) == set()


def runs_by_hand(one, other, size):
    """The longest run of words that two texts share, if long enough."""
    a, b = words(one), words(other)
    found = SequenceMatcher(None, a, b, False).find_longest_match()
    return a[found.a : found.a + found.size] if found.size >= size else []


@given(st.lists(TEXTS, max_size=4), st.lists(TEXTS, max_size=4))
@settings(deadline=None)
def test_overlaps_are_the_longest_common_runs(texts, held_out):
    found = overlaps(texts, held_out, size=3)
    lengths = {(o.text, o.held_out): len(o.words.split()) for o in found}
    wanted = {
        (i, j): len(runs_by_hand(one, other, 3))
        for i, one in enumerate(texts)
        for j, other in enumerate(held_out)
        if runs_by_hand(one, other, 3)
    }
    assert lengths == wanted
    for one in found:
        assert f" {one.words} " in f" {' '.join(words(texts[one.text]))} "
        assert one.words in " ".join(words(held_out[one.held_out]))


def test_a_templates_words_are_no_overlap():
    template = "Is the following sentence positive or negative? Sentence:"
    held_out = [f"{template} I liked the old ferry a great deal."]
    row = f"{template} She sold her boat."
    assert len(overlaps([row], held_out, size=5)) == 1
    assert overlaps([row], held_out, size=5, ignore=[template]) == []
    copy = "They said: I liked the old ferry a great deal"
    [found] = overlaps([row, copy], held_out, size=5, ignore=[template])
    assert found.text == 1 and found.held_out == 0
    assert found.words == "i liked the old ferry a great deal"
