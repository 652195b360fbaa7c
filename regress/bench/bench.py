#!/usr/bin/env python3
# Copyright (c) 2026 The dfsd authors
#
# Permission to use, copy, modify, and distribute this software for any
# purpose with or without fee is hereby granted, provided that the above
# copyright notice and this permission notice appear in all copies.
#
# THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES
# WITH REGARD TO THIS SOFTWARE INCLUDING ALL IMPLIED WARRANTIES OF
# MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR
# ANY SPECIAL, DIRECT, INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES
# WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN
# ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF
# OR IN CONNECTION WITH THE USE OR PERFORMANCE OF THIS SOFTWARE.

"""bench.py count|rate|memory FILE: the measuring parts of run, on the cluster
in $CLUSTER; what is printed is added to the file as well."""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../cluster"))
from nodes import A, CLUSTER, MOUNTS, eventually, processes, put, there, write

FULL = os.environ.get("FULL") == "yes"
NODES = range(1, len(MOUNTS) + 1)
MIB = 1 << 20
BLOCK = random.Random(1).randbytes(MIB)


def figure(name, value, unit, bar=""):
    """A bar is as ">=200" or "<=2"."""
    said = ""
    if bar:
        limit = float(bar[2:])
        said = "PASS" if (value >= limit if bar.startswith(">=") else value <= limit) else "MISS"
    line = f"{name:<44} {digits(value):>10} {unit:<9} {bar:<9} {said}".rstrip()
    print(line, flush=True)
    with open(sys.argv[2], "a") as f:
        f.write(line + "\n")


def digits(value):
    """Three of them, or all before the point."""
    return f"{value:.0f}" if isinstance(value, int) or value >= 1000 else f"{value:.3g}"


def ask(node, *what):
    dfsctl = os.path.join(os.environ["BIN"], "dfsctl")
    out = subprocess.run([dfsctl, "-s", f"{CLUSTER}/n{node}/dfsd.sock", "-j", *what],
                         stdout=subprocess.PIPE, check=True)
    return json.loads(out.stdout)


def logs():
    return [ask(n, "show", "log") for n in NODES]


def since(before, key):
    """How much a counter of the log has moved, on each node."""
    return [now[key] - was[key] for was, now in zip(before, logs())]


def all_applied():
    last = max(log["last"] for log in logs())
    eventually(lambda: all(log["applied"] >= last for log in logs()))


# --- counted --------------------------------------------------------------

def device(node):
    """Bytes written to the node's own device, and its flushes."""
    with open(f"{CLUSTER}/loop.{node}") as f:
        name = f.read().strip()
    with open(f"/sys/block/{name}/stat") as f:
        fields = [int(field) for field in f.read().split()]
    return fields[6] * 512, fields[15]


def devices():
    return [device(n) for n in NODES]


def settled():
    """All applied, in a checkpoint, and nothing left to write."""
    all_applied()
    last = max(log["applied"] for log in logs())
    end = time.monotonic() + 90
    while any(log["checkpoint"] < last - 3 for log in logs()):
        if time.monotonic() > end:
            raise SystemExit("no checkpoint within 90 s")
        time.sleep(0.2)
    for n in NODES:
        subprocess.run(["sync", "-f", f"{CLUSTER}/n{n}/db"], check=True)


def fsync_writes(path, count, size=4096, offset=0):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    for k in range(count):
        os.pwrite(fd, BLOCK[:size], offset + k * size)
        os.fsync(fd)
    os.close(fd)


def flushes():
    writers, each = 64, 20
    os.mkdir(f"{A}/flush")
    files = [f"{A}/flush/{k}" for k in range(writers)]
    for path in files:
        put(path, BLOCK[:8192])
    all_applied()

    before, disks = logs(), devices()
    for path in files:
        fsync_writes(path, each)
    groups, serial = since(before, "groups"), since(before, "flushes")
    on_device = [now[1] - was[1] for was, now in zip(disks, devices())]
    ops = writers * each
    figure("flushes of the log per fsync, serial", max(serial) / ops, "", "<=1.1")
    figure("groups of entries per fsync, serial", max(groups) / ops, "")
    extra = max(f - g for f, g in zip(serial, groups)) / ops
    figure("flushes beyond one per group, per fsync", extra, "", "<=0.05")
    figure("flushes of the device per fsync, serial", max(on_device) / ops, "", "<=1.1")

    before, disks = logs(), devices()
    threads = [threading.Thread(target=fsync_writes, args=(path, each)) for path in files]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    at_once = since(before, "flushes")
    on_device = [now[1] - was[1] for was, now in zip(disks, devices())]
    figure("flushes of the log per fsync, 64 at once", max(at_once) / ops, "")
    figure("flushes of the device per fsync, 64 at once", max(on_device) / ops, "")
    figure("64 at once to 64 serial ones", max(at_once) / max(serial), "", "<=0.125")


