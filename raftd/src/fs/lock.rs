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

//! File locks: who holds which bytes of which inode, and who waits for some.
//! Runs in raftd, pure.
//!
//! A holder is an owner of a mount of a session: what the kernel calls the
//! owner of a lock, made unique over the nodes.  One owner's locks of an inode
//! are as POSIX has them: they never overlap, a new one replaces what it
//! covers.  Who waits waits for those alone that hold, not for those that wait
//! longer: whatever is unlocked goes to the waiters in the order in which they
//! came, each of whom gets what nobody holds against him by then.
//!
//! Each grant has a fencing number, the log index of the entry that made it:
//! of two locks that exclude each other the later one has the higher number.
//!
//! A session whose lease ran out loses its locks by ExpireLocks.  It may not
//! know that yet: until it says that it does, by ResetLocks, what it writes to
//! those inodes is refused, for that was meant to be done under the lock.

#![forbid(unsafe_code)]

use super::apply::Apply;
use super::dedup;
use super::inode::{self, key, number, ReadError};
use super::{Change, Reply};
use crate::store::meta::{decode, MetaError, View};
use common::fs::{FsError, InodeNo, SessionId};
use common::lock::{LockKind, LockRange};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

const LOCKS: u8 = b'l';
/// Where somebody of a mount holds or waits.
const MEMBER: u8 = b'w';
/// Where an owner waits.
const WAITING: u8 = b'v';
const FENCED: u8 = b'f';
const COUNT: &[u8] = b"n";

/// Most locks of one inode, held or waited for.
pub const INODE_MAX: usize = 1024;
/// Most in all.
pub const LOCKS_MAX: u64 = 1 << 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Owner {
    pub session: SessionId,
    /// One fused, or one client of the control socket, in the session's life.
    pub mount: u64,
    pub id: u64,
}

/// What an owner wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// Of the mount.
    pub owner: u64,
    /// For who asks; decides nothing.
    pub pid: u32,
    pub range: LockRange,
    pub kind: LockKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    pub owner: Owner,
    pub pid: u32,
    pub range: LockRange,
    pub kind: LockKind,
    /// Of one that is held the fencing number, of a waiter its ticket: both are
    /// the index of an entry.
    pub index: u64,
}

impl Lock {
    fn conflicts(&self, other: &Lock) -> bool {
        self.owner != other.owner
            && self.range.overlaps(&other.range)
            && (self.kind == LockKind::Exclusive || other.kind == LockKind::Exclusive)
    }
}

/// The locks of one inode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locks {
    pub held: Vec<Lock>,
    /// The first came first.
    pub waiting: Vec<Lock>,
}

impl Locks {
    fn len(&self) -> usize {
        self.held.len() + self.waiting.len()
    }

    /// The first that is held and in the way.
    fn conflict(&self, lock: &Lock) -> Option<&Lock> {
        self.held.iter().find(|held| held.conflicts(lock))
    }

    /// Takes the range from what the owner holds.
    fn carve(&mut self, owner: Owner, range: &LockRange) {
        let mut rest = Vec::new();
        self.held.retain(|held| {
            let hit = held.owner == owner && held.range.overlaps(range);
            if hit {
                let parts = held.range.without(range).into_iter().flatten();
                rest.extend(parts.map(|range| Lock { range, ..*held }));
            }
            !hit
        });
        self.held.extend(rest);
    }

    /// Nobody holds anything against it.
    fn hold(&mut self, mut lock: Lock) {
        self.carve(lock.owner, &lock.range);
        self.held.retain(|held| {
            let joins =
                held.owner == lock.owner && held.kind == lock.kind && held.range.joins(&lock.range);
            if joins {
                lock.range.start = lock.range.start.min(held.range.start);
                lock.range.end = lock.range.end.max(held.range.end);
            }
            !joins
        });
        self.held.push(lock);
    }

    /// A waiter whose time has come.
    fn next(&mut self) -> Option<Lock> {
        let at = self
            .waiting
            .iter()
            .position(|w| self.conflict(w).is_none())?;
        Some(self.waiting.remove(at))
    }

