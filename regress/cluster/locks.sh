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

# locks.sh: locks of files exclude each other on all nodes, are freed when
# their process, fused or node is gone, and lost when their node is cut off.

. "$(dirname "$0")/../lib.sh"
cluster_up 3

lockers 120 <<'EOP' || fail "exclusion"
put(f"{A}/f", b"0" * 100)
os.mkdir(f"{A}/d")
everywhere("f")
everywhere("d")
a, b, c = (Locker(path) for path in at("f"))

# --- fcntl
a.must("lock", "ex", 0, 10)
for other in b, c:
    other.must("lock", "ex", 5, 10, want="EAGAIN")
    other.must("lock", "sh", 0, 0, want="EAGAIN")
    same(other.do("test", "sh", 0, 0), "ex 0 10 0")
b.must("lock", "ex", 10, 10)
same(a.do("test", "ex", 0, 0), "ex 10 10 0")
same(a.do("test", "ex", 0, 10), "un")
a.must("lock", "sh", 0, 10)
c.must("lock", "sh", 0, 5)
a.must("lock", "ex", 0, 10, want="EAGAIN")
a.must("lock", "un", 0, 5)
c.must("lock", "ex", 0, 5)
same(len(holders(1)), 3)
for l in a, b, c:
    l.must("lock", "un")
for n in 1, 2, 3:
    eventually(lambda: not shown(n))

# Two processes of one node, and the close of any descriptor.
a2 = Locker(f"{A}/f")
a.must("lock", "ex")
a2.must("lock", "sh", want="EAGAIN")
same(a2.do("test", "sh"), f"ex 0 0 {a.pid}")
a.must("reopen", f"{A}/f")
a2.must("lock", "ex")
a2.leave()
b.must("lock", "ex", 0, 0, True)
b.must("lock", "un")

# --- flock, which shares the space of fcntl
a.must("flock", "sh")
b.must("flock", "sh")
c.must("flock", "ex", want="EAGAIN")
c.must("lock", "ex", want="EAGAIN")
c.must("lock", "sh")
a.must("reopen", f"{A}/f")
same(len(holders(2)), 3)
a.must("close")
a.leave()
b.must("flock", "un")
eventually(lambda: len(holders(2)) == 1)
c.must("lock", "ex")
c.must("lock", "un")
a = Locker(f"{A}/f", os.O_RDONLY)
a.must("flock", "ex")
b.must("flock", "sh", want="EAGAIN")
a.must("close")
b.must("flock", "ex", True)
b.must("flock", "un")
# Even in one process; and whoever wants more of a shared lock may have to go.
b.must("flock", "ex")
b.must("lock", "ex", want="EAGAIN")
b.must("flock", "sh")
c.must("flock", "sh")
must_wait(b, "flock", "ex", True)
c.must("flock", "ex", True, want="EDEADLK")
c.must("flock", "un")
same(b.answer(), "ok")
b.must("flock", "un")
# Of an open file description.
a.leave()
a = Locker(f"{A}/f")
a.must("ofd", "ex")
b.must("ofd", "sh", want="EAGAIN")
a.must("close")
eventually(lambda: not shown(2))
b.must("ofd", "sh")
b.leave()
eventually(lambda: not shown(1))

# --- a directory: the kernel asks nobody, so that is of one node
da, da2, db = (Locker(f"{m}/d", os.O_RDONLY | os.O_DIRECTORY) for m in (A, A, B))
da.must("flock", "ex")
da2.must("flock", "ex", want="EAGAIN")
db.must("flock", "ex")
for l in da, da2, db:
    l.leave()
a.leave()
c.leave()

# --- waiting
a, b, c = (Locker(path) for path in at("f"))
a.must("lock", "ex")
must_wait(b, "lock", "ex", 0, 0, True)
must_wait(c, "lock", "sh", 0, 10, True)
a.must("write", "from a")
a.must("lock", "un")
same(b.answer(), "ok")
same(b.do("read", 6), "=from a")
b.must("write", "from b")
b.must("lock", "un")
same(c.answer(), "ok")
same(c.do("read", 6), "=from b")
c.must("lock", "un")

