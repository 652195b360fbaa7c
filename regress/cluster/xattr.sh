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

# xattr.sh: extended attributes and ACLs, set on one node and in force on the
# others, and still there when all nodes were killed; and what goes with modes:
# the umask, set-id bits, groups.

. "$(dirname "$0")/../lib.sh"
[ "$(uname -s)" = Linux ] || skip "the kernel asks for no attributes"
cluster_up 3

nodes() { python3 -B "$TOP/regress/cluster/nodes.py" "$@"; }

nodes 120 <<'EOP' || fail "attributes"
# --- set here, seen there
os.mkdir(f"{A}/d")
put(f"{A}/f", b"f")
os.symlink("f", f"{A}/s")
os.mkfifo(f"{A}/p")
everywhere("p")
for path in (f"{A}/f", f"{A}/d"):
    fails(errno.ENODATA, os.getxattr, path, "user.a")
    fails(errno.ENODATA, os.removexattr, path, "user.a")
    fails(errno.ENODATA, os.setxattr, path, "user.a", b"", os.XATTR_REPLACE)
    same(os.listxattr(path), [])
for path in at("f") + at("d"):
    # What is not there is known by heart, and forgotten in time.
    same(os.listxattr(path), [])
before = os.stat(f"{A}/f")
os.setxattr(f"{A}/f", "user.a", b"one")
os.setxattr(f"{B}/d", "user.empty", b"")
for path in at("f"):
    eventually(lambda: os.getxattr(path, "user.a") == b"one", path)
    same(os.listxattr(path), ["user.a"], path)
    eventually(lambda: os.stat(path).st_ctime_ns > before.st_ctime_ns, path)
    same(os.stat(path).st_mtime_ns, before.st_mtime_ns, path)
for path in at("d"):
    eventually(lambda: os.getxattr(path, "user.empty") == b"", path)
for i in range(50):
    here, there_ = MOUNTS[i % 3], MOUNTS[(i + 1) % 3]
    os.setxattr(f"{here}/f", "user.n", b"%d" % i)
    same(os.getxattr(f"{here}/f", "user.n"), b"%d" % i)
    eventually(lambda: os.getxattr(f"{there_}/f", "user.n") == b"%d" % i)
os.removexattr(f"{B}/f", "user.n")
for path in at("f"):
    eventually(lambda: os.listxattr(path) == ["user.a"], path)
fails(errno.EEXIST, os.setxattr, f"{C}/f", "user.a", b"two", os.XATTR_CREATE)
os.setxattr(f"{C}/f", "user.a", b"two", os.XATTR_REPLACE)
os.setxattr(f"{C}/f", "user.b", b"b", os.XATTR_CREATE)
same(sorted(os.listxattr(f"{C}/f")), ["user.a", "user.b"])

# One winner on all nodes.
def racer(i):
    won = []
    for k in range(20):
        try:
            os.setxattr(f"{MOUNTS[i]}/d", f"user.race{k}", b"%d" % i, os.XATTR_CREATE)
            won.append(k)
        except FileExistsError:
            pass
    open(f"{CLUSTER}/race.{i}", "w").write(" ".join(map(str, won)))
    return True
processes(3, racer)
won = {i: open(f"{CLUSTER}/race.{i}").read().split() for i in range(3)}
same(sorted(sum(won.values(), []), key=int), [str(k) for k in range(20)], "not one winner each")

# --- sizes
fails(errno.E2BIG, os.setxattr, f"{A}/f", "user.big", b"x" * 65537)
os.setxattr(f"{A}/f", "user.big", b"x" * 65536)
for path in at("f"):
    eventually(lambda: os.getxattr(path, "user.big") == b"x" * 65536, path)
def sized(call, path, *args):
    buf = ctypes.create_string_buffer(100)
    def probe(size):
        got = call(os.fsencode(path), *args, buf, size)
        if got < 0:
            e = ctypes.get_errno()
            raise OSError(e, os.strerror(e))
        return got
    return probe
