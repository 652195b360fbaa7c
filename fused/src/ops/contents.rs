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

//! Contents: open, read, write, and what is told at close.  fused only.

#![forbid(unsafe_code)]

use super::{
    attr_of, errno, errno_to, unexpected, Answer, Caller, DataReply, Ops, Reply, State, Then, Wake,
};
use crate::ahead::{Plan, Round, AHEAD};
use crate::backing::{Backing, Read};
use crate::cache::Keeper;
use crate::handle::Cut;
use crate::lock;
use crate::raftd::Lane;
use crate::raftd::SMALL;
use common::fs::{Cred, Fh, FsError, InodeNo, ReqId, FILE_MAX, IO_MAX};
use common::msg::{FsOp, FsRep, FusedToRaftd};
use common::sys::file::O_DIRECT;
use nix::errno::Errno;
use std::sync::atomic::Ordering;
use std::sync::MutexGuard;
use std::time::Instant;

/// So much may be answered at once and not be applied; beyond, the answer
/// waits for raftd.
const QUICK_MAX: u64 = 1 << 20;

/// How a file was opened.
#[derive(Clone, Copy)]
pub struct Opening {
    pub fh: Fh,
    /// The kernel's pages are still right.
    pub keep_cache: bool,
    /// Past the kernel's pages.
    pub direct: bool,
    /// There is never anything to flush at close.
    pub no_flush: bool,
}

/// Where to read.
#[derive(Clone, Copy)]
pub struct At {
    pub ino: InodeNo,
    pub fh: Fh,
    pub offset: u64,
}

pub struct Write<'a> {
    pub at: At,
    pub data: &'a [u8],
    /// O_APPEND, O_SYNC, O_DSYNC, O_DIRECT.
    pub flags: i32,
    /// From a mapping: handle and caller are the kernel's guess.
    pub mapped: bool,
    pub kill_priv: bool,
}

/// A WRITE under way; `reply` is gone once the kernel has it.
pub struct Writing {
    ino: InodeNo,
    fh: Option<Fh>,
    offset: u64,
    pub(super) len: u32,
    append: bool,
    direct: bool,
    pub(super) sync: bool,
    /// Went over the control lane.
    quick: bool,
    pub(super) reply: Option<Reply<u32>>,
}

impl Writing {
    /// Of which inode, and how far, as the kernel has it.
    pub(super) fn range(&self) -> (InodeNo, u64) {
        (self.ino, self.offset.saturating_add(u64::from(self.len)))
    }
}

/// As much as was asked for.
fn first(data: &[u8], want: u32) -> &[u8] {
    data.get(..want as usize).unwrap_or(data)
}

impl Ops {
    pub fn open(
        &self,
        Caller { cred, pid }: Caller,
        ino: InodeNo,
        flags: i32,
        reply: Reply<Opening>,
    ) {
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if write && self.mount.read_only {
            return reply(Err(Errno::EROFS));
        }
        let held = lock(&self.state).retries.may_open(pid, ino, Instant::now());
        let op = FsOp::Open { ino, write, held };
        self.ask(cred, op, move |ops, answer| {
            ops.opened((pid, held), ino, flags, answer, reply);
        });
    }

    fn opened(
        &self,
        (pid, held): (u32, bool),
        ino: InodeNo,
        flags: i32,
        answer: Answer<'_>,
        reply: Reply<Opening>,
    ) {
        let attr = match answer.result {
            Ok(rep) => attr_of(rep),
            Err(e) => return reply(Err(self.errno_to_retry(pid, e))),
        };
        let (id, index, deadline) = (answer.id, answer.index, answer.deadline);
        let mut state = lock(&self.state);
        let stale = state.lost.is_stale(ino, id, index);
        if stale && !held {
            state.retries.begin(pid, Instant::now());
            return self.stale_open(state, ino, id, deadline, reply);
        }
        state.retries.end(pid);
        let keep_cache = state.keep_cache(&attr) && state.keeper == Keeper::Kernel;
        let opening = state.open(ino, flags);
        let mut opening = Opening {
            keep_cache,
            // A close may have to unlock.
            no_flush: opening.no_flush && self.mount.local_lock,
            ..opening
        };
        if let Some(fd) = answer.fd {
            let backing = Backing::new(ino, fd, self.control.clone());
            state.inodes.set_backing(ino, backing);
        }
        let killed = state.inodes.get_or_new(ino).note(&attr, index);
        opening.keep_cache &= !state.must_see_access(&self.mount, ino, flags);
        match state.keeper {
            Keeper::Kernel => (),
            Keeper::Fused => drop(state.known(attr, index)),
        }
        drop(state);
        if killed {
            self.stale_inode(ino, None);
        }
        self.after_invalidation(ino, id, deadline, move |ops, done| {
            if done.is_err() {
                ops.release(opening.fh);
            }
            reply(done.map(|()| opening));
        });
    }

