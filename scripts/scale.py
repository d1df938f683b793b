"""Reckon what a curation of many pairs takes: time, machines, money and disk, from rates of one core.

Run by `make scale`; docs/scale.md holds the table of the defaults, and where each of them was measured.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from typing import Final

PAIRS: Final = (400_000_000, 12_800_000_000)


@dataclass(frozen=True)
class Rates:
    """What the table follows from; every field is an option."""

    digest: float = 900.0
    """Megabytes a second and core: SHA-256 of the input."""
    shards: float = 240.0
    """Megabytes a second and core: read, write, sync and hash a shard, without stages."""
    match: float = 143_000.0
    """Texts a second and core: the search for 500,000 queries."""
    text: float = 48_000.0
    """Captions a second and core: the text filter, in the shares of YFCC100M."""
    balance: float = 68_000.0
    """Pairs a second and core: all passes of `balance` over ids and queries."""
    pair_kb: float = 46.0
    """Kilobytes of a pair: picture, caption and the rest."""
    kept: float = 0.15
    """Share of the pairs that the filters keep."""
    disk_gb_s: float = 10.0
    """Gigabytes a second that the shared disk gives to all cores together. Assumed."""
    cores: float = 256.0
    """Cores of the cluster."""
    efficiency: float = 0.7
    """Share of the cores' time that does work: starts, the last shards, lost nodes. Assumed, not measured."""
    core_hour: float = 0.04
    """Price of a core for an hour."""
    gb_month: float = 0.08
    """Price of a gigabyte of shared disk for a month."""


def row(pairs: int, rates: Rates) -> list[str]:
    """Return the cells of a number of pairs."""
    kept = pairs * rates.kept
    megabytes = pairs * rates.pair_kb / 1e3
    hours = {
        "digest": megabytes / rates.digest,
        "match and filter": megabytes / rates.shards + pairs / rates.match + pairs / rates.text,
        "balance": kept / rates.balance + megabytes * rates.kept * (1 / rates.shards + 1 / rates.digest),
    }
    hours = {name: seconds / 3600 for name, seconds in hours.items()}
    total = sum(hours.values()) / rates.efficiency
    # Input is read for its digest and for the shards; what is kept is written, read twice, and written again.
    by_disk = megabytes / 1e3 * (2 + 4 * rates.kept) / rates.disk_gb_s / 3600
    # The matched pairs, and at most as many balanced ones.
    made = megabytes / 1e6 * rates.kept * 2
    disk = megabytes / 1e6 + made
    return [
        f"{pairs / 1e6:,.0f} million",
        *(f"{each:,.0f}" for each in hours.values()),
        f"{total:,.0f}",
        f"{total / rates.cores:,.1f} h",
        f"{by_disk:,.1f} h",
        f"{total * rates.core_hour:,.0f}",
        f"{disk:,.0f} TB",
        f"{disk * 1e3 * rates.gb_month:,.0f}",
    ]


def table(rates: Rates) -> str:
    """Return the table in Markdown."""
    heads = [
        "pairs",
        "digest",
        "match, filter",
        "balance",
        "core-hours paid",
        f"on {rates.cores:,.0f} cores",
        f"at {rates.disk_gb_s:,.0f} GB/s",
        "$ of cores",
        "shared disk",
        "$ of disk a month",
    ]
    lines = [heads, ["---"] * len(heads), *(row(pairs, rates) for pairs in PAIRS)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for each in fields(Rates):
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=float, default=each.default, help=" ")
    print(table(Rates(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
