"""Pages of the manual that say what the code says: written from it while the manual is built, never committed."""

import inspect
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

import typer
from fastapi import APIRouter, FastAPI
from in_words import attribute_docs, code, codes, default, first_paragraph, kind, kinds, page, table
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from prometheus_client import Counter, Gauge, Histogram
from pydantic import BaseModel

from isocenter import __version__
from isocenter.api.http.cells_v1_routes import v1_information_routes, v1_segment_routes
from isocenter.api.http.information import model_routes, probe_routes
from isocenter.api.http.jobs import job_routes
from isocenter.api.http.predict import predict_routes
from isocenter.api.http.problems import HTTP_STATUS
from isocenter.api.http.reload import reload_routes
from isocenter.api.http.segment import segment_routes
from isocenter.api.http.stats import stats_routes
from isocenter.cli import main
from isocenter.cli.errors import HINTS, Exit
from isocenter.core import errors
from isocenter.repository.manifest import Manifest
from isocenter.settings import DELIMITER, PREFIX, Group, Settings
from isocenter.telemetry.gauges import engine_gauges, front_gauges
from isocenter.telemetry.metrics import METRICS

ROOT: Final = Path(__file__).resolve().parent.parent

PYTHON: Final[dict[str, tuple[str, ...]]] = {
    "core": (
        "clock", "deadline", "errors", "events", "loop_thread", "turns", "precision", "reply", "request", "tensor",
    ),
    "imaging": (
        "image", "array", "limits", "codecs.raster", "transforms.steps", "transforms.accepts", "transforms.resample",
        "transforms.reference", "transforms.fast", "geometry", "volume",
        "codecs.volume_files", "codecs.volume_parts", "codecs.volume_grid", "codecs.nifti", "codecs.nrrd",
        "codecs.metaimage", "codecs.dicom", "codecs.dicom_values", "codecs.dicom_frames", "codecs.dicom_pixels",
        "codecs.dicom_series", "codecs.slice_track", "codecs.dicom_identifiers", "transforms.arrays.steps",
        "transforms.arrays.pipeline", "transforms.arrays.grid", "transforms.arrays.axes",
        "transforms.arrays.intensity", "transforms.arrays.centres", "transforms.arrays.schemes",
        "transforms.arrays.channels", "sliding.plan", "sliding.weights", "sliding.merge", "sliding.labels",
        "postprocess.activation",
        "postprocess.objects", "postprocess.components", "postprocess.findings", "codecs.nifti_write",
        "codecs.dicom_seg", "codecs.montage", "codecs.released", "postprocess.flood", "postprocess.contours",
        "postprocess.quantities", "codecs.geojson",
        "codecs.coco", "codecs.label_image", "codecs.overlay", "codecs.microscopy", "codecs.ome", "codecs.tiff_pages",
        "codecs.tiff_samples", "codecs.tiff_directory", "codecs.tiff_labels", "large",
        "transforms.arrays.streamed", "transforms.arrays.ahead", "postprocess.seams",
        "phantoms", "phantoms_3d", "phantom_heads", "phantom_lesions", "phantom_planting",
    ),
    "runtimes": ("base", "registry", "devices", "proof", "beside", "onnxruntime", "openvino", "torch"),
    "measure": ("percentiles", "histogram", "recent", "tally"),
    "engine": (
        "protocol", "engine", "batch_policy", "batch_caps", "cost", "admission", "backlog", "doorkeeper", "queue",
        "scheduler", "instance", "instance_group", "warm_up", "memory", "lifecycle", "simulator",
    ),
    "repository": (
        "manifest", "manifest_problems", "layout", "golden", "integrity", "accuracy", "comparison",
        "composite", "sessions", "footprint", "load", "reload", "repository",
    ),
    "serving": (
        "predict", "segment", "volume_memory", "segment_large", "cells", "cell_answer", "scans", "scan_reading",
        "scan_paths", "scan_answer", "segmenters", "calls", "embedded", "cpu_pool", "health", "stats",
        "given", "memory_watch", "budget", "arriving", "parameters", "jobs.job", "jobs.store", "jobs.database",
        "jobs.files", "jobs.jobs", "jobs.runner", "jobs.scan_jobs", "jobs.news", "jobs.room",
    ),
    "client": ("asynchronous", "synchronous", "answers", "patience", "errors"),
}  # fmt: skip
"""The packages that the Python reference shows, with their modules."""

