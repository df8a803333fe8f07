"""The commands in tables and files of results: the same on every machine."""

from bench.measure import portable, python_command


def test_paths_of_this_machine_become_words_for_them(tmp_path):
    archive = tmp_path / "images.tar.gz"
    archive.touch()
    assert portable(["--data", f"synthetic,{tmp_path}"]) == ["--data", "synthetic,FOLDER"]
    assert portable([f"--data={archive}", "--epochs", "3"]) == ["--data=ARCHIVE", "--epochs", "3"]


def test_where_results_go_is_left_out():
    words = ["--json", "/a/b.json", "--runs", "3", "--plot=c.png", "--json=d", "--quick"]
    assert portable(words) == ["--runs", "3", "--quick"]


def test_a_command_begins_with_the_variables_that_change_its_speed(monkeypatch):
    monkeypatch.setattr("os.environ", {"OMP_NUM_THREADS": "1", "HOME": "x"})
    assert python_command("run_train.py", ["--name", "a b"]) == "OMP_NUM_THREADS=1 python run_train.py --name 'a b'"
    assert python_command("run_train.py", []) == "OMP_NUM_THREADS=1 python run_train.py"
