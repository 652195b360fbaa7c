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

# append.sh: eight processes on three nodes append to one file.  Each record is
# there once, whole, and in the order in which its process wrote.
#
#	RECORDS=n	of each process; 10000 is thorough

. "$(dirname "$0")/../lib.sh"
RECORDS=${RECORDS:-1000}
export RECORDS
cluster_up 3

python3 -B "$TOP/regress/cluster/nodes.py" $((120 + RECORDS / 10)) <<'EOF' || fail "see above"
import random
import zlib

RECORDS = int(os.environ["RECORDS"])
PROCESSES = 8

# "process number length checksum payload", with the payload at times larger
# than a page and at times a few bytes; it holds no newline.
def record(i, k, rng):
    size = rng.choice([1, 30, 100, 300, 1000]) if k % 50 else rng.randrange(4000, 20_000)
    payload = bytes([33 + (i * 7 + k) % 90]) * size
    return b"%d %d %d %08x %s\n" % (i, k, size, zlib.crc32(b"%d %d " % (i, k) + payload), payload)

def appender(i):
    rng = random.Random(i)
    flags = os.O_WRONLY | os.O_APPEND
    fd = os.open(f"{MOUNTS[i % 3]}/log", flags)
    for k in range(RECORDS):
        data = record(i, k, rng)
        same(os.write(fd, data), len(data))
        if rng.random() < 0.01:
            os.close(fd)
            fd = os.open(f"{MOUNTS[i % 3]}/log", flags)
    os.close(fd)
    return True

put(f"{A}/log", b"")
everywhere("log")
processes(PROCESSES, appender)

total = None
for path in at("log"):
    data = get(path)
    if total is not None:
        check(data == total, f"{path}: not what node 1 has")
        continue
    total = data
    nexts = [0] * PROCESSES
    check(data.endswith(b"\n"), "the last record is cut")
    for n, line in enumerate(data.splitlines(True)):
        fields = line.rstrip(b"\n").split(b" ", 4)
        check(len(fields) == 5, f"line {n}: broken: {line[:100]!r}")
        i, k, size = map(int, fields[:3])
        same(len(fields[4]), size, f"line {n}: broken")
        check(int(fields[3], 16) == zlib.crc32(b"%d %d " % (i, k) + fields[4]), f"line {n}: checksum")
        same(k, nexts[i], f"line {n}: process {i}: lost, twice or out of order")
        nexts[i] += 1
    same(nexts, [RECORDS] * PROCESSES)
same({os.stat(path).st_size for path in at("log")}, {len(total)})
EOF
must_trees_equal .
