"""How all this looks in a notebook, each picture with a plain-text twin.

The only module that touches IPython, ipywidgets and matplotlib; no other
module imports it. Text is always escaped: it is data, never markup.
"""

import base64
import inspect
import io
import json
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from itertools import accumulate
from math import isfinite
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from instructft.masking import IGNORE

if TYPE_CHECKING:
    import ipywidgets as widgets
    from peft import LoraConfig
    from transformers import PretrainedConfig

    from instructft.memory import Forecast

CELL = "padding:2px 10px 2px 0;text-align:left;vertical-align:top"
SEEN = "background:#1b7f4b;color:#fff"
HIDDEN = "background:#e3e3e3;color:#333"
RED = "background:#b3261e;color:#fff"


class View:
    """Something to look at: HTML or a picture, and the same as text."""

    def __init__(self, text: str, html: str = "", png: bytes = b"", data=None):
        self.text, self.html, self.png, self.data = text, html, png, data

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        bundle: dict = {"text/plain": self.text}
        if self.html:
            bundle["text/html"] = self.html
        if self.png:
            bundle["image/png"] = base64.b64encode(self.png).decode()
        if self.data is not None:
            bundle["application/json"] = self.data
        return bundle


def _chip(text: str, style: str, title: str = "") -> str:
    visible = escape(text.replace("\n", "\u21b5")) or "&nbsp;"
    return (
        f'<span title="{escape(title)}" style="{style};padding:1px 3px;'
        "margin:1px;border-radius:3px;display:inline-block;"
        f'font-family:monospace;white-space:pre">{visible}</span>'
    )


def tokens(
    tokenizer,
    token_ids: Sequence[int],
    labels: Sequence[int],
    losses: Sequence[float] | None = None,
) -> View:
    """Show tokens one by one, those that the loss sees in green.

    n ids, n labels and, if given, n losses in nats (the loss of *this*
    token, not of the next). In the text twin a seen token stands in
    [brackets].
    """
    chips, text = [], []
    losses = losses if losses is not None else [None] * len(token_ids)
    for token, label, loss in zip(token_ids, labels, losses, strict=True):
        piece = tokenizer.decode([token])
        hidden = label == IGNORE
        title = f"id {token}, label {label}"
        if loss is not None and not hidden:
            title += f", loss {loss:.3f}"
        chips.append(_chip(piece, HIDDEN if hidden else SEEN, title))
        if "\n" in piece:
            chips.append("<br>")
        text.append(piece if hidden else f"[{piece}]")
    legend = (
        f"<p>{_chip('in the loss', SEEN)} {_chip('hidden (-100)', HIDDEN)}"
        " &nbsp;point at a token for its id and label</p>"
    )
    return View("".join(text), legend + "".join(chips))


def heat(
    tokenizer,
    token_ids: Sequence[int],
    labels: Sequence[int],
    losses: Sequence[float],
) -> View:
    """Show what each counted token costs: the redder, the higher its loss.

    n ids, n labels and n losses in nats, of which 5 or more are the
    reddest. The text twin has a line a token: its id, its loss, itself.
    """
    chips, text = [], []
    for token, label, loss in zip(token_ids, labels, losses, strict=True):
        piece = tokenizer.decode([token])
        style, cost = HIDDEN, "hidden"
        if label != IGNORE:
            share = min(loss / 5, 1)
            style = f"background:rgba(179,38,30,{0.08 + 0.72 * share:.2f})"
            cost = f"{loss:.3f}"
        title = f"id {token}, label {label}, loss {cost}"
        text.append(f"{token:>6}  {cost:>6}  {piece}")
        chips.append(_chip(piece, style, title))
        if "\n" in piece:
            chips.append("<br>")
    return View("\n".join(text), "".join(chips))


def xray(
    tokenizer,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    losses: dict[str, Sequence[Sequence[float]]],
) -> "widgets.VBox":
    """Return a widget that shows rows' losses, token by token.

    `rows` are (ids, labels); `losses` holds, by name ("before"), a list of
    losses in nats for each row. Its plain twin is `heat`.
    """
    import ipywidgets as widgets

    row = widgets.IntSlider(
        description="row", max=len(rows) - 1, continuous_update=False
    )
    when = widgets.ToggleButtons(options=list(losses))
    seen = widgets.Output()

    def draw(_=None):
        shown = heat(
            tokenizer, *rows[row.value], losses[when.value][row.value]
        )
        seen.outputs = ()
        seen.append_display_data(shown)

    row.observe(draw, names="value")
    when.observe(draw, names="value")
    draw()
    return widgets.VBox([row, when, seen])


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


