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

//! What a fused asks for.  Reads are answered from the applied state; changes
//! are proposed, and answered when this node has applied them.
//!
//! A request that cannot be answered at once (this node has not recovered,
//! the window is full, its inode has changes queued, a barrier is needed)
//! waits in a task of its own, so that none holds up another.

use super::{locked, preview, Dirty, Fused};
use crate::fs::inode::{Contents, ReadError};
use crate::fs::op::{Check, Op, RenameHow, WriteAt};
use crate::fs::{dirent, inode, space, xattr, Outcome, Reply};
use crate::propose::{self, Room};
use bytes::Bytes;
use common::fatal;
use common::fs::{Attr, Cookie, Cred, FsError, InodeNo, ReqId, IO_MAX};
use common::msg::{FsOp, FsRep, Lane, RaftdToFused};
use futures_util::FutureExt;
use std::collections::VecDeque;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

type Answer = Result<FsRep, FsError>;

/// Bytes of writes that wait for room in the window, of one mount.
const BACKLOG_MAX: usize = 16 << 20;
/// How often a name is looked up again that means something else each time.
const HOLD_TRIES: usize = 16;
/// How often a lane looks whether it may go on.
const BACKLOG_WAIT: Duration = Duration::from_millis(100);

/// By when a request must be answered, and how it came.
#[derive(Clone, Copy)]
pub(super) struct How {
    deadline: Instant,
    lane: Lane,
}

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

/// A broken store must not answer anything any more.
pub fn fs_error(e: ReadError) -> FsError {
    match e {
        ReadError::Fs(e) => e,
        ReadError::Meta(e) => fatal!(e, "store"),
    }
}

/// Whether the kernel judges ownership and the sticky bit before it asks.
fn check(cred: Cred) -> Check {
    match cfg!(target_os = "openbsd") {
        true => Check::Apply(cred),
        false => Check::Kernel,
    }
}

/// Bytes that ride behind their reply.
fn data(bytes: Bytes, bulk: &mut Bytes) -> FsRep {
    let len = bytes.len() as u32;
    *bulk = bytes;
    FsRep::Data { len }
}

