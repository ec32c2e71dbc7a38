"""Label masks: which tasks are labeled on each image."""

__all__: list[str] = []
