"""The first signal requests a stop, the second interrupts; stopped and killed processes lose nothing."""

import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from fast_cifar.system.signals import Stopped, StopRequest, interrupt_on_sigterm, stop_on_signal
from tests.helpers.runs import rows_without_times
from tests.helpers.scripts import ROOT

unix = pytest.mark.skipif(os.name == "nt", reason="sends signals as Unix does")


@unix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_requests_a_stop_and_the_second_interrupts(number):
    said = []

    def twice():
        request = StopRequest()
        with stop_on_signal(request, lambda: said.append("stopping")):
            request.check()
            os.kill(os.getpid(), number)
            with pytest.raises(Stopped):
                request.check()
            assert said == ["stopping"]
            os.kill(os.getpid(), number)
            time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        twice()
    assert said == ["stopping"]


@unix
def test_sigterm_interrupts_as_ctrl_c_does():
    def terminate():
        with interrupt_on_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        terminate()


def test_the_previous_handlers_are_restored():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_on_signal(StopRequest(), lambda: None):
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signal(StopRequest(), lambda: None):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_no_handler_is_installed():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        request = StopRequest()
        with stop_on_signal(request, lambda: None):
            request.check()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def command(folder, out, *more):
    options = ["--data", str(folder), "--data-dir", str(out / "data"), "--out", str(out), "--device", "cpu"]
    recipe = ["--batch-size", "8", "--epochs", "3", "--lr-max", "0.001", "--deterministic", "--checkpoint-steps", "1"]
    return [sys.executable, "run_train.py", *options, *recipe, *more]


QUIET = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


@pytest.fixture(scope="module")
def uninterrupted(class_folder, tmp_path_factory):
    """The folder of a run that was not interrupted."""
    out = tmp_path_factory.mktemp("alone")
    subprocess.run(command(class_folder, out, "--name", "whole"), check=True, **QUIET)
    return out / "whole"


@unix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_stopped_or_killed_run_resumes_to_the_same_result(class_folder, uninterrupted, tmp_path, number):
    process = subprocess.Popen(command(class_folder, tmp_path, "--name", "stopped"), **QUIET)
    folder = tmp_path / "stopped"
    while not (folder / "last.pt").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    time.sleep(random.random() / 2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130), errors
    if number != signal.SIGKILL:
        assert errors.splitlines()[-1].endswith(f"python run_train.py --resume {folder}")
        assert "Traceback" not in errors
        assert not list(folder.glob(".*"))
    resume = [sys.executable, "run_train.py", "--resume", str(folder)]
    subprocess.run(resume, check=True, **QUIET)
    whole, stopped = (torch.load(path / "last.pt", weights_only=True) for path in (uninterrupted, folder))
    assert all(torch.equal(value, stopped["model"][key]) for key, value in whole["model"].items())
    assert rows_without_times(uninterrupted) == rows_without_times(folder)
    assert not list(folder.glob(".*"))
