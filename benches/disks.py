"""File systems that are made anew for each run, so that nobody pays for what another left behind.

ext4 is on a loop device over one file, which is written once and keeps its blocks: every run finds the same file below.
"""
import contextlib, ctypes, os, pathlib, shutil, subprocess

KINDS = ["ext4", "tmpfs"]


class Disk:
    """A mounted file system."""

    def __init__(self, at, device=None):
        self.at, self.device = at, device

    def sync(self):
        fd = os.open(self.at, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
                raise OSError(ctypes.get_errno(), "syncfs", str(self.at))
        finally:
            os.close(fd)

    def written(self):
        """MiB that its device has been given so far; of a tmpfs, which has none, what it holds."""
        if self.device:
            sectors = pathlib.Path(f"/sys/block/{pathlib.Path(self.device).name}/stat").read_text().split()[6]
            return int(sectors) * 512 / (1 << 20)
        usage = os.statvfs(self.at)
        return (usage.f_blocks - usage.f_bfree) * usage.f_frsize / (1 << 20)


def quietly(*command):
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def new(kind, work, gib):
    """A new file system of a kind, as large as asked, below the directory `work`; it goes at the end."""
    at = pathlib.Path(work) / "mnt"
    at.mkdir(exist_ok=True)
    device = None
    if kind == "tmpfs":
        quietly("mount", "-t", "tmpfs", "-o", f"size={gib}g,mode=755", "orlop-bench", at)
    else:
        file = image(pathlib.Path(work), gib)
        quietly("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", file)
        device = quietly("losetup", "-f", "--show", "--direct-io=on", file)
        try:
            quietly("mount", device, at)
        except subprocess.CalledProcessError:
            quietly("losetup", "-d", device)
            raise
    try:
        yield Disk(at, device)
    finally:
        unmount_below(at)
        if device:
            quietly("losetup", "-d", device)


def image(work, gib):
    """The file below ext4, each of its blocks written once."""
    file = work / "ext4.img"
    if not file.exists() or file.stat().st_size != gib << 30:
        zeros = bytes(4 << 20)
        with open(file, "wb") as out:
            for _ in range((gib << 30) // len(zeros)):
                out.write(zeros)
            os.fsync(out.fileno())
    return file


def unmount_below(at):
    """What programs mounted within goes first."""
    mounts = [line.split()[1] for line in pathlib.Path("/proc/mounts").read_text().splitlines()]
    for point in sorted((m for m in mounts if m == str(at) or m.startswith(f"{at}/")), key=len, reverse=True):
        quietly("umount", point)


def check_room(work, gib):
    free = shutil.disk_usage(work).free >> 30
    if free < gib + 1:
        raise SystemExit(f"{work} has {free} GiB free, the file below ext4 takes {gib}: name another with --work, or less with --size")
