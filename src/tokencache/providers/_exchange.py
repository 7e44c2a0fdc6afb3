"""One request to a token endpoint and its answer: limits, decoding, and the translation of third-party errors.

This module guards the edge (INV-8, INV-9). The body is bounded, redirects are not followed, cookies do not stay.
Third-party exceptions do not leave it, because their texts may hold a header, and with it a credential.
"""

from __future__ import annotations

import socket
import threading
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn, cast

import httpx

from tokencache.errors import ConfigurationError, ProviderUnavailable
from tokencache.providers.transport import closing_handshake, host_of, what_failed

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping
    from http.cookiejar import Cookie, CookieJar

    import httpcore

    from tokencache.errors import TokenCacheError
    from tokencache.ports import Clock

BODY_LIMIT: Final = 1 << 20
_SHORTEST: Final = 0.001  # a socket time-out of 0 would mean "do not block"
_COMPRESSED: Final = frozenset({"gzip", "x-gzip", "deflate"})
_READABLE: Final = frozenset({"", "identity", "raw deflate", *_COMPRESSED})
_FRAMING: Final = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})


@dataclass(frozen=True, slots=True)
class TimedRequest:
    """One request, and the time on ``clock`` at which its answer must be complete."""

    provider: str
    request: httpx.Request
    clock: Clock = field(repr=False)
    ends_at: float
    limit: float
    closed: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)
    """Set when the connection was shut down at the deadline."""

    @property
    def remaining(self) -> float:
        """The seconds left for this request, never negative."""
        return max(0.0, self.ends_at - self.clock())

    @property
    def host(self) -> str:
        """Host and port for messages: no userinfo, no path, no query."""
        return host_of(self.request.url)

    @contextmanager
    def bound(self) -> Generator[list[httpcore.NetworkStream]]:
        """Limit each phase of a blocking exchange to the time that is left, and close its connection at the end.

        A server that sends a byte from time to time keeps within the limit of each read. So a timer shuts down the
        newest of the streams that this yields; the caller adds that of a connection that was open before.
        """
        limits = self._limits()
        streams: list[httpcore.NetworkStream] = []

        def trace(event: str, info: dict[str, object]) -> None:
            self._renew(limits, info)
            if event.endswith((".connect_tcp.complete", ".connect_unix_socket.complete", ".start_tls.complete")):
                streams.append(cast("httpcore.NetworkStream", info["return_value"]))

        self.request.extensions = {**self.request.extensions, "timeout": limits, "trace": trace}
        timer = threading.Timer(self.remaining, self._shut_down, [streams])
        timer.name, timer.daemon = "tokencache-deadline", True
        timer.start()
        try:
            yield streams
        finally:
            timer.cancel()

    def abound(self) -> None:
        """Do the same for an exchange in an event loop."""
        limits = self._limits()
        close = closing_handshake()

        async def trace(event: str, info: dict[str, object]) -> None:
            self._renew(limits, info)
            await close(event, info)

        self.request.extensions = {**self.request.extensions, "timeout": limits, "trace": trace}

    def _limits(self) -> dict[str, float]:
        """Return the limit of each phase: slightly less than the time left, so that its own error names the phase."""
        left = max(self.remaining - self.limit / 50, _SHORTEST)
        return dict.fromkeys(("connect", "read", "write", "pool"), left)

    def _renew(self, limits: dict[str, float], info: dict[str, object]) -> None:
        """Update the limits; httpx sets that of the TLS handshake before it opens the connection."""
        limits.update(self._limits())
        if "timeout" in info:
            info["timeout"] = limits["connect"]

    def _shut_down(self, streams: list[httpcore.NetworkStream]) -> None:
        """Shut down the newest stream, so that a thread that reads from it wakes at once."""
        self.closed.set()
        for stream in streams[-1:]:
            open_socket = stream.get_extra_info("socket")
            with suppress(OSError, TypeError):  # SSLSocket.shutdown would take the TLS object from the reading thread
                socket.socket.shutdown(open_socket, socket.SHUT_RDWR)

    def check(self) -> None:
        """Raise ``TimeoutError`` if no time is left."""
        if not self.remaining:
            raise TimeoutError

    def explain(self, error: Exception) -> TokenCacheError:
        """Return our error for a third-party one; it quotes only log-safe text."""
        who = f"[{self.provider}]"
        if self.closed.is_set():
            error = TimeoutError()
        if isinstance(error, httpx.LocalProtocolError):
            return ConfigurationError(
                f"{who} the request to {self.host} cannot be sent: a header holds a forbidden character;"
                " look for line breaks in the credentials"
            )
        if isinstance(error, httpx.UnsupportedProtocol):
            return ConfigurationError(f"{who} the token address must begin with https:// (or http:// on loopback)")
        return ProviderUnavailable(f"{who} {what_failed(error, self.host, self.limit)}")


