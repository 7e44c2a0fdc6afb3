"""``TokenAuth`` for httpx2, the maintained successor of httpx: the same as for httpx, on its classes."""

from __future__ import annotations

import httpx2

from tokencache.integrations._httpx_flow import TokenFlow

__all__ = ["TokenAuth"]


class TokenAuth(TokenFlow[httpx2.Request, httpx2.Response], httpx2.Auth):
    """Puts the token of ``source`` into each request of an ``httpx2.Client`` or ``httpx2.AsyncClient``.

    What it does, and what ``origins`` and ``requires_request_body`` mean, is said once, in
    :class:`tokencache.integrations.httpx.TokenAuth`.
    """

    _in_memory = httpx2.ByteStream
