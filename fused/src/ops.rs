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

//! What the kernel asks for, as requests to raftd and answers back.  fused
//! only.  The one place where an errno is chosen; it knows neither the FUSE
//! library nor any path.
//!
//! A request is answered by whoever has the answer: the thread that read it,
//! the one that reads raftd, a reader of backing files, or the timer when its
//! time is over.  The state is locked for bookkeeping only, never while one
//! of them talks to the kernel or to raftd.
//!
//! ```text
//!  WRITE read --> pending --Accepted--> answered --Rep--> applied
//!                    |                     |
//!                    +--Rep: error         +--Rep: error, or time over -->
//!                       or time over:         error kept on the handle for
//!                       answered with it      the next write, fsync, close
//! ```
//!
//! A small write does not wait for Accepted: it goes over the control lane, as
//! everything does that could depend on it, and raftd keeps the order of a
//! lane.  So does a large one of an inode that has small ones under way.

#![forbid(unsafe_code)]

mod accessed;
mod answers;
mod attrs;
pub mod contents;
pub mod locks;
pub mod names;
mod sparse;
pub mod waiters;
mod xattr;

use crate::ahead::Plan;
use crate::backing::Reads;
use crate::cache::{Changes, Invalidations, Keeper, LostNames, Names, TTL};
use crate::handle::{Handle, Handles, Inodes};
use crate::ops::attrs::Setting;
use crate::ops::contents::{Opening, Write, Writing};
use crate::ops::locks::Owners;
use crate::ops::names::is_dot;
use crate::ops::waiters::Waiters;
use crate::raftd::{Lane, Request, Requests};
use crate::retry::Retries;
use crate::{lock, spawn, wait, wait_timeout};
use common::conf::Mount;
use common::fs::{Attr, Cred, Fh, FsError, InodeNo, ReqId, Statfs};
use common::msg::{FsOp, FsRep, FusedToRaftd};
use common::sys::file::O_DIRECT;
use common::{fatalx, sys};
use nix::errno::Errno;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// An answer to the kernel.
pub type Reply<T> = Box<dyn FnOnce(Result<T, Errno>) + Send>;
pub type DataReply = Box<dyn FnOnce(Result<&[u8], Errno>) + Send>;

/// Statfs and the root's attributes are answered from memory after so long:
/// df(1) and path lookup must not hang with raftd.
const BRIEF: Duration = Duration::from_secs(1);

/// How often the end looks whether raftd has answered everything.
const SETTLE_POLL: Duration = Duration::from_millis(5);

/// Who asks: in whose rights, and the thread that waits for the answer.
#[derive(Clone, Copy)]
pub struct Caller {
    pub cred: Cred,
    pub pid: u32,
}

/// Attributes, and how long the kernel may keep them.
pub struct Known {
    pub attr: Attr,
    pub ttl: Duration,
}

/// What raftd said, or that it did not in time.
pub struct Answer<'a> {
    id: ReqId,
    deadline: Instant,
    index: u64,
    result: Result<FsRep, FsError>,
    fd: Option<OwnedFd>,
    data: &'a [u8],
}