one = sized(libc.getxattr, f"{B}/f", b"user.b")
same((one(0), one(1), one(100)), (1, 1, 1))
big = sized(libc.getxattr, f"{B}/f", b"user.big")
same(big(0), 65536)
fails(errno.ERANGE, big, 100)
names = sized(libc.listxattr, f"{B}/f")
size = names(0)
same(names(size), size)
fails(errno.ERANGE, names, size - 1)
os.removexattr(f"{A}/f", "user.big")
name = "user." + "n" * 250
os.setxattr(f"{A}/f", name, b"long")
eventually(lambda: os.getxattr(f"{B}/f", name) == b"long")
fails(errno.ERANGE, os.setxattr, f"{A}/f", name + "n", b"")
os.removexattr(f"{A}/f", name)
# So much in one inode, then no more; then again.
put(f"{A}/full", b"")
for n in range(100):
    try:
        os.setxattr(f"{A}/full", f"user.{n}", b"x" * 65000)
    except OSError as e:
        same(e.errno, errno.ENOSPC)
        break
check(n > 10, n)
os.removexattr(f"{A}/full", "user.0")
os.setxattr(f"{A}/full", "user.0", b"x" * 65000)
os.unlink(f"{A}/full")

# --- whose they are
fails(errno.EOPNOTSUPP, os.setxattr, f"{A}/f", "other.a", b"")
fails(errno.EOPNOTSUPP, os.setxattr, f"{A}/f", "system.a", b"")
fails(errno.EINVAL, os.setxattr, f"{A}/f", "user.", b"")
for path in (f"{A}/s", f"{A}/p"):
    fails(errno.EPERM, os.setxattr, path, "user.a", b"", follow_symlinks=False)
    os.setxattr(path, "trusted.a", b"special", follow_symlinks=False)
    same(os.getxattr(path, "trusted.a", follow_symlinks=False), b"special")
os.setxattr(f"{A}/f", "trusted.t", b"t")
os.setxattr(f"{A}/f", "security.x", b"x")
os.chmod(f"{A}/f", 0o644)
everyone = ["security.x", "user.a", "user.b"]
for path in at("f"):
    eventually(lambda: sorted(os.listxattr(path)) == everyone[:1] + ["trusted.t"] + everyone[1:], path)
    def others():
        same(sorted(os.listxattr(path)), everyone)
        same(os.getxattr(path, "user.a"), b"two")
        fails(errno.ENODATA, os.getxattr, path, "trusted.t")
        fails(errno.EACCES, os.setxattr, path, "user.a", b"")
        fails(errno.EACCES, os.removexattr, path, "user.a")
        fails(errno.EPERM, os.setxattr, path, "trusted.a", b"")
    nobody(others)
put(f"{A}/kept", b"kept")
os.setxattr(f"{A}/kept", "user.k", b"k" * 3000)
os.setxattr(f"{A}/kept", "user.l", b"")
EOP

nodes 120 <<'EOP' || fail "ACLs"
import struct
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER, GROUP = 2, 8
NOBODY = 65534

def acl(u, g, o, named=(), mask=None):
    """The kernel's format; `named` has (tag, id, permissions)."""
    e = [(1, u, -1)] + [(t, p, i) for t, i, p in named if t == USER] + [(4, g, -1)]
    e += [(t, p, i) for t, i, p in named if t == GROUP]
    e += [] if mask is None else [(16, mask, -1)]
    e += [(32, o, -1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *x) for x in e)

def mode(path):
    return oct(stat.S_IMODE(os.stat(path).st_mode))

def may(path, flags=os.O_RDONLY):
    """Whether a user who owns nothing can open it."""
    def work():
        try:
            os.close(os.open(path, flags))
        except PermissionError:
            os._exit(7)
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        try:
            work()
        except BaseException:
            report()
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    check(code in (0, 7), path)
    return code == 0

