"""The gate: each fault turns its own line red, and sound set-ups pass."""

import copy
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import DataCollatorForLanguageModeling
from trl import SFTConfig, SFTTrainer

from instructft.formatting import messages
from instructft.masking import assistant_labels, supervised
from instructft.preflight import (
    NotReady,
    RowGate,
    preflight,
    samples,
    stop_ids,
)

LINES = [
    "every row arrives",
    "no row is cut",
    "every row teaches",
    "the mask hides the prompt",
    "every answer teaches to stop",
    "answers start as in generation",
    "no turn ends inside a text",
    "texts open once",
    "batches keep the labels",
    "pad is not the end token",
    "tokenizer and model stop alike",
    "the vocabulary fits",
    "new tokens are learnt and kept",
    "something is trained",
    "the dtype suits the device",
    "packed rows stay apart",
    "4-bit weights let gradients through",
    "the run resumes whole",
    "memory may suffice",
]
LORA = {"r": 4, "task_type": "CAUSAL_LM"}
LONG = {"instruction": "Say it.", "output": "again and " * 60}


@pytest.fixture
def build(tokenizer, tiny, conversations, tmp_path):
    """Return a maker of trainers; keywords go to SFTConfig."""

    def make(model=tiny, tokenizer=tokenizer, rows=None, lora=None, **config):
        known = {
            "output_dir": str(tmp_path),
            "assistant_only_loss": True,
            "max_length": 128,
            "bf16": False,
            "use_cpu": True,
            "report_to": "none",
        }
        return SFTTrainer(
            model=model,
            args=SFTConfig(**known | config),
            train_dataset=Dataset.from_list(rows or conversations),
            processing_class=tokenizer,
            peft_config=lora,
        )

    return make


def refused(trainer, rows=6):
    """Return the lines that are red, by name, and what is said of them."""
    with pytest.raises(NotReady) as caught:
        preflight(trainer, rows)
    red = {c.name: c for c in caught.value.checks if not c.ok}
    assert isinstance(caught.value, ValueError)
    for check in red.values():
        assert f"{check.name}: {check.seen}; {check.remedy}" in str(
            caught.value
        )
        assert check.remedy
    return red


def float32(trainer):
    """Make the adapters float32, as on a CPU they must be."""
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


# --- a row alone ----------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("again and " * 60, "no row is cut"),
        ("Yes.<|im_end|> And more.", "every answer teaches to stop"),
        (" led by a blank", ""),
        ("\n\nled by lines", "answers start as in generation"),
        ("Yes.", ""),
    ],
)
def test_a_row_alone_is_judged_as_in_the_trainer(
    build, tokenizer, conversations, said, name
):
    """What RowGate says first is a red line of the trainer's gate, too."""
    row = {
        "messages": [
            {"role": "user", "content": "Say it."},
            {"role": "assistant", "content": said},
        ]
    }
    trainer = build(rows=[*conversations, row])
    gate = RowGate(tokenizer, stop_ids(trainer), 128)
    assert {gate.rule(each["messages"]) for each in conversations} == {""}
    found = gate.rule(row["messages"])
    red = refused(trainer, rows=7) if found else preflight(trainer, 7)
    assert found == name and (not found or found in red)


def test_a_row_alone_wants_an_answer_and_a_template_with_markers(tokenizer):
    gate = RowGate(tokenizer, {tokenizer.eos_token_id}, None)
    asked = [{"role": "user", "content": "Say it."}]
    assert gate.rule(asked) == "every row teaches"
    assert gate.faults([], []) == ["every row teaches"]
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = (
        "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}"
    )
    gate = RowGate(plain, {tokenizer.eos_token_id}, None)
    with pytest.raises(ValueError, match="generation"):
        gate.rule([*asked, {"role": "assistant", "content": "Yes."}])


