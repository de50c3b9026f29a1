"""The examples in docstrings run as they stand, and every verb and every function of the rooms has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import operator
import pkgutil
import time

import pytest

import sdegen as sg

SLOW_TO_IMPORT = ("from_diffusers", "from_pipeline", "space_from_diffusers", "to_scheduler")  # diffusers takes seconds
VERBS = [n for n in sg.__all__ if inspect.isfunction(getattr(sg, n)) and n not in SLOW_TO_IMPORT]
OTHERS = {  # functions of the rooms that have none
    "metrics.fid": "needs weights that are downloaded",
    "metrics.psnr": "needs torchmetrics",
    "metrics.ssim": "needs torchmetrics",
    "testing.affine_law": "of tests of solvers",
    "testing.check_solver": "takes long",
}
OF_ROOMS = [
    f"{room}.{n}"
    for room in ("data", "discrete", "metrics", "nets", "plot", "testing")
    for n in getattr(sg, room).__all__
    if inspect.isfunction(getattr(getattr(sg, room), n)) and f"{room}.{n}" not in OTHERS
]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples() -> dict[str, doctest.DocTest]:
    """The examples of the whole package, by the name of what they are of."""
    finder, found = doctest.DocTestFinder(exclude_empty=True), {}
    for module in pkgutil.walk_packages(sg.__path__, "sdegen."):
        if module.name != "sdegen.__main__":
            for test in finder.find(importlib.import_module(module.name), module.name, globs={}):
                if test.examples:
                    found[test.name] = test
    return found


EXAMPLES = examples()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name):
    told: list[str] = []
    start = time.process_time()
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    assert runner.run(EXAMPLES[name], out=told.append).failed == 0, "".join(told)
    assert time.process_time() - start < 5  # a second, on a machine that does nothing else


@pytest.mark.parametrize("verb", VERBS + OF_ROOMS)
def test_every_verb_has_an_example_that_calls_it(verb):
    function = operator.attrgetter(verb)(sg)
    test = EXAMPLES.get(f"{function.__module__}.{function.__name__}")
    assert test is not None and any(f"sg.{verb}" in example.source for example in test.examples)
