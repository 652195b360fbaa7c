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

//! Requests that only look, answered from the applied state: at once, or when
//! what the mount itself has changed is applied, or behind a barrier.  raftd
//! only.

use super::request::{begin, fs_error, Answer};
use super::Fused;
use crate::fs::inode::Contents;
use crate::fs::{dirent, inode, space, xattr};
use crate::store::meta::View;
use bytes::Bytes;
use common::fatal;
use common::fs::{Attr, Cookie, FsError, InodeNo, ReqId, IO_MAX};
use common::msg::{FsOp, FsRep};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

/// An answer that is right in itself waits no longer.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// Bytes that ride behind their reply.
fn data(bytes: Bytes, bulk: &mut Bytes) -> FsRep {
    let len = bytes.len() as u32;
    *bulk = bytes;
    FsRep::Data { len }
}

/// What the name means.  Stale if the directory is removed, in which nothing is:
/// its own name may mean another one by now.
pub(super) fn lookup(v: &View<'_>, dir: InodeNo, name: &[u8]) -> Result<Attr, FsError> {
    let found = dirent::lookup(v, dir, name).map_err(fs_error);
    let is_removed = || inode::getattr(v, dir).is_ok_and(|attr| attr.nlink == 0);
    match found {
        Err(FsError::NotFound) if is_removed() => Err(FsError::Stale),
        found => found,
    }
}

impl Fused {
    /// A request that reads the applied state, once nothing is queued for
    /// its inode.
    pub(super) fn look(self: &Arc<Self>, id: ReqId, op: FsOp, deadline: Instant) {
        if !self.conf.strict || op == FsOp::Statfs {
            return self.look_here(id, op, deadline);
        }
        let fused = self.clone();
        begin(async move {
            match fused.pass_barrier(deadline).await {
                Ok(()) => fused.look_here(id, op, deadline),
                Err(e) => fused.reply(id, 0, Err(e)),
            }
        });
    }

    fn look_here(self: &Arc<Self>, id: ReqId, op: FsOp, deadline: Instant) {
        // Before the state is read: it may be newer, never older.
        let index = self.applied();
        match self.unsettled(&op) {
            None => self.answer(id, index, op, deadline),
            Some(ino) => {
                let fused = self.clone();
                begin(async move {
                    match fused.mounts.settled(ino, deadline).await {
                        Ok(()) => {
                            let index = fused.applied();
                            fused.answer(id, index, op, deadline);
                        }
                        Err(e) => fused.reply(id, index, Err(e)),
                    }
                });
            }
        }
    }

    /// The inode whose queued changes the request must see.
    fn unsettled(&self, op: &FsOp) -> Option<InodeNo> {
        let ino = match op {
            FsOp::Getattr { ino }
            | FsOp::Read { ino, .. }
            | FsOp::Getxattr { ino, .. }
            | FsOp::Seek { ino, .. }
            | FsOp::Listxattr { ino } => self.real(*ino).ok()?,
            FsOp::Lookup { parent, name } => {
                let parent = self.real(*parent).ok()?;
                let meta = self.mounts.store.meta();
                let found = dirent::lookup(&meta.read(), parent, name).ok()?;
                found.ino
            }
            _ => return None,
        };
        self.mounts.has_queued(ino).then_some(ino)
    }

    fn answer(self: &Arc<Self>, id: ReqId, index: u64, op: FsOp, deadline: Instant) {
        if self.too_old() {
            return self.reply(id, index, Err(FsError::NoQuorum));
        }
        let mut bulk = Bytes::new();
        let answer = match &op {
            FsOp::Lookup { parent, name } => match self.lookup(*parent, name) {
                Err(FsError::NotFound | FsError::Stale) => {
                    return self.look_again(id, op, deadline);
                }
                found => found,
            },
            FsOp::Getattr { ino } => self.getattr(*ino).map(FsRep::Attr),
            FsOp::Readlink { ino } => self.readlink(*ino),
            FsOp::Read { ino, offset, size } => self
                .read(*ino, *offset, *size)
                .map(|bytes| data(bytes, &mut bulk)),
            FsOp::Getxattr { ino, name } => self
                .getxattr(*ino, name)
                .map(|value| data(value, &mut bulk)),
            FsOp::Listxattr { ino } => self.listxattr(*ino).map(|list| data(list, &mut bulk)),
            FsOp::Readdir {
                ino,
                after,
                size,
                plus,
            } => self.readdir(*ino, *after, *size, *plus),
            FsOp::Seek { ino, offset, hole } => self.seek(*ino, *offset, *hole),
            FsOp::Statfs => self.statfs(),
            _ => Err(FsError::Unsupported),
        };
        // The program is given these attributes, whatever the kernel keeps; so
        // it must hear first that what it keeps is older.
        if matches!(op, FsOp::Getattr { .. }) && self.untold() > index {
            let fused = self.clone();
            return begin(async move {
                fused.told(deadline.min(Instant::now() + TOLD_WITHIN)).await;
                fused.reply(id, index, answer);
            });
        }
        self.reply_with(id, index, answer, None, bulk);
    }

