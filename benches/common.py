"""What the benchmarks beside other programs share: their arguments, a place to work, alternating runs, and how figures are shown."""
import argparse, contextlib, json, os, pathlib, shutil, signal, statistics, sys, tempfile

import disks, peers
from make_layout import IMAGES
from procs import Failed, Took, run
from registry import Registry

HERE = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE / "target")) / "release"
OUT = HERE / "target/bench"


def arguments(doc, default_peers, **more):
    args = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--registry", help="HOST:PORT of a registry that has the images [one that is started, with images made of this machine's files]")
    args.add_argument("--image", action="append", default=[], help="NAME:TAG in that registry; several")
    args.add_argument("--runs", type=int, default=5)
    args.add_argument("--fs", action="append", choices=disks.KINDS, help="file system to measure on; several [ext4 and tmpfs]")
    args.add_argument("--size", type=int, default=12, help="GiB of the file system [12]")
    args.add_argument("--peer", action="append", help=f"who is measured; several [{', '.join(default_peers)}]")
    args.add_argument("--orlop", type=pathlib.Path, default=TARGET / "orlop", help="the program [the release build]")
    args.add_argument("--bin", type=pathlib.Path, default=pathlib.Path.home() / "go/bin", help="where containerd, ctr and crictl 2.x are")
    args.add_argument("--work", type=pathlib.Path, help="directory for the file below ext4 and what is not measured [a temporary one]")
    for name, options in more.items():
        args.add_argument("--" + name.replace("_", "-"), **options)
    args = args.parse_args()
    if bool(args.registry) != bool(args.image):
        sys.exit("--registry and --image belong together: images of that registry are measured, by name")
    args.fs, args.peer = args.fs or disks.KINDS, args.peer or default_peers
    return args


@contextlib.contextmanager
def workplace(args, made_of=tuple(IMAGES)):
    """A directory that goes at the end, the registry, and the images in it."""
    OUT.mkdir(parents=True, exist_ok=True)
    # Whoever ends this leaves no mounts and no daemons behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    work = pathlib.Path(tempfile.mkdtemp(prefix="orlop-bench-", dir=args.work)).resolve()
    registry = None
    try:
        if "ext4" in args.fs:
            disks.check_room(work, args.size)
        registry = Registry(work, args.registry)
        yield work, registry, args.image or made(work, registry, made_of)
    finally:
        if registry:
            registry.stop()
        shutil.rmtree(work, ignore_errors=True)


def made(work, registry, names_of):
    """Images that make_layout.py makes, pushed. By another process, for this one's memory would count as the peak of those
    that it starts."""
    names = []
    for name in names_of:
        layout, image = work / f"layout-{name}", f"bench/{name}:made"
        run([sys.executable, HERE / "benches/make_layout.py", name, layout])
        run([*peers.SKOPEO, "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:latest", f"docker://{registry.address}/{image}"])
        shutil.rmtree(layout)
        names.append(image)
    return names


def chosen(args):
    """The peers that can run; of the others it is said why not."""
    able, unable = peers.of(args.peer, args.orlop, args.bin)
    for name, why in unable.items():
        print(f"{name}: not run: {why}", flush=True)
    return able


def alternating(args, work, kind, able, case):
    """`case(peer, place, disk)` for each peer in turn, each on a new file system; figures by peer. Who fails is not asked again."""
    rows = {peer.name: [] for peer in able}
    for _ in range(args.runs):
        for peer in [peer for peer in able if rows[peer.name] is not None]:
            with disks.new(kind, work, args.size) as disk:
                place = disk.at / "bench"
                place.mkdir()
                try:
                    rows[peer.name].append(case(peer, place, disk))
                except Failed as failed:
                    print(f"{peer.name}: not run: {failed}", flush=True)
                    rows[peer.name] = None
    return {name: runs for name, runs in rows.items() if runs}


def with_disk(disk, work):
    """What some work took, with what reached the disk until all of it had."""
    disk.sync()
    before = disk.written()
    took = work()
    disk.sync()
    took.disk = disk.written() - before
    return took


def median(runs):
    return Took(*(statistics.median(getattr(run, field) for run in runs) for field in ("wall", "cpu", "peak", "disk")))


def keep(script, **row):
    with open(OUT / f"{script}.jsonl", "a") as out:
        out.write(json.dumps(row) + "\n")


def show(script, case, kind, rows, bound=None):
    """Medians as rows of a Markdown table, with how many times Orlop's they are, and how many times what is possible."""
    medians = {name: median(runs) for name, runs in rows.items()}
    ours = medians.get("orlop")
    for name, took in medians.items():
        ratios = "" if not ours or name == "orlop" else f"{took.wall / ours.wall:.2f} / {took.cpu / max(ours.cpu, 1e-3):.2f}"
        floor = f"{took.wall / bound:.2f}" if bound else ""
        print(f"| {case} | {kind} | {name} | {took.wall:.3f} | {took.cpu:.2f} | {took.peak:.0f} | {took.disk:.0f} | {ratios} | {floor} |", flush=True)
        keep(script, case=case, fs=kind, who=name, median=vars(took), bound=bound, runs=[vars(run) for run in rows[name]])


def head():
    print("| case | file system | who | wall s | CPU s | peak MiB | disk MiB | wall / CPU in Orlop's | wall in bounds |\n|---|---|---|---|---|---|---|---|---|", flush=True)
