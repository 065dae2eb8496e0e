"""The exercise checks: "correct", or "not yet" and the usual mistake.

Only notebooks and tests import this.
"""

from collections import Counter
from collections.abc import Callable

from instructft.formatting import messages
from instructft.instance import problems_of
from instructft.masking import IGNORE, assistant_labels, supervised
from instructft.similarity import rouge_l
from instructft.templates import fill, is_inverted, mixing_rates


def _say(problem: str) -> None:
    print(f"not yet: {problem}" if problem else "correct")


def own_instance(make: Callable, tokenizer) -> None:
    """Check 00's first and third exercise: short, with an input."""
    made = make()
    if made is None:
        return _say("return an instance")
    if wrong := problems_of(made):
        return _say("; ".join(wrong))
    if not made["input"]:
        return _say("give it an input too")
    row = assistant_labels(tokenizer, messages(made))
    count = len(supervised(row["labels"]))
    _say(f"{count} tokens count, at most 3 may" if count > 3 else "")


def training_loss(compute: Callable) -> None:
    """Check 00's second exercise: the mean over counted tokens only."""
    losses, labels = [9.0, 9.0, 1.0, 2.0], [IGNORE, IGNORE, 7, 8]
    found = compute(losses, labels)
    if found is None:
        return _say("return a number")
    hints = {
        5.25: "the hidden tokens still count: skip where the label is -100",
        3.0: "that is the sum: divide by the number of counted tokens",
        0.75: "divide by the counted tokens, not by all of them",
    }
    if abs(found - 1.5) < 1e-9:
        return _say("")
    _say(hints.get(round(found, 6), f"{found} instead of 1.5"))


def cleaning(is_bad: Callable, rows: list[dict]) -> None:
    """Check 01's exercise: score a rule against the planted defects."""
    verdicts = [is_bad(row) for row in rows]
    if None in verdicts:
        return _say("return True or False")
    bad = [row["defect"] != "none" for row in rows]
    found = sum(v and b for v, b in zip(verdicts, bad, strict=True))
    alarms = sum(v and not b for v, b in zip(verdicts, bad, strict=True))
    print(f"{found} of {sum(bad)} defects found, {alarms} false alarms")
    if alarms > 10:
        return _say(
            "at most 10 sound rows may be lost: which rule takes them?"
        )
    missed = {
        row["defect"]
        for row, v in zip(rows, verdicts, strict=True)
        if row["defect"] != "none" and not v
    }
    if found < 35:
        return _say(f"find 35 or more; missed: {', '.join(sorted(missed))}")
    _say("")


