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

//! The fused processes of this node: who has what open, what must be told to
//! whom, and (request.rs) what they ask for.  raftd only.
//!
//! A change that this node applied is pushed to every fused but the one that
//! asked for it, before that one has its answer; and only if that kernel was
//! ever told of the inode, since it cannot cache what it does not know.

mod accessed;
mod change;
mod lane;
mod lock;
mod look;
mod open;
mod request;
mod seek;
mod short;

use crate::age::Age;
use crate::barrier::Barrier;
use crate::fs::inode::ReadError;
use crate::fs::op::Op;
use crate::fs::{dirent, inode, Change};
use crate::locks::Locks;
use crate::propose::{How, Proposer};
use crate::store::state_machine::Applied;
use crate::store::Store;
use accessed::Accesses;
use bytes::Bytes;
use change::TreeChange;
use common::conf::{Mount, MountId};
use common::ctl::{CtlMount, MountState};
use common::fs::{Attr, FsError, InodeNo, ReqId, SetAttr, SetTime, Time};
use common::imsg::{Imsg, ImsgError};
use common::msg::{FsRep, FusedToRaftd, Lane as LaneKind, RaftdToFused};
use common::{log_info, log_warnx};
use lane::Lane;
use short::Short;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock, Weak};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{watch, Notify};

/// Orphans that nobody here holds are let go in batches.
const RELEASE_DELAY: Duration = Duration::from_millis(100);
const RELEASE_MAX: usize = 1024;
/// They are let go once; until that is in the log it is tried.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(365 * 86400);
/// How often is looked whether what mounts show is too old.
const AGE_INTERVAL: Duration = Duration::from_millis(250);
/// Beyond so many inodes a kernel counts as knowing all.
const TOLD_MAX: usize = 1 << 18;

/// All mounts of this node, and what they share.
pub struct Mounts {
    pub store: Arc<Store>,
    pub proposer: Arc<Proposer>,
    pub locks: Arc<Locks>,
    pub barrier: Barrier,
    pub dirty: Dirty,
    /// True once this node has applied all that was in its log at the start
    /// and committed: before that it would show the past; and the log knows
    /// the room of its disk.
    pub recovered: watch::Receiver<bool>,
    pub quorum: watch::Receiver<bool>,
    /// Highest index applied here.
    pub applied: watch::Receiver<u64>,
    table: RwLock<BTreeMap<MountId, Arc<Fused>>>,
    attachments: AtomicU64,
    queued: Mutex<HashMap<InodeNo, Queued>>,
    orphans: Mutex<HashSet<InodeNo>>,
    orphaned: Notify,
    accesses: Accesses,
    short: Mutex<Short>,
}

/// What mounts must know that show what this node has without asking others.
pub struct Dirty {
    pub age: Arc<Age>,
    /// What may have changed, as long as this node has not recovered.
    pub unsure: HashSet<InodeNo>,
}

/// Mutations of an inode that are accepted and not yet applied.
struct Queued {
    count: u32,
    /// Ticket of the last of them, see Mounts::settled.
    last: u64,
    /// Moves as they are resolved.
    resolved: watch::Sender<u64>,
    /// The attributes as they will be.
    attr: Option<Attr>,
}

/// One fused in the life of raftd.  The successor of one that was lost has the
/// same mount and a kernel that was told nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment(u64);

/// One mount.
pub struct Fused {
    mounts: Arc<Mounts>,
    attachment: Attachment,
    /// Its number among those that may lock.
    locker: u64,
    pub conf: Mount,
    control: Arc<Lane>,
    bulk: Arc<Lane>,
    /// The directory that is the mount's root; 0 while it has not been found.
    root: AtomicU64,
    open: Mutex<HashMap<InodeNo, Open>>,
    told: Mutex<Told>,
    handles: AtomicU64,
    /// Changes that wait for room in the window, in their order.
    backlog: Mutex<VecDeque<TreeChange>>,
    backlogged: Notify,
    worked_off: Condvar,
}

#[derive(Default)]
struct Open {
    count: u32,
    /// At least one of these opens has succeeded.
    confirmed: bool,
}

