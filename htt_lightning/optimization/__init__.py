"""Training set-up of a module: optimizer, schedule, frozen backbone, learned task weights, Lightning's callbacks."""

__all__: list[str] = []