class Body:
    """A response body as it arrives: decoded, at most ``BODY_LIMIT`` bytes in memory."""

    def __init__(self, call: TimedRequest, encoding: str) -> None:
        self._call = call
        self._parts: list[bytes] = []
        self._room = BODY_LIMIT
        self._coding = encoding.strip().lower()
        # 32 + the window size makes zlib detect the header: gzip or zlib
        self._inflate = zlib.decompressobj(32 + zlib.MAX_WBITS) if self._coding in _COMPRESSED else None

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes from the wire. Raises ``ProviderUnavailable`` if the body gets too large."""
        if self._inflate is not None:
            if self._inflate.eof:
                self._refuse("more bytes after the end of its compressed body")
            with suppress(zlib.error):
                return self._keep(self._inflate.decompress(chunk, self._room + 1))
            if self._coding != "deflate" or self._parts:
                self._refuse("a body whose compression is broken")
            # Some servers send "deflate" without the zlib header that RFC 9110 section 8.4.1.2 requires.
            self._inflate, self._coding = zlib.decompressobj(-zlib.MAX_WBITS), "raw deflate"
            return self.feed(chunk)
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
        body = b"".join(self._parts)
        # Some servers name a character set here, or "none". Their body is readable as it is.
        if self._coding not in _READABLE and not body.lstrip().startswith(
            (b"{", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
        ):
            self._refuse("an encoding that was not requested")
        return body

    def _refuse(self, what: str) -> NoReturn:
        message = f"[{self._call.provider}] {self._call.host} sent {what}; check that its address is a token endpoint's"
        raise ProviderUnavailable(message)


def plain_response(response: httpx.Response, body: bytes) -> httpx.Response:
    """Return the response with its body in memory, without the headers of its transfer."""
    headers = [(name, value) for name, value in response.headers.raw if name.lower() not in _FRAMING]
    return httpx.Response(response.status_code, headers=headers, content=body, request=response.request)


def checked(provider: str, request: httpx.Request) -> httpx.Request:
    """Return the request; it asks for an uncompressed answer. Raises ``ConfigurationError`` for userinfo in its URL."""
    if request.url.userinfo:  # httpx writes the whole URL to its log
        message = f"[{provider}] the token address must not hold a user or password"
        raise ConfigurationError(message)
    request.headers.setdefault("Accept-Encoding", "identity")
    request.headers.setdefault("Accept", "application/json")
    request.headers.setdefault("User-Agent", "tokencache")
    return request


def restore_cookies(jar: CookieJar, before: Mapping[tuple[str, str, str], Cookie], response: httpx.Response) -> None:
    """Restore the cookies of the caller's client to their state before the token response.

    A cookie of the login must not reach other requests of that client, nor replace their cookies.
    """
    lines = response.headers.get_list("set-cookie")
    names = {line.partition(";")[0].partition("=")[0].strip() for line in lines}  # a cookie without a value counts too
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
    """Return a hint for an unknown name: the closest known name, or all known names."""
    from difflib import get_close_matches

    names = sorted(known)
    close = get_close_matches(name.lower(), names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
