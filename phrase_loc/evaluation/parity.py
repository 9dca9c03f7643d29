"""Scaffold."""

from phrase_loc.evaluation.protocol import Protocol


def faithful(protocol: Protocol) -> Protocol:
    """Scaffold."""
    return protocol
