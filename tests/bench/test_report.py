"""The report: which benchmarks run, where their numbers go, and how the documents change."""

from __future__ import annotations

import json
import os
import re
import sys

import pytest
import torch

from bench import report
from bench.markdown import with_blocks
from bench.report import slug
from fast_cifar import RangeTestOptions, find_lr, train
from fast_cifar.system.errors import run_script
from tests.helpers.pages import summary_of
from tests.helpers.plots import history
from tests.helpers.runs import silent
from tests.helpers.scripts import refused

BLOCKS = ("accuracy", *report.BENCHES)
CPU_BENCHES = ["training", "roofline", "end_to_end", "augmentation"]
ENVIRONMENT = {"device": "abacus", "torch": "2.15.0", "threads": 2, "when": "2026-11-21T04:12:25+00:00"}
END = "<!-- bench.report: end -->"


def begin(name):
    return f"<!-- bench.report: {name} -->"


def empty_readme():
    return "# Title\n" + "".join(f"\n## {name}\n\n{begin(name)}\n{END}\n\nprose\n" for name in BLOCKS)


def row(bench, rate=100.0):
    if bench == "roofline":
        times = {"seconds_of_flops": 1.0, "seconds_of_bytes": 2.0, "seconds_allowed": 2.0, "seconds": 4.0}
        return {"layer": "beads", "batch": 8, "flops": 0, "bytes": 0, "share_of_limit": 0.5, "repeats": 1} | times
    if bench == "trace":
        return {"kind": "beads", "ms": rate, "share": 1.0}
    if bench != "end_to_end":
        return {"variant": "beads", "images_per_second": rate, "min": rate, "max": rate, "repeats": 1}
    more = {"total_seconds": 1300.0, "other_seconds": 26.25, "seconds_to_target": None, "target": 0.9}
    more |= {"images": 10, "batch_size": 5, "compiled": False, "images_per_second": rate}
    return summary_of(history(1)) | more


def section(bench, rate=100.0):
    return {"environment": ENVIRONMENT, "command": f"python -m bench.{bench}", "rows": [row(bench, rate)]}


class Place:
    """A project with documents and no results in a temporary folder, and the report run on it."""

    def __init__(self, root, monkeypatch):
        self.results, self.readme, self.monkeypatch = root / "results", root / "README.md", monkeypatch
        (root / "docs").mkdir()
        for name in report.DOCUMENTS:
            (root / name).touch()
        self.readme.write_text(empty_readme())
        monkeypatch.setattr(report, "ROOT", root)
        monkeypatch.setattr(report, "RESULTS", self.results)

    def run(self, *options):
        self.monkeypatch.setattr(sys, "argv", ["bench.report", *options])
        return run_script(report.main)

    def write(self, name, contents):
        path = self.results / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(contents if isinstance(contents, str) else json.dumps(contents))

    def read(self, name):
        return json.loads((self.results / name).read_text())


@pytest.fixture
def place(tmp_path, monkeypatch):
    return Place(tmp_path, monkeypatch)


@pytest.fixture
def calls(monkeypatch):
    """Replaces the benchmarks: their calls, in order; `failing` names those that fail."""

    class Calls(list):
        failing: frozenset[str] = frozenset()

    made = Calls()

    def run_bench(bench, arguments):
        made.append((bench, list(arguments)))
        return None if bench in made.failing else section(bench)

    monkeypatch.setattr(report, "run_bench", run_bench)
    return made


def test_every_benchmark_runs_and_goes_into_one_file_and_into_the_readme(place, calls):
    assert place.run("--device", "cpu", "--name", "Abacus (2 rods)") == 0
    assert [bench for bench, _ in calls] == CPU_BENCHES
    written = place.read("abacus-2-rods.json")
    assert written.pop("environment")["device"].startswith("cpu")
    assert written == {bench: section(bench) for bench in CPU_BENCHES}
    assert place.readme.read_text().count("abacus · torch 2.15.0 · 2 threads · 2026-11-21") == 4


def test_a_file_of_results_is_named_after_the_device(place, calls):
    place.run("--device", "cpu", "--only", "training")
    (path,) = place.results.iterdir()
    assert path.stem == slug(place.read(path.name)["environment"]["device"])


