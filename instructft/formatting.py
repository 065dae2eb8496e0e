"""From an instance to messages, and from messages to chat text.

Messages are a list of {"role", "content"}; the tokenizer's own chat
template turns them into the one text that a model is trained and asked in.
"""

import re


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


# The forms other tools read. Each pair goes there and back without a loss,
# or says what is lost.

SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}


def to_alpaca(row: dict) -> dict:
    """Keep an instance's three fields (tatsu-lab/stanford_alpaca).

    Lost: whatever else the row says, such as its source and licence.

    >>> to_alpaca({"instruction": "Add.", "output": "2", "source": "us"})
    {'instruction': 'Add.', 'input': '', 'output': '2'}
    """
    names = ("instruction", "input", "output")
    return {name: row.get(name, "") for name in names}


def to_sharegpt(messages: list[dict]) -> dict:
    """Write messages as ShareGPT does (lm-sys/FastChat); nothing is lost.

    >>> to_sharegpt([{"role": "user", "content": "Hi"}])
    {'conversations': [{'from': 'human', 'value': 'Hi'}]}

    Raises ValueError for a role that ShareGPT has no name for.
    """
    return {
        "conversations": [
            {
                "from": _renamed(message["role"], SHAREGPT, i),
                "value": message["content"],
            }
            for i, message in enumerate(messages)
        ]
    }


def from_sharegpt(row: dict) -> list[dict]:
    """Read ShareGPT's turns as messages; `user` and `bing` are known too.

    >>> from_sharegpt({"conversations": [{"from": "gpt", "value": "Hi"}]})
    [{'role': 'assistant', 'content': 'Hi'}]

    Raises ValueError naming a turn whose speaker is unknown.
    """
    names = {other: ours for ours, other in SHAREGPT.items()}
    names |= {"user": "user", "assistant": "assistant", "chatgpt": "assistant"}
    names |= {"bing": "assistant", "bard": "assistant"}
    return [
        {
            "role": _renamed(turn["from"], names, i),
            "content": turn["value"],
        }
        for i, turn in enumerate(row["conversations"])
    ]


def _renamed(role: str, names: dict[str, str], number: int) -> str:
    if role not in names:
        raise ValueError(
            f"message {number} is from {role!r}: one of {list(names)} is known"
        )
    return names[role]


def to_chatml(messages: list[dict]) -> str:
    r"""Write messages as ChatML text; nothing is lost.

    >>> to_chatml([{"role": "user", "content": "Hi"}])
    '<|im_start|>user\nHi<|im_end|>\n'

    Raises ValueError if a message holds a marker: it would end the turn.
    """
    for i, message in enumerate(messages):
        for marker in ("<|im_start|>", "<|im_end|>"):
            if marker in message["role"] + message["content"]:
                raise ValueError(
                    f"message {i} holds {marker}: take it out of the text"
                )
    return "".join(
        f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"
        for message in messages
    )


def from_chatml(text: str) -> list[dict]:
    r"""Read ChatML text as messages.

    >>> from_chatml("<|im_start|>user\nHi<|im_end|>\n")
    [{'role': 'user', 'content': 'Hi'}]

    Raises ValueError if there is text outside the turns.
    """
    found, end = [], 0
    turn = re.compile(
        r"<\|im_start\|>([^\n]*)\n((?:(?!<\|im_start\|>).)*?)<\|im_end\|>\n?",
        re.DOTALL,
    )
    while match := turn.match(text, end):
        found.append({"role": match[1], "content": match[2]})
        end = match.end()
    if text[end:].strip():
        raise ValueError(f"no ChatML turn at {text[end : end + 40]!r}")
    return found


def to_prompt_completion(messages: list[dict]) -> dict:
    """Split messages before the last answer, as TRL's SFTTrainer reads them.

    Nothing is lost, but only that answer will be in the loss.

    >>> made = to_prompt_completion(messages({"instruction": "Add 1 and 1.",
    ...     "output": "2"}))
    >>> made["completion"]
    [{'role': 'assistant', 'content': '2'}]

    Raises ValueError if the last message is not the assistant's.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise ValueError("the last message is no answer: cut it off first")
    return {"prompt": messages[:-1], "completion": messages[-1:]}


def from_prompt_completion(row: dict) -> list[dict]:
    """Join prompt and completion (lists of messages) again."""
    return [*row["prompt"], *row["completion"]]


def from_messages(messages: list[dict]) -> dict:
    """Make an instance of one question and its answer.

    Lost in `messages(row)` and not found again: where the input began. The
    whole question is the instruction, and the input is empty.

    >>> from_messages(messages({"instruction": "Spell.", "input": "cat",
    ...     "output": "c-a-t"}))
    {'instruction': 'Spell.\\n\\ncat', 'input': '', 'output': 'c-a-t'}

    Raises ValueError unless it is one question and one answer.
    """
    turns = [m for m in messages if m["role"] != "system"]
    if [m["role"] for m in turns] != ["user", "assistant"]:
        roles = [m["role"] for m in messages]
        raise ValueError(f"{roles} is not one question and one answer")
    return {
        "instruction": turns[0]["content"],
        "input": "",
        "output": turns[1]["content"],
    }
