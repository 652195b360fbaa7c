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

//! Names: looking them up, making them, taking them away, listing them.  fused
//! only.

#![forbid(unsafe_code)]

use super::contents::Opening;
use super::{attr_of, errno, unexpected, Caller, Ops, Reply, State};
use crate::cache::{Keeper, SHORT_TTL, TTL};
use crate::lock;
use crate::retry::RETRY;
use common::fs::{check_name, Attr, Cookie, Cred, Dirent, FsError, InodeNo, ReqId, SYMLINK_MAX};
use common::msg::{FsOp, FsRep};
use nix::errno::Errno;
use std::time::{Duration, Instant};

/// A name that others change again and again is asked for so often.
const LOOKUP_TRIES: u32 = 8;

const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;

/// Size of an entry in a READDIR and in a READDIRPLUS reply, before its name.
const DIRENT_SIZE: usize = 24;
const DIRENTPLUS_SIZE: usize = 152;

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

/// OpenBSD takes every error but ENXIO as "there is no such name", also where
/// it then makes one.  In a directory that is gone there is none.
pub(super) fn lookup_errno(keeper: Keeper, e: FsError) -> Errno {
    match (keeper, e) {
        (_, FsError::NotFound) | (Keeper::Fused, FsError::Stale) => Errno::ENOENT,
        (Keeper::Fused, FsError::NameTooLong | FsError::Invalid) => Errno::ENOENT,
        (Keeper::Fused, _) => Errno::ENXIO,
        (Keeper::Kernel, e) => errno(e),
    }
}

