"""A bundle's configuration is data: references are followed inside of the file, code is refused where it matters."""

from typing import Any

import pytest

from isocenter.core.errors import ImportRefused
from isocenter.importers.monai_config import Config, parse


def config(**data: Any) -> Config:
    return Config(data, file="configs/inference.json")


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


REFERENCES = {
    "a key": ({"a": 1, "b": "@a"}, "b", 1),
    "inside of a list": ({"a": {"c": [5, 6]}, "b": ["@a::c::1"]}, "b", [6]),
    "the old separator": ({"a": {"c": [5, 6]}, "b": "@a#c#0"}, "b", 5),
    "through another reference": ({"a": "@c", "b": "@a::x", "c": {"x": 3}}, "b", 3),
    "a macro": ({"a": {"x": "@c"}, "b": "%a", "c": 2}, "b", {"x": 2}),
    "the same level": ({"a": {"x": 4, "y": "@#x"}}, "a::y", 4),
    "the level above": ({"x": 7, "a": {"y": "@##x"}}, "a", {"y": 7}),
    "no reference": ({"a": 1, "b": "mail@a"}, "b", "mail@a"),
    "a disabled part of a list": ({"a": [{"_target_": "X", "_disabled_": "@off"}, 1], "off": True}, "a", [1]),
}


@pytest.mark.parametrize(("data", "place", "expected"), REFERENCES.values(), ids=REFERENCES)
def test_references_are_followed(data: dict[str, Any], place: str, expected: Any) -> None:
    assert Config(data, file="f.json").get(place) == expected


REFUSALS = {
    "an expression": (
        {"a": "$print(1)"},
        "a",
        r"f\.json: a is an expression, which is never evaluated: '\$print\(1\)'",
    ),
    "an expression behind a reference": ({"a": {"x": "@b"}, "b": "$1 + 1"}, "a", "b is an expression"),
    "an expression in a list": ({"a": [1, ["$2"]]}, "a", "a::1::0 is an expression"),
    "a reference to nothing": ({"a": "@b::c"}, "a", "a is '@b::c', and there is no such key"),
    "a circle": ({"a": "@b", "b": "@a"}, "a", "leads to itself"),
    "a circle on the way": ({"a": "@a::b"}, "a", "leads to itself"),
    "out of the file": ({"a": {"b": "@####c"}}, "a", "outside of the file"),
    "another file": ({"a": "%configs/other.json::b"}, "a", "another file is not read"),
    "a long text": ({"a": "$" + "x" * 500}, "a", rf"'\${'x' * 79}…'$"),
    "deep": ({"a": nested(80)}, "a", "deeper than 64"),
    "a doubtful switch": ({"a": [{"_target_": "X", "_disabled_": "perhaps"}]}, "a", "_disabled_ is 'perhaps'"),
}


@pytest.mark.parametrize("file", ["a.json", "a.yaml"])
def test_a_key_that_stands_twice_is_refused(file: str) -> None:
    with pytest.raises(ImportRefused, match="stands there twice"):
        parse(b'{"a": 1, "b": {"c": 1, "c": 2}}', file=file)


@pytest.mark.parametrize(("data", "place", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_is_no_plain_data_is_refused(data: dict[str, Any], place: str, message: str) -> None:
    with pytest.raises(ImportRefused, match=message):
        Config(data, file="f.json").get(place)


def test_references_that_multiply_are_cut_off() -> None:
    data: dict[str, Any] = {"level0": [1] * 10}
    data |= {f"level{n}": [f"@level{n - 1}"] * 10 for n in range(1, 12)}

    with pytest.raises(ImportRefused, match="leads to more than 100000 values"):
        Config(data, file="f.json").get("level11")


def test_only_what_is_asked_for_is_looked_at() -> None:
    found = config(device="$torch.device('cuda')", a={"b": 1})

    assert found.get("a") == {"b": 1}
    assert "nothing" not in found
    assert found.get("nothing", 3) == 3


def test_components_come_with_their_places() -> None:
    found = config(
        extra={"_target_": "B"},
        list={
            "_target_": "monai.transforms.Compose",
            "transforms": [{"_target_": "A", "_disabled_": True}, "@extra", {"_target_": "C"}],
        },
    )

    assert [(where, each["_target_"]) for where, each in found.components("list")] == [
        ("extra", "B"),
        ("list::transforms::2", "C"),
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [("$[1] + [2]", "is an expression"), (3, "not a list of transforms"), ([{"keys": "x"}], "no component")],
)
def test_a_list_of_transforms_is_one(value: Any, message: str) -> None:
    with pytest.raises(ImportRefused, match=message):
        list(config(list=value).components("list"))


def test_lazy_resampling_is_refused() -> None:
    with pytest.raises(ImportRefused, match="list::lazy joins resampling steps"):
        list(config(list={"_target_": "Compose", "transforms": [], "lazy": True}).components("list"))


def test_an_argument_that_nobody_knows_is_refused_by_name() -> None:
    args = config().arguments({"_target_": "Spacingd", "keys": "image", "pixdim": [1], "spice": 2}, "steps::4")
    args.take("keys")
    args.take("pixdim")

    with pytest.raises(ImportRefused, match=r"steps::4::spice \(Spacingd\) is an argument that is not known here"):
        args.done()


def test_a_callable_that_is_not_called_is_refused() -> None:
    with pytest.raises(ImportRefused, match="_mode_ is 'callable'"):
        config().arguments({"_target_": "Lambdad", "_mode_": "callable"}, "steps::0")


@pytest.mark.parametrize(
    ("text", "file"),
    [
        (b"{", "a.json"),
        (b"[1]", "a.json"),
        (b"a: !!python/object/apply:os.system ['true']", "a.yaml"),
        (b"a: [", "a.yml"),
    ],
)
def test_a_file_that_is_no_plain_mapping_is_refused(text: bytes, file: str) -> None:
    with pytest.raises(ImportRefused, match=file):
        parse(text, file=file)
