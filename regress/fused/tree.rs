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

//! What stands at raftd's end of a fused in these tests: a small tree in
//! memory that speaks raftd's half of the protocol, with handles to delay,
//! refuse or lose answers and to change the tree as another node would.  It
//! is there to drive fused against the real kernel; what raftd itself does is
//! tested with raftd.

#![forbid(unsafe_code)]

use common::fs::{
    Attr, Cookie, Cred, Dirent, Fallocate, FallocateHow, FsError, InodeNo, ReqId, SetAttr, SetTime,
    Statfs, Time, INLINE_MAX, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, S_ISGID, S_ISUID,
};
use common::imsg::{ImsgReader, ImsgWriter, Imsgbuf};
use common::msg::{FsOp, FsRep, FusedToRaftd, RaftdToFused, FUSED_FRAME_MAX};
use common::xattr::XattrHow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

type Writer = Arc<Mutex<ImsgWriter<RaftdToFused>>>;

struct Inode {
    attr: Attr,
    opens: u32,
    what: What,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

enum What {
    Inline(Vec<u8>),
    /// A plain file, like raftd's backing files.
    Backing(File),
    Dir {
        parent: InodeNo,
        names: BTreeMap<Vec<u8>, (InodeNo, Cookie)>,
    },
    Link(Vec<u8>),
    Node,
}

/// What happens to the changes that fused asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Apply,
    /// Accepted, and applied when the test says so.
    Hold,
    /// Accepted, then refused.
    Refuse(FsError),
    /// Taken and not answered, whatever is asked.
    Silent,
    /// The same, but lookups and attributes are told.
    Mute,
}

struct Change {
    id: ReqId,
    op: FsOp,
    data: Vec<u8>,
}

struct State {
    inodes: HashMap<InodeNo, Inode>,
    last: u64,
    cookie: u64,
    index: u64,
    mode: Mode,
    /// SETATTR is accepted before it is applied, as of a new file.
    held: Vec<Change>,
    /// Reads of an inode with held changes.
    deferred: Vec<(ReqId, FsOp)>,
    /// Taken in Mode::Silent and Mode::Mute.
    lost: Vec<Change>,
    asked: HashMap<&'static str, u64>,
    releases: u64,
    revoke_acks: u64,
    lock_acks: u64,
    /// Who has all bytes locked.
    locks: HashMap<InodeNo, u64>,
    dir: PathBuf,
}

pub struct Tree {
    state: Mutex<State>,
    changed: Condvar,
    control: Writer,
    bulk: Writer,
    /// Held while nothing from the bulk lane is taken.
    gate: Mutex<()>,
}

fn name_of(op: &FsOp) -> &'static str {
    match op {
        FsOp::Lookup { .. } => "lookup",
        FsOp::LookupHold { .. } => "lookup hold",
        FsOp::Getattr { .. } => "getattr",
        FsOp::Setattr { .. } => "setattr",
        FsOp::Readlink { .. } => "readlink",
        FsOp::Create { .. } => "create",
        FsOp::Mknod { .. } => "mknod",
        FsOp::Mkdir { .. } => "mkdir",
        FsOp::Symlink { .. } => "symlink",
        FsOp::Link { .. } => "link",
        FsOp::Unlink { .. } => "unlink",
        FsOp::Rmdir { .. } => "rmdir",
        FsOp::Rename { .. } => "rename",
        FsOp::Open { .. } => "open",
        FsOp::Release { .. } => "release",
        FsOp::Read { .. } => "read",
        FsOp::Write { .. } => "write",
        FsOp::Fsync { .. } => "fsync",
        FsOp::Readdir { .. } => "readdir",
        FsOp::Statfs => "statfs",
        FsOp::Getxattr { .. } => "getxattr",
        FsOp::Listxattr { .. } => "listxattr",
        FsOp::Setxattr { .. } => "setxattr",
        FsOp::Removexattr { .. } => "removexattr",
        FsOp::Fallocate { .. } => "fallocate",
        FsOp::Seek { .. } => "seek",
        FsOp::Accessed { .. } => "accessed",
        FsOp::Lock { .. } => "lock",
        FsOp::Unlock { .. } => "unlock",
        FsOp::TestLock { .. } => "test lock",
    }
}

fn now() -> Time {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    Time {
        sec: since.as_secs() as i64,
        nsec: since.subsec_nanos(),
    }
}

fn lane(socket: OwnedFd) -> (Writer, ImsgReader<FusedToRaftd>) {
    let mut imsgbuf = Imsgbuf::new(socket, FUSED_FRAME_MAX);
    imsgbuf.allow_fdpass();
    imsgbuf.flush_blocking().unwrap();
    let (reader, writer) = imsgbuf.into_split();
    (Arc::new(Mutex::new(writer)), reader)
}

