"""Before against after: what tuning bought, and what it cost.

Answers are greedy, so that a figure can be measured again.
"""

from collections.abc import Sequence
from contextlib import contextmanager

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
    stripped.
    """
    import torch

    found = [""] * len(prompts)
    with _evaluating(model), torch.inference_mode():
        for chosen, batch in _batches(
            tokenizer, prompts, batch_size, progress
        ):
            replies = model.generate(
                **batch.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
            new = replies[:, batch["input_ids"].shape[1] :]
            for i, reply in zip(chosen, new, strict=True):
                text = tokenizer.decode(reply, skip_special_tokens=True)
                found[i] = text.strip()
    return found


def converse(
    model,
    tokenizer,
    conversations: Sequence[list[dict]],
    max_new_tokens: int = 64,
    batch_size: int = 32,
    progress: bool = False,
) -> list[list[dict]]:
    """Lead n conversations again, with the model's own answers.

    The system and user messages are given in turn; where the assistant
    spoke, the model answers (greedily) what has been said so far, its own
    answers included. Returns n lists of messages, each as long as its own.
    Raises as `answers` does.
    """
    made: list[list[dict]] = [[] for _ in conversations]
    for place in range(max(map(len, conversations), default=0)):
        here = [i for i, c in enumerate(conversations) if place < len(c)]
        turns = {i: conversations[i][place] for i in here}
        asked = [i for i in here if turns[i]["role"] == "assistant"]
        said = answers(
            model,
            tokenizer,
            [made[i] for i in asked],
            max_new_tokens,
            batch_size,
            progress,
        )
        for i, text in zip(asked, said, strict=True):
            turns[i] = {"role": "assistant", "content": text}
        for i, turn in turns.items():
            made[i].append(turn)
    return made


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
    return sum(a.strip() == b.strip() for a, b in pairs) / len(targets)


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

    Raises ValueError if `count` is 0.
    """
    if not count:
        raise ValueError("a share of no rows has no interval")
    z = 1.959964
    middle = share + z * z / (2 * count)
    spread = (
        z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    )
    whole = 1 + z * z / count
    return (middle - spread) / whole, (middle + spread) / whole


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
    from torch.nn.functional import cross_entropy

    if not conversations:
        raise ValueError("no conversation to measure: give at least one")
    made = [assistant_labels(tokenizer, each) for each in conversations]
    made.sort(key=lambda row: len(row["input_ids"]))
    total, count = 0.0, 0
    with _evaluating(model), torch.inference_mode():
        for start in range(0, len(made), batch_size):
            batch = made[start : start + batch_size]
            width = len(batch[-1]["input_ids"])

            def filled(key, fill, batch=batch, width=width):
                rows = [r[key] + [fill] * (width - len(r[key])) for r in batch]
                return torch.tensor(rows, device=model.device)

            labels = filled("labels", IGNORE)[:, 1:]
            places = (labels != IGNORE).any(0).nonzero().flatten()
            labels = labels[:, places]
            sizes = torch.tensor([[len(row["input_ids"])] for row in batch])
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
            total += losses.double().sum().item()
            count += (labels != IGNORE).sum().item()
    return total / count


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