/// The inodes that a kernel may have cached.
enum Told {
    Some(HashSet<InodeNo>),
    All,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Mounts {
    pub fn new(
        locks: Arc<Locks>,
        barrier: Barrier,
        dirty: Dirty,
        recovered: watch::Receiver<bool>,
        quorum: watch::Receiver<bool>,
        applied: watch::Receiver<u64>,
    ) -> Arc<Mounts> {
        Arc::new(Mounts {
            store: locks.store.clone(),
            proposer: locks.proposer.clone(),
            locks,
            barrier,
            dirty,
            recovered,
            quorum,
            applied,
            table: RwLock::new(BTreeMap::new()),
            attachments: AtomicU64::new(0),
            queued: Mutex::new(HashMap::new()),
            orphans: Mutex::new(HashSet::new()),
            orphaned: Notify::new(),
            accesses: Accesses::default(),
            short: Mutex::default(),
        })
    }

    fn all(&self) -> Vec<Arc<Fused>> {
        let table = self.table.read().unwrap_or_else(|e| e.into_inner());
        table.values().cloned().collect()
    }

    /// A fused has both its sockets: serve it.
    pub fn attach(
        self: &Arc<Self>,
        conf: Mount,
        control: OwnedFd,
        bulk: OwnedFd,
    ) -> io::Result<()> {
        let (control, control_reader) = Lane::new(control)?;
        let (bulk, bulk_reader) = Lane::new(bulk)?;
        let id = conf.id;
        let fused = Arc::new_cyclic(|fused: &Weak<Fused>| Fused {
            mounts: self.clone(),
            locker: self.locks.join(lock::lost(fused.clone())),
            attachment: Attachment(self.attachments.fetch_add(1, Ordering::Relaxed)),
            conf,
            control,
            bulk,
            root: AtomicU64::new(0),
            open: Mutex::new(HashMap::new()),
            told: Mutex::new(Told::Some(HashSet::new())),
            handles: AtomicU64::new(0),
            backlog: Mutex::default(),
            backlogged: Notify::new(),
            worked_off: Condvar::new(),
        });
        let old = {
            let mut table = self.table.write().unwrap_or_else(|e| e.into_inner());
            table.insert(id, fused.clone())
        };
        if let Some(old) = old {
            old.shutdown();
        }
        let quorum = *self.quorum.borrow();
        fused.push(&RaftdToFused::Quorum(quorum));
        self.tell_short(&fused);
        tokio::spawn(fused.clone().work_off());
        fused.clone().start(LaneKind::Control, control_reader)?;
        fused.start(LaneKind::Bulk, bulk_reader)
    }

    /// Whether the mount has been detached, or replaced by another fused.
    fn is_gone(&self, fused: &Arc<Fused>) -> bool {
        let table = self.table.read().unwrap_or_else(|e| e.into_inner());
        !table.values().any(|f| Arc::ptr_eq(f, fused))
    }

    /// A lane has ended: the mount is gone, and what it held open with it.
    fn detach(&self, fused: &Arc<Fused>) {
        fused.shutdown();
        let mut table = self.table.write().unwrap_or_else(|e| e.into_inner());
        if table
            .get(&fused.conf.id)
            .is_some_and(|f| Arc::ptr_eq(f, fused))
        {
            table.remove(&fused.conf.id);
        }
        drop(table);
        fused.backlogged.notify_one();
        let held: Vec<InodeNo> = locked(&fused.open).drain().map(|(ino, _)| ino).collect();
        held.into_iter().for_each(|ino| self.closed(ino));
    }

    /// The directory that a mount shows as its root.
    pub fn root(&self, conf: &Mount) -> Result<InodeNo, ReadError> {
        let table = self.table.read().unwrap_or_else(|e| e.into_inner());
        match table.get(&conf.id).and_then(|fused| fused.root()) {
            Some(root) => Ok(root),
            None => {
                let path = conf.subtree.as_os_str().as_bytes();
                dirent::walk(&self.store.meta().read(), InodeNo::ROOT, path)
            }
        }
    }

    pub fn show(&self, confs: &[Mount]) -> Vec<CtlMount> {
        let table = self.table.read().unwrap_or_else(|e| e.into_inner());
        confs
            .iter()
            .map(|conf| {
                let fused = table.get(&conf.id);
                CtlMount {
                    id: conf.id,
                    point: conf.point.to_string_lossy().into_owned(),
                    subtree: conf.subtree.to_string_lossy().into_owned(),
                    read_only: conf.read_only,
                    open: fused.map_or(0, |f| f.handles.load(Ordering::Relaxed)),
                    state: match fused {
                        None => MountState::Detached,
                        Some(_) if conf.dirty || *self.recovered.borrow() => MountState::Serving,
                        Some(_) => MountState::Starting,
                    },
                }
            })
            .collect()
    }

    /// Pushes what an entry changed; called in log order, before the answer
    /// to whoever asked for it.  `from` is the fused that did.
    pub fn changed(&self, applied: &Applied, from: Option<Attachment>) {
        if applied.changes.is_empty() {
            return;
        }
        let all = self.all();
        for change in &applied.changes {
            self.locks.changed(change, applied.index);
            for fused in &all {
                fused.change(change, applied.index, from == Some(fused.attachment));
            }
            if let Change::Orphan { ino } = change {
                // One that has been detached meanwhile lets nothing go.
                if !self.all().iter().any(|f| f.has_open(*ino)) {
                    self.let_go(*ino);
                }
            }
        }
    }

    /// Nobody here holds the orphan: the log must know.
    fn let_go(&self, ino: InodeNo) {
        locked(&self.orphans).insert(ino);
        self.orphaned.notify_one();
    }

    /// The other way round; false if it is too late for that.
    fn keep(&self, ino: InodeNo) -> bool {
        locked(&self.orphans).remove(&ino)
    }

    /// A mount has closed its last handle of the inode.
    fn closed(&self, ino: InodeNo) {
        if self.all().iter().any(|f| f.has_open(ino)) {
            return;
        }
        let nlink = inode::getattr(&self.store.meta().read(), ino).map(|a| a.nlink);
        if nlink.is_ok_and(|n| n == 0) {
            self.let_go(ino);
        }
    }

    /// The task that proposes the release of orphans.
    pub async fn release_orphans(self: Arc<Self>) {
        loop {
            self.orphaned.notified().await;
            tokio::time::sleep(RELEASE_DELAY).await;
            loop {
                let mut inodes: Vec<InodeNo> = {
                    let mut orphans = locked(&self.orphans);
                    let some: Vec<_> = orphans.iter().copied().take(RELEASE_MAX).collect();
                    orphans.retain(|ino| !some.contains(ino));
                    some
                };
                if inodes.is_empty() {
                    break;
                }
                // Opened meanwhile: its close lets it go.
                let all = self.all();
                inodes.retain(|ino| !all.iter().any(|f| f.has_open(*ino)));
                if inodes.is_empty() {
                    continue;
                }
                let room = self.proposer.room(0).await;
                let how = How {
                    deadline: Instant::now() + RELEASE_TIMEOUT,
                    from: None,
                    awaited: false,
                };
                let op = Op::Release { inodes };
                let done = Box::new(|_, _| {});
                self.proposer.propose(op, Bytes::new(), how, room, done);
            }
        }
    }

    /// Tells every fused when the quorum is lost or found.
    pub async fn watch_quorum(self: Arc<Self>) {
        let mut quorum = self.quorum.clone();
        while quorum.changed().await.is_ok() {
            let now = *quorum.borrow_and_update();
            match now {
                true => log_info!("quorum"),
                false => log_warnx!("no quorum"),
            }
            for fused in self.all() {
                if fused.conf.dirty && !now {
                    fused.log_age();
                }
                fused.push(&RaftdToFused::Quorum(now));
            }
        }
    }

    /// Takes from the kernels what mounts with `maxage` have shown, once it is
    /// too old.
    pub async fn watch_age(self: Arc<Self>) {
        let mut was_old: HashSet<MountId> = HashSet::new();
        loop {
            tokio::time::sleep(AGE_INTERVAL).await;
            for fused in self.all() {
                let old = !self.dirty.age.is_within(fused.conf.maxage);
                let known = match old {
                    true => !was_old.insert(fused.conf.id),
                    false => !was_old.remove(&fused.conf.id),
                };
                if old && fused.conf.dirty && !known {
                    fused.log_age();
                    // What is on its way as of now is too old as well.
                    let index = *self.applied.borrow() + 1;
                    fused.push(&RaftdToFused::InvalAll { index });
                }
            }
        }
    }

    /// Notes a mutation that is accepted, and what it makes of the
    /// attributes; returns them.
    fn queue(&self, ino: InodeNo, change: impl FnOnce(&mut Attr)) -> Option<Attr> {
        let mut queued = locked(&self.queued);
        let entry = match queued.entry(ino) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Queued {
                count: 0,
                last: 0,
                resolved: watch::Sender::new(0),
                attr: inode::getattr(&self.store.meta().read(), ino).ok(),
            }),
        };
        entry.count += 1;
        entry.last += 1;
        if let Some(attr) = &mut entry.attr {
            change(attr);
        }
        entry.attr.clone()
    }

    /// One of the inode's queued mutations is resolved; they are in order.
    fn unqueue(&self, ino: InodeNo) {
        let mut queued = locked(&self.queued);
        if let Some(entry) = queued.get_mut(&ino) {
            entry.count -= 1;
            let left = u64::from(entry.count);
            entry.resolved.send_replace(entry.last - left);
            if entry.count == 0 {
                queued.remove(&ino);
            }
        }
    }

    fn queued_inodes(&self) -> HashSet<InodeNo> {
        locked(&self.queued).keys().copied().collect()
    }

    fn has_queued(&self, ino: InodeNo) -> bool {
        locked(&self.queued).contains_key(&ino)
    }

    /// Waits until all that is queued for the inode now is resolved.
    async fn settled(&self, ino: InodeNo, deadline: Instant) -> Result<(), FsError> {
        let wait = locked(&self.queued)
            .get(&ino)
            .map(|q| (q.resolved.subscribe(), q.last));
        let Some((mut resolved, last)) = wait else {
            return Ok(());
        };
        self.proposer.hurry();
        let wait = resolved.wait_for(|&r| r >= last);
        let waited = tokio::time::timeout_at(deadline.into(), wait).await;
        // The sender is gone when the last one is resolved.
        waited.map(drop).map_err(|_| FsError::TimedOut)
    }
}