impl Tree {
    pub fn new(control: OwnedFd, bulk: OwnedFd, dir: PathBuf) -> Arc<Tree> {
        let (control, control_reader) = lane(control);
        let (bulk, bulk_reader) = lane(bulk);
        let mut state = State {
            inodes: HashMap::new(),
            last: 1,
            cookie: 2,
            index: 1,
            mode: Mode::Apply,
            held: Vec::new(),
            deferred: Vec::new(),
            lost: Vec::new(),
            asked: HashMap::new(),
            releases: 0,
            revoke_acks: 0,
            lock_acks: 0,
            locks: HashMap::new(),
            dir,
        };
        let root = state.inode(InodeNo::ROOT, S_IFDIR | 0o777, Cred::default());
        state.inodes.insert(InodeNo::ROOT, root);
        let tree = Arc::new(Tree {
            state: Mutex::new(state),
            changed: Condvar::new(),
            control,
            bulk,
            gate: Mutex::new(()),
        });
        for (reader, gated) in [(control_reader, false), (bulk_reader, true)] {
            let tree = tree.clone();
            thread::spawn(move || tree.serve(reader, gated));
        }
        tree
    }

    /// Ends both lanes, as a raftd that has died.
    pub fn hang_up(&self) {
        for writer in [&self.control, &self.bulk] {
            let _ = writer.lock().unwrap().shutdown();
        }
    }

