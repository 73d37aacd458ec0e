"""The sheet of a cohort: one page with every scan's montage, which needs nothing but itself and the pictures beside it.

Sorting needs no script: every tile carries its place in each order, and the chosen button says which of them counts.
"""

import os
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, Final
from urllib.parse import quote

from isocenter.cli.cohort_rows import Row, summary

_ORDERS: Final[tuple[tuple[str, str, Callable[[Row], Any]], ...]] = (
    ("path", "path", lambda row: (row.path, row.series or 0)),
    ("volume", "largest volume first", lambda row: -_or(row.volume_ml)),
    ("probability", "most probable first", lambda row: -_or(row.probability)),
    ("lesions", "most lesions first", lambda row: -len(row.lesions or ())),
    ("state", "not answered first", lambda row: row.state == "answered"),
    ("seconds", "slowest first", lambda row: -_or(row.seconds)),
)
_STYLE: Final = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { margin: 1.5rem; } h1 { font-size: 1.3rem; margin: 0 0 .3rem; } p { margin: .3rem 0 1rem; }
table { border-collapse: collapse; margin: 0 0 1.2rem; } td, th { text-align: left; padding: .15rem .8rem .15rem 0; }
input { position: absolute; opacity: 0; }
label { display: inline-block; padding: .1rem .6rem; margin: 0 .3rem .8rem 0; border: 1px solid; border-radius: 1rem; }
label { cursor: pointer; opacity: .65; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
article { border: 1px solid color-mix(in srgb, currentColor 25%, transparent); border-radius: .5rem; padding: .6rem; }
article { overflow-wrap: anywhere; }
article img { width: 100%; height: 14rem; object-fit: contain; background: #000; border-radius: .3rem; }
.present { color: #c2410c; } .bad { color: #dc2626; } .dim { opacity: .7; font-size: .87rem; }
"""


def sheet_html(rows: Sequence[Row], *, title: str, model: str) -> str:
    """The page; links are relative to the folder of the results."""
    places = {name: _places(rows, key) for name, _, key in _ORDERS}
    tiles = [
        _tile(row, "; ".join(f"--{name}:{places[name][number]}" for name, _, _ in _ORDERS))
        for number, row in enumerate(rows)
    ]
    sorting = "".join(
        f"#by-{name}:checked ~ main article {{ order: var(--{name}); }}\n"
        f"#by-{name}:checked ~ label[for=by-{name}] {{ opacity: 1; font-weight: 600; }}\n"
        f"#by-{name}:focus-visible ~ label[for=by-{name}] {{ outline: 2px solid; }}\n"
        for name, _, _ in _ORDERS
    )
    buttons = [
        f'<input type="radio" name="by" id="by-{name}"{" checked" if not at else ""}>'
        for at, (name, _, _) in enumerate(_ORDERS)
    ]
    labels = [f'<label for="by-{name}">{escape(said)}</label>' for name, said, _ in _ORDERS]
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}{sorting}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            f"<p>{escape(summary(rows))}. Model: {escape(model)}. For research, not for diagnosis. "
            'Tables: <a href="results.csv">results.csv</a>, <a href="lesions.csv">lesions.csv</a>.</p>',
            _failures(rows),
            *buttons,
            *labels,
            "<main>",
            *tiles,
            "</main></body></html>",
            "",
        )
    )


def _or(value: float | None) -> float:
    return -1.0 if value is None else value


def _places(rows: Sequence[Row], key: Callable[[Row], Any]) -> list[int]:
    """The place of each row in an order; equals keep theirs."""
    places = [0] * len(rows)
    for place, number in enumerate(sorted(range(len(rows)), key=lambda number: key(rows[number]))):
        places[number] = place
    return places


def _failures(rows: Sequence[Row]) -> str:
    bad = [row for row in rows if row.state in ("refused", "failed")]
    if not bad:
        return ""
    lines = "".join(
        f"<tr><td>{escape(row.name)}</td><td class=bad>{escape(row.code)}</td><td>{escape(row.message)}</td></tr>"
        for row in bad
    )
    return f"<table><tr><th>not answered</th><th>code</th><th>why</th></tr>{lines}</table>"


def _tile(row: Row, places: str) -> str:
    montage = row.written.get("montage")
    picture = ""
    if montage is not None:
        link = _link(montage)
        picture = f'<a href="{link}"><img loading="lazy" src="{link}" alt="montage of {escape(row.name)}"></a>'
    links = " ".join(
        f'<a href="{_link(name)}">{escape(form)}</a>' for form, name in row.written.items() if form != "montage"
    )
    return (
        f'<article style="{places}">{picture}<div>{escape(row.name)}</div>{_said(row)}'
        f"<div class=dim>{escape(_details(row))}</div><div class=dim>{links}</div></article>"
    )


def _said(row: Row) -> str:
    if row.state in ("refused", "failed"):
        return f"<div class=bad>{escape(row.state)}: {escape(row.code)}</div><div class=dim>{escape(row.message)}</div>"
    if row.state == "waiting":
        return "<div class=dim>waiting</div>"
    parts = [row.finding]
    parts += [f"{row.probability:.3f}"] if row.probability is not None else []
    parts += [f"{row.volume_ml:.2f} ml"] if row.volume_ml is not None else []
    parts += [f"{len(row.lesions)} lesion{'s' if len(row.lesions) != 1 else ''}"] if row.lesions is not None else []
    kind = " class=present" if row.present else ""
    return f"<div{kind}>{escape(' · '.join(part for part in parts if part))}</div>"


def _details(row: Row) -> str:
    spacing = " x ".join(f"{mm:.4g}" for mm in row.spacing_mm)
    parts = (
        f"{spacing} mm" if spacing else "",
        f"{row.seconds:.1f} s" if row.seconds is not None else "",
        *row.warnings,
    )
    return " · ".join(part for part in parts if part)


def _link(name: str) -> str:
    """A relative link, by the bytes of a name: it may hold anything that a file system takes."""
    return "./" + quote(os.fsencode(name), safe="/")
