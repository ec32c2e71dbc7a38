"""Damaged input of every kind, given to every reader: it is read as if whole, or refused by name, and nothing else.

``tests/test_campaign.py`` makes a short round of it; ``python -m tests.campaign --rounds 20`` a long one.
"""
