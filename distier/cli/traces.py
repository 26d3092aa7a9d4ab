"""Commands about recorded accesses: `simulate` and `advise`. They need a server only for `--live`."""

from __future__ import annotations

import gzip
import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TextIO

import typer

from . import output
from .record import Live, live_trace
from .session import Session, session_of
from .window import parse_tokens

if TYPE_CHECKING:
    from distier.policy.eviction.replay import Missed
    from distier.policy.shards import Misses
    from distier.policy.traces import Trace

BUDGETS = ("1%", "5%", "10%")
DOLLARS = 0.0004
"""Dollars for 1,000 GET requests: S3 Standard in us-east-1, https://aws.amazon.com/s3/pricing/. Reads in the same region cost
nothing else."""
PREDICTED = "lru, predicting"
TraceFile = Annotated[
    str | None, typer.Argument(metavar="[TRACE]", help="CSV `time,key,size[,session]`, also gzipped; `-` is stdin.")
]
TokensPerByte = Annotated[
    float | None,
    typer.Option("--tokens-per-byte", help="Tokens of a byte, for a trace without a column `tokens`: 0.25.", min=0.0),
]


def register(app: typer.Typer) -> None:
    app.command("simulate")(simulate)
    app.command("advise")(advise)


class Budget(NamedTuple):
    """A budget, and how it was written. `in_tokens` is False for bytes."""

    amount: int
    label: str
    in_tokens: bool = False


@contextmanager
def _opened(name: str) -> Iterator[TextIO]:
    """Open a trace. Whether it is gzipped is seen by its first bytes, also on stdin."""
    try:
        if name == "-":
            source: Any = sys.stdin.buffer
            raw = source if isinstance(source, io.BufferedReader) else io.BufferedReader(source)
            yield _decoded(raw)
            return
        with Path(name).open("rb") as file:
            yield _decoded(file)
    except (OSError, EOFError) as e:  # gzip.BadGzipFile is an OSError
        raise typer.BadParameter(f"cannot read trace {name!r}: {getattr(e, 'strerror', None) or e}") from None


def _decoded(raw: io.BufferedReader) -> TextIO:
    packed = raw.peek(2)[:2] == b"\x1f\x8b"
    return io.TextIOWrapper(gzip.GzipFile(fileobj=raw) if packed else raw, "utf-8", "surrogateescape", newline="")


def _read(session: Session, name: str | None, live: str | None, tokens_per_byte: float | None) -> Trace:
    from distier.policy.traces import parse_trace

    from . import resume_gc

    if (name is None) == (live is None):
        raise typer.BadParameter("name a TRACE, or record one with --live DURATION")
    if live is not None:
        return live_trace(session, live)
    assert name is not None
    with _opened(name) as lines:
        trace = parse_trace(lines, tokens_per_byte)
    resume_gc()
    return trace


def _budgets(texts: list[str], footprint: int) -> list[Budget]:
    from distier.config.units import parse_size_bytes

    found = []
    for text in texts:
        try:
            if match := re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)\s*%", text.strip()):
                amount = int(footprint * float(match[1]) / 100)
            else:
                amount = parse_size_bytes(text)
        except ValueError as e:
            raise typer.BadParameter(f"--budget {text!r}: {e}, or a percentage of the footprint such as 5%") from None
        if amount < 1:
            raise typer.BadParameter(f"--budget {text!r} is less than a byte")
        found.append(Budget(amount, text.strip()))
    return found


def _about(trace: Trace) -> str:
    modules, accesses = output.counted(len(trace.sizes), "module"), output.number(len(trace.accesses))
    return f"{accesses} accesses to {modules}, {output.size(trace.footprint)} (the footprint)"


# -- simulate ------------------------------------------------------------------------------------------------------


