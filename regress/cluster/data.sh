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

# data.sh: room and holes, copies, times of access, maps and special files, as
# all nodes see them; and a node that is killed while holes are made.

. "$(dirname "$0")/../lib.sh"
[ "$(uname -s)" = Linux ] || skip "OpenBSD's kernel asks for none of this"
cluster_up 3 -o "nodev no" -o "nosuid no"

python3 -B "$TOP/regress/cluster/nodes.py" 120 <<'EOP' || fail "room and holes"
KEEP, PUNCH, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 2, 8, 0x10, 0x20, 0x40
BLOCK = 4096
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
def fallocate(fd, mode, offset, length):
    if libc.fallocate(fd, mode, offset, length):
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))

def blocks(path):
    """What is taken, the same on all nodes at once."""
    eventually(lambda: len({os.stat(p).st_blocks for p in at(path)}) == 1, path)
    return os.stat(at(path)[0]).st_blocks * 512 // BLOCK

fd = os.open(f"{A}/f", os.O_RDWR | os.O_CREAT, 0o644)
# From the first request on no more is promised than the disks have.
free = os.statvfs(A).f_bavail
disk = os.statvfs(os.path.dirname(A))
check(free * BLOCK < disk.f_frsize * disk.f_bavail + (1 << 30), "a new cluster does not know its room")
fails(errno.ENOSPC, fallocate, fd, 0, 0, min(free * BLOCK * 2, 1 << 43))
same(os.fstat(fd).st_size, 0)
want = bytearray(os.urandom(20 * BLOCK))
write(fd, want)
os.fsync(fd)
same(blocks("f"), 20)
others = [os.open(p, os.O_RDONLY) for p in at("f")[1:]]
for other in others:
    # In the pages of that kernel from here on.
    same(os.pread(other, len(want), 0), bytes(want))
def everybody(what):
    same(os.pread(fd, len(want) + 1, 0), bytes(want), what)
    for other in others:
        eventually(lambda: os.pread(other, len(want) + 1, 0) == bytes(want), what)
def zeros(start, end):
    want[start:end] = bytes(end - start)

fallocate(fd, PUNCH | KEEP, BLOCK + 10, 3 * BLOCK)
zeros(BLOCK + 10, 4 * BLOCK + 10)
everybody("punch")
same(blocks("f"), 18)
fallocate(fd, ZERO, 10 * BLOCK - 1, 2 * BLOCK)
zeros(10 * BLOCK - 1, 12 * BLOCK - 1)
everybody("zero")
same(blocks("f"), 18)
fallocate(fd, ZERO | KEEP, 19 * BLOCK, 3 * BLOCK)
zeros(19 * BLOCK, 20 * BLOCK)
everybody("zero, and the size stays")
same(blocks("f"), 20)
fallocate(fd, 0, 0, 10)
fallocate(fd, 0, 25 * BLOCK, 5)
want.extend(bytes(5 * BLOCK + 5))
everybody("longer")
same(os.fstat(fd).st_size, 25 * BLOCK + 5)
same(blocks("f"), 21)
fallocate(fd, PUNCH | KEEP, 0, 1 << 40)
zeros(0, len(want))
everybody("all")
same(blocks("f"), 0)

def state():
    st = os.stat(f"{A}/f")
    return st.st_size, st.st_blocks, st.st_mtime_ns, st.st_ctime_ns
before = state()
for mode in (COLLAPSE, INSERT, UNSHARE, PUNCH, PUNCH | ZERO | KEEP, 0x1000):
    fails((errno.EOPNOTSUPP, errno.EINVAL), fallocate, fd, mode, 0, BLOCK)
