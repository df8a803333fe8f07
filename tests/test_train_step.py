"""The training step against one written out by hand: eager, compiled, in mixed precision, and as one graph."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from fast_cifar import train_step
from fast_cifar.engine import evaluate
from fast_cifar.optimizer import make_optimizer, make_scheduler
from fast_cifar.schedules import one_cycle
from fast_cifar.system.device import Precision
from fast_cifar.train_step import TrainStep
from tests.helpers.devices import DEVICES, needs_cuda
from tests.helpers.stepping import FP32, batches, network

BF16 = Precision("cpu", torch.bfloat16)


def train_by_hand(model, optimizer, smoothing=0.0, device="cpu"):
    losses = []
    for inputs, labels in batches(device=device):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels, label_smoothing=smoothing)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_equal_a_plain_eager_loop_with_torchs_adam(smoothing, decay, device):
    mine, theirs = network(device=device), network(device=device)
    criterion = partial(F.cross_entropy, label_smoothing=smoothing)
    step = TrainStep(mine, make_optimizer(mine, 0.01, decay), FP32, criterion=criterion)
    losses = [step(*batch)[0].item() for batch in batches(device=device)]
    plain = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=decay, fused=False)
    assert losses == pytest.approx(train_by_hand(theirs, plain, smoothing, device), rel=1e-4)
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_mixed_precision_stays_near_full_precision():
    full, mixed = network(), network()
    a = TrainStep(full, make_optimizer(full, 0.01), FP32)
    b = TrainStep(mixed, make_optimizer(mixed, 0.01), BF16)
    for batch in batches():
        assert b(*batch)[0].item() == pytest.approx(a(*batch)[0].item(), abs=0.05)


def test_mixed_precision_keeps_the_weights_in_float32():
    model = network()
    step = TrainStep(model, make_optimizer(model, 0.01), BF16)
    step(*batches()[0])
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("device", DEVICES)
def test_the_compiled_step_has_the_losses_of_the_eager_one(device):
    eager, compiled = network(device=device), network(device=device)
    a = TrainStep(eager, make_optimizer(eager, 0.01), FP32)
    b = TrainStep(compiled, make_optimizer(compiled, 0.01), FP32, compile=True)
    for batch in batches(device=device):
        (loss_a, correct_a, _), (loss_b, correct_b, _) = a(*batch), b(*batch)
        assert loss_b.item() == pytest.approx(loss_a.item(), rel=1e-4)
        assert correct_b == correct_a
    assert [name for name, _ in compiled.named_parameters()] == [name for name, _ in eager.named_parameters()]


def test_correct_answers_are_counted_before_the_update():
    model = network()
    inputs, labels = batches()[0]
    expected = (copy.deepcopy(model).train()(inputs).argmax(1) == labels).sum()
    assert TrainStep(model, make_optimizer(model, 0.1), FP32)(inputs, labels)[1] == expected


def test_warming_up_leaves_no_trace():
    model = network()
    optimizer = make_optimizer(model, 0.01)
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    step = TrainStep(model, optimizer, FP32, compile=True)
    assert step.warm_up(*batches()[0]) > 0
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not optimizer.state
    assert torch.equal(random_state, torch.get_rng_state())


@pytest.mark.parametrize("device", DEVICES)
def test_float16_overflow_is_seen_although_the_optimizer_skips_in_its_kernel(device):
    model = network(device=device)
    step = TrainStep(model, make_optimizer(model, 0.01), FP32)
    step.scaler = torch.amp.GradScaler(device, init_scale=2.0**16)
    step.load_scaler({})
    before = [p.clone() for p in model.parameters()]
    inputs, labels = batches(device=device)[0]
    assert step(inputs * float("inf"), labels)[2] is False
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert step(inputs, labels)[2] is True


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_whole_network_keeps_the_memory_order_of_its_weights(memory_format):
    model = network().to(memory_format=memory_format)
    seen = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    inputs, labels = batches()[0]
    for other in (torch.channels_last, torch.contiguous_format):
        batch = inputs.contiguous(memory_format=other), labels
        TrainStep(model, make_optimizer(model, 0.01), FP32)(*batch)
        evaluate(model, [batch], FP32)
    assert all(output.is_contiguous(memory_format=memory_format) for output in seen)


def capturable(model, lr=0.01):
    return torch.optim.Adam(model.parameters(), lr=torch.tensor(lr), fused=True, capturable=True)


@pytest.fixture
def recorded(monkeypatch):
    """Stands in for a CUDA graph where there is no CUDA: what was recorded is run again, from the same tensors. Returns
    the list of recordings."""
    recordings = []

    def capture(work):
        recordings.append(work)
        return work

    monkeypatch.setattr(train_step, "capture", capture)
    return recordings


def graphed_step(model, optimizer, precision=FP32, **options):
    step = TrainStep(model, optimizer, precision, **options)
    step._wants_graph = True
    return step


def test_a_recorded_step_has_the_losses_and_weights_of_the_eager_one(recorded):
    eager, graphed = network(), network()
    a, b = TrainStep(eager, make_optimizer(eager, 0.01), FP32), graphed_step(graphed, capturable(graphed))
    b.warm_up(*batches()[0])
    schedulers = [make_scheduler(step.optimizer, 0.01, one_cycle(6, 2, 0.001, 0.01)) for step in (a, b)]
    for batch in batches():
        (loss_a, correct_a, _), (loss_b, correct_b, moved) = a(*batch), b(*batch)
        assert loss_b.item() == pytest.approx(loss_a.item(), rel=1e-5)
        assert correct_b == correct_a
        assert moved
        for scheduler in schedulers:
            scheduler.step()
    assert len(recorded) == 1
    assert b.note is None
    for p, q in zip(eager.parameters(), graphed.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_a_recorded_step_reads_its_own_buffers_only(recorded):
    model = network()
    step = graphed_step(model, capturable(model))
    inputs, labels = batches()[0]
    step.warm_up(inputs, labels)
    first, second = inputs.clone(), inputs.clone()
    step(first, labels)
    first.fill_(float("nan"))
    assert torch.isfinite(step(second, labels)[0])


def test_the_optimizers_state_is_where_it_was_recorded(recorded):
    model = network()
    step = graphed_step(model, capturable(model))
    step.warm_up(*batches()[0])
    addresses = [value.data_ptr() for state in step.optimizer.state.values() for value in state.values()]
    assert addresses
    assert all(not value.any() for state in step.optimizer.state.values() for value in state.values())
    step(*batches()[0])
    assert addresses == [value.data_ptr() for state in step.optimizer.state.values() for value in state.values()]


def test_a_batch_of_another_shape_is_trained_without_the_recording(recorded):
    model, plain = network(), network()
    step, reference = graphed_step(model, capturable(model)), TrainStep(plain, make_optimizer(plain, 0.01), FP32)
    step.warm_up(*batches()[0])
    inputs, labels = batches()[1]
    assert step(inputs[:5], labels[:5])[0].item() == pytest.approx(reference(inputs[:5], labels[:5])[0].item())


def test_what_cannot_be_recorded_is_said_and_trains_all_the_same(monkeypatch):
    def capture(work):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(train_step, "capture", capture)
    model = network()
    step = graphed_step(model, capturable(model))
    step.warm_up(*batches()[0])
    assert "no CUDA graph" in step.note
    assert "not permitted when stream is capturing" in step.note
    assert "\n" not in step.note
    before = [p.clone() for p in model.parameters()]
    step(*batches()[0])
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_an_optimizer_with_a_plain_rate_is_not_recorded(recorded):
    model = network()
    step = graphed_step(model, make_optimizer(model, 0.01))
    step.warm_up(*batches()[0])
    assert not recorded
    assert "cannot be captured" in step.note


def test_float16_is_not_recorded(recorded):
    model = network()
    step = graphed_step(model, capturable(model))
    step.scaler = torch.amp.GradScaler("cpu")
    step.load_scaler({})
    step.warm_up(*batches()[0])
    assert not recorded
    assert "float16" in step.note


def test_only_the_first_step_needs_a_warm_up():
    model = network()
    step = TrainStep(model, make_optimizer(model, 0.01), FP32, compile=True)
    assert step.needs_warm_up
    step.warm_up(*batches()[0])
    assert not step.needs_warm_up
    assert not TrainStep(model, make_optimizer(model, 0.01), FP32).needs_warm_up


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_a_compiled_step_is_one_graph_with_the_losses_of_the_eager_one(dtype):
    eager, graphed = network(device="cuda"), network(device="cuda")
    precision = Precision("cuda", dtype)
    a = TrainStep(eager, make_optimizer(eager, 0.01), precision)
    b = TrainStep(graphed, make_optimizer(graphed, 0.01), precision, compile=True)
    b.warm_up(*batches(device="cuda")[0])
    assert b.note is None
    schedulers = [make_scheduler(step.optimizer, 0.01, one_cycle(6, 2, 0.001, 0.01)) for step in (a, b)]
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for batch in batches(device="cuda"):
        assert b(*batch)[0].item() == pytest.approx(a(*batch)[0].item(), rel=tolerance)
        for scheduler in schedulers:
            scheduler.step()
    for p, q in zip(eager.parameters(), graphed.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-2, atol=1e-3)


@needs_cuda
def test_on_cuda_a_recorded_epoch_never_waits_for_the_device():
    model = network(device="cuda")
    step = TrainStep(model, make_optimizer(model, 0.01), Precision("cuda", torch.bfloat16), compile=True)
    data = batches(device="cuda")
    step.warm_up(*data[0])
    scheduler = make_scheduler(step.optimizer, 0.01, one_cycle(6, 2, 0.001, 0.01))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in data:
            step(*batch)
            scheduler.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
