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

//! Carries out one entry of the log on the metadata.  Runs in raftd, under
//! the state machine.  Same log, same bytes, on every node: no clock, no
//! randomness, no hash order and nothing of this node may decide anything
//! here.  An operation first makes all its checks and then all its changes,
//! so that a refused one leaves no trace but its reply.

#![forbid(unsafe_code)]

use super::inode::{self, Contents, Inode, ReadError, SYMLINK_MODE};
use super::lock::{self, Owner};
use super::op::{Check, Command, Op, RenameHow};
use super::quota::Limit;
use super::space::{self, Capacity, Super};
use super::{dedup, dirent, Change, Effects, Outcome, Reply, Verdict};
use crate::payload::Payload;
use crate::store::meta::{MetaError, Writer};
use common::fs::{
    check_name, Attr, Cred, FsError, InodeNo, SessionId, SetAttr, SetTime, Time, TreeNo, LINK_MAX,
    SYMLINK_MAX, S_IFDIR, S_IFMT, S_IFREG, S_ISGID, S_ISVTX,
};
use std::collections::BTreeMap;

/// Types that mknod makes beside regular files.
const S_IFIFO: u32 = 0o010000;
const S_IFCHR: u32 = 0o020000;
const S_IFBLK: u32 = 0o060000;
const S_IFSOCK: u32 = 0o140000;

/// Permissions and the bits before them.
const PERM: u32 = 0o7777;
const W_OK: u32 = 0o2;

/// Makes the root directory in an empty store.
pub fn init(tx: &mut Writer<'_>) -> Result<(), MetaError> {
    if space::find(tx)?.is_some() {
        return Ok(());
    }
    let root = Inode {
        mode: S_IFDIR | 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        atime: Time::default(),
        mtime: Time::default(),
        ctime: Time::default(),
        data_version: 0,
        contents: directory(InodeNo::ROOT),
        xattrs: 0,
        tree: TreeNo::NONE,
    };
    inode::put(tx, InodeNo::ROOT, &root)?;
    space::save(
        tx,
        &Super {
            next_ino: InodeNo(InodeNo::ROOT.0 + 1),
            used_blocks: 0,
            used_inodes: 1,
            inline_blocks: 0,
            extra: 0,
            limit: Limit::default(),
            room: None,
            floor: 0,
            extents: 0,
        },
    )
}

/// Carries out the entry at this log index.  After an error the store is
/// between two states, and the process must end.
pub fn apply(
    tx: &mut Writer<'_>,
    index: u64,
    cmd: &Command,
) -> Result<(Verdict, Effects), MetaError> {
    let Some(origin) = &cmd.origin else {
        let (outcome, effects) = run(tx, index, cmd, None)?;
        return Ok((Verdict::Done(outcome), effects));
    };
    let mut session = match dedup::admit(tx, origin)? {
        dedup::Admit::Next(session) => session,
        dedup::Admit::No(verdict) => return Ok((verdict, Effects::default())),
    };
    if session.fenced && is_fenced(tx, origin.session, &cmd.op)? {
        let outcome = Err(FsError::Io);
        dedup::record(tx, origin, session, &outcome)?;
        return Ok((Verdict::Done(outcome), Effects::default()));
    }
    let (outcome, effects) = run(tx, index, cmd, Some(origin.session))?;
    session.fenced &= cmd.op != Op::ResetLocks;
    dedup::record(tx, origin, session, &outcome)?;
    Ok((Verdict::Done(outcome), effects))
}

/// Whether the operation is one on contents of which the session thinks that
/// it has them locked.
fn is_fenced(tx: &Writer<'_>, session: SessionId, op: &Op) -> Result<bool, MetaError> {
    match op {
        Op::Write { ino, .. } | Op::Fallocate { ino, .. } => lock::is_fenced(tx, session, *ino),
        Op::Setattr { ino, set, .. } if set.size.is_some() => lock::is_fenced(tx, session, *ino),
        _ => Ok(false),
    }
}

