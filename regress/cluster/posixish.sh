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

# posixish.sh: what programs rely on, done on one node and seen on the others.

. "$(dirname "$0")/../lib.sh"
cluster_up 3

python3 -B "$TOP/regress/cluster/nodes.py" 120 <<'EOF' || fail "see above"
os.umask(0o022)

# --- directories
os.mkdir(f"{A}/d", 0o750)
everywhere("d")
for path in at("d"):
    same(stat.S_IMODE(os.stat(path).st_mode), 0o750)
fails(errno.EEXIST, os.mkdir, f"{B}/d")
put(f"{B}/d/x", b"x")
everywhere("d", "x")
for path in at("d"):
    fails(errno.ENOTEMPTY, os.rmdir, path)
fails(errno.ENOTDIR, os.rmdir, f"{C}/d/x")
fails((errno.EISDIR, errno.EPERM), os.unlink, f"{C}/d")
fails(errno.ENOTDIR, os.mkdir, f"{A}/d/x/y")
fails(errno.ENOENT, os.mkdir, f"{A}/none/y")
os.mkdir(f"{C}/d/sub")
for path in at("d"):
    eventually(lambda: os.stat(path).st_nlink == 3, path)
os.unlink(f"{C}/d/x")
os.rmdir(f"{C}/d/sub")
for path in at("d"):
    eventually(lambda: os.stat(path).st_nlink == 2 and not os.listdir(path), path)
os.rmdir(f"{A}/d")
nowhere("d")

# --- rename
os.mkdir(f"{A}/p")
os.mkdir(f"{A}/q")
put(f"{A}/p/one", b"one")
put(f"{A}/q/two", b"two")
everywhere("q", "two")
ino = os.stat(f"{B}/p/one").st_ino
os.rename(f"{B}/p/one", f"{B}/q/two")
nowhere("p", "one")
for path in at("q", "two"):
    same(get(path), b"one", path)
    same(os.stat(path).st_ino, ino, path)
fails(errno.ENOTEMPTY, os.rename, f"{A}/p", f"{A}/q")
fails(errno.ENOTDIR, os.rename, f"{A}/p", f"{A}/q/two")
fails(errno.EISDIR, os.rename, f"{A}/q/two", f"{A}/p")
fails(errno.EINVAL, os.rename, f"{A}/q", f"{A}/q/below")
fails(errno.ENOENT, os.rename, f"{A}/none", f"{A}/p/none")
os.mkdir(f"{C}/empty")
os.rename(f"{C}/q", f"{C}/empty")
nowhere("q")
everywhere("empty", "two")
os.rename(f"{A}/empty", f"{A}/p/moved")
everywhere("p", "moved", "two")
for path in at("p"):
    eventually(lambda: os.stat(path).st_nlink == 3, path)

put(f"{A}/one", b"one")
put(f"{A}/two", b"two")
everywhere("two")
if HAVE_RENAMEAT2:
    fails(errno.EEXIST, renameat2, f"{B}/one", f"{B}/two", RENAME_NOREPLACE)
    renameat2(f"{B}/one", f"{B}/three", RENAME_NOREPLACE)
    everywhere("three")
    nowhere("one")
    fails(errno.ENOENT, renameat2, f"{C}/none", f"{C}/two", RENAME_EXCHANGE)
    fails(errno.ENOENT, renameat2, f"{C}/two", f"{C}/none", RENAME_EXCHANGE)
    renameat2(f"{C}/two", f"{C}/three", RENAME_EXCHANGE)
    for path in at():
        eventually(lambda: get(path + "/two") == b"one" and get(path + "/three") == b"two", path)
    # A file and a directory change places, and with them the count of links.
    renameat2(f"{A}/two", f"{A}/p/moved", RENAME_EXCHANGE)
    for path in at():
        eventually(lambda: os.path.isdir(path + "/two") and os.path.isfile(path + "/p/moved"), path)
        same(get(path + "/p/moved"), b"one")
        same(get(path + "/two/two"), b"one")
        eventually(lambda: os.stat(path + "/p").st_nlink == 2, path)

