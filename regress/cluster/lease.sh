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

# lease.sh: each node keeps its locks as long as its dfsd.conf says, also under
# a new leader: the one with the short lease loses them first.

. "$(dirname "$0")/../lib.sh"
cluster_up 5 -g "lock lease 5"

lockers 240 <<'EOP' || fail "see above"
first = leader()
long, short, other, _ = [n for n in range(1, 6) if n != first]
mount = lambda n: MOUNTS[n - 1]

ctl("stop", long)
conf = f"{CLUSTER}/n{long}/conf"
with open(conf) as f:
    text = f.read()
check("lock lease 5\n" in text, text)
with open(conf, "w") as f:
    f.write(text.replace("lock lease 5\n", "lock lease 3600\n"))
ctl("start", long)
ctl("wait", long)

for name in "short", "long":
    put(f"{A}/{name}", b"")
    everywhere(name)
    eventually(lambda: all(opens(path) for path in at(name)))
# Who holds it is killed, or his mount: that is not for the lease to notice.
for how in "process", "fused":
    holder, waiter = Locker(f"{mount(long)}/long"), Locker(f"{mount(other)}/long")
    holder.must("lock", "ex")
    must_wait(waiter, "lock", "ex", 0, 0, True)
    if how == "process":
        holder.end()
    else:
        ctl("kill", "-f", long)
    same(waiter.answer(), "ok", how)
    end_all()
    eventually(lambda: not shown(other))
eventually(lambda: opens(f"{mount(long)}/long"))
held_long = Locker(f"{mount(long)}/long")
held_long.must("lock", "ex")
# Not heard of for longer than the other one, and by two leaders.
die(long)
ctl("stop", first)
eventually(lambda: leader() not in (None, first))
ctl("start", first)
ctl("wait", first)
held_short = Locker(f"{mount(short)}/short")
held_short.must("lock", "ex")
watch, waiter = Locker(f"{mount(other)}/long"), Locker(f"{mount(other)}/short")
waiter.ask("lock", "ex", 0, 0, True)
eventually(lambda: waiters(other, waiter.pid))
die(short)
same(waiter.answer(), "ok")
same(watch.do("lock", "ex"), "EAGAIN")
watch.ask("lock", "ex", 0, 0, True)
eventually(lambda: waiters(other, watch.pid))
check(watch.is_silent())

# It is back, and so has not got what it held before.
ctl("start", long)
same(watch.answer(), "ok")
ctl("start", short)
ctl("wait", short)
ctl("wait", long)
end_all()
eventually(lambda: not shown(long))
EOP