ONLY_AT_THE_EDGE: Final = {
    "forbidden": "Not from this address, or not on this server.",
    "not_found": "There is nothing at this path.",
    "method_not_allowed": "The path exists, the method does not.",
    "internal": "An unexpected error: a bug. The answer and the log carry the request id.",
}
ONLY_ON_THE_COMMAND_LINE: Final = {
    "unreadable_file": "The file cannot be read.",
    "unwritten_file": "The image was answered, and the results cannot be written.",
    "no_connection": "`--url`: the connection to the server failed.",
    "not_an_answer": "`--url`: what came back is not what a server of this version writes.",
    "http_502": "`--url`: that status, without an answer of Isocenter. The number is the status.",
}
PLAIN_EXITS: Final = {"DONE": "Everything is well.", "BUG": "An unexpected error.", "INTERRUPTED": "Ctrl-C."}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """MkDocs asks for the list of pages: add those that are written here."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """Every generated page, by its path in the manual."""
    written: dict[str, Callable[[], str]] = {
        "reference/http.md": http_page,
        "reference/errors.md": errors_page,
        "reference/settings.md": settings_page,
        "reference/metrics.md": metrics_page,
        "reference/command-line.md": command_line_page,
        "reference/manifest.md": manifest_page,
    }
    found = {path: write() for path, write in written.items()}
    found |= {f"reference/python/{package}.md": python_page(package) for package in PYTHON}
    for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY"):
        found[f"project/{name.lower()}.md"] = (ROOT / f"{name}.md").read_text(encoding="utf-8")
    for card in ROOT.glob("models/*/*/MODEL_CARD.md"):
        found[f"models/{card.parts[-3]}.md"] = card.read_text(encoding="utf-8")
    return found


def settings_page() -> str:
    """Every variable that the server reads."""
    rows: list[tuple[str, ...]] = []
    for group, prefix in _groups():
        meanings, ranges = attribute_docs(group), kinds(group)
        rows += [
            (code(f"{prefix}{name}".upper()), default(field.default), ranges[name], meanings.get(name, ""))
            for name, field in group.model_fields.items()
            if not isinstance(field.default, Group)
        ]
    return page(
        "Settings",
        "Read once, at the start, from the environment. A misspelt variable is an error that names its nearest "
        "relative, and so is a value out of range. Options of `isocenter serve` win over variables.",
        table(("variable", "default", "range", "meaning"), rows),
    )


def errors_page() -> str:
    """Every code with its status, and where it stands in the tree."""
    owners = {each.code: each for each in _subclasses(errors.IsocenterError)}
    rows = [
        (
            code(each),
            str(status),
            code(owners[each].__name__) if each in owners else "",
            first_paragraph(owners[each]) if each in owners else ONLY_AT_THE_EDGE[each],
        )
        for each, status in HTTP_STATUS.items()
    ]
    tree = "\n".join(line for line in (errors.__doc__ or "").splitlines() if line.startswith("    "))
    return page(
        "Errors",
        'Every answer that is not 2xx has the body `{"error": {"code", "message", "details"}}`. The code is '
        "stable; the message is one sentence with the measured value and the limit; the details hold the same for "
        "programs. `Retry-After` (whole seconds) stands in the header, and `retry_after_s` in the details, where "
        "coming back later helps.",
        table(("code", "HTTP status", "class in `isocenter.core.errors`", "meaning"), rows),
        "## The tree",
        "```text\n" + textwrap.dedent(tree).strip("\n") + "\n```",
        "## Only on the command line",
        table(("code", "meaning"), ((code(each), text) for each, text in ONLY_ON_THE_COMMAND_LINE.items())),
        "## What the command line advises",
        table(("code", "advice"), ((code(each), hint) for each, hint in HINTS.items())),
    )


def metrics_page() -> str:
    """Every series of `/metrics` that is ours."""
    words = {Counter: "counter", Gauge: "gauge", Histogram: "histogram"}
    rows = [(code(name), words[sort], codes(labels), text) for name, (sort, text, labels) in METRICS.items()]
    nothing: Any = None  # the gauges are only named here, never read
    front = front_gauges(**dict.fromkeys(inspect.signature(front_gauges).parameters, nothing))
    live = (*engine_gauges(nothing), *front)
    rows += [(code(gauge.name), "gauge, read at scrape time", "", gauge.help) for gauge in live]
    return page(
        "Metrics",
        "`GET /metrics` answers in the format that Prometheus reads. Units are base units and stand in the names. "
        "Labels never hold anything of a request but its outcome. Warm-up is not counted. The series `process_*` and "
        "`python_info` of the Prometheus client stand beside these.",
        table(("name", "kind", "labels", "meaning"), rows),
    )


def command_line_page() -> str:
    """Every command with its arguments and options."""
    parts: list[str] = []
    root: Any = typer.main.get_command(main.app)
    hints = {each.name: get_type_hints(each.callback) for each in main.app.registered_commands if each.callback}
    for name, command in root.commands.items():
        spelt = {each: _spelling(each, hints[name].get(each.name)) for each in command.params}
        usage = " ".join(("isocenter", name, *(s if each.required else f"[{s}]" for each, s in spelt.items())))
        rows = [(code(spelling), _option_default(each), each.help or "") for each, spelling in spelt.items()]
        parts += [f"## isocenter {name}", inspect.cleandoc(command.help or ""), f"```text\n{usage}\n```"]
        parts.append(table(("option", "default", "meaning"), rows) if rows else "")
    meanings = PLAIN_EXITS | attribute_docs(Exit)
    return page(
        "Command line",
        "Answers go to stdout, progress and errors to stderr. `--debug` shows the whole trace of an error, wherever "
        "it stands; `-h` explains a command.",
        *parts,
        "## Exit codes",
        table(("code", "name", "meaning"), ((str(int(each)), each.name, meanings[each.name]) for each in Exit)),
    )


def manifest_page() -> str:
    """Every key of `model.yaml`."""
    parts = [_keys(Manifest)]
    for name, field in Manifest.model_fields.items():
        models = list(_models_in(field.annotation))
        if models:
            parts.append(f"## {name}")
        for model in models:
            parts += [
                "" if (title := model.__name__.removesuffix("Part")).lower() == name else f"### {title}",
                first_paragraph(model),
                _keys(model),
            ]
    return page(
        "Manifest",
        "`model.yaml`, key by key. It is plain data: nothing in it is evaluated, and an unknown key is an error that "
        "names its nearest relative. [A model is a folder](../concepts/model-package.md) tells the story.",
        *parts,
    )


def http_page() -> str:
    """Every route with its parameters and answers, and the shapes of the JSON."""
    described = _openapi()
    parts: list[str] = []
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            parts += [f"## {method.upper()} {path}", route.get("description", "")]
            given = [(code(each["name"]), each["in"], each.get("description", "")) for each in _parameters(route)]
            parts.append(table(("parameter", "in", "meaning"), given) if given else "")
            answers = sorted({_answer(status, answer) for status, answer in route["responses"].items()})
            parts.append(table(("status", "body"), answers))
    parts.append("## Shapes")
    for name, shape in described["components"]["schemas"].items():
        if name.endswith("Shape"):
            rows = [(code(key), kind(each), each.get("description", "")) for key, each in shape["properties"].items()]
            parts += [f"### {name}", shape.get("description", ""), table(("key", "type", "meaning"), rows)]
    return page(
        "HTTP",
        "The server describes itself at `/docs` and `/openapi.json`. `X-Request-ID` is echoed, or made. Every answer "
        "that is not 2xx has the shape `ProblemShape`; its codes stand under [Errors](errors.md).",
        *parts,
    )


def python_page(package: str) -> str:
    """Directives that mkdocstrings turns into the reference of one package."""
    return page(f"isocenter.{package}", *(f"::: isocenter.{package}.{module}" for module in PYTHON[package]))


def _groups() -> Iterator[tuple[type[BaseModel], str]]:
    yield Settings, PREFIX
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, Group):
            yield type(field.default), f"{PREFIX}{name}{DELIMITER}"


def _subclasses(owner: type[errors.IsocenterError]) -> Iterator[type[errors.IsocenterError]]:
    yield owner
    for each in owner.__subclasses__():
        yield from _subclasses(each)


def _spelling(option: Any, hint: Any) -> str:
    if option.param_type_name == "argument":
        return str(option.metavar or option.name.upper())
    choices = "|".join(map(str, get_args(hint))) if get_origin(hint) is Literal else ""
    return " ".join((", ".join(option.opts), option.metavar or choices)).strip()


def _option_default(option: Any) -> str:
    if option.required:
        return "required"
    return "" if option.default in (None, False) else code(option.default)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model class inside an annotation, outermost first; one that is used twice comes once."""
    found: dict[type[BaseModel], None] = {}

    def walk(each: Any) -> None:
        if not (isinstance(each, type) and issubclass(each, BaseModel)):
            for inner in get_args(each):
                walk(inner)
        elif each not in found:
            found[each] = None
            for field in each.model_fields.values():
                walk(field.annotation)

    walk(annotation)
    yield from found


