"""Backend URLs: the meaning of each part, what is refused and why, and that no password shows."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencache.errors import ConfigurationError
from tokencache.url import BackendURL

if TYPE_CHECKING:
    from tokencache.url import OptionKind

PASSWORD = "hunter2"


def label(value: object) -> str:
    """Return a short name for a case."""
    return ascii(value) if len(ascii(value)) < 60 else f"{ascii(value)[:20]} ({len(ascii(value))} characters)"


def refusal(text: str) -> str:
    """Return the text with which a URL is refused; it does not hold the password."""
    with pytest.raises(ConfigurationError) as caught:
        BackendURL.parse(text)
    message = str(caught.value)
    assert PASSWORD not in message
    assert PASSWORD not in repr(caught.value.__context__)
    return message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("memory://", BackendURL("memory")),
        ("memory://?size=5", BackendURL("memory", options={"size": "5"})),
        ("file://", BackendURL("file")),
        ("file:///var/cache/tokens", BackendURL("file", path="/var/cache/tokens")),
        ("file:///home/me@work/a%20b c", BackendURL("file", path="/home/me@work/a b c")),
        ("redis://localhost", BackendURL("redis", hosts=(("localhost", None),))),
        ("REDIS://localhost:6379/0", BackendURL("redis", hosts=(("localhost", 6379),), path="/0")),
        ("redis://:pw@h", BackendURL("redis", password="pw", hosts=(("h", None),))),
        ("redis://me@h", BackendURL("redis", username="me", hosts=(("h", None),))),
        ("redis://:@h", BackendURL("redis", hosts=(("h", None),))),
        ("redis://me:a:b@c@h/", BackendURL("redis", "me", "a:b@c", (("h", None),), "/")),
        ("rediss://m%40e:p%3A%2F%3F%23%40%25+w@h:1/", BackendURL("rediss", "m@e", "p:/?#@%+w", (("h", 1),), "/")),
        ("redis://u:%C3%A9%0A@h", BackendURL("redis", "u", "é\n", (("h", None),))),
        ("a+b://a:1,b:2,c/main/0", BackendURL("a+b", hosts=(("a", 1), ("b", 2), ("c", None)), path="/main/0")),
        (
            "memcached://[::1]:11211,[fe80::1%25eth0],127.0.0.1:11212",
            BackendURL("memcached", hosts=(("::1", 11211), ("fe80::1%eth0", None), ("127.0.0.1", 11212))),
        ),
        ("unix://u:p@/run/redis.sock?db=1", BackendURL("unix", "u", "p", (), "/run/redis.sock", {"db": "1"})),
        (
            "x://h?a=1&&b=&c=a=b&d%20e=%26+",
            BackendURL("x", hosts=(("h", None),), options={"a": "1", "b": "", "c": "a=b", "d e": "&+"}),
        ),
        ("x://my_host-1.example.:65535", BackendURL("x", hosts=(("my_host-1.example.", 65535),))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_part_of_a_url_is_found(text: str, expected: BackendURL) -> None:
    """The parts are percent-decoded."""
    url = BackendURL.parse(text)
    assert url == expected
    assert hash(url) == hash(expected)
    assert url.options == expected.options


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "scheme"),
        ("redis", "scheme"),
        ("localhost:6379", "scheme"),
        ("redis:/h", "scheme"),
        ("://h", "scheme"),
        ("me:hunter2@h:6379", "scheme"),
        ("me:hunter2@redis://h", "scheme"),
        ("1x://h", "scheme"),
        (" redis://h", "scheme"),
        *(("redis://h\n", "control character"), ("re\x00dis://h", "control"), ("redis://:hunter2@h/\x7f", "control")),
        *(
            ("redis://:hunter2@h/%0a", "control"),
            ("redis://a%0Ab:hunter2@h", "control"),
            ("redis://:hunter2@h?a=%00", "control"),
            ("x://h?%0d=1", "control"),
        ),
        *(("redis://:hunter2@h:", "port"), ("redis://:hunter2@h:x", "port"), ("redis://:hunter2@h:-1", "port")),
        *(("redis://:hunter2@h:0", "1 to 65535"), ("redis://h:65536", "1 to 65535"), ("redis://h:\u0666", "port")),
        *(("redis://:hunter2@h:999999", "port"), ("redis://:hunter2@h:1:2", "port"), ("redis://::1:6379", "[IPv6]")),
        ("redis://:hunter2@a,,b", "commas"),
        ("redis://a,", "commas"),
        ("redis://,a", "commas"),
        ("redis://:6379", "host"),
        ("redis://[::1", "[IPv6]"),
        ("redis://[x]", "[IPv6]"),
        ("redis://[::1]6379", "[IPv6]"),
        ("redis://a b", "host"),
        *(("redis://:hunter2/x@h", "%2F"), ("redis://:1/hunter2@h", "%2F"), ("redis://me:1?hunter2@h", "%3F")),
        *(("redis://me:1/hunter2@h", "%2F"), ("redis://me:1?a=hunter2@h", "%3F"), ("redis://:x#hunter2@h", "%23")),
        *(("redis:///me:hunter2@h/0", "%40"), ("redis:///:1/hunter2@h", "%40"), ("redis://?me:a=hunter2@h", "%40")),
        *(("redis://:hunter2%@h", "%25"), ("redis://:hunter2%4@h", "%25"), ("redis://:hunter2%zz@h", "%25")),
        ("redis://:hunter2%ff@h", "UTF-8"),
        ("redis://:hunter2%c3@h", "UTF-8"),
        ("redis://:%20\ud800hunter2@h", "UTF-8"),
        ("x://h?hunter2", "option=value"),
        ("x://h?=hunter2", "option=value"),
        ("x://h?a=hunter2&a=1", "'a' is given twice"),
        ("x://h?a=1&%61=2", "'a' is given twice"),
    ],
    ids=label,
)
def test_a_wrong_url_is_refused_with_the_remedy(text: str, part: str) -> None:
    """The message says what to do, and never holds the password."""
    message = refusal(text)
    assert message.startswith("the backend URL is not usable: ")
    assert part in message


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://me:hunter2@h:1,[::1]:2/0?ttl=5", "redis://me:***@h:1,[::1]:2/0?ttl=5"),
        ("redis://:hunter2@h", "redis://:***@h"),
        ("redis://me@h", "redis://me@h"),
        ("memory://", "memory://"),
        ("unix://:hunter2@/run/s", "unix://:***@/run/s"),
        ("x://[fe80::1%25eth0]:1", "x://[fe80::1%25eth0]:1"),
        (
            "x://h?encrypt=hunter2&api_key=hunter2&Password=hunter2&db=1",
            "x://h?encrypt=***&api_key=***&Password=***&db=1",
        ),
    ],
)
def test_no_password_shows(text: str, shown: str) -> None:
    """``str``, ``repr`` and formatting hide the password, and options whose names suggest a secret (INV-9)."""
    url = BackendURL.parse(text)
    assert str(url) == f"{url}" == shown
    assert repr(url) == f"BackendURL({shown!r})"
    assert PASSWORD not in repr([url])


@pytest.mark.parametrize(
    ("scheme", "name"), [("redis", "redis"), ("redis+sentinel", "redis.sentinel"), ("a+b+c", "a.b.c")]
)
def test_a_plus_in_a_scheme_is_a_dot_in_its_entry_point(scheme: str, name: str) -> None:
    """The backend ``redis+sentinel`` is declared as ``redis.sentinel``."""
    assert BackendURL.parse(f"{scheme}://").entry_point == name


def test_urls_are_values() -> None:
    """Neither a URL nor its options can be changed, and it survives copies and pickles."""
    given = {"a": "1"}
    url = BackendURL("x", "u", "p", (("h", 1),), "/p", given)
    given["b"] = "2"
    assert dict(url.options) == {"a": "1"}
    with pytest.raises(FrozenInstanceError):
        url.path = "/"  # type: ignore[misc]
    with pytest.raises(TypeError):
        url.options["a"] = "2"  # type: ignore[index]
    for twin in (copy.copy(url), copy.deepcopy(url), pickle.loads(pickle.dumps(url))):
        assert twin == url
        assert hash(twin) == hash(url)
    assert url != BackendURL("x", "u", "q", (("h", 1),), "/p", {"a": "1"})
    assert url != BackendURL("x", "u", "p", (("h", 1),), "/p", {"a": "2"})


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        *((str, "", ""), (str, "x y", "x y")),
        *((int, "5", 5), (int, "-5", -5), (int, "+07", 7)),
        *((float, "2.5", 2.5), (float, "3", 3.0), (float, "-0.5", -0.5)),
        *((bool, "true", True), (bool, "YES", True), (bool, "1", True), (bool, "on", True)),
        *((bool, "false", False), (bool, "No", False), (bool, "0", False), (bool, "off", False)),
        *(("duration", "5", 5.0), ("duration", "0.5", 0.5), ("duration", "500ms", 0.5), ("duration", "30s", 30.0)),
        *(("duration", "1.5m", 90.0), ("duration", "2h", 7200.0), ("duration", "1d", 86400.0), ("duration", "0", 0.0)),
    ],
)
def test_options_have_the_type_that_was_asked_for(kind: OptionKind, text: str, value: object) -> None:
    """Each kind of option is read, and has exactly its type."""
    options = BackendURL("x", options={"name": text}).typed_options({"name": kind, "other": int})
    assert options == {"name": value}
    assert type(options["name"]) is type(value)


BAD_VALUES: dict[OptionKind, tuple[str, list[str]]] = {
    int: ("a whole number", ["", "x", "5.0", "1_000", " 5", "\u0665", "9" * 5_000, "0x1", "5\n"]),
    float: ("a number, for example 2.5", ["", "nan", "inf", "1e3", ".5", "5.", "1_0", "2,5", "9" * 400]),
    bool: ("true or false", ["", "2", "y", "ja", "true "]),
    "duration": ("a duration, for example", ["", "-5", "5 s", "5S", "ms", "1w", "nan", "5sm", "1h30m"]),
}


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, (_, texts) in BAD_VALUES.items() for text in texts], ids=label
)
def test_bad_values_of_options_are_refused(kind: OptionKind, text: str) -> None:
    """The error names the option and the allowed values, and does not repeat the value."""
    with pytest.raises(ConfigurationError) as caught:
        BackendURL("redis", options={"name": text}).typed_options({"name": kind})
    assert str(caught.value).startswith(f"the option 'name' of redis:// must be {BAD_VALUES[kind][0]}")


def test_unknown_options_are_refused() -> None:
    """The error names the unknown option, the known ones and the closest of them."""
    url = BackendURL.parse("redis://h?tmieout=5&db=hunter2")
    with pytest.raises(ConfigurationError) as caught:
        url.typed_options({"timeout": float, "db": str})
    assert str(caught.value) == "redis:// has no option 'tmieout'; known: db, timeout; did you mean 'timeout'?"
    with pytest.raises(ConfigurationError, match=r"^memory:// has no option 'zzz'; known: none$"):
        BackendURL.parse("memory://?zzz=1").typed_options({})


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(st.characters(codec=None), max_size=30)
    | st.text("redis:/@%?#[],&=+0123ab. \n", max_size=30).map(lambda rest: "redis://" + rest)
)
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """Any text gives a URL or a ``ConfigurationError``, and no other error."""
    try:
        url = BackendURL.parse(text)
    except ConfigurationError:
        return
    assert str(url).startswith(f"{url.scheme}://")
    assert all(name for name, _ in url.hosts)


PRINTABLE = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(username=PRINTABLE, password=PRINTABLE | st.just("a\nb\x00"), option=PRINTABLE)
def test_percent_encoding_preserves_everything(username: str, password: str, option: str) -> None:
    """Any user, password and option survive percent-encoding, and the password does not show."""
    from urllib.parse import quote

    userinfo = f"{quote(username, safe='')}:{quote(f'<{password}>', safe='')}"
    url = BackendURL.parse(f"redis://{userinfo}@h:1/0?name={quote(option, safe='')}")
    assert (url.username, url.password, url.hosts, url.path) == (username, f"<{password}>", (("h", 1),), "/0")
    assert dict(url.options) == {"name": option}
    assert str(url) == f"redis://{username}:***@h:1/0?name={option}"
