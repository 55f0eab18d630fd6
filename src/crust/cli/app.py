"""From arguments to an exit code: finds the command, runs it, explains what went wrong."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import os
import sys
import traceback
from typing import Any, NoReturn, cast

from crust import errors
from crust.cli import COMMANDS
from crust.cli.interrupts import INTERRUPTED, Interrupts, stuck_threads
from crust.cli.output import CommandError, Output, OutputClosed, drop_stdout

__all__ = [
    "EXIT_FAILED",
    "EXIT_LOST",
    "EXIT_NO_PATH",
    "EXIT_REFUSED",
    "EXIT_USAGE",
    "exit_code",
    "run_command_line",
    "sentence",
]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_PATH = 3
EXIT_REFUSED = 4
EXIT_LOST = 5

# The first class that fits decides. What is not listed is 1.
_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (errors.ConfigError, EXIT_USAGE),
    (errors.IdentityError, EXIT_USAGE),
    (errors.ParseError, EXIT_USAGE),
    (errors.SelfDialError, EXIT_USAGE),
    (errors.NoPathError, EXIT_NO_PATH),
    (errors.ConnectError, EXIT_REFUSED),
    (errors.RemoteProtocolError, EXIT_REFUSED),
    (errors.ReceiptError, EXIT_REFUSED),
    (errors.PeerLost, EXIT_LOST),
    (errors.ConnectionClosed, EXIT_LOST),
    (errors.StreamResetError, EXIT_LOST),
)


def sentence(error: BaseException) -> str:
    """What went wrong, for people."""
    text = str(error) or type(error).__name__
    if isinstance(error, errors.SelfDialError):
        return f"{text}: give one of the two sides another identity with --identity FILE"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or text
    if not isinstance(error, (CommandError, errors.CrustError)):
        return f"this should not have happened: {type(error).__name__}: {text} (--debug shows where)"
    return text


def exit_code(error: BaseException) -> int:
    """The exit code that stands for an error."""
    if isinstance(error, CommandError):
        return error.code
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    if "crust.node.transfer.error" in sys.modules:
        from crust.node.transfer import error as transfer

        if isinstance(error, transfer.SourceError):
            return EXIT_USAGE
        if isinstance(error, transfer.TransferRefusedError):
            return EXIT_REFUSED
        if isinstance(error, transfer.TransferInterruptedError):
            return EXIT_LOST
    return EXIT_FAILED


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        sentence = message[:1].upper() + message[1:]
        self.exit(EXIT_USAGE, f"{self.prog}: {sentence}. See `{self.prog} --help`.\n")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: crust COMMAND [OPTION]…",
            "",
            "Encrypted connections to peers by their public key. Commands:",
            "",
            *lines,
            "",
            "`crust COMMAND --help` tells the options of a command.",
        ]
    )


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("crust-p2p")
    except PackageNotFoundError:
        return "unknown"


def _usage(message: str) -> int:
    print(f"crust: {message} See `crust --help`.", file=sys.stderr)
    return EXIT_USAGE


def run_command_line(argv: list[str] | None) -> int:
    """Run the command that the arguments name.

    Args:
        argv: arguments without the program's name; None for those of the process, which this call may then end itself
            when a thread hangs in a system call.
    """
    interrupts = Interrupts()
    interrupts.install()
    try:
        code = _dispatch(sys.argv[1:] if argv is None else argv, interrupts)
    except KeyboardInterrupt:
        code = interrupts.code if interrupts.received else INTERRUPTED
    except BrokenPipeError:  # the reader of a help text has had enough
        drop_stdout()
        code = 0
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            if stream is sys.stdout:
                drop_stdout()
    if argv is None and stuck_threads():
        os._exit(code)
    interrupts.finish()
    return code


def _dispatch(argv: list[str], interrupts: Interrupts) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A name that the terminal's encoding lacks must not end a transfer.
            stream.reconfigure(errors="backslashreplace")
    if not argv:
        return _usage("No command given.")
    name, rest = argv[0], argv[1:]
    if name in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if name in ("-V", "--version", "version"):
        print(f"crust {_version()}")
        return 0
    if name not in COMMANDS:
        return _usage(f"There is no command {name!r}.")
    try:
        module = importlib.import_module(f"crust.cli.{name}")
    except ModuleNotFoundError as error:
        return _missing(f"crust {name}", error)
    parser = _Parser(prog=f"crust {name}", description=inspect.getdoc(module) or COMMANDS[name])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    _add_common(parser)
    module.add_arguments(parser)
    try:
        args = parser.parse_intermixed_args(rest)
    except SystemExit as end:
        return cast("int", end.code)
    interrupts.code = getattr(module, "INTERRUPTED", interrupts.code)
    return _run(module, args, interrupts)


def _add_common(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("common options")
    group.add_argument("--json", action="store_true", help="print one JSON object per line")
    group.add_argument("--config", metavar="FILE", help="TOML configuration (see `crust config default`)")
    group.add_argument("--identity", metavar="FILE", help="the key file, created when absent")
    group.add_argument("--debug", action="store_true", help="show tracebacks")


def _run(module: Any, args: argparse.Namespace, interrupts: Interrupts) -> int:
    out = Output(json=args.json)
    if args.debug:
        import logging

        logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        result = module.run(args, out)
        if inspect.iscoroutine(result):
            from crust.cli.runner import run_coroutine

            complain = None if args.debug else lambda error: out.say(f"crust: {sentence(error)}")
            result = run_coroutine(result, interrupts, complain)
        return int(result)
    except OutputClosed:
        return 0
    except ModuleNotFoundError as error:
        return _missing(f"crust {module.__name__.rpartition('.')[2]}", error)
    except Exception as error:
        return _explain(error, args, out)


def _explain(error: BaseException, args: argparse.Namespace, out: Output) -> int:
    """Print one sentence (and the JSON object) for an error; return its exit code."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if args.debug:
        traceback.print_exception(error)
    code = exit_code(error)
    text = sentence(error)
    out.say(f"crust: {text}")
    if args.json:
        record = error.record if isinstance(error, CommandError) and error.record is not None else {"error": text}
        report = getattr(error, "report", None)
        if report is not None:
            record = {**record, "report": report}
        with contextlib.suppress(OutputClosed):
            out.record(record)
    return code


def _missing(name: str, error: ModuleNotFoundError) -> int:
    """A module of ours that is absent means an incomplete build, another one a missing extra."""
    missing = error.name or ""
    if missing.startswith("crust"):
        print(f"{name}: this build is incomplete, it lacks {missing}", file=sys.stderr)
    else:
        print(f"{name} needs {missing}: pip install 'crust-p2p[cli]'", file=sys.stderr)
    return EXIT_USAGE
