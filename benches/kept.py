#!/usr/bin/env python3
"""Counts the instructions of unpacking, listing, removing, collecting and parsing, and fails if one of them has risen.

Counted by callgrind, so that the machine's load makes no difference, of the debug build that tests use (crates/metadata/examples):
a figure says nothing of how fast it is, and a rise says that something is done more often or in more steps. benches/kept.json has
what each took, and by which compiler, valgrind, libraries and kind of processor: others count otherwise, so with others nothing is
compared. A change that costs more than LIMIT says so by writing the new figures (--write) in the same commit, whose message says
what they buy.
"""
import argparse, io, json, os, pathlib, platform, re, shutil, subprocess, sys, tarfile, tempfile, zlib

HERE = pathlib.Path(__file__).resolve().parent.parent
KEPT = HERE / "benches/kept.json"
EXAMPLES = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE / "target")) / "debug/examples"
LIMIT = 1.05
IMAGES = 300
SMALL_FILES, LARGE_FILES, LARGE_BYTES = 2000, 4, 1 << 20


def said(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def conditions():
    """What the counts depend on besides the source."""
    features = pathlib.Path("/proc/cpuinfo").read_text().split()
    return {"rustc": said("rustc", "--version"), "valgrind": said("valgrind", "--version"), "libc": " ".join(platform.libc_ver()),
            "zlib": zlib.ZLIB_RUNTIME_VERSION, "processor": f"{platform.machine()} {'avx2' if 'avx2' in features else 'plain'}"}


def layer(file):
    """Many small files in directories, links, and a few large ones; the same bytes each time."""
    with tarfile.open(file, "w:gz", compresslevel=6, format=tarfile.PAX_FORMAT) as tar:
        def add(name, data=None, **more):
            entry = tarfile.TarInfo(name)
            entry.mtime = 1_700_000_000
            for key, value in more.items():
                setattr(entry, key, value)
            entry.size = len(data or b"")
            tar.addfile(entry, io.BytesIO(data) if data else None)
        for n in range(SMALL_FILES):
            if n % 50 == 0:
                add(f"d{n // 50}", type=tarfile.DIRTYPE, mode=0o755)
            add(f"d{n // 50}/file-{n}", f"small file {n}\n".encode() * (n % 40 + 1))
        for n in range(0, SMALL_FILES, 20):
            add(f"d{n // 50}/link-{n}", type=tarfile.SYMTYPE, linkname=f"file-{n}")
            add(f"d{n // 50}/same-{n}", type=tarfile.LNKTYPE, linkname=f"d{n // 50}/file-{n}")
        for n in range(LARGE_FILES):
            add(f"large-{n}", b"".join(b"%08d line of a large file\n" % (i * 2654435761 % 99999999) for i in range(LARGE_BYTES // 32)))


def count(work, *words):
    """Instructions of one run of the example, all threads."""
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={work}/callgrind.out", EXAMPLES / "kept", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or not found:
        sys.exit(f"kept {' '.join(map(str, words))} failed under valgrind: {done.stderr[-3000:]}")
    return int(found.group(1))


def counts(work):
    layer(work / "layer.tar.gz")
    subprocess.run([EXAMPLES / "fill", work / "root", str(IMAGES)], check=True)
    for name in ("list", "remove", "collect"):
        shutil.copytree(work / "root", work / name, symlinks=True)
    (work / "tree").mkdir()
    return {"unpack": count(work, "unpack", work / "layer.tar.gz", work / "tree"), "parse": count(work, "parse"),
            **{name: count(work, name, work / name) for name in ("list", "remove", "collect")}}


def compare(kept, now):
    """Says how each differs; whether none has risen too much."""
    good = True
    for name, instructions in now.items():
        before = kept.get(name)
        change = instructions / before - 1 if before else float("inf")
        risen = change > LIMIT - 1
        print(f"{name:8} {instructions:>13,} instructions, kept {before or 0:>13,}: {change:+.2%}{'  RISEN' if risen else ''}", flush=True)
        good &= not risen
    return good


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--write", action="store_true", help="keep these figures from now on")
    args = args.parse_args()
    if not shutil.which("valgrind"):
        print("instructions: not counted, there is no valgrind")
        return
    here, kept = conditions(), json.loads(KEPT.read_text()) if KEPT.exists() else {"conditions": {}, "instructions": {}}
    if here != kept["conditions"] and not args.write:
        print(f"instructions: not counted, for the kept ones were counted with {kept['conditions']} and here is {here}; "
              "on the machine that integrates, count anew with benches/kept.py --write")
        return
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="orlop-kept-", dir=memory) as work:
        now = counts(pathlib.Path(work))
    if args.write:
        KEPT.write_text(json.dumps({"conditions": here, "instructions": now}, indent=1) + "\n")
    elif not compare(kept["instructions"], now):
        sys.exit(f"more than {LIMIT - 1:.0%} more instructions than before. If they are worth it: benches/kept.py --write, in the same "
                 "commit, which says what they buy")


if __name__ == "__main__":
    main()
