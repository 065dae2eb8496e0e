"""The exercise checks: right answers pass, usual mistakes are named."""

import itertools
import operator
import re

import pytest

from instructft import checks
from instructft.instance import instance
from instructft.self_instruct import Novelty, kept_instances
from instructft.similarity import rouge_l, words


@pytest.fixture
def said(capsys):
    """Return a call of a check that returns the line it printed."""

    def call(check, *words):
        assert check(*words) is None
        [line] = capsys.readouterr().out.splitlines()
        assert line == "correct" or line.startswith("not yet: ")
        return line

    return call


# --- 00 -------------------------------------------------------------------

SHORT = {"instruction": "Which month?", "input": "Xmas", "output": "12"}


@pytest.mark.parametrize(
    "made, line",
    [
        (SHORT, "correct"),
        (SHORT | {"output": "yes"}, "correct"),
        (None, "not yet: return an instance"),
        ("12", "not yet: a row is a str: write a JSON object"),
        ({}, "not yet: instruction is missing"),
        (SHORT | {"input": ""}, "not yet: give it an input too"),
        (SHORT | {"output": ""}, "not yet: output is empty"),
        (SHORT | {"output": 12}, "not yet: output is int: write a string"),
        (SHORT | {"output": "Xmas"}, "not yet: output equals input"),
        (SHORT | {"output": "123"}, "not yet: 4 tokens count, at most 3"),
        (
            SHORT | {"output": "It is the twelfth."},
            "not yet: 6 tokens count, at most 3 may",
        ),
        (
            SHORT | {"output": "The review is clearly negative."},
            "not yet: 7 tokens count, at most 3 may",
        ),
        (SHORT | {"output": "negative"}, "correct"),
    ],
)
def test_own_instance(said, tokenizer, made, line):
    assert said(checks.own_instance, lambda: made, tokenizer).startswith(line)


def test_own_instance_made_by_the_package(said, tokenizer):
    made = instance(**SHORT, licence="CC0-1.0")
    assert said(checks.own_instance, lambda: made, tokenizer) == "correct"


def right_loss(losses, labels):
    counted = [
        loss for loss, label in zip(losses, labels, strict=True) if label >= 0
    ]
    return sum(counted) / len(counted)


def test_training_loss(said):
    for compute, line in (
        (right_loss, "correct"),
        (lambda losses, labels: None, "not yet: return a number"),
        (
            lambda losses, labels: sum(losses) / len(losses),
            "not yet: the hidden tokens still count",
        ),
        (
            lambda losses, labels: right_loss(losses, labels) * 2,
            "not yet: that is the sum: divide by the number",
        ),
        (
            lambda losses, labels: right_loss(losses, labels) / 2,
            "not yet: divide by the counted tokens, not by all",
        ),
        (lambda losses, labels: 7.0, "not yet: 7.0 instead of 1.5"),
        (lambda losses, labels: float("nan"), "not yet: nan instead of 1.5"),
    ):
        assert said(checks.training_loss, compute).startswith(line)


def test_training_loss_in_torch(said):
    import torch

    def compute(losses, labels):
        return torch.tensor(losses)[torch.tensor(labels) != -100].mean()

    assert said(checks.training_loss, compute) == "correct"


