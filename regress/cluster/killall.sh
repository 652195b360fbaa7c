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

# killall.sh: all nodes are killed at once under load.  After a restart
# every file whose fsync had returned is there, whole, on every node, so is
# every change of names and attributes that had returned, and the trees are
# equal.  The leader comes back first, and does not lead on in its old term: the
# others may have entries of that which its own disk has not.

. "$(dirname "$0")/../lib.sh"
ROUNDS=${ROUNDS:-2}
cluster_up 3

# The terms that node $1 has led, in order.
led() { sed -n 's/^leader, term //p' "$CLUSTER/n$1/log"; }

# A changer makes one change of names or attributes after the other in its own
# directory, and notes it in $CLUSTER/c.NAME when it has returned, so that at
# most the last line is not whole: of that change nothing is known.  Without a
# NAME this makes from these lines what must be there, and looks for it.
cat >"$CLUSTER/changer.py" <<'EOF'
import itertools
import random

HAVE_XATTR = hasattr(os, "setxattr")
ENOUGH = 40


class Inode:
    def __init__(self, kind, mode, target=None):
        self.kind, self.mode, self.target = kind, mode, target
        self.size, self.xattrs = 0, {}


class Tree:
    """What there must be: names "a", and "a/b" where "a" is a directory."""

    def __init__(self):
        self.names = {}

    def apply(self, op, *args):
        names = self.names
        if op == "mkdir":
            names[args[0]] = Inode("dir", int(args[1], 8))
        elif op == "create":
            names[args[0]] = Inode("file", int(args[1], 8))
        elif op == "symlink":
            names[args[1]] = Inode("link", None, args[0])
        elif op == "link":
            names[args[1]] = names[args[0]]
        elif op in ("unlink", "rmdir"):
            del names[args[0]]
        elif op == "rename":
            old, new = args
            for name in [n for n in names if n == old or n.startswith(f"{old}/")]:
                names[new + name[len(old):]] = names.pop(name)
        elif op == "chmod":
            names[args[0]].mode = int(args[1], 8)
        elif op == "truncate":
            names[args[0]].size = int(args[1])
        elif op == "setxattr":
            names[args[0]].xattrs[args[1]] = args[2]
        else:
            raise ValueError(op)

    def shown(self):
        same_inode = {}
        for name, inode in self.names.items():
            same_inode.setdefault(id(inode), []).append(name)
        return {name: (i.kind, i.mode, i.size, i.target, sorted(i.xattrs.items()),
                       sorted(same_inode[id(i)])) for name, i in self.names.items()}


def make(top, op, *args):
    """The same in the file system."""
    path = f"{top}/{args[0]}"
    if op == "mkdir":
        os.mkdir(path, int(args[1], 8))
    elif op == "create":
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, int(args[1], 8)))
    elif op == "symlink":
        os.symlink(args[0], f"{top}/{args[1]}")
    elif op in ("link", "rename"):
        getattr(os, op)(path, f"{top}/{args[1]}")
    elif op in ("unlink", "rmdir"):
        getattr(os, op)(path)
    elif op == "chmod":
        os.chmod(path, int(args[1], 8))
    elif op == "truncate":
        os.truncate(path, int(args[1]))
    else:
        os.setxattr(path, args[1], args[2].encode())


def found(top):
    """What there is, as Tree.shown has it."""
    seen, same_inode = {}, {}
    for base, dirs, files in os.walk(top):
        for path in (os.path.join(base, name) for name in dirs + files):
            name, st = path[len(top) + 1:], os.lstat(path)
            xattrs, target, mode, size = [], None, stat.S_IMODE(st.st_mode), 0
            if stat.S_ISLNK(st.st_mode):
                kind, mode, target = "link", None, os.readlink(path)
            else:
                kind = "dir" if stat.S_ISDIR(st.st_mode) else "file"
                size = st.st_size if kind == "file" else 0
                if HAVE_XATTR:
                    xattrs = sorted((x, os.getxattr(path, x).decode()) for x in os.listxattr(path))
            same_inode.setdefault(st.st_ino, []).append(name)
            seen[name] = (kind, mode, size, target, xattrs, st.st_ino)
    return {name: (*what, sorted(same_inode[ino])) for name, (*what, ino) in seen.items()}


def draw(rng, tree, number):
    """The next change: any that can be made."""
    names = sorted(tree.names)
    of = {"dir": [], "file": [], "link": []}
    for name in names:
        of[tree.names[name].kind].append(name)
    full = len(names) > ENOUGH
    empty = [d for d in of["dir"] if not any(n.startswith(f"{d}/") for n in names)]
    new = rng.choice([""] + [f"{d}/" for d in of["dir"]]) + f"x{number}"
    mode = "%o" % rng.choice([0o600, 0o644, 0o755, 0o1711])
    ops = [] if full else [("mkdir", f"d{number}", mode), ("create", new, mode),
                           ("symlink", f"to{number}", new)]
    if of["file"]:
        one = rng.choice(of["file"])
        ops += [("chmod", one, mode), ("truncate", one, str(rng.randrange(100000)))]
        ops += [("link", one, new)] * (not full)
        if HAVE_XATTR:
            ops.append(("setxattr", one, f"user.{rng.randrange(3)}", str(number)))
        # In the place of another file, not of the same, which would do nothing.
        over = [n for n in of["file"] if tree.names[n] is not tree.names[one]]
        ops += [("rename", one, rng.choice(over))] if over else []
    if of["file"] + of["link"]:
        one = rng.choice(of["file"] + of["link"])
        ops += [("rename", one, new), ("unlink", one)]
    if of["dir"]:
        one = rng.choice(of["dir"])
        ops += [("rename", one, f"d{number}"), ("chmod", one, mode)]
    ops += [("rmdir", rng.choice(empty))] if empty else []
    return rng.choice(ops)


