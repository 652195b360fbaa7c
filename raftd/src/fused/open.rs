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

//! What a mount holds open: OPEN and the names that are held, and their end.
//! raftd only.

use super::look::lookup;
use super::request::{fs_error, Answer};
use super::{locked, Fused};
use crate::fs::inode;
use crate::fs::inode::Contents;
use bytes::Bytes;
use common::fs::{Attr, FsError, InodeNo, ReqId};
use common::msg::{FsOp, FsRep};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Instant;

/// How often a name is looked up again that means something else each time.
const HOLD_TRIES: usize = 16;

impl Fused {
    /// A request that waits for the log without adding to it.
    pub(super) async fn wait_for(self: Arc<Self>, id: ReqId, op: FsOp, deadline: Instant) {
        let answer = match op {
            FsOp::Open { ino, held, .. } => return self.open(id, ino, held, deadline).await,
            FsOp::LookupHold { parent, name } => {
                let passed = self.pass_barrier(deadline).await;
                // Before the state is read: it may be newer, never older.
                let index = self.applied();
                let found = match passed {
                    Ok(()) => {
                        let found = self.lookup_hold(parent, &name, deadline).await;
                        self.told_if_stale(found, deadline).await
                    }
                    Err(e) => Err(e),
                };
                return self.reply(id, index, found);
            }
            FsOp::Fsync { ino } => match self.real(ino) {
                Ok(ino) => self.mounts.settled(ino, deadline).await,
                Err(e) => Err(e),
            },
            _ => Err(FsError::Unsupported),
        };
        let index = self.applied();
        self.reply(id, index, answer.map(|()| FsRep::Done));
    }

    /// What the name means, held as if it were open.  One that is let go of
    /// before it is counted has lost the name meanwhile.
    async fn lookup_hold(&self, parent: InodeNo, name: &[u8], deadline: Instant) -> Answer {
        let parent = self.real(parent)?;
        for _ in 0..HOLD_TRIES {
            let meta = self.mounts.store.meta();
            let ino = lookup(&meta.read(), parent, name)?.ino;
            let others = self.opened(ino);
            match self.getattr_real(ino) {
                Ok(attr) if attr.nlink > 0 || others => {}
                Ok(_) | Err(FsError::Stale) => {
                    self.forget_open(ino);
                    continue;
                }
                Err(e) => {
                    self.forget_open(ino);
                    return Err(e);
                }
            }
            // From here on it stays, whatever becomes of the name.
            let settled = self.mounts.settled(ino, deadline).await;
            let found = settled.and_then(|()| match self.too_old() {
                true => Err(FsError::NoQuorum),
                false => self.getattr_real(ino),
            });
            if found.is_err() {
                self.forget_open(ino);
            }
            let created = false;
            return found.map(|attr| FsRep::Entry { attr, created });
        }
        Err(FsError::TimedOut)
    }

    /// OPEN names an inode: after the barrier it must still be what some name
    /// means, or be held open here.
    async fn open(self: Arc<Self>, id: ReqId, ino: InodeNo, held: bool, deadline: Instant) {
        let ready = async {
            let ino = self.real(ino)?;
            self.pass_barrier(deadline).await?;
            self.mounts.settled(ino, deadline).await?;
            match self.too_old() {
                true => Err(FsError::NoQuorum),
                false => Ok(ino),
            }
        };
        let ino = match ready.await {
            Ok(ino) => ino,
            Err(e) => return self.reply(id, 0, Err(e)),
        };
        // Counted before it is looked at: from here on nobody lets it go.
        let others = self.opened(ino);
        let index = self.applied();
        let found = inode::getattr(&self.mounts.store.meta().read(), ino).map_err(fs_error);
        let attr = match found {
            Ok(attr) if attr.nlink == 0 && !others && !(held && self.keeps(ino)) => {
                Err(FsError::Stale)
            }
            found => found,
        };
        match attr {
            Err(e) => {
                self.forget_open(ino);
                self.reply(id, index, Err(e));
            }
            Ok(attr) => self.reply_opened(id, index, attr),
        }
    }

    fn reply_opened(&self, id: ReqId, index: u64, attr: Attr) {
        self.confirm(attr.ino);
        let fd = self.backing(&attr);
        let attr = self.show_attr(attr);
        self.reply_with(id, index, Ok(FsRep::Opened { attr }), fd, Bytes::new());
    }

    /// The backing file, if the contents are in one; without it fused reads
    /// through us, so that no failure here matters.
    fn backing(&self, attr: &Attr) -> Option<OwnedFd> {
        // Before every read is a barrier, or may be: it is ours to make.
        if !attr.is_file() || !self.reads_itself() {
            return None;
        }
        let contents = inode::contents(&self.mounts.store.meta().read(), attr.ino);
        match contents {
            Ok(Contents::Backing { .. }) => self.mounts.store.data().open_read(attr.ino).ok(),
            _ => None,
        }
    }

    /// Counts a handle; true if somebody was told of one before.
    pub(super) fn opened(&self, ino: InodeNo) -> bool {
        let mut open = locked(&self.open);
        let entry = open.entry(ino).or_default();
        entry.count += 1;
        self.handles.fetch_add(1, Ordering::Relaxed);
        entry.confirmed
    }

    /// The handle will be used.
    pub(super) fn confirm(&self, ino: InodeNo) {
        if let Some(entry) = locked(&self.open).get_mut(&ino) {
            entry.confirmed = true;
        }
    }

    /// Whether an orphan that is being opened by no name stays: a LookupHold of
    /// the same call has it, or it has not been let go of yet.
    fn keeps(&self, ino: InodeNo) -> bool {
        let count = locked(&self.open).get(&ino).map_or(0, |entry| entry.count);
        count > 1 || self.mounts.keep(ino)
    }

    fn forget_open(&self, ino: InodeNo) {
        let last = {
            let mut open = locked(&self.open);
            let Some(entry) = open.get_mut(&ino) else {
                return;
            };
            entry.count -= 1;
            self.handles.fetch_sub(1, Ordering::Relaxed);
            let last = entry.count == 0;
            if last {
                open.remove(&ino);
            }
            last
        };
        if last {
            self.mounts.closed(ino);
        }
    }

    pub(super) fn release(&self, ino: InodeNo) {
        if let Ok(ino) = self.real(ino) {
            self.forget_open(ino);
        }
    }
}
