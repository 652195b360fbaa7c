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

//! Extended attributes, ACLs among them.  Runs in raftd, pure; the read side
//! serves fused, the write side is for apply alone.
//!
//! The inode counts the bytes of its names and values.  While they are few
//! they are part of what an inode costs, as the contents of a small file are;
//! beyond, it is charged for blocks, which the metadata takes.

#![forbid(unsafe_code)]

use super::acl::Acl;
use super::apply::{must_own, Apply};
use super::inode::{self, is_regular, key, Inode, ReadError};
use super::op::Check;
use super::Reply;
use crate::payload::Payload;
use crate::store::meta::{MetaError, View};
use common::fs::{
    Cred, FsError, InodeNo, TreeNo, BLOCK, INLINE_MAX, S_IFDIR, S_IFLNK, S_IFMT, S_ISGID,
};
use common::xattr::{
    namespace, Namespace, XattrHow, ACL_ACCESS, ACL_DEFAULT, ACL_SIZE_MAX, CAPABILITY, XATTRS_MAX,
    XATTR_LIST_MAX, XATTR_SIZE_MAX,
};

const XATTR: u8 = b'x';
const PERM: u32 = 0o777;

fn xattr_key(ino: InodeNo, name: &[u8]) -> Vec<u8> {
    [&key(XATTR, ino.0)[..], name].concat()
}

/// The value, of an inode that a caller names by number.
pub fn get(v: &View<'_>, ino: InodeNo, name: &[u8]) -> Result<Vec<u8>, ReadError> {
    inode::load(v, ino)?;
    namespace(name)?;
    match v.get(&xattr_key(ino, name))? {
        Some(value) => Ok(value.to_vec()),
        None => Err(FsError::NoAttr.into()),
    }
}

/// All names, each with a NUL behind it.
pub fn list(v: &View<'_>, ino: InodeNo) -> Result<Vec<u8>, ReadError> {
    inode::load(v, ino)?;
    let mut list = Vec::new();
    for name in names(v, ino)? {
        list.extend(name);
        list.push(0);
    }
    Ok(list)
}

fn names(v: &View<'_>, ino: InodeNo) -> Result<Vec<Vec<u8>>, MetaError> {
    let prefix = key(XATTR, ino.0);
    v.range(&[], &prefix)?
        .map(|item| {
            let name = item?.0.strip_prefix(&prefix[..]);
            Ok(name.ok_or(MetaError::Corrupt("key"))?.to_vec())
        })
        .collect()
}

fn cost(name: &[u8], value: &[u8]) -> u32 {
    (name.len() + value.len()) as u32
}

/// Blocks that so many bytes take.
fn blocks(bytes: u32) -> u64 {
    match bytes as usize <= INLINE_MAX {
        true => 0,
        false => u64::from(bytes).div_ceil(BLOCK),
    }
}

/// What a new inode has from its directory.
#[derive(Default)]
pub(super) struct Inherited {
    access: Option<Vec<u8>>,
    default: Option<Vec<u8>>,
}

impl Inherited {
    fn each(&self) -> impl Iterator<Item = (&'static [u8], &Vec<u8>)> {
        let access = self.access.iter().map(|acl| (ACL_ACCESS, acl));
        access.chain(self.default.iter().map(|acl| (ACL_DEFAULT, acl)))
    }

    /// Bytes, as the inode counts them.
    pub fn bytes(&self) -> u32 {
        self.each().map(|(name, acl)| cost(name, acl)).sum()
    }

    pub fn blocks(&self) -> u64 {
        blocks(self.bytes())
    }
}

impl Inode {
    pub fn xattr_blocks(&self) -> u64 {
        blocks(self.xattrs)
    }
}

impl Apply<'_, '_> {
    pub(super) fn set_xattr(
        &mut self,
        ino: InodeNo,
        name: &[u8],
        how: XattrHow,
        (cred, check): (Cred, &Check),
        payload: &Payload,
    ) -> Result<Reply, ReadError> {
        let mut inode = inode::load(self.tx, ino)?;
        let namespace = namespace(name)?;
        if payload.len as usize > XATTR_SIZE_MAX {
            return Err(FsError::TooLong.into());
        }
        check_kind(namespace, &inode)?;
        check_owner(namespace, &inode, check)?;
        let there = self.tx.get(&xattr_key(ino, name))?.is_some();
        match how {
            XattrHow::Create if there => return Err(FsError::Exists.into()),
            XattrHow::Replace if !there => return Err(FsError::NoAttr.into()),
            _ => {}
        }
        let value = payload.bytes().map_err(MetaError::Io)?;
        let value = match namespace {
            Namespace::AclAccess => access_acl(&mut inode, &value, cred)?,
            Namespace::AclDefault => Some(acl(&value)?.encode()),
            _ => Some(value.to_vec()),
        };
        self.put_xattr(ino, &mut inode, name, value)?;
        self.put_changed(ino, inode)
    }