    /// The mounts that are in here.
    fn members(&self) -> BTreeSet<(SessionId, u64)> {
        let all = self.held.iter().chain(&self.waiting);
        all.map(|l| (l.owner.session, l.owner.mount)).collect()
    }

    fn waiting_keys(&self) -> BTreeSet<Vec<u8>> {
        self.waiting.iter().map(waiting_key).collect()
    }
}

fn keys(tag: u8, numbers: &[u64]) -> Vec<u8> {
    let mut key = vec![tag];
    numbers.iter().for_each(|n| key.extend(n.to_be_bytes()));
    key
}

fn member_key(session: SessionId, mount: u64, ino: InodeNo) -> Vec<u8> {
    keys(MEMBER, &[session.0, mount, ino.0])
}

fn owner_key(o: Owner) -> Vec<u8> {
    keys(WAITING, &[o.session.0, o.mount, o.id])
}

fn waiting_key(w: &Lock) -> Vec<u8> {
    let o = w.owner;
    keys(WAITING, &[o.session.0, o.mount, o.id, w.index])
}

pub fn get(v: &View<'_>, ino: InodeNo) -> Result<Locks, MetaError> {
    Ok(v.load(&key(LOCKS, ino.0), "locks")?.unwrap_or_default())
}

/// All locks of all inodes.
pub fn list(v: &View<'_>) -> Result<Vec<(InodeNo, Locks)>, MetaError> {
    v.range(&[], &[LOCKS])?
        .map(|item| {
            let (key, value) = item?;
            Ok((InodeNo(number(key, 1)?), decode(value, "locks")?))
        })
        .collect()
}

/// What would be in the way of that lock.
pub fn test(
    v: &View<'_>,
    ino: InodeNo,
    owner: Owner,
    wish: &Wish,
) -> Result<Option<Lock>, MetaError> {
    Ok(get(v, ino)?.conflict(&wish.lock(owner, 0)).copied())
}

/// Whether the session holds or waits for any lock.
pub fn has_any(v: &View<'_>, session: SessionId) -> Result<bool, MetaError> {
    let first = v.range(&[], &key(MEMBER, session.0))?.next();
    Ok(first.transpose()?.is_some())
}

/// The inodes where the session, or one mount of it, holds or waits.
fn inodes(
    v: &View<'_>,
    session: SessionId,
    mount: Option<u64>,
) -> Result<BTreeSet<InodeNo>, MetaError> {
    let prefix = match mount {
        Some(mount) => keys(MEMBER, &[session.0, mount]),
        None => keys(MEMBER, &[session.0]),
    };
    v.range(&[], &prefix)?
        .map(|item| Ok(InodeNo(number(item?.0, 17)?)))
        .collect()
}

/// What the session holds, each owner of an inode once.
pub fn held_by(v: &View<'_>, session: SessionId) -> Result<Vec<(InodeNo, Owner)>, MetaError> {
    let mut all = BTreeSet::new();
    for ino in inodes(v, session, None)? {
        let held = get(v, ino)?.held.into_iter();
        let own = held.filter(|lock| lock.owner.session == session);
        all.extend(own.map(|lock| (ino, lock.owner)));
    }
    Ok(all.into_iter().collect())
}

/// Whether the session must not write to the inode.
pub(super) fn is_fenced(v: &View<'_>, session: SessionId, ino: InodeNo) -> Result<bool, MetaError> {
    Ok(v.get(&keys(FENCED, &[session.0, ino.0]))?.is_some())
}

