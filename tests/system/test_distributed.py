"""Two processes on one CPU train as one process does that takes the slices one by one."""

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F

from fast_cifar.loader import DeviceLoader
from fast_cifar.system.distributed import DistributedContext, local_device, process_group
from fast_cifar.system.errors import UserError
from tests.helpers.networks import SmallNetwork
from tests.helpers.runs import rows, rows_without_times
from tests.helpers.scripts import ROOT

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
LIMIT = 600  # seconds after which a process counts as hanging
QUIET = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def torchrun(processes, *words):
    command = [*TORCHRUN, f"--nproc-per-node={processes}", *words]
    # On a busy machine a process may need longer to save its work than torchrun waits before it kills it.
    patience = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(LIMIT)}
    return subprocess.Popen(
        command, **QUIET, env=os.environ | patience | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    )


def finished(process):
    output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, errors
    return output


def errors_of(script, folder, tmp_path):
    """What two processes of a script that fails write to standard error."""
    (tmp_path / "script.py").write_text(script)
    process = torchrun(2, str(tmp_path / "script.py"), str(folder), str(tmp_path / "out"))
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode != 0
    return errors


def options(folder, out, *more):
    places = ["--data", str(folder), "--data-dir", str(out / "data"), "--out", str(out), "--device", "cpu"]
    return ["run_train.py", *places, "--batch-size", "8", "--epochs", "2", "--lr-max", "0.001", *more]


@pytest.mark.parametrize(("n", "size"), [(10, 1), (10, 3), (7, 4), (4, 4), (10_000, 7)])
def test_shards_contain_every_item_once(n, size):
    taken = [index for rank in range(size) for index in range(n)[DistributedContext(rank, size).shard(n)]]
    assert taken == list(range(n))


@pytest.mark.parametrize("size", [2, 4])
def test_the_slices_of_a_step_make_up_the_batch_of_one_process(size):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (50, 8, 8, 3), dtype=torch.uint8, generator=generator)
    labels = torch.arange(50)
    whole = DeviceLoader(images, labels, 8, train=True, device="cpu", cutout=2, seed=3)
    shares = [
        DeviceLoader(images, labels, 8, train=True, device="cpu", cutout=2, seed=3, shard=(rank, size))
        for rank in range(size)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(batch[0], torch.cat([inputs for inputs, _ in parts]))
        assert torch.equal(batch[1], torch.cat([answers for _, answers in parts]))


ONE_STEP = """
import sys, torch
from fast_cifar.system.distributed import process_group
from fast_cifar.optimizer import make_optimizer
from fast_cifar.system.device import Precision
from fast_cifar.train_step import TrainStep
from tests.helpers.networks import SmallNetwork

def main(distributed):  # its variables hold the group, whose threads must have ended before Python does
    torch.manual_seed(distributed.rank)  # all must start from rank 0's weights
    model = SmallNetwork()
    step = TrainStep(
        model, make_optimizer(model, 0.001), Precision("cpu", torch.float32), network=distributed.wrap(model),
        compile="compile" in sys.argv,
    )
    generator = torch.Generator().manual_seed(9)
    inputs, labels = torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8)
    part = distributed.shard(8)
    step(inputs[part], labels[part])
    torch.save({name: p.grad for name, p in model.named_parameters()}, f"{sys.argv[1]}/gradients-{distributed.rank}.pt")
    distributed.broadcast_buffers(model)
    torch.save(model.state_dict(), f"{sys.argv[1]}/state-{distributed.rank}.pt")

with process_group() as distributed:
    main(distributed)
"""


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_the_gradients_are_those_of_one_process_that_averages_the_slices(tmp_path, compile):
    script = tmp_path / "one_step.py"
    script.write_text(ONE_STEP)
    finished(torchrun(2, str(script), str(tmp_path), *(["compile"] if compile else [])))
    torch.manual_seed(0)
    model = SmallNetwork()
    generator = torch.Generator().manual_seed(9)
    inputs, labels = torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8)
    gradients, first_slice = [], copy.deepcopy(model)
    for part in (slice(0, 4), slice(4, 8)):
        model.zero_grad()
        F.cross_entropy(model(inputs[part]), labels[part]).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    first_slice(inputs[:4])
    stored = [torch.load(tmp_path / f"gradients-{rank}.pt") for rank in (0, 1)]
    for name in gradients[0]:
        mean = (gradients[0][name] + gradients[1][name]) / 2
        for mine in stored:
            torch.testing.assert_close(mine[name], mean, rtol=1e-3, atol=1e-5)
    states = [torch.load(tmp_path / f"state-{rank}.pt") for rank in (0, 1)]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    for name, buffer in first_slice.named_buffers():  # the running statistics are rank 0's
        torch.testing.assert_close(states[0][name], buffer, rtol=1e-3, atol=1e-5)


