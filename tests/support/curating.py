"""Made-up pairs and stages for the tests of curation; run as a program, it curates until it is killed or finished."""

import hashlib
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from model_export.curation.pieces import PieceSizes
from model_export.curation.progress import CurationProgress
from model_export.curation.run import Curation, curate
from model_export.curation.stage import TEXT, StageResult, digest_of, split
from model_export.drivers.local import LocalDriver
from model_export.drivers.ray_data import RayDriver

WORDS = ("dog", "cat", "red", "car", "tree", "house", "IMG", "blue", "boat", "sky")
SMALL = PieceSizes(piece=4_000, table=1_000)


def write_texts(folder: Path, rows: Mapping[str, int], *, row_group_size: int = 20) -> list[str]:
    """Write a Parquet file of captions for each name; each file has other ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in rows.items():
        digits = [hashlib.sha256(f"{name} {row}".encode()).digest() for row in range(count)]
        texts = [" ".join(WORDS[byte % len(WORDS)] for byte in digest[:6]) for digest in digits]
        table = pa.table({"text": texts, "url": [f"https://a.example/{name}/{row}" for row in range(count)]})
        pq.write_table(table, folder / name, row_group_size=row_group_size)
    return [str(folder / name) for name in rows]


@dataclass(frozen=True)
class Without:
    """Drops texts that contain a word; takes its time over each table."""

    word: str
    seconds: float = 0.0
    name: str = "without"

    @property
    def digest(self) -> str:
        """Return a hash of the word."""
        return digest_of(self.name, 1, {"word": self.word})

    def run(self, table: pa.Table) -> StageResult:
        """Drop the texts."""
        time.sleep(self.seconds)
        found = pc.match_substring(table[TEXT], self.word)
        return split(table, pc.if_else(found, pa.scalar(f"has {self.word}"), pa.scalar(None, pa.string())))


def quiet() -> CurationProgress:
    """Return a progress that shows nothing."""
    return CurationProgress(Console(quiet=True))


def content_of(folder: Path) -> dict[str, bytes]:
    """Return the bytes of a data set: its shards, their records, and dataset.json."""
    files = [*folder.glob("*.parquet"), *folder.glob("records/0*.json"), folder / "dataset.json"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def main(data: str, out: str, workers: str, seconds: str, ray: str = "") -> None:
    """Curate the files of a folder, and write the ids of the processes behind one another into ``OUT.pids``."""
    stages = (Without("IMG", float(seconds)), Without("sky", name="without sky"))
    if ray:
        with RayDriver(int(workers), ray) as cluster, quiet() as progress:
            curate(Curation([data], stages, Path(out), sizes=SMALL, driver=cluster), progress)
        return
    with Path(f"{out}.pids").open("a", encoding="ascii", buffering=1) as pids, quiet() as progress:
        driver = LocalDriver(int(workers), started=lambda pid: print(pid, file=pids))
        curate(Curation([data], stages, Path(out), sizes=SMALL, driver=driver), progress)


if __name__ == "__main__":
    main(*sys.argv[1:])