def _keys(model: type[BaseModel]) -> str:
    meanings, types = attribute_docs(model), kinds(model)
    rows = []
    for name, field in model.model_fields.items():
        key = field.alias or name
        standard = "required" if field.is_required() else default(field.get_default(call_default_factory=True))
        rows.append((code(key), types[key], standard, field.description or meanings.get(name, "")))
    return table(("key", "type", "default", "meaning"), rows)


def _openapi() -> dict[str, Any]:
    """The description of every route."""
    described = FastAPI(title="Isocenter", version=__version__)
    cells = (segment_routes, v1_segment_routes, v1_information_routes)
    for routes in (predict_routes, *cells, probe_routes, model_routes, stats_routes, reload_routes, job_routes):
        described.include_router(_unbound(routes))
    return described.openapi()


def _unbound(routes: Callable[..., APIRouter]) -> APIRouter:
    """Routes bound to nothing: they are only described."""
    return routes(**dict.fromkeys(inspect.signature(routes).parameters))


def _parameters(route: dict[str, Any]) -> list[dict[str, Any]]:
    bodies: list[dict[str, Any]] = []
    for media, content in route.get("requestBody", {}).get("content", {}).items():
        fields = content["schema"].get("properties", {})
        for name, each in fields.items():
            meaning = each.get("description", f"The image; one of {len(fields)}.")
            bodies.append({"name": name, "in": media, "description": meaning})
        if not fields:
            bodies.append({"name": "(the body)", "in": media, "description": "The image itself."})
    return [*bodies, *route.get("parameters", [])]


def _answer(status: str, answer: dict[str, Any]) -> tuple[str, str]:
    contents: dict[str, dict[str, Any]] = answer.get("content") or {"text/plain": {}}
    media, content = next(iter(contents.items()))
    said = kind(content["schema"]) if content.get("schema") else media
    if "HTTPValidationError" in said:  # the framework's own words for what is answered as `bad_request` here
        return "400", kind({"$ref": "ProblemShape"})
    return status, said