/// What a SETATTR will make of the attributes, but for times that only the
/// leader's clock can tell.
fn preview(attr: &mut Attr, set: &SetAttr) {
    let mode = set.mode.unwrap_or(attr.mode);
    attr.mode = (attr.mode & common::fs::S_IFMT) | (mode & !common::fs::S_IFMT);
    attr.uid = set.uid.unwrap_or(attr.uid);
    attr.gid = set.gid.unwrap_or(attr.gid);
    attr.size = set.size.unwrap_or(attr.size);
    let time = |set: Option<SetTime>, now: Time| match set {
        Some(SetTime::At(time)) => time,
        Some(SetTime::Now) | None => now,
    };
    attr.atime = time(set.atime, attr.atime);
    attr.mtime = time(set.mtime, attr.mtime);
}

impl Told {
    /// True if it is new.
    fn add(&mut self, ino: InodeNo) -> bool {
        let Told::Some(set) = self else {
            return false;
        };
        let new = set.insert(ino);
        if set.len() > TOLD_MAX {
            *self = Told::All;
        }
        new
    }

    fn has(&self, ino: InodeNo) -> bool {
        match self {
            Told::Some(set) => set.contains(&ino),
            Told::All => true,
        }
    }
}

impl Fused {
    /// A lane is read by a thread of its own: what is answered from memory
    /// then costs no more than two switches between the processes, a fifth of
    /// what it takes through the runtime's poller.
    fn start(self: Arc<Self>, lane: LaneKind, mut reader: lane::Reader) -> io::Result<()> {
        let runtime = Handle::current();
        let thread = std::thread::Builder::new().name(format!("{lane:?}"));
        thread.spawn(move || {
            let _inside = runtime.enter();
            if let Err(e) = self.serve(lane, &mut reader) {
                log_warnx!("mount {}: {e}", self.conf.point.display());
            }
            self.mounts.detach(&self);
        })?;
        Ok(())
    }