/// Whether whoever wants the lock would wait for himself: the owners in his
/// way, those in the way of what these wait for, and so on.
fn is_deadlock(v: &View<'_>, locks: &Locks, wish: &Lock) -> Result<bool, MetaError> {
    let blockers = |locks: &Locks, wish: &Lock| -> Vec<Owner> {
        let held = locks.held.iter().filter(|held| held.conflicts(wish));
        held.map(|held| held.owner).collect()
    };
    let mut todo = blockers(locks, wish);
    let mut seen = BTreeSet::new();
    while let Some(owner) = todo.pop() {
        if owner == wish.owner {
            return Ok(true);
        }
        if !seen.insert(owner) {
            continue;
        }
        for item in v.range(&[], &owner_key(owner))? {
            let (key, value) = item?;
            let (ticket, ino) = (number(key, 25)?, InodeNo(number(value, 0)?));
            let locks = get(v, ino)?;
            let waits = locks.waiting.iter().filter(|w| w.index == ticket);
            todo.extend(waits.flat_map(|w| blockers(&locks, w)));
        }
    }
    Ok(false)
}

impl Wish {
    fn lock(&self, owner: Owner, index: u64) -> Lock {
        Lock {
            owner,
            pid: self.pid,
            range: self.range,
            kind: self.kind,
            index,
        }
    }
}

impl Apply<'_, '_> {
    pub(super) fn lock(
        &mut self,
        ino: InodeNo,
        owner: Owner,
        wish: &Wish,
        wait: bool,
    ) -> Result<Reply, ReadError> {
        if !wish.range.is_valid() {
            return Err(FsError::Invalid.into());
        }
        inode::load(self.tx, ino)?;
        let before = get(self.tx, ino)?;
        // One that is cut in two makes another.
        if before.len() + 2 > INODE_MAX || count(self.tx)? + 2 > LOCKS_MAX {
            return Err(FsError::NoLocks.into());
        }
        let lock = wish.lock(owner, self.index);
        let mut locks = before.clone();
        if before.conflict(&lock).is_some() {
            if !wait {
                return Err(FsError::WouldBlock.into());
            }
            if is_deadlock(self.tx, &before, &lock)? {
                return Err(FsError::Deadlock.into());
            }
            locks.waiting.push(lock);
            self.put_locks(ino, &before, &locks)?;
            let ticket = self.index;
            return Ok(Reply::Waiting { ticket });
        }
        locks.hold(lock);
        // A lock that became a shared one lets others in.
        self.grant(&mut locks);
        self.put_locks(ino, &before, &locks)?;
        Ok(Reply::Locked { fence: self.index })
    }

    /// What was not locked needs no unlocking.
    pub(super) fn unlock(
        &mut self,
        ino: InodeNo,
        owner: Owner,
        range: &LockRange,
    ) -> Result<(), ReadError> {
        let before = get(self.tx, ino)?;
        let mut locks = before.clone();
        locks.carve(owner, range);
        let is_full = locks.len() > INODE_MAX || count(self.tx)? >= LOCKS_MAX;
        if locks.len() > before.len() && is_full {
            return Err(FsError::NoLocks.into());
        }
        self.grant(&mut locks);
        Ok(self.put_locks(ino, &before, &locks)?)
    }

    /// The waiter waits no longer.
    pub(super) fn cancel_lock(&mut self, ino: InodeNo, ticket: u64) -> Result<Reply, ReadError> {
        let before = get(self.tx, ino)?;
        let mut locks = before.clone();
        let at = locks.waiting.iter().position(|w| w.index == ticket);
        let waiter = locks.waiting.remove(at.ok_or(FsError::NotFound)?);
        self.put_locks(ino, &before, &locks)?;
        self.answer(&waiter, Err(FsError::Io));
        Ok(Reply::Done)
    }

    /// The session, or one mount of it, gives back all it has and waits for.
    pub(super) fn drop_locks(
        &mut self,
        session: SessionId,
        mount: Option<u64>,
    ) -> Result<(), MetaError> {
        let other = |lock: &Lock| {
            lock.owner.session != session || mount.is_some_and(|m| m != lock.owner.mount)
        };
        for ino in inodes(self.tx, session, mount)? {
            self.change_locks(ino, |locks| {
                locks.held.retain(other);
                locks.waiting.retain(other);
            })?;
        }
        Ok(())
    }

