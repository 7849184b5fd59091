"""A dataclass from flags, by tyro, with its errors in one line."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import shlex
import sys
from typing import TYPE_CHECKING, Any

import tyro

if TYPE_CHECKING:
    from collections.abc import Sequence

RULE = "────"  # a line of it separates the paragraphs of tyro's error boxes
HELP_TEXT = "│" + 9 * " "  # how its lines begin in the boxes
CHATTER = ("For full helptext", "Argument helptext")  # paragraphs that a one-line error leaves out


def read(wanted: Any, program: str, args: Sequence[str], more: str = "") -> Any | None:
    """A dataclass from flags; None after help.

    Args:
        wanted: The dataclass.
        program: What to call it in its help.
        args: Flags.
        more: What to say at the end of an error.

    Raises:
        ValueError: If the flags are wrong, in one line.
    """
    errors = io.StringIO()
    # tyro frames its errors with what standard output can show, and `one_line` knows one kind of frame
    shown = None if "-h" in args or "--help" in args else io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(shown or sys.stdout):
            return tyro.cli(wanted, args=args, prog=program)
    except SystemExit as stop:
        if not stop.code:
            return None
    raise ValueError(f"{one_line(errors.getvalue())}{_dashed(errors.getvalue(), args)}{more}")


def _dashed(error: str, args: Sequence[str]) -> str:
    """What to do if the value that a flag is said to miss is there, but begins with a dash as flags do."""
    for flag, value in itertools.pairwise(args):
        if f"Missing value for argument '{flag}'" in error and value.startswith("-") and not value.startswith("--"):
            return f" A value that begins with - is given as {flag}={shlex.quote(value)}"
    return ""


def one_line(box: str) -> str:
    """What an error box of tyro says, without its frame, its help texts and its pointers to more help."""
    paragraphs: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│ ")
        if line.startswith(("╭", "╰")) or line.startswith(HELP_TEXT):
            continue
        if RULE in text:
            paragraphs.append([])
        elif text:
            paragraphs[-1].append(text)
    said = "; ".join(" ".join(p) for p in paragraphs if p and not p[0].startswith(CHATTER))
    said = re.sub(r"^Error parsing [^-:][^:]*: ", "", said)  # a field's own check says which field it means
    return said.replace("'options.", "'") or "wrong arguments"
