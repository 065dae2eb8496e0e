"""The measuring: the same figures for whoever measures, and no harm done."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instructft.evaluate import (
    Answer,
    agreement,
    answer_loss,
    answers,
    converse,
    exact_match,
    in_format,
    interval,
    rank,
    replies,
    stops,
    text_loss,
)
from instructft.formatting import prompt, token_ids
from instructft.masking import IGNORE, assistant_labels

PROMPTS = [
    prompt({"instruction": text})
    for text in (
        "Hi",
        "Count to 12, slowly, and then back again.",
        "",
        "Is it?",
        "Naïve 🙂 " * 9,
    )
] + [
    prompt({"instruction": "Spell it.", "input": "cat"}, system="Be brief."),
    [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "Three"},
    ],
]
TEXTS = [
    "The cat sat on the mat.",
    "A much longer sentence, with numbers such as 1, 20 and 300 in it.",
    "Short.",
    "Ein Satz auf Deutsch, naïve café.",
    "two\nlines",
]


def add_lora(model, dropout=0.0):
    """Give a model adapters that already say something."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    return get_peft_model(
        model,
        LoraConfig(
            r=4,
            lora_alpha=8,
            lora_dropout=dropout,
            target_modules="all-linear",
            init_lora_weights=False,  # B too is not zero
            task_type="CAUSAL_LM",
        ),
    )


# --- answers --------------------------------------------------------------


def test_converse_hears_its_own_answers(tiny, tokenizer):
    roles = ("user", "assistant")
    talk = [{"role": roles[i % 2], "content": f"Say {i}."} for i in range(4)]
    system = [{"role": "system", "content": "Be brief."}]
    given = [talk, system + talk, talk[:2], talk[:1]]
    made = converse(tiny, tokenizer, given, max_new_tokens=6)
    assert [len(each) for each in made] == [4, 5, 2, 1]
    for before, after in zip(given, made, strict=True):
        for i, message in enumerate(after):
            if message["role"] != "assistant":
                assert message == before[i]
                continue
            [own] = answers(tiny, tokenizer, [after[:i]], 6)
            assert message == {"role": "assistant", "content": own}
    assert talk[1]["content"] == "Say 1."  # as it was given
    assert converse(tiny, tokenizer, []) == []


def by_hand(model, tokenizer, messages, count):
    """Answer greedily, one token at a time, without a cache."""
    ids = token_ids(tokenizer, messages, answer_next=True)
    start = len(ids)
    while len(ids) < start + count and ids[-1] != tokenizer.eos_token_id:
        with torch.inference_mode():
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax())
        ids[-1] = int(ids[-1])
    return tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


def test_answers_in_a_batch_are_those_alone(tokenizer, tiny):
    wanted = [by_hand(tiny, tokenizer, p, 6) for p in PROMPTS]
    assert len(set(wanted)) > 3, "the model says the same to all"
    for size in (1, 2, 3, 32):
        assert answers(tiny, tokenizer, PROMPTS, 6, batch_size=size) == wanted
    assert answers(tiny, tokenizer, PROMPTS[::-1], 6) == wanted[::-1]


def test_answers_stop_at_the_end_token(tokenizer, tiny):
    # whatever comes first is now the end token's own word
    first = answers(tiny, tokenizer, PROMPTS[:1], 1)
    ids = token_ids(tokenizer, PROMPTS[0], answer_next=True)
    with torch.inference_mode():
        word = int(tiny(torch.tensor([ids])).logits[0, -1].argmax())
    assert first == [tokenizer.decode(word).strip()]
    tiny.generation_config.eos_token_id = [2, word]
    assert answers(tiny, tokenizer, PROMPTS[:1], 5) == first


