"""The trainer, how a run is resumed, and what it leaves in its folder."""

__all__: list[str] = []
