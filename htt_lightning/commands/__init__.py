"""Commands besides those of Lightning: `check`, `discover`, `export`, `info` and `report`."""

__all__: list[str] = []
