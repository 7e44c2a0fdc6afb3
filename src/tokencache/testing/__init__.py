"""The test kit: what people need who write their own backend or provider. Its modules need the extra ``testing``."""
