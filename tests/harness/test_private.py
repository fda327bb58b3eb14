"""Folders whose files run when they are read belong to one user."""

import os
import stat

import pytest

from harness.errors import UserError
from harness.private import private_folder, private_name


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_made_for_this_user_only_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        folder = private_folder(tmp_path / "cache" / private_name("slurm"))
    finally:
        os.umask(before)
    assert mode(folder) == 0o700
    assert private_folder(folder) == folder  # and again


def test_ours_but_readable_by_others_is_closed(tmp_path):
    (tmp_path / "scratch").mkdir(mode=0o755)
    assert mode(private_folder(tmp_path / "scratch")) == 0o700


@pytest.mark.parametrize("bits", [0o770, 0o707, 0o1777])
def test_writable_by_others_is_refused(tmp_path, bits):
    folder = tmp_path / "scratch"
    folder.mkdir()
    folder.chmod(bits)
    with pytest.raises(UserError, match="written by other users.*cache=DIR") as e:
        private_folder(folder)
    assert len(str(e.value).splitlines()) == 1 and mode(folder) == bits


def test_of_another_user_is_refused(tmp_path, monkeypatch):
    private_folder(tmp_path / "scratch")
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.raises(UserError, match="belongs to another user"):
        private_folder(tmp_path / "scratch")
    assert private_name("scratch") == f"scratch-{me + 1}"


def test_a_link_is_judged_by_where_it_leads(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "scratch").symlink_to(tmp_path / "open")
    with pytest.raises(UserError, match="written by other users"):
        private_folder(tmp_path / "scratch")
    (tmp_path / "open").chmod(0o755)
    private_folder(tmp_path / "scratch")
    assert mode(tmp_path / "open") == 0o755  # what a link leads to keeps its mode


def test_a_file_or_a_dead_link_in_its_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "dead").symlink_to(tmp_path / "nowhere")
    for name in ("file", "dead", "file/below"):
        with pytest.raises(UserError, match="cache=DIR"):
            private_folder(tmp_path / name)
