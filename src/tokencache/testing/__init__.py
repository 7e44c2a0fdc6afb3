"""The test kit for authors of backends and providers, and fakes. Its contracts need the extra ``testing``."""