def simulate(
    context: typer.Context,
    trace: TraceFile = None,
    live: Live = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            "--budget", metavar="SIZE", help="64MiB, or a percentage of the footprint; repeatable [default: 1%, 5%, 10%]."
        ),
    ] = None,
    policy: Annotated[
        list[str] | None, typer.Option("--policy", metavar="NAME", help="Only this policy; repeatable [default: all].")
    ] = None,
    tokens_per_byte: TokensPerByte = None,
    prediction: Annotated[
        bool, typer.Option("--prediction", help="Also replay it through LRU with prediction, session by session.")
    ] = False,
) -> None:  # fmt: skip
    """Replay a trace through every eviction policy, and print what each misses.

    `x LRU` is the misses divided by those of lru. Two more lines are bounds that no policy can pass. An infinite cache misses
    only the first access of each module. The other bound knows the future: MIN (Belady 1966) is the optimum where all modules
    have one size, and PFOO-L (Berger et al. 2018) misses at most as much as the optimum with sizes. Each module has the largest
    size that the trace says.
    """
    from distier.policy.eviction.replay import COMPULSORY, accessed, bound, compulsory, replay, replay_predicted
    from distier.policy.eviction.table import POLICIES

    session = session_of(context)
    if unknown := [name for name in policy or () if name not in POLICIES]:
        raise typer.BadParameter(f"--policy {unknown[0]!r}: choose from {', '.join(POLICIES)}")
    wanted = [name for name in POLICIES if not policy or name in policy]
    read = _read(session, trace, live, tokens_per_byte)
    totals, first = accessed(read), compulsory(read)
    budgets = _budgets(budget or list(BUDGETS), read.footprint)
    if not session.json:
        print(_about(read))
    for each in budgets:
        lru = replay(read, POLICIES["lru"], each.amount)
        rows = [(name, lru if name == "lru" else replay(read, POLICIES[name], each.amount)) for name in wanted]
        if prediction:
            predicted, ahead = replay_predicted(read, each.amount)
            rows.append((PREDICTED, predicted))
        least, missed = bound(read, each.amount)
        rows += [(f"{least} (bound)", missed), (COMPULSORY, first)]
        if session.json:
            for name, each_missed in rows:
                row = _simulated(each, name, each_missed, lru, totals)
                if name == PREDICTED:
                    row |= {"predicted": ahead.issued, "predicted_used": ahead.used, "archive_reads": ahead.reads}
                output.emit(row)
        else:
            share = f" ({each.label})" if each.label.endswith("%") else ""
            print(f"\nbudget {output.size(each.amount)}{share}")
            columns = [
                "policy",
                ">missed",
                ">x LRU",
                ">bytes",
                ">x LRU",
                *([">tokens", ">x LRU"] if totals.tokens else []),
            ]
            print(*output.long_rows(columns, [_simulated_row(name, m, lru, totals) for name, m in rows], ()), sep="\n")
            if prediction:
                ratio = ahead.reads / max(1, lru[0])
                came = output.counted(ahead.issued, "module")
                print(f"prediction: {came} came ahead, {ahead.precision:.0%} used; {ratio:.2f} x LRU's archive reads")


def _parts(missed: Missed, lru: Missed, totals: Missed) -> list[tuple[float, float | None]]:
    """Return for objects, bytes and tokens the fraction that was missed, and the quotient of that and LRU's (None of none)."""
    return [
        (mine / of, mine / least if least else None)
        for mine, least, of in zip(missed, lru, totals, strict=True)
        if mine is not None and least is not None and of
    ]


def _simulated_row(name: str, missed: Missed, lru: Missed, totals: Missed) -> list[str]:
    cells = [name]
    for ratio, to_lru in _parts(missed, lru, totals):
        cells += [f"{ratio:.2%}", "" if to_lru is None else f"{to_lru:.2f}"]
    return cells


def _simulated(budget: Budget, name: str, missed: Missed, lru: Missed, totals: Missed) -> dict[str, Any]:
    row: dict[str, Any] = {"budget_bytes": budget.amount, "budget": budget.label, "policy": name}
    names = ("objects", "bytes", "tokens")
    for unit, mine, (ratio, to_lru) in zip(names, missed, _parts(missed, lru, totals), strict=False):
        row |= {f"missed_{unit}": mine, f"miss_ratio_{unit}": ratio, f"to_lru_{unit}": to_lru}
    return row


