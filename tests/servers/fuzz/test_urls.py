"""URLs of backends as people write them: each is parsed or refused, and no text of either shows a password."""

from __future__ import annotations

import traceback
from ipaddress import IPv6Address
from urllib.parse import quote

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tokencache import TokenCache
from tokencache.errors import ConfigurationError, TokenCacheError
from tokencache.url import BackendURL

FUZZ = settings.get_profile("fuzz")

PLANTED = "pl4nted"
SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster", "memcached", "file", "memory", "REDIS", "http")
SPECIAL = ":/?#[]@!$&'()*+,;=%\\ ~^|\"<>{}\u00e9\U0001f511"
PARTS = st.sampled_from(
    [*"a/:@[]?&=,%", "h", "//", ":1", "[::1]", "%2F", "%0a", "%00", "%7f", "%c2%85", "%C3%A9", "%ff", "a=b"]
)
MESS = st.lists(PARTS, max_size=3).map("".join)
PRINTABLE = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=8)


def _spelled(text: str, way: int) -> str:
    """Return a password as it is, encoded, or half encoded."""
    return (text, quote(text, safe=""), quote(text), text.replace("@", "%40"), text.replace("%", "%25"))[way]


PASSWORDS = st.builds(
    lambda before, behind, way: _spelled(f"{before}{PLANTED}{behind}", way),
    st.text(SPECIAL, max_size=3),
    st.text(SPECIAL, max_size=3),
    st.integers(0, 4),
)
HOSTS = st.sampled_from(
    ["localhost", "127.0.0.1:6379", "[::1]:11211", "a:1,b:2", "", "h:99999", "h:", "[::1", "a b", "u:%70@h", "%00", ","]
)
PATHS = st.sampled_from(["", "/", "/0", "/16", "/mymaster/0", "/run/redis.sock", "//x", "/%zz", "/%ff", "/a@b", "/-1"])
HARMLESS = [
    *("timeout=5", "timeout=-5", "timeout=soon", "connect_timeout=1e9", "db=1", "db=x", "size=10", "poll=1s"),
    *("waiters=0", "ssl_check_hostname=2", "ssl_ca_certs=/nowhere.pem", "nonsense=1", "novalue", "=1", "a=%0a"),
]
OPTIONS = st.lists(
    st.sampled_from(HARMLESS)
    | st.sampled_from(["sentinel_password", "password", "auth", "secret_key", "token"]).map(f"{{}}={PLANTED}".format),
    max_size=3,
).map("&".join)


@st.composite
def written(draw: st.DrawFn) -> str:
    """Draw a URL with a planted password, perhaps with a mistake in it."""
    user, password = draw(st.sampled_from(["", "user", "u%40x", "us er"])), draw(PASSWORDS)
    query = draw(OPTIONS)
    text = (
        f"{draw(st.sampled_from(SCHEMES))}://{user}:{password}@{draw(HOSTS)}{draw(PATHS)}{'?' if query else ''}{query}"
    )
    if draw(st.booleans()):  # one extra character, anywhere but in the password itself or the name of an option
        place = draw(st.integers(0, len(text) - len(query)))
        start = text.index(PLANTED)
        assume(not start < place < start + len(PLANTED))
        text = text[:place] + draw(st.sampled_from([*SPECIAL, "\n", "\x00", "x", "//", "%2"])) + text[place:]
    return text


def shown_of(error: BaseException) -> list[str]:
    """Return all that a caller could print of an error."""
    return [str(error), repr(error), *(repr(value) for value in vars(error).values()), *notes_of(error)]


def notes_of(error: BaseException) -> list[str]:
    """Return the texts of an error's causes, without the lines of this file."""
    led = (error.__cause__, error.__context__)
    return [line for each in led if each for line in traceback.format_exception_only(each)]


@FUZZ
@given(text=written())
@example(text=f"redis:///user:{PLANTED}@host/0")
@example(text=f"redis://?user:a={PLANTED}@host")
@example(text=f"redis://user:a/{PLANTED}@host")
@example(text=f"redis://user:{PLANTED}")
@example(text=f"redis:user:{PLANTED}@host")
def test_a_password_is_in_no_text_of_a_url_or_its_refusal(text: str) -> None:
    """INV-9: a URL, its backend, and the error for its mistake: none of their texts shows the password."""
    shown: list[str]
    try:
        url = BackendURL.parse(text)
    except ConfigurationError as error:
        shown = shown_of(error)
    else:
        shown = [str(url), repr(url), f"{url}", f"{url!r:>9}"]
    try:
        with TokenCache(text) as cache:
            shown += [repr(cache), str(cache), repr(cache.source(dict, key="k"))]
    except TokenCacheError as error:
        shown += shown_of(error)
    assert not [each for each in shown if PLANTED in each]


@FUZZ
@given(
    text=st.one_of(
        st.text(st.characters(codec=None), max_size=60),
        st.text("redis:/@[]%2f?&=#,0123456789abc. \n\u0661", max_size=40).map("redis://".__add__),
        st.builds("x{}://{}h{}".format, st.sampled_from(["", "+y", "é", "%41"]), MESS, MESS),
        st.builds("x://{}:{}@h/{}?a={}".format, MESS, MESS, MESS, MESS),
    )
)
@example(text="redis://h/%0a")
@example(text="redis://" + "h," * 50_000)
@example(text="redis://" + "%" * 100_000)
@example(text="redis://[" + ":" * 100_000)
@example(text="redis://h?" + "&a=b" * 50_000)
def test_any_text_is_a_url_or_a_configuration_error(text: str) -> None:
    """Only `ConfigurationError` is raised for a text; a parsed URL contains no control character."""
    try:
        url = BackendURL.parse(text)
    except ConfigurationError:
        return
    parts = [
        url.scheme,
        url.username or "",
        url.path,
        *(host for host, _ in url.hosts),
        *url.options,
        *url.options.values(),
    ]
    assert not [part for part in parts if any(ord(char) < 32 or 127 <= ord(char) < 160 for char in part)]
    assert all(host and (port is None or 0 < port < 65536) for host, port in url.hosts)
    assert url.entry_point
    assert BackendURL.parse(text) == url


@FUZZ
@given(
    user=PRINTABLE,
    password=PRINTABLE.map(lambda text: f"{text}{PLANTED}"),
    hosts=st.lists(
        st.tuples(
            st.from_regex(r"[a-z0-9_.-]{1,12}", fullmatch=True) | st.ip_addresses(v=6).map(str),
            st.none() | st.integers(1, 65535),
        ),
        min_size=1,
        max_size=3,
    ),
    path=PRINTABLE,
    options=st.dictionaries(PRINTABLE.filter(bool), PRINTABLE, max_size=3),
)
def test_percent_encoded_parts_arrive_unchanged(
    user: str, password: str, hosts: list[tuple[str, int | None]], path: str, options: dict[str, str]
) -> None:
    """Every percent-encoded part of a URL comes out as it went in, and is not mistaken for another part."""
    places = [(f"[{IPv6Address(name)}]" if ":" in name else name, port) for name, port in hosts]
    authority = ",".join(name if port is None else f"{name}:{port}" for name, port in places)
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in options.items())
    text = f"redis://{quote(user, safe='')}:{quote(password, safe='')}@{authority}/{quote(path, safe='')}?{query}"
    url = BackendURL.parse(text)
    assert (url.username or "", url.password) == (user, password)
    assert (list(url.hosts), url.path, dict(url.options)) == (hosts, f"/{path}", options)
    assert PLANTED not in str(url) + repr(url)
