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

//! The locks of this node's session: asks for them, waits for them, and knows
//! when they are lost.  raftd only.  What is locked by whom is in the log
//! (fs/lock.rs); here is who has asked.
//!
//! ```text
//!  lock() --> asked --Locked--> answered
//!               |
//!               +--Waiting--> ticket --Waited--> answered
//!               |                |
//!               +----------------+-- lease over: EIO --> ResetLocks
//! ```
//!
//! What was asked for is never given up half-way: whoever does not want it any
//! more unlocks it, which the log then has behind it.

use crate::fs::lock::{self, Owner, Wish};
use crate::fs::op::Op;
use crate::fs::{Change, Outcome, Reply};
use crate::lease::Lease;
use crate::propose::{How, Proposer};
use crate::store::Store;
use bytes::Bytes;
use common::fs::{FsError, InodeNo, ReqId, SessionId};
use common::lock::{LockInfo, LockRange};
use common::{fatal, log_warnx};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How often the lease is looked at.
const TICK: Duration = Duration::from_millis(100);
/// Nobody gives up a lock or the end of one.
const FOR_EVER: Duration = Duration::from_secs(365 * 86400);

/// With the applied index as of which it is true, and the fencing number.
pub type Done = Box<dyn FnOnce(u64, Result<u64, FsError>) + Send>;
/// Told that the owner's locks of the inode are lost; whether `acked` will say
/// that nothing is on its way any more which was written under them.
pub type Lost = Box<dyn Fn(InodeNo, u64) -> bool + Send + Sync>;

/// One fused, or one client of the control socket.
struct Mount {
    lost: Lost,
    /// It may have something to unlock.
    used: AtomicBool,
}

struct Asked {
    mount: u64,
    req: ReqId,
    cancelled: bool,
    done: Done,
}

#[derive(Default)]
struct Table {
    mounts: HashMap<u64, Arc<Mount>>,
    asked: HashMap<u64, Asked>,
    last: u64,
    /// Of those in `asked` that wait.
    tickets: HashMap<u64, u64>,
    /// Moves with each loss.
    losses: u64,
    /// Mount, inode and owner that have not heard of their loss yet.
    unacked: HashSet<(u64, InodeNo, u64)>,
    /// To be followed by ResetLocks.
    lost: bool,
    /// ResetLocks is on its way, and would free what is locked before it.
    resets: u32,
}

pub struct Locks {
    pub store: Arc<Store>,
    pub proposer: Arc<Proposer>,
    pub lease: Arc<Lease>,
    table: Mutex<Table>,
    mounts: AtomicU64,
}

