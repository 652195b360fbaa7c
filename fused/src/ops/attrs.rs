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

//! Attributes, and those of the file system.  fused only.

#![forbid(unsafe_code)]

use super::{
    attr_of, errno, errno_to, unexpected, Answer, Caller, DataReply, Known, Ops, Reply, Then, BRIEF,
};
use crate::lock;
use common::fs::{Cred, Fh, FsError, InodeNo, SetAttr, Statfs, FILE_MAX};
use common::msg::{FsOp, FsRep, FusedToRaftd};
use nix::errno::Errno;
use std::time::{Duration, Instant};

/// A SETATTR under way.
pub struct Setting {
    ino: InodeNo,
    pid: u32,
    fh: Option<Fh>,
    pub(super) reply: Option<Reply<Known>>,
}

impl Ops {
    pub fn getattr(&self, Caller { cred, pid }: Caller, ino: InodeNo, reply: Reply<Known>) {
        let is_root = ino == InodeNo::ROOT;
        let mut state = lock(&self.state);
        if let Some(attr) = state.kept(ino) {
            drop(state);
            let ttl = Duration::ZERO;
            return reply(Ok(Known { attr, ttl }));
        }
        let cached = is_root && state.root.is_some() && !state.strict;
        drop(state);
        let deadline = self.brief_deadline(cached);
        let op = FsOp::Getattr { ino };
        self.ask_by(deadline, cred, op, move |ops, answer| {
            let mut state = lock(&ops.state);
            let known = match answer.result {
                Ok(rep) => Ok(state.known(attr_of(rep), answer.index)),
                Err(e) => Err(e),
            };
            let known = match (known, is_root) {
                (known, false) => known,
                (Ok(known), true) => {
                    state.root = Some(known.attr.clone());
                    Ok(known)
                }
                (Err(e), true) if state.strict => Err(e),
                // The subtree has no directory.
                (Err(FsError::NotFound), true) => {
                    state.root = None;
                    Err(FsError::NotFound)
                }
                (Err(e), true) => state.root.clone().ok_or(e).map(|attr| Known {
                    attr,
                    ttl: Duration::ZERO,
                }),
            };
            let strict = state.strict;
            drop(state);
            let known = known.map_err(|e| ops.errno_to_retry(pid, e));
            // What the kernel keeps may be older, and the next look be answered
            // from that.  The answer is right in itself, and waits not for long.
            match strict {
                true => reply(known),
                false => {
                    let until = answer.deadline.min(Instant::now() + BRIEF);
                    ops.after_invalidation(ino, answer.id, until, |_, _| reply(known));
                }
            }
        });
    }

    pub fn setattr(
        &self,
        Caller { cred, pid }: Caller,
        ino: InodeNo,
        fh: Option<Fh>,
        mut set: SetAttr,
        reply: Reply<Known>,
    ) {
        let gives_away = set.uid.is_some() || set.gid.is_some();
        set.kill_priv = gives_away || (set.size.is_some() && cred.uid != 0);
        if set.size.is_some_and(|size| size > FILE_MAX) {
            return reply(Err(Errno::EFBIG));
        }
        let set_to = set.size;
        let set_size = set_to.is_some();
        let range = if set_size { 0..u64::MAX } else { 0..0 };
        let mut state = lock(&self.state);
        // By path as well, as tar does it.
        let made = state.inodes.if_busy(ino).and_then(|busy| busy.made);
        let maker = made.and_then(|made| state.handles.made_by(made, ino, pid));
        let early = maker.is_some() && !set_size;
        let fh = if early { maker } else { fh };
        let owner = state.owner(ino);
        let op = FsOp::Setattr {
            ino,
            set,
            early,
            owner,
        };
        if set_size && fh.is_some_and(|fh| state.handles.is_lost(fh)) {
            drop(state);
            return reply(Err(Errno::EIO));
        }
        if let (Some(size), Some(fh)) = (set_to, fh) {
            let told = state.told_size(ino);
            if let Some(e) = state.handles.takes_back(fh, pid, size, told) {
                drop(state);
                return self.not_cut(cred, ino, (size, e), reply);
            }
        }
        if let Some(e) = state.refuse(&self.mount, &op) {
            drop(state);
            return reply(Err(errno(e)));
        }
        let reply = Some(reply);
        let then = Then::Setattr(Box::new(Setting {
            ino,
            pid,
            fh,
            reply,
        }));
        let id = self.register(&mut state, self.deadline(), &op, then);
        let inode = state.inodes.get_or_new(ino);
        inode.clear(set_size);
        inode.busy().pending.begin(id, range);
        let lane = self.lane_of(&state, ino);
        drop(state);
        lane.send(&FusedToRaftd::Req { id, cred, op });
    }

