"""Train the word classifier: python train.py configs/train_web.yaml data.shards='shards/*.tar' [key=value ...]

Several GPUs: torchrun --standalone --nproc_per_node=8 --max-restarts=3 train.py configs/train_web.yaml ...
The same command goes on after an interruption, however it came.
"""

import sys

from phrase_loc.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
