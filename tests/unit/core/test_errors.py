"""One tree of named facts."""

import importlib
import pickle
import re
from collections.abc import Iterator

import pytest

import isocenter
from isocenter.core import errors
from isocenter.core.errors import Detail, IsocenterError, Overloaded


def tree(kind: type[IsocenterError], depth: int = 0) -> Iterator[tuple[int, type[IsocenterError]]]:
    yield depth, kind
    for child in kind.__subclasses__():
        if child.__module__.startswith("isocenter.core."):
            yield from tree(child, depth + 1)


EVERY = [kind for _, kind in tree(IsocenterError)]


def test_codes_are_unique_words() -> None:
    codes = [kind.code for kind in EVERY]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


def test_the_drawn_tree_is_the_tree() -> None:
    drawn = re.findall(r"^    ([│├└─ ]*)(\w+)(?: +(.*))?$", errors.__doc__ or "", re.MULTILINE)
    assert [(len(branch) // 4, name) for branch, name, _ in drawn] == [
        (depth, kind.__name__) for depth, kind in tree(IsocenterError)
    ]


def test_the_drawn_codes_are_the_codes() -> None:
    leaves = {kind.__name__: kind.code for kind in EVERY if not kind.__subclasses__() or kind.__name__ == "BadImage"}
    drawn = dict(re.findall(r"(\w+) {2,}(\w+)$", errors.__doc__ or "", re.MULTILINE))
    assert {name: drawn[name] for name in leaves} == leaves


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.code)
def test_an_error_survives_a_process_boundary(kind: type[IsocenterError]) -> None:
    details: dict[str, Detail] = {"queued": 3, "limit": 2, "nested": {"axes": [1, 2.5, None, True]}}
    error = kind("3 items are queued, the limit is 2", details=details, retry_after_s=1.5)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == copy.message == "3 items are queued, the limit is 2"
    assert (copy.details, copy.retry_after_s) == (details, 1.5)


def test_programs_find_every_error_in_a_module_of_its_own() -> None:
    found = importlib.import_module("isocenter.errors")
    assert found is isocenter.errors
    assert [getattr(found, kind.__name__) for kind in EVERY] == EVERY


def test_details_are_the_errors_own() -> None:
    details = {"queued": 3}
    error = Overloaded("full", details=details)
    details["queued"] = 4
    assert error.details == {"queued": 3}
    assert Overloaded("full").details == {}


def test_every_error_says_what_it_is() -> None:
    assert all(kind.__doc__ for kind in EVERY)