# --- links
put(f"{A}/l1", b"linked")
everywhere("l1")
os.link(f"{B}/l1", f"{B}/p/l2")
everywhere("p", "l2")
for path in at():
    eventually(lambda: os.stat(path + "/l1").st_nlink == 2, path)
    same(os.stat(path + "/p/l2").st_ino, os.stat(path + "/l1").st_ino)
fails(errno.EEXIST, os.link, f"{C}/l1", f"{C}/p/l2")
fails(errno.EPERM, os.link, f"{C}/p", f"{C}/p2")
put(f"{C}/p/l2", b"LINKED")
same(get(f"{A}/l1"), b"LINKED")
os.unlink(f"{A}/l1")
for path in at("p", "l2"):
    eventually(lambda: os.stat(path).st_nlink == 1, path)
same(get(f"{B}/p/l2"), b"LINKED")

# --- symbolic links
os.symlink("p/l2", f"{A}/s")
os.symlink("s" * 4095, f"{A}/long")
os.symlink("loop", f"{A}/loop")
everywhere("loop")
for path in at():
    same(os.readlink(path + "/s"), "p/l2")
    same(os.lstat(path + "/s").st_size, 4)
    same(os.readlink(path + "/long"), "s" * 4095)
    same(get(path + "/s"), b"LINKED")
    fails(errno.ELOOP, os.stat, path + "/loop")
    fails(errno.EINVAL, os.readlink, path + "/p")
fails(errno.EEXIST, os.symlink, "x", f"{B}/s")
os.unlink(f"{B}/s")
nowhere("s")
everywhere("p", "l2")

# --- attributes, with their nanoseconds
put(f"{A}/attr", b"attr")
everywhere("attr")
os.chmod(f"{B}/attr", 0o4751)
os.chown(f"{B}/attr", 1234, 4321)
os.chmod(f"{B}/attr", 0o2640)
os.utime(f"{C}/attr", ns=(1_000_000_001_123_456_789, 1_234_567_890_987_654_321))
for path in at("attr"):
    eventually(lambda: os.stat(path).st_mtime_ns == 1_234_567_890_987_654_321, path)
    s = os.stat(path)
    same((s.st_uid, s.st_gid, oct(stat.S_IMODE(s.st_mode))), (1234, 4321, "0o2640"), path)
    same(s.st_atime_ns, 1_000_000_001_123_456_789, path)
ctimes = {os.stat(path).st_ctime_ns for path in at("attr")}
same(len(ctimes), 1, "ctime differs between nodes")
# Before 1970, and after 2106.
for ns in (-1_500_000_000, 5_000_000_000_000_000_001):
    os.utime(f"{A}/attr", ns=(ns, ns))
    for path in at("attr"):
        eventually(lambda: os.stat(path).st_mtime_ns == ns, path, ns)
# A write moves mtime and ctime, alike on all nodes.
before = os.stat(f"{A}/attr")
put(f"{B}/attr", b"ATTR")
for path in at("attr"):
    eventually(lambda: os.stat(path).st_mtime_ns not in (before.st_mtime_ns, 0), path)
    eventually(lambda: os.stat(path).st_ctime_ns > before.st_ctime_ns, path)
same(len({(os.stat(p).st_mtime_ns, os.stat(p).st_ctime_ns) for p in at("attr")}), 1)
# So does a new name that of its directory.
os.utime(f"{A}/p", ns=(0, 0))
put(f"{C}/p/new", b"")
for path in at("p"):
    eventually(lambda: os.stat(path).st_mtime_ns > 0, path)

