"""The values that backends, providers and the engine exchange."""

from __future__ import annotations

from tokencache.ports import Cooldown


def test_a_cooldown_holds_no_escape_sequence() -> None:
    """Any writer of the store may leave one; it would reach the terminal of a user of `tokencache status`."""
    left = Cooldown("me", 5.0, permanent=True, attempt=1, message="no\x1b[2Jway\nhere", error="a\x07b")
    assert (left.message, left.error) == ("no [2Jway here", "a b")
