"""The page's style: light, dark and print, with nothing loaded from anywhere."""

STYLE = """
:root { color-scheme: light dark;
 --ink: #1c2126; --soft: #5b6570; --paper: #ffffff; --rule: #d5dae0; --band: #f3f5f7;
 --heat: #b3360b; --warn: #a8071a; --warn-band: #fdecec;
 --c0: #0b62a4; --c1: #c2410c; --c2: #15803d; --c3: #7e22ce; --c4: #92600a; --c5: #be185d; }
@media (prefers-color-scheme: dark) { :root {
 --ink: #e4e7ea; --soft: #9aa5b1; --paper: #15181c; --rule: #353c44; --band: #1e2329;
 --heat: #ff9a5c; --warn: #ff8a8a; --warn-band: #3a1d1f;
 --c0: #60a5fa; --c1: #fb923c; --c2: #4ade80; --c3: #c084fc; --c4: #facc15; --c5: #f472b6; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
 max-width: 1120px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
h1, h2, h3, li, dd, p { overflow-wrap: anywhere; }
.soft, figcaption, .legend { color: var(--soft); font-size: .88rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .45rem; text-align: left; vertical-align: top;
 border-bottom: 1px solid var(--rule); }
th { background: var(--band); white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
.name { min-width: 7rem; }
.warn, .warn td { color: var(--warn); background: var(--warn-band); }
.kept, .kept td { background: var(--band); font-weight: 600; }
p.warn, p.kept { padding: .4rem .7rem; border-left: 4px solid currentColor; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; }
figure { margin: 1rem 0; break-inside: avoid; }
svg { width: 100%; height: auto; font: 11px system-ui, sans-serif; }
.legend svg { width: 24px; height: 12px; } .legend span { margin-right: 1.2rem; }
text { fill: var(--ink); } .mid { text-anchor: middle; } .end { text-anchor: end; }
.label { fill: var(--soft); } .grid { stroke: var(--rule); }
.heat { fill: var(--heat); } .none { fill: none; stroke: var(--rule); }
.flagged { stroke: var(--warn); stroke-width: 2; stroke-dasharray: 3 1; }
.line { fill: none; stroke-width: 2; stroke: var(--c); } .dot { fill: var(--c); }
.dashed { stroke-dasharray: 6 3; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); }
.c3 { --c: var(--c3); } .c4 { --c: var(--c4); } .c5 { --c: var(--c5); }
summary { cursor: pointer; }
@media print { :root { color-scheme: light;
 --ink: #000; --soft: #444; --paper: #fff; --rule: #bbb; --band: #eee;
 --heat: #b3360b; --warn: #a8071a; --warn-band: #fff;
 --c0: #0b62a4; --c1: #c2410c; --c2: #15803d; --c3: #7e22ce; --c4: #92600a; --c5: #be185d; }
 body { max-width: none; margin: 0; font-size: 11px; } svg, .heat { print-color-adjust: exact; }
 .wide { overflow: visible; } td { overflow-wrap: anywhere; }
 table { font-size: 9px; } th, td { padding: .15rem .3rem; }
 h2, h3 { break-after: avoid; } tr { break-inside: avoid; } thead { display: table-header-group; } }
"""
