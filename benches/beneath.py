#!/usr/bin/env python3
"""Orlop beneath a containerd 2.x, beside the same containerd as it is: CRI PullImage, and the start of a container on what was pulled.

One containerd has Orlop as remote snapshotter (Orlop pulls and unpacks), one has it as snapshotter, content store and differ (containerd
downloads, Orlop applies), one has nothing of it. They alternate, each time on a file system made anew, with daemons started anew. `crictl
pull` is what is timed, with what the daemons take meanwhile. Then a container is started and removed `--starts` times, with a program
of the host in it, and the median of the run counts. The bars are those of the project: at least 2.5 times less wall time (remote), at
least 2 times (differ), and a start that is no slower.
"""
import contextlib, os, shutil, statistics, subprocess, time

import bounds, peers
from common import alternating, arguments, keep, median, with_disk, workplace
from procs import Failed, run, served, wait_for

ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
SNAPSHOTTER = "orlop-overlay"
# Times less wall time than containerd as it is.
BARS = {"orlop-remote": 2.5, "orlop-differ": 2.0}
# How much slower two medians of the same thing may be.
EQUAL = 1.05


class Stock:
    """containerd with its own overlayfs."""
    name, snapshotter = "containerd", "overlayfs"

    def __init__(self, program, binaries):
        self.program, self.bin = program, binaries

    def missing(self):
        gone = [name for name in ("containerd", "ctr", "crictl") if not (self.bin / name).exists()]
        gone += [name for name in ("runc", "busybox") if not shutil.which(name)]
        return f"no {' and '.join(gone)}" if gone else None

    def plugins(self, at):
        return ""

    def disabled(self):
        return ""

    @contextlib.contextmanager
    def store(self, at, registry):
        hosts = at / "certs.d" / registry
        hosts.mkdir(parents=True)
        (hosts / "hosts.toml").write_text(f"server = 'http://{registry}'\n")
        with contextlib.ExitStack() as daemons:
            pids = [daemons.enter_context(daemon) for daemon in self.daemons(at)]
            yield Store(self, at, pids)

    def daemons(self, at):
        yield peers.containerd(self.bin, at, self.config(at))

    def config(self, at):
        off = f"'io.containerd.internal.v1.opt', 'io.containerd.tracing.processor.v1.otlp'{self.disabled()}"
        return (peers.config(at, off) + f"[plugins.'io.containerd.nri.v1.nri']\ndisable = true\n"
                f"[plugins.'io.containerd.cri.v1.images']\nsnapshotter = '{self.snapshotter}'\n"
                f"[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '{at}/certs.d'\n{self.plugins(at)}")


class Remote(Stock):
    """containerd that is handed snapshots by Orlop."""
    name, snapshotter = "orlop-remote", SNAPSHOTTER

    def missing(self):
        return super().missing() or (None if self.program.exists() else f"{self.program} is not built")

    def daemons(self, at):
        serve = [self.program, "serve", "--root", at / "orlop", "--socket", at / "orlop.sock", "--raw-socket", at / "raw.sock",
                 "--hosts-dir", at / "certs.d"]
        yield served(serve, at / "orlop.log", at / "raw.sock")
        yield from super().daemons(at)

    def plugins(self, at):
        return (f"[proxy_plugins.{SNAPSHOTTER}]\ntype = 'snapshot'\naddress = '{at}/raw.sock'\n"
                f"[proxy_plugins.{SNAPSHOTTER}.exports]\nroot = '{at}/orlop/snapshots/overlayfs'\n"
                "enable_remote_snapshot_annotations = 'true'\n" + unpack("walking"))


class Differ(Remote):
    """containerd that downloads into Orlop's store and has Orlop apply, several layers at once."""
    name = "orlop-differ"

    def disabled(self):
        return ", 'io.containerd.content.v1.content'"

    def plugins(self, at):
        proxy = lambda name, kind: f"[proxy_plugins.{name}]\ntype = '{kind}'\naddress = '{at}/raw.sock'\n"
        return (proxy(SNAPSHOTTER, "snapshot") + "capabilities = ['rebase']\n"
                f"[proxy_plugins.{SNAPSHOTTER}.exports]\nroot = '{at}/orlop/snapshots/overlayfs'\n"
                + proxy("orlop-content", "content") + proxy("orlop", "diff")
                + "[plugins.'io.containerd.transfer.v1.local']\nmax_concurrent_unpacks = 4\n" + unpack("orlop"))


