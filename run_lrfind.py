"""Find the learning rates of a one-cycle schedule by a range test.

    python run_lrfind.py                          # CIFAR-10, 118 steps from 1e-6 up
    python run_lrfind.py --data FOLDER --amp      # your own images
    python run_lrfind.py --batch-size 128 --weight-decay 0.01
    python run_lrfind.py --repeats 3              # three seeds, and how far they agree
    python run_lrfind.py --sweep linear --lr-end 0.02 --val-split 500 --loss-on val    # on held-out images

The learning rate rises from step to step, and the sweep ends early when the loss diverges. Prints LRMIN and LRMAX,
warnings where they may be wrong, and the run_train.py command that uses them. Writes lrfind.json and lrfind.png into a
new run folder.
"""

import sys

from fast_cifar.command_line import parse
from fast_cifar.options import RangeTestOptions
from fast_cifar.system.errors import run_script


def main() -> int:
    return run_script(script)


def script() -> None:
    options = parse(RangeTestOptions, __doc__)
    # torch takes seconds to import: only after the command line has been checked.
    from fast_cifar.lr_finder import find_lr

    find_lr(options)


if __name__ == "__main__":
    sys.exit(main())
