"""The table report as files: NAME.html, .md, .csv, .tex and .json, all of one record (`table.tabulate`)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bird_cache.files import replace, storage_error
from bird_pipelines.marks import MARK, p_value
from bird_pipelines.reporting.page import page
from bird_pipelines.study.tables.table import COLUMNS, NO_RUN

__all__ = ["CSV_COLUMNS", "write_table"]

CSV_COLUMNS = (
    *("profile", "table", "dataset", "teacher", "student", "label", "method", "metric", "seeds", "mean", "std", "low"),
    *("high", "floor", "beyond_chance", "paper_mean", "paper_std", "difference", "reference", "effect", "effect_low"),
    *("effect_high", "p", "p_holm", "paper_effect", "direction", "undefined", "trivial", "error"),
)
TEX = {"\\": r"\textbackslash{}", **{each: f"\\{each}" for each in "&%$#_{}"}, "~": r"\textasciitilde{}", "^": r"\^{}"}
Record = Mapping[str, Any]


def write_table(record: Record, out: Path, name: str, plots: Mapping[str, str] | None = None) -> dict[str, str]:
    """Write the five files into the folder `out`, each whole or not at all; kind -> path. `plots` (title -> inline SVG) go
    into the page. Raises StorageError where the folder cannot be written."""
    texts = {
        "html": as_html(record, plots or {}),
        "md": as_markdown(record),
        "csv": as_csv(record),
        "tex": as_latex(record),
        "json": json.dumps(record, indent=1, ensure_ascii=False) + "\n",
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(out, error, 0) from None
    for kind, text in texts.items():
        replace(out / f"{name}.{kind}", text.encode())
    return {kind: str(out / f"{name}.{kind}") for kind in texts}


def as_html(record: Record, plots: Mapping[str, str]) -> str:
    """One self-contained page."""
    drawn = [(title, Markup(svg)) for title, svg in plots.items()]
    values = dict(**record, columns=COLUMNS, mark=MARK, no_run=NO_RUN, plots=drawn)
    return page("table", values, {"number": _number, "signed": _signed, "range": _range})


def as_markdown(record: Record) -> str:
    """Headings and pipe tables: ours, the paper's, the difference and the paired effect, metric by metric."""
    lines = [f"# {record['title']}", ""]
    if record["demo"]:
        lines += [f"**This is a demo, not the paper's table.** {record['about']}", ""]
    lines += [f"Profile `{record['profile']}`: {record['about']} Source of the paper's numbers: {record['source']}."]
    lines += [f"All numbers x100; seeds {', '.join(map(str, record['seeds'])) or 'none'}.", ""]
    for block in record["blocks"]:
        lines += [f"## {block['name']}", "", *([block["stand_in"], ""] if block["stand_in"] else [])]
        heads = [
            f"{COLUMNS[m][0]} {COLUMNS[m][1]} ours | paper | difference | against reference" for m in record["metrics"]
        ]
        lines += [f"| method | seeds | {' | '.join(heads)} |", "|---|---|" + "---|---|---|---|" * len(heads)]
        for row in block["rows"]:
            parts = [_markdown_cell(row["cells"][metric]) for metric in record["metrics"]]
            lines += [f"| {row['label']} | {len(row['seeds']) or '–'} | {' | '.join(parts)} |"]
        lines += ["", *(f"- {row['label']}: {row['trivial']}" for row in block["rows"] if row["trivial"])]
        for metric, order in block["order"].items():
            if order["pairs"]:
                said = f"{order['agree']} of {order['pairs']} pairs of methods in the paper's order (tau {order['tau']:.2f})"
                lines += [f"- {COLUMNS[metric][0]}: {said}"]
        lines += [""]
    if record["failed"]:
        lines += ["## Failed", "", *(f"- {each}" for each in record["failed"]), ""]
    lines += _paper_notes(record)
    return "\n".join(lines)


def _markdown_cell(cell: Record) -> str:
    ours = _ours(cell)
    if cell["interval"] and cell["mean"] is not None:
        ours += f" [{_range(cell['interval'])}]"
    if cell["floor"] is not None:
        ours += f", floor {cell['floor']:.1f}"
    if cell["beyond_chance"] is not None:
        ours += f", beyond chance {cell['beyond_chance']:.1f}"
    if cell["trivial"]:
        ours += f" **{MARK}**"
    paper = _number(cell["paper"]["mean"], cell["paper"]["std"], 2) if cell["paper"] else "–"
    return f"{ours} | {paper} | {_signed(cell['difference'])} | {_effect(cell)}"


def _effect(cell: Record) -> str:
    found = cell["comparison"]
    if found is None:
        return "–"
    text = _signed(found["effect"])
    if found["interval"]:
        text += f" [{_range(found['interval'])}]"
    if found["p_holm"] is not None:
        text += f", p {p_value(found['p_holm'])}"
    return text + (f" ({cell['direction']})" if cell["direction"] else "")


