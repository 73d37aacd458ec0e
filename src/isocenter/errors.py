"""Everything that can go wrong, by the names that programs catch; `isocenter.core.errors` says what they mean."""

from isocenter.core.errors import *  # noqa: F403 - one list of them, which has its home there
