"""From an error to one red sentence, a way out, and an exit code."""

from enum import IntEnum
from typing import Final

from isocenter.core.errors import IsocenterError


class Exit(IntEnum):
    """What a shell is told."""

    DONE = 0
    NOT_ALL = 1
    """It ran, and not everything was well: a file refused, a proof failed, a request left unanswered."""
    WRONG = 2
    """It could not run: usage, settings, a model that is not what it claims to be."""
    BUG = 3
    INTERRUPTED = 130


class Hopeless(Exception):
    """A command cannot begin; the sentence says why and the hint says what to do."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


HINTS: Final[dict[str, str]] = {
    "bad_manifest": "--models DIR names the repository; isocenter models lists it; isocenter check MODEL proves one",
    "digest_mismatch": "put the right weights back, or name the new sha256 in model.yaml if they are meant to change",
    "golden_mismatch": "isocenter check MODEL shows how far it is off; export again, or look at the runtime's version",
    "batch_variance": "export the model in evaluation mode and with a dynamic batch axis",
    "unmeasured_precision": "isocenter difference MODEL --against fp32 --images FOLDER measures it",
    "gate_missed": "a precision closer to fp32, other calibration images, or a wider gate in model.yaml",
    "reload_refused": "isocenter check MODEL shows what is wrong with the new version",
    "import_refused": "isocenter import --help; docs/importing.md says what is read and what is refused",
    "missing_extra": "isocenter doctor lists what is installed and what each extra brings",
    "bad_settings": "isocenter serve --help lists the options; each ISOCENTER_* variable is checked as well",
    "unknown_model": "isocenter models lists what is there; --models names another repository",
    "unknown_version": "isocenter models lists the versions; without --version the highest one is taken",
    "bad_request": "name one with --model NAME",
}


def explain(error: Exception, *, message: str | None = None, hint: str | None = None) -> Exit:
    """Say on stderr what went wrong and what to do about it; give the exit code that belongs to it."""
    from rich.text import Text

    from isocenter.cli.console import err, one_line

    if isinstance(error, IsocenterError):
        message, hint = message or error.message, hint or HINTS.get(error.code, "")
        code = Exit.WRONG
    elif isinstance(error, Hopeless):
        message, hint = message or str(error), hint or error.hint
        code = Exit.WRONG
    elif message:
        code = Exit.WRONG
    elif isinstance(error, OSError) and error.strerror:  # a name too long, a folder that may not be read
        where = f"{error.filename}: " if error.filename is not None else ""
        message, code = f"{where}{error.strerror}", Exit.WRONG
    else:
        message = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")
        message, hint = f"unexpected {message}; this is a bug", "the same command with --debug for the trace"
        code = Exit.BUG
    console = err()
    said = "\n".join(map(one_line, message.split("\n")))  # it may quote what somebody typed or a file holds
    console.print(Text(f"error: {said}", style="red"), soft_wrap=True)
    if hint:
        console.print(Text(f"→ try: {hint}", style="dim"), soft_wrap=True)
    return code