    fn serve(&self, mut reader: ImsgReader<FusedToRaftd>, gated: bool) {
        while let Ok(Some(mut imsg)) = reader.recv_blocking() {
            let _open = gated.then(|| self.gate.lock().unwrap());
            let data = imsg.frame.split_off(imsg.bulk_at);
            match imsg.msg {
                FusedToRaftd::Req { id, cred, op } => self.request(id, cred, op, data),
                FusedToRaftd::RevokeAck { .. } => self.state().revoke_acks += 1,
                FusedToRaftd::LockLostAck { .. } => self.state().lock_acks += 1,
                // Here nobody waits for long.
                FusedToRaftd::CancelLock { .. } => {}
            }
            self.changed.notify_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn send(&self, msg: &RaftdToFused, fd: Option<OwnedFd>, data: &[u8]) {
        let on_bulk = matches!(
            msg,
            RaftdToFused::Rep {
                result: Ok(FsRep::Data { .. }),
                ..
            }
        );
        let lane = if on_bulk { &self.bulk } else { &self.control };
        let mut writer = lane.lock().unwrap();
        writer.compose(msg, 0, fd, data).unwrap();
        // It fails when the test has killed the other end.
        let _ = writer.flush_blocking();
    }

    fn request(&self, id: ReqId, cred: Cred, op: FsOp, data: Vec<u8>) {
        let mut state = self.state();
        *state.asked.entry(name_of(&op)).or_default() += 1;
        let asks = matches!(op, FsOp::Lookup { .. } | FsOp::Getattr { .. });
        if state.mode == Mode::Silent || (state.mode == Mode::Mute && !asks) {
            return state.lost.push(Change { id, op, data });
        }
        self.perform(&mut state, id, cred, op, data);
    }

    fn perform(&self, state: &mut State, id: ReqId, cred: Cred, op: FsOp, data: Vec<u8>) {
        match &op {
            FsOp::Release { ino } => return state.release(*ino),
            FsOp::Accessed { .. } => return,
            FsOp::Fallocate { .. } => return self.change(state, Change { id, op, data }),
            FsOp::Write { append, .. } => {
                if !append {
                    self.send(&RaftdToFused::Accepted { id, attr: None }, None, &[]);
                }
                return self.change(state, Change { id, op, data });
            }
            FsOp::Setattr {
                ino,
                set,
                early: true,
                ..
            } => {
                let attr = state.preview(*ino, set);
                self.send(&RaftdToFused::Accepted { id, attr }, None, &[]);
                return self.change(state, Change { id, op, data });
            }
            _ => (),
        }
        if state.settled(&op) {
            self.answer(state, id, cred, op, &data);
        } else {
            state.deferred.push((id, op));
        }
    }

    fn change(&self, state: &mut State, change: Change) {
        match state.mode {
            Mode::Hold => state.held.push(change),
            Mode::Refuse(e) => self.reply(state, change.id, Err(e), None, &[]),
            _ => self.answer(state, change.id, Cred::default(), change.op, &change.data),
        }
    }

    fn answer(&self, state: &mut State, id: ReqId, cred: Cred, op: FsOp, data: &[u8]) {
        let mut bytes = Vec::new();
        let (spills, opens) = (
            matches!(op, FsOp::Write { .. }),
            matches!(op, FsOp::Open { .. }),
        );
        let result = state.apply(cred, &op, data, &mut bytes);
        let mut fd = None;
        if let Ok(FsRep::Opened { attr }) = &result {
            fd = state.descriptor(attr.ino).filter(|_| opens);
        }
        self.reply(state, id, result, fd, &bytes);
        if let FsOp::Write { ino, .. } = op {
            if spills && state.spilled(ino) {
                let fd = state.descriptor(ino);
                self.send(&RaftdToFused::Backing { ino }, fd, &[]);
            }
        }
    }

    fn reply(
        &self,
        state: &State,
        id: ReqId,
        result: Result<FsRep, FsError>,
        fd: Option<OwnedFd>,
        data: &[u8],
    ) {
        let index = state.index;
        self.send(&RaftdToFused::Rep { id, index, result }, fd, data);
    }
}

/// What a test does.
impl Tree {
    pub fn set_mode(&self, mode: Mode) {
        self.state().mode = mode;
    }

    /// Takes no more writes, until dropped.
    pub fn block(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap()
    }

    /// Applies what is held, and goes on applying.
    pub fn apply_held(&self) {
        let mut state = self.state();
        state.mode = Mode::Apply;
        for change in std::mem::take(&mut state.held) {
            self.answer(
                &mut state,
                change.id,
                Cred::default(),
                change.op,
                &change.data,
            );
        }
        self.retry_deferred(&mut state);
    }

    pub fn refuse_held(&self, e: FsError) {
        let mut state = self.state();
        state.mode = Mode::Apply;
        for change in std::mem::take(&mut state.held) {
            self.reply(&state, change.id, Err(e), None, &[]);
        }
        self.retry_deferred(&mut state);
    }

    fn retry_deferred(&self, state: &mut State) {
        for (id, op) in std::mem::take(&mut state.deferred) {
            self.perform(state, id, Cred::default(), op, Vec::new());
        }
    }

    /// Answers, too late, all that was asked while silent.
    pub fn speak(&self) {
        let mut state = self.state();
        state.mode = Mode::Apply;
        for change in std::mem::take(&mut state.lost) {
            self.perform(
                &mut state,
                change.id,
                Cred::default(),
                change.op,
                change.data,
            );
        }
    }

    /// Waits for something to be true of the tree; a failure after a while.
    fn wait_state(&self, what: &str, mut is: impl FnMut(&State) -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        let mut state = self.state();
        while !is(&state) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what}: not within 20 s");
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    pub fn wait_held(&self, n: usize) {
        self.wait_state("held", |s| s.held.len() >= n);
    }

    pub fn wait_asked(&self, op: &'static str, n: u64) {
        self.wait_state(op, |s| s.asked.get(op).copied().unwrap_or(0) >= n);
    }

    pub fn wait_releases(&self, n: u64) {
        self.wait_state("releases", |s| s.releases >= n);
    }

    pub fn wait_revoke_acks(&self, n: u64) {
        self.wait_state("revoke acks", |s| s.revoke_acks >= n);
    }

    pub fn asked(&self, op: &'static str) -> u64 {
        self.state().asked.get(op).copied().unwrap_or(0)
    }

    /// The lease of all locks has run out.
    pub fn lose_locks(&self) {
        let lost: Vec<_> = self.state().locks.drain().collect();
        for (ino, owner) in lost {
            self.send(&RaftdToFused::LockLost { ino, owner }, None, &[]);
        }
    }

    pub fn wait_lock_acks(&self, count: u64) {
        let mut state = self.state();
        while state.lock_acks < count {
            state = self.changed.wait(state).unwrap();
        }
    }

    pub fn quorum(&self, quorum: bool) {
        self.send(&RaftdToFused::Quorum(quorum), None, &[]);
    }

    pub fn revoke(&self, path: &str) {
        let ino = self.state().walk(path);
        self.send(&RaftdToFused::Revoke { ino }, None, &[]);
    }

    /// fused has then read all that it was told before.
    pub fn revoke_and_wait(&self, path: &str) {
        let acks = self.state().revoke_acks;
        self.revoke(path);
        self.wait_revoke_acks(acks + 1);
    }

    /// Another node changes the tree; this one's kernel is told, unless
    /// `quietly`.
    fn elsewhere(&self, op: FsOp, data: &[u8], quietly: bool) -> Attr {
        let mut state = self.state();
        let lost = state.named(&op);
        let rep = state.apply(Cred::default(), &op, data, &mut Vec::new());
        let index = state.index;
        let entry = |parent: InodeNo, name: &[u8], lost: Option<InodeNo>| {
            let name = name.to_vec();
            let entry = RaftdToFused::InvalEntry {
                parent,
                name,
                lost,
                index,
            };
            self.send(&entry, None, &[]);
            let ino = parent;
            let data = Some(0);
            self.send(&RaftdToFused::InvalInode { ino, data, index }, None, &[]);
        };
        let inode = |ino: InodeNo, data: Option<u64>| {
            self.send(&RaftdToFused::InvalInode { ino, data, index }, None, &[]);
        };
        match &op {
            _ if quietly => (),
            FsOp::Write { ino, offset, .. } => inode(*ino, Some(*offset)),
            FsOp::Setattr { ino, set, .. } => inode(*ino, set.size),
            FsOp::Setxattr { ino, .. } | FsOp::Removexattr { ino, .. } => inode(*ino, None),
            FsOp::Rename {
                parent,
                name,
                new_parent,
                new_name,
                ..
            } => {
                let [from, to] = lost;
                entry(*parent, name, from);
                entry(*new_parent, new_name, to);
                lost.into_iter().flatten().for_each(|ino| inode(ino, None));
            }
            FsOp::Create { parent, name, .. } | FsOp::Mkdir { parent, name, .. } => {
                entry(*parent, name, None);
            }
            FsOp::Unlink { parent, name } => {
                entry(*parent, name, lost[0]);
                lost.into_iter().flatten().for_each(|ino| inode(ino, None));
            }
            other => panic!("{other:?}"),
        }
        if let Ok(FsRep::Written { .. }) = &rep {
            // The end of another node's write may make a backing file here.
            if let FsOp::Write { ino, .. } = op {
                if state.spilled(ino) {
                    let fd = state.descriptor(ino);
                    self.send(&RaftdToFused::Backing { ino }, fd, &[]);
                }
            }
        }
        match rep.unwrap() {
            FsRep::Attr(attr) | FsRep::Entry { attr, .. } | FsRep::Written { attr, .. } => attr,
            _ => Attr::default(),
        }
    }

    fn split(&self, path: &str) -> (InodeNo, Vec<u8>) {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        (self.state().walk(dir), name.as_bytes().to_vec())
    }

    pub fn write(&self, path: &str, offset: u64, data: &[u8]) {
        self.write_with(path, offset, data, false);
    }

    pub fn write_quietly(&self, path: &str, offset: u64, data: &[u8]) {
        self.write_with(path, offset, data, true);
    }

    fn write_with(&self, path: &str, offset: u64, data: &[u8], quietly: bool) {
        let ino = self.state().walk(path);
        let op = FsOp::Write {
            ino,
            offset,
            len: data.len() as u32,
            append: false,
            kill_priv: false,
            sync: false,
        };
        self.elsewhere(op, data, quietly);
    }

    pub fn truncate(&self, path: &str, size: u64) {
        let ino = self.state().walk(path);
        let set = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        self.set_attr(ino, set);
    }

    fn set_attr(&self, ino: InodeNo, set: SetAttr) {
        let op = FsOp::Setattr {
            ino,
            set,
            early: false,
            owner: None,
        };
        self.elsewhere(op, &[], false);
    }

    pub fn chmod(&self, path: &str, mode: u32) {
        let ino = self.state().walk(path);
        let set = SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        };
        self.set_attr(ino, set);
    }

    pub fn set_xattr(&self, path: &str, name: &str, value: &[u8]) {
        let ino = self.state().walk(path);
        let op = FsOp::Setxattr {
            ino,
            name: name.into(),
            len: value.len() as u32,
            how: XattrHow::Any,
            owner: None,
        };
        self.elsewhere(op, value, false);
    }

    pub fn remove_xattr(&self, path: &str, name: &str) {
        let ino = self.state().walk(path);
        let name = name.into();
        let owner = None;
        self.elsewhere(FsOp::Removexattr { ino, name, owner }, &[], false);
    }

    pub fn create(&self, path: &str, data: &[u8]) {
        self.create_with(path, data, false);
    }

    pub fn create_quietly(&self, path: &str, data: &[u8]) {
        self.create_with(path, data, true);
    }

    fn create_with(&self, path: &str, data: &[u8], quietly: bool) {
        let (parent, name) = self.split(path);
        let op = FsOp::Create {
            parent,
            name,
            mode: 0o644,
            umask: 0,
            excl: true,
        };
        let attr = self.elsewhere(op, &[], quietly);
        self.state().release(attr.ino);
        self.write_quietly(path, 0, data);
    }

    pub fn rename(&self, from: &str, to: &str) {
        self.rename_with(from, to, false);
    }

    pub fn rename_quietly(&self, from: &str, to: &str) {
        self.rename_with(from, to, true);
    }

    fn rename_with(&self, from: &str, to: &str, quietly: bool) {
        let (parent, name) = self.split(from);
        let (new_parent, new_name) = self.split(to);
        let op = FsOp::Rename {
            parent,
            name,
            new_parent,
            new_name,
            no_replace: false,
            exchange: false,
        };
        self.elsewhere(op, &[], quietly);
    }

    pub fn unlink(&self, path: &str) {
        let (parent, name) = self.split(path);
        self.elsewhere(FsOp::Unlink { parent, name }, &[], false);
    }

    pub fn inval_all(&self) {
        let index = self.state().index;
        self.send(&RaftdToFused::InvalAll { index }, None, &[]);
    }

    pub fn attr(&self, path: &str) -> Attr {
        let state = self.state();
        let ino = state.walk(path);
        state.inodes[&ino].attr.clone()
    }

    /// Nothing if it is not there.
    pub fn attr_or(&self, path: &str) -> Attr {
        match self.is_there(path) {
            true => self.attr(path),
            false => Attr::default(),
        }
    }

    pub fn contents(&self, path: &str) -> Vec<u8> {
        let state = self.state();
        let inode = &state.inodes[&state.walk(path)];
        inode.read(0, inode.attr.size as usize)
    }

    pub fn is_there(&self, path: &str) -> bool {
        let (parent, name) = self.split(path);
        self.state().find(parent, &name).is_ok()
    }
}

impl Inode {
    /// The attributes, after a change of the extended ones.
    fn noted(&mut self) -> &Attr {
        self.attr.ctime = now();
        self.attr.xattrs = !self.xattrs.is_empty();
        &self.attr
    }

