"""The package as a whole: its public names, what importing it costs, its size, and one default for one thing."""

import inspect
import subprocess
import sys

import pytest

from fast_cifar import DeviceLoader, RangeTestOptions, TrainOptions, augment, range_test
from tests.helpers.scripts import ROOT

NAMES = """
    train TrainOptions find_lr RangeTestOptions CustomResNet DeviceLoader one_cycle one_cycle_scheduler load_dataset
    range_test fit evaluate augment predict
"""


def run_python(code):
    """The words that the code prints in a fresh process."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()


def test_every_public_name_can_be_imported_first():
    """One process for all: each import begins with no module of the package loaded."""
    code = f"""
import sys
for name in {NAMES.split()}:
    for module in [module for module in sys.modules if module.split(".")[0] == "fast_cifar"]:
        del sys.modules[module]
    exec(f"from fast_cifar import {{name}}")
    print(name)
"""
    assert run_python(code) == NAMES.split()


@pytest.mark.parametrize(
    "code",
    [
        "import fast_cifar",
        "import sys, run_train; sys.argv = ['x', '--help']; run_train.main()",
        "import sys, run_train; sys.argv = ['x', '--colour']; run_train.main()",
        "import sys, run_lrfind; sys.argv = ['x', '--help']; run_lrfind.main()",
    ],
)
def test_neither_the_package_nor_help_nor_a_mistyped_option_imports_torch(code):
    assert (
        run_python(f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {code}")[-1] == "False"
    )


def test_the_top_folder_holds_at_most_16_modules():
    assert len(list((ROOT / "fast_cifar").glob("*.py"))) <= 16


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (DeviceLoader, TrainOptions()),
        (augment.draw, TrainOptions()),
        (augment.apply, TrainOptions()),
        (range_test, RangeTestOptions()),
    ],
    ids=["DeviceLoader", "draw", "apply", "range_test"],
)
def test_a_default_is_that_of_the_option_of_the_same_name(function, options):
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty and name in options.as_dict() and name != "device"
    }
    assert len(defaults) >= 3
    assert defaults == {name: getattr(options, name) for name in defaults}
