"""Evaluate on a dataset: python evaluate.py configs/flickr30k.yaml [key=value ...] [--faithful]

python evaluate.py configs/flickr30k.yaml data.root=DIR data.split=val output=report.json
python evaluate.py configs/flickr30k.yaml data.root=DIR method=centre           # needs no photographs
torchrun --standalone --nproc_per_node=4 evaluate.py configs/flickr30k.yaml data.root=DIR
"""

import sys

from phrase_loc.config import load_config
from phrase_loc.distributed import session
from phrase_loc.errors import PhraseLocError
from phrase_loc.evaluation.config import EvaluateConfig
from phrase_loc.evaluation.procedure import evaluate
from phrase_loc.evaluation.report import markdown, write


def main(arguments: list[str]) -> int:
    """Parse, evaluate, report; 2 with one sentence for what the user can mend."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__, EvaluateConfig.__doc__, sep="\n")
        return 0 if arguments else 2
    arguments = ["faithful=true" if a == "--faithful" else a for a in arguments]
    try:
        config = load_config(EvaluateConfig, arguments)
        with session(config.device) as world:
            evaluation = evaluate(config, world)
            if world.is_main:
                content, files = write(evaluation)
                print(markdown(content))
                print("written:", *files, file=sys.stderr)
        return 0
    except PhraseLocError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
