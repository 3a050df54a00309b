"""Secrets in URLs: blotted out wherever a URL is shown or stored."""

from __future__ import annotations

import re

BLOT = "***"
HARMLESS = {"application_name", "cache", "charset", "connect_timeout", "driver", "mode"}
HARMLESS |= {"experiment_name", "options", "sslmode", "timeout", "uri"}
"""Names of a query's values that are shown: settings of databases, and MLflow's own."""

# A password may hold slashes and @ itself, so all up to the last @ of the word goes.
_USER = re.compile(r"(?<=://)\S*@")
_QUERY = re.compile(r"([?&#])([\w.%-]+)=([^\s&'\"<>]+)")
_BARE_QUERY = re.compile(r"(\w+://[^\s?'\"<>]*[?#])([^\s=&'\"<>]+)(?=$|[\s'\"<>])")


def redacted(text: str) -> str:
    """Return a URL, or a text with URLs in it, without what may be a secret.

    User and password go, and the values of the query, but for those known to be harmless.

    >>> redacted("postgresql://bob:pw@host/db?sslmode=require&password=pw")
    'postgresql://***@host/db?sslmode=require&password=***'
    >>> redacted("no answer from https://host:1/api?token=abc (refused)")
    'no answer from https://host:1/api?token=*** (refused)'
    """
    text = _USER.sub(f"{BLOT}@", text)
    text = _BARE_QUERY.sub(rf"\g<1>{BLOT}", text)
    return _QUERY.sub(_shown, text)


def _shown(match: re.Match[str]) -> str:
    mark, name, value = match.groups()
    return f"{mark}{name}={value if name.lower() in HARMLESS else BLOT}"
