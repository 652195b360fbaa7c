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
pub mod locks;
mod sparse;
pub mod waiters;
mod xattr;

use crate::ahead::{Plan, Round, AHEAD};
use crate::backing::{Backing, Read, Reads};
use crate::cache::{Changes, Invalidations, Keeper, LostNames, Names, SHORT_TTL, TTL};
use crate::handle::{Handle, Handles, Inodes};
use crate::ops::locks::Owners;
use crate::ops::waiters::Waiters;
use crate::raftd::{Lane, Request, Requests, SMALL};
use crate::retry::{Retries, RETRY};
use crate::{lock, spawn, wait, wait_timeout};
use common::conf::Mount;
use common::fs::{
    check_name, Attr, Cookie, Cred, Dirent, Fh, FsError, InodeNo, ReqId, SetAttr, Statfs, FILE_MAX,
    IO_MAX, SYMLINK_MAX,
};
use common::msg::{FsOp, FsRep, FusedToRaftd};
use common::{fatalx, log_debug, sys};
use nix::errno::Errno;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// An answer to the kernel.
pub type Reply<T> = Box<dyn FnOnce(Result<T, Errno>) + Send>;
pub type DataReply = Box<dyn FnOnce(Result<&[u8], Errno>) + Send>;

/// Statfs and the root's attributes are answered from memory after so long:
/// df(1) and path lookup must not hang with raftd.
const BRIEF: Duration = Duration::from_secs(1);

/// So much may be answered at once and not be applied; beyond, the answer
/// waits for raftd.
const QUICK_MAX: u64 = 1 << 20;

/// A name that others change again and again is asked for so often.
const LOOKUP_TRIES: u32 = 8;

/// How often the end looks whether raftd has answered everything.
const SETTLE_POLL: Duration = Duration::from_millis(5);

const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;

/// Size of an entry in a READDIR and in a READDIRPLUS reply, before its name.
const DIRENT_SIZE: usize = 24;
const DIRENTPLUS_SIZE: usize = 152;

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

/// A name and what it means; `attr.ino` 0 means that there is none.
pub struct Entry {
    pub attr: Attr,
    pub attr_ttl: Duration,
    pub entry_ttl: Duration,
}

/// An entry of a listing; with attributes it counts as a lookup.
pub struct Listed {
    pub dirent: Dirent,
    pub attr_ttl: Duration,
    pub entry_ttl: Duration,
}

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
    pub ino: InodeNo,
    pub fh: Fh,
    pub offset: u64,
    pub data: &'a [u8],
    /// O_APPEND, O_SYNC, O_DSYNC.
    pub flags: i32,
    /// From a mapping: handle and caller are the kernel's guess.
    pub mapped: bool,
    pub kill_priv: bool,
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

/// A WRITE under way; `reply` is gone once the kernel has it.
pub struct Writing {
    ino: InodeNo,
    fh: Option<Fh>,
    offset: u64,
    len: u32,
    append: bool,
    direct: bool,
    sync: bool,
    /// Went over the control lane.
    quick: bool,
    reply: Option<Reply<u32>>,
}