/// Does on this thread what need not wait, and the rest in a task.
fn begin(work: impl Future<Output = ()> + Send + 'static) {
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
        let dirty = self.conf.dirty && op.only_looks();
        if let Some(e) = self.refuse_dirty(&op).filter(|_| dirty) {
            return self.reply(id, 0, Err(e));
        }
        if dirty || *self.mounts.recovered.borrow() {
            return self.begin(id, cred, op, bulk, how);
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

    fn begin(self: &Arc<Self>, id: ReqId, cred: Cred, op: FsOp, bulk: Bytes, how: How) {
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

    fn is_unsure(&self, ino: InodeNo) -> bool {
        self.mounts.dirty.unsure.contains(&ino) && !*self.mounts.recovered.borrow()
    }

    /// What was waited for may have taken long.
    fn too_old(&self) -> bool {
        self.conf.dirty && !self.mounts.dirty.age.is_within(self.conf.maxage)
    }

    /// Waits until this node has applied all that was acknowledged before; or
    /// not, where what is here is shown.
    async fn pass_barrier(&self, deadline: Instant) -> Result<(), FsError> {
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

    /// A request that reads the applied state, once nothing is queued for
    /// its inode.
    fn look(self: &Arc<Self>, id: ReqId, op: FsOp, deadline: Instant) {
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
                Err(FsError::NotFound) => return self.look_again(id, op, deadline),
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
                (Ok(()), FsOp::Lookup { parent, name }) => fused.lookup(*parent, name),
                (Ok(()), _) => Err(FsError::Unsupported),
                (Err(e), _) => Err(e),
            };
            fused.reply(id, index, answer);
        });
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
            dirent::lookup(&reader, parent, name).map_err(fs_error)?
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

    fn getattr_real(&self, ino: InodeNo) -> Result<Attr, FsError> {
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

    /// A request that waits for the log without adding to it.
    async fn wait_for(self: Arc<Self>, id: ReqId, op: FsOp, deadline: Instant) {
        let answer = match op {
            FsOp::Open { ino, held } => return self.open(id, ino, held, deadline).await,
            FsOp::LookupHold { parent, name } => {
                let passed = self.pass_barrier(deadline).await;
                // Before the state is read: it may be newer, never older.
                let index = self.applied();
                let found = match passed {
                    Ok(()) => self.lookup_hold(parent, &name, deadline).await,
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
            let ino = dirent::lookup(&meta.read(), parent, name)
                .map_err(fs_error)?
                .ino;
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
        Err(FsError::Stale)
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
            Ok(attr) if attr.nlink == 0 && !others && !held => Err(FsError::Stale),
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
        self.confirm(attr.ino, false);
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
    fn opened(&self, ino: InodeNo) -> bool {
        let mut open = locked(&self.open);
        let entry = open.entry(ino).or_default();
        entry.count += 1;
        self.handles.fetch_add(1, Ordering::Relaxed);
        entry.confirmed
    }

    /// The handle will be used.
    fn confirm(&self, ino: InodeNo, created: bool) {
        if let Some(entry) = locked(&self.open).get_mut(&ino) {
            entry.confirmed = true;
            entry.created |= created;
        }
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

    fn release(&self, ino: InodeNo) {
        if let Ok(ino) = self.real(ino) {
            self.forget_open(ino);
        }
    }

    /// A request that changes the tree.  When the window is full, those of the
    /// bulk lane wait in their order; of the control lane's only those wait
    /// behind them whose inode has changes there.
    fn change_tree(self: &Arc<Self>, id: ReqId, cred: Cred, op: FsOp, bulk: Bytes, how: How) {
        if self.conf.read_only {
            return self.reply(id, 0, Err(FsError::ReadOnly));
        }
        if !*self.mounts.quorum.borrow() {
            return self.reply(id, 0, Err(FsError::NoQuorum));
        }
        let opens = matches!(op, FsOp::Create { .. });
        let sync = matches!(op, FsOp::Write { sync, append, .. } if sync || append);
        let op = match self.to_log(cred, op) {
            Ok(op) => op,
            Err(e) => return self.reply(id, 0, Err(e)),
        };
        let ordered = how.lane == Lane::Bulk || self.follows(&op);
        let (queued, accepted) = self.queue(id, &op, bulk.len() as u64, how.lane);
        let change = TreeChange {
            id,
            op,
            bulk,
            deadline: how.deadline,
            opens,
            awaited: sync || queued.is_none(),
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
    /// does not depend on the log, or attributes of a file that this mount made
    /// and still has open, so that tar pays no round for each.  The inode, if
    /// it is one or any write, and what its caller is to be told.
    fn queue(
        &self,
        id: ReqId,
        op: &Op,
        len: u64,
        lane: Lane,
    ) -> (Option<InodeNo>, Option<RaftdToFused>) {
        match op {
            Op::Write { ino, at, .. } => {
                self.mounts.queue(*ino, |attr| match at {
                    WriteAt::Offset(at) => attr.size = attr.size.max(at.saturating_add(len)),
                    WriteAt::End => attr.size = attr.size.saturating_add(len),
                });
                let accepted = lane == Lane::Bulk && matches!(at, WriteAt::Offset(_));
                let accepted = accepted.then_some(RaftdToFused::Accepted { id, attr: None });
                (Some(*ino), accepted)
            }
            Op::Setattr { ino, set, .. } if set.size.is_none() && self.made(*ino) => {
                let attr = self.mounts.queue(*ino, |attr| preview(attr, set));
                let attr = attr.map(|attr| self.show_attr(attr));
                (Some(*ino), Some(RaftdToFused::Accepted { id, attr }))
            }
            _ => (None, None),
        }
    }

    /// Whether this mount made the file and still has it open.
    fn made(&self, ino: InodeNo) -> bool {
        locked(&self.open).get(&ino).is_some_and(|o| o.created)
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
                    self.confirm(attr.ino, true);
                }
                let attr = self.show_attr(attr);
                Ok(FsRep::Entry { attr, created })
            }
        })
    }

    /// The operation as the log says it.
    fn to_log(&self, cred: Cred, op: FsOp) -> Result<Op, FsError> {
        let check = check(cred);
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
            FsOp::Setattr { ino, set } => Op::Setattr {
                ino: self.real(ino)?,
                set,
                check,
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
            FsOp::Setxattr { ino, name, how, .. } => Op::SetXattr {
                ino: self.real(ino)?,
                name,
                how,
                cred,
            },
            FsOp::Removexattr { ino, name } => Op::RemoveXattr {
                ino: self.real(ino)?,
                name,
            },
            FsOp::Fallocate { ino, what } => Op::Fallocate {
                ino: self.real(ino)?,
                what,
            },
            _ => return Err(FsError::Unsupported),
        })
    }
}
