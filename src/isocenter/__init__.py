"""Isocenter serves medical-image models inside a deadline, tunes them without changing the answer, and proves it."""

__version__ = "0.1.0"

__all__ = ["__version__"]