def sequential(path, mib):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    for _ in range(mib):
        write(fd, BLOCK)
    os.fsync(fd)
    os.close(fd)


def amplification(name, bar, user_bytes, work):
    settled()
    before = devices()
    work()
    settled()
    written = [now[0] - was[0] for was, now in zip(before, devices())]
    figure(name, max(written) / user_bytes, "", bar)


def count():
    flushes()
    mib = 256
    # Segments are new at first, and are written with zeros once.
    amplification("device bytes per byte, 1 MiB, new segments", "", mib * MIB,
                  lambda: sequential(f"{A}/seq.0", mib))
    amplification("device bytes per byte, 1 MiB writes", "<=2.3", mib * MIB,
                  lambda: sequential(f"{A}/seq.1", mib))
    os.unlink(f"{A}/seq.0")
    os.unlink(f"{A}/seq.1")
    count_4k = 8000 if FULL else 4000
    amplification("device bytes per byte, 4 KiB with fsync", "<=4", count_4k * 4096,
                  lambda: fsync_writes(f"{A}/seq.4k", count_4k))


# --- rates ----------------------------------------------------------------

def timed(work):
    start = time.perf_counter()
    done = work()
    return done / (time.perf_counter() - start)


def fresh(root, name):
    path = os.path.join(root, name)
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    return path


def create(count, workers, sync):
    def work(root):
        d = fresh(root, "create")
        for w in range(workers):
            os.mkdir(f"{d}/{w}")

        def worker(w):
            for k in range(count // workers):
                fd = os.open(f"{d}/{w}/{k}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                os.write(fd, BLOCK[:1024])
                if sync:
                    os.fsync(fd)
                os.close(fd)
            return True

        def all_of_them():
            processes(workers, worker)
            return count
        rate = timed(all_of_them)
        shutil.rmtree(d)
        return rate
    return work


def sequential_rate(mib):
    def work(root):
        path = f"{root}/seq"

        def all_of_it():
            sequential(path, mib)
            return mib
        rate = timed(all_of_it)
        os.unlink(path)
        return rate
    return work


def read_warm(root):
    path = f"{root}/warm"
    if not there(path):
        sequential(path, 256)
    buffer = bytearray(MIB)

    def once():
        total = 0
        fd = os.open(path, os.O_RDONLY)
        while n := os.readv(fd, [buffer]):
            total += n
        os.close(fd)
        return total / MIB
    once()
    return timed(lambda: sum(once() for _ in range(4)))


STATS = 2000


def stat_files(root):
    d = f"{root}/stat"
    if not there(d):
        os.mkdir(d)
        for k in range(STATS):
            os.close(os.open(f"{d}/{k}", os.O_WRONLY | os.O_CREAT, 0o644))
    return [f"{d}/{k}" for k in range(STATS)]


def stat_warm(root):
    names = stat_files(root)
    for name in names:
        os.stat(name)

    def stats():
        for _ in range(5):
            for name in names:
                os.stat(name)
        return 5 * len(names)
    return timed(stats)


def make_tar(path, files=3000):
    rng = random.Random(3)
    src = f"{CLUSTER}/tar"
    for k in range(files):
        d = f"{src}/{k % 30:02d}/{k // 30 % 10}"
        os.makedirs(d, exist_ok=True)
        with open(f"{d}/{k}", "wb") as f:
            f.write(BLOCK[:rng.randrange(16000)])
    with tarfile.open(path, "w") as tar:
        tar.add(src, "src")
    shutil.rmtree(src)


def untar(root):
    d = fresh(root, "untar")
    start = time.perf_counter()
    subprocess.run(["tar", "xf", f"{CLUSTER}/src.tar", "-C", d], check=True)
    return time.perf_counter() - start


def remove_tree(root):
    start = time.perf_counter()
    subprocess.run(["rm", "-rf", f"{root}/untar"], check=True)
    return time.perf_counter() - start


def compare(name, unit, work, bar="", ratio_bar="", reps=3):
    """The local directory and the mount in turn; medians, and the median of
    the quotients."""
    local, mount = [], []
    for _ in range(reps):
        local.append(work(f"{CLUSTER}/ref"))
        mount.append(work(A))
    here = statistics.median(mount)
    figure(name, here, unit, bar)
    ratio = statistics.median(m / r for m, r in zip(mount, local))
    figure("    to local: " + f"{digits(statistics.median(local))} {unit}", ratio, "", ratio_bar)


def fused_pid():
    with open(f"{CLUSTER}/n1/procs") as f:
        return [int(line.split()[1]) for line in f if line.startswith("fused ")][-1]


def reads_of(pid):
    with open(f"/proc/{pid}/io") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("syscr"))


def upcalls():
    """fused reads its requests with read(2), and all else with recvmsg(2)."""
    names = stat_files(A)
    for name in names:
        os.stat(name)
    before = reads_of(fused_pid())
    for _ in range(5):
        for name in names:
            os.stat(name)
    figure(f"upcalls of {5 * len(names)} cached stats", reads_of(fused_pid()) - before, "", "<=10")


def rate():
    make_tar(f"{CLUSTER}/src.tar")
    compare("create 1 KiB, 1 process", "files/s", create(1000, 1, False))
    compare("create 1 KiB and fsync, 1 process", "files/s", create(1000, 1, True), ">=700")
    compare("create 1 KiB and fsync, 8 processes", "files/s", create(4000, 8, True), ">=2500")
    compare("sequential write, 1 MiB, fsync", "MiB/s", sequential_rate(256), ">=200")
    compare("sequential read, warm", "MiB/s", read_warm, ratio_bar=">=0.70")
    compare("stat, warm", "stats/s", stat_warm, ratio_bar=">=0.95")
    upcalls()
    before = logs()
    compare("untar of 3000 files", "s", untar, "<=4", reps=1)
    figure("    entries of the log per file", max(since(before, "last")) / 3000, "")
    figure("    groups of entries per file", max(since(before, "groups")) / 3000, "")
    compare("rm -r of 3000 files", "s", remove_tree, reps=1)


# --- memory ---------------------------------------------------------------

def status_kib(pid, key):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(key + ":"))


