"""Templates that misbehave: refused, failed or killed, never obeyed."""

import time

import pytest

from instructft.sandbox import LONGEST, Sandbox, TemplateError

ROW = {"text": "a cat", "items": ["a", "b"], "label": 1, "meta": {"k": "v"}}

HOSTILE = {
    "class": "{{ ''.__class__ }}",
    "mro": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ namespace.__init__.__globals__ }}",
    "zip": "{{ zip.__subclasses__() }}",
    "self": "{{ self.__init__.__globals__ }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "lipsum": "{{ lipsum.__globals__['os'] }}",
    "item": "{{ ''['__class__'] }}",
    "attr filter": "{{ text | attr('__class__') }}",
    "map": "{{ items | map(attribute='__class__') | list }}",
    "sort": "{{ items | sort(attribute='__class__') }}",
    "bound method": "{{ items.append.__self__ }}",
    "format method": "{{ '{0.__class__}'.format(text) }}",
    "format_map": "{{ '{text.__class__}'.format_map(meta) }}",
    "loop": "{% for i in items %}{{ loop.__class__ }}{% endfor %}",
    "include": "{% include '/etc/hostname' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'base' %}",
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursion": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "repeat": "{{ 'a' * 9999999999 }}",
    "repeat a list": "{{ [1] * 9999999999 }}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "format filter": "{{ '%9999999999d' | format(1) }}",
    "centre": "{{ 'a' | center(9999999999) }}",
    "range": "{{ range(9999999999) | list }}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "doubling": "{% set n = namespace(x='a') %}{% for i in range(60) %}"
    "{% set n.x = n.x.replace('a', 'aa') %}{% endfor %}{{ n.x | length }}",
    "long": "{% for i in range(2000) %}{{ '" + "a" * 1000 + "' }}{% endfor %}",
    "deep": "{{ " + "(" * 5000 + ")" * 5000 + " }}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_hostile(source):
    start = time.monotonic()
    with Sandbox(seconds=2) as sandbox:
        good = sandbox.add("{{ text }}")
        try:
            bad = sandbox.add(source)
        except TemplateError as error:
            assert str(error)
            bad = good
        else:
            [[found]] = sandbox.render([ROW], [bad])
            assert isinstance(found, TemplateError), found
        # and the next rows are served
        assert list(sandbox.render([ROW] * 2, [good])) == [[["a cat"]]] * 2
    assert time.monotonic() - start < 9


def test_one_hostile_row_costs_no_other():
    source = "{% for i in range(n) %}{% for j in range(n) %}{% endfor %}"
    rows = [{"n": n} for n in (1, 99_999, 2)]
    with Sandbox(seconds=1) as sandbox:
        sandbox.add(source + "{% endfor %}done {{ n }}")
        sandbox.add("plain {{ n }}")
        found = list(sandbox.render(rows))
    assert [each[0] for each in (found[0], found[2])] == [
        ["done 1"],
        ["done 2"],
    ]
    assert "took more than 1 s" in str(found[1][0])
    assert [each[1] for each in found] == [
        ["plain 1"],
        ["plain 99999"],
        ["plain 2"],
    ]


def test_a_row_is_the_same_for_every_template():
    with Sandbox() as sandbox:
        sandbox.add("{{ items.append('c') or items | join }}")
        sandbox.add("{{ meta.update({'k': 'w'}) or meta.k }}")
        sandbox.add("{{ items | join }} {{ meta.k }}")
        row = {"items": ["a", "b"], "meta": {"k": "v"}}
        for _ in range(2):
            assert list(sandbox.render([row])) == [[["abc"], ["w"], ["ab v"]]]
    assert row == {"items": ["a", "b"], "meta": {"k": "v"}}


def test_parts_and_choices():
    with Sandbox() as sandbox:
        sandbox.add("{{ text }} ||| {{ answer_choices[label] }}", "no ||| yes")
        sandbox.add(
            "{{ answer_choices | join('/') }}", "{{ items | join('|||') }}"
        )
        sandbox.add("{% if label == 2 %}{{ text }} ||| two{% endif %}")
        [[first, second, third]] = sandbox.render([ROW | {"text": "a ||| b"}])
    assert first == ["a ||| b", "yes"]
    assert second == ["a/b"]
    assert third == [""]


def test_a_failing_row_says_why():
    with Sandbox() as sandbox:
        sandbox.add("{{ text.nothing.more }}")
        sandbox.add("{{ text | length / 0 }}")
        [[first, second]] = sandbox.render([ROW])
        assert "no attribute 'nothing'" in str(first)
        assert "division by zero" in str(second)
        [[third, _]] = sandbox.render([ROW | {"answer_choices": []}])
        assert "no field `answer_choices`" in str(third)


def test_the_same_seed_chooses_alike():
    def chosen(seed):
        with Sandbox(seed=seed) as sandbox:
            sandbox.add("{{ range(1000) | list | random }} {{ x | choice }}")
            return list(sandbox.render([{"x": list(range(1000))}] * 5))

    assert chosen(1) == chosen(1) != chosen(2)


def test_output_is_bounded():
    with Sandbox() as sandbox:
        sandbox.add("{{ text }}")
        [[whole]] = sandbox.render([{"text": "a" * LONGEST}])
        [[over]] = sandbox.render([{"text": "a" * (LONGEST + 1)}])
    assert len(whole[0]) == LONGEST
    assert "1,000,001 characters" in str(over)
