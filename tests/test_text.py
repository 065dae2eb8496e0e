"""From an instance to the very tokens that the loss sees."""

import copy

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from instructft.formatting import (
    chat_text,
    messages,
    prompt,
    token_ids,
    user_text,
)
from instructft.masking import IGNORE, assistant_labels, labels, supervised
from instructft.preflight import samples

ROW = {
    "instruction": "Is this review positive or negative?",
    "input": "It broke in 2 days.",
    "output": "negative",
}
HEADER = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
    "trained by Hugging Face<|im_end|>\n"
)

# --- formatting -----------------------------------------------------------


@pytest.mark.parametrize(
    "instruction, given, wanted",
    [
        ("Name it.", "", "Name it."),
        ("Name it.", "cat", "Name it.\n\ncat"),
        ("Name it.", "{input}", "Name it.\n\n{input}"),
        ("A {input} and a {input}", "cat", "A cat and a cat"),
        ("A {input}!", "", "A !"),
        ("A {input}!", "{input}", "A {input}!"),
        ('{"word": {input}}', "cat", '{"word": cat}'),
        ("JSON: {input}", '{"a": {}}', 'JSON: {"a": {}}'),
        ("{x} {0} {input!r}", "cat", "{x} {0} {input!r}\n\ncat"),
    ],
)
def test_where_the_input_stands(instruction, given, wanted):
    row = {"instruction": instruction, "input": given}
    assert user_text(row) == wanted
    assert prompt(row) == [{"role": "user", "content": wanted}]


def test_input_may_be_missing():
    assert user_text({"instruction": "Name it."}) == "Name it."


def test_roles_in_order():
    whole = messages(ROW, system="Be brief.")
    assert [m["role"] for m in whole] == ["system", "user", "assistant"]
    assert whole[:2] == prompt(ROW, system="Be brief.")
    assert whole[2]["content"] == "negative"
    assert messages(ROW, system="")[0] == {"role": "system", "content": ""}
    assert prompt(ROW)[0]["role"] == "user"


def test_chat_text(tokenizer):
    asked = (
        "<|im_start|>user\nIs this review positive or negative?\n\n"
        "It broke in 2 days.<|im_end|>\n"
    )
    assert chat_text(tokenizer, prompt(ROW)) == HEADER + asked
    assert chat_text(tokenizer, prompt(ROW), answer_next=True) == (
        HEADER + asked + "<|im_start|>assistant\n"
    )
    assert chat_text(tokenizer, messages(ROW, system="Be brief.")) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        + asked
        + "<|im_start|>assistant\nnegative<|im_end|>\n"
    )


def test_token_ids_are_a_list_of_ids(tokenizer):
    ids = token_ids(tokenizer, messages(ROW))
    assert isinstance(ids, list) and len(ids) == 49
    assert {type(token) for token in ids} == {int}
    assert tokenizer.decode(ids) == chat_text(tokenizer, messages(ROW))


# --- masking --------------------------------------------------------------


def test_labels():
    assert labels([5, 6, 7], 0) == [5, 6, 7]
    assert labels([5, 6, 7], 2) == [IGNORE, IGNORE, 7]
    given = [5, 6]
    labels(given, 1)
    assert given == [5, 6]
    for start in (2, 3):
        with pytest.raises(ValueError, match="raise max_length"):
            labels([5, 6], start)


@given(
    ids=st.lists(st.integers(0, 49_151), min_size=1), start=st.integers(0, 9)
)
def test_labels_are_the_id_or_ignored(ids, start):
    start %= len(ids)
    made = labels(ids, start)
    assert len(made) == len(ids)
    assert all(a in (b, IGNORE) for a, b in zip(made, ids, strict=True))
    assert supervised(made) == ids[start:]


def test_golden_label_text(tokenizer):
    row = assistant_labels(tokenizer, messages(ROW))
    seen = supervised(row["labels"])
    assert tokenizer.decode(seen) == "negative<|im_end|>"
    hidden = [
        token
        for token, label in zip(*row.values(), strict=True)
        if label == IGNORE
    ]
    assert tokenizer.decode(hidden) == (
        HEADER + "<|im_start|>user\nIs this review positive or negative?"
        "\n\nIt broke in 2 days.<|im_end|>\n<|im_start|>assistant\n\n"
    )
    assert row["labels"][-3:] == [seen[-2], tokenizer.eos_token_id, IGNORE]


