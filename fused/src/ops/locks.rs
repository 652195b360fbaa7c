// Copyright (c) 2026 The dfsd authors
//
// Permission to use, copy, modify, and distribute this software for any
// purpose with or without fee is hereby granted, provided that the above
// copyright notice and this permission notice appear in all copies.
//
// THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES
// WITH REGARD TO THIS SOFTWARE INCLUDING ALL IMPLIED WARRANTIES OF
// MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR
// ANY SPECIAL, DIRECT, INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES
// WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN
// ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF
// OR IN CONNECTION WITH THE USE OR PERFORMANCE OF THIS SOFTWARE.

//! Locks of files.  fused only.  Who holds what raftd knows; here is who has
//! asked for a lock at all, so that a close which unlocks nothing costs no
//! round, and by which handle, so that one whose lock was lost can say so.
//!
//! The kernel keeps no record of these locks and does not unlock at close: it
//! tells the owner of fcntl(2) locks with FLUSH.  Those of flock(2), and of
//! open file descriptions, end with RELEASE.

use super::{errno, unexpected, Answer, Caller, Ops, Reply, Then, Wake};
use crate::lock;
use common::fs::{Cred, Fh, FsError, InodeNo};
use common::lock::{LockInfo, LockKind, LockRange};
use common::msg::{FsOp, FsRep, FusedToRaftd};
use nix::errno::Errno;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// Who waits for a lock does so for as long as it takes.
const FOR_EVER: Duration = Duration::from_secs(365 * 86400);

const ALL: LockRange = LockRange {
    start: 0,
    end: u64::MAX,
};

/// A lock as the kernel asks for it.
#[derive(Clone, Copy)]
pub struct Wanted {
    pub ino: InodeNo,
    pub fh: Fh,
    pub owner: u64,
    pub pid: u32,
    pub range: LockRange,
    pub kind: LockKind,
}

/// An owner's locks of an inode.
#[derive(Default)]
struct Owned {
    handles: BTreeSet<Fh>,
    /// It may hold some.
    held: bool,
    /// Requests under way.
    asking: u32,
}

/// Who has locks or asks for some.
#[derive(Default)]
pub struct Owners {
    table: HashMap<(InodeNo, u64), Owned>,
    /// The same, by handle.
    handles: HashMap<Fh, BTreeSet<u64>>,
}

impl Owners {
    fn ask(&mut self, ino: InodeNo, owner: u64, fh: Fh) {
        let owned = self.table.entry((ino, owner)).or_default();
        owned.asking += 1;
        owned.handles.insert(fh);
        self.handles.entry(fh).or_default().insert(owner);
    }

    fn answered(&mut self, ino: InodeNo, owner: u64, fh: Fh, held: bool) {
        if held {
            // Again, if another handle of the owner was closed meanwhile.
            self.ask(ino, owner, fh);
        }
        if let Some(owned) = self.table.get_mut(&(ino, owner)) {
            owned.asking = owned.asking.saturating_sub(1 + u32::from(held));
            owned.held |= held;
            if owned.asking == 0 && !owned.held {
                self.take(ino, owner);
            }
        }
    }

    /// A lock that its owner was told not to have; false if it would not be
    /// unlocked with others.
    fn adopt(&mut self, ino: InodeNo, owner: u64) -> bool {
        let owned = self.table.get_mut(&(ino, owner));
        owned.map(|owned| owned.held = true).is_some()
    }

    pub(super) fn has(&self, ino: InodeNo, owner: u64) -> bool {
        self.table.contains_key(&(ino, owner))
    }

    /// It has none any more; by which handles it did.
    fn take(&mut self, ino: InodeNo, owner: u64) -> BTreeSet<Fh> {
        let owned = self.table.remove(&(ino, owner)).unwrap_or_default();
        for fh in &owned.handles {
            if let Some(owners) = self.handles.get_mut(fh) {
                owners.remove(&owner);
                if owners.is_empty() {
                    self.handles.remove(fh);
                }
            }
        }
        owned.handles
    }

