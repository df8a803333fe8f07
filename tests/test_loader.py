"""The loader against `apply` on the same draws, and the promises it makes about epochs, order and errors."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fast_cifar.augment import apply
from fast_cifar.loader import DeviceLoader, channel_statistics
from tests.helpers.devices import DEVICES, MPS, needs_cuda
from tests.helpers.images import MEAN, STD, random_images

N, BATCH = 70, 16


def data(n: int = N, height: int = 32, width: int = 32) -> tuple[Tensor, Tensor]:
    """Random images; an image's label is its number."""
    return random_images(n, height, width), torch.arange(n)


def make(n: int = N, *, train: bool = True, device: str = "cpu", **options) -> DeviceLoader:
    return DeviceLoader(*data(n), BATCH, train=train, device=device, **({"mean": MEAN, "std": STD} | options))


def labels_of(loader: DeviceLoader) -> list[int]:
    return torch.cat([labels for _, labels in loader]).tolist()


def assert_equals_apply(loader: DeviceLoader, epoch: int, **options) -> None:
    """Every batch of the epoch is `apply` on the images and draws that `loader.draws` names."""
    images, labels = loader.images.cpu(), loader.labels.cpu()
    loader.set_epoch(epoch)
    permutation, draws = loader.draws(epoch)
    batches = list(loader)
    assert len(batches) == len(loader) > 0
    for k, (inputs, targets) in enumerate(batches):
        part = slice(k * BATCH, (k + 1) * BATCH)
        expected = apply(
            images[permutation[part].cpu()].to(inputs.device), draws[part], mean=loader.mean, std=loader.std, **options
        )
        assert torch.equal(inputs, expected)
        assert inputs.dtype == expected.dtype
        assert inputs.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(targets.cpu(), labels[permutation[part].cpu()])


@pytest.mark.parametrize("device", [*DEVICES, MPS])
@pytest.mark.parametrize("pad_mode", ["zeros", "reflect"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 0},
        {"cutout": 0},
        {"flip": False},
        {"padding": 0, "flip": False},
        {"alternate_flips": True},
        {"dtype": torch.bfloat16},
    ],
)
def test_training_batches_equal_apply(options, pad_mode, device):
    to_apply = {key: value for key, value in options.items() if "flip" not in key} | {"pad_mode": pad_mode}
    assert_equals_apply(make(device=device, pad_mode=pad_mode, **options), epoch=3, **to_apply)


@pytest.mark.parametrize("device", [*DEVICES, MPS])
@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"pad_mode": "reflect", "padding": 3, "cutout": 5}])
def test_compiled_training_batches_equal_apply(options, device):
    assert_equals_apply(make(device=device, compile=True, **options), epoch=1, **options)


def test_training_batches_of_oblong_images_equal_apply():
    loader = DeviceLoader(*data(height=20, width=31), BATCH, train=True, device="cpu", cutout=7)
    assert_equals_apply(loader, epoch=0, cutout=7)


@pytest.mark.parametrize("compile", [False, True])
def test_evaluation_hands_out_all_images_in_order_and_as_they_are(compile):
    images, labels = data()
    loader = make(train=False, compile=compile)
    batches = list(loader)
    assert [len(targets) for _, targets in batches] == [16, 16, 16, 16, 6]
    assert torch.equal(torch.cat([targets for _, targets in batches]), labels)
    pixels = images.permute(0, 3, 1, 2) / 255
    expected = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(torch.cat([inputs for inputs, _ in batches]), expected)


@pytest.mark.parametrize("compile", [False, True])
def test_evaluation_uses_a_slice_of_a_larger_tensor_without_a_copy(compile):
    images, labels = (tensor[11:] for tensor in data(N + 11))
    loader = DeviceLoader(images, labels, BATCH, train=False, device="cpu", mean=MEAN, std=STD, compile=compile)
    assert loader.images.data_ptr() == images.data_ptr()
    expected = torch.cat([inputs for inputs, _ in make(N + 11, train=False)])[11:]
    assert torch.equal(torch.cat([inputs for inputs, _ in loader]), expected)


def test_the_images_of_a_training_loader_are_those_given():
    assert torch.equal(make(pad_mode="reflect").images, data()[0])