# --- sound set-ups: no false alarm ----------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"max_length": None},
        {"packing": True},
        {"packing": True, "packing_strategy": "bfd", "max_length": 64},
        {"max_length": 45},  # a token more than the longest row
    ],
    ids=str,
)
def test_sound(build, config):
    checks = preflight(build(**config), rows=6)
    assert [c.name for c in checks] == LINES
    assert all(c.ok for c in checks)
    seen = {c.name: c.seen for c in checks}
    assert seen["every row arrives"] == "6 of 6 rows are in the training set"
    # "It is 0, surely." and its end: 8 of 44 tokens, in each row
    assert seen["the mask hides the prompt"].startswith("48 of 264 tokens")


def test_sound_when_a_row_just_fits(build):
    assert all(c.ok for c in preflight(build(max_length=44), rows=6))


def test_sound_prompt_and_completion(build, conversations):
    rows = [
        {"prompt": row["messages"][:1], "completion": row["messages"][1:]}
        for row in conversations
    ]
    trainer = build(
        rows=rows, completion_only_loss=True, assistant_only_loss=True
    )
    assert all(c.ok for c in preflight(trainer, rows=6))


def test_sound_several_turns(build, conversations):
    rows = [
        {"messages": row["messages"] * 2 + conversations[0]["messages"]}
        for row in conversations
    ]
    assert all(c.ok for c in preflight(build(rows=rows), rows=6))


@pytest.mark.parametrize(
    "targets", ["all-linear", ["q_proj", "v_proj"], r".*\.q_proj"], ids=str
)
def test_sound_lora(build, targets):
    lora = LoraConfig(target_modules=targets, **LORA)
    checks = preflight(build(lora=lora), rows=6)
    hit = [c.seen for c in checks if c.name == "every LoRA target is hit"]
    assert hit == ([] if "*" in targets else ["adapter 'default': all hit"])
    trained = [c for c in checks if c.name == "something is trained"]
    assert trained[0].seen.split(" of ")[0] not in ("0", "1,591,456")


def test_sound_four_bit(build, four_bit):
    lora = LoraConfig(target_modules="all-linear", **LORA)
    trainer = float32(build(model=four_bit(), lora=lora, packing=True))
    checks = preflight(trainer, rows=6)
    hit = "every LoRA target is hit"
    assert [c.name for c in checks] == [*LINES[:-1], hit, LINES[-1]]


def test_sound_list_of_stop_ids(build, tiny):
    tiny.generation_config.eos_token_id = [2, 9]
    trainer = build()
    assert stop_ids(trainer) == {2, 9}
    assert all(c.ok for c in preflight(trainer, rows=6))


def test_trains_nothing(build, tiny):
    trainer = build()
    before = copy.deepcopy(tiny.state_dict())
    preflight(trainer, rows=6)
    assert all(torch.equal(v, before[k]) for k, v in tiny.state_dict().items())
    assert trainer.state.global_step == 0 and len(trainer.train_dataset) == 6


def test_packed_rows_are_taken_apart(build):
    alone, packed = (
        sorted((list(ids), list(marked)) for ids, marked in samples(trainer))
        for trainer in (build(), build(packing=True))
    )
    assert len(packed) == 6 and packed == alone


# --- the data -------------------------------------------------------------


def test_row_dropped_by_max_length(build, conversations):
    asked = {"instruction": "Read: " + "on and " * 60, "output": "Yes."}
    rows = [*conversations[:5], {"messages": messages(asked)}]
    red = refused(build(rows=rows))
    assert set(red) == {"every row arrives"}
    assert red["every row arrives"].seen.startswith("5 of 6 rows")
    assert "max_length (now 128)" in red["every row arrives"].remedy


def test_fewer_rows_given_than_counted(build):
    assert set(refused(build(), rows=7)) == {"every row arrives"}
    assert set(refused(build(), rows=5)) == {"every row arrives"}


