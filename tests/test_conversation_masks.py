"""Which turns of a conversation count: as the text says, for any of them."""

from collections import Counter

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trl import SFTConfig, SFTTrainer

from instructft.conversations import split
from instructft.formatting import to_prompt_completion, token_ids
from instructft.masking import IGNORE
from instructft.preflight import samples

END = "<|im_end|>"
WORD = st.sampled_from(
    ["yes", "No.", "42", "3.14", "naïve", "日本", "two\nlines", "a  b", "`x`"]
    + ["<b>", "assistant", "user:", "🙂", "Then", "why?", "ICH", "{{ y }}"]
)
TEXT = st.lists(WORD, min_size=1, max_size=6).map(" ".join)


@st.composite
def conversation(draw):
    texts = draw(st.lists(TEXT, min_size=2, max_size=10))
    texts = texts[: len(texts) // 2 * 2]
    roles = ("user", "assistant")
    made = [
        {"role": roles[i % 2], "content": text} for i, text in enumerate(texts)
    ]
    if draw(st.booleans()):
        made.insert(0, {"role": "system", "content": draw(TEXT)})
    return made


CONVERSATIONS = st.lists(conversation(), min_size=3, max_size=6)
FEW = settings(
    max_examples=6,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def labelled(tiny, tokenizer, conversations, loss_on, packing):
    """(ids, labels) of each conversation, as the trainer has them."""
    trainer = SFTTrainer(
        model=tiny,
        args=SFTConfig(
            output_dir="unused",
            max_length=512,
            packing=packing,
            packing_strategy="bfd",
            assistant_only_loss=loss_on == "all",
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list(
            [
                to_prompt_completion(each)
                if loss_on == "last"
                else {"messages": each}
                for each in conversations
            ]
        ),
        processing_class=tokenizer,
    )
    return [(list(ids), list(marked)) for ids, marked in samples(trainer)]


def counted(tokenizer, marked):
    """The texts that count, run by run."""
    runs, before = [], IGNORE
    for label in marked:
        if label != IGNORE:
            if before == IGNORE:
                runs.append([])
            runs[-1].append(label)
        before = label
    return [tokenizer.decode(run) for run in runs]


def answers_of(conversation):
    return [
        message["content"] + END
        for message in conversation
        if message["role"] == "assistant"
    ]


@pytest.mark.parametrize("packing", [False, True])
@FEW
@given(conversations=CONVERSATIONS)
def test_all_answers_and_their_ends(packing, tiny, tokenizer, conversations):
    found = labelled(tiny, tokenizer, conversations, "all", packing)
    assert len(found) == len(conversations)
    wanted = Counter(tuple(answers_of(each)) for each in conversations)
    assert wanted == Counter(
        tuple(counted(tokenizer, marked)) for _, marked in found
    )
    rows = Counter(tuple(token_ids(tokenizer, c)) for c in conversations)
    assert rows == Counter(tuple(ids) for ids, _ in found)
    for ids, marked in found:
        pairs = zip(ids, marked, strict=True)
        assert all(label in (IGNORE, token) for token, label in pairs)


@pytest.mark.parametrize("packing", [False, True])
@FEW
@given(conversations=CONVERSATIONS)
def test_the_last_answer_alone(packing, tiny, tokenizer, conversations):
    found = labelled(tiny, tokenizer, conversations, "last", packing)
    wanted = Counter(answers_of(each)[-1] for each in conversations)
    seen = [counted(tokenizer, marked) for _, marked in found]
    # TRL counts the line end behind it, too
    assert wanted == Counter(run.removesuffix("\n") for [run] in seen)


@pytest.mark.parametrize("packing", [False, True])
@FEW
@given(conversations=CONVERSATIONS)
def test_everything(packing, tiny, tokenizer, conversations):
    found = labelled(tiny, tokenizer, conversations, "everything", packing)
    assert all(ids == marked for ids, marked in found)
    rows = Counter(tuple(token_ids(tokenizer, c)) for c in conversations)
    assert rows == Counter(tuple(ids) for ids, _ in found)


@FEW
@given(conversations=CONVERSATIONS, window=st.integers(20, 90))
def test_cut_into_whole_turns(tiny, tokenizer, conversations, window):
    def size(messages):
        return len(token_ids(tokenizer, messages))

    pieces, wanted = [], Counter()
    for each in conversations:
        made, out = split(each, window, size)
        assert all(size(piece) <= window for piece in made)
        pieces += made
        left_out = {i for i, _ in out}
        wanted.update(
            message["content"] + END
            for i, message in enumerate(each)
            if message["role"] == "assistant" and i not in left_out
        )
    if pieces:
        found = labelled(tiny, tokenizer, pieces, "all", packing=True)
        seen = [counted(tokenizer, marked) for _, marked in found]
        assert wanted == Counter(text for each in seen for text in each)