def _short(text: str, width: int) -> str:
    """Shorten at a word's end, or inside a word that is too long."""
    cut = shorten(text, width, placeholder=" ...")
    return f"{text[: width - 4]} ..." if cut.strip() == "..." else cut


def table(rows: Sequence[dict], width: int = 60) -> View:
    """Show rows (dicts) as a table; a key that a row lacks stays empty.

    Text longer than `width` characters is shortened in the text twin.

    >>> table([{"rate": 0.25, "rows": 4}])
    rate  rows
    0.25  4
    """
    if not rows:
        return View("(no rows)", "<p>(no rows)</p>")
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name, "")) for name in names] for row in rows]
    short = [[_short(c, width) for c in line] for line in cells]
    widths = [
        max(len(line[i]) for line in [names, *short])
        for i in range(len(names))
    ]
    text = "\n".join(
        "  ".join(
            c.ljust(w) for c, w in zip(line, widths, strict=True)
        ).rstrip()
        for line in [names, *short]
    )
    head = "".join(f'<th style="{CELL}">{escape(n)}</th>' for n in names)
    body = "".join(
        "<tr>"
        + "".join(f'<td style="{CELL}">{escape(c)}</td>' for c in line)
        + "</tr>"
        for line in cells
    )
    return View(text, f"<table><tr>{head}</tr>{body}</table>")


def gate(checks: Sequence) -> View:
    """Show the lines of a preflight, red ones with their remedy."""
    text, html = [], []
    for check in checks:
        mark, style = ("ok", SEEN) if check.ok else ("RED", RED)
        said = check.seen + ("" if check.ok else f"; {check.remedy}")
        text.append(f"{mark:4}{check.name}: {said}")
        html.append(
            f'<tr><td style="{CELL}">{_chip(mark, style)}</td>'
            f'<td style="{CELL}">{escape(check.name)}</td>'
            f'<td style="{CELL}">{escape(said)}</td></tr>'
        )
    return View("\n".join(text), f"<table>{''.join(html)}</table>")


def conversation(messages: Sequence[dict]) -> View:
    """Show messages as turns of a conversation."""
    colours = {"user": "#2b5fb3", "assistant": "#1b7f4b"}
    html = "".join(
        f'<div style="border-left:4px solid {colours.get(m["role"], "#888")};'
        'padding:2px 10px;margin:6px 0;white-space:pre-wrap">'
        f"<b>{escape(m['role'])}</b><br>{escape(m['content'])}</div>"
        for m in messages
    )
    return View(
        "\n".join(f"{m['role']}: {m['content']}" for m in messages), html
    )


def side_by_side(
    made: Sequence[dict],
    row: int = 0,
    count: Callable[[str], int] | None = None,
    options: Sequence[Sequence[str]] | None = None,
) -> View:
    """Show one row through every template, prompts beside each other.

    `made` is what `render` or `round_robin` yields, for all rows; `count`
    gives a text's tokens. A red mark warns of a prompt that gives the
    answer away (`templates.leaks`, which takes the `options`).
    """
    from instructft.templates import leaks

    return _cards(
        list(zip(made, leaks(made, options), strict=True)), row, count
    )


