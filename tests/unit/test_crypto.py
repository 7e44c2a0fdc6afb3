"""Encryption: a stored record shows nothing, opens only with its own key, and survives a change of the key."""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tokencache import ConfigurationError, FetchContext, Secret, Token, TokenCache
from tokencache._crypto import RecordSealing, Sealer, read_key
from tokencache._record import UnreadableRecord, decode, encode, fence_of
from tokencache.backends.file import FileBackend
from tokencache.backends.memory import MemoryBackend
from tokencache.events import RecordIgnored, TokenFetched, TokenLoaded
from tokencache.providers.oauth2 import ClientCredentials, JWTBearer, Password, RefreshToken, TokenExchange
from tokencache.testing.fakes import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

GOLDEN = Path(__file__).parents[1] / "golden" / "sealed" / "v1-aes256gcm.json"
KEY, OTHER = bytes(range(32)), bytes(range(32, 64))
TOKEN = "planted-access-token-5d1f"
REFRESH = "planted-refresh-token-77aa"
SCOPE = "planted-scope-30b6"
ID = "0123456789abcdef0123456789abcdef01234567"


class Acme:
    """A provider of numbered tokens that hold planted texts; ``client_secret`` may be missing."""

    name = "acme"

    def __init__(self, client_secret: str | None = "s3cret-of-acme") -> None:
        self.fetches = 0
        self._secret = client_secret

    def identity(self) -> Mapping[str, object]:
        """Return issuer and credential."""
        hidden = {} if self._secret is None else {"client_secret": Secret(self._secret)}
        return {"issuer": "https://id.acme.example", **hidden}

    def fetch(self, context: FetchContext) -> Token:
        """Return the next token."""
        self.fetches += 1
        now = time.time()
        value = f"{TOKEN}-{self.fetches}"
        return Token(value, expires_at=now + 3600, issued_at=now, refresh_token=REFRESH, scope=SCOPE)


def issued(value: str) -> Token:
    """Return a token of fixed instants."""
    return Token(value, expires_at=1704067200.0, issued_at=1704063600.0, refresh_token=REFRESH, scope="orders:read")


def stored(backend: MemoryBackend, key: str) -> bytes:
    """Return the bytes that are stored at a key."""
    found = backend.load(key)
    assert found is not None
    return found.data


def refusal(act: Callable[[], object]) -> str:
    """Return why a record was not read."""
    with pytest.raises(UnreadableRecord) as caught:
        act()
    return str(caught.value)


def test_the_stored_bytes_show_nothing_of_the_token(tmp_path: Path) -> None:
    """INV-9: the stored bytes hold neither token, refresh token, scope nor identity, also within the sealed text."""
    with TokenCache(FileBackend(tmp_path / "tokens"), encrypt=KEY) as cache:
        source = cache.source(Acme(), key="orders")
        assert source.token().value.startswith(TOKEN)
        held = b"".join(path.read_bytes() for path in (tmp_path / "tokens").rglob("*") if path.is_file())
        fingerprint = source.status().identity
        (path,) = (tmp_path / "tokens").glob("*.json")
        sealed = base64.b64decode(json.loads(path.read_bytes())["sealed"])
    for plain in (TOKEN, REFRESH, SCOPE, fingerprint, "accessToken", "expiresAt"):
        for form in (plain.encode(), plain.encode().hex().encode()):
            assert form not in held
            assert form not in sealed


def test_the_fence_stays_readable() -> None:
    """INV-3: a store reads the fence of a sealed record; if the fence is changed, the record is unreadable."""
    sealing = RecordSealing([KEY])
    data = encode(issued(TOKEN), fence=17, identity=ID, key="k", sealing=sealing)
    assert fence_of(data) == 17
    forged = json.dumps(json.loads(data) | {"fence": 18}).encode()
    assert refusal(lambda: decode(forged, key="k", sealing=sealing)) == "its fence is not the one that was sealed"


