"""The gate before tuning models of seven families, sound and broken.

Models and tokenizers are tiny and random; the chat templates are those that
TRL trains the families with.
"""

import copy
import json
import time
from pathlib import Path

import pytest
import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
)
from trl import SFTConfig, SFTTrainer

from instructft.checkpoints import mark
from instructft.instance import read_rows
from instructft.preflight import NotReady, preflight

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
THINKING = [*CHATML, "<think>", "</think>"]
GEMMA = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
LLAMA = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<|eot_id|>", "<|finetune_right_pad_id|>"),
]
PHI = [
    *("<s>", "</s>", "<|endoftext|>", "<|user|>", "<|assistant|>"),
    *("<|system|>", "<|end|>", "<|placeholder1|>"),
]
# template: class, config, marks, BOS, EOS, pad, end of a turn
FAMILIES = {
    "llama3": [
        *("LlamaForCausalLM", "LlamaConfig", LLAMA, "<|begin_of_text|>"),
        *("<|eot_id|>", "<|finetune_right_pad_id|>", "<|eot_id|>"),
    ],
    "qwen2_5": [
        *("Qwen2ForCausalLM", "Qwen2Config", CHATML, None),
        *("<|im_end|>", "<|endoftext|>", "<|im_end|>"),
    ],
    "qwen3": [
        *("Qwen3ForCausalLM", "Qwen3Config", THINKING, None),
        *("<|im_end|>", "<|endoftext|>", "<|im_end|>"),
    ],
    "qwen3_instruct_2507": [
        *("Qwen3ForCausalLM", "Qwen3Config", THINKING, None),
        *("<|im_end|>", "<|endoftext|>", "<|im_end|>"),
    ],
    "gemma": [
        *("GemmaForCausalLM", "GemmaConfig", GEMMA, "<bos>"),
        *("<eos>", "<pad>", "<end_of_turn>"),
    ],
    "gemma3": [
        *("Gemma3ForCausalLM", "Gemma3TextConfig", GEMMA, "<bos>"),
        *("<eos>", "<pad>", "<end_of_turn>"),
    ],
    "phi3": [
        *("Phi3ForCausalLM", "Phi3Config", PHI, "<s>"),
        *("<|endoftext|>", "<|placeholder1|>", "<|end|>"),
    ],
}
SOUND = {
    "max_length": 128,
    "assistant_only_loss": True,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
}


def turns(said, answer="It is so, surely."):
    return [
        {"role": "user", "content": said},
        {"role": "assistant", "content": answer},
    ]


def short_rows(count=6):
    return [
        {"messages": turns(f"Say number {i}.", f"It is {i}, surely.")}
        for i in range(count)
    ]