fails(errno.EINVAL, fallocate, fd, 0, 0, 0)
fails(errno.EINVAL, fallocate, fd, 0, -1, 1)
fails(errno.EFBIG, fallocate, fd, KEEP, 1 << 43, 1)
fails(errno.EFBIG, fallocate, fd, 0, 2**63 - 1, 1)
fails(errno.EBADF, fallocate, others[0], 0, 0, 1)
directory = os.open(A, os.O_RDONLY)
fails((errno.EBADF, errno.EISDIR), fallocate, directory, 0, 0, 1)
same(state(), before)
fails(errno.ENOSPC, fallocate, fd, 0, 0, min(os.statvfs(A).f_bavail * BLOCK * 2, 1 << 43))
same(state(), before)
os.close(fd)

# Small files.
for path, size in (("s", 100), ("t", 1500)):
    put(f"{B}/{path}", b"x" * size)
    fd = os.open(f"{C}/{path}", os.O_RDWR)
    fallocate(fd, PUNCH | KEEP, 10, 20)
    fallocate(fd, 0, 0, 2000)
    os.close(fd)
    small = b"x" * 10 + bytes(20) + b"x" * (size - 30) + bytes(2000 - size)
    for p in at(path):
        eventually(lambda: get(p) == small, p)
    same(blocks(path), 1)

# What is found: data and holes, with what is not flushed yet.
TIB = 1 << 40
fd = os.open(f"{A}/holes", os.O_RDWR | os.O_CREAT, 0o644)
os.pwrite(fd, b"near", 3 * BLOCK)
os.pwrite(fd, b"far", 7 * TIB)
same(os.lseek(fd, 0, os.SEEK_DATA), 3 * BLOCK)
os.fsync(fd)
os.ftruncate(fd, 8 * TIB)
handles = [fd] + [os.open(p, os.O_RDONLY) for p in at("holes")[1:]]
for h in handles:
    for whence, offset, found in (
            (os.SEEK_DATA, 0, 3 * BLOCK), (os.SEEK_DATA, 3 * BLOCK + 5, 3 * BLOCK + 5),
            (os.SEEK_DATA, 4 * BLOCK, 7 * TIB), (os.SEEK_HOLE, 0, 0),
            (os.SEEK_HOLE, 3 * BLOCK, 4 * BLOCK), (os.SEEK_HOLE, 7 * TIB + 1, 7 * TIB + BLOCK),
            (os.SEEK_HOLE, 8 * TIB - 1, 8 * TIB - 1)):
        eventually(lambda: os.lseek(h, offset, whence) == found, h, whence, offset, found)
    for whence, offset in ((os.SEEK_DATA, 7 * TIB + BLOCK), (os.SEEK_DATA, 8 * TIB), (os.SEEK_HOLE, 8 * TIB),
                           (os.SEEK_DATA, 2**63 - 1)):
        fails(errno.ENXIO, os.lseek, h, offset, whence)
    os.close(h)
# Too much to read for those who compare the trees.
os.unlink(f"{A}/holes")
put(f"{B}/inline", b"x" * 100)
fd = os.open(f"{B}/inline", os.O_RDONLY)
same((os.lseek(fd, 50, os.SEEK_DATA), os.lseek(fd, 50, os.SEEK_HOLE)), (50, 100))
os.close(fd)
EOP

python3 -B "$TOP/regress/cluster/nodes.py" 120 <<'EOP' || fail "copies"
data = os.urandom(3_000_000)
put(f"{A}/from", data[:1_000_000])
fd = os.open(f"{A}/from", os.O_RDWR)
os.pwrite(fd, data[2_000_000:], 2_000_000)
whole = data[:1_000_000] + bytes(1_000_000) + data[2_000_000:]
def copy(source, target, count, at_source, at_target):
    done = 0
    while done < count:
        n = os.copy_file_range(source, target, count - done, at_source + done, at_target + done)
        check(n > 0, "the end")
        done += n
# Between two files, what is not flushed among it.
to = os.open(f"{A}/to", os.O_RDWR | os.O_CREAT, 0o644)
copy(fd, to, len(whole), 0, 0)
os.fsync(to)
for p in at("to"):
    check(get(p) == whole, p, "differs")
