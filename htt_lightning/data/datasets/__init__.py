"""One file per dataset, and the readers they share."""

__all__: list[str] = []
