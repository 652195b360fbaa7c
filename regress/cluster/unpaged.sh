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

# unpaged.sh: writes that do not go the way of write(2) and the pages, and fail:
# what others have written stays, whoever must hear of it does, and nothing is
# shown that is not in the tree.

. "$(dirname "$0")/../lib.sh"
[ "$(uname -s)" = Linux ] || skip "needs io_submit(2)"
cluster_up 3
export TOP

python3 -B "$TOP/regress/cluster/nodes.py" 300 <<'EOF' || fail "see above"
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.msync.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.syscall.restype = ctypes.c_long
MACHINE = os.uname().machine
IO_SETUP, IO_SUBMIT, IO_GETEVENTS = (206, 209, 208) if MACHINE == "x86_64" else (0, 2, 4)
CTL = ["sh", os.environ["TOP"] + "/regress/cluster/ctl", "-d", CLUSTER]
PAGE = mmap.PAGESIZE


def ctl(*args):
    got = subprocess.run([*CTL, *args], capture_output=True, text=True)
    check(got.returncode == 0, args, got.stderr)
    return got.stdout


def dfsctl(n, *args):
    return subprocess.run([os.environ["BIN"] + "/dfsctl", "-s", f"{CLUSTER}/n{n}/dfsd.sock", *args],
                          capture_output=True, text=True)


def quota(n, *args):
    got = dfsctl(n, "quota", *args)
    check(got.returncode == 0, args, got.stderr)


class Iocb(ctypes.Structure):
    _fields_ = [("data", ctypes.c_uint64), ("key", ctypes.c_uint32), ("flags", ctypes.c_int32),
                ("opcode", ctypes.c_uint16), ("prio", ctypes.c_int16), ("fd", ctypes.c_uint32),
                ("buf", ctypes.c_uint64), ("len", ctypes.c_uint64), ("offset", ctypes.c_int64),
                ("rest", ctypes.c_uint64 * 2)]


def submit(fd, data, offset=0):
    """An asynchronous write; its result, below 0 an errno."""
    context = ctypes.c_ulong(0)
    check(libc.syscall(IO_SETUP, 1, ctypes.byref(context)) == 0, ctypes.get_errno())
    buf = ctypes.create_string_buffer(data, len(data))
    one = Iocb(opcode=1, fd=fd, buf=ctypes.addressof(buf), len=len(data), offset=offset)
    many = (ctypes.POINTER(Iocb) * 1)(ctypes.pointer(one))
    if libc.syscall(IO_SUBMIT, context, 1, many) != 1:
        return -ctypes.get_errno()
    event = (ctypes.c_int64 * 4)()
    same(libc.syscall(IO_GETEVENTS, context, 1, 1, event, None), 1, "io_getevents")
    return event[2]


def piece(path, length, offset=0):
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


# --- what fails cuts nothing off that others have written and synced
for flags, offset, error in ((os.O_APPEND, 0, errno.EDQUOT), (os.O_DIRECT, 1 << 43, errno.EFBIG)):
    name = f"log.{flags}"
    put(f"{A}/{name}", b"a" * PAGE)
    fd = os.open(f"{A}/{name}", os.O_RDWR | flags)
    same(os.fstat(fd).st_size, PAGE)
    put(f"{B}/{name}", b"b" * (1 << 20), os.O_APPEND)
    quota(2, "-b", "8K", "/")
    same(submit(fd, b"x" * (4 * PAGE), offset), -error, flags)
    # One that is meant comes through, and behind all before it.
    os.chmod(f"{A}/{name}", 0o600)
    for m in MOUNTS:
        eventually(lambda: os.stat(f"{m}/{name}").st_mode & 0o777 == 0o600, m)
        same(os.stat(f"{m}/{name}").st_size, PAGE + (1 << 20), m)
    quota(2, "-b", "0", "/")
    same(submit(fd, b"c" * PAGE, PAGE + (1 << 20)), PAGE, flags)
    os.fsync(fd)
    os.close(fd)
    same(piece(f"{C}/{name}", 2 * PAGE, PAGE + (1 << 20)), b"c" * PAGE, flags)
    os.unlink(f"{A}/{name}")


