"""What all commands share: options, exit codes, messages, progress."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from surgery.errors import PetSurgeryError
from surgery.version import __version__

if TYPE_CHECKING:
    from ckpt_tools.progress import Progress

__all__ = ["HELP", "common_options", "make_progress", "print_result", "run", "say"]

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_INTERRUPTED = 130
_BUG = 1
_IO_FAILED = 7

Command = TypeVar("Command", bound=Callable[..., Any])


def common_options(command: Command) -> Command:
    """The options that every command has."""
    options = (
        click.option("-o", "--output", metavar="PATH", help="Where the output goes; its suffix chooses the format."),
        click.option("--force", is_flag=True, help="Replace an existing output, atomically."),
        click.option("--dry-run", is_flag=True, help="Plan and check everything, print the plan, write nothing."),
        click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object on stdout."),
        click.option("-q", "--quiet", is_flag=True, help="No progress bar and no summary."),
        click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads.  [default: one for each core]"),
        click.option("--max-memory", metavar="SIZE", help="Anonymous memory at most, e.g. 512MB."),
        click.version_option(__version__, message="%(prog)s %(version)s"),
    )
    for option in reversed(options):
        command = option(command)
    return command


def run(command: click.Command, arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit with the code that its outcome has in the contract.

    Errors that a user can mend are one paragraph on stderr; only a bug has a traceback.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        command.main(arguments, standalone_mode=False, color=None if _may_colour() else False)
        sys.stdout.flush()
        code = 0
    except PetSurgeryError as error:
        for problem in error.problems:
            _complain(str(problem))
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted; nothing was written")
        code = _INTERRUPTED
    except MemoryError:
        _complain("out of memory: lower --threads or --max-memory")
        code = _IO_FAILED
    except OSError as error:
        code = _lost_stdout(error)
    except Exception:
        _complain("this is a bug in pet-surgery; please report it with what follows")
        traceback.print_exc()
        code = _BUG
    # A closed stdout must not raise again when the interpreter flushes it.
    _close_quietly(sys.stdout)
    raise SystemExit(code)


def say(message: str) -> None:
    """A message for the user, on stderr."""
    click.echo(message, err=True)


def print_result(text: str) -> None:
    """The command's result, on stdout."""
    click.echo(text)
    sys.stdout.flush()


def make_progress(quiet: bool) -> Progress:
    """A progress bar where stderr is a terminal, else silence."""
    if quiet or not sys.stderr.isatty():
        from ckpt_tools.progress import SILENT

        return SILENT
    from ckpt_tools.cli.bar import Bar

    return Bar()


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    # As Ctrl-C: what was begun is cleaned up.
    raise KeyboardInterrupt


def _may_colour() -> bool:
    return not os.environ.get("NO_COLOR")


def _complain(text: str) -> None:
    colour = sys.stderr.isatty() and _may_colour()
    click.echo(click.style("error: ", fg="red", bold=True) + text if colour else f"error: {text}", err=True)


def _lost_stdout(error: OSError) -> int:
    if error.filename is None and not isinstance(error, BrokenPipeError) and sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            pass
        else:
            _complain(str(error))
            return _IO_FAILED
    _complain(f"the work is done, but its report could not be printed: {(error.strerror or str(error)).lower()}")
    return _IO_FAILED


def _close_quietly(stream: Any) -> None:
    try:
        stream.flush()
    except (OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, 1)
