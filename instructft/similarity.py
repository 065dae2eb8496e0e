"""How alike two texts are: ROUGE-L, and a pool that asks it of thousands.

ROUGE-L exactly as rouge_score computes it without a stemmer (Lin 2004; the
gate of Self-Instruct, bootstrap_instructions.py), down to the last bit.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

WORD = re.compile(r"[a-z0-9]+")


def words(text: str) -> list[str]:
    """Split a text as rouge_score does: other scripts give no words.

    >>> words("It's 2 o'clock, Zoë!")
    ['it', 's', '2', 'o', 'clock', 'zo']
    """
    return WORD.findall(text.lower())


def rouge_l(a: str, b: str) -> float:
    """Return the ROUGE-L F of two texts, 0 to 1.

    >>> rouge_l("the cat sat", "the cat ran")
    0.6666666666666666
    >>> rouge_l("the cat sat", "")
    0.0
    """
    one, other = words(a), words(b)
    return _f(_common(_masks(one), len(one), other), len(one), len(other))


def _masks(tokens: Sequence[str]) -> dict[str, int]:
    """Say for each word where it stands, one bit a place."""
    masks: dict[str, int] = {}
    for i, token in enumerate(tokens):
        masks[token] = masks.get(token, 0) | 1 << i
    return masks


def _common(masks: dict[str, int], size: int, tokens: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    Bit-parallel: Hyyro, "Bit-parallel LCS-length computation revisited",
    AWOCA 2004. The zeros left in `free` are the matches.
    """
    free = whole = (1 << size) - 1
    for token in tokens:
        if token in masks:
            met = free & masks[token]
            free = (free + met) | (free - met)
    return size - (free & whole).bit_count()


def _f(common: int, size: int, other: int) -> float:
    # not 2 * common / (size + other): at 0.7 the floats differ
    if not common:
        return 0.0
    precision, recall = common / other, common / size
    return 2 * precision * recall / (precision + recall)


class Pool:
    """Texts that a new one is compared with, fast as the pool grows.

    >>> pool = Pool(["Name a colour.", "Sort these numbers."])
    >>> pool.near("Please name a colour.", above=0.7)
    [(0, 0.8571428571428571)]
    """

    def __init__(self, texts: Iterable[str] = ()):
        import numpy as np

        self._tokens: list[list[str]] = []
        # a column each: sizes, and the two halves of the signatures
        self._sizes = np.zeros(64, np.int32)
        self._signs = np.zeros((2, 64), np.uint64)
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, text: str) -> None:
        """Put a text into the pool; its index is the pool's size before."""
        import numpy as np

        tokens, count = words(text), len(self)
        if count == len(self._sizes):
            self._sizes = np.resize(self._sizes, 2 * count)
            self._signs = np.hstack([self._signs, self._signs])
        self._sizes[count] = len(tokens)
        self._signs[:, count] = _sign(tokens)
        self._tokens.append(tokens)

    def near(self, text: str, above: float) -> list[tuple[int, float]]:
        """Return (index, ROUGE-L F) of each text that is more alike.

        `above` is at least 0; in the order of the pool.
        """
        import numpy as np

        tokens, count = words(text), len(self)
        masks, found = _masks(tokens), []
        for i in self._chances(tokens, count, above, np).tolist():
            other = self._tokens[i]
            common = _common(masks, len(tokens), other)
            score = _f(common, len(other), len(tokens))
            if score > above:
                found.append((i, score))
        return found

    def _chances(self, tokens: list[str], count: int, above: float, np):
        """Return the indices that two bounds on the common words leave.

        A word that the other text lacks cannot be common: bits that one
        signature has and the other lacks are at least so many words.
        """
        low, high = map(np.uint64, _sign(tokens))
        (lows, highs), sizes = self._signs[:, :count], self._sizes[:count]

        def lacking(one, ones, other, others):
            bits = np.bitwise_count(one & ~ones)  # 64 at most: a byte does
            bits += np.bitwise_count(other & ~others)
            return bits.astype(np.int32)

        most = len(tokens) - lacking(low, lows, high, highs)
        least = above / 2 * (len(tokens) + sizes) - 1e-6
        left = np.flatnonzero((most > least) & (most > 0))
        extra = lacking(lows[left], low, highs[left], high)
        most = np.minimum(most[left], sizes[left] - extra)
        return left[(most > least[left]) & (most > 0)]

    def scores(self, text: str) -> list[float]:
        """Return the ROUGE-L F with every text, in the order of the pool."""
        tokens = words(text)
        masks, size = _masks(tokens), len(tokens)
        return [
            _f(_common(masks, size, other), len(other), size)
            for other in self._tokens
        ]


