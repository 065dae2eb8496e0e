"""What the tests share: the embedded tokenizer and tiny random models."""

import os

# before torch or tokenizers is imported, here and in child processes
os.environ.update(
    {
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
)

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# the same examples on each run, however busy the machine
settings.register_profile("course", deadline=None, derandomize=True)
settings.load_profile("course")


@pytest.fixture
def conversations():
    """Six short rows, in the shape that SFTTrainer takes."""
    from instructft.formatting import messages

    asked = [
        {"instruction": f"Say number {i}.", "output": f"It is {i}, surely."}
        for i in range(6)
    ]
    return [{"messages": messages(row)} for row in asked]


@pytest.fixture(scope="session")
def tokenizer():
    """The embedded model's tokenizer: copy it before you change it."""
    from transformers import AutoTokenizer

    from instructft.models import embedded

    return AutoTokenizer.from_pretrained(embedded())


@pytest.fixture(scope="session")
def make_tiny():
    """Return a maker of tiny Llamas with the embedded model's ids.

    Random weights, the same each time; keywords go to LlamaConfig.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)

    def make(**other):
        config = {
            "vocab_size": 49_152,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }
        torch.manual_seed(0)
        # wide weights: a token follows another for a reason, not by chance
        made = LlamaForCausalLM(
            LlamaConfig(**{"initializer_range": 0.3} | config | other)
        )
        return made.eval()

    return make


@pytest.fixture
def tiny(make_tiny):
    """A tiny random Llama, in eval mode: change what you like."""
    return make_tiny()


def in_four_bit(path):
    """A folder's model in 4 bit, as the recipes load it."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    return AutoModelForCausalLM.from_pretrained(
        path,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        ),
        dtype=torch.float32,
        device_map={"": "cpu"},
    )


@pytest.fixture(scope="session")
def four_bit(make_tiny, tmp_path_factory):
    """Return a loader of one tiny Llama in 4 bit; its folder is `.saved`.

    Sizes that bitsandbytes can repack: multiples of 64.
    """
    pytest.importorskip("bitsandbytes")
    saved = tmp_path_factory.mktemp("tiny")
    make_tiny(hidden_size=64, num_key_value_heads=2).save_pretrained(saved)

    def load():
        return in_four_bit(saved)

    load.saved = saved
    return load
