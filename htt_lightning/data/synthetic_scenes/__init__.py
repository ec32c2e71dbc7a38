"""Synthetic rooms with exact labels for every task, rendered by a ray caster."""

from htt_lightning.data.synthetic_scenes.rooms import TASKS, has_people, render

__all__ = ["TASKS", "has_people", "render"]