def _cards(marked: list[tuple[dict, bool]], row: int, count) -> View:
    html, text = [], []
    for each, leak in marked:
        if each["row"] != row:
            continue
        facts = str(each["template"])
        if count and not each.get("problem"):
            sizes = count(each["prompt"]), count(each["completion"])
            facts += f": {sizes[0]} + {sizes[1]} tokens"
        body = each.get("problem") or each["prompt"]
        warning = "the answer stands in the prompt" if leak else ""
        text.append(
            f"## {facts}{'  RED ' + warning if leak else ''}\n{body}\n"
            f"=> {each['completion']}\n"
        )
        html.append(
            '<div style="border:1px solid #8888;border-radius:4px;padding:6px;'
            'white-space:pre-wrap;overflow-wrap:anywhere">'
            f"<b>{escape(facts)}</b> {_chip(warning, RED) if leak else ''}\n"
            f"{escape(body)}\n"
            f'<span style="{SEEN};padding:1px 3px;border-radius:3px">'
            f"{escape(each['completion'])}</span></div>"
        )
    grid = (
        '<div style="display:grid;gap:8px;grid-template-columns:'
        f'repeat(auto-fill,minmax(260px,1fr))">{"".join(html)}</div>'
    )
    if not text:
        return table([])
    return View("\n".join(text), grid)


def browse(
    made: Sequence[dict],
    count: Callable[[str], int] | None = None,
    options: Sequence[Sequence[str]] | None = None,
) -> "widgets.VBox":
    """Return a widget that shows one row after another, side by side.

    Its plain twin is `side_by_side(made, row)`.
    """
    import ipywidgets as widgets

    from instructft.templates import leaks

    marked = list(zip(made, leaks(made, options), strict=True))
    last = max((each["row"] for each in made), default=0)
    row = widgets.IntSlider(
        description="row", max=last, continuous_update=False
    )
    seen = widgets.Output()

    def draw(_=None):
        seen.outputs = ()
        seen.append_display_data(_cards(marked, row.value, count))

    row.observe(draw, names="value")
    draw()
    return widgets.VBox([row, seen])


def _png(figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    file = io.BytesIO()
    FigureCanvasAgg(figure)
    # a fixed creator keeps a picture byte-identical from run to run
    figure.savefig(file, dpi=100, metadata={"Software": None})
    return file.getvalue()


def _legend(axes, **place) -> None:
    if not axes.get_legend_handles_labels()[1]:
        return
    for label in axes.legend(frameon=False, **place).get_texts():
        label.set_parse_math(False)  # $ is a dollar


def curve(log_history: Sequence[dict], name: str = "loss") -> View:
    """Draw a logged figure against training steps.

    `log_history` is `trainer.state.log_history`; `name` one of its keys.
    Raises ValueError if nothing of that name was logged.
    """
    from matplotlib.figure import Figure

    points = [(e["step"], e[name]) for e in log_history if name in e]
    if not points:
        raise ValueError(
            f"{name!r} was never logged: set logging_steps lower, or choose "
            f"one of {sorted({key for e in log_history for key in e})}"
        )
    steps, values = zip(*points, strict=True)
    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, values, marker="o", markersize=3)
    axes.set(xlabel="step", ylim=(0, None))
    axes.set_ylabel(name, parse_math=False)
    axes.grid(alpha=0.3)
    top = max((v for v in values if isfinite(v)), default=0) or 1
    text = "\n".join(
        f"step {step:4}  {name} {value:.3f}  "
        + "#" * (round(40 * value / top) if isfinite(value) else 0)
        for step, value in points
    )
    return View(text, png=_png(figure))


