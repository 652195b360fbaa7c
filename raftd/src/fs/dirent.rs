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

//! Directories: entries by name for lookup, and by cookie for readdir, so
//! that a listing goes on where it was whatever happens to other entries.
//! Runs in raftd, pure.

#![forbid(unsafe_code)]

use super::inode::{self, key, key2, kind_bits, kind_byte, Contents, Inode, ReadError};
use crate::store::meta::{MetaError, View, Writer};
use common::fs::{Attr, Cookie, Dirent, FsError, InodeNo, NAME_MAX, S_IFDIR};
use serde::{Deserialize, Serialize};

const BY_NAME: u8 = b'd';
const BY_COOKIE: u8 = b'c';

/// Cookies of `.` and `..`; those of entries follow.
const DOT: Cookie = Cookie(1);
const DOTDOT: Cookie = Cookie(2);
pub(super) const FIRST_COOKIE: Cookie = Cookie(3);

/// What a listing costs on the wire beside names and attributes, at most.
const DIRENT_COST: usize = 40;
const ATTR_COST: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub ino: InodeNo,
    kind: u8,
    pub cookie: Cookie,
}

#[derive(Serialize, Deserialize)]
struct Listed<'a> {
    ino: InodeNo,
    kind: u8,
    name: &'a [u8],
}

fn name_key(parent: InodeNo, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(9 + name.len());
    key.push(BY_NAME);
    key.extend_from_slice(&parent.0.to_be_bytes());
    key.extend_from_slice(name);
    key
}

pub(super) fn find(v: &View<'_>, parent: InodeNo, name: &[u8]) -> Result<Option<Entry>, MetaError> {
    // A longer key than any name has would be an error to LMDB.
    if name.len() > NAME_MAX {
        return Ok(None);
    }
    v.load(&name_key(parent, name), "dirent")
}

/// Makes an entry, or puts another inode under its name in its place.
pub(super) fn set(
    tx: &mut Writer<'_>,
    parent: InodeNo,
    name: &[u8],
    cookie: Cookie,
    ino: InodeNo,
    mode: u32,
) -> Result<(), MetaError> {
    let kind = kind_byte(mode);
    let entry = Entry { ino, kind, cookie };
    tx.save(&name_key(parent, name), &entry, "dirent")?;
    let listed = Listed { ino, kind, name };
    tx.save(&key2(BY_COOKIE, parent.0, cookie.0), &listed, "dirent")
}

/// A new entry at the end of a directory.
pub(super) fn insert(
    tx: &mut Writer<'_>,
    parent: InodeNo,
    dir: &mut Inode,
    name: &[u8],
    ino: InodeNo,
    mode: u32,
) -> Result<(), MetaError> {
    let Contents::Directory {
        cookie, entries, ..
    } = &mut dir.contents
    else {
        return Err(MetaError::Corrupt("directory"));
    };
    let at = *cookie;
    cookie.0 += 1;
    *entries += 1;
    set(tx, parent, name, at, ino, mode)
}

pub(super) fn remove(
    tx: &mut Writer<'_>,
    parent: InodeNo,
    dir: &mut Inode,
    name: &[u8],
    entry: &Entry,
) -> Result<(), MetaError> {
    match &mut dir.contents {
        Contents::Directory { entries, .. } if *entries > 0 => *entries -= 1,
        _ => return Err(MetaError::Corrupt("directory")),
    }
    tx.delete(&name_key(parent, name))?;
    tx.delete(&key2(BY_COOKIE, parent.0, entry.cookie.0))
}

/// Up to `max` entries behind a cookie.
pub(super) fn behind(
    v: &View<'_>,
    dir: InodeNo,
    after: Cookie,
    max: usize,
) -> Result<Vec<(Cookie, InodeNo)>, MetaError> {
    let from = key2(BY_COOKIE, dir.0, after.0.saturating_add(1));
    v.range(&from, &key(BY_COOKIE, dir.0))?
        .take(max)
        .map(|item| {
            let (key, value) = item?;
            let listed = listed(value)?;
            Ok((Cookie(inode::number(key, 9)?), listed.ino))
        })
        .collect()
}

