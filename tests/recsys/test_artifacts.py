"""What is written appears whole or not at all, and is refused where it does not fit."""

import errno
import json
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from recsys.artifacts import (
    identity,
    put_in_place,
    read_manifest,
    require_fingerprint,
    versions,
    write_folder,
    write_json,
    write_manifest,
)
from recsys.errors import SpecError, UserError
from recsys.spec import Spec, dumps, fingerprints, loads


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), write_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    with write_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
        assert not (tmp_path / "out").exists()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]


def test_who_may_read_a_folder_may_read_its_files_under_a_strict_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with write_folder(tmp_path / "out") as folder:
            (folder / "a").mkdir()
            (folder / "a" / "b").write_text("x")
    finally:
        os.umask(before)
    modes = [(tmp_path / "out" / name).stat().st_mode & 0o777 for name in (".", "a", "a/b")]
    assert modes == [0o755, 0o755, 0o644]


def test_a_full_folder_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    with pytest.raises(UserError, match="not empty"), write_folder(out):
        pass
    assert (out / "mine").read_text() == "precious"
    with write_folder(out, replace=True) as folder:
        (folder / "new").write_text("x")
    assert [p.name for p in out.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_leaves_the_old_artifact(tmp_path: Path) -> None:
    # A real limit of the kernel on what a process may write stands in for a full disk.
    out = tmp_path / "out"
    with write_folder(out) as folder:
        (folder / "a").write_text("old")
    script = (
        "import resource, signal, sys\n"
        "from recsys.artifacts import write_folder\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    with write_folder(sys.argv[1], replace=True) as folder:\n"
        "        (folder / 'a').write_text('x' * 10000)\n"
        "except OSError as error:\n"
        "    print(error.errno)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(out)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(errno.EFBIG)
    assert (out / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path: Path) -> None:
    with write_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("old")
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "lost", tmp_path / "out", identity(tmp_path / "out"))
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("replace", [False, True])
def test_what_came_to_stand_at_the_output_meanwhile_is_kept_and_so_is_the_new(
    tmp_path: Path, replace: bool
) -> None:
    out = tmp_path / "out"
    if replace:
        with write_folder(out) as folder:
            (folder / "a").write_text("old")
    refused = pytest.raises(UserError, match="while this one was made")
    with refused as error, write_folder(out, replace=replace) as late:
        (late / "a").write_text("late")
        with write_folder(out, replace=replace) as soon:
            (soon / "a").write_text("soon")
    assert (out / "a").read_text() == "soon"
    (kept,) = [path for path in tmp_path.iterdir() if path != out]
    assert (kept / "a").read_text() == "late"
    assert error.value.fix.endswith(f"{kept}.")


def test_an_empty_folder_that_came_to_stand_at_the_output_makes_way(tmp_path: Path) -> None:
    with write_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
        (tmp_path / "out").mkdir()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_mount_point_is_refused_before_the_work() -> None:
    with pytest.raises(UserError, match="is a mount point"), write_folder("/proc", replace=True):
        raise AssertionError("the work began")


@pytest.mark.parametrize("stands", [True, False])
def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path, stands: bool) -> None:
    disk = tmp_path / "disk" / "features"
    if stands:
        disk.mkdir(parents=True)
        (disk / "a").write_text("old")
    (tmp_path / "out").symlink_to(disk)
    with write_folder(tmp_path / "out", replace=True) as folder:
        (folder / "b").write_text("new")
    assert (tmp_path / "out").is_symlink()
    assert [p.name for p in disk.iterdir()] == ["b"]
    assert [p.name for p in disk.parent.iterdir()] == ["features"]


def test_what_a_killed_writer_left_is_removed_by_the_next_alone(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from recsys.artifacts import write_folder\n"
        "with write_folder(sys.argv[1]) as folder:\n"
        "    print(folder, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / name)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for name in ("out", "out", "other")
    ]  # fmt: skip
    try:
        dead, alive, other = (Path(w.stdout.readline().strip()) for w in writers if w.stdout)
        for killed in (writers[0], writers[2]):
            killed.kill()
            killed.wait()
        with write_folder(tmp_path / "out") as folder:
            assert {*tmp_path.iterdir()} == {alive, other, folder}
        assert not dead.exists()
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": float("nan"), "y": [1.5, float("inf")]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "y": [1.5, None]}
    assert os.listdir(tmp_path) == ["a.json"]


def test_manifests_are_refused_by_kind_format_and_damage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder") as missing:
        read_manifest(tmp_path / "none", "run")
    assert "recsys train" in missing.value.fix
    write_manifest(tmp_path, "features", {"features": "a"}, {"rows": 3})
    assert read_manifest(tmp_path, "features")["rows"] == 3
    with pytest.raises(UserError, match="another kind"):
        read_manifest(tmp_path, "run")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(UserError, match="format version"):
        read_manifest(tmp_path, "features")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        read_manifest(tmp_path, "features")


def _shop(encode: str = "vocabulary", dim: int = 16) -> Spec:
    return loads(f"""
name: shop
data: {{impressions: log.csv, keys: {{user: u, item: i}}, split: {{validation: 0.1, test: 0.1}}}}
features: [{{name: user, column: u, owner: user, encode: {encode}}}]
tasks: [{{name: click, label: {{column: click}}}}]
model: {{dim: {dim}}}
""")


def test_a_mismatch_names_the_fields_and_the_remedy(tmp_path: Path) -> None:
    made = _shop("{kind: vocabulary, min_count: 2}")
    (tmp_path / "spec.yaml").write_text(dumps(made))
    manifest = {"fingerprints": fingerprints(made)}
    for same in (made, _shop("{kind: vocabulary, min_count: 2}", dim=8)):
        require_fingerprint(manifest, "features", same, where=tmp_path, fix="x")
    with pytest.raises(UserError, match="its `features` differ") as caught:
        require_fingerprint(manifest, "features", _shop(), where=tmp_path, fix="recsys features")
    assert caught.value.expected == "features.user.encode.min_count 1"
    assert caught.value.found == "features.user.encode.min_count 2"
    assert caught.value.where == str(tmp_path / "spec.yaml")
    assert caught.value.fix == "recsys features"


def test_a_mismatch_without_a_field_names_both_fingerprints(tmp_path: Path) -> None:
    manifest = {"fingerprints": {"features": "aaaa"}}
    wanted = fingerprints(_shop())["features"]
    for spec in (None, _shop()):  # none to compare with, then one of an earlier release
        if spec is not None:
            (tmp_path / "spec.yaml").write_text(dumps(spec))
        with pytest.raises(UserError) as caught:
            require_fingerprint(manifest, "features", _shop(), where=tmp_path, fix="x")
        assert caught.value.expected == f"features {wanted}"
        assert caught.value.found == "features aaaa"


def test_versions_are_folders_named_by_a_plain_number(tmp_path: Path) -> None:
    assert versions(tmp_path / "none") == []
    for name in ("1", "01", "2", "10", "²", ".publish-x.partial", "latest"):
        (tmp_path / name).mkdir()
    (tmp_path / "11").write_text("a file")
    assert versions(tmp_path) == [10, 2, 1]
    assert versions(tmp_path / "11") == []
    # What cannot be read is not empty.
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        versions(tmp_path / "loop")


def test_errors_cross_processes_whole() -> None:
    error = UserError("m", expected="e", found="f", where="w", fix="x", exit_code=3)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.exit_code) == (str(error), 3)
    faults = SpecError("spec", [])
    assert str(pickle.loads(pickle.dumps(faults))) == str(faults)
