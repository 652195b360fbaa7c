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

//! How old what this node has may be, for `dirty` mounts, which show it also
//! when no quorum answers.  raftd only.
//!
//! The age is the time since this node asked the question of the last read
//! barrier that was answered: what was acknowledged before that it has.  It
//! counts on a clock that goes on while the machine sleeps.  After a start
//! nothing is known of it until a quorum has answered.

use crate::fs::op::Op;
use crate::raft::EntryPayload;
use crate::store::log_store::LogStore;
use common::fs::InodeNo;
use common::sys::clock::boottime;
use futures_util::TryStreamExt;
use openraft::storage::{RaftLogReader, RaftLogStorage};
use std::collections::HashSet;
use std::io;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

#[derive(Default)]
pub struct Age(Mutex<Option<Duration>>);

impl Age {
    fn asked(&self) -> MutexGuard<'_, Option<Duration>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A barrier that was asked for then has passed.
    pub fn passed(&self, asked: Duration) {
        let mut last = self.asked();
        *last = (*last).max(Some(asked));
    }

    /// None: not known since the start.
    pub fn get(&self) -> Option<Duration> {
        let asked = (*self.asked())?;
        Some(boottime().ok()?.saturating_sub(asked))
    }

    pub fn is_within(&self, max: Option<Duration>) -> bool {
        max.is_none_or(|max| self.get().is_some_and(|age| age <= max))
    }
}

/// What the entries touch that this node's log held at its start beyond what
/// it knew to be committed.  Some may have been acknowledged, by this very
/// node, and others may never be: until a quorum answers nobody can tell.
pub async fn unsure(log: &LogStore) -> io::Result<HashSet<InodeNo>> {
    let next = |id: &crate::raft::LogId| id.index + 1;
    let recovered = log.recovered();
    let from = recovered.committed.as_ref().map_or(0, next);
    let to = recovered.last.as_ref().map_or(0, next);
    let mut touched = HashSet::new();
    if from >= to {
        return Ok(touched);
    }
    let mut reader = log.clone().get_log_reader().await;
    let entries = reader.entries_stream(from..to).await;
    let mut entries = std::pin::pin!(entries);
    while let Some(entry) = entries.try_next().await? {
        if let EntryPayload::Normal(cmd) = entry.payload {
            touched.extend(touches(&cmd.op));
        }
    }
    Ok(touched)
}

/// The inodes by whose numbers the operation goes.
fn touches(op: &Op) -> Vec<InodeNo> {
    match op {
        Op::Nop | Op::OpenSession { .. } | Op::Capacity { .. } | Op::Floor { .. } => vec![],
        Op::Release { .. } => vec![],
        // Nothing that can be read of an inode.
        Op::SetQuota { .. } | Op::DropQuota { .. } | Op::Adopt { .. } => vec![],
        Op::Create { parent, .. }
        | Op::Mknod { parent, .. }
        | Op::Mkdir { parent, .. }
        | Op::Symlink { parent, .. }
        | Op::Unlink { parent, .. }
        | Op::Rmdir { parent, .. } => vec![*parent],
        Op::Link { ino, parent, .. } => vec![*ino, *parent],
        Op::Rename {
            parent, new_parent, ..
        } => vec![*parent, *new_parent],
        Op::Setattr { ino, .. }
        | Op::Write { ino, .. }
        | Op::Fallocate { ino, .. }
        | Op::SetXattr { ino, .. }
        | Op::RemoveXattr { ino, .. } => vec![*ino],
        // A time of access is not worth to refuse the rest.
        Op::Accessed { .. } => Vec::new(),
        // Locks are nothing of what is shown.
        Op::Lock { .. } | Op::Unlock { .. } | Op::UnlockMount { .. } => vec![],
        Op::CancelLock { .. } | Op::ExpireLocks { .. } | Op::ResetLocks => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        let age = Age::default();
        assert_eq!(age.get(), None);
        assert!(age.is_within(None));
        assert!(!age.is_within(Some(Duration::from_secs(3600))));
        let now = boottime().unwrap();
        age.passed(now);
        age.passed(now.saturating_sub(Duration::from_secs(7)));
        assert!(age.is_within(Some(Duration::from_secs(3600))));
        assert!(age.get().is_some_and(|age| age < Duration::from_secs(7)));
    }
}
