"""What only the last step of a run needs is looked for before the first."""

import pytest

from phrase_loc.config import load_config
from phrase_loc.distributed import World
from phrase_loc.errors import DataError
from phrase_loc.text import vectors
from phrase_loc.training import run
from phrase_loc.training.config import TrainConfig


def test_a_run_that_could_not_be_saved_does_not_begin(tmp_path, monkeypatch):
    import pandas

    def no_pyarrow(*arguments, **options):
        raise ImportError("no pyarrow")

    pytest.importorskip(vectors.GLOVE_PACKAGE)
    monkeypatch.setattr(pandas, "read_parquet", no_pyarrow)
    config = load_config(TrainConfig, ["data.shards=none", f"out={tmp_path / 'run'}", "further.words=10"])
    with pytest.raises(DataError, match=r"GloVe package in .* cannot be read"):
        run.train(config, World())
    assert not config.out.exists()
