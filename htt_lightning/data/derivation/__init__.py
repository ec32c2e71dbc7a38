"""Labels that follow from given labels: the rules, the cameras they need, and the option that asks for them."""

__all__: list[str] = []
