"""The training step against one written out by hand: eager, compiled, in mixed precision, as one graph; and the state
that a warm-up or a range test preserves."""

import copy
import random
import re
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fast_cifar import train_step
from fast_cifar.custom_resnet import CustomResNet
from fast_cifar.engine import evaluate
from fast_cifar.optimizer import WeightEMA, create_state, load_state, make_optimizer, one_cycle_scheduler, set_rate
from fast_cifar.system.device import Precision, seeded_run
from fast_cifar.train_step import TrainStep, preserve_state
from tests.helpers.devices import DEVICES, needs_cuda
from tests.helpers.networks import FP32, batches, flat, network

BF16 = Precision("cpu", torch.bfloat16)
RATE = 0.01


def step_of(model, precision=FP32, **keywords):
    return TrainStep(model, make_optimizer(model, RATE), precision, **keywords)


def schedule(step):
    return one_cycle_scheduler(step.optimizer, 6, 2, RATE / 10, RATE)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_equal_a_plain_eager_loop_with_torchs_adam(smoothing, decay, device):
    mine, theirs = network(device=device), network(device=device)
    criterion = partial(F.cross_entropy, label_smoothing=smoothing)
    step = TrainStep(mine, make_optimizer(mine, RATE, decay), FP32, criterion=criterion)
    plain = torch.optim.AdamW(theirs.parameters(), lr=RATE, weight_decay=decay, fused=False)
    for inputs, labels in batches(device=device):
        logits = theirs(inputs)
        loss, correct, updated = step(inputs, labels)
        expected = criterion(logits, labels)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        assert correct == (logits.argmax(1) == labels).sum()
        assert updated
        plain.zero_grad()
        expected.backward()
        plain.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_mixed_precision_stays_near_full_precision_and_keeps_the_weights_in_float32():
    full, mixed = network(), network()
    a, b = step_of(full), step_of(mixed, BF16)
    for batch in batches():
        assert b(*batch)[0].item() == pytest.approx(a(*batch)[0].item(), abs=0.05)
    assert {p.dtype for p in mixed.parameters()} == {p.grad.dtype for p in mixed.parameters()} == {torch.float32}


def test_warming_up_compiles_and_leaves_no_trace():
    model = network(dropout=0.1)
    average = WeightEMA(model, 0.5)
    step = step_of(model, compile=True, ema=average)
    assert step.needs_warm_up
    before, random_before = flat([model.state_dict(), average.state_dict()]), torch.get_rng_state()
    assert step.warm_up(*batches()[0]) > 0
    assert not step.needs_warm_up
    assert flat([model.state_dict(), average.state_dict()]) == before
    assert not step.optimizer.state
    assert torch.equal(random_before, torch.get_rng_state())
    assert not step_of(model).needs_warm_up


