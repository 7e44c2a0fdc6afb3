"""QPay's documents as types: every example of its description, and every variant of their form."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencache_qpay import QPayInvalidRequest, _calls
from tokencache_qpay.models import (
    CardTransaction,
    CreatedInvoice,
    Document,
    Ebarimt,
    Invoice,
    InvoiceStatus,
    Nothing,
    Payment,
    PaymentCheck,
    PaymentList,
    PaymentStatus,
    Subscription,
    Text,
    read,
)

PAID = """{"count":1,"paid_amount":100,"rows":[{"payment_id":"493622150113497","payment_status":"PAID",
 "payment_amount":"100.00","trx_fee":"1.00","payment_currency":"MNT","payment_wallet":"Хаан банк апп",
 "payment_type":"P2P","next_payment_date":null,"next_payment_datetime":null,"card_transactions":[],
 "p2p_transactions":[{"transaction_bank_code":"050000","account_bank_code":"050000","account_bank_name":"Хаан банк",
 "account_number":"50*******","status":"SUCCESS","amount":"99.00","currency":"MNT","settlement_status":"SETTLED"}]}]}"""
CARD = """{"payment_id":"5f0e7d7c-0c0e-4b5c-a8a0-0f6f0f6f0f6f","payment_status":"PAID","payment_fee":"1.00",
 "payment_amount":"100.00","payment_currency":"MNT","payment_date":"2026-01-30T07:02:05.000Z","payment_wallet":"",
 "object_type":"INVOICE","object_id":"inv","transaction_type":"CARD","card_transactions":[{"card_merchant_code":"1",
 "card_terminal_code":"2","card_number":"4***1111","card_type":"VISA","is_cross_border":false,
 "transaction_amount":"100.00","transaction_currency":"MNT","transaction_date":"2026-01-30T07:02:05.000Z",
 "transaction_status":"SUCCESS","settlement_status":"PENDING","settlement_status_date":"2026-01-30T07:02:05.000Z"}],
 "p2p_transactions":[]}"""
MODELS = [CreatedInvoice, Invoice, Payment, PaymentCheck, PaymentList, Ebarimt, Subscription, Nothing, CardTransaction]


def test_a_paid_check_is_read() -> None:
    """In QPay's own example, amounts are numbers and texts, the fee has one name, and the row keeps its raw form."""
    check = read(json.loads(PAID), PaymentCheck)
    (row,) = check.rows
    assert (check.count, check.paid_amount, row.payment_amount) == (1, 100, Decimal("100.00"))
    assert (row.payment_fee, row.payment_type, row.is_paid) == (1, "P2P", True)
    assert row.p2p_transactions[0].amount == Decimal("99.00")
    assert row.raw["trx_fee"] == "1.00"
    assert row.p2p_transactions[0].raw["account_number"] == "50*******"


def test_an_unpaid_check_has_no_amount() -> None:
    """For an unpaid invoice QPay leaves ``paid_amount`` out."""
    check = read({"count": 0, "rows": []}, PaymentCheck)
    assert (check.count, check.paid_amount, check.rows, check.covers()) == (0, 0, (), False)


def test_a_single_card_payment_is_read() -> None:
    """A single payment uses other names for the same fields, also in its card element."""
    payment = read(json.loads(CARD), Payment)
    (card,) = payment.card_transactions
    assert (payment.payment_fee, payment.payment_type, payment.payment_wallet) == (1, "CARD", None)
    assert (card.amount, card.currency, card.status) == (100, "MNT", "SUCCESS")
    assert card.date == "2026-01-30T07:02:05.000Z"
    assert card.is_cross_border is False
    assert card.raw["transaction_amount"] == "100.00"


@pytest.mark.parametrize("name", ["urls", "qPay_deeplink"])
def test_both_names_of_the_links_are_read(name: str) -> None:
    """One of QPay's field tables names the links differently from its examples."""
    made = read({"invoice_id": "x", "qr_image": "", name: [{"name": "Khan", "link": "khan://"}, None]}, CreatedInvoice)
    assert [bank.link for bank in made.banks] == ["khan://"]
    assert made.banks[0].raw == {"name": "Khan", "link": "khan://"}
    assert made.qr_image == ""


def test_unknown_words_are_kept() -> None:
    """Enumerations are open: an unknown word is a member equal to its text; known words are the named members."""
    payment = read({"payment_id": 1, "payment_status": "CHARGED_BACK", "payment_type": "QPOS"}, Payment)
    assert payment.payment_status == "CHARGED_BACK"
    assert isinstance(payment.payment_status, PaymentStatus)
    assert payment.payment_status.name == "CHARGED_BACK"
    assert (payment.payment_type, payment.payment_id) == ("QPOS", "1")
    assert read({"invoice_id": "x", "invoice_status": "CANCELED"}, Invoice).invoice_status is InvoiceStatus.CANCELED
    with pytest.raises(ValueError, match="None"):
        PaymentStatus(None)


def test_only_paid_rows_count_as_money() -> None:
    """Refunded and failed payments leave an invoice unpaid; ``paid_amount`` must reach the invoice's amount."""
    rows = [{"payment_id": str(number), "payment_status": word} for number, word in enumerate(PaymentStatus)]
    unpaid = [row for row in rows if row["payment_status"] != "PAID"]
    assert not read({"count": 4, "paid_amount": 100, "rows": unpaid}, PaymentCheck).covers()
    paid = read({"count": "5", "paid_amount": "99.99", "rows": rows}, PaymentCheck)
    assert paid.covers()
    assert paid.covers("99.99")
    assert not paid.covers(100)


