"""The report as a file: what it holds, what it escapes, what it says of bad input."""

from __future__ import annotations
