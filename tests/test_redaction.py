"""Secrets in URLs, in whatever text they turn up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.errors import first_line
from autoprune.redaction import redacted

SECRETS = st.text(
    st.characters(
        categories=("L", "N", "P", "S"), max_codepoint=0x2FF, exclude_characters="<>\"'&"
    ),
    min_size=6,
    max_size=20,
).map(lambda text: f"Zq{text}")


@given(secret=SECRETS, scheme=st.sampled_from(["http", "https", "postgresql+psycopg", "mysql"]))
def test_no_password_is_left(secret: str, scheme: str) -> None:
    for url in (f"{scheme}://bob:{secret}@host:1/db", f"{scheme}://{secret}@host"):
        for text in (url, f"could not open '{url}': refused"):
            assert secret not in redacted(text)
            assert "host" in redacted(text)


@given(secret=SECRETS, name=st.sampled_from(["token", "api_key", "password", "x", "sig"]))
def test_no_value_of_a_query_is_left(secret: str, name: str) -> None:
    for url in (f"https://host/x?{name}={secret}", f"https://host/x?mode=ro&{name}={secret}"):
        assert secret not in redacted(url)
        assert "https://host/x?" in redacted(f"see {url} for more")


def test_a_query_without_names_is_blotted_out() -> None:
    assert redacted("https://host/x?s3cret") == "https://host/x?***"


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/bob/runs/mine/mlflow.db",
        "http://127.0.0.1:5000",
        "postgresql://host/db?sslmode=require&connect_timeout=10",
        "write to bob@example.org, or look at https://example.org/faq",
        "`0 <= sparsity < 1` must hold, but is a = b?c: why?",
        "",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


def test_errors_are_shown_without_secrets() -> None:
    error = ValueError("cannot reach mysql://bob:pw@host/db\nand more")
    assert first_line(error) == "ValueError: cannot reach mysql://***@host/db"
