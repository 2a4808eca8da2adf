"""Addresses of databases."""

from __future__ import annotations

import pytest

from pipeline.databases import with_installed_driver


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("postgresql://me@host:5433/runs", "postgresql+psycopg2://me@host:5433/runs"),
        ("postgres://host/runs?sslmode=require", "postgresql+psycopg2://host/runs?sslmode=require"),
        ("postgresql+psycopg://host/runs", "postgresql+psycopg2://host/runs"),
        ("sqlite:///.mgmrn/mlflow.db", "sqlite:///.mgmrn/mlflow.db"),
        ("https://me:word@host", "https://me:word@host"),
    ],
)
def test_postgresql_goes_by_the_driver_that_is_installed(given: str, made: str) -> None:
    assert with_installed_driver(given) == made