def test_replies_say_what_ended_them(tokenizer, tiny):
    free = [by_hand(tiny, tokenizer, p, 6) for p in PROMPTS]
    ids = [token_ids(tokenizer, p, answer_next=True) for p in PROMPTS]
    with torch.inference_mode():
        words = [
            int(tiny(torch.tensor([i])).logits[0, -1].argmax()) for i in ids
        ]
    # two words end an answer, besides the end token: those prompts' first
    tiny.generation_config.eos_token_id = [2, words[0], words[3]]
    for size in (1, 2, 32):
        said = replies(tiny, tokenizer, PROMPTS, 6, batch_size=size)
        for each, word, text in zip(said, words, free, strict=True):
            if word in (words[0], words[3]):
                assert each.stopped and each.tokens == 0
            elif not each.stopped:
                assert (each.tokens, each.text) == (6, text)
    assert 0 < stops(said) < 1, "all alike: the test cannot fail"
    assert [each.text for each in said] == answers(tiny, tokenizer, PROMPTS, 6)
    # the end token may be the last that fits
    [one] = replies(tiny, tokenizer, PROMPTS[:1], 1)
    assert one.stopped and one.text == tokenizer.decode(words[0]).strip()
    for ends in (words[0], None):
        tiny.generation_config.eos_token_id = ends
        [one] = replies(tiny, tokenizer, PROMPTS[:1], 3)
        assert one.stopped == (ends is not None)


def test_counting_tokens_would_not_tell_who_stopped(tokenizer, tiny):
    """White space is stripped, so a text that was cut off looks short."""
    space = tokenizer("\n", add_special_tokens=False)["input_ids"][0]

    def only_space(module, args, output):
        output.logits[...] = 0
        output.logits[..., space] = 1
        return output

    hook = tiny.register_forward_hook(only_space)
    said = replies(tiny, tokenizer, PROMPTS[:2], 4)
    hook.remove()
    assert said == [Answer("", 4, False)] * 2
    assert stops(said) == 0
    assert len(tokenizer(said[0].text)["input_ids"]) < 4


def test_stops():
    said = [Answer("a", 1, True), Answer("b", 2, False), Answer("", 0, True)]
    assert stops(said) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="at least one"):
        stops([])


def test_converse_lets_its_answers_be_heard(tokenizer, tiny):
    heard = []
    talks = [TALKS[0], TALKS[2]]
    made = converse(tiny, tokenizer, talks, 5, heard=heard)
    assert made == converse(tiny, tokenizer, talks, 5)
    texts = [m["content"] for c in made for m in c if m["role"] == "assistant"]
    assert sorted(each.text for each in heard) == sorted(texts)
    assert len(heard) == 4 and all(isinstance(a, Answer) for a in heard)


def test_greedy_has_no_repetition_penalty(tokenizer, tiny):
    first, second = tokenizer(" cat dog", add_special_tokens=False)[
        "input_ids"
    ]

    def cat_before_dog(module, args, output):
        output.logits[...] = 0
        output.logits[..., first] = 1
        output.logits[..., second] = 0.9  # 1 / 1.5 is less

    hook = tiny.register_forward_hook(cat_before_dog)
    for penalty in (1.0, 1.5):
        tiny.generation_config.repetition_penalty = penalty
        [said] = replies(tiny, tokenizer, PROMPTS[:1], 3)
        assert said.text == "cat cat cat"
    hook.remove()


def test_answers_to_nobody(tokenizer, tiny):
    assert answers(tiny, tokenizer, []) == []


def test_progress_is_shown_if_asked(tokenizer, tiny, capsys):
    answers(tiny, tokenizer, PROMPTS[:1], 1)
    assert capsys.readouterr().err == ""
    answers(tiny, tokenizer, PROMPTS[:1], 1, progress=True)
    assert "1/1" in capsys.readouterr().err


# --- what measuring leaves behind -----------------------------------------

