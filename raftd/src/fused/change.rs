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

//! Requests that change the tree: proposed in the order of their lane, and
//! answered when this node has applied them.  raftd only.

use super::request::{Answer, How};
use super::{locked, preview, Fused};
use crate::fs::op::{Check, Op, RenameHow, WriteAt};
use crate::fs::{dirent, Outcome, Reply};
use crate::propose::{self, Room};
use bytes::Bytes;
use common::fs::{Cred, FsError, InodeNo, ReqId};
use common::msg::{FsOp, FsRep, Lane, RaftdToFused};
use std::collections::VecDeque;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

/// Bytes of writes that wait for room in the window, of one mount.
const BACKLOG_MAX: usize = 16 << 20;

/// How often a lane looks whether it may go on.
const BACKLOG_WAIT: Duration = Duration::from_millis(100);

/// A request as an operation of the log.
pub(super) struct TreeChange {
    id: ReqId,
    op: Op,
    bulk: Bytes,
    deadline: Instant,
    /// Its result is a file that is open then.
    opens: bool,
    /// Its caller waits for it.
    awaited: bool,
    /// The inode that counts it as queued.
    queued: Option<InodeNo>,
}

/// Whether the kernel judges ownership and the sticky bit before it asks.
fn check(cred: Cred) -> Check {
    match cfg!(target_os = "openbsd") {
        true => Check::Apply(cred),
        false => Check::Kernel,
    }
}

impl Fused {
    /// A request that changes the tree.  When the window is full, those of the
    /// bulk lane wait in their order; of the control lane's only those wait
    /// behind them whose inode has changes there.
    pub(super) fn change_tree(
        self: &Arc<Self>,
        id: ReqId,
        cred: Cred,
        op: FsOp,
        bulk: Bytes,
        how: How,
    ) {
        if self.conf.read_only {
            return self.reply(id, 0, Err(FsError::ReadOnly));
        }
        if !*self.mounts.quorum.borrow() {
            return self.reply(id, 0, Err(FsError::NoQuorum));
        }
        let opens = matches!(op, FsOp::Create { .. });
        let mut waits = matches!(op, FsOp::Write { sync, append, .. } if sync || append);
        let early = matches!(op, FsOp::Setattr { early: true, .. });
        let op = match self.to_log(cred, op) {
            Ok(op) => op,
            Err(e) => return self.reply(id, 0, Err(e)),
        };
        waits |= matches!(op, Op::Write { ino, .. } if self.mounts.is_short(ino));
        let asks = how.lane == Lane::Bulk || self.mounts.is_any_short();
        let accepts = asks && !waits;
        let ordered = how.lane == Lane::Bulk || self.follows(&op);
        let (queued, accepted) = self.queue(id, &op, bulk.len() as u64, early, accepts);
        let change = TreeChange {
            id,
            op,
            bulk,
            deadline: how.deadline,
            opens,
            awaited: waits || queued.is_none(),
            queued,
        };
        let mut backlog = locked(&self.backlog);
        let room = match backlog.is_empty() || !ordered {
            true => self.mounts.proposer.try_room(change.bulk.len()),
            false => None,
        };
        match room {
            Some(room) => self.propose_change(change, room),
            None => {
                backlog.push_back(change);
                self.backlogged.notify_one();
            }
        }
        // Only now: what its caller asks for next comes behind it.
        if let Some(accepted) = accepted {
            self.push(&accepted);
        }
        self.hold_back(backlog, how.lane);
    }

    /// Whether the operation must not overtake what is queued for its inode.
    fn follows(&self, op: &Op) -> bool {
        match op {
            Op::Write { ino, .. }
            | Op::Setattr { ino, .. }
            | Op::Link { ino, .. }
            | Op::Fallocate { ino, .. }
            | Op::SetXattr { ino, .. }
            | Op::RemoveXattr { ino, .. } => self.mounts.has_queued(*ino),
            // A file that takes another's place shall not do it empty.
            Op::Rename { parent, name, .. } => {
                let found = dirent::lookup(&self.mounts.store.meta().read(), *parent, name);
                found.is_ok_and(|attr| self.mounts.has_queued(attr.ino))
            }
            _ => false,
        }
    }

