"""Train the custom ResNet with one cycle.

    python run_train.py --demo                          # about a minute, no download
    python run_train.py --compile --amp                 # CIFAR-10, 24 epochs
    python run_train.py --data FOLDER --find-lr --amp   # your own images, rates from a range test
    python run_train.py --amp --runs 5                  # five seeds: mean and spread
    torchrun --nproc-per-node=4 run_train.py --amp      # four GPUs, or four processes with --device cpu
    python run_train.py --resume runs/NAME              # continue an interrupted run
    python run_train.py --eval-only runs/NAME/last.pt   # test a checkpoint
    python run_train.py --summary                       # the network, layer by layer

Each run fills a folder runs/NAME with its configuration, history, checkpoints and images.
"""

import sys

from fast_cifar.command_line import parse
from fast_cifar.options import TrainOptions
from fast_cifar.system.errors import run_script


def main() -> int:
    return run_script(script)


def script() -> None:
    options = parse(TrainOptions, __doc__)
    # torch takes seconds to import: only after the command line has been checked.
    from fast_cifar.custom_resnet import CustomResNet, model_summary
    from fast_cifar.data.load import count_classes
    from fast_cifar.predict import evaluate_checkpoint
    from fast_cifar.trainer import train

    if options.summary:
        options.check()
        print(model_summary(CustomResNet(count_classes(options.data), options.dropout, options.width)))
    elif options.eval_only is not None:
        evaluate_checkpoint(options)
    else:
        train(options)


if __name__ == "__main__":
    sys.exit(main())
