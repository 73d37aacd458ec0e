"""Isocenter serves medical-image models inside a deadline, tunes them without changing the answer, and proves it.

`from isocenter import Service` brings it into a Python program. What is named here is imported when it is first asked
for, so that `import isocenter` costs nothing; types are in the stub beside this file.
"""

import importlib

__version__ = "0.1.0"

_SERVICE = ("Answer", "Service", "SyncService")

__all__ = [
    "Answer",
    "BadInput",
    "DeadlineExceeded",
    "Draining",
    "IsocenterError",
    "ModelFault",
    "NotReady",
    "Overloaded",
    "Refused",
    "Service",
    "SetupError",
    "SyncService",
    "UnknownModel",
    "__version__",
    "errors",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # By name, not by an import statement: the floors below import this package for its version.
    home = importlib.import_module("isocenter.service" if name in _SERVICE else "isocenter.errors")
    found = globals()[name] = home if name == "errors" else getattr(home, name)
    return found


def __dir__() -> list[str]:
    return __all__
