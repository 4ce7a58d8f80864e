"""Ctrl-C and SIGTERM end every command with a sentence and 128 + the number of the signal, whenever they come."""

import os
import signal
import subprocess
import sys

import pytest

from backlight import signals

#: Sends signals when a module is imported, then runs the command line.
AT_AN_IMPORT = """
import os, signal, sys
name, numbers, words = sys.argv[1], eval(sys.argv[2]), sys.argv[3:]

class Sender:
    def find_spec(self, module, path=None, target=None):
        if module == name:
            sys.meta_path.remove(self)
            for number in numbers:
                os.kill(os.getpid(), number)

sys.meta_path.insert(0, Sender())
from backlight.cli.main import process
sys.argv[1:] = words
process()
"""
STUDY = ["study", "--models", "demo-cnn", "--analyses", "variance", "--limit", "20", "--out"]


def heeding_signals() -> None:
    """Also where a shell or nohup started the tests with Ctrl-C ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("module", "numbers", "code"),
    [
        ("typer", [signal.SIGTERM], 143),
        ("torch.functional", [signal.SIGINT], 130),
        ("torch.functional", [signal.SIGTERM, signal.SIGINT], 143),
        ("timm.layers", [signal.SIGTERM], 143),
        ("backlight.analyses.variance.measure", [signal.SIGINT, signal.SIGINT, signal.SIGTERM], 130),
    ],
)
def test_a_study_is_stopped_while_it_loads(tmp_path, module, numbers, code):
    words = [module, str([int(number) for number in numbers]), *STUDY, str(tmp_path / "out")]
    process = subprocess.run(
        [sys.executable, "-c", AT_AN_IMPORT, *words], capture_output=True, text=True, preexec_fn=heeding_signals, check=False
    )
    assert process.returncode == code, process.stderr
    assert process.stderr.splitlines()[-1].startswith("backlight: stopped; what is finished is stored")
    assert "Traceback" not in process.stderr


class Interrupting:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stop_that_python_drops_is_raised_at_the_next_check():
    with pytest.raises(signals.Stopped) as stopped, signals.stopping():  # noqa: PT012
        Interrupting()  # what a destructor raises is dropped
        assert signals.received() == [signal.SIGTERM]
        signals.check()
    assert stopped.value.number == signal.SIGTERM
    assert not signals.received()
    signals.check()  # what comes after the block is not stopped


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.stopping():
            os.kill(os.getpid(), signal.SIGINT)
            signals.check()
        with signals.delayed() as received:
            os.kill(os.getpid(), signal.SIGINT)
        assert not received
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_first_signal_is_delayed_and_the_second_acts_as_before():
    with pytest.raises(signals.Stopped) as stopped, signals.stopping(), signals.delayed() as received:  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
        signals.check()  # nothing is raised
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