fn run(
    tx: &mut Writer<'_>,
    index: u64,
    cmd: &Command,
    session: Option<SessionId>,
) -> Result<(Outcome, Effects), MetaError> {
    let sup = space::load(tx)?;
    let mut apply = Apply {
        tx,
        index,
        time: cmd.time,
        sup,
        effects: Effects::default(),
    };
    match apply.op(&cmd.op, session, &cmd.payload) {
        Ok(reply) => {
            if apply.sup != sup {
                space::save(apply.tx, &apply.sup)?;
            }
            Ok((Ok(reply), apply.effects))
        }
        Err(ReadError::Fs(e)) => Ok((Err(e), Effects::default())),
        Err(ReadError::Meta(e)) => Err(e),
    }
}

/// One entry on its way.
pub(super) struct Apply<'t, 'm> {
    pub(super) tx: &'t mut Writer<'m>,
    pub(super) index: u64,
    pub(super) time: Time,
    pub(super) sup: Super,
    pub(super) effects: Effects,
}

/// What a new inode begins with.
struct New {
    mode: u32,
    umask: u32,
    rdev: u32,
    contents: Contents,
    cred: Cred,
}

impl Apply<'_, '_> {
    fn op(
        &mut self,
        op: &Op,
        session: Option<SessionId>,
        payload: &Payload,
    ) -> Result<Reply, ReadError> {
        match op {
            Op::Nop => Ok(Reply::Done),
            Op::OpenSession { node, nonce, lease } => {
                // A session cannot end itself in the middle of an entry.
                if session.is_some() {
                    return Err(FsError::Invalid.into());
                }
                self.open_session(*node, *nonce, *lease)?;
                Ok(Reply::Session)
            }
            Op::Capacity {
                node,
                bytes,
                inodes,
            } => {
                let (bytes, inodes) = (*bytes, *inodes);
                self.sup.room = space::report(self.tx, *node, Capacity { bytes, inodes })?;
                Ok(Reply::Done)
            }
            Op::Floor { index } => {
                // Never beyond what the log can have.
                self.sup.floor = self.sup.floor.max((*index).min(self.index));
                Ok(Reply::Done)
            }
            Op::Release { inodes } => {
                let session = session.ok_or(FsError::Invalid)?;
                for ino in inodes {
                    self.release(*ino, session)?;
                }
                Ok(Reply::Done)
            }
            Op::Create {
                parent,
                name,
                mode,
                umask,
                excl,
                cred,
            } => self.create(*parent, name, (*mode, *umask), *excl, *cred),
            Op::Mknod {
                parent,
                name,
                mode,
                umask,
                rdev,
                cred,
            } => self.mknod(*parent, name, (*mode, *umask), *rdev, *cred),
            Op::Mkdir {
                parent,
                name,
                mode,
                umask,
                cred,
            } => self.mkdir(*parent, name, (*mode, *umask), *cred),
            Op::Symlink {
                parent,
                name,
                target,
                cred,
            } => self.symlink(*parent, name, target, *cred),
            Op::Link {
                ino, parent, name, ..
            } => self.link(*ino, *parent, name),
            Op::Unlink {
                parent,
                name,
                check,
            } => self.unlink(*parent, name, check),
            Op::Rmdir {
                parent,
                name,
                check,
            } => self.rmdir(*parent, name, check),
            Op::Rename {
                parent,
                name,
                new_parent,
                new_name,
                how,
                check,
            } => {
                let from = (*parent, name.as_slice());
                let to = (*new_parent, new_name.as_slice());
                self.rename(from, to, *how, check)
            }
            Op::Setattr { ino, set, check } => self.setattr(*ino, set, check),
            Op::Write { ino, at, kill_priv } => self.write(*ino, *at, *kill_priv, payload),
            Op::SetXattr {
                ino,
                name,
                how,
                cred,
                check,
            } => self.set_xattr(*ino, name, *how, (*cred, check), payload),
            Op::RemoveXattr { ino, name, check } => self.remove_xattr(*ino, name, check),
            Op::SetQuota { ino, bytes, inodes } => self.set_quota(*ino, *bytes, *inodes),
            Op::DropQuota { ino } => self.drop_quota(*ino),
            Op::Adopt { tree, max } => {
                self.adopt_some(*tree, *max)?;
                Ok(Reply::Done)
            }
            Op::Fallocate { ino, what } => self.fallocate(*ino, what),
            Op::Accessed { inodes } => self.accessed(inodes),
            Op::Lock { .. }
            | Op::Unlock { .. }
            | Op::UnlockMount { .. }
            | Op::CancelLock { .. }
            | Op::ExpireLocks { .. }
            | Op::ResetLocks => self.lock_op(op, session),
        }
    }

