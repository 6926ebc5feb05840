"""Runs a command as scripts expect it: exit codes, one line for each error, and a summary in JSON."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
import traceback
import warnings
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any

from spatialdata_segment._options import as_options
from spatialdata_segment._version import __version__
from spatialdata_segment.errors import SegmentationError, SegmentationWarning

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

DONE, CRASHED, WRONG, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
"""Exit codes: all well; an error that nobody foresaw; one whose message says what to do; Ctrl-C; SIGTERM."""

_STATUS = {DONE: "done", CRASHED: "crashed", WRONG: "failed", INTERRUPTED: "interrupted", TERMINATED: "terminated"}
_NAME = "spatialdata-segment"
_RESUMING = "run", "infer", "predict", "decode", "resegment"


def run_command(args: argparse.Namespace) -> int:
    """Call ``args.run(args)``, and return the exit code.

    The command prints for people, and puts into the dictionary ``args.summary`` what scripts may want to know. With
    ``args.json`` that is all that goes to stdout, as one JSON object; what it prints goes to stderr.
    """
    args.summary = {}
    told: list[str] = []
    started, code = time.perf_counter(), DONE
    error: BaseException | None = None
    with (
        _warnings(told, args),
        _terminable(),
        redirect_stdout(sys.stderr) if args.json else nullcontext(),
    ):
        try:
            args.run(args)
        except (SegmentationError, OSError) as known:
            code, error = WRONG, known
        except KeyboardInterrupt as stop:
            code, error = INTERRUPTED, stop
        except SystemExit as stop:
            if stop.code != TERMINATED:
                raise
            code, error = TERMINATED, stop
        except Exception as unforeseen:  # noqa: BLE001 - whatever it is, it is told in one line
            code, error = CRASHED, unforeseen
    if error is not None:
        if args.debug:
            traceback.print_exception(error)
        resumes = args.command in _RESUMING
        text = as_options(str(error), args.spelled)
        print(f"{_NAME}: {_message(error, text, code, resumes=resumes, debug=args.debug)}", file=sys.stderr)
    if args.json:
        failed = (
            None if error is None else {"type": type(error).__name__, "message": as_options(str(error), args.spelled)}
        )
        outcome = {
            "command": " ".join(filter(None, (args.command, getattr(args, "action", None)))),
            "version": __version__,
            "status": _STATUS[code],
            "exit_code": code,
            "seconds": round(time.perf_counter() - started, 3),
            "warnings": told,
            "error": failed,
            "result": args.summary,
        }
        print(json.dumps(outcome, default=_plain))
    return code


def _message(error: BaseException, text: str, code: int, *, resumes: bool, debug: bool) -> str:
    """Return what is said of an error, in one line unless it lists several problems."""
    if code in (INTERRUPTED, TERMINATED):
        then = "the same command goes on from what is finished" if resumes else "nothing half-written is left"
        return f"{_STATUS[code]}: {then}"
    if code == WRONG:
        return f"error: {text}"
    hint = "" if debug else ": call again with --debug for the traceback"
    return f"error: unexpected {type(error).__name__}: {error}. This is a fault of the program; please report it{hint}"


@contextmanager
def _warnings(told: list[str], args: argparse.Namespace) -> Iterator[None]:
    """Print warnings of this package in a line each, and list them; those of others only on demand."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        told.append(as_options(str(message), args.spelled))
        print(f"{_NAME}: warning: {told[-1]}", file=sys.stderr)

    with warnings.catch_warnings():
        if not args.debug:
            warnings.simplefilter("ignore")
            warnings.simplefilter("default", SegmentationWarning)
            warnings.showwarning = show
            logging.getLogger("ome_zarr").setLevel(logging.ERROR)
        yield


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that locks and workers go."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(*_: object) -> None:
    raise SystemExit(TERMINATED)


def _plain(value: Any) -> Any:
    """Return numbers of numpy as numbers, and what else JSON does not know as text."""
    return value.item() if hasattr(value, "item") else str(value)