    /// The kernel may have decided on this OPEN by a name which the inode has
    /// lost.  It is told ESTALE, looks the name up again and tries once more;
    /// so not before it has dropped the old name.
    fn stale_open(
        &self,
        mut state: MutexGuard<'_, State>,
        ino: InodeNo,
        id: ReqId,
        deadline: Instant,
        reply: Reply<Opening>,
    ) {
        let then = move |_: &Ops, _| reply(Err(Errno::ESTALE));
        if state.lost.hold(ino, id) {
            self.hold(&mut state, id, deadline, then);
            drop(state);
        } else {
            drop(state);
            then(self, Ok(()));
        }
        self.release_inode(ino);
    }

    /// Of the file that was opened, whichever one the kernel names with it.
    pub fn release(&self, fh: Fh) {
        let mut state = lock(&self.state);
        let Some(ino) = state.handles.get(fh).map(|handle| handle.ino) else {
            return;
        };
        let owners = state.locks.closed(ino, fh);
        if !owners.is_empty() {
            drop(state);
            for owner in owners {
                self.unlock_owner(ino, owner, |_| ());
            }
            state = lock(&self.state);
        }
        if let Some(handle) = state.handles.close(fh) {
            if let Some(busy) = state.inodes.if_busy(ino) {
                busy.opens = busy.opens.saturating_sub(1);
                let buffered = u32::from(!handle.direct);
                busy.buffered = busy.buffered.saturating_sub(buffered);
            }
            state.inodes.tidy(ino);
            drop(state);
            self.release_inode(ino);
        }
    }

    pub fn read(&self, cred: Cred, at: At, size: u32, reply: DataReply) {
        let At { ino, fh, offset } = at;
        let size = size.min(IO_MAX as u32);
        let range = offset..offset.saturating_add(u64::from(size));
        let mut state = lock(&self.state);
        if state.handles.is_lost(fh) {
            drop(state);
            return reply(Err(Errno::EIO));
        }
        let go: Wake = Box::new(move |ops| ops.read_now(cred, ino, offset, size, reply));
        let accessed = state.take_access(&self.mount, ino);
        let go = match state.inodes.if_busy(ino) {
            // The file does not have those bytes yet.
            Some(busy) => busy.pending.wait(Some(range), go),
            None => Err(go),
        };
        drop(state);
        if accessed {
            self.accessed(ino);
        }
        match go {
            Err(go) => go(self),
            Ok(()) => self.hurry(ino),
        }
    }

    /// raftd lets wait what nobody waits for: somebody does now.
    pub(super) fn hurry(&self, ino: InodeNo) {
        self.ask(Cred::default(), FsOp::Fsync { ino }, |_, _| ());
    }

    fn read_now(&self, cred: Cred, ino: InodeNo, offset: u64, size: u32, reply: DataReply) {
        let mut state = lock(&self.state);
        let fill = match state.plan_read(ino, offset, size) {
            Plan::Plain => None,
            Plan::Fill(round) => Some(round),
            Plan::Have(bytes, range) => {
                drop(state);
                return reply(Ok(bytes.get(range).unwrap_or(&[])));
            }
        };
        let backing = state.inodes.backing(ino);
        drop(state);
        if let Some(backing) = backing {
            return self.reads.push(Read {
                ino,
                offset,
                size,
                fill,
                backing,
                again: false,
                reply,
            });
        }
        self.read_remote(cred, ino, offset, size, fill, reply);
    }