    fn lock_op(&mut self, op: &Op, session: Option<SessionId>) -> Result<Reply, ReadError> {
        if let (Op::ExpireLocks { session }, None) = (op, session) {
            self.expire_locks(*session)?;
            return Ok(Reply::Done);
        }
        let session = session.ok_or(FsError::Invalid)?;
        let owner = |mount, id| Owner { session, mount, id };
        match op {
            Op::Lock {
                ino,
                mount,
                wish,
                wait,
            } => return self.lock(*ino, owner(*mount, wish.owner), wish, *wait),
            Op::Unlock {
                ino,
                mount,
                owner: id,
                range,
            } => self.unlock(*ino, owner(*mount, *id), range)?,
            Op::UnlockMount { mount } => self.drop_locks(session, Some(*mount))?,
            Op::CancelLock { ino, ticket } => return self.cancel_lock(*ino, *ticket),
            Op::ResetLocks => self.reset_locks(session)?,
            _ => return Err(FsError::Invalid.into()),
        }
        Ok(Reply::Done)
    }

    /// A directory in which names can be made and removed; Stale if it is removed
    /// itself, for its own name may mean another one by now.
    pub(super) fn dir(&self, ino: InodeNo) -> Result<Inode, ReadError> {
        let dir = inode::load(self.tx, ino)?;
        if !dir.is_dir() {
            return Err(FsError::NotDir.into());
        }
        if dir.nlink == 0 {
            return Err(FsError::Stale.into());
        }
        Ok(dir)
    }

    pub(super) fn changed(&mut self, ino: InodeNo, data: Option<u64>) {
        self.effects.changes.push(Change::Inode { ino, data });
    }

    fn renamed(&mut self, parent: InodeNo, name: &[u8], lost: Option<InodeNo>) {
        let name = name.to_vec();
        self.effects
            .changes
            .push(Change::Entry { parent, name, lost });
    }

    fn create(
        &mut self,
        parent: InodeNo,
        name: &[u8],
        (mode, umask): (u32, u32),
        excl: bool,
        cred: Cred,
    ) -> Result<Reply, ReadError> {
        check_name(name)?;
        let dir = self.dir(parent)?;
        let new = New {
            mode: S_IFREG | mode & PERM,
            umask,
            rdev: 0,
            contents: Contents::Inline(Vec::new()),
            cred,
        };
        match dirent::find(self.tx, parent, name)? {
            None => self.make(parent, dir, name, new),
            Some(_) if excl => Err(FsError::Exists.into()),
            Some(entry) => self.create_found(entry.ino),
        }
    }

    /// Create without O_EXCL came upon something, which stays as it is: nobody
    /// has asked yet whether the caller may open it.
    fn create_found(&mut self, ino: InodeNo) -> Result<Reply, ReadError> {
        let inode = inode::linked(self.tx, ino)?;
        if inode.is_dir() {
            return Err(FsError::IsDir.into());
        }
        Ok(Reply::Entry {
            attr: inode.attr(ino),
            created: false,
        })
    }

    fn mknod(
        &mut self,
        parent: InodeNo,
        name: &[u8],
        (mode, umask): (u32, u32),
        rdev: u32,
        cred: Cred,
    ) -> Result<Reply, ReadError> {
        let (kind, rdev, contents) = match mode & S_IFMT {
            0 | S_IFREG => (S_IFREG, 0, Contents::Inline(Vec::new())),
            kind @ (S_IFCHR | S_IFBLK) => (kind, rdev, Contents::Special),
            kind @ (S_IFIFO | S_IFSOCK) => (kind, 0, Contents::Special),
            _ => return Err(FsError::Invalid.into()),
        };
        let dir = self.vacant(parent, name)?;
        let new = New {
            mode: kind | mode & PERM,
            umask,
            rdev,
            contents,
            cred,
        };
        self.make(parent, dir, name, new)
    }

