"""Train the word classifier: python train.py configs/train_web.yaml data.shards='shards/*.tar' [key=value ...]

Several GPUs: torchrun --standalone --nproc_per_node=8 --max-restarts=3 train.py configs/train_web.yaml ...
The same command goes on after an interruption, however it came.
"""

import sys

from phrase_loc.__main__ import guarded


def main() -> None:
    """Parse, build, train; the user's errors are one sentence and exit code 2."""
    from phrase_loc.commands.train import train_from

    sys.exit(guarded(lambda: train_from(sys.argv[1:])))


if __name__ == "__main__":
    main()