def _paper_notes(record: Record) -> list[str]:
    lines = []
    if record["headlines"]:
        lines += ["## The paper's percentages, from its own numbers", ""]
        for each in record["headlines"]:
            verdict = "follows" if each["follows"] else "does not follow"
            given = f"stated {each['stated']:.2f} %, recomputed {each['recomputed']:.2f} %"
            lines += [f"- {each['claim']}: {given} ({verdict}); rule: {each['rule']}"]
        lines += [""]
    if record["known_errors"]:
        lines += ["## Known errors in the paper", "", *(f"- {each}" for each in record["known_errors"]), ""]
    lines += ["## What the paper leaves open, and what is done here", "", *(f"- {each}" for each in record["open"]), ""]
    return lines


def as_csv(record: Record) -> str:
    """One line a row and metric."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for block in record["blocks"]:
        for row in block["rows"]:
            for cell in row["cells"].values():
                found, paper = cell["comparison"] or {}, cell["paper"] or {}
                low, high = cell["interval"] or (None, None)
                effect_low, effect_high = found.get("interval") or (None, None)
                line = {name: block[name] for name in ("dataset", "teacher", "student")}
                line |= {name: row[name] for name in ("label", "method", "reference")}
                line |= {name: cell[name] for name in ("metric", "mean", "std", "floor", "beyond_chance", "difference")}
                line |= {name: cell[name] for name in ("paper_effect", "direction", "trivial")}
                line |= {"undefined": "; ".join(f"{name}: {why}" for name, why in cell["undefined"].items())}
                line |= {name: found.get(name) for name in ("effect", "p", "p_holm")}
                line |= {"low": low, "high": high, "effect_low": effect_low, "effect_high": effect_high}
                line |= {"paper_mean": paper.get("mean"), "paper_std": paper.get("std")}
                line |= {"profile": record["profile"], "table": record["table"], "seeds": len(row["seeds"])}
                writer.writerow(line | {"error": "; ".join(row["errors"])})
    return text.getvalue()


def as_latex(record: Record) -> str:
    """A tabular of booktabs: ours, and the paper's numbers in the line below."""
    metrics = record["metrics"]
    lines = ["% needs \\usepackage{booktabs}", f"% {record['source']}"]
    lines += [
        f"% profile {record['profile']}: {record['about']}",
        "\\begin{tabular}{l" + "r" * len(metrics) + "}",
        "\\toprule",
    ]
    if record["demo"]:
        lines += [f"\\multicolumn{{{len(metrics) + 1}}}{{l}}{{\\textbf{{Demo, not the paper's table}}}} \\\\"]
    arrows = {"↑": "$\\uparrow$", "↓": "$\\downarrow$"}
    lines += [" & ".join(["", *(f"{COLUMNS[each][0]} {arrows[COLUMNS[each][1]]}" for each in metrics)]) + " \\\\"]
    notes: dict[str, None] = {}
    for block in record["blocks"]:
        lines += ["\\midrule", f"\\multicolumn{{{len(metrics) + 1}}}{{l}}{{{_tex(block['name'])}}} \\\\"]
        for row in block["rows"]:
            cells = [row["cells"][metric] for metric in metrics]
            ours = [_ours(cell).replace("±", "$\\pm$").replace("–", "--") for cell in cells]
            ours = [text + ("$^\\dagger$" if cell["trivial"] else "") for text, cell in zip(ours, cells, strict=True)]
            notes |= {f"{row['label']}: {row['trivial']}": None} if row["trivial"] else {}
            printed = [cell["paper"] for cell in cells]
            paper = [_number(each["mean"], each["std"], 2).replace("±", "$\\pm$") if each else "--" for each in printed]
            lines += [" & ".join([_tex(row["label"]), *ours]) + " \\\\", " & ".join(["\\quad paper", *paper]) + " \\\\"]
    told = [
        f"\\multicolumn{{{len(metrics) + 1}}}{{p{{.95\\linewidth}}}}{{$^\\dagger$ {_tex(note)}}} \\\\" for note in notes
    ]
    return "\n".join([*lines, "\\bottomrule", *told, "\\end{tabular}", ""])


def _tex(text: str) -> str:
    return "".join(TEX.get(each, each) for each in text)


def _ours(cell: Record) -> str:
    """Mean and deviation; n/a with its reason where runs were evaluated and the number does not exist."""
    if cell["mean"] is None and cell["undefined"]["mean"] != NO_RUN:
        return f"n/a: {cell['undefined']['mean']}"
    return _number(cell["mean"], cell["std"])


def _number(mean: float | None, std: float | None = None, digits: int = 1) -> str:
    if mean is None:
        return "–"
    return f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if std is not None else "")


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1f}".replace("-", "−")


def _range(ends: tuple[float, float]) -> str:
    return " to ".join(f"{end:.1f}".replace("-", "−") for end in ends)
