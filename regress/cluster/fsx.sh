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

# fsx.sh: random reads, writes, truncations and mappings of one file against a
# model of its contents: by the suite fsx, one file and one node at a time, and
# by a program of our own on two nodes in turn, with close and open between.
#
#	OPS=n		how many of them for each seed; 100000 is thorough
#	SEEDS="n ..."	what they are drawn by

. "$(dirname "$0")/../lib.sh"
OPS=${OPS:-2000}
SEEDS=${SEEDS:-"1 2 3 4"}
export OPS SEEDS
SUITE=$TOP/target/tools/bin/fsx
[ "$(uname -s)" = Linux ] || skip "the suite is for Linux"
[ -x "$SUITE" ] || fail "no fsx: sh regress/setup"
cluster_up 3

cat >"$CLUSTER/calls.toml" <<'EOF'
[weights]
close_open = 1
read = 10
write = 10
mapread = 0
mapwrite = 0
truncate = 4
fsync = 1
fdatasync = 1
sendfile = 2
posix_fadvise = 1
copy_file_range = 2
EOF
# Small pieces of a small file: the other ones are mostly larger than what is
# kept in the inode.
{
	echo "flen = 4000"
	echo "[opsize]"
	echo "max = 700"
	cat "$CLUSTER/calls.toml"
} >"$CLUSTER/small.toml"
sed -e 's/^mapread = 0/mapread = 10/' -e 's/^mapwrite = 0/mapwrite = 10/' \
    -e 's/^close_open/invalidate = 1\n&/' "$CLUSTER/calls.toml" \
    >"$CLUSTER/maps.toml"
# OpenBSD has neither.
if [ "$(uname -s)" = Linux ]; then
	for conf in calls maps; do
		printf 'posix_fallocate = 2\npunch_hole = 2\n' \
		    >>"$CLUSTER/$conf.toml"
	done
fi

# One file for each conf and seed, all at once, over the three nodes.
pids=
n=0
for conf in calls maps small; do
	for seed in $SEEDS; do
		n=$((n % 3 + 1))
		RUST_BACKTRACE=0 "$SUITE" -f "$CLUSTER/$conf.toml" -N "$OPS" \
		    -S "$seed" -P "$CLUSTER" "$(mnt $n)/$conf.$seed" \
		    >"$CLUSTER/fsx.$conf.$seed" 2>&1 &
		pids="$pids $!"
	done
done
bad=
for conf in calls maps small; do
	for seed in $SEEDS; do
		# shellcheck disable=SC2086
		set -- $pids
		pids=${pids#* $1}
		wait "$1" && continue
		bad="$bad $conf.$seed"
		tail -n 40 "$CLUSTER/fsx.$conf.$seed" >&2
	done
done
[ -z "$bad" ] || fail "fsx:$bad"
must_trees_equal .

python3 -B "$TOP/regress/cluster/nodes.py" $((120 + OPS / 20)) <<'EOF' || fail "two nodes in turn"
import random

ops = int(os.environ["OPS"])
seeds = [int(s) for s in os.environ["SEEDS"].split()]

class Turns:
    """One file; `want` is what is in it."""

    def __init__(self, seed, limit):
        self.random = random.Random(seed)
        self.limit = limit
        self.want = bytearray()
        self.done = []

    def range(self, end):
        at = self.random.randrange(end + 1)
        return at, self.random.randrange(min(end - at, 65536) + 1)

    def bytes(self, size):
        return self.random.randbytes(size)

    def compare(self, got, at, what):
        want = bytes(self.want[at:at + len(got)])
        if got == want:
            return
        bad = [i for i in range(len(got)) if i >= len(want) or got[i] != want[i]]
        raise AssertionError(f"{what}: {len(bad)} bytes of {len(got)} wrong, first at {at + bad[0]}, "
                             f"got {got[bad[0]:bad[0] + 8]!r}, want {want[bad[0]:bad[0] + 8]!r}; {self.done[-20:]}")

    def read(self, fd):
        at, size = self.range(self.limit)
        got = os.pread(fd, size, at)
        same(len(got), max(0, min(size, len(self.want) - at)), "read", at, size, self.done[-20:])
        self.compare(got, at, "read")

    def write(self, fd):
        at, size = self.range(self.limit)
        data = self.bytes(size)
        same(os.pwrite(fd, data, at), size)
        self.put(at, data)

    def put(self, at, data):
        if data:
            self.want.extend(bytes(max(0, at - len(self.want))))
            self.want[at:at + len(data)] = data

    def append(self, path):
        data = self.bytes(self.random.randrange(1, 2000))
        if len(self.want) + len(data) > self.limit:
            return
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        same(os.write(fd, data), len(data))
        os.close(fd)
        self.want += data

    def truncate(self, fd):
        size = self.random.randrange(self.limit + 1)
        os.ftruncate(fd, size)
        del self.want[size:]
        self.want.extend(bytes(size - len(self.want)))

    def mapped(self, fd, write):
        if not self.want:
            return
        at, size = self.range(len(self.want))
        if not size:
            return
        with mmap.mmap(fd, len(self.want)) as m:
            self.compare(m[at:at + size], at, "mapping")
            if write:
                data = self.bytes(size)
                m[at:at + size] = data
                if self.random.random() < 0.5:
                    m.flush()
                self.put(at, data)

    def size(self, fd):
        same(os.fstat(fd).st_size, len(self.want), "size", self.done[-20:])

    def turn(self, node, path, count):
        fd = os.open(path, os.O_RDWR)
        self.size(fd)
        for _ in range(count):
            what = self.random.choices(
                ["read", "write", "append", "truncate", "mapread", "mapwrite", "fsync", "size"],
                [10, 10, 2, 3, 5, 5, 1, 2])[0]
            self.done.append((node, what, len(self.want)))
            match what:
                case "append": self.append(path)
                case "mapread": self.mapped(fd, False)
                case "mapwrite": self.mapped(fd, True)
                case "fsync": os.fsync(fd)
                case _: getattr(self, what)(fd)
        os.close(fd)

# A file that grows out of its inode and one that is large, each on two of the
# nodes, and the same two for all of a seed.
def worker(i):
    seed, small = seeds[i // 2], i % 2
    t = Turns(seed * 2 + small, 3000 if small else 262_144)
    name = f"turns.{seed}.{small}"
    pair = [(i + k) % len(MOUNTS) for k in range(2)]
    put(f"{MOUNTS[pair[0]]}/{name}", b"")
    everywhere(name)
    left, k = ops, 0
    while left > 0:
        count = min(left, t.random.randrange(1, 12))
        t.turn(pair[k % 2], f"{MOUNTS[pair[k % 2]]}/{name}", count)
        left, k = left - count, k + 1
    for path in at(name):
        t.compare(get(path), 0, path)
        same(os.stat(path).st_size, len(t.want), path)
    return True
processes(2 * len(seeds), worker)
EOF
must_trees_equal .
