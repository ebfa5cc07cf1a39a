"""The command ``bioxfer doctor``: what is installed, what is here, and whether it is sound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bioxfer.doctor import Finding

__all__ = ["doctor_command"]

_PROBLEMS = 3


def doctor_command(
    quick: Annotated[
        bool, typer.Option("--quick", help="Do not read downloaded weights and the whole cache.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="The same for machines, with numbers in bytes.")
    ] = False,
) -> None:
    """Say what is installed, which backbones are here, whether all is sound, and what will be used.

    One finding a line: ok, note (worth knowing) or problem; what was looked at; what was found; and after an
    arrow what to do. Opens no socket and writes nothing. Exit code 3 if there is a problem. The page is made
    to be pasted into a support ticket: it shows no sequences, the home folder as ~, and of the environment
    only the variables that change what bioxfer does.
    """
    from bioxfer.doctor import examine

    findings = examine(quick=quick)
    typer.echo(_as_json(findings) if as_json else _as_text(findings))
    if any(finding.verdict == "problem" for finding in findings):
        raise typer.Exit(_PROBLEMS)


def _as_text(findings: Sequence[Finding]) -> str:
    wide = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        remedy = f" -> {finding.remedy}" if finding.remedy else ""
        # A file's name may hold anything; a finding keeps to its line.
        fact = "".join(c if c.isprintable() else "?" for c in finding.fact + remedy)
        lines.append(f"{finding.verdict:<7}  {finding.check:<{wide}}  {fact}")
    counts = {verdict: sum(f.verdict == verdict for f in findings) for verdict in ("problem", "note", "ok")}
    plural = {verdict: "s" * (counts[verdict] != 1) for verdict in counts}
    lines.append(
        f"{counts['problem']} problem{plural['problem']}, {counts['note']} note{plural['note']}, "
        f"{counts['ok']} ok"
    )
    return "\n".join(lines)


def _as_json(findings: Sequence[Finding]) -> str:
    import json
    from dataclasses import asdict

    from bioxfer import __version__

    page = {
        "format": "bioxfer-doctor/1",
        "version": __version__,
        "problems": sum(finding.verdict == "problem" for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }
    return json.dumps(page, indent=1)
