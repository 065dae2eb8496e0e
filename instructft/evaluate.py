"""Before against after: what tuning bought, and what it cost.

Answers are greedy, so that a figure can be measured again.
"""

import sys
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from instructft import scores
from instructft.formatting import token_ids
from instructft.instance import BadRows, read_rows
from instructft.masking import IGNORE, assistant_labels


@contextmanager
def _evaluating(model):
    """Switch dropout off for a while: a trainer leaves it on.

    bitsandbytes' 4-bit layers stay as they are. They have no dropout, and
    on a CPU with AVX512-BF16 its `eval()` repacks their weights for good:
    answers become bfloat16's, and later training gets no gradient through
    them, without an error (bitsandbytes/nn/modules.py, 0.50).
    """
    was = [(module, module.training) for module in model.modules()]
    for module, _ in was:
        module.training = type(module).__module__.startswith("bitsandbytes")
    try:
        yield
    finally:
        for module, training in was:
            module.training = training


def _batches(tokenizer, prompts, batch_size: int, progress: bool = False):
    """Yield (indices, padded batch) of prompts, those of like length together.

    Padded on the left, so that every prompt ends where its answer starts.
    """
    from tqdm.auto import tqdm

    texts = [
        tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=False
        )
        for prompt in prompts
    ]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, disable=not progress, unit="batch"):
        chosen = order[start : start + batch_size]
        yield (
            chosen,
            tokenizer(
                [texts[i] for i in chosen],
                add_special_tokens=False,  # the template wrote them
                padding=True,
                padding_side="left",
                return_tensors="pt",
            ),
        )


class Answer(NamedTuple):
    """A model's answer, and how it came to its end."""

    text: str  # decoded without special tokens, stripped
    tokens: int  # without the end token
    stopped: bool  # by an end token; else it was cut off


def replies(
    model,
    tokenizer,
    prompts: Sequence[list[dict]],
    max_new_tokens: int = 8,
    batch_size: int = 32,
    progress: bool = False,
) -> list[Answer]:
    """Ask a model: n prompts (lists of messages) in, n Answers out.

    Greedy decoding, without the repetition penalty that a model's generation
    config may hold. What ends an answer is the end token, or one of several,
    in the model's generation config; it counts among the
    `max_new_tokens`.
    """
    import torch

    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    found: list[Answer] = [Answer("", 0, False)] * len(prompts)
    with _evaluating(model), torch.inference_mode():
        for chosen, batch in _batches(
            tokenizer, prompts, batch_size, progress
        ):
            made = model.generate(
                **batch.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                repetition_penalty=1.0,
                pad_token_id=tokenizer.pad_token_id,
            )
            new = made[:, batch["input_ids"].shape[1] :].tolist()
            for i, ids in zip(chosen, new, strict=True):
                text = tokenizer.decode(ids, skip_special_tokens=True)
                # behind the end token there is padding only
                size = next((n for n, t in enumerate(ids) if t in ends), None)
                stopped = size is not None
                size = size if stopped else len(ids)
                found[i] = Answer(text.strip(), size, stopped)
    return found


def answers(
    model,
    tokenizer,
    prompts: Sequence[list[dict]],
    max_new_tokens: int = 8,
    batch_size: int = 32,
    progress: bool = False,
) -> list[str]:
    """Ask a model: n prompts (lists of messages) in, n answers out.

    Greedy decoding. An answer is the decoded text without special tokens,
    stripped; `replies` says how each came to its end, too.
    """
    said = replies(
        model, tokenizer, prompts, max_new_tokens, batch_size, progress
    )
    return [each.text for each in said]


def stops(said: Sequence[Answer]) -> float:
    """Return the share of answers that an end token ended, 0 to 1.

    The others were cut off at `max_new_tokens`. (Counting the tokens of a
    text instead takes one that was cut off for one that stopped where white
    space was stripped, or where its tokens merge when it is read again.)

    >>> stops([Answer("Blue", 1, True), Answer("Blue blue", 2, False)])
    0.5

    Raises ValueError if nothing is given.
    """
    if not said:
        raise ValueError("no answers: give at least one")
    return sum(each.stopped for each in said) / len(said)