    pub(super) fn remove_xattr(
        &mut self,
        ino: InodeNo,
        name: &[u8],
        check: &Check,
    ) -> Result<Reply, ReadError> {
        let mut inode = inode::load(self.tx, ino)?;
        let namespace = namespace(name)?;
        check_owner(namespace, &inode, check)?;
        if self.tx.get(&xattr_key(ino, name))?.is_none() {
            return match namespace {
                // An ACL is always there: without one, the mode is it.
                Namespace::AclAccess | Namespace::AclDefault => Ok(Reply::Attr(inode.attr(ino))),
                _ => Err(FsError::NoAttr.into()),
            };
        }
        self.put_xattr(ino, &mut inode, name, None)?;
        self.put_changed(ino, inode)
    }

    fn put_changed(&mut self, ino: InodeNo, mut inode: Inode) -> Result<Reply, ReadError> {
        inode.ctime = self.time;
        inode::put(self.tx, ino, &inode)?;
        self.changed(ino, None);
        Ok(Reply::Attr(inode.attr(ino)))
    }

    /// Sets an attribute, or removes it if it is there; or refuses before
    /// anything has changed.  The caller saves the inode.
    fn put_xattr(
        &mut self,
        ino: InodeNo,
        inode: &mut Inode,
        name: &[u8],
        value: Option<Vec<u8>>,
    ) -> Result<(), ReadError> {
        let key = xattr_key(ino, name);
        let old = self.tx.get(&key)?.map(|old| cost(name, old));
        let new = value.as_ref().map(|new| cost(name, new));
        let left = inode.xattrs.checked_sub(old.unwrap_or(0));
        let total = left.ok_or(MetaError::Corrupt("inode"))? + new.unwrap_or(0);
        if new > old && total > XATTRS_MAX {
            return Err(FsError::NoSpace.into());
        }
        if old.is_none() && new.is_some() {
            let listed: usize = names(self.tx, ino)?.iter().map(|n| n.len() + 1).sum();
            if listed + name.len() + 1 > XATTR_LIST_MAX {
                return Err(FsError::NoSpace.into());
            }
        }
        let (before, after) = (inode.xattr_blocks(), blocks(total));
        let more = after.saturating_sub(before);
        self.check_quota(inode.tree, more, 0)?;
        self.sup.check_records(more)?;
        self.take_records(inode.tree, after)?;
        self.give_back_records(inode.tree, before)?;
        inode.xattrs = total;
        match value {
            Some(value) => self.tx.put(&key, value),
            None if old.is_some() => self.tx.delete(&key)?,
            None => {}
        }
        Ok(())
    }

    /// Takes from a file what gives privileges, because somebody changes it
    /// who might abuse them.  The caller saves the inode.
    pub(super) fn kill_priv(&mut self, ino: InodeNo, inode: &mut Inode) -> Result<(), MetaError> {
        inode.kill_priv();
        self.drop_capability(ino, inode)
    }

    /// What a program file can do does not outlive a change, whoever makes it.
    pub(super) fn drop_capability(
        &mut self,
        ino: InodeNo,
        inode: &mut Inode,
    ) -> Result<(), MetaError> {
        if inode.xattrs == 0 || inode.is_dir() {
            return Ok(());
        }
        match self.put_xattr(ino, inode, CAPABILITY, None) {
            Err(ReadError::Meta(e)) => Err(e),
            // To remove is never refused.
            Err(ReadError::Fs(_)) => Err(MetaError::Corrupt("xattr")),
            Ok(()) => Ok(()),
        }
    }

    /// The mode has changed, and the ACL with it.
    pub(super) fn chmod_acl(&mut self, ino: InodeNo, inode: &Inode) -> Result<(), MetaError> {
        if inode.xattrs == 0 {
            return Ok(());
        }
        let key = xattr_key(ino, ACL_ACCESS);
        let Some(old) = self.tx.get(&key)? else {
            return Ok(());
        };
        let mut acl = stored(old)?;
        acl.chmod(inode.mode);
        // As long as before.
        self.tx.put(&key, acl.encode());
        Ok(())
    }

