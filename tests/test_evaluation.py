"""A checkpoint put to the test again."""

import pytest

from fast_cifar.errors import UserError
from fast_cifar.evaluation import evaluate_checkpoint
from fast_cifar.trainer import train
from tests.conftest import write_class_folder


@pytest.fixture
def trained(small_network, quick, tmp_path):
    summary = train(quick(out=str(tmp_path), name="a"), log=lambda line: None)
    return tmp_path / "a/last.pt", summary


def test_it_finds_what_training_found(trained, quick):
    path, summary = trained
    result = evaluate_checkpoint(quick(eval_only=str(path)))
    assert (result.accuracy, result.loss) == (summary["test_accuracy"], pytest.approx(summary["test_loss"], rel=1e-5))


def test_without_data_it_takes_the_data_it_was_trained_on(trained, quick):
    path, summary = trained
    options = quick(eval_only=str(path))
    assert evaluate_checkpoint(options.replace(data="cifar10")).accuracy == summary["test_accuracy"]


def test_other_classes_are_refused(trained, quick, tmp_path):
    others = write_class_folder(tmp_path / "others", classes=("bird", "fish"))
    with pytest.raises(UserError, match=r"cat, dog.*bird, fish"):
        evaluate_checkpoint(quick(eval_only=str(trained[0]), data=str(others)))
