"""Groups of settings whose `name` says which fields they have."""

import dataclasses
import re

import pytest
from ml_collections import ConfigDict

from darts_jax.settings import REPLACED, as_config, build, setting, variant


@dataclasses.dataclass(frozen=True)
class Walk:
  shoes: str = setting('light')


@dataclasses.dataclass(frozen=True)
class Slow(Walk):
  pauses: int = setting(3, at_least=0)


@dataclasses.dataclass(frozen=True)
class Fast(Walk):
  # A kind may be any frozen dataclass.
  speeds: tuple[float, float] = (1.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Flight:
  pauses: int = 7


KINDS = {'slow': Slow, 'fast': Fast, 'flight': Flight}


@dataclasses.dataclass(frozen=True)
class Trip:
  days: int = setting(2)
  way: object = variant(KINDS, Slow(shoes='heavy', pauses=5))


@pytest.mark.parametrize(
  ('config', 'expected'),
  [
    ({}, Slow('heavy', 5)),
    ({'way': {}}, Slow('heavy', 5)),
    ({'way': {'pauses': 1}}, Slow('heavy', 1)),
    ({'way': 'slow'}, Slow('heavy', 5)),
    # What another kind inherits from the same class is as here, the rest as that kind has it.
    ({'way': 'fast'}, Fast('heavy', (1.0, 2.0))),
    ({'way': {'name': 'fast', 'speeds': [3, 4]}}, Fast('heavy', (3.0, 4.0))),
    ({'way': 'flight'}, Flight(7)),
    ({'way': {'name': 'flight', REPLACED: {'pauses': 2, 'shoes': 'none'}}}, Flight(2)),
    ({'way': {'name': 'flight', 'pauses': 1, REPLACED: {'pauses': 2}}}, Flight(1)),
  ],
)
@pytest.mark.parametrize('make', [dict, ConfigDict])
def test_the_name_of_a_group_says_what_it_is(make, config, expected):
  assert build(Trip, make(config)).way == expected


@pytest.mark.parametrize('way', [Slow('heavy', 1), Fast('bare', (0.5, 4.0)), Flight(0)])
def test_settings_are_the_config_that_they_are_built_from(way):
  trip = Trip(9, way)
  values = as_config(trip)
  assert values == {'days': 9, 'way': {'name': {Slow: 'slow', Fast: 'fast', Flight: 'flight'}[type(way)], **vars(way)}}
  assert build(Trip, values) == trip


@pytest.mark.parametrize(
  ('way', 'message'),
  [
    ('fest', "config.way.name: 'fest' is not known; did you mean 'fast'? allowed are slow, fast, flight"),
    (3, 'config.way: 3 is neither a name nor a group of fields'),
    ({'name': 3}, 'config.way.name: 3 is not known; allowed are slow, fast, flight'),
    ({'name': 'fast', 'pauses': 1}, 'config.way.pauses: unknown field of fast; it is one of slow, flight'),
    ({'speeds': (1.0, 2.0)}, 'config.way.speeds: unknown field of slow; it is one of fast'),
    ({'pouses': 1}, 'config.way.pouses: unknown field; did you mean config.way.pauses?'),
    ({'pauses': -1}, 'config.way.pauses: -1 is not allowed; it has to be ≥ 0'),
    ({'name': 'fast', 'speeds': (1.0,)}, 'config.way.speeds: (1.0,) has 1 values; there have to be 2'),
  ],
)
def test_what_does_not_belong_to_a_kind_is_refused_by_name(way, message):
  with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
    build(Trip, {'way': way})


@dataclasses.dataclass(frozen=True)
class Boots:
  size: int = setting(40)
  spikes: int = setting(0)


@dataclasses.dataclass(frozen=True)
class Hike(Walk):
  height: int = setting(1000)
  boots: Boots = setting(Boots())


@dataclasses.dataclass(frozen=True)
class Tent:
  size: int = setting(2)
  weight: float = setting(1.5)


@dataclasses.dataclass(frozen=True)
class Holiday:
  days: int = setting(2)
  # A group may be made without `setting`.
  tent: Tent = Tent()
  # The groups of a hike, its boots, stand beside it.
  way: object = variant({'hike': Hike, 'flight': Flight}, Hike(), beside=True)


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'weight': 2}, 'config.weight: unknown field; did you mean config.tent.weight?'),
    ({'height': 2}, 'config.height: unknown field; did you mean config.way.height?'),
    ({'spikes': 2}, 'config.spikes: unknown field; did you mean config.boots.spikes?'),
    ({'size': 2}, 'config.size: unknown field; did you mean config.tent.size or config.boots.size?'),
    ({'tent': {'days': 2}}, 'config.tent.days: unknown field; did you mean config.days?'),
    ({'tent': {'spikes': 2}}, 'config.tent.spikes: unknown field; did you mean config.boots.spikes?'),
    ({'way': {'size': 2}}, 'config.way.size: unknown field; did you mean config.tent.size or config.boots.size?'),
    ({'boots': {'tent': 2}}, 'config.boots.tent: unknown field; did you mean config.tent?'),
    # The kind that the config names is the one that counts.
    ({'way': 'flight', 'pauses': 2}, 'config.pauses: unknown field; did you mean config.way.pauses?'),
    ({'way': 'flight', 'size': 2}, 'config.size: unknown field; did you mean config.tent.size?'),
    ({'pauses': 2}, 'config.pauses: unknown field; allowed are days, tent, way, boots'),
    # A field of this very name says more than one of a similar name; without any, that is it.
    ({'tent': {'sizes': 2}}, 'config.tent.sizes: unknown field; did you mean config.tent.size?'),
    ({'weights': 2}, 'config.weights: unknown field; allowed are days, tent, way, boots'),
    ({3: 2}, 'config.3: unknown field; allowed are days, tent, way, boots'),
  ],
)
@pytest.mark.parametrize('make', [dict, ConfigDict])
def test_a_field_of_another_group_is_proposed_with_its_group(make, config, message):
  with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
    build(Holiday, make(config))


def test_kinds_can_be_added():
  @dataclasses.dataclass(frozen=True)
  class Mine:
    boats: int = 1

  KINDS['mine'] = Mine
  try:
    trip = build(Trip, {'way': {'name': 'mine', 'boats': 2}})
    assert (trip.way, as_config(trip)['way']) == (Mine(2), {'name': 'mine', 'boats': 2})
  finally:
    del KINDS['mine']