def bars(
    groups: dict[str, dict[str, float]],
    spread: dict[str, dict[str, tuple[float, float]]] | None = None,
) -> View:
    """Draw shares (0 to 1) as bars: {"before": {"movie": 0.1}, ...}.

    `spread` gives, under the same names, the low and high end of each.
    Many or long names lie beside lying bars.
    """
    from matplotlib.figure import Figure

    names = list(next(iter(groups.values())))
    # side by side long names, or the figures of many bars, would overlap
    wide = max(map(len, names)) * len(names)
    lying = wide > 60 or len(names) * len(groups) > 12
    height = 0.6 + 0.25 * len(names) * len(groups) if lying else 2.8
    figure = Figure(figsize=(6, height), layout="constrained")
    axes = figure.subplots()
    draw, end_lines = (axes.barh, "xerr") if lying else (axes.bar, "yerr")
    each = 0.8 / len(groups)
    text, column = [], max(map(len, groups))
    for i, (group, shares) in enumerate(groups.items()):
        at = [x + each * i for x in range(len(names))]
        heights = [shares[name] for name in names]
        ends = [(spread or {}).get(group, {}).get(n) for n in names]
        low_high = [e or (h, h) for h, e in zip(heights, ends, strict=True)]
        pairs = list(zip(heights, low_high, strict=True))
        errors = [
            [max(0, h - low) for h, (low, _) in pairs],
            [max(0, high - h) for h, (_, high) in pairs],
        ]
        drawn = draw(
            at, heights, each * 0.92, label=group, **{end_lines: errors}
        )
        axes.bar_label(drawn, [f"{h:.0%}" for h in heights], padding=2)
        for name, height, end in zip(names, heights, ends, strict=True):
            line = f"{group:{column}} {name:24} {height:6.1%}"
            text.append(
                line + (f"  ({end[0]:.1%} to {end[1]:.1%})" if end else "")
            )
    middle = each * (len(groups) - 1) / 2
    places = [x + middle for x in range(len(names))]
    if lying:
        axes.set_yticks(places, names, parse_math=False)  # $ is a dollar
        axes.set(xlim=(0, 1.25), xticks=[0, 0.5, 1])
        axes.invert_yaxis()
    else:
        axes.set_xticks(places, names, parse_math=False)
        axes.set(ylim=(0, 1.12), yticks=[0, 0.5, 1])
    _legend(axes, loc="upper left", bbox_to_anchor=(1, 1))
    return View("\n".join(text), png=_png(figure))


def result(figures: dict) -> View:
    """Show a run's figures, and hand them on as JSON.

    `python -m instructft study NN` collects the JSON of the cell tagged
    `result`.

    >>> result({"exact_match": 0.5})
    figure       value
    exact_match  0.5

    Raises ValueError for a figure that is not finite: JSON has none.
    """
    clean = json.loads(json.dumps(figures, allow_nan=False))
    shown = table([{"figure": k, "value": v} for k, v in _flat(clean).items()])
    return View(shown.text, shown.html, data=clean)


def _flat(figures: dict, above: str = "") -> dict:
    """Name each leaf of nested dicts by its way down.

    >>> _flat({"after": {"exact": 0.5}})
    {'after, exact': 0.5}
    """
    found = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{above}{name}, ")
        else:
            found[above + name] = value
    return found


def study(path: str | Path) -> View:
    """Show a committed study: each figure's mean and spread over its runs.

    `python -m instructft study NN` writes the file. Spread is the sample
    standard deviation between runs.
    """
    if not Path(path).is_file():
        return measured(path)
    found = json.loads(Path(path).read_text("utf-8"))
    runs = [_flat(run["result"]) for run in found["runs"]]
    rows = []
    for name, first in runs[0].items():
        if not isinstance(first, (int, float)):
            continue
        values = [run[name] for run in runs]
        rows.append(
            {
                "figure": name,
                "mean": statistics.fmean(values),
                "spread": statistics.stdev(values) if runs[1:] else 0.0,
                "each run": "  ".join(_cell(value) for value in values),
            }
        )
    head = measured(path).text
    shown = table(rows)
    return View(f"{head}\n{shown.text}", f"<p>{escape(head)}</p>{shown.html}")


def arms(path: str | Path, by: str, figures: Sequence[str]) -> View:
    """Draw a study's figures against one of its parameters.

    A dot is a run, the line their mean; `figures` are names as `study`
    gives them, such as "exact, movie", of shares from 0 to 1. Raises
    KeyError, with those there are, for a figure or parameter that the
    study does not hold.
    """
    if not Path(path).is_file():
        return measured(path)
    found = json.loads(Path(path).read_text("utf-8"))
    runs = [(run["parameters"], _flat(run["result"])) for run in found["runs"]]
    for name, known in [(by, runs[0][0]), *((f, runs[0][1]) for f in figures)]:
        if name not in known:
            raise KeyError(f"{path} has no {name!r}, only {list(known)}")
    drawn = lines(
        {
            name: [(given[by], result[name]) for given, result in runs]
            for name in figures
        },
        by,
        share=True,
    )
    return View(f"{measured(path)}\n{drawn.text}", png=drawn.png)


