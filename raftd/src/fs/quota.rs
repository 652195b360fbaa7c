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

//! Quotas: how much the whole tree, and each directory tree that has a quota
//! of its own, may take.  Runs in raftd, pure.
//!
//! Each inode belongs to one tree or to none.  It is that of the directory it
//! was made in, and names are neither moved nor linked between trees, so that
//! who is charged never changes.  What was in a directory before it got a quota
//! is adopted bit by bit, in the order of the cookies, by Adopt entries that
//! the leader puts into the log.  `a` has the directories that are not done:
//! a directory is put there when it is adopted itself.  From then on new names
//! in it are behind the walk and belong to the tree already.
//!
//! A quota is taken away by the removal of its record.  The number of a tree
//! is never used again, and an inode with one that has no record belongs to no
//! tree, like those with number 0.

#![forbid(unsafe_code)]

use super::apply::Apply;
use super::inode::{self, key, key2, number, Contents, Inode, ReadError};
use super::space::SHORT;
use super::{dirent, Reply};
use crate::store::meta::{decode, MetaError, View, Writer};
use common::fs::{Cookie, FsError, InodeNo, Statfs, TreeNo, BLOCK};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

const QUOTA: u8 = b'q';
const WALK: u8 = b'a';

/// Entries that one Adopt looks at, at most: some milliseconds of apply.
const BATCH_MAX: usize = 1000;
/// So many trees can be asked one by one.
const QUOTAS_MAX: usize = 4096;

/// Bytes and inodes; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    pub bytes: u64,
    pub inodes: u64,
}

/// The quota of one directory tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    pub root: InodeNo,
    pub limit: Limit,
    pub used_blocks: u64,
    pub used_inodes: u64,
    /// Some of what was there before the quota is not adopted yet.
    pub counting: bool,
}

impl Limit {
    /// May that be taken?  Taking nothing always may.
    fn check(&self, used: (u64, u64), blocks: u64, inodes: u64) -> Result<(), FsError> {
        let over = |limit: u64, used: u64, more: u64, unit: u64| {
            let sum = used.saturating_add(more).saturating_mul(unit);
            limit != 0 && more != 0 && sum > limit
        };
        if over(self.bytes, used.0, blocks, BLOCK) || over(self.inodes, used.1, inodes, 1) {
            return Err(FsError::Quota);
        }
        Ok(())
    }

    fn set(&mut self, bytes: Option<u64>, inodes: Option<u64>) {
        self.bytes = bytes.unwrap_or(self.bytes);
        self.inodes = inodes.unwrap_or(self.inodes);
    }

    /// Whether it leaves little room.
    pub(super) fn is_short(&self, used_blocks: u64) -> bool {
        let left = self.bytes.saturating_sub(used_blocks.saturating_mul(BLOCK));
        let little = SHORT.min((self.bytes / 8).max(SHORT / 64));
        self.bytes != 0 && left < little
    }

    /// What statfs tells where there is such a limit.
    pub(super) fn narrow(&self, statfs: &mut Statfs, used_blocks: u64, used_inodes: u64) {
        if self.bytes != 0 {
            let used = used_blocks.saturating_mul(BLOCK);
            statfs.bytes = statfs.bytes.min(self.bytes);
            let free = self.bytes.saturating_sub(used);
            statfs.bytes_free = statfs.bytes_free.min(free).min(statfs.bytes);
        }
        if self.inodes != 0 {
            statfs.inodes = statfs.inodes.min(self.inodes);
            let free = self.inodes.saturating_sub(used_inodes);
            statfs.inodes_free = statfs.inodes_free.min(free).min(statfs.inodes);
        }
    }
}

/// None if that number is of no tree (any more).
pub fn get(v: &View<'_>, tree: TreeNo) -> Result<Option<Quota>, MetaError> {
    match tree {
        TreeNo::NONE => Ok(None),
        tree => v.load(&key(QUOTA, tree.0), "quota"),
    }
}

/// The tree that an inode belongs to, if any.
pub fn of(v: &View<'_>, inode: &Inode) -> Result<Option<Quota>, MetaError> {
    get(v, inode.tree)
}

/// All trees that have a quota.
pub fn list(v: &View<'_>) -> Result<Vec<Quota>, MetaError> {
    v.range(&[], &[QUOTA])?
        .map(|item| decode(item?.1, "quota"))
        .collect()
}

/// Those of them with little room left.
pub fn short(v: &View<'_>) -> Result<HashSet<TreeNo>, MetaError> {
    let mut short = HashSet::new();
    for item in v.range(&[], &[QUOTA])? {
        let (key, value) = item?;
        let quota: Quota = decode(value, "quota")?;
        if quota.limit.is_short(quota.used_blocks) {
            short.insert(TreeNo(number(key, 1)?));
        }
    }
    Ok(short)
}