# --- 07 -------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(four_bit, tmp_path_factory):
    """A 4-bit model with adapters, and its merged copy, as in notebook 07."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("tuned")
    torch.manual_seed(0)
    model = get_peft_model(
        four_bit(),
        LoraConfig(
            r=4,
            lora_alpha=12,
            target_modules="all-linear",
            init_lora_weights=False,
            task_type="CAUSAL_LM",
        ),
    )
    model.save_pretrained(folder / "adapter")
    base = PeftModel.from_pretrained(
        four_bit().dequantize(), folder / "adapter"
    )
    base.merge_and_unload().save_pretrained(folder / "merged")
    return model, folder / "merged", AutoModelForCausalLM


def test_adapter_size(said, tuned):
    model = tuned[0]
    for count, line in (
        (lambda d_in, d_out, r: r * (d_in + d_out), "correct"),
        (lambda d_in, d_out, r: None, "not yet: return a number"),
        (lambda d_in, d_out, r: d_in * d_out, "not yet: 4,096 for a layer"),
        (lambda d_in, d_out, r: r * d_in, "not yet: 256 for a layer of 64"),
        (lambda d_in, d_out, r: r * d_in * d_out, "not yet: 16,384 for a"),
    ):
        assert said(checks.adapter_size, count, model).startswith(line)
    line = said(checks.adapter_size, lambda *sizes: 1, model)
    assert line.endswith("it is 256 in A and 256 in B")


def test_adapter_size_looks_at_every_layer(said, tiny):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        tiny, LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    )
    square = said(checks.adapter_size, lambda a, b, r: 2 * r * a, model)
    assert square == (
        "not yet: 256 for a layer of 64 inputs, 32 outputs and rank 2; it "
        "is 128 in A and 64 in B"
    )


def test_adapter_size_without_adapters(said, tiny):
    line = said(checks.adapter_size, lambda *sizes: 1, tiny)
    assert line == "not yet: the model has no LoRA layer"


def right_merge(weight, a, b, alpha):
    return weight + alpha / a.shape[0] * (b @ a)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merge(said, tuned, dtype):
    model, folder, loader = tuned
    merged = loader.from_pretrained(folder, dtype=dtype)
    for by_hand, line in (
        (right_merge, "correct"),
        (lambda w, a, b, alpha: None, "not yet: return a matrix"),
        (
            lambda w, a, b, alpha: w + b @ a,
            "not yet: scale the product by alpha / r",
        ),
        (
            lambda w, a, b, alpha: b @ a,
            "not yet: the matrix differs from PEFT's",
        ),
        (lambda w, a, b, alpha: w, "not yet: the matrix differs"),
        (
            lambda w, a, b, alpha: w + alpha * (b @ a),
            "not yet: the matrix differs",
        ),
        (
            lambda w, a, b, alpha: w + alpha / a.shape[0] * (b @ a).T,
            "not yet: the matrix differs",
        ),
        (lambda w, a, b, alpha: a @ b, "not yet: shape (4, 4), not (64, 64)"),
        (
            lambda w, a, b, alpha: right_merge(w, a, b, alpha) * float("nan"),
            "not yet: the matrix differs",
        ),
    ):
        assert said(checks.merge, by_hand, model, merged).startswith(line)


def test_weights(said):
    scales = 8 / 64 + 32 / (64 * 256)
    for rule, line in (
        (lambda n, rest: n * (4 + scales) / 8 + rest * 2, "correct"),
        (lambda n, rest: None, "not yet: return a number"),
        (lambda n, rest: (n + rest) * 4 / 8, "not yet: both counts"),
        (lambda n, rest: (n + rest) * (4 + scales) / 8, "not yet: the words'"),
        (lambda n, rest: n * 4 / 8 + rest * 2, "not yet: 64 numbers share"),
        (lambda n, rest: n * 4.5 / 8 + rest * 2, "not yet: double quant"),
        (lambda n, rest: 2e9, "not yet: 2.00 GB instead of 5.5"),
    ):
        assert said(checks.weights, rule).startswith(line)


# --- all ------------------------------------------------------------------


# --- 01 -------------------------------------------------------------------

DEFECTS = [
    {"output": str(i), "defect": "empty_output" if i < 50 else "none"}
    for i in range(150)
]


@pytest.mark.parametrize(
    "rule, counts, line",
    [
        (lambda row: int(row["output"]) < 35, "35 of 50", "correct"),
        (lambda row: int(row["output"]) < 60, "50 of 50", "correct"),
        (lambda row: int(row["output"]) < 34, "34 of 50", "not yet: find 35"),
        (lambda row: True, "50 of 50", "not yet: at most 10 sound rows"),
    ],
)
def test_cleaning(capsys, rule, counts, line):
    checks.cleaning(rule, DEFECTS)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{counts} defects found, ")
    assert second.startswith(line)


def test_cleaning_without_a_verdict(said):
    assert said(checks.cleaning, lambda row: None, DEFECTS) == (
        "not yet: return True or False"
    )


def by_group(numbers, share):
    out = {n for n in numbers if n % 5 == 0}
    return (
        [i for i, n in enumerate(numbers) if n not in out],
        [i for i, n in enumerate(numbers) if n in out],
    )


@pytest.mark.parametrize(
    "divide, line",
    [
        (by_group, "correct"),
        (lambda numbers, share: None, "not yet: return two lists"),
        (
            lambda numbers, share: (list(range(48)), list(range(47, 60))),
            "not yet: each index belongs to exactly one side",
        ),
        (
            lambda numbers, share: (list(range(49)), list(range(49, 60))),
            "not yet: 1 groups stand on both sides",
        ),
        (
            lambda numbers, share: (list(range(30)), list(range(30, 60))),
            "not yet: 30 of 60 are held out",
        ),
    ],
)
def test_split(said, divide, line):
    assert said(checks.split, divide).startswith(line)


def test_count_rows(said):
    for count, line in (
        (lambda text: len(text.split("\n")) - 1, "correct"),
        (lambda text: None, "not yet: return a number"),
        (lambda text: len(text.splitlines()), "not yet: U+2028 may stand"),
        (lambda text: 1, "not yet: 1 rows instead of 2"),
    ):
        assert said(checks.count_rows, count).startswith(line)


TALES = [
    {
        "story": f"Story {i}.",
        "options": [f"One {i}.", f"Two {i}."],
        "answer": f"{('One', 'Two')[i % 2]} {i}.",
    }
    for i in range(4)
]
KNOWN = [
    ("{story}\nWhich one of these two fits best?\n{options_}", "{answer}")
]


@pytest.mark.parametrize(
    ("pair", "line"),
    [
        (None, "not yet: return two strings"),
        (("{story}",), "not yet: return two strings"),
        ("ab", "not yet: return two strings"),
        (("{story} {options_}", 1), "not yet: return two strings"),
        (("{story} {options_}", "{options_}"), "not yet: the second"),
        (("{tale}", "{answer}"), "not yet: the row has no field 'tale'"),
        (("{story} {answer}", "{answer}"), "not yet: the prompt holds"),
        (("{options_}", "{answer}"), "not yet: the prompt does not tell"),
        (("{story}", "{answer}"), "not yet: the prompt does not show"),
        (("{story} {options_}", "it"), "not yet: the second string"),
        (KNOWN[0], "not yet: too like another, ROUGE-L 1.00"),
        (("End this. {story} {options_}", "So: {answer}"), "correct"),
    ],
)
def test_pattern(said, pair, line):
    found = said(checks.pattern, lambda: pair, TALES, KNOWN)
    assert found.startswith(line)


def capped(sizes, cap):
    return {task: min(size, cap) for task, size in sizes.items()}


@pytest.mark.parametrize(
    ("compute", "line"),
    [
        (lambda sizes, cap: None, "not yet: return a share"),
        (lambda sizes, cap: 0.5, "not yet: return a share"),
        (lambda sizes, cap: {"big": 1}, "not yet: shares for ['big']"),
        (
            lambda sizes, cap: {t: n / 100_000 for t, n in sizes.items()},
            "not yet: no cap yet",
        ),
        (
            lambda sizes, cap: {
                t: n / 100_000 for t, n in capped(sizes, cap).items()
            },
            "not yet: the shares sum to 0.07",
        ),
        (
            lambda sizes, cap: dict.fromkeys(sizes, 1 / 3),
            "not yet: with a cap of 3000, {'small': 0.33",
        ),
        (
            lambda sizes, cap: {
                t: n / 7000 for t, n in capped(sizes, 3000).items()
            },
            "not yet: with a cap of 2000, {'small': 0.14",
        ),
        (
            lambda sizes, cap: {
                t: n / (1000 + 2 * cap) for t, n in capped(sizes, cap).items()
            },
            "correct",
        ),
    ],
)
def test_rates(said, compute, line):
    assert said(checks.rates, compute).startswith(line)


@pytest.mark.parametrize(
    ("listed", "line"),
    [
        (lambda row: None, "not yet: return the options"),
        (lambda row: row["options"][:1], "not yet: ['One 0.'] are not"),
        (
            lambda row: sorted(row["options"], key=row["answer"].__ne__),
            "not yet: in 4 of 4 rows the right answer is number 1",
        ),
        (
            lambda row: row["options"],
            "not yet: in 4 of 4 rows the right answer is number 1",
        ),
        (lambda row: sorted(row["options"]), "correct"),
    ],
)
def test_options(said, listed, line):
    assert said(checks.options, listed, TALES).startswith(line)


def test_options_in_another_order_each_time(said):
    orders = itertools.cycle([slice(None), slice(None, None, -1)])
    found = said(checks.options, lambda r: r["options"][next(orders)], TALES)
    assert found == "not yet: the same row gives another order each time"


def test_every_check_is_tested_here():
    import ast
    import inspect

    known = {
        node.name
        for node in ast.parse(inspect.getsource(checks)).body
        if isinstance(node, ast.FunctionDef) and node.name[0] != "_"
    }
    with open(__file__, encoding="utf-8") as file:
        text = file.read()
    assert [name for name in known if f"checks.{name}," not in text] == []


# 02b and 03


def right_pause(failed, retry_after):
    asked = retry_after or 0
    if failed >= 8 or asked > 120:
        return None
    return max(asked, min(30, 2 ** (failed - 1)))


def right_cost(usage, price):
    if usage is None or price is None:
        return None
    tokens = usage["prompt_tokens"], usage["completion_tokens"]
    return sum(map(operator.mul, tokens, price)) / 1_000_000


def right_again(status, code, state):
    if code == "insufficient_quota":
        return False
    if status == 200:
        return state == "malformed"
    return status in (0, 429) or status >= 500


def right_accepted(texts, seeds, above):
    novelty = Novelty(seeds, above)
    return sum(not novelty.judge(text).rule for text in texts)


def right_kept(pairs):
    return kept_instances(pairs, "stop")[0]


CASES = [
    (checks.cost, right_cost, "correct"),
    (checks.cost, lambda usage, price: 0.0, "None, not a number"),
    (
        checks.cost,
        lambda usage, price: right_cost(usage, price) or 0.0,
        "None, not a number",
    ),
    (
        checks.cost,
        lambda usage, price: right_cost(usage, price) and 1750.0,
        "for a million tokens",
    ),
    (
        checks.cost,
        lambda usage, price: right_cost(usage, price) and 0.001,
        "instead of",
    ),
    (checks.cost, lambda usage, price: None, "costs 0, not None"),
    (checks.pause, right_pause, "correct"),
    (checks.pause, lambda n, wait: 2 ** (n - 1), "less than our own|asked"),
    (checks.pause, lambda n, wait: None, "wait a second"),
    (checks.again, right_again, "correct"),
    (checks.again, lambda status, code, state: status != 200, "no money"),
    (
        checks.again,
        lambda status, code, state: (
            right_again(status, code, state) or state == "length"
        ),
        "cut answer",
    ),
    (checks.accepted, right_accepted, "correct"),
    (checks.accepted, lambda texts, seeds, above: None, "return a number"),
    (
        checks.accepted,
        lambda texts, seeds, above: sum(
            max(rouge_l(text, seed) for seed in seeds) <= above
            for text in texts
        ),
        "joins the pool",
    ),
    (checks.accepted, lambda texts, seeds, above: 2, "instead of"),
    (checks.accepted, lambda texts, seeds, above: 4, "4 instead of 2 .*0.7$"),
    (
        checks.accepted,  # the stub
        lambda texts, seeds, above: right_accepted(texts, seeds, 0.7),
        "2 instead of 3 above 0.85: `above` changes nothing",
    ),
    (checks.kept, right_kept, "correct"),
    (checks.kept, lambda pairs: None, "return a list"),
    (checks.kept, lambda pairs: pairs, "an empty output"),
    (
        checks.kept,
        lambda pairs: [pair for pair in pairs if pair in right_kept([pair])],
        "twice|two outputs",
    ),
    (checks.is_copy, lambda a, b: rouge_l(a, b) > 0.7, "correct"),
    (checks.is_copy, lambda a, b: None, "case and stops"),
    (
        checks.is_copy,
        lambda a, b: not {*words(a)} ^ {*words(b)},
        "another order",
    ),
]


@pytest.mark.parametrize("check, answer, said", CASES)
def test_generation_exercises(check, answer, said, capsys):
    check(answer)
    found = capsys.readouterr().out.strip()
    assert re.search(said, found), found
    assert (found == "correct") == (said == "correct")


# --- 05a ------------------------------------------------------------------


def test_last_only(said):
    def right(labels):
        end = max(i for i, label in enumerate(labels) if label != -100) + 1
        start = end
        while start and labels[start - 1] != -100:
            start -= 1
        return [-100] * start + labels[start:]

    def in_place(labels):
        labels[:] = right(labels)
        return labels

    def only_label(labels):
        last = max(i for i, label in enumerate(labels) if label != -100)
        return [x if i == last else -100 for i, x in enumerate(labels)]

    def first_run(labels):
        return [-100, 5, 6] + [-100] * (len(labels) - 3)

    def cut(labels):
        return right(labels)[:6]

    def needs_an_end(labels):
        if labels[-1] != -100:
            return labels
        return right(labels)

    for mask, line in (
        (right, "correct"),
        (lambda labels: None, "not yet: return a list of labels"),
        (list, "not yet: both runs still count"),
        (only_label, "not yet: that is the last label only"),
        (first_run, "not yet: that is the first run"),
        (cut, "not yet: the hidden end is lost"),
        (needs_an_end, "not yet: for [-100, 5, -100, 7]"),
        (in_place, "not yet: the labels that were given are changed"),
        (lambda labels: [1], "not yet: for [-100, 5, 6"),
    ):
        assert said(checks.last_only, mask).startswith(line)


def test_red_lines(said):
    mask, stop = "the mask hides the prompt", "every answer teaches to stop"
    for found, line in (
        ({mask, stop}, "correct"),
        ([stop, mask], "correct"),
        (None, "not yet: return the names"),
        (mask, "not yet: return the names"),
        (set(), f"not yet: '{stop}' is red, too"),
        ({mask}, f"not yet: '{stop}' is red, too"),
        ([stop], f"not yet: '{mask}' is red, too"),
        ({mask, stop, "no row is cut"}, "not yet: 'no row is cut' is no red"),
        ([mask, 3], "not yet: '3' is no red line"),
    ):
        assert said(checks.red_lines, lambda found=found: found).startswith(
            line
        )


def test_causes(said):
    right = {
        1: "mask",
        2: "end hidden",
        3: "wrong end",
        4: "cut",
        5: "nothing counts",
        6: "packing",
        7: "collator",
        8: "opens twice",
        9: "target",
        10: "dtype",
    }
    assert said(checks.causes, lambda: right) == "correct"
    assert said(checks.causes, lambda: {}).startswith("not yet: 0 of 10")
    assert said(checks.causes, lambda: None).startswith("not yet: 0 of 10")
    line = said(checks.causes, lambda: right | {7: "mask"})
    assert (
        line == "not yet: 9 of 10; room 7: look at the labels after "
        "data_collator"
    )


def test_gigabytes(said):
    def right(parameters, block=64):
        return parameters * (4 + 8 / block + 32 / block / 256) / 8 / 1e9

    for compute, line in (
        (right, "correct"),
        (lambda n, block=64: None, "not yet: return a number"),
        (lambda n, block=64: n / 2 / 1e9, "not yet: that is the 4 bits alone"),
        (
            lambda n, block=64: n * 4.5 / 8 / 1e9,
            "not yet: that is without double",
        ),
        (
            lambda n, block=64: n * 4.125 / 8 / 1e9,
            "not yet: 256 scales share",
        ),
        (lambda n, block=64: right(n) * 8, "not yet: those are bits"),
        (lambda n, block=64: right(n), "not yet: with block=128"),
        (lambda n, block=64: 1.0, "not yet: 1.0 instead of 3.6"),
    ):
        assert said(checks.gigabytes, compute).startswith(line), line


def test_fitted(said):
    def spaced(block, count=15, off=0.0):
        low, high = block.min(), block.max()
        if low == high:
            return block
        step = (high - low) / count
        return low + ((block - low) / step + off).round() * step

    def symmetric(block):
        scale = block.abs().max()
        return (block / scale * 7).round() / 7 * scale

    def in_place(block):
        block += 1
        return block

    for restore, line in (
        (spaced, "correct"),
        (lambda block: None, "not yet: return the block"),
        (in_place, "not yet: the block that was given"),
        (lambda block: block[:3], "not yet: (3,) came back"),
        (symmetric, "not yet: the smallest and the largest"),
        (lambda block: spaced(block, 31), "not yet: 24 levels"),
        (lambda block: spaced(block, 15, 0.3), "not yet: "),
        (
            lambda block: block if block.std() else block + 1,
            "not yet: 64 levels",
        ),
        (
            lambda block: spaced(block) if block.std() else block + 1,
            "not yet: a block of equal numbers",
        ),
    ):
        assert said(checks.fitted, restore).startswith(line), line


def test_counted_loss(said):
    import torch
    from torch.nn.functional import cross_entropy

    def mean(logits, labels):
        return cross_entropy(logits[:-1], labels[1:])

    def total(logits, labels):
        return cross_entropy(logits[:-1], labels[1:], reduction="sum")

    def unshifted(logits, labels):
        return cross_entropy(logits, labels)

    for compute, line in (
        (mean, "correct"),
        (lambda logits, labels: mean(logits, labels).item(), "correct"),
        (lambda logits, labels: None, "not yet: return a number"),
        (total, "not yet: that is the sum"),
        (unshifted, "not yet: which place's logits"),
        (lambda *_: torch.tensor(0.0), "not yet: which place's logits"),
    ):
        assert said(checks.counted_loss, compute).startswith(line), line


# --- 04, 06 ---------------------------------------------------------------


def right_merged(lines):
    made = []
    for speaker, text in lines:
        role = "user" if speaker == lines[0][0] else "assistant"
        if made and made[-1]["role"] == role:
            made[-1]["content"] += "\n" + text
        else:
            made.append({"role": role, "content": text})
    return made


def right_goodbye(texts):
    count = 0
    for text in texts:
        found = any(w in text.lower() for w in ("bye", "thank", "welcome"))
        count = count + 1 if found else 0
        if count >= 4:
            return True
    return False


def reset_by_each_word(texts):
    count = 0
    for text in texts:
        for word in ("goodbye", "thank", "welcome", "bye"):
            count = count + 1 if word in text else 0
            if count >= 4:
                return True
    return False


def right_recent(messages, window, size):
    start = messages[0]["role"] == "system"
    head, rest = messages[:start], messages[start:]
    while rest and size(head + rest) > window:
        rest = rest[2:]
    return head + rest


def right_rule(messages, phrase):
    made = [dict(message) for message in messages]
    first = next(m for m in made if m["role"] == "user")
    first["content"] = f"End every answer with {phrase} {first['content']}"
    for message in made:
        if message["role"] == "assistant":
            message["content"] += f" {phrase}"
    return made


def rule_in_place(messages, phrase):
    for message in messages:
        message["content"] += f" {phrase}"
    return messages


def right_replay(messages, ask):
    said = []
    for message in messages:
        if message["role"] == "assistant":
            message = {"role": "assistant", "content": ask(said)}
        said = [*said, message]
    return said


def forced_replay(messages, ask):
    return [
        {"role": "assistant", "content": ask(messages[:i])}
        if message["role"] == "assistant"
        else message
        for i, message in enumerate(messages)
    ]


TALKS = [
    (checks.merged, right_merged, "correct"),
    (checks.merged, lambda lines: None, "return a list"),
    (
        checks.merged,
        lambda lines: [m for line in lines for m in right_merged([line])],
        "two speakers",
    ),
    (
        checks.prompt_tokens,
        lambda sizes, system: sum(
            system + sum(sizes[:i]) for i in range(len(sizes))
        ),
        "correct",
    ),
    (checks.prompt_tokens, lambda sizes, system: None, "return a number"),
    (
        checks.prompt_tokens,
        lambda sizes, system: sum(sizes) + system,
        "each message once",
    ),
    (
        checks.prompt_tokens,
        lambda sizes, system: sum(
            system + sum(sizes[: i + 1]) for i in range(len(sizes))
        ),
        "that it is to bring",
    ),
    (checks.prompt_tokens, lambda sizes, system: 55, "give 55, not 23"),
    (
        checks.prompt_tokens,
        lambda sizes, system: sum(sizes[::2]) + system * len(sizes),
        "not 23",
    ),
    (
        checks.prompt_tokens,
        lambda sizes, system: (
            system * 3 * (not sizes)
            + sum(system + sum(sizes[:i]) for i in range(len(sizes)))
        ),
        "no call",
    ),
    (checks.says_goodbye, right_goodbye, "correct"),
    (checks.says_goodbye, reset_by_each_word, "four in a row"),
    (
        checks.says_goodbye,
        lambda texts: sum("bye" in text for text in texts) >= 4,
        "four in a row",
    ),
    (checks.says_goodbye, lambda texts: None, "gives None"),
    (checks.recent, right_recent, "correct"),
    (checks.recent, lambda messages, window, size: None, "return a list"),
    (
        checks.recent,
        lambda messages, window, size: messages[-2:],
        "all of it fits",
    ),
    (
        checks.recent,
        lambda messages, window, size: right_recent(messages, 60, size),
        "two pairs fit",
    ),
    (checks.under_rule, right_rule, "correct"),
    (checks.under_rule, lambda messages, phrase: None, "return messages"),
    (checks.under_rule, rule_in_place, "are changed"),
    (checks.under_rule, lambda messages, phrase: messages, "first user turn"),
    (
        checks.under_rule,
        lambda messages, phrase: right_rule(messages, phrase)[:3],
        "only the first user turn",
    ),
    (
        checks.recent,
        lambda messages, window, size: (
            right_recent(messages, window, size)
            if window > 20
            else messages[:1] + messages[-2:]
        ),
        "not even the last pair",
    ),
    (
        checks.under_rule,
        lambda messages, phrase: [
            m | {"role": "user"} for m in right_rule(messages, phrase)
        ],
        "keeps its role",
    ),
    (
        checks.under_rule,
        lambda messages, phrase: right_rule(
            [{"role": "user", "content": ""}] * (len(messages) < 5) + messages,
            phrase,
        )[-len(messages) :],
        "message 0",
    ),
    (
        checks.replay,
        lambda messages, ask: [
            m | {"role": "user"} for m in right_replay(messages, ask)
        ],
        "keeps its role",
    ),
    (
        checks.replay,
        lambda messages, ask: right_replay(
            [
                m | {"role": ("user", "assistant")[i % 2]}
                for i, m in enumerate(messages)
            ],
            ask,
        ),
        "by one",
    ),
    (checks.replay, right_replay, "correct"),
    (checks.replay, lambda messages, ask: None, "return the conversation"),
    (checks.replay, forced_replay, "answer 2 the model heard"),
]


@pytest.mark.parametrize("check, answer, said", TALKS)
def test_conversation_exercises(check, answer, said, capsys):
    check(answer)
    found = capsys.readouterr().out.strip()
    assert re.search(said, found), found
    assert (found == "correct") == (said == "correct")
