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


"""lockers.py: processes that lock files, for programs that nodes.py runs.
Read with exec: it needs all that nodes.py has."""

import fcntl
import json
import select
import struct
import subprocess

TOP, BIN = os.environ["TOP"], os.environ["BIN"]


def ctl(*words):
    subprocess.run(["sh", f"{TOP}/regress/cluster/ctl", "-d", CLUSTER, *map(str, words)], check=True)


def die(node):
    """All at once: a raftd that outlives its fused would still unlock."""
    ctl("pause", node)
    ctl("kill", node)


def leader():
    done = subprocess.run(["sh", f"{TOP}/regress/cluster/ctl", "-d", CLUSTER, "leader"],
                          capture_output=True, text=True)
    return int(done.stdout) if done.stdout.strip() else None


def dfsctl(node, *words):
    return [f"{BIN}/dfsctl", "-s", f"{CLUSTER}/n{node}/dfsd.sock", *words]


def shown(node):
    """All locks, as the node has them."""
    done = subprocess.run(dfsctl(node, "-j", "show", "locks"), capture_output=True, check=True)
    return json.loads(done.stdout)["locks"]


def waiters(node, pid=None):
    return [l for l in shown(node) if not l["held"] and pid in (None, l["pid"])]


def holders(node):
    return [l for l in shown(node) if l["held"]]


class Locker:
    """A process that has one file open and does as it is told."""

    all = []

    def __init__(self, path, flags=os.O_RDWR):
        ask_r, self.ask_w = os.pipe()
        self.answer_r, answer_w = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            for other in Locker.all + [self]:
                os.close(other.ask_w)
                os.close(other.answer_r)
            try:
                self.serve(path, flags, os.fdopen(ask_r), answer_w)
            finally:
                os._exit(0)
        os.close(ask_r)
        os.close(answer_w)
        Locker.all.append(self)
        same(self.answer(), "ok", path)

    def serve(self, path, flags, ask, answer):
        os.write(answer, self.attempt(self.open, path, flags))
        for line in ask:
            word, *args = json.loads(line)
            os.write(answer, self.attempt(getattr(self, "do_" + word), *args))

    def attempt(self, call, *args):
        try:
            got = call(*args)
            return ("ok" if got is None else str(got)).encode()
        except OSError as e:
            # Linux has another name for the number as well.
            name = "EDEADLK" if e.errno == errno.EDEADLK else errno.errorcode[e.errno]
            return name.encode()

    def open(self, path, flags):
        self.fd = os.open(path, flags, 0o644)

    def do_lock(self, how, start=0, length=0, wait=False):
        kind = {"ex": fcntl.LOCK_EX, "sh": fcntl.LOCK_SH, "un": fcntl.LOCK_UN}[how]
        no_wait = 0 if wait or how == "un" else fcntl.LOCK_NB
        fcntl.lockf(self.fd, kind | no_wait, length, start)

    def do_other(self, path, how, wait=False):
        """All of another file, as well."""
        kind = {"ex": fcntl.LOCK_EX, "sh": fcntl.LOCK_SH}[how]
        self.other = os.open(path, os.O_RDWR)
        fcntl.lockf(self.other, kind | (0 if wait else fcntl.LOCK_NB))

    def do_flock(self, how, wait=False):
        kind = {"ex": fcntl.LOCK_EX, "sh": fcntl.LOCK_SH, "un": fcntl.LOCK_UN}[how]
        fcntl.flock(self.fd, kind | (0 if wait else fcntl.LOCK_NB))

    def do_flock_once(self, restarts):
        """Waits with flock(2); SIGUSR1 ends the wait, or has it start again."""
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.siginterrupt(signal.SIGUSR1, not restarts)
        if libc.flock(self.fd, fcntl.LOCK_EX):
            e = ctypes.get_errno()
            raise OSError(e, os.strerror(e))

    def do_ofd(self, how):
        kind = {"ex": fcntl.F_WRLCK, "sh": fcntl.F_RDLCK, "un": fcntl.F_UNLCK}[how]
        fcntl.fcntl(self.fd, 37, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0))

    def do_test(self, how, start=0, length=0):
        kind = {"ex": fcntl.F_WRLCK, "sh": fcntl.F_RDLCK}[how]
        flock = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
        kind, _, start, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(self.fd, fcntl.F_GETLK, flock))
        name = {fcntl.F_WRLCK: "ex", fcntl.F_RDLCK: "sh", fcntl.F_UNLCK: "un"}[kind]
        return "un" if name == "un" else f"{name} {start} {length} {pid}"

    def do_write(self, text, at=0):
        os.pwrite(self.fd, text.encode(), at)

    def do_read(self, length=64, at=0):
        return "=" + os.pread(self.fd, length, at).decode()

    def do_map(self, text):
        with mmap.mmap(self.fd, 0) as mapping:
            mapping[:len(text)] = text.encode()
            mapping.flush()

    def do_fsync(self):
        os.fsync(self.fd)

    def do_close(self):
        os.close(self.fd)

    def do_reopen(self, path):
        """Another descriptor, closed at once: that unlocks what fcntl locked."""
        os.close(os.open(path, os.O_RDONLY))

    def ask(self, *words):
        os.write(self.ask_w, (json.dumps(words) + "\n").encode())

    def answer(self, limit=LIMIT):
        ready, _, _ = select.select([self.answer_r], [], [], limit)
        check(ready, f"process {self.pid}: no answer within {limit} s")
        got = os.read(self.answer_r, 4096).decode()
        check(got, f"process {self.pid}: gone")
        return got

    def is_silent(self):
        return not select.select([self.answer_r], [], [], 0)[0]

    def do(self, *words):
        self.ask(*words)
        return self.answer()

    def must(self, *words, want="ok"):
        same(self.do(*words), want, *words)

    def end(self, how=signal.SIGKILL):
        os.kill(self.pid, how)
        os.waitpid(self.pid, 0)
        Locker.all.remove(self)
        os.close(self.ask_w)
        os.close(self.answer_r)

    def leave(self):
        """Ends by itself."""
        os.close(self.ask_w)
        os.close(self.answer_r)
        os.waitpid(self.pid, 0)
        Locker.all.remove(self)


def must_wait(locker, *words):
    """It asks, and every node knows that it waits."""
    locker.ask(*words)
    for n in range(1, len(MOUNTS) + 1):
        eventually(lambda: waiters(n, locker.pid), n)
    check(locker.is_silent(), "does not wait", *words)


def opens(path):
    """Of a mount that is new, which a look at the name does not tell."""
    os.close(os.open(path, os.O_RDWR))
    return True


def end_all():
    for locker in list(Locker.all):
        locker.end()
