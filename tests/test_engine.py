"""An epoch and an evaluation against plain loops."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import LambdaLR

from fast_cifar.engine import Progress, evaluate, fit, train_epoch
from fast_cifar.optimizer import make_optimizer
from fast_cifar.schedules import one_cycle
from fast_cifar.train_step import TrainStep
from tests.helpers.stepping import FP32, batches, network


def epoch_of(model, data):
    optimizer = make_optimizer(model, 0.01)
    scheduler = LambdaLR(optimizer, one_cycle(len(data), 2, 0.001, 0.01))
    return train_epoch(TrainStep(model, optimizer, FP32), data, scheduler), optimizer, scheduler


def test_an_epoch_reports_the_mean_loss_and_accuracy_of_its_batches():
    data = batches()
    result, _, _ = epoch_of(network(), data)
    model = network()
    optimizer = make_optimizer(model, 0.01)
    f = one_cycle(len(data), 2, 0.001, 0.01)
    step = TrainStep(model, optimizer, FP32)
    losses, correct = [], 0
    for i, batch in enumerate(data):
        optimizer.param_groups[0]["lr"] = 0.01 * f(i)
        loss, right, _ = step(*batch)
        losses.append(loss.item())
        correct += int(right)
    assert result.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert result.accuracy == pytest.approx(correct / (16 * len(data)))
    assert result.images == 16 * len(data)
    assert result.images_per_second == pytest.approx(result.images / result.seconds)


def test_the_schedule_advances_once_a_step():
    _, _, scheduler = epoch_of(network(), batches())
    assert scheduler.last_epoch == 6


def test_a_skipped_update_does_not_advance_the_schedule():
    model = network()
    optimizer = make_optimizer(model, 0.01)
    scheduler = LambdaLR(optimizer, one_cycle(6, 2, 0.001, 0.01))
    step = TrainStep(model, optimizer, FP32)
    real, calls = step.__call__, iter([True, False, True, False, True, True])

    class Skipping:
        model = step.model

        def __call__(self, inputs, labels):
            loss, correct, _ = real(inputs, labels)
            return loss, correct, next(calls)

    train_epoch(Skipping(), batches(), scheduler)
    assert scheduler.last_epoch == 4


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_equals_a_plain_loop_and_leaves_the_model_alone(training):
    model = network().train(training)
    data = [*batches(3), (torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0]))]
    before = copy.deepcopy(model.state_dict())
    result = evaluate(model, data, FP32)
    assert model.training is training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    reference = copy.deepcopy(model).eval()
    with torch.no_grad():
        logits = torch.cat([reference(inputs) for inputs, _ in data])
    labels = torch.cat([labels for _, labels in data])
    torch.testing.assert_close(result.logits, logits)
    assert result.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert result.correct == (logits.argmax(1) == labels).sum()
    assert result.count == 53
    assert result.accuracy == result.correct / 53


def test_test_time_augmentation_averages_an_image_and_its_mirror_image():
    model = network().eval()
    data = batches(1)
    with torch.no_grad():
        expected = (model(data[0][0]) + model(data[0][0].flip(-1))) / 2
    torch.testing.assert_close(evaluate(model, data, FP32, tta=True).logits, expected)


def test_fit_equals_a_plain_loop_over_epochs_with_any_loader_and_optimizer():
    model, other, data, test = network(), network(), batches(), batches(2)
    optimizer, plain = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, other))
    scheduler, halving = (torch.optim.lr_scheduler.StepLR(o, 6, 0.5) for o in (optimizer, plain))
    seen = []
    rows = fit(
        model, optimizer, data, epochs=3, scheduler=scheduler, test_loader=test, criterion=loss, on_epoch=seen.append
    )
    assert seen == rows
    for epoch, row in enumerate(rows, start=1):
        losses, rate = [], halving.get_last_lr()[0]
        for inputs, labels in data:
            plain.zero_grad()
            batch_loss = loss(other(inputs), labels)
            batch_loss.backward()
            plain.step()
            losses.append(batch_loss.item())
            halving.step()
        expected = evaluate(other, test)
        assert (row["epoch"], row["lr"]) == (epoch, rate)
        assert row["train_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
        assert (row["test_loss"], row["test_accuracy"]) == pytest.approx((expected.loss, expected.accuracy), rel=1e-3)


def loss(logits, labels):
    return F.cross_entropy(logits, labels, label_smoothing=0.3)


def test_fit_without_a_test_loader_has_null_test_fields_and_continues_where_it_stopped():
    model, other = network(), network()
    whole = fit(model, torch.optim.SGD(model.parameters(), lr=0.1), batches(), epochs=3)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    progress = Progress.start(torch.device("cpu"))
    first = fit(other, optimizer, batches(), epochs=2, progress=progress)
    rows = first + fit(other, optimizer, batches(), epochs=3, progress=progress)
    assert [row["train_loss"] for row in rows] == [row["train_loss"] for row in whole]
    assert all(row["test_accuracy"] is None for row in rows)
    assert progress.epoch == 3


def test_fit_evaluates_when_it_is_due_and_always_at_the_end():
    model = network()
    rows = fit(
        model, torch.optim.SGD(model.parameters(), lr=0.1), batches(), epochs=5, test_loader=batches(1), eval_every=3
    )
    assert [row["test_loss"] is not None for row in rows] == [False, False, True, False, True]