    fn mkdir(
        &mut self,
        parent: InodeNo,
        name: &[u8],
        (mode, umask): (u32, u32),
        cred: Cred,
    ) -> Result<Reply, ReadError> {
        let dir = self.vacant(parent, name)?;
        if dir.nlink >= LINK_MAX {
            return Err(FsError::TooManyLinks.into());
        }
        let new = New {
            mode: S_IFDIR | mode & PERM,
            umask,
            rdev: 0,
            contents: directory(parent),
            cred,
        };
        self.make(parent, dir, name, new)
    }

    fn symlink(
        &mut self,
        parent: InodeNo,
        name: &[u8],
        target: &[u8],
        cred: Cred,
    ) -> Result<Reply, ReadError> {
        if target.len() > SYMLINK_MAX {
            return Err(FsError::NameTooLong.into());
        }
        if target.is_empty() || target.contains(&0) {
            return Err(FsError::Invalid.into());
        }
        let dir = self.vacant(parent, name)?;
        let new = New {
            mode: SYMLINK_MODE,
            umask: 0,
            rdev: 0,
            contents: Contents::Symlink(target.to_vec()),
            cred,
        };
        self.make(parent, dir, name, new)
    }

    /// The directory, if the name can be made in it.
    fn vacant(&self, parent: InodeNo, name: &[u8]) -> Result<Inode, ReadError> {
        check_name(name)?;
        let dir = self.dir(parent)?;
        if dirent::find(self.tx, parent, name)?.is_some() {
            return Err(FsError::Exists.into());
        }
        Ok(dir)
    }

    /// A new inode under a name that is free.
    fn make(
        &mut self,
        parent: InodeNo,
        mut dir: Inode,
        name: &[u8],
        mut new: New,
    ) -> Result<Reply, ReadError> {
        let acls = self.inherit(parent, &dir, &mut new.mode, new.umask)?;
        let tree = self.tree_of(&dir)?;
        self.check_quota(tree, acls.blocks(), 1)?;
        let is_dir = new.mode & S_IFMT == S_IFDIR;
        let inherits = dir.mode & S_ISGID != 0;
        let inode = Inode {
            mode: new.mode | if is_dir && inherits { S_ISGID } else { 0 },
            nlink: if is_dir { 2 } else { 1 },
            uid: new.cred.uid,
            gid: if inherits { dir.gid } else { new.cred.gid },
            rdev: new.rdev,
            atime: self.time,
            mtime: self.time,
            ctime: self.time,
            data_version: 0,
            contents: new.contents,
            xattrs: acls.bytes(),
            tree,
        };
        self.sup.check_records(1 + inode.extra())?;
        let ino = self.sup.next_ino;
        self.sup.next_ino.0 += 1;
        self.sup.used_inodes += 1;
        self.sup.extra += inode.extra();
        self.sup.inline_blocks += acls.blocks();
        self.charge(tree, acls.blocks() as i64, 1)?;
        self.bequeath(ino, &acls);
        inode::put(self.tx, ino, &inode)?;
        dirent::insert(self.tx, parent, &mut dir, name, ino, inode.mode)?;
        if is_dir {
            dir.nlink += 1;
        }
        self.put_dir(parent, &mut dir, name, None)?;
        Ok(entry(inode.attr(ino)))
    }

    /// Saves a directory of which one entry has changed.
    fn put_dir(
        &mut self,
        ino: InodeNo,
        dir: &mut Inode,
        name: &[u8],
        lost: Option<InodeNo>,
    ) -> Result<(), MetaError> {
        dir.touch(self.time);
        inode::put(self.tx, ino, dir)?;
        self.changed(ino, None);
        self.renamed(ino, name, lost);
        Ok(())
    }

    fn link(&mut self, ino: InodeNo, parent: InodeNo, name: &[u8]) -> Result<Reply, ReadError> {
        let mut inode = inode::load(self.tx, ino)?;
        if inode.is_dir() {
            return Err(FsError::NotOwner.into());
        }
        let mut dir = self.vacant(parent, name)?;
        if inode.nlink == 0 {
            return Err(FsError::NotFound.into());
        }
        if inode.nlink >= LINK_MAX {
            return Err(FsError::TooManyLinks.into());
        }
        if self.tree_of(&inode)? != self.tree_of(&dir)? {
            return Err(FsError::CrossTree.into());
        }
        self.sup.check_records(1)?;
        self.sup.extra += 1;
        inode.nlink += 1;
        inode.ctime = self.time;
        inode::put(self.tx, ino, &inode)?;
        self.changed(ino, None);
        dirent::insert(self.tx, parent, &mut dir, name, ino, inode.mode)?;
        self.put_dir(parent, &mut dir, name, None)?;
        Ok(entry(inode.attr(ino)))
    }