def test_golden_label_text_of_two_turns(tokenizer):
    turns = messages(ROW) + messages(ROW | {"output": "two"})
    row = assistant_labels(tokenizer, turns)
    assert tokenizer.decode(supervised(row["labels"])) == (
        "negative<|im_end|>two<|im_end|>"
    )


def test_nothing_to_learn_is_refused(tokenizer):
    with pytest.raises(ValueError, match="add an assistant message"):
        assistant_labels(tokenizer, prompt(ROW))
    plain = copy.deepcopy(tokenizer)
    for mark in ("{%- generation -%}", "{%- endgeneration -%}"):
        plain.chat_template = plain.chat_template.replace(mark, "")
    with pytest.raises(ValueError, match="generation"):
        assistant_labels(plain, messages(ROW))


# The question to a model and the start of what it was trained on must be
# the same tokens: else it is asked what it never saw.

WORDS = st.text() | st.lists(
    st.sampled_from(["a", " ", "\n", "12", "é", "🙂", "你", "\t", "it's"])
).map("".join)


@given(
    instruction=WORDS,
    given=WORDS,
    # a first character that is in no token would hide the answer
    output=WORDS.map(str.strip).filter(lambda text: text[:1].isprintable()),
    system=st.none() | WORDS,
)
@example("Add.", "12 + 34", "46", None)
@example("", "", "", None)
@example("ends in space \n", " \n", "x  ", "  ")
def test_prompt_is_what_training_starts_with(
    tokenizer, instruction, given, output, system
):
    row = {"instruction": instruction, "input": given, "output": output}
    asked = token_ids(tokenizer, prompt(row, system), answer_next=True)
    whole = messages(row, system)
    made = assistant_labels(tokenizer, whole)
    ids = made["input_ids"]
    assert ids == token_ids(tokenizer, whole)
    assert ids[: len(asked)] == asked
    # -100 exactly there, and on the newline after the end token
    assert made["labels"] == [
        *labels(ids[:-1], answer_start=len(asked)),
        IGNORE,
    ]


def test_white_space_before_an_answer_merges_with_the_header(tokenizer):
    # the trap that the property above leaves out: a lesson, not a wish
    row = ROW | {"output": "    return 1"}
    asked = token_ids(tokenizer, prompt(row), answer_next=True)
    made = assistant_labels(tokenizer, messages(row))
    assert made["input_ids"][: len(asked)] != asked
    seen = tokenizer.decode(supervised(made["labels"]))
    assert seen == "\n    return 1<|im_end|>"


# --- what TRL makes of it -------------------------------------------------

TALKS = [
    messages(ROW),
    messages(ROW, system="Be brief."),
    messages(ROW | {"output": "a\n\nb 🙂 12"}),
    messages(ROW) + messages(ROW | {"input": "", "output": "two"}),
    messages(ROW | {"instruction": "Repeat it, please: {input}" * 3}),
    messages({"instruction": "Spell 12.", "output": "twelve "}),
]


@pytest.mark.parametrize(
    "packing",
    [
        {"packing": False},
        {"packing": True, "packing_strategy": "bfd", "max_length": 192},
    ],
    ids=["alone", "packed"],
)
def test_trl_makes_the_same_labels(tokenizer, tiny, tmp_path, packing):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=tiny,
        args=SFTConfig(
            output_dir=str(tmp_path),
            assistant_only_loss=True,
            bf16=False,
            use_cpu=True,
            report_to="none",
            **packing,
        ),
        train_dataset=Dataset.from_list([{"messages": t} for t in TALKS]),
        processing_class=copy.deepcopy(tokenizer),
    )
    theirs = [(list(ids), list(marked)) for ids, marked in samples(trainer)]
    ours = [tuple(assistant_labels(tokenizer, t).values()) for t in TALKS]
    if packing["packing"]:
        assert len(trainer.train_dataset) < len(TALKS)
    else:
        assert theirs == ours
    assert sorted(theirs) == sorted(ours)
    # and this is what a batch holds: nothing is masked again, nor unmasked
    batches = [
        (ids, marked)
        for batch in trainer.get_train_dataloader()
        for ids, marked in zip(
            batch["input_ids"].flatten().tolist(),
            batch["labels"].flatten().tolist(),
            strict=True,
        )
        if ids != tokenizer.pad_token_id
    ]
    assert sorted(batches) == sorted(
        pair for row in ours for pair in zip(*row, strict=True)
    )