@pytest.mark.parametrize("packing", [False, True])
def test_row_cut(build, conversations, packing):
    rows = [*conversations[:5], {"messages": messages(LONG)}]
    red = refused(build(rows=rows, packing=packing))
    assert set(red) == {"no row is cut", "every answer teaches to stop"}
    assert red["no row is cut"].seen.startswith("1 rows are cut at max_length")
    assert "again and" in red["no row is cut"].seen


def test_last_answer_cut_after_one_token(build, tokenizer, conversations):
    talk = [{"messages": row["messages"] * 2} for row in conversations]
    row = assistant_labels(tokenizer, talk[0]["messages"])
    fits = len(supervised(row["labels"])) // 2  # an answer and its end
    longest = len(row["labels"]) - 1 - fits + 1
    red = refused(build(rows=talk, max_length=longest))
    assert "no row is cut" in red


def test_all_masked_row_with_packing(build, conversations):
    asked = {"instruction": "Read: " + "on and " * 60, "output": "Yes."}
    rows = [*conversations[:5], {"messages": messages(asked)}]
    red = refused(build(rows=rows, packing=True))
    assert set(red) == {"no row is cut", "every row teaches"}
    assert (
        "1 rows without a token in the loss" in red["every row teaches"].seen
    )
    assert "on and" in red["every row teaches"].seen


def test_all_rows_masked(build, conversations):
    red = refused(build(packing=True, max_length=20))
    assert {"every row teaches", "the mask hides the prompt"} < set(red)


@pytest.mark.parametrize("packing", [False, True])
def test_loss_on_everything(build, packing):
    red = refused(build(assistant_only_loss=False, packing=packing))
    hidden = red["the mask hides the prompt"]
    assert "264 of 264 tokens are in the loss (100.0%)" in hidden.seen
    assert "assistant_only_loss=True" in hidden.remedy
    # these two, says checks.red_lines, 05a's second exercise
    assert set(red) == {hidden.name, "every answer teaches to stop"}


@pytest.mark.parametrize("packing", [False, True])
def test_answer_that_starts_with_white_space(build, conversations, packing):
    indented = messages({"instruction": "Go on.", "output": "    return 1"})
    for turns in (indented, indented + conversations[0]["messages"]):
        rows = [*conversations[:5], {"messages": turns}]
        red = refused(build(rows=rows, packing=packing))
        assert set(red) == {"answers start as in generation"}
        [check] = red.values()
        assert check.seen.startswith("1 rows with an answer")
        assert "strip white space" in check.remedy


def test_answer_that_trl_hides(build, conversations):
    hidden = messages({"instruction": "Go on.", "output": "\x14No."})
    rows = [{"messages": row["messages"] + hidden} for row in conversations]
    trainer = build(rows=rows)
    [_, marked] = next(samples(trainer))
    assert supervised(marked)  # the first answer alone teaches
    assert set(refused(trainer)) == {"answers start as in generation"}


@pytest.mark.parametrize("output", ["No.<|im_end|> Yes, so", "No.<|im_end|>"])
def test_end_token_inside_an_answer(build, conversations, output):
    early = messages({"instruction": "Go.", "output": output})
    red = refused(build(rows=[*conversations[:5], {"messages": early}]))
    assert set(red) == {
        "every answer teaches to stop",
        "no turn ends inside a text",
    }
    check = red["every answer teaches to stop"]
    assert check.seen.startswith("1 rows do not stop")
    assert "rows' own text" in check.remedy


def test_end_token_inside_a_question(build, conversations):
    asked = messages({"instruction": "<|im_end|> ends?", "output": "Yes."})
    red = refused(build(rows=[*conversations[:5], {"messages": asked}]))
    assert set(red) == {"no turn ends inside a text"}
    [check] = red.values()
    assert check.seen.startswith("1 rows with an end token")