def test_a_benchmark_that_was_not_run_keeps_its_numbers(place, calls):
    earlier = section("augmentation", rate=77.0)
    place.write("a.json", {"environment": {}, "augmentation": earlier, "training": section("training", rate=55.0)})
    assert place.run("--device", "cpu", "--name", "a", "--only", "training") == 0
    assert [bench for bench, _ in calls] == ["training"]
    assert place.read("a.json")["augmentation"] == earlier
    assert place.read("a.json")["training"] == section("training")


def test_a_benchmark_that_fails_stops_no_other_and_makes_the_exit_status_1(place, calls):
    calls.failing = {"training"}
    place.write("a.json", {"environment": {}, "training": section("training", rate=55.0)})
    with pytest.raises(SystemExit) as ended:
        place.run("--device", "cpu", "--name", "a")
    assert ended.value.code == 1
    assert [bench for bench, _ in calls] == CPU_BENCHES
    assert place.read("a.json")["training"] == section("training", rate=55.0)
    assert "python -m bench.end_to_end" in place.readme.read_text()


def test_a_benchmark_that_cannot_run_is_named(capfd):
    assert report.run_bench("no_such_bench", []) is None
    assert "bench.no_such_bench failed with exit status 1" in capfd.readouterr().err


def test_what_a_benchmark_writes_is_kept_with_its_command(monkeypatch, tmp_path, capfd):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "beads.py").write_text(
        "import json, sys\n"
        "print('counting', sys.argv[1:-2])\n"
        "open(sys.argv[-1], 'w').write(json.dumps({'environment': {'device': 'abacus'}, 'rows': [1]}))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    for name in [name for name in os.environ if name.startswith("OMP_")]:
        monkeypatch.delenv(name)
    measured = report.run_bench("beads", ["--quick"])
    command = "python -m bench.beads --quick"
    assert measured == {"environment": {"device": "abacus"}, "command": command, "rows": [1]}
    assert capfd.readouterr().out.split("\n")[1:3] == [f"$ {command}", "counting ['--quick']"]


def test_the_options_reach_the_benchmarks_that_have_them(place, calls):
    place.run("--device", "cpu", "--quick", "--data", "pets", "--data-dir", "cache", "--runs", "3")
    all_of_them = ["--device", "cpu", "--quick"]
    recipe = ["--data", "pets", "--data-dir", "cache", "--runs", "3"]
    assert dict(calls) == {bench: all_of_them + (recipe if bench == "end_to_end" else []) for bench in CPU_BENCHES}


@pytest.mark.parametrize("compiler", [True, False])
def test_a_gpu_also_traces_what_it_trains_and_trains_three_seeds(place, calls, monkeypatch, compiler):
    monkeypatch.setattr(report, "resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(report, "environment", lambda device: ENVIRONMENT)
    monkeypatch.setattr(report, "has_compiler", lambda: compiler)
    assert place.run() == 0
    assert calls == [
        ("training", ["--no-tricks"]),
        ("roofline", []),
        ("trace", ["--compile"] if compiler else []),
        ("end_to_end", ["--runs", "3"]),
        ("augmentation", []),
    ]
    assert "| beads | 100.000 | 100.0 % |" in place.readme.read_text()
    calls.clear()
    place.run("--runs", "5", "--only", "end_to_end")
    assert calls == [("end_to_end", ["--runs", "5"])]


def test_what_is_done_is_kept_when_the_report_is_cut_off(place, calls, monkeypatch):
    def cut_off(bench, arguments):
        if bench == "roofline":
            raise KeyboardInterrupt
        return section(bench)

    monkeypatch.setattr(report, "run_bench", cut_off)
    assert place.run("--device", "cpu", "--name", "a") == 130
    assert place.read("a.json")["training"] == section("training")
    assert "python -m bench.training" in place.readme.read_text()


def test_a_quick_report_writes_nothing(place, calls):
    before = place.readme.read_bytes()
    assert place.run("--device", "cpu", "--quick") == 0
    assert len(calls) == 4
    assert not place.results.exists()
    assert place.readme.read_bytes() == before


def test_making_the_tables_twice_changes_nothing(place, calls):
    place.write("b.json", {"training": section("training", rate=77.0)})
    place.write("a.json", {"training": section("training", rate=55.0)})
    assert place.run("--tables-only") == 0
    once = place.readme.read_bytes()
    assert once.index(b"55 [55") < once.index(b"77 [77")
    assert place.run("--tables-only") == 0
    assert place.readme.read_bytes() == once
    assert not calls


def test_text_outside_the_markers_is_untouched_byte_for_byte(place):
    old = "| an old table |\r\n"
    outside = [
        f"tabs\tand Umläute  \r\n\n\n{begin('training')} in a sentence\n",
        "\n\r\n",
        "\t \n",
        "\n",
        "\n| a | table |\n",
        "\n \n",
        "\r\nno newline",
    ]
    pairs = [f"{begin(name)}\r\n{old}{END}" for name in BLOCKS]
    text = "".join(part for both in zip(outside, [*pairs, ""], strict=True) for part in both)
    place.readme.write_bytes(text.encode())
    place.write("a.json", {"training": section("training")})
    assert place.run("--tables-only") == 0
    written = place.readme.read_bytes().decode()
    assert "| beads |" in written
    assert "an old table" not in written
    assert with_blocks(place.readme, lambda *_: "") == text.replace(old, "")
    assert with_blocks(place.readme, lambda _, name: name) == re.sub(
        r"(: (\w+) -->\r\n)\| an old table \|\r\n", r"\1\n\2\n\n", text
    )


@pytest.mark.parametrize("name", BLOCKS)
def test_a_missing_marker_is_refused_before_anything_is_measured(place, calls, capsys, name):
    place.readme.write_text(empty_readme().replace(f"{begin(name)}\n{END}", "gone"))
    assert place.run("--device", "cpu") == 2
    assert begin(name) in capsys.readouterr().err
    assert not calls


SWEEP = {
    "environment": ENVIRONMENT,
    "command": "python -m bench.lr_sweep --data FOLDER",
    "rows": [
        {
            "setting": "pets b4",
            "options": {},
            "curves": [],
            "center": 0.01,
            "runs": [{"seed": 0, "val_accuracy": 0.8, "train_accuracy": 0.9, "seconds": 1.0, "diverged": False}],
            "rates": {"suggestion": 0.01},
            "suggestions": [0.01],
            "best_lr": 0.02,
            "best_accuracy": 0.9,
            "regret": {"suggestion": {"value": 0.0123, "interval": [0.001, 0.02], "is_bound": False}},
        }
    ],
}
PLAN = {"base": ["--no-test"], "runs": [{"name": "run-01", "seed": 1, "options": ["--cutout", "0"]}]}
RECIPE = """# Recipe

before
<!-- bench.experiment: plan-1 -->
old
<!-- bench.experiment: end -->
between
<!-- bench.lr_sweep: small.data -->
<!-- bench.lr_sweep: end -->
after
"""


@pytest.fixture
def recipe(place):
    """docs/recipe.md beside the README, and the results that it shows."""
    document = place.readme.parent / "docs" / "recipe.md"
    document.write_text(RECIPE)
    place.write("ablations/plan-1.json", PLAN)
    place.write("lr_sweeps/small.data.json", SWEEP)
    return document


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("plan-1", "nowhere", "nowhere.json"),
        ("<!-- bench.experiment: end -->\n", "", "<!-- bench.experiment: end --> must stand in pairs"),
        ("old\n", "<!-- bench.experiment: plan-1 -->\n", "<!-- bench.experiment: end --> must stand in pairs"),
        ("<!-- bench.lr_sweep: end -->\n", "", "<!-- bench.lr_sweep: end --> must stand in pairs"),
        ("<!-- bench.lr_sweep: small.data -->\n", "", "<!-- bench.lr_sweep: end --> must stand in pairs"),
        ("lr_sweep: end", "experiment: end", "<!-- bench.lr_sweep: end --> must stand in pairs"),
        ("bench.experiment", "bench.beads", "there is no table <!-- bench.beads: plan-1 -->"),
    ],
)
def test_a_marker_without_its_file_or_its_end_is_an_error_and_changes_nothing(place, recipe, capsys, old, new, named):
    recipe.write_text(RECIPE.replace(old, new))
    assert place.run("--tables-only") == 2
    assert named in capsys.readouterr().err
    assert recipe.read_text() == RECIPE.replace(old, new)


