"""Programs for GPUs are counted as by hand: what is launched, what it reads and writes, and where the host waits."""

import json

import pytest

from benchmarks import gpu
from benchmarks.gpu import GpuProgram
from configs import digits, ptb

#: Steps in a loop, two passes in another, as XLA writes them.
PROGRAM = """HloModule jit_run

%sums (p0: f32[8,4], p1: f32[4]) -> f32[4] {
  %p0 = f32[8,4]{1,0} parameter(0)
  %p1 = f32[4]{0} parameter(1)
  %c = f32[4]{0} reduce(%p0, %z), dimensions={0}, to_apply=%add
  ROOT %d = f32[4]{0} multiply(%c, %p1)
}

%turned (t: f32[8,4]) -> f32[4,8] {
  %t = f32[8,4]{1,0} parameter(0)
  ROOT %u = f32[4,8]{1,0} transpose(%t), dimensions={1,0}
}

%turned_and_doubled (t2: f32[8,4]) -> f32[4,8] {
  %t2 = f32[8,4]{1,0} parameter(0)
  %u2 = f32[4,8]{1,0} transpose(%t2), dimensions={1,0}
  ROOT %v2 = f32[4,8]{1,0} add(%u2, %u2)
}

%cut (w: f32[8,4]) -> f32[2,4] {
  %w = f32[8,4]{1,0} parameter(0)
  ROOT %x = f32[2,4]{1,0} slice(%w), slice={[2:4], [0:4]}
}

%some (q0: f32[8,4], q1: f32[8,2,2], q2: f32[8,4]) -> f32[2,2,2] {
  %q0 = f32[8,4]{1,0} parameter(0)
  %q2 = f32[8,4]{1,0} parameter(2)
  %q1 = f32[8,2,2]{2,1,0} parameter(1)
  %q3 = f32[8,4]{1,0} multiply(%q0, %q0)
  %q4 = f32[8,2,2]{2,1,0} bitcast(%q3)
  %q5 = f32[8,4,2]{2,1,0} pad(%q4, %z), padding=0_0x1_1x0_0
  %q6 = f32[2,2,2]{2,1,0} slice(%q5), slice={[0:2], [0:2], [0:2]}
  %q7 = f32[2,2,2]{2,1,0} slice(%q5), slice={[1:3], [1:3], [0:2]}
  %q8 = f32[4,2,2]{2,1,0} slice(%q1), slice={[4:8], [0:2], [0:2]}
  %q9 = f32[2,2,2]{2,1,0} slice(%q8), slice={[0:4:2], [0:2], [0:2]}
  %q10 = f32[] reduce(%q2, %z), dimensions={0,1}, to_apply=%add
  ROOT %q11 = f32[2,2,2]{2,1,0} add(%q6, %q7)
}

%images (g0: u8[1000,4], g1: s32[8]) -> u8[8,4] {
  %g0 = u8[1000,4]{1,0} parameter(0)
  %g1 = s32[8]{0} parameter(1)
  ROOT %g2 = u8[8,4]{1,0} gather(%g0, %g1), offset_dims={1}, collapsed_slice_dims={0}, slice_sizes={1,4}
}

%rare (r: f32[8,4]) -> f32[4] {
  %r = f32[8,4]{1,0} parameter(0)
  ROOT %r1 = f32[4]{0} constant({...})
}

%often (o: f32[8,4]) -> f32[4] {
  %o = f32[8,4]{1,0} parameter(0)
  %o1 = f32[4]{0} constant({...})
  ROOT %o2 = f32[4]{0} fusion(%o, %o1), kind=kInput, calls=%sums
}

%pass (a: (s32[], f32[8,4], f32[4])) -> (s32[], f32[8,4], f32[4]) {
  %a = (s32[], f32[8,4]{1,0}, /*index=2*/f32[4]{0}) parameter(0)
  %n = s32[] get-tuple-element(%a), index=0
  %b = f32[8,4]{1,0} get-tuple-element(%a), index=1
  %e = f32[4]{0} conditional(%n, %b, %b), branch_computations={%rare, %often}
  %f = f32[4,8]{1,0} fusion(%b), kind=kInput, calls=%turned
  %f2 = f32[4,8]{1,0} fusion(%b), kind=kInput, calls=%turned_and_doubled
  %h = f32[2,4]{1,0} fusion(%b), kind=kLoop, calls=%cut
  %k = (f32[8,8]{1,0}, s8[4096]{0}) custom-call(%b, %f), custom_call_target="__cublas$lt$matmul"
  %i = f32[8,2,2]{2,1,0} bitcast(%b)
  %j = f32[2,2,2]{2,1,0} fusion(%b, %i, %b), kind=kLoop, calls=%some
  %l = f32[1,15,15,4]{3,2,1,0} bitcast(%b)
  %m = (f32[1,3,3,4]{3,2,1,0}, u8[0]{0}) custom-call(%l, %k), window={size=15x15}, dim_labels=b01f_o01i->b01f, \
feature_group_count=4, custom_call_target="__cudnn$convForward"
  ROOT %o = (s32[], f32[8,4]{1,0}, f32[4]{0}) tuple(%n, %b, %e)
}

%once (s: (s32[], f32[8,4], f32[4], u8[1000,4], s32[8])) -> (s32[], f32[8,4], f32[4], u8[1000,4], s32[8]) {
  %s = (s32[], f32[8,4]{1,0}, f32[4]{0}, u8[1000,4]{1,0}, s32[8]{0}) parameter(0)
  %s3 = u8[1000,4]{1,0} get-tuple-element(%s), index=3
  %s4 = s32[8]{0} get-tuple-element(%s), index=4
  %s5 = u8[8,4]{1,0} fusion(%s3, %s4), kind=kLoop, calls=%images
  %s6 = (s32[], f32[8,4]{1,0}, f32[4]{0}) while(%t7), condition=%more, body=%pass LOOP
  ROOT %s7 = (s32[], f32[8,4]{1,0}, f32[4]{0}, u8[1000,4]{1,0}, s32[8]{0}) tuple(%s6, %s3, %s4)
}

%less (v2: s32[]) -> pred[] {
  %v2 = s32[] parameter(0)
  ROOT %v3 = pred[] compare(%v2, %v2), direction=LT
}

%more (v: (s32[], f32[8,4], f32[4])) -> pred[] {
  %v = (s32[], f32[8,4]{1,0}, f32[4]{0}) parameter(0)
  %v0 = s32[] get-tuple-element(%v), index=0
  ROOT %v1 = pred[] fusion(%v0), kind=kLoop, calls=%less
}

ENTRY %main (y: f32[8,4]) -> f32[8,4] {
  %y = f32[8,4]{1,0} parameter(0)
  %y1 = f32[8,4]{1,0} copy(%y)
  %y2 = (s32[], f32[8,4]{1,0}, f32[4]{0}, u8[1000,4]{1,0}, s32[8]{0}) while(%y1), condition=%more, body=%once
  ROOT %y3 = f32[8,4]{1,0} get-tuple-element(%y2), index=1
}
"""
KNOWN = ', backend_config={"known_trip_count":{"n":"2"}}'