    /// The thread of the bulk lane waits while too much does: then the socket
    /// fills, and writers wait in fused.  That of the control lane, by which
    /// large writes come only behind small ones, does so much later.
    fn hold_back(&self, mut backlog: MutexGuard<'_, VecDeque<TreeChange>>, lane: Lane) {
        let bytes = |b: &VecDeque<TreeChange>| b.iter().map(|c| c.bulk.len()).sum::<usize>();
        let max = match lane {
            Lane::Bulk => BACKLOG_MAX,
            Lane::Control => 4 * BACKLOG_MAX,
        };
        while bytes(&backlog) > max {
            let waited = self.worked_off.wait_timeout(backlog, BACKLOG_WAIT);
            backlog = waited.unwrap_or_else(|e| e.into_inner()).0;
        }
    }

    /// The task that proposes what had to wait.
    pub(super) async fn work_off(self: Arc<Self>) {
        loop {
            let next = locked(&self.backlog)
                .front()
                .map(|c| (c.bulk.len(), c.deadline));
            let Some((bytes, deadline)) = next else {
                if self.mounts.is_gone(&self) {
                    // Behind all that was written under its locks.
                    return self.mounts.locks.leave(self.locker);
                }
                self.backlogged.notified().await;
                continue;
            };
            let room = timeout_at(deadline.into(), self.mounts.proposer.room(bytes)).await;
            // Under the lock until it is proposed, or a later one, which
            // finds the backlog empty, would overtake it.
            let mut backlog = locked(&self.backlog);
            let Some(change) = backlog.pop_front() else {
                continue;
            };
            self.worked_off.notify_one();
            match room {
                Ok(room) => self.propose_change(change, room),
                Err(_) => {
                    drop(backlog);
                    self.settle(&change);
                    self.reply(change.id, 0, Err(FsError::TimedOut));
                }
            }
        }
    }

    /// Notes a change that its caller shall not wait for: a write whose place
    /// does not depend on the log, or attributes that are set `early`, so that
    /// tar pays no round for each.  The inode, if it is one or any write, and
    /// what its caller is to be told.
    fn queue(
        &self,
        id: ReqId,
        op: &Op,
        len: u64,
        early: bool,
        accepts: bool,
    ) -> (Option<InodeNo>, Option<RaftdToFused>) {
        match op {
            Op::Write { ino, at, .. } => {
                self.mounts.queue(*ino, |attr| match at {
                    WriteAt::Offset(at) => attr.size = attr.size.max(at.saturating_add(len)),
                    WriteAt::End => attr.size = attr.size.saturating_add(len),
                });
                let accepted = accepts.then_some(RaftdToFused::Accepted { id, attr: None });
                (Some(*ino), accepted)
            }
            Op::Setattr { ino, set, .. } if early && set.size.is_none() => {
                let attr = self.mounts.queue(*ino, |attr| preview(attr, set));
                let attr = attr.map(|attr| self.show_attr(attr));
                (Some(*ino), Some(RaftdToFused::Accepted { id, attr }))
            }
            _ => (None, None),
        }
    }

    fn settle(&self, change: &TreeChange) {
        if let Some(ino) = change.queued {
            self.mounts.unqueue(ino);
        }
    }

    fn propose_change(self: &Arc<Self>, change: TreeChange, room: Room) {
        let fused = self.clone();
        let TreeChange {
            id,
            op,
            bulk,
            deadline,
            opens,
            awaited,
            queued,
        } = change;
        let done = move |index, outcome| {
            let answer = fused.resolved(outcome, opens);
            match awaited {
                true => fused.reply(id, index, answer),
                false => fused.reply_soon(id, index, answer),
            }
            // Now, or the answer to whoever waits for this would overtake it.
            if let Some(ino) = queued {
                fused.mounts.unqueue(ino);
            }
        };
        self.propose(op, bulk, deadline, awaited, room, done);
    }

    fn propose(
        &self,
        op: Op,
        bulk: Bytes,
        deadline: Instant,
        awaited: bool,
        room: Room,
        done: impl FnOnce(u64, Outcome) + Send + 'static,
    ) {
        let how = propose::How {
            deadline,
            from: Some(self.attachment),
            awaited,
        };
        let proposer = &self.mounts.proposer;
        proposer.propose(op, bulk, how, room, Box::new(done));
    }