@pytest.mark.parametrize("name", ["ablations/plan-1", "lr_sweeps/small.data"])
def test_a_file_of_another_benchmark_is_refused(place, recipe, capsys, name):
    place.write(f"{name}.json", {"environment": ENVIRONMENT, "rows": [{"variant": "beads"}]})
    assert place.run("--tables-only") == 2
    assert f"{name}.json" in capsys.readouterr().err


def test_the_committed_tables_are_those_of_the_committed_results():
    for document, text in report.rewritten().items():
        assert document.read_text() == text


@pytest.mark.parametrize(
    "contents", ["{", "[]", '{"command": "c", "summaries": []}', '{"command": "c", "summaries": [{}]}']
)
def test_a_damaged_file_of_runs_is_named(place, capsys, contents):
    place.write("runs/broken.json", contents)
    assert "broken.json" in refused((place.run("--tables-only"), *capsys.readouterr()))


def test_a_finished_run_can_be_added(place, run):
    folder, summary, _ = run
    assert (
        place.run("--add-run", str(folder), "--name", "Cats", "--command", "python run_train.py", "--note", "Ha.") == 0
    )
    written = place.read("runs/cats.json")
    assert written["summaries"] == [summary]
    assert (written["command"], written["note"], written["title"]) == ("python run_train.py", "Ha.", None)
    assert (written["options"]["lr_max"], written["options"]["batch_size"]) == (0.001, 8)
    recipe = "width 64, LRMAX 0.001, weight decay 0.5, label smoothing 0.1, mirrored padding |"
    assert recipe in place.readme.read_text()
    row = f"| 3 | 8 | {summary['parameters']:,} | {summary['test_accuracy']:.2%}".replace("%", " %")
    assert row in place.readme.read_text()
    assert written["when"][:10] in place.readme.read_text()