    /// The handle is closed; the owners that had no other.
    pub(super) fn closed(&mut self, ino: InodeNo, fh: Fh) -> Vec<u64> {
        let owners = self.handles.remove(&fh).unwrap_or_default();
        let mut over = Vec::new();
        for owner in owners {
            if let Some(owned) = self.table.get_mut(&(ino, owner)) {
                owned.handles.remove(&fh);
                if owned.handles.is_empty() {
                    self.table.remove(&(ino, owner));
                    over.push(owner);
                }
            }
        }
        over
    }
}

impl Ops {
    /// Whether locks are for all nodes, and the kernel shall ask.
    pub fn shares_locks(&self) -> bool {
        !self.mount.local_lock
    }

    pub fn lock(&self, caller: Caller, wanted: Wanted, wait: bool, reply: Reply<()>) {
        let Wanted {
            ino,
            fh,
            owner,
            pid,
            range,
            kind,
        } = wanted;
        let mut state = lock(&self.state);
        if state.handles.is_lost(fh) {
            drop(state);
            return reply(Err(Errno::EIO));
        }
        let op = FsOp::Lock {
            ino,
            owner,
            pid,
            range,
            kind,
            wait,
        };
        let deadline = match wait {
            true => Instant::now() + FOR_EVER,
            false => self.deadline(),
        };
        // Before it is sent: whoever closes from now on unlocks it.
        state.locks.ask(ino, owner, fh);
        let then = Then::Answer(Box::new(move |ops, answer| {
            ops.lock_answered(wanted, answer, reply);
        }));
        let id = self.register(&mut state, deadline, &op, then);
        if wait {
            state.waiters.begin(id, caller.pid, ino);
            self.waiting.notify_one();
        }
        drop(state);
        let cred = caller.cred;
        self.control.send(&FusedToRaftd::Req { id, cred, op });
    }

    fn lock_answered(&self, wanted: Wanted, answer: Answer<'_>, reply: Reply<()>) {
        let Wanted {
            ino,
            fh,
            owner,
            range,
            ..
        } = wanted;
        let held = answer.result.is_ok();
        let mut state = lock(&self.state);
        state.locks.answered(ino, owner, fh, held);
        let interrupted = state.waiters.end(answer.id);
        drop(state);
        match answer.result {
            Ok(_) => {}
            Err(_) if interrupted => return reply(Err(Errno::EINTR)),
            Err(e) => return reply(Err(errno(e))),
        }
        // What the last holder wrote is applied here; now this kernel's older
        // pages and attributes must go.
        self.after_invalidation(ino, answer.id, self.deadline(), move |ops, done| {
            if done.is_err() {
                ops.send_unlock(ino, owner, range, |_, _| ());
            }
            reply(done);
        });
    }

    /// Behind everything that was written under the lock.
    pub fn unlock(&self, ino: InodeNo, owner: u64, range: LockRange, reply: Reply<()>) {
        if !lock(&self.state).locks.has(ino, owner) {
            return reply(Ok(()));
        }
        self.unlock_written(ino, owner, range, move |ops, result| {
            let whole = range.start == 0 && range.end >= LockRange::WHOLE.end;
            if whole && result.is_ok() {
                let mut state = lock(&ops.state);
                state.locks.unlocked(ino, owner);
            }
            reply(result.map_err(errno));
        });
    }

    /// An owner closes the file.
    pub(super) fn unlock_owner(
        &self,
        ino: InodeNo,
        owner: u64,
        then: impl FnOnce(&Ops) + Send + 'static,
    ) {
        lock(&self.state).locks.take(ino, owner);
        self.unlock_written(ino, owner, ALL, |ops, _| then(ops));
    }

    fn unlock_written(
        &self,
        ino: InodeNo,
        owner: u64,
        range: LockRange,
        then: impl FnOnce(&Ops, Result<(), FsError>) + Send + 'static,
    ) {
        self.after_writes(ino, move |ops| ops.send_unlock(ino, owner, range, then));
    }

