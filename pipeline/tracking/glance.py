"""A look for runs that are known already, without MLflow: importing it takes longer than everything else that a known answer needs.

Only finished runs of a config are asked for. Whatever is not as expected (a locked or older database, a server that wants another login) is
"nothing found", and the store itself is asked, which says what is wrong.
"""

from __future__ import annotations

from typing import Protocol
from urllib.parse import urlsplit

from pipeline.tracking.store import TrackedRun


class FinishedRuns(Protocol):
    """Where finished runs are found: a `TrackingStore`, or what `glance` gives."""

    def find_finished(self, config_hash: str, split: str) -> TrackedRun | None:
        """The latest finished run of a config on a split."""


class Unseen:
    """A store that cannot be looked into without MLflow."""

    def find_finished(self, config_hash: str, split: str) -> TrackedRun | None:
        """None."""
        return None


def glance(uri: str, experiment: str) -> FinishedRuns:
    """Finished runs of one experiment, as far as they are found quickly; see `TrackingStore` for everything else.

    Args:
        uri: address of a tracking store.
        experiment: its name.
    """
    match urlsplit(uri).scheme:
        case "sqlite":
            from pipeline.tracking.database_glance import DatabaseGlance

            return DatabaseGlance(uri, experiment)
        case "http" | "https":
            from pipeline.tracking.server_glance import ServerGlance

            return ServerGlance(uri, experiment)
    return Unseen()