    /// Serves one lane until the other end is gone.
    fn serve(self: &Arc<Self>, lane: LaneKind, reader: &mut lane::Reader) -> Result<(), ImsgError> {
        while let Some(imsg) = reader.recv_blocking()? {
            self.dispatch(imsg, lane);
        }
        Ok(())
    }

    fn dispatch(self: &Arc<Self>, imsg: Imsg<FusedToRaftd>, lane: LaneKind) {
        match imsg.msg {
            FusedToRaftd::Req { id, cred, op } => {
                let (frame, at) = (imsg.frame, imsg.bulk_at);
                let bulk = Bytes::from(frame).slice(at..);
                self.request(id, cred, op, bulk, lane);
            }
            // Only a snapshot install revokes.
            FusedToRaftd::RevokeAck { ino } => {
                log_warnx!("dispatch_fused: unexpected IMSG_FS_REVOKE_ACK for {ino}");
            }
            FusedToRaftd::LockLostAck { ino, owner } => self.lock_lost_ack(ino, owner),
            FusedToRaftd::CancelLock { id, ino } => self.cancel_lock(id, ino),
        }
    }

    fn shutdown(&self) {
        self.control.shutdown();
        self.bulk.shutdown();
    }

    /// What a mount that goes on without a quorum shows.
    fn log_age(&self) {
        let point = self.conf.point.display();
        let Dirty { age, .. } = &self.mounts.dirty;
        let shows = match age.is_within(self.conf.maxage) {
            true => "shows what this node has",
            false => "shows nothing",
        };
        match age.get() {
            Some(age) => log_warnx!("mount {point}: {shows}, {} s old", age.as_secs()),
            None => log_warnx!("mount {point}: {shows}, of before its start"),
        }
    }

