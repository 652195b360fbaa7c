#!/usr/bin/env python3
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

"""nodes.py: runs the program on its standard input against the mounts of
$CLUSTER, for what a shell cannot say.  It has all of this file, and

	A, B, C     the mount points of nodes 1, 2 and 3
	MOUNTS      all mount points

It ends with 0 when the program does, and with 1 and the line that failed when
it raises anything or takes longer than the seconds given as the argument: the
part that hangs is left behind then, to be freed when its mount goes."""

import ctypes
import errno
import faulthandler
import linecache
import mmap
import os
import re
import signal
import stat
import subprocess
import sys
import time
import traceback

LIMIT = int(os.environ.get("LIMIT", "60"))
CLUSTER = os.environ["CLUSTER"]
MOUNTS = [f"{CLUSTER}/{name}/mnt" for name in
          sorted((d for d in os.listdir(CLUSTER) if re.fullmatch(r"n\d+", d)), key=lambda d: int(d[1:]))]
A, B, C = (MOUNTS + [None] * 3)[:3]

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
AT_FDCWD = -100
libc = ctypes.CDLL(None, use_errno=True)
# Linux has it, OpenBSD has not.
HAVE_RENAMEAT2 = hasattr(libc, "renameat2")


def at(*names):
    """The same path on each node."""
    return [os.path.join(m, *names) for m in MOUNTS]


def check(truth, *what):
    if not truth:
        raise AssertionError(*what)


def same(got, want, *what):
    if got != want:
        raise AssertionError(f"got {got!r}", f"want {want!r}", *what)


def fails(want, call, *args, **kwargs):
    """The call fails with this errno, or one of several."""
    want = want if isinstance(want, tuple) else (want,)
    try:
        got = call(*args, **kwargs)
    except OSError as e:
        names = [errno.errorcode[w] for w in want]
        check(e.errno in want, f"{errno.errorcode[e.errno]}, want {names}", call.__name__, args)
        return
    if isinstance(got, int):
        raise AssertionError(f"succeeded, want {errno.errorcode[want[0]]}", call.__name__, args)
    raise AssertionError(f"succeeded with {got!r}, want {errno.errorcode[want[0]]}", call.__name__, args)


def eventually(truth, *what):
    """stat and readdir may be some milliseconds behind other nodes."""
    end = time.monotonic() + LIMIT
    while True:
        try:
            if truth():
                return
            last = "false"
        except OSError as e:
            last = e
        check(time.monotonic() < end, f"not within {LIMIT} s: {last}", *what)
        time.sleep(0.005)


def there(path):
    return os.path.lexists(path)


def everywhere(*names):
    """Waits until each node has such a name."""
    for path in at(*names):
        eventually(lambda: there(path), path)


def nowhere(*names):
    for path in at(*names):
        eventually(lambda: not there(path), path)


def put(path, data, flags=0, mode=0o644):
    """Written, synced and closed."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags, mode)
    try:
        write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def write(fd, data):
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


def get(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(fd, 1 << 20):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def renameat2(old, new, flags):
    if libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags):
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e), old)


def processes(count, work):
    """Runs work(0), work(1) ... at once; what each returns must be true."""
    ready_r, ready_w = os.pipe()
    go_r, go_w = os.pipe()
    pids = []
    for i in range(count):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(go_w)
                os.write(ready_w, b"r")
                os.read(go_r, 1)
                code = 0 if work(i) else 1
            except BaseException:
                report()
            finally:
                sys.stdout.flush()
                os._exit(code)
        pids.append(pid)
    for _ in pids:
        os.read(ready_r, 1)
    for fd in (ready_r, ready_w, go_r, go_w):
        os.close(fd)
    bad = [pid for pid in pids if os.waitpid(pid, 0)[1]]
    check(not bad, f"{len(bad)} of {count} processes failed")


def nobody(work, groups=()):
    """Runs work() as the user 65534, who owns nothing."""
    def drop(_):
        os.setgroups(list(groups))
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        work()
        return True
    processes(1, drop)


def report():
    kind, value, trace = sys.exc_info()
    frames = [f for f in traceback.extract_tb(trace) if f.filename == "<script>"]
    for f in frames:
        print(f"line {f.lineno}: {f.line}", file=sys.stderr)
    print(f"{kind.__name__}: {value}", file=sys.stderr)


def run(program, limit):
    faulthandler.dump_traceback_later(limit)
    linecache.cache["<script>"] = (len(program), None, program.splitlines(True), "<script>")
    try:
        exec(compile(program, "<script>", "exec"), globals())
    except BaseException:
        report()
        return 1
    return 0


def main():
    limit = int(sys.argv[1]) if len(sys.argv) > 1 else 120
    program = sys.stdin.read()
    pid = os.fork()
    if pid == 0:
        code = run(program, limit)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    end = time.monotonic() + limit + 2
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            sys.exit(1 if status else 0)
        time.sleep(0.01)
    print(f"hangs: more than {limit} s", file=sys.stderr)
    os.kill(pid, signal.SIGKILL)
    sys.exit(1)


if __name__ == "__main__":
    main()
