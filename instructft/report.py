"""Writes a run's report: what each notebook promised, took and showed."""

import html
import json
import re
import time
from pathlib import Path

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
CODE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", re.MULTILINE)
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse }
th, td { padding: .2rem .8rem .2rem 0; text-align: left;
         border-bottom: 1px solid #8884; vertical-align: top }
pre { overflow-x: auto; white-space: pre-wrap; padding: .6rem .8rem;
      background: #8881; border-radius: 4px }
img { max-width: 100%; background: #fff }
section { margin-top: 3rem; border-top: 2px solid #8888 }
.cost { opacity: .7 }
@media print { body { margin: 0; max-width: none; font-size: 11pt }
  h2, h3 { break-after: avoid } img, tr { break-inside: avoid } }
"""


def write(folder: Path, steps: dict, machine: dict, versions: dict) -> str:
    """Write report.html and report.txt into `folder`; return the text.

    `steps` maps a notebook's name to its seconds and peak_mb; the executed
    notebook is `folder/<name>.ipynb`.
    """
    head = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        **machine,
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
        "total time": _duration(sum(s["seconds"] for s in steps.values())),
    }
    lessons = [lesson(folder / f"{n}.ipynb") | s for n, s in steps.items()]
    text = _text(head, lessons)
    (folder / "report.txt").write_text(text, encoding="utf-8")
    (folder / "report.html").write_text(_html(head, lessons), "utf-8")
    return text


def lesson(path: Path) -> dict:
    """Read an executed notebook: title, promise and what it shows.

    `shows` lists (caption, outputs) for each code cell tagged `report`; the
    caption is the last heading before it.
    """
    title, caption, after, shows = path.stem, path.stem, "", []
    titled = False
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            source = CODE.sub("", source)
            for found in HEADING.finditer(source):
                caption = _plain(found[1])
                if not titled:
                    title, titled = caption, True
                    source = source[found.end() :]
            after += source + "\n\n" if titled else ""
        elif "report" in cell["metadata"].get("tags", []):
            shows.append((caption, cell.get("outputs", [])))
    return {"title": title, "promise": promise(after), "shows": shows}


def promise(markdown: str) -> str:
    """Take the first sentence of a text, its mark-up removed.

    >>> promise("\\n**See** it work.\\nThen more.\\n\\n## You will")
    'See it work.'
    """
    for block in re.split(r"\n\s*\n", markdown):
        block = HEADING.sub("", block).strip()
        if block and block[0] not in "<!":
            words = " ".join(_plain(block).split())
            return re.split(r"(?<=[.!?])\s", words)[0]
    return ""


def _plain(markdown: str) -> str:
    without_links = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", markdown)
    return re.sub(r"[*`]|^> ?", "", without_links, flags=re.MULTILINE)


def _duration(seconds: float) -> str:
    """Write seconds as a reader says them.

    >>> _duration(75.2), _duration(9.4)
    ('1 min 15 s', '9 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _cost(step: dict) -> str:
    return f"{_duration(step['seconds'])}, {step['peak_mb']} MB at most"


def _output_text(output: dict) -> str:
    kind = output["output_type"]
    if kind == "stream":
        text = "" if output["name"] == "stderr" else "".join(output["text"])
    elif kind == "error":
        text = f"{output['ename']}: {output['evalue']}"
    else:
        text = "".join(output["data"].get("text/plain", ""))
        if re.fullmatch(r"<(IPython\S* object|Figure .*)>", text.strip()):
            text = "(in report.html)"
    return ANSI.sub("", text).rstrip()


def _output_html(output: dict) -> str:
    data = output.get("data", {})
    if "text/html" in data:
        return f"<div>{''.join(data['text/html'])}</div>"
    if "image/png" in data:
        png = "".join("".join(data["image/png"]).split())
        return f'<img alt="figure" src="data:image/png;base64,{png}">'
    text = _output_text(output)
    return f"<pre>{html.escape(text)}</pre>" if text else ""


def _text(head: dict, lessons: list[dict]) -> str:
    width = max(map(len, head))
    lines = [f"{name:{width}}  {value}" for name, value in head.items()]
    for step in lessons:
        lines += ["", "", step["title"], "=" * len(step["title"])]
        lines += [step["promise"], _cost(step)]
        for caption, outputs in step["shows"]:
            texts = filter(None, map(_output_text, outputs))
            shown = "\n".join(texts).splitlines()
            lines += ["", caption, *[f"    {line}".rstrip() for line in shown]]
    return "\n".join(lines) + "\n"


def _html(head: dict, lessons: list[dict]) -> str:
    def row(*values: object) -> str:
        cells = "".join(f"<td>{html.escape(str(v))}</td>" for v in values)
        return f"<tr>{cells}</tr>"

    parts = ["<table>", *[row(*item) for item in head.items()], "</table>"]
    parts += ["<h2>Notebooks</h2>", "<table>"]
    parts += [row(step["title"], _cost(step)) for step in lessons]
    parts += ["</table>"]
    for step in lessons:
        parts += [f"<section><h2>{html.escape(step['title'])}</h2>"]
        parts += [f"<p>{html.escape(step['promise'])}</p>"]
        parts += [f'<p class="cost">{_cost(step)}</p>']
        for caption, outputs in step["shows"]:
            parts += [f"<h3>{html.escape(caption)}</h3>"]
            parts += filter(None, map(_output_html, outputs))
        parts += ["</section>"]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>instructft report</title>\n<style>{STYLE}</style>\n</head>\n"
        "<body>\n<h1>instructft report</h1>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )
