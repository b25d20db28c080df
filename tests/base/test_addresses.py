"""What is shown of an address, in the forms in which people write it and libraries repeat it."""

from __future__ import annotations

import pytest
import requests
import sqlalchemy

from began.base.addresses import shown_url, without_secrets


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pw9@host:8000/a.zip?key=pw9#pw9", "https://host:8000/a.zip"),
        ("https://pw9@host", "https://host"),
        ("http://me:p@pw9@host/a", "http://host/a"),
        ("http://me:p/pw9@host/a", "http://host/a"),
        ("http://me:p?pw9@host/a", "http://host/a"),
        ("http://me:p#pw9@host/a", "http://host/a"),
        ("http://me:pw9@[::1]:80/a", "http://[::1]:80/a"),
        ("http://me:pw9@[bad", "http://[bad"),
        ("http://[::1]:80/a@2x.zip", "http://[::1]:80/a@2x.zip"),
        ("https://host/package@1.0/a.zip", "https://host/package@1.0/a.zip"),
        ("postgresql+psycopg2://me:pw9@host/runs?password=pw9", "postgresql+psycopg2://host/runs"),
        ("http:/me:pw9@host/a", "http:/host/a"),  # as pathlib writes it
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("file:///my/faces.zip", "file:///my/faces.zip"),
        ("databricks", "databricks"),
        ("runs/a?b", "runs/a?b"),
        ("", ""),
    ],
)
def test_of_an_address_neither_user_password_nor_query_is_shown(url: str, shown: str) -> None:
    assert shown_url(url) == shown
    assert without_secrets(f"the store '{url}' failed", [url]) == f"the store '{shown}' failed"


def test_what_libraries_say_of_an_address_holds_no_secret() -> None:
    url = "http://me:pw9%2Fx@127.0.0.1:9/mlflow?token=pw9-token"
    words = []
    with pytest.raises(requests.ConnectionError) as refused:
        requests.get(url, timeout=5, proxies={"http": ""})
    words.append(str(refused.value))
    with pytest.raises(requests.exceptions.InvalidSchema) as unknown:
        requests.get(url.replace("http", "nothing"), timeout=5)
    words.append(str(unknown.value))
    with pytest.raises(sqlalchemy.exc.ArgumentError) as malformed:
        sqlalchemy.create_engine(url.replace("http://", "sqlite://"))
    words.append(str(malformed.value))
    words.append("the password pw9/x of me was refused")
    for text in words:
        assert "pw9" not in without_secrets(text, [url]), text
    assert all("pw9" in text for text in words)


def test_a_text_without_addresses_stays_as_it_is() -> None:
    text = "data/model: 12 of 13 files, L(x)/L(G(z)) at 3:/ and me@example.org; why?"
    assert without_secrets(text, ["", "databricks", "http://host/a"]) == text
