"""The command line: help, exit codes, machine-readable results, errors without tracebacks."""

import ctypes
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from recsys.errors import UserError
from serving import read_request

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
SPEC = ROOT / "infra" / "specs" / "world.yaml"


def recsys(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    script = (
        "import json, sys\n"
        "import typer\n"
        "from infra.cli import app\n"
        "from typer.testing import CliRunner\n"
        "result = CliRunner().invoke(app, ['--help'])\n"
        "assert result.exit_code == 0, result.output\n"
        f"check = CliRunner().invoke(app, ['check', {str(SPEC)!r}])\n"
        "assert check.exit_code == 0, check.output\n"
        "heavy = ['tensorflow', 'ray', 'apache_beam', 'pandas', 'fastapi', 'pyarrow', 'numpy']\n"
        "loaded = [name for name in heavy if name in sys.modules]\n"
        "commands = typer.main.get_command(app).commands\n"
        "shown = [name for name in commands if f' {name} ' in result.output]\n"
        "print(json.dumps([sorted(commands), sorted(shown), loaded]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    commands, shown, loaded = json.loads(done.stdout)
    assert set(commands) == {
        "simulate", "check", "spec", "features", "train", "evaluate", "publish", "convert",
        "serve", "rank", "run", "demo",
    }  # fmt: skip
    assert shown == commands and loaded == []


def test_no_command_shows_help() -> None:
    done = recsys()
    assert "simulate" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["chek"], 2, "No such command"),
        (["features", SPEC], 2, "--input"),
        (["check", "none.yaml"], 2, "does not exist"),
        (["serve", ".", "--features", ".", "--replicas", 2], 2, "--engine ray"),
        (["train", SPEC, "--features", ".", "--output", "o", "--gpu"], 2, "--workers N"),
        (["run", SPEC, "--input", ".", "--output", "o", "--ray-address", "a"], 2, "--workers N"),
        (["serve", ".", "--features", ".", "--replicas", 0, "--engine", "ray"], 2, "--replicas"),
        (["evaluate", "nowhere"], 1, "recsys train"),
        (["evaluate", "nowhere", "--split", "tset"], 2, "train, validation, test"),
        (["publish", "nowhere", "--models", "m"], 1, "recsys train"),
        (["convert", "nowhere", "--output", "{tmp}"], 1, "recsys train"),
        (["serve", "nowhere", "--features", "none"], 1, "recsys features"),
        (["rank", "none.json"], 1, "missing"),
        (["rank", "{full}"], 1, "Is a directory"),
        (["run", SPEC, "--input", "nowhere", "--output", "{tmp}"], 1, "nowhere"),
        (["train", SPEC, "--features", "nowhere", "--output", "{tmp}"], 1, "recsys features"),
        (["simulate", "{full}"], 1, "not empty"),
        (
            ["train", SPEC, "--features", "f", "--output", "{tmp}", "--set", "train.epochs"],
            2,
            "--set train.epochs",
        ),
        (["run", SPEC, "--input", "i", "--output", "{tmp}", "--set", "train.epoch=3"], 2, "epoch"),
        (
            ["features", SPEC, "--input", "i", "--output", "{tmp}", "--set", "features.x.dim=3"],
            2,
            "--set features.x.dim",
        ),
        (["train", SPEC, "--features", "f", "--output", "r", "--workers", "-1"], 2, "--workers"),
    ],
)
def test_mistakes_end_in_words(
    arguments: list[object], code: int, said: str, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("precious")
    filled = [str(a).format(tmp=tmp_path / "out", full=full) for a in arguments]
    done = recsys(*filled)
    assert done.returncode == code, done.stderr
    assert said in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert (full / "mine").read_text() == "precious"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "found:    nothing"),
        ("{'user'", "line 1 column 2"),
        ("[" * 100_000, "nested too deeply"),
        ('{"n": ' + "1" * 5000 + "}", "4300 digits"),
        ("[1]", "a JSON list"),
        ("null", "a JSON null"),
        (b"\xff", "utf-8"),
    ],
)
def test_a_request_that_is_none_is_refused_in_words(
    text: str | bytes, said: str, tmp_path: Path
) -> None:
    content = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "request.json").write_bytes(content)
    with pytest.raises(UserError, match="no JSON object") as caught:
        read_request(tmp_path / "request.json")
    assert said in str(caught.value) and caught.value.exit_code == 2
    assert caught.value.where == str(tmp_path / "request.json") and caught.value.fix


def test_a_request_on_stdin_that_is_none() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", "rank", "-"],
        input="no json", capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert "where:    stdin" in done.stderr and "Traceback" not in done.stderr


