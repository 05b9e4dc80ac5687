"""The command line `hyperdream`: which command runs, what it prints where, and what becomes of errors.

Exit codes: 0 done; 1 refused or failed, with one sentence that says why; 2 wrong usage; 130 stopped with Ctrl-C.
Results go to the standard output, everything meant for eyes only to the error stream.
"""

from __future__ import annotations

import _thread
import argparse
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import Cancelled, HyperDreamError, OutputError, printable
from .console import Console, Outcome, write_line
from .flags import files_read

if TYPE_CHECKING:
    from .command_list import Command

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_STOPPED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never raises for what a user can cause."""
    words = list(sys.argv[1:] if argv is None else argv)
    console = Console(as_json="--json" in words)
    try:
        with _every_interrupt_heard():
            return _run(words, console)
    except KeyboardInterrupt:
        # A second Ctrl-C, while the first was being reported.
        return EXIT_STOPPED
    except OSError:
        # Nobody reads on, or the disk behind the output is full: there is no place left to say so.
        _let_go_of_output()
        return EXIT_ERROR


@contextmanager
def _every_interrupt_heard() -> Iterator[None]:
    """Repeat a Ctrl-C that falls into an object's end (`__del__`), where Python prints a traceback and goes on."""
    other = sys.unraisablehook

    def hook(problem: Any) -> None:
        if problem.exc_type is not KeyboardInterrupt:
            other(problem)
            return
        # Not from here, where it would be ignored once more.
        again = threading.Timer(0.02, _thread.interrupt_main)
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = other


def _run(words: Sequence[str], console: Console) -> int:
    level = logging.root.manager.disable
    # diffusers and transformers log what they find odd about our own sound files.
    logging.disable(logging.WARNING)
    try:
        if any("\0" in word for word in words):
            raise UsageError("a word of the command line holds a NUL character, which no name or text can hold")
        arguments = build_parser(words).parse_args(words)
        if arguments.run is None:
            arguments.parser.error("no command given")
        console.inputs = files_read(arguments)
        outcome = arguments.run(arguments, console)
        _print_outcome(outcome, console)
        return EXIT_STOPPED if outcome.stopped else EXIT_OK if outcome.ok else EXIT_ERROR
    except SystemExit as stop:  # argparse, after --help and --version
        return int(stop.code or 0)
    except BrokenPipeError:
        # `hyperdream ... | head`: nobody reads on.
        raise
    except (KeyboardInterrupt, Cancelled) as stop:
        return _fail(console, "stopped", str(stop) or "stopped by Ctrl-C", EXIT_STOPPED)
    except UsageError as error:
        return _fail(console, "usage", str(error), EXIT_USAGE)
    except (HyperDreamError, OSError, MemoryError, RuntimeError, UnicodeError) as error:
        message = explain(error)
        if message is None:
            raise
        return _fail(console, type(error).__name__, message, EXIT_ERROR)
    finally:
        logging.disable(level)


class UsageError(Exception):
    """A command line that cannot be understood."""


def explain(error: Exception) -> str | None:
    """The one sentence about an error that a user can do something about; None for our own mistakes."""
    if isinstance(error, HyperDreamError):
        return str(error)
    if _is_out_of_memory(error):
        return (
            "there is not enough memory for this job; close other programs, use smaller pictures or batches, or "
            "another --device"
        )
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error) or type(error).__name__
        return f"{place}cannot be read or written ({reason}); check the path, its permissions and the free space"
    if isinstance(error, UnicodeError):
        return f"a text or a name is in another encoding than UTF-8 ({error}); rename the file, or type the text anew"
    if isinstance(error, RecursionError):
        return "something in a file is nested more deeply than can be read; get the file again"
    return None


def _is_out_of_memory(error: Exception) -> bool:
    # torch has its own class for accelerators only; on a CPU it is a plain RuntimeError.
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


def build_parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of all commands; flags are made only for the command that `words` name, which may load torch."""
    from .command_list import COMMANDS

    parser = _Parser(
        prog="hyperdream",
        description="One face picture in, a person you can prompt for out.",
        epilog="hyperdream COMMAND --help lists the flags of a command.",
    )
    parser.add_argument("--version", action="version", version=f"hyperdream {_version()}")
    parser.add_argument("--json", action="store_true", help="print one JSON object and no progress bars")
    parser.set_defaults(run=None, parser=parser)
    chosen = next((word for word in words if not word.startswith("-")), None)
    _add_commands(parser, "hyperdream", COMMANDS, "COMMAND", chosen)
    return parser


def _add_commands(
    parser: argparse.ArgumentParser, program: str, commands: Mapping[str, Command], metavar: str, chosen: str | None
) -> None:
    is_second_word = program != "hyperdream"
    below = parser.add_subparsers(metavar=metavar, title="commands", parser_class=_Parser, required=is_second_word)
    for name, command in commands.items():
        usage = f"{program} {name} {command.usage} [options]" if command.usage else None
        # An older name is understood and not listed: argparse would show it as an alias.
        names = [name, *([command.older] if command.older and chosen == command.older else [])]
        one = below.add_parser(
            name, aliases=names[1:], help=command.summary, description=command.description, usage=usage
        )
        one.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
        one.set_defaults(run=command.run, parser=one)
        if not is_second_word and chosen not in names:
            # Flags of one command are enough, and making them loads what it needs.
            continue
        if command.below:
            _add_commands(one, f"{program} {name}", command.below, "|".join(command.below), None)
        else:
            command.add_flags(one)


class _Once(argparse._StoreAction):
    """A flag that may be given once: of two values one would be taken without a word."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        # Names a flag that is also understood under an older name.
        given = namespace.__dict__.setdefault("given", set())
        if option_string and self.dest in given:
            raise argparse.ArgumentError(self, "is given twice; give it once")
        given.add(self.dest)
        super().__call__(parser, namespace, values, option_string)


class _Parser(argparse.ArgumentParser):
    """One that raises, so that a wrong command line can be reported as JSON too."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.register("action", None, _Once)
        self.register("action", "store", _Once)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def _print_outcome(outcome: Outcome, console: Console) -> None:
    try:
        if console.as_json:
            _print_json(outcome.data, indent=2)
        elif outcome.text:
            write_line(sys.stdout, outcome.text)
    except BrokenPipeError:
        raise
    except OSError as error:
        _let_go_of_output()
        raise OutputError(f"what was done cannot be printed ({error.strerror}); free some space") from error


def _print_json(data: Mapping[str, Any], indent: int | None = None) -> None:
    """One JSON object, in plain ASCII where the stream, or whoever reads it, could not take it otherwise."""
    text = json.dumps(data, indent=indent, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(data, indent=indent)
    write_line(sys.stdout, text)


def _let_go_of_output() -> None:
    """Python would complain once more when it flushes at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fail(console: Console, kind: str, message: str, code: int) -> int:
    kept = [str(path) for path in console.written]
    if code == EXIT_STOPPED:
        rest = console.on_stop or "nothing had been written yet"
        message += f"; kept: {', '.join(kept)}" if kept else f"; {rest}"
    elif kept:
        message += f" (kept: {', '.join(kept)})"
    message = printable(message)
    console.say(f"hyperdream: {message}")
    if console.as_json:
        _print_json({"error": kind, "message": message, "kept": kept, "exit_code": code})
    return code


def _version() -> str:
    try:
        return metadata.version("hyperdream")
    except metadata.PackageNotFoundError:
        return "(not installed)"