TALKS = [
    [
        {"role": "user", "content": f"Say {text}"},
        {"role": "assistant", "content": text},
    ]
    * turns
    for text, turns in [("seven", 1), ("yes, and then no", 2), ("a b c", 3)]
]
MEASURES = {
    "answers": lambda model, tok: answers(model, tok, PROMPTS[:3], 4),
    "text_loss": lambda model, tok: text_loss(model, tok, TEXTS),
    "answer_loss": lambda model, tok: answer_loss(model, tok, TALKS),
    "rank": lambda model, tok: rank(model, tok, PROMPTS[:3], [["a", "b"]] * 3),
    "agreement": lambda model, tok: agreement(model, model, tok, PROMPTS[:3]),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_dropout_is_off_and_flags_come_back(tokenizer, tiny, measure):
    model = add_lora(tiny, dropout=0.5)
    wanted = measure(model.eval(), tokenizer)
    model.train()
    frozen = model.get_submodule("base_model.model.model.layers.1")
    frozen.eval()  # a mixture, to come back as it was
    flags = {name: m.training for name, m in model.named_modules()}
    assert measure(model, tokenizer) == wanted
    assert {n: m.training for n, m in model.named_modules()} == flags
    assert len(set(flags.values())) == 2
    # with dropout on it would differ: the test can fail
    with torch.inference_mode():
        ids = torch.tensor([[1, 2, 3, 4]])
        one, two = model(ids).logits, model(ids).logits
    assert not torch.equal(one, two)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_flags_come_back_after_an_error(tokenizer, tiny, measure):
    def fail(*_, **__):
        raise KeyboardInterrupt

    tiny.train()
    hook = tiny.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        measure(tiny, tokenizer)
    hook.remove()
    assert all(m.training for m in tiny.modules())


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_no_gradient_and_no_weight_is_touched(tokenizer, tiny, measure):
    before = {k: v.clone() for k, v in tiny.state_dict().items()}
    measure(tiny, tokenizer)
    assert all(p.grad is None for p in tiny.parameters())
    assert all(torch.equal(v, before[k]) for k, v in tiny.state_dict().items())
    tiny(torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]]))[
        0
    ].backward()
    assert all(p.grad is not None for p in tiny.parameters())


# --- 4 bit ----------------------------------------------------------------


def gradients(model):
    """Return the adapters' gradients of one training step."""
    model.train()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    model(ids, labels=ids).loss.backward()
    found = {
        name: p.grad for name, p in model.named_parameters() if p.requires_grad
    }
    assert len(found) == 28  # A and B of 14 layers
    return found


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one | two)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_measured_four_bit_models_still_learn(tokenizer, four_bit, measure):
    fresh, measured = add_lora(four_bit()), add_lora(four_bit())
    states = []
    layer = measured.get_submodule(
        "base_model.model.model.layers.0.mlp.up_proj.base_layer"
    )
    layer.register_forward_hook(lambda module, *_: states.append(module))
    once = measure(measured, tokenizer)
    assert states and type(layer).__name__ == "Linear4bit"
    assert measure(measured, tokenizer) == once
    wanted = gradients(fresh)
    assert all(grad.abs().max() > 0 for grad in wanted.values())
    assert same(gradients(measured), wanted)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_four_bit_layers_never_see_eval(tokenizer, four_bit, measure):
    # the same promise where a CPU has no AVX512-BF16 to break it
    model = add_lora(four_bit(), dropout=0.5)
    seen = {}
    for module in model.modules():
        kind = type(module).__name__
        if kind in ("Linear4bit", "Dropout"):
            module.register_forward_pre_hook(
                lambda m, _, kind=kind: seen.setdefault(kind, set()).add(
                    (type(m).__module__.split(".")[0], m.training)
                )
            )
    measure(model, tokenizer)
    assert ("bitsandbytes", True) in seen["Linear4bit"]
    assert ("bitsandbytes", False) not in seen["Linear4bit"]
    assert seen["Dropout"] == {("torch", False)}


def test_eval_would_take_the_gradients(four_bit):
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16: eval() repacks nothing")
    fresh, asked = add_lora(four_bit()), add_lora(four_bit())
    with torch.inference_mode():
        asked.eval()(torch.tensor([[5, 6, 7]]))
    assert not same(gradients(asked), gradients(fresh))


