"""Give a tuned model away as one GGUF file, for llama.cpp and for Ollama.

A served model must read the prompts that training wrote, byte for byte; its
file carries the tokenizer and the chat template, and both can differ in
silence. So the file is written, then asked.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from instructft.evaluate import _evaluating

TIMEOUT = 120  # seconds without a word from the server
KINDS = ("F32", "F16", "Q8_0")  # 32, 16 and 8.5 bits a weight
# The only way of cutting text before its merges that we have compared with
# llama.cpp's own: single digits, then GPT-2's pattern
SMOLLM = [
    {"type": "Digits", "individual_digits": True},
    {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    },
]


def to_gguf(folder: str | Path, path: str | Path, kind: str = "F16") -> Path:
    """Write a Llama model directory, tokenizer included, as one GGUF file.

    `kind` is F32, F16 or Q8_0, for the matrices; norms stay F32. A file
    that is there is replaced whole. All weights are in memory meanwhile.
    Names, order of q and k, and fields follow llama.cpp's
    conversion/llama.py.

    Raises ValueError for what it was not written for (other architectures,
    tokenizers or RoPE, 4-bit weights), with the command of llama.cpp's own
    converter, and for weights that a kind cannot hold.
    """
    import gguf
    from transformers import AutoConfig, AutoTokenizer

    folder, path = Path(folder), Path(path)
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}: give one of {', '.join(KINDS)}")
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"{folder} has no tokenizer.json: save the tokenizer beside the "
            "model, `tokenizer.save_pretrained(folder)`"
        )
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if why := "; ".join(_strange(folder, config, tokenizer)):
        raise ValueError(
            f"{folder} is not converted here: {why}. llama.cpp's own "
            "converter, from its repository, may know it: `python "
            f"convert_hf_to_gguf.py {folder} --outfile {path} --outtype "
            f"{kind.lower()}`"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(part, "llama")
    try:
        _add_shape(writer, config, kind)
        _add_tokenizer(writer, folder, config, tokenizer)
        _add_weights(writer, folder, config, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _strange(folder: Path, config, tokenizer) -> Iterator[str]:
    """Yield what of a model directory this module was not written for."""
    if config.architectures != ["LlamaForCausalLM"]:
        yield f"its architecture is {config.architectures}"
        return
    if getattr(config, "quantization_config", None):
        yield "its weights are quantised (merge into dequantised ones first)"
    if config.attention_bias or config.mlp_bias:
        yield "its layers have biases"
    if config.hidden_act != "silu":
        yield f"its activation is {config.hidden_act}"
    if (kind := config.rope_parameters["rope_type"]) != "default":
        yield f"its RoPE is {kind}"
    made = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    cut, bpe = made["pre_tokenizer"] or {}, made["model"]
    plain = bpe["type"] == "BPE" and not bpe.get("byte_fallback")
    if not plain or made["normalizer"] or cut.get("pretokenizers") != SMOLLM:
        yield "its tokenizer does not cut text as SmolLM2's does"
    if tokenizer("a").input_ids != _ids(tokenizer, "a"):
        yield "its tokenizer adds tokens of its own"


def _ids(tokenizer, text: str) -> list[int]:
    """Tokenize a text whose template wrote all special tokens."""
    return tokenizer(text, add_special_tokens=False).input_ids


def _add_shape(writer, config, kind: str) -> None:
    import gguf

    head = config.head_dim or config.hidden_size // config.num_attention_heads
    known = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0"}
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(gguf.LlamaFileType[known[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_tokenizer(writer, folder: Path, config, tokenizer) -> None:
    from gguf import TokenType

    vocabulary = {i: token for token, i in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for i in range(config.vocab_size):
        kind = TokenType.NORMAL
        if i in added:
            special = added[i].special
            kind = TokenType.CONTROL if special else TokenType.USER_DEFINED
        elif i not in vocabulary:  # a row of the matrix without a token
            kind = TokenType.UNUSED
        tokens.append(vocabulary.get(i, f"[PAD{i}]"))
        types.append(kind)
    made = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    merges = made["model"]["merges"]
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(
        [m if isinstance(m, str) else " ".join(m) for m in merges]
    )
    for name in ("bos", "eos", "unk", "pad"):
        token_id = getattr(tokenizer, f"{name}_token_id")
        if token_id is not None:
            getattr(writer, f"add_{name}_token_id")(token_id)
    writer.add_add_bos_token(False)  # the template writes all there is
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(_plain(tokenizer.chat_template))


def _plain(template: str) -> str:
    """Turn generation markers, which only training reads, into comments.

    Plain Jinja knows no such tag (llama.cpp of 2026.10 does). A comment
    takes the blanks around it as the marker did.

    >>> _plain("a {%- generation -%} b {% endgeneration %}")
    'a {#- generation -#} b {# endgeneration #}'
    """
    marker = r"\{%([-+]?)\s*((?:end)?generation)\s*([-+]?)%\}"
    return re.sub(marker, r"{#\1 \2 \3#}", template)


def _add_weights(writer, folder: Path, config, kind: str) -> None:
    import gguf
    import numpy as np
    from safetensors import safe_open

    count = config.num_hidden_layers
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, count)
    heads = {
        "attn_q": config.num_attention_heads,
        "attn_k": config.num_key_value_heads,
    }
    found = 0
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():
                if name == "lm_head.weight" and config.tie_word_embeddings:
                    continue  # llama.cpp reads the embedding's instead
                to = names.get_name(name, try_suffixes=(".weight",))
                if to is None:
                    raise ValueError(f"{file} holds {name}: no Llama has it")
                data = weights.get_tensor(name).float().numpy()
                if number := heads.get(to.split(".")[-2]):
                    data = _interleaved(data, number)
                wanted = kind if data.ndim == 2 else "F32"
                found += 1
                as_type = gguf.GGMLQuantizationType[wanted]
                with np.errstate(over="ignore"):
                    packed = gguf.quants.quantize(data, as_type)
                if wanted == "F16" and not np.isfinite(packed).all():
                    raise ValueError(f"F16 cannot hold {name}: use F32")
                writer.add_tensor(to, packed, raw_dtype=as_type)
    expected = 9 * count + 2 + (not config.tie_word_embeddings)
    if found != expected:
        raise ValueError(
            f"{folder} has {found} of the {expected} tensors of a Llama with "
            f"{count} layers: save the model again"
        )


def _interleaved(weight, heads: int):
    """Put the two halves of each head's rows in turn.

    RoPE turns rows (i, i + half) together in transformers, (2 i, 2 i + 1)
    in llama.cpp.

    >>> import numpy
    >>> _interleaved(numpy.arange(4)[:, None], 1).ravel().tolist()
    [0, 2, 1, 3]
    """
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


# Ollama


def modelfile(
    tokenizer,
    gguf: str,
    system: str = "",
    parameters: Mapping[str, object] | None = None,
) -> str:
    """Write Ollama's Modelfile for a model whose template is ChatML.

    `gguf` is the file's path as seen from the Modelfile; `system`, if any,
    stands before every conversation without one, as training's did;
    `parameters` are Ollama's, such as num_ctx and temperature; one that it
    takes several times, such as stop, has a list. Generation stops at the
    tokenizer's end token. Without a TEMPLATE Ollama takes the one of its own
    that looks most like the file's, or none at all.

    Ollama joins neighbouring messages of one role, and drops the oldest
    where num_ctx is short, before its template sees them. Sources, in
    Ollama's repository: docs/modelfile.mdx, docs/template.md,
    template/template.go, parser/parser.go, server/prompt.go. We have not
    run it.

    Raises ValueError if the template is not ChatML, or for a system message
    that a Modelfile would change.
    """
    default = _default_system(tokenizer)
    for text in (system, default):
        odd = [c for c in text if not c.isprintable() and c not in "\n\t"]
        if odd or '"""' in text or (text is default and "{{" in text):
            raise ValueError(
                f"the system message {text!r} would be changed: leave out "
                'double braces, """ and what does not print'
            )
    first = ""
    if default:  # the template writes it where no system message comes first
        first = (
            '{{ if not $i }}{{ if ne .Role "system" }}<|im_start|>system\n'
            f"{default}<|im_end|>\n{{{{ end }}}}{{{{ end }}}}"
        )
    template = (
        f"{{{{ range $i, $_ := .Messages }}}}{first}<|im_start|>"
        "{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
        "<|im_start|>assistant\n"
    )
    lines = [f"FROM {gguf}", f'TEMPLATE """{template}"""']
    lines += [f'SYSTEM """{system}"""'] * bool(system)
    lines.append(f'PARAMETER stop "{tokenizer.eos_token}"')
    for name, value in (parameters or {}).items():
        values = value if isinstance(value, list | tuple) else [value]
        lines += [f"PARAMETER {name} {each}" for each in values]
    return "\n".join(lines) + "\n"