    fn push(&self, msg: &RaftdToFused) {
        self.control.send(msg, None, Bytes::new());
    }

    fn has_open(&self, ino: InodeNo) -> bool {
        locked(&self.open).contains_key(&ino)
    }

    fn change(&self, change: &Change, index: u64, own: bool) {
        let told = |ino: InodeNo| self.shown(ino).filter(|_| locked(&self.told).has(ino));
        match change {
            Change::Inode { ino, data } if !own => {
                if let Some(ino) = told(*ino) {
                    let data = *data;
                    self.push(&RaftdToFused::InvalInode { ino, data, index });
                }
            }
            Change::Owner { ino } if !own => {
                if let Some(ino) = told(*ino) {
                    self.push(&RaftdToFused::InvalOwner { ino });
                }
            }
            Change::Entry { parent, name, lost } if !own => {
                if let Some(parent) = told(*parent) {
                    let lost = lost.and_then(|ino| self.shown(ino));
                    let name = name.clone();
                    self.push(&RaftdToFused::InvalEntry {
                        parent,
                        name,
                        lost,
                        index,
                    });
                }
            }
            Change::Spilled { ino } => self.spilled(*ino),
            Change::Orphan { ino } if self.root() == Some(*ino) => {
                self.root.store(0, Ordering::SeqCst);
                self.push(&RaftdToFused::InvalAll { index });
            }
            Change::Orphan { ino } => {
                let attr = inode::getattr(&self.mounts.store.meta().read(), *ino);
                let is_dir = attr.is_ok_and(|attr| attr.is_dir());
                if let Some(shown) = told(*ino).filter(|_| is_dir) {
                    self.opened(*ino);
                    self.push(&RaftdToFused::Orphan { ino: shown });
                }
            }
            _ => {}
        }
    }

    /// Offers the new backing file to a mount that has the inode open.
    fn spilled(&self, ino: InodeNo) {
        let open = self.reads_itself() && self.has_open(ino);
        let Some(shown) = self.shown(ino).filter(|_| open) else {
            return;
        };
        if let Ok(fd) = self.mounts.store.data().open_read(ino) {
            let msg = RaftdToFused::Backing { ino: shown };
            self.control.send(&msg, Some(fd), Bytes::new());
        }
    }