    /// What something made in this directory has from its default ACL; without
    /// one, the umask counts.
    pub(super) fn inherit(
        &self,
        parent: InodeNo,
        dir: &Inode,
        mode: &mut u32,
        umask: u32,
    ) -> Result<Inherited, MetaError> {
        let kind = *mode & S_IFMT;
        if kind == S_IFLNK {
            return Ok(Inherited::default());
        }
        let default = match dir.xattrs {
            0 => None,
            _ => self.tx.get(&xattr_key(parent, ACL_DEFAULT))?,
        };
        let Some(default) = default else {
            *mode &= !(umask & PERM);
            return Ok(Inherited::default());
        };
        let mut acl = stored(default)?;
        *mode = *mode & !PERM | acl.create(*mode);
        let (_, all) = acl.mode();
        Ok(Inherited {
            access: (!all).then(|| acl.encode()),
            default: (kind == S_IFDIR).then(|| default.to_vec()),
        })
    }

    /// Gives them to the new inode, which has been charged for them.
    pub(super) fn bequeath(&mut self, ino: InodeNo, acls: &Inherited) {
        for (name, acl) in acls.each() {
            self.tx.put(&xattr_key(ino, name), acl.clone());
        }
    }

    /// The inode is gone, and they with it.
    pub(super) fn free_xattrs(&mut self, ino: InodeNo, inode: &Inode) -> Result<(), MetaError> {
        if inode.xattrs == 0 {
            return Ok(());
        }
        for name in names(self.tx, ino)? {
            self.tx.delete(&xattr_key(ino, &name))?;
        }
        self.free_inline(inode.xattr_blocks())?;
        self.charge(inode.tree, -(inode.xattr_blocks() as i64), 0)
    }

    /// Blocks of the metadata, for which somebody is charged.
    fn take_records(&mut self, tree: TreeNo, blocks: u64) -> Result<(), MetaError> {
        self.sup.inline_blocks += blocks;
        self.sup.extra += blocks;
        self.charge(tree, blocks as i64, 0)
    }

    fn give_back_records(&mut self, tree: TreeNo, blocks: u64) -> Result<(), MetaError> {
        self.free_inline(blocks)?;
        self.free_records(blocks)?;
        self.charge(tree, -(blocks as i64), 0)
    }
}

/// What the kernel has seen to, as far as it shows in the state.
fn check_kind(namespace: Namespace, inode: &Inode) -> Result<(), FsError> {
    match namespace {
        Namespace::User if !is_regular(inode.mode) && !inode.is_dir() => Err(FsError::NotOwner),
        Namespace::AclAccess | Namespace::AclDefault if inode.kind() == S_IFLNK => {
            Err(FsError::Unsupported)
        }
        Namespace::AclDefault if !inode.is_dir() => Err(FsError::NoPermission),
        _ => Ok(()),
    }
}

/// The kernel may have let in the owner that was.
fn check_owner(namespace: Namespace, inode: &Inode, check: &Check) -> Result<(), FsError> {
    let is_acl = matches!(namespace, Namespace::AclAccess | Namespace::AclDefault);
    match check {
        Check::Owner { uid, owner } if is_acl && *owner != inode.uid => must_own(inode, *uid),
        _ => Ok(()),
    }
}

fn acl(value: &[u8]) -> Result<Acl, FsError> {
    if value.len() > ACL_SIZE_MAX {
        return Err(FsError::TooLong);
    }
    Acl::decode(value)
}

/// One that apply has let in.
fn stored(value: &[u8]) -> Result<Acl, MetaError> {
    Acl::decode(value).map_err(|_| MetaError::Corrupt("acl"))
}

/// Gives the inode the mode that goes with the ACL; answers what of it the
/// mode cannot say.  Who is not in the file's group may not make programs that
/// run as it; of the caller's groups only the first is known here, and with
/// another the bit is lost.  On a directory it gives nobody anything.
fn access_acl(inode: &mut Inode, value: &[u8], cred: Cred) -> Result<Option<Vec<u8>>, FsError> {
    let acl = acl(value)?;
    let (mode, all) = acl.mode();
    inode.mode = inode.mode & !PERM | mode;
    if cred.uid != 0 && cred.gid != inode.gid && !inode.is_dir() {
        inode.mode &= !S_ISGID;
    }
    Ok((!all).then(|| acl.encode()))
}