    /// Reads through raftd.
    fn read_remote(
        &self,
        cred: Cred,
        ino: InodeNo,
        offset: u64,
        want: u32,
        fill: Option<Round>,
        reply: DataReply,
    ) {
        let size = if fill.is_some() { AHEAD } else { want };
        let op = FsOp::Read { ino, offset, size };
        self.ask(cred, op, move |ops, answer| {
            if let Some(round) = fill {
                let data = answer.result.as_ref().map(|_| answer.data);
                let data = data.map_err(|e| *e);
                ops.filled(ino, round, offset, data, answer.index);
            }
            match answer.result {
                Ok(FsRep::Data { .. }) => reply(Ok(first(answer.data, want))),
                Ok(_) => unexpected(),
                Err(e) => reply(Err(errno(e))),
            }
        });
    }

    /// A fill has ended; `index` is as of when it was read at least.
    fn filled(
        &self,
        ino: InodeNo,
        round: Round,
        offset: u64,
        data: Result<&[u8], FsError>,
        index: u64,
    ) {
        let mut state = lock(&self.state);
        match data {
            Ok(data) if !state.changes.inode_since(ino, index) => {
                state.inodes.filled(ino, round, offset, data);
            }
            _ => state.inodes.clear(ino, true),
        }
    }

    /// Reads a backing file; called by its own threads.
    pub fn pread(&self, read: Read, buf: &mut [u8]) {
        let n = match read.backing.read(buf, read.offset) {
            Ok(n) => n,
            Err(e) => {
                common::log_warn!(e, "mount {}: read", self.mount.point.display());
                if let Some(round) = read.fill {
                    self.filled(read.ino, round, read.offset, Err(FsError::Io), 0);
                }
                return (read.reply)(Err(Errno::EIO));
            }
        };
        let data = buf.get(..n).unwrap_or(&[]);
        if let Some(round) = read.fill {
            // No index: a change that is applied but not yet told of ends the
            // round when it is.
            self.filled(read.ino, round, read.offset, Ok(data), u64::MAX);
        }
        let wanted = first(data, read.size);
        if wanted.len() == read.size as usize {
            return (read.reply)(Ok(wanted));
        }
        // To the kernel a short read is the end of the file.  If a change
        // under way may move that, wait for it, once; otherwise it is true,
        // because the file is never shorter than a size that raftd has told.
        let mut state = lock(&self.state);
        let busy = state.inodes.if_busy(read.ino);
        match busy.filter(|busy| !read.again && busy.pending.is_any()) {
            None => {
                drop(state);
                (read.reply)(Ok(wanted));
            }
            Some(busy) => {
                let again = Read {
                    again: true,
                    fill: None,
                    ..read
                };
                let go: Wake = Box::new(|ops| ops.reads.push(again));
                let (waits, ino) = (busy.pending.wait(None, go), read.ino);
                drop(state);
                match waits {
                    Err(go) => go(self),
                    Ok(()) => self.hurry(ino),
                }
            }
        }
    }

    pub fn write(&self, cred: Cred, write: Write<'_>, reply: Reply<u32>) {
        let deadline = self.deadline();
        let At { ino, fh, offset } = write.at;
        let end = offset.saturating_add(write.data.len() as u64);
        if end > FILE_MAX {
            return reply(Err(Errno::EFBIG));
        }
        if write.data.len() > IO_MAX {
            return reply(Err(Errno::EINVAL));
        }
        if !self.wait_room(deadline) {
            return self.refuse_write(&write, FsError::Io, reply);
        }
        let mut state = lock(&self.state);
        let append = write.flags & libc::O_APPEND != 0 && !write.mapped;
        let op = FsOp::Write {
            ino,
            offset,
            len: write.data.len() as u32,
            append,
            kill_priv: write.kill_priv,
            sync: append || state.is_sync(&write),
        };
        let failed = match write.mapped {
            // Its handle is any that can write.
            true => None,
            false => {
                let unpaged = write.flags & O_DIRECT != 0;
                let handles = &mut state.handles;
                handles.write_error(fh, offset, write.data.len(), unpaged)
            }
        };
        if let Some(e) = failed.or_else(|| state.refuse(&self.mount, &op)) {
            drop(state);
            return self.refuse_write(&write, e, reply);
        }
        self.send_write(state, cred, (op, write), deadline, reply);
    }

