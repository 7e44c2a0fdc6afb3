"""Reading the answer of a token endpoint, for built-in and third-party providers.

The rules are those of RFC 6749 sections 5.1 and 5.2, read leniently if a strict reading would lose a good token.
No message holds a body; a quoted text of the server never holds a credential that was sent (INV-9).
"""

from __future__ import annotations

import codecs
import json
import math
import re
import time
from base64 import b64encode
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, cast
from unicodedata import normalize
from urllib.parse import parse_qsl, quote, quote_plus, unquote, unquote_plus

from tokencache.errors import ProviderRejected, ProviderUnavailable
from tokencache.expiry import TEN_YEARS, parse_http_date, parse_retry_after, read_expiry
from tokencache.token import Token

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    import httpx

    from tokencache.expiry import Expiry

__all__ = ["ServerError", "date_of", "raise_for_error", "read_json", "retry_at_of", "scrub", "token_from_mapping"]

DEFAULT_LIFETIME: Final = 300.0
LONGEST_RETRY: Final = 300.0
_TEXT_LIMIT: Final = 300
_SCANNED: Final = 4096
_SHORTEST_FORM: Final = 8
_DEEPEST: Final = 8
_REJECTING_STATUSES: Final = frozenset({400, 401, 403})
_TRANSIENT: Final = frozenset({"temporarily_unavailable", "server_error", "slow_down", "internal_failure"})
_PERMANENT: Final = frozenset(
    {
        "access_denied",
        "invalid_client",
        "invalid_grant",
        "invalid_request",
        "invalid_scope",
        "invalid_target",
        "unauthorized_client",
        "unsupported_grant_type",
    }
)
_FIELDS_READ: Final = frozenset(
    {"access_token", "token_type", "scope", "refresh_token", "refresh_expires_in", "refresh_token_expires_in"}
    | {"expires_in", "expires_on", "expires_at", "error", "error_description", "error_uri"}
)
_MEDIA_TYPE: Final = re.compile(r"[\w.+-]{1,40}/[\w.+-]{1,60}", re.ASCII)
_FORM: Final = re.compile(rb"[^\s<>{}\[\]\"]*\b(?:access_token|error)=[^\s<>{}\[\]\"]*")
_TIME: Final = re.compile(
    r"\b(?:iat|nbf|exp|expir\w*|issued at|clock|skew|time|future|too (?:old|early|late)|not yet valid)\b", re.IGNORECASE
)
_BEARER: Final = frozenset({"bearer", "bearertoken"})
_LONGEST_INTEGER: Final = 40
_SHORT: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class ServerError(NamedTuple):
    """A server's error fields (RFC 6749 section 5.2 or similar), scrubbed and cut."""

    error: str | None = None
    description: str | None = None
    uri: str | None = None

    def __str__(self) -> str:
        """Return the fields for a message after a colon, or ""."""
        said = [text for text in (self.error, self.description) if text]
        return f": {', '.join(said)}" if said else ""


def read_json(response: httpx.Response, *, provider: str, secrets: Collection[str] = ()) -> dict[str, object]:
    """Return the fields of a response: a JSON object, or a form (GitHub's default).

    ``NaN``, infinite and huge numbers, repeated names, UTF-16 and a byte-order mark are accepted: the reader of a field
    decides what it can use. Raises ``ProviderUnavailable`` for anything else; the message has status and content type,
    never the body.
    """
    fields = _fields_of(response.content)
    if fields is not None:
        return fields
    kind = "an empty body" if not response.content.strip() else "neither a JSON object nor a form"
    message = (
        f"[{provider}] {_host(response)} sent {kind} (status {response.status_code},"
        f" {_content_type(response, secrets)}); check that the address is that of a token endpoint"
    )
    raise ProviderUnavailable(message, status=response.status_code)


