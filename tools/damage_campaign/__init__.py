"""A campaign of damaged input: every reader accepts a file as if it were intact, or rejects it by name.

``python -m tools.damage_campaign --rounds 20`` runs a long one and prints a table.
"""
