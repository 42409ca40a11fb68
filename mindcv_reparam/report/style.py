"""How a page looks: in the light or the dark of its reader's system, on a wide or a narrow window, and printed."""

STYLE = """
:root { color-scheme: light dark; --line: #d0d5dd; --soft: #f3f4f6; --dim: #5c6470; --hit: 22 120 74; --miss: 196 62 28;
  --ink: #1b1f24; --paper: #fff; --accent: #2f6db5; }
@media (prefers-color-scheme: dark) { :root { --line: #3a4048; --soft: #23272d; --dim: #a3abb6; --hit: 64 170 112;
  --miss: 232 104 68; --ink: #e6e8eb; --paper: #16191d; --accent: #6aa5e8; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, "Noto Sans",
  "Noto Sans CJK SC", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.6em; margin: .3em 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2em; margin: 2em 0 .4em; border-bottom: 1px solid var(--line); }
p { max-width: 75ch; margin: .4em 0; }
.dim, figcaption small { color: var(--dim); }
.numbers { display: flex; flex-wrap: wrap; gap: 12px; margin: 1em 0; }
.numbers > div { background: var(--soft); border-radius: 8px; padding: 10px 16px; min-width: 130px; }
.numbers b { display: block; font-size: 1.6em; line-height: 1.3; font-variant-numeric: tabular-nums; }
.numbers small { color: var(--dim); display: block; }
.scroll { overflow: auto; max-height: 70vh; margin: .6em 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 3px 10px; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { position: sticky; top: 0; background: var(--paper); z-index: 1; }
.facts td { overflow-wrap: anywhere; }
.facts td:first-child { color: var(--dim); white-space: nowrap; }
.figures td:not(:first-child), .figures th:not(:first-child) { text-align: right; }
.words td:last-child, .words th:last-child { text-align: left; }
.heat td { text-align: center; padding: 3px 6px; min-width: 22px; border: 1px solid var(--line); }
.heat th { white-space: nowrap; font-weight: normal; max-width: 220px; overflow: hidden; text-overflow: ellipsis; }
.heat thead th { vertical-align: bottom; }
.heat thead span { writing-mode: vertical-rl; text-orientation: sideways; transform: rotate(180deg);
  max-height: 150px; overflow: hidden; }
.heat tbody th { position: sticky; left: 0; background: var(--paper); }
.hit { background: rgb(var(--hit) / calc(.12 + .6 * var(--part))); }
.miss { background: rgb(var(--miss) / calc(.15 + .8 * var(--part))); }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 14px; }
.pictures.large { grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); }
.large img { max-width: 480px; }
figure { margin: 0; min-width: 0; }
figure img { width: 100%; max-width: 256px; display: block; border-radius: 4px; background: var(--soft); }
img.pixels { image-rendering: pixelated; }
figcaption { overflow-wrap: anywhere; line-height: 1.35; padding-top: 4px; }
figcaption small { display: block; }
.sides { display: flex; flex-wrap: wrap; gap: 24px; align-items: flex-start; }
.sides > * { min-width: 0; }
.chart { width: 340px; max-width: 100%; font-size: 11px; }
.chart text { fill: var(--ink); } .chart .grid { stroke: var(--line); }
.chart .bar { fill: var(--accent); opacity: .75; }
.chart .diagonal { stroke: var(--dim); stroke-dasharray: 4 4; }
@media (max-width: 560px) { main { padding: 10px; } th, td { padding: 3px 6px; }
  .pictures { grid-template-columns: repeat(auto-fill, minmax(110px, 1fr)); } }
@media print { .scroll { max-height: none; overflow: visible; } }
"""
