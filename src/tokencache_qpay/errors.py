"""The errors of the QPay client, one tree below ``TokenCacheError``.

::

    QPayError                     QPay's answer, or the lack of one, with ``code``, ``status`` and ``message``
    ├── QPayInvalidRequest        our own check failed; nothing was sent
    ├── QPayRefused               QPay refused: a repetition gives the same answer
    │   ├── QPayValidationError   400: a field is missing or wrong, or a business rule forbids it
    │   ├── QPayUnauthorized      401 after the token was replaced, or 403: the merchant may not do that
    │   ├── QPayConflict          409, or already paid, settled or cancelled
    │   └── QPayNotFound          422 or 404: there is no such invoice, payment or merchant
    └── QPayUnavailable           QPay could not answer: it is busy, unreachable, or sends an unreadable answer
        └── QPayOutcomeUnknown    the same, and QPay may have done the operation

QPay may add codes. The status decides the class; the code decides if one status has several meanings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from tokencache.errors import TokenCacheError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "QPayConflict",
    "QPayError",
    "QPayInvalidRequest",
    "QPayNotFound",
    "QPayOutcomeUnknown",
    "QPayRefused",
    "QPayUnauthorized",
    "QPayUnavailable",
    "QPayValidationError",
]

Message: TypeAlias = "str | Mapping[str, object] | None"


class QPayError(TokenCacheError):
    """QPay refused, did not answer, or would have refused.

    ``code`` is QPay's key, such as ``INVOICE_NOTFOUND``, or ``None``. ``status`` is the HTTP status, ``None`` without
    an answer. ``message`` is QPay's message: a text, often in Mongolian, or an object with one text per field.
    """

    def __init__(
        self, text: str, *, code: str | None = None, status: int | None = None, message: Message = None
    ) -> None:
        super().__init__(text)
        self.code = code
        self.status = status
        self.message = message


class QPayInvalidRequest(QPayError, ValueError):
    """The request breaks one of QPay's limits; nothing was sent."""


class QPayRefused(QPayError):
    """QPay refused, and would refuse a repetition."""


class QPayValidationError(QPayRefused):
    """A field is missing or wrong, or a business rule forbids it (400)."""


class QPayUnauthorized(QPayRefused):
    """QPay refused the token and its replacement (401), or the merchant may not do that (403)."""


class QPayConflict(QPayRefused):
    """The object exists already, or its state forbids this: paid, settled, cancelled."""


class QPayNotFound(QPayRefused):
    """The object does not exist; QPay answers 422 then."""


class QPayUnavailable(QPayError):
    """QPay could not answer. The operation was not done, or is safe to repeat."""


class QPayOutcomeUnknown(QPayUnavailable):
    """QPay may have done the operation, but did not confirm it. Check before a repetition: it is not idempotent."""


_BY_STATUS: Final[dict[int, type[QPayRefused]]] = {
    401: QPayUnauthorized,
    403: QPayUnauthorized,
    404: QPayNotFound,
    409: QPayConflict,
    422: QPayNotFound,
}
_MISSING: Final = ("_NOTFOUND", "_NOT_FOUND")
_STATES: Final = frozenset({"INVOICE_PAID", "PAYMENT_SETTLED", "QRCODE_USED", "ACCOUNT_BANK_DUPLICATED"})


def refusal_class(status: int, code: str | None) -> type[QPayRefused]:
    """Return the class of a refusal."""
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if code is not None and code.endswith(_MISSING):
        return QPayNotFound
    if code is not None and ("_ALREADY_" in code or code in _STATES):
        return QPayConflict
    return QPayValidationError
