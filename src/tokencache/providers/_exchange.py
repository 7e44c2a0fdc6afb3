"""One request to a token endpoint and its answer: limits, decoding, and the translation of foreign errors.

Everything here guards the edge (INV-8, INV-9): the body is bounded, no redirect is followed, no cookie stays, and
no foreign exception gets out, because the text of one may hold a header and with it a credential.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

import httpx

from tokencache.errors import ConfigurationError, ProviderUnavailable
from tokencache.providers.transport import closing_handshake, host_of, what_failed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from http.cookiejar import Cookie, CookieJar

    from tokencache.errors import TokenCacheError
    from tokencache.ports import Clock

BODY_LIMIT: Final = 1 << 20
_SHORTEST: Final = 0.001  # a socket time-out of 0 would mean "do not block"
_FRAMING: Final = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})


@dataclass(frozen=True, slots=True)
class Call:
    """One request, and the reading of ``clock`` by which its answer must be complete."""

    provider: str
    request: httpx.Request
    clock: Clock = field(repr=False)
    ends_at: float
    limit: float

    @property
    def remaining(self) -> float:
        """What is left for this request, in seconds, never negative."""
        return max(0.0, self.ends_at - self.clock())

    @property
    def host(self) -> str:
        """The host asked, for messages: no userinfo, no path, no query."""
        return host_of(self.request.url)

    def bound(self) -> None:
        """Give each phase of a blocking exchange what is left when that phase begins."""
        limits = self._limits()

        def trace(_: str, info: dict[str, object]) -> None:
            self._renew(limits, info)

        self.request.extensions = {**self.request.extensions, "timeout": limits, "trace": trace}

    def abound(self) -> None:
        """Do the same for an exchange in an event loop."""
        limits = self._limits()
        close = closing_handshake()

        async def trace(event: str, info: dict[str, object]) -> None:
            self._renew(limits, info)
            await close(event, info)

        self.request.extensions = {**self.request.extensions, "timeout": limits, "trace": trace}

    def _limits(self) -> dict[str, float]:
        """Return what each phase gets: a little less than what remains, so that its own error names the phase."""
        left = max(self.remaining - self.limit / 50, _SHORTEST)
        return dict.fromkeys(("connect", "read", "write", "pool"), left)

    def _renew(self, limits: dict[str, float], info: dict[str, object]) -> None:
        """Bring the limits up to date; that of a TLS handshake was set before the connection was made."""
        limits.update(self._limits())
        if "timeout" in info:
            info["timeout"] = limits["connect"]

    def check(self) -> None:
        """Raise ``TimeoutError`` when there is no time left."""
        if not self.remaining:
            raise TimeoutError

    def explain(self, error: Exception) -> TokenCacheError:
        """Return our error for a foreign one. It quotes nothing of it but the system's own words."""
        who = f"[{self.provider}]"
        if isinstance(error, httpx.LocalProtocolError):
            return ConfigurationError(
                f"{who} the request to {self.host} cannot be sent as it stands, a header holds a forbidden"
                " character; look for line breaks in the credentials"
            )
        if isinstance(error, httpx.UnsupportedProtocol):
            return ConfigurationError(f"{who} the token address must begin with https:// (or http:// on loopback)")
        return ProviderUnavailable(f"{who} {what_failed(error, self.host, self.limit)}")


class Body:
    """A response body as it arrives: decoded, and never more than ``BODY_LIMIT`` bytes of it in memory."""

    def __init__(self, call: Call, encoding: str) -> None:
        self._call = call
        self._parts: list[bytes] = []
        self._room = BODY_LIMIT
        encoding = encoding.strip().lower()
        if encoding not in {"", "identity", "gzip", "x-gzip", "deflate"}:
            self._refuse("an encoding that was not asked for")
        # 32 more than the window: gzip or zlib, whichever header there is
        self._inflate = None if encoding in {"", "identity"} else zlib.decompressobj(32 + zlib.MAX_WBITS)

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes off the wire. Raises ``ProviderUnavailable`` when the body gets too large."""
        if self._inflate is not None:
            with suppress(zlib.error):
                return self._keep(self._inflate.decompress(chunk, self._room + 1))
            self._refuse("a body whose compression is broken")
        return self._keep(chunk)

    def _keep(self, chunk: bytes) -> None:
        self._room -= len(chunk)
        if self._room < 0:
            self._refuse(f"a body larger than {BODY_LIMIT >> 20} MiB")
        self._parts.append(chunk)

    def complete(self) -> bytes:
        """Return the whole body."""
        if self._inflate is not None and self._parts and not self._inflate.eof:
            self._refuse("a body whose compression is cut off")
        return b"".join(self._parts)

    def _refuse(self, what: str) -> NoReturn:
        message = f"[{self._call.provider}] {self._call.host} sent {what}; check that its address is a token endpoint's"
        raise ProviderUnavailable(message)


def plain_response(response: httpx.Response, body: bytes) -> httpx.Response:
    """Return the response with its body in memory and the headers that described its transfer left out."""
    headers = [(name, value) for name, value in response.headers.raw if name.lower() not in _FRAMING]
    return httpx.Response(response.status_code, headers=headers, content=body, request=response.request)


def checked(provider: str, request: httpx.Request) -> httpx.Request:
    """Return the request, asking for an uncompressed answer. Raises ``ConfigurationError`` for userinfo in its URL."""
    if request.url.userinfo:  # httpx writes the whole URL to its log
        message = f"[{provider}] the token address must not hold a user or password"
        raise ConfigurationError(message)
    request.headers.setdefault("Accept-Encoding", "identity")
    request.headers.setdefault("Accept", "application/json")
    request.headers.setdefault("User-Agent", "tokencache")
    return request


def restore_cookies(jar: CookieJar, before: Mapping[tuple[str, str, str], Cookie], response: httpx.Response) -> None:
    """Take back what the token response did to the cookies of a client that is not ours.

    A cookie of the login must neither reach other requests of that client nor replace a cookie of theirs.
    """
    lines = response.headers.get_list("set-cookie")
    names = {line.partition(";")[0].partition("=")[0].strip() for line in lines}  # one without a value is one too
    for place, cookie in cookies_of(jar).items():
        if cookie.name in names and before.get(place) is not cookie:
            with suppress(KeyError):
                jar.clear(*place)
    for cookie in before.values():
        if cookie.name in names:
            jar.set_cookie(cookie)


def cookies_of(jar: CookieJar) -> dict[tuple[str, str, str], Cookie]:
    """Return the cookies of a jar by domain, path and name."""
    return {(cookie.domain, cookie.path, cookie.name): cookie for cookie in list(jar)}


def nearest(name: str, known: Iterable[str]) -> str:
    """Return what to say of a name that is none of the known ones: which was probably meant, or which there are."""
    from difflib import get_close_matches

    names = sorted(known)
    close = get_close_matches(name.lower(), names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