def token_from_mapping(
    fields: Mapping[str, object],
    *,
    provider: str,
    date: float | None,
    before_wall: float,
    names: tuple[str, ...] = (),
    default_lifetime: float = DEFAULT_LIFETIME,
    cap: float = TEN_YEARS,
    trust_jwt: bool = False,
    token_type: str | None = None,
    keep: Collection[str] | None = None,
    secrets: Collection[str] = (),
) -> tuple[Token, Expiry]:
    """Return the token that the fields of a successful response describe, and how its expiry was read.

    ``date`` is the response's ``Date`` in epoch seconds, ``before_wall`` the local epoch before the request was sent.
    ``names`` are further fields that may hold the expiry, ``cap`` is the upper limit of the lifetime, in seconds.
    ``trust_jwt`` makes the ``exp`` of the access token count. ``token_type`` replaces the answer's own. ``keep`` names
    the fields that go to ``extra``; ``None`` means all fields that ``Token`` does not have.

    Raises ``ProviderRejected`` or ``ProviderUnavailable`` if the fields are an error, ``ProviderUnavailable`` if they
    hold no usable token.
    """
    value = fields.get("access_token")
    if not value and fields.get("error"):
        _raise_for_fields(fields, provider, secrets)
    if not isinstance(value, str) or not value:
        said = server_error(fields, secrets)
        remedy = "look the error up" if str(said) else "check that the address is that of a token endpoint"
        message = f"[{provider}] the answer holds no access_token{said}; {remedy}"
        raise ProviderUnavailable(message)

    expiry = read_expiry(
        fields,
        date=date,
        before_wall=before_wall,
        names=names,
        default_lifetime=default_lifetime,
        cap=cap,
        trust_jwt=value if trust_jwt else None,
    )
    refresh_token = _text(fields.get("refresh_token"))
    try:
        token = Token(
            value,
            expires_at=expiry.expires_at,
            issued_at=expiry.issued_at,
            token_type=token_type or _scheme(fields.get("token_type")),
            scope=_scope(fields.get("scope")),
            refresh_token=refresh_token,
            refresh_expires_at=_refresh_end(fields, date, before_wall) if refresh_token else None,
            extra=_extra(fields, names, keep),
        )
    except ValueError:
        token = None
    if token is None:
        message = f"[{provider}] the access_token or token_type does not fit into a header; report this to the provider"
        raise ProviderUnavailable(message)
    return token, expiry


def raise_for_error(
    response: httpx.Response,
    *,
    provider: str,
    secrets: Collection[str] = (),
    rejecting: Collection[int] = _REJECTING_STATUSES,
    remedies: Mapping[str, str] = MappingProxyType({}),
    now: float | None = None,
) -> None:
    """Raise the error of a response with an error status; return for a status of 200 to 299.

    Raises ``ProviderRejected`` for the permanent errors of RFC 6749 section 5.2 with any 4xx, and for any other
    ``error`` with 400, 401 or 403 (or the statuses in ``rejecting``). A 401 without an ``error`` is a refusal, too,
    if the server says how to authenticate (``WWW-Authenticate``, RFC 9110 section 15.5.2), or if the body is empty or
    JSON. ``remedies`` are the last words of the message, by error code.

    Raises ``ProviderUnavailable`` for the rest: 408, 425, 429, 5xx, temporary errors, errors with a ``Retry-After``,
    and for a page without an ``error``, which a proxy or firewall may have sent. Its ``retry_at`` comes from
    ``Retry-After``, on the local wall clock (``now``). ``secrets`` are the credentials that were sent: a server may
    echo them.
    """
    if response.is_success:
        return

    status = response.status_code
    fields = _fields_of(response.content)
    said = ServerError() if fields is None else server_error(fields, secrets)
    host = _host(response)
    retry_at = retry_at_of(response, now=now)

    permanent = said.error in _PERMANENT and status >= 400  # noqa: PLR2004
    busy = status >= 500 or status in {408, 425, 429} or said.error in _TRANSIENT  # noqa: PLR2004
    busy = busy or (retry_at is not None and not permanent)
    named = fields is not None and isinstance(fields.get("error"), str | dict | list) and bool(fields["error"])
    page = fields is None and bool(response.content.strip()) and "www-authenticate" not in response.headers
    refused = permanent or (status in rejecting and (named or (status == 401 and not page)))  # noqa: PLR2004
    if refused and not busy:
        advice = remedies.get(said.error or "") or _advice(said.error)
        message = f"[{provider}] {host} refused the token request with status {status}{said}; {advice}"
        raise ProviderRejected(
            message, error=said.error, error_description=said.description, error_uri=said.uri, status=status
        )

    what = "wait before asking again" if busy else "check the address of the token endpoint"
    if status in rejecting and not busy:
        what = "the answer has no OAuth error: look for a proxy or firewall in between, then check the address"
    kind = "" if said.error else f" ({_content_type(response, secrets)})"
    message = f"[{provider}] {host} gave no token, with status {status}{kind}{said}; {what}"
    raise ProviderUnavailable(message, error=said.error, status=status, retry_at=retry_at)


