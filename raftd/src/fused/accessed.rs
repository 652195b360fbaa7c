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

//! Times of access: what was read is collected for a while and told to the log
//! in one entry for many, for which nobody waits.  raftd only.
//!
//! fused says so once for what it knows of an inode, and what it knows may be
//! old: whether the time has to move is judged here, before it costs an entry,
//! and by apply in the end.

use super::{locked, Fused, Mounts};
use crate::fs::inode;
use crate::fs::op::Op;
use crate::propose::{now, How};
use bytes::Bytes;
use common::fs::{atime_due, InodeNo, Time};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How long accesses are collected.
const ACCESS_DELAY: Duration = Duration::from_secs(3);
/// Inodes of one entry.
const ACCESS_MAX: usize = 1024;
/// Beyond so many, accesses are not noted until the next entry.
const ACCESSES_MAX: usize = 65536;
/// How long the proposal of an entry is tried.
const ACCESS_TIMEOUT: Duration = Duration::from_secs(30);

/// What was read since the last entry, each with its ctime then.
#[derive(Default)]
pub(super) struct Accesses {
    inodes: Mutex<BTreeMap<InodeNo, Time>>,
    some: Notify,
}

impl Fused {
    pub(super) fn accessed(&self, ino: InodeNo) {
        let mounts = &self.mounts;
        if self.conf.read_only || self.conf.noatime || !mounts.can_note() {
            return;
        }
        let Ok(ino) = self.real(ino) else {
            return;
        };
        let attr = inode::getattr(&mounts.store.meta().read(), ino);
        let Some(attr) = attr.ok().filter(|attr| now().sec >= atime_due(attr)) else {
            return;
        };
        let mut inodes = locked(&mounts.accesses.inodes);
        if inodes.len() < ACCESSES_MAX {
            inodes.insert(ino, attr.ctime);
            mounts.accesses.some.notify_one();
        }
    }
}

impl Mounts {
    /// What happens without a quorum is not worth to be told later.
    fn can_note(&self) -> bool {
        *self.recovered.borrow() && *self.quorum.borrow()
    }

    /// The task that proposes what was read.
    pub async fn note_accesses(self: Arc<Self>) {
        loop {
            self.accesses.some.notified().await;
            tokio::time::sleep(ACCESS_DELAY).await;
            let all = std::mem::take(&mut *locked(&self.accesses.inodes));
            let mut all = all.into_iter().peekable();
            while all.peek().is_some() && self.can_note() {
                let inodes: Vec<_> = all.by_ref().take(ACCESS_MAX).collect();
                let room = self.proposer.room(0).await;
                // Not from the mount that read: its kernel is to see the new
                // time as all others do.
                let how = How {
                    deadline: Instant::now() + ACCESS_TIMEOUT,
                    from: None,
                    awaited: false,
                };
                let done = Box::new(|_, _| {});
                let op = Op::Accessed { inodes };
                self.proposer.propose(op, Bytes::new(), how, room, done);
            }
        }
    }
}