def test_earlier_answers_may_be_hidden(build, conversations):
    trainer = build(
        rows=[
            {
                "prompt": row["messages"] + row["messages"][:1],
                "completion": row["messages"][1:],
            }
            for row in conversations
        ],
        assistant_only_loss=False,
        completion_only_loss=True,
    )
    assert all(c.ok for c in preflight(trainer, rows=6))


def test_text_with_two_openings(build, tokenizer):
    trainer = build()
    first, opening = trainer.train_dataset[0], [tokenizer.bos_token_id]
    assert first["input_ids"][:1] == opening != first["input_ids"][1:2]
    trainer.train_dataset = trainer.train_dataset.map(
        lambda row: {
            "input_ids": opening + row["input_ids"],
            "labels": [-100, *row["labels"]],
        }
    )
    red = refused(trainer)
    assert set(red) == {"texts open once"}
    assert red["texts open once"].seen.startswith("6 rows begin with two")


def test_a_collator_that_masks_anew(build):
    trainer = build()
    collate = trainer.data_collator

    def other(rows):
        batch = collate(rows)
        batch["labels"][:, -2] = -100  # such as the end token
        return batch

    trainer.data_collator = other
    red = refused(trainer)
    assert set(red) == {"batches keep the labels"}
    seen = red["batches keep the labels"].seen
    assert seen == "6 labels differ in the batches"


def test_a_collator_of_old_is_refused_for_what_it_does(build, tokenizer):
    trainer = build(per_device_train_batch_size=1)
    assert "messages" in trainer.train_dataset.column_names  # not handed on
    pads_with_end = copy.deepcopy(tokenizer)
    pads_with_end.pad_token = pads_with_end.eos_token
    trainer.data_collator = DataCollatorForLanguageModeling(
        pads_with_end, mlm=False
    )
    red = refused(trainer)
    assert set(red) == {"batches keep the labels"}
    # all of a row counts, but for its end tokens: hidden as if padding
    end = tokenizer.eos_token_id
    other = sum(
        (-100 if token == end else token) != label
        for ids, marked in samples(trainer)
        for token, label in zip(ids, marked, strict=True)
    )
    seen = red["batches keep the labels"].seen
    assert seen == f"{other} labels differ in the batches"


# --- the tokens -----------------------------------------------------------


def test_generation_stops_elsewhere(build, tiny):
    tiny.generation_config.eos_token_id = 5
    red = refused(build())
    assert set(red) == {
        "every answer teaches to stop",
        "tokenizer and model stop alike",
    }
    stop = red["every answer teaches to stop"].seen
    assert stop.startswith("6 rows do not stop at the end")
    assert "surely.<|im_end|>" in stop


def test_generation_never_stops(build, tiny, monkeypatch):
    trainer = build()
    monkeypatch.setattr(trainer.model.generation_config, "eos_token_id", None)
    assert stop_ids(trainer) == set()
    assert "every answer teaches to stop" in refused(trainer)


def test_template_without_end_in_its_markers(build, tokenizer):
    wrong = copy.deepcopy(tokenizer)
    old = """{{- message['content'] + '<|im_end|>' -}}
{%- endgeneration -%}
"""
    assert old in wrong.chat_template
    wrong.chat_template = wrong.chat_template.replace(
        old,
        """{{- message['content'] -}}
{%- endgeneration -%}
{{- '<|im_end|>' -}}
""",
    )
    assert set(refused(build(tokenizer=wrong))) == {
        "every answer teaches to stop"
    }


def test_wrong_tokenizer_eos(build, tokenizer):
    wrong = copy.deepcopy(tokenizer)
    wrong.eos_token = "<|endoftext|>"
    trainer = build(tokenizer=wrong)
    assert "tokenizer and model stop alike" in refused(trainer)


def test_tokenizer_pads_with_its_end(build, tokenizer):
    wrong = copy.deepcopy(tokenizer)
    wrong.pad_token = wrong.eos_token
    trainer = build(tokenizer=wrong)
    trainer.model.config.pad_token_id = 0  # TRL copies the tokenizer's
    red = refused(trainer)
    assert set(red) == {"pad is not the end token"}
    assert (
        red["pad is not the end token"].seen == "pad 2, stop [2], model pad 0"
    )