/// What is done with an answer of raftd.
pub type OnAnswer = Box<dyn FnOnce(&Ops, Answer<'_>) + Send>;
/// What is done with an answer that was held back; or it was for too long.
pub type OnRelease = Box<dyn FnOnce(&Ops, Result<(), Errno>) + Send>;

/// What happens with the answer of a request.
pub enum Then {
    Answer(OnAnswer),
    Write(Box<Writing>),
    Setattr(Box<Setting>),
    /// The answer is known and waits until the kernel has dropped what it
    /// makes stale.
    Held(OnRelease),
}

/// What is done when changes under way are over.
pub type Wake = Box<dyn FnOnce(&Ops) + Send>;

struct State {
    keeper: Keeper,
    /// Nothing may be kept that others could change.
    strict: bool,
    inodes: Inodes<Wake>,
    handles: Handles,
    requests: Requests,
    changes: Changes,
    lost: LostNames,
    /// Who must not overtake changes whose time is over, but which may still
    /// happen.
    late_waits: HashMap<InodeNo, Vec<Wake>>,
    retries: Retries,
    names: Names,
    quorum: bool,
    /// Little room is left somewhere.
    short: bool,
    statfs: Option<Statfs>,
    /// Bytes of the pending writes that went over the control lane.
    quick_bytes: u64,
    root: Option<Attr>,
    locks: Owners,
    waiters: Waiters,
}

pub struct Ops {
    mount: Mount,
    control: Arc<Lane>,
    bulk: Arc<Lane>,
    state: Mutex<State>,
    timer: Condvar,
    /// Somebody waits for a lock.
    waiting: Condvar,
    pub reads: Reads,
    pub invalidations: Invalidations,
    /// The kernel can drop all names at once.
    epochs: AtomicBool,
    /// Device readers that wait for room for a WRITE.
    parked: AtomicUsize,
    /// How many there are.
    pub readers: usize,
}

/// The errno of everything but a lookup.
fn errno(e: FsError) -> Errno {
    match e {
        FsError::NotFound => Errno::ENOENT,
        FsError::Exists => Errno::EEXIST,
        FsError::NotDir => Errno::ENOTDIR,
        FsError::IsDir => Errno::EISDIR,
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::Stale => Errno::ESTALE,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::Invalid | FsError::Loop => Errno::EINVAL,
        FsError::TooManyLinks => Errno::EMLINK,
        FsError::TooBig => Errno::EFBIG,
        FsError::NoSpace => Errno::ENOSPC,
        FsError::NoPermission => Errno::EACCES,
        FsError::NotOwner => Errno::EPERM,
        FsError::ReadOnly => Errno::EROFS,
        // Never ENOSYS: kernels take that as a word about all calls to come.
        FsError::Unsupported => Errno::EOPNOTSUPP,
        FsError::Quota => Errno::EDQUOT,
        FsError::NoAttr => sys::errno::no_attr(),
        FsError::Range => Errno::ERANGE,
        FsError::TooLong => Errno::E2BIG,
        FsError::WouldBlock => Errno::EAGAIN,
        FsError::Deadlock => Errno::EDEADLK,
        FsError::CrossTree => Errno::EXDEV,
        FsError::NoOffset => Errno::ENXIO,
        FsError::Busy => Errno::EBUSY,
        FsError::NoLocks => Errno::ENOLCK,
        _ => Errno::EIO,
    }
}

/// Whether the operation changes the tree, and so needs a quorum.
fn changes_tree(op: &FsOp) -> bool {
    let settles = matches!(
        op,
        FsOp::Release { .. }
            | FsOp::Fsync { .. }
            | FsOp::Accessed { .. }
            | FsOp::Lock { .. }
            | FsOp::Unlock { .. }
            | FsOp::TestLock { .. }
    );
    !settles && !op.only_looks()
}

/// The inode whose bytes or attributes the operation changes.
pub fn changed_inode(op: &FsOp) -> Option<InodeNo> {
    match op {
        FsOp::Write { ino, .. } | FsOp::Setattr { ino, .. } | FsOp::Fallocate { ino, .. } => {
            Some(*ino)
        }
        _ => None,
    }
}

/// raftd runs another version of the protocol, or is wrong.
fn unexpected() -> ! {
    fatalx!("dispatch_raftd: unexpected answer in IMSG_FS_REP")
}

fn attr_of(rep: FsRep) -> Attr {
    match rep {
        FsRep::Attr(attr) | FsRep::Entry { attr, .. } | FsRep::Opened { attr } => attr,
        _ => unexpected(),
    }
}

impl State {
    /// Why a change need not even be sent.
    fn refuse(&self, mount: &Mount, op: &FsOp) -> Option<FsError> {
        let refused = changes_tree(op) && (mount.read_only || !self.quorum);
        refused.then_some(FsError::ReadOnly)
    }

    /// Whether the kernel is answered only when the write is applied.  From a
    /// mapping nobody waits for the answer; and if that is an error, the kernel
    /// tells all that call msync(2) or fsync(2), by whatever descriptor.  And
    /// where nobody has the file open to write, nobody could be told later.
    fn is_sync(&self, write: &Write<'_>) -> bool {
        let asked = write.flags & (libc::O_SYNC | libc::O_DSYNC) != 0;
        let handle = self.handles.get(write.at.fh);
        match handle.filter(|handle| handle.ino == write.at.ino) {
            Some(handle) => asked || write.mapped || handle.sync,
            None => asked || write.mapped || !self.handles.is_written(write.at.ino),
        }
    }

    /// By whom the kernel has judged what it asks now.
    fn owner(&mut self, ino: InodeNo) -> Option<u32> {
        self.inodes.get(ino).and_then(|inode| inode.owner())
    }

    /// The size that the kernel was told last.
    fn told_size(&mut self, ino: InodeNo) -> u64 {
        self.inodes.get(ino).map_or(0, |inode| inode.size())
    }

    fn fsync_error(&mut self, fh: Fh) -> Option<FsError> {
        self.handles.take_error(fh)
    }

    /// Linux asks at each close of a copy of the descriptor, and so for a program
    /// that was started from this one and knows nothing of the file.
    fn close_error(&mut self, fh: Fh) -> Option<FsError> {
        match self.keeper {
            Keeper::Kernel => self.handles.error(fh),
            Keeper::Fused => self.handles.take_error(fh),
        }
    }

    /// Attributes for the kernel, which may keep them if nothing newer is on
    /// its way.
    fn known(&mut self, attr: Attr, index: u64) -> Known {
        let newest = match self.inodes.get(attr.ino) {
            Some(inode) => inode.show(&attr, index),
            None => true,
        };
        let stale = !newest || self.changes.inode_since(attr.ino, index);
        if let Some(inode) = self.inodes.get(attr.ino).filter(|_| !stale) {
            inode.xattrs = Some(attr.xattrs);
        }
        let ttl = match self.keeper {
            Keeper::Kernel if !stale && !self.strict => TTL,
            Keeper::Kernel => Duration::ZERO,
            Keeper::Fused => {
                if !stale && !self.strict {
                    self.inodes.keep(&attr);
                }
                Duration::ZERO
            }
        };
        Known { attr, ttl }
    }

    /// What is kept of the inode for a kernel that does not.
    fn kept(&mut self, ino: InodeNo) -> Option<Attr> {
        match self.keeper {
            Keeper::Kernel => None,
            Keeper::Fused => self.inodes.get(ino)?.kept().cloned(),
        }
    }

    /// This mount has changed the inode with `index`, of which it is not told
    /// as of changes by others.  `attr`, if it is known, is as it is now.
    fn changed(&mut self, ino: InodeNo, attr: Option<&Attr>, index: u64) {
        if self.keeper == Keeper::Kernel {
            return;
        }
        self.prune();
        let next = self.requests.next_id();
        self.changes.inode(ino, index, next);
        self.inodes.clear(ino, true);
        if let Some(attr) = attr {
            self.known(attr.clone(), index);
        }
    }

    /// This mount has made the name mean something else, with `index`.
    fn name_changed(&mut self, parent: InodeNo, name: &[u8], index: u64) {
        self.changed(parent, None, index);
        let next = self.requests.next_id();
        self.changes.name(parent, name, index, next);
        match self.names.take(parent, name) {
            Some(Some(before)) => self.changed(before, None, index),
            Some(None) => (),
            // Which inode has lost its name is not known: it could be any.
            None => {
                self.changes.all(index);
                self.inodes.clear_all(false);
            }
        }
    }

    /// This mount has made a name where there was none.
    fn name_made(&mut self, parent: InodeNo, name: &[u8], index: u64) {
        self.changed(parent, None, index);
        let next = self.requests.next_id();
        self.changes.name(parent, name, index, next);
        self.names.take(parent, name);
    }

    /// This mount has done `op`, with `index`.
    fn tree_changed(&mut self, op: &FsOp, index: u64) {
        if self.keeper == Keeper::Kernel {
            return;
        }
        match op {
            FsOp::Unlink { parent, name } | FsOp::Rmdir { parent, name } => {
                self.name_changed(*parent, name, index);
            }
            FsOp::Rename {
                parent,
                name,
                new_parent,
                new_name,
                ..
            } => {
                self.name_changed(*parent, name, index);
                self.name_changed(*new_parent, new_name, index);
            }
            FsOp::Link { ino, parent, name } => {
                self.name_made(*parent, name, index);
                self.changed(*ino, None, index);
            }
            FsOp::Create { parent, name, .. }
            | FsOp::Mknod { parent, name, .. }
            | FsOp::Mkdir { parent, name, .. }
            | FsOp::Symlink { parent, name, .. } => self.name_made(*parent, name, index),
            FsOp::Setattr { ino, .. }
            | FsOp::Write { ino, .. }
            | FsOp::Fallocate { ino, .. }
            | FsOp::Setxattr { ino, .. }
            | FsOp::Removexattr { ino, .. } => self.changed(*ino, None, index),
            _ => (),
        }
    }

    fn open(&mut self, ino: InodeNo, flags: i32) -> Opening {
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let sync = flags & (libc::O_SYNC | libc::O_DSYNC) != 0 || self.strict;
        // The kernel's own idea of the end of the file is not good enough.  Nor
        // for O_DIRECT, where it even cuts the file there when a write fails.
        let direct = flags & (libc::O_APPEND | O_DIRECT) != 0 || self.strict;
        let busy = self.inodes.get_or_new(ino).busy();
        busy.opens += 1;
        busy.buffered += u32::from(!direct);
        let fh = self.handles.open(Handle::new(ino, write, sync, direct));
        Opening {
            fh,
            keep_cache: false,
            direct,
            no_flush: !write,
        }
    }

    /// The pages are kept if they are of the contents that are opened now.
    fn keep_cache(&mut self, attr: &Attr) -> bool {
        let version = Some(attr.data_version);
        let inode = self.inodes.get_or_new(attr.ino);
        std::mem::replace(&mut inode.version, version) == version
    }
}

impl Ops {
    /// `cap` is how many backing files may be open, `readers` how many threads
    /// read the device.
    pub fn new(
        mount: Mount,
        control: Arc<Lane>,
        bulk: Arc<Lane>,
        cap: usize,
        readers: usize,
    ) -> Arc<Ops> {
        Arc::new(Ops {
            control,
            bulk,
            state: Mutex::new(State {
                keeper: Keeper::Fused,
                strict: mount.strict,
                inodes: Inodes::new(cap),
                handles: Handles::default(),
                requests: Requests::default(),
                changes: Changes::default(),
                lost: LostNames::default(),
                late_waits: HashMap::new(),
                retries: Retries::default(),
                names: Names::default(),
                quorum: true,
                short: false,
                statfs: None,
                quick_bytes: 0,
                root: None,
                locks: Owners::default(),
                waiters: Waiters::default(),
            }),
            timer: Condvar::new(),
            waiting: Condvar::new(),
            reads: Reads::default(),
            invalidations: Invalidations::new(),
            epochs: AtomicBool::new(false),
            parked: AtomicUsize::new(0),
            mount,
            readers,
        })
    }

    /// The kernel has said in its INIT what it can; until then it was told
    /// nothing that could be kept.
    pub fn set_keeper(&self, keeper: Keeper) {
        lock(&self.state).keeper = keeper;
    }

    pub fn keeper(&self) -> Keeper {
        lock(&self.state).keeper
    }

    /// What was told of the inode is not true any more nor, with `data`, are
    /// its bytes from there on: whoever keeps it drops it.
    fn stale_inode(&self, ino: InodeNo, data: Option<u64>) {
        let mut state = lock(&self.state);
        match state.keeper {
            Keeper::Fused => state.inodes.clear(ino, data.is_some()),
            Keeper::Kernel => {
                drop(state);
                self.invalidations.inode(ino, data);
            }
        }
    }

    /// The name does not mean any more what was told, which was `lost`.
    fn stale_name(&self, parent: InodeNo, name: &[u8], lost: Option<InodeNo>) {
        let mut state = lock(&self.state);
        match state.keeper {
            Keeper::Fused => {
                let meant = state.names.take(parent, name).flatten();
                let both = [meant, lost].into_iter().flatten();
                both.for_each(|ino| state.inodes.clear(ino, false));
                state.inodes.clear(parent, false);
            }
            Keeper::Kernel => {
                drop(state);
                self.invalidations.entry(parent, name, lost);
            }
        }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.mount.timeout
    }

    /// The deadline of what can be answered from memory if `cached`.
    fn brief_deadline(&self, cached: bool) -> Instant {
        let timeout = self.mount.timeout;
        Instant::now() + if cached { BRIEF.min(timeout) } else { timeout }
    }

    /// Sends a request; `then` has its answer in the end.
    fn ask(&self, cred: Cred, op: FsOp, then: impl FnOnce(&Ops, Answer<'_>) + Send + 'static) {
        self.ask_by(self.deadline(), cred, op, then);
    }

    fn ask_by(
        &self,
        deadline: Instant,
        cred: Cred,
        op: FsOp,
        then: impl FnOnce(&Ops, Answer<'_>) + Send + 'static,
    ) {
        let mut state = lock(&self.state);
        if let Some(e) = state.refuse(&self.mount, &op) {
            drop(state);
            return then(self, Answer::failed(ReqId(0), deadline, e));
        }
        let then = Then::Answer(Box::new(then));
        let id = self.register(&mut state, deadline, &op, then);
        drop(state);
        self.control.send(&FusedToRaftd::Req { id, cred, op });
    }

    /// For requests of which the kernel only wants to know whether they
    /// succeeded.
    fn ask_done(&self, cred: Cred, op: FsOp, reply: Reply<()>) {
        self.ask(cred, op, |_, answer| {
            reply(answer.result.map(drop).map_err(errno));
        });
    }

    fn register(&self, state: &mut State, deadline: Instant, op: &FsOp, then: Then) -> ReqId {
        let held = matches!(
            op,
            FsOp::Open { .. } | FsOp::LookupHold { .. } | FsOp::Lock { .. }
        );
        let lasting = changes_tree(op) || held;
        let request = Request {
            deadline,
            then,
            op: lasting.then(|| op.clone()),
        };
        let id = state.requests.insert(request);
        self.set_alarm(state, deadline);
        id
    }

    fn set_alarm(&self, state: &mut State, deadline: Instant) {
        if state.requests.alarm.is_none_or(|at| at > deadline) {
            state.requests.alarm = Some(deadline);
            self.timer.notify_one();
        }
    }

    fn release_inode(&self, ino: InodeNo) {
        let req = FusedToRaftd::Req {
            id: ReqId(0),
            cred: Cred::default(),
            op: FsOp::Release { ino },
        };
        self.control.send(&req);
    }

    /// Gives the answer when the inode's invalidations have returned from the
    /// kernel, so that nothing newer than the answer is still cached.
    fn after_invalidation(
        &self,
        ino: InodeNo,
        id: ReqId,
        deadline: Instant,
        then: impl FnOnce(&Ops, Result<(), Errno>) + Send + 'static,
    ) {
        if !self.invalidations.is_queued(ino) {
            return then(self, Ok(()));
        }
        let mut state = lock(&self.state);
        let id = self.hold(&mut state, id, deadline, then);
        drop(state);
        if !self.invalidations.hold(ino, id) {
            self.unhold(id);
        }
    }

    /// `id` may be 0 for an answer that raftd was not asked for.
    fn hold(
        &self,
        state: &mut State,
        id: ReqId,
        deadline: Instant,
        then: impl FnOnce(&Ops, Result<(), Errno>) + Send + 'static,
    ) -> ReqId {
        let request = Request {
            deadline,
            then: Then::Held(Box::new(then)),
            op: None,
        };
        let id = match id {
            ReqId(0) => state.requests.insert(request),
            id => {
                state.requests.put(id, request);
                id
            }
        };
        self.set_alarm(state, deadline);
        id
    }

    /// What an answer was held for has happened.
    pub fn unhold(&self, id: ReqId) {
        let request = lock(&self.state).requests.remove(id);
        if let Some(Request {
            then: Then::Held(then),
            ..
        }) = request
        {
            then(self, Ok(()));
        }
    }

    /// An error for a call that the kernel tries again if it is ESTALE.
    fn errno_to_retry(&self, pid: u32, e: FsError) -> Errno {
        if e == FsError::Stale {
            lock(&self.state).retries.begin(pid, Instant::now());
        }
        errno(e)
    }
}

/// What the threads that notify the kernel ask and tell.
impl Ops {
    pub fn has_epochs(&self) -> bool {
        self.epochs.load(Ordering::Relaxed)
    }

    pub fn set_epochs(&self, epochs: bool) {
        self.epochs.store(epochs, Ordering::Relaxed);
    }

    pub fn is_known(&self, ino: InodeNo) -> bool {
        lock(&self.state).inodes.is_known(ino)
    }

    /// Whether the kernel may have kept something of the listing, which is
    /// now going to be dropped.
    pub fn take_listed(&self, dir: InodeNo) -> bool {
        let mut state = lock(&self.state);
        let listed = state.inodes.get(dir).map(|inode| &mut inode.listed);
        listed.is_some_and(std::mem::take)
    }

    /// The kernel has dropped names of these inodes; None: all names.
    pub fn names_dropped(&self, lost: &[Option<InodeNo>]) {
        let mut state = lock(&self.state);
        let next = state.requests.next_id();
        let held: Vec<ReqId> = lost
            .iter()
            .flat_map(|ino| state.lost.told(*ino, next))
            .collect();
        drop(state);
        held.into_iter().for_each(|id| self.unhold(id));
    }
}

impl State {
    /// What the name means, as far as the kernel would have kept it.
    fn remembered(&mut self, parent: InodeNo, name: &[u8]) -> Option<Attr> {
        let ino = self.names.get(parent, name)?;
        self.kept(ino)
    }

    /// Keeps what raftd has told of a name, for a kernel that does not.
    fn remember(&mut self, parent: InodeNo, name: &[u8], ino: Option<InodeNo>, index: u64) {
        let stale = self.changes.name_since(parent, name, index);
        if self.keeper == Keeper::Fused && !stale && !self.strict && !is_dot(name) {
            self.names.put(parent, name, ino);
        }
    }

    /// How to answer a READ.
    fn plan_read(&mut self, ino: InodeNo, offset: u64, size: u32) -> Plan {
        match self.keeper {
            Keeper::Kernel => Plan::Plain,
            Keeper::Fused if self.strict => Plan::Plain,
            Keeper::Fused => self.inodes.plan_read(ino, offset, size),
        }
    }

    /// A change is resolved after its time; returns who waited for that.
    fn late_over(&mut self, op: Option<&FsOp>) -> Vec<Wake> {
        let ino = op.and_then(changed_inode);
        match ino.filter(|ino| !self.requests.is_late(*ino)) {
            Some(ino) => self.late_waits.remove(&ino).unwrap_or_default(),
            None => Vec::new(),
        }
    }

    /// Forgets what only requests that are answered by now had to know.
    fn prune(&mut self) {
        let oldest = self.requests.oldest();
        self.changes.prune(oldest);
        self.lost.prune(oldest);
    }
}

impl Answer<'_> {
    fn failed(id: ReqId, deadline: Instant, error: FsError) -> Self {
        Answer {
            id,
            deadline,
            index: 0,
            result: Err(error),
            fd: None,
            data: &[],
        }
    }
}

/// A reply that can only be an error now.
fn errno_to<T: 'static>(reply: Reply<T>) -> Box<dyn FnOnce(Errno) + Send> {
    Box::new(|e| reply(Err(e)))
}

/// Starts the timer: no request waits longer than its time, whatever raftd
/// does.
pub fn start(ops: &Arc<Ops>) {
    let ops = ops.clone();
    spawn("timer", move || ops.watch());
}

impl Ops {
    /// After the unmount, which has flushed what was mapped: waits until raftd
    /// has answered everything, for what only the socket has dies with us.
    pub fn settle_all(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let mut state = lock(&self.state);
        while !state.requests.is_empty() && Instant::now() < until {
            drop(state);
            std::thread::sleep(SETTLE_POLL);
            state = lock(&self.state);
        }
    }

    fn watch(&self) {
        let mut state = lock(&self.state);
        loop {
            let now = Instant::now();
            if let Some((id, request)) = state.requests.expire(now) {
                drop(state);
                let answer = Answer::failed(id, request.deadline, FsError::TimedOut);
                self.conclude(request.then, answer);
                state = lock(&self.state);
                continue;
            }
            let next = state.requests.next_deadline();
            state.requests.alarm = next;
            state = match next {
                Some(at) => wait_timeout(&self.timer, state, at.saturating_duration_since(now)),
                None => wait(&self.timer, state),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors() {
        for (e, want) in [
            (FsError::NotFound, Errno::ENOENT),
            (FsError::Exists, Errno::EEXIST),
            (FsError::NotEmpty, Errno::ENOTEMPTY),
            (FsError::Stale, Errno::ESTALE),
            (FsError::Loop, Errno::EINVAL),
            (FsError::TooBig, Errno::EFBIG),
            (FsError::NoSpace, Errno::ENOSPC),
            (FsError::NoPermission, Errno::EACCES),
            (FsError::NotOwner, Errno::EPERM),
            (FsError::ReadOnly, Errno::EROFS),
            (FsError::Unsupported, Errno::EOPNOTSUPP),
            (FsError::NoQuorum, Errno::EIO),
            (FsError::TimedOut, Errno::EIO),
            (FsError::Io, Errno::EIO),
        ] {
            assert_eq!(errno(e), want);
        }
        for (e, kernel, fused) in [
            (FsError::NotFound, Errno::ENOENT, Errno::ENOENT),
            (FsError::Stale, Errno::ESTALE, Errno::ENOENT),
            (FsError::TimedOut, Errno::EIO, Errno::ENXIO),
            (FsError::NoQuorum, Errno::EIO, Errno::ENXIO),
        ] {
            assert_eq!(names::lookup_errno(Keeper::Kernel, e), kernel);
            assert_eq!(names::lookup_errno(Keeper::Fused, e), fused);
        }
    }

    #[test]
    fn what_needs_a_quorum() {
        let ino = InodeNo(2);
        let changing = [
            FsOp::Unlink {
                parent: ino,
                name: b"x".to_vec(),
            },
            FsOp::Setattr {
                ino,
                set: common::fs::SetAttr::default(),
                early: false,
                owner: None,
            },
        ];
        assert!(changing.iter().all(changes_tree));
        let looking = [
            FsOp::Open {
                ino,
                write: true,
                held: false,
            },
            FsOp::Getattr { ino },
            FsOp::Fsync { ino },
            FsOp::Release { ino },
            FsOp::Statfs,
        ];
        assert!(!looking.iter().any(changes_tree));
    }
}
