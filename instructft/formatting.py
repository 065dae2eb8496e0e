"""From an instance to messages, and from messages to chat text.

Messages are a list of {"role", "content"}; the tokenizer's own chat
template turns them into the one text that a model is trained and asked in.
"""


def user_text(row: dict) -> str:
    """Put an instance's instruction and input into one user turn.

    The input stands after the instruction, a blank line between. An
    instruction that has `{input}` in it takes the input there instead.

    >>> user_text({"instruction": "Translate.", "input": "chat"})
    'Translate.\\n\\nchat'
    >>> user_text({"instruction": "Is '{input}' a noun?", "input": "cat"})
    "Is 'cat' a noun?"
    >>> user_text({"instruction": "Name a colour.", "input": ""})
    'Name a colour.'
    """
    instruction, given = row["instruction"], row.get("input", "")
    if "{input}" in instruction:
        return instruction.replace("{input}", given)
    return f"{instruction}\n\n{given}" if given else instruction


def prompt(row: dict, system: str | None = None) -> list[dict]:
    """Make the messages a model is asked with: all but the answer.

    >>> prompt({"instruction": "Add.", "input": "1+1"}, system="Be brief.")
    [{'role': 'system', 'content': 'Be brief.'}, \
{'role': 'user', 'content': 'Add.\\n\\n1+1'}]
    """
    asked = [{"role": "user", "content": user_text(row)}]
    if system is not None:
        asked.insert(0, {"role": "system", "content": system})
    return asked


def messages(row: dict, system: str | None = None) -> list[dict]:
    """Make an instance's whole conversation, answer included.

    >>> messages({"instruction": "Name a colour.", "output": "Blue"})
    [{'role': 'user', 'content': 'Name a colour.'}, \
{'role': 'assistant', 'content': 'Blue'}]
    """
    answer = {"role": "assistant", "content": row["output"]}
    return [*prompt(row, system), answer]


def token_ids(
    tokenizer, messages: list[dict], answer_next: bool = False
) -> list[int]:
    """Return the ids of a conversation, by the tokenizer's template alone.

    `answer_next=True` opens the assistant's turn, as for generation.
    """
    # transformers 5 returns a dict here: its length is not the text's
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=answer_next, return_dict=True
    )["input_ids"]


def chat_text(
    tokenizer, messages: list[dict], answer_next: bool = False
) -> str:
    """Return the exact text of a conversation that the model will see."""
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=answer_next, tokenize=False
    )