def _sign(tokens: Iterable[str]) -> tuple[int, int]:
    """Hash the set of words to 128 bits, the same in every process."""
    from zlib import crc32

    sign = 0
    for token in set(tokens):
        sign |= 1 << (crc32(token.encode()) & 127)
    return sign & (1 << 64) - 1, sign >> 64


def groups(texts: Sequence[str], above: float = 0.7) -> list[int]:
    """Give near-duplicates one number: for each text its group's first index.

    Two texts are in one group if a chain of pairs with a ROUGE-L F over
    `above` joins them, or if they are equal (texts without a word, too).

    >>> groups(["a b c", "x", "a b c d"])
    [0, 1, 0]
    """
    first = list(range(len(texts)))

    def root(i: int) -> int:
        while first[i] != i:
            first[i] = first[first[i]]
            i = first[i]
        return i

    pool, same = Pool(), {}
    for i, text in enumerate(texts):
        near = [j for j, _ in pool.near(text, above)]
        near += [same[text]] if text in same else []
        for j in near:
            low, high = sorted((root(i), root(j)))
            first[high] = low
        pool.add(text)
        same.setdefault(text, i)
    return [root(i) for i in range(len(texts))]


def minhash_pairs(
    texts: Sequence[str], rows: int = 4, bands: int = 32, seed: int = 0
) -> set[tuple[int, int]]:
    """Return pairs of texts (i < j) that MinHash takes for near-duplicates.

    Broder, "On the resemblance and containment of documents", 1997: of the
    sets of words, `bands` x `rows` random minima each. Two texts are a pair
    if all minima of one band agree, so half of those are found that have a
    Jaccard similarity of (1 - 0.5 ** (1 / bands)) ** (1 / rows). Blind to
    the order of words, and inexact: measure its recall against `Pool` on a
    sample of your texts.

    >>> minhash_pairs(["Name a red fruit.", "Sing.", "Name a red fruit!"])
    {(0, 2)}
    """
    import numpy as np

    chance, prime = np.random.default_rng(seed), (1 << 31) - 1
    factor, shift = chance.integers(1, prime, (2, rows * bands), np.uint64)
    buckets: dict[tuple, list[int]] = {}
    for i, text in enumerate(texts):
        if not (found := {*words(text)}):
            continue  # texts without a word are alike to none
        codes = np.array([_code(word) for word in found], np.uint64)
        minima = ((codes[:, None] * factor + shift) % prime).min(0)
        for band, part in enumerate(minima.reshape(bands, rows)):
            buckets.setdefault((band, part.tobytes()), []).append(i)
    return {
        (i, j)
        for same in buckets.values()
        for place, j in enumerate(same)
        for i in same[:place]
    }


def _code(word: str) -> int:
    from zlib import crc32

    return crc32(word.encode()) >> 1  # below the prime's 31 bits


class Overlap(NamedTuple):
    """A run of words that a text shares with a held-out one."""

    text: int  # index
    held_out: int  # index
    words: str


def overlaps(
    texts: Iterable[str],
    held_out: Sequence[str],
    size: int = 8,
    ignore: Iterable[str] = (),
) -> list[Overlap]:
    """Find held-out texts that stand in others: runs of `size` words or more.

    The check for contamination of GPT-3 (Brown et al. 2020, appendix C; 13
    words there). A run that also stands in one of `ignore` is a template's
    and counts for nothing. The longest run of each pair of texts is shown,
    for a reader to judge.

    >>> overlaps(["He said: to be or not."], ["to be or not"], size=4)
    [Overlap(text=0, held_out=0, words='to be or not')]
    """
    known = {run for text in ignore for run, _ in _runs(text, size)}
    places: dict[tuple, list[tuple[int, int]]] = {}
    for j, text in enumerate(held_out):
        for run, place in _runs(text, size):
            if run not in known:
                places.setdefault(run, []).append((j, place))
    longest: dict[tuple[int, int], list[str]] = {}
    for i, text in enumerate(texts):
        before: dict[tuple[int, int], list[str]] = {}
        for run, _ in _runs(text, size):
            now = {}
            for j, place in places.get(run, ()):
                shared = before.get((j, place - 1))
                shared = [*shared, run[-1]] if shared else [*run]
                now[j, place] = shared
                longest[i, j] = max(longest.get((i, j), []), shared, key=len)
            before = now
    return [Overlap(*at, " ".join(run)) for at, run in longest.items()]


