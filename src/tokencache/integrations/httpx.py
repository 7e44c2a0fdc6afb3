"""``TokenAuth`` for httpx: the token of a source in every request, and one replay after a refusal."""

from __future__ import annotations

import httpx

from tokencache.integrations._httpx_flow import TokenFlow
from tokencache.integrations._refusal import TokenSupply

__all__ = ["TokenAuth", "TokenSupply"]


class TokenAuth(TokenFlow[httpx.Request, httpx.Response], httpx.Auth):
    """Puts the token of ``source`` into each request of an ``httpx.Client`` or ``httpx.AsyncClient``.

    When the server refuses the token, by status 401 or by ``error="invalid_token"`` in ``WWW-Authenticate``, the
    source replaces *that* token and the refused request is sent once more. A second refusal is given back as it is,
    and so is the first where the source has no other token (INV-6), where the scope does not suffice (INV-7), where
    a body was streamed and so cannot be sent again, and where another origin answered than the one asked.

    ``origins`` are the origins that may have the token, such as ``"https://api.example"``; a request to another goes
    without it. By default each request that the caller makes carries it, and a redirect to another origin does not.

    Setting ``requires_request_body`` on the object reads streamed bodies into memory, so that they can be sent again.
    """

    _in_memory = httpx.ByteStream
