"""Commands besides those of Lightning: `app`, `check`, `discover`, `export`, `info` and `report`."""

__all__: list[str] = []