def pss_kib(pid):
    with open(f"/proc/{pid}/smaps_rollup") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("Pss:"))


def memory():
    gib, files = (4, 100_000) if FULL else (0.5, 10_000)
    with open(f"{CLUSTER}/pids") as f:
        daemons = [(name, int(pid)) for name, pid in (line.split() for line in f)]
    os.mkdir(f"{A}/mem")

    def write_files(i):
        d = f"{MOUNTS[i % len(MOUNTS)]}/mem/{i}"
        eventually(lambda: there(os.path.dirname(d)))
        os.mkdir(d)
        for k in range(i, files, 8):
            fd = os.open(f"{d}/{k}", os.O_WRONLY | os.O_CREAT, 0o644)
            os.write(fd, BLOCK[:1024])
            os.close(fd)
        return True
    start = time.monotonic()
    for k in range(8):
        sequential(f"{A}/mem/seq.{k}", int(gib * 1024 / 8))
    middle = time.monotonic()
    processes(8, write_files)
    end = time.monotonic()
    figure(f"{gib} GiB, sequential", gib * 1024 / (middle - start), "MiB/s")
    figure(f"{files} files of 1 KiB, 8 processes, 3 nodes", files / (end - middle), "files/s")
    all_applied()
    for kind, bar in (("raftd", "<=100"), ("fused", "<=64")):
        pids = [pid for name, pid in daemons if name == kind]
        figure(f"memory of {kind}, the largest",
               max(status_kib(pid, "VmRSS") for pid in pids) / 1024, "MiB", bar)
        figure("    without mapped files", max(status_kib(pid, "RssAnon") for pid in pids) / 1024, "MiB")
        figure("    at its highest", max(status_kib(pid, "VmHWM") for pid in pids) / 1024, "MiB")
    figure("all daemons of all nodes together", sum(pss_kib(pid) for _, pid in daemons) / 1024, "MiB", "<=200")


if __name__ == "__main__":
    {"count": count, "rate": rate, "memory": memory}[sys.argv[1]]()
