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

//! Locks that a fused asks for.  A wait for one is the only request without a
//! bound: it ends with the lock, by a signal or dfsctl(8), with the mount or with
//! the session's lease.

use super::Fused;
use crate::fs::lock::Wish;
use crate::locks::Lost;
use common::fs::{FsError, InodeNo, ReqId};
use common::lock::{LockKind, LockRange};
use common::msg::{FsOp, FsRep, RaftdToFused};
use std::sync::{Arc, Weak};
use std::time::Instant;

/// What is done when an owner of that mount has lost its locks of an inode.
pub(super) fn lost(fused: Weak<Fused>) -> Lost {
    Box::new(move |ino, owner| {
        let Some(fused) = fused.upgrade() else {
            return false;
        };
        let shown = fused.shown(ino);
        if let Some(ino) = shown {
            fused.push(&RaftdToFused::LockLost { ino, owner });
        }
        shown.is_some()
    })
}

impl Fused {
    pub(super) fn lock_lost_ack(&self, ino: InodeNo, owner: u64) {
        if let Ok(ino) = self.real(ino) {
            self.mounts.locks.acked(self.locker, ino, owner);
        }
    }

    /// Only one that is known to wait; until then fused tells again.
    pub(super) fn cancel_lock(&self, id: ReqId, ino: InodeNo) {
        let locks = self.mounts.locks.clone();
        let Ok(ino) = self.real(ino) else {
            return;
        };
        if let Some(ticket) = locks.to_cancel(self.locker, id) {
            tokio::spawn(async move { locks.cancel_at(ino, ticket).await });
        }
    }

    pub(super) async fn lock_request(self: Arc<Self>, id: ReqId, op: FsOp, deadline: Instant) {
        match op {
            FsOp::Lock {
                ino,
                owner,
                pid,
                range,
                kind,
                wait,
            } => {
                let wish = Wish {
                    owner,
                    pid,
                    range,
                    kind,
                };
                self.lock(id, ino, wish, wait).await;
            }
            FsOp::Unlock { ino, owner, range } => self.unlock(id, ino, owner, range).await,
            FsOp::TestLock {
                ino,
                owner,
                range,
                kind,
            } => {
                let found = self.test_lock(ino, owner, range, kind, deadline).await;
                self.reply(id, self.applied(), found);
            }
            _ => self.reply(id, 0, Err(FsError::Unsupported)),
        }
    }

    async fn lock(self: &Arc<Self>, id: ReqId, ino: InodeNo, wish: Wish, wait: bool) {
        let ino = match self.real(ino) {
            Ok(ino) => ino,
            Err(e) => return self.reply(id, 0, Err(e)),
        };
        let fused = self.clone();
        let done = Box::new(move |index, result: Result<u64, FsError>| {
            fused.reply(id, index, result.map(|_| FsRep::Done));
        });
        let locks = &self.mounts.locks;
        locks.lock((self.locker, id), ino, wish, wait, done).await;
    }

    async fn unlock(self: &Arc<Self>, id: ReqId, ino: InodeNo, owner: u64, range: LockRange) {
        let ino = match self.real(ino) {
            Ok(ino) => ino,
            Err(e) => return self.reply(id, 0, Err(e)),
        };
        let fused = self.clone();
        let done = move |index, result: Result<(), FsError>| {
            fused.reply(id, index, result.map(|()| FsRep::Done));
        };
        let locks = &self.mounts.locks;
        locks.unlock(self.locker, ino, owner, range, done).await;
    }

    async fn test_lock(
        &self,
        ino: InodeNo,
        owner: u64,
        range: LockRange,
        kind: LockKind,
        deadline: Instant,
    ) -> Result<FsRep, FsError> {
        let ino = self.real(ino)?;
        self.mounts.barrier.wait(deadline).await?;
        let pid = 0;
        let wish = Wish {
            owner,
            pid,
            range,
            kind,
        };
        let found = self.mounts.locks.test(self.locker, ino, &wish)?;
        Ok(FsRep::Lock(found))
    }
}