# --- figures on answers ---------------------------------------------------


def test_exact_match():
    assert exact_match(["yes"], ["yes"]) == 1
    assert exact_match([" yes\n", "no"], ["yes", "no "]) == 1
    assert exact_match(["Yes", "no", "", "a"], ["yes", "yes", "", "b"]) == 0.25
    # each prediction meets its own target
    assert exact_match(["no", "yes"], ["yes", "no"]) == 0
    for given_ in ([], ["yes"], ["yes", "no", "no"]):
        with pytest.raises(ValueError, match=f"{len(given_)} predictions fo"):
            exact_match(given_, ["yes", "no"])
    with pytest.raises(ValueError, match="at least one"):
        exact_match([], [])


def test_in_format():
    said = ["yes", " no ", "Yes", "yes, it is", ""]
    assert in_format(said, ["yes", "no"]) == 0.4
    assert in_format(said, ["yes ", "no", ""]) == pytest.approx(0.6)
    assert in_format(said, []) == 0


@pytest.mark.parametrize(
    "measure",
    [
        lambda: in_format([], ["yes"]),
        lambda: interval(0.5, 0),
        lambda: interval(0.5, -3),
        lambda: interval(1.5, 10),
        lambda: interval(-0.1, 10),
        lambda: interval(math.nan, 10),
    ],
)
def test_nothing_to_measure(measure):
    with pytest.raises(ValueError):
        measure()


def test_interval():
    # the figures of Newcombe, Statistics in Medicine 17 (1998), table I
    for hits, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = interval(hits / count, count)
        assert found == pytest.approx((low, high), abs=5e-5)


@given(count=st.integers(1, 10_000), share=st.floats(0, 1))
def test_interval_holds_its_share(count, share):
    low, high = interval(share, count)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    # and says of the failures what it says of the hits
    other = interval(1 - share, count)
    assert other == pytest.approx((1 - high, 1 - low))


# --- loss on plain text ---------------------------------------------------


def losses_by_hand(model, tokenizer, texts, longest=512):
    """Every token's loss, given those before it, each text alone."""
    found = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:longest]
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0]
        for at, token in enumerate(ids[1:]):
            spread = logits[at].double().log_softmax(-1)
            found.append(-spread[token].item())
    return found


def test_text_loss_is_the_mean_over_tokens(tokenizer, make_tiny):
    tiny = make_tiny(initializer_range=0.02)
    losses = losses_by_hand(tiny, tokenizer, TEXTS)
    wanted = statistics.fmean(losses)
    found = [
        text_loss(tiny, tokenizer, TEXTS, batch_size=size)
        for size in (1, 2, 3, 8)
    ]
    for loss in found:
        assert loss == pytest.approx(wanted, abs=2e-6)
        assert abs(loss - found[0]) <= 1e-6
    # a mean over texts would be another figure: the test can fail
    alone = [text_loss(tiny, tokenizer, [text]) for text in TEXTS]
    assert abs(statistics.fmean(alone) - wanted) > 1e-3


def test_text_loss_cuts_long_texts(tokenizer, tiny):
    losses = losses_by_hand(tiny, tokenizer, TEXTS, longest=4)
    assert len(losses) < 3 * len(TEXTS)
    found = text_loss(tiny, tokenizer, TEXTS, max_length=4)
    assert found == pytest.approx(statistics.fmean(losses), abs=2e-6)


def test_text_loss_counts_the_end_token(tokenizer, tiny):
    # pad is another token, so a written end token is not taken for padding
    texts = ["a<|im_end|>", "a rather longer one, which pads the other"]
    losses = losses_by_hand(tiny, tokenizer, texts)
    assert text_loss(tiny, tokenizer, texts) == pytest.approx(
        statistics.fmean(losses), abs=2e-6
    )


