"""From measurements to Markdown: which columns a table has, what its cells say, and what stands above it."""

from __future__ import annotations

import pytest

from bench.markdown import Column, accuracy_block, bench_block, markdown, value
from fast_cifar.options import TrainOptions
from fast_cifar.runs.stats import summarize

ENVIRONMENT = {"device": "NVIDIA H200", "torch": "2.15.0", "threads": 16, "when": "2026-11-21T04:12:25+00:00"}


def lines(block):
    return block.splitlines()


def table(block):
    """A table as one dictionary a row, title to cell."""
    titles, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines(block) if line.startswith("|")
    ]
    return [dict(zip(titles, row, strict=True)) for row in rows]


def variant(name, **more):
    return {"variant": name, "images_per_second": 1234.6, "min": 1000.0, "max": 2000.0, "repeats": 7} | more


def device(bench, *rows, **changes):
    return {bench: {"environment": ENVIRONMENT | changes, "command": f"python -m bench.{bench}", "rows": list(rows)}}


def seed(k, **more):
    row = {"seed": k, "dataset": "pets", "images": 50_000, "epochs": 24, "batch_size": 512, "precision": "bf16"}
    row |= {"compiled": True, "test_accuracy": 0.93 + 0.01 * k, "train_accuracy": 0.95, "images_per_second": 1000.0}
    row |= {"total_seconds": 10.0 + k, "seconds": 8.0, "evaluation_seconds": 1.0, "save_seconds": 0.5}
    row |= {"compile_seconds": 0.25, "other_seconds": 0.25, "target": 0.9, "seconds_to_target": 6.0 + k}
    return row | more


def recorded(command, *summaries, **more):
    """A file of bench/results/runs."""
    return {"command": command, "options": TrainOptions().resolved().as_dict(), "summaries": list(summaries)} | more


def summary(**changes):
    values = {"test_accuracy": 0.9012, "train_accuracy": 0.95, "epochs": 24, "batch_size": 512, "dataset": "cifar10"}
    return values | {"images_per_second": 1000.0, "device": "NVIDIA H200", "precision": "bf16"} | changes


def test_a_zero_is_a_value_and_a_bar_does_not_end_a_cell():
    columns = [Column("a", value("a")), Column("b", value("b"), words=True)]
    assert lines(markdown(columns, [{"a": 0, "b": "x|y"}]))[-1] == r"| 0 | x\|y |"


def test_the_training_table_has_the_numbers_that_were_measured():
    first = variant("fp32", times_first=1.0, warm_up_seconds=0.0)
    last = variant("bf16, loader", times_first=123.4, of_fixed_batch=1.0087, warm_up_seconds=24.34, mfu=0.417)
    rows = table(bench_block("training", [device("training", first, last | {"peak_memory_bytes": 3 * 2**29})]))
    assert rows[0]["images/sec, median [range]"] == "1,235 [1,000 .. 2,000]"
    assert (rows[0]["of the fastest product"], rows[0]["peak memory"], rows[0]["of a fixed batch"]) == ("", "", "")
    assert rows[1] == {
        "variant": "bf16, loader",
        "images/sec, median [range]": "1,235 [1,000 .. 2,000]",
        "x first": "123",
        "of a fixed batch": "100.9 %",
        "of the fastest product": "41.7 %",
        "peak memory": "1.50 GiB",
        "warm-up, s": "24.3",
    }


def test_a_caption_has_the_device_the_conditions_and_the_command():
    section = device("training", variant("a"), batch=512, steps=97, matmul_tflops=787.6)
    assert lines(bench_block("training", [section]))[0] == (
        "NVIDIA H200 · torch 2.15.0 · 16 threads · 2026-11-21 · `python -m bench.training` · batch 512 · "
        "97 steps a repeat · fastest product measured 788 TFLOP/s · 7 interleaved repeats"
    )
    named = device("training", variant("a"), device="cpu (AVX512, 2 threads)", threads=2)
    assert lines(bench_block("training", [named]))[0].count("2 threads") == 1
    single = device("training", variant("a") | {"repeats": 1}, steps=1)
    assert "1 step a repeat · 1 interleaved repeat\n" in bench_block("training", [single])


def test_there_is_a_table_for_each_device_that_measured_it_and_none_for_another():
    devices = [device("training", variant("a")), device("augmentation", variant("b")), device("training", variant("c"))]
    block = bench_block("training", devices)
    assert block.count("NVIDIA H200 · ") == 2
    assert [line.split()[1] for line in lines(block) if line.endswith("|") and "1,235" in line] == ["a", "c"]
    assert bench_block("end_to_end", devices) == ""


def test_one_seed_has_no_spread():
    (row,) = table(bench_block("end_to_end", [device("end_to_end", seed(0))]))
    assert row["test accuracy"] == "93.00 %"
    assert row["to the target, s"] == "6.0 (90 %)"
    assert row["total, s"] == "10.0"
    assert (row["data"], row["precision"]) == ("pets, 50,000 images", "bf16, compiled")
    assert "peak memory" not in row


def test_several_seeds_are_one_row_of_means_with_their_spread():
    rows = [seed(0, peak_memory_bytes=2**30), seed(1, peak_memory_bytes=2**31, compiled=True)]
    (row,) = table(bench_block("end_to_end", [device("end_to_end", *rows)]))
    low, high = summarize(rows)["interval"]
    assert row["n"] == "2"
    assert row["test accuracy"] == f"93.50 % ± {100 * (high - low) / 2:.2f}"
    assert row["to the target, s"] == "6.5 [6.0 .. 7.0] (90 %)"
    assert row["total, s"] == "10.5 [10.0 .. 11.0]"
    assert row["peak memory"] == "2.00 GiB"


@pytest.mark.parametrize(("reached", "text"), [((None, None), "never (90 %)"), ((6.0, None), "1 of 2 runs (90 %)")])
def test_a_target_that_a_seed_missed_has_no_mean_time(reached, text):
    rows = [seed(k, seconds_to_target=seconds) for k, seconds in enumerate(reached)]
    (row,) = table(bench_block("end_to_end", [device("end_to_end", *rows)]))
    assert row["to the target, s"] == text


def test_a_title_takes_the_place_of_the_name_of_the_data_and_the_recipe_is_that_of_the_options():
    files = [recorded("a", summary(), title="CIFAR-10 (JPEG)")]
    files.append(recorded("b", summary(), when="2026-11-21T04:12:25+00:00"))
    files[1]["options"] |= {"width": 16, "pad_mode": "zeros", "alternate_flips": True, "ema": 0.99, "tta": True}
    titled, plain = table(accuracy_block(files))
    usual = "LRMAX 0.003, weight decay 0.5, label smoothing 0.1"
    assert (titled["data"], titled["date"]) == ("CIFAR-10 (JPEG)", "")
    assert titled["recipe"] == f"width 64, {usual}, mirrored padding"
    assert (plain["data"], plain["date"]) == ("cifar10", "2026-11-21")
    more = "black padding, alternating flips, EMA 0.99, test-time augmentation"
    assert plain["recipe"] == f"width 16, {usual}, {more}"


def test_the_commands_follow_the_table_of_accuracies():
    file = recorded("python run_lrfind.py\npython run_train.py", summary(), note="It was cold.")
    assert lines(accuracy_block([file]))[-1] == (
        "- cifar10, 24 epochs: `python run_lrfind.py`, then `python run_train.py`. It was cold."
    )
    assert accuracy_block([]) == ""
