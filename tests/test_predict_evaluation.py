"""A checkpoint put to the test again."""

import pytest

from fast_cifar import TrainOptions
from fast_cifar.predict import evaluate_checkpoint
from fast_cifar.runs import checkpoint
from fast_cifar.system.errors import UserError
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


def test_with_averaged_weights_it_finds_what_training_found(small_network, quick, tmp_path):
    summary = train(quick(out=str(tmp_path), name="a", ema=0.9), log=lambda line: None)
    for name in ("last.pt", "best.pt"):
        found = checkpoint.load(tmp_path / "a" / name)
        assert ("weights" in found) == (name == "last.pt")
    result = evaluate_checkpoint(quick(eval_only=str(tmp_path / "a/last.pt")))
    assert (result.accuracy, result.loss) == (summary["test_accuracy"], pytest.approx(summary["test_loss"], rel=1e-5))


def test_without_data_it_takes_the_data_it_was_trained_on(trained, quick):
    path, summary = trained
    options = quick(eval_only=str(path))
    assert evaluate_checkpoint(options.replace(data="cifar10")).accuracy == summary["test_accuracy"]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"dropout": 0.0}, r"last\.pt is incomplete: .* no data, "), ({"data": 7}, "--data 7 .* type")],
)
def test_a_checkpoint_that_does_not_say_how_it_was_tested_is_refused(trained, quick, options, said):
    path = trained[0]
    contents = checkpoint.load(path)
    whole = contents["options"] if "data" in options else {}
    checkpoint.save(path, contents | {"options": whole | options})
    with pytest.raises(UserError, match=said):
        evaluate_checkpoint(TrainOptions(eval_only=str(path)))


def test_classes_with_odd_names_are_refused_in_one_line(trained, quick):
    path = trained[0]
    checkpoint.save(path, checkpoint.load(path) | {"classes": ["a\nb", "c"]})
    with pytest.raises(UserError, match="a b, c.*cat, dog") as caught:
        evaluate_checkpoint(quick(eval_only=str(path)))
    assert len(str(caught.value).splitlines()) == 1


def test_other_classes_are_refused(trained, quick, tmp_path):
    others = write_class_folder(tmp_path / "others", classes=("bird", "fish"))
    with pytest.raises(UserError, match=r"cat, dog.*bird, fish"):
        evaluate_checkpoint(quick(eval_only=str(trained[0]), data=str(others)))
