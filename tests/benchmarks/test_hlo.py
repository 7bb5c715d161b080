"""Programs are read as by hand: what is moved and what crosses devices, and how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from benchmarks.hlo import Program

#: Steps in a loop, passes in another around a conditional, as libtpu writes them; S(1) is memory on the chip.
PROGRAM = """HloModule jit_run, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%fused (p: f32[256]) -> f32[256] {
  %p = f32[256]{0:T(128)} parameter(0)
  ROOT %q = f32[256]{0:T(128)} multiply(%p, %p)
}

%large (l: (f32[1000])) -> f32[1000] {
  %l = (f32[1000]{0:T(128)}) parameter(0)
  %l0 = f32[1000]{0:T(128)} get-tuple-element(%l), index=0
  ROOT %l1 = f32[1000]{0:T(128)} all-reduce(%l0), replica_groups={{0,1,2,3,4,5,6,7}}, metadata={op_name="cond/psum"}
}

%small (s: (f32[1000])) -> f32[1000] {
  %s = (f32[1000]{0:T(128)}) parameter(0)
  %s0 = f32[10]{0:T(128)} constant({...})
  %s1 = f32[10]{0:T(128)} all-reduce(%s0), replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %s2 = f32[1000]{0:T(128)} broadcast(%s1), dimensions={0}
}

%pass (a: (s32[], f32[256], f32[1000])) -> (s32[], f32[256], f32[1000]) {
  %a = (s32[]{:T(128)}, /*index=1*/f32[256]{0:T(128)S(1)}, f32[1000]{0:T(128)}) parameter(0)
  %n = s32[]{:T(128)S(6)} get-tuple-element(%a), index=0
  %b = f32[256]{0:T(128)} get-tuple-element(%a), index=1
  %c = f32[1000]{0:T(128)} get-tuple-element(%a), index=2
  %f = f32[256]{0:T(128)S(1)} fusion(%b), kind=kLoop, calls=%fused
  %t = (f32[1000]{0:T(128)}) tuple(%c)
  %d = f32[1000]{0:T(128)} conditional(%n, %t, %t), branch_computations={%small, %large}
  %o = bf16[64]{0:T(128)} constant({...})
  %m = (f32[256]{0:T(128)S(1)}, /*index=1*/bf16[64]{0:T(128)}) all-reduce(%f, /*index=1*/%o), \
replica_groups=mesh['seed'=2,'data'=4] {'data'}, metadata={op_name="jit(run)/while/body/cell0/bn1.fold/psum"}
  ROOT %r = (s32[]{:T(128)}, f32[256]{0:T(128)S(1)}, f32[1000]{0:T(128)}) tuple(%n, %f, %d)
}

%more (a.1: (s32[], f32[256], f32[1000])) -> pred[] {
  %a.1 = (s32[]{:T(128)}, f32[256]{0:T(128)S(1)}, f32[1000]{0:T(128)}) parameter(0)
  ROOT %lt = pred[] constant(true)
}

%step (e: (s32[], f32[256], f32[1000])) -> (s32[], f32[256], f32[1000]) {
  %e = (s32[]{:T(128)}, f32[256]{0:T(128)S(1)}, f32[1000]{0:T(128)}) parameter(0)
  %e2 = f32[1000]{0:T(128)} get-tuple-element(%e), index=2
  %g = f32[100]{0:T(128)S(1)} dynamic-slice(%e2, %k), dynamic_slice_sizes={100}
  %h = (f32[100]{0:T(128)}, f32[100]{0:T(128)S(1)}, u32[]{:S(2)}) copy-start(%g)
  %i = f32[100]{0:T(128)} copy-done(%h)
  %j = f32[800]{0:T(128)} all-gather(%i), replica_groups={}, dimensions={0}
  ROOT %w = (s32[]{:T(128)}, f32[256]{0:T(128)S(1)}, f32[1000]{0:T(128)}) while(%e), condition=%more, body=%pass
}

