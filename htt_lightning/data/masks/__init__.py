"""Label masks: the labels that each training image keeps."""

__all__: list[str] = []
