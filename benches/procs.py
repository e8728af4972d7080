"""What a process takes, from /proc."""
import os, pathlib

TICK = os.sysconf("SC_CLK_TCK")


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
