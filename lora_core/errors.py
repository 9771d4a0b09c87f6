"""The one exception that means: the input is wrong, and here is how to mend it."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input. Its text is one to three lines: what, where, found, expected, near matches.

    Commands print it without a traceback and exit with 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's text; its type's name where there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def near(word: str, known: Iterable[str]) -> str:
    """` Did you mean a, b?` for the known words nearest to `word`, or an empty string."""
    matches = get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f" Did you mean {', '.join(matches)}?" if matches else ""