    fn read(&self, offset: u64, size: usize) -> Vec<u8> {
        let left = self.attr.size.saturating_sub(offset);
        let mut bytes = vec![0; size.min(left as usize)];
        match &self.what {
            What::Inline(own) => {
                let own = own.get(offset as usize..).unwrap_or(&[]);
                let n = own.len().min(bytes.len());
                bytes[..n].copy_from_slice(&own[..n]);
            }
            What::Backing(file) => file.read_exact_at(&mut bytes, offset).unwrap(),
            _ => panic!("not a file"),
        }
        bytes
    }
}

impl State {
    fn inode(&mut self, ino: InodeNo, mode: u32, cred: Cred) -> Inode {
        let time = now();
        let is_dir = mode & S_IFMT == S_IFDIR;
        let what = match mode & S_IFMT {
            S_IFDIR => What::Dir {
                parent: InodeNo::ROOT,
                names: BTreeMap::new(),
            },
            S_IFREG => What::Inline(Vec::new()),
            _ => What::Node,
        };
        Inode {
            attr: Attr {
                ino,
                mode,
                nlink: if is_dir { 2 } else { 1 },
                uid: cred.uid,
                gid: cred.gid,
                atime: time,
                mtime: time,
                ctime: time,
                data_version: 1,
                ..Attr::default()
            },
            opens: 0,
            what,
            xattrs: BTreeMap::new(),
        }
    }

