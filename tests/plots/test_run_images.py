"""What the pictures of a run are made of."""

import pytest
import torch

from fast_cifar.build import build_setup
from fast_cifar.data.splits import Split
from fast_cifar.engine import Evaluation
from fast_cifar.plots import run_images


@pytest.fixture
def setup(quick):
    return build_setup(quick())


@pytest.fixture
def drawn(monkeypatch):
    """What each picture was asked to show, by the name of its function."""
    calls = {}
    grids, training = run_images.grids, run_images.training
    for module, names in ((grids, ("samples", "augmented", "misclassified")), (training, ("confusion",))):
        for name in names:
            monkeypatch.setattr(module, name, lambda path, *shown, name=name: calls.update({name: shown}))
    monkeypatch.setattr(training, "schedule", lambda *_: None)
    monkeypatch.setattr(training, "curves", lambda *_: None)
    return calls


def evaluation_of(split, answers):
    """Each image is taken for its answer; the surer, the later it comes."""
    logits = torch.zeros(len(split), 2)
    logits[torch.arange(len(split)), answers] = torch.linspace(1, 5, len(split))
    return Evaluation(0.0, int((answers == split.labels).sum()), logits, split.labels)


def test_the_confusion_matrix_equals_one_counted_by_hand():
    generator = torch.Generator().manual_seed(0)
    truths, answers = (torch.randint(4, (200,), generator=generator) for _ in range(2))
    expected = [[0] * 4 for _ in range(4)]
    for truth, answer in zip(truths.tolist(), answers.tolist(), strict=True):
        expected[truth][answer] += 1
    assert run_images.confusion_matrix(truths, answers, 4).tolist() == expected


def test_the_mistakes_are_shown_surest_first(setup, drawn, tmp_path):
    test = setup.data.test
    answers = 1 - test.labels
    answers[3] = test.labels[3]  # one is right
    run_images.closing_pictures(tmp_path, setup, [], evaluation_of(test, answers), "title")
    images, truths, predictions, confidences = drawn["misclassified"]
    assert len(images) == len(test) - 1
    assert confidences == sorted(confidences, reverse=True)
    assert torch.equal(images[0], test.images[-1])
    assert (truths[0], predictions[0]) == ("dog", "cat")
    assert drawn["confusion"][0].trace() == 1


def test_samples_carry_the_names_of_their_classes(setup, drawn, tmp_path):
    run_images.opening_pictures(tmp_path, setup, setup.train_loader(0), [0.1])
    images, names = drawn["samples"]
    train: Split = setup.data.train
    for image, name in zip(images, names, strict=True):
        place = next(i for i, other in enumerate(train.images) if torch.equal(image, other))
        assert setup.data.classes[train.labels[place]] == name


@pytest.mark.parametrize("off", [True, False])
def test_augmented_views_are_the_runs_own_augmentation(quick, drawn, tmp_path, off):
    nothing = {"padding": 0, "cutout": 0, "flip": False} if off else {}
    setup = build_setup(quick(**nothing))
    run_images.opening_pictures(tmp_path, setup, setup.train_loader(0), [0.1])
    originals, views, _ = drawn["augmented"]
    same = (views == originals[:, None]).flatten(2).all(dim=2)
    assert bool(same.all()) is off