# What was written under the lock is seen under the next one: also by a handle
# and in pages that are older, and when the file has become longer or shorter.
for i in range(60):
    text = str(i) * (1 + i % 7)
    l, m = (a, b, c)[i % 3], (a, b, c)[(i + 1) % 3]
    l.must("lock", "ex", 0, 0, True)
    l.must("write", text, i)
    l.must("lock", "un")
    m.must("flock", "sh", True)
    same(m.do("read", len(text), i), "=" + text)
    m.must("flock", "un")

# So is what was written to a mapping, after msync.
a.must("lock", "ex", 0, 0, True)
a.must("map", "mapped")
a.must("lock", "un")
b.must("lock", "sh", 0, 0, True)
same(b.do("read", 6), "=mapped")
b.must("lock", "un")

# --- somebody else's wait ends by the administrator
a.must("lock", "ex")
must_wait(b, "lock", "ex", 0, 0, True)
number = waiters(1, b.pid)[0]["number"]
done = subprocess.run(dfsctl(3, "cancel", str(number)), capture_output=True)
same((done.returncode, done.stdout), (0, b"ok\n"))
same(b.answer(), "EIO")
check(subprocess.run(dfsctl(3, "cancel", str(number)), stderr=subprocess.DEVNULL).returncode == 1)
# --- signals end a wait, or start it again
must_wait(b, "flock_once", False)
os.kill(b.pid, signal.SIGUSR1)
same(b.answer(), "EINTR")
eventually(lambda: not waiters(1))
must_wait(b, "flock_once", True)
first = waiters(1, b.pid)[0]["number"]
for _ in range(3):
    os.kill(b.pid, signal.SIGUSR1)
    eventually(lambda: [w["number"] for w in waiters(1, b.pid)] not in ([], [first]))
    first = waiters(1, b.pid)[0]["number"]
    same(len(waiters(1)), 1)
a.must("lock", "un")
same(b.answer(), "ok")
b.must("flock", "un")
# A process that is killed while it waits is gone, and nobody waits behind it.
a.must("lock", "ex")
must_wait(b, "lock", "ex", 0, 0, True)
must_wait(c, "lock", "ex", 0, 0, True)
os.kill(b.pid, signal.SIGKILL)
eventually(lambda: os.waitid(os.P_PID, b.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))
b.end()
eventually(lambda: [w["pid"] for w in waiters(1)] == [c.pid])
a.must("lock", "un")
same(c.answer(), "ok")
eventually(lambda: len(shown(1)) == 1)
c.leave()
eventually(lambda: not shown(1))
a.leave()

# A signal sends him back behind those who came after him.
a, b, c = (Locker(path) for path in at("f"))
a.must("lock", "ex")
must_wait(b, "flock_once", True)
must_wait(c, "flock", "ex", True)
first = waiters(1, b.pid)[0]["number"]
os.kill(b.pid, signal.SIGUSR1)
eventually(lambda: [w["number"] for w in waiters(1, b.pid)] not in ([], [first]))
a.must("lock", "un")
same(c.answer(), "ok")
check(b.is_silent())
c.must("flock", "un")
same(b.answer(), "ok")
b.must("flock", "un")
end_all()
eventually(lambda: not shown(1))

# --- deadlock
# Over two files.
put(f"{A}/g", b"")
everywhere("g")
one, two = Locker(f"{A}/f"), Locker(f"{B}/f")
one.must("lock", "ex")
two.must("other", f"{B}/g", "ex")
must_wait(one, "other", f"{A}/g", "ex", True)
two.must("lock", "ex", 0, 0, True, want="EDEADLK")
two.leave()
same(one.answer(), "ok")
end_all()
# Over three nodes.
f = [Locker(path) for path in at("f")]
# Each holds its own byte and wants the next one's.
for i in 0, 1, 2:
    f[i].must("lock", "ex", i, 1)
must_wait(f[0], "lock", "ex", 1, 1, True)
f[1].must("lock", "ex", 0, 1, True, want="EDEADLK")
must_wait(f[1], "lock", "sh", 2, 1, True)
f[2].must("lock", "ex", 0, 1, True, want="EDEADLK")
f[2].must("lock", "un")
same(f[1].answer(), "ok")
f[1].must("lock", "un")
same(f[0].answer(), "ok")
end_all()
eventually(lambda: not shown(1))
EOP