    fn resolved(&self, outcome: Outcome, opens: bool) -> Answer {
        outcome.and_then(|reply| match reply {
            Reply::Done | Reply::Session | Reply::Locked { .. } | Reply::Waiting { .. } => {
                Ok(FsRep::Done)
            }
            Reply::Attr(attr) => Ok(FsRep::Attr(self.show_attr(attr))),
            Reply::Written { offset, attr } => {
                let attr = self.show_attr(attr);
                Ok(FsRep::Written { offset, attr })
            }
            Reply::Entry { attr, created } => {
                // Somebody else was first, and nobody has asked whether the
                // caller may open that file: the kernel shall look again.
                if opens && !created {
                    return Err(FsError::Stale);
                }
                if opens {
                    self.opened(attr.ino);
                    self.confirm(attr.ino);
                }
                let attr = self.show_attr(attr);
                Ok(FsRep::Entry { attr, created })
            }
        })
    }

    /// The operation as the log says it.
    fn to_log(&self, cred: Cred, op: FsOp) -> Result<Op, FsError> {
        let check = check(cred);
        let judged = |by: Option<u32>| match (check, by) {
            (Check::Kernel, Some(owner)) => Check::Owner {
                uid: cred.uid,
                owner,
            },
            (check, _) => check,
        };
        Ok(match op {
            FsOp::Create {
                parent,
                name,
                mode,
                umask,
                excl,
            } => Op::Create {
                parent: self.real(parent)?,
                name,
                mode,
                umask,
                excl,
                cred,
            },
            FsOp::Mknod {
                parent,
                name,
                mode,
                umask,
                rdev,
            } => Op::Mknod {
                parent: self.real(parent)?,
                name,
                mode,
                umask,
                rdev,
                cred,
            },
            FsOp::Mkdir {
                parent,
                name,
                mode,
                umask,
            } => Op::Mkdir {
                parent: self.real(parent)?,
                name,
                mode,
                umask,
                cred,
            },
            FsOp::Symlink {
                parent,
                name,
                target,
            } => Op::Symlink {
                parent: self.real(parent)?,
                name,
                target,
                cred,
            },
            FsOp::Link { ino, parent, name } => Op::Link {
                ino: self.real(ino)?,
                parent: self.real(parent)?,
                name,
                cred,
            },
            FsOp::Unlink { parent, name } => Op::Unlink {
                parent: self.real(parent)?,
                name,
                check,
            },
            FsOp::Rmdir { parent, name } => Op::Rmdir {
                parent: self.real(parent)?,
                name,
                check,
            },
            FsOp::Rename {
                parent,
                name,
                new_parent,
                new_name,
                no_replace,
                exchange,
            } => Op::Rename {
                parent: self.real(parent)?,
                name,
                new_parent: self.real(new_parent)?,
                new_name,
                how: match (no_replace, exchange) {
                    (false, false) => RenameHow::Replace,
                    (true, false) => RenameHow::NoReplace,
                    (false, true) => RenameHow::Exchange,
                    (true, true) => return Err(FsError::Invalid),
                },
                check,
            },
            FsOp::Setattr {
                ino, set, owner, ..
            } => Op::Setattr {
                ino: self.real(ino)?,
                set,
                check: judged(owner),
            },
            FsOp::Write {
                ino,
                offset,
                append,
                kill_priv,
                ..
            } => Op::Write {
                ino: self.real(ino)?,
                at: match append {
                    true => WriteAt::End,
                    false => WriteAt::Offset(offset),
                },
                kill_priv,
            },
            FsOp::Setxattr {
                ino,
                name,
                how,
                owner,
                ..
            } => Op::SetXattr {
                ino: self.real(ino)?,
                name,
                how,
                cred,
                check: judged(owner),
            },
            FsOp::Removexattr { ino, name, owner } => Op::RemoveXattr {
                ino: self.real(ino)?,
                name,
                check: judged(owner),
            },
            FsOp::Fallocate { ino, what } => Op::Fallocate {
                ino: self.real(ino)?,
                what,
            },
            _ => return Err(FsError::Unsupported),
        })
    }
}
