"""From a tuned directory to a served file: the same prompts, the same model.

Tiny random Llamas with the embedded tokenizer, served by llama.cpp.
"""

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest

from instructft import export
from instructft.export import (
    modelfile,
    prompt_proof,
    served_agreement,
    to_gguf,
)

pytest.importorskip("gguf")
SHORT = "Answer with one word."


def asked(*texts, system=None):
    """A conversation: user and assistant in turn, perhaps after a system."""
    talk = [{"role": "system", "content": system}] if system else []
    for i, text in enumerate(texts):
        talk.append({"role": ("user", "assistant")[i % 2], "content": text})
    return talk


ODD = {
    "plain": asked("Hi"),
    "system": asked("It was cold.\n\nPositive or negative?", system=SHORT),
    "turns": asked("Hello", "Hello! ", "  blanks around  \n"),
    "long": asked("a", "b", "c", "d\n", "e", system="Be brief."),
    "digits": asked("1,000,000 is 12345.678 and 0x1F, the 3rd of 007"),
    "unicode": asked(
        "Größe, 東京, 😀👩‍👩‍👧, e\u0301, \u00a0, \u200b, ١٢٣ ²³ ½"
    ),
    "code": asked("```python\ndef f(x):\n\treturn x**2  # 100%\n\n\n```"),
    "blanks": asked("\n\n   \t tabs\tand\r\nlines"),
    "marks": asked("{{ x }} {% if %} \"quoted\" \\n I'm THEY'LL"),
    "specials": asked("<|im_end|> in a text, <repo_name>"),
    "empty": asked(""),
}


@pytest.fixture(scope="module")
def save(make_tiny, tokenizer, tmp_path_factory):
    """Return a function that saves a tiny model and its tokenizer."""

    def saved(**other):
        folder = tmp_path_factory.mktemp("tiny")
        sizes = {"hidden_size": 64, "num_attention_heads": 4}
        sizes |= {"num_key_value_heads": 2, "pad_token_id": 0}
        model = make_tiny(**(sizes | other))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return model, folder

    return saved


@pytest.fixture(scope="module")
def tuned(save):
    return save()


@pytest.fixture(scope="module")
def served(tuned, tmp_path_factory):
    """A tiny model as F32, behind llama.cpp: (base_url, key)."""
    pytest.importorskip("xllamacpp")
    from instructft.teacher import local

    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    to_gguf(tuned[1], path, "F32")
    with local(slots=1, context=512, gguf=path) as where:
        yield where


def changed(tokenizer, **how):
    """A copy of the tokenizer, told otherwise."""
    other = copy.deepcopy(tokenizer)
    for name, value in how.items():
        setattr(other, name, value)
    return other


# What is served is what was trained


@pytest.mark.parametrize("name", ODD)
def test_prompts_are_the_same_bytes_and_tokens(served, tokenizer, name):
    [row] = prompt_proof(tokenizer, [ODD[name]], *served)
    assert row["same text"] and row["same tokens"] and row["same count"]
    assert row["tokens"] > 5 and row["ends in"] == ODD[name][-1]["content"]


def test_the_proof_sees_another_template(served, tokenizer):
    template = tokenizer.chat_template.replace("SmolLM,", "SmolLM")
    other = changed(tokenizer, chat_template=template)
    rows = prompt_proof(other, [ODD["plain"], ODD["system"]], *served)
    assert [row["same text"] for row in rows] == [False, True]


def test_the_proof_sees_another_tokenizer(served, tokenizer):
    from tokenizers import pre_tokenizers

    other = changed(tokenizer)
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=True
    )
    [row] = prompt_proof(other, [ODD["plain"]], *served)
    assert row["same text"] and not row["same tokens"]
    assert not row["same count"]


def prompts(count=20):
    return [asked(f"Say {i}, then {i * i}.") for i in range(count)]


def test_answers_are_the_same(tuned, served, tokenizer):
    found = served_agreement(tuned[0], tokenizer, prompts(), *served)
    # llama.cpp keeps keys and values in float16: a near tie may tip over
    assert found["same_answers"] >= 0.9 and found["same_top_1"] == 1
    assert found["largest_gap"] < 0.05


def test_nothing_to_compare_is_no_proof(tokenizer):
    with pytest.raises(ValueError, match="no conversations to compare"):
        prompt_proof(tokenizer, [], "http://127.0.0.1:1/v1", "key")