@pytest.fixture
def counts():
  return GpuProgram(PROGRAM.replace(' LOOP', KNOWN)).count()


def test_kernels_are_told_apart_and_those_of_a_pass_count_once(counts):
  assert counts.kernels == {
    # Of the conditional the branch that launches something.
    'sum': 2,
    'transposition': 2,
    # One before the steps.
    'copy': 2,
    'product': 1,
    'grouped convolution': 1,
    # The images of a step, and for either loop whether it goes on.
    'elementwise': 3,
  }
  assert counts.single == 1


def test_host_waits_for_conditionals_and_for_loops_of_unknown_length(counts):
  assert counts.waits == 1
  assert GpuProgram(PROGRAM.replace(' LOOP', '')).count().waits == 2


def test_bytes_are_what_kernels_read_and_write(counts):
  image, vector = 4 * 8 * 4, 4 * 4
  assert counts.bytes['transposition'] == 2 * 2 * image
  # Two of eight rows are read and written, and all before the steps.
  assert counts.bytes['copy'] == 2 * image // 4 + 2 * image
  # 4096 bytes of workspace are no traffic.
  assert counts.bytes['product'] == 2 * image + 4 * 8 * 8
  # Eight rows of a thousand images, by their numbers; and a number and a truth value for each loop.
  assert counts.bytes['elementwise'] == 8 * 4 + 8 * 4 + 4 * 8 + 2 * (4 + 1)
  # In the branch an image; in the other sum rows 0 to 2 of one array, 4 and 6 of the next, all of the third.
  assert counts.bytes['sum'] == image + 2 * vector + (3 + 2 + 8) * image // 8 + 4 * 2 * 2 * 2


def test_chips_are_described_as_published():
  text = gpu.description(gpu.CHIPS['h200'])
  assert 'core_count: 132' in text
  assert 'memory_bandwidth: 4800000000000' in text
  assert 'cuda_compute_capability { major: 9 minor: 0 }' in text


@pytest.mark.parametrize(
  ('chip', 'names', 'config', 'message'),
  [
    ('v100', ['first_order'], digits, "--chip: 'v100'; allowed are a100, h100, h200, b200"),
    ('h200', ['second_order'], digits, '--estimators: second_order; allowed are first_order'),
    ('h200', [], digits, '--estimators: none given; allowed are'),
    ('h200', ['first_order'], ptb, "config.task.name: 'text' is not allowed; it has to be 'images' here"),
  ],
)
def test_wrong_arguments_are_named(monkeypatch, chip, names, config, message):
  if chip != 'v100':
    monkeypatch.setattr(gpu, 'mesh_of', lambda chip: None)
  with pytest.raises(ValueError, match=message):
    gpu.run(config.get_config(), chip, names)


def test_json_and_table_are_of_a_pass(monkeypatch, tmp_path, capsys):
  found = {
    **{'kernels': 906, 'host_waits': 0, 'bytes': 15_200_000_000, 'transpose_bytes': 500_000_000, 'kinds': {}},
    **{'grouped_convolutions': 2, 'single_image_convolutions': 1, 'temp_bytes': 1_800_000_000, 'compile_s': 73.6},
    **{'bytes_s': 0.00317, 'launches_s': 0.002265},
  }
  monkeypatch.setattr(gpu, 'mesh_of', lambda chip: None)
  asked = []
  monkeypatch.setattr(gpu, 'measure', lambda chip, settings, num, **how: asked.append((settings, how)) or found)
  gpu.run(digits.get_config(), 'h200', ['exact'], plain=True, path=str(tmp_path / 'counts.json'))
  assert json.loads((tmp_path / 'counts.json').read_text()) == {'exact': found, 'plain': found}
  assert [settings.hypergradient.name for settings, _ in asked] == ['exact', 'first_order']
  assert [how['plain'] for _, how in asked] == [False, True]
  row = '| exact | 906 | 0 | 15.20 | 3.3% | 2 (1) | 1800 | 3.17; 2.27 | 74 |'
  assert row in capsys.readouterr().out.splitlines()