ENTRY %main (u: (s32[], f32[256], f32[1000])) -> (s32[], f32[256], f32[1000]) {
  %u = (s32[]{:T(128)}, f32[256]{0:T(128)}, f32[1000]{0:T(128)}) parameter(0)
  %u1 = f32[256]{0:T(128)} get-tuple-element(%u), index=1
  %v = f32[256]{0:T(128)} all-reduce-start(%u1), replica_groups={}, to_apply=%add
  %v1 = f32[256]{0:T(128)} all-reduce-done(%v)
  ROOT %z = (s32[]{:T(128)}, f32[256]{0:T(128)}, f32[1000]{0:T(128)}) while(%u), condition=%more, body=%step
}
"""

GRADIENTS, STATISTICS, OTHERS = 'gradients', 'BN statistics', 'others'


def test_collectives_are_counted_along_loops_and_branches():
  found = Program(PROGRAM, chips=8, passes=5, wanting=2).step().collectives
  assert sorted((c.place, c.kind, c.purpose, c.bytes, c.group, c.executions) for c in found) == [
    ('in a pass', 'all-reduce', STATISTICS, 4 * 256 + 2 * 64, 4, 5),
    ('in a pass, in a branch', 'all-reduce', GRADIENTS, 4 * 10, 8, pytest.approx(3)),
    ('in a pass, in a branch', 'all-reduce', GRADIENTS, 4 * 1000, 8, pytest.approx(2)),
    ('once a call', 'all-reduce', OTHERS, 4 * 256, 8, 0),
    ('once a step', 'all-gather', OTHERS, 4 * 100, 8, 1),
  ]


def test_a_branch_that_is_not_known_is_the_worst_in_every_pass():
  text = PROGRAM.replace('replica_groups=[1,8]<=[8], to_apply=%add', 'to_apply=%add, metadata={op_name="stem_bn/psum"}')
  found = Program(text, chips=8, passes=5, wanting=2).step().collectives
  assert sorted((c.purpose, c.bytes, c.executions) for c in found if c.branch) == [
    (STATISTICS, 4 * 10, 0),
    (GRADIENTS, 4 * 1000, 5),
  ]


def test_bytes_are_those_of_memory_that_is_not_on_the_chip():
  # A pass reads the fusion's operand, and reads and writes the sums of a branch and one of its own; a step reads the
  # slice, writes its copy, and reads and writes what is gathered.
  in_a_pass = 4 * (256 + 2 * 1000) + 2 * 2 * 64
  assert Program(PROGRAM, chips=8, passes=5, wanting=2).step().bytes == 5 * in_a_pass + 4 * (100 + 100 + 100 + 800)


def test_loops_and_branches_of_a_compiled_program_are_found():
  mesh = Mesh(np.array(jax.devices()).reshape(1, -1), ('seed', 'data'), axis_types=(AxisType.Auto,) * 2)

  def sums(x, steps):
    def one_pass(carry):
      number, x = carry
      x = lax.cond(number > 0, lambda x: lax.psum(x, 'data'), lambda x: x.at[:2].set(lax.psum(x[:2], 'data')), x)
      return number + 1, x * lax.fori_loop(0, 3, lambda _, y: lax.psum(jnp.sin(y), 'data'), x[0])

    def step(_, x):
      return lax.while_loop(lambda carry: carry[0] < jnp.int32(x[0]), one_pass, (jnp.int32(0), x))[1]

    return lax.fori_loop(0, steps, step, x)

  specs = PartitionSpec('data'), PartitionSpec()
  function = jax.jit(jax.shard_map(sums, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False))
  shapes = [
    jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
    for shape, dtype, spec in zip([(8 * 16,), ()], [np.float32, np.int32], specs, strict=True)
  ]
  found = Program(function.lower(*shapes).compile().as_text(), chips=8, passes=4, wanting=1).step().collectives
  assert sorted((c.kind, c.bytes, c.group, c.loops, c.branch, c.executions) for c in found) == [
    ('all-reduce', 4, 8, 3, False, 4 * 3),
    ('all-reduce', 4 * 2, 8, 2, True, 3),
    ('all-reduce', 4 * 16, 8, 2, True, 1),
  ]


@pytest.mark.parametrize(
  ('written', 'size'),
  [
    ('replica_groups={{0,1},{2,3}}, ', 2),
    ('replica_groups=[2,4]<=[4,2]T(1,0), ', 4),
    ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}, ", 8),
    ("replica_groups=mesh['a'=8] {'a':(2)4}, ", 4),
    ('', 8),
  ],
)
def test_groups_are_read_however_they_are_written(written, size):
  text = (
    f'ENTRY %main (p: f32[4]) -> f32[4] {{\n  %p = f32[4] parameter(0)\n  %q = f32[4] all-reduce(%p), {written}x=1\n'
  )
  [collective] = Program(text, chips=8, passes=1, wanting=1).step().collectives
  assert collective.group == size
