"""Rooms with furniture, objects and people, rendered by a small ray caster with exact labels for every task."""

from htt_lightning.data.synthetic_scenes.rooms import TASKS, has_people, render

__all__ = ["TASKS", "has_people", "render"]
