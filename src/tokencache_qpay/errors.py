"""The errors of the QPay client, one tree below ``TokenCacheError``.

::

    QPayError                     QPay's answer, or the lack of one, with ``code``, ``status`` and ``message``
    ├── QPayInvalidRequest        our own check failed; nothing was sent
    ├── QPayRefused               QPay said no: another attempt gives the same answer
    │   ├── QPayValidationError   400: a field is missing or wrong, or a rule of business forbids it
    │   ├── QPayUnauthorized      401 after the token was replaced, or 403: the merchant may not do that
    │   ├── QPayConflict          409, and what is paid, settled or cancelled already
    │   └── QPayNotFound          422 or 404: there is no such invoice, payment or merchant
    └── QPayUnavailable           QPay could not answer: busy, out of reach, or answering what is no answer
        └── QPayOutcomeUnknown    the same, and what was asked for may have been done

Codes are open-ended at QPay; the class goes by the status first, and by the code where several meanings share one.
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

    ``code`` is QPay's key, such as ``INVOICE_NOTFOUND``, ``None`` where there is none. ``status`` is the HTTP status,
    ``None`` without an answer. ``message`` is what QPay said: a text, often in Mongolian, or an object that has the
    complaint for each field.
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
    """QPay said no, and would say so again."""


class QPayValidationError(QPayRefused):
    """A field is missing or wrong, or a rule of business forbids it (400)."""


class QPayUnauthorized(QPayRefused):
    """The token was refused, and its replacement too (401), or the merchant may not do that (403)."""


class QPayConflict(QPayRefused):
    """It exists already, or is in a state that forbids this: paid, settled, cancelled."""


class QPayNotFound(QPayRefused):
    """There is no such thing: QPay says so with 422."""


class QPayUnavailable(QPayError):
    """QPay could not answer. What was asked for was not done, or does no harm when it is done twice."""


class QPayOutcomeUnknown(QPayUnavailable):
    """QPay may have done what was asked for and did not say so. Look before asking again: it is not idempotent."""


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
    """Return the family of a refusal."""
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if code is not None and code.endswith(_MISSING):
        return QPayNotFound
    if code is not None and ("_ALREADY_" in code or code in _STATES):
        return QPayConflict
    return QPayValidationError