lockers 200 <<'EOP' || fail "counter"
put(f"{A}/count", b"0")
everywhere("count")
EACH = 34

def count(i):
    fd = os.open(f"{MOUNTS[i % 3]}/count", os.O_RDWR)
    for j in range(EACH):
        lock = fcntl.lockf if (i + j) % 2 else fcntl.flock
        lock(fd, fcntl.LOCK_EX)
        now = int(os.pread(fd, 20, 0))
        os.pwrite(fd, str(now + 1).encode(), 0)
        lock(fd, fcntl.LOCK_UN)
    os.close(fd)
    return True

processes(9, count)
for path in at("count"):
    same(int(get(path)), 9 * EACH, path)
EOP

lockers 240 <<'EOP' || fail "leader killed"
put(f"{A}/count2", b"0")
everywhere("count2")
was = leader()
open(f"{CLUSTER}/go", "w").close()
notes = [os.pipe() for _ in range(9)]
pids = []
for i in range(9):
    pid = os.fork()
    if pid == 0:
        try:
            fd = os.open(f"{MOUNTS[i % 3]}/count2", os.O_RDWR)
            while os.path.exists(f"{CLUSTER}/go"):
                fcntl.lockf(fd, fcntl.LOCK_EX)
                now = int(os.pread(fd, 20, 0))
                os.pwrite(fd, str(now + 1).encode(), 0)
                os.fsync(fd)
                os.write(notes[i][1], b".")
                fcntl.lockf(fd, fcntl.LOCK_UN)
            os._exit(0)
        except OSError as e:
            print(f"process {i}: {e}", file=sys.stderr)
            os._exit(1)
    pids.append(pid)
done = [0] * 9
for r, w in notes:
    os.close(w)
    os.set_blocking(r, False)

def more(which, least):
    for i, (r, _) in enumerate(notes):
        try:
            done[i] += len(os.read(r, 65536))
        except BlockingIOError:
            pass
    return sum(done[i] for i in which) >= least

eventually(lambda: more(range(9), 100))
ctl("kill", was)
living = [i for i in range(9) if i % 3 != was - 1]
least = sum(done[i] for i in living) + 50
eventually(lambda: more(living, least))
os.unlink(f"{CLUSTER}/go")
for i, pid in enumerate(pids):
    _, status = os.waitpid(pid, 0)
    check(status == 0 or i not in living, f"process {i}")
more(living, 0)
ctl("start", was)
ctl("wait", was)
for path in at("count2"):
    eventually(lambda: sum(done) <= int(get(path)) <= sum(done) + 3, path, sum(done))
# What it held is free since it came back, if not before.
eventually(lambda: not shown(1))
EOP

lockers 240 <<'EOP' || fail "holder stands still"
# A raftd that stands still loses its locks; what its programs write meanwhile,
# under a lock that they think they have, must not come after the next one's.
put(f"{A}/s", b"before")
everywhere("s")
n = leader() % 3 + 1
other = n % 3 + 1
holder, waiter = Locker(f"{MOUNTS[n - 1]}/s"), Locker(f"{MOUNTS[other - 1]}/s")
holder.must("lock", "ex")
holder.must("write", "held")
holder.must("fsync")
must_wait(waiter, "lock", "ex", 0, 0, True)
ctl("pause", n)
for i in range(20):
    holder.must("write", "too late", i * 4)
same(waiter.answer(), "ok")
waiter.must("write", "taken")
waiter.must("fsync")
ctl("resume", n)
holder.must("fsync", want="EIO")
eventually(lambda: holder.do("read") == "EIO")
waiter.must("lock", "un")
for path in at("s"):
    eventually(lambda: get(path) == b"takene", path)
holder.must("close", want="EIO")
holder.leave()
again = Locker(f"{MOUNTS[n - 1]}/s")
eventually(lambda: again.do("lock", "ex") == "ok")
again.must("write", "after")
again.leave()
for path in at("s"):
    eventually(lambda: get(path) == b"aftere", path)
waiter.leave()
eventually(lambda: not shown(other))
EOP

