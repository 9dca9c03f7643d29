"""The former name of `phrase_loc.pairs.sources`, kept for a release."""

from phrase_loc.pairs.sources import open_source as open_source
