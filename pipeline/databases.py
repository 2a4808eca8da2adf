"""Addresses of databases, for whoever opens one through SQLAlchemy."""

from __future__ import annotations


def with_installed_driver(uri: str) -> str:
    """A PostgreSQL address that names the driver which requirements.txt brings; SQLAlchemy's own choice is another one.

    Args:
        uri: of any database; others than PostgreSQL come back as they are.
    """
    scheme, separator, place = uri.partition("://")
    if scheme.partition("+")[0] not in ("postgresql", "postgres"):
        return uri
    return f"postgresql+psycopg2{separator}{place}"
