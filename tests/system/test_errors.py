"""What a script does with a bug and with its output; test_scripts and test_signals have its exit codes."""

import os
import subprocess
import sys

import pytest

from fast_cifar.system.errors import run_script


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_script(lambda: 1 / 0)


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


def test_a_name_that_is_no_text_can_be_printed():
    script = "from fast_cifar.system.errors import run_script\n"
    script += "raise SystemExit(run_script(lambda: print('caf\\udce9')))"
    variables = os.environ | {"PYTHONIOENCODING": "utf-8"}
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, env=variables, check=False)
    assert (finished.returncode, finished.stdout) == (0, b"caf\\udce9\n")
