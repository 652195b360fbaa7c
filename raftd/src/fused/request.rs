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

//! What a fused asks for, by what it is handed to: look.rs, open.rs, lock.rs or
//! change.rs; and when this node may answer at all.  raftd only.
//!
//! A request that cannot be answered at once (this node has not recovered,
//! the window is full, its inode has changes queued, a barrier is needed)
//! waits in a task of its own, so that none holds up another.

use super::{Dirty, Fused};
use crate::fs::dirent;
use crate::fs::inode::ReadError;
use bytes::Bytes;
use common::fatal;
use common::fs::{Cred, FsError, InodeNo, ReqId};
use common::msg::{FsOp, FsRep, Lane};
use futures_util::FutureExt;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;
use tokio::time::timeout_at;

pub(super) type Answer = Result<FsRep, FsError>;

/// By when a request must be answered, and how it came.
#[derive(Clone, Copy)]
pub(super) struct How {
    pub(super) deadline: Instant,
    pub(super) lane: Lane,
}

/// A broken store must not answer anything any more.
pub fn fs_error(e: ReadError) -> FsError {
    match e {
        ReadError::Fs(e) => e,
        ReadError::Meta(e) => fatal!(e, "store"),
    }
}

/// Does on this thread what need not wait, and the rest in a task.
pub(super) fn begin(work: impl Future<Output = ()> + Send + 'static) {
    let mut work = Box::pin(work);
    if work.as_mut().now_or_never().is_none() {
        tokio::spawn(work);
    }
}

impl Fused {
    pub(super) fn request(
        self: &Arc<Self>,
        id: ReqId,
        cred: Cred,
        op: FsOp,
        bulk: Bytes,
        lane: Lane,
    ) {
        if let FsOp::Release { ino } = op {
            return self.release(ino);
        }
        if let FsOp::Accessed { ino } = op {
            return self.accessed(ino);
        }
        let deadline = Instant::now() + self.conf.timeout;
        let how = How { deadline, lane };
        let recovered = *self.mounts.recovered.borrow();
        // Writes would wait for that each on its own, and in no order.
        let writes = matches!(op, FsOp::Open { write: true, .. });
        let dirty = self.conf.dirty && op.only_looks() && (recovered || !writes);
        if let Some(e) = self.refuse_dirty(&op).filter(|_| dirty) {
            return self.reply(id, 0, Err(e));
        }
        if dirty || recovered {
            return self.begin(id, cred, op, bulk, how);
        }
        if writes && !*self.mounts.quorum.borrow() {
            return self.reply(id, 0, Err(FsError::ReadOnly));
        }
        let fused = self.clone();
        tokio::spawn(async move {
            let mut recovered = fused.mounts.recovered.clone();
            let wait = recovered.wait_for(|&r| r);
            let waited = timeout_at(deadline.into(), wait).await;
            match waited.is_ok_and(|got| got.is_ok()) {
                true => fused.begin(id, cred, op, bulk, how),
                false => fused.reply(id, 0, Err(FsError::NoQuorum)),
            }
        });
    }

    pub(super) fn begin(self: &Arc<Self>, id: ReqId, cred: Cred, op: FsOp, bulk: Bytes, how: How) {
        let deadline = how.deadline;
        match op {
            FsOp::Fsync { ino } if self.is_settled(ino) => {
                self.reply(id, self.applied(), Ok(FsRep::Done));
            }
            FsOp::Open { .. } | FsOp::LookupHold { .. } | FsOp::Fsync { .. } => {
                begin(self.clone().wait_for(id, op, deadline));
            }
            FsOp::Lookup { .. }
            | FsOp::Getattr { .. }
            | FsOp::Readlink { .. }
            | FsOp::Read { .. }
            | FsOp::Readdir { .. }
            | FsOp::Seek { .. }
            | FsOp::Statfs
            | FsOp::Getxattr { .. }
            | FsOp::Listxattr { .. } => self.look(id, op, deadline),
            FsOp::Lock { .. } | FsOp::Unlock { .. } | FsOp::TestLock { .. } => {
                begin(self.clone().lock_request(id, op, deadline));
            }
            _ => self.change_tree(id, cred, op, bulk, how),
        }
    }

    /// Why even a mount that shows what is here does not show this.
    fn refuse_dirty(&self, op: &FsOp) -> Option<FsError> {
        let Dirty { age, unsure } = &self.mounts.dirty;
        if !age.is_within(self.conf.maxage) {
            return Some(FsError::NoQuorum);
        }
        if *self.mounts.recovered.borrow() || unsure.is_empty() {
            return None;
        }
        let ino = match op {
            FsOp::Lookup { parent, name } | FsOp::LookupHold { parent, name } => {
                return self.refuse_unsure_name(*parent, name);
            }
            FsOp::Getattr { ino }
            | FsOp::Readlink { ino }
            | FsOp::Read { ino, .. }
            | FsOp::Readdir { ino, .. }
            | FsOp::Open { ino, .. }
            | FsOp::Getxattr { ino, .. }
            | FsOp::Seek { ino, .. }
            | FsOp::Listxattr { ino } => *ino,
            _ => return None,
        };
        let unsure = unsure.contains(&self.real(ino).ok()?);
        unsure.then_some(FsError::Io)
    }

    /// The directory, or what the name means in it.
    fn refuse_unsure_name(&self, parent: InodeNo, name: &[u8]) -> Option<FsError> {
        let Dirty { unsure, .. } = &self.mounts.dirty;
        let parent = self.real(parent).ok()?;
        let meta = self.mounts.store.meta();
        let found = dirent::lookup(&meta.read(), parent, name);
        let child = found.is_ok_and(|attr| unsure.contains(&attr.ino));
        (child || unsure.contains(&parent)).then_some(FsError::Io)
    }

    pub(super) fn is_unsure(&self, ino: InodeNo) -> bool {
        self.mounts.dirty.unsure.contains(&ino) && !*self.mounts.recovered.borrow()
    }

    /// What was waited for may have taken long.
    pub(super) fn too_old(&self) -> bool {
        self.conf.dirty && !self.mounts.dirty.age.is_within(self.conf.maxage)
    }

    /// Waits until this node has applied all that was acknowledged before; or
    /// not, where what is here is shown.
    pub(super) async fn pass_barrier(&self, deadline: Instant) -> Result<(), FsError> {
        if self.conf.dirty {
            return Ok(());
        }
        if !*self.mounts.quorum.borrow() {
            return Err(FsError::NoQuorum);
        }
        self.mounts.barrier.wait(deadline).await
    }

    pub(super) fn applied(&self) -> u64 {
        *self.mounts.applied.borrow()
    }

    fn is_settled(&self, ino: InodeNo) -> bool {
        self.real(ino).is_ok_and(|ino| !self.mounts.has_queued(ino))
    }
}
