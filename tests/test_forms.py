"""The forms of other tools: there and back, or a loss that is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructft.formatting import (
    from_chatml,
    from_messages,
    from_prompt_completion,
    from_sharegpt,
    messages,
    to_alpaca,
    to_chatml,
    to_prompt_completion,
    to_sharegpt,
    user_text,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
ROLES = st.sampled_from(["system", "user", "assistant"])
TALK = st.lists(st.fixed_dictionaries({"role": ROLES, "content": TEXT}))
ROW = st.fixed_dictionaries(
    {"instruction": TEXT, "input": TEXT, "output": TEXT}
)
MARKERS = ("<|im_start|>", "<|im_end|>")


@given(talk=TALK)
def test_sharegpt_loses_nothing(talk):
    made = to_sharegpt(talk)
    assert from_sharegpt(made) == talk
    assert {turn["from"] for turn in made["conversations"]} <= {
        "system",
        "human",
        "gpt",
    }


@given(talk=TALK)
def test_chatml_loses_nothing_or_refuses(talk):
    if any(mark in m["content"] for m in talk for mark in MARKERS):
        with pytest.raises(ValueError, match="holds <|im_"):
            to_chatml(talk)
    else:
        assert from_chatml(to_chatml(talk)) == talk


@given(talk=TALK)
def test_prompt_completion_loses_nothing_or_refuses(talk):
    if talk and talk[-1]["role"] == "assistant":
        made = to_prompt_completion(talk)
        assert from_prompt_completion(made) == talk
        assert made["completion"] == talk[-1:]
    else:
        with pytest.raises(ValueError, match="no answer"):
            to_prompt_completion(talk)


@given(row=ROW)
def test_alpaca_keeps_the_three_fields(row):
    assert to_alpaca(row | {"source": "us"}) == row


@given(row=ROW)
def test_messages_lose_where_the_input_began(row):
    back = from_messages(messages(row, system="Be brief."))
    assert back["output"] == row["output"]
    assert back["instruction"] == user_text(row)
    assert back["input"] == ""


@pytest.mark.parametrize("mark", MARKERS)
def test_a_marker_in_the_text_is_refused(mark):
    talk = messages({"instruction": f"a {mark} b", "output": "c"})
    with pytest.raises(ValueError, match="message 0 holds"):
        to_chatml(talk)


@pytest.mark.parametrize(
    "text",
    [
        "Hi",
        "<|im_start|>user\nHi",
        "<|im_start|>user\nHi<|im_end|>\nmore",
        "<|im_start|>user\nHi<|im_start|>user\nHo<|im_end|>\n",
        "<|im_start|>user",
    ],
)
def test_what_is_no_chatml(text):
    with pytest.raises(ValueError, match="no ChatML turn at"):
        from_chatml(text)


def test_unknown_speakers():
    turn = {"from": "alien", "value": "Hi"}
    with pytest.raises(ValueError, match="message 1 is from 'alien'"):
        from_sharegpt({"conversations": [{"from": "gpt", "value": ""}, turn]})
    with pytest.raises(ValueError, match="message 0 is from 'tool'"):
        to_sharegpt([{"role": "tool", "content": "2"}])
    aliases = [{"from": name, "value": ""} for name in ("user", "chatgpt")]
    assert [m["role"] for m in from_sharegpt({"conversations": aliases})] == [
        "user",
        "assistant",
    ]


@pytest.mark.parametrize(
    "roles",
    [[], ["user"], ["assistant", "user"], ["user", "assistant", "user"]],
)
def test_only_one_question_makes_an_instance(roles):
    with pytest.raises(ValueError, match="is not one question"):
        from_messages([{"role": role, "content": "x"} for role in roles])
