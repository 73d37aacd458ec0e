"""A MONAI bundle's configuration as plain data: `@` and `%` are followed inside of the file, nothing is evaluated.

Only what is asked for is looked at, so an expression (`$…`) where it does not matter (devices, folders, handlers) is
passed over; where it does, it is refused with its place and text.

https://docs.monai.io/en/stable/config_syntax.html, MONAI 1.6.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from isocenter.core.errors import ImportRefused
from isocenter.repository.plain_yaml import load_plain

SEPARATOR: Final = "::"
_OLD_SEPARATOR: Final = "#"
_REFERENCE: Final = re.compile(r"@\w*(?:::\w*)*")
_RELATIVE: Final = re.compile(r"[@%]((?:::)+)(.*)", re.DOTALL)
_OTHER_FILE: Final = re.compile(r"\.(json|ya?ml)(::|$)", re.IGNORECASE)
_MOST_HOPS: Final = 64
_MOST_VALUES: Final = 100_000
_SHOWN: Final = 80
_OF_COMPONENTS: Final = ("_target_", "_disabled_", "_desc_", "_requires_")
_OF_COMPOSE: Final = (*_OF_COMPONENTS, "transforms", "lazy", "overrides", "map_items", "unpack_items", "log_stats")
"""What a Compose may say: without `lazy`, none but `transforms` changes a number."""


class Config:
    """One file; places in it are spelt `preprocessing::transforms::2::pixdim`."""

    def __init__(self, data: Mapping[str, Any], *, file: str) -> None:
        self._data = data
        self._file = file
        self._left = _MOST_VALUES

    def __contains__(self, place: str) -> bool:
        """Whether something but null stands there."""
        try:
            return self._at(place)[1] is not None
        except KeyError:
            return False

    def get(self, place: str, default: Any = None) -> Any:
        """What stands at a place, with every reference in it followed; a default if nothing does.

        Components that are disabled (`_disabled_: true`) are left out of lists.

        Raises:
            ImportRefused: there is an expression in it, a reference to nothing, to itself or to another file.
        """
        return self.resolved(*self._at(place)) if place in self else default

    def component(self, place: str) -> tuple[str, dict[str, Any]]:
        """The component at a place, and where it stands; nothing is followed in it.

        Raises:
            ImportRefused: there is none, or an expression.
        """
        where, value = self._at(place) if place in self else (place, None)
        if not isinstance(value, dict) or "_target_" not in value:
            raise self.refusal(where, "is no component with a _target_")
        if self._disabled(value, where):
            raise self.refusal(where, "is disabled")
        return where, value

    def components(self, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each component of a list, or of the `transforms` of a Compose, with its place; nothing is followed in it.

        Raises:
            ImportRefused: it is neither, or an expression.
        """
        where, value = self._at(place)
        if isinstance(value, dict) and target(value) == "Compose":
            if "transforms" not in value:
                return
            if value.get("lazy") not in (None, False):
                raise self.refusal(f"{where}{SEPARATOR}lazy", "joins resampling steps into one, which is not done here")
            if unknown := sorted(set(value) - set(_OF_COMPOSE)):
                raise self.refusal(f"{where}{SEPARATOR}{unknown[0]}", "(Compose) is an argument that is not known here")
            if self._disabled(value, where):
                raise self.refusal(where, "is disabled")
            where, value = self._followed(f"{where}{SEPARATOR}transforms", value["transforms"])
        if isinstance(value, dict):
            value = [value]
        elif not isinstance(value, list):
            raise self.refusal(where, f"is {type(value).__name__}, not a list of transforms")
        for number, each in enumerate(value):
            there, component = self._followed(f"{where}{SEPARATOR}{number}", each)
            if not isinstance(component, dict) or "_target_" not in component:
                raise self.refusal(there, "is no component with a _target_")
            if not self._disabled(component, there):
                yield there, component

    def says(self, place: str) -> bool:
        """Whether there is such a key in plain sight, whatever stands there."""
        try:
            self._raw(place, 0)
        except (KeyError, ImportRefused):
            return False
        return True

    def written_at(self, place: str) -> str | None:
        """Where that stands to which a place leads; None if nothing does, or if the way there leads through code.

        Raises:
            ImportRefused: an expression stands at the place itself.
        """
        try:
            where, value = self._raw(place, 0)
        except (KeyError, ImportRefused):
            return None
        there, value = self._followed(where, value)
        return None if value is None else there

    def arguments(self, component: Mapping[str, Any], where: str) -> "Arguments":
        """The arguments of a component."""
        return Arguments(self, component, where)

    def resolved(self, where: str, value: Any) -> Any:
        """A value that stands at a place, with every reference in it followed.

        Raises:
            ImportRefused: see `get`.
        """
        return self._resolved(where, value, 0)

    def text(self, where: str, value: str) -> str:
        """Where references lead, up to an expression, which is handed out as it is written."""
        return str(self._followed(where, value, expressions=True)[1])

    def refusal(self, where: str, what: str) -> ImportRefused:
        """What is said of a place that is refused."""
        return ImportRefused(f"{self._file}: {where} {what}", details={"file": self._file, "key": where})

    def _at(self, place: str, hops: int = 0) -> tuple[str, Any]:
        """What a place leads to, and where that stands. Raises KeyError: there is no such key."""
        return self._followed(*self._raw(place, hops), hops)

    def _raw(self, place: str, hops: int) -> tuple[str, Any]:
        """What stands at a place: references on the way there are followed, one at the place itself is not."""
        owner, found, last = place.replace(_OLD_SEPARATOR, SEPARATOR).rpartition(SEPARATOR)
        where, value = self._at(owner, hops) if found else ("", self._data)
        if isinstance(value, list) and last.isdecimal() and int(last) < len(value):
            value = value[int(last)]
        elif isinstance(value, dict) and last in value:
            value = value[last]
        else:
            raise KeyError(place)
        return f"{where}{SEPARATOR}{last}" if where else last, value

    def _followed(self, where: str, value: Any, hops: int = 0, *, expressions: bool = False) -> tuple[str, Any]:
        """What a reference leads to, and where that stands; any other value as it is."""
        self._left -= 1
        if self._left < 0:
            raise self.refusal(where, f"leads to more than {_MOST_VALUES} values")
        if not isinstance(value, str):
            return where, value
        if value.startswith("$"):
            if expressions:
                return where, value
            raise self.refusal(where, f"is an expression, which is never evaluated: {shown(value)}")
        spelt = value.replace(_OLD_SEPARATOR, SEPARATOR)
        if not spelt.startswith("%") and not _REFERENCE.fullmatch(spelt):
            return where, value
        if _OTHER_FILE.search(spelt):
            raise self.refusal(where, f"is {shown(value)}: another file is not read")
        if hops >= _MOST_HOPS:
            raise self.refusal(
                where, f"is {shown(value)}: it leads to itself, or through more than {_MOST_HOPS} others"
            )
        place = spelt[1:]
        if found := _RELATIVE.fullmatch(spelt):
            above, up = where.split(SEPARATOR), len(found[1]) // len(SEPARATOR)
            if up > len(above):
                raise self.refusal(where, f"is {shown(value)}, which lies outside of the file")
            place = SEPARATOR.join([*above[:-up], found[2]])
        try:
            return self._followed(*self._raw(place, hops + 1), hops + 1, expressions=expressions)
        except KeyError as error:
            raise self.refusal(where, f"is {shown(value)}, and there is no such key") from error

    def _resolved(self, where: str, value: Any, depth: int) -> Any:
        if depth > _MOST_HOPS:
            raise self.refusal(where, f"is nested deeper than {_MOST_HOPS}")
        where, value = self._followed(where, value)
        if isinstance(value, dict):
            return {key: self._resolved(f"{where}{SEPARATOR}{key}", each, depth + 1) for key, each in value.items()}
        if isinstance(value, list):
            inside = [(f"{where}{SEPARATOR}{number}", each) for number, each in enumerate(value)]
            return [
                self._resolved(there, each, depth + 1)
                for there, each in inside
                if not (isinstance(each, dict) and self._disabled(each, there))
            ]
        return value

    def _disabled(self, component: Mapping[str, Any], where: str) -> bool:
        if "_target_" not in component or "_disabled_" not in component:
            return False
        place = f"{where}{SEPARATOR}_disabled_"
        said = self._followed(place, component["_disabled_"])[1]
        if isinstance(said, str):
            said = {"true": True, "false": False}.get(said.strip().lower(), said)
        if not isinstance(said, bool):
            raise self.refusal(place, f"is {shown(said)}, neither true nor false")
        return said