/// A SETATTR under way.
pub struct Setting {
    ino: InodeNo,
    pid: u32,
    fh: Option<Fh>,
    reply: Option<Reply<Known>>,
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

/// OpenBSD takes every error but ENXIO as "there is no such name", also where
/// it then makes one.  In a directory that is gone there is none.
fn lookup_errno(keeper: Keeper, e: FsError) -> Errno {
    match (keeper, e) {
        (_, FsError::NotFound) | (Keeper::Fused, FsError::Stale) => Errno::ENOENT,
        (Keeper::Fused, FsError::NameTooLong | FsError::Invalid) => Errno::ENOENT,
        (Keeper::Fused, _) => Errno::ENXIO,
        (Keeper::Kernel, e) => errno(e),
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

fn is_dot(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

impl State {
    /// Why a change need not even be sent.
    fn refuse(&self, mount: &Mount, op: &FsOp) -> Option<FsError> {
        let refused = changes_tree(op) && (mount.read_only || !self.quorum);
        refused.then_some(FsError::ReadOnly)
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
        // The kernel's own idea of the end of the file is not good enough.
        let direct = flags & libc::O_APPEND != 0 || self.strict;
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

    /// The same for one that takes names away.
    fn ask_unnamed(&self, Caller { cred, pid }: Caller, op: FsOp, reply: Reply<()>) {
        let done = op.clone();
        self.ask(cred, op, move |ops, answer| {
            if answer.result.is_ok() {
                lock(&ops.state).tree_changed(&done, answer.index);
            }
            let result = answer.result.map(drop);
            reply(result.map_err(|e| ops.errno_to_retry(pid, e)));
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
}

/// What the kernel asks for.
impl Ops {
    pub fn lookup(&self, caller: Caller, parent: InodeNo, name: &[u8], reply: Reply<Entry>) {
        let mut state = lock(&self.state);
        let keeper = state.keeper;
        if let Some(attr) = state.remembered(parent, name) {
            state.inodes.looked_up(attr.ino);
            drop(state);
            return reply(Ok(Entry {
                attr,
                attr_ttl: Duration::ZERO,
                entry_ttl: Duration::ZERO,
            }));
        }
        let hold = !is_dot(name) && state.retries.looks(caller.pid, Instant::now());
        drop(state);
        if let Err(e) = check_name(name) {
            if !is_dot(name) {
                return reply(Err(lookup_errno(keeper, e)));
            }
        }
        self.ask_name(caller, (parent, name.to_vec()), hold, LOOKUP_TRIES, reply);
    }

    /// What the name means, asked again if others have changed it meanwhile:
    /// the kernel shall not open by what was already so when it asked.
    fn ask_name(
        &self,
        caller: Caller,
        (parent, name): (InodeNo, Vec<u8>),
        hold: bool,
        tries: u32,
        reply: Reply<Entry>,
    ) {
        let asked = name.clone();
        let op = match hold {
            false => FsOp::Lookup { parent, name },
            true => FsOp::LookupHold { parent, name },
        };
        let name = asked;
        self.ask(caller.cred, op, move |ops, answer| {
            let state = lock(&ops.state);
            let (keeper, index) = (state.keeper, answer.index);
            let moved = tries > 0 && state.changes.name_since(parent, &name, index);
            drop(state);
            let attr = answer.result.map(attr_of);
            if let (Ok(attr), true) = (&attr, hold) {
                ops.hold_inode(caller.pid, attr.ino);
            }
            match attr {
                Ok(_) if moved => ops.ask_name(caller, (parent, name), hold, tries - 1, reply),
                Ok(attr) => {
                    let mut entry = ops.entry(parent, &name, attr, index);
                    if hold {
                        // For this call alone.
                        entry.entry_ttl = Duration::ZERO;
                    }
                    reply(Ok(entry));
                }
                Err(e) => {
                    let mut state = lock(&ops.state);
                    let e = match e {
                        // Whoever comes here without its name did so before it
                        // was removed, or works in it.
                        FsError::Stale if !state.lost.is_untold(parent) => FsError::NotFound,
                        e => e,
                    };
                    match e {
                        FsError::NotFound => state.remember(parent, &name, None, index),
                        FsError::Stale => state.retries.begin(caller.pid, Instant::now()),
                        _ => {}
                    }
                    drop(state);
                    reply(Err(lookup_errno(keeper, e)));
                }
            }
        });
    }

    /// Keeps what a LOOKUP of the thread holds, until it has had its try.
    fn hold_inode(&self, pid: u32, ino: InodeNo) {
        let until = Instant::now() + RETRY;
        let mut state = lock(&self.state);
        state.retries.held(pid, ino);
        self.hold(&mut state, ReqId(0), until, move |ops, _| {
            let mut state = lock(&ops.state);
            state.retries.let_go(pid, ino, Instant::now());
            drop(state);
            ops.release_inode(ino);
        });
    }

    /// An error for a call that the kernel tries again if it is ESTALE.
    fn errno_to_retry(&self, pid: u32, e: FsError) -> Errno {
        if e == FsError::Stale {
            lock(&self.state).retries.begin(pid, Instant::now());
        }
        errno(e)
    }

    pub fn forget(&self, ino: InodeNo, nlookup: u64) {
        let mut state = lock(&self.state);
        state.inodes.forget(ino, nlookup);
        if !state.inodes.is_known(ino) {
            state.lost.forgotten(ino);
        }
    }

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
                (Err(e), true) => state.root.clone().ok_or(e).map(|attr| Known {
                    attr,
                    ttl: Duration::ZERO,
                }),
            };
            drop(state);
            reply(known.map_err(|e| ops.errno_to_retry(pid, e)));
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
        let set_size = set.size.is_some();
        let range = if set_size { 0..u64::MAX } else { 0..0 };
        let op = FsOp::Setattr { ino, set };
        let mut state = lock(&self.state);
        if set_size && fh.is_some_and(|fh| state.handles.is_lost(fh)) {
            drop(state);
            return reply(Err(Errno::EIO));
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
        drop(state);
        self.control.send(&FusedToRaftd::Req { id, cred, op });
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

    /// MKNOD, MKDIR, SYMLINK, LINK: `op` makes the name.
    fn make(
        &self,
        Caller { cred, pid }: Caller,
        parent: InodeNo,
        name: &[u8],
        op: FsOp,
        reply: Reply<Entry>,
    ) {
        if let Err(e) = check_name(name) {
            return reply(Err(errno(e)));
        }
        let (name, done) = (name.to_vec(), op.clone());
        self.ask(cred, op, move |ops, answer| match answer.result {
            Ok(rep) => {
                let entry = ops.made(&done, parent, &name, attr_of(rep), answer.index);
                reply(Ok(entry));
            }
            Err(e) => reply(Err(ops.errno_to_retry(pid, e))),
        });
    }

    /// A name that this mount has made.
    fn made(&self, op: &FsOp, parent: InodeNo, name: &[u8], attr: Attr, index: u64) -> Entry {
        let mut state = lock(&self.state);
        state.tree_changed(op, index);
        let counted = state.keeper == Keeper::Kernel || !matches!(op, FsOp::Link { .. });
        drop(state);
        let entry = self.entry(parent, name, attr, index);
        if !counted {
            // OpenBSD's kernel looks at nothing in the answer to a LINK.
            self.forget(entry.attr.ino, 1);
        }
        entry
    }

    /// `mode` with its type and, as everywhere, beside the umask.
    pub fn mknod(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &[u8],
        (mode, umask): (u32, u32),
        rdev: u32,
        reply: Reply<Entry>,
    ) {
        let op = FsOp::Mknod {
            parent,
            name: name.to_vec(),
            mode,
            umask,
            rdev,
        };
        self.make(caller, parent, name, op, reply);
    }

    pub fn mkdir(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &[u8],
        (mode, umask): (u32, u32),
        reply: Reply<Entry>,
    ) {
        let op = FsOp::Mkdir {
            parent,
            name: name.to_vec(),
            mode,
            umask,
        };
        self.make(caller, parent, name, op, reply);
    }

    pub fn symlink(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &[u8],
        target: &[u8],
        reply: Reply<Entry>,
    ) {
        if target.len() > SYMLINK_MAX {
            return reply(Err(Errno::ENAMETOOLONG));
        }
        let op = FsOp::Symlink {
            parent,
            name: name.to_vec(),
            target: target.to_vec(),
        };
        self.make(caller, parent, name, op, reply);
    }

    pub fn link(
        &self,
        caller: Caller,
        ino: InodeNo,
        parent: InodeNo,
        name: &[u8],
        reply: Reply<Entry>,
    ) {
        let op = FsOp::Link {
            ino,
            parent,
            name: name.to_vec(),
        };
        self.make(caller, parent, name, op, reply);
    }

    #[allow(clippy::too_many_arguments)]
    pub fn create(
        &self,
        Caller { cred, pid }: Caller,
        parent: InodeNo,
        name: &[u8],
        (mode, umask): (u32, u32),
        flags: i32,
        reply: Reply<(Entry, Opening)>,
    ) {
        if let Err(e) = check_name(name) {
            return reply(Err(errno(e)));
        }
        let name = name.to_vec();
        let op = FsOp::Create {
            parent,
            name: name.clone(),
            mode,
            umask,
            excl: flags & libc::O_EXCL != 0,
        };
        let done = op.clone();
        self.ask(cred, op, move |ops, answer| match answer.result {
            Ok(rep) => {
                let entry = ops.made(&done, parent, &name, attr_of(rep), answer.index);
                let (ino, attr) = (entry.attr.ino, &entry.attr);
                let opening = {
                    let mut state = lock(&ops.state);
                    let keep_cache = state.keep_cache(attr);
                    let opening = state.open(ino, flags);
                    // Attributes set while it is new are awaited at close.
                    state.handles.settle(opening.fh);
                    Opening {
                        keep_cache,
                        no_flush: false,
                        ..opening
                    }
                };
                ops.after_invalidation(ino, answer.id, answer.deadline, move |ops, done| {
                    if done.is_err() {
                        ops.release(opening.fh);
                        ops.forget(ino, 1);
                        // It is there, and the kernel is told that it failed.
                        ops.stale_name(parent, &name, None);
                        ops.stale_inode(parent, Some(0));
                    }
                    reply(done.map(|()| (entry, opening)));
                });
            }
            Err(e) => reply(Err(ops.errno_to_retry(pid, e))),
        });
    }

    pub fn unlink(&self, caller: Caller, parent: InodeNo, name: &[u8], reply: Reply<()>) {
        if let Err(e) = check_name(name) {
            return reply(Err(errno(e)));
        }
        let name = name.to_vec();
        self.ask_unnamed(caller, FsOp::Unlink { parent, name }, reply);
    }

    pub fn rmdir(&self, caller: Caller, parent: InodeNo, name: &[u8], reply: Reply<()>) {
        if let Err(e) = check_name(name) {
            return reply(Err(errno(e)));
        }
        let name = name.to_vec();
        self.ask_unnamed(caller, FsOp::Rmdir { parent, name }, reply);
    }

    /// `flags` are those of renameat2(2).
    #[allow(clippy::too_many_arguments)]
    pub fn rename(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &[u8],
        new_parent: InodeNo,
        new_name: &[u8],
        flags: u32,
        reply: Reply<()>,
    ) {
        let both = RENAME_NOREPLACE | RENAME_EXCHANGE;
        if flags & !both != 0 || flags == both {
            return reply(Err(Errno::EINVAL));
        }
        if let Err(e) = check_name(name).and(check_name(new_name)) {
            return reply(Err(errno(e)));
        }
        let op = FsOp::Rename {
            parent,
            name: name.to_vec(),
            new_parent,
            new_name: new_name.to_vec(),
            no_replace: flags & RENAME_NOREPLACE != 0,
            exchange: flags & RENAME_EXCHANGE != 0,
        };
        self.ask_unnamed(caller, op, reply);
    }

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
        let op = FsOp::Open { ino, held };
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
    fn hurry(&self, ino: InodeNo) {
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
        let (ino, offset, len) = (write.ino, write.offset, write.data.len() as u32);
        let end = offset.saturating_add(u64::from(len));
        if end > FILE_MAX {
            return reply(Err(Errno::EFBIG));
        }
        if write.data.len() > IO_MAX {
            return reply(Err(Errno::EINVAL));
        }
        if !self.wait_room(deadline) {
            return reply(Err(Errno::EIO));
        }
        let append = write.flags & libc::O_APPEND != 0 && !write.mapped;
        let asked = write.flags & (libc::O_SYNC | libc::O_DSYNC) != 0;
        let op = FsOp::Write {
            ino,
            offset,
            len,
            append,
            kill_priv: write.kill_priv,
            sync: asked
                || lock(&self.state)
                    .handles
                    .get(write.fh)
                    .is_some_and(|h| h.sync),
        };
        let mut state = lock(&self.state);
        let failed = match state.handles.take_error(write.fh) {
            Some(e) => Some(e),
            None => state.refuse(&self.mount, &op),
        };
        if let Some(e) = failed {
            drop(state);
            return reply(Err(errno(e)));
        }
        let handle = state.handles.get(write.fh);
        let sync = append || asked || handle.is_some_and(|h| h.sync);
        let direct = handle.is_some_and(|h| h.direct);
        let busy = state.inodes.get_or_new(ino).busy();
        let quick = write.data.len() <= SMALL || busy.quick > 0;
        busy.quick += u32::from(quick);
        let at_once = quick && !sync && state.quick_bytes <= QUICK_MAX;
        state.quick_bytes += if quick { u64::from(len) } else { 0 };
        let (now, later) = match at_once {
            true => (Some(reply), None),
            false => (None, Some(reply)),
        };
        let writing = Writing {
            ino,
            fh: (!write.mapped).then_some(write.fh),
            offset,
            len,
            append,
            direct,
            sync,
            quick,
            reply: later,
        };
        let then = Then::Write(Box::new(writing));
        let id = self.register(&mut state, deadline, &op, then);
        let range = offset..if append { u64::MAX } else { end };
        let inode = state.inodes.get_or_new(ino);
        inode.clear(true);
        inode.busy().pending.begin(id, range);
        drop(state);
        let req = FusedToRaftd::Req { id, cred, op };
        let lane = if quick { &self.control } else { &self.bulk };
        lane.send_with(&req, write.data);
        if let Some(reply) = now {
            reply(Ok(len));
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

    /// Answered when no change that this mount made to the inode is under way
    /// any more, unless the handle cannot have made one, and `owner` has no lock
    /// of it.
    pub fn flush(&self, cred: Cred, ino: InodeNo, fh: Fh, owner: u64, reply: Reply<()>) {
        let mut state = lock(&self.state);
        let busy = state.inodes.if_busy(ino);
        let pending = busy.is_some_and(|busy| busy.pending.is_any());
        let locked = state.locks.has(ino, owner);
        let settles = state.handles.get(fh).is_none_or(|handle| handle.settles);
        drop(state);
        if locked {
            return self.unlock_owner(ino, owner, move |ops| {
                ops.settle(ino, fh, Ok(()), reply);
            });
        }
        if !settles || self.mount.async_close {
            let failed = lock(&self.state).handles.take_error(fh);
            return reply(failed.map_or(Ok(()), |e| Err(errno(e))));
        }
        match pending {
            // raftd lets wait what nobody waits for.
            true => self.fsync(cred, ino, fh, reply),
            false => self.settle(ino, fh, Ok(()), reply),
        }
    }

    fn settle(&self, ino: InodeNo, fh: Fh, result: Result<(), FsError>, reply: Reply<()>) {
        let done: Wake = Box::new(move |ops| {
            let failed = lock(&ops.state).handles.take_error(fh);
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
            ops.settle(ino, fh, answer.result.map(drop), reply);
        });
    }

    /// Names are durable when their operation returns.
    pub fn fsyncdir(&self, cred: Cred, ino: InodeNo, reply: Reply<()>) {
        self.ask_done(cred, FsOp::Fsync { ino }, reply);
    }

    /// Answered here: the kernel may keep the listing, since every change of
    /// it by others invalidates it and its own the kernel sees itself.  Whether
    /// it may is the answer.
    pub fn opendir(&self, ino: InodeNo, reply: Reply<bool>) {
        let state = lock(&self.state);
        let keep = state.keeper == Keeper::Kernel && !state.strict;
        drop(state);
        self.after_invalidation(ino, ReqId(0), self.deadline(), move |_, done| {
            reply(done.map(|()| keep));
        });
    }

    pub fn readdir(
        &self,
        cred: Cred,
        ino: InodeNo,
        after: Cookie,
        size: u32,
        plus: bool,
        reply: Reply<Vec<Listed>>,
    ) {
        let mut state = lock(&self.state);
        if state.keeper == Keeper::Kernel {
            state.inodes.get_or_new(ino).listed = true;
        }
        let accessed = state.take_access(&self.mount, ino);
        drop(state);
        if accessed {
            self.accessed(ino);
        }
        let op = FsOp::Readdir {
            ino,
            after,
            size,
            plus,
        };
        self.ask(cred, op, move |ops, answer| match answer.result {
            Ok(FsRep::Dirents { entries, .. }) => {
                let listed = ops.listed(ino, entries, size as usize, plus, answer.index);
                reply(Ok(listed));
            }
            Ok(_) => unexpected(),
            Err(e) => reply(Err(errno(e))),
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

    /// An entry for the kernel, counted as looked up.
    fn entry(&self, parent: InodeNo, name: &[u8], attr: Attr, index: u64) -> Entry {
        let mut state = lock(&self.state);
        state.inodes.looked_up(attr.ino);
        state.lost.looked_up(attr.ino, index);
        state.remember(parent, name, Some(attr.ino), index);
        let known = state.known(attr, index);
        Entry {
            attr: known.attr,
            attr_ttl: known.ttl,
            entry_ttl: self.entry_ttl(&state, parent, name, index),
        }
    }

    fn entry_ttl(&self, state: &State, parent: InodeNo, name: &[u8], index: u64) -> Duration {
        let stale = state.changes.name_since(parent, name, index);
        if stale || state.strict || state.keeper == Keeper::Fused {
            Duration::ZERO
        } else if self.epochs.load(Ordering::Relaxed) {
            TTL
        } else {
            SHORT_TTL
        }
    }

    fn listed(
        &self,
        dir: InodeNo,
        entries: Vec<Dirent>,
        size: usize,
        plus: bool,
        index: u64,
    ) -> Vec<Listed> {
        let head = if plus { DIRENTPLUS_SIZE } else { DIRENT_SIZE };
        let mut left = size;
        let mut state = lock(&self.state);
        let mut listed = Vec::with_capacity(entries.len());
        for mut dirent in entries {
            let cost = (head + dirent.name.len()).next_multiple_of(8);
            match left.checked_sub(cost) {
                Some(rest) => left = rest,
                None => break,
            }
            let mut attr_ttl = Duration::ZERO;
            // The kernel counts no lookup for these two.
            let attr = dirent.attr.take().filter(|_| plus && !is_dot(&dirent.name));
            if let Some(attr) = attr {
                state.inodes.looked_up(attr.ino);
                let known = state.known(attr, index);
                attr_ttl = known.ttl;
                dirent.attr = Some(known.attr);
            }
            let entry_ttl = self.entry_ttl(&state, dir, &dirent.name, index);
            listed.push(Listed {
                dirent,
                attr_ttl,
                entry_ttl,
            });
        }
        listed
    }
}

/// What raftd says.
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
                drop(state);
                if let Some(reply) = reply {
                    reply(Ok(len));
                }
            }
            Then::Setattr(setting) => {
                // Its times are the leader's to tell: nothing to keep.
                let Some(attr) = attr else { unexpected() };
                let reply = setting.reply.take();
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

    fn conclude(&self, then: Then, answer: Answer<'_>) {
        match then {
            Then::Answer(then) => then(self, answer),
            Then::Write(writing) => self.written(*writing, answer),
            Then::Setattr(setting) => self.set(*setting, answer),
            Then::Held(then) => then(self, Err(Errno::EIO)),
        }
    }

    /// A WRITE is applied, or never will be.
    fn written(&self, writing: Writing, answer: Answer<'_>) {
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

    /// A SETATTR is applied, or never will be.
    fn set(&self, setting: Setting, answer: Answer<'_>) {
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

    /// A change of an inode has failed.  If the kernel has had its answer, the
    /// handle keeps the error, and what the kernel believes is wrong.
    fn change_failed(
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
        if lost.is_some() {
            state.lost.lost(lost, index);
        }
        drop(state);
        if known {
            self.stale_name(parent, name, lost);
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
        state.lost.lost(None, index);
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

    pub fn quorum(&self, quorum: bool) {
        lock(&self.state).quorum = quorum;
        let what = if quorum { "quorum" } else { "no quorum" };
        log_debug!("mount {}: {what}", self.mount.point.display());
    }
}

/// What the threads that notify the kernel ask and tell.
impl Ops {
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

/// As much as was asked for.
fn first(data: &[u8], want: u32) -> &[u8] {
    data.get(..want as usize).unwrap_or(data)
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
            assert_eq!(lookup_errno(Keeper::Kernel, e), kernel);
            assert_eq!(lookup_errno(Keeper::Fused, e), fused);
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
                set: SetAttr::default(),
            },
        ];
        assert!(changing.iter().all(changes_tree));
        let looking = [
            FsOp::Open { ino, held: false },
            FsOp::Getattr { ino },
            FsOp::Fsync { ino },
            FsOp::Release { ino },
            FsOp::Statfs,
        ];
        assert!(!looking.iter().any(changes_tree));
    }
}
