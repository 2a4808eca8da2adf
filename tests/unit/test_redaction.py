"""Addresses lose their secrets and no other part."""

from __future__ import annotations

from pathlib import Path

import yaml

from pipeline.redaction import redact

CASES = yaml.safe_load(Path(__file__).with_name("redaction.yaml").read_text())


def test_secrets_are_hidden_and_all_else_stays() -> None:
    assert {text: redact(text) for text in CASES["hidden"]} == CASES["hidden"]
    unchanged = [*CASES["hidden"].values(), *CASES["unchanged"]]
    assert [redact(text) for text in unchanged] == unchanged