@pytest.mark.parametrize("device", DEVICES)
def test_float16_overflow_is_noticed_although_the_optimizer_skips_in_its_kernel(device):
    model = network(device=device)
    step = step_of(model)
    step.scaler = torch.amp.GradScaler(device, init_scale=2.0**16)
    step.load_scaler({})
    before = [p.clone() for p in model.parameters()]
    inputs, labels = batches(device=device)[0]
    assert step(inputs * float("inf"), labels)[2] is False
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert step(inputs, labels)[2] is True


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_whole_network_keeps_the_memory_format_of_its_weights(memory_format):
    model = network().to(memory_format=memory_format)
    seen = []
    model.layers[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    inputs, labels = batches()[0]
    for other in (torch.channels_last, torch.contiguous_format):
        batch = inputs.contiguous(memory_format=other), labels
        step_of(model)(*batch)
        evaluate(model, [batch], FP32)
    assert len(seen) == 4
    assert all(output.is_contiguous(memory_format=memory_format) for output in seen)


@pytest.fixture
def recorded(monkeypatch):
    """Stands in for a CUDA graph where there is no CUDA: what was recorded is run again, from the same tensors. Returns
    the list of recordings."""
    recordings = []

    def capture_graph(work, device):
        recordings.append(work)
        return work

    monkeypatch.setattr(train_step, "capture_graph", capture_graph)
    return recordings


@pytest.fixture(params=DEVICES)
def device_of_graph(request):
    """Where the steps of `graphed_step` run as one graph."""
    if request.param == "cpu":
        request.getfixturevalue("recorded")
    return request.param


def capturable_adam(parameters):
    return torch.optim.Adam(parameters, lr=torch.tensor(RATE), fused=True, capturable=True)


def graphed_step(model, dtype=torch.float32, **keywords):
    """A step that is recorded on CUDA; elsewhere one that would be."""
    device = next(model.parameters()).device.type
    if device == "cuda":
        return step_of(model, Precision(device, dtype), compile=True, **keywords)
    step = TrainStep(model, capturable_adam(model.parameters()), Precision(device, dtype), **keywords)
    step._wants_graph = True
    return step


def test_a_recorded_step_reads_its_own_buffers_only(recorded):
    step = graphed_step(network())
    inputs, labels = batches()[0]
    step.warm_up(inputs, labels)
    first, second = inputs.clone(), inputs.clone()
    step(first, labels)
    first.fill_(float("nan"))
    assert torch.isfinite(step(second, labels)[0])
    assert len(recorded) == 1


def test_the_optimizers_state_stays_where_it_was_recorded(recorded):
    def state():
        return [value for state in step.optimizer.state.values() for value in state.values()]

    step = graphed_step(network())
    step.warm_up(*batches()[0])
    addresses = [value.data_ptr() for value in state()]
    assert addresses
    assert not any(value.any() for value in state())
    step(*batches()[0])
    assert addresses == [value.data_ptr() for value in state()]


def test_a_batch_of_another_shape_is_trained_without_the_recording(recorded):
    step, reference = graphed_step(network()), step_of(network())
    step.warm_up(*batches()[0])
    inputs, labels = batches()[1]
    assert step(inputs[:5], labels[:5])[0].item() == pytest.approx(reference(inputs[:5], labels[:5])[0].item())


def test_a_hyperparameter_that_changes_after_the_recording_is_not_the_recorded_one(monkeypatch):
    def refuse_to_replay(inputs, labels):
        raise AssertionError

    step, reference = graphed_step(network()), graphed_step(network())  # the second is never recorded
    monkeypatch.setattr(train_step, "capture_graph", lambda work, device: work)
    step.warm_up(*batches()[0])
    step._graph.replay = refuse_to_replay
    for inputs, labels in batches(3):
        for one in (step, reference):
            one.optimizer.param_groups[0]["betas"] = (0.5, 0.9)  # as torch's OneCycleLR does
        step(inputs, labels)
        reference(inputs, labels)
    assert flat(step.model.state_dict()) == flat(reference.model.state_dict())


def test_a_schedule_that_is_made_after_the_recording_replays_it(recorded):
    step = graphed_step(network())
    step.warm_up(*batches()[0])
    one_cycle_scheduler(step.optimizer, 10, 3, 0.001, 7 * RATE)
    step._update = None  # a step that is not replayed needs it
    assert torch.isfinite(step(*batches()[0])[0])


def refuse_to_capture(work, device):
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


def refuse_to_capture_as_torch_does(work, device):
    try:
        refuse_to_capture(work, device)
    finally:
        raise RuntimeError("operation failed due to a previous error during capture")


@pytest.mark.parametrize(
    ("capture_graph", "reason"),
    [
        (refuse_to_capture, "no CUDA graph, .*not permitted when stream is capturing"),
        (refuse_to_capture_as_torch_does, "no CUDA graph, .*not permitted when stream is capturing"),
        (lambda work, device: work() or (lambda: None), "CUDA graph does not train"),
    ],
    ids=["refused", "refused twice", "without effect"],
)
def test_without_a_graph_that_works_the_step_says_why_and_trains(monkeypatch, capture_graph, reason):
    monkeypatch.setattr(train_step, "capture_graph", capture_graph)
    model = network()
    step = graphed_step(model)
    step.warm_up(*batches()[0])
    assert re.search(reason, step.note)
    assert "\n" not in step.note
    before = [p.clone() for p in model.parameters()]
    step(*batches()[0])
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("dtype", "make", "reason"),
    [
        (torch.float32, partial(torch.optim.SGD, lr=RATE, momentum=0.9), "cannot be captured"),
        (torch.float32, partial(torch.optim.Adam, lr=RATE), "cannot be captured"),
        (torch.float16, capturable_adam, "float16"),
    ],
    ids=["SGD", "a rate that is a number", "float16"],
)
@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_what_cannot_be_recorded_is_known_before_the_warm_up_which_then_trains_as_without_a_graph(
    recorded, monkeypatch, dtype, make, reason
):
    monkeypatch.setattr(train_step, "compiled", lambda function, device: function)
    model = network()
    step = TrainStep(model, make(model.parameters()), Precision("cuda", dtype), compile=True)
    assert reason in step.note
    step.warm_up(*batches()[0])
    assert not recorded
    assert not step.optimizer.state


@torch.no_grad()
def distance(tensors, others):
    """Of the first from the second, as a share of the second's norm."""
    a, b = (torch.cat([tensor.flatten() for tensor in group]) for group in (tensors, others))
    return float((a - b).norm() / b.norm())


def assert_same_steps(step, reference, data, tolerance):
    """Each step from the same state has the loss, the gradient and an update of the length of the reference's. Adam's
    first moment shows the gradient. A single weight proves nothing: Adam moves it as far when rounding turns the sign
    of a tiny gradient."""

    def moments(one):
        return [state["exp_avg"].clone() for state in one.optimizer.state.values()]

    def gradient(one, before):
        return [now - 0.9 * then for now, then in zip(moments(one), before, strict=True)]

    step.warm_up(*data[0])
    assert step.note is None
    assert step._graph is not None
    create_state(reference.optimizer)
    scheduler = schedule(reference)
    for batch in data:
        step.model.load_state_dict(reference.model.state_dict())
        load_state(step.optimizer, reference.optimizer.state_dict())
        weights, before = [p.detach().clone() for p in step.model.parameters()], moments(reference)
        (loss, correct, updated), (expected_loss, expected_correct, _) = (one(*batch) for one in (step, reference))
        assert updated
        assert loss.item() == pytest.approx(expected_loss.item(), rel=0.01)
        assert int(correct) == pytest.approx(int(expected_correct), abs=1)
        assert distance(gradient(step, before), gradient(reference, before)) < tolerance
        moved, expected_move = (distance(one.model.parameters(), weights) for one in (step, reference))
        assert moved == pytest.approx(expected_move, rel=0.1)
        scheduler.step()


