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

# coherence.sh: what the kernel of one node has cached gives way to what
# another node has done; what was closed is what the next open sees.

. "$(dirname "$0")/../lib.sh"
ROUNDS=${ROUNDS:-200}
export ROUNDS
cluster_up 3

python3 -B "$TOP/regress/cluster/nodes.py" 240 <<'EOF' || fail "see above"
rounds = int(os.environ["ROUNDS"])

# Written and closed here, opened and read there, with no delay; small and
# inline, then as large as needs a backing file, shorter and longer in turn.
put(f"{A}/x", b"")
everywhere("x")
for path in at("x"):
    get(path)
for k in range(rounds):
    data = b"%d " % k * (1 + k * 7919 % 1500)
    writer = MOUNTS[k % 3]
    fd = os.open(f"{writer}/x", os.O_WRONLY | os.O_TRUNC)
    write(fd, data)
    os.close(fd)
    for reader in MOUNTS:
        check(get(f"{reader}/x") == data, f"round {k}: {reader} has not what {writer} closed")
        same(os.stat(f"{reader}/x").st_size, len(data), f"round {k}", reader)

# One node writes all the time and the others only read: one of the three leads,
# and has nothing from the others to answer.
for writer in MOUNTS:
    for k in range(rounds // 2):
        data = b"%d of %s" % (k, writer.encode())
        put(f"{writer}/x", data, os.O_TRUNC)
        for reader in MOUNTS:
            same(get(f"{reader}/x"), data, f"round {k}", reader)
        put(f"{writer}/new.{k}", data)
        for reader in MOUNTS:
            same(get(f"{reader}/new.{k}"), data, f"round {k}", reader)
        os.unlink(f"{writer}/new.{k}")

# The same without O_TRUNC: only bytes change, neither size nor name.
size = 300_000
put(f"{A}/y", bytes(size))
everywhere("y")
for path in at("y"):
    check(get(path) == bytes(size))
want = bytearray(size)
for k in range(rounds):
    offset = k * 104_729 % (size - 10)
    fd = os.open(f"{MOUNTS[k % 3]}/y", os.O_RDWR)
    os.pwrite(fd, b"%010d" % k, offset)
    os.close(fd)
    want[offset:offset + 10] = b"%010d" % k
    check(get(f"{MOUNTS[(k + 1) % 3]}/y") == bytes(want), f"round {k}")

# A file that stays open and is read again after another node has synced: the
# cached pages are dropped, if a moment later.
fd = os.open(f"{B}/y", os.O_RDONLY)
os.pread(fd, 65536, 0)
put(f"{C}/y", b"fresh")
eventually(lambda: os.pread(fd, 5, 0) == b"fresh")
os.close(fd)

# Attributes.
for k in range(20):
    os.chmod(f"{A}/x", 0o600 + k)
    for path in at("x"):
        eventually(lambda: os.stat(path).st_mode & 0o777 == 0o600 + k, path)

# A name that was not there and is made elsewhere; one that was and is gone.
for k in range(20):
    maker, other = MOUNTS[k % 3], MOUNTS[(k + 1) % 3]
    for path in at(f"neg.{k}"):
        fails(errno.ENOENT, os.stat, path)
    put(f"{maker}/neg.{k}", b"now")
    for path in at(f"neg.{k}"):
        eventually(lambda: there(path), path)
        same(get(path), b"now")
    os.unlink(f"{other}/neg.{k}")
    for path in at(f"neg.{k}"):
        eventually(lambda: not there(path), path)
        fails(errno.ENOENT, os.open, path, os.O_RDONLY)

# O_CREAT over a cached "not there" opens what another node has made.
for path in at("made"):
    fails(errno.ENOENT, os.stat, path)
put(f"{A}/made", b"made by 1")
fd = os.open(f"{B}/made", os.O_RDONLY | os.O_CREAT)
same(os.pread(fd, 100, 0), b"made by 1")
os.close(fd)
fails(errno.EEXIST, os.open, f"{C}/made", os.O_WRONLY | os.O_CREAT | os.O_EXCL)

# A directory that was listed here changes there.
os.mkdir(f"{A}/dir")
everywhere("dir")
for k in range(20):
    for path in at("dir"):
        os.listdir(path)
    put(f"{MOUNTS[k % 3]}/dir/{k}", b"")
    for path in at("dir"):
        eventually(lambda: str(k) in os.listdir(path), path)

# Renamed over what another node has cached, and has open: who opens the name
# finds the new file at once, not the one that its kernel remembers.
for k in range(rounds):
    here, there_ = MOUNTS[k % 3], MOUNTS[(k + 1) % 3]
    get(f"{there_}/x")
    put(f"{here}/x.new", b"version %d" % k)
    os.rename(f"{here}/x.new", f"{here}/x")
    for reader in MOUNTS:
        same(get(f"{reader}/x"), b"version %d" % k, f"round {k}", reader)

# A directory moved away is not found under its old name.
for k in range(10):
    here, there_ = MOUNTS[k % 3], MOUNTS[(k + 1) % 3]
    get_old = f"{there_}/{'dir' if k % 2 == 0 else 'dir2'}/3"
    check(get(get_old) == b"")
    os.rename(*[f"{here}/{d}" for d in (("dir", "dir2") if k % 2 == 0 else ("dir2", "dir"))])
    eventually(lambda: not there(get_old), get_old)
    eventually(lambda: there(get_old.replace("dir2/", "dir/") if k % 2 else get_old.replace("dir/", "dir2/")))

# What grows at one node never shrinks at any, from one look to the next.  Two
# watchers at each node, for what one of them makes the kernel ask may be
# answered while the other one is told of a change.
STEPS, PIECE = 3 * rounds // 2, 100
os.makedirs(f"{A}/grow/names")
os.mkdir(f"{A}/grow/dirs")
put(f"{A}/grow/file", b"")
everywhere("grow", "file")

def grow():
    # Not each step is synced and not each closed: what this kernel still keeps
    # is larger than what has been agreed.
    fd = os.open(f"{B}/grow/file", os.O_WRONLY)
    for k in range(STEPS):
        os.pwrite(fd, bytes(PIECE), k * PIECE)
        if k % 4 == 1:
            os.fsync(fd)
        elif k % 4 == 3:
            os.close(fd)
            fd = os.open(f"{B}/grow/file", os.O_WRONLY)
        os.close(os.open(f"{B}/grow/names/{k}", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        os.mkdir(f"{B}/grow/dirs/{k}")
    os.close(fd)

def watch(mount):
    paths = [f"{mount}/grow/{name}" for name in ("file", "dirs", "names")]
    fds = [os.open(path, os.O_RDONLY) for path in paths]
    size, nlink, names, states = 0, 2, set(), set()
    end = time.monotonic() + LIMIT
    while (size, nlink, len(names)) != (STEPS * PIECE, 2 + STEPS, STEPS):
        check(time.monotonic() < end, "the last state is never seen", size, nlink, len(names))
        for file, dirs, listed in (*fds,), (*paths,):
            was, size = size, os.stat(file).st_size
            check(size >= was, f"{mount}: {file}: size {size} after {was}")
            was, nlink = nlink, os.stat(dirs).st_nlink
            check(nlink >= was, f"{mount}: {dirs}: nlink {nlink} after {was}")
            was, names = names, set(os.listdir(listed))
            check(names >= was, f"{mount}: {listed}: no longer has", was - names)
            states.add((size, nlink, len(names)))
            was, size = size, os.stat(file).st_size
            check(size >= was, f"{mount}: {file}: size {size} after {was}")
    print(f"{mount}: {len(states)} states of what grows")
    # Else nothing has been tested; the fewest are what a busy machine leaves.
    check(len(states) >= STEPS // 20, f"{mount}: only {len(states)} states seen")
    return True
processes(7, lambda i: grow() or True if i == 6 else watch(MOUNTS[i % 3]))

# Many processes at once: a counter that each increments under a lock made by
# link(2), which only one of them can have.
put(f"{A}/counter", b"0")
everywhere("counter")
def counter(i):
    mount = MOUNTS[i % 3]
    mine = f"{mount}/mine.{i}"
    put(mine, b"")
    for _ in range(12):
        while True:
            try:
                os.link(mine, f"{mount}/lock")
                break
            except FileExistsError:
                time.sleep(0.001)
        n = int(get(f"{mount}/counter"))
        fd = os.open(f"{mount}/counter", os.O_WRONLY | os.O_TRUNC)
        write(fd, b"%d" % (n + 1))
        os.close(fd)
        os.unlink(f"{mount}/lock")
    return True
processes(6, counter)
for path in at("counter"):
    same(get(path), b"72", path)
EOF

must_trees_equal .
