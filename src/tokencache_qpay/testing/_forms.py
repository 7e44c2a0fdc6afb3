"""The form of the fake's answers and refusals, and its reading of requests."""

from __future__ import annotations

import json
from typing import TypeAlias, cast

from tokencache.testing.loopback import Reply

Fields: TypeAlias = "dict[str, object]"


class Refusal(Exception):
    """Raised with the error answer for the client."""

    def __init__(self, status: int, error: object, message: object = None) -> None:
        super().__init__(str(error))
        self.reply = refusal(status, error, message)


def answer(document: object, status: int = 200) -> Reply:
    """Return a JSON answer."""
    body = json.dumps(document, ensure_ascii=False).encode()
    return Reply(status, body, (("Content-Type", "application/json; charset=utf-8"),))


def refusal(status: int, error: object, message: object = None) -> Reply:
    """Return an error answer; ``message`` may be missing."""
    return answer({"error": error} if message is None else {"error": error, "message": message}, status)


def object_of(body: bytes) -> Fields:
    """Return the JSON object of a request."""
    try:
        document: object = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise Refusal(400, "OBJECT_DATA_ERROR", "OBJECT_DATA_ERROR")
    return cast("Fields", document)


def require(missing: list[str]) -> None:
    """Raise ``Refusal`` like QPay's validation: error and message are the same object."""
    if missing:
        complaints = {name: {"type": "REQUIRED", "message": "Required!"} for name in missing}
        raise Refusal(400, complaints, complaints)