def lines(
    series: dict[str, Sequence[tuple[float, float]]],
    x: str,
    y: str = "",
    *,
    log: bool = False,
    share: bool = False,
) -> View:
    """Draw named runs, each a point (x, y), and a line through their means.

    With `log` the x axis is logarithmic; with `share` y goes from 0 to 1
    and is written in percent.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    text = []
    for name, points in series.items():
        values = sorted({value for value, _ in points})
        seen = [[y for at, y in points if at == value] for value in values]
        means = [statistics.fmean(each) for each in seen]
        [line] = axes.plot(values, means, label=name)
        for value, mean, each in zip(values, means, seen, strict=True):
            axes.plot([value] * len(each), each, "o", color=line.get_color())
            said = [f"{n:.1%}" if share else f"{n:.3f}" for n in [mean, *each]]
            text.append(
                f"{name:24} {x} {value:<4} {said[0]:>6}  each run "
                + "  ".join(said[1:])
            )
    axes.set(xscale="log" if log else "linear")
    axes.set(xticks=sorted({value for p in series.values() for value, _ in p}))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    if share:
        axes.set(ylim=(0, 1.02))
    axes.set_xlabel(x, parse_math=False)
    axes.set_ylabel(y, parse_math=False)
    axes.grid(alpha=0.3)
    _legend(axes, loc="best")
    return View("\n".join(text), png=_png(figure))


def measured(path: str | Path) -> View:
    """Say when and with what a committed study was measured."""
    if not Path(path).is_file():
        number = Path(path).stem
        return View(f"no study yet: run `python -m instructft study {number}`")
    study = json.loads(Path(path).read_text("utf-8"))
    return View(
        f"{len(study['runs'])} runs, {study['date']}, "
        f"{study['machine']['cores']} cores, "
        f"{', '.join(f'{k} {v}' for k, v in study['versions'].items())}"
    )


def memory(
    forecasts: dict[str, "Forecast"],
    sizes: dict[str, float],
    head_room: float = 0.1,
) -> View:
    """Draw forecasts as bars of their parts, against the sizes of cards.

    `forecasts` are what `memory.forecast` returned, by name; `sizes` are in
    GB (10^9 bytes), such as `memory.CARDS`. A size far beyond the longest
    bar is in the text twin only.
    """
    from matplotlib.figure import Figure

    from instructft.memory import fits

    height = 1.6 + 0.45 * len(forecasts)
    figure = Figure(figsize=(7, height), layout="constrained")
    axes = figure.subplots()
    names, text = list(forecasts), []
    used = [
        part
        for part in next(iter(forecasts.values())).parts
        if any(each.parts[part] for each in forecasts.values())
    ]
    left = [0.0] * len(names)
    for i, part in enumerate(used):
        widths = [each.parts[part] / 1e9 for each in forecasts.values()]
        axes.barh(names, widths, left=left, label=part, color=f"C{i % 10}")
        left = [a + b for a, b in zip(left, widths, strict=True)]
    limit = 1.15 * max(left)
    limit = max([limit, *[s for s in sizes.values() if s <= 2 * limit]])
    for name, size in sizes.items():
        if size <= limit:
            axes.axvline(size, color="#b3261e", linestyle="--", linewidth=1)
            axes.annotate(
                name,
                (size, 1.01),
                xycoords=("data", "axes fraction"),
                ha="center",
                rotation=90,
                fontsize=8,
                parse_math=False,
            )
    axes.set(xlim=(0, 1.03 * limit), xlabel="GB")
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.invert_yaxis()
    _legend(axes, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    for name, each in forecasts.items():
        text.append(f"{name}: fullest in {each.moment}")
        for part in used:
            size = each.parts[part] / 1e9
            if not size:
                continue
            bar = "#" * round(40 * each.parts[part] / each.total)
            text.append(f"  {part:14}{size:8.2f} GB  {bar}".rstrip())
        text.append(f"  {'total':14}{each.total / 1e9:8.2f} GB")
        verdicts = [
            f"{row['where']} {row['fits']} ({row['full']})"
            for row in fits(each, sizes, head_room)
        ]
        text.append("  fits: " + ", ".join(verdicts))
    return View("\n".join(text), png=_png(figure))


def will_it_fit(
    configs: dict[str, "PretrainedConfig"],
    sizes: dict[str, float],
    lora: "LoraConfig | None",
    *,
    head_room: float = 0.1,
    device: str = "cuda",
    **settings: object,
) -> "widgets.VBox":
    """Return a widget that asks whether a run fits on a card.

    `configs` are transformers' configs by name, `sizes` GB by name, `lora`
    the LoraConfig of "lora" and "qlora"; `device` and `settings` go on to
    `memory.forecast`. Each change takes a second or two. Its plain twin is
    `memory({name: forecast(...)}, sizes)`.

    Rows are packed unless `settings` has `packed=False`. The mask of packed
    ones is real, and grows with the square of length x batch: 52 GB of the
    largest setting in 16 bit, a layer's copy included (`memory.forecast`).
    """
    import ipywidgets as widgets

    from instructft.memory import METHODS, forecast

    lengths = [2**i for i in range(7, 14)]
    model = widgets.Dropdown(description="model", options=list(configs))
    method = widgets.ToggleButtons(
        description="method", options=METHODS, value=METHODS[-1]
    )
    card = widgets.Dropdown(description="card", options=list(sizes))
    length = widgets.SelectionSlider(
        description="length",
        options=lengths,
        value=1024,
        continuous_update=False,
    )
    batch = widgets.IntSlider(
        description="batch", min=1, max=16, continuous_update=False
    )
    kept = widgets.Checkbox(
        description="checkpointing", value=True, indent=False
    )
    asking = [model, method, length, batch, kept]
    seen = widgets.Output()
    made: dict[tuple, object] = {}

    def drawn() -> View:
        asked = tuple(each.value for each in asking)
        if asked not in made:
            made[asked] = forecast(
                configs[model.value],
                method.value,
                length.value,
                batch.value,
                lora=None if method.value == "full" else lora,
                checkpointing=kept.value,
                device=device,
                **settings,
            )
        name = f"{model.value}, {method.value}"
        only = {card.value: sizes[card.value]}
        return memory({name: made[asked]}, only, head_room)

    def draw(_=None):
        try:
            view = drawn()
        except Exception as error:  # else it would end in a log, unseen
            view = View(f"no forecast: {type(error).__name__}: {error}")
        seen.outputs = ()
        seen.append_display_data(view)

    chosen = [model, method, card, length, batch, kept]
    for each in chosen:
        each.observe(draw, names="value")
    draw()
    return widgets.VBox([*chosen, seen])


class Live:
    """A place in a cell's output that is drawn again and again.

    >>> live = Live()  # doctest: +SKIP
    >>> live.update(table(rows))  # doctest: +SKIP
    """

    def __init__(self):
        self._place = None

    def update(self, view: View) -> None:
        """Show a view in place of the last one."""
        from IPython.display import display

        if self._place is None:
            self._place = display(view, display_id=True)
        else:
            self._place.update(view)


def growth(rules: Sequence[str], window: int = 100) -> View:
    """Draw how a pool grows: candidates judged against those accepted.

    `rules` are the verdicts in order, "" for an accepted candidate, else
    "rule: detail". Below: the share accepted of each `window` candidates.
    """
    from matplotlib.figure import Figure

    if not rules:
        return View("(no candidates)")
    kinds = [rule.split(":")[0] or "accepted" for rule in rules]
    names = ["accepted", *sorted({*kinds} - {"accepted"})]
    lines = {
        name: list(accumulate(kind == name for kind in kinds))
        for name in names
    }
    starts = range(0, len(kinds), window)
    shares = [
        kinds[at : at + window].count("accepted")
        / len(kinds[at : at + window])
        for at in starts
    ]
    figure = Figure(figsize=(6, 4), layout="constrained")
    top, below = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    at = range(1, len(kinds) + 1)
    top.stackplot(at, *lines.values(), labels=list(lines))
    top.set_ylabel("candidates")
    _legend(top, loc="upper left")
    widths = [min(window, len(kinds) - at) * 0.95 for at in starts]
    below.bar(starts, shares, widths, align="edge")
    below.set(xlabel="candidates judged", ylim=(0, 1), yticks=[0, 0.5, 1])
    below.set_ylabel("accepted")
    text = [
        f"{start + 1:5} to {min(start + window, len(kinds)):5}  "
        f"{share:6.1%} accepted  {'#' * round(40 * share)}"
        for start, share in zip(starts, shares, strict=True)
    ]
    text += [f"{counts[-1]:5}  {name}" for name, counts in lines.items()]
    return View("\n".join(text), png=_png(figure))


def sunburst(pairs: Sequence[tuple[str, str]], inner: int = 20) -> View:
    """Draw pairs as two rings: the commonest first words, and their seconds.

    Self-Instruct's picture of diversity (its figure 2): verbs inside, each
    with its nouns outside. `inner` first words are shown, up to four seconds
    of each.
    """
    from matplotlib.figure import Figure

    firsts = Counter(first for first, _ in pairs).most_common(inner)
    shown = sum(count for _, count in firsts)
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    rings: list[tuple[list, list, list]] = [([], [], []), ([], [], [])]
    text = []
    for i, (first, count) in enumerate(firsts):
        colour = f"C{i % 10}"
        seconds = Counter(b for a, b in pairs if a == first and b)
        common = seconds.most_common(4)
        rest = count - sum(n for _, n in common)
        parts_of = [(first, count)], [*common, ("", rest)]
        for ring, parts, fit in zip(rings, parts_of, (90, 180), strict=True):
            for name, size in parts:
                ring[0].append(size)
                # so many names find room around the ring
                ring[1].append(name if size > shown / fit else "")
                ring[2].append(colour)
        named = ", ".join(f"{name} {n}" for name, n in common)
        text.append(f"{count:4}  {first:14} {named}")
    for radius, (sizes, names, colours) in zip((0.7, 1), rings, strict=True):
        wedges, labels = axes.pie(
            sizes,
            radius=radius,
            labels=names,
            colors=colours,
            labeldistance=0.79 if radius < 1 else 1.02,
            rotatelabels=True,
            textprops={"fontsize": 7, "parse_math": False},
            wedgeprops={"width": 0.3, "edgecolor": "white"},
        )
        for wedge in wedges if radius == 1 else []:
            wedge.set_alpha(0.5)
        for label in labels if radius < 1 else []:
            label.set(ha="center", va="center")
    text.append(f"{shown} of {len(pairs)} pairs")
    return View("\n".join(text), png=_png(figure))


def labeller(
    rows: Sequence[dict], questions: Sequence[str], path: str | Path
) -> "widgets.VBox":
    """Return a widget to judge rows by hand, one after another.

    Each row is shown with a tick box a question. *Next* appends {"id": ...,
    question: true or false, ...} to `path`, on the disk before the next row
    comes; rows that have their verdicts there are not asked again. A row
    needs an `id`. Its plain twin is `append_row(path, {...})`.
    """
    import ipywidgets as widgets

    from instructft.instance import append_row, read_rows

    done = read_rows(path) if Path(path).is_file() else []
    left = [row for row in rows if row["id"] not in {d["id"] for d in done}]
    boxes = [
        widgets.Checkbox(
            description=each, indent=False, layout={"width": "90%"}
        )
        for each in questions
    ]
    following = widgets.Button(description="Next", disabled=not left)
    seen = widgets.Output()

    def draw():
        seen.outputs = ()
        number = len(rows) - len(left)
        if not left:
            following.disabled = True
            seen.append_display_data(View(f"all {number} rows are judged"))
            return
        head = {"role": f"row {number + 1} of {len(rows)}", "content": ""}
        parts = [
            {"role": name, "content": left[0].get(name, "")}
            for name in ("instruction", "input", "output")
        ]
        seen.append_display_data(conversation([head, *parts]))

    def keep(_):
        verdict = {box.description: box.value for box in boxes}
        append_row(path, {"id": left.pop(0)["id"], **verdict})
        for box in boxes:
            box.value = False
        draw()

    following.on_click(keep)
    draw()
    return widgets.VBox([seen, *boxes, following])


def source(function: Callable) -> View:
    """Show a function's own source: no copy to drift."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    text = inspect.getsource(function).rstrip()
    html = highlight(text, PythonLexer(), HtmlFormatter(noclasses=True))
    return View(text, html)


