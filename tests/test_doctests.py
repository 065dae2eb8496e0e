"""Every example in a docstring says what it says."""

import doctest
import importlib
import pkgutil

import pytest

import instructft

NAMES = sorted(
    module.name
    for module in pkgutil.iter_modules(instructft.__path__, "instructft.")
    if module.name != "instructft.__main__"
) + ["instructft.__main__"]


@pytest.mark.parametrize("name", NAMES)
def test_examples(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module)
    assert failed == 0


def test_there_are_examples():
    counts = {
        name: sum(
            len(test.examples)
            for test in doctest.DocTestFinder().find(
                importlib.import_module(name)
            )
        )
        for name in NAMES
    }
    assert sum(counts.values()) > 20
    for name in ("instance", "formatting", "masking", "evaluate", "show"):
        assert counts[f"instructft.{name}"]
