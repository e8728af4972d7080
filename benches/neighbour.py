#!/usr/bin/env python3
"""Appends 4 KiB to a file and syncs it, a little after the last time, as etcd's log might, until its input ends; then prints
how many milliseconds each sync took."""
import os, select, sys, time

PAUSE = 0.01


def main(path):
    took = []
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    while not select.select([0], [], [], PAUSE)[0]:
        os.write(fd, bytes(4096))
        start = time.perf_counter()
        os.fsync(fd)
        took.append((time.perf_counter() - start) * 1000)
    print(*(f"{ms:.3f}" for ms in took))


if __name__ == "__main__":
    main(sys.argv[1])