same(os.copy_file_range(fd, to, 10, len(whole), 0), 0)
# Within one.
copy(fd, fd, 500_000, 100, 1_200_001)
whole = whole[:1_200_001] + whole[100:500_100] + whole[1_700_001:]
os.fsync(fd)
for p in at("from"):
    eventually(lambda: get(p) == whole, p)
fails(errno.EINVAL, os.copy_file_range, fd, fd, 100, 0, 50)
os.close(fd)
os.close(to)

# What is refused: no file without a name, and no name that stands for none.
fails(errno.EOPNOTSUPP, os.open, A, os.O_TMPFILE | os.O_RDWR, 0o600)
put(f"{A}/white", b"w")
fails(errno.EINVAL, renameat2, f"{A}/white", f"{A}/out", 4)
check(there(f"{A}/white") and not there(f"{A}/out"))
EOP

python3 -B "$TOP/regress/cluster/nodes.py" 120 <<'EOP' || fail "times of access"
def atime(path):
    return os.stat(path).st_atime_ns
def moves(path, before):
    """On all nodes, and nothing else does."""
    eventually(lambda: len({atime(p) for p in at(path)}) == 1 and atime(at(path)[0]) > before.st_atime_ns, path)
    now = os.stat(at(path)[0])
    same((now.st_mtime_ns, now.st_ctime_ns), (before.st_mtime_ns, before.st_ctime_ns), path)
    check(now.st_atime_ns > now.st_mtime_ns)
    return now

# Written and read on one node, out of its pages; then read on another.
put(f"{A}/a", b"text" * 1000)
get(f"{A}/a")
now = moves("a", os.stat(f"{A}/a"))
get(f"{B}/a")
put(f"{A}/b", b"x" * 10)
put(f"{A}/a", b"more", os.O_TRUNC)
before = os.stat(f"{A}/a")
get(f"{C}/a")
moves("a", before)
# Directories and symbolic links.
os.mkdir(f"{A}/dir")
put(f"{A}/dir/x", b"")
os.symlink("x", f"{A}/dir/link")
before = os.stat(f"{A}/dir")
everywhere("dir", "link")
os.listdir(f"{B}/dir")
moves("dir", before)
before = os.lstat(f"{A}/dir/link").st_atime_ns
os.readlink(f"{C}/dir/link")
eventually(lambda: os.lstat(f"{A}/dir/link").st_atime_ns > before)

# What was set counts, also over a read before it, and exactly.
put(f"{A}/set", b"text")
for k in range(3):
    get(f"{A}/set")
    os.utime(f"{A}/set", ns=(1_000_000_000_000_000_001 + k, 1_500_000_000_123_456_789))
put(f"{A}/mark", b"text")
mark = os.stat(f"{A}/mark")
get(f"{A}/mark")
# Entries are in order: what was read before has been judged by now.
moves("mark", mark)
for p in at("set"):
    eventually(lambda: os.stat(p).st_atime_ns == 1_000_000_000_000_000_003, p, atime(p))
    same(os.stat(p).st_mtime_ns, 1_500_000_000_123_456_789)
libc.utimensat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int]
NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2
def utimens(path, a, m):
    times = (ctypes.c_long * 4)(*a, *m)
    same(libc.utimensat(AT_FDCWD, os.fsencode(path), times, 0), 0)
utimens(f"{B}/set", (5, 7), (0, OMIT))
st = os.stat(f"{B}/set")
same((st.st_atime_ns, st.st_mtime_ns), (5_000_000_007, 1_500_000_000_123_456_789))
utimens(f"{B}/set", (0, OMIT), (-3, 999_999_999))
st = os.stat(f"{B}/set")
same((st.st_atime_ns, st.st_mtime_ns), (5_000_000_007, -2_000_000_001))
utimens(f"{B}/set", (0, NOW), (0, OMIT))
check(abs(os.stat(f"{B}/set").st_atime - time.time()) < 60)
same(os.stat(f"{B}/set").st_mtime_ns, -2_000_000_001)
EOP

