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

# owner.sh: a file that another node gives away: nobody is judged by the owner
# that it had, neither by its name nor by a descriptor that he has.

. "$(dirname "$0")/../lib.sh"
[ "$(uname -s)" = Linux ] || skip "apply judges by itself"
cluster_up 3
export TOP

python3 -B "$TOP/regress/cluster/nodes.py" 200 <<'EOF' || fail "see above"
USER = 1000
os.chmod(A, 0o755)
os.mkdir(f"{A}/d")
os.chmod(f"{A}/d", 0o777)
os.mkdir(f"{A}/tmp")
os.chmod(f"{A}/tmp", 0o1777)


def as_user(uid, call):
    """The errno of the call made by that user, or 0."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            call()
            code = 0
        except OSError as e:
            code = e.errno
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


ACL = b"".join(bytes.fromhex(x) for x in (
    "02000000", "01000700ffffffff", "04000700ffffffff", "20000700ffffffff"))
CALLS = {
    "chmod": lambda p, fd: os.chmod(p, 0o4777),
    "fchmod": lambda p, fd: os.fchmod(fd, 0o4777),
    "utime": lambda p, fd: os.utime(p, (1, 1)),
    "futime": lambda p, fd: os.utime(fd, (1, 1)),
    "chown": lambda p, fd: os.chown(p, -1, USER),
    "fchown": lambda p, fd: os.fchown(fd, -1, USER),
    "acl": lambda p, fd: os.setxattr(p, "system.posix_acl_access", ACL),
    "facl": lambda p, fd: os.setxattr(fd, "system.posix_acl_access", ACL),
    "fnoacl": lambda p, fd: os.removexattr(fd, "system.posix_acl_access"),
    "unlink": lambda p, fd: os.unlink(p),
    "rename": lambda p, fd: os.rename(p, p + ".new"),
}
for directory in ("d", "tmp"):
    for name, call in CALLS.items():
        here, there = f"{A}/{directory}/{name}", f"{C}/{directory}/{name}"
        put(here, b"x")
        os.chown(here, USER, USER)
        fd = os.open(here, os.O_RDWR)
        same(as_user(USER, lambda: os.utime(here)), 0, "his own")
        os.chown(there, 0, 0)
        os.chmod(there, 0o644)
        # By a descriptor at once; its name is told some milliseconds later, and
        # behind it this one.
        put(f"{C}/marker.new", f"{directory} {name}".encode())
        os.rename(f"{C}/marker.new", f"{C}/marker")
        if not name.startswith("f"):
            eventually(lambda: get(f"{A}/marker") == f"{directory} {name}".encode(), name)
        got = as_user(USER, lambda: call(here, fd))
        os.close(fd)
        if directory == "d" and name in ("unlink", "rename"):
            same(got, 0, name)
            continue
        same(got, errno.EPERM, name, directory)
        now = os.stat(there)
        same((now.st_mode & 0o7777, now.st_uid, now.st_gid), (0o644, 0, 0), name)

# Who has it now may do all that at once, by its name.
for name in ("chmod", "utime", "acl"):
    here, there = f"{A}/d/{name}.given", f"{C}/d/{name}.given"
    put(here, b"x")
    as_user(USER, lambda: os.stat(here))
    os.chown(there, USER, USER)
    eventually(lambda: as_user(USER, lambda: CALLS[name](here, None)) == 0, name)
EOF
must_trees_equal .
grep -il panicked "$CLUSTER"/n*/log && fail "a panic in the log"
exit 0
