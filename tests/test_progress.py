import io
import subprocess
import sys

import pytest

from cir import progress
from cir.errors import InputError


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_gets_a_line_at_the_start_and_one_at_the_end(capsys):
    assert list(progress.track(range(1500), description="encoding")) == list(range(1500))
    out, err = capsys.readouterr()
    first, last = err.splitlines()
    assert out == "" and first == "encoding: starting, 1,500 to do"
    assert last.startswith("encoding: done, 1,500 in 0:00 (") and last.endswith("/s)")


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_between_carry_count_rate_and_remaining_time(capsys, clock):
    with progress.bar(100, "x") as shown:
        clock[0] = 10.0
        shown.advance(10)
        clock[0] = 31.0
        shown.advance(21)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "x: 31 of 100 (1.0/s, 1:09 left)"
    assert len(lines) == 3


def test_what_an_earlier_run_did_counts_but_is_not_part_of_the_rate(capsys, clock):
    with progress.bar(100, "x") as shown:
        shown.skip(38)
        clock[0] = 31.0
        shown.advance(31)
    assert "69 of 100 (1.0/s" in capsys.readouterr().err


def test_an_interrupted_bar_does_not_say_done(capsys):
    with pytest.raises(KeyError), progress.bar(None, "x") as shown:
        shown.advance(3)
        raise KeyError
    assert "x: stopped, 3 in" in capsys.readouterr().err


def test_disabled_shows_nothing(capsys):
    assert sum(progress.track([1, 2], enabled=False)) == 3
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_with_count_and_rate(monkeypatch):
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.bar(4, "decoding") as shown:
        shown.skip(1)
        shown.advance(3)
    assert "decoding" in terminal.getvalue() and "4/4" in terminal.getvalue() and "/s" in terminal.getvalue()


def test_a_negative_total_is_refused():
    with pytest.raises(InputError, match="total of -1"), progress.bar(-1, "x"):
        pass


def test_importing_it_is_light():
    heavy = "import sys, cir.progress; print([m for m in ('rich', 'torch', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True).stdout == "[]\n"