def split(divide: Callable) -> None:
    """Check 01's exercise: groups stay whole, about a share is held out."""
    numbers = [i // 3 for i in range(60)]
    sides = divide(numbers, 0.2)
    if sides is None:
        return _say("return two lists of indices")
    train, held_out = map(list, sides)
    if sorted(train + held_out) != list(range(60)):
        return _say("each index belongs to exactly one side")
    both = {numbers[i] for i in train} & {numbers[i] for i in held_out}
    if both:
        return _say(f"{len(both)} groups stand on both sides: move them whole")
    _say(
        ""
        if 9 <= len(held_out) <= 15
        else f"{len(held_out)} of 60 are held out, about 12 should be"
    )


def count_rows(count: Callable) -> None:
    """Check 01's bug hunt: only a newline ends a row."""
    text = '{"output": "one\u2028two"}\n{"output": "three"}\n'
    found = count(text)
    if found is None:
        return _say("return a number")
    if found == 3:
        return _say(
            "U+2028 may stand inside a JSON string, and splitlines() cuts "
            "there: split on the newline alone"
        )
    _say("" if found == 2 else f"{found} rows instead of 2")


def pattern(make: Callable, rows: list[dict], known: list) -> None:
    """Check 02a's first exercise: a new pattern for story endings."""
    pair = make()
    if not isinstance(pair, (tuple, list)) or [*map(type, pair)] != [str] * 2:
        return _say("return two strings, prompt and answer")
    try:
        made = [[fill(part, row) for part in pair] for row in rows]
    except KeyError as error:
        return _say(error.args[0])
    if is_inverted(pair):
        return _say("the prompt holds {answer}: only the second string may")
    for row, (asked, answer) in zip(rows, made, strict=True):
        if row["story"] not in asked:
            return _say("the prompt does not tell the {story}")
        if not all(option in asked for option in row["options"]):
            return _say("the prompt does not show the {options_}")
        if not (row["answer"] in answer and "{answer}" in pair[1]):
            return _say("the second string does not hold the {answer}")
    near = max(known, key=lambda other: rouge_l(pair[0], other[0]))
    alike = rouge_l(pair[0], near[0])
    _say(
        f"too like another, ROUGE-L {alike:.2f}: {near}" if alike > 0.7 else ""
    )


def rates(compute: Callable) -> None:
    """Check 02a's second exercise: examples-proportional mixing."""
    sizes = {"small": 1000, "middle": 3000, "big": 96_000}
    for cap in (3000, 2000):
        found, wanted = compute(sizes, cap), mixing_rates(sizes, cap)
        if not isinstance(found, dict):
            return _say("return a share for each task, as a dict")
        if set(found) != set(wanted):
            return _say(f"shares for {list(found)}, not for {list(wanted)}")
        if all(abs(found[task] - wanted[task]) < 1e-9 for task in wanted):
            continue
        if abs(found["big"] - 0.96) < 1e-9:
            return _say("no cap yet: a task counts for at most `cap` rows")
        if abs(sum(found.values()) - 1) > 1e-9:
            return _say(
                f"the shares sum to {sum(found.values()):.2f}: divide by the "
                "sum of what is left after the cap"
            )
        return _say(f"with a cap of {cap}, {found} instead of {wanted}")
    _say("")


def options(listed: Callable, rows: list[dict]) -> None:
    """Check 02a's bug hunt: the answer's place must not tell."""
    places = []
    for row in rows:
        # however a colleague's file may order them
        rest = [text for text in row["options"] if text != row["answer"]]
        row = row | {"options": [row["answer"], *rest]}
        found = listed(row)
        if found is None:
            return _say("return the options")
        if sorted(found) != sorted(row["options"]):
            return _say(f"{found} are not the options {row['options']}")
        if found != listed(row):
            return _say("the same row gives another order each time")
        places.append(found.index(row["answer"]))
    place, most = Counter(places).most_common(1)[0]
    if most > 1.5 * len(rows) / len(rows[0]["options"]):
        return _say(
            f"in {most} of {len(rows)} rows the right answer is number "
            f"{place + 1}: the model learns the place, not the task"
        )
    _say("")


def cost(compute: Callable) -> None:
    """Check 02b's first exercise: dollars, or None where nobody knows."""
    usage = {"prompt_tokens": 2000, "completion_tokens": 500}
    for one, price in ((None, (1.0, 2.0)), (usage, None)):
        if compute(one, price) is not None:
            return _say("what nobody knows is None, not a number")
    if compute(usage, (0, 0)) is None:
        return _say("a price of nothing is known: it costs 0, not None")
    found = compute(usage, (0.5, 1.5))
    if not isinstance(found, (int, float)):
        return _say("return dollars")
    if abs(found - 0.00175) < 1e-12:
        return _say("")
    if abs(found - 1750) < 1e-6:
        return _say("the price is for a million tokens")
    _say(f"{found} instead of 0.00175 for 2,000 + 500 tokens at (0.5, 1.5)")


def pause(compute: Callable) -> None:
    """Check 02b's second exercise: how long to wait before another try."""
    cases = [
        ((1, None), 1, "after the first failure wait a second"),
        ((3, None), 4, "the pause doubles: 1, 2, 4, ..."),
        ((4, 3), 8, "the endpoint asked for less than our own pause"),
        ((2, 45), 45, "the endpoint asked for 45 seconds"),
        ((1, 120), 120, "two minutes are not more than two minutes"),
        ((1, 121), None, "over two minutes: give up"),
        ((7, None), 30, "never more than 30 seconds of our own"),
        ((8, None), None, "eight failures are enough: give up"),
        ((8, 10), None, "eight failures are enough, whatever is asked"),
    ]
    for given, wanted, why in cases:
        if (found := compute(*given)) != wanted:
            return _say(f"{given} gives {found}, not {wanted}: {why}")
    _say("")


def again(rule: Callable) -> None:
    """Check 02b's bug hunt: what is worth another try."""
    cases = [
        ((429, "insufficient_quota", ""), False, "no money comes by waiting"),
        ((401, "invalid_api_key", ""), False, "the key stays wrong"),
        ((404, "model_not_found", ""), False, "the model stays unknown"),
        ((402, None, ""), False, "402 means: pay first"),
        ((0, None, ""), True, "no status: the connection broke"),
        ((400, "invalid", ""), False, "a bad request stays bad"),
        ((200, None, "refused"), False, "a refusal is an answer, and paid"),
        ((200, None, "length"), False, "a cut answer is one, and paid"),
        ((200, None, "filtered"), False, "the filter will say so again"),
        ((200, None, "empty"), False, "silence is an answer, and paid"),
        ((200, None, "ok"), False, "all went well"),
        ((200, None, "malformed"), True, "a broken reply may come whole"),
        ((429, "rate_limit_exceeded", ""), True, "too many passes by itself"),
        ((500, None, ""), True, "a crash may pass"),
        ((503, None, ""), True, "overload may pass"),
    ]
    for given, wanted, why in cases:
        if (found := rule(*given)) is None or bool(found) != wanted:
            return _say(f"{given} gives {found}, not {wanted}: {why}")
    _say("")


def accepted(count: Callable) -> None:
    """Check 03's first exercise: what another threshold lets in."""
    seeds = ["Name three kinds of fruit.", "Describe the sea at night."]
    texts = [
        "Name three kinds of bread.",  # 0.8 with a seed
        "Name two ways to bake bread.",
        "Name two ways to bake good bread.",  # 0.92 with the one before
        "Sing about rain and wind.",
    ]
    for above, wanted in ((0.7, 2), (0.85, 3), (0.95, 4)):
        found = count(texts, seeds, above)
        if found is None:
            return _say("return a number")
        if above == 0.7 and found == wanted + 1:
            return _say("an accepted candidate joins the pool at once")
        if found != wanted:
            why = ": `above` changes nothing" if found == 2 else ""
            return _say(f"{found} instead of {wanted} above {above}{why}")
    _say("")


def kept(rule: Callable) -> None:
    """Check 03's second exercise: stage 4's rules for a task's instances."""
    cases = [
        ([("2", "4"), ("3", "6")], [("2", "4"), ("3", "6")], "both are fine"),
        ([("2", "")], [], "an empty output"),
        ([("2", "2")], [], "an output equal to its input"),
        ([("2", "4:"), ("3:", "6")], [], "a field that ends in a colon"),
        ([("2", "4"), ("2", "4")], [("2", "4")], "the same pair twice"),
        ([("2", "4"), ("2", "5"), ("3", "6")], [], "one input, two outputs"),
        ([("", "a"), ("", "b")], [("", "a"), ("", "b")], "inputs are empty"),
        ([("2", "4"), ("2", "")], [("2", "4")], "the empty one went before"),
    ]
    for pairs, wanted, why in cases:
        found = rule(list(pairs))
        if found is None:
            return _say("return a list of pairs")
        if list(map(tuple, found)) != wanted:
            return _say(f"{pairs} gives {found}, not {wanted}: {why}")
    _say("")


def is_copy(rule: Callable) -> None:
    """Check 03's bug hunt: ROUGE-L, not sets of words."""
    cases = [
        ("Name a fruit.", "name a fruit", True, "case and stops do not count"),
        (
            "Say if the dog bit the man.",
            "The man bit the dog: say if.",
            False,
            "the same words in another order",
        ),
        ("Name a fruit.", "Sing about the sea.", False, "nothing in common"),
        ("a b c d e f g", "a b c d e x y", True, "0.714"),
        ("a b c d e f g h i j", "a b c d e f w x y z", False, "0.6"),
        ("a b c d", "a b c d e f g h", False, "0.67: half of one text"),
        ("a b c d e f g h", "a b c d", False, "0.67: half of one text"),
        ("?!", "?!", False, "no word at all: nothing to compare"),
    ]
    for one, other, wanted, why in cases:
        found = rule(one, other)
        if found is None or bool(found) != wanted:
            return _say(f"{one!r} and {other!r} give {found}: {why}")
    _say("")


def merged(merge: Callable) -> None:
    """Check 04's first exercise: the lines of a chat become messages."""
    cases = [
        ([("a", "Hi"), ("b", "Hello")], ["Hi", "Hello"], "two speakers"),
        (
            [("a", "Hi"), ("a", "there"), ("b", "Hello")],
            ["Hi\nthere", "Hello"],
            "two lines in a row are one message",
        ),
        (
            [("a", "1"), ("b", "2"), ("a", "3"), ("a", "4")],
            ["1", "2", "3\n4"],
            "the first speaker's later lines are no part of the first message",
        ),
        (
            [("a", "1"), ("b", "2"), ("c", "3"), ("a", "4")],
            ["1", "2\n3", "4"],
            "everybody but the first speaker is the assistant",
        ),
        ([], [], "no line at all"),
    ]
    for lines, texts, why in cases:
        found = merge(list(lines))
        roles = ("user", "assistant")
        wanted = [
            {"role": roles[i % 2], "content": text}
            for i, text in enumerate(texts)
        ]
        if found is None:
            return _say("return a list of messages")
        if found != wanted:
            return _say(f"{lines} gives {found}: {why}")
    _say("")


def prompt_tokens(count: Callable) -> None:
    """Check 04's second exercise: the history is paid for at each call."""
    found = count([10, 20, 30], 5)
    hints = {
        65: "that is each message once: every call sends all before it again",
        75: "that is each message once: every call sends all before it again",
        115: "a call cannot send the message that it is to bring",
        40: "each call sends its role prompt again",
        45: "each call sends its role prompt again",
        100: "a call cannot send the message that it is to bring",
    }
    if found is None:
        return _say("return a number of tokens")
    if found != 55:
        return _say(hints.get(found, f"{found} instead of 55"))
    if (found := count([1, 2, 4, 8], 3)) != 23:
        return _say(f"[1, 2, 4, 8] and 3 give {found}, not 23")
    _say("" if count([], 5) == 0 else "without a message there is no call")


def says_goodbye(rule: Callable) -> None:
    """Check 04's bug hunt: four messages in a row, each with any word."""
    cases = [
        (["Thank you", "Welcome", "Bye", "Goodbye"], True, "four in a row"),
        (["thank you", "so welcome", "bye", "goodbye"], True, "four in a row"),
        (["Thanks a lot, bye"], False, "two words in one message are one"),
        (["bye thank welcome goodbye"], False, "one message"),
        (["bye", "bye", "bye", "And now?", "bye"], False, "one between"),
        (["bye", "bye", "bye"], False, "three"),
        (["Hi", "bye", "bye", "bye", "bye", "Hi"], True, "it was over before"),
        (["x"] * 9, False, "no farewell at all"),
    ]
    for texts, wanted, why in cases:
        found = rule(list(texts))
        if found is None or bool(found) != wanted:
            return _say(f"{texts} gives {found}: {why}")
    _say("")


def last_only(mask: Callable) -> None:
    """Check 05a's first exercise: the last run of labels alone."""
    given = [IGNORE, 5, 6, IGNORE, 7, 8, IGNORE]
    found = mask(list(given))
    if found is None:
        return _say("return a list of labels")
    hints = {
        (IGNORE, IGNORE, IGNORE, IGNORE, IGNORE, 8, IGNORE): "that is the "
        "last label only: its whole run shall stay",
        (IGNORE, 5, 6, IGNORE, IGNORE, IGNORE, IGNORE): "that is the first "
        "run: keep the last",
        tuple(given): "both runs still count",
        (IGNORE, IGNORE, IGNORE, IGNORE, 7, 8): "the hidden end is lost: as "
        "many labels must come back as went in",
    }
    if list(found) != [IGNORE] * 4 + [7, 8, IGNORE]:
        return _say(hints.get(tuple(found), f"for {given} came {found}"))
    at_end, kept = [IGNORE, 5, IGNORE, 7], [IGNORE, 5, IGNORE, 7]
    if list(mask(at_end)) != [IGNORE, IGNORE, IGNORE, 7]:
        return _say(f"for {kept}, where the last run ends the row, it fails")
    _say("" if at_end == kept else "the labels that were given are changed")


def red_lines(name: Callable) -> None:
    """Check 05a's second exercise: what a loss on everything turns red."""
    found = name()
    if found is None or isinstance(found, str):
        return _say("return the names of the red lines, as a set")
    right = {"the mask hides the prompt", "every answer teaches to stop"}
    if extra := sorted({str(line) for line in found} - right):
        return _say(f"{extra[0]!r} is no red line of this run")
    if missing := sorted(right - set(found)):
        return _say(f"{missing[0]!r} is red, too")
    _say("")


def causes(name: Callable) -> None:
    """Check 05a's third exercise: the cause in each of the ten rooms."""
    right = {
        1: ("mask", "which tokens are in the loss?"),
        2: ("end hidden", "what is the last token that counts?"),
        3: ("wrong end", "compare eos_token_id with what stops generation"),
        4: ("cut", "how long are the rows, and how long may they be?"),
        5: ("nothing counts", "count the labels that are not -100"),
        6: ("packing", "where does a pack begin, and where a row?"),
        7: ("collator", "look at the labels after data_collator"),
        8: ("opens twice", "decode the first three ids"),
        9: ("target", "which layers have an adapter?"),
        10: ("dtype", "what is a CPU without bf16 instructions to do?"),
    }
    found = name() or {}
    wrong = [room for room in right if found.get(room) != right[room][0]]
    if not wrong:
        return _say("")
    _say(
        f"{len(right) - len(wrong)} of {len(right)}; room {wrong[0]}: "
        f"{right[wrong[0]][1]}"
    )


def recent(keep: Callable) -> None:
    """Check 06's first exercise: the system message, and the last pairs."""
    roles = ("user", "assistant")
    talk = [{"role": roles[i % 2], "content": "x" * 10} for i in range(6)]
    head = [{"role": "system", "content": "x" * 5}]

    def size(messages):
        return sum(len(message["content"]) for message in messages)

    cases = [
        (talk, 60, talk, "all of it fits"),
        (talk, 45, talk[2:], "two pairs fit"),
        (talk, 39, talk[4:], "half a pair is none"),
        (head + talk, 64, head + talk[2:], "the system message counts, too"),
        (head + talk, 25, head + talk[4:], "the system message stays"),
        (head + talk, 20, head, "not even the last pair fits"),
    ]
    for talked, window, wanted, why in cases:
        given = list(talked)
        found = keep(given, window, size)
        if found is None:
            return _say("return a list of messages")
        if found != wanted or given != talked:
            count = len(talked)
            return _say(
                f"of {count} messages in {window} tokens {len(found)} are "
                f"kept, not the right {len(wanted)}: {why}"
            )
    _say("")


def under_rule(change: Callable) -> None:
    """Check 06's second exercise: a rule in turn 1, kept in each answer."""
    texts = (
        "You are a baker.",
        "What rises?",
        "Dough.",
        "And falls?",
        "Rain.",
    )
    roles = ("system", "user", "assistant", "user", "assistant")
    given = [
        {"role": role, "content": text}
        for role, text in zip(roles, texts, strict=True)
    ]
    before = [dict(message) for message in given]
    found = change(given, "Ahoy!")
    if found is None:
        return _say("return messages")
    if given != before:
        return _say("the messages that were given are changed: copy each")
    said = [message["content"] for message in found]
    if len(said) != len(texts) or said[0] != texts[0] or said[3] != texts[3]:
        return _say("only the first user turn and the answers change")
    if said[1] != f"End every answer with Ahoy! {texts[1]}":
        return _say(f"the first user turn is {said[1]!r}")
    wrong = [i for i in (2, 4) if said[i] != f"{texts[i]} Ahoy!"]
    if wrong:
        return _say(f"message {wrong[0]} is {said[wrong[0]]!r}")
    if [message["role"] for message in found] != list(roles):
        return _say("each message keeps its role")
    bare = [dict(message) for message in before[1:]]
    right = change(bare, "Ahoy!") == found[1:]
    _say("" if right else "without a system message the user's is message 0")


def replay(lead: Callable) -> None:
    """Check 06's bug hunt: a model hears its own answers."""
    roles = ("user", "assistant")
    given = [{"role": roles[i % 2], "content": str(i)} for i in range(6)]
    heard: list[list[str]] = []

    def ask(messages):
        heard.append([message["content"] for message in messages])
        return f"own {len(heard)}"

    found = lead(given, ask)
    if found is None:
        return _say("return the conversation")
    wanted = [["0"], ["0", "own 1", "2"], ["0", "own 1", "2", "own 2", "4"]]
    for number, (one, other) in enumerate(
        zip(heard, wanted, strict=False), start=1
    ):
        if one != other:
            return _say(f"for answer {number} the model heard {one}")
    said = [message["content"] for message in found]
    right = ["0", "own 1", "2", "own 2", "4", "own 3"]
    if said != right:
        return _say(f"the conversation is {said}, not {right}")
    if [m["role"] for m in found] != [m["role"] for m in given]:
        return _say("each message keeps its role")
    heard.clear()
    lead([{"role": "system", "content": "s"}, *given], ask)
    right = heard[:1] == [["s", "0"]]
    _say("" if right else "a system message moves the turns by one")


def gigabytes(compute: Callable) -> None:
    """Check 05b's first exercise: bytes of NF4 with double quantisation."""
    found = compute(7_000_000_000)
    if found is None:
        return _say("return a number of gigabytes")
    hints = {
        3.5: "that is the 4 bits alone: a block of 64 has a scale",
        3.9375: "that is without double quantisation: a scale has 8 bits",
        3.609375: "256 scales share one more number of 32 bits",
        28.888672: "those are bits: a byte has 8",
    }
    right = 7 * (4 + 8 / 64 + 32 / 64 / 256) / 8
    if abs(found - right) > 1e-6:
        hint = hints.get(round(found, 6), f"{found} instead of {right:.4f}")
        return _say(hint)
    right = (4 + 8 / 128 + 32 / 128 / 256) / 8
    same = abs(compute(1_000_000_000, block=128) - right) < 1e-6
    _say("" if same else "with block=128 it is another number: use `block`")


def fitted(restore: Callable) -> None:
    """Check 05b's second exercise: 16 levels from a block's own ends."""
    import torch

    block = torch.randn(64, generator=torch.Generator().manual_seed(0)) + 1
    given = block.clone()
    found = restore(block)
    if found is None:
        return _say("return the block's numbers as they come back")
    if not torch.equal(block, given):
        return _say("the block that was given is changed")
    low, high = block.min(), block.max()
    levels = low + torch.arange(16) * (high - low) / 15
    right = levels[(block[:, None] - levels).abs().argmin(1)]
    if found.shape != block.shape:
        return _say(f"{tuple(found.shape)} came back for {tuple(block.shape)}")
    if torch.allclose(found, right, atol=1e-5):
        flat = torch.full((64,), 0.25)
        same = torch.equal(torch.as_tensor(restore(flat)), flat)
        return _say("" if same else "a block of equal numbers is changed")
    if len(found.unique()) > 16:
        return _say(f"{len(found.unique())} levels came back, not 16")
    if (found.min() - low).abs() > 1e-5 or (found.max() - high).abs() > 1e-5:
        return _say("the smallest and the largest number are levels")
    _say("each number takes its nearest level: round, do not cut off")


def counted_loss(compute: Callable) -> None:
    """Check 05b's third exercise against the sum written out."""
    import torch

    chance = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 9, generator=chance)
    labels = torch.tensor([IGNORE, IGNORE, 4, 7, IGNORE, 2])
    right = -sum(
        logits[i - 1].log_softmax(-1)[labels[i]].item() for i in (2, 3, 5)
    )
    found = compute(logits, labels)
    if found is None:
        return _say("return a number")
    if abs(float(found) - right / 3) < 1e-5:
        return _say("")
    if abs(float(found) - right) < 1e-5:
        return _say("that is the sum: return the mean")
    _say("which place's logits are asked for the label at place i?")