    fn unlink(&mut self, parent: InodeNo, name: &[u8], check: &Check) -> Result<Reply, ReadError> {
        let (mut dir, entry, inode) = self.victim(parent, name, check)?;
        if inode.is_dir() {
            return Err(FsError::IsDir.into());
        }
        dirent::remove(self.tx, parent, &mut dir, name, &entry)?;
        self.put_dir(parent, &mut dir, name, Some(entry.ino))?;
        self.lose_name(entry.ino, inode)?;
        Ok(Reply::Done)
    }

    fn rmdir(&mut self, parent: InodeNo, name: &[u8], check: &Check) -> Result<Reply, ReadError> {
        let (mut dir, entry, inode) = self.victim(parent, name, check)?;
        check_empty(&inode)?;
        dirent::remove(self.tx, parent, &mut dir, name, &entry)?;
        lose_dir(&mut dir);
        self.put_dir(parent, &mut dir, name, Some(entry.ino))?;
        self.lose_name(entry.ino, inode)?;
        Ok(Reply::Done)
    }

    /// What a name to be removed stands for.
    fn victim(
        &self,
        parent: InodeNo,
        name: &[u8],
        check: &Check,
    ) -> Result<(Inode, dirent::Entry, Inode), ReadError> {
        check_name(name)?;
        let dir = self.dir(parent)?;
        let entry = dirent::find(self.tx, parent, name)?.ok_or(FsError::NotFound)?;
        let inode = inode::linked(self.tx, entry.ino)?;
        check_sticky(check, &dir, &inode)?;
        Ok((dir, entry, inode))
    }

    /// One name of the inode is gone; a directory has no other.
    fn lose_name(&mut self, ino: InodeNo, mut inode: Inode) -> Result<(), MetaError> {
        let extra = inode.extra();
        inode.nlink = match inode.is_dir() {
            true => 0,
            false => inode.nlink.saturating_sub(1),
        };
        self.free_records(extra - inode.extra())?;
        inode.ctime = self.time;
        self.changed(ino, None);
        if inode.nlink == 0 {
            return self.orphan(ino, &inode);
        }
        inode::put(self.tx, ino, &inode)
    }

    pub(super) fn free_records(&mut self, extra: u64) -> Result<(), MetaError> {
        let left = self.sup.extra.checked_sub(extra);
        self.sup.extra = left.ok_or(MetaError::Corrupt("super"))?;
        Ok(())
    }

    fn rename(
        &mut self,
        (parent, name): (InodeNo, &[u8]),
        (new_parent, new_name): (InodeNo, &[u8]),
        how: RenameHow,
        check: &Check,
    ) -> Result<Reply, ReadError> {
        check_name(name)?;
        check_name(new_name)?;
        let dir = self.dir(parent)?;
        let new_dir = self.dir(new_parent)?;
        let from = dirent::find(self.tx, parent, name)?.ok_or(FsError::NotFound)?;
        let to = dirent::find(self.tx, new_parent, new_name)?;
        match (how, &to) {
            (RenameHow::NoReplace, Some(_)) => return Err(FsError::Exists.into()),
            (RenameHow::Exchange, None) => return Err(FsError::NotFound.into()),
            (_, Some(to)) if to.ino == from.ino => return Ok(Reply::Done),
            _ => {}
        }
        let src = inode::linked(self.tx, from.ino)?;
        check_sticky(check, &dir, &src)?;
        self.check_beneath(&src, from.ino, parent, new_parent)?;
        self.check_trees((from.ino, &src), (parent, &dir), (new_parent, &new_dir))?;
        let mut moved = BTreeMap::from([(parent, dir), (new_parent, new_dir), (from.ino, src)]);
        if let Some(to) = &to {
            let dst = inode::linked(self.tx, to.ino)?;
            if let Some(new_dir) = moved.get(&new_parent) {
                check_sticky(check, new_dir, &dst)?;
            }
            if how == RenameHow::Exchange {
                self.check_beneath(&dst, to.ino, new_parent, parent)?;
                if let (Some(dir), Some(new_dir)) = (moved.get(&parent), moved.get(&new_parent)) {
                    self.check_trees((to.ino, &dst), (new_parent, new_dir), (parent, dir))?;
                }
            }
            // A parent of the source that is the target is in there already.
            moved.entry(to.ino).or_insert(dst);
        }
        let rename = Rename {
            parent,
            name,
            new_parent,
            new_name,
            from,
            to,
            inodes: moved,
        };
        match how {
            RenameHow::Exchange => self.exchange(rename),
            _ => self.replace(rename),
        }
    }

