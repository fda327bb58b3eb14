"""A small file system that can be filled up to a chosen page and made read-only."""

import os
import subprocess
import time

PAGE = 4096


class Unavailable(Exception):
    """This machine or user cannot have it; the text says why."""


class Disk:
    """A tmpfs mounted at `path`. Raises Unavailable."""

    def __init__(self, path, size):
        path.mkdir()
        self.path, self.ballast = path, path / ".ballast"
        if os.geteuid() != 0:
            raise Unavailable("only root can mount a file system")
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"no tmpfs can be mounted: {done.stderr.strip()}")

    def fill(self, leave):
        """Leave room for `leave` pages, and no more."""
        self.free()
        found = os.statvfs(self.path)
        size = found.f_bavail * found.f_frsize - leave * PAGE
        with open(self.ballast, "wb") as f:
            os.posix_fallocate(f.fileno(), 0, size)

    def free(self):
        self.ballast.unlink(missing_ok=True)

    def read_only(self, on):
        """As soon as no file on it is open for writing."""
        command = ["mount", "-o", f"remount,{'ro' if on else 'rw'}", str(self.path)]
        end = time.monotonic() + 30
        while subprocess.run(command, capture_output=True).returncode:
            assert time.monotonic() < end, "the disk cannot be remounted"
            time.sleep(0.005)

    def close(self):
        subprocess.run(["umount", "-l", str(self.path)], check=True)
