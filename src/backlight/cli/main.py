"""How the command line starts and ends.  Signals are handled before anything else is imported."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from backlight import signals
from backlight.cli.output import prepare, say
from backlight.errors import UserError
from backlight.shortage import shortage

STOPPED = "stopped; what is finished is stored, and the same command resumes (a training with --resume)"


def process() -> None:
    """The whole process, whose end no second Ctrl-C interrupts."""
    try:
        main()
    except SystemExit:
        signals.ignore()
        raise


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit.

    0 done, 2 a user's mistake, 3 a check failed, 4 not available, 5 some cells failed, 130 and 143 stopped by a signal.
    """
    prepare()
    with signals.stopping():
        try:
            from backlight.cli.app import run

            run(sys.argv[1:] if argv is None else argv)
            signals.check()
        except BrokenPipeError:  # backlight ... | head
            sys.exit(0)
        except (Exception, KeyboardInterrupt) as error:
            if (ending := sentence_and_code(error)) is None:
                raise
            sentence, code = ending
            with signals.handled(signal.SIG_IGN), quiet_destructors():
                say(f"backlight: {sentence}")
                traceback.clear_frames(error.__traceback__)
            sys.exit(code)
    sys.exit(0)


@contextmanager
def quiet_destructors() -> Iterator[None]:
    """Within the block Python does not report what the destructors of half-made objects raise."""
    before = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = before


def sentence_and_code(error: BaseException) -> tuple[str, int] | None:
    """What to say at the end, and the exit code; None for a fault of Backlight, which has a traceback.

    A signal can arrive as any exception, for instance as an import that fails.
    """
    if isinstance(error, KeyboardInterrupt) or signals.received():
        number = error.number if isinstance(error, signals.Stopped) else next(iter(signals.received()), signal.SIGINT)
        return STOPPED, 128 + number
    if isinstance(error, UserError):
        return str(error), error.exit_code
    if sentence := shortage(error):
        return sentence, 2
    from backlight.cli.app import UsageError, refusal

    return (refusal(error), 2) if isinstance(error, UsageError) else None