pub(super) fn is_dot(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

/// A LOOKUP in a directory that has lost names.
struct LostName {
    caller: Caller,
    parent: InodeNo,
    name: Vec<u8>,
    /// What is still to be looked at.
    names: Vec<(InodeNo, Vec<u8>)>,
    /// The call is tried again.
    again: bool,
    tries: u32,
    deadline: Instant,
    reply: Reply<Entry>,
}

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
            let all = state.lost.has_lost_all();
            let now = Instant::now();
            // It was told ESTALE in there already, and came back by no name.
            let works_there = state.retries.has_failed_in(caller.pid, parent, now);
            let names = match answer.result {
                Err(FsError::Stale | FsError::NotFound) if !works_there => {
                    state.lost.names_of(parent)
                }
                _ => Vec::new(),
            };
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
                Err(FsError::Stale) if keeper == Keeper::Kernel && all => {
                    reply(Err(ops.errno_to_retry(caller.pid, FsError::Stale)));
                }
                Err(FsError::Stale | FsError::NotFound) if !names.is_empty() => {
                    ops.ask_lost_names(LostName {
                        caller,
                        parent,
                        name,
                        names,
                        again: hold,
                        tries,
                        deadline: answer.deadline,
                        reply,
                    });
                }
                Err(e) => {
                    let e = match e {
                        // Removed by this mount, whose kernel knows that.
                        FsError::Stale => FsError::NotFound,
                        e => e,
                    };
                    if e == FsError::NotFound {
                        lock(&ops.state).remember(parent, &name, None, index);
                    }
                    reply(Err(lookup_errno(keeper, e)));
                    ops.let_parent_go(parent, &name);
                }
            }
        });
    }

    /// The kernel may have come to the directory, which is gone or elsewhere, by
    /// a name that it has lost.  ESTALE makes the kernel look again; but not for
    /// mkdir(2) and others, which fail with it.  So it is only for what is there
    /// by that name now: else there was no such name, or the program works in
    /// the directory.
    fn ask_lost_names(&self, mut lost: LostName) {
        let Some((dir, name)) = lost.names.pop() else {
            return self.not_found(lost, FsError::NotFound);
        };
        let (cred, deadline) = (lost.caller.cred, lost.deadline);
        let op = FsOp::Lookup {
            parent: dir,
            name: name.clone(),
        };
        self.ask_by(deadline, cred, op, move |ops, answer| {
            match answer.result.map(attr_of) {
                Ok(attr) if attr.is_dir() && attr.ino != lost.parent => {
                    ops.ask_in_place(lost, attr.ino, (dir, name));
                }
                // The kernel shall walk through that.
                Ok(attr) if attr.is_symlink() => ops.not_found(lost, FsError::Stale),
                // That one's names are known no more: once the kernel walks anew.
                Err(FsError::Stale) if !lost.again => ops.not_found(lost, FsError::Stale),
                Ok(_) | Err(FsError::Stale | FsError::NotFound | FsError::NotDir) => {
                    ops.ask_lost_names(lost);
                }
                Err(e) => ops.not_found(lost, e),
            }
        });
    }

    /// Whether `dir`, which has a name that was lost, has what was asked for.
    fn ask_in_place(&self, mut lost: LostName, dir: InodeNo, name: (InodeNo, Vec<u8>)) {
        let (cred, deadline) = (lost.caller.cred, lost.deadline);
        let op = FsOp::Lookup {
            parent: dir,
            name: lost.name.clone(),
        };
        self.ask_by(deadline, cred, op, move |ops, answer| match answer.result {
            Err(FsError::NotFound) => ops.ask_lost_names(lost),
            // That is gone as well.
            Err(FsError::Stale) if lost.tries > 0 => {
                lost.tries -= 1;
                lost.names.push(name);
                ops.ask_lost_names(lost);
            }
            result => ops.not_found(lost, result.err().unwrap_or(FsError::Stale)),
        });
    }

    fn not_found(&self, lost: LostName, e: FsError) {
        if e == FsError::Stale {
            let mut state = lock(&self.state);
            let (pid, now) = (lost.caller.pid, Instant::now());
            state.retries.begin_looking(pid, lost.parent, now);
        }
        (lost.reply)(Err(errno(e)));
        self.let_parent_go(lost.parent, &lost.name);
    }

    /// That there is no such name the kernel keeps, and with it the directory: if
    /// another node has removed that, until memory is short.
    fn let_parent_go(&self, parent: InodeNo, name: &[u8]) {
        let state = lock(&self.state);
        let orphan = state.inodes.is_orphan(parent);
        drop(state);
        if orphan {
            self.stale_name(parent, name, None);
        }
    }

    /// An error for a call for names in these directories.
    fn errno_in(&self, pid: u32, dirs: &[InodeNo], e: FsError) -> Errno {
        let mut state = lock(&self.state);
        let e = match e {
            FsError::Stale if state.keeper == Keeper::Fused => FsError::NotFound,
            FsError::Stale if !state.retries.begin_in(pid, dirs, Instant::now()) => {
                FsError::NotFound
            }
            e => e,
        };
        errno(e)
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

    pub fn forget(&self, ino: InodeNo, nlookup: u64) {
        let mut state = lock(&self.state);
        let orphan = state.inodes.forget(ino, nlookup);
        if !state.inodes.is_known(ino) {
            state.lost.forgotten(ino);
        }
        drop(state);
        if orphan {
            self.release_inode(ino);
        }
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
                lock(&ops.state).retries.end(pid);
                reply(Ok(entry));
            }
            Err(e) => reply(Err(ops.errno_in(pid, &[parent], e))),
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
                    state.handles.made(opening.fh, pid);
                    state.inodes.get_or_new(ino).busy().made = Some(opening.fh);
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
            Err(e) => reply(Err(ops.errno_in(pid, &[parent], e))),
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
        } else if self.has_epochs() {
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

    /// The same for one that takes names away.
    fn ask_unnamed(&self, Caller { cred, pid }: Caller, op: FsOp, reply: Reply<()>) {
        let done = op.clone();
        let dirs = match &op {
            FsOp::Unlink { parent, .. } | FsOp::Rmdir { parent, .. } => vec![*parent],
            FsOp::Rename {
                parent, new_parent, ..
            } => vec![*parent, *new_parent],
            _ => Vec::new(),
        };
        self.ask(cred, op, move |ops, answer| {
            if answer.result.is_ok() {
                let mut state = lock(&ops.state);
                state.tree_changed(&done, answer.index);
                state.retries.end(pid);
            }
            let result = answer.result.map(drop);
            reply(result.map_err(|e| ops.errno_in(pid, &dirs, e)));
        });
    }
}