# A day's reads are one entry: reading again and again adds nothing.
head -c 100000 /dev/zero >"$(mnt 1)/often"
cat "$(mnt 1)/often" >/dev/null
applied() { dfsctl 1 status | sed -n '1s/.*applied \([0-9]*\).*/\1/p'; }
steady() {
	steady_was=$(applied)
	sleep 4
	[ "$(applied)" = "$steady_was" ]
}
must_within "$LIMIT" steady
was=$(applied)
for i in 1 2 3 4 5 6; do
	cat "$(mnt 1)/often" "$(mnt 2)/often" >/dev/null
	ls "$(mnt 1)" "$(mnt 3)" >/dev/null
done
must_within "$LIMIT" steady
get=$(($(applied) - was))
# For what the other nodes have read, and what a node tells of its disk.
[ "$get" -le 8 ] || fail "$get entries for what was read again and again"

python3 -B "$TOP/regress/cluster/nodes.py" 120 <<'EOP' || fail "maps"
page = mmap.PAGESIZE
put(f"{A}/map", bytes(4 * page))
fds = [os.open(p, os.O_RDWR) for p in at("map")]
maps = [mmap.mmap(fd, 4 * page) for fd in fds]
for m in maps:
    same(m[0], 0)
# msync reaches the cluster, and the maps of the other nodes.
maps[0][10:15] = b"first"
maps[0].flush()
for m in maps:
    eventually(lambda: m[10:15] == b"first")
same(get(f"{B}/map")[10:15], b"first")
# write(2) reaches maps; a map of one page leaves another's alone.
os.pwrite(fds[1], b"second", page)
os.fsync(fds[1])
for m in maps:
    eventually(lambda: m[page:page + 6] == b"second")
maps[1][2 * page:2 * page + 5] = b"third"
maps[2][3 * page:3 * page + 6] = b"fourth"
maps[1].flush()
maps[2].flush()
for m in maps:
    eventually(lambda: (m[2 * page:2 * page + 5], m[3 * page:3 * page + 6]) == (b"third", b"fourth"))
# munmap and close do as msync.
maps[0][20:24] = b"last"
maps[0].close()
os.close(fds[0])
same(get(f"{C}/map")[20:24], b"last")
eventually(lambda: maps[2][20:24] == b"last")
# A hole under a map, here and elsewhere.
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
same(libc.fallocate(fds[1], 3, 0, page), 0)
same(maps[1][0:page], bytes(page))
eventually(lambda: maps[2][0:page] == bytes(page))
# What is mapped is longer on another node.
os.ftruncate(fds[2], 5 * page)
eventually(lambda: os.stat(f"{B}/map").st_size == 5 * page)
longer = mmap.mmap(fds[1], 5 * page)
longer[4 * page] = 7
longer.flush()
same(get(f"{A}/map")[4 * page], 7)

# A handle of O_APPEND maps as others do.
put(f"{A}/log", b"one\n" + bytes(page - 4))
fd = os.open(f"{A}/log", os.O_RDWR | os.O_APPEND)
m = mmap.mmap(fd, page)
same(m[0:4], b"one\n")
m[0:4] = b"two\n"
m.flush()
os.write(fd, b"end")
os.fsync(fd)
same(get(f"{B}/log"), b"two\n" + bytes(page - 4) + b"end")

# A program that is killed after its msync.
r, w = os.pipe()
pid = os.fork()
if pid == 0:
    fd = os.open(f"{C}/map", os.O_RDWR)
    m = mmap.mmap(fd, page)
    m[100:106] = b"synced"
    m.flush()
    os.write(w, b"x")
    signal.pause()
os.read(r, 1)
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
for p in at("map"):
    same(get(p)[100:106], b"synced", p)
EOP

python3 -B "$TOP/regress/cluster/nodes.py" 120 <<'EOP' || fail "special files"
import socket
import subprocess
os.mkfifo(f"{A}/fifo", 0o666)
everywhere("fifo")
for p in at("fifo"):
    check(stat.S_ISFIFO(os.stat(p).st_mode), p)