# --- removed while open, here and by another node
for remover in MOUNTS:
    put(f"{A}/open", b"0123456789")
    for path in at("open"):
        eventually(lambda: get(path) == b"0123456789", path)
    fds = [os.open(path, os.O_RDWR) for path in at("open")]
    os.unlink(remover + "/open")
    nowhere("open")
    for fd in fds:
        same(os.pread(fd, 100, 0), b"0123456789")
        eventually(lambda: os.fstat(fd).st_nlink == 0)
    write(fds[0], b"abc")
    os.fsync(fds[0])
    same(os.pread(fds[0], 100, 0), b"abc3456789")
    os.ftruncate(fds[1], 20000)
    os.pwrite(fds[1], b"end", 20000)
    os.fsync(fds[1])
    same(os.pread(fds[1], 100, 19999), b"\0end")
    # A new file of that name is another one.
    put(f"{A}/open", b"new")
    os.close(fds[0])
    eventually(lambda: os.fstat(fds[2]).st_size == 20003)
    same(os.pread(fds[2], 100, 20000), b"end")
    same(os.pread(fds[1], 3, 0), b"abc")
    os.close(fds[1])
    os.close(fds[2])
    same(get(f"{B}/open"), b"new")
    os.unlink(f"{B}/open")
    nowhere("open")
# Replaced while open.
put(f"{A}/old", b"old")
put(f"{A}/new", b"new")
everywhere("new")
fd = os.open(f"{B}/old", os.O_RDWR)
os.rename(f"{C}/new", f"{C}/old")
eventually(lambda: get(f"{B}/old") == b"new")
same(os.pread(fd, 100, 0), b"old")
write(fd, b"OLD")
os.close(fd)
same(get(f"{A}/old"), b"new")

def inodes():
    statfs = os.statvfs(A)
    return statfs.f_files - statfs.f_ffree


least = inodes()
# Opened by no name, just after it was removed: it stays, or is not opened.
for k in range(10):
    put(f"{A}/held", b"old")
    path_fd = os.open(f"{A}/held", os.O_RDONLY | getattr(os, "O_PATH", 0))
    os.unlink(MOUNTS[k % 3] + "/held")
    nowhere("held")
    try:
        fd = os.open(f"/proc/self/fd/{path_fd}", os.O_RDWR)
    except OSError as e:
        check(e.errno in (errno.ESTALE, errno.ENOENT), e)
        fd = None
    # All nodes have let go of what nobody has open: of the next one as well.
    put(f"{A}/after", b"")
    os.unlink(f"{A}/after")
    eventually(lambda: inodes() <= least + (fd is not None))
    if fd is not None:
        os.pwrite(fd, b"new!", 0)
        os.fsync(fd)
        same(os.fstat(fd).st_size, 4)
        same(os.pread(fd, 10, 0), b"new!")
        os.close(fd)
    os.close(path_fd)

# --- a directory is removed where somebody works, and has it open
def works_in_removed(fd):
    same(os.listdir("."), [])
    same((os.stat(".").st_nlink, os.fstat(fd).st_nlink), (0, 0))
    os.fchmod(fd, 0o711)
    os.utime(fd, (5, 6))
    same((os.stat(".").st_mode & 0o777, os.fstat(fd).st_mtime), (0o711, 6))
    os.fsync(fd)
    for call, *args in ((os.mkdir, "d"), (os.mkdir, "./d"), (os.unlink, "f"),
                        (os.stat, "./f"), (os.rename, "./f", "./g"),
                        (os.link, f"{A}/other", "./f"), (put, "f", b"x")):
        fails(errno.ENOENT, call, *args)
    fails(errno.ENOENT, os.mkdir, "d", dir_fd=fd)


put(f"{A}/other", b"")
least = inodes()
for remover in MOUNTS if sys.platform == "linux" else []:
    os.mkdir(f"{A}/cwd")
    everywhere("cwd")
    os.chdir(f"{A}/cwd")
    fd = os.open(".", os.O_RDONLY)
    os.rmdir(remover + "/cwd")
    nowhere("cwd")
    works_in_removed(fd)
    # The same when all nodes have let go of what was removed after it.
    os.mkdir(f"{C}/after")
    os.rmdir(f"{C}/after")
    eventually(lambda: inodes() <= least + 1)
    works_in_removed(fd)
    os.chdir("/")
    os.close(fd)
    eventually(lambda: inodes() <= least, "kept for ever")

