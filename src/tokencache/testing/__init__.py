"""The test kit: what people need who write their own backend or provider. Its contracts need the extra ``testing``."""