    fn get(&self, ino: InodeNo) -> Result<&Inode, FsError> {
        self.inodes.get(&ino).ok_or(FsError::Stale)
    }

    fn get_mut(&mut self, ino: InodeNo) -> Result<&mut Inode, FsError> {
        self.inodes.get_mut(&ino).ok_or(FsError::Stale)
    }

    fn walk(&self, path: &str) -> InodeNo {
        let names = path.split('/').filter(|name| !name.is_empty());
        names.fold(InodeNo::ROOT, |at, name| {
            self.find(at, name.as_bytes()).unwrap()
        })
    }

    fn names(
        &mut self,
        dir: InodeNo,
    ) -> Result<&mut BTreeMap<Vec<u8>, (InodeNo, Cookie)>, FsError> {
        match &mut self.get_mut(dir)?.what {
            What::Dir { names, .. } => Ok(names),
            _ => Err(FsError::NotDir),
        }
    }

    fn find(&self, dir: InodeNo, name: &[u8]) -> Result<InodeNo, FsError> {
        match &self.get(dir)?.what {
            What::Dir { names, .. } => match names.get(name) {
                Some((ino, _)) => Ok(*ino),
                None => Err(FsError::NotFound),
            },
            _ => Err(FsError::NotDir),
        }
    }

    /// Both inodes that the operation takes a name from, as far as it does.
    fn named(&self, op: &FsOp) -> [Option<InodeNo>; 2] {
        match op {
            FsOp::Unlink { parent, name } => [self.find(*parent, name).ok(), None],
            FsOp::Rename {
                parent,
                name,
                new_parent,
                new_name,
                ..
            } => [
                self.find(*parent, name).ok(),
                self.find(*new_parent, new_name).ok(),
            ],
            _ => [None, None],
        }
    }

    fn settled(&self, op: &FsOp) -> bool {
        let ino = match op {
            FsOp::Getattr { ino } | FsOp::Read { ino, .. } | FsOp::Fsync { ino } => *ino,
            FsOp::Getxattr { ino, .. } | FsOp::Listxattr { ino } => *ino,
            FsOp::Seek { ino, .. } => *ino,
            FsOp::Open { ino, .. } => *ino,
            FsOp::Lookup { parent, name } => match self.find(*parent, name) {
                Ok(ino) => ino,
                Err(_) => return true,
            },
            _ => return true,
        };
        !self.has_held(ino)
    }

    fn has_held(&self, ino: InodeNo) -> bool {
        self.held.iter().any(|change| match &change.op {
            FsOp::Write { ino: own, .. }
            | FsOp::Setattr { ino: own, .. }
            | FsOp::Fallocate { ino: own, .. } => *own == ino,
            _ => false,
        })
    }

    fn touch(&mut self, ino: InodeNo) {
        let time = now();
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.attr.mtime = time;
            inode.attr.ctime = time;
        }
    }

    fn preview(&self, ino: InodeNo, set: &SetAttr) -> Option<Attr> {
        let mut attr = self.inodes.get(&ino)?.attr.clone();
        set_attr(&mut attr, set);
        Some(attr)
    }

