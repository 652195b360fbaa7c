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

# sparse.sh: holes, files larger than any disk, and offsets beyond what a file
# can have.  None of it stops the cluster.

. "$(dirname "$0")/../lib.sh"
cluster_up 3

python3 -B "$TOP/regress/cluster/nodes.py" 90 <<'EOF' || fail "see above"
GIB = 1 << 30
size = 64 * GIB
end = os.urandom(1 << 20)

# 64 GiB, of which one MiB at the end is there.
fd = os.open(f"{A}/huge", os.O_RDWR | os.O_CREAT, 0o644)
os.ftruncate(fd, size)
same(os.fstat(fd).st_size, size)
same(os.pread(fd, 4096, size - 4096), bytes(4096))
os.pwrite(fd, end, size - len(end))
os.pwrite(fd, b"middle", 20 * GIB + 1)
os.fsync(fd)
os.close(fd)
everywhere("huge")
for path in at("huge"):
    fd = os.open(path, os.O_RDONLY)
    same(os.fstat(fd).st_size, size, path)
    check(os.fstat(fd).st_blocks * 512 < 4 << 20, "takes", os.fstat(fd).st_blocks * 512)
    check(os.pread(fd, len(end) + 10, size - len(end)) == end, path, "end differs")
    for at_byte in (0, 4095, GIB, 20 * GIB - 70000, size - len(end) - 65536):
        same(os.pread(fd, 65536, at_byte), bytes(65536), path, at_byte)
    same(os.pread(fd, 8, 20 * GIB), b"\0middle\0", path)
    same(os.pread(fd, 100, size), b"", path)
    os.close(fd)

# Cut in the hole and made longer: what was behind is gone for good.
os.truncate(f"{B}/huge", 30 * GIB)
os.truncate(f"{B}/huge", size)
for path in at("huge"):
    fd = os.open(path, os.O_RDONLY)
    same(os.fstat(fd).st_size, size)
    same(os.pread(fd, 4096, size - 4096), bytes(4096), path)
    same(os.pread(fd, 6, 20 * GIB + 1), b"middle", path)
    os.close(fd)

# Holes between what is written, in no order, of no even size.
want = bytearray(3_000_000)
fd = os.open(f"{C}/holes", os.O_RDWR | os.O_CREAT, 0o644)
for k in (29, 3, 17, 0, 11, 23, 5):
    piece = os.urandom(777 + k)
    os.pwrite(fd, piece, k * 100_003)
    want[k * 100_003:k * 100_003 + len(piece)] = piece
os.ftruncate(fd, len(want))
os.fsync(fd)
os.close(fd)
for path in at("holes"):
    eventually(lambda: there(path))
    check(get(path) == bytes(want), path, "differs")

# A small file that a hole makes long, and long holes made short.
put(f"{A}/small", b"small")
fd = os.open(f"{B}/small", os.O_WRONLY)
os.pwrite(fd, b"far", 5_000_000)
os.close(fd)
for path in at("small"):
    same(get(path), b"small" + bytes(5_000_000 - 5) + b"far", path)
os.truncate(f"{C}/small", 7)
for path in at("small"):
    same(get(path), b"small\0\0", path)

# Offsets that no file can have.
fd = os.open(f"{A}/edge", os.O_RDWR | os.O_CREAT, 0o644)
for offset in (2**63 - 1, 2**63 - 2, 2**62):
    def write_and_sync():
        n = os.pwrite(fd, b"xx", offset)
        os.fsync(fd)
        return n
    fails((errno.EFBIG, errno.EINVAL), write_and_sync)
libc.pwrite.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int64]
libc.pwrite.restype = ctypes.c_ssize_t
same(libc.pwrite(fd, b"x", 1, -(2**63)), -1)
same(ctypes.get_errno(), errno.EINVAL)
fails((errno.EFBIG, errno.EINVAL), os.ftruncate, fd, 2**63 - 1)
same(os.fstat(fd).st_size, 0)
os.close(fd)
# Whether a file can be larger than what the disk below it allows, or not, is
# decided alike on all nodes.
for bits in (45, 50, 62):
    try:
        os.truncate(f"{B}/edge", 1 << bits)
    except OSError as e:
        check(e.errno in (errno.EFBIG, errno.EINVAL), e)
    try:
        fd = os.open(f"{B}/edge", os.O_WRONLY)
        os.pwrite(fd, b"x", (1 << bits) - 1)
        os.close(fd)
    except OSError as e:
        check(e.errno in (errno.EFBIG, errno.EINVAL), e)
put(f"{A}/after", b"after")
everywhere("after")
for path in at("edge"):
    eventually(lambda: os.stat(path).st_size == os.stat(f"{A}/edge").st_size, path)
EOF

for n in $NODE_LIST; do
	dfsctl "$n" status >/dev/null || fail "node $n: $(dfsctl "$n" status)"
	kib=$(du -sk "$CLUSTER/n$n/db/data" | cut -f1)
	[ "$kib" -lt 65536 ] || fail "node $n: $kib KiB on the disk"
done
