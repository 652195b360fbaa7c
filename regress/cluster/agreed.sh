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

# agreed.sh: what mount_dfs(8) says to be agreed when the system call returns
# does not return while no majority can agree, and then does, with success, and
# is seen on all nodes: on a leader both of whose followers hang, and on a
# follower when the leader and the other one do.

. "$(dirname "$0")/../lib.sh"
# It must be over before the loss of the quorum is known, after 10 seconds; no
# error of the mount's timeout is to be taken for an answer.
cluster_up 3 -o "timeout 120"

nodes() { TOP=$TOP python3 -B "$TOP/regress/cluster/nodes.py" "$@"; }

nodes $((LIMIT * 4)) <<'EOF' || fail "over too early, or not well"
import select

LINUX = sys.platform == "linux"
F = b"f" * 8192
G = b"g" * 8192
TIME = (10**18 + 1000, 11 * 10**17 + 3000)
O_DIRECT = getattr(os, "O_DIRECT", 0)
CALLS, KEPT = [], []
# To yield this means that a part comes that need not wait.
FIRST = True


def agreed(seen, linux=False):
    """A call to be made in a directory of its own, and what is seen of it in
    that directory of any node then.  What is before the first yield is done
    beforehand, what comes after the last one must wait."""
    def add(call):
        if LINUX or not linux:
            CALLS.append((call, seen))
        return call
    return add


def linux(seen):
    return agreed(seen, linux=True)


def mode(name):
    return os.stat(name).st_mode


@agreed(lambda: stat.S_ISDIR(mode("new")))
def mkdir():
    yield
    os.mkdir("new")

@agreed(lambda: not there("d"))
def rmdir():
    yield
    os.rmdir("d")

@agreed(lambda: get("new") == F and not there("f"))
def rename():
    yield
    os.rename("f", "new")

# Here the kernel knows both names, and asks for nothing but the change.
@agreed(lambda: get("g") == F and not there("f"))
def rename_over():
    os.stat("f"), os.stat("g")
    yield
    os.rename("f", "g")

@linux(lambda: get("g") == F and get("f") == G)
def rename_exchange():
    os.stat("f"), os.stat("g")
    yield
    renameat2("f", "g", RENAME_EXCHANGE)

@agreed(lambda: os.path.samefile("f", "new") and os.stat("f").st_nlink == 2)
def link():
    yield
    os.link("f", "new")

@agreed(lambda: os.readlink("new") == "f")
def symlink():
    yield
    os.symlink("f", "new")

@agreed(lambda: not there("f"))
def unlink():
    os.stat("f")
    yield
    os.unlink("f")

@agreed(lambda: stat.S_ISFIFO(mode("new")))
def mkfifo():
    yield
    os.mkfifo("new")

@agreed(lambda: get("new") == b"")
def create_excl():
    yield
    os.open("new", os.O_WRONLY | os.O_CREAT | os.O_EXCL)

@agreed(lambda: get("new") == b"")
def create():
    yield
    os.open("new", os.O_WRONLY | os.O_CREAT)

@agreed(lambda: get("f") == b"")
def open_trunc():
    yield
    os.open("f", os.O_WRONLY | os.O_TRUNC)

@agreed(lambda: stat.S_IMODE(mode("f")) == 0o600)
def chmod():
    os.stat("f")
    yield
    os.chmod("f", 0o600)

@agreed(lambda: stat.S_IMODE(mode("d")) == 0o1700)
def chmod_directory():
    os.stat("d")
    yield
    os.chmod("d", 0o1700)

@agreed(lambda: stat.S_IMODE(mode("f")) == 0o600)
def fchmod_open():
    fd = os.open("f", os.O_RDWR)
    yield
    os.fchmod(fd, 0o600)

@agreed(lambda: (os.stat("f").st_uid, os.stat("f").st_gid) == (1, 2))
def chown():
    os.stat("f")
    yield
    os.chown("f", 1, 2)

@agreed(lambda: (os.stat("f").st_atime_ns, os.stat("f").st_mtime_ns) == TIME)
def utimes():
    os.stat("f")
    yield
    os.utime("f", ns=TIME)

@agreed(lambda: get("f") == F[:5])
def truncate():
    os.stat("f")
    yield
    os.truncate("f", 5)