    /// A name is not there only behind a barrier: whoever was told of it by
    /// the node that made it must find it here, and OPEN, which has a barrier
    /// of its own, gets only to names that are found.
    fn look_again(self: &Arc<Self>, id: ReqId, op: FsOp, deadline: Instant) {
        let fused = self.clone();
        begin(async move {
            let waited = fused.pass_barrier(deadline).await;
            let index = fused.applied();
            let answer = match (waited, &op) {
                (Ok(()), FsOp::Lookup { parent, name }) => {
                    let found = fused.lookup(*parent, name);
                    fused.told_if_stale(found, deadline).await
                }
                (Ok(()), _) => Err(FsError::Unsupported),
                (Err(e), _) => Err(e),
            };
            fused.reply(id, index, answer);
        });
    }

    /// That a directory is gone the mount hears after which name it has lost.
    pub(super) async fn told_if_stale(&self, found: Answer, deadline: Instant) -> Answer {
        if !matches!(found, Err(FsError::Stale)) {
            return found;
        }
        match self.told(deadline).await {
            true => found,
            false => Err(FsError::TimedOut),
        }
    }

    /// The last entry that the state may show; of which the mounts perhaps have
    /// not been told yet.
    fn untold(&self) -> u64 {
        let seen = self.mounts.store.shown();
        // An entry that waits for the disk removes no name.
        match self.mounts.store.alarm() {
            Some(_) => seen.saturating_sub(1),
            None => seen,
        }
    }

    /// The mounts have been told of all that the state shows; false if not in
    /// time.
    async fn told(&self, deadline: Instant) -> bool {
        let seen = self.untold();
        let mut applied = self.mounts.applied.clone();
        let told = applied.wait_for(|applied| *applied >= seen);
        let in_time = timeout_at(deadline.into(), told).await;
        in_time.is_ok()
    }

    fn lookup(&self, parent: InodeNo, name: &[u8]) -> Answer {
        let name = match (parent, name) {
            // Nothing of the tree is seen above the mount.
            (InodeNo::ROOT, b"..") => b".",
            (_, name) => name,
        };
        let parent = self.real(parent)?;
        let attr = {
            let reader = self.mounts.store.meta().read();
            lookup(&reader, parent, name)?
        };
        let attr = self.show_attr(attr);
        Ok(FsRep::Entry {
            attr,
            created: false,
        })
    }

    fn getattr(&self, ino: InodeNo) -> Result<Attr, FsError> {
        self.getattr_real(self.real(ino)?)
    }

    pub(super) fn getattr_real(&self, ino: InodeNo) -> Result<Attr, FsError> {
        let attr = inode::getattr(&self.mounts.store.meta().read(), ino).map_err(fs_error)?;
        Ok(self.show_attr(attr))
    }

    fn readlink(&self, ino: InodeNo) -> Answer {
        let ino = self.real(ino)?;
        let target = inode::readlink(&self.mounts.store.meta().read(), ino);
        target.map(FsRep::Target).map_err(fs_error)
    }

    fn read(&self, ino: InodeNo, offset: u64, size: u32) -> Result<Bytes, FsError> {
        let ino = self.real(ino)?;
        let size = (size as usize).min(IO_MAX);
        let inode = inode::load(&self.mounts.store.meta().read(), ino).map_err(fs_error)?;
        match &inode.contents {
            Contents::Inline(bytes) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                let from = from.min(bytes.len());
                let to = from.saturating_add(size).min(bytes.len());
                Ok(Bytes::copy_from_slice(bytes.get(from..to).unwrap_or(&[])))
            }
            Contents::Backing { .. } => {
                let read = self.mounts.store.data().read(ino, offset, size);
                read.map(Bytes::from).map_err(|e| {
                    common::log_warn!(e, "inode {ino}: read");
                    FsError::Io
                })
            }
            _ => Err(FsError::Invalid),
        }
    }

    fn getxattr(&self, ino: InodeNo, name: &[u8]) -> Result<Bytes, FsError> {
        let ino = self.real(ino)?;
        let value = xattr::get(&self.mounts.store.meta().read(), ino, name);
        value.map(Bytes::from).map_err(fs_error)
    }

    fn listxattr(&self, ino: InodeNo) -> Result<Bytes, FsError> {
        let ino = self.real(ino)?;
        let list = xattr::list(&self.mounts.store.meta().read(), ino);
        list.map(Bytes::from).map_err(fs_error)
    }

    fn readdir(&self, ino: InodeNo, after: Cookie, size: u32, plus: bool) -> Answer {
        let ino = self.real(ino)?;
        let size = (size as usize).min(IO_MAX);
        // Before the state is read: what is resolved meanwhile may be missing
        // in it, and the kernel knows a larger size already.
        let queued = self.mounts.queued_inodes();
        let (mut entries, eof) = {
            let reader = self.mounts.store.meta().read();
            dirent::readdir(&reader, ino, after, size, plus).map_err(fs_error)?
        };
        for entry in &mut entries {
            let unsure = self.is_unsure(entry.ino);
            if unsure || queued.contains(&entry.ino) || self.mounts.has_queued(entry.ino) {
                entry.attr = None;
            }
            entry.attr = entry.attr.take().map(|attr| self.show_attr(attr));
            entry.ino = self.shown(entry.ino).unwrap_or(entry.ino);
        }
        Ok(FsRep::Dirents { entries, eof })
    }

    fn statfs(&self) -> Answer {
        let root = self.real(InodeNo::ROOT).unwrap_or(InodeNo::ROOT);
        match space::statfs(&self.mounts.store.meta().read(), root) {
            Ok(statfs) => Ok(FsRep::Statfs(statfs)),
            Err(e) => fatal!(e, "store"),
        }
    }
}
