"""What a backend needs to know of a record: its fence, whether it is news to a caller, whether a commit is late."""

from tokencache._record import fence_of, is_another, is_late

__all__ = ["fence_of", "is_another", "is_late"]
