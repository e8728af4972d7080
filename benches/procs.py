"""Processes: what one takes, from /proc and from the kernel at its end."""
import contextlib, dataclasses, os, pathlib, signal, socket, subprocess, sys, tempfile, time

TICK = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20


@dataclasses.dataclass
class Took:
    """What something took: wall and processor seconds, the most memory (MiB), bytes that reached the disk (MiB)."""
    wall: float
    cpu: float
    peak: float
    disk: float = 0.0

    def __add__(self, then):
        """One after the other."""
        return Took(self.wall + then.wall, self.cpu + then.cpu, max(self.peak, then.peak), self.disk + then.disk)


class Failed(Exception):
    """A program did not do what it was asked."""


def cpu(pid):
    """Seconds of a process and its reaped children."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(int(f) for f in fields[11:15]) / TICK


def peak(pid):
    """The most memory it has had, in MiB."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0


def forget_peak(pid):
    """From now on the peak is what it has from now on."""
    pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")


def written(pid):
    """Bytes that a process and its reaped children caused to be written to disks, in MiB; nothing on tmpfs."""
    for line in pathlib.Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("write_bytes"):
            return int(line.split()[1]) / MIB
    return 0


def run(command, env=None, daemon=None):
    """One process, its children, and the daemons (a pid, or several) that work for it meanwhile; it must succeed.

    Memory is the greatest of the process and each of its children, added to the greatest of each daemon.
    """
    daemons = [daemon] if isinstance(daemon, int) else list(daemon or [])
    for one in daemons:
        forget_peak(one)
    before = sum(map(cpu, daemons))
    with tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        child = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err, env=env)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            err.seek(0)
            raise Failed(f"{' '.join(map(str, command))}: exit {child.returncode}: {err.read().decode(errors='replace')[-1000:]}")
    took = Took(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
    took.cpu += sum(map(cpu, daemons)) - before
    took.peak += sum(map(peak, daemons))
    return took


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def listens(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def wait_for(check, what, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return
        time.sleep(0.02)
    sys.exit(f"{what}: not there after {seconds} s")


@contextlib.contextmanager
def served(command, log, socket, env=None):
    """A daemon that listens on a socket; its pid."""
    with open(log, "w") as out:
        daemon = subprocess.Popen(list(map(str, command)), stdout=out, stderr=out, env=env)
    try:
        wait_for(socket.exists, f"{socket.name} of {command[0]}")
        yield daemon.pid
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait()