    fn release(&mut self, ino: InodeNo) {
        self.releases += 1;
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.opens -= 1;
            if inode.opens == 0 && inode.attr.nlink == 0 {
                self.inodes.remove(&ino);
            }
        }
    }

    fn descriptor(&self, ino: InodeNo) -> Option<OwnedFd> {
        match &self.inodes.get(&ino)?.what {
            // A description of its own, and one that cannot write.
            What::Backing(_) => Some(File::open(self.dir.join(ino.to_string())).unwrap().into()),
            _ => None,
        }
    }

    /// Whether an open inline file has just become one with a backing file.
    fn spilled(&mut self, ino: InodeNo) -> bool {
        let path = self.dir.join(ino.to_string());
        let Some(inode) = self.inodes.get_mut(&ino) else {
            return false;
        };
        let What::Inline(bytes) = &inode.what else {
            return false;
        };
        if inode.attr.size <= INLINE_MAX as u64 {
            return false;
        }
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file.set_len(inode.attr.size).unwrap();
        inode.what = What::Backing(file);
        inode.opens > 0
    }

    fn make(
        &mut self,
        parent: InodeNo,
        name: &[u8],
        mode: u32,
        cred: Cred,
    ) -> Result<Attr, FsError> {
        if self.find(parent, name).is_ok() {
            return Err(FsError::Exists);
        }
        self.last += 1;
        let ino = InodeNo(self.last);
        let mut inode = self.inode(ino, mode, cred);
        if let What::Dir { parent: up, .. } = &mut inode.what {
            *up = parent;
            self.get_mut(parent)?.attr.nlink += 1;
        }
        let attr = inode.attr.clone();
        self.put(parent, name, ino)?;
        self.inodes.insert(ino, inode);
        Ok(attr)
    }

    fn put(&mut self, parent: InodeNo, name: &[u8], ino: InodeNo) -> Result<(), FsError> {
        self.cookie += 1;
        let cookie = Cookie(self.cookie);
        self.names(parent)?.insert(name.to_vec(), (ino, cookie));
        self.touch(parent);
        Ok(())
    }

    /// Takes a name away, and with the last one the inode.
    fn drop_name(&mut self, parent: InodeNo, name: &[u8], dir: bool) -> Result<(), FsError> {
        let ino = self.find(parent, name)?;
        let inode = self.get_mut(ino)?;
        match (&inode.what, dir) {
            (What::Dir { names, .. }, true) if !names.is_empty() => return Err(FsError::NotEmpty),
            (What::Dir { .. }, true) => inode.attr.nlink = 0,
            (What::Dir { .. }, false) => return Err(FsError::IsDir),
            (_, true) => return Err(FsError::NotDir),
            (_, false) => inode.attr.nlink -= 1,
        }
        inode.attr.ctime = now();
        if inode.attr.nlink == 0 && inode.opens == 0 {
            self.inodes.remove(&ino);
        }
        if dir {
            self.get_mut(parent)?.attr.nlink -= 1;
        }
        self.names(parent)?.remove(name);
        self.touch(parent);
        Ok(())
    }

    fn resize(&mut self, ino: InodeNo, size: u64) -> Result<(), FsError> {
        let inode = self.get_mut(ino)?;
        match &mut inode.what {
            What::Inline(bytes) if size <= 1 << 20 => bytes.resize(size as usize, 0),
            What::Inline(_) => (),
            What::Backing(file) => file.set_len(size).unwrap(),
            _ => return Err(FsError::Invalid),
        }
        inode.attr.size = size;
        inode.attr.data_version += 1;
        self.spilled(ino);
        self.touch(ino);
        Ok(())
    }

    fn fallocate(&mut self, ino: InodeNo, what: &Fallocate) -> Result<Attr, FsError> {
        let size = self.get(ino)?.attr.size;
        let end = what.offset + what.len;
        if end > size && !what.keep_size {
            self.resize(ino, end)?;
        }
        if what.kill_priv {
            self.get_mut(ino)?.attr.mode &= !(S_ISUID | S_ISGID);
        }
        let end = end.min(self.get(ino)?.attr.size);
        match what.how {
            FallocateHow::Reserve => Ok(self.get(ino)?.attr.clone()),
            _ if end <= what.offset => Ok(self.get(ino)?.attr.clone()),
            _ => self.put_bytes(ino, what.offset, &vec![0; (end - what.offset) as usize]),
        }
    }

    fn put_bytes(&mut self, ino: InodeNo, offset: u64, data: &[u8]) -> Result<Attr, FsError> {
        let end = offset + data.len() as u64;
        if self.get(ino)?.attr.size < end && end > 1 << 20 {
            self.resize(ino, end)?;
        }
        let inode = self.get_mut(ino)?;
        match &mut inode.what {
            What::Inline(bytes) => {
                if bytes.len() < end as usize {
                    bytes.resize(end as usize, 0);
                }
                bytes[offset as usize..end as usize].copy_from_slice(data);
            }
            What::Backing(file) => file.write_all_at(data, offset).unwrap(),
            _ => return Err(FsError::Invalid),
        }
        inode.attr.size = inode.attr.size.max(end);
        inode.attr.blocks = inode.attr.size.div_ceil(512);
        inode.attr.data_version += 1;
        inode.attr.mtime = now();
        Ok(inode.attr.clone())
    }

    fn rename(&mut self, op: &FsOp) -> Result<(), FsError> {
        let FsOp::Rename {
            parent,
            name,
            new_parent,
            new_name,
            no_replace,
            exchange,
        } = op
        else {
            return Err(FsError::Invalid);
        };
        let ino = self.find(*parent, name)?;
        let old = self.find(*new_parent, new_name).ok();
        if *exchange {
            let other = old.ok_or(FsError::NotFound)?;
            self.put(*parent, name, other)?;
            return self.put(*new_parent, new_name, ino);
        }
        if *no_replace && old.is_some() {
            return Err(FsError::Exists);
        }
        let is_dir = self.get(ino)?.attr.is_dir();
        if old.is_some_and(|old| old != ino) {
            self.drop_name(*new_parent, new_name, is_dir)?;
        }
        self.names(*parent)?.remove(name);
        self.put(*new_parent, new_name, ino)?;
        if is_dir {
            self.get_mut(*parent)?.attr.nlink -= 1;
            self.get_mut(*new_parent)?.attr.nlink += 1;
            if let What::Dir { parent: up, .. } = &mut self.get_mut(ino)?.what {
                *up = *new_parent;
            }
        }
        self.touch(*parent);
        Ok(())
    }

    fn readdir(
        &self,
        ino: InodeNo,
        after: Cookie,
        size: u32,
        plus: bool,
    ) -> Result<FsRep, FsError> {
        let What::Dir { parent, names } = &self.get(ino)?.what else {
            return Err(FsError::NotDir);
        };
        let dots = [
            (&b"."[..], (ino, Cookie(1))),
            (&b".."[..], (*parent, Cookie(2))),
        ];
        let mut all: Vec<_> = dots
            .into_iter()
            .chain(names.iter().map(|(name, at)| (name.as_slice(), *at)))
            .filter(|(_, (_, cookie))| *cookie > after)
            .collect();
        all.sort_by_key(|(_, (_, cookie))| *cookie);
        let mut left = size as usize;
        let mut entries = Vec::new();
        for (name, (ino, next)) in all {
            let Some(rest) = left.checked_sub(40 + name.len() + if plus { 128 } else { 0 }) else {
                return Ok(FsRep::Dirents {
                    entries,
                    eof: false,
                });
            };
            left = rest;
            let attr = &self.get(ino)?.attr;
            entries.push(Dirent {
                ino,
                next,
                kind: attr.mode & S_IFMT,
                name: name.to_vec(),
                attr: (plus && !self.has_held(ino)).then(|| attr.clone()),
            });
        }
        Ok(FsRep::Dirents { entries, eof: true })
    }

    fn apply(
        &mut self,
        cred: Cred,
        op: &FsOp,
        data: &[u8],
        bytes: &mut Vec<u8>,
    ) -> Result<FsRep, FsError> {
        self.index += 1;
        let entry = |attr| FsRep::Entry {
            attr,
            created: true,
        };
        Ok(match op {
            FsOp::Lookup { parent, name } => {
                let ino = self.find(*parent, name)?;
                FsRep::Attr(self.get(ino)?.attr.clone())
            }
            FsOp::LookupHold { parent, name } => {
                let ino = self.find(*parent, name)?;
                let inode = self.get_mut(ino)?;
                inode.opens += 1;
                let attr = inode.attr.clone();
                FsRep::Entry {
                    attr,
                    created: false,
                }
            }
            FsOp::Lock { ino, owner, .. } => {
                if self.locks.get(ino).is_some_and(|held| held != owner) {
                    return Err(FsError::WouldBlock);
                }
                self.locks.insert(*ino, *owner);
                FsRep::Done
            }
            FsOp::Unlock { ino, owner, .. } => {
                if self.locks.get(ino) == Some(owner) {
                    self.locks.remove(ino);
                }
                FsRep::Done
            }
            FsOp::TestLock { .. } => FsRep::Lock(None),
            FsOp::Getattr { ino } => FsRep::Attr(self.get(*ino)?.attr.clone()),
            FsOp::Setattr { ino, set, .. } => {
                if let Some(size) = set.size {
                    self.resize(*ino, size)?;
                }
                let attr = &mut self.get_mut(*ino)?.attr;
                set_attr(attr, set);
                attr.ctime = now();
                FsRep::Attr(attr.clone())
            }
            FsOp::Readlink { ino } => match &self.get(*ino)?.what {
                What::Link(target) => FsRep::Target(target.clone()),
                _ => return Err(FsError::Invalid),
            },
            FsOp::Create {
                parent,
                name,
                mode,
                umask,
                excl,
            } => {
                let (attr, created) = match self.find(*parent, name) {
                    Ok(_) if *excl => return Err(FsError::Exists),
                    Ok(ino) => (self.get(ino)?.attr.clone(), false),
                    Err(_) => {
                        let mode = S_IFREG | mode & 0o7777 & !umask;
                        (self.make(*parent, name, mode, cred)?, true)
                    }
                };
                let inode = self.get_mut(attr.ino)?;
                inode.opens += 1;
                let attr = inode.attr.clone();
                FsRep::Entry { attr, created }
            }
            FsOp::Mknod {
                parent,
                name,
                mode,
                umask,
                rdev,
            } => {
                let attr = self.make(*parent, name, mode & !umask, cred)?;
                self.get_mut(attr.ino)?.attr.rdev = *rdev;
                entry(self.get(attr.ino)?.attr.clone())
            }
            FsOp::Mkdir {
                parent,
                name,
                mode,
                umask,
            } => {
                let mode = S_IFDIR | mode & 0o7777 & !umask;
                entry(self.make(*parent, name, mode, cred)?)
            }
            FsOp::Symlink {
                parent,
                name,
                target,
            } => {
                let mut attr = self.make(*parent, name, S_IFLNK | 0o777, cred)?;
                attr.size = target.len() as u64;
                let inode = self.get_mut(attr.ino)?;
                inode.what = What::Link(target.clone());
                inode.attr = attr.clone();
                entry(attr)
            }
            FsOp::Link { ino, parent, name } => {
                if self.find(*parent, name).is_ok() {
                    return Err(FsError::Exists);
                }
                self.put(*parent, name, *ino)?;
                let attr = &mut self.get_mut(*ino)?.attr;
                attr.nlink += 1;
                attr.ctime = now();
                entry(attr.clone())
            }
            FsOp::Unlink { parent, name } => {
                self.drop_name(*parent, name, false)?;
                FsRep::Done
            }
            FsOp::Rmdir { parent, name } => {
                self.drop_name(*parent, name, true)?;
                FsRep::Done
            }
            FsOp::Rename { .. } => {
                self.rename(op)?;
                FsRep::Done
            }
            FsOp::Open { ino, .. } => {
                if self.get(*ino)?.attr.nlink == 0 {
                    return Err(FsError::Stale);
                }
                let inode = self.get_mut(*ino)?;
                inode.opens += 1;
                let attr = inode.attr.clone();
                FsRep::Opened { attr }
            }
            FsOp::Read { ino, offset, size } => {
                let inode = self.get(*ino)?;
                if !inode.attr.is_file() {
                    return Err(FsError::IsDir);
                }
                *bytes = inode.read(*offset, *size as usize);
                FsRep::Data {
                    len: bytes.len() as u32,
                }
            }
            FsOp::Write {
                ino,
                offset,
                append,
                kill_priv,
                ..
            } => {
                let offset = match append {
                    true => self.get(*ino)?.attr.size,
                    false => *offset,
                };
                if *kill_priv {
                    self.get_mut(*ino)?.attr.mode &= !(S_ISUID | S_ISGID);
                }
                let attr = self.put_bytes(*ino, offset, data)?;
                FsRep::Written { offset, attr }
            }
            FsOp::Fsync { .. } => FsRep::Done,
            FsOp::Readdir {
                ino,
                after,
                size,
                plus,
            } => self.readdir(*ino, *after, *size, *plus)?,
            FsOp::Statfs => FsRep::Statfs(Statfs {
                bytes: 1 << 30,
                bytes_free: 1 << 29,
                inodes: 1000,
                inodes_free: 500,
            }),
            FsOp::Getxattr { ino, name } => {
                let value = self.get(*ino)?.xattrs.get(name);
                *bytes = value.ok_or(FsError::NoAttr)?.clone();
                let len = bytes.len() as u32;
                FsRep::Data { len }
            }
            FsOp::Listxattr { ino } => {
                let names = self.get(*ino)?.xattrs.keys();
                *bytes = names.flat_map(|name| [name, &b"\0"[..]].concat()).collect();
                let len = bytes.len() as u32;
                FsRep::Data { len }
            }
            FsOp::Setxattr { ino, name, how, .. } => {
                let xattrs = &mut self.get_mut(*ino)?.xattrs;
                match (how, xattrs.contains_key(name)) {
                    (XattrHow::Create, true) => return Err(FsError::Exists),
                    (XattrHow::Replace, false) => return Err(FsError::NoAttr),
                    _ => xattrs.insert(name.clone(), data.to_vec()),
                };
                FsRep::Attr(self.get_mut(*ino)?.noted().clone())
            }
            FsOp::Removexattr { ino, name, .. } => {
                let removed = self.get_mut(*ino)?.xattrs.remove(name);
                removed.ok_or(FsError::NoAttr)?;
                FsRep::Attr(self.get_mut(*ino)?.noted().clone())
            }
            FsOp::Fallocate { ino, what } => FsRep::Attr(self.fallocate(*ino, what)?),
            FsOp::Seek { ino, offset, hole } => {
                // All is data.
                let size = self.get(*ino)?.attr.size;
                match (*offset >= size, hole) {
                    (true, _) => return Err(FsError::NoOffset),
                    (false, true) => FsRep::Offset(size),
                    (false, false) => FsRep::Offset(*offset),
                }
            }
            FsOp::Release { .. } | FsOp::Accessed { .. } => return Err(FsError::Invalid),
        })
    }
}

fn set_attr(attr: &mut Attr, set: &SetAttr) {
    let time = |set: Option<SetTime>, old: Time| match set {
        Some(SetTime::At(time)) => time,
        Some(SetTime::Now) => now(),
        None => old,
    };
    if set.kill_priv {
        attr.mode &= !(S_ISUID | S_ISGID);
    }
    if let Some(mode) = set.mode {
        attr.mode = attr.mode & S_IFMT | mode;
    }
    attr.uid = set.uid.unwrap_or(attr.uid);
    attr.gid = set.gid.unwrap_or(attr.gid);
    attr.size = set.size.unwrap_or(attr.size);
    attr.atime = time(set.atime, attr.atime);
    attr.mtime = time(set.mtime, attr.mtime);
}
