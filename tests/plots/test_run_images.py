"""Which images a run draws."""

import pytest
import torch

from fast_cifar.build import build_setup
from fast_cifar.engine import Evaluation
from fast_cifar.plots import run_images


@pytest.fixture
def drawn(monkeypatch):
    """What each grid or figure was given, by the name of its function."""
    calls = {}
    grids, training = run_images.grids, run_images.training
    for module, names in ((grids, ("samples", "augmented", "misclassified")), (training, ("confusion",))):
        for name in names:
            monkeypatch.setattr(module, name, lambda path, *shown, name=name: calls.update({name: shown}))
    for name in ("schedule", "curves"):
        monkeypatch.setattr(training, name, lambda path, *shown, name=name, **more: calls.update({name: shown} | more))
    return calls


def evaluation_of(split, predictions):
    """Each image gets its prediction; the later it comes, the more confident."""
    logits = torch.zeros(len(split), 2)
    logits[torch.arange(len(split)), predictions] = torch.linspace(1, 5, len(split))
    return Evaluation(0.0, int((predictions == split.labels).sum()), logits, split.labels)


def test_the_titles_say_what_was_trained_on_what(quick, drawn, tmp_path):
    setup = build_setup(quick(weight_decay=0.25))
    run_images.draw_training_data(tmp_path, setup, setup.train_loader(seed=5), [0.1])
    test = setup.data.test
    run_images.draw_results(tmp_path, setup, [], evaluation_of(test, test.labels), "trained", "result")
    name = setup.data.name
    trained = f"{name}, width 64, batch 8, weight decay 0.25, label smoothing 0.1"
    assert setup.title(5) == f"{trained}, seed 5"
    assert setup.title(5, 3) == f"{trained}, seeds 5 to 7"
    assert drawn["schedule"][-1] == f"One cycle: {trained}, seed 5"
    assert drawn["curves"][-2:] == drawn["confusion"][-2:] == ("trained", "result")
    assert drawn["label_smoothing"] == 0.1
    assert drawn["samples"][-1] == drawn["augmented"][-1] == f"Training images of {name}"
    assert drawn["misclassified"][-1] == f"test images of {name}"


def test_the_confusion_matrix_equals_one_counted_by_hand():
    generator = torch.Generator().manual_seed(0)
    truths, predictions = (torch.randint(4, (200,), generator=generator) for _ in range(2))
    expected = [[0] * 4 for _ in range(4)]
    for truth, prediction in zip(truths.tolist(), predictions.tolist(), strict=True):
        expected[truth][prediction] += 1
    assert run_images.confusion_matrix(truths, predictions, 4).tolist() == expected


def test_the_most_confident_mistakes_come_first(quick, drawn, tmp_path):
    setup = build_setup(quick())
    test = setup.data.test
    predictions = 1 - test.labels
    predictions[3] = test.labels[3]  # one is right
    run_images.draw_results(tmp_path, setup, [], evaluation_of(test, predictions), "title")
    images, truths, predicted, confidences, _ = drawn["misclassified"]
    assert len(images) == len(test) - 1
    assert confidences == sorted(confidences, reverse=True)
    assert torch.equal(images[0], test.images[-1])
    assert (truths[0], predicted[0]) == ("dog", "cat")
    assert drawn["confusion"][0].trace() == 1


def test_samples_carry_the_names_of_their_classes(quick, drawn, tmp_path):
    setup = build_setup(quick())
    run_images.draw_training_data(tmp_path, setup, setup.train_loader(0), [0.1])
    train = setup.data.train
    for image, name in zip(*drawn["samples"][:2], strict=True):
        place = next(i for i, other in enumerate(train.images) if torch.equal(image, other))
        assert setup.data.classes[train.labels[place]] == name


@pytest.mark.parametrize(
    "options", [{}, {"alternate_flips": True, "cutout": 0}, {"padding": 0, "flip": False}], ids=str
)
def test_augmented_images_are_those_of_the_loaders_own_batches(quick, drawn, tmp_path, options):
    setup = build_setup(quick(batch_size=24, **options))  # all images are in one batch
    loader = setup.train_loader(seed=5)
    loader.set_epoch(3)
    before = torch.get_rng_state()
    run_images.draw_training_data(tmp_path, setup, loader, [0.1])
    assert loader.epoch == 3
    assert torch.equal(torch.get_rng_state(), before)
    originals, views, *_ = drawn["augmented"]
    train = setup.data.train.images
    chosen = [next(i for i, other in enumerate(train) if torch.equal(image, other)) for image in originals]
    for epoch in range(views.shape[1]):
        loader.set_epoch(epoch)
        ((batch, _),) = loader
        order = loader.draws(epoch)[0].tolist()
        pixels = batch.permute(0, 2, 3, 1) * torch.tensor(loader.std) + torch.tensor(loader.mean)
        expected = (255 * pixels[[order.index(image) for image in chosen]]).round().to(torch.uint8)
        assert torch.equal(views[:, epoch], expected)


def test_all_of_ten_classes_are_augmented(drawn, tmp_path, quick):
    setup = build_setup(quick(data="synthetic", limit_train=40, limit_test=10))
    run_images.draw_training_data(tmp_path, setup, setup.train_loader(0), [0.1])
    assert sorted(drawn["augmented"][2]) == sorted(setup.data.classes)
