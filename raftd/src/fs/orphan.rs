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

//! Orphans: inodes that lost their last name and live on while a session may
//! hold them open.  Runs in raftd, pure.

#![forbid(unsafe_code)]

use super::apply::Apply;
use super::inode::{self, key, number, Contents, Inode};
use super::{dedup, space, Change, DataOp};
use crate::store::meta::{decode, MetaError, View};
use common::fs::{InodeNo, SessionId};

const ORPHAN: u8 = b'o';

fn holders(v: &View<'_>, ino: InodeNo) -> Result<Option<Vec<SessionId>>, MetaError> {
    v.load(&key(ORPHAN, ino.0), "orphan")
}

/// All orphans, and who may hold them.
pub fn list(v: &View<'_>) -> Result<Vec<(InodeNo, Vec<SessionId>)>, MetaError> {
    v.range(&[], &[ORPHAN])?
        .map(|item| {
            let (key, value) = item?;
            Ok((InodeNo(number(key, 1)?), decode(value, "orphan")?))
        })
        .collect()
}

impl Apply<'_, '_> {
    /// Takes in an inode whose last name is gone.
    pub(super) fn orphan(&mut self, ino: InodeNo, inode: &Inode) -> Result<(), MetaError> {
        let sessions: Vec<SessionId> = dedup::sessions(self.tx)?
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        if sessions.is_empty() {
            return self.free(ino, inode);
        }
        inode::put(self.tx, ino, inode)?;
        self.tx.save(&key(ORPHAN, ino.0), &sessions, "orphan")?;
        self.effects.changes.push(Change::Orphan { ino });
        Ok(())
    }

    /// The session holds this orphan open no more, or never did.
    pub(super) fn release(&mut self, ino: InodeNo, session: SessionId) -> Result<(), MetaError> {
        let Some(mut sessions) = holders(self.tx, ino)? else {
            return Ok(());
        };
        sessions.retain(|s| *s != session);
        if sessions.is_empty() {
            let inode = inode::get(self.tx, ino)?.ok_or(MetaError::Corrupt("orphan"))?;
            return self.free(ino, &inode);
        }
        self.tx.save(&key(ORPHAN, ino.0), &sessions, "orphan")
    }

    /// The session has ended, and all its holds with it.
    pub(super) fn release_all(&mut self, session: SessionId) -> Result<(), MetaError> {
        for (ino, sessions) in list(self.tx)? {
            if sessions.contains(&session) {
                self.release(ino, session)?;
            }
        }
        Ok(())
    }

    fn free(&mut self, ino: InodeNo, inode: &Inode) -> Result<(), MetaError> {
        match inode.contents {
            Contents::Backing { .. } => {
                let freed = space::cut(self.tx, ino, 0)?;
                self.give_back(inode.tree, &freed)?;
                self.effects.data.push(DataOp::Remove { ino });
            }
            Contents::Directory { .. } => {
                self.forget_quota(ino, inode)?;
            }
            _ => {
                let blocks = inode.contents_blocks();
                self.free_inline(blocks)?;
                self.charge(inode.tree, -(blocks as i64), 0)?;
            }
        }
        self.free_xattrs(ino, inode)?;
        self.charge(inode.tree, 0, -1)?;
        self.free_records(inode.extra())?;
        inode::delete(self.tx, ino)?;
        self.free_locks(ino)?;
        self.tx.delete(&key(ORPHAN, ino.0))?;
        let used = self.sup.used_inodes.checked_sub(1);
        self.sup.used_inodes = used.ok_or(MetaError::Corrupt("super"))?;
        self.effects.changes.push(Change::Gone { ino });
        Ok(())
    }
}