def ends(path):
    r = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    return r, os.open(path, os.O_WRONLY)
# Each node has a pipe of its own.
(r1, w1), (r2, w2) = ends(f"{A}/fifo"), ends(f"{B}/fifo")
os.write(w1, b"on A")
os.write(w2, b"on B")
same((os.read(r1, 100), os.read(r2, 100)), (b"on A", b"on B"))
for fd in (r1, w1, r2, w2):
    os.close(fd)

server = socket.socket(socket.AF_UNIX)
os.chdir(A)
server.bind("sock")
server.listen()
client = socket.socket(socket.AF_UNIX)
client.connect("sock")
peer, _ = server.accept()
client.send(b"hello")
same(peer.recv(10), b"hello")
everywhere("sock")
check(stat.S_ISSOCK(os.stat(f"{B}/sock").st_mode))
os.chdir(B)
fails(errno.ECONNREFUSED, socket.socket(socket.AF_UNIX).connect, "sock")
os.chdir("/")

os.mknod(f"{A}/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
everywhere("null")
for p in at("null"):
    same(os.stat(p).st_rdev, os.makedev(1, 3))
    fd = os.open(p, os.O_RDWR)
    same((os.write(fd, b"gone"), os.read(fd, 10)), (4, b""))
    os.close(fd)
EOP

# set-user-ID, where the mount says so.
cp "$(command -v id)" "$(mnt 1)/id" && chmod 4755 "$(mnt 1)/id" || fail "cp"
must_within "$LIMIT" test -u "$(mnt 2)/id"
as_user() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
[ "$(as_user "$(mnt 2)/id" -un)" = root ] || fail "suid is not honoured"

# Nodes are killed while holes are made; afterwards all is alike.
for victim in 1 2 3; do
	rest=$(others "$victim")
	node=${rest%%[!0-9]*}
	python3 -B - "$(mnt "$node")/stream" <<'EOP' &
import ctypes, os, random, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
path = sys.argv[1]
fds = [os.open(f"{path}.{k}", os.O_RDWR | os.O_CREAT, 0o644) for k in range(4)]
k = 0
while not os.path.exists(os.environ["CLUSTER"] + "/w.stop"):
    fd = random.choice(fds)
    offset, length = random.randrange(300000), random.randrange(1, 100000)
    if random.random() < 0.4:
        os.pwrite(fd, random.randbytes(length), offset)
    elif libc.fallocate(fd, random.choice((0, 1, 3, 3, 0x10, 0x11)), offset, length):
        e = ctypes.get_errno()
        sys.exit(f"fallocate: {os.strerror(e)}")
    k += 1
    if k % 64 == 0:
        os.truncate(f"{path}.{random.randrange(4)}", random.randrange(400000))
        with open(path + ".count", "w") as f:
            f.write(str(k))
EOP
	stream=$!
	count() { cat "$(mnt "$node")/stream.count" 2>/dev/null; }
	counts() { [ "$(count)" -ge "$1" ]; }
	must_within "$LIMIT" counts 256
	ctl kill "$victim" || fail "kill"
	at=$(count)
	must_within "$LIMIT" counts $((at + 256))
	ctl start "$victim" && ctl wait "$victim" || fail "start"
	at=$(count)
	must_within "$LIMIT" counts $((at + 128))
	: >"$CLUSTER/w.stop"
	wait "$stream" || fail "the stream on node $node"
	rm -f "$CLUSTER/w.stop" "$(mnt "$node")/stream.count"
	must_trees_equal .
	for n in $NODE_LIST; do
		(cd "$(mnt "$n")" && stat -c '%n %s %b' stream.*) \
		    >"$CLUSTER/blocks.$n"
		cmp "$CLUSTER/blocks.1" "$CLUSTER/blocks.$n" ||
		    fail "blocks differ"
	done
done
