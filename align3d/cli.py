"""The command line: finds the command, turns the outcome into an exit code.

It reads the environment: torchrun's variables and ALIGN3D_TRACEBACK. The only others that do are rewards/endpoint.py,
for addresses and their keys, and scenes/raster/compile.py, for the place of the user's cache.
Exit codes: 0 done, 2 bad input or more than memory holds (one line on standard error: what, got, remedy), 1 failure,
130 interrupted, 143 terminated. Of several processes that torchrun started, one says why they end.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
import warnings
from contextlib import ExitStack, contextmanager, redirect_stdout
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align3d import __version__, registry
from align3d.commands import COMMANDS
from align3d.files import WriteError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from align3d.peers import Ending, Peers

    Parsed = tuple[str, Any, dict[str, Any]]  # a command's name, its options, its parts

# What a user's input can cause. A bug may raise them too: ALIGN3D_TRACEBACK=1 shows where they come from.
USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
NO_MEMORY = "can't allocate memory"  # what torch says on the CPU, in a plain RuntimeError
LEANER = {  # option -> words that lower it, for a value that is not 1; at 1 it has given all it can
    "loop.batch_size": "--loop.batch-size {half} --loop.accumulate {twice}",
    "batch_size": "--batch-size {half}",
    "model.recompute": "--model.recompute",
    "model.decode_rows": "--model.decode-rows 1",
    "method.scenes": "--method.scenes 1",
    "method.chunk": "--method.chunk 1",
    "size": "--size {half}",
    "offload": "--offload",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        return _together(args)
    parsed = None
    try:
        parsed = _parse(args)
        _run(parsed)
    except BrokenPipeError:  # the reader of our output has gone, as in `align3d list rewards | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains again at its end
    except BaseException as error:
        code, line = _outcome(error, parsed)
        if code is None or (code == 2 and os.environ.get("ALIGN3D_TRACEBACK")):
            raise
        print(line, file=sys.stderr)
        return code
    return 0


def _together(args: list[str]) -> int:
    """Run one command in one of several processes; they end together, and one of them says why."""
    from align3d import distributed
    from align3d.peers import Ending, Peers

    try:
        peers = Peers.join(os.environ)
    except ValueError as error:
        print(_outcome(error)[1], file=sys.stderr)
        return 2
    with ExitStack() as stack:
        if peers.rank:  # what is written for people to read is the same in all
            stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        signal.signal(signal.SIGTERM, lambda kind, _: sys.exit(128 + kind))  # as Ctrl-C, in good order
        parsed = None
        try:
            parsed = _parse(args)
            if parsed is not None:
                _meet(parsed, peers)
            _run(parsed)
            ending = Ending(0, "", "together")
        except BaseException as error:
            ending = _ending(error, peers, parsed)
        code = peers.leave(ending, between=lambda: distributed.stop(failed=True))
    if not distributed.stop(failed=ending.kind != "together"):
        sys.stderr.flush()
        os._exit(code)
    return code


def _meet(parsed: Parsed, peers: Peers) -> None:
    """Have the processes of a command work together; refuses a command that cannot."""
    from align3d import distributed

    name, options, _ = parsed
    if not getattr(options, "many_processes", False):
        raise ValueError(f"`align3d {name}` runs in one process, got {peers.world}; start it without torchrun")
    if hasattr(options, "resume"):
        goes_on = f"; the same command with --resume goes on from the last checkpoint in {options.out}"
        peers.remedy = lambda: goes_on if (options.out / "checkpoints").is_dir() else ""
    distributed.start(os.environ, peers.store, cpu=getattr(options, "device", None) == "cpu")


def _ending(error: BaseException, peers: Peers, parsed: Parsed | None) -> Ending:
    """How one of several processes ends, by an exception."""
    from align3d.distributed import PeerError
    from align3d.interrupts import Interrupted
    from align3d.peers import Ending

    code, line = _outcome(error, parsed)
    refused = code == 2 and not _out_of_memory(error)  # before any work, by all processes alike
    if isinstance(error, SystemExit):
        return Ending(143 if error.code == 143 else 1, "align3d: terminated", "echo")
    if isinstance(error, KeyboardInterrupt):
        return Ending(code or 1, line, "together" if isinstance(error, Interrupted) else "echo")
    if isinstance(error, PeerError):
        return Ending(1, line + peers.remedy(), "echo")
    trace = traceback.format_exc() if code is None or os.environ.get("ALIGN3D_TRACEBACK") else ""
    if peers.rank or not refused:
        line = line.replace("error: ", f"error: rank {peers.rank} of {peers.world}: ", 1)
    return Ending(code or 1, trace + line + ("" if refused else peers.remedy()), "fault")


def _outcome(error: BaseException, parsed: Parsed | None = None) -> tuple[int | None, str]:
    """An exception of a command as exit code and line; no code if it is a bug, and worth a traceback."""
    message = _describe(error)
    if isinstance(error, KeyboardInterrupt):
        said = f": {error}" if str(error) else ""
        return getattr(error, "code", 130), f"align3d: {getattr(error, 'word', 'interrupted')}{said}"
    if _out_of_memory(error):
        flags = leaner(parsed)
        help_ = f"try {', or '.join(flags)}" if flags else "give it less to do"
        return 2, f"align3d: error: out of memory ({message[:200]}); {help_}"
    if isinstance(error, (FloatingPointError, WriteError)):  # NaN, or a full disk: a traceback would add nothing
        return 1, f"align3d: error: {message}"
    if isinstance(error, USER_ERRORS):
        return 2, f"align3d: error: {message}"
    return None, f"align3d: error: {type(error).__name__}: {message}"


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory was asked for that there is not, on the CPU or on a GPU."""
    named = type(error).__name__ == "OutOfMemoryError"  # torch's, which would have to be imported
    return isinstance(error, MemoryError) or named or NO_MEMORY in str(error)


