"""The page's look: one palette for light and one for dark, and the style sheet made from them."""

from __future__ import annotations

from types import MappingProxyType

__all__ = ["DARK", "LIGHT", "style_sheet"]

LIGHT = MappingProxyType(
    {
        "page": "#f6f7f9",
        "card": "#ffffff",
        "ink": "#1c2430",
        "muted": "#525d6d",
        "rule": "#d5dae1",
        "link": "#0b57b0",
        "alarm": "#9b1c1c",
        "alarm-ink": "#ffffff",
        "series-1": "#1f62c4",
        "series-2": "#b3540a",
        "series-3": "#1a7a57",
        "series-4": "#7a3fae",
        "series-5": "#b8274c",
        "series-6": "#59646f",
    }
)
DARK = MappingProxyType(
    {
        "page": "#12161c",
        "card": "#1b2129",
        "ink": "#e6e9ee",
        "muted": "#a6b0bd",
        "rule": "#3a434f",
        "link": "#8ab8ff",
        "alarm": "#ffb4ab",
        "alarm-ink": "#3b0605",
        "series-1": "#7fb0ff",
        "series-2": "#f0a35e",
        "series-3": "#5fc9a0",
        "series-4": "#c79bf2",
        "series-5": "#ff8fa8",
        "series-6": "#b3bdc8",
    }
)

RULES = """
*{box-sizing:border-box}
html{color-scheme:light dark;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,"Segoe UI",Roboto,sans-serif}
header,main,footer{max-width:70rem;margin:0 auto;padding:1rem}
h1{font-size:1.7rem;line-height:1.2;margin:.4rem 0;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:0 0 .6rem}
h3{font-size:1.05rem;margin:1.2rem 0 .3rem}
p{margin:.4rem 0 .8rem;max-width:46rem}
ul{max-width:46rem;padding-left:1.3rem;margin:.3rem 0 .8rem}
a{color:var(--link)}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;padding:0;margin:.8rem 0 0;max-width:none}
nav a{display:inline-block;padding:.25rem 0}
.skip{position:absolute;left:-99rem}
.skip:focus{left:1rem;top:1rem;background:var(--card);padding:.5rem 1rem}
:focus-visible{outline:3px solid var(--link);outline-offset:2px}
section{background:var(--card);border:1px solid var(--rule);border-radius:.6rem;padding:1.1rem;margin:0 0 1.2rem}
.lead,.note,figcaption,caption,.empty,footer{color:var(--muted)}
.alarm{background:var(--alarm);color:var(--alarm-ink);border-radius:.6rem;padding:.7rem 1.1rem;margin:0 0 1.2rem}
.alarm p{margin:.2rem 0}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.6rem,1fr));gap:.8rem;margin:0}
.cards div{border:1px solid var(--rule);border-radius:.5rem;padding:.7rem .8rem}
.cards dt{font-size:.9rem}
.cards dd{margin:0}
.cards .value{font-size:1.45rem;white-space:nowrap;font-weight:650;line-height:1.3;font-variant-numeric:tabular-nums}
.cards .note{font-size:.85rem;line-height:1.35}
.columns>div{min-width:0}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));
gap:1rem 2rem;align-items:start}
figure{margin:0 0 1rem}
svg{display:block;width:100%;max-width:34rem;height:auto;overflow:visible}
figcaption{font-size:.9rem;max-width:34rem;margin-top:.3rem}
.scroll{overflow-x:auto;margin:.6rem 0 1rem}
table{border-collapse:collapse;font-size:.93rem;font-variant-numeric:tabular-nums;width:max-content;
min-width:min(100%,22rem)}
caption{text-align:left;max-width:min(28rem,80vw);padding:.2rem 0 .4rem}
th,td{text-align:left;vertical-align:top;padding:.35rem .9rem .35rem 0;border-bottom:1px solid var(--rule)}
th{font-weight:600}
th[scope=col]{max-width:7rem;vertical-align:bottom}
td{max-width:18rem;overflow-wrap:break-word}
.number{text-align:right}
td.number{white-space:nowrap}
summary{cursor:pointer;padding:.3rem 0;color:var(--link)}
@media(max-width:36rem){header,main,footer{padding:.6rem}section{padding:.8rem}
.cards{grid-template-columns:1fr 1fr;gap:.5rem}
.cards div{padding:.5rem .6rem}.cards .value{font-size:1.15rem}}
@media print{section{break-inside:avoid;border:0}nav,.skip{display:none}}
"""


def style_sheet() -> str:
    """CSS of the page; `--NAME` is an entry of the palette the reader's device asks for."""
    return f":root{{{_variables(LIGHT)}}}@media(prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}{RULES}"


def _variables(palette: MappingProxyType[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in palette.items())
