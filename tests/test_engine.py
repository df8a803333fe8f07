"""The training loop and an evaluation against plain loops."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from fast_cifar import engine
from fast_cifar.engine import Progress, evaluate, fit, train_epoch
from fast_cifar.loader import DeviceLoader
from fast_cifar.optimizer import make_optimizer, one_cycle_scheduler
from fast_cifar.train_step import TrainStep
from tests.helpers.networks import FP32, batches, flat, network

criterion = partial(F.cross_entropy, label_smoothing=0.3)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def test_fit_equals_a_plain_loop_over_epochs_with_any_loader_and_optimizer():
    model, other, data, test = network(), network(), batches(), batches(2)
    optimizer, plain = sgd(model), sgd(other)
    scheduler, halving = (torch.optim.lr_scheduler.StepLR(o, 6, 0.5) for o in (optimizer, plain))
    seen = []
    options = {"scheduler": scheduler, "test_loader": test, "criterion": criterion, "on_epoch": seen.append}
    rows = fit(model, optimizer, data, epochs=3, **options)
    assert seen == rows
    for epoch, row in enumerate(rows, start=1):
        losses, correct, rate = [], 0, halving.get_last_lr()[0]
        for inputs, labels in data:
            plain.zero_grad()
            logits = other(inputs)
            loss = criterion(logits, labels)
            loss.backward()
            plain.step()
            losses.append(loss.item())
            correct += int((logits.argmax(1) == labels).sum())
            halving.step()
        expected = evaluate(other, test)
        assert (row["epoch"], row["lr"]) == (epoch, rate)
        assert row["train_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
        assert row["train_accuracy"] == correct / (16 * len(data))
        assert (row["test_loss"], row["test_accuracy"]) == pytest.approx((expected.loss, expected.accuracy), rel=1e-3)
        assert row["images_per_second"] == pytest.approx(16 * len(data) / row["seconds"])


def test_fit_without_a_test_loader_has_null_test_fields_and_continues_where_it_stopped():
    model, other = network(), network()
    whole = fit(model, sgd(model), batches(), epochs=3)
    optimizer, progress = sgd(other), Progress.start(torch.device("cpu"))
    rows = [row for epochs in (2, 3) for row in fit(other, optimizer, batches(), epochs=epochs, progress=progress)]
    assert [row["train_loss"] for row in rows] == [row["train_loss"] for row in whole]
    assert all(row["test_accuracy"] is None for row in rows)
    assert progress.epoch == 3


def test_the_rate_of_an_epochs_last_step_is_kept_where_the_scheduler_hands_out_the_optimizers_own_tensor():
    model, rate = network(), torch.tensor(8.0)

    class Halving:  # as torch's schedulers before 2.10
        def get_last_lr(self):
            return [rate]

        def step(self):
            rate.div_(2)

    metrics = train_epoch(TrainStep(model, sgd(model), FP32), batches(), Halving())
    assert metrics.lr == 2 * rate


def test_a_skipped_update_does_not_advance_the_schedule():
    model = network()
    optimizer = make_optimizer(model, 0.01)
    scheduler = one_cycle_scheduler(optimizer, 6, 2, 0.001, 0.01)
    step = TrainStep(model, optimizer, FP32)
    updates = iter([True, False, True, False, True, True])

    class Skipping:
        def __call__(self, inputs, labels):
            return *step(inputs, labels)[:2], next(updates)

    Skipping.model = model
    train_epoch(Skipping(), batches(), scheduler)
    assert scheduler.last_epoch == 4


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_equals_a_plain_loop_and_leaves_the_model_as_it_was(training):
    model = network().train(training)
    data = [*batches(3), (torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0]))]
    before = flat(model.state_dict())
    result = evaluate(model, data, FP32)
    assert model.training is training
    assert flat(model.state_dict()) == before
    reference = copy.deepcopy(model).eval()
    with torch.no_grad():
        logits = torch.cat([reference(inputs) for inputs, _ in data])
    labels = torch.cat([labels for _, labels in data])
    torch.testing.assert_close(result.logits, logits)
    assert torch.equal(result.labels, labels)
    assert result.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert result.correct == (logits.argmax(1) == labels).sum()
    assert result.count == 53
    assert result.accuracy == result.correct / 53


def test_an_evaluation_that_is_cut_off_leaves_each_part_of_the_model_in_its_mode():
    def stop():
        raise KeyboardInterrupt

    model = network().train()
    model.layers[1].eval()  # a BatchNorm that is frozen
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, batches(), FP32, check=stop)
    evaluate(model, batches(), FP32)
    assert [module.training for module in model.layers[:3]] == [True, False, True]


def test_test_time_augmentation_averages_an_image_and_its_mirror_image():
    model = network().eval()
    data = batches(1)
    with torch.no_grad():
        expected = (model(data[0][0]) + model(data[0][0].flip(-1))) / 2
    torch.testing.assert_close(evaluate(model, data, FP32, tta=True).logits, expected)


def test_the_next_epoch_is_drawn_while_the_device_is_still_busy_with_the_present_one(monkeypatch):
    images = torch.randint(256, (32, 8, 8, 3), dtype=torch.uint8)
    loader = DeviceLoader(images, torch.arange(32) % 4, 16, train=True, device="cpu", cutout=2, padding=1)
    events, draws, model = [], loader.draws, network()
    monkeypatch.setattr("fast_cifar.loader.works_asynchronously", lambda device: True)
    monkeypatch.setattr(loader, "draws", lambda epoch: events.append(epoch) or draws(epoch))
    monkeypatch.setattr(engine, "synchronize", lambda device: events.append("wait"))
    fit(model, sgd(model), loader, epochs=2)
    assert events == ["wait", 0, 1, "wait", "wait", 2, "wait"]