    /// Whether fused reads backing files itself: not where raftd is to judge
    /// every read.
    fn reads_itself(&self) -> bool {
        !self.conf.strict && self.conf.maxage.is_none()
    }

    /// The number by which the mount knows the inode: its root is always 1.
    /// None for an inode that it cannot see.
    fn shown(&self, ino: InodeNo) -> Option<InodeNo> {
        match self.root() {
            Some(root) if ino == root => Some(InodeNo::ROOT),
            _ => (ino != InodeNo::ROOT).then_some(ino),
        }
    }

    fn root(&self) -> Option<InodeNo> {
        let root = self.root.load(Ordering::SeqCst);
        (root != 0).then_some(InodeNo(root))
    }

    /// The directory at the path of the subtree: as with other mounts that one
    /// stays when it is renamed, but when it is removed it is looked for again.
    fn find_root(&self) -> Result<InodeNo, FsError> {
        let meta = self.mounts.store.meta();
        let path = self.conf.subtree.as_os_str().as_bytes();
        let found = dirent::walk(&meta.read(), InodeNo::ROOT, path);
        let root = found.map_err(request::fs_error)?;
        locked(&self.told).add(root);
        let was = self.root.swap(root.0, Ordering::SeqCst);
        // It may have been removed in between, and nobody told.
        let attr = inode::getattr(&meta.read(), root);
        if attr.map_or(true, |attr| attr.nlink == 0) {
            self.root.store(0, Ordering::SeqCst);
            return Err(FsError::NotFound);
        }
        // Others may have found it at the same time.
        if was != root.0 {
            let index = *self.mounts.applied.borrow();
            self.push(&RaftdToFused::InvalAll { index });
        }
        Ok(root)
    }

    /// The other way round.
    fn real(&self, ino: InodeNo) -> Result<InodeNo, FsError> {
        if ino != InodeNo::ROOT {
            // What this kernel was never told of it cannot mean, not even to
            // reach beyond its subtree.
            return match locked(&self.told).has(ino) {
                true => Ok(ino),
                false => Err(FsError::Stale),
            };
        }
        self.root().map_or_else(|| self.find_root(), Ok)
    }

    /// The attributes of an inode as the mount may cache them.  For an inode
    /// that its kernel hears of for the first time they are read again: a
    /// change before it counted as told was not pushed.
    fn show_attr(&self, mut attr: Attr) -> Attr {
        if locked(&self.told).add(attr.ino) {
            let meta = self.mounts.store.meta();
            attr = inode::getattr(&meta.read(), attr.ino).unwrap_or(attr);
        }
        attr.ino = self.shown(attr.ino).unwrap_or(attr.ino);
        attr
    }

    fn reply(&self, id: ReqId, index: u64, result: Result<FsRep, FsError>) {
        self.reply_with(id, index, result, None, Bytes::new());
    }

    /// To a request that the kernel has been told to be done.
    fn reply_soon(&self, id: ReqId, index: u64, result: Result<FsRep, FsError>) {
        let msg = RaftdToFused::Rep { id, index, result };
        self.control.send_soon(&msg);
    }

    fn reply_with(
        &self,
        id: ReqId,
        index: u64,
        result: Result<FsRep, FsError>,
        fd: Option<OwnedFd>,
        bulk: Bytes,
    ) {
        let lane = match &result {
            Ok(FsRep::Data { .. }) => &self.bulk,
            _ => &self.control,
        };
        lane.send(&RaftdToFused::Rep { id, index, result }, fd, bulk);
    }
}

/// Which of the two sockets of a fused has come so far.
#[derive(Default)]
pub struct Pair {
    control: Option<OwnedFd>,
    bulk: Option<OwnedFd>,
}

impl Pair {
    /// Both, control first, once they are there.
    pub fn add(&mut self, lane: LaneKind, fd: OwnedFd) -> Option<(OwnedFd, OwnedFd)> {
        match lane {
            LaneKind::Control => self.control = Some(fd),
            LaneKind::Bulk => self.bulk = Some(fd),
        }
        match (self.control.take(), self.bulk.take()) {
            (Some(control), Some(bulk)) => Some((control, bulk)),
            (control, bulk) => {
                *self = Pair { control, bulk };
                None
            }
        }
    }
}