    /// The session's lease ran out.
    pub(super) fn expire_locks(&mut self, session: SessionId) -> Result<(), MetaError> {
        let Some(mut record) = dedup::session(self.tx, session)? else {
            return Ok(());
        };
        let held = held_by(self.tx, session)?;
        for ino in inodes(self.tx, session, None)? {
            let waits = get(self.tx, ino)?.waiting.into_iter();
            for waiter in waits.filter(|w| w.owner.session == session) {
                self.answer(&waiter, Err(FsError::Io));
            }
        }
        self.drop_locks(session, None)?;
        if held.is_empty() {
            return Ok(());
        }
        for (ino, _) in &held {
            self.tx.put(&keys(FENCED, &[session.0, ino.0]), vec![1]);
        }
        record.fenced = true;
        dedup::put(self.tx, session, &record)?;
        let lost = held.into_iter().map(|(ino, o)| (ino, o.mount, o.id));
        let locks = lost.collect();
        self.effects
            .changes
            .push(Change::LocksLost { session, locks });
        Ok(())
    }

    /// The session knows that its locks are lost.
    pub(super) fn reset_locks(&mut self, session: SessionId) -> Result<(), MetaError> {
        self.drop_locks(session, None)?;
        let mut fenced = Vec::new();
        for item in self.tx.range(&[], &key(FENCED, session.0))? {
            fenced.push(item?.0.to_vec());
        }
        for key in fenced {
            self.tx.delete(&key)?;
        }
        Ok(())
    }

    /// The inode is gone, and what was locked with it.
    pub(super) fn free_locks(&mut self, ino: InodeNo) -> Result<(), MetaError> {
        let before = get(self.tx, ino)?;
        for waiter in &before.waiting {
            self.answer(waiter, Err(FsError::Stale));
        }
        self.put_locks(ino, &before, &Locks::default())
    }

    fn change_locks(
        &mut self,
        ino: InodeNo,
        change: impl FnOnce(&mut Locks),
    ) -> Result<(), MetaError> {
        let before = get(self.tx, ino)?;
        let mut locks = before.clone();
        change(&mut locks);
        self.grant(&mut locks);
        self.put_locks(ino, &before, &locks)
    }

    /// Gives what is free to those who wait for it.
    fn grant(&mut self, locks: &mut Locks) {
        while let Some(waiter) = locks.next() {
            self.answer(&waiter, Ok(self.index));
            let index = self.index;
            locks.hold(Lock { index, ..waiter });
        }
    }

    fn answer(&mut self, waiter: &Lock, result: Result<u64, FsError>) {
        self.effects.changes.push(Change::Waited {
            session: waiter.owner.session,
            ticket: waiter.index,
            result,
        });
    }

    /// Saves the locks of an inode, and what is kept of them elsewhere.
    fn put_locks(&mut self, ino: InodeNo, before: &Locks, now: &Locks) -> Result<(), MetaError> {
        if before == now {
            return Ok(());
        }
        let (was, is) = (before.members(), now.members());
        for (session, mount) in was.difference(&is) {
            self.tx.delete(&member_key(*session, *mount, ino))?;
        }
        for (session, mount) in is.difference(&was) {
            self.tx.put(&member_key(*session, *mount, ino), vec![1]);
        }
        let (was, is) = (before.waiting_keys(), now.waiting_keys());
        for key in was.difference(&is) {
            self.tx.delete(key)?;
        }
        for key in is.difference(&was) {
            self.tx.put(key, ino.0.to_be_bytes().to_vec());
        }
        let count = (count(self.tx)? + now.len() as u64).saturating_sub(before.len() as u64);
        match count {
            0 => self.tx.delete(COUNT)?,
            n => self.tx.save(COUNT, &n, "number of locks")?,
        }
        match now.len() {
            0 => self.tx.delete(&key(LOCKS, ino.0)),
            _ => self.tx.save(&key(LOCKS, ino.0), now, "locks"),
        }
    }
}

/// Of all locks.
fn count(v: &View<'_>) -> Result<u64, MetaError> {
    Ok(v.load(COUNT, "number of locks")?.unwrap_or(0))
}
