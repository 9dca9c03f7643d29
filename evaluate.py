"""Evaluate on a dataset: python evaluate.py configs/flickr30k.yaml [key=value ...] [--faithful]

python evaluate.py configs/flickr30k.yaml data.root=DIR data.split=val output=report.json
python evaluate.py configs/flickr30k.yaml data.root=DIR method=centre           # needs no photographs
torchrun --standalone --nproc_per_node=4 evaluate.py configs/flickr30k.yaml data.root=DIR
"""

import sys

from phrase_loc.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