/// A tree with something left to adopt, or to forget.
pub fn unfinished(v: &View<'_>) -> Result<Option<TreeNo>, MetaError> {
    match v.range(&[], &[WALK])?.next() {
        Some(item) => Ok(Some(TreeNo(number(item?.0, 1)?))),
        None => Ok(None),
    }
}

fn put(tx: &mut Writer<'_>, tree: TreeNo, quota: &Quota) -> Result<(), MetaError> {
    tx.save(&key(QUOTA, tree.0), quota, "quota")
}

/// The directories to walk, and after which cookie; `max` of them.
fn to_walk(v: &View<'_>, tree: TreeNo, max: usize) -> Result<Vec<(InodeNo, Cookie)>, MetaError> {
    v.range(&[], &key(WALK, tree.0))?
        .take(max)
        .map(|item| {
            let (key, value) = item?;
            Ok((InodeNo(number(key, 9)?), decode(value, "walk")?))
        })
        .collect()
}

impl Apply<'_, '_> {
    /// The number for what is made in this directory.
    pub(super) fn tree_of(&self, inode: &Inode) -> Result<TreeNo, MetaError> {
        Ok(match of(self.tx, inode)? {
            Some(_) => inode.tree,
            None => TreeNo::NONE,
        })
    }

    /// May the tree, and the whole, take that many more?
    pub(super) fn check_quota(
        &self,
        tree: TreeNo,
        blocks: u64,
        inodes: u64,
    ) -> Result<(), ReadError> {
        let used = (self.sup.counted_blocks(), self.sup.used_inodes);
        self.sup.limit.check(used, blocks, inodes)?;
        if let Some(quota) = get(self.tx, tree)? {
            let used = (quota.used_blocks, quota.used_inodes);
            quota.limit.check(used, blocks, inodes)?;
        }
        Ok(())
    }

    /// Takes for the tree what has been checked, or gives back.
    pub(super) fn charge(
        &mut self,
        tree: TreeNo,
        blocks: i64,
        inodes: i64,
    ) -> Result<(), MetaError> {
        let Some(mut quota) = get(self.tx, tree)? else {
            return Ok(());
        };
        if (blocks, inodes) == (0, 0) {
            return Ok(());
        }
        let blocks = quota.used_blocks.checked_add_signed(blocks);
        let inodes = quota.used_inodes.checked_add_signed(inodes);
        quota.used_blocks = blocks.ok_or(MetaError::Corrupt("quota"))?;
        quota.used_inodes = inodes.ok_or(MetaError::Corrupt("quota"))?;
        put(self.tx, tree, &quota)
    }

    pub(super) fn set_quota(
        &mut self,
        ino: InodeNo,
        bytes: Option<u64>,
        inodes: Option<u64>,
    ) -> Result<Reply, ReadError> {
        let mut inode = self.dir(ino)?;
        if ino == InodeNo::ROOT {
            self.sup.limit.set(bytes, inodes);
            return Ok(Reply::Done);
        }
        if let Some(mut quota) = of(self.tx, &inode)? {
            if quota.root != ino {
                return Err(FsError::CrossTree.into());
            }
            quota.limit.set(bytes, inodes);
            put(self.tx, inode.tree, &quota)?;
            return Ok(Reply::Done);
        }
        if self.beneath_root(ino)? || self.holds_root(ino)? {
            return Err(FsError::CrossTree.into());
        }
        if list(self.tx)?.len() >= QUOTAS_MAX {
            return Err(FsError::NoSpace.into());
        }
        let mut limit = Limit::default();
        limit.set(bytes, inodes);
        let tree = TreeNo(self.index);
        let quota = Quota {
            root: ino,
            limit,
            used_blocks: 0,
            used_inodes: 0,
            counting: false,
        };
        put(self.tx, tree, &quota)?;
        self.adopt(tree, ino, &mut inode)?;
        inode::put(self.tx, ino, &inode)?;
        Ok(Reply::Done)
    }

    pub(super) fn drop_quota(&mut self, ino: InodeNo) -> Result<Reply, ReadError> {
        if ino == InodeNo::ROOT {
            self.sup.limit = Limit::default();
            return Ok(Reply::Done);
        }
        let inode = self.dir(ino)?;
        match self.forget_quota(ino, &inode)? {
            true => Ok(Reply::Done),
            false => Err(FsError::NotFound.into()),
        }
    }

    /// The quota of a directory goes, if it has one.  What was left to walk is
    /// forgotten by Adopt.
    pub(super) fn forget_quota(&mut self, ino: InodeNo, inode: &Inode) -> Result<bool, MetaError> {
        if of(self.tx, inode)?.is_none_or(|quota| quota.root != ino) {
            return Ok(false);
        }
        self.tx.delete(&key(QUOTA, inode.tree.0))?;
        Ok(true)
    }