def test_a_run_of_two_processes_writes_and_prints_everything_once(class_folder, tmp_path):
    output = finished(torchrun(2, *options(class_folder, tmp_path, "--name", "a", "--val-split", "4")))
    folder = tmp_path / "a"
    assert output.count("epoch 1/2") == 1
    assert "machine   2 processes, each on cpu" in output
    assert [row["epoch"] for row in rows(folder)] == [1, 2]
    assert [path.name for path in tmp_path.iterdir() if path.name != "data"] == ["a"]
    summary = json.loads((folder / "summary.json").read_text())
    checked = [sys.executable, "run_train.py", "--eval-only", str(folder / "last.pt"), "--device", "cpu"]
    alone = subprocess.run([*checked, "--data-dir", str(tmp_path / "data")], check=True, **QUIET).stdout
    assert f"test accuracy {100 * summary['test_accuracy']:.2f} %: " in alone
    model = torch.load(folder / "last.pt", weights_only=True)["model"]
    assert not any(name.startswith(("module.", "_orig_mod.")) for name in model)


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


@pytest.mark.skipif(os.name == "nt", reason="sends signals as Unix does")
def test_a_stopped_run_resumes_with_another_number_of_processes(class_folder, tmp_path):
    process = torchrun(2, *options(class_folder, tmp_path, "--name", "a", "--epochs", "6", "--checkpoint-steps", "1"))
    wait_for(tmp_path / "a/last.pt", process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LIMIT)
    assert process.returncode != 0
    assert not list((tmp_path / "a").glob(".*"))
    resume = [sys.executable, "run_train.py", "--resume", str(tmp_path / "a")]
    subprocess.run(resume, check=True, **QUIET)
    history = rows(tmp_path / "a")
    assert [row["epoch"] for row in history] == list(range(1, 7))
    assert all(0 <= row["train_accuracy"] <= 1 for row in history)


@pytest.mark.skipif(os.name == "nt", reason="sends signals as Unix does")
def test_two_processes_repeat_a_run_exactly(class_folder, tmp_path):
    for name in ("a", "b"):
        finished(torchrun(2, *options(class_folder, tmp_path, "--name", name, "--deterministic", "--dropout", "0.2")))
    assert rows_without_times(tmp_path / "a") == rows_without_times(tmp_path / "b")


STOPS = """
import os, signal, sys
from fast_cifar.system.errors import run_script
from fast_cifar.train_step import TrainStep
from fast_cifar.trainer import train
from fast_cifar.options import TrainOptions

steps, real = iter(range(1, 1000)), TrainStep.__call__
def step(self, inputs, labels):
    if next(steps) == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return real(self, inputs, labels)
TrainStep.__call__ = step
places = {"data": sys.argv[1], "data_dir": sys.argv[2], "out": sys.argv[2], "name": "a", "device": "cpu"}
sys.exit(run_script(lambda: train(TrainOptions(**places, batch_size=2, epochs=2))))
"""


@pytest.mark.skipif(os.name == "nt", reason="sends signals as Unix does")
def test_on_a_cpu_whose_steps_take_seconds_all_processes_stop_after_the_step(class_folder, tmp_path):
    errors = errors_of(STOPS, class_folder, tmp_path)
    contents = torch.load(tmp_path / "out/a/last.pt", weights_only=True)
    assert (contents["epoch"], contents["metrics"]["steps"]) == (0, 3), errors


DIES = """
import os, sys
from fast_cifar import engine
from fast_cifar.runs import run_folder
from fast_cifar.system.distributed import process_group
from fast_cifar.system.errors import run_script
from fast_cifar.trainer import train
from fast_cifar.options import TrainOptions

real = engine.train_epoch
def train_epoch(*positional, **keywords):
    if os.environ["RANK"] == "1":
        os._exit(7)
    return real(*positional, **keywords)
engine.train_epoch = train_epoch
options = TrainOptions(data=sys.argv[1], data_dir=sys.argv[2], out=sys.argv[2], batch_size=8, epochs=2, device="cpu")
sys.exit(run_script(lambda: train(options)))
"""


def test_a_process_that_dies_ends_the_job_with_a_clear_line(class_folder, tmp_path):
    assert re.search(r"exitcode\s*: 7\b", errors_of(DIES, class_folder, tmp_path))


def test_a_batch_size_that_does_not_divide_is_refused_by_name(class_folder, tmp_path):
    process = torchrun(2, *options(class_folder, tmp_path, "--batch-size", "7"))
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode != 0
    assert "error: --batch-size 7 must be a multiple of the 2 processes" in errors
    assert not [path for path in tmp_path.iterdir() if path.name != "data"]


def test_several_processes_on_mps_are_refused(monkeypatch):
    monkeypatch.setattr("fast_cifar.system.distributed.started_by_torchrun", lambda: True)
    monkeypatch.setattr("fast_cifar.system.distributed.resolve_device", torch.device)
    with pytest.raises(UserError, match="torchrun cannot use mps; add --device cpu"):
        local_device("mps")
    assert local_device("cpu") == "cpu"


def test_a_lost_connection_is_explained(monkeypatch):
    monkeypatch.setattr("fast_cifar.system.distributed.started_by_torchrun", lambda: True)
    for name in ("init_process_group", "destroy_process_group", "barrier"):
        monkeypatch.setattr(f"fast_cifar.system.distributed.dist.{name}", lambda *_, **__: None)
    monkeypatch.setattr("fast_cifar.system.distributed.dist.get_rank", lambda: 1)
    monkeypatch.setattr("fast_cifar.system.distributed.dist.get_world_size", lambda: 2)

    def lose_the_connection():
        with process_group() as distributed:
            assert distributed == DistributedContext(1, 2)
            raise RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1")

    with pytest.raises(UserError, match="another process of this job has ended"):
        lose_the_connection()