@pytest.mark.parametrize("texts", [[], ["a"]])
def test_text_loss_of_no_token(tokenizer, tiny, texts):
    with pytest.raises(ValueError):
        text_loss(tiny, tokenizer, texts)


def test_answer_loss_is_the_mean_over_answer_tokens(tokenizer, make_tiny):
    tiny = make_tiny(initializer_range=0.02)
    losses = []
    for talk in TALKS:
        row = assistant_labels(tokenizer, talk)
        with torch.inference_mode():
            logits = tiny(torch.tensor([row["input_ids"]])).logits[0]
        spread = logits.double().log_softmax(-1)
        losses.append(
            [
                -spread[at, label].item()
                for at, label in enumerate(row["labels"][1:])
                if label != IGNORE
            ]
        )
    wanted = statistics.fmean(sum(losses, []))
    found = [
        answer_loss(tiny, tokenizer, TALKS, batch_size=size)
        for size in (1, 2, 3, 8)
    ]
    for loss in found:
        assert loss == pytest.approx(wanted, abs=2e-6)
        assert abs(loss - found[0]) <= 1e-6
    # a mean over rows would be another figure: the test can fail
    means = [statistics.fmean(each) for each in losses]
    assert abs(statistics.fmean(means) - wanted) > 1e-4


@pytest.mark.parametrize("talks", [[], [TALKS[0][:1]]])
def test_answer_loss_of_no_answer(tokenizer, tiny, talks):
    with pytest.raises(ValueError):
        answer_loss(tiny, tokenizer, talks)


# --- ranking options ------------------------------------------------------

OPTIONS = [
    ["yes", "no"],
    ["one, two and three", "1 2 3", "no"],
    ["", "x"][1:],
    ["yes", "yes, and a good deal more than that"],
    ["naïve 🙂", "wise", "neither", "both"],
    ["c a t", "cat"],
    ["Four", "Two"],
]


def scores_by_hand(model, tokenizer, prompt, option):
    """Each option token's log-probability, one prompt at a time."""
    ids = token_ids(tokenizer, prompt, answer_next=True)
    found = []
    answer = tokenizer(option, add_special_tokens=False)["input_ids"]
    for token in [*answer, tokenizer.eos_token_id]:
        with torch.inference_mode():
            last = model(torch.tensor([ids])).logits[0, -1]
        found.append(last.double().log_softmax(-1)[token].item())
        ids.append(token)
    return found


@pytest.mark.parametrize("by", ["sum", "mean"])
def test_rank_by_hand(tokenizer, make_tiny, by):
    # narrow weights, as a trained model's: scores of tens of nats
    tiny = make_tiny(initializer_range=0.1)
    reduced = {"sum": math.fsum, "mean": statistics.fmean}[by]
    wanted = [
        [reduced(scores_by_hand(tiny, tokenizer, p, o)) for o in names]
        for p, names in zip(PROMPTS, OPTIONS, strict=True)
    ]
    chosen = [
        names[row.index(max(row))]
        for names, row in zip(OPTIONS, wanted, strict=True)
    ]
    found = [
        rank(tiny, tokenizer, PROMPTS, OPTIONS, by, batch_size=size)
        for size in (1, 2, 5, 64)
    ]
    for each in found:
        assert each.chosen == chosen
        for row, alone, right in zip(
            each.scores, found[0].scores, wanted, strict=True
        ):
            assert row == pytest.approx(right, abs=2e-5)
            assert row == pytest.approx(alone, abs=1e-5)


def test_rank_by_mean_chooses_other_options(tokenizer, make_tiny):
    tiny = make_tiny(initializer_range=0.1)
    summed = rank(tiny, tokenizer, PROMPTS, OPTIONS)
    mean = rank(tiny, tokenizer, PROMPTS, OPTIONS, by="mean")
    assert summed.chosen != mean.chosen
    # the longer one of two sums to less, whatever it says
    assert summed.chosen[3] == "yes"


