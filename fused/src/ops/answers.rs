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

//! What raftd says: answers, and what others have changed.  fused only.

#![forbid(unsafe_code)]

use super::{errno, unexpected, Answer, Known, Ops, State, Then, Wake};
use crate::backing::Backing;
use crate::cache::Keeper;
use crate::lock;
use common::fs::{Attr, Fh, FsError, InodeNo, ReqId};
use common::log_debug;
use common::msg::{FsOp, FsRep, FusedToRaftd};
use nix::errno::Errno;
use std::os::fd::OwnedFd;
use std::sync::MutexGuard;
use std::time::Duration;

impl Ops {
    /// A WRITE or SETATTR is queued: the kernel need not wait any longer.
    pub fn accepted(&self, id: ReqId, attr: Option<Attr>) {
        let mut state = lock(&self.state);
        let Some(request) = state.requests.get(id) else {
            // Its time was over.
            return;
        };
        match &mut request.then {
            Then::Write(writing) if !writing.sync => {
                let (reply, len) = (writing.reply.take(), writing.len);
                let (ino, end) = writing.range();
                state.inodes.get_or_new(ino).grow(end);
                drop(state);
                if let Some(reply) = reply {
                    reply(Ok(len));
                }
            }
            Then::Setattr(setting) => {
                // Its times are the leader's to tell: nothing to keep.
                let Some(attr) = attr else { unexpected() };
                let reply = setting.reply.take();
                if let Some(inode) = state.inodes.get(attr.ino) {
                    inode.foresee(&attr);
                }
                drop(state);
                if let Some(reply) = reply {
                    let ttl = Duration::ZERO;
                    reply(Ok(Known { attr, ttl }));
                }
            }
            _ => (),
        }
    }

    /// The answer to a request.
    pub fn answered(
        &self,
        id: ReqId,
        index: u64,
        result: Result<FsRep, FsError>,
        fd: Option<OwnedFd>,
        data: &[u8],
    ) {
        let mut state = lock(&self.state);
        let Some(request) = state.requests.remove(id) else {
            let op = state.requests.take_late(id);
            // One that failed has changed nothing, and has no index.
            if let Some(op) = op.as_ref().filter(|_| result.is_ok()) {
                state.tree_changed(op, index);
            }
            let ready = state.late_over(op.as_ref());
            drop(state);
            if let Some(op) = op {
                self.late(op, result);
            }
            ready.into_iter().for_each(|wake| wake(self));
            return;
        };
        drop(state);
        let answer = Answer {
            id,
            deadline: request.deadline,
            index,
            result,
            fd,
            data,
        };
        self.conclude(request.then, answer);
    }

    pub(super) fn conclude(&self, then: Then, answer: Answer<'_>) {
        match then {
            Then::Answer(then) => then(self, answer),
            Then::Write(writing) => self.written(*writing, answer),
            Then::Setattr(setting) => self.set(*setting, answer),
            Then::Held(then) => then(self, Err(Errno::EIO)),
        }
    }

    /// A change of an inode has failed.  If the kernel has had its answer, the
    /// handle keeps the error, and what the kernel believes is wrong.
    pub(super) fn change_failed(
        &self,
        mut state: MutexGuard<'_, State>,
        ino: InodeNo,
        fh: Option<Fh>,
        error: FsError,
        reply: Option<Box<dyn FnOnce(Errno) + Send>>,
        ready: Vec<Wake>,
    ) {
        if reply.is_none() {
            state.handles.fail(ino, fh, error);
        }
        if let Some(inode) = state.inodes.get(ino) {
            inode.version = None;
        }
        state.inodes.tidy(ino);
        drop(state);
        self.stale_inode(ino, Some(0));
        ready.into_iter().for_each(|wake| wake(self));
        if let Some(reply) = reply {
            reply(errno(error));
        }
    }