os.umask(0o022)
# --- in force on all nodes, when it was set on one, and when it is no more
put(f"{A}/a", b"a", mode=0o640)
everywhere("a")
one = acl(6, 4, 0, [(USER, NOBODY, 6)], 6)
for i in range(6):
    here = MOUNTS[i % 3]
    for path in at("a"):
        eventually(lambda: not may(path), path, i)
    os.setxattr(f"{here}/a", ACCESS, one)
    same(may(f"{here}/a", os.O_RDWR), True)
    for path in at("a"):
        eventually(lambda: may(path, os.O_RDWR), path, i)
        same((mode(path), os.getxattr(path, ACCESS)), ("0o660", one), path)
    # chmod narrows the mask.
    os.chmod(f"{MOUNTS[(i + 1) % 3]}/a", 0o640)
    for path in at("a"):
        eventually(lambda: not may(path, os.O_RDWR), path, i)
        check(may(path), path)
        same(os.getxattr(path, ACCESS), acl(6, 4, 0, [(USER, NOBODY, 6)], 4), path)
    os.removexattr(f"{MOUNTS[(i + 2) % 3]}/a", ACCESS)
    for path in at("a"):
        eventually(lambda: mode(path) == "0o640" and os.listxattr(path) == [], path, i)
# By one of several groups, and not by the mode of the others.
os.setxattr(f"{A}/a", ACCESS, acl(6, 0, 4, [(GROUP, 4321, 4), (USER, NOBODY, 0)], 4))
eventually(lambda: mode(f"{B}/a") == "0o644")
eventually(lambda: not may(f"{B}/a"))
os.setxattr(f"{A}/a", ACCESS, acl(6, 0, 0, [(GROUP, 4321, 4)], 4))
def member():
    eventually(lambda: get(f"{C}/a") == b"a")
nobody(member, groups=(99, 4321))
same(may(f"{C}/a"), False)

# --- what can be said by the mode is
os.setxattr(f"{B}/a", ACCESS, acl(7, 5, 1))
for path in at("a"):
    eventually(lambda: mode(path) == "0o751" and os.listxattr(path) == [], path)
fails(errno.EINVAL, os.setxattr, f"{A}/a", ACCESS, acl(6, 4, 0, [(USER, 5, 6)]))
fails(errno.EINVAL, os.setxattr, f"{A}/a", ACCESS, one[:-1])
fails(errno.EACCES, os.setxattr, f"{A}/a", DEFAULT, one)
os.removexattr(f"{A}/a", ACCESS)

# --- only by the owner
def stranger():
    for mount in MOUNTS:
        fails(errno.EPERM, os.setxattr, f"{mount}/a", ACCESS, one)
nobody(stranger)

# --- default ACLs
os.mkdir(f"{A}/dir", 0o777)
default = acl(7, 5, 0, [(USER, NOBODY, 7)], 7)
os.setxattr(f"{A}/dir", DEFAULT, default)
for path in at("dir"):
    eventually(lambda: os.listxattr(path) == [DEFAULT], path)
for umask in (0o077, 0, 0o777):
    os.umask(umask)
    for i, mount in enumerate(MOUNTS):
        d = f"dir/{umask:o}.{i}"
        put(f"{mount}/{d}.f", b"f", mode=0o666)
        put(f"{mount}/{d}.x", b"x", mode=0o700)
        os.mkdir(f"{mount}/{d}.d", 0o777)
        os.mkfifo(f"{mount}/{d}.p", 0o644)
        os.symlink("x", f"{mount}/{d}.s")
        put(f"{mount}/{d}.d/f", b"below", mode=0o666)
        other = MOUNTS[(i + 1) % 3]
        eventually(lambda: there(f"{other}/{d}.d/f"))
        for m in (mount, other):
            for name, want in ((".f", "0o660"), (".x", "0o700"), (".d", "0o770"), (".p", "0o640"), (".d/f", "0o660")):
                same(mode(m + "/" + d + name), want, m, d, name)
            same(os.getxattr(f"{m}/{d}.f", ACCESS), acl(6, 5, 0, [(USER, NOBODY, 7)], 6))
            same(sorted(os.listxattr(f"{m}/{d}.d")), [ACCESS, DEFAULT])
            same(os.getxattr(f"{m}/{d}.d", DEFAULT), default)
            same(os.listxattr(f"{m}/{d}.s", follow_symlinks=False), [])
            check(may(f"{m}/{d}.f", os.O_RDWR) and not may(f"{m}/{d}.x"))
