"""Origins of labels."""

from enum import StrEnum


class Origin(StrEnum):
    """Where the label of a task comes from: the dataset, a given label, our network, or a model of another program."""

    GIVEN = "given"
    DERIVED = "derived"
    DISCOVERED = "discovered"
    OUTSIDE = "outside"

    @property
    def is_stored(self) -> bool:
        """Whether labels of this origin are pseudo-labels: stored in a folder with their confidence, to be rejected."""
        return self in (Origin.DISCOVERED, Origin.OUTSIDE)
