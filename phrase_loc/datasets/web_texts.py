"""The former name of `phrase_loc.pairs.sources`, kept for a release."""

from phrase_loc.pairs.sources import stream_texts as stream_texts