def test_model_pads_with_its_end(build, tiny, monkeypatch):
    trainer = build()  # TRL would copy the tokenizer's
    monkeypatch.setattr(trainer.model.config, "pad_token_id", 2)
    red = refused(trainer)
    assert set(red) == {"pad is not the end token"}
    assert red["pad is not the end token"].seen.endswith("model pad 2")


def test_tokenizer_larger_than_the_embedding(build, tokenizer):
    wrong = copy.deepcopy(tokenizer)
    wrong.add_tokens(["<|new|>"])
    red = refused(build(tokenizer=wrong))
    assert set(red) == {"the vocabulary fits"}
    assert red["the vocabulary fits"].seen == (
        "49,153 tokens, 49,152 embedding rows"
    )


def test_a_new_token_is_neither_learnt_nor_kept(build, tokenizer, tiny):
    wider = copy.deepcopy(tokenizer)
    wider.add_tokens(["<|new|>"])
    tiny.resize_token_embeddings(len(wider))
    lora = LoraConfig(target_modules=["q_proj"], **LORA)
    red = refused(build(tokenizer=wider, lora=lora))
    assert set(red) == {"new tokens are learnt and kept"}
    [check] = red.values()
    assert check.seen.endswith("the first '<|new|>'")


def test_a_new_token_is_learnt_where_all_is_trained(build, tokenizer, tiny):
    wider = copy.deepcopy(tokenizer)
    wider.add_tokens(["<|new|>"])
    tiny.resize_token_embeddings(len(wider))
    assert all(c.ok for c in preflight(build(tokenizer=wider), rows=6))


# --- the model ------------------------------------------------------------


def test_bf16_on_a_cpu(build):
    red = refused(build(bf16=True))
    assert set(red) == {"the dtype suits the device"}
    assert "cpu, bf16=True" in red["the dtype suits the device"].seen


def test_half_precision_weights_on_a_cpu(build, tiny):
    red = refused(build(model=tiny.bfloat16()))
    assert set(red) == {"the dtype suits the device"}


def test_bfloat16_adapters_on_a_cpu(build, four_bit):
    # what TRL makes of the adapters of 4-bit layers
    lora = LoraConfig(target_modules="all-linear", **LORA)
    trainer = build(model=four_bit(), lora=lora)
    red = refused(trainer)
    assert set(red) == {"the dtype suits the device"}
    assert "bfloat16" in red["the dtype suits the device"].seen
    assert all(c.ok for c in preflight(float32(trainer), rows=6))


def test_misspelt_lora_target(build):
    targets = ["q_proj", "v_porj", "proj"]
    lora = LoraConfig(target_modules=targets, **LORA)
    red = refused(build(lora=lora))
    assert set(red) == {"every LoRA target is hit"}
    assert "['proj', 'v_porj']" in red["every LoRA target is hit"].seen


@pytest.mark.parametrize("strategy", ["wrapped", "bfd_split"])
def test_packing_that_mixes_rows(build, strategy):
    red = refused(build(packing=True, packing_strategy=strategy))
    assert "packed rows stay apart" in red
    assert strategy in red["packed rows stay apart"].seen


def test_attention_that_knows_no_packs(build, tiny, monkeypatch):
    trainer = build(packing=True)
    monkeypatch.setattr(
        trainer.model.config, "_attn_implementation", "flex_attention"
    )
    assert set(refused(trainer)) == {"packed rows stay apart"}


def test_nothing_trainable(build, tiny):
    trainer = build()
    tiny.requires_grad_(False)
    red = refused(trainer)
    assert set(red) == {"something is trained"}
    assert "peft_config" in red["something is trained"].remedy


