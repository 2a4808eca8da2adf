"""Addresses lose their secrets and nothing else."""

from __future__ import annotations

import pytest

from pipeline.redaction import redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:word@host:5000/path", "http://me:***@host:5000/path"),
        ("postgresql+psycopg2://me:word@host/db", "postgresql+psycopg2://me:***@host/db"),
        ("postgresql://me:w@rd/?#1@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:123@host/db", "postgresql://me:***@host/db"),
        ("postgresql//me:word@host/db", "postgresql//me:***@host/db"),
        ("postgresql://:word@host/db", "postgresql://:***@host/db"),
        ("https://ghp_1a2b@host/x", "https://***@host/x"),
        ("postgresql://host/db?user=me&password=word", "postgresql://host/db?user=me&password=***"),
        ("https://host/x?X-Amz-Signature=ab12&n=1", "https://host/x?X-Amz-Signature=***&n=1"),
        ("https://host/x?n=1&access_token=ab12#end", "https://host/x?n=1&access_token=***#end"),
        ("cannot reach 'http://a:b@h:1' or http://c:d@h:2", "cannot reach 'http://a:***@h:1' or http://c:***@h:2"),
        ('{"uri":"http://a:b@h:1","mail":"me@home"}', '{"uri":"http://a:***@h:1","mail":"me@home"}'),
    ],
)
def test_a_secret_is_hidden(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///.mgmrn/mlflow.db",
        "http://127.0.0.1:5000",
        "http://host:5000/files/me@home",
        "http://[::1]:5000/me@home",
        "postgresql://me@host/db",
        "s3://bucket/folder@2/x?version=3",
        "--set model.regions.tokens=2",
        "epoch 3: loss 0.1",
    ],
)
def test_what_holds_no_secret_stays(text: str) -> None:
    assert redact(text) == text
