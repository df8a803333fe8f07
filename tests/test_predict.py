"""Predictions of a checkpoint: for single images, from the command line and from Python, and for the whole test set."""

import pytest
import torch
from PIL import Image

from fast_cifar import TrainOptions, predict
from fast_cifar.custom_resnet import CustomResNet
from fast_cifar.predict import evaluate_checkpoint
from fast_cifar.runs import checkpoint
from fast_cifar.system.errors import UserError
from fast_cifar.trainer import train
from tests.helpers.networks import use_small_network
from tests.helpers.runs import silent
from tests.helpers.scripts import refused

RED, GREEN = (180, 50, 50), (50, 180, 50)  # cats are red and dogs are green


@pytest.fixture(scope="module")
def trained(quick, tmp_path_factory):
    """The options of a run of the small network that has learned its two classes, and its summary."""
    with pytest.MonkeyPatch.context() as patch:
        use_small_network(patch)
        options = quick(out=str(tmp_path_factory.mktemp("runs")), name="a", epochs=6, lr_max=0.05)
        yield options, train(options, log=silent)


@pytest.fixture
def best(trained):
    return f"{trained[0].out}/a/best.pt"


@pytest.fixture
def edited(trained, tmp_path):
    """`edited(classes=...)`: a copy of last.pt with other contents."""

    def save(**changes):
        path = tmp_path / "last.pt"
        checkpoint.save(path, checkpoint.load(f"{trained[0].out}/a/last.pt") | changes)
        return path

    return save


def colour(path, rgb, size=(32, 32)):
    Image.new("RGB", size, rgb).save(path)
    return str(path)


def test_probabilities_sum_to_one_and_the_likeliest_class_is_right(best, tmp_path):
    red, green = colour(tmp_path / "red.png", RED), colour(tmp_path / "green.png", GREEN)
    classes, probabilities = predict.predict(best, [red, green], "cpu")
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2))
    assert [classes[i] for i in probabilities.argmax(dim=1)] == ["cat", "dog"]


def test_an_image_of_any_size_and_kind_is_accepted(best, tmp_path):
    large = colour(tmp_path / "large.jpg", RED, (300, 200))
    Image.new("L", (10, 50), 90).save(tmp_path / "grey.gif")
    assert predict.predict(best, [large, tmp_path / "grey.gif"], "cpu")[1].shape == (2, 2)


@pytest.mark.parametrize("where", ["eval_loader", "evaluate"])
def test_too_little_memory_is_one_line(best, tmp_path, monkeypatch, quick, where):
    def refuse(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(predict, where, refuse)
    with pytest.raises(UserError, match="out of memory"):
        predict.predict(best, [colour(tmp_path / "red.png", RED)], "cpu")
    with pytest.raises(UserError, match="out of memory"):
        evaluate_checkpoint(quick(eval_only=best), log=silent)


def test_the_network_has_the_width_it_was_trained_with(monkeypatch):
    monkeypatch.setattr(predict, "CustomResNet", CustomResNet)
    model = CustomResNet(width=8)
    contents = {"classes": ["a"] * 10, "options": {"dropout": 0.0, "width": 8}, "model": model.state_dict()}
    rebuilt = predict.network_of(contents, "x.pt")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), rebuilt.parameters(), strict=True))


def test_the_command_prints_the_classes_in_order(best, tmp_path, capsys):
    red = colour(tmp_path / "red.png", RED)
    assert predict.main([best, red, "--device", "cpu"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == red
    assert [line.split()[-1] for line in lines] == ["cat", "dog"]
    shares = [float(line.split("%")[0]) for line in lines]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.05)


@pytest.mark.parametrize("content", [None, b"", b"not an image"])
def test_an_image_that_cannot_be_read_is_named(best, tmp_path, run_here, content):
    if content is not None:
        (tmp_path / "x.png").write_bytes(content)
    assert "x.png" in refused(run_here(predict.main, best, "x.png"))


@pytest.mark.parametrize(
    "arguments", [[], ["a.pt"], ["no.pt", "x.png"], ["a.pt", "x.png", "--what"], ["a.pt", "x.png", "--top", "0"]]
)
def test_a_wrong_command_line_is_one_line(arguments, run_here):
    refused(run_here(predict.main, *arguments))


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_evaluating_a_checkpoint_finds_what_training_found(options, quick, folder, ema):
    one = options(ema=ema)
    summary = train(one, log=silent)
    assert ("weights" in checkpoint.load(folder / "last.pt")) == (ema > 0)
    assert "weights" not in checkpoint.load(folder / "best.pt")
    for data in (one.data, "cifar10"):  # the default stands for the data that it was trained on
        lines = []
        result = evaluate_checkpoint(quick(data=data, eval_only=str(folder / "last.pt")), log=lines.append)
        assert result.accuracy == summary["test_accuracy"]
        assert lines[0].startswith(f"test accuracy {100 * result.accuracy:.2f} %{' (EMA 0.9)' if ema else ''}: ")
        assert result.loss == pytest.approx(summary["test_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("changed", "error"),
    [({"data": 7}, "--data 7 .* type"), (None, r"last\.pt is incomplete: .* no data, ")],
)
def test_a_checkpoint_that_does_not_say_how_it_was_tested_is_refused(trained, edited, changed, error):
    path = edited(options=trained[0].resolved().as_dict() | changed if changed else {"dropout": 0.0})
    with pytest.raises(UserError, match=error):
        evaluate_checkpoint(TrainOptions(eval_only=str(path)))


@pytest.mark.parametrize(
    ("classes", "error"), [(["bird", "fish"], "bird, fish.*cat, dog"), (["a\nb", "c"], "a b, c.*cat, dog")]
)
def test_a_checkpoint_of_other_classes_is_refused_in_one_line(edited, quick, classes, error):
    with pytest.raises(UserError, match=error) as caught:
        evaluate_checkpoint(quick(eval_only=str(edited(classes=classes))))
    assert len(str(caught.value).splitlines()) == 1
