"""Redaction of secrets in addresses that are printed, logged or recorded."""

from __future__ import annotations

import re

HIDDEN = "***"

_PASSWORD = re.compile(r'(//[^\s/?#":@\[]*:)(?!\d*(?:[/?#\s]|$))[^\s"]*@')
"""`//user:password@`, up to the last @ of the word, since a password may hold one; a port before a path is none."""
_TOKEN = re.compile(r'(https?://)[^\s/?#":@]+@')
"""A server's whole user part is a credential where no password follows; a database's is a name."""
_SECRET = r"[\w.-]*(?:passw(?:or)?d|pwd|secret|token|signature|credential|api_?key)[\w.-]*"
_PARAMETER = re.compile(rf'([?&;]{_SECRET}=)[^\s"&;#]+', re.IGNORECASE)
SECRET_NAME = re.compile(_SECRET, re.IGNORECASE)
"""Names of variables and parameters whose values are secrets."""


def redact(text: str) -> str:
    """An address, or a text that quotes some, with `***` for every password and token; redacting it again changes nothing."""
    for pattern, replacement in ((_PASSWORD, rf"\1{HIDDEN}@"), (_TOKEN, rf"\1{HIDDEN}@"), (_PARAMETER, rf"\1{HIDDEN}")):
        text = pattern.sub(replacement, text)
    return text