def tokenizer_of(family):
    """Return a tokenizer of 2,000 tokens with a family's marks."""
    _, _, marks, bos, eos, pad, _ = FAMILIES[family]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    seeds = read_rows(ROOT / "data" / "seeds" / "tasks.jsonl")
    made.train_from_iterator(
        map(json.dumps, seeds),
        trainers.BpeTrainer(
            vocab_size=2000,
            special_tokens=marks,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    opening = {"bos_token": bos} if bos else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=eos, pad_token=pad, **opening
    )
    tokenizer.chat_template = (TEMPLATES / f"{family}.jinja").read_text()
    return tokenizer


def model_of(family, tokenizer):
    """Return a random model of two thin layers that stops as it should."""
    kind, config, *_, end = FAMILIES[family]
    torch.manual_seed(0)
    head = {} if family in ("llama3", "qwen2_5", "phi3") else {"head_dim": 16}
    model = getattr(transformers, kind)(
        getattr(transformers, config)(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **head,
        )
    )
    stops = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end)}
    model.generation_config.eos_token_id = sorted(stops)
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """Each family's name with its tokenizer, from a folder as usual."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer_of(request.param).save_pretrained(folder)
    return request.param, AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def made(family, tmp_path):
    """What a trainer is built from: a test changes it first."""
    name, tokenizer = family
    tokenizer = copy.deepcopy(tokenizer)
    return {
        "model": model_of(name, tokenizer),
        "tokenizer": tokenizer,
        "end": FAMILIES[name][-1],
        "rows": short_rows(),
        "config": SOUND | {"output_dir": str(tmp_path)},
        "lora": None,
        "collator": None,
    }


def built(made):
    return SFTTrainer(
        model=made["model"],
        args=SFTConfig(**made["config"]),
        train_dataset=Dataset.from_list(made["rows"]),
        processing_class=made["tokenizer"],
        peft_config=made["lora"],
        data_collator=made["collator"],
    )


# --- sound ----------------------------------------------------------------


def as_it_is(made):
    pass


def packed(made):
    made["config"]["packing"] = True
    made["rows"] = short_rows(12)


def several_turns(made):
    made["rows"] = [
        {"messages": turns(f"Say {i}.") + turns("Why?", "Two  lines.\n\nSo.")}
        for i in range(6)
    ]


def prompt_and_completion(made):
    made["config"]["assistant_only_loss"] = False
    made["rows"] = [
        {"prompt": row["messages"][:1], "completion": row["messages"][1:]}
        for row in made["rows"]
    ]


def plain_text(made):
    tokenizer = made["tokenizer"]
    made["config"]["assistant_only_loss"] = False
    made["rows"] = [
        {
            "prompt": tokenizer.apply_chat_template(
                row["messages"][:1], tokenize=False, add_generation_prompt=True
            ),
            "completion": f"{row['messages'][1]['content']}{made['end']}",
        }
        for row in made["rows"]
    ]


def with_adapter(made):
    made["lora"] = LoraConfig(
        target_modules="all-linear", task_type="CAUSAL_LM"
    )


@pytest.mark.parametrize(
    "change",
    [
        as_it_is,
        packed,
        several_turns,
        prompt_and_completion,
        plain_text,
        with_adapter,
    ],
    ids=lambda change: change.__name__,
)
def test_sound_setups_pass(made, change):
    change(made)
    checks = preflight(built(made), rows=len(made["rows"]))
    assert all(check.ok for check in checks)


# --- broken ---------------------------------------------------------------


def loss_on_everything(made):
    made["config"]["assistant_only_loss"] = False
    return "the mask hides the prompt"


def generation_stops_at_another_token(made):
    if "eos_token" in made["tokenizer"].chat_template:
        pytest.skip("the template writes whatever the tokenizer's EOS is")
    other = made["tokenizer"].pad_token_id
    made["model"].generation_config.eos_token_id = [other]
    made["tokenizer"].eos_token = made["tokenizer"].pad_token
    return "every answer teaches to stop"


def answers_are_cut(made):
    made["rows"][2]["messages"] = turns("Say it.", "again and " * 90)
    made["rows"][4]["messages"] = turns("Say it. " * 60)
    return "every row arrives"


def packs_of_nothing(made):
    made["config"]["packing"] = True
    made["rows"] = [{"messages": turns("and so on " * 90)}] * 6
    return "every row teaches"


def packs_that_mix(made):
    made["config"] |= {"packing": True, "packing_strategy": "wrapped"}
    made["rows"] = short_rows(12)
    return "packed rows stay apart"


def a_collator_of_old(made):
    made["tokenizer"].pad_token = made["tokenizer"].eos_token
    made["collator"] = DataCollatorForLanguageModeling(
        made["tokenizer"], mlm=False
    )
    made["rows"] = [short_rows(1)[0]] * 6  # it cannot pad labels
    return "batches keep the labels"


def two_openings(made):
    plain_text(made)
    opening = made["tokenizer"].bos_token or "<|im_start|>"
    for row in made["rows"]:
        row["prompt"] = opening * 2 + row["prompt"].removeprefix(opening)
    return "texts open once"


def a_misspelt_target(made):
    made["lora"] = LoraConfig(
        target_modules=["o_proj", "v_porj"], task_type="CAUSAL_LM"
    )
    return "every LoRA target is hit"


def half_precision_unasked(made):
    made["config"]["bf16"] = True
    return "the dtype suits the device"


def pad_is_the_end(made):
    made["tokenizer"].pad_token = made["tokenizer"].eos_token
    made["model"].config.pad_token_id = made["tokenizer"].eos_token_id
    return "pad is not the end token"


def new_tokens_left_untrained(made):
    made["tokenizer"].add_tokens(["<new>"])
    made["model"].resize_token_embeddings(len(made["tokenizer"]))
    with_adapter(made)
    return "new tokens are learnt and kept"


def a_smaller_vocabulary(made):
    made["tokenizer"].add_tokens([f"<new-{i}>" for i in range(3)])
    return "the vocabulary fits"


def an_end_in_a_question(made):
    made["rows"][3]["messages"] = turns(f"What is {made['end']} for?")
    return "no turn ends inside a text"


def nothing_to_train(made):
    made["model"].requires_grad_(False)
    return "something is trained"


def half_a_checkpoint(made):
    folder = Path(made["config"]["output_dir"]) / "checkpoint-2"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x")
    mark(folder)
    made["config"]["resume_from_checkpoint"] = str(folder)
    return "the run resumes whole"


BROKEN = [
    loss_on_everything,
    generation_stops_at_another_token,
    answers_are_cut,
    packs_of_nothing,
    packs_that_mix,
    a_collator_of_old,
    two_openings,
    a_misspelt_target,
    half_precision_unasked,
    pad_is_the_end,
    new_tokens_left_untrained,
    a_smaller_vocabulary,
    an_end_in_a_question,
    nothing_to_train,
    half_a_checkpoint,
]


@pytest.mark.parametrize("fault", BROKEN, ids=lambda fault: fault.__name__)
def test_broken_setups_are_refused(made, fault):
    line = fault(made)
    trainer = built(made)
    with pytest.raises(NotReady) as refused:
        preflight(trainer, rows=len(made["rows"]))
    red = [check.name for check in refused.value.checks if not check.ok]
    assert line in red


# --- stops that do not end a row --------------------------------------------


def two_stops(tmp_path):
    """Qwen2.5 as published: it pads with one of the two where it stops."""
    tokenizer = tokenizer_of("qwen2_5")
    made = {
        "model": model_of("qwen2_5", tokenizer),
        "tokenizer": tokenizer,
        "rows": short_rows(),
        "config": SOUND | {"output_dir": str(tmp_path)},
        "lora": None,
        "collator": None,
    }
    stops = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    made["model"].generation_config.eos_token_id = stops
    return made


def test_a_stop_that_ends_no_row_may_pad(tmp_path):
    checks = preflight(built(two_stops(tmp_path)), rows=6)
    assert all(check.ok for check in checks)


def test_a_stop_that_ends_rows_may_not_pad(tmp_path):
    made = two_stops(tmp_path) | {"end": "<|endoftext|>"}
    plain_text(made)
    trainer = built(made)
    with pytest.raises(NotReady, match="pad is not the end token"):
        preflight(trainer, rows=6)


# --- many -----------------------------------------------------------------


def test_ten_thousand_rows_in_ten_seconds(tmp_path):
    tokenizer = tokenizer_of("qwen2_5")
    trainer = built(
        {
            "model": model_of("qwen2_5", tokenizer),
            "tokenizer": tokenizer,
            "rows": [
                {"messages": turns(f"Say {i} and why. " * 5, f"{i}. " * 20)}
                for i in range(10_000)
            ],
            "config": SOUND | {"output_dir": str(tmp_path), "max_length": 512},
            "lora": None,
            "collator": None,
        }
    )
    start = time.process_time()
    preflight(trainer, rows=10_000)
    assert time.process_time() - start < 10