    /// What a mapping holds and the tree will not must not be shown, nor written
    /// back with the rest of its page some day.
    fn refuse_write(&self, write: &Write<'_>, e: FsError, reply: Reply<u32>) {
        if write.mapped {
            let ino = write.at.ino;
            if let Some(inode) = lock(&self.state).inodes.get(ino) {
                inode.version = None;
            }
            self.stale_inode(ino, Some(0));
        }
        reply(Err(errno(e)));
    }

    fn send_write(
        &self,
        mut state: MutexGuard<'_, State>,
        cred: Cred,
        (op, write): (FsOp, Write<'_>),
        deadline: Instant,
        reply: Reply<u32>,
    ) {
        let At { ino, fh, offset } = write.at;
        let FsOp::Write {
            len, append, sync, ..
        } = op
        else {
            unexpected();
        };
        let direct = state.handles.get(fh).is_some_and(|h| h.direct);
        let late = state.requests.is_late(ino);
        let busy = state.inodes.get_or_new(ino).busy();
        let quick = busy.quick > 0 || (write.data.len() <= SMALL && !late);
        busy.quick += u32::from(quick);
        let at_once = quick && !sync && !state.short && state.quick_bytes <= QUICK_MAX;
        state.quick_bytes += if quick { u64::from(len) } else { 0 };
        let (now, later) = match at_once {
            true => (Some(reply), None),
            false => (None, Some(reply)),
        };
        let writing = Writing {
            ino,
            fh: (!write.mapped).then_some(fh),
            offset,
            len,
            append,
            direct,
            sync,
            quick,
            reply: later,
        };
        let (_, end) = writing.range();
        let then = Then::Write(Box::new(writing));
        let id = self.register(&mut state, deadline, &op, then);
        let range = offset..if append { u64::MAX } else { end };
        let inode = state.inodes.get_or_new(ino);
        inode.clear(true);
        if at_once {
            inode.grow(end);
        }
        inode.busy().pending.begin(id, range);
        drop(state);
        let req = FusedToRaftd::Req { id, cred, op };
        let lane = if quick { &self.control } else { &self.bulk };
        lane.send_with(&req, write.data);
        if let Some(reply) = now {
            reply(Ok(len));
        }
    }

    /// Notes what the kernel, told of an error, may do next.
    pub fn write_refused(&self, at: At, len: u64, flags: i32, pid: u32, error: Errno) {
        let mut state = lock(&self.state);
        let told = state.told_size(at.ino);
        let size = match flags & libc::O_APPEND {
            0 => told,
            _ => at.offset,
        };
        if at.offset.saturating_add(len) > size {
            let unpaged = flags & O_DIRECT != 0;
            let cut = Cut {
                pid,
                size,
                told,
                error,
            };
            state.handles.write_refused(at.fh, cut, unpaged);
        }
    }

    /// Of the changes of an inode whose time is over some may still be on their
    /// way in the bulk lane, and nothing that comes later may overtake them.
    pub(super) fn lane_of(&self, state: &State, ino: InodeNo) -> &Lane {
        match state.requests.is_late(ino) {
            true => &self.bulk,
            false => &self.control,
        }
    }

    /// Holds a WRITE back while too much waits for raftd; but the last reader
    /// of the device always goes on, so that everything else is served.
    fn wait_room(&self, deadline: Instant) -> bool {
        if self.bulk.has_room() {
            return true;
        }
        let parked = self.parked.fetch_add(1, Ordering::Relaxed) + 1;
        let room = parked >= self.readers || self.bulk.wait_room(deadline);
        self.parked.fetch_sub(1, Ordering::Relaxed);
        room
    }

    /// A WRITE is applied, or never will be.
    pub(super) fn written(&self, writing: Writing, answer: Answer<'_>) {
        let ino = writing.ino;
        let mut state = lock(&self.state);
        let mut ready = Vec::new();
        if let Some(busy) = state.inodes.if_busy(ino) {
            busy.quick -= u32::from(writing.quick);
            ready = busy.pending.end(answer.id);
        }
        state.quick_bytes -= if writing.quick {
            u64::from(writing.len)
        } else {
            0
        };
        let (offset, attr) = match answer.result {
            Ok(FsRep::Written { offset, attr }) => (offset, attr),
            Ok(_) => unexpected(),
            Err(e) => {
                return self.change_failed(
                    state,
                    ino,
                    writing.fh,
                    e,
                    writing.reply.map(errno_to),
                    ready,
                );
            }
        };
        let inode = state.inodes.get_or_new(ino);
        inode.version = Some(attr.data_version);
        let killed = inode.note(&attr, answer.index);
        inode.grow(writing.offset.saturating_add(u64::from(writing.len)));
        // Pages that another handle may have read before the end moved.
        let beside = inode.if_busy().is_some_and(|busy| busy.buffered > 0);
        state.inodes.tidy(ino);
        state.changed(ino, Some(&attr), answer.index);
        drop(state);
        ready.into_iter().for_each(|wake| wake(self));
        let moved = writing.append && (beside || offset != writing.offset);
        if moved {
            let from = offset.min(writing.offset);
            self.stale_inode(ino, Some(from));
        } else if killed {
            self.stale_inode(ino, None);
        }
        let Some(reply) = writing.reply else {
            return;
        };
        let len = writing.len;
        match moved && writing.direct {
            // A write through the pages holds them locked: dropping them has
            // to wait for its answer, not the other way round.
            false => reply(Ok(len)),
            true => self.after_invalidation(ino, answer.id, answer.deadline, move |_, _| {
                reply(Ok(len));
            }),
        }
    }

    /// Answered when no change that this mount made to the inode is under way
    /// any more, unless the handle cannot have made one, and `owner` has no lock
    /// of it.
    pub fn flush(&self, cred: Cred, ino: InodeNo, fh: Fh, owner: u64, reply: Reply<()>) {
        let mut state = lock(&self.state);
        let busy = state.inodes.if_busy(ino);
        let pending = busy.is_some_and(|busy| busy.pending.is_any());
        let locked = state.locks.has(ino, owner);
        let settles = state.handles.get(fh).is_none_or(|handle| handle.settles);
        state.handles.closing(fh);
        drop(state);
        if locked {
            return self.unlock_owner(ino, owner, move |ops| {
                ops.settle(ino, fh, State::close_error, Ok(()), reply);
            });
        }
        if !settles || self.mount.async_close {
            let failed = lock(&self.state).close_error(fh);
            return reply(failed.map_or(Ok(()), |e| Err(errno(e))));
        }
        if !pending {
            return self.settle(ino, fh, State::close_error, Ok(()), reply);
        }
        // raftd lets wait what nobody waits for.
        self.ask(cred, FsOp::Fsync { ino }, move |ops, answer| {
            let result = answer.result.map(drop);
            ops.settle(ino, fh, State::close_error, result, reply);
        });
    }

    fn settle(
        &self,
        ino: InodeNo,
        fh: Fh,
        error: fn(&mut State, Fh) -> Option<FsError>,
        result: Result<(), FsError>,
        reply: Reply<()>,
    ) {
        let done: Wake = Box::new(move |ops| {
            let failed = error(&mut lock(&ops.state), fh);
            let result = failed.map_or(result, Err);
            reply(result.map_err(errno));
        });
        let mut state = lock(&self.state);
        let done = match state.inodes.if_busy(ino) {
            Some(busy) => busy.pending.wait(None, done),
            None => Err(done),
        };
        drop(state);
        if let Err(done) = done {
            done(self);
        }
    }

    pub fn fsync(&self, cred: Cred, ino: InodeNo, fh: Fh, reply: Reply<()>) {
        self.ask(cred, FsOp::Fsync { ino }, move |ops, answer| {
            ops.settle(ino, fh, State::fsync_error, answer.result.map(drop), reply);
        });
    }

    /// Names are durable when their operation returns.
    pub fn fsyncdir(&self, cred: Cred, ino: InodeNo, reply: Reply<()>) {
        self.ask_done(cred, FsOp::Fsync { ino }, reply);
    }
}
