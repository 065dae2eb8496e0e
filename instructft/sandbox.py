"""Render P3's Jinja without running somebody else's code.

A template is a program. Here it may read its row, loop and join text; it
cannot reach Python, and a process of its own, with a limit of time and of
memory, does the work: what never ends is killed.
"""

import json
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

LONGEST = 1_000_000  # characters of one rendering
MEMORY = 2**30  # bytes for the process that renders, where the system can
BATCH = 64  # rows sent at once
PARTS = "|||"  # stands between prompt and target, and between choices
PROTECTED = "3ed2dface8203c4c9dfb1a5dc58e41e0"  # a row's own |||

# What published templates use (promptsource 0.2.3, 279 files), and a few
# more that are as harmless; all else is refused.
FILTERS = (
    "abs capitalize choice default first float format int join last length "
    "list lower map max min most_frequent random reject rejectattr replace "
    "reverse round select selectattr sort string sum title tojson trim "
    "truncate unique upper"
).split()
METHODS = {
    str: "capitalize count endswith find index isdigit join lower lstrip "
    "replace rfind rstrip split splitlines startswith strip title upper",
    list: "append count extend index insert pop remove reverse sort",
    dict: "get items keys pop update values",
}
MUTATING = set("append extend insert pop remove reverse sort update".split())
REFUSED = "Import FromImport Include Extends Macro CallBlock Block Pow"


class TemplateError(ValueError):
    """A template that is refused, fails, or takes too much."""


class Sandbox:
    """A process that renders Jinja templates; use it in a `with`.

    `seconds` bounds one batch of rows; `seed` is for templates that choose
    at random (Jinja's `random`, promptsource's `choice`).
    """

    def __init__(self, seconds: float = 10, seed: int = 0):
        self.seconds, self.seed = seconds, seed
        self._process: subprocess.Popen | None = None
        self._templates: list[list[str | None]] = []

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *error) -> None:
        self._stop()

    def add(self, source: str, choices: str | None = None) -> int:
        """Compile a template; return the number that `render` takes.

        `choices` is a second template whose text, split at |||, is the
        first one's variable `answer_choices`. Raises TemplateError if
        either is no Jinja or asks for what templates may not have.
        """
        self._start()
        self._ask({"add": [source, choices]})
        self._templates.append([source, choices])
        return len(self._templates) - 1

    def render(
        self, rows: Iterable[dict], numbers: list[int] | None = None
    ) -> Iterator[list[list[str] | TemplateError]]:
        """Render templates (all, unless `numbers`) over each row.

        Yields, row by row, for each template the parts between its |||,
        stripped, or a TemplateError.
        """
        if numbers is None:
            numbers = list(range(len(self._templates)))
        batch: list[dict] = []
        for row in rows:
            batch.append(row)
            if len(batch) == BATCH:
                yield from self._batch(batch, numbers)
                batch = []
        yield from self._batch(batch, numbers)

    def _batch(self, rows, numbers):
        if not rows:
            return
        try:
            answers = self._ask({"rows": rows, "numbers": numbers})
        except TemplateError as error:
            # find the culprit: each row alone, then each template alone
            if len(rows) > 1:
                for row in rows:
                    yield from self._batch([row], numbers)
            elif len(numbers) > 1:
                alone = [next(self._batch(rows, [n])) for n in numbers]
                yield [parts for [parts] in alone]
            else:
                yield [error]
            return
        for found in answers:
            yield [
                TemplateError(each) if isinstance(each, str) else each
                for each in found
            ]

    def _ask(self, message: dict):
        self._start()
        process = self._process
        # the answer comes as one line of ASCII JSON: nothing is unpickled
        late = threading.Timer(self.seconds, process.kill)
        late.start()
        try:
            process.stdin.write(json.dumps(message, default=str) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        finally:
            late.cancel()
        if not line.endswith("\n"):
            self._stop()
            raise TemplateError(
                f"took more than {self.seconds} s or {MEMORY >> 20} MB: "
                "simplify its loops"
            )
        answer = json.loads(line)
        if isinstance(answer, dict):
            raise TemplateError(answer["error"])
        return answer

    def _start(self) -> None:
        if self._process is not None:
            return
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__)), str(self.seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="ascii",
        )
        for source, choices in self._templates:  # after a kill
            self._ask({"add": [source, choices]})

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