def test_refunded_money_does_not_count() -> None:
    """Ten paid and ninety refunded count as ten, whatever QPay's sum; a paid row counts without ``paid_amount``."""
    rows = [
        {"payment_id": "1", "payment_status": "PAID", "payment_amount": "10.00"},
        {"payment_id": "2", "payment_status": "REFUNDED", "payment_amount": 90},
    ]
    check = read({"count": 2, "paid_amount": 100, "rows": rows}, PaymentCheck)
    assert check.covers(10)
    assert not check.covers("10.01")
    assert read({"count": 1, "rows": rows[:1]}, PaymentCheck).covers(10)
    for amount in ("99,50", True, -1):
        with pytest.raises(QPayInvalidRequest, match="amount"):
            read({"count": 0, "rows": []}, PaymentCheck).covers(amount)


@pytest.mark.parametrize(
    ("document", "model"),
    [
        ({}, CreatedInvoice),
        ({"invoice_id": ""}, CreatedInvoice),
        ({"invoice_id": None}, Invoice),
        ({"invoice_id": {"a": 1}}, Invoice),
        ({"invoice_id": True}, Invoice),
        ({"count": 1, "rows": [{"payment_status": "PAID"}]}, PaymentCheck),
        ({"paid_amount": "NaN"}, PaymentCheck),
        ({"paid_amount": "Infinity"}, PaymentCheck),
        ({"paid_amount": "a lot"}, PaymentCheck),
        ({"rows": {"a": 1}}, PaymentCheck),
    ],
)
def test_an_incomplete_document_is_refused(document: object, model: type[Document]) -> None:
    """An answer without its id, or with an amount that is not a number, is refused."""
    with pytest.raises(msgspec.ValidationError):
        read(document, model)


def test_a_repr_shows_the_fields_and_not_the_raw_document() -> None:
    """A repr is short: it shows the present fields by name."""
    assert repr(read({"invoice_id": "x", "total_amount": "10.00", "secret": "y"}, Invoice)) == (
        "Invoice(invoice_id='x', total_amount=Decimal('10.00'))"
    )


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
JSON = st.recursive(SCALARS, lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(), each, max_size=3))


def _names() -> list[str]:
    """Return every field name that one of the types knows."""
    own = {field.encode_name for model in MODELS for field in msgspec.structs.fields(model)}
    return sorted(own | {"trx_fee", "qPay_deeplink", "transaction_amount", "transaction_type", "transaction_date"})


@given(document=st.dictionaries(st.sampled_from(_names()) | st.text(), JSON, max_size=8), model=st.sampled_from(MODELS))
def test_any_object_is_read_or_refused(document: dict[str, Any], model: type[Document]) -> None:
    """Any JSON object becomes the type, with finite amounts and the document in ``raw``, or is refused."""
    try:
        made = read(document, model)
    except msgspec.ValidationError:
        return
    assert made.raw == document
    for field in msgspec.structs.fields(model):
        value = getattr(made, field.name)
        assert not isinstance(value, Decimal) or value.is_finite()


MONEY = st.decimals(min_value=0, max_value=10**9, places=2)
AMOUNT = MONEY.map(str) | MONEY.map(float) | st.integers(0, 10**9)
ROW = st.fixed_dictionaries(
    {"payment_id": st.integers(0, 10**18) | st.uuids().map(str)},
    optional={
        "payment_status": st.sampled_from([*PaymentStatus, "LATER"]).map(str),
        "payment_amount": AMOUNT | st.none(),
        "trx_fee": AMOUNT,
        "payment_type": st.sampled_from(["P2P", "CARD", "QPOS"]),
        "next_payment_date": st.none() | st.just("2026-02-01"),
        "card_transactions": st.just([]) | st.just(None),
        "p2p_transactions": st.lists(st.fixed_dictionaries({"amount": AMOUNT}), max_size=2),
        "payment_wallet": st.text() | st.none(),
        "something_new": JSON,
    },
)


@given(rows=st.lists(ROW, max_size=4), paid=AMOUNT | st.none(), count=st.integers(0, 9) | st.integers(0, 9).map(str))
def test_every_form_of_a_check_is_read(rows: list[dict[str, Any]], paid: object, count: object) -> None:
    """A check is exact even with numbers as texts, texts as numbers, absent fields and unknown words."""
    document = {"count": count, "rows": rows} | ({} if paid is None else {"paid_amount": paid})
    check = read(json.loads(json.dumps(document)), PaymentCheck)
    assert check.paid_amount == (0 if paid is None else Decimal(str(paid)))
    assert [each.payment_id for each in check.rows] == [str(row["payment_id"]) for row in rows]
    assert [each.payment_amount for each in check.rows] == [
        None if row.get("payment_amount") is None else Decimal(str(row["payment_amount"])) for row in rows
    ]
    assert all(isinstance(each.payment_id, Text) for each in check.rows)


def test_an_id_from_an_answer_is_accepted_as_text() -> None:
    """An id from an answer can be used in a request: it is a text."""
    made = read({"invoice_id": 12}, CreatedInvoice)
    call = _calls.check_payment(made.invoice_id)
    assert call.body is not None
    assert call.body["object_id"] == "12"
