"""Addresses lose their secrets and no other part."""

from pathlib import Path

import yaml

from pipeline.redaction import redact, redact_address

CASES = yaml.safe_load(Path(__file__).with_name("redaction.yaml").read_text())


def test_secrets_are_hidden_and_all_else_stays() -> None:
    assert {text: redact(text) for text in CASES["hidden"]} == CASES["hidden"]
    unchanged = [*CASES["hidden"].values(), *CASES["unchanged"]]
    assert [redact(text) for text in unchanged] == unchanged
    single = {**CASES["hidden"], **CASES["address"]}
    single = {text: shown for text, shown in single.items() if not text.startswith(("cannot", "{"))}
    assert {text: redact_address(text) for text in single} == single
    assert [redact_address(text) for text in CASES["unchanged"]] == CASES["unchanged"]