def retry_at_of(response: httpx.Response, *, now: float | None = None) -> float | None:
    """Return the instant that ``Retry-After`` names, as epoch seconds of the local wall clock, or ``None``.

    The field holds seconds or an HTTP date. A date is compared with the response's own ``Date`` if it has one, so that
    a skewed clock does no harm. The result is at most 300 s from now, and never in the past.
    """
    now = time.time() if now is None else now
    date = date_of(response)
    delay = parse_retry_after(response.headers.get("retry-after", ""), date_or_now=now if date is None else date)
    return None if delay is None else now + min(delay, LONGEST_RETRY)


def clock_refusal(response: httpx.Response, secrets: Collection[str], *, now: float) -> float | None:
    """Return the server's time if it refused an assertion because of its time, else ``None``.

    The refusal (400, 401 or 403) names the time, and the response's ``Date`` differs from ``now`` (epoch) by two
    seconds or more.
    """
    date = date_of(response)
    fields = _fields_of(response.content)
    if date is None or abs(date - now) < 2 or fields is None or response.status_code not in _REJECTING_STATUSES:  # noqa: PLR2004
        return None
    said = server_error(fields, secrets)
    return date if _TIME.search(f"{said.error} {said.description}") else None


def date_of(response: httpx.Response) -> float | None:
    """Return the response's ``Date`` as epoch seconds, or ``None``."""
    return parse_http_date(response.headers.get("date", ""))


def scrub(text: str, secrets: Collection[str]) -> str:
    """Return a server's text for a message: no secret, no unprintable character, at most 300 characters.

    A text that holds a secret in another form is not quoted at all: in the escapes of URLs, HTML or JSON, in
    hexadecimal or base64, in other letters, split, or cut short. Only the first 4,096 characters are looked at.
    """
    from html import unescape

    if len(text) > _SCANNED:  # a secret that is cut here must not be shown by its beginning
        text = text[: max(_SCANNED - max((len(each) for each in secrets), default=0), 0)]

    # Replaced before and after: a control character inside the echo or inside the secret could hide a match.
    text = _without(text, secrets)
    printable = _without("".join(char if char.isprintable() else " " for char in text), secrets)
    if any(each in view for view in (*_unescaped(text), *_unescaped(printable)) for each in secrets if each):
        return "<hidden>"
    if any(form in flat for flat in (_flat(text), _flat(unquote(unescape(text)))) for form in _forms(secrets)):
        return "<hidden>"
    text = " ".join(printable.split())
    return text if len(text) <= _TEXT_LIMIT else text[: _TEXT_LIMIT - 1] + "…"


def _without(text: str, secrets: Collection[str]) -> str:
    """Return the text with every spelling of every secret replaced."""
    spellings = {spelling for each in secrets for spelling in (each, quote(each), quote(each, ""), quote_plus(each))}
    for form in sorted(spellings - {""}, key=len, reverse=True):
        text = text.replace(form, "<hidden>")
    return text