    /// Whether this directory or one above it has a quota.
    fn beneath_root(&self, dir: InodeNo) -> Result<bool, ReadError> {
        let mut at = dir;
        for _ in 0..=self.sup.used_inodes {
            let inode = inode::load(self.tx, at)?;
            if of(self.tx, &inode)?.is_some_and(|quota| quota.root == at) {
                return Ok(true);
            }
            match inode.contents {
                _ if at == InodeNo::ROOT => return Ok(false),
                Contents::Directory { parent, .. } => at = parent,
                _ => return Err(FsError::NotDir.into()),
            }
        }
        Err(MetaError::Corrupt("directory loop").into())
    }

    /// Whether this directory or one beneath it has a quota.
    fn holds_root(&self, dir: InodeNo) -> Result<bool, ReadError> {
        for quota in list(self.tx)? {
            // One whose directory is only held open is beneath nothing.
            let root = inode::get(self.tx, quota.root)?;
            if root.is_some_and(|root| root.nlink > 0)
                && dirent::is_within(self.tx, quota.root, dir, self.sup.used_inodes)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// May a name of this inode move from the one directory to the other?
    pub(super) fn check_trees(
        &self,
        (ino, inode): (InodeNo, &Inode),
        (parent, dir): (InodeNo, &Inode),
        (new_parent, new_dir): (InodeNo, &Inode),
    ) -> Result<(), ReadError> {
        if parent == new_parent {
            return Ok(());
        }
        let tree = self.tree_of(dir)?;
        if tree != self.tree_of(new_dir)? {
            return Err(FsError::CrossTree.into());
        }
        // Where a walk has not been yet, one quota could get beneath another.
        let early = tree == TreeNo::NONE && inode.is_dir() && unfinished(self.tx)?.is_some();
        if early && self.beneath_root(new_parent)? && self.holds_root(ino)? {
            return Err(FsError::CrossTree.into());
        }
        Ok(())
    }

    /// An inode gets a name in a directory where names behind the walk must be
    /// adopted, and was itself still before it.
    pub(super) fn adopt_moved(
        &mut self,
        ino: InodeNo,
        inode: &mut Inode,
        into: TreeNo,
    ) -> Result<(), MetaError> {
        if get(self.tx, into)?.is_some_and(|quota| quota.counting) {
            self.adopt(into, ino, inode)?;
        }
        Ok(())
    }

    /// The inode is the tree's from now on, unless it is another's, and what
    /// is in it will be.  The caller saves it.
    fn adopt(&mut self, tree: TreeNo, ino: InodeNo, inode: &mut Inode) -> Result<(), MetaError> {
        if of(self.tx, inode)?.is_some() {
            return Ok(());
        }
        inode.tree = tree;
        self.charge(tree, inode.blocks() as i64, 1)?;
        match inode.contents {
            Contents::Directory { entries, .. } if entries > 0 => {
                self.walk_on(tree, ino, Cookie(0))
            }
            _ => Ok(()),
        }
    }

    fn walk_on(&mut self, tree: TreeNo, dir: InodeNo, after: Cookie) -> Result<(), MetaError> {
        self.tx.save(&key2(WALK, tree.0, dir.0), &after, "walk")?;
        self.set_counting(tree, true)
    }

    fn set_counting(&mut self, tree: TreeNo, counting: bool) -> Result<(), MetaError> {
        match get(self.tx, tree)? {
            Some(quota) if quota.counting != counting => {
                put(self.tx, tree, &Quota { counting, ..quota })
            }
            _ => Ok(()),
        }
    }

    /// Adopts some of what was in the tree before its quota.
    pub(super) fn adopt_some(&mut self, tree: TreeNo, max: u32) -> Result<(), MetaError> {
        let mut left = (max as usize).min(BATCH_MAX);
        if get(self.tx, tree)?.is_none() {
            for (dir, _) in to_walk(self.tx, tree, left)? {
                self.tx.delete(&key2(WALK, tree.0, dir.0))?;
            }
            return Ok(());
        }
        while left > 0 {
            let Some((dir, after)) = to_walk(self.tx, tree, 1)?.pop() else {
                break;
            };
            let found = dirent::behind(self.tx, dir, after, left)?;
            for (_, ino) in &found {
                let mut inode = inode::linked(self.tx, *ino)?;
                if inode.tree != tree {
                    self.adopt(tree, *ino, &mut inode)?;
                    inode::put(self.tx, *ino, &inode)?;
                }
            }
            match found.last() {
                Some((cookie, _)) if found.len() == left => self.walk_on(tree, dir, *cookie)?,
                _ => self.tx.delete(&key2(WALK, tree.0, dir.0))?,
            }
            left = left.saturating_sub(1 + found.len());
        }
        match to_walk(self.tx, tree, 1)?.is_empty() {
            true => self.set_counting(tree, false),
            false => Ok(()),
        }
    }
}
