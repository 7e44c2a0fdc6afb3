"""The token side of the fake: sessions, their ends, and their JSON."""

from __future__ import annotations

import hmac
import json
import secrets
import threading
import uuid
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

Expires: TypeAlias = "Literal['epoch', 'duration'] | Callable[[float, float], object]"


@dataclass(slots=True)
class Session:
    """One login at the server: its current token pair, and its end by the server's clock."""

    access_token: str
    refresh_token: str
    ends_at: float


class Sessions:
    """All logins at the server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _live: tests revoke from their own threads
        self._live: list[Session] = []
        self._signing_key = secrets.token_bytes(32)

    def open(self, now: float, lifetime: float, expires: Expires, *, only: bool) -> dict[str, object]:
        """Log in; ``only`` ends all earlier logins. Returns the eight fields of the answer."""
        ends_at = int(now + lifetime) if expires == "epoch" else now + lifetime
        session = Session(self._jwt(now, int(now + lifetime)), self._jwt(now, int(now + lifetime)), ends_at)
        with self._lock:
            if only:
                self._live.clear()
            self._live.append(session)
        said = _said(now, lifetime, expires)
        return {
            "token_type": "bearer",
            "refresh_expires_in": said,
            "refresh_token": session.refresh_token,
            "access_token": session.access_token,
            "expires_in": said,
            "scope": "get_token",
            "not-before-policy": "0",
            "session_state": "sandbox",
        }

    def holds(self, access_token: str, now: float) -> bool:
        """Return whether a token is valid now."""
        with self._lock:
            return any(each.access_token == access_token and now < each.ends_at for each in self._live)

    def spend(self, refresh_token: str, now: float) -> bool:
        """End the login of a refresh token, which is replaced by a new one; return ``False`` for an unknown token."""
        with self._lock:
            for session in self._live:
                if session.refresh_token == refresh_token and now < session.ends_at:
                    self._live.remove(session)
                    return True
        return False

    def revoke(self, access_token: str | None) -> None:
        """End one login, or all."""
        with self._lock:
            self._live = [] if access_token is None else [s for s in self._live if s.access_token != access_token]

    def _jwt(self, now: float, epoch: int) -> str:
        """Return a token like QPay's: its ``exp`` is the time of issue *plus an epoch*, decades ahead."""
        head = _part({"alg": "HS256", "typ": "JWT"})
        issued = int(now)
        claims = {
            "client_id": str(uuid.uuid4()),
            "session_id": secrets.token_urlsafe(24),
            "iat": issued,
            "exp": issued + epoch,
        }
        signed = f"{head}.{_part(claims)}"
        return f"{signed}.{_encoded(hmac.digest(self._signing_key, signed.encode(), 'sha256'))}"


def _said(now: float, lifetime: float, expires: Expires) -> object:
    """Return the value of ``expires_in``."""
    if expires == "epoch":
        return int(now + lifetime)
    if expires == "duration":
        return int(lifetime) if float(lifetime).is_integer() else lifetime
    return expires(now, lifetime)


def _part(value: object) -> str:
    return _encoded(json.dumps(value, separators=(",", ":")).encode())


def _encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