def test_rank_makes_logits_for_the_options_alone(tokenizer, tiny):
    shapes = []
    tiny.lm_head.register_forward_hook(
        lambda module, args, output: shapes.append(output.shape)
    )
    long = prompt({"instruction": "Count to 12. " * 20})
    rank(tiny, tokenizer, [long], [["yes", "no"]])
    [(rows, places, _)] = shapes
    assert (rows, places) == (2, 2)  # the word and the end token


def test_rank_takes_the_first_of_equals(tokenizer, tiny):
    with torch.no_grad():
        tiny.lm_head.weight.zero_()  # all tokens are as likely
    found = rank(tiny, tokenizer, PROMPTS[:1], [["yes", "no"]])
    assert found.chosen == ["yes"]
    nats = -2 * math.log(tiny.config.vocab_size)
    assert found.scores[0] == pytest.approx([nats, nats], abs=1e-4)
    assert rank(tiny, tokenizer, [], []) == ([], [])


@pytest.mark.parametrize(
    ("options", "by", "part"),
    [
        ([["a"]], "max", "by='max': rank by 'sum' or by 'mean'"),
        ([["a"], ["b"]], "sum", "2 lists of options for 1 prompts"),
        ([[]], "sum", "prompt 0 has the options"),
        ([["a", " "]], "sum", "none empty and none twice"),
        ([["a", "a "]], "sum", "none empty and none twice"),
    ],
)
def test_nothing_to_rank(tokenizer, tiny, options, by, part):
    with pytest.raises(ValueError, match=part):
        rank(tiny, tokenizer, PROMPTS[:1], options, by)


def test_rank_refuses_a_template_that_opens_another_answer(tokenizer, tiny):
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = other.chat_template.replace(
        "add_generation_prompt", "add_generation_prompt and false"
    ) + ("{%- if add_generation_prompt -%}Think: {%- endif -%}")
    with pytest.raises(ValueError, match="where the chat template opens"):
        rank(tiny, other, PROMPTS[:1], [["a", "b"]])


# --- two models -----------------------------------------------------------


def test_a_model_agrees_with_itself(tokenizer, tiny):
    assert agreement(tiny, tiny, tokenizer, PROMPTS) == {
        "largest_logit_gap": 0,
        "relative_logit_gap": 0,
        "same_top_1": 1,
        "mean_kl": 0,
    }


def test_agreement_needs_a_prompt(tiny, tokenizer):
    with pytest.raises(ValueError, match="at least one"):
        agreement(tiny, tiny, tokenizer, [])


def test_agreement_by_hand(tokenizer, make_tiny):
    one, other = make_tiny(), make_tiny()
    torch.manual_seed(1)
    with torch.no_grad():
        other.lm_head.weight += 0.03 * torch.randn_like(other.lm_head.weight)
    gaps, sizes, hits, kls = [], [], [], []
    for messages in PROMPTS:
        ids = token_ids(tokenizer, messages, answer_next=True)
        with torch.inference_mode():
            a, b = (m(torch.tensor([ids])).logits[0, -1] for m in (one, other))
        gaps.append((a - b).abs().max().item())
        sizes.append(a.abs().max().item())
        hits.append(a.argmax().item() == b.argmax().item())
        p, q = a.double().softmax(-1), b.double().softmax(-1)
        kls.append((p * (p / q).log()).sum().item())
    assert 0 < sum(hits) < len(hits), "too alike, or too unlike"
    wanted = {
        "largest_logit_gap": max(gaps),
        "relative_logit_gap": max(gaps) / max(sizes),
        "same_top_1": sum(hits) / len(hits),
        "mean_kl": statistics.fmean(kls),
    }
    for size in (1, 2, 32):
        found = agreement(one, other, tokenizer, PROMPTS, batch_size=size)
        assert found == pytest.approx(wanted, abs=1e-4)
    swapped = agreement(other, one, tokenizer, PROMPTS)
    assert not math.isclose(
        swapped["mean_kl"], wanted["mean_kl"], abs_tol=1e-3
    )