def test_a_record_opens_only_at_its_own_key() -> None:
    """INV-10: a sealed record that was moved to another record key is refused, even with the right encryption key."""
    sealing = RecordSealing([KEY])
    data = encode(issued(TOKEN), fence=1, identity=ID, key="orders", sealing=sealing)
    assert decode(data, key="orders", sealing=sealing).token.value == TOKEN
    assert "another encryption key, for another record key" in refusal(
        lambda: decode(data, key="billing", sealing=sealing)
    )


@pytest.mark.parametrize(
    ("place", "error"),
    [(0, ValueError), (7, ValueError), *((place, InvalidTag) for place in (8, 19, 20, -17, -16, -1))],
)
def test_a_changed_bit_is_refused(place: int, error: type[Exception]) -> None:
    """A changed bit in the key's name, the nonce, the ciphertext or the tag makes the record unreadable."""
    sealing = RecordSealing([KEY])
    sealed = bytearray(sealing.seal("k", b"plain text"))
    assert sealing.open("k", bytes(sealed)) == b"plain text"
    sealed[place] ^= 1
    with pytest.raises(error):
        sealing.open("k", bytes(sealed))


@pytest.mark.parametrize("length", [0, 8, 19, 20, 35])
def test_a_truncated_sealed_record_is_refused(length: int) -> None:
    """A sealed form that was cut off raises, whatever its length."""
    sealing = RecordSealing([KEY])
    with pytest.raises(ValueError, match="sealed with another key"):
        sealing.open("k", sealing.seal("k", b"")[:length])


def test_each_sealing_has_another_nonce() -> None:
    """If a record is sealed twice, the nonces differ, so that equal tokens do not look equal."""
    sealing = RecordSealing([KEY])
    first, second = sealing.seal("k", b"same"), sealing.seal("k", b"same")
    assert first[:8] == second[:8]
    assert first[8:20] != second[8:20]
    assert first[20:] != second[20:]


def test_the_released_sealed_form_stays_readable() -> None:
    """The committed record, sealed by the first release with encryption, opens with its key and holds its token."""
    record = decode(GOLDEN.read_bytes(), key="orders-api", sealing=RecordSealing([KEY]))
    assert (record.token, record.fence, record.identity) == (issued("golden-token"), 1704063600500000, ID)


def test_keys_can_be_rotated_across_two_caches() -> None:
    """Keys change from old to old and new to new: no step loses a token, and a cache encrypts with its first key."""
    backend = MemoryBackend()
    old = TokenCache(backend, encrypt=KEY).source(Acme(), key="orders")
    first = old.token()
    both = TokenCache(backend, encrypt=[OTHER, KEY]).source(fetching := Acme(), key="orders")
    assert both.token() == first
    assert fetching.fetches == 0
    renewed = both.renew()
    new = TokenCache(backend, encrypt=OTHER).source(fetching := Acme(), key="orders")
    assert new.token().value == renewed.value
    assert fetching.fetches == 0
    data = stored(backend, "orders")
    assert decode(data, key="orders", sealing=RecordSealing([OTHER])).token.value == renewed.value
    assert "another encryption key" in refusal(lambda: decode(data, key="orders", sealing=RecordSealing([KEY])))


@pytest.mark.parametrize(
    ("writer", "reader", "why"),
    [
        (None, KEY, "it is not sealed, though an encryption key is set here"),
        (KEY, None, "it is sealed, and no encryption key is set here"),
        (KEY, OTHER, "it was sealed with another encryption key"),
    ],
    ids=["plain for one with a key", "sealed for one without", "sealed with another key"],
)
def test_a_record_that_does_not_open_is_a_miss(writer: bytes | None, reader: bytes | None, why: str) -> None:
    """If a cache cannot open a record, or finds it unencrypted, it reports that and fetches; no call fails."""
    backend, events = MemoryBackend(), Recorder()
    TokenCache(backend, encrypt=writer).source(Acme(), key="orders").token()
    cache = TokenCache(backend, encrypt=reader, observers=[events])
    source = cache.source(fetching := Acme(), key="orders")
    assert source.status().stored == "foreign"
    assert source.token().value == f"{TOKEN}-1"
    assert fetching.fetches == 1
    ignored = [event.message for event in events.events if isinstance(event, RecordIgnored)]
    assert ignored
    assert why in ignored[0]
    assert any(isinstance(event, TokenFetched) and event.shared for event in events.events)