def adapter_size(count: Callable, model) -> None:
    """Check 07's first exercise against the adapters of a PEFT model."""
    layers = [m for m in model.modules() if getattr(m, "lora_A", None)]
    for layer in layers:
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        found = count(a.shape[1], b.shape[0], a.shape[0])
        if found is None:
            return _say("return a number")
        if found != a.numel() + b.numel():
            return _say(
                f"{found:,} for a layer of {a.shape[1]} inputs, {b.shape[0]} "
                f"outputs and rank {a.shape[0]}; it is {a.numel():,} in A "
                f"and {b.numel():,} in B"
            )
    _say("" if layers else "the model has no LoRA layer")


def merge(by_hand: Callable, model, merged) -> None:
    """Check 07's second exercise against PEFT's own merge."""
    import bitsandbytes.functional as bnb
    import torch

    name, layer = next(
        (name.split("base_model.model.")[-1], module)
        for name, module in model.named_modules()
        if getattr(module, "lora_A", None)
    )
    stored = layer.base_layer.weight
    weight = bnb.dequantize_4bit(stored.data, stored.quant_state).float().cpu()
    a = layer.lora_A["default"].weight.detach().float().cpu()
    b = layer.lora_B["default"].weight.detach().float().cpu()
    found = by_hand(weight, a, b, layer.lora_alpha["default"])
    if found is None:
        return _say("return a matrix")
    wanted = merged.get_submodule(name).weight.detach().float().cpu()
    if found.shape != wanted.shape:
        return _say(f"shape {tuple(found.shape)}, not {tuple(wanted.shape)}")
    # half a step of the merged copy's own dtype, and float32's rounding
    step = torch.finfo(merged.dtype).eps * wanted.abs().max()
    if (found - wanted).abs().max() <= 4 * step:
        return _say("")
    if (found - weight - b @ a).abs().max() <= 4 * step:
        return _say("scale the product by alpha / r")
    _say("the matrix differs from PEFT's: weight plus the scaled product")


def weights(rule: Callable) -> None:
    """Check 07's bug hunt: what 4 bit weights take, in bytes."""
    linear, rest = 6_525_288_448, 1_089_994_752
    found = rule(linear, rest)
    if found is None:
        return _say("return a number of bytes")
    scales = 8 / 64 + 32 / (64 * 256)
    wanted = linear * (4 + scales) / 8 + rest * 2
    if abs(found / wanted - 1) < 1e-6:
        return _say("")
    causes = {
        (linear + rest) / 2: "both counts are taken for 4 bit: the words' "
        "matrices (`rest`) stay in 16",
        (linear + rest) * (4 + scales) / 8: "the words' matrices (`rest`) "
        "stay in 16 bit",
        linear / 2 + rest * 2: "64 numbers share a scale of 8 bits, and 256 "
        "scales one of 32",
        linear * 4.5 / 8 + rest * 2: "double quantisation: a scale takes 8 "
        "bits, not 32, and 256 scales share one of 32",
    }
    for bytes_of, cause in causes.items():
        if abs(found / bytes_of - 1) < 1e-6:
            return _say(cause)
    _say(f"{found / 1e9:.2f} GB instead of {wanted / 1e9:.2f}")