def converse(
    model,
    tokenizer,
    conversations: Sequence[list[dict]],
    max_new_tokens: int = 64,
    batch_size: int = 32,
    progress: bool = False,
    heard: list[Answer] | None = None,
) -> list[list[dict]]:
    """Lead n conversations again, with the model's own answers.

    The system and user messages are given in turn; where the assistant
    spoke, the model answers (greedily) what has been said so far, its own
    answers included. Returns n lists of messages, each as long as its own;
    each Answer is appended to `heard` as well, if it is given (for `stops`).
    Raises as `answers` does.
    """
    made: list[list[dict]] = [[] for _ in conversations]
    for place in range(max(map(len, conversations), default=0)):
        here = [i for i, c in enumerate(conversations) if place < len(c)]
        turns = {i: conversations[i][place] for i in here}
        asked = [i for i in here if turns[i]["role"] == "assistant"]
        said = replies(
            model,
            tokenizer,
            [made[i] for i in asked],
            max_new_tokens,
            batch_size,
            progress,
        )
        if heard is not None:
            heard += said
        for i, answer in zip(asked, said, strict=True):
            turns[i] = {"role": "assistant", "content": answer.text}
        for i, turn in turns.items():
            made[i].append(turn)
    return made


class Ranked(NamedTuple):
    """The option chosen for each of n prompts, and every option's score."""

    chosen: list[str]
    scores: list[list[float]]  # nats, as the options were given


def rank(
    model,
    tokenizer,
    prompts: Sequence[list[dict]],
    options: Sequence[Sequence[str]],
    by: str = "sum",
    batch_size: int = 16,
    progress: bool = False,
) -> Ranked:
    """Choose the likeliest option: n prompts and n lists of options in.

    Rank classification, as Flan (Wei et al. 2022) and T0 (Sanh et al. 2022)
    measure it: the model writes nothing, so nothing is out of format. An
    option's score is the log-probability, in nats, of its tokens as the
    assistant's answer, its end token included: else "no" could not score
    below "no, never". `by` is "sum" (T0), or "mean" over the tokens, since a
    long option sums to less. Of equals the first is chosen.

    Raises ValueError for another `by`, for prompts without options, for
    options that are empty or stand twice, and for a chat template whose
    opened answer is not how an answer starts.
    """
    import torch
    from tqdm.auto import tqdm

    if by not in ("sum", "mean"):
        raise ValueError(f"by={by!r}: rank by 'sum' or by 'mean'")
    if len(prompts) != len(options):
        raise ValueError(
            f"{len(options)} lists of options for {len(prompts)} prompts: "
            "give one to each"
        )
    for i, names in enumerate(options):
        if not names or len({n.strip() for n in names} - {""}) < len(names):
            raise ValueError(
                f"prompt {i} has the options {list(names)}: give one or "
                "more, none empty and none twice"
            )
    rows = [
        (i, j, row)
        for i, pair in enumerate(zip(prompts, options, strict=True))
        for j, row in enumerate(_option_rows(tokenizer, *pair))
    ]
    rows.sort(key=lambda each: len(each[2]["input_ids"]))
    found = [[0.0] * len(names) for names in options]
    with _evaluating(model), torch.inference_mode():
        for start in tqdm(
            range(0, len(rows), batch_size), disable=not progress, unit="batch"
        ):
            batch = rows[start : start + batch_size]
            losses, labels = _losses(model, tokenizer, [r for *_, r in batch])
            sums = losses.double().sum(1)
            if by == "mean":
                sums /= (labels != IGNORE).sum(1)
            for (i, j, _), value in zip(batch, sums.tolist(), strict=True):
                found[i][j] = -value
    best = [max(range(len(each)), key=each.__getitem__) for each in found]
    chosen = [names[j] for names, j in zip(options, best, strict=True)]
    return Ranked(chosen, found)


def _option_rows(tokenizer, prompt: list[dict], names: Sequence[str]):
    """Yield each option as the answer to a prompt: input_ids and labels."""
    opened = token_ids(tokenizer, prompt, answer_next=True)
    for name in names:
        answer = {"role": "assistant", "content": name}
        row = assistant_labels(tokenizer, [*prompt, answer])
        if row["input_ids"][: len(opened)] != opened:
            raise ValueError(
                f"the option {name!r} does not go on where the chat template "
                "opens the answer: compare token_ids(..., answer_next=True) "
                "with the whole conversation's"
            )
        # answers that are in the prompt do not count
        marks = [IGNORE] * len(opened) + row["labels"][len(opened) :]
        yield {"input_ids": row["input_ids"], "labels": marks}