def repacked(build, four_bit):
    lora = LoraConfig(target_modules="all-linear", **LORA)
    return float32(build(model=four_bit(), lora=lora))


def test_repacked_four_bit_weights(build, four_bit):
    trainer = repacked(build, four_bit)
    for name, parameter in trainer.model.named_parameters():
        if name.endswith("layers.1.mlp.up_proj.base_layer.weight"):
            parameter.quant_state.packing_format_for_cpu = True
    red = refused(trainer)
    assert set(red) == {"4-bit weights let gradients through"}
    [check] = red.values()
    assert check.seen.startswith("1 layers repacked")


def test_really_repacked_four_bit_weights(build, four_bit):
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16: nothing is repacked")
    trainer = repacked(build, four_bit)
    with torch.no_grad():
        trainer.model.eval()(torch.tensor([[5, 6, 7]]))
    red = refused(trainer)
    assert set(red) == {"4-bit weights let gradients through"}
    [check] = red.values()
    assert check.seen.startswith("14 layers repacked")


def test_a_gpu_without_bf16(build, monkeypatch):
    """A T4, played: it has float16 only."""
    trainer = build()
    monkeypatch.setattr(
        type(trainer.model), "device", SimpleNamespace(type="cuda")
    )
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: False
    )
    assert all(c.ok for c in preflight(trainer, rows=6))
    monkeypatch.setattr(trainer.args, "bf16", True)
    assert set(refused(trainer)) == {"the dtype suits the device"}
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: True
    )
    assert all(c.ok for c in preflight(trainer, rows=6))


def test_a_run_resumed_from_half_a_checkpoint(build, tmp_path):
    red = refused(build(resume_from_checkpoint=str(tmp_path)))
    assert set(red) == {"the run resumes whole"}
    assert "COMPLETE" in red["the run resumes whole"].seen


def test_too_little_memory(build, monkeypatch):
    monkeypatch.setattr("instructft.preflight.memory_gb", lambda: 0.01)
    red = refused(build())
    assert set(red) == {"memory may suffice"}
    assert " GB of 0.0: weights 0.01" in red["memory may suffice"].seen


@pytest.mark.parametrize(
    ("optim", "gigabytes"),
    [
        ("adamw_torch_fused", "0.13"),  # two numbers for each, in float32
        ("paged_adamw_8bit", "0.03"),  # two bytes for each
        ("sgd", "0.00"),
    ],
)
def test_the_optimizers_share_of_memory(build, tiny, optim, gigabytes):
    tiny.resize_token_embeddings(500_000)
    [check] = [
        check
        for check in preflight(build(optim=optim), rows=6)
        if check.name == "memory may suffice"
    ]
    assert f"optimizer {gigabytes};" in check.seen


def test_memory_that_holds_all_but_a_batchs_logits_may_suffice(
    build, monkeypatch
):
    trainer = build(per_device_train_batch_size=6)
    total = sum(p.numel() for p in trainer.model.parameters())
    needed = total * 4 * 4 / 1e9  # weights, gradients, two of Adam's
    logits = 6 * 44 * 49_152 * 4 / 1e9
    there = needed + logits / 2
    monkeypatch.setattr("instructft.preflight.memory_gb", lambda: there)
    assert all(c.ok for c in preflight(trainer, rows=6))
    monkeypatch.setattr("instructft.preflight.memory_gb", lambda: needed)
    assert set(refused(trainer)) == {"memory may suffice"}


def test_every_fault_at_once(build, tiny):
    tiny.generation_config.eos_token_id = 5
    trainer = build(
        assistant_only_loss=False, packing=True, packing_strategy="wrapped"
    )
    tiny.requires_grad_(False)
    with pytest.raises(NotReady) as caught:
        preflight(trainer, rows=6)
    assert [c.name for c in caught.value.checks] == LINES
    assert len(str(caught.value).splitlines()) == sum(
        not c.ok for c in caught.value.checks
    )