os.removexattr(f"{B}/dir", DEFAULT)
same(os.listxattr(f"{B}/dir"), [])
os.umask(0o022)

# --- the umask, without one
os.mkdir(f"{A}/plain", 0o777)
everywhere("plain")
for umask, f, d in ((0, "0o666", "0o777"), (0o077, "0o600", "0o700"), (0o777, "0o0", "0o0"), (0o027, "0o640", "0o750")):
    os.umask(umask)
    for i, mount in enumerate(MOUNTS):
        path = f"{mount}/plain/{umask:o}.{i}"
        os.close(os.open(path + "f", os.O_WRONLY | os.O_CREAT, 0o666))
        os.mkdir(path + "d", 0o777)
        os.mkfifo(path + "p", 0o666)
        same((mode(path + "f"), mode(path + "d"), mode(path + "p")), (f, d, f), path)
os.umask(0o022)

put(f"{A}/kept.acl", b"acl", mode=0o640)
os.setxattr(f"{A}/kept.acl", ACCESS, one)
os.mkdir(f"{A}/kept.d")
os.setxattr(f"{A}/kept.d", DEFAULT, default)
EOP

nodes 120 <<'EOP' || fail "set-id bits and groups"
import struct
CAP = "security.capability"
NET_RAW = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
NOBODY = 65534

def mode(path):
    return oct(stat.S_IMODE(os.stat(path).st_mode))

def append(path):
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    write(fd, b"x")
    os.close(fd)

os.umask(0)
for i, mount in enumerate(MOUNTS):
    other = MOUNTS[(i + 1) % 3]
    def armed(name, bits=0o6777, cap=True):
        path = f"{mount}/{name}.{i}"
        put(path, b"program", mode=0o777)
        os.chmod(path, bits)
        if cap:
            os.setxattr(path, CAP, NET_RAW)
        eventually(lambda: mode(path.replace(mount, other)) == oct(bits))
        return path
    def disarmed(path, bits="0o777", cap=False):
        for p in (path, path.replace(mount, other)):
            eventually(lambda: (mode(p), CAP in os.listxattr(p)) == (bits, cap), p, mode(p), os.listxattr(p))
    path = armed("write")
    nobody(lambda: append(path))
    disarmed(path)
    path = armed("truncate")
    nobody(lambda: os.truncate(path, 3))
    disarmed(path)
    path = armed("o_trunc")
    nobody(lambda: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)))
    disarmed(path)
    path = armed("chown")
    os.chown(path, 12, 34)
    disarmed(path)
    path = armed("chgrp", 0o2767, cap=False)
    os.chown(path, -1, 34)
    # Not a program of the group.
    disarmed(path, "0o2767")
    # Root may keep the bits, but not what a file can do.
    path = armed("root")
    append(path)
    disarmed(path, "0o6777")
    path = armed("dir", 0o1777, cap=False)
    os.unlink(path)
    os.mkdir(path)
    os.chmod(path, 0o6755)
    os.chown(path, 12, 34)
    same(mode(path), "0o6755")

    # A member of one more group than the first.
    path = f"{mount}/group.{i}"
    put(path, b"", mode=0o644)
    os.chown(path, NOBODY, NOBODY)
    def member():
        os.chown(path, -1, 4321)
        same(os.stat(path).st_gid, 4321)
        os.chmod(path, 0o2755)
        same(mode(path), "0o2755")
        fails(errno.EPERM, os.chown, path, -1, 99)
    nobody(member, groups=(4321,))
    # Who is not in the group does not make programs of it.
    nobody(lambda: os.chmod(path, 0o2755))
    disarmed(path, "0o755")

    # A directory hands down its group.
    path = f"{mount}/sgid.{i}"
    os.mkdir(path)
    os.chown(path, 0, 4321)
    os.chmod(path, 0o2777)
    def below():
        os.mkdir(f"{path}/d")
        put(f"{path}/f", b"", mode=0o666)
        same((os.stat(f"{path}/d").st_gid, mode(f"{path}/d")), (4321, "0o2777"))
        same((os.stat(f"{path}/f").st_gid, mode(f"{path}/f")), (4321, "0o666"))
    nobody(below)
