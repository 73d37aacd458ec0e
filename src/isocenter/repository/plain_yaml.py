"""YAML as people read it: nothing is constructed but plain data, and what means two things is an error."""

import re
from typing import Any, Final

import yaml

_DECIMAL: Final = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_MOST_DIGITS: Final = 18
_MOST_VALUES: Final = 2**22


class NotPlain(ValueError):
    """It is not YAML, or not plain."""


def load_plain(text: str) -> Any:
    """The one document of a text.

    >>> load_plain("labels: [8, '010']")
    {'labels': [8, '010']}

    Raises:
        NotPlain: it is not YAML; a key stands twice in a mapping, of which the parser would take the last; a whole
            number is written so that the parser would read another one: 010 as 8, 1:30 as 90; or aliases stand for
            themselves, or for so many values that nobody could look at them.
    """
    try:
        found = yaml.load(text, Loader=_PlainLoader)
        if _count(found, {}) > _MOST_VALUES:
            raise NotPlain(f"its aliases stand for more than {_MOST_VALUES} values")
        return found
    except NotPlain:
        raise
    except yaml.YAMLError as error:
        raise NotPlain(str(error)) from error
    except RecursionError as error:
        raise NotPlain("it is nested too deeply") from error
    except (ValueError, OverflowError) as error:  # of a value: the 30th of February
        raise NotPlain(f"a value is not what it looks like: {error}") from error


def _count(value: Any, known: dict[int, int]) -> int:
    """How many values there are with every alias written out."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = -1
        inside = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(each, known) for each in inside)
    elif known[id(value)] < 0:
        raise NotPlain("an alias stands for what it is a part of")
    return known[id(value)]


class _PlainLoader(yaml.SafeLoader):
    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:  # what is merged in may be written over
                continue
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} stands there twice", key.start_mark
                )
            seen.add((key.tag, key.value))
        return dict(super().construct_mapping(node, deep))


def _whole(loader: _PlainLoader, node: Any) -> int:
    written = loader.construct_scalar(node)
    if not _DECIMAL.fullmatch(written) or len(written) > _MOST_DIGITS:
        raise yaml.constructor.ConstructorError(
            None, None, f"{written[:40]} is no plain whole number: a text stands in quotes", node.start_mark
        )
    return int(written)


_MERGE: Final = "tag:yaml.org,2002:merge"
_PlainLoader.add_constructor("tag:yaml.org,2002:int", _whole)
