"""Label masks: which tasks are labeled on each image."""
