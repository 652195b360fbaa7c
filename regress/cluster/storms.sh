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

# storms.sh: all nodes change the same few names at once.  Each call succeeds
# or fails as it may; then all nodes have one tree, in which the counts of
# links and ".." are right.
#
#	OPS=n		calls of each of the processes

. "$(dirname "$0")/../lib.sh"
OPS=${OPS:-400}
export OPS
cluster_up 3

python3 -B "$TOP/regress/cluster/nodes.py" $((240 + OPS / 5)) <<'EOF' || fail "see above"
import random

OPS = int(os.environ["OPS"])

# --- one winner each
def race(what, call):
    """Each node does it to each of the same names; call(mount, path, i) is true for the winner."""
    os.mkdir(f"{A}/{what}")
    everywhere(what)
    for mount in MOUNTS:
        put(f"{mount}/{what}/from.{MOUNTS.index(mount)}", b"")
    def racer(i):
        mount, won = MOUNTS[i % 3], []
        for k in range(30):
            try:
                call(f"{mount}/{what}", f"{mount}/{what}/{k}", i)
                won.append(k)
            except FileExistsError:
                pass
        open(f"{CLUSTER}/{what}.{i}", "w").write(" ".join(map(str, won)))
        return True
    processes(6, racer)
    won = sorted(int(k) for i in range(6) for k in open(f"{CLUSTER}/{what}.{i}").read().split())
    same(won, list(range(30)), f"{what}: not one winner each")

def moved(dir, path, i):
    own = f"{dir}/own.{i}"
    if not there(own):
        put(own, b"")
    renameat2(own, path, RENAME_NOREPLACE)

race("mkdir", lambda dir, path, i: os.mkdir(path))
race("symlink", lambda dir, path, i: os.symlink(f"{i}", path))
race("link", lambda dir, path, i: os.link(f"{dir}/from.{i % 3}", path))
race("mknod", lambda dir, path, i: os.mkfifo(path))
if HAVE_RENAMEAT2:
    race("noreplace", moved)

# Of rmdir, unlink and rename, too, one has what there is.
os.mkdir(f"{A}/gone")
for k in range(30):
    os.mkdir(f"{A}/gone/d{k}")
    put(f"{A}/gone/f{k}", b"")
everywhere("gone", "f29")
def remover(i):
    mount, won = MOUNTS[i % 3], []
    for k in range(30):
        for name, call in ((f"d{k}", os.rmdir), (f"f{k}", os.unlink)):
            try:
                if i < 3:
                    call(f"{mount}/gone/{name}")
                else:
                    os.rename(f"{mount}/gone/{name}", f"{mount}/gone/{name}.{i}")
                won.append(name)
            except FileNotFoundError:
                pass
    open(f"{CLUSTER}/gone.{i}", "w").write(" ".join(won))
    return True
processes(6, remover)
won = sorted(n for i in range(6) for n in open(f"{CLUSTER}/gone.{i}").read().split())
same(won, sorted([f"d{k}" for k in range(30)] + [f"f{k}" for k in range(30)]), "gone: not one winner each")

# --- loops: a goes into b while b goes into a
os.mkdir(f"{A}/loops")
for k in range(40):
    os.makedirs(f"{A}/loops/{k}/a/x")
    os.makedirs(f"{A}/loops/{k}/b/y")
everywhere("loops", "39", "b", "y")
def looper(i):
    for k in range(40):
        d = f"{MOUNTS[i]}/loops/{k}"
        names = [("a", "b/y/a"), ("b", "a/x/b"), ("a/x", "b/y/x")][i]
        try:
            os.rename(f"{d}/{names[0]}", f"{d}/{names[1]}")
        except OSError as e:
            check(e.errno in (errno.ENOENT, errno.EINVAL), e)
    return True
processes(3, looper)
for k in range(40):
    left = sum(len(dirs) for _, dirs, _ in os.walk(f"{A}/loops/{k}"))
    same(left, 4, f"loops/{k}: directories reached from above")

# --- a name that is renamed over is never away
for path in ("over", "over/dir"):
    os.mkdir(f"{A}/{path}")
