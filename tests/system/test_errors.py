"""Exit codes and error lines of a script."""

import os
import subprocess
import sys

import pytest

from fast_cifar.system.errors import UserError, run_script


def raising(error):
    def script():
        raise error

    return script


def test_success_is_0_and_silent(capsys):
    assert run_script(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


def test_a_user_error_is_2_and_one_line(capsys):
    assert run_script(raising(UserError("a.png is empty"))) == 2
    assert capsys.readouterr() == ("", "error: a.png is empty\n")


def test_an_interruption_is_130_and_prints_its_message(capsys):
    assert run_script(raising(KeyboardInterrupt("interrupted; --resume"))) == 130
    assert capsys.readouterr().err == "interrupted; --resume\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_script(raising(ZeroDivisionError()))


def test_an_error_is_one_line_even_where_a_path_has_two(capsys):
    assert run_script(raising(UserError("a\nb is missing"))) == 2
    assert capsys.readouterr().err == "error: a b is missing\n"


def test_a_line_reaches_a_log_file_when_it_is_printed():
    script = "import os; from fast_cifar.system.errors import run_script\n"
    script += "run_script(lambda: (print('epoch 1'), os._exit(0)))"  # ends without writing what is buffered
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", script]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, env=buffered)
    assert finished.stdout == "epoch 1\n"


def test_a_reader_that_stops_reading_ends_the_script_without_a_traceback():
    script = "from fast_cifar.system.errors import run_script\n"
    script += "raise SystemExit(run_script(lambda: [print(line) for line in range(100_000)]))"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.stderr.read() == "standard output was closed\n"
    assert process.returncode == 1