# Wide of what rounding does (0.005 and 0.3), and below what the weights of one step before do (1.2).
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.05), (torch.bfloat16, 0.6)])
def test_each_recorded_step_of_the_real_network_does_what_the_eager_one_does_from_the_same_state(
    dtype, tolerance, device_of_graph, monkeypatch
):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    device = torch.device(device_of_graph)
    labels = torch.arange(16, device=device)
    data = [(torch.randn(16, 3, 32, 32, device=device), (labels + k) % 10) for k in range(3)]
    with seeded_run(0, device, deterministic=True):
        torch.manual_seed(0)
        eager = CustomResNet().to(device, memory_format=torch.channels_last)
        graphed = copy.deepcopy(eager)
        reference = step_of(eager, Precision(device_of_graph, dtype))
        assert_same_steps(graphed_step(graphed, dtype), reference, data, tolerance)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_each_replay_drops_other_features_and_the_seed_decides_which(dropout, device_of_graph):
    step, batch = graphed_step(network(dropout=dropout, device=device_of_graph)), batches(device=device_of_graph)[0]
    step.warm_up(*batch)
    set_rate(step.optimizer.param_groups[0], 0.0)  # the weights stay as they are
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        losses.append([step(*batch)[0].item() for _ in range(4)])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == (4 if dropout else 1)


def test_the_ema_follows_the_weights_from_one_recorded_step_to_the_next(device_of_graph):
    model, data = network(device=device_of_graph), batches(device=device_of_graph)
    step = graphed_step(model, ema=WeightEMA(model, 0.9))
    step.warm_up(*data[0])
    expected = {key: value.clone() for key, value in model.state_dict().items() if value.is_floating_point()}
    for batch in data:
        step(*batch)
        for key, average in expected.items():
            average.lerp_(model.state_dict()[key], 0.1)
    averaged = step.ema.state_dict()
    assert all(torch.allclose(averaged[key], average) for key, average in expected.items())
    assert distance(averaged.values(), model.state_dict().values()) > 0.01


def test_an_evaluation_between_recorded_steps_changes_nothing(device_of_graph):
    model, data = network(dropout=0.3, device=device_of_graph), batches(device=device_of_graph)
    step = graphed_step(model)

    def trained(*, evaluating):
        with preserve_state(model, step.optimizer):
            for batch in data:
                step(*batch)
                if evaluating:
                    evaluate(model, batches(2, size=40, device=device_of_graph))
            return flat([model.state_dict(), step.optimizer.state_dict()])

    with seeded_run(0, torch.device(device_of_graph), deterministic=True):
        step.warm_up(*data[0])
        assert trained(evaluating=True) == trained(evaluating=False)


@needs_cuda
def test_on_cuda_a_recorded_epoch_never_waits_for_the_device():
    step = step_of(network(device="cuda"), Precision("cuda", torch.bfloat16), compile=True)
    data = batches(device="cuda")
    step.warm_up(*data[0])
    scheduler = schedule(step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in data:
            step(*batch)
            scheduler.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(params=["fresh", "used"])
def pair(request):
    """A network and its optimiser, with or without state and gradients."""
    model = network(dropout=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1))
    if request.param == "used":
        disturb(model, optimizer)
    model.train()
    model.layers[1].eval()
    return model, optimizer


def disturb(model, optimizer):
    """Changes all that `preserve_state` promises to restore."""
    model.eval()
    for inputs, labels in batches(3):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        model.train()
    optimizer.param_groups[0]["lr"].fill_(7.0)
    optimizer.param_groups[0]["initial_lr"] = 3.0
    torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002


def everything(model, optimizer):
    gradients = [p.grad for p in model.parameters()]
    training = [module.training for module in model.modules()]
    randomness = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    return flat([model.state_dict(), optimizer.state_dict(), gradients, training, randomness])


def identities(model, optimizer):
    state = [value for state in optimizer.state.values() for value in state.values()]
    return [
        (id(tensor), tensor.data_ptr()) for tensor in [*model.parameters(), *state, optimizer.param_groups[0]["lr"]]
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_preserve_state_restores_everything_bit_for_bit_in_the_same_tensors(pair, fails):
    before, tensors = everything(*pair), identities(*pair)

    def use():
        with preserve_state(*pair):
            disturb(*pair)
            assert len([key for key, value in everything(*pair).items() if value != before.get(key)]) > 20
            if fails:
                raise RuntimeError("stop")

    if fails:
        with pytest.raises(RuntimeError, match="stop"):
            use()
    else:
        use()
    after = everything(*pair)
    assert [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)] == []
    assert identities(*pair) == tensors