def _default_system(tokenizer) -> str:
    """Return the system message that a ChatML template writes itself.

    "" if none; raises ValueError if it is not ChatML.
    """
    user = {"role": "user", "content": " a\n"}
    said = {"role": "assistant", "content": " b\n"}
    system = {"role": "system", "content": " c\n"}
    talks = [[user], [user, said, user]]
    talks += [[system, *talk] for talk in talks]
    made = [
        tokenizer.apply_chat_template(
            talk, add_generation_prompt=True, tokenize=False
        )
        for talk in talks
    ]
    head, end = "<|im_start|>system\n", "<|im_end|>\n"
    default = ""
    if made[0].startswith(head):
        default = made[0].removeprefix(head).split(end)[0]
    for talk, text in zip(talks, made, strict=True):
        turns = talk
        if default and talk[0] is not system:
            turns = [{"role": "system", "content": default}, *talk]
        wanted = "".join(
            f"<|im_start|>{turn['role']}\n{turn['content']}{end}"
            for turn in turns
        )
        if text != f"{wanted}<|im_start|>assistant\n":
            raise ValueError(
                f"the chat template is not ChatML, it writes {text!r}: write "
                "TEMPLATE by hand (Ollama's docs/template.md), and compare"
            )
    return default


# Is what is served what was trained?