EOP

# As programs do it.
for tool in setfacl getfacl getfattr rsync; do
	command -v $tool >/dev/null || fail "$tool: not found"
done
src=$CLUSTER/src
mkdir -p "$src/sub" && echo text >"$src/f" && echo more >"$src/sub/g" || exit 1
setfacl -m u:65534:rw,g:4321:r,m::rw "$src/f" &&
    setfacl -d -m u:65534:rwx "$src/sub" &&
    setfattr -n user.comment -v "some words" "$src/sub/g" ||
    fail "no attributes in $CLUSTER"
facl() {
	(cd "$1" && find . | LC_ALL=C sort | xargs getfacl -n &&
	    find . | LC_ALL=C sort | xargs getfattr -h -d -m -) 2>&1
}
facl "$src" >"$CLUSTER/want"
cp -a "$src" "$(mnt 1)/cp" || fail "cp -a"
rsync -aAX "$src/" "$(mnt 2)/rsync/" || fail "rsync -aAX"
tar -C "$src" --acls --xattrs -cf - . | (mkdir "$(mnt 3)/tar" &&
    tar -C "$(mnt 3)/tar" --acls --xattrs --xattrs-include='*' -xpf -) ||
    fail "tar --acls --xattrs"
same_facl() { facl "$(mnt "$1")/$2" | cmp -s - "$CLUSTER/want"; }
for n in $NODE_LIST; do
	for d in cp rsync tar; do
		wait_until "$LIMIT" same_facl "$n" "$d" && continue
		facl "$(mnt "$n")/$d" | diff "$CLUSTER/want" - >&2
		fail "$d: other attributes on node $n"
	done
done
changed=$(rsync -aAXni --delete "$src/" "$(mnt 3)/cp/") || fail "rsync -n"
[ -z "$changed" ] || fail "rsync would change $changed"
setfacl -R -b "$(mnt 3)/rsync" || fail "setfacl -b"
must_within "$LIMIT" sh -c "! getfacl -R -s '$(mnt 1)/rsync' 2>&1 | grep -q 65534"

# All nodes are killed: what was answered stays.
# shellcheck disable=SC2086
ctl kill $NODE_LIST || fail "kill"
# shellcheck disable=SC2086
ctl start $NODE_LIST || fail "start"
# shellcheck disable=SC2086
ctl wait $NODE_LIST || fail "not current again"
nodes 60 <<'EOP' || fail "after the restart"
for path in at("kept"):
    same(sorted(os.listxattr(path)), ["user.k", "user.l"], path)
    same(os.getxattr(path, "user.k"), b"k" * 3000, path)
for path in at("kept.acl"):
    same(os.listxattr(path), ["system.posix_acl_access"], path)
    def others():
        os.close(os.open(path, os.O_RDWR))
    nobody(others)
for mount in MOUNTS:
    put(f"{mount}/kept.d/f", b"", os.O_TRUNC, mode=0o666)
    same(stat.S_IMODE(os.stat(f"{mount}/kept.d/f").st_mode), 0o660)
EOP
for n in $NODE_LIST; do
	for d in cp tar; do
		must_within "$LIMIT" same_facl "$n" "$d"
	done
done
must_trees_equal .