# fallocate(2) makes the kernel know of a longer file.
put(f"{A}/longer", b"a" * PAGE)
fd = os.open(f"{A}/longer", os.O_RDWR | os.O_DIRECT)
os.posix_fallocate(fd, PAGE, PAGE)
put(f"{B}/longer", b"b" * PAGE, os.O_APPEND)
same(submit(fd, b"x" * PAGE, 1 << 43), -errno.EFBIG)
os.chmod(f"{A}/longer", 0o600)
for m in MOUNTS:
    eventually(lambda: os.stat(f"{m}/longer").st_mode & 0o777 == 0o600, m)
    same(os.stat(f"{m}/longer").st_size, 3 * PAGE, m)
os.close(fd)

# A program that cuts off itself what it could not write hears the truth: it is
# done, or it is not.
for flags in (os.O_APPEND, os.O_DIRECT | os.O_DSYNC):
    name = f"repair.{flags}"
    put(f"{A}/{name}", b"a" * PAGE)
    fd = os.open(f"{A}/{name}", os.O_RDWR | flags)
    same(os.fstat(fd).st_size, PAGE)
    quota(2, "-b", "8K", "/")
    page = mmap.mmap(-1, 4 * PAGE)
    fails(errno.EDQUOT, os.writev, fd, [page])
    os.ftruncate(fd, PAGE)
    quota(2, "-b", "0", "/")
    put(f"{B}/{name}", b"b" * PAGE, os.O_APPEND)
    quota(2, "-b", "8K", "/")
    fails(errno.EDQUOT, os.writev, fd, [page])
    size = PAGE
    try:
        os.ftruncate(fd, size)
    except OSError as e:
        same(e.errno, errno.EDQUOT, flags)
        size = 2 * PAGE
    same(os.stat(f"{A}/{name}").st_size, size, flags)
    os.ftruncate(fd, PAGE)
    for m in MOUNTS:
        eventually(lambda: os.stat(f"{m}/{name}").st_size == PAGE, m)
    os.close(fd)
    quota(2, "-b", "0", "/")


def mapped(path, then):
    """Stores one byte in the first page; the descriptor is closed before."""
    fd = os.open(path, os.O_RDWR)
    page = libc.mmap(None, PAGE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    check(page not in (None, ctypes.c_void_p(-1).value), "mmap", ctypes.get_errno())
    os.close(fd)
    ctypes.memset(page, ord("m"), 1)
    got = then(page)
    same(libc.munmap(page, PAGE), 0, "munmap")
    return got


def fsync(path, flags):
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
        return 0
    except OSError as e:
        return e.errno
    finally:
        os.close(fd)


# --- whoever syncs the file hears of a mapped write that failed
put(f"{A}/filler", bytes(2 * PAGE))
for flags in (os.O_RDWR, os.O_RDONLY):
    path = f"{A}/map.{flags}"
    put(path, b"")
    os.truncate(path, 1 << 20)
    quota(3, "-b", "4K", "/")
    mapped(path, lambda page: None)
    told = fsync(path, flags)
    check(told in (errno.EDQUOT, errno.EIO), "nobody was told", told)
    quota(3, "-b", "0", "/")
    same(fsync(path, flags), 0, "told twice")
    same(piece(path, 1), b"\0", "what is not in the tree")
    same(mapped(path, lambda page: libc.msync(page, PAGE, 4)), 0, "msync")
    for m in (B, C):
        same(piece(f"{m}/map.{flags}", 1), b"m", m)

# --- a mapped write that is refused at once is not shown
path = f"{A}/refused"
put(path, b"old" + bytes(2 * PAGE))
keep = os.open(path, os.O_RDWR)
ctl("kill", "2", "3")
eventually(lambda: "no quorum" in dfsctl(1, "status").stdout, "no quorum")


def msync():
    return libc.msync(page, PAGE, 4) and ctypes.get_errno()


page = libc.mmap(None, PAGE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, keep, 0)
ctypes.memset(page, ord("m"), 1)
same(msync(), errno.EROFS, "msync without a quorum")
ctl("start", "2", "3")
ctl("wait", "1", "2", "3")
for m in (A, B, C):
    eventually(lambda: piece(f"{m}/refused", 3) == b"old", m)
ctypes.memset(page + 1, ord("n"), 1)
same(msync(), 0, "msync")
same(libc.munmap(page, PAGE), 0, "munmap")
os.close(keep)
for m in (A, B, C):
    same(piece(f"{m}/refused", 3), b"ond", m)
EOF
must_trees_equal .
grep -il panicked "$CLUSTER"/n*/log && fail "a panic in the log"
exit 0
