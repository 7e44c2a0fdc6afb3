"""``TokenAuth`` for httpx2, the maintained successor of httpx: the same as for httpx, on its classes."""

from __future__ import annotations

import httpx2

from tokencache.integrations._httpx_flow import TokenFlow

__all__ = ["TokenAuth"]


class TokenAuth(TokenFlow[httpx2.Request, httpx2.Response], httpx2.Auth):
    """Puts the token of ``source`` into each request of an ``httpx2.Client`` or ``httpx2.AsyncClient``.

    :class:`tokencache.integrations.httpx.TokenAuth` explains its behavior, ``origins`` and ``requires_request_body``.
    """

    _in_memory = httpx2.ByteStream