    /// A directory must not move into itself or what is beneath it.
    fn check_beneath(
        &self,
        inode: &Inode,
        ino: InodeNo,
        parent: InodeNo,
        new_parent: InodeNo,
    ) -> Result<(), ReadError> {
        let moves = inode.is_dir() && parent != new_parent;
        if moves && dirent::is_within(self.tx, new_parent, ino, self.sup.used_inodes)? {
            return Err(FsError::Invalid.into());
        }
        Ok(())
    }

    fn replace(&mut self, mut r: Rename<'_>) -> Result<Reply, ReadError> {
        let mode = r.get(r.from.ino)?.mode;
        let is_dir = mode & S_IFMT == S_IFDIR;
        if let Some(to) = &r.to {
            let dst = r.get(to.ino)?;
            match (is_dir, dst.is_dir()) {
                (true, false) => return Err(FsError::NotDir.into()),
                (false, true) => return Err(FsError::IsDir.into()),
                (true, true) => check_empty(dst)?,
                (false, false) => {}
            }
        } else if is_dir && r.parent != r.new_parent && r.get(r.new_parent)?.nlink >= LINK_MAX {
            return Err(FsError::TooManyLinks.into());
        }

        let (parent, new_parent, from) = (r.parent, r.new_parent, r.from);
        let (name, new_name) = (r.name, r.new_name);
        dirent::remove(self.tx, parent, r.get_mut(parent)?, name, &from)?;
        match r.to {
            // The cookie stays, so that a listing shows the one or the other.
            Some(to) => dirent::set(self.tx, new_parent, new_name, to.cookie, from.ino, mode)?,
            None => {
                let new_dir = r.get_mut(new_parent)?;
                dirent::insert(self.tx, new_parent, new_dir, new_name, from.ino, mode)?;
            }
        }
        if is_dir {
            r.move_dir(from.ino, parent, new_parent)?;
        }
        r.adopt_moved(self, from.ino, new_parent)?;
        let victim = match r.to {
            Some(to) => r.inodes.remove(&to.ino).map(|inode| (to.ino, inode)),
            None => None,
        };
        if is_dir && victim.is_some() {
            lose_dir(r.get_mut(new_parent)?);
        }
        self.put_renamed(r)?;
        if let Some((ino, inode)) = victim {
            self.lose_name(ino, inode)?;
        }
        Ok(Reply::Done)
    }

    fn exchange(&mut self, mut r: Rename<'_>) -> Result<Reply, ReadError> {
        let to = r.to.ok_or(MetaError::Corrupt("dirent"))?;
        let (parent, new_parent, from) = (r.parent, r.new_parent, r.from);
        let (mode, new_mode) = (r.get(from.ino)?.mode, r.get(to.ino)?.mode);
        let is_dir = mode & S_IFMT == S_IFDIR;
        let new_is_dir = new_mode & S_IFMT == S_IFDIR;
        if parent != new_parent && is_dir != new_is_dir {
            let grows = if is_dir { new_parent } else { parent };
            if r.get(grows)?.nlink >= LINK_MAX {
                return Err(FsError::TooManyLinks.into());
            }
        }

        dirent::set(self.tx, parent, r.name, from.cookie, to.ino, new_mode)?;
        dirent::set(self.tx, new_parent, r.new_name, to.cookie, from.ino, mode)?;
        if is_dir {
            r.move_dir(from.ino, parent, new_parent)?;
        }
        if new_is_dir {
            r.move_dir(to.ino, new_parent, parent)?;
        }
        r.adopt_moved(self, from.ino, new_parent)?;
        r.adopt_moved(self, to.ino, parent)?;
        self.put_renamed(r)?;
        Ok(Reply::Done)
    }

