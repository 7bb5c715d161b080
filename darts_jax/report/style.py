"""The style of the report: the palette of figures and page, and the style sheet of the page."""

from collections.abc import Sequence

#: Colours that colour-blind readers can distinguish (Okabe and Ito 2008), some darkened for text on white.
BLUE = '#0067A5'
VERMILION = '#C44E00'
GREEN = '#00785A'
PURPLE = '#8E4A86'
AMBER = '#B97A00'
INK = '#1B2430'
MUTED = '#5B6675'
RULE = '#D5DBE3'
FAINT = '#AAB4C1'

#: Colours of operations and activations in drawings of cells, by the first word of their names.
OPERATION_COLORS = {
  'skip': VERMILION,
  'max': GREEN,
  'avg': GREEN,
  'sep': BLUE,
  'dil': PURPLE,
  'conv': AMBER,
  'none': MUTED,
  'relu': BLUE,
  'tanh': PURPLE,
  'sigmoid': GREEN,
  'identity': VERMILION,
}


def operation_color(operations: Sequence[str]) -> str:
  """The colour of an edge: that of its operation's family, or grey if it has several candidates."""
  return OPERATION_COLORS.get(operations[0].split('_')[0], MUTED) if len(operations) == 1 else MUTED


CSS = """
:root { --ink: #1b2430; --muted: #5b6675; --rule: #d5dbe3; --wash: #f5f7fa; --blue: #0067a5; --warn: #c44e00;
  --sans: "Inter", "Source Sans 3", system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Code", "Source Code Pro", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 var(--sans); }
main { max-width: 1160px; margin: 0 auto; padding: 48px 32px 80px; }
h1 { font-size: 34px; line-height: 1.15; letter-spacing: -.02em; font-weight: 650; margin: 6px 0 10px; }
h2 { font-size: 21px; line-height: 1.25; letter-spacing: -.01em; font-weight: 650; margin: 0 0 16px; }
h2:has(+ .lead) { margin-bottom: 4px; }
h3 { font-size: 15px; font-weight: 650; margin: 28px 0 8px; }
p { margin: 0 0 12px; max-width: 76ch; }
section { border-top: 1px solid var(--rule); margin-top: 44px; padding-top: 24px; }
.eyebrow { color: var(--muted); font-size: 13px; letter-spacing: .06em; text-transform: uppercase; margin: 0; }
.lead { color: var(--muted); font-size: 15px; margin-bottom: 20px; }
.absent { color: var(--muted); font-size: 15px; background: var(--wash); border-radius: 6px; padding: 12px 16px; }
.facts { display: flex; flex-wrap: wrap; gap: 4px 28px; margin: 0; padding: 0; font-size: 15px; list-style: none; }
.facts b { font-weight: 600; }
.facts span { color: var(--muted); }
.status { display: inline-flex; align-items: center; gap: 7px; font-weight: 600; }
.status::before { content: ""; width: 9px; height: 9px; border-radius: 50%; background: var(--muted); }
.status.finished::before { background: #00785a; }
.status.running::before { background: var(--blue); }
.status.stopped::before { background: var(--warn); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 0; margin: 30px 0 0;
  border: 1px solid var(--rule); border-radius: 8px; overflow: hidden; }
.tiles > div { padding: 16px 20px 15px; box-shadow: 1px 1px 0 var(--rule); }
.tiles dt { color: var(--muted); font-size: 13px; }
.tiles dd { margin: 2px 0 0; font-size: 27px; line-height: 1.2; font-weight: 600; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; }
.tiles dd small { font-size: 14px; font-weight: 400; color: var(--muted); letter-spacing: 0; }
.warnings { border: 1px solid #efcdb4; border-left: 4px solid var(--warn); background: #fff8f3; border-radius: 6px;
  margin-top: 28px; padding: 16px 20px; }
.warnings h2 { font-size: 16px; color: #8a3700; margin-bottom: 6px; }
.warnings ul { margin: 0; padding-left: 20px; }
.warnings li { max-width: 88ch; margin: 4px 0; }
.grid { display: grid; gap: 26px 28px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); }
.grid.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); }
.cells { display: flex; flex-wrap: wrap; gap: 24px 30px; }
.stack { display: grid; gap: 36px; }
.stack > * { min-width: 0; }
figure { margin: 0; min-width: 0; max-width: 100%; overflow-x: auto; }
figcaption { font-size: 14px; font-weight: 600; margin-bottom: 4px; }
figcaption span { font-weight: 400; color: var(--muted); }
svg { display: block; max-width: 100%; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: var(--sans) !important; }
svg image { image-rendering: pixelated; }
.cells svg, .stack svg { max-width: none; }
.small svg { zoom: .74; }
.small p { margin: 0; }
table { border-collapse: collapse; font-size: 14px; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 20px 6px 0; border-bottom: 1px solid #e8ecf1; vertical-align: top; }
th { font-weight: 600; color: var(--muted); font-size: 13px; }
td.number, th.number { text-align: right; }
td:last-child, th:last-child { padding-right: 0; }
td { overflow-wrap: anywhere; }
th { overflow-wrap: break-word; }
.events th:first-child, .events th:nth-child(2) { width: 1%; }
.events th, .events td:first-child, .events td:nth-child(2) { white-space: nowrap; }
.settings { columns: 2 420px; column-gap: 48px; }
.settings table { break-inside: avoid; margin-bottom: 24px; }
.settings caption { text-align: left; font-size: 14px; font-weight: 600; padding: 0 0 3px; }
.settings th { width: 46%; font-weight: 400; font-size: 14px; }
code, pre { font-family: var(--mono); font-size: 13px; }
pre { background: var(--wash); border: 1px solid var(--rule); border-radius: 6px; padding: 14px 16px; margin: 8px 0 0;
  overflow-x: auto; line-height: 1.5; white-space: pre-wrap; overflow-wrap: anywhere; user-select: all; }
@media (max-width: 640px) { main { padding: 28px 18px 56px; } h1 { font-size: 27px; } .tiles dd { font-size: 23px; } }
@media print { main { padding: 0; max-width: none; } figure, tr { break-inside: avoid; } }
"""