class Arguments:
    """Arguments of one component, each taken once; what nobody has taken is refused at the end."""

    def __init__(self, config: Config, component: Mapping[str, Any], where: str) -> None:
        self.target = target(component)
        self.where = where
        self._config = config
        self._component = component
        self._left = {key for key in component if key not in _OF_COMPONENTS}
        mode = component.get("_mode_", "default")
        if mode != "default":
            raise config.refusal(f"{where}{SEPARATOR}_mode_", f"is {shown(mode)}: only default is read")
        self._left.discard("_mode_")

    def take(self, name: str, default: Any = None) -> Any:
        """An argument with its references followed; the default if it is left out or null.

        Raises:
            ImportRefused: it is an expression.
        """
        self._left.discard(name)
        if self._component.get(name) is None:
            return default
        return self._config.resolved(f"{self.where}{SEPARATOR}{name}", self._component[name])

    def number(self, name: str, default: float | None = None) -> Any:
        """A finite number, or the default.

        Raises:
            ImportRefused: it is an expression, or anything else.
        """
        value = self.take(name, default)
        if value is not None and not is_number(value):
            raise self.refusal(f"is {shown(value)}, not a number", name)
        return value

    def switch(self, name: str, default: bool) -> bool:
        """True or false, and no other value that Python would take for one of them.

        Raises:
            ImportRefused: it is an expression, or anything else.
        """
        return self.only(name, True, False, default=default) is True

    def names(self) -> set[str]:
        """Every text in what was not taken yet.

        Raises:
            ImportRefused: there is an expression in it.
        """
        return {text for name in self._left for text in _texts(self._config.get(f"{self.where}{SEPARATOR}{name}"))}

    def given_null(self, name: str) -> bool:
        """Whether an argument is there, and null."""
        return name in self._component and self.take(name) is None

    def text(self, name: str) -> str:
        """An argument that is only compared with words: expressions are handed out as they are written."""
        self._left.discard(name)
        value = self._component.get(name)
        if isinstance(value, str) and not value.startswith("$"):
            value = self._config.text(f"{self.where}{SEPARATOR}{name}", value)
        return "" if value is None else str(value)

    def written(self, name: str) -> str:
        """An argument as it is written, its reference not followed."""
        self._left.discard(name)
        return str(self._component.get(name, ""))

    def ignore(self, *names: str) -> None:
        """Arguments that change nothing of the answer, whatever they are."""
        self._left.difference_update(names)

    def only(self, name: str, *allowed: Any, default: Any = None) -> Any:
        """An argument that has one of a few values; anything else is refused by name and value.

        Raises:
            ImportRefused: it has not.
        """
        value = self.take(name, default)
        if not any(type(value) is type(each) and value == each for each in allowed):
            raise self.refusal(f"is {shown(value)}; what is known here is {' or '.join(map(str, allowed))}", name)
        return value

    def done(self) -> None:
        """See that every argument was understood.

        Raises:
            ImportRefused: one was not.
        """
        if self._left:
            raise self.refusal("is an argument that is not known here", min(self._left))

    def refusal(self, what: str, name: str = "") -> ImportRefused:
        """What is said of the component, or of an argument of it."""
        where = f"{self.where}{SEPARATOR}{name}" if name else self.where
        return self._config.refusal(where, f"({self.target}) {what}")


