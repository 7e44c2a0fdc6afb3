"""Transports by which HTTP clients reach :class:`~suite.logins.Logins` without a network."""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx
    import requests

    from suite.logins import Logins

METADATA = {
    "issuer": "https://login.microsoftonline.com/tenant/v2.0",
    "authorization_endpoint": "https://login.microsoftonline.com/tenant/oauth2/v2.0/authorize",
    "token_endpoint": "https://login.microsoftonline.com/tenant/oauth2/v2.0/token",
}
JSON_TYPE = {"Content-Type": "application/json"}


def mount(session: requests.Session, logins: Logins) -> None:
    """Make a session of requests log in at ``logins``."""
    import requests
    from requests.adapters import BaseAdapter

    class Adapter(BaseAdapter):
        """Answers every request with a token."""

        def send(self, request: Any, **_options: object) -> Any:  # noqa: ANN401  (as requests types it)
            """Log in."""
            response = requests.Response()
            response.status_code, response.request, response.url = 200, request, request.url
            response.headers.update(JSON_TYPE)
            response.raw = io.BytesIO(logins.body())
            return response

        def close(self) -> None:
            """Do nothing: there are no connections."""

    session.mount("https://", Adapter())


def transport(logins: Logins, *, qpay: bool = False) -> httpx.MockTransport:
    """Return a transport for httpx, sync or async; with ``qpay`` the answer has all fields of QPay's."""
    import httpx

    def full(told: dict[str, Any]) -> dict[str, Any]:
        """Return the answer with QPay's own fields: an epoch, and a refresh token."""
        end = time.time() + logins.told
        more = {"refresh_token": "r", "refresh_expires_in": end + 3600, "scope": "", "session_state": ""}
        return {**told, **more, "expires_in": end, "not-before-policy": "0"}

    def answer(_: httpx.Request) -> httpx.Response:
        told = dict(logins.response())
        return httpx.Response(200, json=full(told) if qpay else told)

    return httpx.MockTransport(answer)


class MicrosoftDoor:
    """A custom HTTP client for MSAL."""

    def __init__(self, logins: Logins) -> None:
        self._logins = logins

    def get(self, *_arguments: object, **_options: object) -> Reply:
        """Return the metadata of the tenant."""
        import json

        return Reply(json.dumps(METADATA))

    def post(self, *_arguments: object, **_options: object) -> Reply:
        """Log in."""
        return Reply(self._logins.body().decode())

    def close(self) -> None:
        """Do nothing: there are no connections."""


class Reply:
    """The part of an answer that MSAL reads."""

    status_code = 200
    headers = JSON_TYPE

    def __init__(self, text: str) -> None:
        self.text = text

    def raise_for_status(self) -> None:
        """Do nothing: every answer is a success."""
