"""The command `check`: read a dataset once, describe it, and name every broken file."""

__all__: list[str] = []