    /// Saves what a rename has touched.  A directory may be in two of the
    /// parts, so all of them are saved by number.
    fn put_renamed(&mut self, mut r: Rename<'_>) -> Result<(), MetaError> {
        r.get_mut(r.parent)?.touch(self.time);
        if r.new_parent != r.parent {
            r.get_mut(r.new_parent)?.touch(self.time);
        }
        for (ino, inode) in &mut r.inodes {
            inode.ctime = self.time;
            inode::put(self.tx, *ino, inode)?;
            self.changed(*ino, None);
        }
        self.renamed(r.parent, r.name, Some(r.from.ino));
        self.renamed(r.new_parent, r.new_name, r.to.map(|to| to.ino));
        Ok(())
    }

    fn setattr(&mut self, ino: InodeNo, set: &SetAttr, check: &Check) -> Result<Reply, ReadError> {
        let mut inode = inode::load(self.tx, ino)?;
        let mut kill_priv = set.kill_priv;
        match check {
            Check::Apply(cred) => {
                check_owner(&inode, set, *cred)?;
                let gives = set.uid.is_some() || set.gid.is_some();
                kill_priv |= cred.uid != 0 && (gives || set.size.is_some());
            }
            Check::Owner { uid, owner } if *owner != inode.uid => {
                check_new_owner(&inode, set, *uid)?;
            }
            _ => {}
        }
        let owner = inode.uid;
        let mut data = None;
        if let Some(size) = set.size {
            data = self.resize(ino, &mut inode, size)?;
            inode.mtime = self.time;
        }
        inode.uid = set.uid.unwrap_or(inode.uid);
        inode.gid = set.gid.unwrap_or(inode.gid);
        if let Some(mode) = set.mode {
            inode.mode = inode.kind() | mode & PERM;
            drop_foreign_sgid(&mut inode, check);
            self.chmod_acl(ino, &inode)?;
        }
        if kill_priv {
            self.kill_priv(ino, &mut inode)?;
        }
        if let Some(t) = set.atime {
            inode.atime = self.at(t);
        }
        if let Some(t) = set.mtime {
            inode.mtime = self.at(t);
        }
        inode.ctime = self.time;
        inode::put(self.tx, ino, &inode)?;
        self.changed(ino, data);
        if inode.uid != owner {
            self.effects.changes.push(Change::Owner { ino });
        }
        Ok(Reply::Attr(inode.attr(ino)))
    }

    fn at(&self, time: SetTime) -> Time {
        match time {
            SetTime::Now => self.time,
            SetTime::At(time) => time,
        }
    }
}

/// The parts of a rename.  Parents, source and target may be one another, so
/// the records are kept by number.
struct Rename<'a> {
    parent: InodeNo,
    name: &'a [u8],
    new_parent: InodeNo,
    new_name: &'a [u8],
    from: dirent::Entry,
    to: Option<dirent::Entry>,
    inodes: BTreeMap<InodeNo, Inode>,
}

impl Rename<'_> {
    fn get(&self, ino: InodeNo) -> Result<&Inode, MetaError> {
        self.inodes.get(&ino).ok_or(MetaError::Corrupt("inode"))
    }

    fn get_mut(&mut self, ino: InodeNo) -> Result<&mut Inode, MetaError> {
        self.inodes.get_mut(&ino).ok_or(MetaError::Corrupt("inode"))
    }

    /// What is not counted yet must not slip past the walk.
    fn adopt_moved(
        &mut self,
        apply: &mut Apply<'_, '_>,
        ino: InodeNo,
        into: InodeNo,
    ) -> Result<(), MetaError> {
        let tree = self.get(into)?.tree;
        apply.adopt_moved(ino, self.get_mut(ino)?, tree)
    }

    /// The `..` of a directory that moves is a link to its parent.
    fn move_dir(&mut self, ino: InodeNo, from: InodeNo, to: InodeNo) -> Result<(), MetaError> {
        lose_dir(self.get_mut(from)?);
        self.get_mut(to)?.nlink += 1;
        match &mut self.get_mut(ino)?.contents {
            Contents::Directory { parent, .. } => *parent = to,
            _ => return Err(MetaError::Corrupt("directory")),
        }
        Ok(())
    }
}

