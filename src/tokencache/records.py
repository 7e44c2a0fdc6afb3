"""What a backend needs to know of a record: its fence, and whether it is another one than the one seen."""

from tokencache._record import fence_of, is_another

__all__ = ["fence_of", "is_another"]