def chat(
    ask: Callable[[list[dict]], str], system: str | None = None
) -> "widgets.VBox":
    """Return a widget to talk with a model; `ask` takes messages.

    Its plain twin is a call of `ask`. "Start over" forgets the turns.
    """
    import ipywidgets as widgets

    line = widgets.Text(
        placeholder="write here and press Enter",
        continuous_update=False,
        layout={"width": "70%"},
    )
    again = widgets.Button(description="Start over")
    # an Output shows escaped views only; widgets.HTML would take markup
    turns = widgets.Output()
    start = [{"role": "system", "content": system}] if system else []
    said = list(start)

    def draw():
        turns.outputs = ()
        turns.append_display_data(conversation(said))

    def send(change):
        if not change["new"].strip():
            return
        said.append({"role": "user", "content": change["new"].strip()})
        line.value = ""
        draw()
        try:
            reply = ask(list(said))
        except Exception as error:  # else it would end in a log, unseen
            said.pop()  # the turn can be sent again
            kind = type(error).__name__
            turns.append_display_data(View(f"no answer: {kind}: {error}"))
            return
        said.append({"role": "assistant", "content": reply})
        draw()

    def forget(_):
        said[:] = start
        draw()

    line.observe(send, names="value")
    again.on_click(forget)
    return widgets.VBox([turns, widgets.HBox([line, again])])