    /// When no change of the inode that is under way now is so any more.
    fn after_writes(&self, ino: InodeNo, then: impl FnOnce(&Ops) + Send + 'static) {
        let then: Wake = Box::new(then);
        let then: Wake = Box::new(move |ops| ops.after_late(ino, then));
        let mut state = lock(&self.state);
        let then = match state.inodes.if_busy(ino) {
            Some(busy) => busy.pending.wait(None, then),
            None => Err(then),
        };
        drop(state);
        match then {
            Err(then) => then(self),
            Ok(()) => self.hurry(ino),
        }
    }

    /// What the program was told to have failed in time may be on its way to
    /// raftd: it must not come after what the next holder of a lock writes.
    fn after_late(&self, ino: InodeNo, then: Wake) {
        let mut state = lock(&self.state);
        if state.requests.is_late(ino) {
            state.late_waits.entry(ino).or_default().push(then);
            return;
        }
        drop(state);
        then(self);
    }

    fn send_unlock(
        &self,
        ino: InodeNo,
        owner: u64,
        range: LockRange,
        then: impl FnOnce(&Ops, Result<(), FsError>) + Send + 'static,
    ) {
        let op = FsOp::Unlock { ino, owner, range };
        self.ask(Cred::default(), op, |ops, answer| {
            then(ops, answer.result.map(drop));
        });
    }

    pub fn test_lock(&self, cred: Cred, wanted: Wanted, reply: Reply<Option<LockInfo>>) {
        let op = FsOp::TestLock {
            ino: wanted.ino,
            owner: wanted.owner,
            range: wanted.range,
            kind: wanted.kind,
        };
        self.ask(cred, op, |_, answer| match answer.result {
            Ok(FsRep::Lock(found)) => reply(Ok(found)),
            Ok(_) => unexpected(),
            Err(e) => reply(Err(errno(e))),
        });
    }

    /// A lock came after its owner was told EIO.
    pub(super) fn late_lock(&self, ino: InodeNo, owner: u64) {
        let adopted = lock(&self.state).locks.adopt(ino, owner);
        if !adopted {
            self.send_unlock(ino, owner, ALL, |_, _| ());
        }
    }

    /// raftd has lost the owner's locks: its handles are good for nothing.
    pub fn lock_lost(&self, ino: InodeNo, owner: u64) {
        let mut state = lock(&self.state);
        for fh in state.locks.take(ino, owner) {
            state.handles.lose(fh);
        }
        drop(state);
        self.stale_inode(ino, Some(0));
        self.after_writes(ino, move |ops| {
            ops.control.send(&FusedToRaftd::LockLostAck { ino, owner });
        });
    }
}

impl Owners {
    /// All of it, but what is asked for meanwhile.
    fn unlocked(&mut self, ino: InodeNo, owner: u64) {
        let owned = self.table.get_mut(&(ino, owner));
        match owned {
            Some(owned) if owned.asking > 0 => owned.held = false,
            _ => drop(self.take(ino, owner)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_to_unlock() {
        let mut owners = Owners::default();
        let (ino, a, b) = (InodeNo(2), Fh(1), Fh(2));
        owners.ask(ino, 7, a);
        assert!(owners.has(ino, 7), "it may be held before it is answered");
        owners.answered(ino, 7, a, false);
        assert!(!owners.has(ino, 7));
        assert!(!owners.adopt(ino, 7));

        owners.ask(ino, 7, a);
        owners.ask(ino, 7, b);
        owners.answered(ino, 7, b, true);
        owners.unlocked(ino, 7);
        assert!(owners.has(ino, 7), "one is still asked for");
        owners.answered(ino, 7, b, true);
        assert!(owners.closed(ino, a).is_empty(), "the other handle is open");
        assert!(owners.closed(ino, a).is_empty());
        assert_eq!(owners.closed(ino, b), [7]);
        assert!(!owners.has(ino, 7));

        owners.ask(ino, 8, a);
        assert!(owners.adopt(ino, 8));
        owners.answered(ino, 8, a, false);
        assert!(owners.has(ino, 8));
        assert_eq!(owners.take(ino, 8), BTreeSet::from([a]));
        assert!(owners.closed(ino, a).is_empty());
        assert!(owners.table.is_empty() && owners.handles.is_empty());
    }
}