def exact_match(predictions: Sequence[str], targets: Sequence[str]) -> float:
    """Return the share of predictions that equal their target, 0 to 1.

    >>> exact_match(["yes", "No"], ["yes", "no"])
    0.5

    Raises ValueError if the lengths differ or nothing is given.
    """
    if len(predictions) != len(targets) or not targets:
        raise ValueError(
            f"{len(predictions)} predictions for {len(targets)} targets: "
            "give one prediction a target, and at least one"
        )
    pairs = zip(predictions, targets, strict=True)
    return sum(scores.exact(*pair) for pair in pairs) / len(targets)


def in_format(predictions: Sequence[str], allowed: Sequence[str]) -> float:
    """Return the share of predictions that are one of the allowed labels.

    >>> in_format(["yes", "Yes, it is"], allowed=["yes", "no"])
    0.5

    Raises ValueError if nothing is given.
    """
    if not predictions:
        raise ValueError("no predictions: give at least one")
    wanted = {label.strip() for label in allowed}
    return sum(p.strip() in wanted for p in predictions) / len(predictions)


def interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share seen in `count` rows.

    Wilson, "Probable inference", JASA 22 (1927).

    >>> [round(end, 2) for end in interval(0.9, 100)]
    [0.83, 0.94]

    Raises ValueError if `count` is not above 0 or `share` not from 0 to 1.
    """
    if not count > 0:
        raise ValueError(
            f"a share of {count} rows has no interval: give the number of "
            "rows it was seen in"
        )
    if not 0 <= share <= 1:
        raise ValueError(
            f"{share} is no share: give hits by rows, from 0 to 1"
        )
    z = 1.959964
    middle = share + z * z / (2 * count)
    spread = (
        z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    )
    whole = 1 + z * z / count
    # rounding may lead past an end
    return max(0.0, (middle - spread) / whole), min(
        1.0, (middle + spread) / whole
    )


def text_loss(
    model,
    tokenizer,
    texts: Sequence[str],
    batch_size: int = 4,
    max_length: int = 512,
) -> float:
    """Return the mean cross-entropy, in nats a token, on plain texts.

    The mean goes over tokens, not over batches, so it does not depend on
    the batch size. Compare it before and after tuning: what it rises is
    forgetting.

    Raises ValueError if no text has two tokens: there is nothing to predict.
    """
    import torch
    from torch.nn.functional import cross_entropy

    order = sorted(texts, key=len)
    total, count = 0.0, 0
    with _evaluating(model), torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = tokenizer(
                order[start : start + batch_size],
                add_special_tokens=False,
                padding=True,
                padding_side="right",
                truncation=True,
                max_length=max_length,
                return_tensors="pt",
            ).to(model.device)
            rows = model(**batch).logits
            sizes = batch["attention_mask"].sum(1).clamp(min=1)
            for logits, ids, size in zip(
                rows, batch["input_ids"], sizes, strict=True
            ):
                losses = cross_entropy(
                    logits[: size - 1].float(), ids[1:size], reduction="none"
                )
                # in float32 the sum would hang on the batch size
                total += losses.double().sum().item()
                count += len(losses)
    if not count:
        raise ValueError("no text of two tokens or more: give longer texts")
    return total / count


def answer_loss(
    model,
    tokenizer,
    conversations: Sequence[list[dict]],
    batch_size: int = 8,
) -> float:
    """Return the mean cross-entropy, in nats a token, of known answers.

    Each conversation is a list of messages; the assistant's text and its end
    tokens count. The mean goes over tokens, not over batches, so it does not
    depend on the batch size.

    Raises ValueError if there is no conversation, or one without an answer.
    """
    import torch

    if not conversations:
        raise ValueError("no conversation to measure: give at least one")
    made = [assistant_labels(tokenizer, each) for each in conversations]
    made.sort(key=lambda row: len(row["input_ids"]))
    total, count = 0.0, 0
    with _evaluating(model), torch.inference_mode():
        for start in range(0, len(made), batch_size):
            batch = made[start : start + batch_size]
            losses, labels = _losses(model, tokenizer, batch)
            total += losses.double().sum().item()
            count += (labels != IGNORE).sum().item()
    return total / count


def _losses(model, tokenizer, rows: Sequence[dict]):
    """Return the losses of n rows of input_ids and labels, and their labels.

    Both are n x places, where a place has a label in some row; the loss is 0
    where this row has none. Only there are logits made: on a CPU they are
    most of the work.
    """
    import torch
    from torch.nn.functional import cross_entropy

    sizes = torch.tensor([[len(row["input_ids"])] for row in rows])
    width = int(sizes.max())

    def filled(key, fill):
        made = [r[key] + [fill] * (width - len(r[key])) for r in rows]
        return torch.tensor(made, device=model.device)

    labels = filled("labels", IGNORE)[:, 1:]
    places = (labels != IGNORE).any(0).nonzero().flatten()
    labels = labels[:, places]
    logits = model(
        input_ids=filled("input_ids", tokenizer.pad_token_id),
        attention_mask=(torch.arange(width) < sizes).to(model.device),
        logits_to_keep=places,
    ).logits
    losses = cross_entropy(
        logits.float().transpose(1, 2),
        labels,
        ignore_index=IGNORE,
        reduction="none",
    )
    return losses, labels


def agreement(
    one,
    other,
    tokenizer,
    prompts: Sequence[list[dict]],
    batch_size: int = 32,
) -> dict[str, float]:
    """Compare two models' next-token distributions after each prompt.

    Returns `largest_logit_gap`, `relative_logit_gap` (the largest gap as a
    share of the largest logit's size), `same_top_1` (share of prompts) and
    `mean_kl` (nats, of `other` from `one`). Both models see the same left
    padding, which moves positions alike in both.

    Raises ValueError if there is no prompt.
    """
    import torch

    if not prompts:
        raise ValueError("no prompts to compare on: give at least one")
    gap = size = same = divergence = 0.0
    with _evaluating(one), _evaluating(other), torch.inference_mode():
        for _, batch in _batches(tokenizer, prompts, batch_size):
            a, b = (
                model(**batch.to(model.device), logits_to_keep=1)
                .logits[:, -1]
                .float()
                .cpu()
                for model in (one, other)
            )
            gap = max(gap, (a - b).abs().max().item())
            size = max(size, a.abs().max().item())
            same += (a.argmax(-1) == b.argmax(-1)).sum().item()
            p, q = a.log_softmax(-1), b.log_softmax(-1)
            divergence += (p.exp() * (p - q)).sum().item()
    return {
        "largest_logit_gap": gap,
        "relative_logit_gap": gap / size,
        "same_top_1": same / len(prompts),
        "mean_kl": divergence / len(prompts),
    }


# python -m instructft.evaluate score


def _score(asked) -> str:
    """Score a file and return the table; raises BadRows before any of it."""
    tasked: list[bool] = []

    def check(row: dict) -> list[str]:
        said = scores.unusable(row, asked.rule, asked.prediction, asked.target)
        tasked.append("task" in row)
        if tasked[-1] != tasked[0]:
            said.append("some rows have a task and some not: give all or none")
        return said

    rows = read_rows(asked.file, check)
    if not rows:
        raise ValueError(f"{asked.file}: no rows: give at least one")
    groups: dict[str, list[float]] = {}
    for row in rows:
        found = scores.score(
            asked.rule,
            scores.field(row, asked.prediction),
            scores.field(row, asked.target),
        )
        groups.setdefault(row.get("task", ""), []).append(found)
    lines = [] if groups.keys() == {""} else sorted(groups.items())
    lines += [("all", [value for each in groups.values() for value in each])]
    wide = max(4, *(len(name) for name, _ in lines))
    table = [f"{'task':<{wide}}   rows  mean    95 % interval"]
    for name, values in lines:
        mean = sum(values) / len(values)
        if asked.rule != "rouge_l":  # 0 or 1
            ends = "{:.4f} to {:.4f}".format(*interval(mean, len(values)))
        elif len(values) > 1:
            ends = "{:.4f} to {:.4f}".format(*scores.bootstrap(values))
        else:
            ends = "one row has none"
        table.append(f"{name:<{wide}} {len(values):>6,}  {mean:.4f}  {ends}")
    return "\n".join(table)


def _main(words: Sequence[str]) -> int:
    """Score a JSONL file of predictions and targets; return 0, or 1."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m instructft.evaluate",
        description="Score predictions; by `task`, too, where rows have one.",
    )
    verb = parser.add_subparsers(required=True).add_parser("score")
    verb.add_argument("file", type=Path, help="JSONL")
    verb.add_argument("--rule", choices=list(scores.RULES), required=True)
    for name in ("prediction", "target"):
        verb.add_argument(f"--{name}", default=name, metavar="NAME")
    try:
        print(_score(parser.parse_args(words)))
    except (BadRows, OSError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