def stage(sides: dict[str, Callable[[list[dict]], str]]) -> "widgets.VBox":
    """Return a widget that plays a conversation, a turn at a time.

    `sides` says for "user" and "assistant" what a model in that role says
    to messages. *Next turn* lets it speak; a line that is written instead
    is that turn, so either role can be taken. Its plain twin is a call of
    either side. "Start over" forgets the turns.
    """
    import ipywidgets as widgets

    line = widgets.Text(continuous_update=False, layout={"width": "60%"})
    following = widgets.Button(description="Next turn")
    again = widgets.Button(description="Start over")
    turns = widgets.Output()
    said: list[dict] = []

    def draw():
        turns.outputs = ()
        turns.append_display_data(conversation(said))
        role = ("user", "assistant")[len(said) % 2]
        line.placeholder = f"be the {role}: write here and press Enter"

    def speak(text: str):
        role = ("user", "assistant")[len(said) % 2]
        said.append({"role": role, "content": text})
        draw()

    def let_speak(_):
        role = ("user", "assistant")[len(said) % 2]
        try:
            speak(sides[role](list(said)))
        except Exception as error:  # else it would end in a log, unseen
            kind = type(error).__name__
            turns.append_display_data(View(f"no answer: {kind}: {error}"))

    def write(change):
        if text := change["new"].strip():
            line.value = ""
            speak(text)

    def forget(_):
        said.clear()
        draw()

    following.on_click(let_speak)
    line.observe(write, names="value")
    again.on_click(forget)
    draw()
    return widgets.VBox([turns, widgets.HBox([following, line, again])])