@pytest.mark.parametrize(
    ("n", "train", "length", "images"),
    [(70, True, 4, 64), (70, False, 5, 70), (64, True, 4, 64), (16, True, 1, 16)],
)
def test_an_epoch_hands_out_every_image_once_and_in_training_drops_the_short_batch(n, train, length, images):
    loader = make(n, train=train)
    handed_out = labels_of(loader)
    assert len(loader) == length == len(list(loader))
    assert len(handed_out) == images == len(set(handed_out))
    assert (handed_out == sorted(handed_out)) is not train


def test_iterating_to_the_end_moves_to_the_next_epoch():
    loader, other = make(), make()
    for epoch in range(3):
        assert loader.epoch == epoch
        next(iter(loader))  # leaving early does not
        other.set_epoch(epoch)
        assert labels_of(loader) == labels_of(other)


def test_set_epoch_overrides_the_next_epoch_of_an_iterator_in_progress():
    loader = make()
    batches = iter(loader)
    next(batches)
    loader.set_epoch(7)
    assert torch.equal(next(batches)[1], loader.draws(0)[0][BATCH : 2 * BATCH])
    list(batches)
    assert loader.epoch == 7


def test_each_epoch_and_each_seed_draw_something_else():
    permutations = [make(seed=seed).draws(epoch)[0] for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 2), (2, 1))]
    crops = [make(seed=seed).draws(epoch)[1].crop_y for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for a, b in [*combinations(permutations, 2), *combinations(crops, 2)]:
        assert not torch.equal(a, b)


def test_two_iterators_at_once_do_not_disturb_each_other():
    loader = make()
    for (first, first_labels), (second, second_labels) in zip(loader, loader, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first_labels, second_labels)


def draw_ahead(patch: pytest.MonkeyPatch) -> None:
    """Lets loaders take the CPU for a device that works asynchronously."""
    patch.setattr("fast_cifar.loader.works_asynchronously", lambda device: True)


def test_the_next_epoch_is_drawn_ahead_where_the_device_works_asynchronously_and_nowhere_else(monkeypatch):
    loader, drawn = make(), []
    draws = loader.draws
    monkeypatch.setattr(loader, "draws", lambda epoch: drawn.append(epoch) or draws(epoch))
    list(loader)
    assert drawn == [0]
    draw_ahead(monkeypatch)
    list(loader)
    assert drawn == [0, 1, 2]
    next(iter(loader))
    assert drawn == [0, 1, 2]
    next(iter(loader))
    assert drawn == [0, 1, 2, 2]


def handed_out(uses: list[tuple[str, int]]) -> list[tuple[int, list, list]]:
    """What a loader that is used like that hands out: (its epoch, inputs, labels) of each batch."""
    loader = DeviceLoader(*data(14, 5, 5), 4, train=True, device="cpu", cutout=2, alternate_flips=True)
    seen = []
    for use, n in uses:
        if use == "set_epoch":
            loader.set_epoch(n)
        elif use == "seed":
            loader.seed = n
        else:
            for k, (inputs, labels) in enumerate(loader.batches(n if use == "from" else 0)):
                seen.append((loader.epoch, inputs.tolist(), labels.tolist()))
                if use == "leave after" and k == n:
                    break
                if use == "set_epoch inside" and k == 1:
                    loader.set_epoch(n)
    return seen


@given(
    st.lists(
        st.tuples(st.sampled_from(["from", "leave after", "set_epoch", "set_epoch inside", "seed"]), st.integers(0, 2))
    )
)
def test_drawing_ahead_changes_nothing_however_a_loader_is_used(uses):
    uses = [*uses, ("from", 0), ("from", 0)]
    expected = handed_out(uses)
    with pytest.MonkeyPatch.context() as patch:
        draw_ahead(patch)
        assert handed_out(uses) == expected


@needs_cuda
def test_on_cuda_the_next_epoch_is_drawn_and_begun_without_waiting_for_the_device():
    loader = make(device="cuda", alternate_flips=True)
    list(loader)
    torch.cuda.set_sync_debug_mode("error")
    try:
        list(loader)
        list(loader)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def flips_by_image(loader: DeviceLoader, epoch: int) -> Tensor:
    permutation, draws = loader.draws(epoch)
    return torch.empty(len(permutation), dtype=torch.bool).scatter_(0, permutation, draws.flip)


def test_alternating_flips_mirror_each_image_in_every_other_epoch():
    loader = make(1000, alternate_flips=True)
    first, other_seed = (flips_by_image(one, 0) for one in (loader, make(1000, alternate_flips=True, seed=1)))
    assert 400 < first.sum() < 600
    assert 400 < (first != other_seed).sum() < 600
    for epoch in range(1, 5):
        assert torch.equal(flips_by_image(loader, epoch), first ^ (epoch % 2 == 1))


def test_alternating_flips_are_independent_of_crops_and_order():
    for epoch in (0, 1):
        permutation, draws = make(4000, alternate_flips=True).draws(epoch)
        plain_permutation, plain = make(4000).draws(epoch)
        assert torch.equal(permutation, plain_permutation)
        assert torch.equal(draws.crop_x, plain.crop_x)
        for other in (plain.flip, draws.crop_x > 4, permutation % 2 == 1):
            assert 0.45 < (draws.flip == other).float().mean() < 0.55


@pytest.mark.parametrize("device", [*DEVICES, MPS])
def test_every_device_gets_the_same_draws(device):
    here, there = make().draws(2), make(device=device).draws(2)
    assert there[0].device.type == there[1].crop_y.device.type == device
    assert torch.equal(here[0], there[0].cpu())
    for name in vars(here[1]):
        assert torch.equal(getattr(here[1], name), getattr(there[1], name).cpu())


def test_the_global_random_state_is_unchanged_afterwards():
    def states() -> tuple[str, ...]:
        numpy_state = np.random.get_state()  # noqa: NPY002
        return str(torch.get_rng_state().tolist()), str(random.getstate()), str(numpy_state)

    before = states()
    list(make())
    assert states() == before


def test_mean_and_std_are_those_of_the_images():
    images, labels = data(50)
    images[..., 1] //= 3
    loader = DeviceLoader(images, labels, BATCH, train=True, device="cpu")
    pixels = images.numpy().reshape(-1, 3) / 255
    np.testing.assert_allclose(loader.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(loader.std, pixels.std(axis=0), rtol=1e-12)


def test_statistics_and_store_do_not_depend_on_the_chunks(monkeypatch):
    images, _ = data(50)
    statistics, batches = channel_statistics(images), [inputs for inputs, _ in make()]
    monkeypatch.setattr("fast_cifar.loader.CHUNK", 7)
    assert channel_statistics(images) == statistics
    assert all(torch.equal(inputs, other) for (inputs, _), other in zip(make(), batches, strict=True))


def test_numpy_arrays_give_the_same_batches_as_tensors():
    images, labels = data()
    arrays = DeviceLoader(images.numpy(), labels.numpy(), BATCH, train=True, device="cpu")
    tensors = DeviceLoader(images, labels, BATCH, train=True, device="cpu")
    for (inputs, targets), (other, others) in zip(arrays, tensors, strict=True):
        assert torch.equal(inputs, other)
        assert torch.equal(targets, others)


def test_a_channel_that_never_varies_becomes_zero():
    images, labels = data()
    images[..., 2] = 77
    inputs, _ = next(iter(DeviceLoader(images, labels, BATCH, train=False, device="cpu")))
    assert float(inputs[:, 2].abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": N + 1}, "above the 70 images"),
        ({"images": torch.zeros(N, 32, 32, 3)}, "uint8"),
        ({"images": torch.zeros(N - 1, 32, 32, 3, dtype=torch.uint8)}, r"labels are int64 \[69\]"),
        ({"labels": torch.zeros(N, dtype=torch.int32)}, "int32"),
        ({"std": (1.0, 0.0, 1.0)}, "std"),
        ({"cutout": 33}, "cutout"),
        ({"pad_mode": "reflect", "padding": 32}, "mirrored"),
        ({"dtype": torch.int32}, "floating"),
        ({"seed": -1}, "seed"),
        ({"shard": (0, 3)}, "3 cannot share"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    images, labels = data()
    arguments = {"images": images, "labels": labels, "batch_size": BATCH, "mean": MEAN, "std": STD} | options
    with pytest.raises(ValueError, match=message):
        DeviceLoader(**arguments, train=True, device="cpu")


def test_an_evaluation_batch_may_be_larger_than_the_data():
    assert [len(labels) for _, labels in DeviceLoader(*data(), N + 1, train=False, device="cpu")] == [N]


def test_an_empty_data_set_and_a_negative_epoch_are_refused():
    with pytest.raises(ValueError, match="no images"):
        make(0, train=False)
    with pytest.raises(ValueError, match="epoch"):
        make().set_epoch(-1)