put(f"{A}/over/name", b"first")
everywhere("over", "name")
os.mkdir(f"{A}/over/stop")
def replacer(i):
    mount = MOUNTS[i % 3]
    if i >= 3:
        for k in range(OPS // 4):
            put(f"{mount}/over/new.{i}", b"%d of %d" % (k, i))
            os.rename(f"{mount}/over/new.{i}", f"{mount}/over/name")
        put(f"{mount}/over/stop/{i}", b"")
        return True
    while len(os.listdir(f"{mount}/over/stop")) < 3:
        check(get(f"{mount}/over/name") != b"", "empty")
        os.stat(f"{mount}/over/name")
    return True
processes(6, replacer)

# --- what two nodes do to one name, all see in one order
# The files are all made before: none has the inode of one that is gone.
FILES = OPS // 2
os.mkdir(f"{A}/order")
everywhere("order")
def own(i):
    for k in range(FILES):
        os.mknod(f"{MOUNTS[i]}/order/{i}.{k}", stat.S_IFREG | 0o644)
    return True
processes(2, own)
put(f"{A}/order/name", b"first")
everywhere("order", "name")
os.mkdir(f"{A}/order.stop")
everywhere("order.stop")
def orderly(i):
    mount = MOUNTS[i % 3]
    name = f"{mount}/order/name"
    if i < 2:
        try:
            for k in range(FILES):
                os.rename(f"{mount}/order/{i}.{k}", name)
        finally:
            put(f"{mount}/order.stop/{i}", b"")
        return True
    seen = [os.stat(name).st_ino]
    over = False
    while True:
        for _ in range(20):
            ino = os.stat(name).st_ino
            if ino != seen[-1]:
                seen.append(ino)
        if over:
            break
        # Once more after that, for the last one.
        over = len(os.listdir(f"{mount}/order.stop")) == 2
    open(f"{CLUSTER}/order.{i}", "w").write(" ".join(map(str, seen)))
    return True
# Two for the writers, then two watchers at each node.
processes(8, orderly)
logs = {i: list(map(int, open(f"{CLUSTER}/order.{i}").read().split())) for i in range(2, 8)}
for i, log in logs.items():
    print(f"order: node {i % 3 + 1}: {len(log)} of {2 * FILES + 1} seen")
    # Else nothing has been tested.
    check(len(log) >= FILES // 8, f"order: node {i % 3 + 1} has seen only {len(log)}")
    again = sorted({ino for ino in log if log.count(ino) > 1})
    check(not again, f"order: node {i % 3 + 1} has gone back to inodes", again)
for i, log in logs.items():
    for j, other in logs.items():
        one, two = [n for n in log if n in set(other)], [n for n in other if n in set(log)]
        same(one, two, f"order: nodes {i % 3 + 1} and {j % 3 + 1}")

# --- a directory that is made anew has what is in it, at once
for path in ("anew", "anew/d"):
    os.mkdir(f"{A}/{path}")
everywhere("anew", "d")
put(f"{B}/anew/d/f.0", b"")
for k in range(OPS // 2):
    for mount in (A, C):
        os.stat(f"{mount}/anew/d")
    os.unlink(f"{B}/anew/d/f.{k}")
    if k % 2:
        os.rmdir(f"{B}/anew/d")
        os.mkdir(f"{B}/anew/d")
        put(f"{B}/anew/d/f.{k + 1}", b"")
    else:
        os.mkdir(f"{B}/anew/e")
        put(f"{B}/anew/e/f.{k + 1}", b"")
        os.rename(f"{B}/anew/e", f"{B}/anew/d")
    for mount, new in ((A, "a"), (C, "c")):
        if k % 3:
            os.stat(f"{mount}/anew/d/f.{k + 1}")
        if k % 5 == 0:
            put(f"{mount}/anew/d/{new}", b"")
            os.unlink(f"{B}/anew/d/{new}")
        else:
            os.mkdir(f"{mount}/anew/d/{new}")
            os.rmdir(f"{B}/anew/d/{new}")

# The same where another directory takes its place; and when that is gone again.
os.mkdir(f"{B}/anew/swap")
put(f"{B}/anew/swap/f.0", b"")
for k in range(OPS // 4):
    for mount in (A, C):
        os.stat(f"{mount}/anew/swap/f.{k}")
    os.mkdir(f"{B}/anew/new")
    put(f"{B}/anew/new/f.{k + 1}", b"")
    os.rename(f"{B}/anew/swap", f"{B}/anew/old")
    os.rename(f"{B}/anew/new", f"{B}/anew/swap")
    if k % 2:
        os.unlink(f"{B}/anew/old/f.{k}")
        os.rmdir(f"{B}/anew/old")
    for mount in (A, C):
        os.stat(f"{mount}/anew/swap/f.{k + 1}")
    if k % 2 == 0:
        os.unlink(f"{B}/anew/old/f.{k}")
        os.rmdir(f"{B}/anew/old")

# Who works in a directory that is removed finds and makes nothing there.
for remover in MOUNTS:
    os.makedirs(f"{A}/anew/up/here")
    everywhere("anew", "up", "here")
    os.chdir(f"{A}/anew/up/here")
    for path in ("anew/up/here", "anew/up"):
        os.rmdir(f"{remover}/{path}")
    for call in (lambda: os.stat("x"), lambda: put("x", b""), lambda: os.rename("x", "y"), lambda: os.unlink("x")):
        fails(errno.ENOENT, call)
    same(os.listdir("."), [])
    os.chdir("/")

# --- a directory removed and made again by the others is there, or is not
os.mkdir(f"{A}/again")
everywhere("again")
os.mkdir(f"{A}/again/stop")
def again(i):
    mount = MOUNTS[i % 3]
    d = f"{mount}/again/d"
    if i % 3 == 0:
        try:
            for k in range(OPS // 4):
                for call, *names in ((os.mkdir, f"x{i}"), (os.rename, f"x{i}", f"y{i}"), (os.stat, f"y{i}/none"),
                                     (os.rmdir, f"y{i}"), (os.mkfifo, f"p{i}"), (os.unlink, f"p{i}")):
                    try:
                        call(*(f"{d}/{name}" for name in names))
                    except (FileNotFoundError, FileExistsError):
                        pass
        finally:
            put(f"{mount}/again/stop/{i}", b"")
        return True
    while len(os.listdir(f"{mount}/again/stop")) < 4:
        for call in os.mkdir, os.rmdir:
            try:
                call(d)
            except OSError as e:
                check(e.errno in (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY), e)
    return True
processes(12, again)

# --- the storm
# ESTALE: a directory that another node has moved, while a rename between two
# directories is under way at this one.  Linux gives up at once in its dcache
# (__d_unalias), and tries again once.
MAY = {errno.ESTALE, errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EPERM}
os.mkdir(f"{A}/storm")
everywhere("storm")
def stormy(i):
    rng = random.Random(i)
    top = f"{MOUNTS[i % 3]}/storm"
    done = dict.fromkeys(["mkdir", "rmdir", "put", "unlink", "link", "symlink", "rename", "exchange"], 0)
    # Some of few names, at most three deep.
    path = lambda: "/".join([top] + rng.choices("abc", k=rng.choices([0, 1, 2], [2, 3, 2])[0]) + [rng.choice("abcpq")])
    for _ in range(OPS):
        what = rng.choices(list(done), [8, 2, 5, 2, 4, 1, 5, 1 if HAVE_RENAMEAT2 else 0])[0]
        try:
            match what:
                case "put": os.close(os.open(path(), os.O_WRONLY | os.O_CREAT, 0o644))
                case "symlink": os.symlink("nowhere/at/all", path())
                case "link" | "rename": getattr(os, what)(path(), path(), **({"follow_symlinks": False} if what == "link" else {}))
                case "exchange": renameat2(path(), path(), RENAME_EXCHANGE)
                case _: getattr(os, what)(path())
            done[what] += 1
        except OSError as e:
            check(e.errno in MAY, f"{what}: {e}")
    print(f"storm: process {i}:", done)
    open(f"{CLUSTER}/storm.{i}", "w").write(" ".join(map(str, done.values())))
    return True
processes(6, stormy)
done = [sum(ns) for ns in zip(*(map(int, open(f"{CLUSTER}/storm.{i}").read().split()) for i in range(6)))]
check(all(done[:7]), "storm: a call never succeeded", done)

# --- what is left
def walked(top):
    """Every name with its inode and the count of its links, which is checked."""
    names, links, counts, todo = {}, {}, {}, [(top, os.stat(os.path.dirname(top)).st_ino)]
    while todo:
        path, above = todo.pop()
        same(os.stat(path + "/..").st_ino, above, path, "..")
        here, below = os.stat(path), 0
        for name in os.listdir(path):
            s = os.lstat(f"{path}/{name}")
            names[f"{path}/{name}"[len(top):]] = (s.st_ino, stat.S_IFMT(s.st_mode), s.st_nlink)
            if stat.S_ISDIR(s.st_mode):
                below += 1
                todo.append((f"{path}/{name}", here.st_ino))
            else:
                links[s.st_ino] = links.get(s.st_ino, 0) + 1
                counts[s.st_ino] = s.st_nlink
        same(here.st_nlink, 2 + below, path, "links")
    same(counts, links, "links of files")
    return names

for dir in ("mkdir", "link", "gone", "loops", "over", "storm"):
    trees = [None] * 3
    def equal():
        for i, path in enumerate(at(dir)):
            trees[i] = walked(path)
        return trees[0] == trees[1] == trees[2]
    # Caches of names and attributes may be a moment behind.
    end = time.monotonic() + LIMIT
    while True:
        try:
            if equal():
                break
            wrong = "trees differ"
        except (AssertionError, OSError) as e:
            wrong = e
        check(time.monotonic() < end, dir, wrong)
        time.sleep(0.1)
    print(f"{dir}: {len(trees[0])} names")
EOF
must_trees_equal .