def change(name, top):
    os.umask(0)
    rng, tree = random.Random(name), Tree()
    ledger = os.open(f"{CLUSTER}/c.{name}", os.O_WRONLY | os.O_APPEND)
    for number in itertools.count():
        if there(f"{CLUSTER}/w.stop"):
            break
        op = draw(rng, tree, number)
        os.write(ledger, " ".join(op).encode())
        try:
            make(top, *op)
        except OSError as e:
            killed = (errno.ENOTCONN, errno.ECONNABORTED, errno.ENXIO, errno.EIO)
            check(e.errno in killed and there(f"{CLUSTER}/c.kill"), e, op)
            break
        os.write(ledger, b" ok\n")
        tree.apply(*op)


def look(name):
    tree, made, unsure = Tree(), [], None
    for line in open(f"{CLUSTER}/c.{name}"):
        if not line.endswith(" ok\n"):
            unsure = line.split()
            break
        op = line.split()[:-1]
        tree.apply(*op)
        made.append(op[0])
    want = [tree.shown()]
    if unsure:
        tree.apply(*unsure)
        want.append(tree.shown())
    for top in at(f"c{name}"):
        try:
            eventually(lambda: found(top) in want)
        except AssertionError:
            got = found(top)
            for n in sorted({*want[0], *got}):
                if got.get(n) != want[0].get(n):
                    print(f"{n}: {got.get(n)}, want {want[0].get(n)}", file=sys.stderr)
            raise AssertionError(f"{top} is not as noted", f"unsure: {unsure}") from None
    print(f"changer {name}: {len(made)} changes of {len(set(made))} kinds, under way:",
          *(unsure or ["nothing"]), "(not made)" if unsure and found(top) == want[0] else "")


if os.environ.get("NAME"):
    change(os.environ["NAME"], os.environ["DIR"])
else:
    for name in sorted(f[2:] for f in os.listdir(CLUSTER) if re.fullmatch(r"c\.\d+\.\d+", f)):
        look(name)
EOF

# changer NAME DIRECTORY
changer() {
	: >"$CLUSTER/c.$1"
	NAME=$1 DIR=$2 python3 -B "$TOP/regress/cluster/nodes.py" 600 \
	    <"$CLUSTER/changer.py" >"$CLUSTER/c.$1.out" 2>&1 &
	WRITERS="$WRITERS $!"
}
changer_has() { [ "$(awk 'END { print NR }' "$CLUSTER/c.$1")" -ge "$2" ]; }
changer_no_error() {
	[ ! -s "$CLUSTER/c.$1.out" ] ||
	    fail "changer $1: $(cat "$CLUSTER/c.$1.out")"
}
changers_kept() {
	NAME='' python3 -B "$TOP/regress/cluster/nodes.py" $((LIMIT * 2)) \
	    <"$CLUSTER/changer.py"
}

round=0
while [ "$round" -lt "$ROUNDS" ]; do
	round=$((round + 1))
	for n in $NODE_LIST; do
		mkdir "$(mnt "$n")/r$round.$n" || fail "mkdir on node $n"
		writer "$round.$n" "$(mnt "$n")/r$round.$n"
	done
	for n in $NODE_LIST; do
		must_within "$LIMIT" writer_has "$round.$n" 50
	done
	rm -f "$CLUSTER/c.kill"
	for n in $NODE_LIST; do
		mkdir "$(mnt "$n")/c$round.$n" || fail "mkdir on node $n"
		changer "$round.$n" "$(mnt "$n")/c$round.$n"
	done
	for n in $NODE_LIST; do
		must_within "$LIMIT" writer_has "$round.$n" 100
		must_within "$LIMIT" changer_has "$round.$n" 100
	done
	was=$(leader)
	: >"$CLUSTER/c.kill"
	# shellcheck disable=SC2086
	ctl kill $NODE_LIST || fail "kill"
	writers_stop
	for n in $NODE_LIST; do
		changer_no_error "$round.$n"
	done
	# shellcheck disable=SC2046
	ctl start "$was" $(others "$was") || fail "start"
	# shellcheck disable=SC2086
	ctl wait $NODE_LIST || fail "not current again"
	twice=$(led "$was" | sort -n | uniq -d)
	[ -z "$twice" ] || fail "node $was went on in term $twice"
	for n in $NODE_LIST; do
		echo "round $round: writer $n: $(writer_count "$round.$n") files"
	done
	r=0
	while [ "$r" -lt "$round" ]; do
		r=$((r + 1))
		for n in $NODE_LIST; do
			for m in $NODE_LIST; do
				writer_kept "$r.$n" "$(mnt "$m")/r$r.$n" ||
				    fail "round $r, writer $n: lost on node $m"
			done
		done
	done
	changers_kept || fail "round $round: a change is lost"
	must_trees_equal .
done