def form(path: str | Path) -> "widgets.VBox":
    """Return a widget to write instances, see them and keep them in a file.

    What is typed is checked and shown as the conversation it will become.
    *Save* appends it to `path`. Its plain twin is
    `append_row(path, instance(...))`.
    """
    import ipywidgets as widgets

    from instructft.formatting import messages
    from instructft.instance import FIELDS, append_row, problems_of

    boxes = {
        field: widgets.Textarea(
            description=field, rows=2, layout={"width": "90%"}
        )
        for field in FIELDS
    }
    save = widgets.Button(description="Save", disabled=True)
    seen, said = widgets.Output(), widgets.Output()

    def row() -> dict:
        return {field: box.value for field, box in boxes.items()}

    def draw(_=None):
        problems = problems_of(row())
        save.disabled = bool(problems)
        seen.outputs = ()
        if problems:
            text = "\n".join(problems)
            seen.append_display_data(View(text, f"<pre>{escape(text)}</pre>"))
        else:
            seen.append_display_data(conversation(messages(row())))

    def keep(_):
        if problems_of(row()):
            return
        append_row(path, row())
        said.outputs = ()
        said.append_display_data(View(f"saved in {path}"))
        for box in boxes.values():
            box.value = ""

    for box in boxes.values():
        box.observe(draw, names="value")
    save.on_click(keep)
    draw()
    return widgets.VBox([*boxes.values(), seen, save, said])
