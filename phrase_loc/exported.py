"""The former name of `phrase_loc.runtime`, kept for a release."""

from phrase_loc.runtime import ExportedModel as ExportedModel