def _no_right_to_all() -> None:
    """Take from root the right to pass over permissions; others have none to lose."""
    drop_capability, dac_override, dac_read_search = 24, 1, 2
    for capability in (dac_override, dac_read_search):
        ctypes.CDLL(None).prctl(drop_capability, capability, 0, 0, 0)


@pytest.mark.parametrize("command", ["spec infer", "simulate"])
def test_a_folder_without_permission_is_said(tmp_path: Path, command: str) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    arguments = [write_table(tmp_path), "--output", closed / "spec.yaml"]
    if command == "simulate":
        arguments = [closed / "world", "--rows", "1000"]
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", *command.split(), *arguments],
        capture_output=True, text=True, cwd=ROOT, preexec_fn=_no_right_to_all,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Permission denied" in done.stderr and str(closed) in done.stderr
    assert "Let this user" in done.stderr and "Free space" not in done.stderr
    assert "Traceback" not in done.stderr


def test_check_as_json_lists_faults(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(SPEC.read_text().replace("given: click", "given: clik"))
    done = recsys("check", bad, "--json")
    assert done.returncode == 2
    fault = json.loads(done.stdout)["faults"][0]
    assert "given" in fault["where"] and "clik" in fault["message"] and fault["line"] > 0


def write_table(folder: Path) -> Path:
    """A small table of impressions."""
    table = folder / "table.csv"
    rows = [f"u{n % 7},i{n % 5},{n},{int(n % 3 == 0)}" for n in range(60)]
    table.write_text("\n".join(["user,item,price,click", *rows]))
    return table


def test_an_inferred_spec_is_told_with_what_to_run_next(tmp_path: Path) -> None:
    table, spec = tmp_path / "my table.csv", tmp_path / "shop.yaml"
    rows = [f"u{n % 7},i{n % 5},{n},{int(n % 3 == 0)},{int(n % 6 == 0)},1" for n in range(60)]
    table.write_text("\n".join(["user,item,price,click,buy,constant", *rows]))
    done = recsys("spec", "infer", table, "--output", spec)
    assert done.returncode == 0, done.stderr
    tenth = "validation and test have about a tenth of them each."
    assert done.stdout.splitlines() == [
        f"spec of {table} in {spec}",
        "  user      user",
        "  item      item",
        "  request   none",
        "  time      none",
        "  labels    click, buy (given click)",
        "  features  4",
        "  left out  1 column: constant; why is in the file",
        f"  split     Only 20 rows have 'click': {tenth}",
        f"  split     Only 10 rows have 'buy': {tenth}",
        "look it over, then:",
        f"  recsys check {spec}",
        f"  recsys run {spec} --input '{table}' --output out",
    ]
    head = spec.read_text().splitlines()[:3]
    assert head[0] == "# Written by `recsys spec infer my table.csv`; look it over, then:"
    assert [line.removeprefix("# ") for line in head[1:]] == done.stdout.splitlines()[-2:]
    assert recsys("check", spec).returncode == 0


def test_arguments_are_named_in_capitals() -> None:
    script = (
        "import json, typer\n"
        "from infra.cli import app\n"
        "def commands(group):\n"
        "    for command in group.commands.values():\n"
        "        yield from commands(command) if hasattr(command, 'commands') else [command]\n"
        "found = [p.metavar for c in commands(typer.main.get_command(app)) for p in c.params\n"
        "         if not p.opts[0].startswith('-') or p.metavar]\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    names = json.loads(done.stdout)
    assert len(names) > 20 and all(name and name == name.upper() for name in names)


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    table = write_table(tmp_path)
    done = recsys("spec", "infer", table, "--output", tmp_path / "file" / "spec.yaml")
    assert done.returncode == 1, done.stderr
    assert "A file stands where a folder" in done.stderr and str(tmp_path / "file") in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "precious"


def test_an_output_is_looked_for_before_the_table_is_read(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("precious")
    done = recsys("spec", "infer", tmp_path / "none.csv", "--output", tmp_path / "spec.yaml")
    assert done.returncode != 0 and "already exists" in done.stderr


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    # A limit on the size of files stands in for the disk: it holds for root too. Without -B,
    # modules that were just compiled would be cut by it.
    done = subprocess.run(
        [sys.executable, "-B", "-m", "infra.cli", "simulate", tmp_path / "world"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr and str(tmp_path / "world") in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_finds_no_space_is_said() -> None:
    with open("/dev/full", "w") as full:
        # Unbuffered: the command itself meets the error, not the end of Python.
        done = subprocess.run(
            [sys.executable, "-u", "-m", "infra.cli", "check", str(SPEC), "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
    assert done.returncode == 1
    assert "No space left" in done.stderr and "Traceback" not in done.stderr
