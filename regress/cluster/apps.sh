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

# apps.sh: programs that people run, on one node, while the leader on another
# one is killed; none of them sees an error, and what each says of its own files
# afterwards is that they are whole.  Then the node that databases run on is
# killed itself, and another one opens what they have left.
#
#	APPS="name ..."	some of them: sqlite git tar rsync postgres

. "$(dirname "$0")/../lib.sh"
APPS=${APPS:-"sqlite git tar rsync postgres"}
[ "$(uname -s)" = Linux ] || skip "for Linux"
HERE=$TOP/regress/cluster
PG=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -n 1)
for program in git rsync tar python3 "$PG/initdb"; do
	command -v "$program" >/dev/null || fail "no $program: sh regress/setup"
done
# Nothing of the user's.
HOME=/nonexistent GIT_CONFIG_NOSYSTEM=1
GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.com
GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.com
export HOME GIT_CONFIG_NOSYSTEM GIT_AUTHOR_NAME GIT_AUTHOR_EMAIL
export GIT_COMMITTER_NAME GIT_COMMITTER_EMAIL
cluster_up 3

# --- a program and its leader ---------------------------------------------

# A program NAME is a function NAME_runs DIRECTORY, which goes round until it is
# told that a node was killed, and once more, and NAME_begun DIRECTORY, which
# says whether it is in the midst of its work.
is_begun() { "$1_begun" "$2" || ! kill -0 "$app_pid"; }
goes_round() {
	[ ! -e "$CLUSTER/last" ] || return 1
	[ ! -e "$CLUSTER/killed" ] || : >"$CLUSTER/last"
}

# starts NAME FUNCTION DIRECTORY
starts() {
	app_start=$(date +%s)
	rm -f "$CLUSTER/killed" "$CLUSTER/last" "$CLUSTER"/sqlite.*
	(
		trap - EXIT HUP INT TERM
		"$2" "$3"
	) >"$CLUSTER/$1.log" 2>&1 </dev/null &
	app_pid=$!
	must_within $((LIMIT * 5)) is_begun "$1" "$3"
	kill -0 "$app_pid" || failed "$1"
}

failed() {
	tail -n 40 "$CLUSTER/$1.log" >&2
	fail "$1: see above"
}

# app NAME: on a node that does not lead, and loses its leader once.
app() {
	victim=$(leader)
	node=$(others "$victim" | head -n 1)
	dir=$(mnt "$node")/$1
	mkdir "$dir" || fail "$1: mkdir"
	starts "$1" "$1_runs" "$dir"
	ctl kill "$victim" || fail "$1: kill"
	must_within "$LIMIT" is_not_leader "$victim"
	: >"$CLUSTER/killed"
	wait "$app_pid" || failed "$1"
	back "$victim"
	echo "$1: whole, with another leader ($(($(date +%s) - app_start)) s)"
}

back() {
	ctl start "$1" && ctl wait "$1" || fail "node $1: start"
}

# A tree of all that tar and rsync know, in the system's own file system.
made_tree() {
	mkdir -p "$1/deep/er/and" "$1/bin" && chmod 1777 "$1/deep" || return 1
	(cd "$TOP" && tar cf - common fused raftd man) |
	    tar xf - -C "$1" || return 1
	for made_n in $(count_to 100); do
		printf '%0*d' $((made_n * 37)) "$made_n" \
		    >"$1/deep/er/and/$made_n" || return 1
	done
	random_file "$1/bin/random" 3000
	truncate -s 20M "$1/bin/sparse"
	echo end >>"$1/bin/sparse"
	ln "$1/bin/random" "$1/deep/linked"
	ln -s ../bin/random "$1/deep/symlink"
	ln -s nowhere "$1/deep/dangling"
	mkfifo "$1/deep/fifo"
	mknod "$1/deep/null" c 1 3
	chmod 4711 "$1/bin/random"
	chown 1234:4321 "$1/deep/er/and/1" "$1/deep/er"
	chmod 2750 "$1/deep/er"
	touch -d '1969-12-31 12:00:00.123456789' "$1/deep/er/and/2"
	touch -h -d '2040-01-01 00:00:00.5' "$1/deep/symlink"
	printf x >"$1/deep/$(printf 'odd\nname \377')"
	[ -z "$XATTRS" ] || extended "$1/deep/er/and/3"
	touch -d '2001-01-01' "$1/deep/er/and" "$1/deep" "$1"
}