@agreed(lambda: os.stat("f").st_size == 20000 and get("f") == F + bytes(20000 - len(F)))
def ftruncate():
    fd = os.open("f", os.O_RDWR)
    yield
    os.ftruncate(fd, 20000)

# Attributes by the thread that has made the file may be answered at once; but
# not when it has closed it, and close waits for them.
@agreed(lambda: stat.S_IMODE(mode("new")) == 0o604 and os.stat("new").st_mtime_ns == TIME[1])
def attributes_of_the_made():
    fd = os.open("new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    yield
    os.fchmod(fd, 0o604)
    os.utime("new", ns=TIME)
    os.close(fd)

@agreed(lambda: stat.S_IMODE(mode("new")) == 0o604)
def attributes_of_the_made_to_read():
    fd = os.open("new", os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o644)
    yield
    os.fchmod(fd, 0o604)
    os.close(fd)

@agreed(lambda: stat.S_IMODE(mode("new")) == 0o604)
def attributes_of_the_made_synced():
    fd = os.open("new", os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o644)
    yield
    os.fchmod(fd, 0o604)
    os.fsync(fd)

@agreed(lambda: stat.S_IMODE(mode("new")) == 0o604)
def attributes_of_the_closed():
    fd = os.open("new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    yield FIRST
    os.close(fd)
    yield
    os.chmod("new", 0o604)

@linux(lambda: os.getxattr("f", "user.new") == b"new")
def setxattr():
    os.stat("f")
    yield
    os.setxattr("f", "user.new", b"new")

@linux(lambda: os.listxattr("f") == [])
def removexattr():
    os.setxattr("f", "user.old", b"old")
    yield
    os.removexattr("f", "user.old")

@linux(lambda: get("f") == F + bytes(100000 - len(F)))
def fallocate():
    fd = os.open("f", os.O_RDWR)
    yield
    os.posix_fallocate(fd, 0, 100000)

@linux(lambda: get("f") == bytes(4096) + F[4096:])
def punch_hole():
    fd = os.open("f", os.O_RDWR)
    offset, length = ctypes.c_int64(0), ctypes.c_int64(4096)
    yield
    same(libc.fallocate(fd, 1 | 2, offset, length), 0, ctypes.get_errno())

@agreed(lambda: get("f") == G)
def write_fsync():
    fd = os.open("f", os.O_RDWR)
    yield FIRST
    write(fd, G)
    yield
    os.fsync(fd)

@agreed(lambda: get("f") == G)
def write_fdatasync():
    fd = os.open("f", os.O_RDWR)
    yield FIRST
    write(fd, G)
    yield
    getattr(os, "fdatasync", os.fsync)(fd)

@agreed(lambda: get("f") == G)
def write_close():
    fd = os.open("f", os.O_RDWR)
    yield FIRST
    write(fd, G)
    yield
    os.close(fd)

@agreed(lambda: get("f") == G)
def write_sync():
    fd = os.open("f", os.O_RDWR | os.O_SYNC)
    yield
    write(fd, G)

@linux(lambda: get("f") == F + G)
def write_append():
    fd = os.open("f", os.O_WRONLY | os.O_APPEND)
    yield
    write(fd, G)

@linux(lambda: get("f") == G)
def write_direct_fsync():
    fd = os.open("f", os.O_RDWR | O_DIRECT)
    page = mmap.mmap(-1, len(G))
    page[:] = G
    yield
    os.pwrite(fd, page, 0)
    os.fsync(fd)

@agreed(lambda: get("f") == G)
def write_mapped():
    fd = os.open("f", os.O_RDWR)
    memory = mmap.mmap(fd, len(F))
    # Its end closes a descriptor, and that waits, too.
    KEPT.append(memory)
    # All of it is there, and can be written to without a question.
    same(memory[:], F)
    yield FIRST
    memory[:] = G
    yield
    memory.flush()


def ctl(*args):
    command = ["sh", f"{os.environ['TOP']}/regress/cluster/ctl", "-d", CLUSTER, *args]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout


def leader():
    found = []
    def look():
        try:
            found.append(int(ctl("leader")))
        except subprocess.CalledProcessError:
            return False
        return True
    eventually(look, "no leader")
    return found[0]


def status(node):
    """What the node says of itself: the first line, and how far its log goes."""
    command = [f"{os.environ['BIN']}/dfsctl", "-s", f"{CLUSTER}/n{node}/dfsd.sock", "status"]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    check(said, f"node {node} does not answer")
    rows = [line.replace("*", " ").split() for line in said[1:]]
    match = [row[3] for row in rows if row[:1] == [str(node)]]
    return said[0], int(match[0]) if match[:1] != ["-"] else 0


class Round:
    """All calls at once, on one node, while the two others hang."""

    def __init__(self, name, node):
        self.name, self.node = name, node
        self.here = f"{MOUNTS[node - 1]}/{name}"
        self.others = [str(n) for n in range(1, 4) if n != node]
        self.pids = []
        self.ready, self.gate, self.begun, self.over = (os.pipe() for _ in range(4))

    def prepare(self):
        os.mkdir(self.here)
        for call, _ in CALLS:
            own = f"{self.here}/{call.__name__}"
            os.mkdir(own)
            os.mkdir(f"{own}/d")
            put(f"{own}/f", F)
            put(f"{own}/g", G)
        everywhere(self.name, CALLS[-1][0].__name__, "g")
        for call, _ in CALLS:
            pid = os.fork()
            if pid == 0:
                self.child(call)
            self.pids.append(pid)
        self.hear(self.ready)

    def child(self, call):
        how = b"failed"
        try:
            os.umask(0)
            # No path is to be walked later.
            os.chdir(f"{self.here}/{call.__name__}")
            steps = call()
            first = next(steps)
            os.write(self.ready[1], b"r")
            os.read(self.gate[0], 1)
            if first:
                next(steps)
            os.write(self.begun[1], b"b")
            next(steps, None)
            how = b"returned"
        except BaseException:
            report()
        finally:
            # Before the exit, which closes files, and that waits as well.
            os.write(self.over[1], b"%s %s\n" % (call.__name__.encode(), how))
            os._exit(0)

    def hear(self, pipe):
        """A byte of each."""
        count = 0
        end = time.monotonic() + LIMIT
        while count < len(CALLS):
            self.none_over()
            check(time.monotonic() < end, f"{count} of {len(CALLS)} processes got there")
            if select.select([pipe[0]], [], [], 0.05)[0]:
                count += len(os.read(pipe[0], len(CALLS)))

    def news(self):
        """The calls that are over since, and how each is."""
        if not select.select([self.over[0]], [], [], 0)[0]:
            return []
        return os.read(self.over[0], 1 << 16).decode().splitlines()

    def none_over(self):
        same(self.news(), [], f"{self.name}: over before a majority could agree")

    def hang(self):
        """Returns what the node was meanwhile."""
        ctl("pause", *self.others)
        os.write(self.gate[1], b"g" * len(CALLS))
        self.hear(self.begun)
        # The node takes 2 seconds to find that it cannot say how things are, and
        # a leader half of one more for which it trusts what it knew.
        while True:
            says, match = status(self.node)
            self.none_over()
            if "not current" in says or "no quorum" in says:
                break
        check("no quorum" not in says, "the loss is known: too slow a machine", says)
        print(f"{self.name}: {len(CALLS)} calls wait: {says}, log to {match}", flush=True)
        role = says.split(", ")[1].split()[0]
        if role == "leader":
            applied = int(re.search(r"applied (\d+)", says)[1])
            check(match > applied, "nothing was proposed", says, match)
        return role

    def resume(self):
        ctl("resume", *self.others)
        waiting = {call.__name__ for call, _ in CALLS}
        def all_well():
            for line in self.news():
                name, how = line.split()
                same(how, "returned", f"{self.name}: {name}")
                waiting.remove(name)
            return not waiting
        eventually(all_well, self.name, "these still wait:", waiting)
        for pid in self.pids:
            os.waitpid(pid, 0)
        for fd in (*self.ready, *self.gate, *self.begun, *self.over):
            os.close(fd)

    def look(self):
        for call, seen in CALLS:
            for own in at(self.name, call.__name__):
                os.chdir(own)
                eventually(seen, own)
        os.chdir("/")

    def run(self):
        self.prepare()
        role = self.hang()
        self.resume()
        self.look()
        return role


# Who leads may change between the question and the pause.
wanted = {"leader", "other"}
for n in range(1, 9):
    lead = leader()
    node = lead if "leader" in wanted else lead % 3 + 1
    role = Round(f"r{n}", node).run()
    wanted.discard("leader" if role == "leader" else "other")
    if not wanted:
        break
check(not wanted, "leadership moved every time", wanted)
EOF
must_trees_equal .