# The process's own side


def _most_frequent(items):
    """Return those that occur most often (promptsource/templates.py)."""
    counts = Counter(items)
    most = max(counts.values(), default=0)
    return [item for item, count in counts.items() if count == most] or None


def _environment():
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.runtime import LoopContext
    from jinja2.sandbox import SandboxedEnvironment, safe_range
    from jinja2.utils import Namespace

    methods = {kind: set(names.split()) for kind, names in METHODS.items()}
    refused = tuple(getattr(nodes, name) for name in REFUSED.split())

    class Environment(SandboxedEnvironment):
        intercepted_binops = frozenset({"*", "%", "**"})

        def is_safe_attribute(self, obj, attr, value):
            if isinstance(obj, (Namespace, LoopContext)):
                return not attr.startswith("_")
            return attr in methods.get(type(obj), ())

        def unsafe_undefined(self, obj, attribute):
            raise SecurityError(f"{attribute!r} is not for templates")

        def call_binop(self, context, operator, left, right):
            numbers = (int, float)
            if operator == "**" or not (
                isinstance(left, numbers) and isinstance(right, numbers)
            ):
                raise SecurityError(f"{operator} is for numbers only")
            return super().call_binop(context, operator, left, right)

        def checked(self, source):
            tree = self.parse(source)
            for node in tree.find_all(refused):
                kind = type(node).__name__.lower()
                raise SecurityError(f"line {node.lineno}: no {kind} here")
            return tree

    env = Environment()
    env.globals = {"range": safe_range, "zip": zip, "namespace": Namespace}
    env.filters |= {"choice": random.choice, "most_frequent": _most_frequent}
    env.filters = {name: env.filters[name] for name in FILTERS}
    return env


def _serve(seed: int) -> None:
    """Answer lines of JSON on stdin with lines of JSON on stdout."""
    import contextlib
    import copy

    from jinja2 import meta, nodes

    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    random.seed(seed)
    env, templates = _environment(), []

    def split(text):
        return [
            part.replace(PROTECTED, PARTS).strip()
            for part in text.split(PARTS)
        ]

    def add(source, choices):
        tree = env.checked(source)
        called = {
            call.node.attr
            for call in tree.find_all(nodes.Call)
            if isinstance(call.node, nodes.Getattr)
        }
        listed = None
        if choices is not None:
            choices = env.checked(choices)
            varies = meta.find_undeclared_variables(choices) or any(
                choices.find_all((nodes.Filter, nodes.Call))
            )
            choices = env.from_string(choices)
            if not varies:
                listed = split(choices.render())
                choices = None
        changes = bool(called & MUTATING)
        templates.append((env.from_string(tree), choices, listed, changes))
        return []

    def render(row, number):
        template, choices, listed, changes = templates[number]
        if "answer_choices" in row:
            raise ValueError("a row may have no field `answer_choices`")
        if changes:  # it may append to a list of the row
            row = copy.deepcopy(row)
        row = {
            key: value.replace(PARTS, PROTECTED)
            if isinstance(value, str) and PARTS in value
            else value
            for key, value in row.items()
        }
        if choices is not None:
            listed = split(choices.render(row))
        row["answer_choices"] = listed
        text = template.render(row)
        if len(text) > LONGEST:
            raise ValueError(f"rendered to {len(text):,} characters")
        return split(text)

    def tried(row, number):
        try:
            return render(row, number)
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:500]

    for line in sys.stdin:
        message = json.loads(line)
        try:
            if "add" in message:
                answer = add(*message["add"])
            else:
                answer = [
                    [tried(row, number) for number in message["numbers"]]
                    for row in message["rows"]
                ]
            said = json.dumps(answer)
        except Exception as error:
            said = json.dumps({"error": f"{type(error).__name__}: {error}"})
        print(said, flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