# An attribute and an access control list (user 1 may read) on a file.
extended() {
	python3 - "$1" <<-'EOF'
	import os, struct, sys
	os.setxattr(sys.argv[1], "user.dfsd", b"value")
	entries = (1, 6, -1), (2, 4, 1), (4, 4, -1), (16, 4, -1), (32, 0, -1)
	os.setxattr(sys.argv[1], "system.posix_acl_access", struct.pack("<I", 2)
	    + b"".join(struct.pack("<HHi", *entry) for entry in entries))
	EOF
}

# Where the system's own file system has them, the mount must.
XATTRS=
: >"$CLUSTER/x"
: >"$(mnt 1)/x"
if extended "$CLUSTER/x" 2>/dev/null; then
	extended "$(mnt 1)/x" || fail "no extended attributes"
	XATTRS=yes
else
	echo "no extended attributes in $CLUSTER: copied without"
fi
rm "$(mnt 1)/x" "$CLUSTER/x"

# --- the programs ---------------------------------------------------------

# sqlite WHAT DIRECTORY: in both kinds of journal "write" notes each row in
# sqlite.MODE once it is committed, while another process reads; "check" wants
# all of these rows, and what belongs together together.
sqlite() {
	WHAT=$1 DIRECTORY=$2 python3 -B "$HERE/nodes.py" 900 <<'EOF'
import sqlite3
dir = os.environ["DIRECTORY"]

def opened(mode):
    db = sqlite3.connect(f"{dir}/{mode}", timeout=LIMIT, isolation_level=None)
    same(db.execute(f"PRAGMA journal_mode={mode}").fetchone()[0], mode)
    db.execute("PRAGMA synchronous=FULL")
    return db

def together(db):
    """How many rows there are; as many, and as large, as the transactions say."""
    db.execute("BEGIN")
    said = db.execute("SELECT n, bytes FROM said").fetchone()
    same(said, db.execute("SELECT count(*), ifnull(sum(length(v)), 0) FROM t").fetchone())
    db.execute("COMMIT")
    return said[0]

def whole(db):
    same(db.execute("PRAGMA integrity_check").fetchall(), [("ok",)])
    return together(db)

def writer(mode):
    db = opened(mode)
    db.execute("BEGIN IMMEDIATE")
    db.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v BLOB)")
    db.execute("CREATE INDEX IF NOT EXISTS i ON t(v)")
    db.execute("CREATE TABLE IF NOT EXISTS said AS SELECT 0 AS n, 0 AS bytes")
    db.execute("COMMIT")
    k = 0
    put(f"{CLUSTER}/ready.{mode}", b"")
    more = 30
    with open(f"{CLUSTER}/sqlite.{mode}", "a") as log:
        while more:
            more -= there(f"{CLUSTER}/killed")
            k += 1
            db.execute("BEGIN IMMEDIATE")
            db.execute("INSERT INTO t VALUES(?, ?)", (k, os.urandom(k * 97 % 5000)))
            db.execute("UPDATE said SET n = n + 1, bytes = bytes + ?", (k * 97 % 5000,))
            db.execute("COMMIT")
            print(k, file=log, flush=True)
    whole(db)
    db.close()

def reader(mode):
    eventually(lambda: there(f"{CLUSTER}/ready.{mode}"))
    db = opened(mode)
    last = 0
    while not there(f"{CLUSTER}/done.{mode}"):
        now = together(db)
        check(now >= last, f"{mode}: {now} rows after {last}")
        last = now
    db.close()

def work(i):
    mode = ["delete", "wal"][i % 2]
    if i >= 2:
        reader(mode)
        return True
    try:
        writer(mode)
    finally:
        # What a reader has cached it reads without a file system, too.
        put(f"{CLUSTER}/done.{mode}", b"")
    return True

if os.environ["WHAT"] == "write":
    for mode in ("delete", "wal"):
        for flag in ("ready", "done"):
            if there(f"{CLUSTER}/{flag}.{mode}"):
                os.unlink(f"{CLUSTER}/{flag}.{mode}")
    processes(4, work)
else:
    for mode in ("delete", "wal"):
        db = opened(mode)
        noted = [int(k) for k in open(f"{CLUSTER}/sqlite.{mode}")]
        rows = whole(db)
        same(noted, list(range(1, len(noted) + 1)), mode)
        check(rows - len(noted) in (0, 1), f"{mode}: {rows} rows, {len(noted)} committed")
        same(db.execute("SELECT max(id), count(*) FROM t").fetchone(), (rows, rows), mode)
        db.close()
        print(f"{mode}: {rows} rows")
