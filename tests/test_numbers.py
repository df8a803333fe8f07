"""No number in the documents is without its evidence.

What stands in a generated table comes from bench/results. A measured quantity anywhere else has its command, its file
or its source in the same paragraph, or stands in a generated table of its section.
"""

import re

import pytest

from bench import report
from bench.lr_sweep import read_sweep
from bench.regret import OURS, with_regret
from tests.helpers.scripts import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SWEEPS = sorted((report.RESULTS / "lr_sweeps").glob("*.json"))

GENERATED = re.compile(r"^<!-- bench\.\w+: [\w.-]+ -->$.*?^<!-- bench\.\w+: end -->$", re.DOTALL | re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)  # programs and trees of files
NUMBER = r"(?<![\w.-])\d[\d,]*(?:\.\d+)?"
SEVERAL = rf"(?:{NUMBER} (?:to|and|or) )?{NUMBER}"
WORD = r"\b(?:an?|two|three|four|five|six|seven|eight|nine|ten|fifteen|twenty|sixty)"
MEASURED = re.compile(
    rf"{SEVERAL} ?(?:%|(?:pp|images(?:/sec)?|times|TFLOP/s|[GM]iB|kB/s|m?s|seconds?|min|minutes?|h|hours?)\b)"
    rf"|{WORD} (?:seconds|minutes?|hours?|times)\b"
    r"|(?<![\w.])0\.0\d+"  # a learning rate
)
# A command; a file of results, a test, or a page with tables made from results; a publication; a commit.
SOURCE = re.compile(
    r"python |bench/results|\]\((?:docs/)?(?:results|recipe)\.md#|`tests/|https?://|arXiv:|\bcommits? [`(]?[0-9a-f]{7}"
)
# Numbers that were chosen, not measured.
DEFINED = re.compile(
    r"95 % (?:confidence )?interval|LRMAX = 0\.003|94 % with Adam|all 50,000 images|at most every five seconds"
    r"|30 seconds have passed"
)
ESTIMATES = "**Every duration and speed on it is an estimate, not a measurement.**"  # a page without measurements


def unsupported(text):
    """The measured quantities of a document that have no evidence."""
    found = []
    if ESTIMATES in text:
        return found
    for section in re.split(r"^(?=#+ )", FENCED.sub("", text), flags=re.MULTILINE):
        tables = re.sub(r"`[^`]*`", "", " ".join(GENERATED.findall(section)))
        # Paragraphs, list items, table rows and lines of code.
        for block in re.split(r"\n\s*\n|\n(?=- |\d+\. |\||    )", GENERATED.sub("\n\n", section)):
            if not SOURCE.search(block):
                measured = MEASURED.finditer(DEFINED.sub("", " ".join(block.split())))
                found += [match.group() for match in measured if not stands_in(match.group(), tables)]
    return found


def stands_in(quantity, tables):
    """Whether the numbers of a quantity are numbers of the tables, perhaps rounded to fewer decimals."""
    exact = [float(number.replace(",", "")) for number in re.findall(NUMBER, tables)]
    numbers = [number.replace(",", "") for number in re.findall(NUMBER, quantity)]
    decimals = [len(number.partition(".")[2]) for number in numbers]
    shown = [{f"{value:.{n}f}" for value in exact} if n else set() for n in decimals]
    return bool(numbers) and all(number in some for number, some in zip(numbers, shown, strict=True))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_number_outside_the_generated_tables_has_its_evidence_beside_it(document):
    assert unsupported(document.read_text()) == []


@pytest.mark.parametrize(
    ("sentence", "quantities"),
    [
        ("The network reaches 93.17 % in 35 minutes.", ["93.17 %", "35 minutes"]),
        (
            "It loses 0.31 to\n0.62 pp and is three times as fast,\n1,234 images/sec.",
            ["0.31 to 0.62 pp", "three times", "1,234 images/sec"],
        ),
        ("- the range test suggested 0.0215\n- `--width 16` took ten minutes", ["0.0215", "ten minutes"]),
        ("| memory | 1.25 GiB |", ["1.25 GiB"]),
        ("It was 93.17 % (`python run_train.py --runs 5`).\n\nAnd 94.17 %.", ["94.17 %"]),
    ],
)
def test_a_number_without_evidence_is_found_wherever_it_is_put(sentence, quantities):
    assert unsupported(sentence) == quantities
    for document in (one for one in DOCUMENTS if one.name != "gpu.md"):
        title, *sections = re.split(r"^(?=#+ )", document.read_text(), flags=re.MULTILINE)
        assert unsupported(
            "".join([title, *(f"{section}\n\n{sentence}\n\n" for section in sections)])
        ) == quantities * len(sections)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_regrets_of_a_sweep_follow_from_its_runs_by_todays_rules(path):
    for row in read_sweep(path)["rows"]:
        again = with_regret({name: row[name] for name in ("setting", "options", "curves", "center", "runs")})
        assert again["rates"] == pytest.approx(row["rates"])
        assert again["rates"][OURS] == pytest.approx(row["center"])  # as the rule stood before the trainings
        for name in ("best_lr", "best_accuracy"):
            assert again[name] == pytest.approx(row[name])
        for rule, regret in again["regret"].items():
            assert (regret["value"], *regret["interval"], regret["is_bound"]) == pytest.approx(
                (row["regret"][rule]["value"], *row["regret"][rule]["interval"], row["regret"][rule]["is_bound"])
            )
