"""Packages that only some users need, each an extra of autoprune's."""

from __future__ import annotations

from importlib.util import find_spec

from autoprune.errors import AutopruneError


def need_extra(extra: str, *others: str) -> None:
    """Raise `AutopruneError` unless the package of that extra's name is installed, or another.

    >>> need_extra("lightyear")
    Traceback (most recent call last):
    autoprune.errors.AutopruneError: `autoprune.lightyear` needs the package lightyear, ...
    """
    if all(find_spec(package) is None for package in (extra, *others)):
        raise AutopruneError(
            f"`autoprune.{extra}` needs the package {extra}, but it is not installed. "
            f"Run `pip install 'autoprune[{extra}]'`."
        )
