"""Redaction of secrets in addresses that are printed, logged or recorded."""

import re

HIDDEN = "***"

_PASSWORDS = [
    re.compile(pattern)
    for pattern in (
        r'(//[^\s/?#":@\[]*:)(?!\d*(?:\s|$)|\d+[/?#])[^\s"]*@',
        r'((?<!http:)(?<!https:)//[^\s/?#":@\[]*:)\d+[/?#][^\s"]*@',
        r'(//[^\s/?#":@\[]*:)\d+[/?#][^\s"]*@(?=[^\s"/@]*[.:])',
    )
]
"""`//user:password@`, up to the last @ of the word, since a password may hold one; a server's port before a path is none."""
_WHOLE = re.compile(r"(\A(?:--[\w-]+=)?(?:[\w.+-]+:/+)?[^\s/@:\[]*:)(?!/|\d*(?:[/?#]|\Z)).*@", re.DOTALL)
"""The same where the text is an address, with a password that holds spaces or quotes, or without the slashes of a scheme."""
_TOKEN = re.compile(r'(https?://)[^\s/?#":@]+@')
"""A server's whole user part is a credential where no password follows; a database's is a name."""
_SECRET = r"[\w.-]*(?:passw(?:or)?d|pwd|secret|token|signature|credential|api_?key)[\w.-]*"
_PARAMETER = re.compile(rf'([?&;]{_SECRET}=)[^\s"&;#]+', re.IGNORECASE)
SECRET_NAME = re.compile(_SECRET, re.IGNORECASE)
"""Names of variables and parameters whose values are secrets."""


def redact(text: str) -> str:
    """A text that quotes addresses, with `***` for every password and token; redacting it again changes nothing."""
    for pattern in (*_PASSWORDS, _TOKEN):
        text = pattern.sub(rf"\1{HIDDEN}@", text)
    return _PARAMETER.sub(rf"\1{HIDDEN}", text)


def redact_address(address: str) -> str:
    """One address, or an option with one, without its secrets, also where it cannot be parsed."""
    return redact(_WHOLE.sub(rf"\1{HIDDEN}@", address))