fn listed(value: &[u8]) -> Result<Listed<'_>, MetaError> {
    match postcard::take_from_bytes(value) {
        Ok((listed, [])) => Ok(listed),
        _ => Err(MetaError::Corrupt("dirent")),
    }
}

fn parent_of(v: &View<'_>, dir: InodeNo) -> Result<InodeNo, ReadError> {
    match inode::load(v, dir)?.contents {
        Contents::Directory { parent, .. } => Ok(parent),
        _ => Err(FsError::NotDir.into()),
    }
}

/// Whether a directory is `ancestor` or lies beneath it.
pub(super) fn is_within(
    v: &View<'_>,
    dir: InodeNo,
    ancestor: InodeNo,
    inodes: u64,
) -> Result<bool, ReadError> {
    let mut at = dir;
    for _ in 0..=inodes {
        if at == ancestor {
            return Ok(true);
        }
        if at == InodeNo::ROOT {
            return Ok(false);
        }
        at = parent_of(v, at)?;
    }
    Err(MetaError::Corrupt("directory loop").into())
}

pub fn lookup(v: &View<'_>, parent: InodeNo, name: &[u8]) -> Result<Attr, ReadError> {
    let up = parent_of(v, parent)?;
    if name.len() > NAME_MAX {
        return Err(FsError::NameTooLong.into());
    }
    let ino = match name {
        b"." => parent,
        b".." => up,
        name => find(v, parent, name)?.ok_or(FsError::NotFound)?.ino,
    };
    inode::getattr(v, ino)
}

/// Whether that inode has that name.
pub fn is_named(
    v: &View<'_>,
    parent: InodeNo,
    name: &[u8],
    ino: InodeNo,
) -> Result<bool, MetaError> {
    Ok(find(v, parent, name)?.is_some_and(|e| e.ino == ino))
}

/// The directory (or file) at a path of plain names from a directory; symbolic
/// links are not followed.
pub fn walk(v: &View<'_>, from: InodeNo, path: &[u8]) -> Result<InodeNo, ReadError> {
    let names = path.split(|&b| b == b'/').filter(|name| !name.is_empty());
    let mut at = from;
    for name in names {
        at = lookup(v, at, name)?.ino;
    }
    Ok(at)
}

/// Entries behind `after` (0 is the beginning), about `max_bytes` of them but
/// at least one; true with the last.
pub fn readdir(
    v: &View<'_>,
    dir: InodeNo,
    after: Cookie,
    max_bytes: usize,
    plus: bool,
) -> Result<(Vec<Dirent>, bool), ReadError> {
    let parent = parent_of(v, dir)?;
    let mut entries = Vec::new();
    let mut bytes = 0;
    for (cookie, ino, name) in [(DOT, dir, &b"."[..]), (DOTDOT, parent, b"..")] {
        if after < cookie {
            bytes += DIRENT_COST + name.len();
            entries.push(Dirent {
                ino,
                next: cookie,
                kind: S_IFDIR,
                name: name.to_vec(),
                attr: None,
            });
        }
    }
    let from = key2(BY_COOKIE, dir.0, after.0.saturating_add(1));
    for item in v.range(&from, &key(BY_COOKIE, dir.0))? {
        let (key, value) = item?;
        let listed = listed(value)?;
        bytes += DIRENT_COST + listed.name.len() + if plus { ATTR_COST } else { 0 };
        if bytes > max_bytes && !entries.is_empty() {
            return Ok((entries, false));
        }
        entries.push(Dirent {
            ino: listed.ino,
            next: Cookie(inode::number(key, 9)?),
            kind: kind_bits(listed.kind),
            name: listed.name.to_vec(),
            attr: match plus {
                true => Some(inode::linked(v, listed.ino)?.attr(listed.ino)),
                false => None,
            },
        });
    }
    Ok((entries, true))
}
