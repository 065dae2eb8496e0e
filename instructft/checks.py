"""The exercise checks: "correct", or "not yet" and the usual mistake.

Only notebooks and tests import this.
"""

from collections.abc import Callable

from instructft.formatting import messages
from instructft.instance import problems_of
from instructft.masking import IGNORE, assistant_labels, supervised


def _say(problem: str) -> None:
    print(f"not yet: {problem}" if problem else "correct")


def own_instance(make: Callable, tokenizer) -> None:
    """Check 00's first exercise: a short instance with an input."""
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