# -- advise --------------------------------------------------------------------------------------------------------


def advise(
    context: typer.Context,
    trace: TraceFile = None,
    live: Live = None,
    budget: Annotated[
        list[str] | None,
        typer.Option("--budget", metavar="SIZE", help="64MiB, or a percentage of the footprint; repeatable."),
    ] = None,
    budget_tokens: Annotated[
        list[str] | None,
        typer.Option("--budget-tokens", metavar="TOKENS", help="Budget in tokens: 50000 or 50k; repeatable."),
    ] = None,
    tokens_per_byte: TokensPerByte = None,
    dollars: Annotated[
        float, typer.Option("--dollars-per-1000-gets", help="Price of reads from the archive.", min=0.0)
    ] = DOLLARS,
) -> None:  # fmt: skip
    """Estimate what half and twice of a budget would cost or save.

    The misses are those of LRU, from a sample of at most 8,192 modules (SHARDS, Waldspurger et al. 2015). Each miss counts as a
    read from the archive. The price is that of S3 Standard in us-east-1, if not given. Numbers in parentheses compare with the
    budget itself.
    """
    from distier.policy.shards import Shards

    session = session_of(context)
    read = _read(session, trace, live, tokens_per_byte)
    if budget_tokens and read.tokens is None:
        raise typer.BadParameter("--budget-tokens needs a trace with a column `tokens`, or --tokens-per-byte")
    budgets = _budgets(budget or ([] if budget_tokens else ["5%"]), read.footprint)
    for text in budget_tokens or ():
        amount = parse_tokens(text)
        if not amount:
            raise typer.BadParameter(f"--budget-tokens {text!r} is less than a token")
        budgets.append(Budget(amount, text, in_tokens=True))
    shards = Shards()
    tokens = read.tokens or [0.0] * len(read.sizes)
    for i in read.accesses:
        shards.access(read.names[i], read.sizes[i], tokens[i])
    if not session.json:
        print(_about(read))
        print(f"sampled {output.counted(shards.sampled, 'module')}, {shards.rate:.3g} of the keys")
    for each in budgets:
        estimates = [(factor, shards.misses(each.amount * factor, in_tokens=each.in_tokens)) for factor in (0.5, 1, 2)]
        rows = [_advice(each, factor, missed, shards, read, dollars) for factor, missed in estimates]
        if session.json:
            for row in rows:
                output.emit(row)
            continue
        columns = ("budget", ">missed", ">archive reads", *([">tokens"] if read.tokens else []), ">dollars")
        print("", *output.long_rows(columns, [_advice_row(row, rows[1]) for row in rows], ()), sep="\n")


def _advice(
    budget: Budget, factor: float, missed: Misses, shards: Any, trace: Trace, dollars: float
) -> dict[str, Any]:  # fmt: skip
    amount, unit = int(budget.amount * factor), "tokens" if budget.in_tokens else "bytes"
    row = {
        f"budget_{unit}": amount, "factor": factor, "miss_ratio": missed.objects / shards.accesses,
        "archive_reads": round(missed.objects), "missed_bytes": round(missed.size_bytes),
    }  # fmt: skip
    if trace.tokens is not None:
        row["missed_tokens"] = round(missed.tokens)
    return row | {"dollars": missed.objects / 1000 * dollars, "sample_rate": shards.rate}


def _advice_row(row: dict[str, Any], base: dict[str, Any]) -> list[str]:
    budget = output.size(row["budget_bytes"]) if "budget_bytes" in row else f"{row['budget_tokens']:,} tokens"
    compared = row is not base
    cells = [budget, f"{row['miss_ratio']:.2%}"]
    cells += [
        f"{row[name]:,}" + (f" ({row[name] - base[name]:+,})" if compared else "")
        for name in ("archive_reads", "missed_tokens")
        if name in row
    ]
    change = f" ({row['dollars'] - base['dollars']:+.4f})" if compared else ""
    return [*cells, f"{row['dollars']:.4f}{change}"]
