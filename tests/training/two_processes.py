"""What the ranks of tests/training/test_distributed.py run: python two_processes.py OUT SHARDS CASE=CHANGES ...

Each case is a run of configs/tiny.yaml with changes, in OUT/CASE. Started by torchrun, so that one import of
torch serves all cases.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> None:
    """The cases one after the other, then a loss gathered with gradients."""
    import torch

    torch.set_num_threads(1)
    from phrase_loc.distributed import session
    from phrase_loc.training import run as runs
    from tests.training.runs import settings

    out, shards, *cases = sys.argv[1:]
    with session("cpu") as world:
        for case in cases:
            name, changes = case.split("|")[0], case.split("|")[1:]
            if name == "lost":
                die_once(runs, world.rank, Path(out) / "died")
            runs.train(settings(Path(out) / name, shards, *changes), world)


def die_once(runs: object, rank: int, mark: Path) -> None:
    """Makes rank 1 kill itself at its ninth step, the first time."""
    plain = runs.Run._after  # type: ignore[attr-defined]

    def after(self: object, phase: object, step: object) -> None:
        if rank == 1 and self.state.done == 9 and not mark.exists():  # type: ignore[attr-defined]
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        plain(self, phase, step)

    runs.Run._after = after  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