def unpack(differ):
    return (f"[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = 'linux/{ARCH}'\n"
            f"snapshotter = '{SNAPSHOTTER}'\ndiffer = '{differ}'\n")


class Store:
    """A containerd that runs, and what runs below it."""

    def __init__(self, peer, at, pids):
        self.peer, self.at, self.pids = peer, at, pids
        self.socket = at / "containerd.sock"
        wait_for(lambda: self.answers(), "containerd's CRI")

    def answers(self):
        return subprocess.run(list(map(str, self.crictl("images"))), capture_output=True).returncode == 0

    def crictl(self, *words):
        endpoint = f"unix://{self.socket}"
        return [self.peer.bin / "crictl", "--timeout", "10m", "--runtime-endpoint", endpoint, "--image-endpoint", endpoint, *words]

    def pull(self, image):
        took = run(self.crictl("pull", image), daemon=self.pids)
        log = self.at / "orlop.log"
        if log.exists() and "left to containerd" in log.read_text():
            raise Failed(f"{self.peer.name}: layers were left to containerd, so that this is no figure of Orlop's: {log.read_text()[-500:]}")
        return took

    def start(self, image, number):
        """Seconds until a container has run `true` and is gone."""
        busybox = shutil.which("busybox")
        name = f"bench-{os.getpid()}-{number}"
        mount = f"type=bind,src={busybox},dst=/orlop-bench/busybox,options=rbind:ro"
        ctr = [self.peer.bin / "ctr", "--address", self.socket, "-n", "k8s.io", "run", "--rm", "--snapshotter", self.peer.snapshotter,
               "--mount", mount, image, name, "/orlop-bench/busybox", "true"]
        start = time.perf_counter()
        run(ctr)
        return time.perf_counter() - start


def head():
    print("| image | file system | who | pull s | CPU s | peak MiB | disk MiB | times less wall than containerd | bar | start ms | in containerd's |")
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)


def show(image, kind, rows, starts):
    """Medians, ratios to containerd as it is, and whether the bars are met."""
    pulls = {name: median(runs) for name, runs in rows.items()}
    begins = {name: statistics.median(seconds) for name, seconds in starts.items() if seconds}
    stock, stock_start = pulls.get("containerd"), begins.get("containerd")
    for name, took in pulls.items():
        less = stock.wall / took.wall if stock and name != "containerd" else None
        slower = begins[name] / stock_start if stock_start and name in begins and name != "containerd" else None
        bar = BARS.get(name)
        verdict = "" if less is None or not bar else f"{bar}: {'met' if less >= bar else 'MISSED'}"
        begun = f"{begins[name] * 1000:.0f}" if name in begins else ""
        slow = "" if slower is None else f"{slower:.2f}: {'met' if slower <= EQUAL else 'MISSED'}"
        times = "" if less is None else f"{less:.2f}"
        print(f"| {image} | {kind} | {name} | {took.wall:.3f} | {took.cpu:.2f} | {took.peak:.0f} | {took.disk:.0f} | {times} | {verdict} | {begun} | {slow} |", flush=True)
        keep("beneath", image=image, fs=kind, who=name, median=vars(took), times_less=less, start_s=begins.get(name), start_ratio=slower,
             runs=[vars(one) for one in rows[name]], starts=starts.get(name))


def main():
    every = {peer.name: peer for peer in (Stock, Remote, Differ)}
    args = arguments(__doc__, list(every), starts={"type": int, "default": 5, "help": "containers started after each pull [5]"})
    unknown = [name for name in args.peer if name not in every]
    if unknown:
        raise SystemExit(f"no peer is called {', '.join(unknown)}: {', '.join(every)}")
    able = []
    for peer in (every[name](args.orlop, args.bin) for name in args.peer):
        missing = peer.missing()
        print(f"{peer.name}: not run: {missing}", flush=True) if missing else able.append(peer)
    with workplace(args) as (work, registry, images):
        blobs = bounds.Blobs(work, registry)
        for kind in args.fs:
            head()
            for image in images:
                blobs.layers(image)
                name, starts = f"{registry.address}/{image}", {peer.name: [] for peer in able}

                def pull(peer, place, disk):
                    with peer.store(place, registry.address) as store:
                        took = with_disk(disk, lambda: store.pull(name))
                        starts[peer.name].append(statistics.median(store.start(name, n) for n in range(args.starts)))
                        return took
                show(image, kind, alternating(args, work, kind, able, pull), starts)


if __name__ == "__main__":
    main()
