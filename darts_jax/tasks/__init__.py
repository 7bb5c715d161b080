"""Tasks: data, network, loss and metrics of a search, under the names that configs use.

A user adds a task with `TASKS['mine'] = Mine`; see `darts_jax.tasks.base` for the contract.
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