def prompt_proof(
    tokenizer,
    conversations: Sequence[list[dict]],
    base_url: str,
    key: str,
) -> list[dict]:
    """Compare the prompts that training and a llama.cpp server make.

    A row for each of n conversations: `ends in` (the last message), `tokens`,
    and `same text`, `same tokens`, `same count`: the server's own template
    against `tokenizer.apply_chat_template`, byte for byte; the ids that it
    makes of that; and how many it read when it answered. `base_url` and
    `key` are those of `instructft.teacher.local`; the routes are llama.cpp's
    (tools/server/README.md).

    Raises ValueError if there is no conversation, and OSError if nobody
    answers there within TIMEOUT seconds.
    """
    if not conversations:
        raise ValueError("no conversations to compare: give at least one")
    rows = []
    for conversation in conversations:
        text = tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=False
        )
        ids = _ids(tokenizer, text)
        asked = {"messages": conversation}
        there = _post(base_url, key, "apply-template", asked)["prompt"]
        # as the server does with a prompt of its own
        how = {"content": there, "add_special": True, "parse_special": True}
        read = _post(base_url, key, "tokenize", how)["tokens"]
        reply = _chat(base_url, key, conversation, 1)
        rows.append(
            {
                "ends in": conversation[-1]["content"],
                "tokens": len(ids),
                "same text": there == text,
                "same tokens": read == ids,
                "same count": reply["usage"]["prompt_tokens"] == len(ids),
            }
        )
    return rows


def served_agreement(
    model,
    tokenizer,
    prompts: Sequence[list[dict]],
    base_url: str,
    key: str,
    max_new_tokens: int = 8,
) -> dict[str, float]:
    """Compare a model with the same one served by llama.cpp.

    Returns `same_answers` (share of n prompts whose greedy answers of up to
    `max_new_tokens` are equal, stripped), `same_top_1` (share whose likeliest
    first token is) and `largest_gap` (nats, between the log-probabilities
    of the model's first token). One prompt at a time: what is answered
    beside a request changes roundings.

    Raises ValueError if there is no prompt.
    """
    import torch

    if not prompts:
        raise ValueError("no prompts to compare on: give at least one")
    answers = tops = gap = 0.0
    for prompt in prompts:
        text = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=False
        )
        ids = torch.tensor([_ids(tokenizer, text)], device=model.device)
        with _evaluating(model), torch.inference_mode():
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                output_logits=True,
                return_dict_in_generate=True,
            )
        new = made.sequences[0, ids.shape[1] :]
        said = tokenizer.decode(new, skip_special_tokens=True).strip()
        first = made.logits[0][0].float().log_softmax(-1)
        choice = _chat(base_url, key, prompt, max_new_tokens)["choices"][0]
        answers += (choice["message"]["content"] or "").strip() == said
        likely = {
            each["id"]: each["logprob"]
            for each in choice["logprobs"]["content"][0]["top_logprobs"]
        }
        top = first.argmax().item()
        tops += max(likely, key=likely.get) == top
        there = likely.get(top, float("-inf"))
        gap = max(gap, abs(first[top].item() - there))
    return {
        "same_answers": answers / len(prompts),
        "same_top_1": tops / len(prompts),
        "largest_gap": gap,
    }


def _chat(base_url: str, key: str, messages: list[dict], most: int) -> dict:
    """Ask for a greedy reply, with what was likely at each token."""
    settings = {"temperature": 0, "max_tokens": most, "cache_prompt": False}
    wanted = {"messages": messages, "logprobs": True, "top_logprobs": 5}
    return _post(base_url, key, "v1/chat/completions", settings | wanted)


def _post(base_url: str, key: str, route: str, body: dict) -> dict:
    """Send JSON to a server on this machine, past any proxy."""
    from urllib.request import ProxyHandler, Request, build_opener

    headers = {
        "Content-Type": "application/json",
        "Authorization": f"Bearer {key}",
    }
    url = f"{base_url.removesuffix('/v1')}/{route}"
    request = Request(url, json.dumps(body).encode(), headers)
    opener = build_opener(ProxyHandler({}))
    with opener.open(request, timeout=TIMEOUT) as response:
        return json.load(response)