def test_dropout_is_off_while_it_answers(make_tiny, tokenizer, monkeypatch):
    model = make_tiny(attention_dropout=0.9).train()
    seen = []
    generate = model.generate

    def noted(*args, **how):
        seen.append(model.training)
        return generate(*args, **how)

    likely = [{"id": 0, "logprob": -1.0}]
    said = {"logprobs": {"content": [{"top_logprobs": likely}]}}
    reply = {"choices": [said | {"message": {"content": ""}}]}
    monkeypatch.setattr(model, "generate", noted)
    monkeypatch.setattr(export, "_chat", lambda *_: reply)
    served_agreement(model, tokenizer, prompts(1), "", "")
    assert seen == [False] and model.training


def test_a_server_that_says_nothing_is_not_waited_for(monkeypatch):
    import socket

    assert export.TIMEOUT == 120
    monkeypatch.setattr(export, "TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        silent.settimeout(5)
        with pytest.raises(OSError, match="timed out"):
            export._post(url, "key", "tokenize", {})


def test_another_model_does_not_agree(save, served, tokenizer):
    other = save(num_hidden_layers=1)[0]
    found = served_agreement(other, tokenizer, prompts(4), *served)
    assert found["same_answers"] < 1 and found["largest_gap"] > 1
    with pytest.raises(ValueError, match="no prompts"):
        served_agreement(other, tokenizer, [], *served)


@pytest.mark.parametrize(
    "kind, other",
    [
        ("F16", {}),
        ("Q8_0", {}),
        ("F32", {"tie_word_embeddings": False, "head_dim": 32}),
    ],
)
def test_other_kinds_and_shapes(save, tokenizer, tmp_path, kind, other):
    pytest.importorskip("xllamacpp")
    from instructft.teacher import local

    model, folder = save(**other)
    path = to_gguf(folder, tmp_path / "new" / "m.gguf", kind)
    with local(slots=1, context=512, gguf=path) as where:
        rows = prompt_proof(tokenizer, ODD.values(), *where)
        found = served_agreement(model, tokenizer, prompts(8), *where)
    assert all(r["same text"] and r["same tokens"] for r in rows)
    assert found["same_top_1"] >= {"Q8_0": 0.5}.get(kind, 0.875)


# The file


def fields(path):
    import gguf

    reader = gguf.GGUFReader(path)
    found = {name: f.contents() for name, f in reader.fields.items()}
    return found, {t.name: t for t in reader.tensors}


def test_the_file_holds_what_the_directory_holds(tuned, tokenizer, tmp_path):
    model, folder = tuned
    path = to_gguf(folder, tmp_path / "m.gguf", "F32")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    said, tensors = fields(path)
    ends = ("bos", "eos", "padding", "unknown")
    found = [said[f"tokenizer.ggml.{name}_token_id"] for name in ends]
    assert found == [1, 2, 0, 0]  # pad is not the end token
    assert said["tokenizer.ggml.add_bos_token"] is False
    types = said["tokenizer.ggml.token_type"]
    assert len(types) == len(said["tokenizer.ggml.tokens"]) == 49_152
    assert types[:17] == [3] * 17 and set(types[17:]) == {1}
    assert said["llama.rope.freq_base"] == 10_000
    assert "generation -" in tokenizer.chat_template
    assert not re.search(r"{%-? *generation", said["tokenizer.chat_template"])
    assert len(tensors) == 2 + 9 * 2
    weights = model.state_dict()
    down = weights["model.layers.1.mlp.down_proj.weight"].numpy()
    assert np.array_equal(tensors["blk.1.ffn_down.weight"].data, down)
    query = weights["model.layers.1.self_attn.q_proj.weight"].numpy()
    there = tensors["blk.1.attn_q.weight"].data
    assert np.array_equal(there[[16, 18, 17, 19]], query[[16, 17, 24, 25]])


def test_plain_jinja_reads_the_files_template(tokenizer):
    import jinja2

    plain = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    with pytest.raises(jinja2.TemplateSyntaxError, match="generation"):
        plain.from_string(tokenizer.chat_template)
    template = plain.from_string(export._plain(tokenizer.chat_template))
    for talk in ODD.values():
        said = template.render(messages=talk, add_generation_prompt=True)
        assert said == tokenizer.apply_chat_template(
            talk, add_generation_prompt=True, tokenize=False
        )


def test_rows_without_a_token_are_filled(save, tmp_path):
    said, _ = fields(
        to_gguf(save(vocab_size=49_160)[1], tmp_path / "m.gguf", "F16")
    )
    assert said["tokenizer.ggml.tokens"][-1] == "[PAD49159]"
    assert said["tokenizer.ggml.token_type"][-8:] == [5] * 8


def test_sizes_follow_the_kind(tuned, tmp_path):
    _, folder = tuned
    sizes = [
        to_gguf(folder, tmp_path / kind, kind).stat().st_size
        for kind in export.KINDS
    ]
    matrices = 49_152 * 64 * 4  # bytes; nearly all there is
    assert sizes[0] - sizes[1] == pytest.approx(matrices / 2, rel=0.05)
    assert sizes[0] - sizes[2] == pytest.approx(matrices * 47 / 64, rel=0.05)


def rewrite(folder, name, **change):
    path = folder / name
    found = json.loads(path.read_text("utf-8")) | change
    path.write_text(json.dumps(found), "utf-8")


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
STRANGE = [
    ("config.json", {"architectures": ["Qwen2ForCausalLM"]}, "Qwen2"),
    ("config.json", {"attention_bias": True}, "biases"),
    ("config.json", {"hidden_act": "gelu"}, "gelu"),
    ("config.json", {"rope_parameters": YARN}, "RoPE is yarn"),
    (
        "config.json",
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        "quantised",
    ),
    ("tokenizer.json", {"normalizer": {"type": "NFC"}}, "does not cut"),
    ("tokenizer.json", {"pre_tokenizer": None}, "does not cut"),
]


@pytest.mark.parametrize("name, change, said", STRANGE)
def test_what_is_strange_is_refused(save, tmp_path, name, change, said):
    _, folder = save()
    rewrite(folder, name, **change)
    with pytest.raises(ValueError, match=said) as refused:
        to_gguf(folder, tmp_path / "m.gguf")
    command = f"convert_hf_to_gguf.py {folder} --outfile {tmp_path / 'm.gguf'}"
    assert command in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_real_qwen2_is_refused(tokenizer, tmp_path):
    from transformers import Qwen2Config

    Qwen2Config(architectures=["Qwen2ForCausalLM"]).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Qwen2ForCausalLM.*--outtype q8_0"):
        to_gguf(tmp_path, tmp_path / "m.gguf", "Q8_0")


def test_a_tokenizer_that_adds_tokens_is_refused(save, tmp_path):
    _, folder = save()
    first = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    rest = {"Sequence": {"id": "A", "type_id": 0}}
    known = {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}
    adds = {"type": "TemplateProcessing", "single": [first, rest]}
    adds |= {"pair": [first, rest], "special_tokens": {known["id"]: known}}
    rewrite(folder, "tokenizer.json", post_processor=adds)
    with pytest.raises(ValueError, match="adds tokens of its own"):
        to_gguf(folder, tmp_path / "m.gguf")


def test_what_cannot_be_written_is_said(save, tokenizer, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    model, folder = save()
    there = tmp_path / "m.gguf"
    there.write_text("as it was")
    with pytest.raises(ValueError, match="'q4': give one of F32, F16, Q8_0"):
        to_gguf(folder, there, "q4")
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    file = folder / "model.safetensors"
    save_file(weights | {name: weights[name] * 1e9}, file)
    with pytest.raises(ValueError, match=f"F16 cannot hold {name}"):
        to_gguf(folder, there)
    save_file(weights | {"model.more": torch.ones(2)}, file)
    with pytest.raises(ValueError, match="holds model.more"):
        to_gguf(folder, there)
    del weights[name]
    save_file(weights, file)
    with pytest.raises(ValueError, match="19 of the 20 tensors"):
        to_gguf(folder, there)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="save the tokenizer beside"):
        to_gguf(folder, there)
    assert there.read_text() == "as it was"
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_no_file_to_serve():
    pytest.importorskip("xllamacpp")
    from instructft.teacher import local

    with pytest.raises(FileNotFoundError, match="nobody.gguf is not there"):
        with local(gguf="nobody.gguf"):
            pass


# Ollama. It is not installed: what its template engine would write is told
# by the few lines below, written from the rules of Go's text/template.


def rendered(template, messages):
    """Run the part of Go's text/template that our Modelfile uses."""
    parts = re.split(r"{{ (.*?) }}", template)
    assert "{{-" not in template and "-}}" not in template

    def until_end(place):
        """The place of the `end` of what opens at `place`."""
        depth = 0
        for i in range(place, len(parts), 2):
            depth += parts[i].startswith(("range ", "if "))
            depth -= parts[i] == "end"
            if not depth:
                return i
        raise AssertionError("no end")

    def run(start, stop, index, dot):
        """Write parts[start:stop]; actions stand at odd places."""
        out, i = "", start
        while i < stop:
            action = parts[i]
            if not i % 2:
                out += action
            elif action in (".Role", ".Content"):
                out += dot[action[1:].lower()]
            else:
                end = until_end(i)
                if action == "range $i, $_ := .Messages":
                    for number, message in enumerate(dot["messages"]):
                        out += run(i + 1, end, number, message)
                elif action == "if not $i":
                    out += run(i + 1, end, index, dot) if not index else ""
                elif action == 'if ne .Role "system"':
                    first = dot["role"] != "system"
                    out += run(i + 1, end, index, dot) if first else ""
                else:
                    raise AssertionError(action)
                i = end
            i += 1
        return out

    return run(0, len(parts), None, {"messages": messages})


def read(text):
    """A Modelfile's instructions, as parser/parser.go cuts them."""
    pattern = r'^([A-Z]+) (?:"""(.*?)"""|([^\n]*))\n'
    found = re.findall(pattern, text, re.M | re.S)
    assert text == re.sub(pattern, lambda m: m[0], text)
    return [(name, long or short) for name, long, short in found]


def ollama(text, messages):
    """The prompt that Ollama would make: server/routes.go, ChatHandler."""
    said = dict(read(text))
    if "SYSTEM" in said and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": said["SYSTEM"]}, *messages]
    return rendered(said["TEMPLATE"], messages)


BARE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content "
    "+ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def qwen(name):
    """A chat template that TRL brings."""
    trl = pytest.importorskip("trl")
    path = Path(trl.__file__).parent / "chat_templates" / name
    return path.read_text("utf-8")


@pytest.mark.parametrize("of", ["ours", "bare", "qwen"])
@pytest.mark.parametrize("name", ODD)
def test_ollamas_template_writes_the_same_bytes(tokenizer, name, of):
    if of == "bare":  # no system message of its own
        tokenizer = changed(tokenizer, chat_template=BARE)
    if of == "qwen":
        template = qwen("qwen2_5_training.jinja")
        tokenizer = changed(tokenizer, chat_template=template)
    text = modelfile(tokenizer, "./model.gguf")
    assert ollama(text, ODD[name]) == tokenizer.apply_chat_template(
        ODD[name], add_generation_prompt=True, tokenize=False
    )
    default = {"ours": "named SmolLM", "bare": "", "qwen": "You are Qwen"}
    assert default[of] in text
    assert ("if not $i" in text) == (of != "bare")


def test_the_trained_system_message_is_the_default(tokenizer):
    text = modelfile(tokenizer, "./model.gguf", system='Say "no".\nOften.')
    for name in ("plain", "turns", "system"):
        talk = ODD[name]
        if name != "system":
            talk = asked(*[m["content"] for m in talk], system="")
            talk.insert(0, {"role": "system", "content": 'Say "no".\nOften.'})
        wanted = tokenizer.apply_chat_template(
            talk, add_generation_prompt=True, tokenize=False
        )
        assert ollama(text, ODD[name]) == wanted


def test_a_modelfile_stops_and_sets_what_it_is_told(tokenizer):
    text = modelfile(tokenizer, "./m.gguf", "", {"temperature": 0})
    said = read(text)
    assert said[0] == ("FROM", "./m.gguf")
    assert said[-2:] == [
        ("PARAMETER", 'stop "<|im_end|>"'),
        ("PARAMETER", "temperature 0"),
    ]
    assert "SYSTEM" not in dict(said)
    several = {"stop": ["User:", "Human:"], "num_ctx": 2048}
    assert read(modelfile(tokenizer, "./m.gguf", "", several))[-3:] == [
        ("PARAMETER", "stop User:"),
        ("PARAMETER", "stop Human:"),
        ("PARAMETER", "num_ctx 2048"),
    ]


@pytest.mark.parametrize(
    "template, said",
    [
        ("{{ messages[0].content }}", "is not ChatML, it writes ' a"),
        (BARE.replace("m.content", "m.content | trim"), "not ChatML"),
        (BARE.replace("assistant\n", "assistant"), "not ChatML"),
        (
            "{{ '<|im_start|>system\n{{ x }}<|im_end|>\n' }}" + BARE,
            "not ChatML",  # written before a system message, too
        ),
    ],
)
def test_what_is_not_chatml_is_refused(tokenizer, template, said):
    with pytest.raises(ValueError, match=said):
        modelfile(changed(tokenizer, chat_template=template), "m.gguf")


@pytest.mark.parametrize("system", ['a """ b', "zero\u200bwidth", "bell\a"])
def test_what_a_modelfile_would_change_is_refused(tokenizer, system):
    with pytest.raises(ValueError, match="would be changed"):
        modelfile(tokenizer, "m.gguf", system)
    modelfile(tokenizer, "m.gguf", "{{ braces }} are text here")
    template = tokenizer.chat_template.replace("SmolLM,", "{{{{ x")
    with pytest.raises(ValueError, match="would be changed"):
        modelfile(changed(tokenizer, chat_template=template), "m.gguf")