EOF
}
# A new one each time.
sqlite_writes() {
	rm -f "$1"/*
	: >"$CLUSTER/sqlite.delete"
	: >"$CLUSTER/sqlite.wal"
	sqlite write "$1"
}
sqlite_runs() { sqlite_writes "$1" && sqlite check "$1"; }
sqlite_goes_on() { sqlite_writes "$1"; }
sqlite_begun() {
	for mode in delete wal; do
		[ "$(cat "$CLUSTER/sqlite.$mode" | wc -l)" -ge 40 ] || return 1
	done
}

git_runs() {
	set -e
	mkdir "$CLUSTER/git"
	cp -R "$TOP/man" "$TOP/common" "$TOP/fused" "$CLUSTER/git/"
	git init -q -b main "$CLUSTER/git"
	git -C "$CLUSTER/git" add .
	git -C "$CLUSTER/git" commit -q -m first
	git clone -q --no-local "$CLUSTER/git" "$1/clone"
	git clone -q --bare "$1/clone" "$1/bare.git"
	cd "$1/clone"
	git remote set-url origin "$1/bare.git"
	round=0
	while goes_round; do
		round=$((round + 1))
		git checkout -q -b "b$round"
		cp -R man "man.$round"
		git add .
		git commit -q -m "copied $round"
		echo "$round" >>man/dfsd.8
		git commit -q -a -m "changed $round"
		git checkout -q main
		echo "$round" >>fused/Cargo.toml
		git commit -q -a -m "beside $round"
		git merge -q -m "merged $round" "b$round"
		git gc -q --prune=now
		git push -q origin main "b$round"
		git fsck --full --strict --no-dangling
		[ -z "$(git status --porcelain)" ]
	done
	git -C "$1/bare.git" gc -q
	git -C "$1/bare.git" fsck --full --strict
	git clone -q --no-local "$1/bare.git" "$CLUSTER/back"
	[ "$(git rev-parse HEAD)" = "$(git -C "$CLUSTER/back" rev-parse HEAD)" ]
	rm -rf .git "$CLUSTER/back/.git"
	diff -r . "$CLUSTER/back"
}
git_begun() { is_there "$1/clone/man.1/dfsd.8"; }

# There and back, and compared with what was made; by tar itself, too.
tar_runs() {
	set -e
	xattrs=${XATTRS:+"--acls --xattrs"}
	made_tree "$CLUSTER/tree"
	tree_sum "$CLUSTER/tree" >"$CLUSTER/tree.sum"
	# shellcheck disable=SC2086
	tar cf "$CLUSTER/tree.tar" -S $xattrs -C "$CLUSTER/tree" .
	round=0
	while goes_round; do
		round=$((round + 1))
		mkdir "$1/$round"
		# shellcheck disable=SC2086
		tar xpf "$CLUSTER/tree.tar" $xattrs -C "$1/$round"
		# shellcheck disable=SC2086
		tar df "$CLUSTER/tree.tar" $xattrs -C "$1/$round"
		tree_sum "$1/$round" | cmp - "$CLUSTER/tree.sum"
		# shellcheck disable=SC2086
		tar cf "$1/$round.tar" -S $xattrs -C "$1/$round" .
		# shellcheck disable=SC2086
		tar df "$1/$round.tar" $xattrs -C "$CLUSTER/tree"
	done
}
has_files() { [ "$(find "$1" -type f | head -n "$2" | wc -l)" -ge "$2" ]; }
tar_begun() { has_files "$1" 40; }

rsync_runs() {
	set -e
	flags=-aHS${XATTRS:+AX}
	[ -d "$CLUSTER/tree" ] || made_tree "$CLUSTER/tree"
	round=0
	while goes_round; do
		round=$((round + 1))
		rsync "$flags" "$CLUSTER/tree/" "$1/$round/"
		rsync "$flags" "$1/$round/" "$CLUSTER/rsync.$round/"
		for copy in "$1/$round" "$CLUSTER/rsync.$round"; do
			rsync "$flags" -nci --delete "$CLUSTER/tree/" "$copy/" \
			    >"$CLUSTER/rsync.diff"
			cat "$CLUSTER/rsync.diff"
			[ ! -s "$CLUSTER/rsync.diff" ]
		done
		# Changed in place, and only that.
		echo more >>"$1/$round/deep/er/and/9"
		rm "$1/$round/deep/symlink"
		rsync "$flags" -c --inplace "$CLUSTER/tree/" "$1/$round/"
		[ -z "$(rsync "$flags" -nci --delete "$CLUSTER/tree/" "$1/$round/")" ]
		rm -rf "$CLUSTER/rsync.$round"
	done
}
rsync_begun() { has_files "$1" 40; }

# --- PostgreSQL -----------------------------------------------------------

pg() {
	pg_program=$1
	shift
	(cd "$CLUSTER/pg" && exec runuser -u postgres -- "$PG/$pg_program" "$@")
}
pg_start() {
	if ! pg pg_ctl -D "$1" -w -t 300 -s -l "$CLUSTER/pg/log" -o "-k \
	    $CLUSTER/pg -c listen_addresses= -c checkpoint_timeout=30s" start
	then
		tail -n 30 "$CLUSTER/pg/log" >&2
		return 1
	fi
	head -n 1 "$1/postmaster.pid" >"$CLUSTER/pg/pid"
}
pg_stop() { pg pg_ctl -D "$1" -w -t 300 -s -m fast stop; }
pg_gone() { ! kill -0 "$1" 2>/dev/null; }

# Whatever has become of its files: SIGQUIT, and its children go with it.
pg_end() {
	[ -s "$CLUSTER/pg/pid" ] || return 0
	pg_pid=$(cat "$CLUSTER/pg/pid")
	rm "$CLUSTER/pg/pid"
	[ "$(ps -o comm= -p "$pg_pid")" = postgres ] || return 0
	kill -QUIT "$pg_pid"
	wait_until "$LIMIT" pg_gone "$pg_pid"
}

pg_bench() { pg pgbench -h "$CLUSTER/pg" -n "$@" postgres; }

# Every transaction changes three balances alike and notes it; $1 of them are
# known to have been committed.
pg_whole() {
	pg_says=$(pg psql -h "$CLUSTER/pg" -d postgres -AtXc "
	    SELECT count(*), sum(delta) =
		(SELECT sum(abalance) FROM pgbench_accounts), sum(delta) =
		(SELECT sum(bbalance) FROM pgbench_branches), sum(delta) =
		(SELECT sum(tbalance) FROM pgbench_tellers)
	    FROM pgbench_history") || return 1
	echo "transactions, and whether the sums agree: $pg_says;" \
	    "committed: $1"
	[ "${pg_says#*|}" = "t|t|t" ] && [ "${pg_says%%|*}" -ge "$1" ] &&
	    pg pg_amcheck -h "$CLUSTER/pg" --install-missing --heapallindexed \
	    -d postgres
}

# What pgbench says of itself, however it ended.
pg_committed() {
	awk '/^number of transactions actually processed/ {
		split($6, n, "/")
		sum += n[1]
	} END { print sum + 0 }' "$CLUSTER/pg/bench"
}

postgres_runs() {
	set -e
	install -d -o postgres -m 755 "$CLUSTER/pg"
	chown postgres "$1"
	pg initdb -D "$1/data" -k -A trust --no-sync --no-locale -E UTF8 \
	    >"$CLUSTER/pg/initdb"
	pg_start "$1/data"
	pg_bench -i -q -s 1
	while goes_round; do
		pg_bench -c 4 -j 2 -T 5 -P 1 >>"$CLUSTER/pg/bench" 2>&1
	done
	pg_whole "$(pg_committed)"
	pg_stop "$1/data"
	pg pg_checksums -D "$1/data" --check
}
postgres_begun() { grep -q ^progress "$CLUSTER/pg/bench"; }
postgres_goes_on() {
	pg_start "$1/data" &&
	    pg_bench -c 4 -j 2 -T 600 -P 1 >>"$CLUSTER/pg/bench" 2>&1
}

# --- what is run ----------------------------------------------------------

apps_down() {
	apps_rc=$?
	pg_end
	(exit "$apps_rc")
	cluster_down
}
trap apps_down EXIT

for name in $APPS; do
	app "$name"
done

# died NAME DIRECTORY: the node on which NAME runs, which leads, dies under it.
# What it has left is on the others.
died() {
	victim=$(leader)
	node=$(others "$victim" | head -n 1)
	starts "$1" "$1_goes_on" "$(mnt "$victim")/$1"
	ctl kill "$victim" || fail "$1: kill"
	wait "$app_pid" && fail "$1: no error, but its file system is gone"
	must_within "$LIMIT" is_not_leader "$victim"
}

for name in $APPS; do
	case $name in
	sqlite)
		died sqlite
		sqlite check "$(mnt "$node")/sqlite" || fail "sqlite: see above"
		;;
	postgres)
		before=$(pg_committed)
		rm "$CLUSTER/pg/bench"
		died postgres
		pg_end
		pg_start "$(mnt "$node")/postgres/data" || fail "postgres: start"
		pg_whole $((before + $(pg_committed))) || fail "postgres: see above"
		pg_stop "$(mnt "$node")/postgres/data" &&
		    pg pg_checksums -D "$(mnt "$node")/postgres/data" --check ||
		    fail "postgres: see above"
		;;
	*)	continue ;;
	esac
	back "$victim"
	echo "$name: whole, after its node died ($(($(date +%s) - app_start)) s)"
done
must_trees_equal .