def test_a_sealed_token_can_be_dropped() -> None:
    """INV-6: compare-and-discard works on sealed records, also from another process's cache."""
    backend = MemoryBackend()
    one, two = (TokenCache(backend, encrypt=KEY).source(Acme(), key="orders") for _ in range(2))
    token = one.token()
    assert two.invalidate(token)
    assert backend.load("orders") is None


def test_encrypt_provider_derives_the_key_from_the_credential() -> None:
    """`encrypt="provider"`: only the same client secret opens the record, also at the same record key."""
    backend, events = MemoryBackend(), Recorder()
    token = TokenCache(backend, encrypt="provider").source(Acme(), key="orders").token()
    same = TokenCache(backend, encrypt="provider").source(again := Acme(), key="orders")
    assert same.token().value == token.value
    assert again.fetches == 0
    other = TokenCache(backend, encrypt="provider", observers=[events])
    data = stored(backend, "orders")
    assert other.source(Acme("another secret"), key="orders").token()
    assert not [event for event in events.events if isinstance(event, TokenLoaded)]
    assert any("another encryption key" in event.message for event in events.events if isinstance(event, RecordIgnored))
    assert TOKEN.encode() not in data


def test_a_derived_key_is_bound_to_the_identity() -> None:
    """Two identities with one client secret have two keys, because the fingerprint is part of the derivation."""
    sealer, provider = Sealer("provider"), Acme()
    sealed = sealer.sealing(provider, "a" * 40).seal("k", b"plain")
    assert sealer.sealing(provider, "a" * 40).open("k", sealed) == b"plain"
    with pytest.raises(ValueError, match="another key"):
        sealer.sealing(provider, "b" * 40).open("k", sealed)


def test_a_derived_key_needs_the_credential_itself() -> None:
    """Status and cooldowns show the fingerprint; without the credential, it does not give the key."""
    sealer = Sealer("provider")
    sealed = sealer.sealing(Acme("one"), "a" * 40).seal("k", b"plain")
    with pytest.raises(ValueError, match="another key"):
        sealer.sealing(Acme("two"), "a" * 40).open("k", sealed)


@pytest.mark.parametrize("client_secret", [None, ""])
def test_a_provider_without_a_credential_cannot_derive_a_key(client_secret: str | None) -> None:
    """`encrypt="provider"` refuses a provider without a credential at once: anyone could derive the key."""
    cache = TokenCache(MemoryBackend(), encrypt="provider")
    with pytest.raises(ConfigurationError, match=r"\[acme\] encrypt='provider' derives .* holds no Secret"):
        cache.source(Acme(client_secret))


@pytest.mark.parametrize("key", [KEY, b"\xff" * 32], ids=["counting", "ones"])
@pytest.mark.parametrize(
    "spelled",
    [
        lambda key: key,
        lambda key: key.hex(),
        lambda key: key.hex().upper(),
        lambda key: base64.b64encode(key).decode(),
        lambda key: base64.urlsafe_b64encode(key).decode().rstrip("="),
        lambda key: base64.urlsafe_b64encode(key) + b"\n",
    ],
    ids=["bytes", "hex", "HEX", "base64", "base64url", "bytes of base64url"],
)
def test_a_key_has_several_spellings(key: bytes, spelled: Callable[[bytes], str | bytes]) -> None:
    """A key may be hexadecimal, base64 or base64url text, padded or not, with a line break at its end."""
    assert read_key(spelled(key), "here") == key


def test_the_command_in_the_message_makes_a_valid_key() -> None:
    """The command that the message recommends prints a key that is accepted."""
    assert len(read_key(secrets.token_urlsafe(32), "here")) == 32


