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

# names.sh: names and paths as long as they can be, and one byte longer; a
# directory of very many entries, listed completely and alike on all nodes.
#
#	ENTRIES=number	how many (100000)

. "$(dirname "$0")/../lib.sh"
ENTRIES=${ENTRIES:-100000}
export ENTRIES
cluster_up 3

python3 -B "$TOP/regress/cluster/nodes.py" 60 <<'EOF' || fail "long names"
name = "n" * 255
put(f"{A}/{name}", b"name")
everywhere(name)
for path in at(name):
    same(get(path), b"name")
os.rename(f"{B}/{name}", f"{B}/{'m' * 255}")
os.symlink("x", f"{C}/{'s' * 255}")
os.mkdir(f"{C}/{'d' * 255}")
everywhere("d" * 255)
for mount in MOUNTS:
    long = f"{mount}/{'x' * 256}"
    fails(errno.ENAMETOOLONG, os.open, long, os.O_WRONLY | os.O_CREAT)
    fails(errno.ENAMETOOLONG, os.mkdir, long)
    fails(errno.ENAMETOOLONG, os.symlink, "x", long)
    fails(errno.ENAMETOOLONG, os.mkfifo, long)
    fails(errno.ENAMETOOLONG, os.stat, long)
    fails(errno.ENAMETOOLONG, os.rename, f"{mount}/{'m' * 255}", long)
    fails(errno.ENAMETOOLONG, os.link, f"{mount}/{'m' * 255}", long)
    same(sorted(os.listdir(mount)), ["d" * 255, "m" * 255, "s" * 255])

# A path of 4095 bytes is the longest that a system call takes; deeper ones
# are reached step by step.
base = max(len(os.fsencode(m)) for m in MOUNTS)
depth = (4095 - base - 2) // 201
rest = 4095 - base - depth * 201 - 1
parts = ["p" * 200] * depth
for mount in MOUNTS[:1]:
    for k in range(depth):
        os.mkdir("/".join([mount] + parts[:k + 1]))
path = "/".join(parts + ["f" * rest])
same(len(A) + 1 + len(path), 4095)
put(f"{A}/{path}", b"deep")
everywhere(path)
for there_too in at(path):
    same(get(there_too), b"deep")
fails(errno.ENAMETOOLONG, os.open, f"{A}/{path}f", os.O_WRONLY | os.O_CREAT)
fd = os.open("/".join([A] + parts), os.O_RDONLY)
for k in range(30):
    os.mkdir("deeper", dir_fd=fd)
    fd, old = os.open("deeper", os.O_RDONLY, dir_fd=fd), fd
    os.close(old)
os.mkdir("end", dir_fd=fd)
same(os.listdir(fd), ["end"])
os.close(fd)
EOF

# The limit of this part is that of the slowest machine.
python3 -B "$TOP/regress/cluster/nodes.py" 900 <<'EOF' || fail "many entries"
count = int(os.environ["ENTRIES"])
# The kernel takes one name at a time into a directory of a mount.
workers = 6
os.mkdir(f"{A}/many")
everywhere("many")
name = lambda k: f"entry.{k:06d}"
start = time.monotonic()
def maker(i):
    for k in range(i, count, workers):
        os.mknod(f"{MOUNTS[k % 3]}/many/{name(k)}", stat.S_IFREG | 0o644)
    return True
processes(workers, maker)
took = time.monotonic() - start
print(f"{count} entries made in {took:.1f} s, {count / took:.0f} a second")

want = [name(k) for k in range(count)]
for path in at("many"):
    eventually(lambda: len(os.listdir(path)) == count, path)
    same(sorted(os.listdir(path)), want, path)
    # Each can be found again, and one that is not there is not.
    for k in range(0, count, 997):
        check(stat.S_ISREG(os.stat(f"{path}/{name(k)}").st_mode))
    fails(errno.ENOENT, os.stat, f"{path}/{name(count)}")
    fails(errno.ENOTEMPTY, os.rmdir, path)
inodes = [{e.name: e.inode() for e in os.scandir(path)} for path in at("many")]
same(len(set(inodes[0].values())), count)
check(inodes[0] == inodes[1] == inodes[2], "inode numbers differ between nodes")

# Removed while it is being read, as rm -r does: what is left is not skipped.
some = min(count // 4, 3000)
os.mkdir(f"{B}/some")
def mover(i):
    for k in range(i, some, 8):
        os.rename(f"{B}/many/{name(k)}", f"{B}/some/{name(k)}")
    return True
processes(8, mover)
seen = 0
with os.scandir(f"{B}/some") as entries:
    for entry in entries:
        os.unlink(entry.path)
        seen += 1
same(seen, some)
os.rmdir(f"{B}/some")
nowhere("some")
for path in at("many"):
    eventually(lambda: len(os.listdir(path)) == count - some, path)
same(sorted(os.listdir(f"{C}/many")), want[some:])
EOF