def _runs(text: str, size: int) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield each run of `size` words, and where it starts."""
    tokens = words(text)
    for place in range(len(tokens) - size + 1):
        yield tuple(tokens[place : place + size]), place


# python -m instructft.similarity bench


def _grown(count: int, seed: int = 0) -> list[str]:
    """Return instructions as a model grows them: spliced, reworded, new.

    Made from the sentences of data/, so that the bench needs no network.
    """
    import random

    from instructft.instance import read_rows

    fields = ("instruction", "question", "text", "hypothesis", "story")
    found = set()
    data = Path(__file__).resolve().parent.parent / "data"
    written = ("annotated", "collected", "defects", "heldout", "seeds")
    for path in sorted(p for w in written for p in data.glob(f"{w}/*.jsonl")):
        for row in read_rows(path):
            for text in filter(None, map(row.get, fields)):
                found |= {*re.split(r"(?<=[.?!])\s", text)}
    known = sorted(s.split() for s in found if 5 <= len(s.split()) <= 30)
    vocabulary = sorted({word for sentence in known for word in sentence})
    chance, texts = random.Random(seed), []
    for _ in range(count):
        one, other = chance.sample(known, 2)
        if chance.random() < 0.55:
            half = chance.randrange(2, len(one))
            made = one[:half] + other[chance.randrange(1, len(other) - 1) :]
        else:
            made = list(one)
            for _ in range(chance.randrange(1, 2 + len(one) // 3)):
                place = chance.randrange(len(made))
                made[place] = chance.choice(vocabulary)
        texts.append(" ".join(made))
    return texts


def _accepted(texts: Iterable[str], above: float = 0.7) -> list[str]:
    """Keep each text that is not too like one kept before it.

    >>> _accepted(["Name a fruit.", "Name a fruit!", "Sing."])
    ['Name a fruit.', 'Sing.']
    """
    pool, kept = Pool(), []
    for text in texts:
        if not pool.near(text, above):
            pool.add(text)
            kept.append(text)
    return kept


def _bench(sizes: Sequence[int]) -> None:
    """Print what the gate costs as the pool grows, and rouge_score beside."""
    import time

    texts = _grown(max(sizes))
    cost = None
    try:
        from rouge_score.rouge_scorer import RougeScorer

        score = RougeScorer(["rougeL"]).score
        pairs = list(zip(texts[:1000], texts[1:], strict=False))
        start = time.process_time()
        scores = [score(*pair)["rougeL"].fmeasure for pair in pairs]
        cost = (time.process_time() - start) / len(pairs)
        differing = sum(
            rouge_l(*pair) != found
            for pair, found in zip(pairs, scores, strict=True)
        )
        print(
            f"rouge_score: {cost * 1e6:.0f} us a pair; of {len(pairs):,} "
            f"pairs {differing} scores differ from ours"
        )
    except ModuleNotFoundError:
        print("rouge_score is not installed: no column beside ours")
    print("texts   accepted  CPU-s   us a text  ns a pair  times rouge_score")
    for size in sizes:
        start = time.process_time()
        kept = len(_accepted(texts[:size]))
        spent = time.process_time() - start
        # a text meets what was accepted before it
        pairs = size * kept / 2
        times = f"{cost * pairs / spent:,.0f}" if cost else ""
        print(
            f"{size:<7,} {kept:<9,} {spent:<7.2f} {spent / size * 1e6:<10.0f} "
            f"{spent / pairs * 1e9:<10.1f} {times}"
        )


if __name__ == "__main__":
    if sys.argv[1:2] != ["bench"] or not all(
        word.isdigit() and int(word) >= 1000 for word in sys.argv[2:]
    ):
        sys.exit(
            "usage: python -m instructft.similarity bench [1000 5000 ...]"
        )
    _bench([*map(int, sys.argv[2:])] or [1000, 5000, 20_000, 52_000])