@pytest.mark.parametrize(
    ("encrypt", "seen"),
    [
        (b"planted-short-key", "this text is neither"),
        ("planted short key!", "this text is neither"),
        ("cGxhbnRlZA==", "this one has 7"),
        (KEY.hex()[:62], "this one has 46"),
        (["cGxhbnRlZA"], "this one has 7"),
        ([KEY, 5], "encrypt, key 2: .* this int is neither"),
        ("", "this text is neither"),
        ([], "encrypt holds no key"),
        ("Provider!", "this text is neither"),
    ],
)
def test_an_invalid_key_is_refused_without_showing_it(encrypt: object, seen: str) -> None:
    """A wrong length or form is an error at once, with the command that makes a key, and without the key (INV-9)."""
    with pytest.raises(ConfigurationError, match=seen) as caught:
        TokenCache(MemoryBackend(), encrypt=encrypt)  # type: ignore[arg-type]
    assert "secrets.token_urlsafe(32)" in str(caught.value)
    assert "planted" not in str(caught.value)
    assert "cGxh" not in str(caught.value)


def test_no_key_is_shown() -> None:
    """INV-9: neither repr nor status of the objects with a key shows it."""
    cache = TokenCache(MemoryBackend(), encrypt=KEY.hex())
    source = cache.source(Acme(), key="orders")
    source.token()
    shown = repr((cache, source, source._identify(), Sealer(KEY), source._job("cold"), source.status().as_dict()))
    assert KEY.hex() not in shown
    assert repr(KEY)[2:20] not in shown
    assert TOKEN not in shown


def test_the_missing_library_is_named() -> None:
    """Without the extra, `encrypt=` names the install command, and everything else works."""
    code = (
        "import sys; sys.modules['cryptography.hazmat.primitives.ciphers.aead'] = None\n"
        "from tokencache import ConfigurationError, TokenCache\n"
        "TokenCache('memory://').close()\n"
        "try: TokenCache('memory://', encrypt=bytes(32))\n"
        "except ConfigurationError as error: print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip().endswith("pip install 'tokencache[crypto]'")


if __name__ == "__main__":  # the golden record, written once
    sealed = encode(
        issued("golden-token"), fence=1704063600500000, identity=ID, key="orders-api", sealing=RecordSealing([KEY])
    )
    GOLDEN.write_bytes(sealed)


URL = "https://id.example/token"
JWT = "eyJhbGciOiJub25lIn0.eyJpc3MiOiJpIiwic3ViIjoicyJ9."


@pytest.mark.parametrize("kind", ["assertion file", "certificate", "subject file", "public client", "header"])
def test_no_key_is_derived_from_public_data(kind: str, tmp_path: Path) -> None:
    """The path of a file, a certificate, claims and headers are known to many; the error says what to do."""
    (tmp_path / "jwt").write_text(JWT)
    certified = trustme.CA().issue_cert("client.example")
    certified.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certified.private_key_pem.write_to_path(tmp_path / "key.pem")
    pair = {"certificate": str(tmp_path / "cert.pem"), "certificate_key": str(tmp_path / "key.pem")}
    file = str(tmp_path / "jwt")
    provider = {
        "assertion file": lambda: ClientCredentials(token_url=URL, client_id="c", client_assertion_file=file),
        "certificate": lambda: ClientCredentials(token_url=URL, client_id="c", **pair),  # type: ignore[typeddict-item]
        "subject file": lambda: TokenExchange(token_url=URL, client_id="c", subject_token_file=file),
        "public client": lambda: ClientCredentials(token_url=URL, client_id="c"),
        "header": lambda: ClientCredentials(token_url=URL, client_id="c", headers={"User-Agent": "shop"}),
    }[kind]()
    with pytest.raises(ConfigurationError, match="give the fleet a key of its own"):
        TokenCache(MemoryBackend(), encrypt="provider").source(provider)


def test_a_key_is_derived_from_real_secrets() -> None:
    """A secret, a private key, a password, a refresh token, or a subject token that is given as text."""
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    base = {"token_url": URL, "client_id": "c"}
    for provider in (
        ClientCredentials(**base, client_secret="s"),
        ClientCredentials(**base, private_key=pem.decode()),
        JWTBearer(**base, private_key=pem.decode()),
        Password(**base, username="u", password="p"),
        RefreshToken(**base, refresh_token="r"),
        TokenExchange(**base, subject_token="t"),
    ):
        Sealer("provider").admit(provider)