impl Locks {
    pub fn new(store: Arc<Store>, proposer: Arc<Proposer>, lease: Arc<Lease>) -> Arc<Locks> {
        Arc::new(Locks {
            store,
            proposer,
            lease,
            table: Mutex::default(),
            mounts: AtomicU64::new(0),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Somebody who may lock; the number is his in this run of raftd.
    pub fn join(&self, lost: Lost) -> u64 {
        let mount = self.mounts.fetch_add(1, Ordering::Relaxed);
        let used = AtomicBool::new(false);
        let entry = Arc::new(Mount { lost, used });
        self.table().mounts.insert(mount, entry);
        mount
    }

    /// He is gone, and whatever he asked for is over.
    pub fn leave(self: &Arc<Self>, mount: u64) {
        let (left, dropped) = {
            let mut table = self.table();
            let left = table.mounts.remove(&mount);
            table.unacked.retain(|(of, ..)| *of != mount);
            (left, table.drain(|asked| asked.mount == mount))
        };
        answer(dropped, FsError::Io);
        self.reset();
        if left.is_some_and(|mount| mount.used.load(Ordering::Relaxed)) {
            let locks = self.clone();
            tokio::spawn(async move {
                let op = Op::UnlockMount { mount };
                locks.propose(op, Box::new(|_, _| {})).await;
            });
        }
    }

    async fn propose(&self, op: Op, done: crate::propose::Done) {
        let room = self.proposer.room(0).await;
        self.proposer.propose(op, Bytes::new(), how(), room, done);
    }

    /// `done` is called when the lock is held, or cannot be; `req` is how the
    /// mount knows it.
    pub async fn lock(
        self: &Arc<Self>,
        (mount, req): (u64, ReqId),
        ino: InodeNo,
        wish: Wish,
        wait: bool,
        done: Done,
    ) {
        let losses = self.table().losses;
        if !self.lease.holds() {
            return done(0, Err(FsError::NoQuorum));
        }
        let room = self.proposer.room(0).await;
        let mut table = self.table();
        let entry = table.mounts.get(&mount).cloned();
        let is_well = table.losses == losses && !table.lost && table.resets == 0;
        let Some(entry) = entry.filter(|_| is_well) else {
            drop(table);
            return done(0, Err(FsError::Io));
        };
        entry.used.store(true, Ordering::Relaxed);
        table.last += 1;
        let id = table.last;
        table.asked.insert(
            id,
            Asked {
                mount,
                req,
                cancelled: false,
                done,
            },
        );
        let locks = self.clone();
        let resolved = move |index, outcome| locks.resolved(id, index, outcome);
        let op = Op::Lock {
            ino,
            mount,
            wish,
            wait,
        };
        // Under the lock: what is lost or left from now on is behind it.
        self.proposer
            .propose(op, Bytes::new(), how(), room, Box::new(resolved));
    }

    pub async fn unlock(
        &self,
        mount: u64,
        ino: InodeNo,
        owner: u64,
        range: LockRange,
        done: impl FnOnce(u64, Result<(), FsError>) + Send + 'static,
    ) {
        let op = Op::Unlock {
            ino,
            mount,
            owner,
            range,
        };
        let done = |index, outcome: Outcome| done(index, outcome.map(drop));
        self.propose(op, Box::new(done)).await;
    }

    /// What is in the way of such a lock, as of what is applied here.
    pub fn test(&self, mount: u64, ino: InodeNo, wish: &Wish) -> Result<Option<LockInfo>, FsError> {
        // Before its session is open this node has no lock.
        let session = self.proposer.session().unwrap_or(SessionId(0));
        let owner = Owner {
            session,
            mount,
            id: wish.owner,
        };
        let found = match lock::test(&self.store.meta().read(), ino, owner, wish) {
            Ok(found) => found,
            Err(e) => fatal!(e, "store"),
        };
        Ok(found.map(|lock| LockInfo {
            range: lock.range,
            kind: lock.kind,
            pid: match lock.owner.session == session {
                true => lock.pid,
                false => 0,
            },
        }))
    }

    /// Whoever waits with the ticket shall not, on whatever node.
    pub async fn cancel(&self, ticket: u64) -> Result<(), FsError> {
        let all = match lock::list(&self.store.meta().read()) {
            Ok(all) => all,
            Err(e) => fatal!(e, "store"),
        };
        let waits = |locks: &lock::Locks| locks.waiting.iter().any(|w| w.index == ticket);
        let found = all.into_iter().find(|(_, locks)| waits(locks));
        let (ino, _) = found.ok_or(FsError::NotFound)?;
        self.cancel_at(ino, ticket).await
    }

    /// The ticket of a request of that mount that waits and shall not; once,
    /// since no proposal is lost.
    pub fn to_cancel(&self, mount: u64, req: ReqId) -> Option<u64> {
        let mut table = self.table();
        let Table { tickets, asked, .. } = &mut *table;
        let is = |a: &Asked| (a.mount, a.req, a.cancelled) == (mount, req, false);
        let mut tickets = tickets.iter();
        let (ticket, id) = tickets.find(|(_, id)| asked.get(id).is_some_and(is))?;
        asked.get_mut(id)?.cancelled = true;
        Some(*ticket)
    }

    pub async fn cancel_at(&self, ino: InodeNo, ticket: u64) -> Result<(), FsError> {
        let (tx, rx) = tokio::sync::oneshot::channel();
        let done = Box::new(move |_, outcome: Outcome| {
            let _ = tx.send(outcome.map(drop));
        });
        self.propose(Op::CancelLock { ino, ticket }, done).await;
        rx.await.unwrap_or(Err(FsError::Io))
    }

    fn resolved(&self, id: u64, index: u64, outcome: Outcome) {
        match outcome {
            Ok(Reply::Waiting { ticket }) => {
                let mut table = self.table();
                if table.asked.contains_key(&id) {
                    table.tickets.insert(ticket, id);
                }
            }
            Ok(Reply::Locked { fence }) => self.finish(id, index, Ok(fence)),
            Ok(_) => self.finish(id, index, Err(FsError::Io)),
            Err(e) => self.finish(id, index, Err(e)),
        }
    }

    /// If it is not there any more, what unlocks it is in the log behind it.
    fn finish(&self, id: u64, index: u64, result: Result<u64, FsError>) {
        let asked = self.table().asked.remove(&id);
        if let Some(asked) = asked {
            (asked.done)(index, result);
        }
    }

    /// What an entry has done; called in log order, after the answers to it.
    pub fn changed(self: &Arc<Self>, change: &Change, index: u64) {
        match change {
            Change::Waited {
                session,
                ticket,
                result,
            } if self.proposer.session() == Some(*session) => {
                let id = self.table().tickets.remove(ticket);
                if let Some(id) = id {
                    self.finish(id, index, *result);
                }
            }
            Change::LocksLost { session, locks } if self.proposer.session() == Some(*session) => {
                self.lose(locks.clone());
            }
            _ => {}
        }
    }

    /// The task that looks after the lease.
    pub async fn watch(self: Arc<Self>) {
        let mut over = true;
        loop {
            sleep(TICK).await;
            if self.lease.holds() {
                over = false;
            } else if !over {
                over = true;
                self.run_out();
            }
        }
    }

    fn run_out(self: &Arc<Self>) {
        let Some(session) = self.proposer.session() else {
            return;
        };
        let held = match lock::held_by(&self.store.meta().read(), session) {
            Ok(held) => held,
            Err(e) => fatal!(e, "store"),
        };
        let held = held.into_iter().map(|(ino, o)| (ino, o.mount, o.id));
        self.lose(held.collect());
    }

    /// These are lost, and whatever was asked for is over.
    fn lose(self: &Arc<Self>, held: Vec<(InodeNo, u64, u64)>) {
        let (dropped, mounts) = {
            let mut table = self.table();
            let dropped = table.drain(|_| true);
            if dropped.is_empty() && held.is_empty() {
                return;
            }
            table.losses += 1;
            table.lost = true;
            let all = held
                .iter()
                .map(|(ino, mount, owner)| (*mount, *ino, *owner));
            table.unacked.extend(all);
            (dropped, table.mounts.clone())
        };
        log_warnx!("no lease on locks: {} are lost", held.len());
        answer(dropped, FsError::Io);
        for (ino, mount, owner) in held {
            let told = mounts.get(&mount).is_some_and(|m| (m.lost)(ino, owner));
            if !told {
                self.table().unacked.remove(&(mount, ino, owner));
            }
        }
        self.reset();
    }

    /// The mount has heard of the loss, and all that it had written before is in
    /// the log, where it was refused if it came too late.
    pub fn acked(self: &Arc<Self>, mount: u64, ino: InodeNo, owner: u64) {
        self.table().unacked.remove(&(mount, ino, owner));
        self.reset();
    }

    /// Once all have, the log shall know; not before, or it would take what
    /// they wrote meanwhile.
    fn reset(self: &Arc<Self>) {
        {
            let mut table = self.table();
            if !table.lost || !table.unacked.is_empty() {
                return;
            }
            table.lost = false;
            table.resets += 1;
        }
        let locks = self.clone();
        tokio::spawn(async move {
            let reset = locks.clone();
            let done = Box::new(move |_, _| reset.table().resets -= 1);
            locks.propose(Op::ResetLocks, done).await;
        });
    }
}

impl Table {
    fn drain(&mut self, which: impl Fn(&Asked) -> bool) -> Vec<Asked> {
        let gone: Vec<Asked> = self
            .asked
            .extract_if(|_, a| which(a))
            .map(|(_, a)| a)
            .collect();
        let asked = &self.asked;
        self.tickets.retain(|_, id| asked.contains_key(id));
        gone
    }
}

fn answer(all: Vec<Asked>, error: FsError) {
    for asked in all {
        (asked.done)(0, Err(error));
    }
}

fn how() -> How {
    How {
        deadline: Instant::now() + FOR_EVER,
        from: None,
        awaited: true,
    }
}
