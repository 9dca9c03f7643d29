"""The public surface and the way an unknown name is told."""

import subprocess
import sys

import pytest

import phrase_loc
from phrase_loc.errors import ConfigError, choose


def test_choose_lists_what_there_is():
    with pytest.raises(
        ConfigError, match=r"unknown method 'mvp' \(did you mean 'mwp'\?\); choose from cam, mwp"
    ):
        choose({"mwp": 1, "cam": 2}, "mvp", "method")
    with pytest.raises(ConfigError) as caught:
        choose({"mwp": 1}, "m" * 100_000, "method")
    assert len(str(caught.value)) < 200


def test_all_names_can_be_imported():
    assert phrase_loc.__all__ == sorted(phrase_loc.__all__)
    for name in phrase_loc.__all__:
        assert getattr(phrase_loc, name) is not None
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = phrase_loc.nothing_here


def test_importing_the_package_imports_nothing_slow():
    code = "import sys, phrase_loc; print([m for m in ('torch', 'numpy', 'nltk') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
