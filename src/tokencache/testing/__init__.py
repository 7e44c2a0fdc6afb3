"""The contracts for authors of backends and providers, fakes and servers. The contracts need the extra ``testing``."""
