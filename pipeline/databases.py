"""Addresses of databases that are opened through SQLAlchemy."""

from __future__ import annotations


def with_installed_driver(uri: str) -> str:
    """A PostgreSQL address with the driver of requirements.txt, which is not SQLAlchemy's default; other addresses are unchanged."""
    scheme, separator, place = uri.partition("://")
    if scheme.partition("+")[0] not in ("postgresql", "postgres"):
        return uri
    return f"postgresql+psycopg2{separator}{place}"