def test_a_run_of_several_seeds_is_added_with_each_of_them(place, quick, tmp_path, small_network):
    train(quick(out=str(tmp_path), name="several", runs=2, epochs=2), log=silent)
    place.run("--add-run", str(tmp_path / "several"), "--name", "several", "--command", "c", "--title", "Pets")
    assert [summary["seed"] for summary in place.read("runs/several.json")["summaries"]] == [0, 1]
    assert "| Pets | 2 | 8 |" in place.readme.read_text()


def test_seeds_trained_one_at_a_time_are_gathered_in_one_file(place, quick, tmp_path, small_network, capsys):
    def add(folder, *options):
        return place.run("--add-run", str(tmp_path / folder), "--name", "pets", "--command", "c", *options)

    for seed in (0, 1):
        train(quick(out=str(tmp_path), name=f"seed-{seed}", seed=seed, epochs=2), log=silent)
    train(quick(out=str(tmp_path), name="other", seed=2, epochs=2, limit_train=16), log=silent)
    assert add("seed-0", "--title", "Pets", "--note", "One at a time.") == 0
    assert add("seed-1") == 0
    written = place.read("runs/pets.json")
    assert [summary["seed"] for summary in written["summaries"]] == [0, 1]
    assert (written["title"], written["note"]) == ("Pets", "One at a time.")
    assert add("other") == 2
    assert "with limit_train None, not 16" in capsys.readouterr().err
    assert add("seed-1") == 2
    assert "the same seed" in capsys.readouterr().err
    assert place.read("runs/pets.json") == written


def test_a_run_that_was_not_tested_and_a_range_test_are_refused(place, quick, places, tmp_path, small_network, capsys):
    train(quick(out=str(tmp_path), name="untested", epochs=2, test=False, val_split=8), log=silent)
    find_lr(RangeTestOptions(**places, out=str(tmp_path), name="sweep", batch_size=8, iters=20), log=silent)
    for name, reason in (("untested", "was not tested"), ("sweep", "is not the folder of a training")):
        assert place.run("--add-run", str(tmp_path / name), "--name", "a", "--command", "c") == 2
        assert reason in capsys.readouterr().err
    assert not place.results.exists()


def test_an_unfinished_run_is_refused(place, quick, tmp_path, capsys):
    folder = tmp_path / "half"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(quick().as_dict()))
    assert place.run("--add-run", str(folder), "--name", "half", "--command", "c") == 2
    assert "not finished" in capsys.readouterr().err
    assert not place.results.exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--only", "training,nonsense"), "'nonsense'"),
        (("--name", "///"), "--name '///'"),
        (("--add-run", "runs/x"), "--add-run needs --name"),
        (("--add-run", "no-such-folder", "--name", "x", "--command", "c"), "no-such-folder is not a run folder"),
        (("--quick", "--tables-only"), "--tables-only"),
        (("--device", "abacus"), "abacus"),
        (("--qui",), "--qui"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(place, calls, capsys, options, named):
    assert named in refused((place.run(*options), *capsys.readouterr()))
    assert not calls
