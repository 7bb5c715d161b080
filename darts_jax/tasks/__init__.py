"""Tasks: what a network learns in a search, under the name that configs use.

A task of one's own is added with `TASKS['mine'] = Mine`; see `darts_jax.tasks.base`.
"""

from typing import Any

from darts_jax.tasks.arrays import Arrays, ArrayTask
from darts_jax.tasks.base import Conditions, Feed, Halves, Learner, Moment, Objective, Placed, Seen, SupernetSpec, Task
from darts_jax.tasks.images import ImageTask
from darts_jax.tasks.text import TextTask

TASKS: dict[str, type[Task[Any]]] = {'images': ImageTask, 'text': TextTask}

__all__ = [
  'TASKS',
  'ArrayTask',
  'Arrays',
  'Conditions',
  'Feed',
  'Halves',
  'ImageTask',
  'Learner',
  'Moment',
  'Objective',
  'Placed',
  'Seen',
  'SupernetSpec',
  'Task',
  'TextTask',
]
