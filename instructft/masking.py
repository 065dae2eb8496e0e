"""Which tokens the loss sees."""

IGNORE = -100  # torch.nn.functional.cross_entropy skips this label


def labels(token_ids: list[int], answer_start: int) -> list[int]:
    """Hide the prompt from the loss.

    n token ids in, n labels out; -100 marks a token the loss skips.

    >>> labels([5, 6, 7, 8], answer_start=2)
    [-100, -100, 7, 8]

    Raises ValueError if no answer token is left.
    """
    if answer_start >= len(token_ids):
        raise ValueError(
            f"the answer starts at token {answer_start} but there are only "
            f"{len(token_ids)}; raise max_length or shorten the input"
        )
    return [IGNORE] * answer_start + token_ids[answer_start:]


def assistant_labels(tokenizer, messages: list[dict]) -> dict:
    """Let the loss see the assistant's text and end tokens, nothing else.

    Returns {"input_ids": n ids, "labels": n labels}, by the generation
    markers of the tokenizer's chat template (what TRL's
    `assistant_only_loss` reads, trl/trainer/sft_trainer.py).

    Raises ValueError if the template has no such markers, or if no
    message is the assistant's.
    """
    seen = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    if not any(seen["assistant_masks"]):
        raise ValueError(
            "no token is the assistant's: add an assistant message, or a "
            "chat template with {% generation %} markers"
        )
    return {
        "input_ids": seen["input_ids"],
        "labels": [
            token if counts else IGNORE
            for token, counts in zip(
                seen["input_ids"], seen["assistant_masks"], strict=True
            )
        ],
    }


def supervised(labels: list[int]) -> list[int]:
    """Return the ids the loss sees, in order.

    >>> supervised([-100, -100, 7, 8])
    [7, 8]
    """
    return [label for label in labels if label != IGNORE]