def _flat(text: str) -> str:
    """Return the letters and digits of a text, in one case and one width."""
    return "".join(char for char in normalize("NFKC", text).casefold() if char.isalnum())


def _forms(secrets: Collection[str]) -> Iterator[str]:
    """Yield what betrays a secret in a flat text: its first half, and the middle of its hexadecimal and base64 text."""
    for each in secrets:
        flat, data = _flat(each), each.encode("utf-8", "replace")
        if len(flat) < _SHORTEST_FORM:
            continue
        yield flat[: max(_SHORTEST_FORM, len(flat) // 2)]
        yield data.hex()
        for shift in range(3):  # base64 looks different at each of three places
            middle = b64encode(bytes(shift) + data)[4:-4].decode()
            if len(_flat(middle)) >= _SHORTEST_FORM:
                yield _flat(middle)


def _unescaped(text: str) -> Iterator[str]:
    """Yield the text under each URL, HTML and JSON decoding, also nested."""
    from html import unescape

    inner = re.sub(r"\\(?:u([0-9a-fA-F]{4})|(.))", _character, text).encode("utf-16", "surrogatepass")
    views = [text, unescape(text), inner.decode("utf-16", "replace")]
    views.append(unescape(views[-1]))
    for view in views:
        yield from (view, unquote(view), unquote_plus(view))


def _character(escape: re.Match[str]) -> str:
    """Return the character of a JSON escape."""
    return chr(int(escape[1], 16)) if escape[1] else _SHORT.get(escape[2], escape[2])


def _fields_of(body: bytes) -> dict[str, object] | None:
    """Return the fields of a JSON object or a form, ``None`` for any other body."""
    encoding = "utf-16" if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        value: object = json.loads(body.decode(encoding, errors="replace"), parse_int=_integer)
    except (ValueError, RecursionError):
        form = _FORM.fullmatch(body.strip())
        return dict(parse_qsl(form[0].decode("ascii", errors="replace"), max_num_fields=100)) if form else None
    return cast("dict[str, object]", value) if isinstance(value, dict) else None


def _integer(digits: str) -> int | float:
    """Return an integer; one with too many digits becomes a float, maybe infinite, instead of an exception."""
    return int(digits) if len(digits) <= _LONGEST_INTEGER else float(digits)


def server_error(fields: Mapping[str, object], secrets: Collection[str]) -> ServerError:
    """Return the error in a body; its texts may be objects, and its names may differ from the RFC's."""
    texts = ("error_description", "message", "detail", "errmsg", "msg")
    description: object = next((fields[name] for name in texts if fields.get(name)), None)
    error = fields.get("error")
    if not isinstance(error, str):
        nested = next((fields[name] for name in ("error", "errors") if isinstance(fields.get(name), dict | list)), None)
        if description in (None, error) and nested:
            description = nested
        error = None
    numbers = (fields.get(name) for name in ("errcode", "code", "error_code"))
    code = next((each for each in numbers if isinstance(each, int | str) and each not in (0, "", "0")), None)
    if error is None and code is not None and not isinstance(code, bool) and description is not None:
        description = f"{_readable(description, 0)} ({code})"
    return ServerError(_said(error, secrets), _said(description, secrets), _said(fields.get("error_uri"), secrets))


def _said(value: object, secrets: Collection[str]) -> str | None:
    """Return a field of an error as text, ``None`` if it is empty."""
    if value is None or value in ("", {}, []):
        return None
    return scrub(_readable(value, 0), secrets) or None


def _readable(value: object, depth: int) -> str:
    """Return a JSON value as words: ``object_type: REQUIRED, Required!`` rather than braces and quotes."""
    if isinstance(value, str):
        return value
    if depth > _DEEPEST:
        return "…"
    if isinstance(value, dict):
        pairs = cast("dict[str, object]", value)
        if set(pairs) <= {"type", "message"}:
            return ", ".join(_readable(part, depth + 1) for part in pairs.values())
        return "; ".join(f"{name}: {_readable(part, depth + 1)}" for name, part in pairs.items())
    if isinstance(value, list):
        return ", ".join(_readable(part, depth + 1) for part in cast("list[object]", value))
    return json.dumps(value)


def _raise_for_fields(fields: Mapping[str, object], provider: str, secrets: Collection[str]) -> NoReturn:
    """Raise for an error with a status of success, which some servers send."""
    said = server_error(fields, secrets)
    if said.error in _PERMANENT:
        message = f"[{provider}] the provider refused the token request{said}; {_advice(said.error)}"
        raise ProviderRejected(message, error=said.error, error_description=said.description, error_uri=said.uri)
    message = f"[{provider}] the provider gave an error instead of a token{said}; wait before asking again"
    raise ProviderUnavailable(message, error=said.error)


def _advice(error: str | None) -> str:
    """Return the remedy for a refusal."""
    match error:
        case "invalid_scope" | "invalid_target":
            return "check the requested scope and audience"
        case "unauthorized_client" | "unsupported_grant_type" | "access_denied":
            return "allow this grant for the client at the provider"
        case _:
            return "check the client id and secret"


def _refresh_end(fields: Mapping[str, object], date: float | None, before_wall: float) -> float | None:
    """Return when the refresh token ends, or ``None`` if the answer does not say so in a usable way."""
    for name in ("refresh_expires_in", "refresh_token_expires_in"):
        if name in fields:
            expiry = read_expiry({"expires_in": fields[name]}, date=date, before_wall=before_wall)
            if expiry.field is not None:
                return expiry.expires_at
    return None


def _scope(value: object) -> str | None:
    """Return the granted scope as text; some servers send a list."""
    if isinstance(value, list):
        return " ".join(part for part in cast("list[object]", value) if isinstance(part, str)) or None
    return _text(value)


def _scheme(value: object) -> str:
    """Return the authentication scheme of a ``token_type``: "Bearer" for each of its known spellings."""
    text = (_text(value) or "Bearer").strip()
    return "Bearer" if re.sub(r"[\s_-]", "", text).lower() in _BEARER else text


def table_of(value: object) -> dict[str, object]:
    """Return a JSON object, an empty one for anything else."""
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    """Return a non-empty string, or ``None`` for anything else."""
    return value if isinstance(value, str) and value else None


def _extra(fields: Mapping[str, object], names: tuple[str, ...], keep: Collection[str] | None) -> dict[str, object]:
    """Return the fields for ``extra`` that a record can hold."""
    wanted = fields.keys() - _FIELDS_READ - set(names) if keep is None else fields.keys() & set(keep)
    return {name: fields[name] for name in sorted(wanted) if _storable(fields[name], 0)}


def _storable(value: object, depth: int) -> bool:
    """Return whether a value survives the way through JSON."""
    if isinstance(value, float):
        return math.isfinite(value)
    if value is None or isinstance(value, str | int):
        return True
    if depth >= _DEEPEST:
        return False
    if isinstance(value, list):
        return all(_storable(part, depth + 1) for part in cast("list[object]", value))
    if isinstance(value, dict):
        pairs = cast("dict[object, object]", value).items()
        return all(isinstance(name, str) and _storable(part, depth + 1) for name, part in pairs)
    return False


def _content_type(response: httpx.Response, secrets: Collection[str]) -> str:
    """Return the content type for a message."""
    found = _MEDIA_TYPE.match(scrub(response.headers.get("content-type", ""), secrets))  # it may be a part of a secret
    return found.group() if found else "no content type"


def _host(response: httpx.Response) -> str:
    """Return the host that answered, for messages."""
    from tokencache.providers.transport import host_of

    return host_of(response.request.url)
