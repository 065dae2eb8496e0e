"""What readers see: every view has a true text twin, and text is data."""

import base64
import json
import re
import struct
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructft import show
from instructft.masking import IGNORE
from instructft.preflight import Check

ATTACKS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</td></table></div><h1>out</h1>",
    "&lt;b&gt; &amp; &nbsp;",
    "]]> <!-- {{ 1 }} ${1} $x_1$",
]
CANARY = "the canary sings"


class Page(HTMLParser):
    """Reads HTML back: its tags, its attributes' names, its text."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text = set(), set(), ""
        self.values = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.values += [value for _, value in attrs]

    def handle_data(self, data):
        self.text += data


class Letters:
    """A tokenizer whose tokens are the words it was made of."""

    def __init__(self, words):
        self.words = words

    def decode(self, ids):
        return "".join(self.words[i] for i in ids)


def study_of(path, name, value=0.5, head="2026-01-01"):
    record = {
        "date": head,
        "machine": {"cores": 2},
        "versions": {"torch": "2", name: name},
        "runs": [{"result": {name: value}}, {"result": {name: value}}],
    }
    path.write_text(json.dumps(record))
    return show.study(path)


def views(text, tmp_path):
    """Put one text everywhere a text can stand."""
    check = Check(text, False, text, text)
    return {
        "tokens": show.tokens(Letters([text, "b"]), [0, 1], [IGNORE, 1]),
        "heat": show.heat(Letters([text, "b"]), [0, 1], [IGNORE, 1], [0, 9.0]),
        "table": show.table([{text: text, "n": 1}]),
        "gate": show.gate([check, check._replace(ok=True)]),
        "conversation": show.conversation([{"role": text, "content": text}]),
        "result": show.result({text: {"deep": text}}),
        "study": study_of(tmp_path / "07.json", text, head=text),
        "curve": show.curve([{"step": 1, text: 0.5}], name=text),
        "bars": show.bars({"a": {text: 0.5}}),
        "View": show.View(text),
    }


# --- every view -----------------------------------------------------------


@pytest.mark.parametrize("text", ATTACKS)
def test_text_is_never_markup(text, tmp_path):
    plain = Page(
        "".join(view.html for view in views("plain", tmp_path).values())
    )
    for name, view in views(text, tmp_path).items():
        page = Page(view.html)
        assert page.tags <= plain.tags, name
        assert page.attributes <= plain.attributes, name
        if view.html:
            assert text in page.text, name
            assert text in view.text, name


@pytest.mark.parametrize("form", ["{}", "file://{}", "../{}", "~/x"])
def test_text_that_looks_like_a_path_is_not_read(form, tmp_path, monkeypatch):
    canary = tmp_path / "canary.txt"
    canary.write_text(CANARY)
    monkeypatch.chdir(tmp_path)
    text = form.format(canary.name if ".." not in form else canary)
    for path in (text, str(canary)):
        for name, view in views(path, tmp_path).items():
            bundle = json.dumps(view._repr_mimebundle_())
            assert CANARY not in bundle, name


def test_bundles(tmp_path):
    for name, view in views("plain", tmp_path).items():
        bundle = view._repr_mimebundle_(include=None, exclude=None)
        assert bundle["text/plain"] == repr(view) == view.text, name
        assert ("text/html" in bundle) == bool(view.html)
        assert ("image/png" in bundle) == bool(view.png)
        assert ("application/json" in bundle) == (name == "result")
        json.dumps(bundle)
    assert show.View("x")._repr_mimebundle_() == {"text/plain": "x"}
    # nothing is something: it is the cell that a study collects
    assert show.View("", data={})._repr_mimebundle_()["application/json"] == {}


def test_ipython_takes_the_bundle():
    from IPython.core.formatters import DisplayFormatter

    shown, _ = DisplayFormatter().format(show.table([{"a": "<b>"}]))
    assert shown["text/plain"] == "a\n<b>"
    assert "&lt;b&gt;" in shown["text/html"]


# --- tokens ---------------------------------------------------------------


def test_tokens(tokenizer):
    ids = tokenizer("Hi 12\n\nthere<|im_end|>")["input_ids"]
    labels = [IGNORE] * (len(ids) - 2) + ids[-2:]
    view = show.tokens(tokenizer, ids, labels)
    assert view.text == "Hi 12\n\n[there][<|im_end|>]"
    page = Page(view.html)
    assert page.text.count("there") == 1
    assert "\u21b5\u21b5" in page.text and "\n" not in page.text
    assert f"id {ids[0]}, label -100" in page.values
    assert f"id 2, label {tokenizer.eos_token_id}" in page.values
    assert view.html.count(show.SEEN) == 2 + 1  # and in the legend
    assert view.html.count("<br>") == 2  # after each newline token


def test_tokens_with_losses():
    view = show.tokens(
        Letters(["a", ""]), [0, 1, 0], [IGNORE, 1, 0], losses=[9.0, 0.25, 0.0]
    )
    assert view.text == "a[][a]"
    assert [v for v in Page(view.html).values if "id" in v] == [
        "id 0, label -100",  # a hidden token has no loss
        "id 1, label 1, loss 0.250",
        "id 0, label 0, loss 0.000",
    ]


@pytest.mark.parametrize(
    "labels, losses", [([1], None), ([1, 2, 3], None), ([1, 2], [0.5])]
)
def test_tokens_must_match_their_labels(labels, losses):
    with pytest.raises(ValueError):
        show.tokens(Letters("ab"), [0, 1], labels, losses)


def test_no_tokens():
    assert show.tokens(Letters([]), [], []).text == ""


# --- table ----------------------------------------------------------------


def test_table():
    view = show.table(
        [
            {"name": "a", "share": 0.12345, "n": 1234567, "loss": 1234.5},
            {"name": "long\nname", "share": 1, "n": None},
        ]
    )
    assert view.text == (
        "name       share  n        loss\n"
        "a          0.123  1234567  1,234\n"
        "long name  1      None"
    )
    assert Page(view.html).text == (
        "namesharenloss" + "a0.12312345671,234" + "long\nname1None"
    )
    assert view.html.count("<tr>") == 3 and view.html.count("<td") == 8


def test_table_shortens_its_text_twin_only():
    row = {"text": "word " * 40, "n": 1}
    view = show.table([row], width=20)
    assert view.text == "text                n\nword word word ...  1"
    assert row["text"] in Page(view.html).text


@pytest.mark.parametrize(
    "text", ["漢" * 100, "https://a.b/" + "c" * 90], ids=["words", "address"]
)
def test_table_shortens_text_without_spaces(text):
    assert text[:15] in show.table([{"text": text}], width=20).text


def test_table_of_rows_with_other_keys():
    view = show.table([{"a": 1}, {"b": 2}])
    assert [line.split() for line in view.text.split("\n")] == [
        ["a", "b"],
        ["1"],
        ["2"],
    ]


def test_table_of_nothing():
    assert repr(show.table([])) == "(no rows)"
    assert show.table([]).html


CELL = st.text() | st.floats() | st.integers() | st.none() | st.booleans()


@settings(max_examples=50)
@given(
    rows=st.lists(
        st.fixed_dictionaries({"a": CELL, "<b>": CELL}), min_size=1, max_size=4
    )
)
def test_table_of_anything(rows):
    view = show.table(rows)
    assert len(view.text.split("\n")) == len(rows) + 1
    assert Page(view.html).tags == {"table", "tr", "th", "td"}


# --- gate, conversation ---------------------------------------------------


def test_gate():
    view = show.gate(
        [Check("one", True, "fine", "no need"), Check("two", False, "5", "do")]
    )
    assert view.text == "ok  one: fine\nRED two: 5; do"
    assert Page(view.html).text == "okonefineREDtwo5; do"
    assert view.html.count(show.RED) == 1
    assert show.gate([]).text == ""


def test_conversation():
    view = show.conversation(
        [
            {"role": "system", "content": ""},
            {"role": "user", "content": "two\nlines"},
            {"role": "assistant", "content": "a < b"},
        ]
    )
    assert view.text == "system: \nuser: two\nlines\nassistant: a < b"
    assert Page(view.html).text == "systemusertwo\nlinesassistanta < b"
    assert show.conversation([]).text == ""


# --- pictures -------------------------------------------------------------

LOG = [
    {"step": 1, "loss": 4.0, "lr": 0.1},
    {"step": 2, "loss": 2.0},
    {"step": 3, "eval_loss": 3.0},
    {"step": 10, "loss": 1.0},
    {"train_runtime": 9.0, "step": 10},
]
SHARES = {
    "before": {"film": 0.1, "tweet": 0.25},
    "after": {"film": 0.9, "tweet": 1.0},
}
SPREAD = {"after": {"film": (0.85, 0.95), "tweet": (0.98, 1.0)}}


def size(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and png[12:16] == b"IHDR"
    return struct.unpack(">II", png[16:24])


def test_curve():
    view = show.curve(LOG)
    assert view.text.split("\n") == [
        "step    1  loss 4.000  " + "#" * 40,
        "step    2  loss 2.000  " + "#" * 20,
        "step   10  loss 1.000  " + "#" * 10,
    ]
    assert size(view.png) == (600, 260)
    assert show.curve(LOG, "eval_loss").text.startswith("step    3  eval_loss")
    with pytest.raises(ValueError, match="logging_steps lower.*'eval_loss'"):
        show.curve(LOG, "accuracy")
    with pytest.raises(ValueError, match="'loss' was never logged"):
        show.curve([])


@pytest.mark.parametrize("losses", [[0.0], [0.0, 0.0], [1.0, float("nan")]])
def test_curve_of_a_run_that_went_wrong(losses):
    log = [{"step": i, "loss": loss} for i, loss in enumerate(losses)]
    assert len(show.curve(log).text.split("\n")) == len(losses)


def test_bars():
    view = show.bars(SHARES, spread=SPREAD)
    assert [line.split() for line in view.text.split("\n")] == [
        ["before", "film", "10.0%"],
        ["before", "tweet", "25.0%"],
        ["after", "film", "90.0%", "(85.0%", "to", "95.0%)"],
        ["after", "tweet", "100.0%", "(98.0%", "to", "100.0%)"],
    ]
    assert size(view.png) == (600, 280)
    assert show.bars(SHARES).png != view.png  # its ends are drawn
    one = show.bars({"only": {"film": 0.0}}, {"only": {"film": (0.0, 0.3)}})
    assert one.text.split() == [
        "only",
        "film",
        "0.0%",
        *"(0.0% to 30.0%)".split(),
    ]


def test_long_names_lie_beside_their_bars():
    shares = {"before": {f"a rather long name, {i}": i / 9 for i in range(9)}}
    view = show.bars(shares, {"before": {"a rather long name, 3": (0, 0.5)}})
    width, height = (
        int.from_bytes(view.png[i : i + 4], "big") for i in (16, 20)
    )
    assert width == 600 and height == 285
    assert view.text.count("a rather long name") == 9
    assert "(0.0% to 50.0%)" in view.text


def test_many_bars_lie_too():
    """The figures of fifteen bars would stand on their neighbours."""
    names = "abcde"
    upright = {g: dict.fromkeys(names, 0.1) for g in "xy"}
    assert size(show.bars(upright).png) == (600, 280)
    lying = upright | {"z": dict.fromkeys(names, 0.1)}
    assert size(show.bars(lying).png) == (600, 435)


@pytest.mark.parametrize(("count", "named"), [(3, False), (4, True)])
def test_a_sliver_of_the_ring_has_no_name(count, named):
    """Of 300 and a few: about 90 names find room in the inner ring."""

    def drawn(name):
        pairs = [("write", "")] * 300 + [(name, "")] * count
        return show.sunburst(pairs)

    assert drawn("tiny").text != drawn("wee").text
    assert (drawn("tiny").png != drawn("wee").png) == named


def test_pictures_are_the_same_twice():
    assert show.curve(LOG).png == show.curve(LOG).png
    assert show.bars(SHARES, SPREAD).png == show.bars(SHARES, SPREAD).png
    assert show.curve(LOG[:2]).png != show.curve(LOG).png
    bundle = show.curve(LOG)._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]) == show.curve(LOG).png


def test_pictures_leave_no_figure_behind():
    show.curve(LOG), show.bars(SHARES)
    import matplotlib.pyplot

    assert not matplotlib.pyplot.get_fignums()


def test_dollars_are_data_too():
    show.bars({"a": {r"$\nope$": 0.5}})


# --- result and study -----------------------------------------------------


def test_result():
    figures = {"exact": {"film": 0.5, "tweet": 1}, "seconds": 12.25, "k": "v"}
    view = show.result(figures)
    assert [line.split("  ")[0] for line in view.text.split("\n")] == [
        "figure",
        "exact, film",
        "exact, tweet",
        "seconds",
        "k",
    ]
    assert view.text.split("\n")[3].split() == ["seconds", "12.2"]
    assert view._repr_mimebundle_()["application/json"] == figures
    # a later change does not reach what was shown
    figures["exact"]["film"] = 0
    assert view.data["exact"]["film"] == 0.5
    with pytest.raises(TypeError):
        show.result({"model": object()})


def test_study(tmp_path):
    path = tmp_path / "07.json"
    record = {
        "date": "2026-01-01",
        "machine": {"cores": 2, "system": "Linux"},
        "versions": {"torch": "2.13.0", "trl": "1.16.0"},
        "runs": [
            {"result": {"exact": {"film": share}, "said": "x", "rows": 240}}
            for share in (0.5, 0.7, 0.9)
        ],
    }
    path.write_text(json.dumps(record))
    view = show.study(path)
    head, names, film, rows = view.text.split("\n")
    assert head == "3 runs, 2026-01-01, 2 cores, torch 2.13.0, trl 1.16.0"
    assert names.split() == ["figure", "mean", "spread", "each", "run"]
    # the sample standard deviation of these three: sqrt(0.08 / 2)
    assert film.split("  ")[0] == "exact, film"
    assert film.split()[2:] == ["0.7", "0.2", "0.5", "0.7", "0.9"]
    assert rows.split() == ["rows", "240", "0", *["240"] * 3]
    assert "said" not in view.text
    assert show.study(str(path)).html == view.html


def test_arms(tmp_path):
    path = tmp_path / "02a.json"
    runs = [
        {
            "parameters": {"TEMPLATES": count, "SEED": seed},
            "result": {"exact": {"film": 0.4 + count / 20 + seed / 10}},
        }
        for count in (1, 10)
        for seed in (0, 1)
    ]
    record = {
        "date": "2026-01-01",
        "machine": {"cores": 2},
        "versions": {"trl": "1.16.0"},
        "runs": runs,
    }
    path.write_text(json.dumps(record))
    view = show.arms(path, "TEMPLATES", ["exact, film"])
    head, one, ten = view.text.split("\n")
    assert head.startswith("4 runs, 2026-01-01, 2 cores, trl")
    assert " ".join(one.split()) == (
        "exact, film TEMPLATES 1 50.0% each run 45.0% 55.0%"
    )
    assert "95.0%" in ten
    assert view.png.startswith(b"\x89PNG")
    for names in (("TEMPLATES", ["no"]), ("NO", ["exact, film"])):
        with pytest.raises(KeyError, match="has no '(no|NO)', only"):
            show.arms(path, *names)
    text = show.arms(tmp_path / "03.json", "X", ["y"]).text
    assert text == "no study yet: run `python -m instructft study 03`"


@pytest.mark.parametrize("name", ["07.json", "no/folder/07.json"])
def test_study_that_nobody_made(tmp_path, name):
    assert show.study(tmp_path / name).text == (
        "no study yet: run `python -m instructft study 07`"
    )


# --- source ---------------------------------------------------------------


def test_source():
    from instructft.masking import labels

    view = show.source(labels)
    assert view.text.startswith("def labels(")
    assert view.text.endswith("token_ids[answer_start:]")
    assert Page(view.html).text.strip() == view.text


def sample():
    return "<script>alert(1)</script>"


def test_source_is_escaped():
    view = show.source(sample)
    assert "script" not in Page(view.html).tags
    assert Page(view.html).text.strip() == view.text


# --- stage ----------------------------------------------------------------


class Stage:
    """A reader before the widget: lets a side speak, or speaks for it."""

    def __init__(self, sides):
        self.widget = show.stage(sides)
        self.turns, below = self.widget.children
        self.following, self.line, self.again = below.children

    def text(self):
        return self.turns.outputs[-1]["data"]["text/plain"]


@pytest.fixture
def stage():
    return Stage(
        {
            "user": lambda said: f"question {len(said)}",
            "assistant": lambda said: f"<b>answer {len(said)}</b>",
        }
    )


def test_either_role_can_be_taken(stage):
    assert "be the user" in stage.line.placeholder
    stage.following.click()
    assert "be the assistant" in stage.line.placeholder
    stage.line.value = " mine "
    stage.following.click()
    stage.following.click()
    assert stage.line.value == ""
    assert stage.text() == (
        "user: question 0\nassistant: mine\nuser: question 2\n"
        "assistant: <b>answer 3</b>"
    )
    page = Page(stage.turns.outputs[-1]["data"]["text/html"])
    assert page.tags <= {"div", "b", "br"}
    assert "<b>answer 3</b>" in page.text
    stage.again.click()
    assert stage.text() == ""
    assert "be the user" in stage.line.placeholder


def test_an_empty_line_is_no_turn(stage):
    stage.line.value = "  "
    assert stage.text() == ""


def test_a_side_that_fails_is_no_turn(stage):
    def fail(said):
        raise RuntimeError("the endpoint is gone")

    stage = Stage({"user": fail, "assistant": fail})
    stage.following.click()
    assert stage.text() == "no answer: RuntimeError: the endpoint is gone"
    stage.line.value = "mine"
    assert stage.text() == "user: mine"


# --- chat -----------------------------------------------------------------


class Chat:
    """A reader before the widget: writes, clicks, and looks."""

    def __init__(self, ask, system=None):
        self.widget = show.chat(ask, system)
        self.turns, below = self.widget.children
        self.line, self.again = below.children

    def write(self, text):
        self.line.value = text

    def last(self):
        """What stands there now: the newest drawing."""
        return self.turns.outputs[-1]["data"]


def echo(turns):
    echo.asked.append([dict(turn) for turn in turns])
    return f"<b>{turns[-1]['content']}</b>"


@pytest.fixture
def chat():
    echo.asked = []
    return Chat(echo)


def test_chat(chat):
    chat.write("  one ")
    chat.write("two")
    assert chat.line.value == ""
    roles = [[turn["role"] for turn in asked] for asked in echo.asked]
    assert roles == [["user"], ["user", "assistant", "user"]]
    assert echo.asked[1][0]["content"] == "one"
    assert chat.last()["text/plain"] == (
        "user: one\nassistant: <b>one</b>\nuser: two\nassistant: <b>two</b>"
    )
    chat.write("two")  # the same again is a new turn
    assert len(echo.asked) == 3


def test_chat_shows_text_as_text(chat):
    for text in ATTACKS:
        chat.write(text)
    page = Page(chat.last()["text/html"])
    assert page.tags <= {"div", "b", "br"}
    assert all(text in page.text for text in ATTACKS)
    kinds = {key for out in chat.turns.outputs for key in out["data"]}
    assert kinds <= {"text/plain", "text/html"}


def test_chat_reads_no_file(chat, tmp_path):
    canary = tmp_path / "canary.txt"
    canary.write_text(CANARY)
    chat.write(str(canary))
    assert CANARY not in json.dumps(chat.turns.outputs)


def test_chat_sends_no_empty_line(chat):
    for text in ("", " ", "\t"):
        chat.write(text)
    assert echo.asked == [] and chat.turns.outputs == ()


def test_chat_starts_over(chat):
    chat.write("one")
    chat.again.click()
    assert chat.last()["text/plain"] == ""
    chat.write("two")
    assert [turn["content"] for turn in echo.asked[-1]] == ["two"]


def test_chat_keeps_its_system_message():
    echo.asked = []
    chat = Chat(echo, system="Be brief.")
    chat.write("one")
    chat.again.click()
    assert chat.last()["text/plain"] == "system: Be brief."
    chat.write("two")
    for asked in echo.asked:
        assert asked[0] == {"role": "system", "content": "Be brief."}
        assert len(asked) == 2


def test_chat_shows_a_conversation_once(chat):
    chat.write("one")
    chat.write("two")
    assert len(chat.turns.outputs) == 1


def test_chat_says_that_the_model_failed(chat):
    calls = SimpleNamespace(count=0)

    def ask(turns):
        calls.count += 1
        if calls.count == 1:
            raise ConnectionError("no teacher there")
        return echo(turns)

    echo.asked = []
    broken = Chat(ask)
    broken.write("one")
    assert "no teacher there" in broken.last()["text/plain"]
    broken.write("two")  # the failed turn is not asked again
    assert [turn["role"] for turn in echo.asked[0]] == ["user"]


# --- form -----------------------------------------------------------------


def test_form(tmp_path):
    path = tmp_path / "work" / "mine.jsonl"
    form = show.form(path)
    *boxes, seen, save, said = form.children
    assert [box.description for box in boxes] == [
        "instruction",
        "input",
        "output",
    ]
    assert save.disabled and "instruction is empty" in str(seen.outputs)
    save.click()  # as a keyboard may: what is not sound is not kept
    assert not path.exists()
    texts = ["Say <b>it</b>.", "", ATTACKS[0]]
    for _ in range(2):
        for box, text in zip(boxes, texts, strict=True):
            box.value = text
        assert not save.disabled
        page = Page(seen.outputs[0]["data"]["text/html"])
        assert page.tags <= {"div", "b", "br"} and ATTACKS[0] in page.text
        save.click()
        assert [box.value for box in boxes] == ["", "", ""]
        assert "saved in" in str(said.outputs)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [list(row.values()) for row in rows] == [texts] * 2


MADE = [
    {"template": t, "row": row, "prompt": f"{t}: {x}?", "completion": x}
    for row, x in enumerate(["yes", "no"])
    for t in ("one", "<b>")
] + [
    {
        "template": "odd",
        "row": 1,
        "prompt": "",
        "completion": "",
        "problem": "gave 1 part(s), not two",
    }
]


def test_side_by_side():
    seen = show.side_by_side(MADE, 1, count=len)
    assert seen.text.count("RED the answer stands in the prompt") == 2
    assert "## one: 8 + 2 tokens" in seen.text
    assert "gave 1 part(s), not two" in seen.text
    assert "yes" not in seen.text
    assert "<b>:" not in seen.html and "&lt;b&gt;" in seen.html
    none = show.side_by_side(MADE, 7)
    assert none.text == "(no rows)" and none.html == "<p>(no rows)</p>"


def test_browse():
    box = show.browse(MADE)
    row, seen = box.children
    assert row.max == 1
    assert "one: yes?" in seen.outputs[0]["data"]["text/plain"]
    row.value = 1
    [shown] = seen.outputs
    assert "one: no?" in shown["data"]["text/plain"]


# --- how a pool grows, how diverse it is ------------------------------------


def test_growth_counts_every_candidate():
    rules = [""] * 60 + ["too like a task: 0.8", ""] * 20 + ["keyword: draw"]
    seen = show.growth(rules, window=50)
    lines = seen.text.splitlines()
    assert lines[0].startswith("    1 to    50  100.0% accepted")
    assert lines[1].startswith("   51 to   100   60.0% accepted")
    assert lines[2].startswith("  101 to   101    0.0% accepted")
    counts = dict(reversed(line.split(None, 1)) for line in lines[3:])
    wanted = {"accepted": "80", "too like a task": "20", "keyword": "1"}
    assert counts == wanted
    assert seen.png.startswith(b"\x89PNG")
    assert show.growth([]).text == "(no candidates)"


@given(st.lists(st.sampled_from(["", "a: 1", "b", "<b>$x$"]), max_size=30))
@settings(max_examples=20, deadline=None)
def test_growth_of_any_rules(rules):
    text = show.growth(rules, window=7).text
    counts = [
        int(line.split()[0])
        for line in text.splitlines()
        if "% accepted" not in line and "no cand" not in line
    ]
    assert sum(counts) == len(rules)


def test_sunburst_tells_the_commonest():
    pairs = [("write", "poem")] * 3 + [("write", "letter"), ("name", "$x$")]
    seen = show.sunburst(pairs, inner=2)
    first, second, total = seen.text.splitlines()
    assert first.split() == ["4", "write", "poem", "3,", "letter", "1"]
    assert second.split()[:2] == ["1", "name"] and total == "5 of 5 pairs"
    assert seen.png.startswith(b"\x89PNG")
    assert "4 of 5 pairs" in show.sunburst(pairs, inner=1).text


def test_live_is_drawn_in_one_place(monkeypatch):
    import IPython.display

    calls = []

    class Handle:
        def update(self, view):
            calls.append(("update", view.text))

    def display(view, display_id):
        calls.append(("display", view.text))
        return Handle()

    monkeypatch.setattr(IPython.display, "display", display)
    live = show.Live()
    for text in "abc":
        live.update(show.View(text))
    assert calls == [("display", "a"), ("update", "b"), ("update", "c")]


# --- rows judged by hand ----------------------------------------------------


def test_labeller_keeps_each_verdict_and_goes_on(tmp_path):
    path = tmp_path / "work" / "labels.jsonl"
    rows = [
        {"id": f"r{i}", "instruction": ATTACKS[i], "input": "", "output": "x"}
        for i in range(3)
    ]
    box = show.labeller(rows, ["One?", "Two?"], path)
    seen, one, two, following = box.children

    def shown():
        return seen.outputs[0]["data"]

    assert "row 1 of 3" in shown()["text/plain"]
    page = Page(shown()["text/html"])
    assert page.tags <= {"div", "b", "br"} and ATTACKS[0] in page.text
    two.value = True
    following.click()
    assert not two.value and "row 2 of 3" in shown()["text/plain"]
    one.value = True
    following.click()
    # another day: what was judged is not asked again
    again = show.labeller(rows, ["One?", "Two?"], path)
    seen, *_, following = again.children
    assert "row 3 of 3" in shown()["text/plain"]
    following.click()
    assert following.disabled and "all 3 rows" in shown()["text/plain"]
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert kept == [
        {"id": "r0", "One?": False, "Two?": True},
        {"id": "r1", "One?": True, "Two?": False},
        {"id": "r2", "One?": False, "Two?": False},
    ]
    assert show.labeller(rows, ["One?"], path).children[-1].disabled


# --- what each token costs ------------------------------------------------


def test_heat_is_redder_where_the_loss_is_higher():
    letters = Letters(["a", "b", "c", "d"])
    view = show.heat(
        letters, [0, 1, 2, 3], [IGNORE, 1, 2, 3], [7.0, 0.0, 5.0, 50.0]
    )
    shades = re.findall(r"rgba\(179,38,30,([0-9.]+)\)", view.html)
    assert shades == ["0.08", "0.80", "0.80"]
    assert 'title="id 0, label -100, loss hidden"' in view.html
    assert 'title="id 2, label 2, loss 5.000"' in view.html
    assert view.text.splitlines() == [
        "     0  hidden  a",
        "     1   0.000  b",
        "     2   5.000  c",
        "     3  50.000  d",
    ]


def test_heat_wants_a_loss_for_each_token():
    with pytest.raises(ValueError):
        show.heat(Letters(["a", "b"]), [0, 1], [0, 1], [1.0])


def test_xray_shows_the_row_and_the_time_that_are_chosen():
    rows = [([0, 1], [IGNORE, 1]), ([1, 0], [IGNORE, 0])]
    losses = {
        "before": [[0, 4.0], [0, 3.0]],
        "after": [[0, 2.0], [0, 1.0]],
    }
    box = show.xray(Letters(["a", "b"]), rows, losses)
    slider, when, seen = box.children
    assert slider.max == 1 and when.options == ("before", "after")

    def shown():
        [output] = seen.outputs
        return output["data"]["text/plain"]

    assert "4.000  b" in shown()
    when.value = "after"
    assert "2.000  b" in shown()
    slider.value = 1
    assert "1.000  a" in shown()


def test_lines_have_a_point_for_each_run():
    drawn = show.lines(
        {"full": [(1e-4, 0.5), (1e-5, 1.0), (1e-4, 0.7)]}, "rate", log=True
    )
    assert drawn.png.startswith(b"\x89PNG")
    first, second = drawn.text.splitlines()
    assert first.split() == "full rate 1e-05 1.000 each run 1.000".split()
    assert second.split()[3:] == ["0.600", "each", "run", "0.500", "0.700"]


def test_lines_of_shares_are_in_percent():
    drawn = show.lines({"a": [(1, 0.25)]}, "rows", share=True)
    assert "25.0%" in drawn.text


# --- what a run takes -------------------------------------------------------


def of_parts(**parts):
    from instructft.memory import PARTS, Forecast

    names = (*PARTS, "mapped file", "allocator", "process")
    sizes = {name: parts.get(name, 0) for name in names}
    return Forecast(sizes, "forward and loss", 0, 1e9)


def test_memory_has_a_bar_and_a_verdict_for_each():
    small = of_parts(weights=4_000_000_000, process=1_000_000_000)
    large = of_parts(weights=9_500_000_000)
    sizes = {"8 $x$ GB": 8, "ten": 10, "huge": 500}
    drawn = show.memory({"small $a$": small, "large": large}, sizes)
    assert drawn.text.splitlines() == [
        "small $a$: fullest in forward and loss",
        "  weights           4.00 GB  " + "#" * 32,
        "  process           1.00 GB  " + "#" * 8,
        "  total             5.00 GB",
        "  fits: 8 $x$ GB yes (62%), ten yes (50%), huge yes (1%)",
        "large: fullest in forward and loss",
        "  weights           9.50 GB  " + "#" * 40,
        "  total             9.50 GB",
        "  fits: 8 $x$ GB no (119%), ten tight (95%), huge yes (2%)",
    ]
    assert size(drawn.png)[0] == 700
    roomy = show.memory({"large": large}, {"ten": 10}, head_room=0.05)
    assert "ten yes (95%)" in roomy.text


@pytest.fixture
def fitting():
    """The widget over two tiny models, and what it shows."""
    from peft import LoraConfig
    from transformers import LlamaConfig

    def tiny(width):
        return LlamaConfig(
            vocab_size=100,
            hidden_size=width,
            intermediate_size=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
        )

    box = show.will_it_fit(
        {"<b>": tiny(16), "wide": tiny(64)},
        {"tiny": 0.001, "8 GB": 8},
        LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
        process=0,
        loss="logits",
    )

    def shown():
        [output] = box.children[-1].outputs
        return output["data"]["text/plain"]

    return box, shown


def test_will_it_fit_answers_each_change(fitting):
    box, shown = fitting
    model, method, card, length, batch, kept, _ = box.children
    assert shown().startswith("<b>, qlora: fullest in")
    assert "mapped file" not in shown()  # as on a card, unless told otherwise
    assert "fits: tiny no (" in shown()
    seen = {shown()}
    for control, value in [
        (model, "wide"),
        (method, "full"),
        (card, "8 GB"),
        (length, 128),
        (batch, 2),
        (kept, False),
    ]:
        control.value = value
        assert shown() not in seen, control.description
        seen.add(shown())
    assert shown().startswith("wide, full: ") and "8 GB yes (" in shown()


def test_will_it_fit_says_what_cannot_be_forecast(fitting, monkeypatch):
    box, shown = fitting

    def broken(*_, **__):
        raise RuntimeError("no such architecture")

    monkeypatch.setattr("instructft.memory.forecast", broken)
    with_fault = show.will_it_fit({"a": None}, {"8 GB": 8}, None)
    [output] = with_fault.children[-1].outputs
    said = output["data"]["text/plain"]
    assert said == "no forecast: RuntimeError: no such architecture"
    with_fault.children[4].value = 3  # and goes on
    assert len(with_fault.children[-1].outputs) == 1
    assert "fullest in" in shown()
