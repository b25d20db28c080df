"""Addresses without what is secret in them: what people are shown, and what is kept, names no user, password or key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import parse_qsl, unquote

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*:/+"  # pathlib makes http:/HOST of http://HOST
_URL = re.compile(rf"({_SCHEME})(.*)", re.DOTALL)
_URL_IN_TEXT = re.compile(rf"(?<![A-Za-z0-9+.-]){_SCHEME}[^\s'\"<>]*")
_RELATIVE = re.compile(r"(with url: [^\s?]*)\?\S*")  # as urllib3 names what it asked for
_SHORTEST = 4  # characters of what is looked for in other words


def shown_url(url: str) -> str:
    """`url` for people to read: without user and password, and without query and fragment, which may hold a key.

    What is no URL, a path or a name, stays as it is. Never raises: also a malformed one may hold a password.
    """
    return "".join(_shown_parts(url))


def without_secrets(text: str, urls: Iterable[str] = ()) -> str:
    """`text`, mostly the words of a library's error, with every URL in it as `shown_url` has it.

    urls: those whose passwords and keys may also be in `text` in other forms; each becomes ***.
    """
    for url in urls:
        text = text.replace(url, shown_url(url)) if url else text
        for secret in sorted(_secrets(url), key=len, reverse=True):
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    text = _RELATIVE.sub(r"\1", text)
    return _URL_IN_TEXT.sub(lambda found: shown_url(found[0]), text)


def _shown_parts(url: str) -> tuple[str, str, str]:
    """Scheme with its slashes, host and path."""
    match = _URL.fullmatch(url)
    if match is None:
        return "", "", url
    scheme, rest = match[1], match[2]
    user = "" if scheme.endswith("///") else _user(rest)
    rest = rest[len(user) :]
    host = re.match(r"[^/?#]*", rest)
    assert host is not None
    return scheme, host[0], re.split(r"[?#]", rest[host.end() :], maxsplit=1)[0]


def _user(rest: str) -> str:
    """USER:PASSWORD@ at the beginning of what follows the scheme."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" not in authority and not re.fullmatch(r"(\[.*\]|[^:]*)(:\d*)?", authority):
        authority = rest  # what looks like a port is none: the beginning of a password with a / or ? or # in it
    return authority[: authority.rfind("@") + 1]


def _secrets(url: str) -> Iterator[str]:
    match = _URL.fullmatch(url)
    if match is None:
        return
    user, _, password = _user(match[2]).removesuffix("@").partition(":")
    password = password or user  # a token
    query = url.partition("?")[2]
    values = [value for _, value in parse_qsl(query, keep_blank_values=True)]
    for secret in (password, query, *values):
        if len(secret) >= _SHORTEST:  # a letter or two would stand in any sentence
            yield from {secret, unquote(secret)}