fn directory(parent: InodeNo) -> Contents {
    Contents::Directory {
        parent,
        cookie: dirent::FIRST_COOKIE,
        entries: 0,
    }
}

/// A directory beneath this one is gone, and its `..` with it.
fn lose_dir(dir: &mut Inode) {
    dir.nlink = dir.nlink.saturating_sub(1);
}

fn entry(attr: Attr) -> Reply {
    Reply::Entry {
        attr,
        created: true,
    }
}

fn check_empty(inode: &Inode) -> Result<(), FsError> {
    match inode.contents {
        Contents::Directory { entries: 0, .. } => Ok(()),
        Contents::Directory { .. } => Err(FsError::NotEmpty),
        _ => Err(FsError::NotDir),
    }
}

/// In a sticky directory only the owners of file and directory remove names.
fn check_sticky(check: &Check, dir: &Inode, inode: &Inode) -> Result<(), FsError> {
    match check {
        Check::Apply(cred)
            if dir.mode & S_ISVTX != 0
                && cred.uid != 0
                && cred.uid != inode.uid
                && cred.uid != dir.uid =>
        {
            Err(FsError::NotOwner)
        }
        _ => Ok(()),
    }
}

/// Who may change which attributes.  Of the caller's groups only the first is
/// known here, so a change to another one of them is refused.
fn check_owner(inode: &Inode, set: &SetAttr, cred: Cred) -> Result<(), FsError> {
    if cred.uid == 0 {
        return Ok(());
    }
    let owner = cred.uid == inode.uid;
    if !owner && (set.mode.is_some() || set.uid.is_some() || set.gid.is_some()) {
        return Err(FsError::NotOwner);
    }
    if set.uid.is_some_and(|uid| uid != inode.uid) {
        return Err(FsError::NotOwner);
    }
    if set
        .gid
        .is_some_and(|gid| gid != inode.gid && gid != cred.gid)
    {
        return Err(FsError::NotOwner);
    }
    match (set.atime, set.mtime) {
        (None, None) => Ok(()),
        // Who may write may say that it was written now.
        (Some(SetTime::Now), Some(SetTime::Now)) if !owner => match may_write(inode, cred) {
            true => Ok(()),
            false => Err(FsError::NoPermission),
        },
        _ if !owner => Err(FsError::NotOwner),
        _ => Ok(()),
    }
}

/// What the kernel has allowed to the owner that was: others may do it only if
/// they are root, or the owner by now.
pub(super) fn must_own(inode: &Inode, uid: u32) -> Result<(), FsError> {
    match uid == 0 || uid == inode.uid {
        true => Ok(()),
        false => Err(FsError::NotOwner),
    }
}

fn check_new_owner(inode: &Inode, set: &SetAttr, uid: u32) -> Result<(), FsError> {
    let at = |time| matches!(time, Some(SetTime::At(_)));
    let needs = set.mode.is_some() || set.uid.is_some() || set.gid.is_some();
    match needs || at(set.atime) || at(set.mtime) {
        true => must_own(inode, uid),
        false => Ok(()),
    }
}

/// By the mode bits alone, and with the first group alone.
fn may_write(inode: &Inode, cred: Cred) -> bool {
    let bits = if cred.uid == inode.uid {
        inode.mode >> 6
    } else if cred.gid == inode.gid {
        inode.mode >> 3
    } else {
        inode.mode
    };
    cred.uid == 0 || bits & W_OK != 0
}

/// A program must not be made to run as a group that its owner is not in.
fn drop_foreign_sgid(inode: &mut Inode, check: &Check) {
    match check {
        Check::Apply(cred) if cred.uid != 0 && cred.gid != inode.gid && !inode.is_dir() => {
            inode.mode &= !S_ISGID;
        }
        _ => {}
    }
}