    /// raftd has answered after the kernel was told EIO.  What has happened
    /// nevertheless is not told to this mount again.
    fn late(&self, op: FsOp, result: Result<FsRep, FsError>) {
        let name = |parent: InodeNo, name: &[u8]| {
            self.stale_name(parent, name, None);
            self.stale_inode(parent, Some(0));
        };
        match op {
            FsOp::Open { ino, .. } if result.is_ok() => self.release_inode(ino),
            FsOp::LookupHold { .. } => {
                if let Ok(FsRep::Entry { attr, .. }) = result {
                    self.release_inode(attr.ino);
                }
            }
            FsOp::Create {
                parent, name: n, ..
            } => {
                if let Ok(FsRep::Entry { attr, .. }) = result {
                    self.release_inode(attr.ino);
                }
                name(parent, &n);
            }
            FsOp::Mknod {
                parent, name: n, ..
            }
            | FsOp::Mkdir {
                parent, name: n, ..
            }
            | FsOp::Symlink {
                parent, name: n, ..
            }
            | FsOp::Unlink { parent, name: n }
            | FsOp::Rmdir { parent, name: n } => name(parent, &n),
            FsOp::Link {
                ino,
                parent,
                name: n,
            } => {
                name(parent, &n);
                self.stale_inode(ino, None);
            }
            FsOp::Rename {
                parent,
                name: old,
                new_parent,
                new_name,
                ..
            } => {
                name(parent, &old);
                name(new_parent, &new_name);
            }
            FsOp::Setattr { ino, .. } | FsOp::Write { ino, .. } | FsOp::Fallocate { ino, .. } => {
                self.stale_inode(ino, Some(0));
            }
            FsOp::Setxattr { ino, .. } | FsOp::Removexattr { ino, .. } => {
                lock(&self.state).forget_xattrs(ino);
                self.stale_inode(ino, None);
            }
            FsOp::Lock { ino, owner, .. } if result.is_ok() => self.late_lock(ino, owner),
            _ => (),
        }
    }

    pub fn inval_inode(&self, ino: InodeNo, data: Option<u64>, index: u64) {
        let mut state = lock(&self.state);
        let known = state.inodes.is_known(ino);
        state.prune();
        let next = state.requests.next_id();
        state.changes.inode(ino, index, next);
        state.forget_xattrs(ino);
        state.forget_access(ino);
        // What is kept here may outlive what the kernel knows.
        let kept = known || state.keeper == Keeper::Fused;
        drop(state);
        if kept {
            self.stale_inode(ino, data);
        }
    }

    pub fn inval_entry(&self, parent: InodeNo, name: &[u8], lost: Option<InodeNo>, index: u64) {
        let mut state = lock(&self.state);
        let known = state.inodes.is_known(parent);
        state.prune();
        let next = state.requests.next_id();
        state.changes.name(parent, name, index, next);
        if state.keeper == Keeper::Fused {
            drop(state);
            return self.stale_name(parent, name, lost);
        }
        let lost = lost.filter(|ino| known && state.inodes.is_known(*ino));
        if let Some(ino) = lost {
            state.lost.lost(ino, (parent, name), index);
        }
        drop(state);
        if known {
            self.stale_name(parent, name, lost);
        }
    }

    /// Other kernels tell nothing of what they forget.
    pub fn orphan(&self, ino: InodeNo) {
        let mut state = lock(&self.state);
        let keeps = state.keeper == Keeper::Kernel && state.inodes.orphan(ino);
        drop(state);
        if !keeps {
            self.release_inode(ino);
        }
    }

    pub fn inval_owner(&self, ino: InodeNo) {
        let mut state = lock(&self.state);
        if let Some(inode) = state.inodes.get(ino) {
            inode.give_away();
        }
        if state.keeper == Keeper::Kernel && state.inodes.is_known(ino) {
            drop(state);
            self.invalidations.names();
        }
    }

    pub fn inval_all(&self, index: u64) {
        let mut state = lock(&self.state);
        state.changes.all(index);
        if state.keeper == Keeper::Fused {
            state.names.clear();
            state.inodes.clear_all(true);
            return;
        }
        state.lost.lost_all(index);
        let (known, listed) = state.inodes.known();
        drop(state);
        self.invalidations.everything(&known, &listed);
    }

    pub fn backing(&self, ino: InodeNo, fd: OwnedFd) {
        let backing = Backing::new(ino, fd, self.control.clone());
        lock(&self.state).inodes.set_backing(ino, backing);
    }

    pub fn revoke(&self, ino: InodeNo) {
        let backing = lock(&self.state).inodes.take_backing(ino);
        match backing {
            Some(backing) => backing.revoke(),
            None => self.control.send(&FusedToRaftd::RevokeAck { ino }),
        }
    }

    pub fn short(&self, short: bool) {
        lock(&self.state).short = short;
    }

    pub fn quorum(&self, quorum: bool) {
        lock(&self.state).quorum = quorum;
        let what = if quorum { "quorum" } else { "no quorum" };
        log_debug!("mount {}: {what}", self.mount.point.display());
    }
}
