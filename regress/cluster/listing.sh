#!/bin/sh
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

# listing.sh: a large directory that is listed in pieces while it changes: what
# is there all the time is shown once, wherever the listing goes on.
#
#	ENTRIES=number	how many (20000)

. "$(dirname "$0")/../lib.sh"
[ "$(uname -s)" = Linux ] || skip "getdents64 is Linux's"
ENTRIES=${ENTRIES:-20000}
export ENTRIES
cluster_up 3

python3 -B "$TOP/regress/cluster/nodes.py" $((300 + ENTRIES / 100)) <<'EOP' || fail "see above"
import random
import struct
count = int(os.environ["ENTRIES"])
workers = 12
GETDENTS64 = {"x86_64": 217, "aarch64": 61}[os.uname().machine]
name = lambda k: f"entry.{k:07d}"
os.mkdir(f"{A}/many")
everywhere("many")
start = time.monotonic()
def maker(i):
    for k in range(i, count, workers):
        os.mknod(f"{MOUNTS[k % 3]}/many/{name(k)}", stat.S_IFREG | 0o644)
    return True
processes(workers, maker)
took = time.monotonic() - start
print(f"{count} entries made in {took:.1f} s, {count / took:.0f} a second")

def getdents(fd, size):
    """Names, each with where to go on after it."""
    buf = ctypes.create_string_buffer(size)
    got = libc.syscall(GETDENTS64, fd, buf, size)
    check(got >= 0, os.strerror(ctypes.get_errno()))
    entries, at_byte = [], 0
    while at_byte < got:
        _, after, length, _ = struct.unpack_from("=QqHB", buf, at_byte)
        text = buf.raw[at_byte + 19:at_byte + length].split(b"\0", 1)[0]
        entries.append((text.decode(), after))
        at_byte += length
    return entries

def whole(fd, size, pause):
    entries = []
    while part := getdents(fd, size):
        entries += part
        if pause and len(entries) % 7 == 0:
            time.sleep(0.001)
    return entries

stop = f"{A}/stop"
steady = {name(k) for k in range(count)}
def changer(path, tag):
    """Names come, go and are replaced, all over the directory."""
    k = 0
    while not there(stop):
        put(f"{path}/{tag}.{k}", b"")
        if k >= 20:
            os.unlink(f"{path}/{tag}.{k - 20}")
        if k % 3 == 0:
            os.rename(f"{path}/{tag}.{k}", f"{path}/{tag}.{k - 1}" if k else f"{path}/{tag}.x")
            put(f"{path}/{tag}.{k}", b"")
        k += 1
    return True

def lister(path, seed):
    r = random.Random(seed)
    for turn in range(4):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        # A small buffer is asked for again many times.
        entries = whole(fd, r.choice((1024, 4096, 32768)), turn < 2)
        names = [n for n, _ in entries if n in steady]
        same(len(names), len(set(names)), path, "listed twice")
        same(len(names), count, path, "not all listed")
        # From anywhere on, once more.
        for _ in range(3):
            k = r.randrange(len(entries))
            rest = {n for n, _ in entries[k + 1:] if n in steady}
            os.lseek(fd, entries[k][1], os.SEEK_SET)
            again = [n for n, _ in whole(fd, 32768, False) if n in steady]
            same(len(again), len(set(again)), path, "listed twice after a seek")
            check(set(again) == rest, path, "another listing after a seek")
        os.close(fd)
    return True

def part(i):
    if i < 2:
        return changer(at("many")[i], f"c{i}")
    try:
        return lister(at("many")[i - 2], i)
    finally:
        os.close(os.open(f"{done}/{i}", os.O_CREAT))
        if len(os.listdir(done)) == 3:
            put(stop, b"")
done = os.environ["CLUSTER"] + "/done"
os.mkdir(done)
processes(5, part)
EOP

for n in $NODE_LIST; do
	raftd=$(ctl pids "$n" | awk '$1 == "raftd" { print $2 }')
	echo "node $n: raftd: $(awk '/VmRSS/ { print $2 }' /proc/"$raftd"/status) KiB"
done