def target(component: Mapping[str, Any]) -> str:
    """The last part of a component's `_target_`, where that is MONAI's.

    A bundle's own code keeps its whole name: it may do anything, whatever it is called.

    >>> target({"_target_": "monai.transforms.Compose"})
    'Compose'
    >>> target({"_target_": "scripts.transforms.Spacingd"})
    'scripts.transforms.Spacingd'
    """
    said = component.get("_target_")
    if not isinstance(said, str):
        return ""
    return said.rpartition(".")[2] if said.startswith("monai.") else said


def is_number(value: object) -> bool:
    """Whether it is a finite number; `true` is none.

    >>> is_number(1.5), is_number(True), is_number(float("nan"))
    (True, False, False)
    """
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(each)


def parse(text: bytes, *, file: str) -> dict[str, Any]:
    """A JSON or YAML file as data.

    Raises:
        ImportRefused: it is neither, or no mapping.
    """
    try:
        data = json.loads(text, object_pairs_hook=_once) if file.endswith(".json") else load_plain(text.decode())
    except (ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0][:_SHOWN]
        raise ImportRefused(f"{file} is neither JSON nor plain YAML: {reason}") from error
    if not isinstance(data, dict):
        raise ImportRefused(f"{file} holds {type(data).__name__}, not a mapping")
    return data


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # MONAI refuses them as well
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return found


def shown(value: object) -> str:
    """A value as a file has it, at most 80 characters of it; text in quotes."""
    text = str(value)
    text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return repr(text) if isinstance(value, str) else text