lockers 240 <<'EOP' || fail "holders gone"
fences = []

def fence():
    (lock,) = holders(3)
    fences.append(lock["number"])

for n in range(3):
    # kill -9 of the process
    holder = Locker(f"{MOUNTS[n]}/f")
    waiter = Locker(f"{MOUNTS[(n + 1) % 3]}/f")
    holder.must("lock", "ex")
    eventually(lambda: holders(3))
    fence()
    must_wait(waiter, "lock", "ex", 0, 0, True)
    holder.end()
    same(waiter.answer(), "ok")
    eventually(lambda: holders(3)[0]["pid"] == waiter.pid)
    fence()
    waiter.leave()
    eventually(lambda: not shown(3))

# fused
holder, waiter = Locker(f"{B}/f"), Locker(f"{C}/f")
holder.must("flock", "ex")
eventually(lambda: holders(3))
fence()
must_wait(waiter, "flock", "ex", True)
ctl("kill", "-f", 2)
same(waiter.answer(), "ok")
eventually(lambda: holders(3)[0]["pid"] == waiter.pid)
fence()
holder.end()
# A waiter whose fused is killed waits no more, and takes nothing.
eventually(lambda: opens(f"{B}/f"))
other = Locker(f"{B}/f")
must_wait(other, "flock", "ex", True)
ctl("kill", "-f", 2)
check(other.answer() in ("ENOTCONN", "ECONNABORTED"))
eventually(lambda: not waiters(3))
other.end()
waiter.leave()
eventually(lambda: not shown(3))

# the node, which does not come back
eventually(lambda: opens(f"{B}/f"))
holder, waiter = Locker(f"{B}/f"), Locker(f"{C}/f")
holder.must("lock", "ex")
eventually(lambda: holders(3))
fence()
must_wait(waiter, "lock", "ex", 0, 0, True)
die(2)
same(waiter.answer(), "ok")
eventually(lambda: holders(3)[0]["pid"] == waiter.pid)
fence()
ctl("start", 2)
ctl("wait", 2)
same(len(shown(2)), 1)
same(fences, sorted(set(fences)))
end_all()
eventually(lambda: not shown(2))
EOP

grep -q '^net=netns' "$CLUSTER/cluster" || exit 0
lockers 240 <<'EOP' || fail "cut off"
put(f"{A}/p", b"before")
everywhere("p")
was = leader()
for cut in was, was % 3 + 1:
    eventually(lambda: leader() is not None)
    other = cut % 3 + 1
    holder, waiter = Locker(f"{MOUNTS[cut - 1]}/p"), Locker(f"{MOUNTS[other - 1]}/p")
    beside = Locker(f"{MOUNTS[cut - 1]}/p")
    holder.must("lock", "ex")
    holder.must("write", "held")
    holder.must("fsync")
    eventually(lambda: holders(other))
    number = holders(other)[0]["number"]
    must_wait(waiter, "lock", "ex", 0, 0, True)
    ctl("cut", cut)
    # One that is asked for only now ends, too.
    beside.ask("lock", "ex", 0, 0, True)
    same(waiter.answer(), "ok")
    check(holders(other)[0]["number"] > number)
    waiter.must("write", "taken")
    waiter.must("fsync")
    same(beside.answer(), "EIO")
    eventually(lambda: holder.do("read") == "EIO")
    holder.must("write", "too late", want="EIO")
    holder.must("fsync", want="EIO")
    holder.must("lock", "sh", 0, 0, want="EIO")
    ctl("heal")
    ctl("wait", cut)
    holder.must("write", "too late", want="EIO")
    waiter.leave()
    eventually(lambda: beside.do("lock", "ex", 0, 0) == "ok")
    same(beside.do("read", 5), "=taken")
    beside.must("write", "after")
    # The handle, not the process.
    holder.must("close", want="EIO")
    holder.leave()
    again = Locker(f"{MOUNTS[cut - 1]}/p")
    again.must("lock", "ex", want="EAGAIN")
    beside.leave()
    again.must("lock", "ex", 0, 0, True)
    same(again.do("read", 5), "=after")
    again.leave()
    for n in 1, 2, 3:
        eventually(lambda: not shown(n), n)
EOP
