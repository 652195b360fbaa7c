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

# quota.sh: limits of directory trees and of the whole.  Set on one node they
# hold on all, to the block, with EDQUOT; what is there can be written over and
# removed; names stay in their tree; what was there before is counted while it
# changes and whoever leads, and all of it is there after a restart.

. "$(dirname "$0")/../lib.sh"
cluster_up 3
export TOP

python3 -B "$TOP/regress/cluster/nodes.py" 400 <<'EOF' || fail "see above"
import json
import shutil
import subprocess

BLOCK = 4096
BIN = os.environ["BIN"]
CTL = ["sh", os.environ["TOP"] + "/regress/cluster/ctl", "-d", CLUSTER]


def ctl(*args):
    return subprocess.run([*CTL, *args], capture_output=True, text=True)


def dfsctl(n, *args):
    return subprocess.run([BIN + "/dfsctl", "-s", f"{CLUSTER}/n{n}/dfsd.sock", *args],
                          capture_output=True, text=True)


def quota(n, *args):
    got = dfsctl(n, "quota", *args)
    check(got.returncode == 0, args, got.stderr)
    return got.stdout


def shown(n, path):
    got = dfsctl(n, "-j", "quota", path)
    check(got.returncode == 0, path, got.stderr)
    (one,) = json.loads(got.stdout)["quotas"]
    return one


def says(n, text, *args):
    got = dfsctl(n, "quota", *args)
    check(got.returncode == 1 and text in got.stderr, args, got.returncode, got.stderr)


def refused(path, data):
    """Refused wherever it is told: by write, by fsync or by close."""
    fails(errno.EDQUOT, put, path, data)
    if there(path):
        os.unlink(path)