def leaner(parsed: Parsed | None) -> list[str]:
    """The flags with which a command would need less memory: those of LEANER that it has, and that are not at 1."""
    found = []
    name, options, chosen = parsed or ("", None, {})
    for option, words in LEANER.items():
        part, _, field = option.rpartition(".")
        if (field == "recompute" and name != "train") or (part == "model" and name == "embed"):
            continue  # without gradients there is nothing to recompute; the text encoder is no denoiser
        value = getattr(chosen.get(part) if part else options, field, 1)
        if isinstance(value, int) and value != 1:
            twice = 2 * getattr(chosen.get(part), "accumulate", 1)
            found.append(words.format(half=max(1, value // 2), twice=twice))
    return found


def _parse(args: list[str]) -> Parsed | None:
    """The command's name, its options and its parts; None if help was asked for, and given."""
    if args[:1] == ["help"] and len(args) > 1:
        args = [*args[1:], "--help"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return None
    if args[0] == "--version":
        print(f"align3d {__version__}")
        return None
    name, *rest = args
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(COMMANDS)}"
        raise ValueError(f"unknown command {name!r}; {hint} (`align3d --help` says what each does)")
    options_class = registry.load(COMMANDS, name, "command")

    from align3d.commands.flags import parse

    parsed = parse(options_class, name, rest)
    return None if parsed is None else (name, *parsed)


def _run(parsed: Parsed | None) -> None:
    """Run a command that was understood."""
    if parsed is not None:
        _, options, chosen = parsed
        with _plain_warnings():
            importlib.import_module(type(options).__module__).run(options, **chosen)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Within, what this package warns of is a line like its errors."""
    usual = warnings.formatwarning

    def plain(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> str:
        if category is RuntimeWarning and Path(filename).is_relative_to(Path(__file__).parent):
            return f"align3d: warning: {message}\n"
        return usual(message, category, filename, *rest)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = usual


def overview() -> str:
    """The commands, one line each."""
    rows = []
    for name in COMMANDS:
        summary = (registry.load(COMMANDS, name, "command").__doc__ or "").strip().splitlines()[0]
        rows.append(f"  {name:<10} {summary}")
    return "\n".join(
        [
            "usage: align3d COMMAND [OPTIONS]",
            "",
            "Align 3D generators with 2D rewards.",
            "",
            "commands:",
            *rows,
            "",
            "`align3d COMMAND --help` shows a command's options with their defaults, units and effects.",
        ]
    )


def _describe(error: BaseException) -> str:
    """An exception as one line."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    return " ".join(str(error).split()) or type(error).__name__