# --- O_EXCL, raced from all nodes
os.mkdir(f"{A}/race")
everywhere("race")
def racer(i):
    won = []
    for k in range(40):
        try:
            fd = os.open(f"{MOUNTS[i]}/race/{k}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            continue
        write(fd, b"%d" % i)
        os.close(fd)
        won.append(k)
    open(f"{CLUSTER}/race.{i}", "w").write(" ".join(map(str, won)))
    return True
processes(3, racer)
won = {i: open(f"{CLUSTER}/race.{i}").read().split() for i in range(3)}
same(sorted(sum(won.values(), []), key=int), [str(k) for k in range(40)], "O_EXCL: not one winner each")
for i, names in won.items():
    for k in names:
        same(get(f"{A}/race/{k}"), b"%d" % i)

# --- O_TRUNC, truncate
put(f"{A}/t", b"t" * 10000)
same(get(f"{B}/t"), b"t" * 10000)
put(f"{C}/t", b"short", os.O_TRUNC)
for path in at("t"):
    same(get(path), b"short")
os.truncate(f"{B}/t", 3)
os.truncate(f"{B}/t", 6)
for path in at("t"):
    same(get(path), b"sho\0\0\0")

# Not of a program that runs, nor is it cut before that is found out.
if sys.platform == "linux":
    with open("/bin/sleep", "rb") as program:
        sleep = program.read()
    put(f"{A}/sleep", sleep, mode=0o755)
    for path in at("sleep"):
        eventually(lambda: there(path), path)
        running = subprocess.Popen([path, "600"])
        try:
            for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
                fails(errno.ETXTBSY, os.open, path, flags)
            fails(errno.ETXTBSY, os.truncate, path, 1)
            same(running.poll(), None)
        finally:
            running.kill()
            running.wait()
        check(get(path) == sleep, path)

# --- O_APPEND, by several programs of one node
put(f"{A}/log", b"")
everywhere("log")
def appender(i):
    fd = os.open(f"{B}/log", os.O_WRONLY | os.O_APPEND)
    for k in range(100):
        same(os.write(fd, b"%d %03d\n" % (i, k)), 6)
    os.close(fd)
    return True
processes(4, appender)
want = sorted(b"%d %03d\n" % (i, k) for i in range(4) for k in range(100))
for path in at("log"):
    same(sorted(get(path).splitlines(True)), want, path)

# --- mknod
os.mkfifo(f"{A}/fifo", 0o600)
os.mknod(f"{A}/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
everywhere("null")
for path in at():
    check(stat.S_ISFIFO(os.lstat(path + "/fifo").st_mode))
    s = os.lstat(path + "/null")
    check(stat.S_ISCHR(s.st_mode))
    same((os.major(s.st_rdev), os.minor(s.st_rdev)), (1, 3))
    # Mounts are nodev unless they say otherwise.
    fails(errno.EACCES, os.open, path + "/null", os.O_RDONLY)

# --- statfs, fsync of a directory, mappings
rooms = {(s.f_blocks * s.f_frsize, s.f_namemax) for s in map(os.statvfs, MOUNTS)}
same(len(rooms), 1, "statfs differs")
check(min(rooms)[0] > 0 and min(rooms)[1] == 255, rooms)
for path in at("p"):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)
put(f"{A}/map", b"m" * 8192)
fd = os.open(f"{B}/map", os.O_RDWR)
m = mmap.mmap(fd, 8192)
same(m[:3], b"mmm")
m[4000:4200] = b"M" * 200
m.flush()
m.close()
os.close(fd)
for path in at("map"):
    same(get(path), b"m" * 4000 + b"M" * 200 + b"m" * 3992, path)

# --- names are bytes
odd = [b"with space", b"new\nline", b"\xff\xfe", "äöü".encode(), b"-rf", b"*"]
for name in odd:
    put(os.fsencode(A) + b"/race/" + name, name)
for mount in MOUNTS:
    d = os.fsencode(mount) + b"/race/"
    eventually(lambda: set(odd) <= set(os.listdir(d)), mount)
    for name in odd:
        same(get(d + name), name)
EOF

# Who may do what.
python3 -B "$TOP/regress/cluster/nodes.py" 60 <<'EOF' || fail "access rules"
os.umask(0o022)
put(f"{A}/secret", b"secret", mode=0o600)
put(f"{A}/public", b"public", mode=0o644)
put(f"{A}/group", b"group", mode=0o640)
os.chown(f"{A}/group", 0, 777)
put(f"{A}/prog", b"#!/bin/sh\n", mode=0o755)
os.mkdir(f"{A}/closed", 0o700)
put(f"{A}/closed/in", b"in")
os.mkdir(f"{A}/free")
os.chmod(f"{A}/free", 0o1777)
os.mkdir(f"{A}/sgid")
os.chown(f"{A}/sgid", 65534, 888)
os.chmod(f"{A}/sgid", 0o2775)
put(f"{A}/free/root", b"root")
put(f"{A}/suid", b"suid")
os.chmod(f"{A}/suid", 0o6777)
for path in at("suid"):
    eventually(lambda: stat.S_IMODE(os.stat(path).st_mode) == 0o6777, path)

for mount in MOUNTS:
    def rules():
        fails(errno.EACCES, os.open, mount + "/secret", os.O_RDONLY)
        fails(errno.EACCES, os.open, mount + "/group", os.O_RDONLY)
        same(get(mount + "/public"), b"public")
        fails(errno.EACCES, os.open, mount + "/public", os.O_WRONLY)
        fails(errno.EACCES, os.truncate, mount + "/public", 0)
        fails(errno.EACCES, os.open, mount + "/created", os.O_WRONLY | os.O_CREAT)
        fails(errno.EACCES, os.mkdir, mount + "/created")
        fails(errno.EACCES, os.unlink, mount + "/public")
        fails(errno.EACCES, os.stat, mount + "/closed/in")
        fails(errno.EACCES, os.listdir, mount + "/closed")
        fails(errno.EPERM, os.chmod, mount + "/public", 0o777)
        fails(errno.EPERM, os.chown, mount + "/public", 65534, -1)
        fails(errno.EPERM, os.utime, mount + "/public", ns=(1, 1))
        check(os.access(mount + "/prog", os.X_OK) and not os.access(mount + "/public", os.X_OK))
        # Sticky: only what is one's own can be removed.
        fails((errno.EPERM, errno.EACCES), os.unlink, mount + "/free/root")
        fails((errno.EPERM, errno.EACCES), os.rename, mount + "/free/root", mount + "/free/mine")
        put(mount + "/free/own", b"own")
        same(os.stat(mount + "/free/own").st_uid, 65534)
        fails(errno.EPERM, os.chown, mount + "/free/own", 0, -1)
        os.chmod(mount + "/free/own", 0o600)
        os.unlink(mount + "/free/own")
        # The group of a set-group-ID directory is that of what is made there.
        put(mount + "/sgid/file", b"")
        same(os.stat(mount + "/sgid/file").st_gid, 888)
        os.mkdir(mount + "/sgid/dir")
        s = os.stat(mount + "/sgid/dir")
        same((s.st_gid, bool(s.st_mode & stat.S_ISGID)), (888, True))
        os.unlink(mount + "/sgid/file")
        os.rmdir(mount + "/sgid/dir")
    nobody(rules)
    nobody(lambda: same(get(mount + "/group"), b"group"), groups=[777])
# Who is not root and writes takes the bits away.
nobody(lambda: put(f"{B}/suid", b"changed"))
for path in at("suid"):
    eventually(lambda: stat.S_IMODE(os.stat(path).st_mode) == 0o777, path)
EOF

must_trees_equal .