def told(path, data):
    """Refused by write(2) itself, for programs that do not ask close(2)."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.write(fd, data)
    except OSError as e:
        return e.errno == errno.EDQUOT
    finally:
        os.close(fd)
        os.unlink(path)


def soon(call, *args):
    """What was removed is charged until each node has let go of it."""
    eventually(lambda: call(*args) or True, call.__name__, args)


# --- set on one node, in force on all
os.mkdir(f"{A}/q")
quota(1, "-b", "1M", "-i", "20", "/q")
put(f"{B}/q/b", os.urandom(512 << 10))
put(f"{C}/q/c", os.urandom((512 << 10) - 10 * BLOCK))
# Ten small files are ten blocks.
for k in range(10):
    put(f"{A}/q/small{k}", b"small")
for n in (1, 2, 3):
    one = shown(n, f"{MOUNTS[n - 1]}/q/b")
    same((one["path"], one["used_bytes"], one["limit_bytes"]), ("/q", 1 << 20, 1 << 20))
    same((one["used_inodes"], one["limit_inodes"], one["counting"]), (13, 20, False))
    same([line.split()[0] for line in quota(n).splitlines()], ["Directory", "/", "/q"])
for i, m in enumerate(MOUNTS):
    refused(f"{m}/q/one{i}", b"1")
    refused(f"{m}/q/large{i}", os.urandom(300 << 10))
    # The page cache takes it; who hears of it is whoever has it open.
    fd = os.open(f"{m}/q/b", os.O_RDWR)
    try:
        os.pwrite(fd, b"x" * BLOCK, 512 << 10)
        os.fsync(fd)
        check(False, "written beyond the limit")
    except OSError as e:
        same(errno.errorcode[e.errno], "EDQUOT")
    same(os.fstat(fd).st_size, 512 << 10)
    same(os.pread(fd, BLOCK, 512 << 10), b"")
    # What is there is written over.
    os.pwrite(fd, bytes([i]) * BLOCK, 100 * BLOCK)
    os.fsync(fd)
    os.close(fd)
    for path in at("q", "b"):
        fd = os.open(path, os.O_RDONLY)
        same(os.pread(fd, BLOCK, 100 * BLOCK), bytes([i]) * BLOCK)
        os.close(fd)

for i, m in enumerate(MOUNTS):
    for data in b"1", bytes(100 << 10):
        # The inode of the last one may not have been let go of.
        found = []
        eventually(lambda: found.append(told(f"{m}/q/told{i}", data)) or True)
        same(found, [True], "write(2) does not tell", m)
    said = subprocess.run(["sh", "-c", f"echo x >{m}/q/small0"], capture_output=True)
    same(said.returncode, 0, "there is room")
    said = subprocess.run(["sh", "-c", f"echo x >>{m}/q/c"], capture_output=True)
    check(said.returncode != 0, "the shell does not see it", m)
    # Elsewhere there is room, and nobody waits for it.
    put(f"{m}/beside{i}", bytes(1 << 20))
    os.unlink(f"{m}/beside{i}")

# Deletes make room, everywhere.
os.unlink(f"{B}/q/small0")
soon(put, f"{C}/q/again", b"again")
refused(f"{A}/q/more", b"more")
os.truncate(f"{A}/q/b", 256 << 10)
for i, m in enumerate(MOUNTS):
    soon(put, f"{m}/q/last{i}", b"last")
# 16 inodes, and the limit is 20.
for k in range(4):
    soon(os.mkdir, f"{MOUNTS[k % 3]}/q/dir{k}")
for m in MOUNTS:
    fails(errno.EDQUOT, os.mkdir, f"{m}/q/none")
    fails(errno.EDQUOT, os.symlink, "x", f"{m}/q/none")
    fails(errno.EDQUOT, os.open, f"{m}/q/none", os.O_CREAT | os.O_WRONLY)
os.link(f"{A}/q/b", f"{A}/q/link")

# --- names stay in their tree
os.mkdir(f"{A}/o")
put(f"{A}/o/f", b"f")
for m in MOUNTS:
    fails(errno.EXDEV, os.rename, f"{m}/q/last0", f"{m}/last")
    fails(errno.EXDEV, os.rename, f"{m}/o/f", f"{m}/q/f")
    fails(errno.EXDEV, os.link, f"{m}/o/f", f"{m}/q/f")
    os.rename(f"{m}/q/last0", f"{m}/q/dir0/last0")
    os.rename(f"{m}/q/dir0/last0", f"{m}/q/last0")
shutil.move(f"{B}/q/last0", f"{B}/o/last0")
same(get(f"{C}/o/last0"), b"last")
os.rename(f"{C}/q", f"{C}/o/q")
eventually(lambda: shown(1, "/o/q")["used_inodes"] == 19, "moved away")
os.rename(f"{C}/o/q", f"{C}/q")

# --- what cannot be
says(2, "lies in a tree with a quota", "-i", "5", "/q/dir0")
says(2, "not a directory", "-i", "5", "/o/f")
says(2, "not found", "-i", "5", "/none")
says(2, "has no quota", "-d", "/o")
quota(3, "-d", "/q")
put(f"{A}/q/none", os.urandom(2 << 20))
shutil.rmtree(f"{A}/q")

# --- the whole
quota(1, "-b", "8M", "/")
for m in MOUNTS:
    eventually(lambda: os.statvfs(m).f_blocks * os.statvfs(m).f_frsize == 8 << 20, m)
for i, m in enumerate(MOUNTS):
    refused(f"{m}/whole{i}", os.urandom(1 << 20) * 10)
    soon(put, f"{m}/fits{i}", b"fits")
quota(2, "-d", "/")
for m in MOUNTS:
    eventually(lambda: os.statvfs(m).f_blocks * os.statvfs(m).f_frsize > 8 << 20, m)

# --- a tree that is there, counted while it changes, and the leader dies
DIRS, FILES = 20, 100


def fill(i):
    for d in range(i, DIRS, 3):
        os.makedirs(f"{MOUNTS[i]}/big/{d}/sub")
        for k in range(FILES):
            put(f"{MOUNTS[i]}/big/{d}/{'sub/' if k % 2 else ''}{k}", b"x" * (k * 97))
    return True


os.mkdir(f"{A}/big")
everywhere("big")
processes(3, fill)
lead = int(ctl("leader").stdout)
survivors = [n for n in (1, 2, 3) if n != lead]


def change(i):
    """Makes, removes, grows and renames on a node that stays."""
    m = MOUNTS[survivors[i] - 1]
    if i == 2:
        quota(lead, "-b", "1G", "/big")
        print("killed while counting:", shown(lead, "/big")["counting"])
        ctl("kill", str(lead))
        return True
    crossed = 0
    for k in range(100):
        d = f"{m}/big/{(k * 7 + i) % DIRS}"
        put(f"{d}/new{i}.{k}", b"y" * (k * 50))
        for call in (lambda: os.unlink(f"{d}/{2 * (k % 40)}"),
                     lambda: os.truncate(f"{d}/sub/{2 * (k % 40) + 1}", 9000),
                     lambda: os.rename(f"{d}/new{i}.{k}", f"{d}/renamed{i}.{k}"),
                     lambda: os.rename(f"{d}/sub/{99 - 2 * (k % 10)}", f"{d}/out{i}.{k}")):
            try:
                call()
            except FileNotFoundError:
                pass
            except OSError as e:
                same(errno.errorcode[e.errno], "EXDEV", "while counting only")
                crossed += 1
    print(f"node {survivors[i]}: {crossed} renames crossed")
    return True


survivors.append(survivors[0])
processes(3, change)
same(ctl("start", str(lead)).returncode, 0, "start")
same(ctl("wait", "1", "2", "3").returncode, 0, "wait")
eventually(lambda: not shown(survivors[0], "/big")["counting"], "counted")


def walked(top):
    found = {}
    for d, dirs, files in os.walk(top):
        for name in [d] + [os.path.join(d, f) for f in files]:
            st = os.lstat(name)
            found[st.st_ino] = st.st_blocks * 512
    return sum(found.values()), len(found)


def counted(n):
    one = shown(n, "/big")
    return (one["used_bytes"], one["used_inodes"]) == walked(MOUNTS[n - 1] + "/big")


for n in (1, 2, 3):
    eventually(lambda: counted(n), n, shown(n, "/big"), walked(MOUNTS[n - 1] + "/big"))
before = shown(1, "/big")
print("counted:", before["used_inodes"], "inodes,", before["used_bytes"], "bytes")
fails(errno.EXDEV, os.rename, f"{A}/big/0", f"{A}/0")

# --- all of it is in the log
ctl("kill", "1", "2", "3")
same(ctl("start", "1", "2", "3").returncode, 0, "start")
same(ctl("wait", "1", "2", "3").returncode, 0, "wait")
for n in (1, 2, 3):
    same(shown(n, "/big"), before)
quota(2, "-b", "4K", "/big")
refused(f"{C}/big/over", b"over")
shutil.rmtree(f"{C}/big/0")
shutil.rmtree(f"{B}/big")
eventually(lambda: "/big" not in quota(1), "gone with its directory")
EOF
must_trees_equal .
grep -il panicked "$CLUSTER"/n*/log && fail "a panic in the log"
exit 0
