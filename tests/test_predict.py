"""Naming what is in a picture, from the command line and from Python."""

import pytest
import torch
from PIL import Image

from fast_cifar import predict
from fast_cifar.custom_resnet import CustomResNet
from fast_cifar.trainer import train


@pytest.fixture
def trained(small_network, quick, tmp_path):
    train(quick(out=str(tmp_path), name="a", epochs=6, lr_max=0.05), log=lambda line: None)
    return tmp_path / "a/best.pt"


def test_the_network_has_the_width_it_was_trained_with():
    torch.manual_seed(0)
    model = CustomResNet(width=8)
    contents = {"classes": ["a"] * 10, "options": {"dropout": 0.0, "width": 8}, "model": model.state_dict()}
    rebuilt = predict.network_of(contents, "x.pt")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), rebuilt.parameters(), strict=True))


def colour(path, rgb, size=(32, 32)):
    Image.new("RGB", size, rgb).save(path)
    return str(path)


def test_probabilities_sum_to_one_and_the_likeliest_is_right(trained, tmp_path):
    red, green = colour(tmp_path / "red.png", (180, 50, 50)), colour(tmp_path / "green.png", (50, 180, 50))
    classes, answers = predict.predict(trained, [red, green], "cpu")
    torch.testing.assert_close(answers.sum(dim=1), torch.ones(2))
    assert [classes[i] for i in answers.argmax(dim=1)] == ["cat", "dog"]  # cats are red and dogs are green


def test_an_image_of_any_size_and_kind_is_taken(trained, tmp_path):
    large = colour(tmp_path / "large.jpg", (180, 50, 50), (300, 200))
    Image.new("L", (10, 50), 90).save(tmp_path / "grey.gif")
    assert predict.predict(trained, [large, tmp_path / "grey.gif"], "cpu")[1].shape == (2, 2)


def test_the_command_prints_the_classes_in_order(trained, tmp_path, capsys):
    red = colour(tmp_path / "red.png", (180, 50, 50))
    assert predict.main([str(trained), red, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == red
    assert lines[1].endswith("cat")
    assert lines[2].endswith("dog")
    shares = [float(line.split("%")[0]) for line in lines[1:]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.05)


def one_error_line(capsys):
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_a_missing_checkpoint_is_one_line(tmp_path, capsys):
    assert predict.main([str(tmp_path / "no.pt"), "x.png"]) == 2
    assert "no.pt" in one_error_line(capsys)


@pytest.mark.parametrize("content", [None, b"", b"not an image"])
def test_an_image_that_cannot_be_read_is_named(trained, tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "x.png").write_bytes(content)
    assert predict.main([str(trained), str(tmp_path / "x.png")]) == 2
    assert "x.png" in one_error_line(capsys)


@pytest.mark.parametrize("arguments", [[], ["a.pt"], ["a.pt", "x.png", "--what"], ["a.pt", "x.png", "--top", "0"]])
def test_a_wrong_command_line_is_one_line(arguments, capsys):
    assert predict.main(arguments) == 2
    one_error_line(capsys)
