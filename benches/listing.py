#!/usr/bin/env python3
"""A large store: opening it, and listing its records with sizes, from a cold process.

Fills a root on tmpfs once (target/bench/store-N keeps it on disk instead with --disk) and runs the release binary.
"""
import argparse, json, os, pathlib, shutil, statistics, subprocess, sys, tempfile, time

HERE = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE / "target")) / "release"


def wall(command):
    """Seconds and peak memory in MiB of one process; it must succeed."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    if status != 0:
        sys.exit(f"{command} failed: {status}")
    return seconds, usage.ru_maxrss / 1024


def drop_caches():
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--images", type=int, default=10_000)
    args.add_argument("--runs", type=int, default=9)
    args.add_argument("--disk", action="store_true", help="fill on disk, and drop the page cache before each run")
    args = args.parse_args()
    out = HERE / "target/bench"
    out.mkdir(parents=True, exist_ok=True)
    base = out if args.disk else pathlib.Path("/dev/shm")
    root = pathlib.Path(tempfile.mkdtemp(prefix="orlop-bench-", dir=base))
    try:
        start = time.perf_counter()
        subprocess.run([TARGET / "examples/fill", root, str(args.images)], check=True)
        print(f"filled {args.images} images in {time.perf_counter() - start:.1f} s")
        orlop = [str(TARGET / "orlop"), "--root", str(root), "-q"]
        cases = {
            "start (orlop --version)": [str(TARGET / "orlop"), "--version"],
            "open (one namespace listed)": orlop + ["namespaces", "ls"],
            "records with sizes (images --all -o json)": orlop + ["images", "--all", "-o", "json"],
            "records with sizes (images --all)": orlop + ["images", "--all"],
            "images with sizes (images)": orlop + ["images"],
        }
        for name, command in cases.items():
            runs = []
            for _ in range(args.runs):
                if args.disk:
                    drop_caches()
                runs.append(wall(command))
            seconds = [r[0] for r in runs]
            row = {"case": name, "images": args.images, "median_s": round(statistics.median(seconds), 4),
                   "min_s": round(min(seconds), 4), "peak_mib": round(max(r[1] for r in runs), 1)}
            print(f"{name:45} median {row['median_s']*1000:7.1f} ms  min {row['min_s']*1000:7.1f} ms  peak {row['peak_mib']} MiB")
            with open(out / "listing.jsonl", "a") as f:
                f.write(json.dumps(row) + "\n")
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
