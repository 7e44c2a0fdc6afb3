"""Functions on records for backends: the fence, whether a record is another one, whether a commit is late."""

from tokencache._record import fence_of, is_another, is_late

__all__ = ["fence_of", "is_another", "is_late"]
