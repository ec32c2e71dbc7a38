"""One file per dataset, and the readers they share."""