    /// What is not cut because a WRITE has failed with that error.  The kernel
    /// does not look at the answer; but a program may have asked, and must not
    /// believe that there is nothing behind `size` if there is, or that nothing
    /// will be: a write whose time is over may still be made.
    fn not_cut(&self, cred: Cred, ino: InodeNo, (size, error): (u64, Errno), reply: Reply<Known>) {
        let refused = [Errno::EDQUOT, Errno::ENOSPC, Errno::EFBIG, Errno::EROFS];
        let is_over = refused.contains(&error);
        // Not by getattr: that may wait for notifications, and these for writes
        // that the kernel sends when it has cut the file.
        self.ask(cred, FsOp::Getattr { ino }, move |ops, answer| {
            let known = match answer.result {
                Ok(rep) => lock(&ops.state).known(attr_of(rep), answer.index),
                Err(_) => return reply(Err(error)),
            };
            match is_over && known.attr.size == size {
                true => reply(Ok(known)),
                false => reply(Err(error)),
            }
        });
    }

    /// A SETATTR is applied, or never will be.
    pub(super) fn set(&self, setting: Setting, answer: Answer<'_>) {
        let ino = setting.ino;
        let mut state = lock(&self.state);
        let mut ready = Vec::new();
        if let Some(busy) = state.inodes.if_busy(ino) {
            ready = busy.pending.end(answer.id);
        }
        let attr = match answer.result {
            Ok(rep) => attr_of(rep),
            Err(e) => {
                if e == FsError::Stale {
                    state.retries.begin(setting.pid, Instant::now());
                }
                return self.change_failed(
                    state,
                    ino,
                    setting.fh,
                    e,
                    setting.reply.map(errno_to),
                    ready,
                );
            }
        };
        if let Some(inode) = state.inodes.get(ino) {
            inode.version = Some(attr.data_version);
        }
        state.changed(ino, None, answer.index);
        let known = state.known(attr, answer.index);
        state.inodes.tidy(ino);
        drop(state);
        ready.into_iter().for_each(|wake| wake(self));
        if let Some(reply) = setting.reply {
            reply(Ok(known));
        }
    }

    pub fn readlink(&self, cred: Cred, ino: InodeNo, reply: DataReply) {
        let accessed = lock(&self.state).take_access(&self.mount, ino);
        if accessed {
            self.accessed(ino);
        }
        self.ask(cred, FsOp::Readlink { ino }, |_, answer| {
            match answer.result {
                Ok(FsRep::Target(target)) => reply(Ok(&target)),
                Ok(_) => unexpected(),
                Err(e) => reply(Err(errno(e))),
            }
        });
    }

    pub fn statfs(&self, cred: Cred, reply: Reply<Statfs>) {
        let cached = lock(&self.state).statfs.is_some();
        let deadline = self.brief_deadline(cached);
        self.ask_by(deadline, cred, FsOp::Statfs, |ops, answer| {
            let mut state = lock(&ops.state);
            let statfs = match answer.result {
                Ok(FsRep::Statfs(statfs)) => Ok(*state.statfs.insert(statfs)),
                Ok(_) => unexpected(),
                Err(e) => state.statfs.ok_or(e),
            };
            drop(state);
            reply(statfs.map_err(errno));
        });
    }
}
