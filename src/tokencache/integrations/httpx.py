"""``TokenAuth`` for httpx: the token of a source in every request, and one replay after a refusal."""

from __future__ import annotations

import httpx

from tokencache.integrations._httpx_flow import TokenFlow
from tokencache.integrations._refusal import TokenSupply

__all__ = ["TokenAuth", "TokenSupply"]


class TokenAuth(TokenFlow[httpx.Request, httpx.Response], httpx.Auth):
    """Puts the token of ``source`` into each request of an ``httpx.Client`` or ``httpx.AsyncClient``.

    A server refuses the token by status 401 or by ``error="invalid_token"`` in ``WWW-Authenticate``. Then the source
    replaces *that* token and the refused request is sent once more. A second refusal is returned unchanged. So is the
    first one if the source has no other token (INV-6), if the scope does not suffice (INV-7), if the body was streamed
    and cannot be sent again, or if a redirect led to another origin.

    ``refused`` are the statuses that refuse a token: add 403 for a server that sends it for an ended token.

    ``origins`` are the origins that may get the token, such as ``"https://api.example"``; other requests go without it.
    By default each request of the caller carries it, but not a redirect to another origin.

    Set ``requires_request_body`` on the object to read streamed bodies into memory, so that they can be sent again.
    """

    _in_memory = httpx.ByteStream
